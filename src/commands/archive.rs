//! `highwater archive`: the archiver as a process of its own.

use std::process::ExitCode;

use super::Place;
use crate::connect;
use crate::metrics;
use crate::signals::Signals;

/// Keep every event of every dataset in the archive, until Ctrl-C
///
/// Events are written as Parquet files of a Delta Lake table, each range of offsets once. Records that can't be read go to
/// the dataset's dead-letter topic, each with its reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater archive\n  \
    highwater archive --config /etc/highwater/highwater.toml --log-format json")]
pub(crate) struct Archive {}

impl Archive {
    /// Runs until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        Signals::run_until_told(async |cancel| {
            let (metrics, _) = metrics::serve(config.metrics.listen).await?;
            let connected = Box::pin(connect::kafka(&config, &definitions));
            let Some(kafka) = cancel.run_until_cancelled(connected).await.transpose()? else {
                return Ok(());
            };
            tracing::info!("metrics at {metrics}");
            Ok(highwater_batch::archive::serve(&config, &definitions, &kafka, cancel.clone()).await?)
        })
    }
}
