//! `highwater archive accept-gap`: offsets that the archive lacks, and that marks may pass by a person's word.

use std::process::ExitCode;

use anyhow::Context;
use highwater_batch::archive::{Accepted, Archive, ArchiveError};
use shared_schemas::handoff::{Offset, OffsetRange};

use crate::commands::output::Output;
use crate::commands::{Place, dataset, used_wrongly};

/// Let marks pass offsets that the archive lacks
///
/// Kafka no longer had them when the archiver came, or the archive lost them and Kafka no longer has them. A batch run that
/// is held there names them. From the next publication on their events are in no answer, also where the speed layer had counted
/// them, and answers that they belong to say `gap`. It can't be taken back. Without `--yes` it tells what would be done and exits 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater archive accept-gap flights 2 81204..90000\n  \
    highwater archive accept-gap flights 2 81204..90000 --yes")]
pub(crate) struct AcceptGap {
    /// The dataset
    dataset: String,
    /// Kafka's partition number
    partition: u32,
    /// The first offset, and the one behind the last
    #[arg(value_name = "FROM..TO", value_parser = range)]
    offsets: OffsetRange,
    /// Do it
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

fn range(text: &str) -> Result<OffsetRange, String> {
    let wrong =
        || format!("`{text}` is no range of offsets: write the first and the one behind the last, as in 81204..90000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let offset = |text: &str| text.parse().map(Offset).map_err(|_| wrong());
    let range = OffsetRange {
        from: offset(from)?,
        to: offset(to)?,
    };
    if range.is_empty() {
        return Err(format!("`{text}` ends before it starts: write the lower offset first"));
    }
    Ok(range)
}

impl AcceptGap {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(code) => return Ok(code),
        };
        let done = tokio::runtime::Runtime::new()?.block_on(async {
            let archive = Archive::open(&config.archive, dataset).await?;
            let mut archive = archive.context("nothing is archived yet")?;
            Ok::<_, anyhow::Error>(Box::pin(archive.accept_gap(self.partition, self.offsets, self.yes)).await)
        })?;
        let done = match done {
            Err(error @ ArchiveError::NotLacking { .. }) => return Ok(used_wrongly(&error.to_string())),
            done => done?,
        };
        self.output.print_text(&done, text)?;
        Ok(if self.yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn text(accepted: &Accepted) -> String {
    let Accepted {
        partition, from, to, ..
    } = accepted;
    let what = if accepted.done {
        "accepted: the next batch run may pass them, and answers say `gap`"
    } else {
        "nothing was done: with --yes marks pass them, their events are in no answer from then on, and answers say `gap` for good"
    };
    format!("offsets {from}..{to} of partition {partition}\n{what}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let read = |text: &str| range(text).map(|range| (range.from.0, range.to.0));
        assert_eq!(read("5..9"), Ok((5, 9)));
        for wrong in ["", "5", "..9", "5..", "5..9..", "-1..2", "9..5", "5..5"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
