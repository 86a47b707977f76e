//! Topics that are filled before the clock runs, and remembered with the folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use backon::{ExponentialBuilder, Retryable};
use local_stack::kafka::client::{self, Quiet};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use serde::{Deserialize, Serialize};
use shared_connections::log::LogError;
use shared_schemas::handoff::Offset;
use tokio_util::sync::CancellationToken;

use super::events::{A_SECOND, Events};
use super::figure::number;
use super::site::Site;

/// Threads that fill a topic: one for each core of the machine that is aimed at.
const THREADS: u64 = 2;
/// Events between two looks at what Kafka has acknowledged.
const LOOK_EVERY: u64 = 4096;
/// How long Kafka may take for the last events, or for making a topic.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whether it was cancelled is looked at so often while the last events are on their way.
const SHORT: Duration = Duration::from_millis(100);
/// While librdkafka's queue is full.
const PAUSE: Duration = Duration::from_millis(5);

/// A producer that is after throughput: large batches. `producer_config` has the rest: idempotent, lz4, all acknowledged.
const BULK: [(&str, &str); 5] = [
    ("linger.ms", "20"),
    ("batch.size", "983040"),
    ("batch.num.messages", "20000"),
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "131072"),
];

/// A topic of events 0, 1, 2, …; number `n` is in partition `n % partitions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    /// How many it was filled with.
    pub(crate) events: u64,
    /// Event time of number 0, in seconds since 1970; a whole minute.
    pub(crate) first: i64,
}

impl Topic {
    /// Makes an empty one whose number 0 has that time, or the minute it lies in; with these properties.
    pub(crate) async fn create(
        site: &Site,
        partitions: u32,
        first: i64,
        properties: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let name = format!("flights-{partitions}-{:08x}", fastrand::u32(..));
        let admin: AdminClient<Quiet> = client::config(site.brokers(), &[])
            .create_with_context(Quiet)
            .context("no client of Kafka can be made")?;
        let count = i32::try_from(partitions)?;
        let mut new = NewTopic::new(&name, count, TopicReplication::Fixed(1));
        for (key, value) in properties {
            new = new.set(key, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(PATIENCE))
            .operation_timeout(Some(PATIENCE));
        let outcomes = admin.create_topics([&new], &options).await?;
        for outcome in outcomes {
            outcome.map_err(|(name, code)| anyhow!("topic {name} can't be made: {code}"))?;
        }
        Ok(Self {
            name,
            partitions,
            events: 0,
            first: first - first.rem_euclid(60),
        })
    }

    /// One of so many events: an earlier bench's in this folder, or a new one, with how fast it was filled.
    pub(crate) async fn filled(
        site: &Site,
        partitions: u32,
        events: u64,
        cancel: &CancellationToken,
    ) -> anyhow::Result<(Self, Option<f64>)> {
        let mut known = remembered(site.folder());
        let alike = |topic: &&Topic| topic.partitions == partitions && topic.events == events;
        if let Some(topic) = known.iter().find(alike)
            && topic.is_whole(site).await?
        {
            return Ok((topic.clone(), None));
        }
        // All of them lie in the past, so none is refused as one of the future.
        let length = i64::try_from(events / A_SECOND)?;
        let first = chrono::Utc::now().timestamp() - length - 120;
        // Kept until the folder goes.
        let keep = [("retention.ms", "-1"), ("retention.bytes", "-1")];
        let mut topic = Self::create(site, partitions, first, &keep).await?;
        tracing::info!("filling topic {} with {events} events", topic.name);
        let began = Instant::now();
        topic.append(site, events, cancel).await?;
        let rate = number(events) / began.elapsed().as_secs_f64();
        ensure!(
            topic.is_whole(site).await?,
            "topic {} has not all events that Kafka acknowledged",
            topic.name
        );
        tracing::info!("{rate:.0} events/s were written");
        known.push(topic.clone());
        remember(site.folder(), &known)?;
        Ok((topic, Some(rate)))
    }

    /// Sends the next so many events, from several threads, and waits until Kafka has them.
    async fn append(&mut self, site: &Site, events: u64, cancel: &CancellationToken) -> anyhow::Result<()> {
        let numbers = self.events..self.events + events;
        let senders = (0..THREADS).map(|thread| {
            let mut sender = Sender::bulk(site, self, cancel)?;
            let mine = numbers.clone().filter(move |number| number % THREADS == thread);
            Ok(tokio::task::spawn_blocking(move || {
                mine.into_iter().try_for_each(|number| sender.send(number))?;
                sender.finish()
            }))
        });
        let senders: Vec<_> = senders.collect::<anyhow::Result<_>>()?;
        for sender in senders {
            sender.await??;
        }
        self.events += events;
        Ok(())
    }

    /// Whether Kafka has all of it, from the first event on.
    async fn is_whole(&self, site: &Site) -> anyhow::Result<bool> {
        let mut events = 0;
        for partition in 0..self.partitions {
            // A broker that has just started may still be choosing the partition's leader.
            let asked = (async || site.kafka().bounds(&self.name, partition).await)
                .retry(
                    ExponentialBuilder::default()
                        .with_total_delay(Some(PATIENCE))
                        .without_max_times(),
                )
                .when(LogError::is_passing)
                .await;
            match asked {
                Ok(bounds) if bounds.from == Offset(0) => events += bounds.to.0,
                Ok(_) | Err(LogError::NoTopic { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(events == self.events)
    }
}

fn register(folder: &Path) -> PathBuf {
    folder.join("bench").join("topics.json")
}

/// The topics that this folder has. One that can't be read is as good as none.
fn remembered(folder: &Path) -> Vec<Topic> {
    let text = std::fs::read(register(folder)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn remember(folder: &Path, topics: &[Topic]) -> anyhow::Result<()> {
    let path = register(folder);
    std::fs::create_dir_all(folder.join("bench"))
        .and_then(|()| std::fs::write(&path, serde_json::to_vec_pretty(topics)?))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Sends events of a topic, from one thread.
pub(crate) struct Sender {
    producer: BaseProducer<Deliveries>,
    topic: String,
    partitions: u64,
    events: Events,
    sent: u64,
    cancel: CancellationToken,
}

impl Sender {
    /// With these properties besides those of all producers. Once cancelled it fails: nobody waits for it any more.
    pub(crate) fn new(
        site: &Site,
        topic: &Topic,
        properties: &[(&str, &str)],
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut config = site.kafka().producer_config();
        for (key, value) in properties {
            config.set(*key, *value);
        }
        Ok(Self {
            producer: config
                .create_with_context(Deliveries::default())
                .context("no producer can be made")?,
            topic: topic.name.clone(),
            partitions: topic.partitions.into(),
            events: Events::since(topic.first),
            sent: 0,
            cancel: cancel.clone(),
        })
    }

    /// With these properties, after throughput.
    pub(crate) fn bulk(site: &Site, topic: &Topic, cancel: &CancellationToken) -> anyhow::Result<Self> {
        Self::new(site, topic, &BULK, cancel)
    }

    /// Hands the event to librdkafka. Waits while its queue is full.
    pub(crate) fn send(&mut self, number: u64) -> anyhow::Result<()> {
        self.sent += 1;
        if self.sent.is_multiple_of(LOOK_EVERY) {
            self.look()?;
        }
        let partition = i32::try_from(number % self.partitions)?;
        let mut record = BaseRecord::<(), [u8]>::to(&self.topic)
            .partition(partition)
            .payload(self.events.event(number));
        loop {
            record = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => back,
                Err((error, _)) => return Err(error).context("an event can't be sent"),
            };
            look(&self.producer, &self.cancel, PAUSE)?;
        }
    }

    /// Takes in what was delivered.
    pub(crate) fn look(&self) -> anyhow::Result<()> {
        look(&self.producer, &self.cancel, Duration::ZERO)
    }

    /// Waits until Kafka has all.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.producer.flush(SHORT).is_err() {
            self.look()?;
            ensure!(began.elapsed() < PATIENCE, "Kafka does not acknowledge the last events");
        }
        self.look()?;
        let delivered = self.producer.context().delivered.load(Ordering::Acquire);
        ensure!(
            delivered == self.sent,
            "{delivered} of {} events were delivered",
            self.sent
        );
        Ok(())
    }
}

fn look(producer: &BaseProducer<Deliveries>, cancel: &CancellationToken, wait: Duration) -> anyhow::Result<()> {
    producer.poll(wait);
    let failed = producer.context().failed.load(Ordering::Acquire);
    ensure!(!failed, "Kafka did not take an event");
    ensure!(!cancel.is_cancelled(), "cancelled");
    Ok(())
}

/// What became of what was sent.
#[derive(Debug, Default)]
struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicBool,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        match delivered {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::AcqRel);
            }
            Err((error, _)) => {
                tracing::debug!(%error, "an event was not delivered");
                self.failed.store(true, Ordering::Release);
            }
        }
    }
}
