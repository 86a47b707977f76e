//! Fault 24: connections to Kafka and ClickHouse that are half-open, slow, silent or cut, both at once.

use std::time::Duration;

use highwater_tests::proxy::Way;
use highwater_tests::workers::Worker;

use super::ground::{Ground, proxied};
use super::trial::trials;

/// Every wait has its end: a worker whose peers are gone without a word goes on by itself when they are back.
#[test]
fn a_worker_whose_connections_die_goes_on_by_itself() -> anyhow::Result<()> {
    trials("24", "connections half-open, slow, silent, cut", 3, async |trial| {
        let ground = Ground::shared().await?;
        let wire = ground.way("WIRE")?;
        wire.set(Way::Open);
        let platform = ground.platform().await?;
        let (store, mut place) = proxied(&platform)?;
        place.brokers = wire.address();
        let worker = Worker::speed_at(&platform, &place)?;
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        let mut ways = vec![Way::Cut, Way::Slow(20_000), Way::Silent, Way::HalfOpen];
        trial.random.shuffle(&mut ways);
        platform
            .watched(async {
                for way in ways {
                    // One, the other, or both. A request to a ClickHouse that is gone without a word is given up after half a
                    // minute.
                    let is_quick = way == Way::HalfOpen && !trial.is_long;
                    let which = if is_quick { 1 } else { trial.random.u8(1..4) };
                    let [at, long] = [trial.instant(500), trial.instant(2000)];
                    let disturbing = async {
                        // sleeps: a random instant
                        tokio::time::sleep(at).await;
                        for (bit, proxy) in [(1, wire), (2, &store)] {
                            if which & bit > 0 {
                                proxy.set(way);
                            }
                        }
                        // sleeps: as long as it is to last
                        tokio::time::sleep(long + Duration::from_secs(1)).await;
                        Ok(())
                    };
                    platform.while_streaming(disturbing).await?;
                    wire.set(Way::Open);
                    store.set(Way::Open);
                    trial.whole(&platform).await?;
                }
                Ok(())
            })
            .await?;
        worker.end_well().await
    })
}
