//! More open cells than `speed.memory` allows, and more events than `dedupe.memory` remembers: both are told, and neither is lost.

use anyhow::ensure;
use highwater_tests::platform::{Platform, VIEWS};
use highwater_tests::stack::unique;
use highwater_tests::workers::Worker;
use local_stack::topics::{self, Topic};
use shared_schemas::definitions::Definitions;

use super::ground::{Ground, place};
use super::trial::trials;

const PARTITIONS: u32 = 6;
const CHUNK: u64 = 8192;
/// A chunk of each partition, and a little more: whose chunk does not end keeps its cells.
const EVENTS: u64 = CHUNK * 6 + 1_200;
/// What may be open, and a chunk's cells, and what is read before anybody looks. All partitions' cells together take more.
const MOST: f64 = 5.0 * 1024.0 * 1024.0;

/// Partitions are read in turns, so that open cells stay near what they may take; the answer is whole all the same.
#[test]
fn more_open_cells_than_fit_are_counted_in_turns() -> anyhow::Result<()> {
    trials("9", "more open cells than fit", 2, async |trial| {
        let ground = Ground::shared().await?;
        let topic = unique("events");
        topics::ensure(ground.brokers(), &[], &Topic::of_dataset(&topic, PARTITIONS, 4096)).await?;
        let mut platform = Platform::of_topic(topic, ground.brokers(), ground.clickhouse()).await?;
        let views = VIEWS
            .replace("chunk = 256", &format!("chunk = {CHUNK}"))
            .replace("window = \"1h\"", "window = \"1h\", memory = \"1MiB\"");
        let mut place = place(&platform);
        platform.definitions = Definitions::parse([("views.toml", views.replace("TOPIC", &platform.topic))])
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        platform.store().create_tables(&platform.definitions).await?;
        platform.start_serving().await?;
        platform.send_next(EVENTS).await?;
        place.views = views;
        place.speed = "flush = \"50ms\"\nmemory = \"1MiB\"".to_owned();
        let worker = Worker::speed_at(&platform, &place)?;
        let (mut most, mut waiting) = (0.0_f64, 0.0_f64);
        let whole = trial.whole(&platform);
        let watched = async {
            loop {
                most = most.max(worker.metric("highwater_speed_open_bytes").await?);
                waiting = waiting.max(worker.metric("highwater_speed_waiting_partitions").await?);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            whole = whole => whole?,
            watched = watched => return watched,
        }
        ensure!(most < MOST, "{most} bytes were open");
        ensure!(waiting > 0.0, "no partition ever waited for its turn");
        ensure!(worker.said().contains("`speed.memory`"), "{}", worker.said());
        worker
            .until_metric("highwater_speed_waiting_partitions", |waiting| waiting == 0.0)
            .await?;

        // A sixth of a MiB remembers fewer events than a partition has. How many are forgotten is told before the window.
        worker
            .until_metrics("highwater_speed_dedupe_window_seconds", |windows| {
                windows.len() == PARTITIONS as usize && windows.iter().all(|(_, held)| *held < 3600.0)
            })
            .await?;
        ensure!(worker.metric("highwater_speed_dedupe_evicted_total").await? > 0.0);
        ensure!(worker.said().contains("`dedupe.memory`"), "{}", worker.said());
        worker.end_well().await
    })
}
