//! Looks at each view every few seconds: for metrics, and for what readiness tells. No answer depends on it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use shared_connections::store::{Published, Store, StoreError, Timetable};
use shared_schemas::definitions::Definitions;
use shared_schemas::view::View;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::answer::rfc3339;
use crate::changed::Building;
use crate::freshness::Freshness;
use crate::query;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(5);

/// So many seconds after its start a batch run that is neither done nor given up is worth a word.
const OVERDUE: i64 = 6 * 3600;

/// What the last look saw.
#[derive(Debug, Default)]
pub(crate) struct Watched(Mutex<Seen>);

/// What readiness tells beside whether queries can be answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Seen {
    /// What a person should know, in sentences.
    degraded: Vec<String>,
    /// The schedule of batch runs; null where none was ever run.
    batch: Option<Scheduled>,
}

/// How the schedule of batch runs stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Scheduled {
    /// When the next run starts, or when the one started that is under way; null where nobody is there to start it.
    next_run: Option<String>,
    /// When the last one ended in which no view failed; null where that is not known.
    last_success: Option<String>,
}

impl Watched {
    /// What the last look saw.
    pub(crate) fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Scheduled {
    fn of(timetable: &Timetable) -> Self {
        Self {
            next_run: (!timetable.ended).then(|| rfc3339(timetable.next)).flatten(),
            last_success: timetable.succeeded.and_then(rfc3339),
        }
    }
}

/// The loop.
pub(crate) struct Watch {
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) store: Store,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) watched: Arc<Watched>,
}

impl Watch {
    /// Looks until it is cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_up = true;
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            // Histograms keep what was recorded until somebody drains them.
            self.metrics.run_upkeep();
            let Some(looked) = cancel.run_until_cancelled(self.look()).await else {
                return;
            };
            gauge!("highwater_store_up").set(if looked.is_ok() { 1.0 } else { 0.0 });
            let is_up = looked.is_ok();
            match looked {
                Ok(seen) => {
                    if !was_up {
                        tracing::info!("ClickHouse answers again");
                    }
                    self.watched.set(seen);
                }
                Err(error) if was_up => tracing::warn!("no query can be answered for now: {error}"),
                Err(error) => tracing::debug!("no query can be answered, still: {error}"),
            }
            was_up = is_up;
        }
    }

    /// What there is to complain of, in all views, and how the schedule of batch runs stands.
    async fn look(&self) -> Result<Seen, StoreError> {
        let mut complaints = Vec::new();
        let mut published = None;
        for view in &self.definitions.views {
            let (facts, rows) = query::facts(&self.store, view).await?;
            let now = Utc::now().timestamp_millis();
            let freshness = Freshness::of(view, &facts, &rows, now);
            complaints.extend(freshness.complaints(&view.name));
            let building = Building::ask(&self.store, view, &facts, &rows).await?;
            let is_building = facts.newest().is_none();
            let mut newest = facts.newest().cloned();
            if let Some(changed) = building.and_then(Building::changed) {
                complaints.push(changed.definition.detail().to_owned());
                newest = query::facts(&self.store, &changed.instead.view)
                    .await?
                    .0
                    .newest()
                    .cloned();
            }
            record(view, newest.as_ref(), is_building, &freshness, now);
            published = published.max(facts.newest().map(|newest| newest.at.div_euclid(1000)));
        }
        let timetable = self.store.timetable().await?;
        let now = Utc::now().timestamp();
        complaints.extend(
            timetable
                .as_ref()
                .and_then(|timetable| complaint(timetable, published, now)),
        );
        Ok(Seen {
            degraded: complaints,
            batch: timetable.as_ref().map(Scheduled::of),
        })
    }
}

/// What a person should know of the schedule of batch runs. `published` is when any view last was. Moments are in seconds since
/// 1970.
///
/// Nothing, where nobody runs the schedule any more: who ran it ended as told, or somebody else has published since its start.
fn complaint(timetable: &Timetable, published: Option<i64>, now: i64) -> Option<String> {
    let is_overdue = timetable.next.saturating_add(OVERDUE) < now;
    if timetable.ended || (is_overdue && published.is_some_and(|published| published > timetable.next)) {
        return None;
    }
    let at = |seconds| rfc3339(seconds).unwrap_or_default();
    let since = timetable.succeeded.map_or_else(String::new, |succeeded| {
        format!("; the last one ended well at {}", at(succeeded))
    });
    if is_overdue {
        return Some(format!(
            "the batch run of {} has not ended, or not begun: does `highwater batch schedule` run{since}",
            at(timetable.next)
        ));
    }
    (timetable.failures > 0).then(|| {
        format!(
            "scheduled batch runs failed {} times, for {}: the next is at {}{since}",
            timetable.failures,
            timetable.failing.join(", "),
            at(timetable.next)
        )
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a metric is a double, and a rounded one will do"
)]
fn record(view: &View, answers: Option<&Published>, is_building: bool, freshness: &Freshness, now: i64) {
    let name = || view.name.clone();
    // Unknown is NaN: a gauge that stays at its last value would look fresh for ever.
    gauge!("highwater_freshness_seconds", "view" => name()).set(freshness.speed.lag_seconds.unwrap_or(f64::NAN));
    let lag = freshness.speed.lag_events.map_or(f64::NAN, |lag| lag as f64);
    gauge!("highwater_lag_events", "view" => name()).set(lag);
    let number = answers.map_or(0, |answers| answers.publication.number.0);
    gauge!("highwater_publication_number", "view" => name()).set(number as f64);
    let age = answers.map_or(f64::NAN, |answers| {
        now.saturating_sub(answers.at).max(0) as f64 / 1_000.0
    });
    gauge!("highwater_publication_age_seconds", "view" => name()).set(age);
    gauge!("highwater_view_building", "view" => name()).set(f64::from(u8::from(is_building)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_that_is_not_kept_is_told() {
        let kept = Timetable {
            next: 1_700_000_000,
            succeeded: Some(1_699_913_600),
            ..Timetable::default()
        };
        let before = Some(1_699_913_700);
        assert_eq!(complaint(&kept, before, 1_699_999_999), None);
        assert_eq!(complaint(&kept, before, 1_700_000_600), None, "it goes on");
        let overdue = complaint(&kept, before, 1_700_100_000).unwrap();
        assert_eq!(
            overdue,
            "the batch run of 2023-11-14T22:13:20Z has not ended, or not begun: does `highwater batch schedule` run; the \
             last one ended well at 2023-11-13T22:13:20Z"
        );
        assert_eq!(complaint(&kept, None, 1_700_100_000), Some(overdue));
        let later = Some(1_700_050_000);
        assert_eq!(complaint(&kept, later, 1_700_100_000), None, "somebody else runs them");
        let failing = Timetable {
            failures: 3,
            failing: vec!["hourly".to_owned(), "daily".to_owned()],
            succeeded: None,
            ..kept
        };
        let failed = "scheduled batch runs failed 3 times, for hourly, daily: the next is at 2023-11-14T22:13:20Z";
        assert_eq!(complaint(&failing, before, 1_699_999_999).as_deref(), Some(failed));
        let ended = Timetable { ended: true, ..failing };
        for now in [1_699_999_999, 1_700_100_000] {
            assert_eq!(complaint(&ended, None, now), None, "nobody runs it any more");
        }
        assert_eq!(Scheduled::of(&ended).next_run, None);
    }
}
