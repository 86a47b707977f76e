//! Ranges of offsets of one topic, read once, from their beginnings to their ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use shared_schemas::handoff::{Offset, OffsetRange};

use crate::log::error::LogError;
use crate::log::kafka::{Kafka, kafka_partition, offset};
use crate::log::reader::positions;

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);

/// How long a reading may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// So long in all.
    InAll(Duration),
    /// As long as it comes further within that.
    WhileItMoves(Duration),
}

impl Kafka {
    /// The logs of all partitions of a topic; blocks.
    pub(super) fn logs_now(&self, topic: &str) -> Result<BTreeMap<u32, OffsetRange>, LogError> {
        (0..self.topic_now(topic)?.partitions)
            .map(|partition| Ok((partition, self.bounds_now(topic, partition)?)))
            .collect()
    }

    /// Reads these ranges of a topic, in the order of offsets within a partition. Returns what of them was not reached in
    /// time; blocks.
    pub(super) fn read_ranges(
        &self,
        topic: &str,
        mut left: BTreeMap<u32, OffsetRange>,
        patience: Patience,
        mut take: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<BTreeMap<u32, OffsetRange>, LogError> {
        left.retain(|_, range| !range.is_empty());
        if left.is_empty() {
            return Ok(left);
        }
        let failed = |source| LogError::of_question(self.brokers(), topic, None, "read topic", source);
        let consumer = self.letters_consumer()?;
        let from: BTreeMap<u32, Offset> = left.iter().map(|(partition, range)| (*partition, range.from)).collect();
        positions(topic, &from)
            .and_then(|positions| consumer.assign(&positions))
            .map_err(failed)?;
        let (Patience::InAll(limit) | Patience::WhileItMoves(limit)) = patience;
        let mut deadline = Instant::now() + limit;
        while !left.is_empty() && Instant::now() < deadline {
            match consumer.poll(POLL) {
                None => continue,
                Some(Ok(message)) => {
                    let at = offset(message.offset());
                    let partition = u32::try_from(message.partition()).unwrap_or(u32::MAX);
                    let Some(range) = left.get_mut(&partition) else {
                        continue;
                    };
                    if at < range.to {
                        take(&message);
                        range.from = at.next();
                    }
                    if at.next() >= range.to {
                        left.remove(&partition);
                    }
                }
                // All that is left of it are holes.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    left.retain(|number, _| kafka_partition(*number) != partition);
                }
                // librdkafka goes on by itself; if it can't, time is up some day.
                Some(Err(error)) => {
                    tracing::debug!(%error, "a poll failed");
                    continue;
                }
            }
            if let Patience::WhileItMoves(limit) = patience {
                deadline = Instant::now() + limit;
            }
        }
        Ok(left)
    }
}
