//! Topics of dead letters: what lies in them, and how a refused record is sent again.
//!
//! The archiver writes a *letter* for each refused record; `highwater dead-letters replay` writes the record to its topic
//! again together with a *marker* in the topic of letters, in one transaction. A marker has no value and no reason. It names
//! the same source as the letter, so a record that was sent again is known to have been, whichever of its letters is looked at.
//!
//! | header | letter | marker | record sent again |
//! |---|---|---|---|
//! | `highwater-reason`, `-detail`, `-source` | yes | | |
//! | `highwater-dataset`, `-source-time` | yes | yes | |
//! | `highwater-replayed`: the source | where it had been sent again before | yes | yes |
//!
//! - `count`: how many letters there are, for `status`
//! - [`find`]: the letters that somebody looks for, and which of them were sent again
//! - [`records`]: single records, by their offsets
//! - [`replay`]: records and their markers, in transactions

mod count;
pub mod find;
mod ranges;
pub mod records;
pub mod replay;

use std::fmt;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use shared_schemas::decode::Headers;
use shared_schemas::handoff::Offset;

use super::headers::MessageHeaders;
use super::kafka::offset;

pub use count::DeadLetters;

/// What comes behind the name of the dataset's topic.
const SUFFIX: &str = ".dead-letters";
/// What the names of Highwater's own headers begin with.
pub const OWN: &str = "highwater-";
/// Why the record was refused.
const REASON: &str = "highwater-reason";
/// The sentence that goes with the reason.
const DETAIL: &str = "highwater-detail";
/// Who refused it.
const DATASET: &str = "highwater-dataset";
/// Where the record lies: `topic/partition/offset`.
const SOURCE: &str = "highwater-source";
/// The record's Kafka timestamp, RFC 3339 in milliseconds.
const SOURCE_TIME: &str = "highwater-source-time";
/// The source of a record that was sent again.
pub const REPLAYED: &str = "highwater-replayed";
/// Anybody may write to the topic: more of a header's bytes than this are not kept.
const HEADER: usize = 256;
/// The same for a source: a topic's name has up to 249 bytes.
const PLACE: usize = 320;
/// The same for a sentence.
const SENTENCE: usize = 1_024;

/// The topic of a topic's dead letters.
pub fn letters_topic(topic: &str) -> String {
    format!("{topic}{SUFFIX}")
}

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The topic.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// The record's offset.
    pub offset: Offset,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl Source {
    /// Reads `topic/partition/offset`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let source = Self {
            topic: parts.next().filter(|topic| !topic.is_empty())?.to_owned(),
            partition: parts.next()?.parse().ok()?,
            offset: Offset(parts.next()?.parse().ok()?),
        };
        // Kafka's numbers are signed; and only one way of writing each is that of a letter.
        (i32::try_from(source.partition).is_ok() && i64::try_from(source.offset.0).is_ok()).then_some(source)
    }
}

/// The place that a header [`REPLAYED`] of a record of `topic` names. Anybody may send such a header with anything in it: what
/// is no place in that topic says nothing, and is not passed on.
pub fn replay_of(value: &[u8], topic: &str) -> Option<Source> {
    let text = std::str::from_utf8(value).ok()?;
    Source::parse(text).filter(|source| source.topic == topic && source.to_string() == text)
}

/// Whether a letter's header is Highwater's and tells nothing of what the record holds, so that it may be shown where the
/// record may not. `topic`: the record's.
pub fn tells_nothing(name: &str, value: Option<&[u8]>, topic: &str) -> bool {
    match name {
        REPLAYED => value.is_some_and(|value| replay_of(value, topic).is_some()),
        _ => [REASON, DETAIL, DATASET, SOURCE, SOURCE_TIME].contains(&name),
    }
}

/// A Kafka record as it lies in its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its Kafka timestamp in milliseconds since 1970, `None` where it has none.
    pub kafka_time: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            kafka_time: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: MessageHeaders(message).all(),
        }
    }
}

/// Which record a letter or a marker is about. The time too: in a topic that was made again, offsets begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct About {
    partition: u32,
    offset: Offset,
    time: Option<Box<str>>,
}

/// A dead letter, without the record's own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its place in the topic of letters.
    pub partition: u32,
    /// Its place in the topic of letters.
    pub offset: Offset,
    /// Who refused the record.
    pub dataset: String,
    /// Where the record lies, or lay.
    pub source: Source,
    /// The record's Kafka timestamp as the archiver wrote it, RFC 3339; `None` where it has none.
    pub source_time: Option<String>,
    /// Why it was refused.
    pub reason: String,
    /// The sentence that goes with the reason.
    pub detail: String,
    /// Bytes of its value; `None` where it has no value: a tombstone, a masked dataset, a value that did not fit.
    pub value_bytes: Option<usize>,
    /// The source of the record that this one was, when it was sent again before.
    pub replay_of: Option<String>,
    /// How often the record was sent again since, and when last, in milliseconds since 1970.
    pub replayed: Option<Replays>,
}

/// How often a record was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replays {
    /// How often.
    pub times: u64,
    /// When last, in milliseconds since 1970.
    pub last: Option<i64>,
}

/// What a record in a topic of letters is.
enum Found {
    Letter(Letter),
    Marker(About),
}

impl Letter {
    fn about(&self) -> About {
        About {
            partition: self.source.partition,
            offset: self.source.offset,
            time: self.source_time.as_deref().map(Into::into),
        }
    }
}

impl Found {
    /// `None` for what Highwater did not write.
    fn of(message: &BorrowedMessage<'_>) -> Option<Self> {
        let partition = u32::try_from(message.partition()).ok()?;
        let size = message.payload().map(<[u8]>::len);
        Self::read(&MessageHeaders(message), partition, offset(message.offset()), size)
    }

    fn read(headers: &impl Headers, partition: u32, offset: Offset, value_bytes: Option<usize>) -> Option<Self> {
        let header = |name, most: usize| {
            let value = headers.last(name).flatten()?;
            Some(String::from_utf8_lossy(&value[..value.len().min(most)]).into_owned())
        };
        let source_time = header(SOURCE_TIME, HEADER);
        let replayed = header(REPLAYED, PLACE);
        let Some(reason) = header(REASON, HEADER) else {
            let source = Source::parse(&replayed?).filter(|_| value_bytes.is_none())?;
            return Some(Self::Marker(About {
                partition: source.partition,
                offset: source.offset,
                time: source_time.map(Into::into),
            }));
        };
        let source = Source::parse(&header(SOURCE, PLACE)?)?;
        let replay_of = replayed.and_then(|text| replay_of(text.as_bytes(), &source.topic));
        Some(Self::Letter(Letter {
            partition,
            offset,
            dataset: header(DATASET, HEADER)?,
            source,
            source_time,
            reason,
            detail: header(DETAIL, SENTENCE).unwrap_or_default(),
            value_bytes,
            replay_of: replay_of.map(|source| source.to_string()),
            replayed: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_as_it_is_written() {
        let source = Source::parse("a.b-c/3/12").unwrap();
        assert_eq!((source.partition, source.offset), (3, Offset(12)));
        assert_eq!(source.to_string(), "a.b-c/3/12");
        for none in ["", "a", "a/1", "/1/2", "a/b/2", "a/1/-2", "a/1/2/3", "a/4294967295/1"] {
            assert_eq!(Source::parse(none), None, "{none}");
        }
    }

    #[test]
    fn only_highwaters_own_headers_may_be_shown() {
        for name in [REASON, DETAIL, DATASET, SOURCE, SOURCE_TIME] {
            assert!(tells_nothing(name, Some(b"x"), "t"), "{name}");
        }
        assert!(tells_nothing(REPLAYED, Some(b"t/1/2"), "t"));
        for value in [
            &b"hush"[..],
            b"hush/1/2",
            b"t/1/hush",
            b"t/01/2",
            b"t/1/2/hush",
            b"\xff",
        ] {
            assert!(!tells_nothing(REPLAYED, Some(value), "t"), "{value:?}");
        }
        for name in [
            "origin",
            "highwater-user",
            "highwater-masked",
            "highwater-reason-x",
            OWN,
        ] {
            assert!(!tells_nothing(name, Some(b"t/1/2"), "t"), "{name}");
        }
    }

    #[test]
    fn a_marker_is_no_letter() {
        type Pairs = &'static [(&'static str, Option<&'static [u8]>)];
        let read = |headers: Pairs, value| Found::read(&headers, 0, Offset(9), value);
        let marker: Pairs = &[(REPLAYED, Some(b"t/1/2")), (DATASET, Some(b"d"))];
        assert!(matches!(
            read(marker, None),
            Some(Found::Marker(About {
                partition: 1,
                offset: Offset(2),
                time: None
            }))
        ));
        assert!(read(marker, Some(1)).is_none());
        // Of a record that was sent again, and refused again.
        let letter: Pairs = &[
            (REPLAYED, Some(b"t/1/2")),
            (REASON, Some(b"empty")),
            (DATASET, Some(b"d")),
            (SOURCE, Some(b"t/1/7")),
        ];
        let Some(Found::Letter(letter)) = read(letter, None) else {
            panic!("no letter")
        };
        assert_eq!(
            (letter.source.offset, letter.replay_of.as_deref()),
            (Offset(7), Some("t/1/2"))
        );
        assert!(read(&[(REASON, Some(b"somebody else's"))], None).is_none());
        assert!(read(&[], None).is_none());
    }
}
