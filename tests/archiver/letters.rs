//! Dead letters: what they carry, what they leave out, and that nothing is committed before they are there.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use highwater_tests::stack::PATIENCE;

use super::world::{FIELDS, World, event};

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_the_record_and_why() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let producer: FutureProducer = world.client(&[]).create()?;
    let header = |key, value| Header { key, value };
    let headers = OwnedHeaders::new()
        .insert(header("origin", Some("here")))
        .insert(header("none", None::<&str>))
        // As of a letter that was sent again.
        .insert(header("highwater-reason", Some("not_json")));
    let bad = FutureRecord::to(world.topic())
        .partition(0)
        .key("k")
        .payload(&b"{\"n\": \xff}"[..]);
    let sent = producer
        .send(bad.headers(headers), PATIENCE)
        .await
        .map_err(|(error, _)| error)?;
    let tombstone = FutureRecord::<_, ()>::to(world.topic()).partition(0).key("t");
    producer.send(tombstone, PATIENCE).await.map_err(|(error, _)| error)?;
    let archiver = world.start()?;
    world.until_archived(&[2]).await?;
    archiver.stop().await?;

    let letters = world.letters().await?;
    let [bad, tombstone] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!(bad.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(bad.value.as_deref(), Some(&b"{\"n\": \xff}"[..]));
    let own = ["reason", "detail", "dataset", "source", "source-time"].map(|name| format!("highwater-{name}"));
    let names: Vec<_> = bad.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [&["origin", "none"], &own.each_ref().map(String::as_str)[..]].concat()
    );
    assert_eq!(bad.header("origin"), "here");
    assert_eq!(bad.header("highwater-reason"), "bad_utf8");
    assert_eq!(bad.header("highwater-detail"), "the value is not UTF-8 at byte 6");
    assert_eq!(bad.header("highwater-dataset"), "flights");
    assert_eq!(bad.header("highwater-source"), format!("{}/0/0", world.topic()));
    let time = chrono::DateTime::parse_from_rfc3339(bad.header("highwater-source-time"))?;
    assert_eq!(Some(time.timestamp_millis()), sent.timestamp.to_millis());
    assert_eq!(
        (tombstone.key.as_deref(), tombstone.value.as_deref()),
        (Some(&b"t"[..]), None)
    );
    assert_eq!(tombstone.header("highwater-reason"), "empty");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_masked_datasets_tell_nothing() -> anyhow::Result<()> {
    let masked = "secret = \"string?\"\n[dataset.flights.mask]\nsecret = \"redact\"";
    let world = World::new(1).await?.with_fields(&format!("{FIELDS}{masked}"))?;
    let producer: FutureProducer = world.client(&[]).create()?;
    let headers = OwnedHeaders::new().insert(Header {
        key: "origin",
        value: Some("hush"),
    });
    let bad = FutureRecord::to(world.topic())
        .partition(0)
        .key("hush")
        .payload("{\"secret\": \"hush\"}");
    producer
        .send(bad.headers(headers), PATIENCE)
        .await
        .map_err(|(error, _)| error)?;
    let archiver = world.start()?;
    world.until_archived(&[1]).await?;
    archiver.stop().await?;
    let letters = world.letters().await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("highwater-reason"), "missing_field");
    assert!(letters[0].key.is_none() && letters[0].value.is_none());
    assert!(!format!("{letters:?}").contains("hush"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_is_left_out() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    world.limit_letters(2000).await?;
    // Does not compress.
    let long: String = std::iter::repeat_with(fastrand::alphanumeric).take(20_000).collect();
    world.send(0, ["short".to_owned(), long, "short".to_owned()]).await?;
    let archiver = world.start()?;
    world.until_archived(&[3]).await?;
    archiver.stop().await?;
    let letters = world.letters().await?;
    let mut values: Vec<_> = letters
        .iter()
        .map(|letter| (letter.header("highwater-source"), letter.value.as_ref().map(Vec::len)))
        .collect();
    values.sort_unstable();
    let source = |offset| format!("{}/0/{offset}", world.topic());
    let (first, second, third) = (source(0), source(1), source(2));
    assert_eq!(values, [(&first[..], Some(5)), (&second, None), (&third, Some(5))]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_before_its_letters() -> anyhow::Result<()> {
    let world = World::without_letters().await?;
    world
        .send(0, (0..5).map(event).chain(["bad".to_owned()]).chain((6..10).map(event)))
        .await?;
    let archiver = world.start()?;
    world.until_table().await?;
    assert_eq!(world.pin().await?.version, 0);
    world.make_letters().await?;
    world.until_archived(&[10]).await?;
    archiver.stop().await?;
    let letters = world.letters().await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(world.archived().await?.len(), 9);
    Ok(())
}
