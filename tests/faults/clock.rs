//! Fault 19: wall clocks that are wrong and jump, of workers and of producers. No decision about a record asks them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Event, Platform};
use highwater_tests::workers::Worker;

use super::ground::{Ground, place};
use super::trial::trials;

/// Loaded before the C library: adds to the wall clock what a file says. Other clocks go on as they are.
const SKEW: &str = include_str!("clock/skew.c");
const HOUR: i64 = 3_600;

/// A wall clock of a process's own, ahead by as many seconds as it is told.
struct Clock {
    library: PathBuf,
    seconds: PathBuf,
}

impl Clock {
    fn new(folder: &Path) -> anyhow::Result<Self> {
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
        ensure!(
            told > chrono::Utc::now().timestamp() + 999 * HOUR,
            "the clock is not wrong"
        );
        clock.set(0)?;
        Ok(clock)
    }

    /// Jumps there. In place: whoever has mapped the file sees it at once.
    fn set(&self, seconds: i64) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.seconds)?;
        file.write_all_at(&seconds.to_ne_bytes(), 0)?;
        Ok(())
    }

    fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("SKEW_SECONDS", self.seconds.display().to_string()),
        ]
    }

    fn start(&self, platform: &Platform, layer: &'static str) -> anyhow::Result<Worker> {
        Worker::start(platform, layer, &place(platform), &self.environment())
    }
}

/// The clock of a worker jumps by hours while a rival's clock is right. The archiver's is right too: on one that jumps it
/// was seen to stand still, which is not the speed layer's to mend.
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
        let now = chrono::Utc::now().timestamp_millis();
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
