//! Faults 3 and 4: several workers, some of them dead or thought dead, or full, in one group or all on the same partitions.

use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::Platform;
use highwater_tests::proxy::{Act, Gate, Then, Way, inserts_into};
use highwater_tests::stack::{PATIENCE, unique};
use highwater_tests::workers::Worker;
use shared_schemas::store::tables::PROGRESS;
use tokio::time::Instant;

use super::ground::{Assignor, Ground, place, proxied};
use super::killed::speed_table;
use super::trial::trials;

/// So many events are sent and read until a worker reads no further; a quarter of them is enough.
const MORE_THAN_FIT: u64 = 200_000;
/// Of those so many at once.
const AT_ONCE: u64 = 5_000;
const POLL: Duration = Duration::from_millis(50);
/// Longer than the session of a worker in the tests.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(5);

/// Stopped for longer than its session lasts, a worker goes on where it was: the others have taken over meanwhile.
#[test]
fn a_worker_that_comes_back_from_the_dead_changes_no_answer() -> anyhow::Result<()> {
    trials("3", "SIGSTOP beyond the session, SIGCONT", 5, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let place = place(&platform);
        let workers = [
            Worker::speed_at(&platform, &place)?,
            Worker::speed_at(&platform, &place)?,
        ];
        platform.send_next(300).await?;
        trial.whole(&platform).await?;
        let rounds = trial.times(1, 4);
        platform
            .watched(async {
                for _ in 0..rounds {
                    let zombie = &workers[trial.random.usize(0..2)];
                    let stop = trial.instant(1000);
                    let away = async {
                        // sleeps: a random instant
                        tokio::time::sleep(stop).await;
                        zombie.stop();
                        // sleeps: the group must take it for dead
                        tokio::time::sleep(LONGER_THAN_A_SESSION).await;
                        Ok(())
                    };
                    platform.while_streaming(away).await?;
                    trial.whole(&platform).await?;
                    platform.send_next(200).await?;
                    zombie.go_on();
                    platform.send_next(200).await?;
                    trial.whole(&platform).await?;
                }
                Ok(())
            })
            .await?;
        // No partition is stuck with one that is gone.
        let [one, other] = workers;
        let (gone, left) = if trial.random.bool() {
            (one, other)
        } else {
            (other, one)
        };
        gone.kill().await;
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        left.end_well().await
    })
}

/// A worker's insert sits in a proxy while a rival goes on, and arrives when all of it is long counted.
#[test]
fn an_insert_that_arrives_late_changes_no_answer() -> anyhow::Result<()> {
    trials("3, 7", "an insert that sits in a proxy", 2, async |trial| {
        let (platform, proxy, slow) = Ground::shared().await?.behind_proxy().await?;
        // In groups of their own, both hold all partitions.
        let mut quick = place(&platform);
        quick.group = unique("rival");
        let _workers = [
            Worker::speed_at(&platform, &slow)?,
            Worker::speed_at(&platform, &quick)?,
        ];
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        platform
            .watched(async {
                for view in ["hourly", "daily"] {
                    let gate = Gate::closed();
                    let skip = trial.random.usize(0..3);
                    proxy.once(
                        skip,
                        inserts_into(&speed_table(&platform, view)),
                        Act::Hold(gate.clone()),
                    );
                    platform.while_streaming(gate.until_held(1, 0)).await?;
                    platform.send_next(300).await?;
                    trial.whole(&platform).await?;
                    if trial.is_long {
                        // sleeps: a minute in a proxy; its sender gives it up and sends it again
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        gate.until_held(1, 1).await?;
                    }
                    gate.open(Then::SendOn);
                    gate.until_done(1).await?;
                    trial.whole(&platform).await?;
                }
                platform.send_next(100).await?;
                trial.whole(&platform).await
            })
            .await
    })
}

/// Two workers on all the same partitions for a whole run, their inserts lost, doubled and late; runs publish meanwhile.
#[test]
fn rivals_on_the_same_partitions_for_a_whole_run_double_nothing() -> anyhow::Result<()> {
    trials("3, 8", "two workers on the same partitions", 5, async |trial| {
        let ground = Ground::shared().await?;
        let (platform, one_proxy, one) = ground.behind_proxy().await?;
        let (other_proxy, mut other) = proxied(&platform)?;
        other.group = unique("rival");
        let again = Gate::closed();
        for proxy in [&one_proxy, &other_proxy] {
            super::store::disturb(proxy, trial.random.fork(), &again);
        }
        let _workers = [
            Worker::speed_at(&platform, &one)?,
            Worker::speed_at(&platform, &other)?,
            Worker::archive(&platform)?,
        ];
        let runs = trial.times(1, 5);
        let running = async {
            for _ in 0..runs {
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(2000) + Duration::from_secs(1)).await;
                platform.publish_if_any().await?;
            }
            Ok(())
        };
        Box::pin(platform.watched(platform.while_streaming(running))).await?;
        trial.whole(&platform).await?;
        // All that was delayed, and is long outdated.
        again.open(Then::SendOn);
        one_proxy.forget();
        other_proxy.forget();
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}

/// One worker loses Kafka and keeps ClickHouse: another goes on, and the first again when Kafka is back.
#[test]
fn a_worker_without_kafka_is_stood_in_for() -> anyhow::Result<()> {
    trials("3, 24", "a worker cut off from Kafka alone", 4, async |trial| {
        let ground = Ground::shared().await?;
        let way = ground.way("CUT")?;
        way.set(Way::Open);
        let platform = ground.platform().await?;
        let mut cut = place(&platform);
        cut.brokers = way.address();
        let _cut_off = Worker::speed_at(&platform, &cut)?;
        let other = Worker::speed_at(&platform, &place(&platform))?;
        platform.send_next(300).await?;
        trial.whole(&platform).await?;
        platform
            .watched(async {
                for way_out in [Way::Cut, Way::Silent] {
                    let at = trial.instant(800);
                    let cutting = async {
                        // sleeps: a random instant
                        tokio::time::sleep(at).await;
                        way.set(way_out);
                        // sleeps: the group must take it for dead
                        tokio::time::sleep(LONGER_THAN_A_SESSION).await;
                        Ok(())
                    };
                    platform.while_streaming(cutting).await?;
                    trial.whole(&platform).await?;
                    way.set(Way::Open);
                    platform.send_next(200).await?;
                    trial.whole(&platform).await?;
                }
                Ok(())
            })
            .await?;
        // Back, it works alone.
        other.kill().await;
        platform.send_next(200).await?;
        trial.whole(&platform).await
    })
}

/// Up to five workers of one group are started, ended and killed at random, in a group of any protocol.
#[test]
fn a_storm_of_workers_that_come_and_go_loses_and_doubles_nothing() -> anyhow::Result<()> {
    trials("4", "workers started, ended, killed at random", 5, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let mut place = place(&platform);
        let assignor = Assignor::ALL[trial.random.usize(0..Assignor::ALL.len())];
        place.more = assignor.properties();
        println!("partitions are given by {assignor:?}");
        let mut workers = vec![Worker::speed_at(&platform, &place)?];
        let changes = trial.times(8, 60);
        let storm = async {
            for _ in 0..changes {
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(1000)).await;
                let some = workers.len();
                if some < 5 && (some == 0 || trial.random.bool()) {
                    workers.push(Worker::speed_at(&platform, &place)?);
                    continue;
                }
                let worker = workers.swap_remove(trial.random.usize(0..some));
                if trial.random.bool() {
                    worker.kill().await;
                } else {
                    // Another may come before it is gone.
                    tokio::spawn(worker.end());
                }
            }
            Ok(())
        };
        platform.watched(platform.while_streaming(storm)).await?;
        if workers.is_empty() {
            workers.push(Worker::speed_at(&platform, &place)?);
        }
        trial.whole(&platform).await?;
        Ok(())
    })
}

/// Nothing can be written, memory is used up, and partitions are read no further. Then a second worker joins, and gets some of
/// them; in the end the store is back.
#[test]
fn a_rebalance_while_reading_waits_loses_and_doubles_nothing() -> anyhow::Result<()> {
    trials("4, 9", "a rebalance while reading waits", 4, async |trial| {
        let (platform, proxy, mut place) = Ground::shared().await?.behind_proxy().await?;
        place.speed = "flush = \"50ms\"\nmemory = \"16MiB\"".to_owned();
        let one = Worker::speed_at(&platform, &place)?;
        platform.send_next(300).await?;
        trial.whole(&platform).await?;
        let gate = Gate::closed();
        let held = gate.clone();
        let (hourly, daily) = (speed_table(&platform, "hourly"), speed_table(&platform, "daily"));
        let [hourly, daily, progress] = [&hourly[..], &daily, PROGRESS].map(|table| format!("`{table}`"));
        proxy.on(move |statement| {
            let is_of = |table: &String| statement.contains(table);
            let is_held = statement.contains("INSERT INTO") && [&hourly, &daily, &progress].into_iter().any(is_of);
            is_held.then(|| Act::Hold(held.clone()))
        });
        // The other one finds the store as it is, or gets through.
        let mut other_place = place.clone();
        if trial.random.bool() {
            other_place.clickhouse = platform.place().clickhouse;
        }
        let rebalancing = async {
            until_reading_waits(&one, &platform).await?;
            let other = Worker::speed_at(&platform, &other_place)?;
            let joined = other.until_said("holds").await;
            joined.with_context(|| platform.said())?;
            ensure!(one.runs(), "it ended: {}", one.said());
            // sleeps: a random instant
            tokio::time::sleep(trial.instant(2000)).await;
            if trial.is_long && trial.random.bool() {
                // sleeps: until what is held has been given up, and sent again
                tokio::time::sleep(Duration::from_secs(45)).await;
            }
            gate.open(if trial.random.bool() { Then::SendOn } else { Then::Lose });
            proxy.forget();
            trial.whole(&platform).await?;
            platform.send_next(200).await?;
            trial.whole(&platform).await?;
            one.until_metric("highwater_speed_paused", |paused| paused == 0.0)
                .await?;
            // No partition is stuck with the one that goes.
            let (gone, left) = if trial.random.bool() {
                (one, other)
            } else {
                (other, one)
            };
            gone.end_well().await?;
            platform.send_next(200).await?;
            trial.whole(&platform).await?;
            left.end_well().await
        };
        Box::pin(platform.watched(rebalancing)).await
    })
}

/// Sends until a worker reads no further for want of memory, always more when it has read what there was.
async fn until_reading_waits(worker: &Worker, platform: &Platform) -> anyhow::Result<()> {
    let (mut sent, mut began) = (platform.send_next(AT_ONCE).await?, Instant::now());
    while worker.metric("highwater_speed_paused").await? == 0.0 {
        let read = worker.metric("highwater_speed_events_total").await?;
        if read < sent as f64 {
            ensure!(
                began.elapsed() < PATIENCE,
                "{read} of {sent} events are read: {}",
                worker.said()
            );
            tokio::time::sleep(POLL).await;
            continue;
        }
        ensure!(
            sent < MORE_THAN_FIT,
            "it reads on after {sent} events: {}",
            worker.said()
        );
        (sent, began) = (platform.send_next(AT_ONCE).await?, Instant::now());
    }
    Ok(())
}
