//! What a run checks of itself before it publishes.
//!
//! - **events**: of each partition as many events were read between the old mark and the new one as the archive's log says were
//!   accepted there. Where the log's entries no longer tell, the statistics of the files do.
//! - **counted**: what a plain `count()` of the view adds up to is what was read, less repeats and what its filter left out.
//! - **cells**: no day that the parent holds comes out without a cell, nor all of them with far fewer: more events make more cells.
//!   It holds for every kind of measure.
//! - **totals**: what adds up changed, over the days that both have and whose events grew by no more than `batch.max_change`, about
//!   as the number of events did. A larger change than that share needs `--accept`: it may be right, and somebody should look.
//!
//! The functions here that decide are pure; a failed check publishes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared_connections::store::Store;
use shared_schemas::handoff::{EventDay, Mark, OffsetRange, Partition, Publication};
use shared_schemas::plan::FAILED_COLUMN;
use shared_schemas::store::check::exact_sums;
use shared_schemas::store::compared::{DaysOfRuns, additive, day_totals};
use shared_schemas::view::View;

use crate::archive::{Accounts, Archive, Pinned};
use crate::error::RunError;
use crate::retry::patiently;
use crate::write::{Totals, Written, span};

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
    pub(crate) archive: &'a Archive,
    pub(crate) pinned: &'a Pinned,
    pub(crate) parent: Option<&'a Publication>,
    pub(crate) publication: &'a Publication,
    pub(crate) days: &'a BTreeSet<EventDay>,
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
        let told = self.told().await?;
        let mut checks = vec![
            Check::of("events", events(&self.written.new, &told)),
            Check::of("counted", counted(self.view, &self.written.totals, self.written.passed)),
        ];
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
        checks.push(Check::of("cells", cells(&sides, self.max_change)));
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
        checks.push(Check::of(
            "totals",
            match changed {
                Err(differs) if self.accept => Ok(format!("accepted: {differs}")),
                other => other,
            },
        ));
        Ok(checks)
    }

    /// How many events the archive says are between the old and the new marks.
    async fn told(&self) -> Result<BTreeMap<Partition, (OffsetRange, u64)>, RunError> {
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
            let events = match accounts.of(partition, range) {
                Some(account) => account.accepted(),
                None => self.pinned.events_within(partition, range).await?,
            };
            told.insert(partition, (range, events));
        }
        Ok(told)
    }

    async fn totals(&self, days: &DaysOfRuns) -> Result<BTreeMap<EventDay, DayTotals>, RunError> {
        let statement = day_totals(self.store.database(), self.view, &[days]);
        let answer = patiently(|| self.store.answer(&statement, "TabSeparated")).await?;
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
    let plain = view.states().find(|column| {
        let aggregate = column.aggregate;
        column.state.is_count() && aggregate.argument.is_none() && aggregate.condition.is_none()
    });
    let Some(plain) = plain else {
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

fn cells([before, now]: &[Days; 2], max_change: f64) -> Result<String, String> {
    let of = |days: &Days| days.values().map(|day| day.cells).sum::<u64>();
    let gone: BTreeSet<_> = before
        .iter()
        .filter(|(day, had)| had.cells > 0 && now.get(day).is_none_or(|has| has.cells == 0))
        .map(|(day, _)| *day)
        .collect();
    if !gone.is_empty() {
        return Err(format!(
            "no cell came out of {}, which the publication before has cells of",
            span(&gone)
        ));
    }
    let (had, has) = (of(before), of(now));
    if float(has) < float(had) * (1.0 - max_change) {
        return Err(format!("{has} cells came out where the publication before has {had}"));
    }
    Ok(format!("{had} cells of these days before, {has} now"))
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

#[cfg(test)]
mod tests {
    use shared_schemas::definitions::Definitions;
    use shared_schemas::handoff::{Offset, TopicId};

    use super::*;

    fn days(all: &[(i32, u64, f64)]) -> Days {
        let day = |(day, cells, total): &(i32, u64, f64)| DayTotals {
            day: EventDay(*day),
            run: 7,
            cells: *cells,
            columns: vec![("0".to_owned(), 0.0), (total.to_string(), total.abs())],
        };
        all.iter().map(|one| (EventDay(one.0), day(one))).collect()
    }

    #[test]
    fn events_that_were_not_read_are_told() {
        let partition = Partition {
            topic: TopicId(1),
            number: 3,
        };
        let range = OffsetRange {
            from: Offset(8),
            to: Offset(16),
        };
        let told = BTreeMap::from([(partition, (range, 7))]);
        assert!(events(&BTreeMap::from([(partition, 7)]), &told).is_ok());
        for read in [BTreeMap::from([(partition, 6)]), BTreeMap::new()] {
            let differs = events(&read, &told).unwrap_err();
            assert!(
                differs.contains("partition 3 has 7 events from offset 8 to 16"),
                "{differs}"
            );
        }
    }

    #[test]
    fn a_count_is_what_was_read() {
        let text = "[dataset.d]\nevent_time = \"at\"\nfields = { at = \"timestamp\", x = \"int64?\" }\n\
                    [view.v]\ndataset = \"d\"\ngrain = \"1h\"\n[view.v.measures]\nxs = \"count(x)\"\nall = \"count()\"\n";
        let definitions = Definitions::parse([("d.toml", text)]).unwrap();
        let view = &definitions.views[0];
        assert_eq!(exact_sums(view).len(), 3, "failures and two counts");
        let totals = |sums: [u128; 3]| Totals {
            rows: 1,
            sums: sums.to_vec(),
        };
        let at = exact_sums(view)
            .iter()
            .position(|column| column.starts_with("all"))
            .unwrap();
        let mut sums = [0, 4, 4];
        sums[at] = 9;
        assert!(counted(view, &totals(sums), 9).is_ok());
        let differs = counted(view, &totals(sums), 10).unwrap_err();
        assert_eq!(differs, "all adds up to 9, and 10 events count");
    }

    #[test]
    fn days_and_cells_do_not_vanish() {
        let had = days(&[(0, 10, 5.0), (1, 10, 5.0)]);
        assert!(cells(&[had.clone(), days(&[(0, 10, 5.0), (1, 11, 5.0)])], 0.5).is_ok());
        let differs = cells(&[had.clone(), days(&[(0, 30, 5.0)])], 0.5).unwrap_err();
        assert!(differs.contains("1970-01-02"), "{differs}");
        assert!(cells(&[had.clone(), days(&[(0, 5, 5.0), (1, 5, 5.0)])], 0.5).is_ok());
        assert!(cells(&[had, days(&[(0, 5, 5.0), (1, 4, 5.0)])], 0.5).is_err());
    }

    #[test]
    fn totals_change_as_events_do() {
        let columns = ["_failed".to_owned(), "paid__sum".to_owned()];
        let find = |was: f64, is: f64, events: [u64; 2]| {
            totals(&columns, &[days(&[(0, 1, was)]), days(&[(0, 1, is)])], events, 0.5)
        };
        assert!(find(1000.0, 1000.0, [2000, 2000]).is_ok());
        assert!(find(1000.0, 10_000.0, [2000, 20_000]).is_ok(), "ten times the events");
        assert!(find(-1000.0, -1400.0, [2000, 2000]).is_ok());
        for (was, is, events) in [
            (1000.0, 1501.0, [2000, 2000]),
            (1000.0, 499.0, [2000, 2000]),
            (1000.0, 2000.0, [2000, 20_000]),
            (1000.0, -1000.0, [2000, 2000]),
        ] {
            let differs = find(was, is, events).unwrap_err();
            assert!(
                differs.contains("paid__sum") && differs.contains("--accept"),
                "{differs}"
            );
        }
        assert!(find(1.0, 1000.0, [999, 999]).is_ok(), "too few to say");
        assert!(find(0.0, 1000.0, [2000, 2000]).is_ok(), "nothing to compare with");
    }
}
