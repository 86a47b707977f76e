//! Fault 19: wall clocks that are wrong and jump, of workers and of producers. No decision about a record asks them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::Utc;
use highwater_tests::platform::{Event, Platform};
use highwater_tests::stack::PATIENCE;
use highwater_tests::workers::Worker;

use super::ground::{Ground, place};
use super::trial::trials;
use crate::end_to_end::letters;

/// Loaded before the C library: adds to the wall clock what a file says. Other clocks go on as they are.
const SKEW: &str = include_str!("clock/skew.c");
const HOUR: i64 = 3_600;
/// The archiver of the tests commits so often.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(50);

/// A wall clock of a process's own, ahead by as many seconds as it is told.
pub(crate) struct Clock {
    library: PathBuf,
    seconds: PathBuf,
}

impl Clock {
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        let source = folder.join("skew.c");
        let clock = Self {
            library: folder.join("skew.so"),
            seconds: folder.join("seconds"),
        };
        std::fs::write(&source, SKEW)?;
        clock.set(0)?;
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&clock.library)
            .arg(&source)
            .status()
            .context("cc, which Rust needs too")?;
        ensure!(compiled.success(), "cc: {compiled}");
        clock.set(1_000 * HOUR)?;
        let told = Command::new("date").arg("+%s").envs(clock.environment()).output()?;
        let told: i64 = String::from_utf8(told.stdout)?.trim().parse()?;
        ensure!(told > Utc::now().timestamp() + 999 * HOUR, "the clock is not wrong");
        clock.set(0)?;
        Ok(clock)
    }

    /// Jumps there. In place: whoever has mapped the file sees it at once.
    pub(crate) fn set(&self, seconds: i64) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.seconds)?;
        file.write_all_at(&seconds.to_ne_bytes(), 0)?;
        Ok(())
    }

    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("SKEW_SECONDS", self.seconds.display().to_string()),
        ]
    }

    fn start(&self, platform: &Platform, layer: &'static str) -> anyhow::Result<Worker> {
        Worker::start(platform, layer, &place(platform), &self.environment())
    }
}

/// The clock of a worker jumps by hours while a rival's clock is right.
#[test]
fn workers_with_jumping_clocks_count_alike() -> anyhow::Result<()> {
    trials("19", "wall clocks of workers jump", 3, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let clock = Clock::new(platform.folder())?;
        let skewed = clock.start(&platform, "speed")?;
        let _archiver = Worker::archive(&platform)?;
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        let _right = Worker::speed_at(&platform, &place(&platform))?;
        let jumps = trial.times(6, 100);
        let jumping = async {
            for _ in 0..jumps {
                clock.set(trial.random.i64(-30 * HOUR..30 * HOUR))?;
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(600)).await;
            }
            Ok(())
        };
        platform.watched(platform.while_streaming(jumping)).await?;
        ensure!(skewed.runs(), "it ended: {}", skewed.said());
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}

/// The archiver's clock jumps by hours. It goes on committing as often as it should and no more, refuses what lies ahead of
/// Kafka's time and nothing else, and a run on what it wrote is exact.
#[test]
fn an_archiver_with_a_jumping_clock_archives_alike() -> anyhow::Result<()> {
    trials("19", "the archiver's wall clock jumps", 3, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let clock = Clock::new(platform.folder())?;
        let archiver = clock.start(&platform, "archive")?;
        let _worker = Worker::speed_at(&platform, &place(&platform))?;
        platform.send_next(200).await?;
        platform.until_archived().await?;
        // The clock first: what is committed while the metric is asked for counts too.
        let (began, before) = (Instant::now(), commits(&archiver).await?);
        let jumps = trial.times(5, 60);
        let mut refused = 0;
        let jumping = async {
            for jump in 0..jumps {
                // Back first: whoever waits for a moment of the day would now wait for hours.
                let far = trial.random.i64(HOUR..30 * HOUR);
                clock.set(if jump % 2 == 0 { -far } else { far })?;
                // Ahead of Kafka's clock, whatever the archiver's says.
                let at = Utc::now().timestamp() + trial.random.i64(700..20 * HOUR);
                let event = format!("{{\"at\": {at}, \"n\": {jump}, \"kind\": \"a\"}}");
                platform.send_bad([event.into_bytes()]).await?;
                refused += 1;
                let committed = commits(&archiver).await?;
                let goes_on = async {
                    while commits(&archiver).await? == committed {
                        tokio::time::sleep(POLL).await;
                    }
                    anyhow::Ok(())
                };
                let goes_on = tokio::time::timeout(PATIENCE, goes_on).await;
                goes_on.with_context(|| format!("it commits no more after jump {jump}: {}", archiver.said()))??;
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(600)).await;
            }
            Ok(())
        };
        Box::pin(platform.watched(platform.while_streaming(jumping))).await?;
        platform.until_archived().await?;
        ensure!(archiver.runs(), "it ended: {}", archiver.said());
        let (commits, took) = (commits(&archiver).await? - before, began.elapsed());
        let most = took.as_secs_f64() / COMMIT_EVERY.as_secs_f64() + 1.0;
        ensure!(commits <= most, "{commits} commits in {took:?}");
        let expected = BTreeMap::from([("future_time".to_owned(), refused)]);
        let letters = letters(&platform)?;
        ensure!(letters == expected, "{letters:?} instead of {expected:?}");
        platform.publish_if_any().await?;
        trial.whole(&platform).await?;
        archiver.end_well().await
    })
}

async fn commits(archiver: &Worker) -> anyhow::Result<f64> {
    archiver.metric("highwater_archive_commits_total").await
}

/// Producers' clocks jump back and forth by hours: Kafka's times with them. Repeats that come within the window by the record's
/// own time are known as such; the batch layer knows all of them.
#[test]
fn kafka_times_that_jump_count_alike() -> anyhow::Result<()> {
    trials("19", "wall clocks of producers jump", 3, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let _workers = [
            Worker::speed_at(&platform, &place(&platform))?,
            Worker::archive(&platform)?,
        ];
        let now = Utc::now().timestamp_millis();
        let parts = trial.times(10, 60);
        platform
            .watched(async {
                let mut before = Vec::new();
                for part in 0..parts {
                    // Kafka refuses what is more than an hour ahead.
                    let ahead = trial.random.i64(-12 * 60..50) * 60_000;
                    let events: Vec<_> = (part * 100..part * 100 + 100)
                        .map(|n| (Event(n), Some(now + ahead)))
                        .collect();
                    platform.send_at(events.clone()).await?;
                    // Those of the part before once more, by a clock that is a little ahead of theirs: within the window.
                    let again = before.iter().step_by(7);
                    let again =
                        again.map(|(event, time): &(Event, Option<i64>)| (*event, time.map(|time| time + 60_000)));
                    platform.send_at(again).await?;
                    before = events;
                }
                trial.whole(&platform).await
            })
            .await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}
