//! `highwater reconcile`: what is answered, beside a computation from the archive.

mod kept;

use std::process::ExitCode;

use highwater_batch::reconcile::{LedgerDifference, Told};
use highwater_batch::{Reconciled, Selection};
use shared_schemas::dataset::Dataset;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use self::kept::Form;

use super::Place;
use super::batch::progress::Bars;
use super::batch::used_wrongly;
use super::output::{Output, columns};
use crate::connect;
use crate::signals::Signals;

/// So many differences of a view are shown in the table; JSON lists more.
const SHOWN: usize = 20;

/// Compare what is answered with a computation from the archive, cell by cell
///
/// Batch rows below the marks and the speed layer's rows above them are compared with all archived events counted once,
/// over the offsets that both the archive and the speed layer hold. Each difference is put down to a cause, where archived events
/// and ledgers prove it, and the first few are narrowed down to the rows, offsets and events that make it. With anything
/// unexplained, or nothing to compare, it exits 1. Each report is kept, the newest fifty of them.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    highwater reconcile\n  \
    highwater reconcile --view departures\n  \
    highwater reconcile --repair\n  \
    highwater reconcile --output json\n  \
    highwater reconcile list"
)]
pub(crate) struct Reconcile {
    #[command(subcommand)]
    kept: Option<Kept>,
    /// Only this view; may be given several times
    #[arg(long, value_name = "NAME")]
    view: Vec<String>,
    /// Compute days again of which batch rows are wrong, at the published marks, and compare these views once more
    #[arg(long)]
    repair: bool,
    /// With `--repair`: wait while a run is under way, instead of failing
    #[arg(long, requires = "repair")]
    wait: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Kept {
    /// List the reports that are kept, the newest first
    #[command(after_help = "Examples:\n  \
        highwater reconcile list\n  \
        highwater reconcile list --output json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show a report
    #[command(after_help = "Examples:\n  \
        highwater reconcile show 0192f0c1\n  \
        highwater reconcile show 0192f0c1 --output json")]
    Show {
        /// Its id, or the beginning of it
        id: String,
        /// How it is written to stdout
        #[arg(short, long, value_name = "FORMAT", default_value = "page")]
        output: Form,
    },
}

impl Reconcile {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        let batch = highwater_batch::Batch::new(config, definitions)?;
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut signals = Signals::listen()?;
            tokio::select! {
                done = Box::pin(self.done(&batch)) => done,
                name = signals.next() => anyhow::bail!("{name}: not everything was compared"),
            }
        })
    }

    async fn done(self, batch: &highwater_batch::Batch) -> anyhow::Result<ExitCode> {
        let selection = Selection {
            views: self.view.clone(),
            datasets: Vec::new(),
        };
        let views = match batch.selected(&selection) {
            Ok(views) => views,
            Err(unknown) => return Ok(used_wrongly(&unknown)),
        };
        connect::tables(&batch.store, &batch.definitions).await?;
        match &self.kept {
            None => self.compare(batch, &views).await,
            Some(Kept::List { output }) => kept::list(&batch.store, *output).await,
            Some(Kept::Show { id, output }) => kept::show(&batch.store, id, *output).await,
        }
    }

    async fn compare(&self, batch: &highwater_batch::Batch, views: &[(&View, &Dataset)]) -> anyhow::Result<ExitCode> {
        let bars = Bars::new();
        let cancel = CancellationToken::new();
        let all = if self.repair {
            highwater_batch::reconcile_and_repair(batch, views, self.wait, &bars, &cancel).await?
        } else {
            highwater_batch::reconcile(batch, views, &bars, &cancel).await
        };
        bars.finish();
        // Compared it is, whether or not that can be kept.
        match highwater_batch::reconcile::keep(batch, &all).await {
            Ok(id) => tracing::info!(id, "report kept: `highwater reconcile show {id}`"),
            Err(error) => tracing::warn!(%error, "the report can't be kept"),
        }
        self.output.print_text(&all, |all| text(all))?;
        Ok(if all.iter().all(Reconciled::is_sound) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn text(all: &[Reconciled]) -> String {
    let head = ["view", "compared", "equal", "different", "unexplained"]
        .map(str::to_owned)
        .to_vec();
    let line = |one: &Reconciled| {
        let counts = [one.compared, one.equal, one.different, one.unexplained].map(|count| count.to_string());
        std::iter::once(one.view.clone()).chain(counts).collect()
    };
    let mut text = columns(&std::iter::once(head).chain(all.iter().map(line)).collect::<Vec<_>>());
    for one in all {
        for line in remarks(one) {
            text.push_str(&format!("{}: {line}\n", one.view));
        }
    }
    text
}

/// What else there is to say of a view.
fn remarks(one: &Reconciled) -> Vec<String> {
    let mut remarks: Vec<String> = one.why.iter().cloned().collect();
    for partition in one.partitions.iter().filter(|partition| partition.left_out.is_some()) {
        let why = match partition.left_out {
            Some(highwater_batch::reconcile::LeftOut::ArchiveBehind) => "the archive has not come that far yet",
            Some(highwater_batch::reconcile::LeftOut::ArchiveGap) => "the archive lacks events there",
            _ => "rows are being written there",
        };
        remarks.push(format!(
            "partition {}: compared up to offset {}, and not on to {}: {why}",
            partition.partition, partition.up_to, partition.speed_next
        ));
    }
    for partition in one.partitions.iter().filter(|partition| !partition.gaps.is_empty()) {
        let gaps = partition.gaps.iter().take(SHOWN);
        let gaps: Vec<_> = gaps
            .map(|(from, to)| format!("{from} to {}", to.saturating_sub(1)))
            .collect();
        remarks.push(format!(
            "partition {}: the speed layer lacks offsets {}, which Kafka no longer had; the archive holds {} events of them",
            partition.partition,
            gaps.join(", "),
            partition.archived_in_gaps
        ));
    }
    for partition in &one.partitions {
        if let Some((end, next)) = partition.cut_off {
            remarks.push(format!(
                "partition {}: its log ended at offset {end} after it was read up to {next}; from {end} on the layers may have \
                 other records",
                partition.partition
            ));
        }
    }
    remarks.extend(one.alarms.iter().cloned());
    remarks.extend(one.ledgers.differences.iter().take(SHOWN).map(ledger));
    for difference in one.differences.iter().take(SHOWN) {
        let dimensions = difference
            .dimensions
            .iter()
            .map(|(name, value)| format!(" {name}={}", null(value.as_deref())));
        remarks.push(format!(
            "{}{} {}: answered {}, archived {} ({})",
            difference.window,
            dimensions.collect::<String>(),
            difference.measure,
            null(difference.held.as_deref()),
            null(difference.exact.as_deref()),
            difference.says(),
        ));
    }
    let places = one
        .differences
        .iter()
        .take(SHOWN)
        .flat_map(|difference| &difference.place);
    remarks.extend(places.map(highwater_batch::reconcile::placed));
    remarks.extend(one.calibration.iter().map(highwater_batch::reconcile::held));
    if let Some(repaired) = &one.repaired {
        remarks.push(match (repaired.publication, &repaired.why) {
            (Some(publication), _) => format!(
                "{} event days from {} to {} computed again, {} rows, publication {publication}",
                repaired.days,
                null(repaired.first_day.as_deref()),
                null(repaired.last_day.as_deref()),
                repaired.rows,
            ),
            (None, why) => format!(
                "not repaired: {}",
                why.as_deref().unwrap_or("nothing was to be computed")
            ),
        });
    }
    let more = one.different.saturating_sub(SHOWN as u64);
    if more > 0 {
        remarks.push(format!("and {more} more differences"));
    }
    remarks
}

/// A ledger that tells something else than the archive.
fn ledger(difference: &LedgerDifference) -> String {
    let told = |told: &Told| {
        let read = told.read.map(|read| format!("{read} read, ")).unwrap_or_default();
        let reasons = told.invalid.iter().flatten();
        let reasons: String = reasons.map(|(reason, count)| format!(", {count} {reason}")).collect();
        format!("{read}{} events{reasons}", told.accepted)
    };
    format!(
        "partition {}, offsets {} to {}: the speed layer tells of {}, the archive of {} ({})",
        difference.partition,
        difference.start,
        difference.next.saturating_sub(1),
        told(&difference.told),
        told(&difference.archived),
        difference.explained.unwrap_or("unexplained"),
    )
}

fn null(value: Option<&str>) -> &str {
    value.unwrap_or("null")
}
