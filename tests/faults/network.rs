//! Fault 24: connections to Kafka and ClickHouse that are half-open, slow, silent or cut, both at once.

use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Platform, cells};
use highwater_tests::proxy::Way;
use highwater_tests::stack::PATIENCE;
use highwater_tests::workers::Worker;
use tokio::time::Instant;

use super::ground::{Ground, proxied};
use super::trial::trials;

/// Every wait has its end: a worker and an archiver whose peers are gone without a word go on by themselves when they are back.
#[test]
fn layers_whose_connections_die_go_on_by_themselves() -> anyhow::Result<()> {
    trials("24", "connections half-open, slow, silent, cut", 3, async |trial| {
        let ground = Ground::shared().await?;
        let wire = ground.way("WIRE")?;
        wire.set(Way::Open);
        let platform = ground.platform().await?;
        let (store, mut place) = proxied(&platform)?;
        place.brokers = wire.address();
        let worker = Worker::speed_at(&platform, &place)?;
        // The archiver needs Kafka alone.
        let archiver = Worker::start(&platform, "archive", &place, &[])?;
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
                    platform.until_archived().await?;
                }
                Ok(())
            })
            .await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await?;
        archiver.end_well().await?;
        worker.end_well().await
    })
}

/// A query API that was led to a ClickHouse which is gone without a word says so, to whoever asks whether it is ready at once, and
/// answers when it is back, though its connections are dead.
#[test]
fn a_query_api_whose_connections_die_goes_on_by_itself() -> anyhow::Result<()> {
    trials("24", "a query API half-open to ClickHouse", 3, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let (store, place) = proxied(&platform)?;
        let _worker = Worker::speed_at(&platform, &super::ground::place(&platform))?;
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        let mut api = platform.beside(platform.definitions.clone()).await?;
        let led = api
            .config
            .clone()
            .at(&place.brokers, &place.clickhouse, platform.folder());
        api.config = led.map_err(anyhow::Error::msg)?;
        api.start_serving().await?;
        let mut ways = vec![Way::HalfOpen, Way::Silent, Way::Cut];
        trial.random.shuffle(&mut ways);
        for way in ways {
            // It has connections, and they are used.
            until_same(&api, &platform).await?;
            store.set(way);
            if trial.is_long {
                // A query waits as long as a statement may take, and no longer.
                ensure!(api.answer("merged").await.is_err(), "it answers from nowhere");
            }
            let ready = api
                .ask("/readyz")
                .await
                .err()
                .context("it is ready without its store")?;
            ensure!(ready.to_string().contains("503"), "{ready:#}");
            platform.send_next(50).await?;
            store.set(Way::Open);
            until_same(&api, &platform).await?;
        }
        trial.whole(&platform).await?;
        api.stop_all().await
    })
}

/// Waits until that API answers all that was sent.
async fn until_same(api: &Platform, platform: &Platform) -> anyhow::Result<()> {
    let (expected, began) = (cells(&platform.sent()), Instant::now());
    loop {
        let answer = api.answer("merged").await;
        if answer.as_ref().is_ok_and(|answer| *answer == expected) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let last = answer.map(|answer| answer.len());
            anyhow::bail!("not all is answered: {last:?}");
        }
        // sleeps: until the speed layer has come on
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
