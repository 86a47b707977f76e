//! `highwater dead-letters` as its users run it, on letters that an archiver wrote: listed, shown, and sent again once.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use highwater_tests::stack::{PATIENCE, Site};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use super::world::{FIELDS, Letter, World, event};

/// What the command says, and its exit code.
async fn run(site: &Site, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let arguments = [&["dead-letters"], arguments, &["--output", "json"]].concat();
    let (code, stdout, stderr) = site.run(&arguments).await?;
    let told = serde_json::from_str(&stdout).with_context(|| format!("{code:?}\n{stdout}\n{stderr}"))?;
    Ok((code, told))
}

/// The records of the topic as soon as there are so many: what a transaction wrote is seen a moment after its end.
async fn until_records(world: &World, count: usize) -> anyhow::Result<Vec<Letter>> {
    let began = std::time::Instant::now();
    loop {
        let records = world.records(world.topic().to_owned()).await?;
        if records.len() >= count {
            return Ok(records);
        }
        ensure!(began.elapsed() < PATIENCE, "{} of {count} records", records.len());
    }
}

/// The values of a member, in order.
fn all<'a>(rows: &'a Value, member: &str) -> Vec<&'a Value> {
    rows.as_array().into_iter().flatten().map(|row| &row[member]).collect()
}

/// How many there are of each outcome.
fn outcomes(report: &Value) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for outcome in all(&report["records"], "outcome") {
        *counts
            .entry(outcome.as_str().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_and_shown() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let site = world.site()?;
    world
        .send(0, [event(0), "no json".to_owned(), "[1]".to_owned()])
        .await?;
    let producer: FutureProducer = world.client(&[]).create()?;
    let header = |key, value| Header { key, value };
    let headers = OwnedHeaders::new()
        .insert(header("origin", Some(&b"h\xc3\xa4re"[..])))
        .insert(header("none", None));
    let binary = FutureRecord::to(world.topic())
        .partition(1)
        .key("k")
        .payload(&b"\x1b[2J\xff"[..]);
    producer
        .send(binary.headers(headers), PATIENCE)
        .await
        .map_err(|(error, _)| error)?;
    let archiver = world.start()?;
    world.until_archived(&[3, 1]).await?;
    archiver.stop().await?;

    let source = |place: &str| json!(format!("{}/{place}", world.topic()));
    let (code, list) = run(&site, &["list", "flights"]).await?;
    assert_eq!((code, &list["more"]), (Some(0), &json!(false)), "{list:#}");
    // The newest first.
    let found = all(&list["letters"], "source");
    assert_eq!(found.len(), 3);
    assert_eq!(found[0], &source("1/0"));
    let sources = async |arguments: &[&str]| -> anyhow::Result<Vec<Value>> {
        let (code, list) = run(&site, &[&["list", "flights"], arguments].concat()).await?;
        ensure!(code == Some(0), "{list:#}");
        Ok(all(&list["letters"], "source").into_iter().cloned().collect())
    };
    assert_eq!(sources(&["--reason", "not_object"]).await?, [source("0/2")]);
    assert_eq!(sources(&["--partition", "0"]).await?.len(), 2);
    assert_eq!(sources(&["--partition", "0", "--offset", "1"]).await?, [source("0/1")]);
    assert_eq!(sources(&["--from", "1h"]).await?.len(), 3);
    assert_eq!(sources(&["--to", "1h"]).await?.len(), 0);
    assert_eq!(sources(&["--limit", "1"]).await?, [source("1/0")]);
    assert_eq!(sources(&["--replayed"]).await?.len(), 0);

    let (code, shown) = run(&site, &["show", "flights", "1/0"]).await?;
    assert_eq!(code, Some(0), "{shown:#}");
    assert_eq!(all(&shown, "value"), [&json!({"hex": "1b5b324aff"})]);
    assert_eq!(all(&shown, "key"), [&json!({"text": "k"})]);
    assert_eq!(all(&shown, "reason"), [&json!("bad_utf8")]);
    let headers = &shown[0]["letter_headers"];
    assert_eq!(headers[0], json!({"name": "origin", "value": {"text": "häre"}}));
    assert_eq!(headers[1], json!({"name": "none", "value": null}));
    let (code, screen, _) = site.run(&["dead-letters", "show", "flights", "0/1"]).await?;
    assert_eq!(code, Some(0));
    assert!(
        screen.contains("value            no json\n") && screen.contains("reason           not_json\n"),
        "{screen}"
    );

    for (wrong, code) in [
        (&["list", "fligths"][..], 2),
        (&["list", "flights", "--reason", "none"], 2),
        (&["list", "flights", "--offset", "1"], 2),
        (&["show", "flights", "elsewhere/0/1"], 2),
        (&["show", "flights", "0/0"], 1),
        (&["replay", "flights"], 2),
        (&["replay", "flights", "0/1", "0/2", "--payload", "x"], 2),
    ] {
        let (found, stdout, stderr) = site.run(&[&["dead-letters"], wrong].concat()).await?;
        assert_eq!((found, &*stdout), (Some(code), ""), "{wrong:?}: {stderr}");
        assert!(!stderr.is_empty());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_sent_again_once() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let site = world.site()?;
    let producer: FutureProducer = world.client(&[]).create()?;
    let headers = OwnedHeaders::new()
        .insert(Header {
            key: "origin",
            value: Some("here"),
        })
        .insert(Header {
            key: "highwater-own",
            value: Some("x"),
        });
    let bad = FutureRecord::to(world.topic()).partition(0).key("k").payload("bad");
    producer
        .send(bad.headers(headers), PATIENCE)
        .await
        .map_err(|(error, _)| error)?;
    world.send(0, ["worse".to_owned()]).await?;
    let archiver = world.start()?;
    world.until_archived(&[2]).await?;

    let (code, report) = run(&site, &["replay", "flights", "--all", "--dry-run"]).await?;
    assert_eq!(
        (code, outcomes(&report)),
        (Some(0), [("would_send".to_owned(), 2)].into())
    );
    assert_eq!(world.letters().await?.len(), 2, "a dry run writes nothing");

    let (code, report) = run(&site, &["replay", "flights", "0/0"]).await?;
    assert_eq!(
        (code, outcomes(&report)),
        (Some(0), [("sent".to_owned(), 1)].into()),
        "{report:#}"
    );
    assert_eq!(report["records"][0]["to"], json!(format!("{}/0/2", world.topic())));
    let sent = until_records(&world, 3).await?;
    let again = sent.last().context("no record")?;
    assert_eq!(
        (again.key.as_deref(), again.value.as_deref()),
        (Some(&b"k"[..]), Some(&b"bad"[..]))
    );
    let source = format!("{}/0/0", world.topic());
    let expected = [("origin", "here"), ("highwater-replayed", &*source)];
    let expected = expected.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    assert_eq!(again.headers, expected);

    // Again only what was not yet, unless told to.
    let (code, report) = run(
        &site,
        &["replay", "flights", "--partition", "0", "--to", "2100-01-01T00:00:00Z"],
    )
    .await?;
    assert_eq!(code, Some(0));
    let counts = outcomes(&report);
    assert_eq!(
        (counts["sent_before"], report["records"][0]["source"].as_str()),
        (1, Some(&*source)),
        "{report:#}"
    );
    let (_, list) = run(&site, &["list", "flights", "--replayed"]).await?;
    assert!(all(&list["letters"], "source").contains(&&json!(source)), "{list:#}");
    assert!(list["letters"][0]["replayed_at"].is_string());
    let (code, report) = run(&site, &["replay", "flights", "0/0", "--again"]).await?;
    assert_eq!((code, outcomes(&report)), (Some(0), [("sent".to_owned(), 1)].into()));

    // What is refused again is a letter of its own, that says what it was.
    world.until_letters(5).await?;
    let found = async || -> anyhow::Result<usize> {
        let (_, list) = run(&site, &["list", "flights"]).await?;
        let of = all(&list["letters"], "replay_of");
        Ok(of.into_iter().filter(|of| **of == json!(source)).count())
    };
    let began = std::time::Instant::now();
    while found().await? < 2 {
        ensure!(began.elapsed() < PATIENCE, "never refused again");
    }
    let (code, report) = run(&site, &["replay", "flights", "0/99"]).await?;
    assert_eq!(
        (code, outcomes(&report)),
        (Some(1), [("no_letter".to_owned(), 1)].into())
    );
    archiver.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_at_once_send_each_record_once() -> anyhow::Result<()> {
    const BAD: usize = 300;
    let world = World::new(1).await?;
    let site = world.site()?;
    world.send(0, (0..BAD).map(|n| format!("bad {n}"))).await?;
    let archiver = world.start()?;
    world.until_archived(&[BAD as u64]).await?;
    archiver.stop().await?;

    let replay = || run(&site, &["replay", "flights", "--all"]);
    let (one, two, three) = tokio::join!(replay(), replay(), replay());
    // Whoever is fenced says so and exits 1; the last one does what is left.
    let codes = [one?.0, two?.0, three?.0];
    let (code, report) = replay().await?;
    assert_eq!(code, Some(0), "{report:#}");
    assert!(codes.contains(&Some(0)), "{codes:?}");
    let mut times = BTreeMap::<String, usize>::new();
    for record in until_records(&world, 2 * BAD).await? {
        let of = record.header("highwater-replayed");
        if !of.is_empty() {
            *times.entry(of.to_owned()).or_default() += 1;
        }
    }
    assert_eq!(times.len(), BAD);
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    // Their topic may see the end of a transaction later than the other.
    world.until_letters(2 * BAD).await?;
    let markers = world.letters().await?;
    let markers = markers
        .iter()
        .filter(|letter| letter.header("highwater-reason").is_empty());
    assert_eq!(markers.count(), BAD);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_letter_lacks_is_read_again_or_gone() -> anyhow::Result<()> {
    let masked = "secret = \"string?\"\n[dataset.flights.mask]\nsecret = \"redact\"";
    let world = World::new(1).await?.with_fields(&format!("{FIELDS}{masked}"))?;
    let site = world.site()?;
    let producer: FutureProducer = world.client(&[]).create()?;
    for number in 0..3 {
        let value = format!("{{\"secret\": \"hush\", \"n\": {number}}}");
        let bad = FutureRecord::to(world.topic()).partition(0).key("hush").payload(&value);
        producer.send(bad, PATIENCE).await.map_err(|(error, _)| error)?;
    }
    let archiver = world.start()?;
    world.until_archived(&[3]).await?;
    archiver.stop().await?;
    world.delete_below(0, 1).await?;

    let (_, list) = run(&site, &["list", "flights"]).await?;
    assert_eq!(all(&list["letters"], "value_bytes"), [&Value::Null; 3]);
    let (code, shown) = run(&site, &["show", "flights", "0/1"]).await?;
    assert_eq!((code, &shown[0]["hidden"]), (Some(0), &json!(true)));
    assert!(!shown.to_string().contains("hush"), "{shown:#}");
    let (_, shown) = run(&site, &["show", "flights", "0/1", "--unmasked"]).await?;
    assert_eq!(
        (&shown[0]["hidden"], &shown[0]["from"]),
        (&json!(false), &json!("source"))
    );
    assert_eq!(shown[0]["value"], json!({"text": "{\"secret\": \"hush\", \"n\": 1}"}));
    let (code, shown) = run(&site, &["show", "flights", "0/0", "--unmasked"]).await?;
    assert_eq!(
        (code, &shown[0]["from"], &shown[0]["value"]),
        (Some(0), &Value::Null, &Value::Null)
    );
    assert!(
        shown[0]["gone"]
            .as_str()
            .is_some_and(|why| why.contains("no longer has the record")),
        "{shown:#}"
    );

    let (code, report) = run(&site, &["replay", "flights", "--all"]).await?;
    let counts = [("gone".to_owned(), 1), ("sent".to_owned(), 2)];
    assert_eq!((code, outcomes(&report)), (Some(1), counts.into()), "{report:#}");
    let again = until_records(&world, 4).await?;
    let again: Vec<_> = again
        .iter()
        .filter(|record| !record.header("highwater-replayed").is_empty())
        .collect();
    assert_eq!(again.len(), 2);
    for (number, record) in (1..).zip(again) {
        let value = format!("{{\"secret\": \"hush\", \"n\": {number}}}");
        assert_eq!(
            (record.key.as_deref(), record.value.as_deref()),
            (Some(&b"hush"[..]), Some(value.as_bytes()))
        );
        assert_eq!(record.header("highwater-source"), "");
    }
    assert!(
        !format!("{:?}", world.letters().await?).contains("hush"),
        "a marker tells nothing"
    );

    // What is corrected needs no original.
    std::fs::write(site.path().join("corrected.json"), event(7) + "\n")?;
    let (code, report) = run(&site, &["replay", "flights", "0/0", "--payload", "corrected.json"]).await?;
    assert_eq!(
        (code, outcomes(&report)),
        (Some(0), [("sent".to_owned(), 1)].into()),
        "{report:#}"
    );
    let last = until_records(&world, 5).await?;
    assert_eq!(
        last.last().and_then(|record| record.value.clone()),
        Some(event(7).into_bytes())
    );
    Ok(())
}

/// The first transaction fails for one record that does not fit the topic any more; the others are sent all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_not_accepted_keeps_no_other_back() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let site = world.site()?;
    // Does not compress.
    let long: String = std::iter::repeat_with(fastrand::alphanumeric).take(20_000).collect();
    world
        .send(0, ["short".to_owned(), long, "short too".to_owned()])
        .await?;
    let archiver = world.start()?;
    world.until_archived(&[3]).await?;
    archiver.stop().await?;
    world.limit(world.topic(), 2_000).await?;
    let (code, report) = run(&site, &["replay", "flights", "--all"]).await?;
    let counts = [("not_accepted".to_owned(), 1), ("sent".to_owned(), 2)];
    assert_eq!((code, outcomes(&report)), (Some(1), counts.into()), "{report:#}");
    let row = report["records"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["outcome"] == "not_accepted");
    let row = row.context("none is refused")?;
    assert_eq!(row["source"], json!(format!("{}/0/1", world.topic())));
    assert!(
        row["why"].as_str().is_some_and(|why| why.contains("too large")),
        "{row}"
    );
    // What was not sent has no marker. Those of the others are seen a moment after the end of their transactions.
    world.until_letters(5).await?;
    let (_, list) = run(&site, &["list", "flights", "--open"]).await?;
    assert_eq!(all(&list["letters"], "source"), [&row["source"]]);
    Ok(())
}
