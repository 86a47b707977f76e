//! Memory of one worker process at full speed, for as long as is wanted.
//!
//! A topic that is filled before would be read in seconds, and reading it again in the same process is nothing that a
//! worker does. So a producer appends meanwhile, always so far ahead that the worker finds more than it can count: it
//! works as fast as the machine lets it, beside the producer. The topic keeps little, so any length fits on the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::figure::{Figure, number};
use super::passage::{Weights, Workers};
use super::site::Site;
use super::topic::{Sender, Topic};

/// So many events the producer is ahead: seconds of work, and a fraction of what the topic keeps.
const AHEAD: u64 = 4_000_000;
/// While it is so far ahead.
const PAUSE: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(500);
const STUCK: Duration = Duration::from_secs(120);
const PARTITIONS: u32 = 8;
/// 256 MiB a partition, over 5 times what the producer is ahead, in segments that go one by one.
const KEEP: [(&str, &str); 2] = [("retention.bytes", "268435456"), ("segment.bytes", "33554432")];
/// How far event time may run while it is measured: it goes faster than the clock, and must not overtake it.
const PAST: i64 = 24 * 3600;

/// Lets one worker work for so long.
pub(crate) async fn figures(site: &Site, length: Duration, cancel: &CancellationToken) -> anyhow::Result<Vec<Figure>> {
    let mut topic = Topic::create(site, PARTITIONS, chrono::Utc::now().timestamp() - PAST, &KEEP).await?;
    let trial = site.trial(&topic, &[])?;
    trial.begin().await?;
    let sender = Sender::bulk(site, &topic, cancel)?;
    let (counted, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let sending = {
        let (counted, enough) = (Arc::clone(&counted), Arc::clone(&enough));
        tokio::task::spawn_blocking(move || send(sender, &counted, &enough))
    };

    let workers = Workers::start(&trial, 1).await?;
    tracing::info!("one worker at full speed for {} s", length.as_secs());
    let (began, mut weights) = (Instant::now(), Weights::default());
    let (mut visible, mut grew, mut since) = (0, began, None);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while began.elapsed() < length {
        looks.tick().await;
        ensure!(!sending.is_finished(), "the producer ended by itself");
        let now = trial.visible().await?;
        if now > visible {
            (visible, grew) = (now, Instant::now());
            since.get_or_insert((grew, now));
        }
        counted.store(visible, Ordering::Release);
        ensure!(grew.elapsed() < STUCK, "{visible} events are visible, and no more come");
        workers.check()?;
        weights.weigh(&trial, &workers).await?;
    }
    let rate = since.map_or(0.0, |(since, before)| {
        number(visible - before) / (grew - since).as_secs_f64().max(f64::EPSILON)
    });
    enough.store(true, Ordering::Release);
    topic.events = sending.await??;
    while visible < topic.events {
        looks.tick().await;
        let now = trial.visible().await?;
        if now > visible {
            (visible, grew) = (now, Instant::now());
        }
        ensure!(
            grew.elapsed() < STUCK,
            "{visible} of {} events are visible, and no more come",
            topic.events
        );
        workers.check()?;
    }
    workers.stop().await?;
    trial.check_counts(topic.events).await?;
    trial.end().await?;

    let minutes = length.as_secs_f64() / 60.0;
    Ok(vec![
        Figure::plain(
            format!("events/s over {minutes:.1} minutes, with the producer beside"),
            rate,
            "events/s",
        ),
        Figure::at_most(
            "resident memory of the worker at full speed",
            weights.highest(),
            "MB",
            500.0,
        ),
        Figure::at_most(
            format!("its growth from the middle to the last third of {minutes:.1} minutes"),
            growth(&weights.resident),
            "%",
            5.0,
        ),
    ])
}

/// Sends until it is enough; how many.
fn send(mut sender: Sender, counted: &AtomicU64, enough: &AtomicBool) -> anyhow::Result<u64> {
    let mut next = 0;
    while !enough.load(Ordering::Acquire) {
        if next >= counted.load(Ordering::Acquire) + AHEAD {
            sender.look()?;
            std::thread::park_timeout(PAUSE);
            continue;
        }
        for _ in 0..1000 {
            sender.send(next)?;
            next += 1;
        }
    }
    sender.finish()?;
    Ok(next)
}

/// By how much the mean of the last third is above that of the middle one, in percent: what a filter takes until its
/// window is full lies before both.
fn growth(resident: &[(Instant, u64)]) -> f64 {
    let third = resident.len() / 3;
    let mean = |part: &[(Instant, u64)]| {
        let sum: u64 = part.iter().map(|(_, bytes)| bytes).sum();
        number(sum) / number(part.len().max(1) as u64)
    };
    let (middle, last) = (mean(&resident[third..2 * third]), mean(&resident[2 * third..]));
    if middle > 0.0 {
        100.0 * (last / middle - 1.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_between_the_last_two_thirds() {
        let at = Instant::now();
        let told = |bytes: &[u64]| growth(&bytes.iter().map(|bytes| (at, *bytes)).collect::<Vec<_>>());
        assert!(told(&[1, 1, 100, 100, 110, 110]) - 10.0 < 1e-9);
        assert!(told(&[5, 5, 5, 5, 5, 5]).abs() < 1e-9);
        assert!(told(&[]).abs() < 1e-9);
    }
}
