//! `highwater bench`: how fast this is, on this machine.

use std::process::ExitCode;
use std::time::Duration;

use super::Place;
use super::output::Output;
use crate::bench::{Figure, stages};
use crate::signals::Signals;

/// Measure how fast Highwater is on this machine
///
/// Figures are compared with the aims in docs/performance.md. A missed aim is no failure: it exits 0.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    bench: Name,
}

#[derive(Debug, clap::Subcommand)]
enum Name {
    /// Each stage of the speed layer alone, on one core, without Kafka and ClickHouse
    #[command(after_help = "Examples:\n  \
        highwater bench stages\n  \
        highwater bench stages --output json")]
    Stages {
        #[command(flatten)]
        output: Output,
    },
}

/// How long each stage works.
const EACH: Duration = Duration::from_secs(3);

impl Bench {
    /// Runs until all is measured, or until a signal.
    pub(crate) fn run(self, _: &Place) -> anyhow::Result<ExitCode> {
        let Name::Stages { output } = self.bench;
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut signals = Signals::listen()?;
            let measured = tokio::task::spawn_blocking(|| stages::figures(EACH));
            let figures = tokio::select! {
                figures = measured => figures??,
                name = signals.next() => anyhow::bail!("{name}: not everything was measured"),
            };
            print(output, &figures)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn print(output: Output, figures: &[Figure]) -> anyhow::Result<()> {
    let head = ["figure", "value", "unit", "aim", ""].map(str::to_owned).to_vec();
    output.print(figures, |figures| {
        std::iter::once(head).chain(figures.iter().map(Figure::row)).collect()
    })
}
