//! A run that finds itself wrong publishes nothing, and says what differs. Each check has something planted for it.

use std::collections::BTreeSet;

use anyhow::Context;
use highwater_batch::{Outcome, ViewReport};
use highwater_tests::stack::{highwater_in, said_in};
use serde_json::Value;
use shared_connections::store::ProgressRow;
use shared_schemas::handoff::{PublicationNumber, Redo};
use shared_schemas::store::quote;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::world::{Event, Quiet, World, files, log};
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

fn of_speed(reports: &[ViewReport]) -> String {
    let check = reports[0].checks.iter().find(|check| check.name == "speed");
    check.map(|check| check.says.clone()).unwrap_or_default()
}

/// Adds 1 to a sum in the speed layer's rows of these starts.
async fn plant_sum(world: &World, of: &str) -> anyhow::Result<()> {
    let store = &world.batch.store;
    let table = quote::table(store.database(), &speed_table_name(world.view("hourly")));
    let more = format!(
        "INSERT INTO {table} SELECT * REPLACE (delay__sum + 1 AS delay__sum, _next + 1 AS _next) FROM {table} FINAL WHERE {of}"
    );
    Ok(store.execute("plant rows", &more).await?)
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
        assert!(
            of_speed(&sound).starts_with("the speed layer counted the same on all"),
            "{sound:?}"
        );
        plant_sum(&world, "1").await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(
            why.contains("delay__sum") && why.contains("highwater reconcile"),
            "{why}"
        );

        // What a run that failed told can be seen, though it made no publication.
        let site = world.site(server.url(), "")?;
        let last = ["batch", "show", "--last", "--view", "hourly"];
        let (code, told, stderr) = said_in(&site, &last).await?;
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(
            (&told[0]["publication"], &told[0]["report"]["result"]),
            (&Value::Null, &"failed".into())
        );
        assert_eq!(told[0]["report"]["why"], why);
        let run = told[0]["run"].as_str().context("an id")?;
        let output = highwater_in(&site, &["batch", "show", "--run", &run[..30]])?
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        for part in [
            "result        failed\n",
            &format!("why           {why}\n"),
            "speed fails: ",
            "; choosing ",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let output = highwater_in(&site, &["batch", "show", "--run", "nope"])?
            .output()
            .await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains("highwater: there is no run `nope`: "), "{stderr}");

        world.batch.accept = true;
        published(&world.run(&["hourly"], &Quiet, &cancel).await);
        world.batch.accept = false;

        // One that failed before it began is seen too.
        std::fs::remove_dir_all(world.archive_folder())?;
        world.archive([8, 16], 1).await?;
        let behind = world.run(&["hourly"], &Quiet, &cancel).await;
        let why = behind[0].why.clone().context("no reason")?;
        assert!(
            why.ends_with(
                "the archive ends at offset 8, below the published mark 16: commits that were published from are gone"
            ),
            "{why}"
        );
        let (_, told, stderr) = said_in(&site, &last).await?;
        assert_eq!(told[0]["report"]["why"], why, "{stderr}");

        // An archive of a later program: a sentence, and nothing is done.
        let entry = world
            .archive_folder()
            .join("flights/_delta_log")
            .join(format!("{:020}.json", 0));
        let text = std::fs::read_to_string(&entry)?;
        std::fs::write(&entry, text.replace("\"minReaderVersion\":1", "\"minReaderVersion\":9"))?;
        let (code, told, stderr) = said_in(&site, &["batch", "run", "--view", "hourly"]).await?;
        assert_eq!(code, Some(1), "{stderr}");
        let why = told[0]["why"].as_str().unwrap_or_default();
        let asks = "it asks for version 9 of Delta Lake's readers";
        assert!(why.contains(asks) || why.contains("version"), "{why}");
        let output = highwater_in(&site, &["sql", "SELECT count(*) FROM flights"])?
            .output()
            .await?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(1));
        Ok(())
    })
}

/// What lies below a cut, beside a partition of which the speed layer knows nothing, or read under other rules, is compared as far as that
/// goes.
#[test]
fn a_cut_or_other_rules_keep_no_other_offsets_from_being_compared() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "[batch]\ncut_wait = \"0s\"\n").await?;
        let cancel = CancellationToken::new();
        // A cut at 21 of the one partition; of the other the speed layer has counted nothing.
        world.archive([21, 16], 120).await?;
        world.speed(0, 38, &BTreeSet::new()).await?;
        plant_sum(&world, "_start = 8").await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(why.contains("delay__sum"), "{why}");

        // What is planted was counted under other rules than those that the archive was read by.
        let store = &world.batch.store;
        let view = world.view("hourly");
        let mut ledgers = store.ledgers(view).await?;
        ledgers.retain(|(_, start, _)| start.0.0 == 8);
        let progress = ledgers.into_iter().map(|(partition, start, mut ledger)| {
            ledger.rules = "other".to_owned();
            ProgressRow {
                fingerprint: view.fingerprint,
                partition,
                start,
                redo: Redo::default(),
                ledger,
            }
        });
        store.record_progress(&progress.collect::<Vec<_>>()).await?;
        let fell_back = world.run(&["hourly"], &Quiet, &cancel).await;
        published(&fell_back);
        let says = of_speed(&fell_back);
        assert!(
            says.starts_with("the speed layer counted the same on all")
                && says.contains("16 offsets in chunks that it has not counted whole")
                && says.ends_with("8 offsets that the layers read under other rules"),
            "{says}"
        );
        Ok(())
    })
}

/// A repeat that the speed layer can't know excuses what it adds to counts and sums, and nothing else on its day.
#[test]
fn a_repeat_excuses_just_what_it_adds() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(40);
        let first = events
            .iter()
            .find(|event| event.partition == 0 && event.offset == 3)
            .cloned();
        let again = events
            .iter_mut()
            .find(|event| event.partition == 1 && event.offset == 9);
        *again.context("an event")? = Event {
            partition: 1,
            offset: 9,
            ..first.context("an event")?
        };
        let world = World::new(&server, events, "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        for number in [0, 1] {
            world.speed(number, 24, &BTreeSet::new()).await?;
        }
        plant_sum(&world, "_start = 0").await?;
        let why = failed(&world.run(&["hourly"], &Quiet, &cancel).await);
        assert!(why.contains("delay__sum"), "{why}");
        // As it was.
        let store = &world.batch.store;
        let table = quote::table(store.database(), &speed_table_name(world.view("hourly")));
        store.execute("empty rows", &format!("TRUNCATE TABLE {table}")).await?;
        for number in [0, 1] {
            world.speed(number, 24, &BTreeSet::new()).await?;
        }
        let sound = world.run(&["hourly"], &Quiet, &cancel).await;
        published(&sound);
        assert!(
            of_speed(&sound).starts_with("the speed layer counted the same but for repeats on 1 of "),
            "{sound:?}"
        );
        Ok(())
    })
}
