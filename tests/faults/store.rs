//! Faults 7, 8, 9 and 10: a ClickHouse that loses, doubles, delays, refuses, dies and is away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::platform::Platform;
use highwater_tests::proxy::{Act, Gate, Proxy, Then, Way, inserts_into};
use highwater_tests::workers::{Worker, count_in_state};
use shared_schemas::store::tables::PROGRESS;
use tokio::time::Instant;

use super::ground::{self, Ground};
use super::killed::speed_table;
use super::trial::trials;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);
/// More parts than flushes go on with as before.
const PILE: u64 = 400;
/// So many seconds are far longer than a flush of 10 ms.
const SLOW: f64 = 0.15;
/// What may be open, and what one look at the log brings. All that is sent while the store is away takes three times as much.
const MOST_OPEN: f64 = 3.0 * 1024.0 * 1024.0;
/// A worker that gathers what it cannot write would take more than this in the long form: 300,000 events as cells.
const MORE: u64 = 64 << 20;

/// Disturbs a third of all inserts in one way or another. `again` delays the copies of some until it opens.
pub(crate) fn disturb(proxy: &Proxy, mut random: fastrand::Rng, again: &Arc<Gate>) {
    let again = Arc::clone(again);
    proxy.on(move |statement| {
        if !statement.contains("INSERT INTO") || random.u8(0..3) > 0 {
            return None;
        }
        Some(match random.u8(0..8) {
            0 => Act::Lose,
            1 => Act::LoseReply,
            2 => Act::Leave,
            3 => Act::Halve,
            4 => Act::Twice,
            5 => Act::InBlocks,
            6 => Act::Refuse([159, 209, 241, 242, 252][random.usize(0..5)]),
            _ => Act::AndAgain(Arc::clone(&again)),
        })
    });
}

/// Executed with the reply lost, half arrived, still running, doubled: nobody knows, and all is sent again. The copies of some
/// rows arrive when newer ones of the same cells are long there.
#[test]
fn inserts_of_which_nobody_knows_whether_they_happened_count_once() -> anyhow::Result<()> {
    trials("7, 8", "inserts lost, halved, doubled, late", 8, async |trial| {
        let (platform, proxy, place) = Ground::shared().await?.behind_proxy().await?;
        let mut worker = Worker::speed_at(&platform, &place)?;
        let rounds = trial.times(2, 8);
        platform
            .watched(async {
                for _ in 0..rounds {
                    let again = Gate::closed();
                    disturb(&proxy, trial.random.fork(), &again);
                    let streaming = trial.instant(2000) + Duration::from_secs(1);
                    let wait = async {
                        // sleeps: as long as it is to stream
                        tokio::time::sleep(streaming).await;
                        Ok(())
                    };
                    platform.while_streaming(wait).await?;
                    trial.whole(&platform).await?;
                    again.open(Then::SendOn);
                    proxy.forget();
                    platform.send_next(50).await?;
                    trial.whole(&platform).await?;
                    if trial.random.bool() {
                        worker.kill().await;
                        worker = Worker::speed_at(&platform, &place)?;
                    }
                }
                Ok(())
            })
            .await
    })
}

/// Each code that passes by itself, for each table that a flush writes, some times in a row.
#[test]
fn a_store_that_refuses_for_a_while_poisons_nothing() -> anyhow::Result<()> {
    trials("9", "answers of 252, 242, 241, 159", 4, async |trial| {
        let (platform, proxy, place) = Ground::shared().await?.behind_proxy().await?;
        let _worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        let tables = [
            speed_table(&platform, "hourly"),
            speed_table(&platform, "daily"),
            PROGRESS.to_owned(),
        ];
        platform
            .watched(async {
                for code in [252, 242, 241, 159] {
                    let is_insert = inserts_into(&tables[trial.random.usize(0..3)]);
                    let gate = Gate::closed();
                    for _ in 0..trial.random.usize(1..4) {
                        proxy.once(0, is_insert.clone(), Act::Refuse(code));
                    }
                    // What comes after the refusals says that they were.
                    proxy.once(0, is_insert, Act::HoldReply(gate.clone()));
                    platform.while_streaming(gate.until_held(1, 0)).await?;
                    gate.open(Then::SendOn);
                    trial.whole(&platform).await?;
                }
                Ok(())
            })
            .await
    })
}

/// Flushes that come fast make parts, which a store that merges nothing piles up: they come ever less often, and as often as they
/// should when all is merged.
#[test]
fn parts_that_pile_up_slow_flushes_down_and_no_more() -> anyhow::Result<()> {
    trials("9", "parts that nobody merges", 2, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let mut place = ground::place(&platform);
        place.speed = "flush = \"10ms\"".to_owned();
        let worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        let store = platform.store();
        let progress = format!("`{}`.`{PROGRESS}`", store.database());
        let merges = async |what: &str| store.execute(what, &format!("SYSTEM {what} MERGES {progress}")).await;
        merges("STOP").await?;
        // As many as flushes would have made in some seconds: each block is a part.
        let pile = format!(
            "INSERT INTO {progress} (fingerprint, _start) SELECT 'nobody', number FROM numbers({PILE}) \
             SETTINGS max_block_size = 1, max_threads = 1, min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0"
        );
        store.execute("make parts", &pile).await?;
        ensure!(store.active_parts(PROGRESS).await? >= PILE, "they are merged");

        let pause = "highwater_speed_flush_pause_seconds";
        let slower = worker.until_metric(pause, |pause| pause >= SLOW);
        platform.while_streaming(slower).await?;
        let parts = store.active_parts(PROGRESS).await?;
        ensure!(parts < 2 * PILE, "{parts} parts at a pause that grows");
        trial.whole(&platform).await?;

        merges("START").await?;
        store
            .execute("merge", &format!("OPTIMIZE TABLE {progress} FINAL"))
            .await?;
        let faster = worker.until_metric(pause, |pause| pause == 0.0);
        platform.while_streaming(faster).await?;
        trial.whole(&platform).await?;
        worker.end_well().await
    })
}

/// Away for a while, during which many times as much comes as fits: reading waits, what is held stays within the limit, metrics
/// say how things are, and nothing is lost.
#[test]
fn a_store_that_is_away_costs_no_memory_and_no_event() -> anyhow::Result<()> {
    trials("9", "ClickHouse away, ten times the events", 2, async |trial| {
        let (platform, proxy, mut place) = Ground::shared().await?.behind_proxy().await?;
        place.speed = "flush = \"50ms\"\nmemory = \"1MiB\"".to_owned();
        let worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(2000).await?;
        trial.whole(&platform).await?;
        ensure!(worker.in_state("stuck").await? == 0);
        let counted = worker.metric("highwater_speed_events_total").await?;
        let before = worker.memory()?;
        proxy.set(Way::Cut);
        let away = Duration::from_secs(trial.times(10, 300));
        let (began, spike) = (Instant::now(), trial.times(30_000, 300_000));
        let (mut most, mut open) = (0, 0.0_f64);
        let sampling = async {
            while began.elapsed() < away {
                tokio::time::sleep(SAMPLE).await;
                most = most.max(worker.memory()?);
                open = open.max(worker.metric("highwater_speed_open_bytes").await?);
            }
            anyhow::Ok(())
        };
        let (sampled, sent) = tokio::join!(sampling, platform.send_next(spike));
        sampled?;
        sent?;
        ensure!(worker.runs(), "it ended: {}", worker.said());
        let read = worker.metric("highwater_speed_events_total").await? - counted;
        ensure!(read < spike as f64 / 2.0, "{read} of {spike} events were read");
        ensure!(open < MOST_OPEN, "{open} bytes were open");
        ensure!(
            most < before + MORE,
            "{} MiB before, {} MiB while the store was away",
            before >> 20,
            most >> 20
        );
        worker
            .until_metric("highwater_speed_paused", |paused| paused == 1.0)
            .await?;
        // Two views on two partitions. The store does not hear it.
        worker
            .until_metrics("highwater_speed_partition_state", |states| {
                let of_stuck = states.iter().filter(|(labels, _)| labels.contains("stuck"));
                of_stuck.map(|(_, value)| value).sum::<f64>() == 4.0
            })
            .await?;
        worker
            .until_metric("highwater_speed_lag_events", |lag| lag > 0.0)
            .await?;
        worker
            .until_metric("highwater_speed_stalled", |stalled| stalled >= 1.0)
            .await?;
        proxy.set(Way::Open);
        trial.whole(&platform).await?;
        worker
            .until_metric("highwater_speed_paused", |paused| paused == 0.0)
            .await?;
        worker
            .until_metric("highwater_speed_stalled", |stalled| stalled == 0.0)
            .await?;
        worker
            .until_metric("highwater_speed_lag_events", |lag| lag == 0.0)
            .await?;
        worker
            .until_metrics("highwater_speed_partition_state", |states| {
                count_in_state(states, "stuck") == 0 && count_in_state(states, "behind") == 0
            })
            .await
    })
}

/// `kill -9` of ClickHouse at random instants while events stream.
#[test]
fn a_store_that_is_killed_at_random_loses_and_doubles_nothing() -> anyhow::Result<()> {
    trials("7, 9", "kill -9 of ClickHouse at random", 5, async |trial| {
        let mut clickhouse = ClickHouse::start()?;
        let mut platform = Platform::on(Ground::shared().await?.brokers(), clickhouse.url()).await?;
        platform.start_serving().await?;
        let _workers = [
            Worker::speed_at(&platform, &ground::place(&platform))?,
            Worker::archive(&platform)?,
        ];
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        let kills = trial.times(3, 15);
        let killing = async {
            for _ in 0..kills {
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(1500)).await;
                clickhouse.kill()?;
                // sleeps: some time without it
                tokio::time::sleep(trial.instant(700)).await;
                clickhouse.start_again_there()?;
            }
            Ok(())
        };
        platform.watched(platform.while_streaming(killing)).await?;
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}
