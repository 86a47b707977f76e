//! Dead letters, counted by dataset and reason: for people, as `status` shows them.
//!
//! The newest are read, up to a bound in number and in time, so that a topic with millions of letters costs no more than
//! one with many. Letters of the same record are one: after a crash the archiver sends some again.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use shared_schemas::handoff::{Offset, OffsetRange};

use super::ranges::Patience;
use super::{About, Found};
use crate::log::error::LogError;
use crate::log::kafka::Kafka;

/// How many of a topic's offsets are looked at, at most.
const LETTERS: u64 = 100_000;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a topic of dead letters holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetters {
    /// How many records were refused, by dataset and reason. Letters without one of these headers are not Highwater's,
    /// and are not counted.
    pub counts: BTreeMap<String, BTreeMap<String, u64>>,
    /// By dataset, how many of those records were sent again since.
    pub replayed: BTreeMap<String, u64>,
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
        let logs = self.logs_now(topic)?;
        let ranges = newest(&logs, LETTERS);
        let skipped = |log: &OffsetRange| log.to.0.saturating_sub(log.from.0);
        let all: u64 = logs.values().map(skipped).sum();
        let wanted: u64 = ranges.values().map(skipped).sum();
        let mut counting = Counting::default();
        let left = self.read_ranges(topic, ranges, Patience::InAll(PATIENCE), |message| {
            counting.take(Found::of(message));
        })?;
        let unread: u64 = left.values().map(skipped).sum();
        Ok(DeadLetters {
            unread: all - wanted + unread,
            ..counting.finish()
        })
    }
}

/// What was read so far.
#[derive(Default)]
struct Counting {
    /// The records whose letters were counted, by dataset.
    known: BTreeMap<String, HashSet<About>>,
    counts: BTreeMap<String, BTreeMap<String, u64>>,
    markers: HashSet<About>,
}

impl Counting {
    fn take(&mut self, found: Option<Found>) {
        match found {
            None => {}
            Some(Found::Marker(about)) => {
                self.markers.insert(about);
            }
            Some(Found::Letter(letter)) => {
                let about = letter.about();
                if self.known.entry(letter.dataset.clone()).or_default().insert(about) {
                    let of_dataset = self.counts.entry(letter.dataset).or_default();
                    *of_dataset.entry(letter.reason).or_default() += 1;
                }
            }
        }
    }

    fn finish(self) -> DeadLetters {
        let replayed = self.known.iter().map(|(dataset, known)| {
            let count = known.iter().filter(|about| self.markers.contains(about)).count();
            (dataset.clone(), u64::try_from(count).unwrap_or(u64::MAX))
        });
        DeadLetters {
            replayed: replayed.filter(|(_, count)| *count > 0).collect(),
            counts: self.counts,
            unread: 0,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Letter, Source};
    use super::*;

    #[test]
    fn a_letter_sent_again_is_counted_once_and_markers_are_not() {
        let mut counting = Counting::default();
        let letter = |source: &str, reason: &str| {
            Found::Letter(Letter {
                partition: 0,
                offset: Offset(0),
                dataset: "flights".to_owned(),
                source: Source::parse(source).unwrap(),
                source_time: Some("2013-01-01T00:00:00Z".to_owned()),
                reason: reason.to_owned(),
                detail: String::new(),
                value_bytes: None,
                replay_of: None,
                replayed: None,
            })
        };
        for found in [
            letter("flights/0/7", "not_json"),
            letter("flights/0/8", "empty"),
            letter("flights/0/7", "not_json"),
            letter("flights/1/7", "not_json"),
        ] {
            counting.take(Some(found));
        }
        let about = |offset, time: &str| About {
            partition: 0,
            offset: Offset(offset),
            time: Some(time.into()),
        };
        counting.take(Some(Found::Marker(about(7, "2013-01-01T00:00:00Z"))));
        counting.take(Some(Found::Marker(about(8, "2012-01-01T00:00:00Z"))));
        counting.take(None);
        let letters = counting.finish();
        let expected = BTreeMap::from([("empty".to_owned(), 1), ("not_json".to_owned(), 2)]);
        assert_eq!(letters.counts, BTreeMap::from([("flights".to_owned(), expected)]));
        assert_eq!(letters.replayed, BTreeMap::from([("flights".to_owned(), 1)]));
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
