//! A run that finds itself wrong publishes nothing, and says what differs. Each check has something planted for it.

use std::collections::BTreeSet;

use anyhow::Context;
use highwater_batch::{Outcome, ViewReport};
use shared_schemas::handoff::PublicationNumber;
use shared_schemas::store::quote;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, files, log};
use super::{on_engine, published};

fn failed(reports: &[ViewReport]) -> String {
    for report in reports {
        assert_eq!(report.result, Outcome::Failed, "{report:?}");
    }
    let why = reports[0].why.clone().unwrap_or_default();
    assert!(why.starts_with("nothing was published: "), "{why}");
    why
}

#[test]
fn an_event_that_the_log_tells_of_and_nobody_read() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        world.archive([16, 16], 1).await?;
        let logs = files(&world.archive_folder().join("flights/_delta_log"));
        let told = "\"read\":";
        let mut planted = false;
        for file in logs {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let Some(at) = text.find(told) else { continue };
            let (before, after) = text.split_at(at + told.len());
            let end = after.find(',').context("a number")?;
            let read: u64 = after[..end].parse()?;
            std::fs::write(&file, format!("{before}{}{}", read + 1, &after[end..]))?;
            planted = true;
        }
        assert!(planted, "the log tells what was read");
        let why = failed(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        assert!(why.contains("by the archive's log"), "{why}");
        assert!(world.newest("hourly").await.is_err(), "nothing is published");
        Ok(())
    })
}

#[test]
fn cells_that_are_no_more() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        published(&world.run(&["hourly"], &Quiet, &cancel).await);
        let store = &world.batch.store;
        let table = quote::table(store.database(), &batch_table_name(world.view("hourly")));
        let more = format!(
            "INSERT INTO {table} SELECT * EXCEPT number REPLACE (concat(ifNull(carrier, ''), toString(number)) AS carrier) \
             FROM (SELECT * FROM {table} AS t CROSS JOIN numbers(50) AS n)"
        );
        store.execute("plant cells", &more).await?;
        world.archive([40, 40], 1).await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(
            why.contains("came out, of which the publication before has") && why.contains("--accept"),
            "{why}"
        );
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(1));

        // What was planted is wrong, and somebody who looked says so.
        world.batch.accept = true;
        published(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(2));
        Ok(())
    })
}

#[test]
fn a_total_that_no_longer_is_what_it_was() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(2400);
        let outlier = events
            .iter_mut()
            .find(|event| event.offset > 2100 && event.delay.is_some());
        outlier.context("an event with a delay")?.delay = Some(50_000_000);
        let mut world = World::new(&server, events, "").await?;
        let cancel = CancellationToken::new();
        world.archive([2000, 2000], 1).await?;
        published(&world.run(&["hourly"], &Quiet, &cancel).await);
        world.archive([2400, 2400], 1).await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(why.contains("delay__sum") && why.contains("--accept"), "{why}");
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(1));
        assert_eq!(world.answer().await?, world.truth([2000, 2000]), "the old one answers");

        world.batch.accept = true;
        let accepted = world.run(&["hourly"], &Quiet, &cancel).await;
        published(&accepted);
        assert!(
            accepted[0]
                .checks
                .iter()
                .any(|check| check.says.starts_with("accepted: ")),
            "{accepted:?}"
        );
        assert_eq!(world.answer().await?, world.truth([2400, 2400]));
        Ok(())
    })
}

#[test]
fn a_row_that_the_speed_layer_has_and_the_archive_does_not() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        let uncut = BTreeSet::new();
        for number in [0, 1] {
            world.speed(number, 24, &uncut).await?;
        }
        let sound = world.run(&["daily"], &Quiet, &cancel).await;
        published(&sound);
        let says = |reports: &[ViewReport]| {
            let check = reports[0].checks.iter().find(|check| check.name == "speed");
            check.map(|check| check.says.clone()).unwrap_or_default()
        };
        assert!(
            says(&sound).starts_with("the speed layer counted the same on all"),
            "{sound:?}"
        );
        let store = &world.batch.store;
        let table = quote::table(store.database(), &speed_table_name(world.view("hourly")));
        let more = format!(
            "INSERT INTO {table} SELECT * REPLACE (delay__sum + 1 AS delay__sum, _next + 1 AS _next) FROM {table} FINAL"
        );
        store.execute("plant rows", &more).await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(
            why.contains("delay__sum") && why.contains("highwater reconcile"),
            "{why}"
        );
        world.batch.accept = true;
        published(&world.run(&["hourly"], &Quiet, &cancel).await);
        Ok(())
    })
}
