//! Collection: what nobody may use any more is let go.
//!
//! For each view, as the model of the hand-off has it: write the floor that leaves the newest `keep_publications` restorable;
//! wait until no statement runs that was allowed below it; read the publications again; delete by name what lies below:
//! progress, then the rows that it speaks of, gaps, cuts, the rows of runs that nobody can reach. What arrives there later is
//! swept the next time, which is also why a run itself is forgotten only when a collection finds no row of it. Publications
//! below the floor are still listed for people, a hundred in all; what is older goes, and with it what its run told.
//!
//! A view with `keep` has a horizon too: before that event day it holds nothing, whoever asks. It rises day by day, is a row that
//! all readers share, as a floor is, and what lies before it goes the same way: first the row, then the waiting, then the data.
//!
//! The waiting is by the age of the floor rows in the store, not by anything that this process remembers: so a collection that
//! was killed is gone on with by the next one, and the one after a batch run never waits: it raises the floor, and deletes
//! what lies below floors that are old enough, which a run of another day has raised.

use std::time::Duration;

use serde::Serialize;
use shared_connections::sentence;
use shared_connections::store::letting_go::Place;
use shared_connections::store::{Below, Gone, Raised};
use shared_schemas::handoff::floor::PUBLICATIONS_LISTED;
use shared_schemas::handoff::{EventDay, Floor, Publication, newest};
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use crate::clock::Today;
use crate::error::RunError;
use crate::lease::LeaseError;
use crate::progress::{Step, Watcher};
use crate::publish::{Line, line};
use crate::report::day_text;
use crate::retry::patiently;
use crate::run::Batch;

/// What a collection did for a view, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// The view.
    pub view: String,
    /// The oldest publication that may be restored before; 0 for all.
    pub floor_before: u64,
    /// And after.
    pub floor: u64,
    /// The first event day that is held, as in 2013-01-31; none where all are.
    pub horizon: Option<String>,
    /// Why it did not rise, where that can't be told today.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// Rows that went, or would go.
    pub rows: RowsGone,
    /// How many runs they are of, or are forgotten.
    pub runs: usize,
    /// About how many bytes on disk.
    pub bytes: u64,
    /// Whether the floor is not old enough yet, so that a later collection deletes.
    pub waits: bool,
    /// Whether nothing was done, and the numbers say what would be.
    pub dry_run: bool,
    /// Why it could not be done, or not to its end; the next one goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Rows by what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RowsGone {
    /// Cells of batch runs.
    pub batch: u64,
    /// Cells of the speed layer.
    pub speed: u64,
    /// Its progress.
    pub progress: u64,
    /// Its gaps.
    pub gaps: u64,
    /// Cuts.
    pub cuts: u64,
    /// Publications that are no longer listed.
    pub publications: u64,
    /// What their runs came to.
    pub reports: u64,
}

impl RowsGone {
    fn of(found: &Below, before: &Below) -> Self {
        Self {
            batch: found.of(Place::Batch) + before.of(Place::Batch),
            speed: found.of(Place::Speed) + before.of(Place::Speed),
            progress: found.of(Place::Progress),
            gaps: found.of(Place::Gaps),
            cuts: found.of(Place::Cuts),
            publications: found.of(Place::Publications),
            reports: found.of(Place::Reports),
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.batch + self.speed + self.progress + self.gaps + self.cuts + self.publications + self.reports
    }
}

/// The floor that rows of at least this age make: below it no statement runs any more.
fn settled(raised: &[Raised], wait: Duration) -> Floor {
    raised
        .iter()
        .filter(|row| row.age >= wait)
        .fold(Floor::default(), |floor, row| floor.union(&row.floor))
}

/// How long until all rows of these ages are old enough.
fn left(ages: impl Iterator<Item = Duration>, wait: Duration) -> Duration {
    ages.map(|age| wait.saturating_sub(age)).max().unwrap_or_default()
}

/// Rows that say nothing which another one, old enough too, does not say. Each is checked against one other row alone: the
/// union of several would be lost with any of them.
fn needless(raised: &[Raised], wait: Duration) -> Vec<Floor> {
    let old: Vec<_> = raised
        .iter()
        .filter(|row| row.age >= wait)
        .map(|row| &row.floor)
        .collect();
    let covers = |by: &Floor, floor: &Floor| by != floor && by.clone().union(floor) == *by;
    old.iter()
        .filter(|floor| old.iter().any(|by| covers(by, floor)))
        .map(|floor| (*floor).clone())
        .collect()
}

impl Batch {
    /// Collects these views: raises their floors, waits, deletes. A report for each, in their order. It takes the lease for
    /// what it does, and gives it back while it waits.
    ///
    /// # Errors
    /// The lease's. Cancelled while it waits, the floors stand, the reports say so, and the next collection deletes.
    pub async fn collect(
        &self,
        views: &[&View],
        wait_for_lease: bool,
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
    ) -> Result<Vec<Collected>, LeaseError> {
        let doing = "batch gc";
        let lease = self.lease(doing, wait_for_lease, watcher, cancel).await?;
        let mut reports = Vec::new();
        let mut longest = Duration::ZERO;
        for view in views {
            let (report, left) = self.raised(view, watcher).await;
            longest = longest.max(left);
            reports.push(report);
        }
        drop(lease);
        if !longest.is_zero() {
            watcher.step("", &Step::WaitsToDelete { left: longest });
            let waited = cancel.run_until_cancelled(tokio::time::sleep(longest)).await;
            if waited.is_none() {
                reports.iter_mut().for_each(|report| report.waits = true);
                return Ok(reports);
            }
        }
        let _lease = self.lease(doing, true, watcher, cancel).await?;
        for (view, report) in views.iter().zip(&mut reports) {
            self.sweep(view, report, watcher).await;
        }
        Ok(reports)
    }

    /// The same without waiting, for after a run, with its lease: what lies below floors that are old enough is deleted, and
    /// the floors are raised for the next time.
    pub async fn collect_what_is_old(&self, views: &[&View], watcher: &dyn Watcher) -> Vec<Collected> {
        let mut reports = Vec::new();
        for view in views {
            let (mut report, left) = self.raised(view, watcher).await;
            report.waits = !left.is_zero();
            self.sweep(view, &mut report, watcher).await;
            tell(&report);
            reports.push(report);
        }
        reports
    }

    /// What a collection would do now, once it has waited. Nothing is written.
    pub async fn collectable(&self, views: &[&View]) -> Vec<Collected> {
        let mut reports = Vec::new();
        for view in views {
            let mut report = Collected {
                view: view.name.clone(),
                dry_run: true,
                ..Collected::default()
            };
            if let Err(error) = self.count(view, &mut report).await {
                report.error = Some(sentence(&error));
            }
            reports.push(report);
        }
        reports
    }

    async fn count(&self, view: &View, report: &mut Collected) -> Result<(), RunError> {
        let Line { all, floor, .. } = line(&self.store, view).await?;
        report.floor_before = floor.number.0;
        let floor = floor.keeping(self.keep(), &all).unwrap_or(floor);
        report.floor = floor.number.0;
        let (found, gone) = self.found(view, floor, &all).await?;
        let horizon = patiently(|| self.store.horizon(view)).await?;
        let horizon = horizon.max(self.horizon_today(view, report).await?);
        report.horizon = horizon.map(day_text);
        let before = self.before(view, horizon).await?;
        report.rows = RowsGone::of(&found, &before);
        report.bytes = found.bytes + before.bytes;
        report.runs = gone.runs.len();
        Ok(())
    }

    /// The first event day that a view holds today; none where it holds all, or where which day it is can't be told.
    async fn horizon_today(&self, view: &View, report: &mut Collected) -> Result<Option<EventDay>, RunError> {
        let Some(keep) = view.keep else {
            return Ok(None);
        };
        let today = Today::of(patiently(|| self.store.clock()).await?);
        report.doubt = today.doubt();
        Ok(today.first_kept(keep))
    }

    /// Rows before the horizon. Those that are below the floor as well are counted with both: as they lie on disk they are
    /// gone after either.
    async fn before(&self, view: &View, horizon: Option<EventDay>) -> Result<Below, RunError> {
        match horizon {
            Some(day) => Ok(patiently(|| self.store.before(view, day)).await?),
            None => Ok(Below::default()),
        }
    }

    fn keep(&self) -> usize {
        usize::try_from(self.config.batch.keep_publications).unwrap_or(usize::MAX)
    }

    /// What lies below a floor, by name, and how many rows there are of it.
    async fn found(&self, view: &View, floor: Floor, all: &[Publication]) -> Result<(Below, Gone), RunError> {
        // Reports before runs: whoever tells has said before that it began.
        let mut reports = patiently(|| self.store.reported_runs(view)).await?;
        // Runs after publications: a run that is not among them yet can't be in one of these either.
        let runs = patiently(|| self.store.runs(view)).await?;
        let publications = floor.forgettable(PUBLICATIONS_LISTED, all);
        let listed = all.iter().filter(|one| !publications.contains(&one.key()));
        for run in runs.iter().map(|run| run.id).chain(listed.map(|one| one.run)) {
            reports.remove(&run);
        }
        let runs = runs.into_iter().map(|run| (run.id, run.parent));
        let gone = Gone {
            runs: floor.collectable(all, runs, []).runs,
            reports,
            publications,
            floor,
        };
        let found = patiently(|| self.store.below(view, &gone)).await?;
        Ok((found, gone))
    }

    /// Raises the floor of a view; the report so far, and how long until its floors are old enough.
    async fn raised(&self, view: &View, watcher: &dyn Watcher) -> (Collected, Duration) {
        let mut report = Collected {
            view: view.name.clone(),
            ..Collected::default()
        };
        let left = self.raise(view, &mut report, watcher).await.unwrap_or_else(|error| {
            report.error = Some(sentence(&error));
            Duration::ZERO
        });
        (report, left)
    }

    async fn raise(&self, view: &View, report: &mut Collected, watcher: &dyn Watcher) -> Result<Duration, RunError> {
        let Line { all, floor, .. } = line(&self.store, view).await?;
        report.floor_before = floor.number.0;
        report.floor = floor.number.0;
        if let Some(risen) = floor.keeping(self.keep(), &all) {
            report.floor = risen.number.0;
            let number = risen.number;
            watcher.step(&view.name, &Step::RaisesFloor { number });
            patiently(|| self.store.raise_floor(view, &risen)).await?;
        }
        let horizons = patiently(|| self.store.raised_horizons(view)).await?;
        let held = horizons.last().map(|row| row.day);
        let risen = self.horizon_today(view, report).await?;
        let risen = risen.filter(|day| Some(*day) > held);
        if let Some(day) = risen {
            watcher.step(&view.name, &Step::RaisesHorizon { day });
            patiently(|| self.store.raise_horizon(view, day)).await?;
        }
        report.horizon = risen.or(held).map(day_text);
        let raised = patiently(|| self.store.raised_floors(view)).await?;
        let horizons = patiently(|| self.store.raised_horizons(view)).await?;
        let ages = raised
            .iter()
            .map(|row| row.age)
            .chain(horizons.iter().map(|row| row.age));
        Ok(left(ages, self.config.batch.gc_wait))
    }

    /// Deletes what lies below the floors that are old enough.
    async fn sweep(&self, view: &View, report: &mut Collected, watcher: &dyn Watcher) {
        if report.error.is_some() {
            return;
        }
        if let Err(error) = self.delete(view, report, watcher).await {
            report.error = Some(sentence(&error));
        }
    }

    async fn delete(&self, view: &View, report: &mut Collected, watcher: &dyn Watcher) -> Result<(), RunError> {
        let wait = self.config.batch.gc_wait;
        let before = self.delete_before(view, watcher).await?;
        report.rows = RowsGone::of(&Below::default(), &before);
        report.bytes = before.bytes;
        let raised = patiently(|| self.store.raised_floors(view)).await?;
        let settled = settled(&raised, wait);
        if settled == Floor::default() {
            record(report);
            return Ok(());
        }
        // Again, after the waiting: what was published meanwhile holds days of runs too.
        let Line { all, floor, .. } = line(&self.store, view).await?;
        if newest(&all, &floor).is_none() {
            return Err(RunError::NothingAdmitted { number: floor.number.0 });
        }
        let (found, gone) = self.found(view, settled, &all).await?;
        for place in Place::ORDER {
            let rows = found.of(place);
            if rows == 0 {
                continue;
            }
            let what = place.word();
            watcher.step(&view.name, &Step::Deletes { what, rows });
            patiently(|| self.store.delete_below(view, place, &gone, &found)).await?;
        }
        let needless = needless(&raised, wait);
        patiently(|| self.store.delete_floors(view, &needless)).await?;
        report.rows = RowsGone::of(&found, &before);
        report.bytes = found.bytes + before.bytes;
        report.runs = gone.runs.len();
        record(report);
        Ok(())
    }

    /// Deletes what lies before the horizons that are old enough; what there was of it.
    async fn delete_before(&self, view: &View, watcher: &dyn Watcher) -> Result<Below, RunError> {
        let horizons = patiently(|| self.store.raised_horizons(view)).await?;
        let old = horizons.iter().filter(|row| row.age >= self.config.batch.gc_wait);
        let settled = old.map(|row| row.day).max();
        let found = self.before(view, settled).await?;
        if let Some(day) = settled.filter(|_| !found.is_empty()) {
            let rows = found.of(Place::Batch) + found.of(Place::Speed);
            let what = "days before the horizon";
            watcher.step(&view.name, &Step::Deletes { what, rows });
            patiently(|| self.store.delete_before(view, day, &found)).await?;
        }
        if let Some(day) = settled.filter(|day| horizons.iter().any(|row| row.day < *day)) {
            patiently(|| self.store.delete_horizons(view, day)).await?;
        }
        Ok(found)
    }
}

/// Counts what went, as metrics.
fn record(report: &Collected) {
    metrics::counter!("highwater_batch_collected_rows_total", "view" => report.view.clone())
        .increment(report.rows.total());
    metrics::counter!("highwater_batch_collected_bytes_total", "view" => report.view.clone()).increment(report.bytes);
}

/// Writes to the log what a collection after a run came to.
fn tell(report: &Collected) {
    let Collected { view, floor, bytes, .. } = report;
    let rows = report.rows.total();
    if let Some(doubt) = &report.doubt {
        tracing::warn!(view, "{doubt}");
    }
    match &report.error {
        Some(error) => tracing::warn!(
            view,
            "what is old could not be let go, the next collection goes on: {error}"
        ),
        None if rows > 0 => tracing::info!(view, floor, rows, bytes, "let go what lies below the floor"),
        None => tracing::debug!(view, floor, "nothing lies below the floor"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shared_schemas::handoff::{Mark, Offset, Partition, PublicationNumber, TopicId};

    use super::*;

    const WAIT: Duration = Duration::from_secs(600);

    fn raised(number: u64, marks: [u64; 2], age: u64) -> Raised {
        let partition = |number| Partition {
            topic: TopicId(1),
            number,
        };
        let marks = [0, 1].map(|at| (partition(at), Mark(Offset(marks[usize::try_from(at).unwrap()]))));
        Raised {
            floor: Floor {
                number: PublicationNumber(number),
                marks: BTreeMap::from(marks),
            },
            age: Duration::from_secs(age),
        }
    }

    #[test]
    fn only_floors_that_are_old_enough_count() {
        let rows = [raised(2, [8, 0], 700), raised(3, [8, 8], 600), raised(5, [16, 16], 10)];
        assert_eq!(settled(&rows, WAIT), rows[1].floor);
        assert_eq!(settled(&rows[2..], WAIT), Floor::default());
        let ages = |rows: &[Raised]| left(rows.iter().map(|row| row.age), WAIT);
        assert_eq!(ages(&rows), Duration::from_secs(590));
        assert_eq!(ages(&rows[..2]), Duration::ZERO);
    }

    #[test]
    fn a_floor_row_goes_only_for_one_that_says_as_much_and_is_as_old() {
        let rows = [raised(2, [8, 0], 700), raised(3, [8, 8], 600), raised(5, [16, 16], 10)];
        assert_eq!(needless(&rows, WAIT), [rows[0].floor.clone()]);
        let rivals = [raised(2, [8, 0], 700), raised(2, [0, 8], 700)];
        assert_eq!(needless(&rivals, WAIT), [], "neither says what the other does");
        assert_eq!(needless(&rows[..1], WAIT), [], "the last one stays");
    }
}
