//! `highwater archive`: the archiver as a process of its own, and what keeps an archive in order.

mod accept_gap;
mod optimize;
mod quarantine;

use std::process::ExitCode;

use self::accept_gap::AcceptGap;
use self::optimize::Optimize;
use self::quarantine::Quarantine;
use super::Place;
use crate::connect;
use crate::metrics;
use crate::signals::Signals;

/// Keep every event of every dataset in the archive, until Ctrl-C
///
/// Events are written as Parquet files of a Delta Lake table, each range of offsets once. Records that can't be read go to
/// the dataset's dead-letter topic, each with its reason. Small files are made into large ones on `archive.optimize`'s
/// schedule.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    highwater archive\n  \
    highwater archive --config /etc/highwater/highwater.toml --log-format json\n  \
    highwater archive optimize --dry-run")]
pub(crate) struct Archive {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    AcceptGap(AcceptGap),
    Optimize(Optimize),
    Quarantine(Quarantine),
}

impl Archive {
    /// Runs to its end; the archiver until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        match self.command {
            None => serve(place),
            Some(Command::AcceptGap(accept)) => accept.run(place),
            Some(Command::Optimize(optimize)) => optimize.run(place),
            Some(Command::Quarantine(quarantine)) => quarantine.run(place),
        }
    }
}

fn serve(place: &Place) -> anyhow::Result<ExitCode> {
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
