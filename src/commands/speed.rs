//! `highwater speed`: the speed layer as a process of its own, and having it read again what the store has lost.

mod redo;

use std::process::ExitCode;

use self::redo::Redo;
use super::Place;
use crate::connect;
use crate::metrics;
use crate::signals::Signals;

/// Run the speed layer: Kafka to ClickHouse within a second, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    highwater speed\n  \
    highwater speed --config /etc/highwater/highwater.toml --log-format json\n  \
    highwater speed redo --view departures --dry-run")]
pub(crate) struct Speed {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Redo(Redo),
}

impl Speed {
    /// Whether this process reads records and holds them.
    pub(super) fn runs_the_layer(&self) -> bool {
        self.command.is_none()
    }

    /// Runs to its end; the layer until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        match self.command {
            None => serve(place),
            Some(Command::Redo(redo)) => redo.run(place),
        }
    }
}

fn serve(place: &Place) -> anyhow::Result<ExitCode> {
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
