//! The letters that somebody looks for, and which of them were sent again.
//!
//! A marker may lie anywhere behind its letter, in any partition, so the whole topic of letters is read, from its
//! beginning to where it ended when this began. What is kept is bounded: so many letters, without their bytes, and some
//! tens of bytes for each marker.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use shared_schemas::handoff::Offset;

use super::ranges::Patience;
use super::{About, Found, Letter, Replays, letters_topic};
use crate::log::error::LogError;
use crate::log::kafka::Kafka;

/// Letters that are kept; about 500 bytes each.
pub const MOST_LETTERS: usize = 100_000;
/// Reading is given up when nothing came for so long.
const STUCK: Duration = Duration::from_secs(30);

/// In which order letters are given, by the records' Kafka timestamps, and which are left out where there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The newest first; the oldest are left out.
    NewestFirst,
    /// The oldest first; the newest are left out.
    OldestFirst,
}

/// Letters, each refused record once.
#[derive(Debug, Clone, Default)]
pub struct Letters {
    /// In the order asked for, 100,000 at most.
    pub letters: Vec<Letter>,
    /// Whether there are more.
    pub is_cut: bool,
}

impl Kafka {
    /// The dead letters of a topic's records that are wanted, as of now. Blocks, for as long as the reading takes.
    ///
    /// # Errors
    /// [`LogError::NoTopic`] if there is no topic of dead letters; [`LogError::Away`] if nothing answers, or nothing more
    /// comes, for half a minute.
    pub fn letters(&self, topic: &str, order: Order, wanted: &dyn Fn(&Letter) -> bool) -> Result<Letters, LogError> {
        let name = letters_topic(topic);
        let mut finding = Finding {
            topic,
            order,
            most: MOST_LETTERS,
            wanted,
            found: BTreeMap::new(),
            markers: HashMap::new(),
            is_cut: false,
        };
        let left = self.read_ranges(&name, self.logs_now(&name)?, Patience::WhileItMoves(STUCK), |message| {
            finding.take(Found::of(message), message.timestamp().to_millis());
        })?;
        if left.is_empty() {
            return Ok(finding.finish());
        }
        Err(LogError::Away {
            brokers: self.brokers().to_owned(),
            doing: format!("read topic {name} to its end"),
            source: Box::new(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)),
        })
    }
}

/// By the record's time, as text: all letters write it alike, so it sorts like the time itself.
type Place = (Option<String>, u32, Offset);

struct Finding<'a> {
    topic: &'a str,
    order: Order,
    most: usize,
    wanted: &'a dyn Fn(&Letter) -> bool,
    /// Of several letters of one record the first.
    found: BTreeMap<Place, Letter>,
    markers: HashMap<About, Replays>,
    is_cut: bool,
}

impl Finding<'_> {
    fn take(&mut self, found: Option<Found>, at: Option<i64>) {
        match found {
            None => {}
            Some(Found::Marker(about)) => {
                let replays = self.markers.entry(about).or_insert(Replays { times: 0, last: None });
                replays.times += 1;
                replays.last = replays.last.max(at);
            }
            Some(Found::Letter(letter)) => {
                if letter.source.topic != self.topic || !(self.wanted)(&letter) {
                    return;
                }
                let place = (
                    letter.source_time.clone(),
                    letter.source.partition,
                    letter.source.offset,
                );
                self.found.entry(place).or_insert(letter);
                if self.found.len() > self.most {
                    self.is_cut = true;
                    match self.order {
                        Order::NewestFirst => self.found.pop_first(),
                        Order::OldestFirst => self.found.pop_last(),
                    };
                }
            }
        }
    }

    fn finish(self) -> Letters {
        let mut letters: Vec<_> = self.found.into_values().collect();
        for letter in &mut letters {
            letter.replayed = self.markers.get(&letter.about()).copied();
        }
        if self.order == Order::NewestFirst {
            letters.reverse();
        }
        Letters {
            letters,
            is_cut: self.is_cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::letters::Source;

    fn letter(offset: u64, second: u32) -> Letter {
        Letter {
            partition: 0,
            offset: Offset(offset * 2),
            dataset: "d".to_owned(),
            source: Source {
                topic: "t".to_owned(),
                partition: 0,
                offset: Offset(offset),
            },
            source_time: Some(format!("2013-01-01T00:00:{second:02}.000Z")),
            reason: "empty".to_owned(),
            detail: String::new(),
            value_bytes: None,
            replay_of: None,
            replayed: None,
        }
    }

    fn found(order: Order, most: usize, taken: Vec<(Found, i64)>) -> (Vec<(u64, Option<u64>)>, bool) {
        let wanted = |letter: &Letter| letter.reason == "empty";
        let mut finding = Finding {
            topic: "t",
            order,
            most,
            wanted: &wanted,
            found: BTreeMap::new(),
            markers: HashMap::new(),
            is_cut: false,
        };
        for (found, at) in taken {
            finding.take(Some(found), Some(at));
        }
        let letters = finding.finish();
        let shown = |letter: &Letter| (letter.source.offset.0, letter.replayed.map(|replays| replays.times));
        (letters.letters.iter().map(shown).collect(), letters.is_cut)
    }

    #[test]
    fn each_record_is_found_once_with_its_markers() {
        let other_topic = Letter {
            source: Source::parse("u/0/1").unwrap(),
            ..letter(1, 1)
        };
        let other_reason = Letter {
            reason: "not_json".to_owned(),
            ..letter(2, 1)
        };
        let taken = || {
            let marker = || Found::Marker(letter(5, 3).about());
            vec![
                // A marker of a letter in another partition may be read first.
                (marker(), 70),
                (Found::Letter(letter(5, 3)), 0),
                (Found::Letter(letter(6, 2)), 0),
                (Found::Letter(letter(5, 3)), 0),
                (Found::Letter(other_topic.clone()), 0),
                (Found::Letter(other_reason.clone()), 0),
                (Found::Letter(letter(7, 4)), 0),
                (marker(), 60),
                // Of the topic before it was made again.
                (Found::Marker(letter(6, 59).about()), 0),
            ]
        };
        let all = vec![(6, None), (5, Some(2)), (7, None)];
        assert_eq!(found(Order::OldestFirst, 3, taken()), (all.clone(), false));
        assert_eq!(found(Order::OldestFirst, 2, taken()), (all[..2].to_vec(), true));
        let newest: Vec<_> = all[1..].iter().rev().copied().collect();
        assert_eq!(found(Order::NewestFirst, 2, taken()), (newest, true));
    }
}
