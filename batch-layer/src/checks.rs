//! What a run checks of itself before it publishes.
//!
//! - **events**: of each partition as many events were read between the old mark and the new one as the archive's log says were
//!   accepted there. Where the log's entries no longer tell, the statistics of the files do.
//! - **counted**: what a plain `count()` of the view adds up to is what was read, less repeats and what its filter left out.
//! - **cells**: no day that the parent holds comes out without a cell, nor with far fewer, nor with far fewer events where a plain
//!   `count()` tells them: marks only rise, so a day only gets more. A day of which files are in quarantine does not.
//! - **totals**: what adds up changed, over the days that both have and whose events grew by no more than `batch.max_change`, about
//!   as the number of events did. A larger change than that share needs `--accept`: it may be right, and somebody should look.
//! - **speed**: over the offsets between the old marks and the new ones that both layers have counted whole the speed layer has what the
//!   archive gives, but for repeats that it cannot know of. What is not compared is said.
//!
//! The last three may be wrong about a run that is right: `--accept` publishes it all the same.
//!
//! The functions here that decide are pure; a failed check publishes nothing.

mod speed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared_connections::store::{Pace, Store};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{EventDay, Mark, OffsetRange, Partition, Publication};
use shared_schemas::plan::FAILED_COLUMN;
use shared_schemas::store::Statement;
use shared_schemas::store::check::exact_sums;
use shared_schemas::store::compared::{DaysOfRuns, additive, day_totals};
use shared_schemas::view::View;

use crate::archive::{Accounts, Archive, Pinned};
use crate::error::RunError;
use crate::retry::patiently;
use crate::together::Seat;
use crate::write::{Totals, Written, span};

/// Sums of doubles, and decimals read as doubles, are equal within this part of their magnitudes.
const ROUNDED: f64 = 1e-9;
/// Over fewer events than these nothing is said of how totals change: a handful of them says nothing of the next.
const FEWEST: u64 = 1000;

/// A check and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was compared, or what differs.
    pub says: String,
}

impl Check {
    fn of(name: &str, found: Result<String, String>) -> Self {
        Self {
            name: name.to_owned(),
            holds: found.is_ok(),
            says: found.unwrap_or_else(|differs| differs),
        }
    }
}

/// What is checked.
pub(crate) struct Checked<'a> {
    pub(crate) store: &'a Store,
    pub(crate) view: &'a View,
    pub(crate) dataset: &'a Dataset,
    /// Where there is memory to compute something once more.
    pub(crate) seat: &'a Seat<'a>,
    pub(crate) archive: &'a Archive,
    pub(crate) pinned: &'a Pinned,
    pub(crate) parent: Option<&'a Publication>,
    pub(crate) publication: &'a Publication,
    pub(crate) days: &'a BTreeSet<EventDay>,
    /// Whether days before the view's horizon got events too, which are not read.
    pub(crate) left_out: bool,
    pub(crate) written: &'a Written,
    pub(crate) max_change: f64,
    pub(crate) accept: bool,
}

impl Checked<'_> {
    /// All checks.
    ///
    /// # Errors
    /// Those of the archive's log and of the store.
    pub(crate) async fn checks(&self) -> Result<Vec<Check>, RunError> {
        let (told, accounts) = self.told().await?;
        let read = if self.left_out {
            Ok("not looked at: events of days before the horizon are not read".to_owned())
        } else {
            events(&self.written.new, &told)
        };
        let mut checks = vec![
            Check::of("events", read),
            Check::of("counted", counted(self.view, &self.written.totals, self.written.passed)),
        ];
        let accepted = |found: Result<String, String>| match found {
            Err(differs) if self.accept => Ok(format!("accepted: {differs}")),
            other => other,
        };
        checks.push(Check::of("speed", accepted(Box::pin(self.speed(&accounts)).await?)));
        let Some(parent) = self.parent else {
            return Ok(checks);
        };
        let same: DaysOfRuns = parent
            .days
            .iter()
            .filter(|(day, _)| self.days.contains(day))
            .map(|(day, run)| (*day, *run))
            .collect();
        if same.is_empty() {
            return Ok(checks);
        }
        let now = same.keys().map(|day| (*day, self.publication.run)).collect();
        let sides = [self.totals(&same).await?, self.totals(&now).await?];
        checks.push(Check::of("cells", accepted(cells(self.view, &sides, self.max_change))));
        let mut counts = [0, 0];
        let mut sides = sides;
        for day in same.keys() {
            let of = BTreeSet::from([*day]);
            let had = self.pinned.rows_below(&of, &parent.marks);
            let has = self.pinned.rows_below(&of, &self.publication.marks);
            if is_same(had, has, self.max_change) {
                counts = [counts[0] + had, counts[1] + has];
            } else {
                sides.iter_mut().for_each(|side| {
                    side.remove(day);
                });
            }
        }
        let changed = totals(&additive(self.view), &sides, counts, self.max_change);
        checks.push(Check::of("totals", accepted(changed)));
        Ok(checks)
    }

    /// How many events the archive says are between the old and the new marks, and what its log tells of them.
    async fn told(&self) -> Result<(BTreeMap<Partition, (OffsetRange, u64)>, Accounts), RunError> {
        let old = |partition| self.parent.map_or(Mark::default(), |parent| parent.mark(partition));
        let ranges: BTreeMap<_, _> = self
            .publication
            .marks
            .iter()
            .map(|(partition, mark)| {
                let range = OffsetRange {
                    from: old(*partition).0,
                    to: mark.0,
                };
                (*partition, range)
            })
            .filter(|(_, range)| range.from < range.to)
            .collect();
        let from = ranges
            .iter()
            .map(|(partition, range)| (*partition, range.from))
            .collect();
        let accounts: Accounts = self.archive.accounts(self.pinned.version, &from).await?;
        let mut told = BTreeMap::new();
        for (partition, range) in ranges {
            let lacking = self.pinned.gaps.get(&partition);
            let lacking = lacking
                .map(|gaps| gaps.within(range.from, range.to))
                .unwrap_or_default();
            let lacking: u64 = lacking.ranges().iter().map(|gap| gap.to.0 - gap.from.0).sum();
            let events = match accounts.of(partition, range) {
                // What was taken out of the archive afterwards is a gap that the log's entries do not know of; nor do they
                // know of days that were let go.
                Some(account) if account.gap == lacking && !self.pinned.may_lack(partition, range) => {
                    account.accepted()
                }
                _ => self.pinned.events_within(partition, range).await?,
            };
            told.insert(partition, (range, events));
        }
        Ok((told, accounts))
    }

    async fn totals(&self, days: &DaysOfRuns) -> Result<Days, RunError> {
        self.lines(&day_totals(self.store.database(), self.view, &[days])).await
    }

    async fn lines(&self, statement: &Statement) -> Result<Days, RunError> {
        let answer = patiently(|| self.store.answer_at_length(statement, "TabSeparated", Pace::AT_LENGTH)).await?;
        let lines = String::from_utf8_lossy(&answer.body);
        Ok(lines
            .lines()
            .filter_map(DayTotals::of)
            .map(|one| (one.day, one))
            .collect())
    }
}

/// What a day's rows of a run come to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DayTotals {
    pub(crate) day: EventDay,
    pub(crate) run: u128,
    pub(crate) cells: u64,
    /// Of each column that adds up its total, as text, and the total of its magnitudes.
    pub(crate) columns: Vec<(String, f64)>,
}

impl DayTotals {
    /// Of a line of `day_totals`.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let mut next = || fields.next();
        let (day, run, cells) = (next()?, next()?, next()?);
        let rest: Vec<_> = fields.collect();
        Some(Self {
            day: EventDay(day.parse().ok()?),
            run: run.parse().ok()?,
            cells: cells.parse().ok()?,
            columns: rest
                .chunks_exact(2)
                .map(|pair| (pair[0].to_owned(), pair[1].parse().unwrap_or_default()))
                .collect(),
        })
    }
}

fn events(read: &BTreeMap<Partition, u64>, told: &BTreeMap<Partition, (OffsetRange, u64)>) -> Result<String, String> {
    let mut all = 0_u64;
    for (partition, (OffsetRange { from, to }, events)) in told {
        let read = read.get(partition).copied().unwrap_or_default();
        if read != *events {
            return Err(format!(
                "partition {} has {events} events from offset {} to {} by the archive's log, and {read} were read",
                partition.number, from.0, to.0
            ));
        }
        all += events;
    }
    Ok(format!(
        "all {all} events between the old marks and the new ones were read"
    ))
}

fn counted(view: &View, totals: &Totals, passed: u64) -> Result<String, String> {
    let columns = exact_sums(view);
    let Some(plain) = view.plain_count() else {
        return Ok("the view has no plain count()".to_owned());
    };
    let sum = columns.iter().position(|column| *column == plain.name);
    let sum = sum.and_then(|at| totals.sums.get(at)).copied().unwrap_or_default();
    if sum == u128::from(passed) {
        Ok(format!("{} adds up to the {passed} events that count", plain.measure))
    } else {
        Err(format!("{} adds up to {sum}, and {passed} events count", plain.measure))
    }
}

type Days = BTreeMap<EventDay, DayTotals>;

/// Whether each day still has its cells, and its events where the view counts them: marks only rise, so neither gets fewer but by
/// repeats.
fn cells(view: &View, [before, now]: &[Days; 2], max_change: f64) -> Result<String, String> {
    let plain = view
        .plain_count()
        .and_then(|plain| additive(view).iter().position(|column| *column == plain.name));
    let events = |day: &DayTotals| {
        let (total, _) = day.columns.get(plain?)?;
        total.parse::<f64>().ok()
    };
    let fell = |had: f64, has: f64| has < had * (1.0 - max_change);
    for (day, had) in before.iter().filter(|(_, had)| had.cells > 0) {
        let named = span(&BTreeSet::from([*day]));
        let has = now.get(day);
        let cells = has.map_or(0, |has| has.cells);
        let counted = has.and_then(|has| events(had).zip(events(has)));
        let differs = match counted.filter(|(had, has)| fell(*had, *has)) {
            _ if cells == 0 => format!("no cell of {named} came out, of which"),
            _ if fell(float(had.cells), float(cells)) => format!("{cells} cells of {named} came out, of which"),
            Some((had, has)) => format!("{has} events of {named} are counted and {had} were before, though"),
            None => continue,
        };
        return Err(format!(
            "{differs} the publication before has {} cells: `--accept` publishes it all the same",
            had.cells
        ));
    }
    let of = |days: &Days| days.values().map(|day| day.cells).sum::<u64>();
    Ok(format!("{} cells of these days before, {} now", of(before), of(now)))
}

/// Whether a day is still the same one: a day that was published while it went on is another when it is over, and its nights differ from
/// its noons.
fn is_same(had: u64, has: u64, max_change: f64) -> bool {
    float(has) <= float(had) * (1.0 + max_change)
}

/// Whether what adds up changed as the number of events did.
fn totals(columns: &[String], [before, now]: &[Days; 2], events: [u64; 2], max_change: f64) -> Result<String, String> {
    let [had, has] = events;
    if had < FEWEST {
        return Ok(format!(
            "not looked at: the publication before has {had} events of these days"
        ));
    }
    let more = float(has) / float(had);
    let sum = |days: &Days, at: usize| -> (f64, f64) {
        let of_day = |day: &DayTotals| {
            day.columns
                .get(at)
                .map(|(total, size)| (total.parse().unwrap_or(0.0), *size))
        };
        days.values()
            .filter_map(of_day)
            .fold((0.0, 0.0), |(total, size), (more, large): (f64, f64)| {
                (total + more, size + large)
            })
    };
    for (at, column) in columns
        .iter()
        .enumerate()
        .filter(|(_, column)| *column != FAILED_COLUMN)
    {
        let ((was, size), (is, _)) = (sum(before, at), sum(now, at));
        let (expected, size) = (was * more, size * more);
        if size > 0.0 && (is - expected).abs() > max_change * size {
            return Err(format!(
                "over the days that the publication before has, {column} goes from {was} to {is}, while their events go from {had} \
                 to {has}: more than `batch.max_change`, and `--accept` publishes it all the same"
            ));
        }
    }
    Ok(format!(
        "totals changed as the events of these days did, from {had} to {has}"
    ))
}

#[expect(clippy::cast_precision_loss, reason = "shares of counts")]
fn float(count: u64) -> f64 {
    count as f64
}
