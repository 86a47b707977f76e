//! `highwater status`: how far each layer has come, on one screen.

mod look;
mod report;
mod screen;
pub(super) mod told;
mod warnings;

use std::process::ExitCode;

use shared_connections::log::Kafka;

use super::Place;
use super::output::Output;
use look::Sight;
use report::Report;

/// Show how far each layer has come: lag, freshness, marks, publications, batch runs, dead letters
///
/// Asks Kafka, ClickHouse and the archive, and changes nothing. One that does not answer is named in a sentence, the rest
/// is shown all the same, and it exits 1. What needs attention but is no failure stands under `warnings`, and exits 0.
/// `fresh` is how long ago the moment is up to which everything is counted or archived. Of more than 100,000 dead letters
/// only the newest are counted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater status\n  \
    highwater status --data data/flights\n  \
    highwater status --config /etc/highwater/highwater.toml --output json")]
pub(crate) struct Status {
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        let kafka = Kafka::new(&config.kafka)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let sight = runtime.block_on(Box::pin(Sight::of(&kafka, &config, &definitions)));
        let report = Report::of(&config, &definitions, &sight);
        self.output.print_text(&report, screen::text)?;
        Ok(if report.problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
