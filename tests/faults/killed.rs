//! Faults 1, 2 and 10: processes that end at the worst moment, and one that is told to end when it has much to do.

use highwater_tests::platform::{Platform, total};
use highwater_tests::proxy::{Act, Gate, Then, inserts_into};
use highwater_tests::workers::Worker;
use shared_schemas::store::tables::{PROGRESS, speed_table_name};

use super::ground::Ground;
use super::trial::trials;

/// What a worker says whose last flush does not end in time.
const GIVEN_UP: &str = "the last flush took too long";

/// The table of a view's speed rows.
pub(crate) fn speed_table(platform: &Platform, view: &str) -> String {
    let view = platform.definitions.views.iter().find(|known| known.name == view);
    view.map(speed_table_name).unwrap_or_default()
}

/// Killed with `kill -9` before the rows are written, when one view's are and the other's not, after all and before the
/// progress, and after that. What waits in the proxy then is lost, or arrives after the death.
#[test]
fn a_worker_killed_between_any_two_steps_loses_and_doubles_nothing() -> anyhow::Result<()> {
    trials("1, 10", "kill -9 between the steps of a flush", 6, async |trial| {
        let (platform, proxy, place) = Ground::shared().await?.behind_proxy().await?;
        let (hourly, daily) = (speed_table(&platform, "hourly"), speed_table(&platform, "daily"));
        let mut worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        let mut steps = vec![
            (&hourly[..], false),
            (&daily, false),
            (&hourly, true),
            (PROGRESS, false),
            (PROGRESS, true),
        ];
        trial.random.shuffle(&mut steps);
        platform
            .watched(async {
                for (table, is_done) in steps {
                    let gate = Gate::closed();
                    let held = gate.clone();
                    let act = if is_done { Act::HoldReply(held) } else { Act::Hold(held) };
                    proxy.once(trial.random.usize(0..3), inserts_into(table), act);
                    platform.while_streaming(gate.until_held(1, 0)).await?;
                    worker.kill().await;
                    worker = Worker::speed_at(&platform, &place)?;
                    if trial.random.bool() {
                        // What the dead one wrote arrives when its successor has gone on, or just now.
                        trial.whole(&platform).await?;
                    }
                    gate.open(if trial.random.bool() { Then::SendOn } else { Then::Lose });
                    trial.whole(&platform).await?;
                }
                Ok(())
            })
            .await
    })
}

/// Killed every few seconds while events stream: the worker, the archiver, or both. The worker has a name in its group: it is back
/// under it before its session ends, and has its partitions again. Then a batch run takes over.
#[test]
fn workers_killed_at_random_lose_and_double_nothing() -> anyhow::Result<()> {
    trials("1", "kill -9 at random, worker and archiver", 4, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let mut named = platform.place();
        named.speed += "\ninstance = \"one\"";
        let mut workers = vec![Worker::speed_at(&platform, &named)?, Worker::archive(&platform)?];
        let kills = trial.times(4, 25);
        let killing = async {
            for _ in 0..kills {
                // sleeps: a random instant
                tokio::time::sleep(trial.instant(2000)).await;
                let which = trial.random.usize(0..2);
                workers.remove(which).kill().await;
                let again = if which == 0 {
                    Worker::speed_at(&platform, &named)
                } else {
                    Worker::archive(&platform)
                };
                workers.insert(which, again?);
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

/// Told to end by SIGTERM while the store is slow and everything is full: it writes what it has read, and ends well. When the
/// store does not answer at all it ends too, and what it could not write is read again.
#[test]
fn a_worker_told_to_end_writes_what_it_has() -> anyhow::Result<()> {
    trials("2", "SIGTERM with a full buffer", 4, async |trial| {
        let (platform, proxy, place) = Ground::shared().await?.behind_proxy().await?;
        let worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        let gate = Gate::closed();
        let held = gate.clone();
        proxy.once(0, inserts_into(&speed_table(&platform, "hourly")), Act::Hold(held));
        platform.while_streaming(gate.until_held(1, 0)).await?;
        platform.send_next(trial.random.u64(500..3000)).await?;
        let counted = worker.metric("highwater_speed_events_total").await?;
        let ending = tokio::spawn(worker.end_in_time());
        // sleeps: a random instant within the time that it has for its last flush
        tokio::time::sleep(trial.instant(1500)).await;
        gate.open(Then::SendOn);
        let said = ending.await??;
        anyhow::ensure!(!said.contains(GIVEN_UP), "it gave up a flush that went on: {said}");
        let (answered, _) = total(&platform.answer("merged").await?);
        anyhow::ensure!(
            answered as f64 >= counted,
            "{counted} events had been counted, {answered} are answered"
        );

        let worker = Worker::speed_at(&platform, &place)?;
        // It reads by now.
        platform.send_next(100).await?;
        trial.whole(&platform).await?;
        proxy.set(highwater_tests::proxy::Way::Silent);
        let counted = worker.metric("highwater_speed_events_total").await?;
        platform.send_next(500).await?;
        worker
            .until_metric("highwater_speed_events_total", |read| read > counted)
            .await?;
        // sleeps: a random instant
        tokio::time::sleep(trial.instant(500)).await;
        let said = worker.end_in_time().await?;
        anyhow::ensure!(
            said.contains(GIVEN_UP),
            "it does not say what it could not write: {said}"
        );
        proxy.set(highwater_tests::proxy::Way::Open);
        let _worker = Worker::speed_at(&platform, &place)?;
        trial.whole(&platform).await
    })
}
