//! What the speed layer counted between the old marks and the new ones, beside what the run adds there.
//!
//! The speed layer's rows are whole for each start, so a start is compared whole or not at all. One is left out where a new mark
//! lies in its chunk (a cut), where it has not come to the chunk's end, where a layer lacks offsets of it, where the layers read it
//! under other rules, and where its filter for repeats was cut short: there it may count something else and be right. What the run adds at
//! offsets that are left out is computed from the few files that hold them, so that the others are compared all the same.
//!
//! A day that does not come to the same is computed as the speed layer counts it, without just those repeats that it can know of.
//! So a repeat excuses what it adds and nothing more, in sums as in counts. The run itself may then have fewer events by no more than the repeats
//! that it left out.
//!
//! What is computed is computed in the groups of days that the run is written in. Where it would be much, or can't be, the
//! check says so: it stops no run by what it costs.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result as PlanResult};
use futures::TryStreamExt;
use shared_connections::store::{Ledger, RulesKnown};
use shared_schemas::handoff::{ChunkSize, EventDay, Mark, OffsetRange, OffsetSet, Partition, SpeedProgress, Start};
use shared_schemas::plan::WINDOW_COLUMN;
use shared_schemas::store::check::exact_sums;
use shared_schemas::store::compared::{DaysOfRuns, additive, speed_totals};

use super::{Checked, Days, ROUNDED};
use crate::archive::Accounts;
use crate::error::RunError;
use crate::recompute::Recompute;
use crate::retry::patiently;
use crate::write::{groups, reason, span};

/// More events than this are not read again only because they can't be compared.
const MOST_LEFT_OUT: u64 = 4 << 20;
/// So many ranges of offsets are asked about in one statement, which may not be too long.
const RANGES: usize = 256;

/// Why offsets are not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LeftOut {
    /// The speed layer has not counted their chunk to its end, or the new mark lies in it.
    NotWhole,
    /// One of the layers lacks offsets of the start.
    Gap,
    /// The layers read the start under rules that differ.
    Rules,
    /// The start's filter for repeats did not remember the whole window.
    CutShort,
}

impl LeftOut {
    fn says(self) -> &'static str {
        match self {
            Self::NotWhole => "in chunks that it has not counted whole, or that a mark divides",
            Self::Gap => "of starts of which a layer lacks some",
            Self::Rules => "that the layers read under other rules",
            Self::CutShort => "for which its filter for repeats was cut short",
        }
    }
}

/// The offsets between the old marks and the new ones: those that both layers have counted alike, and the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) counted: BTreeMap<Partition, OffsetSet>,
    pub(super) left_out: BTreeMap<Partition, OffsetSet>,
    why: BTreeMap<LeftOut, u64>,
}

/// What of a start keeps it from being compared.
pub(super) type Doubts = BTreeMap<(Partition, Start), LeftOut>;

/// The starts that were read by other rules than the archive's, or counted by a filter that was not sure. `archived` are the rules by which
/// the archive read offsets.
pub(super) fn doubts(
    ledgers: &[(Partition, Start, Ledger)],
    archived: &[(Partition, OffsetRange, &str)],
    known: &RulesKnown,
) -> Doubts {
    // Mostly there are none, and pieces of commits are many.
    let spoken: BTreeSet<&str> = ledgers.iter().map(|(_, _, ledger)| ledger.rules.as_str()).collect();
    let is_other = |rules: &str| spoken.iter().any(|other| known.differ(rules, other).is_some());
    let archived: Vec<_> = archived.iter().filter(|(_, _, rules)| is_other(rules)).collect();
    let of_ledger = |(partition, start, ledger): &(Partition, Start, Ledger)| {
        let otherwise = archived.iter().any(|(of, range, rules)| {
            let touches = of == partition && range.from < ledger.next && range.to > start.0;
            touches && known.differ(rules, &ledger.rules).is_some()
        });
        let why = match otherwise {
            true => Some(LeftOut::Rules),
            false => (ledger.unsure > 0).then_some(LeftOut::CutShort),
        };
        Some(((*partition, *start), why?))
    };
    ledgers.iter().filter_map(of_ledger).collect()
}

impl Common {
    /// Takes in what is between the old mark and the new one of a partition, of which the archive lacks these offsets.
    pub(super) fn add(
        &mut self,
        partition: Partition,
        (old, new): (Mark, Mark),
        chunk: ChunkSize,
        progress: &SpeedProgress,
        lacking: &OffsetSet,
        doubts: &Doubts,
    ) {
        let mut start = old.start();
        while start.0 < new.0 {
            let end = chunk.end(start.0);
            let range = OffsetRange {
                from: start.0,
                to: end.min(new.0),
            };
            let why = if end > new.0 || progress.complete(start, chunk).is_none() {
                Some(LeftOut::NotWhole)
            } else if progress.gaps(start).is_some() || !lacking.within(range.from, range.to).is_empty() {
                Some(LeftOut::Gap)
            } else {
                doubts.get(&(partition, start)).copied()
            };
            let of_partition = match why {
                None => self.counted.entry(partition),
                Some(why) => {
                    *self.why.entry(why).or_default() += range.to.0 - range.from.0;
                    self.left_out.entry(partition)
                }
            };
            of_partition.or_default().insert(range);
            start = Start(end);
        }
    }

    /// What is not looked at, in words; nothing where that is nothing.
    pub(super) fn not_looked_at(&self) -> Option<String> {
        let of_one = |(why, offsets): (&LeftOut, &u64)| format!("{offsets} offsets {}", why.says());
        let all: Vec<_> = self.why.iter().map(of_one).collect();
        (!all.is_empty()).then(|| format!("not looked at: {}", all.join(", ")))
    }
}

/// A column's total over a day, and that of its magnitudes.
pub(super) type Sum = (f64, f64);

/// Of each day the sum of each column that adds up.
pub(super) type Sums = BTreeMap<EventDay, Vec<Sum>>;

fn sums_of(days: &Days) -> Sums {
    let of_day = |(day, totals): (&EventDay, &super::DayTotals)| {
        let of_column = |(total, size): &(String, f64)| (total.parse().unwrap_or_default(), *size);
        (*day, totals.columns.iter().map(of_column).collect())
    };
    days.iter().map(of_day).collect()
}

/// All of these together.
pub(super) fn together(parts: &[&Sums]) -> Sums {
    let mut all = Sums::new();
    for (day, sums) in parts.iter().flat_map(|part| part.iter()) {
        let held = all.entry(*day).or_default();
        held.resize(sums.len().max(held.len()), Sum::default());
        for ((total, size), (more, large)) in held.iter_mut().zip(sums) {
            *total += more;
            *size += large;
        }
    }
    all
}

/// Where two sides are not equal: the day, the column, and what each has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unequal {
    pub(super) day: EventDay,
    column: String,
    values: (f64, f64),
}

/// All places where they are not. Counts are equal or not; sums are equal up to rounding.
pub(super) fn unequal(columns: &[String], counts: &BTreeSet<String>, one: &Sums, other: &Sums) -> Vec<Unequal> {
    let of = |sums: &Sums, day: EventDay, at: usize| -> Sum {
        let sums = sums.get(&day);
        sums.and_then(|sums| sums.get(at)).copied().unwrap_or_default()
    };
    let days: BTreeSet<EventDay> = one.keys().chain(other.keys()).copied().collect();
    let mut found = Vec::new();
    for day in days {
        for (at, column) in columns.iter().enumerate() {
            let ((a, size), (b, large)) = (of(one, day, at), of(other, day, at));
            let may = if counts.contains(column) {
                0.0
            } else {
                size.max(large) * ROUNDED
            };
            if (a - b).abs() > may {
                found.push(Unequal {
                    day,
                    column: column.clone(),
                    values: (a, b),
                });
            }
        }
    }
    found
}

/// The first of the places that both sides and the run are found unequal where the run has more events than they come to, or fewer by
/// more than the repeats that it left out; or, where it has as many, other sums.
pub(super) fn beyond_repeats(
    found: Vec<Unequal>,
    counts: &BTreeSet<String>,
    repeats: &BTreeMap<EventDay, u64>,
) -> Option<Unequal> {
    let counted: BTreeSet<EventDay> = found
        .iter()
        .filter(|one| counts.contains(&one.column))
        .map(|one| one.day)
        .collect();
    found.into_iter().find(|one| {
        if !counts.contains(&one.column) {
            return !counted.contains(&one.day);
        }
        let fewer = one.values.0 - one.values.1;
        let repeats = repeats.get(&one.day).copied().unwrap_or_default();
        fewer < 0.0 || fewer > super::float(repeats)
    })
}

/// The same offsets in parts of so many ranges at most.
pub(super) fn in_parts(offsets: &BTreeMap<Partition, OffsetSet>, most: usize) -> Vec<BTreeMap<Partition, OffsetSet>> {
    let ranges: Vec<(Partition, OffsetRange)> = offsets
        .iter()
        .flat_map(|(partition, set)| set.ranges().iter().map(|range| (*partition, *range)))
        .collect();
    let part = |ranges: &[(Partition, OffsetRange)]| {
        let mut part: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
        for (partition, range) in ranges {
            part.entry(*partition).or_default().insert(*range);
        }
        part
    };
    ranges.chunks(most.max(1)).map(part).collect()
}

impl Checked<'_> {
    /// As [`Checked::compared`]; what can't be computed is not looked at.
    pub(super) async fn speed(&self, accounts: &Accounts) -> Result<Result<String, String>, RunError> {
        match self.compared(accounts).await {
            Err(RunError::Compute { why, .. }) => Ok(Ok(format!("not looked at: it can't be computed: {why}"))),
            done => done,
        }
    }

    /// What the speed layer counted between the marks, beside what is new in this run. `accounts` are what the archive's log tells of
    /// these offsets.
    async fn compared(&self, accounts: &Accounts) -> Result<Result<String, String>, RunError> {
        let common = self.common(accounts).await?;
        let rest = common.not_looked_at();
        if common.counted.is_empty() {
            return Ok(Ok(rest.unwrap_or_else(|| "not looked at: no mark moves".to_owned())));
        }
        let events = self.pinned.events_at_most(self.days, &common.left_out);
        if events > MOST_LEFT_OUT {
            let rest = rest.unwrap_or_default();
            return Ok(Ok(format!(
                "{rest}; nor at the others: the former are up to {events} events"
            )));
        }
        let (database, view) = (self.store.database(), self.view);
        let columns = additive(view);
        let counts: BTreeSet<String> = exact_sums(view).into_iter().collect();
        let held = self.parent.into_iter().flat_map(|parent| &parent.days);
        let held: DaysOfRuns = held
            .filter(|(day, _)| self.days.contains(day))
            .map(|(day, run)| (*day, *run))
            .collect();
        let now = self.days.iter().map(|day| (*day, self.publication.run)).collect();
        let before = sums_of(&self.totals(&held).await?);
        let now = sums_of(&self.totals(&now).await?);
        let mut speed = Sums::new();
        for part in in_parts(&common.counted, RANGES) {
            let of_part = sums_of(&self.lines(&speed_totals(database, view, &part, self.days)).await?);
            speed = together(&[&speed, &of_part]);
        }
        let left_out = self.archived(self.days, &common.left_out, By::Batch).await?;
        let theirs = together(&[&before, &speed, &left_out]);
        let found = unequal(&columns, &counts, &theirs, &now);
        let apart: BTreeSet<EventDay> = found.iter().map(|one| one.day).collect();
        if !apart.is_empty() {
            let expected = self.archived(&apart, &common.counted, By::Speed).await?;
            let mut speed = speed;
            speed.retain(|day, _| apart.contains(day));
            if let Some(Unequal { day, column, values }) = unequal(&columns, &counts, &speed, &expected).first() {
                return Ok(Err(format!(
                    "of {} between the old marks and the new ones the speed layer has {column} {}, and the archive gives {} as that layer \
                     counts: `highwater reconcile` tells more, and `--accept` publishes it all the same",
                    span(&BTreeSet::from([*day])),
                    values.0,
                    values.1,
                )));
            }
        }
        if let Some(Unequal { day, column, values }) = beyond_repeats(found, &counts, &self.written.repeats_of) {
            return Ok(Err(format!(
                "of {} the speed layer and the publication before have {column} {}, and this run has {}: `highwater reconcile` tells more, and \
                 `--accept` publishes it all the same",
                span(&BTreeSet::from([day])),
                values.0,
                values.1,
            )));
        }
        let same = says(self.days.len(), apart.len());
        Ok(Ok(match rest {
            Some(rest) => format!("{same}; {rest}"),
            None => same,
        }))
    }

    /// Which offsets are compared. All of it is read before any row is.
    async fn common(&self, accounts: &Accounts) -> Result<Common, RunError> {
        let chunk = ChunkSize::new(self.view.chunk).map_err(|error| RunError::Plan(error.to_string()))?;
        let facts = patiently(|| self.store.facts(self.view)).await?;
        let ledgers = patiently(|| self.store.ledgers(self.view)).await?;
        let known = patiently(|| self.store.rules()).await?.with(self.dataset);
        let of_files = self.pinned.rules().into_iter();
        let of_files = of_files.map(|((partition, rules), range)| (partition, range, rules));
        let archived: Vec<_> = of_files.chain(accounts.by_rules()).collect();
        let doubts = doubts(&ledgers, &archived, &known);
        let nothing = OffsetSet::default();
        let mut common = Common::default();
        for (partition, mark) in &self.publication.marks {
            let old = self.parent.map_or(Mark::default(), |parent| parent.mark(*partition));
            let lacking = self.publication.gaps.get(partition).unwrap_or(&nothing);
            let progress = facts.progress(*partition);
            common.add(*partition, (old, *mark), chunk, &progress, lacking, &doubts);
        }
        Ok(common)
    }

    /// What the archive gives of these days at these offsets.
    async fn archived(
        &self,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
        by: By,
    ) -> Result<Sums, RunError> {
        let mut sums = Sums::new();
        if counted.is_empty() {
            return Ok(sums);
        }
        let columns = additive(self.view);
        for days in groups(days, &self.pinned.ranges()) {
            let (_turn, room) = self.seat.room().await?;
            let computed = async {
                let recompute = Recompute::of_both_layers(self.view, self.dataset, room)?;
                let mut cells = match by {
                    By::Batch => {
                        let events = self.pinned.lean_events_at(&days, counted);
                        recompute.cells(events, &days, counted).await?
                    }
                    // What a repeat repeats may lie elsewhere.
                    By::Speed => {
                        let events = self.pinned.lean_events(&days);
                        recompute.cells_of_speed(events, &days, counted).await?
                    }
                };
                while let Some(batch) = cells.try_next().await? {
                    add(&mut sums, &batch, &columns)?;
                }
                Ok::<_, DataFusionError>(())
            };
            computed.await.map_err(|error| RunError::Compute {
                days: span(&days),
                why: reason(&error),
            })?;
        }
        Ok(sums)
    }
}

/// What was found, where nothing is wrong: on so many days the run left out repeats that the speed layer could not know of.
pub(super) fn says(days: usize, apart: usize) -> String {
    match apart {
        0 => format!("the speed layer counted the same on all {days} days"),
        some => format!("the speed layer counted the same but for repeats on {some} of {days} days"),
    }
}

/// By whose rule events are repeats.
#[derive(Debug, Clone, Copy)]
enum By {
    Batch,
    Speed,
}

/// Adds cells to the sums of their days.
fn add(sums: &mut Sums, cells: &RecordBatch, columns: &[String]) -> PlanResult<()> {
    let lacks = |column: &str| DataFusionError::Internal(format!("cells without {column}"));
    let column = |name: &str| cells.column_by_name(name).ok_or_else(|| lacks(name));
    let windows = column(WINDOW_COLUMN)?;
    let windows = windows
        .as_primitive_opt::<TimestampMicrosecondType>()
        .ok_or_else(|| lacks(WINDOW_COLUMN))?;
    for (at, name) in columns.iter().enumerate() {
        let values = cast(column(name)?, &DataType::Float64)?;
        let values = values.as_primitive_opt::<Float64Type>().ok_or_else(|| lacks(name))?;
        for (micros, value) in windows.values().iter().zip(values) {
            let of_day = sums.entry(EventDay::of_micros(*micros)).or_default();
            of_day.resize(columns.len(), Sum::default());
            let (total, size) = &mut of_day[at];
            *total += value.unwrap_or_default();
            *size += value.unwrap_or_default().abs();
        }
    }
    Ok(())
}
