//! `highwater serve`: the query API, until it is told to end.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use shared_connections::store::{Store, StoreError};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::signals::Signals;

/// How long ClickHouse is waited for at the start.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first pause between two tries; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The upper ends of the buckets of durations, in seconds.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

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
    pub(crate) fn run(self, config: Option<&Path>) -> anyhow::Result<ExitCode> {
        let (config, definitions) = super::load(config)?;
        tokio::runtime::Runtime::new()?.block_on(self.until_ended(&config, definitions))
    }

    async fn until_ended(self, config: &Config, definitions: Definitions) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen()?;
        let metrics = metrics()?;
        let store = Store::new(&config.clickhouse);
        tokio::select! {
            prepared = prepared(&store, &definitions) => prepared?,
            name = signals.next() => {
                tracing::info!("{name}: ended before ClickHouse was there");
                return Ok(ExitCode::SUCCESS);
            }
        }
        let cancel = CancellationToken::new();
        let bound =
            highwater_serving::serve(&config.serve, Arc::new(definitions), store, metrics, cancel.clone()).await?;
        let ready = Ready {
            api: format!("http://{}", bound.address()),
        };
        self.output
            .print(&ready, |ready| vec![vec!["api".to_owned(), ready.api.clone()]])?;
        tracing::info!("ready, Ctrl-C ends it");
        let mut running = std::pin::pin!(bound.run());
        tokio::select! {
            ended = &mut running => ended?,
            name = signals.next() => {
                tracing::info!("{name}: stopping");
                cancel.cancel();
                running.await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The recorder of this process's metrics.
fn metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .install_recorder()
        .context("metrics cannot be recorded")
}

/// Waits until the store is there, with all tables.
async fn prepared(store: &Store, definitions: &Definitions) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match store.create_tables(definitions).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_passing() && begun.elapsed() + pause < PATIENCE => {
                tracing::warn!("{error}: trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(given_up(error)),
        }
    }
}

fn given_up(error: StoreError) -> anyhow::Error {
    if error.is_passing() {
        let waited = format!("gave up after {} s", PATIENCE.as_secs());
        anyhow::Error::from(error).context(waited)
    } else {
        error.into()
    }
}
