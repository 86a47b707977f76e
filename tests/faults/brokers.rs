//! Faults 5 and 6: a Kafka that dies, refuses, forgets, grows, or begins anew.

use std::time::{Duration, Instant};

use anyhow::ensure;
use highwater_tests::platform::{Platform, cells};
use highwater_tests::stack::{PATIENCE, folder_of_run};
use highwater_tests::workers::Worker;
use local_stack::topics::{self, Partitions, Topic};
use local_stack::{Stack, StackOptions};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, TopicPartitionList};
use shared_connections::log::Kafka;

use super::ground::{Ground, place, short_sessions};
use super::trial::trials;

/// What the dataset of the tests calls a chunk.
const CHUNK: u64 = 256;
const POLL: Duration = Duration::from_millis(100);

fn admin(platform: &Platform) -> anyhow::Result<(AdminClient<DefaultClientContext>, AdminOptions)> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", platform.config.kafka.bootstrap_servers());
    Ok((client.create()?, AdminOptions::new().operation_timeout(Some(PATIENCE))))
}

/// Deletes a topic.
pub(crate) async fn delete_topic(platform: &Platform, topic: &str) -> anyhow::Result<()> {
    let (admin, options) = admin(platform)?;
    for deleted in admin.delete_topics(&[topic], &options).await? {
        deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

/// Makes the topics of the platform that are not there.
pub(crate) async fn make_topics(platform: &Platform) -> anyhow::Result<()> {
    let wanted = Topic::of_dataset(&platform.topic, 2, 4096);
    let brokers = platform.config.kafka.bootstrap_servers();
    // The broker goes on naming a deleted topic for a moment.
    let made = async { while topics::ensure(&brokers, &[], &wanted).await.is_err() {} };
    tokio::time::timeout(PATIENCE, made).await?;
    Ok(())
}

/// The broker is killed with `kill -9` and comes back, some times, while events stream. The query API says what is wrong
/// meanwhile, and goes on answering.
#[test]
fn a_broker_that_is_killed_costs_no_event() -> anyhow::Result<()> {
    trials("5", "kill -9 of the broker", 2, async |trial| {
        let mut options = StackOptions::on_free_ports(folder_of_run()?);
        options.clickhouse_url = Ground::shared().await?.clickhouse().to_owned();
        options.broker.settings = short_sessions();
        let mut stack = Stack::start(&options).await?;
        let mut platform = Platform::on(&stack.addresses().kafka, &options.clickhouse_url).await?;
        platform.start_serving().await?;
        let workers = [
            Worker::speed_at(&platform, &place(&platform))?,
            Worker::archive(&platform)?,
        ];
        platform.send_next(200).await?;
        trial.whole(&platform).await?;
        for _ in 0..trial.times(1, 4) {
            platform.send_next(100).await?;
            // sleeps: a random instant, with what was sent on its way
            tokio::time::sleep(trial.instant(1500)).await;
            // Its children are killed with it.
            drop(stack);
            degraded(&platform, &workers).await?;
            waits_in_peace(&workers).await?;
            if trial.is_long {
                // sleeps: half a minute without any broker
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            stack = Stack::start(&options).await?;
            let address = &stack.addresses().kafka;
            ensure!(
                *address == platform.place().brokers,
                "it came back elsewhere, at {address}"
            );
            platform.watched(platform.send_next(200)).await?;
        }
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        for worker in workers {
            worker.end_well().await?;
        }
        trial.whole(&platform).await
    })
}

/// A worker waits for a broker with pauses. librdkafka, asked the wrong way, tries to reach it thousands of times a second.
async fn waits_in_peace(workers: &[Worker]) -> anyhow::Result<()> {
    for worker in workers {
        let (before, began) = (worker.processor_time()?, Instant::now());
        // sleeps: as long as it is watched
        tokio::time::sleep(Duration::from_secs(2)).await;
        let spent = worker.processor_time()? - before;
        // On a busy machine it was watched for longer.
        let hundredths = began.elapsed().as_millis() / 10;
        ensure!(
            u128::from(spent) * 10 < hundredths * 3,
            "{spent}/{hundredths} of a core go into waiting"
        );
    }
    Ok(())
}

/// Waits until the query API says that something is wrong. It is ready all the time. Where it never does, tells what was said
/// instead.
async fn degraded(platform: &Platform, workers: &[Worker]) -> anyhow::Result<()> {
    let mut last = "nothing".to_owned();
    let told = async {
        loop {
            let ready = platform.ask("/readyz").await?;
            if ready["degraded"]
                .as_array()
                .is_some_and(|degraded| !degraded.is_empty())
            {
                return Ok(());
            }
            last = ready.to_string();
            tokio::time::sleep(POLL).await;
        }
    };
    let Ok(told) = tokio::time::timeout(PATIENCE, told).await else {
        let logs: Vec<_> = workers.iter().map(Worker::said_last).collect();
        anyhow::bail!(
            "the API said {last} for all that time, and the workers:\n{}",
            logs.join("\n\n")
        );
    };
    told
}

/// What retention took from a worker that was killed, or stopped for so long, is a gap that answers tell of, no silent jump.
/// The archiver had it in time, and the next run counts it.
#[test]
fn what_retention_took_is_a_gap_until_a_run_has_it() -> anyhow::Result<()> {
    trials("6", "retention passes a worker by", 4, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let _archiver = Worker::archive(&platform)?;
        let mut worker = Worker::speed_at(&platform, &place(&platform))?;
        platform.send_next(400).await?;
        trial.whole(&platform).await?;
        let is_killed = trial.random.bool();
        if is_killed {
            worker.kill().await;
            platform.send_next(2000).await?;
            worker = Worker::speed_at(&platform, &place(&platform))?;
            worker.stop();
        } else {
            worker.stop();
            platform.send_next(2000).await?;
        }
        platform.until_archived().await?;
        let kafka = Kafka::new(&platform.config.kafka)?;
        let mut below = TopicPartitionList::new();
        for number in 0..2 {
            let end = kafka.bounds(&platform.topic, number).await?.to.0;
            // The run's mark is to be at or above it.
            let chunks = end / CHUNK;
            ensure!(
                chunks >= 3,
                "partition {number} has {end} records: too few to mean anything"
            );
            let taken = trial.random.u64(2 * CHUNK..=chunks * CHUNK);
            below.add_partition_offset(
                &platform.topic,
                i32::try_from(number)?,
                rdkafka::Offset::Offset(i64::try_from(taken)?),
            )?;
        }
        let (admin, options) = admin(&platform)?;
        for element in admin.delete_records(&below, &options).await?.elements() {
            element.error()?;
        }
        worker.go_on();
        platform.send_next(200).await?;
        // Fetched ahead, a stopped worker may have some of it; told all the same is what is missing.
        let expected = cells(&platform.sent());
        let told = async {
            loop {
                let answer = platform.ask(GAPS).await?;
                let rows = answer["data"].as_array().cloned().unwrap_or_default();
                let is_gap = rows.iter().any(|row| row["coverage"] == "gap");
                if is_gap || platform.answer("merged").await? == expected {
                    return anyhow::Ok(is_gap);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let is_gap = tokio::time::timeout(PATIENCE, told).await??;
        let counted = worker.metric("highwater_speed_gap_offsets_total").await?;
        ensure!(
            !is_gap || counted > 0.0,
            "a gap, and the worker tells of {counted} offsets"
        );
        platform.until_archived().await?;
        platform.publish().await?;
        trial.whole(&platform).await?;
        platform.send_next(200).await?;
        trial.whole(&platform).await
    })
}

const GAPS: &str = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&measures=events";

/// A partition is added, then the topic is deleted and made again: what was counted stays, what comes is counted.
#[test]
fn a_topic_that_grows_and_begins_anew_is_followed() -> anyhow::Result<()> {
    trials("6", "a partition added, the topic made again", 3, async |trial| {
        let platform = Ground::shared().await?.platform().await?;
        let workers = [
            Worker::speed_at(&platform, &place(&platform))?,
            Worker::archive(&platform)?,
        ];
        platform.send_next(trial.random.u64(200..600)).await?;
        trial.whole(&platform).await?;
        let (admin, options) = admin(&platform)?;
        let grown = admin
            .create_partitions([&NewPartitions::new(&platform.topic, 3)], &options)
            .await?;
        for grown in grown {
            grown.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic {
            name: platform.topic.clone(),
            partitions: Partitions::Exactly(3),
            max_value: 4096,
        };
        let brokers = platform.config.kafka.bootstrap_servers();
        let known = async {
            while topics::ensure(&brokers, &[], std::slice::from_ref(&wanted))
                .await
                .is_err()
            {}
        };
        tokio::time::timeout(PATIENCE, known).await?;
        platform.send_next(300).await?;
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        if trial.random.bool() {
            platform.publish_if_any().await?;
            trial.whole(&platform).await?;
        }

        delete_topic(&platform, &platform.topic).await?;
        make_topics(&platform).await?;
        platform.send_next(trial.random.u64(200..600)).await?;
        trial.whole(&platform).await?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        trial.whole(&platform).await?;
        for worker in workers {
            worker.end_well().await?;
        }
        Ok(())
    })
}
