//! A consumer that throws messages away: how fast librdkafka and the broker are without us, to measure against.
//!
//! It is the client of a [`Reader`](super::Reader), with the same settings, and takes messages as one does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use shared_schemas::handoff::Offset;

use super::batch::{MOST, Queue};
use super::error::LogError;
use super::kafka::Kafka;
use super::reader::positions;

/// Reads partitions of a topic from given offsets on, and keeps nothing.
pub struct BareConsumer {
    queue: Queue,
    kafka: Kafka,
    topic: String,
}

impl BareConsumer {
    /// Begins to read each partition from its cursor.
    ///
    /// # Errors
    /// A client that can't be made, or that does not take the partitions.
    pub fn start(kafka: &Kafka, topic: &str, cursors: &BTreeMap<u32, Offset>) -> Result<Self, LogError> {
        let consumer = Arc::new(kafka.consumer(kafka.group("bare"))?);
        let failed = |source| refused(kafka, topic, source);
        let queue = Queue::of(&consumer).map_err(failed)?;
        positions(topic, cursors)
            .and_then(|positions| consumer.assign(&positions))
            .map_err(failed)?;
        Ok(Self {
            queue,
            kafka: kafka.clone(),
            topic: topic.to_owned(),
        })
    }

    /// Takes messages, and waits so long for them; how many came. Blocks.
    ///
    /// # Errors
    /// What Kafka said in place of a message.
    pub fn take(&mut self, wait: Duration) -> Result<usize, LogError> {
        let batch = self.queue.take(MOST, wait);
        let mut count = 0;
        for message in batch.messages() {
            message.map_err(|(_, source)| refused(&self.kafka, &self.topic, source))?;
            count += 1;
        }
        Ok(count)
    }
}

fn refused(kafka: &Kafka, topic: &str, source: KafkaError) -> LogError {
    LogError::refused(kafka.brokers(), format!("read topic {topic}"), source)
}
