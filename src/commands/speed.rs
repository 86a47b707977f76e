//! `highwater speed`: the speed layer as a process of its own.

use std::process::ExitCode;

use super::Place;
use crate::connect;
use crate::metrics;
use crate::signals::Signals;

/// Run the speed layer: Kafka to ClickHouse within a second, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater speed\n  \
    highwater speed --config /etc/highwater/highwater.toml --log-format json")]
pub(crate) struct Speed {}

impl Speed {
    /// Runs until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        Signals::run_until_told(async |cancel| {
            let (metrics, _) = metrics::serve(config.metrics.listen).await?;
            let connected = Box::pin(connect::both(&config, &definitions));
            let Some((store, kafka)) = cancel.run_until_cancelled(connected).await.transpose()? else {
                return Ok(());
            };
            tracing::info!("metrics at {metrics}");
            Ok(highwater_speed::run(&config.speed, &definitions, &kafka, &store, cancel.clone()).await?)
        })
    }
}
