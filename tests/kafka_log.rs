//! Kafka as a log, on a real broker: slices that follow on each other, holes, gaps, logs that end too early.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::FutureExt;
use highwater_tests::stack::{PATIENCE, Site, shared, unique, until};
use local_stack::topics::{self, Topic};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, TopicPartitionList};
use shared_connections::log::{Event, Kafka, LogError, Outcome, Reader, ReaderOptions, Slice};
use shared_schemas::config::{Config, KafkaConfig};
use shared_schemas::dataset::{Dataset, OFFSET_COLUMN};
use shared_schemas::decode::{EnvironmentKeys, Reason};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange};

mod come_and_go;

/// A topic of its own, and what reads and writes it.
struct Log {
    brokers: String,
    kafka: Kafka,
    dataset: Dataset,
}

fn config(brokers: &str) -> KafkaConfig {
    let text = format!("[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{}\"\n", unique("group"));
    Config::parse(&text, "test.toml", std::path::Path::new(""), &|_| None)
        .config
        .kafka
}

fn dataset(topic: &str) -> anyhow::Result<Dataset> {
    let text = format!(
        "[dataset.d]\ntopic = \"{topic}\"\nevent_time = \"$kafka_time\"\n[dataset.d.fields]\nn = \"int64\"\n\
         origin = {{ type = \"string?\", from = \"$header.origin\" }}\n"
    );
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("d.toml");
    std::fs::write(&file, text)?;
    let definitions = Definitions::load(&file).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    definitions.datasets.into_iter().next().context("one dataset")
}

impl Log {
    async fn new(partitions: u32) -> anyhow::Result<Self> {
        let brokers = shared().await?.addresses().kafka.clone();
        let topic = unique("log");
        topics::ensure(&brokers, &[], &Topic::of_dataset(&topic, partitions, 1 << 20)).await?;
        Ok(Self {
            kafka: Kafka::new(&config(&brokers))?,
            dataset: dataset(&topic)?,
            brokers,
        })
    }

    fn topic(&self) -> &str {
        &self.dataset.topic
    }

    fn client(&self, properties: &[(&str, &str)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers);
        for (name, value) in properties {
            client.set(*name, *value);
        }
        client
    }

    /// Sends values, without awaiting each.
    async fn send(&self, producer: &FutureProducer, partition: i32, values: &[String]) -> anyhow::Result<()> {
        let sent = values.iter().map(|value| {
            let record = FutureRecord::<(), _>::to(self.topic()).partition(partition);
            producer.send(record.payload(value), PATIENCE)
        });
        for sent in futures::future::join_all(sent).await {
            sent.map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    /// Sends events numbered so.
    async fn events(&self, partition: i32, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        let producer = self.client(&[]).create()?;
        self.send(&producer, partition, &numbered(numbers)).await
    }

    fn options(&self) -> ReaderOptions<'_> {
        ReaderOptions {
            dataset: &self.dataset,
            keys: &EnvironmentKeys,
            group: self.kafka.group("test"),
            extra: true,
            keep_refused: true,
        }
    }

    fn read(&self, cursors: &[(u32, u64)]) -> anyhow::Result<Reader> {
        let cursors: BTreeMap<_, _> = cursors.iter().map(|(p, offset)| (*p, Offset(*offset))).collect();
        Ok(Reader::start(&self.kafka, self.options(), &cursors)?)
    }

    async fn delete_below(&self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]).create()?;
        let mut below = TopicPartitionList::new();
        below.add_partition_offset(self.topic(), partition, rdkafka::Offset::Offset(offset))?;
        let deleted = admin.delete_records(&below, &AdminOptions::new()).await?;
        for element in deleted.elements() {
            element.error()?;
        }
        Ok(())
    }

    async fn make_again(&self) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]).create()?;
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for deleted in admin.delete_topics(&[self.topic()], &options).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let wanted = Topic::of_dataset(self.topic(), 1, 1 << 20);
        tokio::time::timeout(PATIENCE, async {
            // The broker goes on naming a deleted topic for a moment.
            while topics::ensure(&self.brokers, &[], &wanted).await.is_err() {}
        })
        .await?;
        Ok(())
    }
}

fn numbered(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("{{\"n\": {n}}}")).collect()
}

async fn event(reader: &mut Reader) -> anyhow::Result<Event> {
    let next = tokio::time::timeout(PATIENCE, reader.next());
    let next = next
        .await
        .with_context(|| format!("no event: {:?}", reader.trouble()))?;
    next.with_context(|| format!("the reader ended: {:?}", reader.failure()))
}

async fn slice(reader: &mut Reader) -> anyhow::Result<Slice> {
    match event(reader).await? {
        Event::Slice(slice) => Ok(slice),
        other => anyhow::bail!("no slice but {other:?}"),
    }
}

/// One column of all rows.
fn column(batches: &[RecordBatch], name: &str) -> Vec<i64> {
    let values = batches.iter().flat_map(|batch| {
        let column = batch.column_by_name(name).unwrap();
        column.as_primitive::<Int64Type>().values().to_vec()
    });
    values.collect()
}

/// Reads one partition until its cursor is at `end`: the offsets and numbers of the accepted records.
async fn read_to(reader: &mut Reader, from: u64, end: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    let (mut next, mut rows) = (Offset(from), Vec::new());
    while next < Offset(end) {
        let slice = slice(reader).await?;
        ensure!(slice.from == next, "{} does not follow on {next}", slice.from);
        ensure!(
            slice.records.last().map(|last| last.offset.next()) == Some(slice.next),
            "next is not the last record's"
        );
        ensure!(
            slice.records.is_sorted_by(|a, b| a.offset < b.offset) && slice.records[0].offset >= next,
            "records are not in order"
        );
        let accepted = slice
            .records
            .iter()
            .filter(|record| record.outcome == Outcome::Accepted);
        let accepted: Vec<_> = accepted.map(|record| record.offset.0.cast_signed()).collect();
        assert_eq!(accepted, column(&slice.batches, OFFSET_COLUMN));
        let offsets = accepted.iter().map(|offset| offset.cast_unsigned());
        let numbers = column(&slice.batches, "n").into_iter().map(i64::cast_unsigned);
        rows.extend(offsets.zip(numbers));
        next = slice.next;
    }
    assert_eq!(next, Offset(end));
    Ok(rows)
}

#[tokio::test]
async fn slices_follow_on_each_other_and_hold_every_record() -> anyhow::Result<()> {
    let log = Log::new(2).await?;
    log.events(0, 0..40_000).await?;
    log.events(1, 0..1000).await?;
    let mut reader = log.read(&[(0, 0), (1, 10)])?;
    let mut next = BTreeMap::from([(0, Offset(0)), (1, Offset(10))]);
    let mut numbers: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    let (mut rests, mut rested) = (false, false);
    while next != BTreeMap::from([(0, Offset(40_000)), (1, Offset(1000))]) {
        let slice = slice(&mut reader).await?;
        assert!(slice.partition == 1 || !rests, "it was to rest");
        assert_eq!(next.insert(slice.partition, slice.next), Some(slice.from));
        assert_eq!(u64::try_from(slice.records.len())?, slice.next.0 - slice.from.0);
        assert!(slice.records.len() <= 16_384 && slice.refused.is_empty());
        assert!(slice.records.iter().all(|record| record.kafka_time.is_some()));
        numbers
            .entry(slice.partition)
            .or_default()
            .extend(column(&slice.batches, "n"));
        // What was read ahead of one that rests comes again when it is read on.
        if slice.partition == 0 && !rested {
            reader.rest(&BTreeSet::from([0]));
            (rests, rested) = (true, true);
        }
        if rests && next[&1] == Offset(1000) {
            reader.add(&log.options(), &BTreeMap::from([(0, next[&0])]))?;
            rests = false;
        }
    }
    assert_eq!(numbers[&0], (0..40_000).collect::<Vec<_>>());
    assert_eq!(numbers[&1], (10..1000).collect::<Vec<_>>());

    // Live: what comes now follows.
    log.events(0, 7..8).await?;
    assert_eq!(read_to(&mut reader, 40_000, 40_001).await?, [(40_000, 7)]);
    until("the log's ends are seen", || {
        reader.log_ends() == BTreeMap::from([(0, Offset(40_001)), (1, Offset(1000))])
    })
    .await?;
    assert_eq!(reader.trouble(), None);

    reader.commit(&BTreeMap::from([(0, Offset(40_001))]));
    let committed = || {
        let client: rdkafka::consumer::BaseConsumer =
            log.client(&[("group.id", &log.kafka.group("test"))]).create().ok()?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition(log.topic(), 0);
        let found = rdkafka::consumer::Consumer::committed_offsets(&client, asked, PATIENCE).ok()?;
        Some(found.elements().first()?.offset())
    };
    until("the commit is seen", || {
        committed() == Some(rdkafka::Offset::Offset(40_001))
    })
    .await?;

    // While it rests its log is looked at, and not read.
    reader.rest(&BTreeSet::from([0]));
    log.events(0, 0..5).await?;
    until("its end is seen", || reader.log_ends().get(&0) == Some(&Offset(40_006))).await?;
    log.events(1, 3..4).await?;
    assert_eq!(read_to(&mut reader, 1000, 1001).await?, [(1000, 3)]);
    reader.add(&log.options(), &BTreeMap::from([(0, Offset(40_001))]))?;
    assert_eq!(read_to(&mut reader, 40_001, 40_006).await?.len(), 5);
    reader.stop().await;
    Ok(())
}

#[tokio::test]
async fn refused_records_are_kept_as_they_came() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    let producer: FutureProducer = log.client(&[]).create()?;
    let header = |key, value| Header { key, value };
    let headers = OwnedHeaders::new()
        .insert(header("origin", Some("first")))
        .insert(header("none", None::<&str>))
        .insert(header("origin", Some("last")));
    let bad = FutureRecord::to(log.topic()).partition(0).key("k").payload("not json");
    let sent = producer.send(bad.headers(headers.clone()), PATIENCE).await;
    let time = sent.map_err(|(error, _)| error)?.timestamp.to_millis();
    let good = FutureRecord::<(), _>::to(log.topic())
        .partition(0)
        .payload("{\"n\": 1, \"x\": 2}");
    producer
        .send(good.headers(headers), PATIENCE)
        .await
        .map_err(|(error, _)| error)?;
    let tombstone = FutureRecord::<_, ()>::to(log.topic()).partition(0).key("t");
    producer.send(tombstone, PATIENCE).await.map_err(|(error, _)| error)?;

    let mut reader = log.read(&[(0, 0)])?;
    let (mut outcomes, mut refused, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    while outcomes.len() < 3 {
        let slice = slice(&mut reader).await?;
        outcomes.extend(slice.records.iter().map(|record| record.outcome));
        refused.extend(slice.refused);
        rows.extend(slice.batches);
    }
    let expected = [
        Outcome::Refused(Reason::NotJson),
        Outcome::Accepted,
        Outcome::Refused(Reason::Empty),
    ];
    assert_eq!(outcomes, expected);
    let origin = rows[0].column_by_name("origin").unwrap().as_string::<i32>();
    assert_eq!(origin.value(0), "last");
    let extra = rows[0].column_by_name("_extra").unwrap().as_string::<i32>();
    assert_eq!(extra.value(0), "{\"x\":2}");

    let [bad, tombstone] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert_eq!(
        (bad.offset, bad.reason, bad.kafka_time),
        (Offset(0), Reason::NotJson, time)
    );
    assert_eq!(bad.value.as_deref(), Some(&b"not json"[..]));
    assert_eq!(bad.key.as_deref(), Some(&b"k"[..]));
    let header = |name: &str, value: Option<&str>| (name.to_owned(), value.map(|value| value.as_bytes().to_vec()));
    assert_eq!(
        bad.headers,
        [
            header("origin", Some("first")),
            header("none", None),
            header("origin", Some("last"))
        ]
    );
    assert!(
        !bad.detail.is_empty() && !bad.detail.contains("not json"),
        "{}",
        bad.detail
    );
    assert_eq!(
        (tombstone.value.as_deref(), tombstone.key.as_deref()),
        (None, Some(&b"t"[..]))
    );
    reader.stop().await;
    Ok(())
}

// librdkafka's calls for transactions block.
#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_and_control_records_are_holes() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    let producer: FutureProducer = log.client(&[("transactional.id", &unique("transaction"))]).create()?;
    tokio::task::block_in_place(|| producer.init_transactions(PATIENCE))?;
    for (numbers, commit) in [(0..3, true), (3..6, false), (6..9, true)] {
        producer.begin_transaction()?;
        log.send(&producer, 0, &numbered(numbers)).await?;
        tokio::task::block_in_place(|| {
            if commit {
                producer.commit_transaction(PATIENCE)
            } else {
                producer.abort_transaction(PATIENCE)
            }
        })?;
    }
    // Offsets 0-2 and a control record, 4-6 aborted and theirs, 8-10 and theirs.
    let mut reader = log.read(&[(0, 0)])?;
    let rows = read_to(&mut reader, 0, 11).await?;
    assert_eq!(rows, [(0, 0), (1, 1), (2, 2), (8, 6), (9, 7), (10, 8)]);

    // An open transaction ends the log for whoever reads what is committed.
    producer.begin_transaction()?;
    log.send(&producer, 0, &numbered(9..10)).await?;
    let bounds = log.kafka.bounds(log.topic(), 0).await?;
    assert_eq!((bounds.from, bounds.to), (Offset(0), Offset(12)));
    tokio::task::block_in_place(|| producer.commit_transaction(PATIENCE))?;
    assert_eq!(read_to(&mut reader, 11, 13).await?, [(12, 9)]);
    reader.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_the_log_no_longer_has_is_a_gap() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    log.events(0, 0..100).await?;
    log.delete_below(0, 40).await?;
    let mut reader = log.read(&[(0, 10)])?;
    let gap = |found, from, to| match found {
        Event::Gap { partition: 0, range } if (range.from, range.to) == (Offset(from), Offset(to)) => Ok(()),
        other => Err(anyhow::anyhow!("no gap {from}-{to} but {other:?}")),
    };
    gap(event(&mut reader).await?, 10, 40)?;
    assert_eq!(read_to(&mut reader, 40, 100).await?.len(), 60);
    reader.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_log_that_loses_its_head_while_it_is_read_is_a_gap() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    // More than fits into the channel and librdkafka's queue.
    let big = "x".repeat(100_000);
    let producer = log.client(&[("message.max.bytes", "10000000")]).create()?;
    let count: u64 = 1000;
    let values: Vec<_> = (0..count)
        .map(|n| format!("{{\"n\": {n}, \"x\": \"{big}\"}}"))
        .collect();
    for part in values.chunks(100) {
        log.send(&producer, 0, part).await?;
    }
    let mut reader = log.read(&[(0, 0)])?;
    let first = slice(&mut reader).await?;
    assert_eq!(first.from, Offset(0));
    log.delete_below(0, i64::try_from(count)?).await?;
    log.events(0, 0..5).await?;
    let (mut next, mut gap) = (first.next, None);
    while next < Offset(count + 5) {
        match event(&mut reader).await? {
            Event::Slice(slice) => {
                ensure!(slice.from == next, "{} does not follow on {next}", slice.from);
                next = slice.next;
            }
            Event::Gap { range, .. } => {
                ensure!(
                    range.from == next && gap.is_none(),
                    "{range:?} does not follow on {next}"
                );
                next = range.to;
                gap = Some(range);
            }
            Event::Short { .. } => anyhow::bail!("not short"),
        }
    }
    let gap = gap.context("no gap")?;
    assert_eq!(gap.to, Offset(count));
    // What was read ahead of the layer is bounded: four times 4 MiB that were gathered, and librdkafka's 14 MiB, not 100 MB.
    assert!(gap.from < Offset(650), "{} was read ahead", gap.from);
    reader.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_topic_made_again_is_another_one() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    log.events(0, 0..10).await?;
    let before = log.kafka.topic(log.topic()).await?;
    assert_eq!(before.partitions, 1);
    let mut reader = log.read(&[(0, 0)])?;
    assert_eq!(read_to(&mut reader, 0, 10).await?.len(), 10);
    until("the topic was looked at", || !reader.log_ends().is_empty()).await?;

    log.make_again().await?;
    let after = log.kafka.topic(log.topic()).await?;
    assert_ne!(before.id, after.id);
    // The reader that was there tells that its records are gone, also where the new log is as long.
    log.events(0, 100..110).await?;
    match event(&mut reader).await? {
        Event::Short {
            partition: 0,
            cursor: Offset(10),
            end: Offset(0),
            is_certain: false,
        } => {}
        other => anyhow::bail!("not short but {other:?}"),
    }
    log.events(0, 110..111).await?;
    until("the new records are seen", || reader.log_ends()[&0] == Offset(11)).await?;
    assert!(reader.next().now_or_never().is_none(), "they are not the old topic's");
    reader.stop().await;

    // So does one that begins above the new log's end.
    let mut reader = log.read(&[(0, 12)])?;
    match event(&mut reader).await? {
        Event::Short { cursor, end, .. } => assert_eq!((cursor, end), (Offset(12), Offset(11))),
        other => anyhow::bail!("not short but {other:?}"),
    }
    reader.stop().await;
    Ok(())
}

#[tokio::test]
async fn bounds_and_times_are_told() -> anyhow::Result<()> {
    let log = Log::new(2).await?;
    let range = |from, to| OffsetRange {
        from: Offset(from),
        to: Offset(to),
    };
    assert_eq!(log.kafka.bounds(log.topic(), 1).await?, range(0, 0));
    assert_eq!(log.kafka.offset_at(log.topic(), 1, 0).await?, Offset(0));
    let producer: FutureProducer = log.client(&[]).create()?;
    for millis in [1_000_000, 2_000_000, 1_500_000] {
        let record = FutureRecord::<(), _>::to(log.topic()).partition(0).payload("{}");
        let sent = producer.send(record.timestamp(millis), PATIENCE).await;
        sent.map_err(|(error, _)| error)?;
    }
    let at = |millis| log.kafka.offset_at(log.topic(), 0, millis);
    assert_eq!(at(-5).await?, Offset(0));
    assert_eq!(at(1_000_000).await?, Offset(0));
    assert_eq!(at(1_000_001).await?, Offset(1));
    assert_eq!(at(2_000_001).await?, Offset(3));
    log.delete_below(0, 2).await?;
    assert_eq!(log.kafka.bounds(log.topic(), 0).await?, range(2, 3));
    assert_eq!(at(0).await?, Offset(2));

    let none = log.kafka.bounds(log.topic(), 7).await.unwrap_err();
    assert!(matches!(none, LogError::NoPartition { partition: 7, .. }), "{none:?}");
    let absent = unique("absent");
    let none = log.kafka.topic(&absent).await.unwrap_err();
    assert!(matches!(none, LogError::NoTopic { .. }), "{none:?}");
    assert!(none.to_string().contains(&log.brokers) && none.to_string().contains("kafka.brokers"));
    let none = log.kafka.bounds(&absent, 0).await.unwrap_err();
    assert!(matches!(none, LogError::NoTopic { .. }), "{none:?}");
    // Asking makes no topic.
    assert!(matches!(log.kafka.topic(&absent).await, Err(LogError::NoTopic { .. })));
    Ok(())
}

#[tokio::test]
async fn a_kafka_that_is_away_is_told_and_waited_for() -> anyhow::Result<()> {
    // No port of those that others are given.
    let nobody = "127.0.0.1:1";
    let kafka = Kafka::new(&config(nobody))?;
    let away = kafka.topic("t").await.unwrap_err();
    assert!(matches!(away, LogError::Away { .. }) && away.is_passing(), "{away:?}");
    assert!(away.to_string().contains(nobody) && away.to_string().contains("kafka.brokers"));
    assert!(matches!(kafka.bounds("t", 0).await, Err(LogError::Away { .. })));

    let dataset = dataset("t")?;
    let options = ReaderOptions {
        dataset: &dataset,
        keys: &EnvironmentKeys,
        group: kafka.group("test"),
        extra: false,
        keep_refused: false,
    };
    let reader = Reader::start(&kafka, options, &BTreeMap::from([(0, Offset(0))]))?;
    until("trouble is told", || {
        reader.trouble().is_some_and(|said| said.contains("can't be reached"))
    })
    .await?;
    assert!(reader.failure().is_none());
    tokio::time::timeout(PATIENCE, reader.stop()).await?;
    Ok(())
}

#[tokio::test]
async fn a_kafka_that_comes_back_is_read_on() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut up = site.up().await?;
    let brokers = up.ready().await?.kafka;
    let log = Log {
        kafka: Kafka::new(&config(&brokers))?,
        dataset: dataset("flights")?,
        brokers: brokers.clone(),
    };
    log.events(0, 0..3).await?;
    let mut reader = log.read(&[(0, 0)])?;
    assert_eq!(read_to(&mut reader, 0, 3).await?, [(0, 0), (1, 1), (2, 2)]);
    up.stop().await?;
    until("trouble is told", || reader.trouble().is_some()).await?;
    let up = site.start(&["up"])?;
    until("it is over", || reader.trouble().is_none()).await?;
    log.events(0, 3..5).await?;
    assert_eq!(read_to(&mut reader, 3, 5).await?, [(3, 3), (4, 4)]);
    reader.stop().await;
    up.stop().await
}

#[tokio::test]
async fn a_slow_layer_loses_nothing_and_can_stop_at_any_time() -> anyhow::Result<()> {
    let log = Log::new(1).await?;
    log.events(0, 0..200_000).await?;
    let mut reader = log.read(&[(0, 0)])?;
    let mut next = Offset(0);
    for _ in 0..3 {
        // Meanwhile the channel and librdkafka's queue fill up.
        log.kafka.bounds(log.topic(), 0).await?;
        let slice = slice(&mut reader).await?;
        assert_eq!(slice.from, next);
        next = slice.next;
    }
    // What was gathered twice waits and nothing is being read: far from all of the log.
    tokio::time::timeout(PATIENCE, reader.stop()).await?;
    let mut reader = log.read(&[(0, next.0)])?;
    let rows = read_to(&mut reader, next.0, 200_000).await?;
    assert_eq!(rows.len(), usize::try_from(200_000 - next.0)?);
    reader.stop().await;
    Ok(())
}
