//! `highwater replay` as a user has it: what was archived comes again as it was, in order, and is not masked twice.

use anyhow::Context;
use highwater_tests::stack::{PATIENCE, run, shared, unique};
use local_stack::topics::{self, Topic};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use serde_json::{Value, json};

use crate::sql::site_at;

/// A record of the topic: key, value, headers, Kafka timestamp.
type Record = (String, Value, Vec<(String, String)>, i64);

fn records(brokers: &str, topic: &str) -> anyhow::Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "replayed")
        .set("auto.offset.reset", "earliest")
        .create()?;
    let mut found = Vec::new();
    let (_, end) = consumer.fetch_watermarks(topic, 0, PATIENCE)?;
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(topic, 0, rdkafka::Offset::Beginning)?;
    consumer.assign(&list)?;
    while found.len() < usize::try_from(end)? {
        let message = consumer.poll(PATIENCE).context("a record is missing")??;
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        found.push((
            text(message.key()),
            serde_json::from_slice(message.payload().unwrap_or_default())?,
            headers
                .map(|header| (header.key.to_owned(), text(header.value)))
                .collect(),
            message.timestamp().to_millis().unwrap_or_default(),
        ));
    }
    Ok(found)
}

#[test]
fn archived_events_come_again_as_they_were_and_in_order() -> anyhow::Result<()> {
    run(async {
        let brokers = shared().await?.addresses().kafka.clone();
        let site = site_at(&brokers).await?;
        let topic = unique("again");
        topics::ensure(&brokers, &[], &Topic::of_dataset(&topic, 1, 4096)).await?;
        let days = [
            "replay",
            "flights",
            "--from",
            "2013-01-02",
            "--to",
            "2013-01-03",
            "--into",
        ];

        let command = [&days[..], &[&topic, "--output", "json"]].concat();
        let (code, stdout, stderr) = site.run(&command).await?;
        assert_eq!(code, Some(0), "{stderr}");
        // Flights 10 to 19, of which 12, 15 and 18 came twice.
        assert_eq!(serde_json::from_str::<Value>(&stdout)?, json!({"acknowledged": 13}));
        let (found, topic) = (records(&brokers, &topic)?, unique("again"));
        let flights: Vec<_> = found
            .iter()
            .map(|(_, value, ..)| value["flight"].as_i64().unwrap_or_default())
            .collect();
        assert_eq!(flights, [10, 11, 12, 12, 13, 14, 15, 15, 16, 17, 18, 18, 19]);
        let (key, value, headers, time) = &found[0];
        assert_eq!(key, "[10]", "keyed as by `highwater produce`");
        let sent = json!({"at": "2013-01-02T00:30:00Z", "flight": 10, "origin": "EWR", "fare": "10.50", "gate": 10});
        assert_eq!(*value, sent, "what was not declared comes along");
        assert_eq!(*headers, [("highwater-masked".to_owned(), "true".to_owned())]);
        assert!(*time > 1_600_000_000_000, "its Kafka timestamp is now");

        topics::ensure(&brokers, &[], &Topic::of_dataset(&topic, 1, 4096)).await?;
        let command = [&days[..], &[&topic, "--keep-times", "--rate", "100000"]].concat();
        let (code, _, stderr) = site.run(&command).await?;
        assert_eq!(code, Some(0), "{stderr}");
        let times: Vec<_> = records(&brokers, &topic)?.into_iter().map(|(.., time)| time).collect();
        assert_eq!(times, (1_357_300_000_014..1_357_300_000_027).collect::<Vec<_>>());
        anyhow::Ok(())
    })
}

#[test]
fn what_would_do_harm_or_nothing_is_refused() -> anyhow::Result<()> {
    run(async {
        let site = site_at("127.0.0.1:9").await?;
        for (arguments, said) in [
            (
                [
                    "flights",
                    "--from",
                    "2013-01-02",
                    "--to",
                    "2013-01-03",
                    "--into",
                    "flights",
                ],
                "flights is the topic that dataset `flights` is read from: its events would come again; name another one, or add --yes",
            ),
            (
                ["flights", "--from", "2013-01-03", "--to", "2013-01-03", "--into", "x"],
                "--from is not before --to: no event lies between them",
            ),
            (
                ["quiet", "--from", "2013-01-02", "--to", "2013-01-03", "--into", "x"],
                "dataset `quiet` reads the Kafka timestamp, which would be now: add --keep-times",
            ),
        ] {
            let (code, _, stderr) = site.run(&[&["replay"], &arguments[..]].concat()).await?;
            assert_eq!(
                (code, stderr.trim_end()),
                (Some(2), format!("highwater: {said}").as_str())
            );
        }
        anyhow::Ok(())
    })
}
