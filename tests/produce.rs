//! `highwater produce` as its users run it, on a real broker: what arrives, under which key, and what is said.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use anyhow::Context;
use highwater_tests::stack::{PATIENCE, Site, shared, unique};
use local_stack::topics::{self, Topic};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

/// A folder whose dataset has a topic of its own.
struct Case {
    site: Site,
    brokers: String,
    topic: String,
}

#[derive(Debug, PartialEq)]
struct Sent {
    key: Option<String>,
    value: Option<Vec<u8>>,
    time: i64,
}

impl Case {
    async fn new() -> anyhow::Result<Self> {
        let brokers = shared().await?.addresses().kafka.clone();
        let (site, topic) = (Site::with_addresses(&brokers, "http://127.0.0.1:1")?, unique("produce"));
        let definitions = format!(
            "[dataset.flights]\ntopic = \"{topic}\"\npartitions = 1\nevent_time = \"at\"\nevent_id = [\"carrier\", \
             \"flight\"]\n[dataset.flights.fields]\nat = \"timestamp\"\ncarrier = \"string\"\nflight = \"int64\"\n"
        );
        std::fs::write(site.path().join("definitions/flights.toml"), definitions)?;
        Ok(Self { site, brokers, topic })
    }

    async fn with_topic() -> anyhow::Result<Self> {
        let case = Self::new().await?;
        topics::ensure(&case.brokers, &[], &Topic::of_dataset(&case.topic, 1, 1 << 20)).await?;
        Ok(case)
    }

    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        Ok(std::fs::write(self.site.path().join(name), content)?)
    }

    /// The records of the topic, as many as that.
    fn sent(&self, count: usize) -> anyhow::Result<Vec<Sent>> {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer = config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", unique("group"))
            .create()?;
        let (_, end) = consumer.fetch_watermarks(&self.topic, 0, PATIENCE)?;
        assert_eq!(usize::try_from(end)?, count);
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&self.topic, 0, Offset::Beginning)?;
        consumer.assign(&from)?;
        let mut sent = Vec::new();
        while sent.len() < count {
            // Others than records are news of brokers, which librdkafka deals with.
            let Ok(record) = consumer.poll(PATIENCE).context("no record")? else {
                continue;
            };
            sent.push(Sent {
                key: record.key().map(|key| String::from_utf8_lossy(key).into_owned()),
                value: record.payload().map(<[u8]>::to_vec),
                time: record.timestamp().to_millis().context("no time")?,
            });
        }
        Ok(sent)
    }
}

fn event(flight: u32) -> String {
    format!("{{\"carrier\": \"AA\", \"flight\": {flight}, \"at\": \"2013-01-01T00:00:00Z\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_sent_as_it_is() -> anyhow::Result<()> {
    let case = Case::with_topic().await?;
    let before = chrono::Utc::now().timestamp_millis();
    let good = event(7);
    let lines = [
        good.as_bytes(),
        b"",
        b"not json",
        b"\xFF\xFE",
        b" {\"carrier\": \"AA\"} \r",
    ];
    case.write("events.ndjson", &lines.join(&b"\n"[..]))?;
    let (code, stdout, stderr) = case.site.run(&["produce", "flights", "events.ndjson"]).await?;
    assert_eq!((code, &*stdout, &*stderr), (Some(0), "5 events acknowledged\n", ""));

    let sent = case.sent(5)?;
    let values: Vec<_> = sent.iter().map(|record| record.value.as_deref()).collect();
    assert_eq!(values, lines.map(Some));
    let keys: Vec<_> = sent.iter().map(|record| record.key.as_deref()).collect();
    assert_eq!(keys, [Some("[\"AA\",7]"), None, None, None, None]);
    let after = chrono::Utc::now().timestamp_millis();
    assert!(sent.iter().all(|record| (before..=after).contains(&record.time)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_files_and_stdin_are_read() -> anyhow::Result<()> {
    let case = Case::with_topic().await?;
    let text = |flights: std::ops::Range<u32>| flights.map(|flight| event(flight) + "\n").collect::<String>();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text(0..20_000).as_bytes())?;
    case.write("a.gz", &packed.finish()?)?;
    case.write("b.ndjson.zst", &zstd::encode_all(text(20_000..20_010).as_bytes(), 1)?)?;
    case.write("stdin", text(20_010..20_020).as_bytes())?;
    let json = ["--output", "json", "--rate", "100000"];
    for (file, count) in [("a.gz", 20_000), ("b.ndjson.zst", 10)] {
        let arguments = [&["produce", "flights", file], &json[..]].concat();
        let (code, stdout, stderr) = case.site.run(&arguments).await?;
        assert_eq!((code, &*stderr), (Some(0), ""));
        let report: BTreeMap<String, u64> = serde_json::from_str(&stdout)?;
        assert_eq!(report, BTreeMap::from([("acknowledged".to_owned(), count)]));
    }
    let mut command = case.site.highwater(&["produce", "flights", "-"])?;
    command.stdin(Stdio::from(std::fs::File::open(case.site.path().join("stdin"))?));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "10 events acknowledged\n");
    let keys: Vec<_> = case.sent(20_020)?.into_iter().map(|record| record.key).collect();
    let expected: Vec<_> = (0..20_020).map(|flight| Some(format!("[\"AA\",{flight}]"))).collect();
    assert!(keys == expected, "keys differ");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_does_not_accept_is_named_with_what_it_did() -> anyhow::Result<()> {
    let case = Case::with_topic().await?;
    // No compression makes it small enough for the topic.
    let large: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    case.write("events.ndjson", format!("a\nb\n{large}\nc\n").as_bytes())?;
    let arguments = ["produce", "flights", "events.ndjson", "--output", "json"];
    let (code, stdout, stderr) = case.site.run(&arguments).await?;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("line 3 was not accepted by Kafka"), "{stderr}");
    let report: BTreeMap<String, usize> = serde_json::from_str(&stdout)?;
    let sent = case.sent(report["acknowledged"])?;
    assert!(sent.len() >= 2 && sent[1].value.as_deref() == Some(b"b"), "{sent:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_is_said_and_nothing_is_sent() -> anyhow::Result<()> {
    let case = Case::new().await?;
    case.write("events.ndjson", b"a\n")?;
    case.write("broken.gz", b"no gzip")?;
    let run = async |arguments: &[&str]| case.site.run(arguments).await;

    let (code, stdout, stderr) = run(&["produce", "fligths", "events.ndjson"]).await?;
    assert_eq!((code, &*stdout), (Some(2), ""));
    assert_eq!(stderr, "highwater: there is no dataset `fligths`; there are: flights\n");
    let (code, _, stderr) = run(&["produce", "flights", "none.ndjson"]).await?;
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("highwater: none.ndjson can't be read: "), "{stderr}");
    let (code, _, stderr) = run(&["produce", "flights", "definitions"]).await?;
    assert_eq!((code, &*stderr), (Some(1), "highwater: definitions is a folder\n"));
    let (code, ..) = run(&["produce", "flights", "events.ndjson", "--rate", "0"]).await?;
    assert_eq!(code, Some(2));

    let (code, stdout, stderr) = run(&["produce", "flights", "events.ndjson"]).await?;
    assert_eq!((code, &*stdout), (Some(1), ""));
    let none = format!("has no topic {}: make it with `highwater topics create`", case.topic);
    assert!(stderr.contains(&none) && stderr.contains("kafka.brokers"), "{stderr}");

    topics::ensure(&case.brokers, &[], &Topic::of_dataset(&case.topic, 1, 1 << 20)).await?;
    let (code, stdout, stderr) = run(&["produce", "flights", "broken.gz"]).await?;
    assert_eq!((code, &*stdout), (Some(1), "0 events acknowledged\n"));
    assert!(stderr.contains("broken.gz, line 1: can't be read"), "{stderr}");
    Ok(())
}
