//! How to reach Kafka, and what can be asked of it.
//!
//! Questions go through a client of their own. On a reader's connection they would wait behind its fetch request, which
//! the broker holds back until there are records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataPartition;
use rdkafka::{ClientContext, Offset as KafkaOffset, TopicPartitionList};
use shared_schemas::config::KafkaConfig;
use shared_schemas::handoff::{Offset, OffsetRange, TopicId};

use super::error::LogError;
use super::topic_id;
use crate::{delays, sentence};

/// How long one question may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// What asking for a log's bounds is in messages.
const TELL: &str = "tell the offsets of topic";
/// How many of librdkafka's log lines are taken after a question. They would pile up in a client that is only asked.
const LINES: usize = 64;

/// What every client of ours is, whatever the user's properties say. `read_committed` makes the ends of logs the last
/// stable offsets.
const CONSUMER: [(&str, &str); 6] = [
    ("allow.auto.create.topics", "false"),
    ("auto.offset.reset", "error"),
    ("check.crcs", "true"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("isolation.level", "read_committed"),
];

/// A reader is one, and how much librdkafka fetches ahead of it.
const READER: [(&str, &str); 6] = [
    ("enable.partition.eof", "false"),
    // 6 MiB, and at most one more response of 8 MiB. With 4 MiB it takes seconds until each partition has its turn.
    ("queued.max.messages.kbytes", "6144"),
    ("fetch.max.bytes", "8388608"),
    // What comes is compressed: with 1 MiB of each of 8 partitions a response takes 40 MB once it is unpacked. With 256 KiB eight and more
    // partitions are read a tenth slower.
    ("max.partition.fetch.bytes", "524288"),
    ("queued.min.messages", "100000"),
    // By default a full queue is filled again after a second: a fast reader would wait for most of it.
    ("fetch.queue.backoff.ms", "5"),
];

/// A producer of ours: each record is in the log once, in the order in which it was sent, when it is acknowledged. At most
/// 32 MiB or 100,000 records wait; then whoever sends must wait too.
const PRODUCER: [(&str, &str); 4] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("queue.buffering.max.kbytes", "32768"),
    ("queue.buffering.max.messages", "100000"),
];

/// What a producer is unless the user's properties say otherwise.
const PRODUCER_DEFAULTS: [(&str, &str); 3] = [
    // A batch of events shrinks to a fraction, for little work.
    ("compression.type", "lz4"),
    ("message.timeout.ms", "120000"),
    // As Kafka's own client does it: an event lies in the same partition whoever sent it.
    ("partitioner", "murmur2_random"),
];

/// So often must a log be found to begin or end where it can't by what was read from it,
const SURE: usize = 3;
/// so long after each other, until it is believed.
const SURE_AFTER: Duration = Duration::from_millis(500);

/// How to reach Kafka. Clones share one client.
#[derive(Clone)]
pub struct Kafka {
    inner: Arc<Inner>,
}

struct Inner {
    /// The brokers and the user's properties.
    config: ClientConfig,
    brokers: String,
    group: String,
    client: BaseConsumer<Listener>,
}

/// One incarnation of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// Kafka's id of it: another one if the topic is deleted and made again.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kafka({}, {})", self.inner.brokers, self.inner.group)
    }
}

impl Kafka {
    /// The configured one. It need not be there yet.
    ///
    /// # Errors
    /// A property that librdkafka does not know, or a value that it refuses.
    pub fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        let brokers = config.bootstrap_servers();
        let mut properties = ClientConfig::new();
        properties.set("client.id", "highwater");
        for (name, value) in &config.properties {
            properties.set(name, value.reveal());
        }
        properties.set("bootstrap.servers", &brokers);
        let mut asking = properties.clone();
        set_all(&mut asking, &CONSUMER);
        let client = asking
            .remove("group.id")
            .create_with_context(Listener)
            .map_err(LogError::of_client)?;
        Ok(Self {
            inner: Arc::new(Inner {
                config: properties,
                brokers,
                group: config.group.clone(),
                client,
            }),
        })
    }

    /// The configured brokers, separated by commas.
    pub fn brokers(&self) -> &str {
        &self.inner.brokers
    }

    /// The name of a layer's consumer group: `<group>-<layer>`.
    pub fn group(&self, layer: &str) -> String {
        format!("{}-{layer}", self.inner.group)
    }

    /// The topic as it is now.
    ///
    /// # Errors
    /// [`LogError::NoTopic`] if there is none of that name; [`LogError::Away`] if nothing answers within seconds.
    pub async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let name = name.to_owned();
        self.ask(move |kafka| kafka.topic_now(&name)).await
    }

    /// The topic as it is now. Where nothing answers yet it asks again for about that long: a stack may still be starting.
    ///
    /// # Errors
    /// As [`Kafka::topic`].
    pub async fn topic_within(&self, name: &str, patience: Duration) -> Result<Topic, LogError> {
        let started = Instant::now();
        let mut pauses = delays(Duration::from_millis(100), Duration::from_secs(2));
        let mut told = false;
        loop {
            let error = match self.topic(name).await {
                Err(error) if error.is_passing() => error,
                answer => return answer,
            };
            let pause = pauses.next().unwrap_or_default();
            if started.elapsed() + pause > patience {
                return Err(error);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("{}; trying for {} s", sentence(&error), patience.as_secs());
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The partition's log: from the first offset that it still has to its end, which is the last stable offset: records
    /// of open transactions lie above it.
    ///
    /// # Errors
    /// [`LogError::NoTopic`], [`LogError::NoPartition`]; [`LogError::Away`] if nothing answers within seconds.
    pub async fn bounds(&self, topic: &str, partition: u32) -> Result<OffsetRange, LogError> {
        let topic = topic.to_owned();
        self.ask(move |kafka| kafka.bounds_now(&topic, partition)).await
    }

    /// Whether the partition's log ends below that offset, also when asked again: one that has just got another leader may
    /// not know its end at once.
    ///
    /// # Errors
    /// As [`Kafka::bounds`].
    pub async fn still_ends_below(&self, topic: &str, partition: u32, offset: Offset) -> Result<bool, LogError> {
        let topic = topic.to_owned();
        let is_below = move |log: OffsetRange| log.to < offset;
        let log = self
            .ask(move |kafka| kafka.bounds_for_sure(&topic, partition, is_below, || true))
            .await?;
        Ok(is_below(log))
    }

    /// The first offset whose record has that Kafka timestamp, in milliseconds since 1970, or a later one; the log's end
    /// if none has. Records that come while this is asked may be beyond it, never below.
    ///
    /// # Errors
    /// As [`Kafka::bounds`].
    pub async fn offset_at(&self, topic: &str, partition: u32, millis: i64) -> Result<Offset, LogError> {
        let topic = topic.to_owned();
        self.ask(move |kafka| kafka.offset_at_now(&topic, partition, millis))
            .await
    }

    /// Runs a question, which blocks, away from the async threads.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Self) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let kafka = self.clone();
        let answer = tokio::task::spawn_blocking(move || question(&kafka)).await;
        answer.unwrap_or_else(|_| {
            let doing = "be asked while the program ends".to_owned();
            Err(LogError::refused(self.brokers(), doing, KafkaError::Canceled))
        })
    }

    /// As [`Kafka::topic`]; blocks.
    pub(super) fn topic_now(&self, name: &str) -> Result<Topic, LogError> {
        self.answered(name, None, "describe topic", |client| {
            // Whether a broker answers at all. librdkafka (2.12) tries to reach one that is away without any pause as long as an
            // admin request waits for it: thousands of times a second, on two cores.
            client.fetch_metadata(Some(name), PATIENCE)?;
            topic_id::describe(client, name, PATIENCE)
        })
    }

    /// As [`Kafka::bounds`]; blocks.
    pub(super) fn bounds_now(&self, topic: &str, partition: u32) -> Result<OffsetRange, LogError> {
        let ask = || {
            self.answered(topic, Some(partition), TELL, |client| {
                let (low, high) = client.fetch_watermarks(topic, kafka_partition(partition), PATIENCE)?;
                Ok(OffsetRange {
                    from: offset(low),
                    to: offset(high),
                })
            })
        };
        match ask() {
            // librdkafka says so of a topic that is not there, of a partition without a leader too, and, for minutes, of one
            // that had none when it last looked.
            Err(LogError::NoPartition { .. }) => self.leader_now(topic, partition)?,
            answer => return answer,
        }
        match ask() {
            // It was there just now.
            Err(LogError::NoPartition { .. }) => Err(LogError::refused(
                self.brokers(),
                format!("{TELL} {topic}"),
                KafkaError::MetadataFetch(Code::LeaderNotAvailable),
            )),
            answer => answer,
        }
    }

    /// Makes the client look anew for the partition's leader, and fails if it has none; blocks.
    fn leader_now(&self, topic: &str, partition: u32) -> Result<(), LogError> {
        self.answered(
            topic,
            Some(partition),
            "find the leader of a partition of topic",
            |client| {
                let found = client.fetch_metadata(Some(topic), PATIENCE)?;
                let found = found.topics().first().ok_or(KafkaError::NoMessageReceived)?;
                if let Some(error) = found.error() {
                    let code = match error.into() {
                        Code::UnknownTopicOrPartition => Code::UnknownTopic,
                        code => code,
                    };
                    return Err(KafkaError::MetadataFetch(code));
                }
                let number = kafka_partition(partition);
                let found = found.partitions().iter().find(|found| found.id() == number);
                match found.map(MetadataPartition::leader) {
                    None => Err(KafkaError::MetadataFetch(Code::UnknownPartition)),
                    Some(..0) => Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable)),
                    Some(_) => Ok(()),
                }
            },
        )
    }

    /// As [`Kafka::bounds`], but where they are hard to believe they are asked for more than once, as long as `goes_on`: a
    /// broker that has just become a leader may not know its end, and brokers that answer with errors were seen to make
    /// librdkafka tell a log's end for its beginning. Blocks.
    pub(super) fn bounds_for_sure(
        &self,
        topic: &str,
        partition: u32,
        are_doubtful: impl Fn(OffsetRange) -> bool,
        goes_on: impl Fn() -> bool,
    ) -> Result<OffsetRange, LogError> {
        let mut log = self.bounds_now(topic, partition)?;
        for _ in 1..SURE {
            if !are_doubtful(log) || !goes_on() {
                break;
            }
            std::thread::park_timeout(SURE_AFTER);
            log = self.bounds_now(topic, partition)?;
        }
        Ok(log)
    }

    fn offset_at_now(&self, topic: &str, partition: u32, millis: i64) -> Result<Offset, LogError> {
        // The end comes first: a record that arrives in between is then at or above it.
        let end = self.bounds_now(topic, partition)?.to;
        let found = self.answered(topic, Some(partition), "find a time in topic", |client| {
            let mut times = TopicPartitionList::new();
            // Negative numbers have meanings of their own there.
            let time = KafkaOffset::Offset(millis.max(0));
            times.add_partition_offset(topic, kafka_partition(partition), time)?;
            let found = client.offsets_for_times(times, PATIENCE)?;
            let found = found.elements();
            let found = found.first().ok_or(KafkaError::NoMessageReceived)?;
            found.error()?;
            Ok(found.offset())
        })?;
        Ok(match found {
            KafkaOffset::Offset(found) => offset(found),
            _ => end,
        })
    }

    fn answered<T>(
        &self,
        topic: &str,
        partition: Option<u32>,
        doing: &str,
        question: impl FnOnce(&BaseConsumer<Listener>) -> KafkaResult<T>,
    ) -> Result<T, LogError> {
        let client = &self.inner.client;
        let answer = question(client);
        for _ in 0..LINES {
            let _ = client.poll(Duration::ZERO);
        }
        answer.map_err(|source| LogError::of_question(&self.inner.brokers, topic, partition, doing, source))
    }

    /// A client that reads, and commits to the group.
    pub(super) fn consumer(&self, group: String) -> Result<BaseConsumer<Listener>, LogError> {
        self.reader_config(group)
            .create_with_context(Listener)
            .map_err(LogError::of_client)
    }

    /// A client that reads topics of dead letters, and is told where they end.
    pub(super) fn letters_consumer(&self) -> Result<BaseConsumer<Listener>, LogError> {
        // librdkafka wants a group of whoever reads; nothing is ever committed to it.
        let mut config = self.reader_config(self.group("status"));
        config.set("enable.partition.eof", "true");
        config.create_with_context(Listener).map_err(LogError::of_client)
    }

    /// The properties of a member of a group, which fetches nothing.
    pub(super) fn member_config(&self, group: String) -> ClientConfig {
        let mut config = self.inner.config.clone();
        set_all(&mut config, &CONSUMER);
        config.set("group.id", group);
        config
    }

    fn reader_config(&self, group: String) -> ClientConfig {
        let mut config = self.member_config(group);
        set_all(&mut config, &READER);
        // Whoever takes batches polls no log, and librdkafka would write to stderr: what matters is told by the reader.
        config.set_log_level(RDKafkaLogLevel::Critical);
        config
    }

    /// The properties of a producer to this cluster that loses and doubles nothing by itself.
    pub fn producer_config(&self) -> ClientConfig {
        let mut config = self.inner.config.clone();
        for (name, value) in PRODUCER_DEFAULTS {
            if config.get(name).is_none() {
                config.set(name, value);
            }
        }
        set_all(&mut config, &PRODUCER);
        config
    }
}

fn set_all(config: &mut ClientConfig, properties: &[(&str, &str)]) {
    for (name, value) in properties {
        config.set(*name, *value);
    }
}

/// Kafka's number; one that it can't have is answered as unknown.
pub(super) fn kafka_partition(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// Kafka's offset; never negative where it stands for a record or an end.
pub(super) fn offset(raw: i64) -> Offset {
    Offset(u64::try_from(raw).unwrap_or_default())
}

/// What librdkafka says of itself goes to the debug log: whoever asked or reads tells what matters, once.
pub(super) struct Listener;

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Listener {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Nothing depends on it, and the next one covers it.
            tracing::debug!(%error, "a commit for lag monitoring failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::config::Config;
    use std::path::Path;

    use super::*;

    fn kafka(text: &str) -> Result<Kafka, LogError> {
        Kafka::new(&Config::parse(text, "test.toml", Path::new(""), &|_| None).config.kafka)
    }

    #[test]
    fn a_bad_property_is_named_and_its_value_is_not() {
        let unknown = kafka("[kafka.properties]\n\"fetch.mni.bytes\" = \"hidden\"\n")
            .unwrap_err()
            .to_string();
        assert_eq!(
            unknown,
            "kafka.properties: librdkafka has no property `fetch.mni.bytes`: see its CONFIGURATION.md"
        );
        let refused = kafka("[kafka.properties]\n\"fetch.min.bytes\" = \"hidden\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("`fetch.min.bytes`") && !refused.contains("hidden"),
            "{refused}"
        );
    }

    #[test]
    fn what_the_reader_relies_on_cannot_be_configured_away() {
        let kafka =
            kafka("[kafka.properties]\n\"isolation.level\" = \"read_uncommitted\"\n\"group.id\" = \"x\"\n").unwrap();
        let reader = kafka.reader_config(kafka.group("speed"));
        assert_eq!(reader.get("isolation.level"), Some("read_committed"));
        assert_eq!(reader.get("group.id"), Some("highwater-speed"));
        assert_eq!(kafka.producer_config().get("enable.idempotence"), Some("true"));
        assert_eq!(kafka.group("speed"), "highwater-speed");
    }
}
