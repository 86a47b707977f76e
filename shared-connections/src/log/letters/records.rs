//! Single records, by their offsets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use shared_schemas::handoff::{Offset, OffsetRange};

use super::Record;
use crate::log::error::LogError;
use crate::log::kafka::{Kafka, Listener, offset};
use crate::log::reader::positions;

/// How long one record may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// Records that are read over rather than asked for the next one anew, which costs a round trip.
const NEAR: u64 = 1_000;

/// Reads single records of one topic; ascending offsets cost least.
pub struct Records {
    kafka: Kafka,
    topic: String,
    consumer: BaseConsumer<Listener>,
    /// What comes next if nothing else is asked for.
    next: Option<(u32, Offset)>,
}

impl Records {
    /// Of that topic. Nothing is asked yet.
    ///
    /// # Errors
    /// A client that can't be made.
    pub fn of(kafka: &Kafka, topic: &str) -> Result<Self, LogError> {
        Ok(Self {
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            consumer: kafka.letters_consumer()?,
            next: None,
        })
    }

    /// The committed record at that offset; `None` where Kafka no longer has it, or never had. Blocks.
    ///
    /// # Errors
    /// [`LogError::NoTopic`], [`LogError::NoPartition`]; [`LogError::Away`] if it does not come within half a minute.
    pub fn get(&mut self, partition: u32, at: Offset) -> Result<Option<Record>, LogError> {
        let OffsetRange { from, to } = self.kafka.bounds_now(&self.topic, partition)?;
        if at < from || at >= to {
            return Ok(None);
        }
        let is_near = |next: Offset| next <= at && at.0 - next.0 < NEAR;
        if !self.next.is_some_and(|(of, next)| of == partition && is_near(next)) {
            self.go_to(partition, at)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let found = offset(message.offset());
                    if u32::try_from(message.partition()) != Ok(partition) {
                        continue;
                    }
                    self.next = Some((partition, found.next()));
                    if found >= at {
                        return Ok((found == at).then(|| Record::of(&message)));
                    }
                }
                // It was in a hole, or left the log since it was asked where that begins.
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(self.nothing()),
                Some(Err(error)) if is_gone(&error) => return Ok(self.nothing()),
                Some(Err(error)) => tracing::debug!(%error, "a poll failed"),
            }
        }
        self.next = None;
        let timed_out = KafkaError::MessageConsumption(Code::OperationTimedOut);
        Err(self.failed(timed_out))
    }

    fn go_to(&mut self, partition: u32, at: Offset) -> Result<(), LogError> {
        self.next = Some((partition, at));
        positions(&self.topic, &BTreeMap::from([(partition, at)]))
            .and_then(|positions| self.consumer.assign(&positions))
            .map_err(|source| self.failed(source))
    }

    fn nothing(&mut self) -> Option<Record> {
        self.next = None;
        None
    }

    fn failed(&self, source: KafkaError) -> LogError {
        LogError::of_question(
            self.kafka.brokers(),
            &self.topic,
            None,
            "read a record of topic",
            source,
        )
    }
}

fn is_gone(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)
    )
}
