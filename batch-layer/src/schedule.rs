//! Runs on a schedule, one after the other; missed ones are caught up with, failed ones tried again.
//!
//! What happens next is decided by [`next`] from what has been done and the time. The time comes from a [`Clock`], so that a test
//! can be years of it.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use shared_connections::sentence;
use shared_connections::store::Timetable;
use shared_schemas::config::Schedule;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use crate::progress::Watcher;
use crate::reconcile::after_run;
use crate::report::{Outcome, ViewReport};
use crate::retry::patiently;
use crate::run::{Batch, Selection};

/// The clock may be set, or the machine sleep: how often it is looked at while a start is waited for.
const LOOKS: Duration = Duration::from_secs(10);
/// How long after a failed run it is tried again; twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// But no longer than this.
const LAST_RETRY: Duration = Duration::from_secs(3600);
/// How long is tried to tell that the schedule has ended.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Tells the time, and waits for it.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> DateTime<Utc>;
    /// Waits so long.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(time).boxed()
    }
}

/// What has been done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    /// Starts up to here need nothing more.
    done: DateTime<Utc>,
    /// But for one that somebody began, or was to begin, and nobody has ended.
    owed: bool,
    /// What failed since.
    failing: Option<Failing>,
}

/// Views that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failing {
    /// Which.
    views: Vec<Failed>,
    /// How often, one after the other.
    times: u32,
    /// When they did last.
    at: DateTime<Utc>,
}

/// A view that failed, or of which a mark can't go further.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failed {
    /// Its name.
    view: String,
    /// What a person has to decide.
    held: Option<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.held {
            Some(held) => write!(f, "{} ({held})", self.view),
            None => f.write_str(&self.view),
        }
    }
}

impl Failed {
    /// From the text of one.
    fn read(text: &str) -> Self {
        let held = text.strip_suffix(')').and_then(|text| text.split_once(" ("));
        let (view, held) = held.map_or((text, None), |(view, held)| (view, Some(held.to_owned())));
        let view = view.to_owned();
        Self { view, held }
    }
}

/// Why a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is time.
    Due,
    /// It was time when nobody was there to run.
    Missed,
    /// The last one failed.
    Retry,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Due => "by the schedule",
            Self::Missed => "a start was missed",
            Self::Retry => "the last one failed",
        })
    }
}

/// A run to come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Start {
    at: DateTime<Utc>,
    why: Why,
    /// Of these views; empty for all.
    views: Vec<String>,
}

/// The next run. All starts that were missed are caught up with by one. Failed views are tried again until a start of all
/// is due.
fn next(schedule: &Schedule, standing: &Standing, now: DateTime<Utc>) -> Option<Start> {
    let all = |at, why| Start {
        at,
        why,
        views: Vec::new(),
    };
    let due = schedule.after(standing.done);
    if standing.owed {
        // What killed it may do so again: not at once, then.
        return Some(all((standing.done + FIRST_RETRY).max(now), Why::Missed));
    }
    if due.is_some_and(|due| due <= now) {
        return Some(all(now, Why::Missed));
    }
    let retry = standing.failing.as_ref().map(|failing| Start {
        at: failing.at + pause(failing.times),
        why: Why::Retry,
        views: failing.views.iter().map(|failed| failed.view.clone()).collect(),
    });
    match (retry, due) {
        (Some(retry), due) if due.is_none_or(|due| retry.at < due) => Some(retry),
        (_, due) => due.map(|at| all(at, Why::Due)),
    }
}

/// How long to wait after so many failures.
fn pause(times: u32) -> Duration {
    let doubled = 1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_RETRY.saturating_mul(doubled).min(LAST_RETRY)
}

impl Standing {
    /// As whoever ran the schedule before left it: what began while nobody was there was missed, what failed is tried again when
    /// it would have been.
    fn told(row: &Timetable, now: DateTime<Utc>) -> Self {
        let next = DateTime::from_timestamp(row.next, 0).unwrap_or(now);
        let failing = (row.failures > 0).then(|| Failing {
            views: row.failing.iter().map(|text| Failed::read(text)).collect(),
            times: row.failures,
            at: next - pause(row.failures),
        });
        Self {
            // The schedule may be another one by now.
            done: (next - Duration::from_secs(1)).min(now),
            // What is tried again is tried again by itself.
            owed: row.failures == 0 && next <= now,
            failing,
        }
    }

    /// What others are told.
    fn tell(&self, next: DateTime<Utc>, succeeded: Option<DateTime<Utc>>) -> Timetable {
        let failing = self.failing.as_ref();
        Timetable {
            next: next.timestamp(),
            ended: false,
            succeeded: succeeded.map(|at| at.timestamp()),
            failures: failing.map_or(0, |failing| failing.times),
            failing: failing
                .map(|failing| failing.views.iter().map(Failed::to_string).collect())
                .unwrap_or_default(),
        }
    }

    /// When a start is told to be. Of one that catches up while a view fails it is when that would have been: whoever comes after
    /// a kill takes it for another try of that view alone otherwise.
    fn told_at(&self, start: &Start, schedule: &Schedule) -> DateTime<Utc> {
        let is_told = start.why == Why::Missed && self.failing.is_some();
        let missed = is_told.then(|| schedule.after(self.done)).flatten();
        missed.map_or(start.at, |missed| missed.min(start.at))
    }

    /// After a run that ended at that time and left these views failed.
    fn after(self, failed: Vec<Failed>, now: DateTime<Utc>) -> Self {
        let times = self.failing.map_or(0, |failing| failing.times) + 1;
        let failing = (!failed.is_empty()).then_some(Failing {
            views: failed,
            times,
            at: now,
        });
        Self {
            done: now,
            owed: false,
            failing,
        }
    }
}

impl Batch {
    /// Runs all views whenever `batch.schedule` says so, until cancelled. A run that takes longer than until the next
    /// start lets that one pass; one that somebody else is doing is waited for. A start that was missed since the last
    /// publication is caught up with at once. Results go to the log and the metrics.
    pub async fn schedule(&self, watcher: &dyn Watcher, cancel: &CancellationToken) {
        self.schedule_by(&MachineClock, watcher, cancel).await;
    }

    /// The same by another clock.
    pub async fn schedule_by(&self, clock: &dyn Clock, watcher: &dyn Watcher, cancel: &CancellationToken) {
        let mut told = None;
        self.keep_schedule(clock, watcher, cancel, &mut told).await;
        // Else it would be missed for ever.
        if let Some(told) = told {
            let ended = Timetable { ended: true, ..told };
            let recorded = tokio::time::timeout(LAST_WORD, self.store.record_timetable(&ended)).await;
            if !matches!(recorded, Ok(Ok(()))) {
                tracing::warn!("that the schedule has ended could not be told: `/readyz` will miss its next run");
            }
        }
        cancel.cancelled().await;
    }

    /// Until cancelled, or until there is no further start.
    async fn keep_schedule(
        &self,
        clock: &dyn Clock,
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
        told: &mut Option<Timetable>,
    ) {
        let schedule = &self.config.batch.schedule;
        let Some((mut standing, mut succeeded)) = cancel.run_until_cancelled(self.standing(clock, told)).await else {
            return;
        };
        if let Some(succeeded) = succeeded {
            metrics::gauge!("highwater_batch_schedule_success_timestamp").set(seconds(succeeded));
        }
        while let Some(start) = next(schedule, &standing, clock.now()) {
            let tells = standing.tell(standing.told_at(&start, schedule), succeeded);
            if let Err(error) = self.store.record_timetable(&tells).await {
                tracing::debug!(%error, "how the schedule stands could not be told");
            }
            *told = Some(tells);
            metrics::gauge!("highwater_batch_schedule_next_timestamp").set(seconds(start.at));
            let at = start.at.to_rfc3339_opts(SecondsFormat::Secs, true);
            tracing::info!(
                schedule = schedule.expression(),
                "next batch run at {at}, {}",
                start.why
            );
            let waited = async {
                while let Ok(left) = (start.at - clock.now()).to_std()
                    && !left.is_zero()
                {
                    clock.sleep(left.min(LOOKS)).await;
                }
            };
            if cancel.run_until_cancelled(waited).await.is_none() {
                return;
            }
            let failed = self.scheduled_run(start.views, watcher, cancel).await;
            if cancel.is_cancelled() {
                return;
            }
            standing = standing.after(failed, clock.now());
            let failures = standing.failing.as_ref().map_or(0, |failing| failing.times);
            metrics::gauge!("highwater_batch_schedule_failures").set(f64::from(failures));
            if failures == 0 {
                succeeded = Some(clock.now());
                metrics::gauge!("highwater_batch_schedule_success_timestamp").set(seconds(clock.now()));
            }
        }
        tracing::warn!("batch.schedule names no further start: no batch run will start by itself");
    }

    /// Where the schedule stands when it begins to be kept, and when a run last ended well. Who kept it before has told so; else it
    /// is known from what was published.
    async fn standing(&self, clock: &dyn Clock, told: &mut Option<Timetable>) -> (Standing, Option<DateTime<Utc>>) {
        let row = match patiently(|| self.store.timetable()).await {
            Ok(row) => row,
            Err(error) => {
                tracing::warn!(error = %sentence(&error), "how the schedule stood before is not known");
                None
            }
        };
        if let Some(row) = row {
            let succeeded = row.succeeded.and_then(|at| DateTime::from_timestamp(at, 0));
            let standing = Standing::told(&row, clock.now());
            *told = Some(row);
            return (standing, succeeded);
        }
        let last = self.last_success().await;
        let standing = Standing {
            done: last.unwrap_or_else(|| clock.now()),
            owed: false,
            failing: None,
        };
        (standing, last)
    }

    /// When the view whose last run is longest ago was published by one; `None` where nothing ever was, or nobody can tell.
    async fn last_success(&self) -> Option<DateTime<Utc>> {
        let mut last: Option<i64> = None;
        for view in &self.definitions.views {
            let published = match patiently(|| self.store.publications(view)).await {
                Ok(published) => published,
                Err(error) => {
                    tracing::warn!(error = %sentence(&error), "whether a batch run was missed is not known");
                    return None;
                }
            };
            // A rollback is no run.
            let runs = published
                .iter()
                .filter(|one| one.publication.content == one.publication.number);
            let of_view = runs.map(|one| one.at).max();
            last = last.into_iter().chain(of_view).min();
        }
        DateTime::from_timestamp_millis(last?)
    }

    /// The views that failed, or of which a mark can't go further.
    async fn scheduled_run(
        &self,
        views: Vec<String>,
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
    ) -> Vec<Failed> {
        let selection = Selection {
            views,
            ..Selection::default()
        };
        // These views, or all: there is no name that could be unknown.
        let views = self.selected(&selection).unwrap_or_default();
        let lease = match self.lease("scheduled batch run", true, watcher, cancel).await {
            Ok(lease) => lease,
            Err(_) if cancel.is_cancelled() => return Vec::new(),
            Err(error) => {
                tracing::error!(error = %sentence(&error), "a scheduled batch run could not begin");
                let failed = |view: &View| Failed {
                    view: view.name.clone(),
                    held: None,
                };
                return views.into_iter().map(|(view, _)| failed(view)).collect();
            }
        };
        let reports = self.run(&views, watcher, cancel).await;
        for report in &reports {
            tell(report, cancel.is_cancelled());
        }
        let collected: Vec<_> = views.iter().map(|(view, _)| *view).collect();
        cancel
            .run_until_cancelled(self.collect_what_is_old(&collected, watcher))
            .await;
        drop(lease);
        if self.config.batch.reconcile && !cancel.is_cancelled() {
            after_run(self, &views, watcher, cancel).await;
        }
        let failed = |report: &ViewReport| report.result == Outcome::Failed || report.held.is_some();
        let failed = reports.into_iter().filter(failed);
        let told = failed.map(|report| Failed {
            view: report.view,
            held: report.held,
        });
        told.collect()
    }
}

/// A moment as metrics have it.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
fn seconds(moment: DateTime<Utc>) -> f64 {
    moment.timestamp() as f64
}

fn tell(report: &ViewReport, cancelled: bool) {
    let ViewReport { view, days, rows, .. } = report;
    let seconds = report.seconds;
    let why = report.why.as_deref().unwrap_or_default();
    match report.result {
        Outcome::Published => {
            let number = report.publication.unwrap_or_default();
            tracing::info!(
                view,
                number,
                days,
                rows,
                seconds,
                fell_back = report.fell_back,
                "batch run published"
            );
            if let Some(held) = &report.held {
                tracing::error!(view, "a mark can't go further: {held}");
            }
        }
        Outcome::NothingToDo => tracing::info!(view, "batch run: {why}"),
        Outcome::Failed if cancelled => tracing::info!(view, "batch run: {why}"),
        Outcome::Failed => tracing::error!(view, "batch run failed, the old publication stands: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shared_schemas::config::Config;

    use super::*;

    fn nightly() -> Schedule {
        let text = "[batch]\nschedule = \"0 2 * * *\"\n";
        let reading = Config::parse(text, "highwater.toml", Path::new(""), &|_| None);
        assert!(reading.mistakes.is_empty(), "{}", reading.mistakes);
        reading.config.batch.schedule
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-{text}:00Z").parse().unwrap()
    }

    fn start(moment: &str, why: Why, views: &[&str]) -> Option<Start> {
        Some(Start {
            at: at(moment),
            why,
            views: views.iter().map(|&view| view.to_owned()).collect(),
        })
    }

    #[test]
    fn missed_starts_are_caught_up_with_once() {
        let schedule = nightly();
        let done = Standing {
            done: at("17T02:04"),
            owed: false,
            failing: None,
        };
        assert_eq!(next(&schedule, &done, at("17T09:00")), start("18T02:00", Why::Due, &[]));
        assert_eq!(
            next(&schedule, &done, at("20T09:00")),
            start("20T09:00", Why::Missed, &[])
        );
        let caught_up = done.after(Vec::new(), at("20T09:03"));
        assert_eq!(
            next(&schedule, &caught_up, at("20T09:03")),
            start("21T02:00", Why::Due, &[])
        );
        // A run that lasted beyond the next start lets that one pass.
        let long = caught_up.after(Vec::new(), at("21T02:30"));
        assert_eq!(next(&schedule, &long, at("21T02:30")), start("22T02:00", Why::Due, &[]));
    }

    #[test]
    fn failed_views_are_tried_again_later_and_later_until_all_are_due() {
        let schedule = nightly();
        let mut standing = Standing {
            done: at("17T02:04"),
            owed: false,
            failing: None,
        };
        let failed = || vec![Failed::read("a")];
        for (now, then) in [
            ("18T02:01", "18T02:02"),
            ("18T02:03", "18T02:05"),
            ("18T02:06", "18T02:10"),
            ("18T02:11", "18T02:19"),
        ] {
            standing = standing.after(failed(), at(now));
            assert_eq!(next(&schedule, &standing, at(now)), start(then, Why::Retry, &["a"]));
        }
        for _ in 0..40 {
            standing = standing.after(failed(), at("18T12:00"));
        }
        assert_eq!(
            next(&schedule, &standing, at("18T12:00")),
            start("18T13:00", Why::Retry, &["a"])
        );
        standing = standing.after(failed(), at("19T01:30"));
        assert_eq!(
            next(&schedule, &standing, at("19T01:30")),
            start("19T02:00", Why::Due, &[])
        );
        standing = standing.after(Vec::new(), at("19T02:01"));
        assert_eq!(
            next(&schedule, &standing, at("19T02:01")),
            start("20T02:00", Why::Due, &[])
        );
        standing = standing.after(failed(), at("20T02:01"));
        assert_eq!(
            next(&schedule, &standing, at("20T02:01")),
            start("20T02:02", Why::Retry, &["a"]),
            "it begins anew"
        );
    }

    #[test]
    fn who_begins_again_goes_on_where_the_schedule_stood() {
        let schedule = nightly();
        let idle = Standing {
            done: at("17T02:04"),
            owed: false,
            failing: None,
        };
        let told = idle.tell(at("18T02:00"), Some(at("17T02:04")));
        let again = |told: &Timetable, now: &str| next(&schedule, &Standing::told(told, at(now)), at(now));
        assert_eq!(
            again(&told, "17T09:00"),
            start("18T02:00", Why::Due, &[]),
            "nothing was missed"
        );
        assert_eq!(again(&told, "18T09:00"), start("18T09:00", Why::Missed, &[]));
        // Whoever caught up with a start was told to end before that was done.
        let caught = Standing::told(&told, at("18T09:00")).tell(at("18T09:00"), None);
        assert_eq!(again(&caught, "18T09:05"), start("18T09:05", Why::Missed, &[]));

        let held = Failed {
            view: "b".to_owned(),
            held: Some("it lacks (some) offsets".to_owned()),
        };
        let mut failing = idle;
        for _ in 0..3 {
            failing = failing.after(vec![Failed::read("a"), held.clone()], at("18T02:10"));
        }
        let retry = next(&schedule, &failing, at("18T02:10")).unwrap();
        assert_eq!(retry.at, at("18T02:14"));
        let told = failing.tell(retry.at, None);
        assert_eq!(
            (told.failures, &told.failing[1][..]),
            (3, "b (it lacks (some) offsets)")
        );
        assert_eq!(Standing::told(&told, at("18T02:11")).failing, failing.failing);
        assert_eq!(again(&told, "18T02:11"), start("18T02:14", Why::Retry, &["a", "b"]));
        let later = again(&told, "18T09:00").unwrap();
        assert_eq!((later.why, later.views.len()), (Why::Retry, 2));
        // A start of all views was missed meanwhile, and who caught up with it was killed.
        let standing = Standing::told(&told, at("19T09:00"));
        let missed = start("19T09:00", Why::Missed, &[]);
        assert_eq!(next(&schedule, &standing, at("19T09:00")), missed);
        let told = standing.tell(standing.told_at(&missed.unwrap(), &schedule), None);
        assert_eq!(again(&told, "19T09:05"), start("19T09:05", Why::Missed, &[]));
        // Another schedule by now: the next start of the old one does not hold the new one back.
        let far = Timetable {
            next: at("28T02:00").timestamp(),
            ..Timetable::default()
        };
        assert_eq!(again(&far, "18T09:00"), start("19T02:00", Why::Due, &[]));
    }
}
