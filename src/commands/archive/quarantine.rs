//! `highwater archive quarantine`: a file that can't be read, put aside.

use std::process::ExitCode;

use anyhow::Context;
use highwater_batch::archive::{Archive, ArchiveError, Quarantined};

use crate::commands::output::Output;
use crate::commands::{Place, dataset, used_wrongly};

/// Put a damaged or missing file aside, and record its offsets as a gap
///
/// A batch run that meets such a file does not publish, and names it. If no good copy can be put in its place, this takes it
/// out of the table: runs go on without its events, and answers that it belongs to say `gap`. The file itself is moved to
/// `_quarantine` in the table's folder. Without `--yes` it tells what would be done and exits 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater archive quarantine flights 00000000000000000000-5f0c.zstd.parquet\n  \
    highwater archive quarantine flights 00000000000000000000-5f0c.zstd.parquet --yes")]
pub(crate) struct Quarantine {
    /// The dataset
    dataset: String,
    /// The file, as the error named it, or its name alone
    file: String,
    /// Do it
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

impl Quarantine {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(code) => return Ok(code),
        };
        let done = tokio::runtime::Runtime::new()?.block_on(async {
            let archive = Archive::open(&config.archive, dataset).await?;
            let mut archive = archive.context("nothing is archived yet")?;
            Ok::<_, anyhow::Error>(Box::pin(archive.quarantine(&self.file, self.yes)).await)
        })?;
        let done = match done {
            Err(error @ ArchiveError::NoFile { .. }) => return Ok(used_wrongly(&error.to_string())),
            done => done?,
        };
        self.output.print_text(&done, |done| text(done, self.yes))?;
        Ok(if self.yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn text(done: &Quarantined, carried_out: bool) -> String {
    let gap: Vec<_> = (done.gap.iter().take(20))
        .map(|(from, to)| format!("{from} to {}", to.saturating_sub(1)))
        .collect();
    let more = done.gap.len().saturating_sub(gap.len());
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let of = format!(
        "{}: {} events of {}, partition {}; offsets {}{more}",
        done.file,
        done.events,
        done.day,
        done.partition,
        gap.join(", ")
    );
    let what = match &done.moved_to {
        Some(place) => format!("put aside: it is {place} now, and its offsets are a gap"),
        None if carried_out => "put aside: there was no file, and its offsets are a gap".to_owned(),
        None => "nothing was done: with --yes it is put aside, and answers say `gap` for good".to_owned(),
    };
    format!("{of}\n{what}\n")
}
