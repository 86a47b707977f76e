//! Compares what the store answers from with a computation from the archive, cell by cell and measure by measure.
//!
//! Below the mark the newest publication's batch rows are compared, above it the speed layer's, both merged as an answer
//! merges them, over the offsets that both the speed layer and the archive hold; those that the archive does not have yet
//! are waited for, within bounds. What is compared with is the exact computation: all repeats dropped.
//!
//! The speed layer can't know every repeat. So where a measure differs, the cell is computed once more by the speed
//! layer's own rule, with the archive's events: if the store holds just that, the difference is explained. Everything else
//! is unexplained: lost, counted twice, or a definition that changed its meaning.

mod apart;
mod aside;
mod calibration;
mod cause;
mod classes;
mod classified;
mod comparable;
mod compare;
mod days;
mod explain;
mod ground;
mod keep;
mod laid;
mod ledgers;
mod other;
mod pieces;
mod place;
mod reach;
mod read;
mod reads;
mod sorted;
mod within;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use shared_connections::sentence;
use shared_connections::store::Facts;
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{ChunkSize, EventDay, Offset, OffsetSet, Partition, Publication, Start, counts};
use shared_schemas::store::Statement;
use shared_schemas::store::cells::{highest_of_start, speed_days};
use shared_schemas::view::View;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::archive::{Accounts, Archive, Pinned};
use crate::error::RunError;
use crate::progress::{Step, Watcher};
use crate::recompute::{Recompute, topic_text};
use crate::report::ViewReport;
use crate::retry::patiently;
use crate::run::Batch;
use crate::write::{groups, reason, span};

pub use calibration::Calibration;
pub use cause::{Cause, Contribution};
use comparable::Comparable;
pub use comparable::LeftOut;
pub use compare::Difference;
pub(crate) use compare::sent;
use days::{Found, Left, Rooms};
use explain::{Compared, NARROWED};
use ground::Ground;
pub use keep::{after_run, held, keep, page, placed};
use ledgers::Placed;
pub use ledgers::{LedgerDifference, LedgersCompared, Told};
pub use place::{EventShown, Place};
use reads::Reading;
pub use reads::Reads;

/// How often the archive is looked at while it is behind.
const LOOKS: Duration = Duration::from_millis(250);
/// Beyond two commits of the archiver, how long it is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often all is compared again, without the starts whose rows moved meanwhile.
const TRIES: usize = 2;

/// What reconciling a view came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reconciled {
    /// The view.
    pub view: String,
    /// How many cells were compared: window, dimensions and measure.
    pub compared: u64,
    /// How many are equal; sums of doubles within their bound.
    pub equal: u64,
    /// How many are not.
    pub different: u64,
    /// How many of these nothing explains.
    pub unexplained: u64,
    /// How many differences each cause has; and how many answers are equal only within the bound that they state.
    pub causes: BTreeMap<Cause, u64>,
    /// How often stated bounds held.
    pub calibration: Vec<Calibration>,
    /// The differences, unexplained ones first; a thousand at most.
    pub differences: Vec<Difference>,
    /// Which offsets were compared.
    pub partitions: Vec<PartitionCompared>,
    /// What the speed layer's own ledgers say against it.
    pub alarms: Vec<String>,
    /// Its ledgers beside what the archive read.
    pub ledgers: LedgersCompared,
    /// Why nothing was compared.
    pub why: Option<String>,
    /// How often the archive and the store were read for it.
    pub reads: Reads,
    /// What was computed again, where that was asked for.
    pub repaired: Option<ViewReport>,
    /// The days of which batch rows are wrong: computing them again mends that.
    #[serde(skip)]
    pub mendable: BTreeSet<EventDay>,
}

/// Which offsets of a partition were compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionCompared {
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// Batch rows below it, speed rows from it on.
    pub mark: u64,
    /// Everything below was compared.
    pub up_to: u64,
    /// Where the archive ends.
    pub archive_end: u64,
    /// How far the speed layer has come without a hole.
    pub speed_next: u64,
    /// The offsets from the mark on that the speed layer lacks because Kafka no longer had them: from, and up to.
    pub gaps: Vec<(u64, u64)>,
    /// How many events the archive holds there: the next batch run counts them.
    pub archived_in_gaps: u64,
    /// Where its log ended below what was read, and up to where it was read; null where that never happened. From there on the
    /// layers may have other records at the same offsets.
    pub cut_off: Option<(u64, u64)>,
    /// Why what lies beyond was left out, if anything does.
    pub left_out: Option<LeftOut>,
}

impl Reconciled {
    /// Whether something was compared and nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.compared > 0
            && self.unexplained == 0
            && self.ledgers.unexplained == 0
            && self.alarms.is_empty()
            && self.why.is_none()
    }
}

/// Reconciles these views, one after the other.
pub async fn reconcile(
    batch: &Batch,
    views: &[(&View, &Dataset)],
    watcher: &dyn Watcher,
    cancel: &CancellationToken,
) -> Vec<Reconciled> {
    let mut all = Vec::new();
    for (view, dataset) in views {
        let of_view = OfView {
            batch,
            view,
            dataset,
            watcher,
            reads: Reading::default(),
        };
        let done = cancel.run_until_cancelled(Box::pin(of_view.reconcile())).await;
        all.push(
            done.unwrap_or(Err(RunError::Cancelled))
                .unwrap_or_else(|error| Reconciled {
                    view: view.name.clone(),
                    why: Some(sentence(&error)),
                    ..Reconciled::default()
                }),
        );
    }
    if !cancel.is_cancelled() {
        keep::record(&all);
    }
    all
}

struct OfView<'a> {
    batch: &'a Batch,
    view: &'a View,
    dataset: &'a Dataset,
    watcher: &'a dyn Watcher,
    reads: Reading,
}

impl OfView<'_> {
    async fn reconcile(&self) -> Result<Reconciled, RunError> {
        let Some(archive) = Archive::open(&self.batch.config.archive, self.dataset).await? else {
            return Ok(Reconciled {
                view: self.view.name.clone(),
                why: Some("nothing is archived yet".to_owned()),
                ..Reconciled::default()
            });
        };
        let mut moved = BTreeSet::new();
        let mut tries = 0;
        loop {
            tries += 1;
            let ground = self.settle(&archive, &moved).await?;
            let accounts = archive.accounts(ground.pinned.version, &ground.from()).await?;
            let compare = self.compare(&ground, &accounts).await?;
            let moving = self.moving(&ground).await?;
            // Rows that moved while others were compared made differences that are none.
            if moving.is_empty() || compare.different == 0 || tries > TRIES {
                return self.sum_up(&accounts, &ground, compare).await;
            }
            moved.extend(moving);
        }
    }

    /// Waits until the archive has what the speed layer has counted, progress has no hole, and rows stand still; not for long. Starts of
    /// partitions in `moved` that are not complete are left out.
    async fn settle(&self, archive: &Archive, moved: &BTreeSet<Partition>) -> Result<Ground, RunError> {
        let patience = self.batch.config.archive.commit_every * 2 + PATIENCE;
        let begun = Instant::now();
        loop {
            let facts = patiently(|| self.batch.store.facts(self.view)).await?;
            let pinned = archive.pin().await?;
            let ground = self.ground(facts, pinned, moved).await?;
            let waits = |(partition, found): (&Partition, &Comparable)| match found.left_out {
                None | Some(LeftOut::ArchiveGap) => false,
                Some(LeftOut::ArchiveBehind) => true,
                Some(LeftOut::Moving) => !moved.contains(partition),
            };
            let is_whole = ground.has_no_hole(self.chunk()?);
            if (is_whole && !ground.partitions.iter().any(waits)) || begun.elapsed() >= patience {
                return Ok(ground);
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    async fn ground(&self, facts: Facts, pinned: Pinned, moved: &BTreeSet<Partition>) -> Result<Ground, RunError> {
        let chunk = self.chunk()?;
        let nothing = OffsetSet::default();
        let marks = facts
            .newest()
            .map(|newest| newest.publication.marks.clone())
            .unwrap_or_default();
        let known: BTreeSet<_> = facts
            .progress
            .keys()
            .chain(pinned.ends.keys())
            .chain(marks.keys())
            .copied()
            .collect();
        let mut partitions = BTreeMap::new();
        for partition in known {
            let mark = facts.mark(partition);
            let progress = facts.progress(partition);
            let end = pinned.ends.get(&partition).copied().unwrap_or_default();
            let gaps = pinned.gaps.get(&partition).unwrap_or(&nothing);
            let find = |moves| Comparable::of(mark, chunk, &progress, end, gaps, moves);
            let mut found = find(moved.contains(&partition));
            if let Some((start, next)) = found.open
                && self.highest(partition, start).await? > next
            {
                found = find(true);
            }
            partitions.insert(partition, found);
        }
        Ok(Ground {
            facts,
            pinned,
            partitions,
        })
    }

    /// The partitions whose open starts have rows beyond what was compared.
    async fn moving(&self, ground: &Ground) -> Result<Vec<Partition>, RunError> {
        let mut moving = Vec::new();
        for (partition, found) in &ground.partitions {
            if let Some((start, next)) = found.open
                && self.highest(*partition, start).await? > next
            {
                moving.push(*partition);
            }
        }
        Ok(moving)
    }

    async fn highest(&self, partition: Partition, start: Start) -> Result<Offset, RunError> {
        let statement = highest_of_start(self.batch.store.database(), self.view, partition, start);
        Ok(Offset(
            self.numbers(&statement).await?.first().copied().unwrap_or_default(),
        ))
    }

    /// The answer's numbers, one a line.
    async fn numbers<N: std::str::FromStr>(&self, statement: &Statement) -> Result<Vec<N>, RunError> {
        let answer = patiently(|| self.batch.store.answer(statement, "TabSeparated")).await?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    async fn compare(&self, ground: &Ground, accounts: &Accounts) -> Result<Found, RunError> {
        let plan_error = |error: datafusion::error::DataFusionError| RunError::Plan(error.to_string());
        let rooms = Rooms::of(&self.batch.config.batch)?;
        let recompute = Recompute::within(&rooms.exact, self.view, self.dataset).map_err(plan_error)?;
        let publication = ground.facts.newest().map(|newest| &newest.publication);
        let ledgers = self.compared(ground, &self.ledgers().await?)?;
        let other = self.other_rules(ground, accounts).await?;
        let ranges = ground.pinned.ranges();
        let days = self.days(ground, publication).await?;
        let mut all = Found::default();
        let mut done = 0;
        let mut left = Left::new(NARROWED, ground.put_aside());
        for group in groups(&days, &ranges) {
            let step = Step::Computes {
                done,
                days: days.len(),
                rows: all.compared,
                at: group.first().copied(),
                events: ground.pinned.rows_of(&before(&days, &group)),
                of: ground.pinned.rows_of(&days),
            };
            self.watcher.step(&self.view.name, &step);
            done += group.len();
            let compared = Compared {
                ground,
                rooms: &rooms,
                publication,
                days: &group,
                schema: recompute.schema(),
                ledgers: &ledgers,
                other: &other,
            };
            Box::pin(self.compare_days(&compared, &recompute, &mut all, &mut left)).await?;
        }
        Ok(all)
    }

    /// All days that either side may have cells of, from the horizon on.
    async fn days(&self, ground: &Ground, publication: Option<&Publication>) -> Result<BTreeSet<EventDay>, RunError> {
        let archived = ground.pinned.ranges().into_iter().map(|range| range.day);
        let published = publication
            .into_iter()
            .flat_map(|publication| publication.days.keys().copied());
        let of_speed = self
            .numbers::<i32>(&speed_days(self.batch.store.database(), self.view))
            .await?;
        let horizon = patiently(|| self.batch.store.horizon(self.view)).await?;
        let horizon = horizon.max(ground.pinned.horizon);
        Ok(archived
            .chain(published)
            .chain(of_speed.into_iter().map(EventDay))
            .filter(|day| horizon.is_none_or(|horizon| *day >= horizon))
            .collect())
    }

    /// The ledgers of the compared starts, of these.
    fn compared(&self, ground: &Ground, ledgers: &[Placed]) -> Result<Vec<Placed>, RunError> {
        let chunk = self.chunk()?;
        let is_compared = |(partition, start, _): &&Placed| {
            let found = ground.partitions.get(partition);
            found.is_some_and(|found| {
                *start < found.upto && *start >= found.mark.start() && counts(found.mark, *start, chunk)
            })
        };
        Ok(ledgers.iter().filter(is_compared).cloned().collect())
    }

    async fn ledgers(&self) -> Result<Vec<Placed>, RunError> {
        Ok(patiently(|| self.batch.store.ledgers(self.view)).await?)
    }

    async fn sum_up(&self, accounts: &Accounts, ground: &Ground, found: Found) -> Result<Reconciled, RunError> {
        let chunk = self.chunk()?;
        let Found {
            compared,
            equal,
            different,
            unexplained,
            mut causes,
            mendable,
            calibration,
            listed,
        } = found;
        for one in calibration.iter().filter(|one| one.excused() > 0) {
            *causes.entry(one.of).or_default() += one.excused();
        }
        let all = self.ledgers().await?;
        let marks = ground.marks();
        let compared_ledgers = self.compared(ground, &all)?;
        let known = self.rules_known().await?;
        let ledgers = ledgers::compare(&compared_ledgers, accounts, &ground.pinned, &known).await?;
        let mut gaps = BTreeMap::new();
        let mut partitions = Vec::with_capacity(ground.partitions.len());
        for (partition, found) in &ground.partitions {
            let progress = ground.facts.progress(*partition);
            let coverage = progress.coverage(found.mark, chunk);
            let lacks = coverage.gaps.ranges();
            let mut archived = 0;
            for gap in lacks {
                archived += ground.pinned.events_within(*partition, *gap).await?;
            }
            partitions.push(PartitionCompared {
                topic: topic_text(partition.topic),
                partition: partition.number,
                mark: found.mark.0.0,
                up_to: found.end.0,
                archive_end: ground.pinned.ends.get(partition).copied().unwrap_or_default().0,
                speed_next: coverage.covered.0,
                gaps: lacks.iter().map(|gap| (gap.from.0, gap.to.0)).collect(),
                archived_in_gaps: archived,
                cut_off: ground.cut_off(*partition),
                left_out: found.left_out,
            });
            gaps.insert(*partition, coverage.gaps);
        }
        Ok(Reconciled {
            view: self.view.name.clone(),
            compared,
            equal,
            different,
            unexplained,
            causes,
            calibration,
            differences: listed,
            partitions,
            alarms: ledgers::alarms(&all, &marks, &gaps, chunk),
            ledgers,
            reads: self.reads.told(),
            repaired: None,
            mendable,
            why: (compared == 0).then(|| "the speed layer and the archive hold no events in common yet".to_owned()),
        })
    }

    fn chunk(&self) -> Result<ChunkSize, RunError> {
        ChunkSize::new(self.dataset.chunk).map_err(|error| RunError::Plan(error.to_string()))
    }
}

fn computing(days: &BTreeSet<EventDay>, error: &datafusion::error::DataFusionError) -> RunError {
    RunError::Compute {
        days: span(days),
        why: reason(error),
    }
}

/// The days before a group of them.
fn before(days: &BTreeSet<EventDay>, group: &BTreeSet<EventDay>) -> BTreeSet<EventDay> {
    days.iter()
        .take_while(|day| Some(*day) < group.first())
        .copied()
        .collect()
}
