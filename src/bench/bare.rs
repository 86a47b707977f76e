//! A consumer that throws messages away: what librdkafka and the broker give at best, with the settings of a reader.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::figure::number;
use super::site::Site;
use super::topic::Topic;

/// How long Kafka may be silent before all events came.
const SILENT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Reads the whole topic once; messages a second, from the first one on.
pub(crate) async fn rate(site: &Site, topic: &Topic, cancel: &CancellationToken) -> anyhow::Result<f64> {
    let config = site.kafka().reader_config("bench-bare".to_owned());
    let consumer: BaseConsumer = config.create().context("no consumer can be made")?;
    let mut all = TopicPartitionList::new();
    for partition in 0..topic.partitions {
        all.add_partition_offset(&topic.name, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (events, cancel) = (topic.events, cancel.clone());
    tokio::task::spawn_blocking(move || read(&consumer, events, &cancel)).await?
}

fn read(consumer: &BaseConsumer, events: u64, cancel: &CancellationToken) -> anyhow::Result<f64> {
    let (mut read, mut began, mut last) = (0, Instant::now(), Instant::now());
    while read < events {
        match consumer.poll(POLL) {
            // News of brokers, which librdkafka deals with.
            Some(Err(error)) => tracing::debug!(%error, "librdkafka"),
            Some(Ok(_)) => {
                if read == 0 {
                    began = Instant::now();
                }
                read += 1;
                if read % 4096 == 0 {
                    last = Instant::now();
                    ensure!(!cancel.is_cancelled(), "cancelled");
                }
            }
            None => {
                ensure!(!cancel.is_cancelled(), "cancelled");
                ensure!(last.elapsed() < SILENT, "only {read} of {events} events came");
            }
        }
    }
    Ok(number(read) / began.elapsed().as_secs_f64())
}
