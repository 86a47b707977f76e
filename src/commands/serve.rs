//! `highwater serve`: the query API, until it is told to end.

use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::Place;
use super::output::Output;
use crate::signals::Signals;
use crate::{connect, metrics};

/// Serve the query API until Ctrl-C
///
/// It answers from ClickHouse alone: batch results below the marks, the speed layer's rows from there on. When it is ready
/// its address is printed; a port 0 in `serve.listen` picks a free one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater serve\n  \
    highwater serve --config /etc/highwater/highwater.toml --output json\n  \
    curl http://127.0.0.1:8080/api/v1/views")]
pub(crate) struct Serve {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Ready {
    api: String,
}

impl Serve {
    /// Runs until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        Signals::run_until_told(async |cancel| {
            let metrics = metrics::record()?;
            // Boxed, since it is large and waited for once.
            let connected = Box::pin(connect::store(&config, &definitions));
            let Some(store) = cancel.run_until_cancelled(connected).await.transpose()? else {
                return Ok(());
            };
            let definitions = Arc::new(definitions);
            let bound = highwater_serving::serve(&config.serve, definitions, store, metrics, cancel.clone()).await?;
            let ready = Ready {
                api: format!("http://{}", bound.address()),
            };
            self.output
                .print(&ready, |ready| vec![vec!["api".to_owned(), ready.api.clone()]])?;
            tracing::info!("ready, Ctrl-C ends it");
            Ok(bound.run().await?)
        })
    }
}
