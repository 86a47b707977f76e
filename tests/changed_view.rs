//! A view that is changed and changed back, with all layers on real servers: what was answered before the change is answered
//! until a batch run has published the new definition, and the old one goes on where it was when it comes back.

use anyhow::{Context, ensure};
use highwater_batch::{Batch, Logs};
use highwater_tests::platform::{Cells, Event, Platform, VIEWS, cells};
use highwater_tests::stack::PATIENCE;
use serde_json::{Value, json};
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::Answering;
use tokio::time::Instant;

const ALL: &str = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z";

/// Another measure, another filter: events of kind `c` are left out.
fn changed(topic: &str) -> anyhow::Result<Definitions> {
    let text = VIEWS
        .replace("TOPIC", topic)
        .replacen("highest = \"max(value)\"", "lowest = \"min(value)\"", 1)
        .replacen(
            "dimensions = [\"kind\"]",
            "dimensions = [\"kind\"]\nfilter = \"kind <> 'c'\"",
            1,
        );
    Definitions::parse([("views.toml", text)]).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))
}

fn fingerprint(platform: &Platform) -> Fingerprint {
    platform.definitions.views[0].fingerprint
}

async fn one(platform: &Platform, measure: &str) -> anyhow::Result<Value> {
    Ok(platform.ask(&format!("{ALL}&measures={measure}")).await?["data"][0][measure].clone())
}

/// Waits until the answer has these cells.
async fn until(platform: &Platform, expected: &Cells) -> anyhow::Result<()> {
    let began = Instant::now();
    while platform.answer("merged").await? != *expected {
        ensure!(began.elapsed() < PATIENCE, "the answer never comes to what was sent");
        // sleeps: until the speed layer has come on.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until the speed layer has counted the whole log for what is building.
async fn until_counted(platform: &Platform) -> anyhow::Result<Value> {
    let began = Instant::now();
    loop {
        let page = platform.ask("/api/v1/views/hourly").await?;
        let counted = &page["definition"]["counted"];
        if counted.is_object() && counted["offsets_read"] == counted["offsets"] {
            return Ok(page);
        }
        ensure!(began.elapsed() < PATIENCE, "it never comes to the end: {page:#}");
        // sleeps: until the speed layer has come on.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_changed_and_changed_back() -> anyhow::Result<()> {
    let mut old = Platform::new(None).await?;
    old.start().await?;
    old.send((0..1_500).map(Event)).await?;
    old.until_whole().await?;
    old.until_archived().await?;
    old.publish().await?;
    let before = old.answer("merged").await?;
    let highest = one(&old, "highest").await?;
    assert_eq!(before, cells(&old.sent()));
    assert_eq!(old.ask(ALL).await?.get("definition"), None);

    // Every process is started again with the new definitions; only the archiver, which knows no view, goes on.
    old.stop("speed").await?;
    old.stop("serving").await?;
    let mut new = old.beside(changed(&old.topic)?).await?;
    ensure!(fingerprint(&old) != fingerprint(&new), "it is the same view");
    new.start_serving().await?;
    assert_eq!(new.answer("merged").await?, before);
    let answer = new.ask(ALL).await?;
    assert_eq!(answer["definition"]["building"], fingerprint(&new).to_string());
    assert_eq!(answer["definition"]["answered_by"], fingerprint(&old).to_string());

    // The new one is counted, and what comes meanwhile is its alone: the old one stands as it was.
    new.start_speed()?;
    new.send((1_500..1_700).map(Event)).await?;
    let page = until_counted(&new).await?;
    assert_eq!(
        (&page["building"], &page["publication"]["marks"]),
        (&json!(true), &answer["publication"]["marks"])
    );
    assert_eq!(new.answer("merged").await?, before);
    assert_eq!(one(&new, "highest").await?, highest);
    let refused = one(&new, "lowest").await.map_err(|error| error.to_string());
    ensure!(
        matches!(&refused, Err(error) if error.contains("409") && error.contains("was changed")),
        "{refused:?}"
    );
    // The other view was not changed.
    assert_eq!(new.ask("/api/v1/views/daily/query").await?.get("definition"), None);

    // Collection leaves the old one's rows alone, and it is no unused view.
    let batch = Batch::new(new.config.clone(), new.definitions.clone())?;
    let views: Vec<_> = new.definitions.views.iter().collect();
    for collected in batch.collect_what_is_old(&views, &Logs).await {
        ensure!(collected.error.is_none(), "{collected:?}");
    }
    let held = |known: shared_connections::store::Known| known.answering_for_others(&new.definitions);
    let answering = held(new.store().known().await?);
    assert_eq!(answering.get(&fingerprint(&old)), Some(&vec!["hourly".to_owned()]));
    assert_eq!(new.answer("merged").await?, before);

    // The first publication of the new one: it answers, without a restart.
    new.until_archived().await?;
    new.publish_if_any().await?;
    let sent = new.sent();
    let passing = || sent.iter().filter(|event| event.kind() != "c");
    until(&new, &cells(passing())).await?;
    assert_eq!(new.ask(ALL).await?.get("definition"), None);
    let lowest = passing().filter_map(|event| event.value()).min().context("no value")?;
    assert_eq!(one(&new, "lowest").await?, json!(lowest.to_string()));
    ensure!(one(&new, "highest").await.is_err(), "the new one has no such measure");
    assert!(held(new.store().known().await?).is_empty());

    // And back: it answers at once from its own publication, and goes on from there like any view.
    new.stop("speed").await?;
    new.stop("serving").await?;
    old.start_serving().await?;
    assert_eq!(old.answer("merged").await?, before);
    assert_eq!(old.ask(ALL).await?.get("definition"), None);
    let known = old.store().known().await?;
    assert!(known.answering_for_others(&old.definitions).is_empty());
    assert!(matches!(known.answering(&old.definitions.views[0]), Answering::Itself));
    old.start_speed()?;
    until(&old, &cells(&sent)).await?;
    old.until_archived().await?;
    old.publish_if_any().await?;
    assert_eq!(old.answer("merged").await?, cells(&sent));
    new.stop_all().await?;
    old.stop_all().await
}
