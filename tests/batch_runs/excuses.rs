//! What excuses a difference, and what it does not: other rules, files put aside; and where all that is computed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use highwater_batch::Reconciled;
use highwater_batch::archive::Archive;
use highwater_batch::reconcile::{Cause, Difference};
use highwater_tests::clickhouse::ClickHouse;
use shared_connections::store::ProgressRow;
use shared_schemas::dataset::{Dataset, Undeclared};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, Redo, Start};
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::causes::{APART, alter, counted, hourly, speed, world};
use super::world::{DEFINITIONS, Event, Quiet, World, files, log, partition};
use super::{on_engine, published};

/// Which layer refused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Archiver,
    SpeedLayer,
}

/// The archiver read under other rules, by which one of the layers refused an event.
async fn read_otherwise(server: &ClickHouse, change: impl Fn(&mut Dataset), refused: Refused) -> anyhow::Result<World> {
    let mut world = world(server, log(24)).await?;
    let (now, whole) = (world.batch.definitions.datasets[0].clone(), world.log.clone());
    let mut without = whole.clone();
    without.retain(|event| (event.partition, event.offset) != (0, 10));
    let [archived, counted] = match refused {
        Refused::Archiver => [without, whole],
        Refused::SpeedLayer => [whole, without],
    };
    change(&mut world.batch.definitions.datasets[0]);
    let store = &world.batch.store;
    store.record_rules(&world.batch.definitions.datasets).await?;
    world.log = archived;
    let by_archiver = (refused == Refused::Archiver).then_some((0, 10));
    world.archive_refusing([24, 16], by_archiver.as_slice()).await?;
    world.batch.definitions.datasets[0] = now;
    world.log = counted;
    speed(&world, [24, 16]).await?;
    Ok(world)
}

#[test]
fn other_rules_excuse_only_what_they_can_change() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let later = |dataset: &mut Dataset| dataset.future = Duration::from_secs(60);
        for refused in [Refused::Archiver, Refused::SpeedLayer] {
            let found = hourly(&read_otherwise(&server, later, refused).await?).await;
            let told: Vec<_> = found
                .differences
                .iter()
                .map(|one| (&one.measure[..], one.cause, one.unproved))
                .collect();
            let excused = |measure| (measure, Cause::DefinitionChanged, None);
            match refused {
                // Nobody knows what the archiver refused.
                Refused::Archiver => {
                    let [("delay", Cause::Unexplained, Some(_)), flights] = told[..] else {
                        panic!("{told:?}")
                    };
                    assert_eq!((flights, found.unexplained), (excused("flights"), 1));
                    let contributions = &found.differences[0].contributions;
                    assert_eq!(contributions[0].state, "flights__count=2", "with the other partition's");
                    assert!(found.differences[0].says().contains("(flights__count=2)"));
                }
                Refused::SpeedLayer => {
                    assert_eq!(
                        (told, found.unexplained),
                        (vec![excused("flights"), excused("delay")], 0)
                    );
                }
            }
            // A cell that the speed layer has no row of is one too.
            let place = &found.differences[0].place[0];
            assert_eq!(
                (place.layer, place.partition, place.start),
                ("speed", Some(0), Some(8)),
                "{place:?}"
            );
            assert_eq!(place.held.is_none(), refused == Refused::SpeedLayer, "{place:?}");
        }

        // No answer can tell whether undeclared data is kept.
        let drops = |dataset: &mut Dataset| dataset.privacy.undeclared = Undeclared::Drop;
        let found = hourly(&read_otherwise(&server, drops, Refused::Archiver).await?).await;
        assert!(
            found.unexplained > 0 && found.unexplained == found.different,
            "{found:?}"
        );
        assert!(found.ledgers.unexplained > 0, "{found:?}");
        Ok(())
    })
}

/// No rule makes a row hold more events than its start's ledger tells of.
#[test]
fn other_rules_excuse_no_row_that_was_changed_by_hand() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let later = |dataset: &mut Dataset| dataset.future = Duration::from_secs(60);
        let world = read_otherwise(&server, later, Refused::Archiver).await?;
        let change = "UPDATE flights__count = flights__count + 1002 WHERE _partition = 0 AND _start = 16";
        alter(&world, &speed_table_name(world.view("hourly")), change).await?;
        let found = hourly(&world).await;
        let unexplained = found.differences.iter().filter(|one| one.cause == Cause::Unexplained);
        let (unproved, wrong): (Vec<_>, Vec<_>) = unexplained.partition(|one| one.unproved.is_some());
        assert!(!wrong.is_empty() && unproved.len() == 1, "{found:?}");
        assert_eq!(found.unexplained, (wrong.len() + unproved.len()) as u64);
        assert!(wrong.iter().all(|one| one.measure == "flights"), "{wrong:?}");
        assert!(wrong.iter().all(|one| one.place[0].start == Some(16)), "{wrong:?}");
        assert!(
            found.different > found.unexplained,
            "the other start's are still excused: {found:?}"
        );
        Ok(())
    })
}

/// Where rules changed in the middle of a start, what the archive read under those of now must be in its rows as it is, and an event that one
/// of the layers refused is found out by its place alone.
#[test]
fn what_was_read_under_the_rules_of_now_is_exact() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = world(&server, log(24)).await?;
        let (now, whole) = (world.batch.definitions.datasets[0].clone(), world.log.clone());
        world.batch.definitions.datasets[0].future = Duration::from_secs(60);
        let store = world.batch.store.clone();
        store.record_rules(&world.batch.definitions.datasets).await?;
        // The last one before the change is refused too.
        world.log.retain(|event| (event.partition, event.offset) != (0, 20));
        world.archive_refusing([21, 16], &[(0, 20)]).await?;
        world.batch.definitions.datasets[0] = now;
        world.log = whole;
        world.archive([24, 24], APART).await?;
        speed(&world, [24, 24]).await?;
        let found = hourly(&world).await;
        assert!(found.different > 0 && found.unexplained == 0, "{found:?}");
        let one = &found.differences[0];
        assert_eq!(one.cause, Cause::DefinitionChanged, "{one:?}");
        assert_eq!(one.contributions[0].state, "flights__count=1", "{one:?}");

        // A sum beside a right count, of the one event that the cell is made of there.
        let of_now = "WHERE _partition = 0 AND _start = 16 AND carrier = 'ZZ' AND _window = '2013-11-01 03:00:00'";
        let table = speed_table_name(world.view("hourly"));
        alter(&world, &table, &format!("UPDATE delay__sum = delay__sum + 5 {of_now}")).await?;
        let wrong = |found: &Reconciled| -> Vec<_> {
            let wrong = found.differences.iter().filter(|one| one.cause == Cause::Unexplained);
            let said = |one: &Difference| {
                let place = one.place.first().and_then(|place| place.start);
                (one.measure.clone(), one.dimensions["carrier"].clone(), place)
            };
            wrong.map(said).collect()
        };
        let in_row = |measure: &str| (measure.to_owned(), Some("ZZ".to_owned()), Some(16));
        let found = hourly(&world).await;
        assert_eq!(wrong(&found), [in_row("delay")], "{found:?}");
        assert!(
            found.different > found.unexplained,
            "the other one is still excused: {found:?}"
        );

        // An event moved to another cell of the start, so that its ledger is right.
        alter(&world, &table, &format!("UPDATE delay__sum = delay__sum - 5 {of_now}")).await?;
        let moved = "UPDATE flights__count = if(carrier = 'ZZ', flights__count - 1, flights__count + 1) WHERE \
                     _partition = 0 AND _start = 16 AND _window = '2013-11-01 03:00:00' AND carrier IN ('ZZ', 'AA')";
        alter(&world, &table, moved).await?;
        let found = hourly(&world).await;
        assert!(wrong(&found).contains(&in_row("flights")), "{found:?}");
        Ok(())
    })
}

/// The dataset as it was, as far as it is kept.
async fn was(world: &mut World, earlier: &str, is_kept: bool) -> anyhow::Result<Dataset> {
    let text = DEFINITIONS.replace("chunk = 8\n", &format!("chunk = 8\n{earlier}\n"));
    let before = Definitions::parse([("flights.toml", text)])?;
    let store = &world.batch.store;
    store.record_rules(&before.datasets).await?;
    if is_kept {
        store.record_definitions(&before).await?;
    }
    let now = world.batch.definitions.datasets[0].clone();
    world.batch.definitions.datasets[0] = before.datasets[0].clone();
    Ok(now)
}

/// A sum that was changed by hand, in a cell whose events were all archived under other rules.
#[test]
fn a_wrong_sum_is_not_put_down_to_other_rules() -> anyhow::Result<()> {
    on_engine(|server| async move {
        // Whether the rules of now take all that the earlier ones took, as far as anybody knows.
        for (earlier, is_kept, takes_all) in [
            ("future = \"1m\"", true, true),
            ("future = \"1m\"", false, false),
            ("future = \"1h\"", true, false),
        ] {
            let mut world = world(&server, log(24)).await?;
            let now = was(&mut world, earlier, is_kept).await?;
            world.archive_refusing([24, 16], &[(0, 5)]).await?;
            world.batch.definitions.datasets[0] = now;
            speed(&world, [24, 16]).await?;
            let found = hourly(&world).await;
            assert!(found.is_sound() && found.different == 0, "{found:?}");

            let change = "UPDATE delay__sum = delay__sum + 5 WHERE _partition = 0 AND _start = 8 AND carrier = 'ZZ' AND \
                          _window = '2013-10-31 23:00:00'";
            alter(&world, &speed_table_name(world.view("hourly")), change).await?;
            let found = hourly(&world).await;
            let [wrong] = &found.differences[..] else {
                panic!("{found:?}")
            };
            assert_eq!(
                (wrong.cause, found.unexplained),
                (Cause::Unexplained, 1),
                "{earlier}: {found:?}"
            );
            assert_eq!(wrong.unproved.is_none(), takes_all, "{earlier}, {is_kept}: {found:?}");
            assert_eq!(wrong.contributions.is_empty(), takes_all, "{found:?}");
            assert_eq!(wrong.place[0].start, Some(8), "{found:?}");

            // And back: what is lost is no other rules' either, where these take all. The ledger is of a row without the event.
            let gone =
                "DELETE WHERE _partition = 0 AND _start = 8 AND carrier = 'ZZ' AND _window = '2013-10-31 23:00:00'";
            alter(&world, &speed_table_name(world.view("hourly")), gone).await?;
            counting_less(&world, Start(Offset(8)), 0).await?;
            let found = hourly(&world).await;
            let causes: BTreeSet<_> = found.differences.iter().map(|one| one.cause).collect();
            let cause = if takes_all {
                Cause::Unexplained
            } else {
                Cause::DefinitionChanged
            };
            assert_eq!(causes, BTreeSet::from([cause]), "{earlier}, {is_kept}: {found:?}");
        }
        Ok(())
    })
}

/// Has the ledger of a start of partition 0 count one event less: another repeat, or a record that was refused.
async fn counting_less(world: &World, start: Start, repeats: u64) -> anyhow::Result<()> {
    let (store, view) = (&world.batch.store, world.view("hourly"));
    let ledgers = store.ledgers(view).await?;
    let of_start = ledgers
        .into_iter()
        .find(|(of, at, _)| *of == partition(0) && *at == start);
    let (_, _, mut ledger) = of_start.context("the start has a ledger")?;
    ledger.aggregated -= 1;
    ledger.repeated += repeats;
    if repeats == 0 {
        ledger.invalid.insert("future_time".to_owned(), 1);
    }
    let row = ProgressRow {
        fingerprint: view.fingerprint,
        partition: partition(0),
        start,
        redo: Redo::default(),
        ledger,
    };
    Ok(store.record_progress(&[row]).await?)
}

/// The archiver refused an event's first copy, so that its archive has the second one, and the speed layer the first.
#[test]
fn a_repeat_whose_first_copy_the_archive_refused_is_none_that_is_lost() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let of = |events: &[Event], offset: u64| {
            let found = events
                .iter()
                .find(|event| (event.partition, event.offset) == (0, offset));
            found.cloned().unwrap()
        };
        let mut events = log(24);
        // In one cell: an event that comes twice, and another one.
        let copy = Event {
            offset: 17,
            ..of(&events, 15)
        };
        let beside = Event {
            offset: 13,
            flight: 9001,
            delay: Some(7),
            ..of(&events, 15)
        };
        events.retain(|event| event.partition != 0 || ![13, 17].contains(&event.offset));
        events.extend([copy, beside]);
        events.sort_by_key(|event| (event.partition, event.offset));
        let mut world = world(&server, events.clone()).await?;
        let now = was(&mut world, "future = \"1m\"", true).await?;
        world
            .log
            .retain(|event| event.partition != 0 || ![13, 15].contains(&event.offset));
        world.archive_refusing([16, 16], &[(0, 13), (0, 15)]).await?;
        world.batch.definitions.datasets[0] = now;
        world.archive([24, 16], APART).await?;
        // The speed layer counts the first copy, and knows the second.
        world.log = events;
        speed(&world, [24, 16]).await?;
        let row = "DELETE WHERE _partition = 0 AND _start = 16 AND carrier = 'AA' AND _window = '2013-11-01 01:00:00'";
        alter(&world, &speed_table_name(world.view("hourly")), row).await?;

        let of_cell = |found: &Reconciled| -> Vec<_> {
            let told = found.differences.iter();
            told.map(|one| (one.measure.clone(), one.cause, one.unproved.is_some()))
                .collect()
        };
        let told = |measure: &str, cause, unproved| (measure.to_owned(), cause, unproved);
        // A row that the ledger does not speak for is wrong.
        let found = hourly(&world).await;
        assert!(
            of_cell(&found).contains(&told("flights", Cause::Unexplained, false)),
            "{found:?}"
        );
        counting_less(&world, Start(Offset(16)), 1).await?;
        let found = hourly(&world).await;
        assert_eq!(
            of_cell(&found),
            [
                told("delay", Cause::Unexplained, true),
                told("flights", Cause::DefinitionChanged, false)
            ],
            "{found:?}"
        );
        Ok(())
    })
}

/// Rows count what a file held that was put aside; and no more than it held.
#[test]
fn rows_of_a_day_that_was_put_aside_are_put_down_to_the_gap() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(80)).await?;
        counted(&world, [80, 80]).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let mut archive = Archive::open_or_create(&world.batch.config.archive, world.dataset()).await?;
        for file in files(&world.archive_folder()) {
            let file = file.to_string_lossy().into_owned();
            if let Some((_, name)) = file.rsplit_once('/').filter(|_| file.contains("2013-10-31")) {
                archive.quarantine(name, true, true).await?;
            }
        }
        let found = hourly(&world).await;
        assert!(found.is_sound() && found.different > 0, "{found:?}");
        for one in &found.differences {
            assert_eq!((one.cause, one.layer), (Cause::Gap, Some("batch")), "{one:?}");
            assert!(one.window.starts_with("2013-10-31"), "{one:?}");
        }
        assert!(
            found.mendable.is_empty(),
            "a repair would lose what is in these rows alone"
        );

        let change = "UPDATE flights__count = flights__count + 1000 WHERE carrier = 'ZZ' AND _day = '2013-10-31'";
        alter(&world, &batch_table_name(world.view("hourly")), change).await?;
        let found = hourly(&world).await;
        assert!(found.unexplained > 0, "{found:?}");
        Ok(())
    })
}

#[test]
fn it_spills_where_it_is_told_to() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let nowhere = "commit_every = \"100ms\"\n[batch]\ncut_wait = \"0s\"\nspill = \"/dev/null/spill\"\n";
        let world = World::new(&server, log(24), nowhere).await?;
        counted(&world, [24, 16]).await?;
        let found = hourly(&world).await;
        assert!(
            found.why.as_ref().is_some_and(|why| why.contains("/dev/null/spill")),
            "{found:?}"
        );
        Ok(())
    })
}

#[test]
fn it_takes_no_more_room_on_disk_than_it_may() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = world(&server, log(24)).await?;
        counted(&world, [24, 16]).await?;
        let change = "UPDATE flights__count = flights__count + 1 WHERE _start = 8";
        alter(&world, &speed_table_name(world.view("hourly")), change).await?;
        world.batch.config.batch.spill_limit = 1_000;
        let found = hourly(&world).await;
        let why = found.why.as_deref().unwrap_or_default();
        assert!(why.contains("`batch.spill_limit`"), "{found:?}");
        assert_eq!(why.matches("on disk").count(), 1, "one sentence: {why}");
        Ok(())
    })
}
