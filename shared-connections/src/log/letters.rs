//! Dead letters, counted by dataset and reason: for people, as `status` shows them.
//!
//! The newest are read, up to a bound in number and in time, so that a topic with millions of letters costs no more than
//! one with many. Letters of the same record are one: after a crash the archiver sends some again.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset as KafkaOffset, TopicPartitionList};
use shared_schemas::decode::Headers;
use shared_schemas::handoff::{Offset, OffsetRange};

use super::error::LogError;
use super::headers::MessageHeaders;
use super::kafka::{Kafka, Listener, kafka_partition, offset};

/// How many of a topic's letters are read, at most.
const LETTERS: u64 = 100_000;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// Anybody may write to the topic: more of a header's bytes than this are not kept.
const HEADER: usize = 256;

/// What a topic of dead letters holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetters {
    /// How many records were refused, by dataset and reason. Letters without one of these headers are not Highwater's,
    /// and are not counted.
    pub counts: BTreeMap<String, BTreeMap<String, u64>>,
    /// How many of the topic's offsets were not looked at, since there are too many or time was up; all older ones but
    /// where time was up.
    pub unread: u64,
}

impl Kafka {
    /// Counts the dead letters in a topic: the newest 100,000, within 10 s.
    ///
    /// # Errors
    /// [`LogError::NoTopic`] if there is no such topic; [`LogError::Away`] if nothing answers within seconds.
    pub async fn dead_letters(&self, topic: &str) -> Result<DeadLetters, LogError> {
        let topic = topic.to_owned();
        self.ask(move |kafka| kafka.dead_letters_now(&topic)).await
    }

    fn dead_letters_now(&self, topic: &str) -> Result<DeadLetters, LogError> {
        let deadline = Instant::now() + PATIENCE;
        let mut logs = BTreeMap::new();
        for partition in 0..self.topic_now(topic)?.partitions {
            logs.insert(partition, self.bounds_now(topic, partition)?);
        }
        let ranges = newest(&logs, LETTERS);
        let skipped = |log: &OffsetRange| log.to.0.saturating_sub(log.from.0);
        let all: u64 = logs.values().map(skipped).sum();
        let wanted: u64 = ranges.values().map(skipped).sum();
        let mut reading = Reading {
            left: ranges,
            ..Reading::default()
        };
        if !reading.left.is_empty() {
            let failed = |source| LogError::of_question(self.brokers(), topic, None, "read topic", source);
            let consumer = self.letters_consumer()?;
            consumer
                .assign(&positions(topic, &reading.left).map_err(failed)?)
                .map_err(failed)?;
            reading.read(&consumer, deadline);
        }
        let unread: u64 = reading.left.values().map(skipped).sum();
        Ok(DeadLetters {
            counts: reading.counts,
            unread: all - wanted + unread,
        })
    }
}

/// What was read so far, and what is left.
#[derive(Default)]
struct Reading {
    left: BTreeMap<u32, OffsetRange>,
    /// The sources of the letters counted.
    known: HashSet<Vec<u8>>,
    counts: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Reading {
    /// Reads until nothing is left or time is up.
    fn read(&mut self, consumer: &BaseConsumer<Listener>, deadline: Instant) {
        while !self.left.is_empty() && Instant::now() < deadline {
            match consumer.poll(POLL) {
                None => {}
                Some(Ok(letter)) => self.take(&letter),
                // All that is left of it are holes.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.left.retain(|number, _| kafka_partition(*number) != partition);
                }
                // librdkafka goes on by itself; if it can't, time is up some day.
                Some(Err(error)) => tracing::debug!(%error, "a poll failed"),
            }
        }
    }

    fn take(&mut self, letter: &BorrowedMessage<'_>) {
        let at = offset(letter.offset());
        let Ok(partition) = u32::try_from(letter.partition()) else {
            return;
        };
        let Some(range) = self.left.get_mut(&partition) else {
            return;
        };
        if at < range.to {
            let headers = MessageHeaders(letter);
            self.count(&headers);
            if let Some(range) = self.left.get_mut(&partition) {
                range.from = at.next();
            }
        }
        self.left.retain(|_, range| !range.is_empty());
    }

    fn count(&mut self, headers: &impl Headers) {
        let header = |name| {
            let value = headers.last(name).flatten()?;
            Some(&value[..value.len().min(HEADER)])
        };
        let (Some(dataset), Some(reason)) = (header("highwater-dataset"), header("highwater-reason")) else {
            return;
        };
        // The time too: in a topic that was made again, offsets begin anew.
        let source = ["highwater-source", "highwater-source-time"].map(|name| header(name).unwrap_or_default());
        let is_new = source[0].is_empty() || self.known.insert([dataset, source[0], source[1]].join(&0));
        if is_new {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let of_dataset = self.counts.entry(text(dataset)).or_default();
            *of_dataset.entry(text(reason)).or_default() += 1;
        }
    }
}

/// The newest `limit` offsets of the logs: what a short log leaves of its share goes to the longer ones.
fn newest(logs: &BTreeMap<u32, OffsetRange>, limit: u64) -> BTreeMap<u32, OffsetRange> {
    let mut by_length: Vec<_> = logs.iter().filter(|(_, log)| !log.is_empty()).collect();
    by_length.sort_by_key(|(_, log)| log.to.0 - log.from.0);
    let mut left = limit;
    let mut chosen = BTreeMap::new();
    for (place, (partition, log)) in by_length.iter().enumerate() {
        let others = u64::try_from(by_length.len() - place).unwrap_or(u64::MAX);
        let taken = (log.to.0 - log.from.0).min(left / others);
        left -= taken;
        let range = OffsetRange {
            from: Offset(log.to.0 - taken),
            to: log.to,
        };
        if !range.is_empty() {
            chosen.insert(**partition, range);
        }
    }
    chosen
}

fn positions(topic: &str, ranges: &BTreeMap<u32, OffsetRange>) -> Result<TopicPartitionList, KafkaError> {
    let mut positions = TopicPartitionList::new();
    for (partition, range) in ranges {
        let from = KafkaOffset::Offset(i64::try_from(range.from.0).unwrap_or(i64::MAX));
        positions.add_partition_offset(topic, kafka_partition(*partition), from)?;
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Named(Vec<(&'static str, &'static str)>);

    impl Headers for Named {
        fn last(&self, name: &str) -> Option<Option<&[u8]>> {
            let found = self.0.iter().rev().find(|(known, _)| *known == name)?;
            Some(Some(found.1.as_bytes()))
        }
    }

    #[test]
    fn a_letter_sent_again_is_counted_once() {
        let mut reading = Reading::default();
        let letter = |source, reason| {
            Named(vec![
                ("highwater-dataset", "flights"),
                ("highwater-reason", reason),
                ("highwater-source", source),
                ("highwater-source-time", "2013-01-01T00:00:00Z"),
            ])
        };
        for (source, reason) in [
            ("flights/0/7", "not_json"),
            ("flights/0/8", "empty"),
            ("flights/0/7", "not_json"),
            ("flights/1/7", "not_json"),
        ] {
            reading.count(&letter(source, reason));
        }
        reading.count(&Named(vec![("highwater-reason", "somebody else's")]));
        let expected = BTreeMap::from([("empty".to_owned(), 1), ("not_json".to_owned(), 2)]);
        assert_eq!(reading.counts, BTreeMap::from([("flights".to_owned(), expected)]));
    }

    proptest! {
        #[test]
        fn the_newest_are_taken_up_to_the_limit(
            lengths in prop::collection::vec((0_u64..50, 0_u64..50), 0..6), limit in 0_u64..120,
        ) {
            let logs: BTreeMap<u32, _> = (0..)
                .zip(&lengths)
                .map(|(number, (from, length))| (number, OffsetRange { from: Offset(*from), to: Offset(from + length) }))
                .collect();
            let all: u64 = lengths.iter().map(|(_, length)| length).sum();
            let chosen = newest(&logs, limit);
            let taken: u64 = chosen.values().map(|range| range.to.0 - range.from.0).sum();
            prop_assert_eq!(taken, all.min(limit));
            for (number, range) in &chosen {
                prop_assert!(range.to == logs[number].to && range.from >= logs[number].from);
            }
        }
    }
}
