//! Faults 5 and 6 as error codes: what no broker says on demand, librdkafka's own cluster of mocks does.
//!
//! It can't tell topic ids, so a whole worker does not run on it: the layers' reader does, which does not need them to read.
//! The oracle is the log itself: every record once, in order, none passed over.
//!
//! It runs in a process of its own. A mock that goes down listens on its port again at once, and where that fails librdkafka
//! ends the process: a child that another test starts just then holds the port until it has become another program.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::alone::is_elsewhere;
use highwater_tests::platform::{Difference, Event as Sent, VIEWS};
use highwater_tests::stack::{PATIENCE, unique};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use shared_connections::log::{Event, Kafka, Reader, ReaderOptions};
use shared_schemas::config::Config;
use shared_schemas::decode::EnvironmentKeys;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::Offset;

use super::trial::trials;

const BROKERS: i32 = 3;
const PARTITIONS: i32 = 2;

/// Long enough for a reader and its watch to find out that a leader is gone.
const FOUND_OUT: Duration = Duration::from_secs(3);

/// How many records of each partition were delivered, all of them in order.
type Read = BTreeMap<u32, u64>;

/// A cluster with one topic, and who writes and reads it.
struct Mocks {
    mock: MockCluster<'static, DefaultProducerContext>,
    topic: String,
    kafka: Kafka,
    definitions: Definitions,
    producer: FutureProducer,
}

impl Mocks {
    /// Where a broker that is no leader `names` the one that is, the mock must have one: without, it crashes.
    fn new(names: bool) -> anyhow::Result<Self> {
        let mock = MockCluster::new(BROKERS)?;
        if !names {
            mock.apiversion(RDKafkaApiKey::Fetch, Some(0), Some(11))?;
            mock.apiversion(RDKafkaApiKey::Produce, Some(0), Some(9))?;
        }
        let topic = unique("mock");
        mock.create_topic(&topic, PARTITIONS, BROKERS)?;
        let brokers = mock.bootstrap_servers();
        let text = format!("[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{topic}\"\n");
        let config = Config::parse(&text, "test.toml", std::path::Path::new(""), &|_| None).config;
        let definitions = Definitions::parse([("views.toml", VIEWS.replace("TOPIC", &topic))])
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        Ok(Self {
            producer: ClientConfig::new().set("bootstrap.servers", &brokers).create()?,
            kafka: Kafka::new(&config.kafka)?,
            definitions,
            mock,
            topic,
        })
    }

    fn reader(&self, from: &BTreeMap<u32, Offset>) -> anyhow::Result<Reader> {
        let options = ReaderOptions {
            dataset: &self.definitions.datasets[0],
            keys: &EnvironmentKeys,
            group: self.kafka.group("test"),
            extra: false,
            keep_refused: false,
        };
        Ok(Reader::start(&self.kafka, options, from)?)
    }

    /// Sends an event, and waits until the partition has it.
    async fn send(&self, partition: i32, number: u64) -> anyhow::Result<()> {
        let value = Sent(number).json();
        let record = FutureRecord::<(), _>::to(&self.topic)
            .partition(partition)
            .payload(&value);
        let sent = self.producer.send(record, PATIENCE).await;
        sent.map(drop).map_err(|(error, _)| error.into())
    }
}

/// Reads until each partition has come so far, and no further.
async fn read_to(reader: &mut Reader, read: &mut Read, ends: &Read) -> anyhow::Result<()> {
    read_past(reader, read, ends).await?;
    ensure!(read == ends, "{read:?} is read, {ends:?} was sent");
    Ok(())
}

/// Reads until each partition has come so far at least.
async fn read_past(reader: &mut Reader, read: &mut Read, ends: &Read) -> anyhow::Result<()> {
    while ends.iter().any(|(number, end)| read.get(number) < Some(end)) {
        let event = tokio::time::timeout(PATIENCE, reader.next()).await;
        let event = event.with_context(|| format!("at {read:?} of {ends:?}: {:?}", reader.trouble()))?;
        let slice = match event.context("the reader has ended")? {
            Event::Slice(slice) => slice,
            other => anyhow::bail!("{other:?}, though the log has all"),
        };
        let next = read.entry(slice.partition).or_default();
        ensure!(slice.from == Offset(*next), "{} after {next}", slice.from);
        for record in &slice.records {
            ensure!(record.offset == Offset(*next), "{} instead of {next}", record.offset);
            *next += 1;
        }
    }
    Ok(())
}

/// Errors of three brokers, leaders that move, brokers that go and come: no record is passed over, none comes twice.
#[test]
fn a_reader_passes_over_no_record_whatever_brokers_answer() -> anyhow::Result<()> {
    if is_elsewhere(module_path!(), "a_reader_passes_over_no_record_whatever_brokers_answer")? {
        return Ok(());
    }
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE as AWAY, RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR as STORAGE,
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE as NO_LEADER, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION as NOT_LEADER,
        RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE as OUT_OF_RANGE, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT as TIMED_OUT,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as NO_TOPIC,
    };
    let errors = [AWAY, STORAGE, NO_LEADER, NOT_LEADER, OUT_OF_RANGE, TIMED_OUT, NO_TOPIC];
    trials("5, 6", "error codes and moving leaders (mock)", 5, async |trial| {
        let ground = Mocks::new(true)?;
        let (mock, topic) = (&ground.mock, &ground.topic);
        let mut reader = ground.reader(&BTreeMap::from([(0, Offset(0)), (1, Offset(0))]))?;
        let (mut ends, mut read) = (Read::from([(0, 0), (1, 0)]), Read::from([(0, 0), (1, 0)]));
        let rounds = trial.times(12, 80);
        for round in 0..rounds {
            let random = &mut trial.random;
            let down = match random.u8(0..4) {
                0 => {
                    mock.partition_leader(topic, random.i32(0..PARTITIONS), Some(random.i32(1..=BROKERS)))?;
                    None
                }
                1 => {
                    let broker = random.i32(1..=BROKERS);
                    mock.broker_down(broker)?;
                    Some(broker)
                }
                what => {
                    let some = 0..random.usize(1..5);
                    let some: Vec<_> = some.filter_map(|_| random.choice(errors)).collect();
                    let asked = if what == 2 {
                        RDKafkaApiKey::Fetch
                    } else {
                        RDKafkaApiKey::ListOffsets
                    };
                    mock.request_errors(asked, &some);
                    None
                }
            };
            if let Some(broker) = down {
                mock.broker_up(broker)?;
            }
            for n in 0..random.u64(1..60) {
                let partition = random.i32(0..PARTITIONS);
                ground.send(partition, round * 60 + n).await?;
                *ends.entry(partition.unsigned_abs()).or_default() += 1;
            }
            read_to(&mut reader, &mut read, &ends).await?;
        }
        reader.stop().await;
        trial.told(ends.values().sum(), Difference::default());
        Ok(())
    })
}

/// One partition has no leader: the other is read and written on, by whoever read it before and by whoever comes then, and what is
/// asked about the one has its end. With a leader again all of it is read, every record once.
#[test]
fn a_partition_without_a_leader_keeps_no_other_back() -> anyhow::Result<()> {
    if is_elsewhere(module_path!(), "a_partition_without_a_leader_keeps_no_other_back")? {
        return Ok(());
    }
    trials("5", "a partition without a leader (mock)", 5, async |trial| {
        let ground = Mocks::new(false)?;
        let from = BTreeMap::from([(0, Offset(0)), (1, Offset(0))]);
        let mut reader = ground.reader(&from)?;
        let (mut ends, mut read) = (Read::from([(0, 0), (1, 0)]), Read::from([(0, 0), (1, 0)]));
        let mut number = 0..;
        let mut send = async |partition: u32, count: u64, ends: &mut Read| -> anyhow::Result<()> {
            for number in number.by_ref().take(usize::try_from(count)?) {
                ground.send(i32::try_from(partition)?, number).await?;
                *ends.entry(partition).or_default() += 1;
            }
            Ok(())
        };
        send(0, 50, &mut ends).await?;
        send(1, 50, &mut ends).await?;
        read_to(&mut reader, &mut read, &ends).await?;
        for _ in 0..trial.times(2, 12) {
            let leaderless = trial.random.u32(0..2);
            let other = 1 - leaderless;
            let number_of_it = i32::try_from(leaderless)?;
            let leader = |broker| ground.mock.partition_leader(&ground.topic, number_of_it, broker);
            // Some of it may be there that was not read yet.
            send(leaderless, trial.random.u64(1..30), &mut ends).await?;
            leader(None)?;
            send(other, trial.random.u64(1..30), &mut ends).await?;
            let mut of_other = read.clone();
            of_other.insert(other, ends[&other]);
            read_past(&mut reader, &mut read, &of_other).await?;
            // sleeps: until everybody has found out
            tokio::time::sleep(FOUND_OUT + trial.instant(1000)).await;
            send(other, trial.random.u64(1..30), &mut ends).await?;
            of_other.insert(other, ends[&other]);
            read_past(&mut reader, &mut read, &of_other).await?;
            if trial.random.bool() {
                // Another one comes, and goes on where this one was.
                reader.stop().await;
                let cursors = read.iter().map(|(number, next)| (*number, Offset(*next)));
                reader = ground.reader(&cursors.collect())?;
                send(other, trial.random.u64(1..30), &mut ends).await?;
                of_other.insert(other, ends[&other]);
                read_past(&mut reader, &mut read, &of_other).await?;
            }
            let ask = |partition| tokio::time::timeout(PATIENCE, ground.kafka.bounds(&ground.topic, partition));
            ensure!(ask(other).await??.to == Offset(ends[&other]));
            let none = ask(leaderless).await?;
            let Err(none) = none else {
                anyhow::bail!("a partition without a leader has told where it ends: {none:?}");
            };
            ensure!(none.is_passing(), "a partition without a leader is no more: {none}");
            leader(Some(trial.random.i32(1..=BROKERS)))?;
            send(leaderless, trial.random.u64(1..30), &mut ends).await?;
            read_to(&mut reader, &mut read, &ends).await?;
        }
        reader.stop().await;
        trial.told(ends.values().sum(), Difference::default());
        Ok(())
    })
}
