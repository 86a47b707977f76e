//! What librdkafka and the broker give at best: a reader's client, whose messages are thrown away.

use std::time::{Duration, Instant};

use anyhow::ensure;
use shared_connections::log::{BareConsumer, Kafka};
use shared_schemas::handoff::Offset;
use tokio_util::sync::CancellationToken;

use super::figure::number;
use super::site::Site;
use super::topic::Topic;

/// How long Kafka may be silent before all events came.
const SILENT: Duration = Duration::from_secs(30);
/// How long a batch is waited for, as a reader does while it gathers a slice.
const WAIT: Duration = Duration::from_millis(10);

/// Reads the whole topic once; messages a second, from the first one on.
pub(crate) async fn rate(site: &Site, topic: &Topic, cancel: &CancellationToken) -> anyhow::Result<f64> {
    let (kafka, topic, cancel) = (site.kafka().clone(), topic.clone(), cancel.clone());
    tokio::task::spawn_blocking(move || read(&kafka, &topic, &cancel)).await?
}

fn read(kafka: &Kafka, topic: &Topic, cancel: &CancellationToken) -> anyhow::Result<f64> {
    let cursors = (0..topic.partitions).map(|partition| (partition, Offset(0))).collect();
    let mut consumer = BareConsumer::start(kafka, &topic.name, &cursors)?;
    let events = topic.events;
    let (mut read, mut first, mut last) = (0, None, Instant::now());
    while read < events {
        let came = consumer.take(WAIT)? as u64;
        ensure!(!cancel.is_cancelled(), "cancelled");
        if came > 0 {
            last = Instant::now();
            first.get_or_insert(last);
            read += came;
        }
        ensure!(last.elapsed() < SILENT, "only {read} of {events} events came");
    }
    let took = first.map_or(Duration::ZERO, |first| last - first);
    Ok(number(read) / took.as_secs_f64().max(f64::EPSILON))
}
