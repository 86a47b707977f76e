//! Every record is accounted for, on real Kafka and the real engine: ledgers, gaps, logs that were cut off, topics that change.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_batch::reconcile::Cause;
use highwater_batch::{Batch, Logs, Reconciled, Selection, reconcile};
use highwater_tests::platform::{Platform, VIEWS, events};
use highwater_tests::stack::{PATIENCE, run, unique};
use local_stack::topics::{self, Partitions, Topic};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde_json::Value;
use shared_connections::log::Kafka;
use shared_connections::store::{Ledger, ProgressRow};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, Partition, Redo, Start};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::faults::trial::trials;

const POLL: Duration = Duration::from_millis(50);

/// A view more, with a filter that fails on some events.
const FILTERED: &str = r#"
[view.few]
dataset = "events"
grain = "1d"
filter = "100 / (value % 7) > 20"
measures = { events = "count()" }
"#;

async fn platform(more: &str) -> anyhow::Result<Platform> {
    let mut platform = Platform::new(None).await?;
    let text = VIEWS.replace("TOPIC", &platform.topic) + more;
    platform.definitions =
        Definitions::parse([("views.toml", text)]).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    platform.store().create_tables(&platform.definitions).await?;
    Ok(platform)
}

fn admin(platform: &Platform) -> anyhow::Result<(AdminClient<DefaultClientContext>, AdminOptions)> {
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", platform.config.kafka.bootstrap_servers());
    Ok((config.create()?, options))
}

pub(crate) async fn delete_below(platform: &Platform, partition: u32, offset: Offset) -> anyhow::Result<()> {
    let (admin, options) = admin(platform)?;
    let mut below = TopicPartitionList::new();
    let offset = rdkafka::Offset::Offset(i64::try_from(offset.0)?);
    below.add_partition_offset(&platform.topic, i32::try_from(partition)?, offset)?;
    for element in admin.delete_records(&below, &options).await?.elements() {
        element.error()?;
    }
    Ok(())
}

/// Sends that many events to partition 0 in a transaction, and aborts it: offsets that nobody is ever given, and its marker's.
async fn abort(platform: &Platform, count: u64) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", platform.config.kafka.bootstrap_servers());
    let producer: FutureProducer = config.set("transactional.id", unique("transaction")).create()?;
    // librdkafka's calls for transactions block.
    tokio::task::block_in_place(|| producer.init_transactions(PATIENCE))?;
    producer.begin_transaction()?;
    for event in events(5_000..5_000 + count) {
        let json = event.json();
        let record = FutureRecord::<(), _>::to(&platform.topic).partition(0).payload(&json);
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    }
    Ok(tokio::task::block_in_place(|| producer.abort_transaction(PATIENCE))?)
}

/// Where each partition's log ends.
async fn ends(platform: &Platform) -> anyhow::Result<BTreeMap<Partition, Offset>> {
    let kafka = Kafka::new(&platform.config.kafka)?;
    let topic = kafka.topic(&platform.topic).await?;
    let mut ends = BTreeMap::new();
    for number in 0..topic.partitions {
        let end = kafka.bounds(&platform.topic, number).await?.to;
        ends.insert(
            Partition {
                topic: topic.id,
                number,
            },
            end,
        );
    }
    Ok(ends)
}

/// Waits until the view's page of the API is so.
async fn until(platform: &Platform, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let began = Instant::now();
    loop {
        let page = platform.ask("/api/v1/views/hourly").await?;
        if is(&page["freshness"]["speed"]) {
            return Ok(page["freshness"]["speed"].clone());
        }
        ensure!(began.elapsed() < PATIENCE, "never {what}: {page:#}");
        tokio::time::sleep(POLL).await;
    }
}

async fn reconciled(platform: &Platform) -> anyhow::Result<Vec<Reconciled>> {
    let batch = Batch::new(platform.config.clone(), platform.definitions.clone())?;
    let views = batch.selected(&Selection::default())?;
    Ok(reconcile(&batch, &views, &Logs, &CancellationToken::new()).await)
}

#[test]
fn every_record_is_in_a_ledger_and_in_a_commit() -> anyhow::Result<()> {
    run(async {
        let mut platform = platform(FILTERED).await?;
        platform.start().await?;
        platform.send(events(0..700)).await?;
        platform.send(events(500..600)).await?;
        let bad = [b"{".to_vec(), b"[1]".to_vec(), b"{\"n\": 1}".to_vec(), b"{".to_vec()];
        platform.send_bad(bad).await?;
        abort(&platform, 5).await?;
        // Kafka writes the marker when it has answered already. At a log's end it would be no record's to be read to.
        let holes = 6;
        let began = Instant::now();
        while ends(&platform).await?.values().map(|end| end.0).sum::<u64>() < 804 + holes {
            ensure!(began.elapsed() < PATIENCE, "the transaction never ends");
            tokio::time::sleep(POLL).await;
        }
        platform.send(events(700..900)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        let ends = ends(&platform).await?;
        let all: u64 = ends.values().map(|end| end.0).sum();
        assert_eq!(all, 1004 + holes);
        until(&platform, "caught up", |speed| speed["lag_events"] == 0).await?;

        for view in &platform.definitions.views {
            // What the last events came to is in the ledger once the other views have it, too.
            let began = Instant::now();
            let ledgers = loop {
                let ledgers = platform.store().ledgers(view).await?;
                if ledgers.iter().map(|(_, _, ledger)| ledger.read).sum::<u64>() == all - holes {
                    break ledgers;
                }
                ensure!(
                    began.elapsed() < PATIENCE,
                    "not all is read for {}: {ledgers:?}",
                    view.name
                );
                tokio::time::sleep(POLL).await;
            };
            let sum = |of: fn(&Ledger) -> u64| ledgers.iter().map(|(_, _, ledger)| of(ledger)).sum::<u64>();
            for (partition, start, ledger) in &ledgers {
                assert_eq!(
                    ledger.balances(*start),
                    Ok(()),
                    "{} {partition:?} {ledger:?}",
                    view.name
                );
            }
            assert_eq!(
                (sum(|one| one.repeated), sum(Ledger::refused), sum(|one| one.holes)),
                (100, 4, holes)
            );
            assert_eq!(sum(|one| one.aggregated + one.filtered), 900);
            let reason = |name: &str| -> u64 {
                let of_reason = ledgers.iter().filter_map(|(_, _, ledger)| ledger.invalid.get(name));
                of_reason.sum()
            };
            assert_eq!(["not_json", "not_object", "missing_field"].map(reason), [2, 1, 1]);
            let has_filter = view.name == "few";
            assert_eq!(sum(|one| one.filtered) > 0, has_filter);
            assert_eq!(sum(|one| one.failed_filters) > 0, has_filter, "a division by zero");
        }
        for one in reconciled(&platform).await? {
            assert!(one.is_sound() && one.different == 0, "{one:?}");
            assert_eq!(one.ledgers.equal, one.ledgers.compared);
            // Two complete chunks at least, and the archive says what it read of each.
            assert!(one.ledgers.with_commits >= 2, "{:?}", one.ledgers);
        }
        platform.stop_all().await
    })
}

/// Retention passes the speed layer by; the archive holds what it lacks.
#[test]
fn what_kafka_forgot_is_told_everywhere_until_batch_has_it() -> anyhow::Result<()> {
    run(async {
        let mut platform = platform("").await?;
        platform.start_archive()?;
        platform.send(events(0..800)).await?;
        platform.until_archived().await?;
        let lost = Offset(300);
        for partition in ends(&platform).await?.keys() {
            delete_below(&platform, partition.number, lost).await?;
        }
        platform.start_speed()?;
        platform.start_serving().await?;
        let speed = until(&platform, "at the end with its gaps", |speed| {
            let of_partition = |number: &str| speed["partitions"][number]["gap_offsets"] == 300;
            speed["lag_events"] == 0 && of_partition("0") && of_partition("1")
        })
        .await?;
        assert_eq!(speed["partitions"]["0"]["gaps"], serde_json::json!([[0, 300]]));
        let query = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z";
        let answer = platform.ask(query).await?;
        assert_eq!(answer["data"][0]["coverage"], "gap", "{answer:#}");

        let hourly = &reconciled(&platform).await?[0];
        assert!(hourly.is_sound(), "what the archive holds explains it: {hourly:?}");
        assert_eq!(hourly.causes.keys().collect::<Vec<_>>(), [&Cause::Gap], "{hourly:?}");
        for partition in &hourly.partitions {
            assert_eq!(
                (partition.gaps.as_slice(), partition.archived_in_gaps),
                ([(0, 300)].as_slice(), 300)
            );
        }
        // Until the mark has passed the chunk in which the gap ends, the speed layer answers there.
        platform.send(events(800..1_200)).await?;
        platform.until_archived().await?;
        platform.publish().await?;
        platform.until_whole().await?;
        let whole = |speed: &Value| speed["partitions"]["0"]["gap_offsets"] == 0;
        until(&platform, "without gaps above the mark", whole).await?;
        platform.stop_all().await
    })
}

/// Progress beyond the log's end, as after Kafka has lost the end of a log.
#[test]
fn a_log_that_ends_below_what_was_counted_is_read_no_further() -> anyhow::Result<()> {
    trials("6", "an offset beyond the log's end", 3, async |trial| {
        let mut platform = platform("").await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        platform.send(events(0..trial.random.u64(300..400))).await?;
        trial.whole(&platform).await?;
        platform.stop("speed").await?;
        let ends = ends(&platform).await?;
        let (partition, end) = ends.iter().next().context("no partition")?;
        let (start, next) = (Start(Offset(0)), Offset(end.0 + trial.random.u64(1..25)));
        let rows: Vec<_> = platform
            .definitions
            .views
            .iter()
            .map(|view| ProgressRow {
                fingerprint: view.fingerprint,
                partition: *partition,
                start,
                redo: Redo::default(),
                ledger: Ledger {
                    next,
                    read: next.0,
                    aggregated: next.0,
                    ..Ledger::default()
                },
            })
            .collect();
        platform.store().record_progress(&rows).await?;

        let is_stuck = |speed: &Value| {
            let reason = speed["partitions"]["0"]["reason"].as_str().unwrap_or_default();
            speed["partitions"]["0"]["state"] == "stuck" && reason.starts_with("its log ended at offset")
        };
        platform.start_speed()?;
        until(&platform, "stuck", is_stuck).await?;
        let recorded = platform.store().truncations().await?[partition];
        assert_eq!((recorded.end, recorded.next), (*end, next));

        // The log grows past what was counted. Nobody could tell by it, and still it stays as it is.
        let before = platform.answer("merged").await?;
        platform.send(events(400..900)).await?;
        platform.stop("speed").await?;
        platform.start_speed()?;
        let other_goes_on = |speed: &Value| is_stuck(speed) && speed["partitions"]["1"]["state"] != "stuck";
        until(&platform, "stuck with the other going on", other_goes_on).await?;
        let ends = self::ends(&platform).await?;
        let other = ends.values().nth(1).context("two partitions")?.0;
        let speed = until(&platform, "the other one counted", |speed| {
            speed["partitions"]["1"]["next"] == other
        })
        .await?;
        assert!(is_stuck(&speed), "{speed:#}");
        let mut highest = None;
        for view in &platform.definitions.views {
            highest = highest.max(platform.store().highest_version(view, *partition, start).await?);
        }
        assert_eq!(highest, Some(*end), "no row is written on top of what was counted");
        let after = platform.answer("merged").await?;
        let lost = before
            .iter()
            .find(|(cell, (events, _))| after.get(*cell).is_none_or(|(now, _)| now < events));
        assert_eq!(lost, None, "nothing that was counted is taken back");
        platform.stop_all().await
    })
}

#[test]
fn partitions_that_are_added_and_a_topic_made_again_are_counted() -> anyhow::Result<()> {
    run(async {
        let mut platform = platform("").await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        platform.send(events(0..200)).await?;
        platform.until_whole().await?;

        let (admin, options) = admin(&platform)?;
        for added in admin
            .create_partitions([&NewPartitions::new(&platform.topic, 3)], &options)
            .await?
        {
            added.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic {
            name: platform.topic.clone(),
            partitions: Partitions::Exactly(3),
            max_value: 4096,
        };
        let brokers = platform.config.kafka.bootstrap_servers();
        let grown = async {
            while topics::ensure(&brokers, &[], std::slice::from_ref(&wanted))
                .await
                .is_err()
            {}
        };
        tokio::time::timeout(PATIENCE, grown).await?;
        platform.send(events(200..600)).await?;
        platform.until_whole().await?;
        until(&platform, "three partitions", |speed| {
            speed["partitions"]["2"]["next"] != Value::Null
        })
        .await?;

        // Records of the new incarnation have low offsets again, and count for themselves.
        for deleted in admin.delete_topics(&[&platform.topic], &options).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic::of_dataset(&platform.topic, 2, 4096);
        let made = async { while topics::ensure(&brokers, &[], &wanted).await.is_err() {} };
        tokio::time::timeout(PATIENCE, made).await?;
        platform.send(events(600..1000)).await?;
        platform.until_whole().await?;
        // Until a worker has spoken of the new one the old one is told.
        until(&platform, "the new topic read", |speed| {
            speed["lag_events"] == 0 && speed["partitions"].as_object().is_some_and(|all| all.len() == 2)
        })
        .await?;
        platform.stop_all().await
    })
}
