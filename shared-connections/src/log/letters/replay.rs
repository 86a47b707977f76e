//! Refused records sent again, each with its marker in one transaction: either both are there or neither.
//!
//! The transactional id is the same for everybody who replays records of one topic. Whoever begins fences all others: a
//! transaction of theirs that is open is aborted, one that is being committed is waited for, and they can't begin another. So
//! the markers read *after* [`Replay::begin`] are all there will ever be but one's own, and nothing is sent twice because two
//! did it at once.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};

use super::{DATASET, Letter, OWN, REPLAYED, Record, SOURCE_TIME, letters_topic};
use crate::log::error::{LogError, code};
use crate::log::kafka::{Kafka, Listener, kafka_partition};

/// How long Kafka may take to let one begin: a rival's transaction may have to end first.
const BEGINNING: Duration = Duration::from_secs(60);
/// How long it may take for one transaction's end.
const ENDING: Duration = Duration::from_secs(60);
/// How often a transaction is tried that Kafka or librdkafka gave up.
const TRIES: u32 = 5;
/// How long librdkafka's queue may stay full.
const FULL: Duration = Duration::from_secs(10);
/// While it is: how long one look at it takes.
const LOOK: Duration = Duration::from_millis(50);
/// Says that a record was masked before, and is not to be masked twice.
const MASKED: &str = shared_schemas::decode::MASKED_HEADER;

/// What is decided here, whatever the user's properties say.
const PROPERTIES: [(&str, &str); 7] = [
    // Only what is too large by itself is too large for its topic.
    ("batch.num.messages", "1"),
    // The broker says what is too large; librdkafka's own limits would only be in the way.
    ("message.max.bytes", "1000000000"),
    ("queue.buffering.max.kbytes", "2097151"),
    // Readers wait for the end of an open transaction: one that was killed holds them up for no longer than this.
    ("transaction.timeout.ms", "20000"),
    ("message.timeout.ms", "15000"),
    ("linger.ms", "5"),
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// Why records could not be sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The producer can't be made.
    #[error(transparent)]
    Client(Box<LogError>),
    /// Kafka did not let it begin.
    #[error("records of topic {topic} can't be sent again: Kafka lets no transaction with id {id} begin")]
    Begin {
        /// The topic.
        topic: String,
        /// The transactional id.
        id: String,
        /// What Kafka says.
        source: Box<KafkaError>,
    },
    /// Somebody else replays records of this topic now.
    #[error("another replay of topic {topic} has begun since, and goes on instead of this one")]
    Fenced {
        /// The topic.
        topic: String,
    },
    /// A record or its marker was not accepted, and nothing of its transaction was sent.
    #[error("{source_of} can't be sent again")]
    NotAccepted {
        /// The record's source.
        source_of: String,
        /// What Kafka says.
        source: Box<KafkaError>,
    },
    /// The transaction was given up, for no record's sake, and nothing of it was sent.
    #[error("records can't be sent again now; just start again")]
    Aborted(#[source] Box<KafkaError>),
    /// The transaction's end is not known.
    #[error("it is not known whether the last records were sent again: what was sent is marked, so just start again")]
    Unknown(#[source] Box<KafkaError>),
}

/// A record that is to be sent again.
#[derive(Debug, Clone)]
pub struct Resend {
    /// Its letter.
    pub letter: Letter,
    /// The partition it goes to; `None` leaves that to its key.
    pub partition: Option<u32>,
    /// Key, value and headers; the headers may still have Highwater's own among them.
    pub record: Record,
}

/// Where a record went: the partition, and the offset.
pub type Sent = (u32, u64);

/// Sends records of one topic again.
pub struct Replay {
    producer: FutureProducer<Listener>,
    topic: String,
    letters: String,
}

impl Replay {
    /// Fences all others. Blocks.
    ///
    /// # Errors
    /// Kafka's, after a minute if it is away.
    pub fn begin(kafka: &Kafka, topic: &str) -> Result<Self, ReplayError> {
        let id = kafka.group(&format!("replay-{topic}"));
        let mut config = kafka.producer_config();
        for (name, value) in PROPERTIES {
            config.set(name, value);
        }
        config.set("transactional.id", &id);
        let producer: FutureProducer<Listener> = config
            .create_with_context(Listener)
            .map_err(|error| ReplayError::Client(Box::new(LogError::of_client(error))))?;
        producer
            .init_transactions(BEGINNING)
            .map_err(|source| ReplayError::Begin {
                topic: topic.to_owned(),
                id,
                source: Box::new(source),
            })?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            letters: letters_topic(topic),
        })
    }

    /// Sends all of them and their markers, or none; where each went. Blocks.
    ///
    /// # Errors
    /// [`ReplayError::NotAccepted`] names the record that keeps the others from being sent, where it is known.
    pub fn send(&self, records: &[Resend]) -> Result<Vec<Sent>, ReplayError> {
        for _ in 1..TRIES {
            match self.try_send(records) {
                // Nothing of it was sent. After a record that was not accepted librdkafka may need another sequence.
                Err(ReplayError::Aborted(why)) => tracing::debug!(error = %why, "a transaction is tried again"),
                other => return other,
            }
        }
        self.try_send(records)
    }

    fn try_send(&self, records: &[Resend]) -> Result<Vec<Sent>, ReplayError> {
        self.producer.begin_transaction().map_err(|error| self.fault(error))?;
        let mut waiting = Vec::with_capacity(records.len());
        let mut failure = None;
        for resend in records {
            match self.hand_over(resend) {
                Ok(deliveries) => waiting.push((resend, deliveries)),
                Err(error) => {
                    failure = Some((resend, error));
                    break;
                }
            }
        }
        if let Some((resend, error)) = failure {
            self.abort(&error)?;
            return Err(self.not_accepted(resend, error));
        }
        let committed = self.producer.commit_transaction(ENDING);
        let Err(error) = committed else {
            return waiting.into_iter().map(|(resend, of)| self.sent(resend, of)).collect();
        };
        match &error {
            KafkaError::Transaction(why) if why.txn_requires_abort() => {
                self.abort(&error)?;
                // All have failed now; the first one that was not just taken down with it is the reason.
                let failed = waiting.into_iter().find_map(|(resend, deliveries)| {
                    let failed = deliveries.into_iter().filter_map(|delivery| outcome(delivery).err());
                    let own = failed.into_iter().find(|error| !is_purged(error));
                    own.map(|error| (resend, error))
                });
                Err(match failed {
                    Some((resend, error)) => self.not_accepted(resend, error),
                    None if self.is_fenced(&error) => self.fault(error),
                    None => ReplayError::Aborted(Box::new(error)),
                })
            }
            _ => Err(self.fault(error)),
        }
    }

    /// Gives librdkafka the record, then its marker.
    fn hand_over(&self, resend: &Resend) -> Result<[DeliveryFuture; 2], KafkaError> {
        let Resend {
            letter,
            partition,
            record,
        } = resend;
        let source = letter.source.to_string();
        let mut again = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers(record, &source));
        again.partition = partition.map(kafka_partition);
        again.key = record.key.as_deref();
        again.payload = record.value.as_deref();
        let mut about = OwnedHeaders::new()
            .insert(Header {
                key: DATASET,
                value: Some(&letter.dataset),
            })
            .insert(Header {
                key: REPLAYED,
                value: Some(&source),
            });
        if let Some(time) = &letter.source_time {
            about = about.insert(Header {
                key: SOURCE_TIME,
                value: Some(time),
            });
        }
        let marker = FutureRecord::<[u8], [u8]>::to(&self.letters)
            .partition(kafka_partition(letter.partition))
            .headers(about);
        Ok([self.queue(again)?, self.queue(marker)?])
    }

    fn queue(&self, mut record: FutureRecord<'_, [u8], [u8]>) -> Result<DeliveryFuture, KafkaError> {
        let began = Instant::now();
        loop {
            match self.producer.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) if began.elapsed() < FULL => {
                    record = back;
                    self.producer.poll(LOOK);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn sent(&self, resend: &Resend, [record, marker]: [DeliveryFuture; 2]) -> Result<Sent, ReplayError> {
        let place = outcome(record).and_then(|place| outcome(marker).map(|_| place));
        // A transaction that is committed has delivered all; this can't fail.
        let place = place.map_err(|error| self.not_accepted(resend, error))?;
        let partition = u32::try_from(place.partition).unwrap_or_default();
        Ok((partition, u64::try_from(place.offset).unwrap_or_default()))
    }

    fn abort(&self, why: &KafkaError) -> Result<(), ReplayError> {
        tracing::debug!(error = %why, "a replay's transaction is given up");
        self.producer
            .abort_transaction(ENDING)
            .map_err(|error| self.fault(error))
    }

    fn not_accepted(&self, resend: &Resend, source: KafkaError) -> ReplayError {
        if self.is_fenced(&source) {
            return self.fault(source);
        }
        ReplayError::NotAccepted {
            source_of: resend.letter.source.to_string(),
            source: Box::new(source),
        }
    }

    fn fault(&self, error: KafkaError) -> ReplayError {
        if self.is_fenced(&error) {
            ReplayError::Fenced {
                topic: self.topic.clone(),
            }
        } else {
            ReplayError::Unknown(Box::new(error))
        }
    }

    /// After it was fenced every call fails, some without saying why.
    fn is_fenced(&self, error: &KafkaError) -> bool {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        [code(error), fatal]
            .into_iter()
            .flatten()
            .any(|code| matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch))
    }
}

/// The record's own headers, and from where it comes.
fn headers(record: &Record, source: &str) -> OwnedHeaders {
    let own = record
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(OWN) || name == MASKED);
    let headers = own.fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: value.as_deref(),
        })
    });
    headers.insert(Header {
        key: REPLAYED,
        value: Some(source),
    })
}

/// What became of a record that was handed over; its transaction has ended, so it does not wait long.
fn outcome(delivery: DeliveryFuture) -> Result<Delivery, KafkaError> {
    match futures::executor::block_on(delivery) {
        Ok(Ok(delivery)) => Ok(delivery),
        Ok(Err((error, _))) => Err(error),
        Err(_) => Err(KafkaError::Canceled),
    }
}

/// Whether it only failed with its transaction.
fn is_purged(error: &KafkaError) -> bool {
    matches!(code(error), Some(Code::PurgeQueue | Code::PurgeInflight))
}
