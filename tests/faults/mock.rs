//! Faults 5 and 6 as error codes: what no broker says on demand, librdkafka's own cluster of mocks does.
//!
//! It can't tell topic ids, so a whole worker does not run on it: the layers' reader does, which does not need them to read.
//! The oracle is the log itself: every record once, in order, none passed over.
//!
//! It runs in a process of its own. A mock that goes down listens on its port again at once, and where that fails librdkafka
//! ends the process: a child that another test starts just then holds the port until it has become another program.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Difference, Event as Sent, VIEWS};
use highwater_tests::stack::{PATIENCE, unique};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use shared_connections::log::{Event, Kafka, Reader, ReaderOptions};
use shared_schemas::config::Config;
use shared_schemas::decode::EnvironmentKeys;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::Offset;

use super::trial::trials;

const BROKERS: i32 = 3;
const PARTITIONS: i32 = 2;

/// Set in the process that has the mocks.
const ALONE: &str = "HIGHWATER_TEST_ALONE";

/// How many records of each partition were delivered, all of them in order.
type Read = BTreeMap<u32, u64>;

/// Reads until each partition has come so far.
async fn read_to(reader: &mut Reader, read: &mut Read, ends: &Read) -> anyhow::Result<()> {
    while read != ends {
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

/// Runs that test in a process of its own, and shows what it said.
fn alone(test: &str) -> anyhow::Result<()> {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    let output = Command::new(std::env::current_exe()?)
        .args([&format!("{module}::{test}"), "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complained}", output.status);
    ensure!(said.contains("1 passed"), "no test of that name ran");
    Ok(())
}

/// Errors of three brokers, leaders that move, brokers that go and come: no record is passed over, none comes twice.
#[test]
fn a_reader_passes_over_no_record_whatever_brokers_answer() -> anyhow::Result<()> {
    if std::env::var_os(ALONE).is_none() {
        return alone("a_reader_passes_over_no_record_whatever_brokers_answer");
    }
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE as AWAY, RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR as STORAGE,
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE as NO_LEADER, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION as NOT_LEADER,
        RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE as OUT_OF_RANGE, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT as TIMED_OUT,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as NO_TOPIC,
    };
    let errors = [AWAY, STORAGE, NO_LEADER, NOT_LEADER, OUT_OF_RANGE, TIMED_OUT, NO_TOPIC];
    trials("5, 6", "error codes and moving leaders (mock)", 5, async |trial| {
        let mock = MockCluster::new(BROKERS)?;
        let topic = unique("mock");
        mock.create_topic(&topic, PARTITIONS, BROKERS)?;
        let brokers = mock.bootstrap_servers();
        let text = format!("[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{topic}\"\n");
        let config = Config::parse(&text, "test.toml", std::path::Path::new(""), &|_| None).config;
        let definitions = Definitions::parse([("views.toml", VIEWS.replace("TOPIC", &topic))])
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
        let kafka = Kafka::new(&config.kafka)?;
        let options = ReaderOptions {
            dataset: &definitions.datasets[0],
            keys: &EnvironmentKeys,
            group: kafka.group("test"),
            extra: false,
            keep_refused: false,
        };
        let mut reader = Reader::start(&kafka, options, &BTreeMap::from([(0, Offset(0)), (1, Offset(0))]))?;
        let (mut ends, mut read) = (Read::from([(0, 0), (1, 0)]), Read::from([(0, 0), (1, 0)]));
        let rounds = trial.times(12, 80);
        for round in 0..rounds {
            let random = &mut trial.random;
            let down = match random.u8(0..4) {
                0 => {
                    mock.partition_leader(&topic, random.i32(0..PARTITIONS), Some(random.i32(1..=BROKERS)))?;
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
                let value = Sent(round * 60 + n).json();
                let record = FutureRecord::<(), _>::to(&topic).partition(partition).payload(&value);
                producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
                *ends.entry(partition.unsigned_abs()).or_default() += 1;
            }
            read_to(&mut reader, &mut read, &ends).await?;
        }
        reader.stop().await;
        trial.told(ends.values().sum(), Difference::default());
        Ok(())
    })
}
