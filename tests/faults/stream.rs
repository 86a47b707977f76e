//! Faults 15 to 18: repeats, disorder, records that are no events, and no place to put those.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use highwater_tests::platform::Event;
use highwater_tests::stack::PATIENCE;
use highwater_tests::workers::Worker;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_connections::log::Kafka;

use super::brokers::{delete_topic, make_topics};
use super::ground::{Ground, place};
use super::trial::trials;
use crate::end_to_end::letters;
use crate::poison::take_larger;

/// A record of this size is far above what the dataset takes.
const HUGE: usize = 10 << 20;

/// The dataset's `lateness`, in seconds.
const LATENESS: i64 = 3_600;

/// One to ten of a hundred come again, some of them often, also after a run has published them.
#[test]
fn repeats_count_once() -> anyhow::Result<()> {
    trials("15", "1 to 10 % repeats", 5, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let mut worker = Worker::speed_at(&platform, &place(&platform))?;
        let _archiver = Worker::archive(&platform)?;
        let percent = trial.random.u64(1..=10);
        let rounds = trial.times(3, 20);
        platform
            .watched(async {
                for round in 0..rounds {
                    let sent = platform.send_next(500).await?;
                    let again: Vec<_> = (0..sent * percent / 100)
                        .map(|_| Event(trial.random.u64(0..sent)))
                        .collect();
                    platform.send(again).await?;
                    if round % 3 == 1 {
                        // A successor knows them too.
                        worker.kill().await;
                        worker = Worker::speed_at(&platform, &place(&platform))?;
                    }
                    trial.whole(&platform).await?;
                    if round % 3 == 2 {
                        platform.until_archived().await?;
                        platform.publish_if_any().await?;
                        trial.whole(&platform).await?;
                    }
                }
                Ok(())
            })
            .await
    })
}

/// Two months of events in any order: up to a month late or early. What lies ahead of its own Kafka time is refused.
#[test]
fn events_in_any_order_reach_their_windows() -> anyhow::Result<()> {
    trials("16", "shuffled over two months, future refused", 4, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let worker = Worker::speed_at(&platform, &place(&platform))?;
        let _archiver = Worker::archive(&platform)?;
        let mut numbers: Vec<u64> = (0..trial.times(2_000, 3_000)).collect();
        trial.random.shuffle(&mut numbers);
        let now = chrono::Utc::now().timestamp();
        let future: Vec<_> = (0..20)
            .map(|n| {
                let ahead = trial.random.i64(660..100 * 86_400);
                format!("{{\"at\": {}, \"n\": {n}, \"kind\": \"a\"}}", now + ahead).into_bytes()
            })
            .collect();
        platform
            .watched(async {
                for part in numbers.chunks(500) {
                    platform.send(part.iter().map(|number| Event(*number))).await?;
                    platform.send_bad(future.iter().take(5).cloned()).await?;
                }
                trial.whole(&platform).await
            })
            .await?;
        let refused = u64::try_from(numbers.len().div_ceil(500) * 5)?;
        // The last of them come behind the last event that is answered.
        worker
            .until_metric("highwater_speed_refused_total", |found| found == refused as f64)
            .await?;
        let late = worker.metric("highwater_speed_late_total").await?;
        ensure!(
            late > 0.0 && late == worker.metric("highwater_speed_late_seconds_count").await?,
            "{late} late"
        );
        // What was refused moves no watermark.
        let highest = platform.sent().iter().map(|event| event.at()).max();
        let watermark = highest.unwrap_or_default() - LATENESS;
        worker
            .until_metrics("highwater_speed_watermark_timestamp", |watermarks| {
                let highest = watermarks.iter().map(|(_, at)| *at).fold(f64::MIN, f64::max);
                highest == watermark as f64 && watermarks.len() == 4
            })
            .await?;
        platform.until_archived().await?;
        ensure!(letters(&platform)? == BTreeMap::from([("future_time".to_owned(), refused)]));
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}

/// Bytes that are no events, each kind with its reason.
fn poison(random: &mut fastrand::Rng) -> Vec<(Vec<u8>, &'static str)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let nested = format!(
        "{{\"at\": 1357000000, \"n\": 1, \"kind\": {}1{}}}",
        "[".repeat(1500),
        "]".repeat(1500)
    );
    let mut poison = vec![
        (text("{"), "not_json"),
        (text("nonsense"), "not_json"),
        (text("{\"at\": 1357000000, \"n\": 1, \"kind\": \"a\"} {}"), "not_json"),
        (
            text("{\"at\": 1357000000, \"n\": 1, \"kind\": \"a\", \"value\": NaN}"),
            "not_json",
        ),
        (text("[1, 2]"), "not_object"),
        (text("\"text\""), "not_object"),
        (vec![0xff, 0xfe, 0x00], "bad_utf8"),
        (Vec::new(), "empty"),
        (vec![b'x'; 5000], "too_large"),
        (text("{\"at\": 1357000000, \"kind\": \"a\"}"), "missing_field"),
        (text("{\"at\": 1357000000, \"n\": 1.5, \"kind\": \"a\"}"), "wrong_type"),
        (
            text("{\"at\": 1357000000, \"n\": \"1\", \"kind\": \"a\"}"),
            "wrong_type",
        ),
        (text(&nested), "not_json"),
        (
            text("{\"at\": 1357000000, \"n\": 99999999999999999999, \"kind\": \"a\"}"),
            "out_of_range",
        ),
        (text("{\"at\": \"yesterday\", \"n\": 1, \"kind\": \"a\"}"), "bad_time"),
    ];
    random.shuffle(&mut poison);
    poison
}

/// Every kind of bad record among good ones, a tombstone and ten megabytes too: each has a letter with its reason, and the
/// stream goes on.
#[test]
fn poison_stops_nothing_and_is_told() -> anyhow::Result<()> {
    trials("17", "poison events", 4, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let workers = [
            Worker::speed_at(&platform, &place(&platform))?,
            Worker::archive(&platform)?,
        ];
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", platform.config.kafka.bootstrap_servers());
        client.set("message.max.bytes", (HUGE + 4096).to_string());
        let producer: FutureProducer = client.create()?;
        take_larger(&platform.config.kafka.bootstrap_servers(), &platform.topic).await?;

        let mut expected = BTreeMap::new();
        platform
            .watched(async {
                for (bytes, reason) in poison(&mut trial.random) {
                    platform.send_next(30).await?;
                    platform.send_bad([bytes]).await?;
                    *expected.entry(reason.to_owned()).or_insert(0) += 1;
                }
                let huge = vec![b'a'; HUGE];
                // No key: any partition.
                let sent = producer.send(FutureRecord::<(), _>::to(&platform.topic).payload(&huge), PATIENCE);
                sent.await.map_err(|(error, _)| error)?;
                *expected.entry("too_large".to_owned()).or_insert(0) += 1;
                let sent = producer.send(FutureRecord::<_, ()>::to(&platform.topic).key("tombstone"), PATIENCE);
                sent.await.map_err(|(error, _)| error)?;
                *expected.entry("empty".to_owned()).or_insert(0) += 1;
                platform.send_next(100).await?;
                trial.whole(&platform).await
            })
            .await?;
        // More than the hundredth that is set, of more than a hundred.
        workers[0]
            .until_metric("highwater_speed_invalid_alarm", |alarm| alarm == 1.0)
            .await?;
        platform.until_archived().await?;
        let found = letters(&platform)?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}

/// Without a topic for its letters the archiver waits, and drops nothing; the speed layer goes on meanwhile.
#[test]
fn without_a_place_for_letters_the_archiver_waits() -> anyhow::Result<()> {
    trials("18", "the dead-letter topic is gone", 4, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let workers = [
            Worker::speed_at(&platform, &place(&platform))?,
            Worker::archive(&platform)?,
        ];
        platform.send_next(300).await?;
        platform.until_archived().await?;
        delete_topic(&platform, &format!("{}.dead-letters", platform.topic)).await?;
        let bad = trial.random.u64(1..6);
        platform.send_bad((0..bad).map(|_| b"no event".to_vec())).await?;
        platform.send_next(300).await?;
        // The speed layer needs no letters.
        trial.whole(&platform).await?;
        if trial.random.bool() {
            // Whoever comes next waits too.
            let [_, archiver] = workers;
            archiver.kill().await;
        }
        let _archiver = Worker::archive(&platform)?;
        // sleeps: several tries of the archiver
        tokio::time::sleep(Duration::from_secs(2)).await;
        let kafka = Kafka::new(&platform.config.kafka)?;
        let dataset = &platform.definitions.datasets[0];
        let archive = highwater_batch::archive::Archive::open(&platform.config.archive, dataset).await?;
        let topic = kafka.topic(&platform.topic).await?;
        let mut behind = 0;
        for number in 0..topic.partitions {
            let partition = shared_schemas::handoff::Partition {
                topic: topic.id,
                number,
            };
            let archived = archive
                .as_ref()
                .and_then(|archive| archive.ends().get(&partition).copied());
            behind += kafka.bounds(&platform.topic, number).await?.to.0 - archived.unwrap_or_default().0;
        }
        ensure!(
            behind >= bad,
            "the archive lacks {behind} records, and {bad} have no letter"
        );
        make_topics(&platform).await?;
        platform.until_archived().await?;
        ensure!(letters(&platform)?.get("not_json").copied() >= Some(bad));
        platform.publish_if_any().await?;
        trial.whole(&platform).await
    })
}
