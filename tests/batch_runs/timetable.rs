//! The schedule by a clock of the test's own: what was missed is caught up with, what failed is tried again.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use highwater_batch::{Clock, Step, Watcher};
use shared_schemas::handoff::PublicationNumber;
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, files, log};
use super::{on_engine, published};

/// A clock that moves on when somebody waits for it, and ends the schedule after so long.
struct Quick {
    begun: DateTime<Utc>,
    now: Mutex<DateTime<Utc>>,
    end: TimeDelta,
    cancel: CancellationToken,
    /// When views were published, after the beginning.
    published: Mutex<Vec<TimeDelta>>,
    /// A file that is whole again from the first wait on.
    mended: Option<(PathBuf, Vec<u8>)>,
}

impl Quick {
    fn new(begun: DateTime<Utc>, end: TimeDelta) -> Self {
        Self {
            begun,
            now: Mutex::new(begun),
            end,
            cancel: CancellationToken::new(),
            published: Mutex::default(),
            mended: None,
        }
    }

    fn passed(&self) -> TimeDelta {
        *self.now.lock().unwrap() - self.begun
    }
}

impl Clock for Quick {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        if let Some((path, whole)) = &self.mended {
            std::fs::write(path, whole).unwrap();
        }
        *self.now.lock().unwrap() += time;
        if self.passed() > self.end {
            self.cancel.cancel();
        }
        tokio::task::yield_now().boxed()
    }
}

impl Watcher for Quick {
    fn step(&self, _: &str, step: &Step) {
        if matches!(step, Step::Published { .. }) {
            self.published.lock().unwrap().push(self.passed());
        }
    }
}

/// Noon so many days from now: no start of a schedule at two lies near it.
fn noon_in(days: i64) -> DateTime<Utc> {
    let day = (Utc::now() + TimeDelta::days(days)).date_naive();
    day.and_hms_opt(12, 0, 0).unwrap().and_utc()
}

#[test]
fn starts_that_were_missed_are_caught_up_with_once() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "[batch]\nschedule = \"0 2 * * *\"\n").await?;
        world.archive([8, 8], 1).await?;
        // Nothing was ever published: nothing was missed.
        let first = Quick::new(noon_in(0), TimeDelta::minutes(1));
        world.batch.schedule_by(&first, &first, &first.cancel).await;
        let missed = first
            .published
            .lock()
            .unwrap()
            .iter()
            .filter(|passed| passed.is_zero())
            .count();
        assert_eq!(missed, 0);

        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        world.archive([40, 40], 1).await?;
        let clock = Quick::new(noon_in(3), TimeDelta::hours(30));
        world.batch.schedule_by(&clock, &clock, &clock.cancel).await;
        assert_eq!(
            *clock.published.lock().unwrap(),
            [TimeDelta::zero(); 3],
            "all three views, at once"
        );
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(2));
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        let told = world.batch.store.timetable().await?.unwrap();
        assert_eq!((told.failures, told.failing.len()), (0, 0));
        assert!(told.ended, "nobody misses what was told to end: {told:?}");

        // Who begins again knows what has been done, though nothing new was there to publish.
        let next = DateTime::from_timestamp(told.next, 0).unwrap();
        let again = Quick::new(next - TimeDelta::hours(1), TimeDelta::minutes(1));
        world.archive([48, 40], 1).await?;
        world.batch.schedule_by(&again, &again, &again.cancel).await;
        assert_eq!(again.published.lock().unwrap().len(), 0, "its time has not come");
        assert!(told.succeeded.is_some_and(|at| at > Utc::now().timestamp()), "{told:?}");
        Ok(())
    })
}

#[test]
fn views_that_failed_are_tried_again() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "[batch]\nschedule = \"0 2 * * *\"\n").await?;
        world.archive([8, 8], 1).await?;
        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        let old = files(&world.archive_folder());
        world.archive([40, 40], 1).await?;
        let parquet = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
        let damaged = files(&world.archive_folder())
            .into_iter()
            .find(|path| parquet(path) && !old.contains(path))
            .unwrap();
        let bytes = std::fs::read(&damaged)?;
        std::fs::write(&damaged, &bytes[..bytes.len() / 2])?;
        let mut clock = Quick::new(noon_in(3), TimeDelta::minutes(10));
        clock.mended = Some((damaged, bytes));
        world.batch.schedule_by(&clock, &clock, &clock.cancel).await;
        assert_eq!(*clock.published.lock().unwrap(), [TimeDelta::minutes(1); 3]);
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        Ok(())
    })
}
