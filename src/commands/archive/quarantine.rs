//! `highwater archive quarantine`: a file that can't be read, put aside; and put back, where it was whole after all.

use std::process::ExitCode;

use anyhow::Context;
use highwater_batch::archive::{Archive, ArchiveError, Quarantined, Restored};

use crate::commands::output::Output;
use crate::commands::{Place, dataset, used_wrongly};

/// Put a damaged or missing file aside, and record its offsets as a gap
///
/// A batch run that meets such a file does not publish, and names it. If no good copy can be put in its place, this takes it
/// out of the table: runs go on without its events, and answers that it belongs to say `gap`. The file itself is moved to
/// `_quarantine` in the table's folder. The file is read first: one that is whole stays where it is, as does one that the store does
/// not give just now. Without `--yes` it tells what would be done and exits 1.
///
/// `--restore` puts back what was put aside, or a good copy that lies in its place below `_quarantine`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater archive quarantine flights 00000000000000000000-5f0c.zstd.parquet\n  \
    highwater archive quarantine flights 00000000000000000000-5f0c.zstd.parquet --yes\n  \
    highwater archive quarantine flights --restore 00000000000000000000-5f0c.zstd.parquet --yes")]
pub(crate) struct Quarantine {
    /// The dataset
    dataset: String,
    /// The file, as the error named it, its path, or its name alone
    file: String,
    /// Put the file back into the table: its offsets are no gap any more
    #[arg(long, conflicts_with = "force")]
    restore: bool,
    /// Also a file that can be read
    #[arg(long)]
    force: bool,
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
        tokio::runtime::Runtime::new()?.block_on(async {
            let archive = Archive::open(&config.archive, dataset).await?;
            let mut archive = archive.context("nothing is archived yet")?;
            let done = if self.restore {
                let back = Box::pin(archive.restore(&self.file, self.yes)).await;
                back.map(|back| self.output.print_text(&back, put_back))
            } else {
                let aside = Box::pin(archive.quarantine(&self.file, self.force, self.yes)).await;
                aside.map(|aside| self.output.print_text(&aside, |aside| text(aside, self.yes)))
            };
            match done {
                Err(error @ (ArchiveError::NoFile { .. } | ArchiveError::NotAside { .. })) => {
                    Ok(used_wrongly(&error.to_string()))
                }
                done => {
                    done??;
                    Ok(if self.yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
                }
            }
        })
    }
}

fn put_back(back: &Restored) -> String {
    let of = format!(
        "{}: {} events of {}, partition {}",
        back.file, back.events, back.day, back.partition
    );
    let what = match &back.restored_to {
        Some(path) => format!(
            "put back as {path}: `highwater batch run --days {}` counts its events, and `--full` ends the `gap` of the answers",
            back.day
        ),
        None => "nothing was done: with --yes it is put back".to_owned(),
    };
    format!("{of}\n{what}\n")
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
        None => "nothing was done: with --yes it is put aside, and answers say `gap`".to_owned(),
    };
    format!("{of}\n{what}\n")
}
