//! Refused records to the dead-letter topic, before the commit that passes them.
//!
//! Delivery is awaited, by all replicas: once the archive has passed a record, its letter is there. After a crash in
//! between, or a delivery that failed half-way, letters come again; `highwater-source` tells that they are the same.
//!
//! A dataset with mask rules, or that keeps nothing undeclared, gets letters without key, value and the record's own
//! headers, but for the place that a record which was sent again had before. The record was refused, so nobody knows which of
//! its bytes the rules are about; the key is often made of fields too. Whoever may see it finds the original at its source,
//! for as long as Kafka keeps it.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use shared_connections::log::Refused;
use shared_connections::log::letters::{OWN, REPLAYED, letters_topic, replay_of};
use shared_schemas::config::KafkaConfig;
use shared_schemas::dataset::Dataset;

/// Letters that are under way at the same time. Their bytes are held by the archiver anyway, so this bounds copies.
const IN_FLIGHT: usize = 64;

/// How long a letter may take before it counts as not delivered, and is sent again later.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is decided here, whatever the user's properties say.
const PROPERTIES: [(&str, &str); 9] = [
    ("acks", "all"),
    // A letter that is too large for the topic takes no other with it.
    ("batch.num.messages", "1"),
    ("compression.type", "zstd"),
    ("enable.idempotence", "true"),
    // The broker says what is too large for the topic; librdkafka's own limit would only be in the way.
    ("message.max.bytes", "1000000000"),
    ("message.timeout.ms", "20000"),
    // The queue holds what is in flight, and no more.
    ("queue.buffering.max.kbytes", "2097151"),
    ("linger.ms", "5"),
    // How long a topic may be unknown before that is told, and not only a timeout.
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// Why letters could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The producer can't be made.
    #[error("no dead letters can be sent: check kafka.properties")]
    Client(#[source] KafkaError),
    /// The dead-letter topic is not there.
    #[error("there is no topic {topic} for dead letters: make it with `highwater topics create`")]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// A letter was not delivered.
    #[error("a dead letter could not be delivered to topic {topic}")]
    Undelivered {
        /// The topic.
        topic: String,
        /// What Kafka says.
        #[source]
        source: KafkaError,
    },
}

/// A refused record and its partition.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) partition: u32,
    pub(super) record: Refused,
}

impl Letter {
    /// Bytes that it holds.
    pub(super) fn size(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self
            .record
            .headers
            .iter()
            .map(|(name, value)| name.len() + length(value));
        length(&self.record.key) + length(&self.record.value) + headers.sum::<usize>() + self.record.detail.len()
    }
}

/// Sends a dataset's dead letters.
pub(super) struct DeadLetters {
    producer: FutureProducer<Quiet>,
    dataset: String,
    source: String,
    topic: String,
    /// Whether no letter may show what its record holds.
    hides: bool,
}

/// How much of the original a letter keeps, so that it fits its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Key, value and headers.
    All,
    /// Key and headers.
    Key,
    /// Nothing but where it came from and why it was refused.
    Reason,
}

impl DeadLetters {
    /// For a dataset. Kafka need not be there.
    pub(super) fn new(config: &KafkaConfig, dataset: &Dataset) -> Result<Self, LetterError> {
        let mut client = ClientConfig::new();
        client.set("client.id", "highwater");
        for (name, value) in &config.properties {
            client.set(name, value.reveal());
        }
        client.set("bootstrap.servers", config.bootstrap_servers());
        // A transaction's producer would have to begin one.
        client.remove("transactional.id");
        for (name, value) in PROPERTIES {
            client.set(name, value);
        }
        Ok(Self {
            producer: client.create_with_context(Quiet).map_err(LetterError::Client)?,
            dataset: dataset.name.clone(),
            source: dataset.topic.clone(),
            topic: letters_topic(&dataset.topic),
            hides: dataset.hides(),
        })
    }

    /// Delivers all of them, in order of their arrival except where one had to be tried again. What is delivered is taken
    /// out, so that after an error only the rest is sent once more.
    ///
    /// # Errors
    /// The first letter that was not delivered.
    pub(super) async fn deliver(&self, letters: &mut VecDeque<Letter>) -> Result<(), LetterError> {
        while !letters.is_empty() {
            let part = letters.len().min(IN_FLIGHT);
            let sent = letters.iter().take(part).map(|letter| self.send(letter));
            let sent = futures::future::join_all(sent).await;
            let failure = sent.into_iter().find_map(Result::err);
            if let Some(error) = failure {
                return Err(error);
            }
            letters.drain(..part);
        }
        Ok(())
    }

    async fn send(&self, letter: &Letter) -> Result<(), LetterError> {
        let mut result = self.try_send(letter, Kept::All).await;
        for kept in [Kept::Key, Kept::Reason] {
            let is_too_large =
                |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
            if !result.as_ref().err().is_some_and(is_too_large) {
                break;
            }
            result = self.try_send(letter, kept).await;
        }
        result.map_err(|source| match source.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => LetterError::NoTopic {
                topic: self.topic.clone(),
            },
            _ => LetterError::Undelivered {
                topic: self.topic.clone(),
                source,
            },
        })
    }

    /// A letter's time is ours, so that Kafka keeps it as long as any. Kafka takes nothing that lies more than an hour ahead of
    /// its own clock: then ours is wrong, and the record's time, which Kafka took once, has to do.
    async fn try_send(&self, letter: &Letter, kept: Kept) -> Result<(), KafkaError> {
        let sent = self.send_at(letter, kept, None).await;
        let code = sent.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        match letter.record.kafka_time {
            Some(time) if code == Some(RDKafkaErrorCode::InvalidTimestamp) => {
                self.send_at(letter, kept, Some(time)).await
            }
            _ => sent,
        }
    }

    async fn send_at(&self, letter: &Letter, kept: Kept, time: Option<i64>) -> Result<(), KafkaError> {
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(self.headers(letter, kept));
        record.timestamp = time;
        if !self.hides {
            record.key = letter.record.key.as_deref().filter(|_| kept != Kept::Reason);
            record.payload = letter.record.value.as_deref().filter(|_| kept == Kept::All);
        }
        let sent = self.producer.send(record, PATIENCE).await;
        sent.map(drop).map_err(|(error, _)| error)
    }

    /// The place that the record had before it was sent again, if it was: all that is kept of its headers where they are hidden.
    fn was_replayed(&self, record: &Refused) -> Option<String> {
        let of_replay = record.headers.iter().rfind(|(name, _)| name == REPLAYED);
        let (_, value) = of_replay?;
        Some(replay_of(value.as_deref()?, &self.source)?.to_string())
    }

    fn headers(&self, letter: &Letter, kept: Kept) -> OwnedHeaders {
        let Letter { partition, record } = letter;
        let source = format!("{}/{partition}/{}", self.source, record.offset);
        let own = [
            ("reason", record.reason.name()),
            ("detail", &record.detail),
            ("dataset", &self.dataset),
            ("source", &source),
        ];
        let mut headers = OwnedHeaders::new();
        if !self.hides && kept != Kept::Reason {
            // A record that was a dead letter before has these already.
            let foreign = record.headers.iter().filter(|(name, _)| !own_header(name));
            for (key, value) in foreign {
                headers = headers.insert(Header {
                    key,
                    value: value.as_deref(),
                });
            }
        } else if let Some(before) = self.was_replayed(record) {
            headers = headers.insert(Header {
                key: REPLAYED,
                value: Some(&before),
            });
        }
        for (name, value) in own {
            headers = headers.insert(Header {
                key: &format!("{OWN}{name}"),
                value: Some(value),
            });
        }
        let time = record.kafka_time.and_then(DateTime::from_timestamp_millis);
        if let Some(time) = time {
            headers = headers.insert(Header {
                key: &format!("{OWN}source-time"),
                value: Some(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            });
        }
        headers
    }
}

/// Whether a letter has a header of its own of that name.
fn own_header(name: &str) -> bool {
    name.strip_prefix(OWN)
        .is_some_and(|rest| ["reason", "detail", "dataset", "source", "source-time"].contains(&rest))
}

/// What librdkafka says of itself goes to the debug log: whoever sends tells what matters, once.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rdkafka::message::Headers;
    use shared_schemas::config::Config;
    use shared_schemas::decode::Reason;
    use shared_schemas::definitions::Definitions;
    use shared_schemas::handoff::Offset;

    use super::*;

    #[test]
    fn a_letter_that_hides_its_record_says_what_it_was_a_replay_of() {
        let text =
            "[dataset.d]\ntopic = \"t\"\nevent_time = \"$kafka_time\"\nextra = \"drop\"\nfields = { n = \"int64\" }\n";
        let dataset = Definitions::parse([("d.toml", text)]).unwrap().datasets.remove(0);
        let config = Config::parse("", "test.toml", Path::new(""), &|_| None).config.kafka;
        let letters = DeadLetters::new(&config, &dataset).unwrap();
        let headers = |value: &[u8]| {
            let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
            let record = Refused {
                offset: Offset(9),
                kafka_time: None,
                key: None,
                value: None,
                headers: vec![
                    header("origin", b"hush"),
                    header(REPLAYED, value),
                    header("highwater-user", b"hush"),
                ],
                reason: Reason::Empty,
                detail: "there is no value".to_owned(),
            };
            let headers = letters.headers(&Letter { partition: 0, record }, Kept::All);
            let of = |header: Header<'_, &[u8]>| {
                let value = String::from_utf8_lossy(header.value.unwrap_or_default());
                (header.key.to_owned(), value.into_owned())
            };
            headers.iter().map(of).collect::<Vec<_>>()
        };
        let kept = headers(b"t/0/4");
        assert_eq!(kept[0], (REPLAYED.to_owned(), "t/0/4".to_owned()));
        assert_eq!(kept.len(), 5, "{kept:?}");
        for other in [&b"hush"[..], b"hush/0/4"] {
            assert_eq!(headers(other), kept[1..]);
        }
    }
}
