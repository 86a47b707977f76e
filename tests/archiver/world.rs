//! A topic of its own, an archive of its own, and what writes and looks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use highwater_batch::archive::{Archive, Commit, Pinned, ServeError, serve};
use highwater_tests::stack::{PATIENCE, Site, shared, unique};
use local_stack::topics::{self, Partitions, Topic};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, TopicPartitionList};
use shared_connections::log::Kafka;
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange, Partition, TopicId};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const POLL: Duration = Duration::from_millis(20);

/// The dataset's fields.
pub(super) const FIELDS: &str = "n = \"int64\"\nat = \"timestamp\"\n";

/// An event: its day depends on its number.
pub(super) fn event(number: u64) -> String {
    format!(
        "{{\"n\": {number}, \"at\": \"2013-11-0{}T12:00:00Z\", \"more\": true}}",
        1 + number % 2
    )
}

pub(super) struct World {
    folder: TempDir,
    brokers: String,
    topic: String,
    fields: String,
    config: Config,
    definitions: Definitions,
    kafka: Kafka,
}

/// A dead letter as it lies in its topic.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Option<String>)>,
}

impl Letter {
    /// The last header of that name.
    pub(super) fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().rfind(|(known, _)| known == name);
        header.and_then(|(_, value)| value.as_deref()).unwrap_or_default()
    }
}

/// An archiver at work.
pub(super) struct Running {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// Its end, by itself.
    pub(super) async fn ended(self) -> Result<(), ServeError> {
        self.task.await.unwrap()
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.task).await???;
        Ok(())
    }

    /// Ends it at whatever it awaits.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl World {
    /// A topic with that many partitions, and one for its dead letters.
    pub(super) async fn new(partitions: u32) -> anyhow::Result<Self> {
        let world = Self::empty().await?;
        let wanted = Topic::of_dataset(&world.topic, partitions, 1 << 20);
        topics::ensure(&world.brokers, &[], &wanted).await?;
        Ok(world)
    }

    /// One partition, and no topic for dead letters.
    pub(super) async fn without_letters() -> anyhow::Result<Self> {
        let world = Self::empty().await?;
        let [own, _] = Topic::of_dataset(&world.topic, 1, 1 << 20);
        topics::ensure(&world.brokers, &[], &[own]).await?;
        Ok(world)
    }

    async fn empty() -> anyhow::Result<Self> {
        let (folder, topic) = (TempDir::new()?, unique("archiver"));
        let brokers = shared().await?.addresses().kafka.clone();
        let group = unique("group");
        let text = format!(
            "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n\
             [archive]\nurl = \"file:archive\"\ncommit_every = \"100ms\"\n"
        );
        let reading = Config::parse(&text, "test.toml", folder.path(), &|_| None);
        ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
        Ok(Self {
            definitions: definitions(&topic, FIELDS)?,
            fields: FIELDS.to_owned(),
            kafka: Kafka::new(&reading.config.kafka)?,
            config: reading.config,
            folder,
            brokers,
            topic,
        })
    }

    /// From now on archivers keep their archives tidy at these times.
    pub(super) fn optimize(&mut self, times: &str) -> anyhow::Result<()> {
        let text = format!("[archive]\noptimize = \"{times}\"\n");
        let reading = Config::parse(&text, "test.toml", self.folder.path(), &|_| None);
        ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
        self.config.archive.optimize = reading.config.archive.optimize;
        Ok(())
    }

    /// Waits until the newest version is of so many files.
    pub(super) async fn until_files(&self, files: usize) -> anyhow::Result<()> {
        let are_so_many = || async {
            let pinned = self.pin().await.ok()?;
            (pinned.ranges().len() == files).then_some(())
        };
        eventually("so many files", are_so_many).await
    }

    /// The same with other fields in the dataset.
    pub(super) fn with_fields(mut self, fields: &str) -> anyhow::Result<Self> {
        self.definitions = definitions(&self.topic, fields)?;
        self.fields = fields.to_owned();
        Ok(self)
    }

    /// A folder in which `highwater` finds this world.
    pub(super) fn site(&self) -> anyhow::Result<Site> {
        let site = Site::with_addresses(&self.brokers, "http://127.0.0.1:1")?;
        let group = &self.config.kafka.group;
        let config = format!("[kafka]\nbrokers = \"{}\"\ngroup = \"{group}\"\n", self.brokers);
        std::fs::write(site.path().join("highwater.toml"), config)?;
        std::fs::write(
            site.path().join("definitions/flights.toml"),
            text(&self.topic, &self.fields),
        )?;
        Ok(site)
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    fn letters_topic(&self) -> String {
        format!("{}.dead-letters", self.topic)
    }

    pub(super) fn table(&self) -> PathBuf {
        Path::new(self.folder.path()).join("archive/flights")
    }

    pub(super) fn start(&self) -> anyhow::Result<Running> {
        let cancel = CancellationToken::new();
        let (config, definitions, token) = (self.config.clone(), self.definitions.clone(), cancel.clone());
        let kafka = Kafka::new(&self.config.kafka)?;
        let task = tokio::spawn(async move { serve(&config, &definitions, &kafka, token).await });
        Ok(Running { cancel, task })
    }

    pub(super) fn client(&self, properties: &[(&str, &str)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers);
        for (name, value) in properties {
            client.set(*name, *value);
        }
        client
    }

    pub(super) async fn send(&self, partition: i32, values: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let producer: FutureProducer = self.client(&[]).create()?;
        let values: Vec<_> = values.into_iter().collect();
        let sent = values.iter().map(|value| {
            let record = FutureRecord::<(), _>::to(&self.topic).partition(partition);
            producer.send(record.payload(value), PATIENCE)
        });
        for sent in futures::future::join_all(sent).await {
            sent.map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    fn admin(&self) -> anyhow::Result<(AdminClient<DefaultClientContext>, AdminOptions)> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        Ok((self.client(&[]).create()?, options))
    }

    pub(super) async fn delete_below(&self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let (admin, options) = self.admin()?;
        let mut below = TopicPartitionList::new();
        below.add_partition_offset(&self.topic, partition, rdkafka::Offset::Offset(offset))?;
        for element in admin.delete_records(&below, &options).await?.elements() {
            element.error()?;
        }
        Ok(())
    }

    pub(super) async fn add_partitions(&self, all: usize) -> anyhow::Result<()> {
        let (admin, options) = self.admin()?;
        let added = admin
            .create_partitions([&NewPartitions::new(&self.topic, all)], &options)
            .await?;
        for added in added {
            added.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic {
            name: self.topic.clone(),
            partitions: Partitions::Exactly(u32::try_from(all)?),
            max_value: 1 << 20,
        };
        let grown = async {
            while topics::ensure(&self.brokers, &[], std::slice::from_ref(&wanted))
                .await
                .is_err()
            {}
        };
        tokio::time::timeout(PATIENCE, grown).await?;
        Ok(())
    }

    pub(super) async fn make_again(&self, partitions: u32) -> anyhow::Result<()> {
        let (admin, options) = self.admin()?;
        for deleted in admin.delete_topics(&[&self.topic], &options).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic::of_dataset(&self.topic, partitions, 1 << 20);
        // The broker goes on naming a deleted topic for a moment.
        let made = async { while topics::ensure(&self.brokers, &[], &wanted).await.is_err() {} };
        tokio::time::timeout(PATIENCE, made).await?;
        Ok(())
    }

    pub(super) async fn make_letters(&self) -> anyhow::Result<()> {
        let [_, letters] = Topic::of_dataset(&self.topic, 1, 1 << 20);
        topics::ensure(&self.brokers, &[], &[letters]).await?;
        Ok(())
    }

    /// Lets the dead-letter topic take no larger batches.
    pub(super) async fn limit_letters(&self, bytes: usize) -> anyhow::Result<()> {
        self.limit(&self.letters_topic(), bytes).await
    }

    /// Lets a topic take no larger batches.
    pub(super) async fn limit(&self, topic: &str, bytes: usize) -> anyhow::Result<()> {
        let (admin, options) = self.admin()?;
        let bytes = bytes.to_string();
        let limit = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &bytes);
        for altered in admin.alter_configs([&limit], &options).await? {
            altered.map_err(|(_, code)| anyhow::anyhow!("{code}"))?;
        }
        let limited = || async {
            let described = admin
                .describe_configs([&ResourceSpecifier::Topic(topic)], &options)
                .await
                .ok()?;
            let resource = described.into_iter().next()?.ok()?;
            (resource.get("max.message.bytes")?.value.as_deref() == Some(&bytes)).then_some(())
        };
        eventually("the limit is seen", limited).await
    }

    async fn id(&self) -> anyhow::Result<TopicId> {
        Ok(self.kafka.topic(&self.topic).await?.id)
    }

    pub(super) async fn partition(&self, number: u32) -> anyhow::Result<Partition> {
        Ok(Partition {
            topic: self.id().await?,
            number,
        })
    }

    /// These offsets of partitions 0, 1, …, of the topic as it is now.
    pub(super) async fn offsets<O: IntoIterator<Item = u64> + Clone>(
        &self,
        of: impl AsRef<[O]>,
    ) -> anyhow::Result<Vec<(Partition, u64)>> {
        let topic = self.id().await?;
        let of = (0..).zip(of.as_ref()).flat_map(|(number, offsets)| {
            let offsets = offsets.clone().into_iter();
            offsets.map(move |offset| (Partition { topic, number }, offset))
        });
        Ok(of.collect())
    }

    pub(super) async fn pin(&self) -> anyhow::Result<Pinned> {
        let archive = Archive::open(&self.config.archive, &self.definitions.datasets[0]).await?;
        Ok(archive.context("nothing is archived")?.pin().await?)
    }

    /// Lets the archive go on to an offset that the log has not.
    pub(super) async fn archive_nothing(&self, partition: Partition, from: u64, to: u64) -> anyhow::Result<()> {
        let archive = Archive::open(&self.config.archive, &self.definitions.datasets[0]).await?;
        let (from, to) = (Offset(from), Offset(to));
        let commit = Commit {
            ranges: [(partition, OffsetRange { from, to })].into(),
            ..Commit::default()
        };
        archive.context("nothing is archived")?.commit(&commit).await?;
        Ok(())
    }

    /// Waits until the archive says that the log ended there, below what was archived.
    pub(super) async fn until_cut_off(&self, partition: Partition, end: u64, next: u64) -> anyhow::Result<()> {
        let (from, to) = (Offset(end), Offset(next));
        let is_said = || async {
            let pinned = self.pin().await.ok()?;
            (pinned.truncated.get(&partition) == Some(&OffsetRange { from, to })).then_some(())
        };
        eventually("it is said that the log was cut off", is_said).await
    }

    /// Waits until the archive of partitions 0, 1, … ends there; 0: nothing was committed for it.
    pub(super) async fn until_archived(&self, ends: &[u64]) -> anyhow::Result<()> {
        let topic = self.id().await?;
        let reached = || async {
            let pinned = self.pin().await.ok()?;
            let end = |number| pinned.ends.get(&Partition { topic, number }).map_or(0, |end| end.0);
            let all = (0..).zip(ends).all(|(number, wanted)| end(number) == *wanted);
            all.then_some(())
        };
        eventually("everything is archived", reached).await
    }

    pub(super) async fn until_table(&self) -> anyhow::Result<()> {
        eventually("there is a table", || async { self.pin().await.ok().map(drop) }).await
    }

    /// The partition and offset of every archived event, repeats included.
    pub(super) async fn archived(&self) -> anyhow::Result<Vec<(Partition, u64)>> {
        let pinned = self.pin().await?;
        let days: BTreeSet<_> = pinned.ranges().iter().map(|range| range.day).collect();
        let mut found = Vec::new();
        for batch in SessionContext::new()
            .read_table(pinned.events(&days))?
            .collect()
            .await?
        {
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let topics = column("_topic").as_string::<i32>();
            let numbers = column("_partition").as_primitive::<Int32Type>();
            let offsets = column("_offset").as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let topic = TopicId(u128::from_str_radix(topics.value(row), 16)?);
                let number = u32::try_from(numbers.value(row))?;
                found.push((Partition { topic, number }, u64::try_from(offsets.value(row))?));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// All dead letters that there are, and markers of those that were sent again.
    pub(super) async fn letters(&self) -> anyhow::Result<Vec<Letter>> {
        self.records(self.letters_topic()).await
    }

    /// All records in a topic's first partition.
    pub(super) async fn records(&self, topic: String) -> anyhow::Result<Vec<Letter>> {
        let end = self.kafka.bounds(&topic, 0).await?.to;
        let client = self.client(&[("group.id", "letters"), ("enable.partition.eof", "true")]);
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create()?;
            let mut all = TopicPartitionList::new();
            all.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning)?;
            consumer.assign(&all)?;
            let mut letters = Vec::new();
            let mut next = 0;
            while next < end.0 {
                let message = match consumer.poll(PATIENCE).context("no letter came")? {
                    Ok(message) => message,
                    Err(rdkafka::error::KafkaError::PartitionEOF(_)) => break,
                    Err(error) => return Err(error.into()),
                };
                next = u64::try_from(message.offset())? + 1;
                let headers = message.headers().into_iter().flat_map(Headers::iter).map(|header| {
                    let value = header.value.map(|value| String::from_utf8_lossy(value).into_owned());
                    (header.key.to_owned(), value)
                });
                letters.push(Letter {
                    key: message.key().map(ToOwned::to_owned),
                    value: message.payload().map(ToOwned::to_owned),
                    headers: headers.collect(),
                });
            }
            Ok(letters)
        })
        .await?
    }

    pub(super) async fn until_letters(&self, count: usize) -> anyhow::Result<()> {
        let there = || async { (self.letters().await.ok()?.len() >= count).then_some(()) };
        eventually("the letters are there", there).await
    }

    /// Waits until the archiver's group shows these offsets.
    pub(super) async fn until_group_is_at(&self, offsets: &[u64]) -> anyhow::Result<()> {
        let client: BaseConsumer = self.client(&[("group.id", &self.kafka.group("archive"))]).create()?;
        let shown = || async {
            tokio::task::block_in_place(|| {
                let mut asked = TopicPartitionList::new();
                for (number, _) in (0..).zip(offsets) {
                    asked.add_partition(&self.topic, number);
                }
                let found = client.committed_offsets(asked, PATIENCE).ok()?;
                let found: BTreeMap<_, _> = found
                    .elements()
                    .iter()
                    .map(|element| (element.partition(), element.offset()))
                    .collect();
                let wanted = |offset: u64| rdkafka::Offset::Offset(offset.cast_signed());
                (0..)
                    .zip(offsets)
                    .all(|(number, offset)| found.get(&number) == Some(&wanted(*offset)))
                    .then_some(())
            })
        };
        eventually("the group's offsets are shown", shown).await
    }
}

fn definitions(topic: &str, fields: &str) -> anyhow::Result<Definitions> {
    Definitions::parse([("flights.toml", text(topic, fields))]).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))
}

fn text(topic: &str, fields: &str) -> String {
    format!("[dataset.flights]\ntopic = \"{topic}\"\nevent_time = \"at\"\n[dataset.flights.fields]\n{fields}\n")
}

/// Asks until there is an answer.
async fn eventually<F: Future<Output = Option<()>>>(what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<()> {
    let wait = async {
        while ask().await.is_none() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("never: {what}"))
}
