//! Records that are no events, of every kind, between good ones: each is counted and dead-lettered with its place and
//! reason, in both layers alike, and the stream goes on.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use highwater_tests::platform::Platform;
use highwater_tests::stack::{PATIENCE, shared};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use shared_connections::log::Kafka;
use shared_connections::log::letters::Letter;
use shared_connections::log::letters::find::Order;
use shared_schemas::definitions::Definitions;
use tokio::time::Instant;

const DEFINITIONS: &str = r#"
[dataset.events]
topic = "TOPIC"
partitions = 2
event_time = "at"
event_id = ["n"]
chunk = 256
max_event_size = "4KiB"
dedupe = { window = "1h" }

[dataset.events.fields]
at = "timestamp"
n = "int64"
x = "float64?"
d = "decimal(5,2)?"
kind = "string?"

[view.hourly]
dataset = "events"
grain = "1h"

[view.hourly.measures]
events = "count()"
"#;

/// Larger than any topic takes by itself.
const HUGE: usize = 10 << 20;

/// Bytes that no compression makes small, or the topic of dead letters would take them.
fn huge() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..HUGE).map(|_| random.u8(b' '..=b'~')).collect()
}

/// Each kind of poison, with the reason for which it is refused.
fn poison() -> Vec<(Option<Vec<u8>>, &'static str)> {
    let event = |rest: &str| Some(format!("{{\"at\": \"2013-01-01T00:30:00Z\", {rest}}}").into_bytes());
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let nested = |depth: usize| {
        event(&format!(
            "\"n\": 1, \"deep\": {}{}",
            "[".repeat(depth),
            "]".repeat(depth)
        ))
    };
    let tomorrow = chrono::Utc::now() + chrono::TimeDelta::days(1);
    vec![
        (text("{\"at\": 1"), "not_json"),
        (text("nonsense"), "not_json"),
        (text("{} {}"), "not_json"),
        (event("\"n\": NaN"), "not_json"),
        (event("\"n\": 1, \"x\": Infinity"), "not_json"),
        (nested(200), "not_json"),
        // Open brackets alone, and as many as fit: nobody's stack is to run over.
        (Some(vec![b'['; 4_096]), "not_json"),
        (text("[1]"), "not_object"),
        (text("7"), "not_object"),
        (None, "empty"),
        (text(""), "empty"),
        (text("null"), "empty"),
        (Some(b"{\"n\": \xff\xfe}".to_vec()), "bad_utf8"),
        (event("\"n\": null"), "missing_field"),
        (text("{}"), "missing_field"),
        (event("\"n\": \"12\""), "wrong_type"),
        (event("\"n\": 1e3"), "wrong_type"),
        (event("\"n\": 1, \"kind\": {}"), "wrong_type"),
        (event("\"n\": 9223372036854775808"), "out_of_range"),
        (event("\"n\": 1, \"x\": 1e999"), "out_of_range"),
        (event("\"n\": 1, \"d\": 1000"), "out_of_range"),
        (event("\"n\": 1, \"d\": 1.239"), "inexact"),
        (text("{\"at\": \"2013-01-01\", \"n\": 1}"), "bad_time"),
        (text("{\"at\": 5, \"n\": 1}"), "bad_time"),
        (
            Some(format!("{{\"at\": \"{}\", \"n\": 1}}", tomorrow.to_rfc3339()).into_bytes()),
            "future_time",
        ),
        (Some(vec![b'x'; 4_097]), "too_large"),
        (Some(huge()), "too_large"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_behind_every_kind_of_poison() -> anyhow::Result<()> {
    let mut platform = Platform::new(None).await?;
    platform.definitions = Definitions::parse([("poison.toml", DEFINITIONS.replace("TOPIC", &platform.topic))])
        .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    platform.store().create_tables(&platform.definitions).await?;
    let brokers = shared().await?.addresses().kafka.clone();
    take_larger(&brokers, &platform.topic).await?;
    platform.start().await?;

    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("message.max.bytes", (2 * HUGE).to_string())
        .create()?;
    let (mut good, mut offset, mut expected) = (0_u64, 0_u64, BTreeMap::new());
    let mut send = async |key: Option<&str>, value: Option<&[u8]>| -> anyhow::Result<u64> {
        let mut record = FutureRecord::<str, [u8]>::to(&platform.topic).partition(0);
        (record.key, record.payload) = (key, value);
        let sent = producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
        ensure!(sent.offset == i64::try_from(offset)?, "another offset than the next");
        offset += 1;
        Ok(offset - 1)
    };
    for (number, (value, reason)) in poison().into_iter().enumerate() {
        let at = send(Some("k"), value.as_deref()).await?;
        expected.insert(at, (reason, value));
        // No key; now and then days late; what is odd but no fault: names that come twice, undeclared fields.
        let day = if number % 5 == 0 { "2012-12-01" } else { "2013-01-01" };
        let event =
            format!("{{\"at\": \"{day}T00:30:00Z\", \"n\": null, \"n\": {number}, \"more\": [{{}}], \"x\": 1e-999}}");
        send(None, Some(event.as_bytes())).await?;
        good += 1;
        if number % 7 == 0 {
            // A repeat is neither poison nor counted.
            send(None, Some(event.as_bytes())).await?;
        }
    }
    let sent = offset;

    let path = "/api/v1/views/hourly/query?from=2012-01-01T00:00:00Z&to=2014-01-01T00:00:00Z&measures=events";
    let began = Instant::now();
    loop {
        let events = platform.ask(path).await?["data"][0]["events"]
            .as_u64()
            .unwrap_or_default();
        ensure!(events <= good, "{events} of {good}");
        if events == good {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{events} of {good} good events are counted");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    platform.until_archived().await?;

    // Both layers say of each what it was.
    let mut reasons = BTreeMap::<&str, u64>::new();
    for (reason, _) in expected.values() {
        *reasons.entry(*reason).or_default() += 1;
    }
    let began = Instant::now();
    let ledgers = loop {
        // They come after the rows that the answer is made of.
        let mut ledgers = platform.store().ledgers(&platform.definitions.views[0]).await?;
        ledgers.retain(|(partition, ..)| partition.number == 0);
        let read = ledgers.iter().map(|(_, _, ledger)| ledger.read).sum::<u64>();
        if read == sent {
            break ledgers;
        }
        ensure!(began.elapsed() < PATIENCE, "{read} of {sent} records are in ledgers");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    for (reason, count) in &reasons {
        let counted = ledgers.iter().filter_map(|(_, _, ledger)| ledger.invalid.get(*reason));
        assert_eq!(counted.sum::<u64>(), *count, "{reason}");
    }
    let kafka = Kafka::new(&platform.config.kafka)?;
    let topic = platform.topic.clone();
    let letters = tokio::task::spawn_blocking(move || kafka.letters(&topic, Order::OldestFirst, &|_| true)).await??;
    let found: BTreeMap<u64, &Letter> = letters
        .letters
        .iter()
        .map(|letter| (letter.source.offset.0, letter))
        .collect();
    assert_eq!(found.len(), expected.len());
    for (at, (reason, value)) in &expected {
        let letter = found.get(at).with_context(|| format!("no letter of {at}, {reason}"))?;
        assert_eq!(letter.reason, *reason, "{at}: {}", letter.detail);
        assert!(!letter.detail.is_empty() && letter.source.partition == 0);
        let length = value.as_ref().map(Vec::len);
        // The topic of dead letters does not take what is huge: its place is told.
        let kept = length.filter(|length| *length < HUGE);
        assert_eq!(letter.value_bytes, kept, "{at}, {reason}");
    }
    platform.stop_all().await
}

/// Lets the topic take what is huge, and waits until it does.
pub(crate) async fn take_larger(brokers: &str, topic: &str) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> = config.set("bootstrap.servers", brokers).create()?;
    let (options, bytes) = (AdminOptions::new(), (2 * HUGE).to_string());
    let larger = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &bytes);
    for altered in admin.alter_configs([&larger], &options).await? {
        altered.map_err(|(_, code)| anyhow::anyhow!("{code}"))?;
    }
    let began = Instant::now();
    loop {
        let described = admin
            .describe_configs([&ResourceSpecifier::Topic(topic)], &options)
            .await?;
        let resource = described
            .into_iter()
            .next()
            .context("no answer")?
            .map_err(|code| anyhow::anyhow!("{code}"))?;
        if resource
            .get("max.message.bytes")
            .and_then(|entry| entry.value.as_deref())
            == Some(&bytes)
        {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the larger limit is never seen");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
