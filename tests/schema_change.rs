//! Fault 21: a schema that changes in the middle of a topic, and definitions that change under running workers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use arrow::array::{Array, AsArray};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use highwater_tests::platform::{Cells, Difference, Event, Platform, VIEWS, cells, total};
use highwater_tests::stack::PATIENCE;
use serde_json::{Value, json};
use shared_connections::log::Kafka;
use shared_connections::log::letters::find::Order;
use shared_schemas::config::ArchiveUrl;
use shared_schemas::definitions::Definitions;
use tokio::time::Instant;

use crate::faults::trial::trials;

fn definitions(text: &str) -> anyhow::Result<Definitions> {
    Definitions::parse([("views.toml", text)]).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))
}

/// An event as a producer of another version writes it.
fn changed(number: u64, change: impl FnOnce(&mut Value)) -> anyhow::Result<Vec<u8>> {
    let mut event: Value = serde_json::from_str(&Event(number).json())?;
    change(&mut event);
    Ok(event.to_string().into_bytes())
}

/// The same without a field.
fn without(number: u64, field: &str) -> anyhow::Result<Vec<u8>> {
    changed(number, |event| {
        drop(event.as_object_mut().map(|event| event.remove(field)));
    })
}

/// No cell has more events than it may.
fn never_more(now: &Cells, most: &Cells) -> anyhow::Result<()> {
    for (cell, (events, _)) in now {
        let most = most.get(cell).map_or(0, |(events, _)| *events);
        ensure!(*events <= most, "{cell:?} has {events} events, {most} were sent");
    }
    Ok(())
}

/// Waits until the answer has these cells.
async fn until(platform: &Platform, expected: &Cells) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let now = platform.answer("merged").await?;
        if now == *expected {
            return Ok(());
        }
        never_more(&now, expected)?;
        ensure!(began.elapsed() < PATIENCE, "{:?} of {:?}", total(&now), total(expected));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Old and new producers at once: what is added goes on, what is dropped may be null, all else is refused by record.
#[test]
fn records_of_a_new_schema_are_read_or_refused_one_by_one() -> anyhow::Result<()> {
    trials("21", "fields added, dropped, of another type", 4, async |trial| {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        platform.send((0..100).map(Event)).await?;
        let mut expected = cells(&platform.sent());
        let mut refused = BTreeMap::<&str, u64>::new();
        let mut added = BTreeSet::new();
        for number in 100..200 {
            let mut without_value = false;
            let (record, reason) = match trial.random.u8(..7) {
                0 => {
                    added.insert(number);
                    (changed(number, |event| event["more"] = json!({"since": 2}))?, None)
                }
                1 => {
                    without_value = true;
                    (without(number, "value")?, None)
                }
                2 => (without(number, "kind")?, Some("missing_field")),
                3 => (
                    changed(number, |event| event["n"] = json!(number.to_string()))?,
                    Some("wrong_type"),
                ),
                // A wider type than was declared.
                4 => (
                    changed(number, |event| event["value"] = json!(u64::MAX - number))?,
                    Some("out_of_range"),
                ),
                // A field under another name: the old one is missing, the new one is kept.
                5 => {
                    added.insert(number);
                    without_value = true;
                    let renamed = changed(number, |event| {
                        drop(event.as_object_mut().map(|event| event.remove("value")));
                        event["more"] = json!({"since": 2});
                    })?;
                    (renamed, None)
                }
                _ => (Event(number).json().into_bytes(), None),
            };
            platform.send_bad([record]).await?;
            match reason {
                Some(reason) => *refused.entry(reason).or_default() += 1,
                None => {
                    for (cell, (events, value)) in cells(&[Event(number)]) {
                        let held = expected.entry(cell).or_default();
                        held.0 += events;
                        held.1 += if without_value { 0 } else { value };
                    }
                }
            }
        }
        until(&platform, &expected).await?;
        platform.until_archived().await?;

        let kafka = Kafka::new(&platform.config.kafka)?;
        let topic = platform.topic.clone();
        let letters = tokio::task::spawn_blocking(move || kafka.letters(&topic, Order::OldestFirst, &|_| true));
        let letters = letters.await??.letters;
        let mut found = BTreeMap::<&str, u64>::new();
        for letter in &letters {
            *found.entry(&letter.reason).or_default() += 1;
        }
        ensure!(found == refused, "{found:?} instead of {refused:?}");

        let kept = extra(&platform).await?;
        ensure!(
            kept.keys().copied().collect::<BTreeSet<_>>() == added,
            "{kept:?} instead of {added:?}"
        );
        ensure!(
            kept.values().all(|extra| *extra == json!({"more": {"since": 2}})),
            "{kept:?}"
        );
        // A run reads files of both kinds in one go.
        platform.publish_to_end().await?;
        until(&platform, &expected).await?;
        let events = total(&expected).0;
        ensure!(
            platform.answer("batch").await? == expected,
            "the batch layer reads otherwise"
        );
        trial.told(events, Difference::default());
        platform.stop_all().await
    })
}

/// What the archive keeps of undeclared fields, by the event's number.
async fn extra(platform: &Platform) -> anyhow::Result<BTreeMap<u64, Value>> {
    let ArchiveUrl::Folder(folder) = &platform.config.archive.url else {
        bail!("the archive is no folder");
    };
    let mut folders = vec![folder.join(&platform.definitions.datasets[0].name)];
    let mut kept = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                let path = path.to_str().context("no text")?;
                kept.extend(extra_of(path).await?);
            }
        }
    }
    Ok(kept)
}

async fn extra_of(file: &str) -> anyhow::Result<BTreeMap<u64, Value>> {
    let mut kept = BTreeMap::new();
    let session = SessionContext::new();
    let table = session.read_parquet(file, ParquetReadOptions::default()).await?;
    // A checkpoint of the log of commits is no file of events.
    if table.schema().field_with_unqualified_name("_extra").is_err() {
        return Ok(kept);
    }
    for batch in table.select_columns(&["n", "_extra"])?.collect().await? {
        let numbers = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>();
        let extra = arrow::compute::cast(batch.column(1), &arrow::datatypes::DataType::Utf8)?;
        let extra = extra.as_string::<i32>();
        for row in (0..batch.num_rows()).filter(|row| extra.is_valid(*row)) {
            kept.insert(
                u64::try_from(numbers.value(row))?,
                serde_json::from_str(extra.value(row))?,
            );
        }
    }
    Ok(kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_takes_effect_on_restart_and_mixes_no_states() -> anyhow::Result<()> {
    let mut old = Platform::new(None).await?;
    old.start().await?;
    old.send((0..300).map(Event)).await?;
    old.until_whole().await?;

    // The files change under the running worker. It goes on as it began, and nothing is there of the new view.
    let text = VIEWS.replace("TOPIC", &old.topic);
    let text = text.replace("highest = \"max(value)\"", "lowest = \"min(value)\"");
    let mut new = old.beside(definitions(&text)?).await?;
    let fingerprint = |platform: &Platform| platform.definitions.views[0].fingerprint;
    ensure!(fingerprint(&old) != fingerprint(&new), "it is the same view");
    new.start_serving().await?;
    new.send((300..400).map(Event)).await?;
    until(&old, &cells(&new.sent())).await?;
    assert_eq!(new.answer("merged").await?, Cells::new());

    // The old and the new worker side by side: whichever partitions each of them has, neither counts anything twice.
    new.start_speed()?;
    for part in 0..10 {
        new.send((400 + part * 20..420 + part * 20).map(Event)).await?;
        let sent = cells(&new.sent());
        never_more(&old.answer("merged").await?, &sent)?;
        never_more(&new.answer("merged").await?, &sent)?;
    }

    // The restart is over: the new one has it all, and what the old one wrote is still the old view's alone.
    old.stop("speed").await?;
    new.until_whole().await?;
    never_more(&old.answer("merged").await?, &cells(&new.sent()))?;
    let path = |measure: &str| {
        format!("/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&measures={measure}")
    };
    let of = async |platform: &Platform, measure: &str| -> anyhow::Result<Value> {
        Ok(platform.ask(&path(measure)).await?["data"][0][measure].clone())
    };
    let sent = new.sent();
    let values = || sent.iter().copied().filter_map(Event::value);
    let lowest = values().min().context("no value")?;
    assert_eq!(of(&new, "lowest").await?, json!(lowest.to_string()));
    assert!(of(&new, "highest").await.is_err(), "the new view has no such measure");

    // And back: the old fingerprint goes on where it was, with what came since.
    new.stop("speed").await?;
    old.start_speed()?;
    until(&old, &cells(&new.sent())).await?;
    let highest = values().max().context("no value")?;
    assert_eq!(of(&old, "highest").await?, json!(highest.to_string()));
    new.stop_all().await?;
    old.stop_all().await
}
