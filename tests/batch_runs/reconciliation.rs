//! Reconciliation: what is right is equal, what the speed layer could not know is explained, everything else is found.

use std::collections::BTreeSet;

use highwater_batch::reconcile::LeftOut;
use highwater_batch::{Reconciled, Selection, reconcile};
use highwater_tests::clickhouse::ClickHouse;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::world::{Event, Quiet, World, log};
use super::{on_engine, published};

async fn reconciled(world: &World) -> Vec<Reconciled> {
    let views = world.batch.selected(&Selection::default()).unwrap();
    reconcile(&world.batch, &views, &Quiet, &CancellationToken::new()).await
}

/// Kafka's clock between records, in seconds.
const APART: i64 = 120;

/// No cut is waited for: marks are at chunks' boundaries.
async fn world(server: &ClickHouse, log: Vec<Event>) -> anyhow::Result<World> {
    World::new(server, log, "commit_every = \"100ms\"\n[batch]\ncut_wait = \"0s\"\n").await
}

#[test]
fn what_is_right_is_equal_below_and_above_the_marks() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        let nothing = reconciled(&world).await;
        assert!(
            nothing.iter().all(|one| !one.is_sound() && one.compared == 0),
            "{nothing:?}"
        );

        // The speed layer alone, then both, then above a cut; the last start is never complete.
        world.archive([37, 30], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 37, &uncut).await?;
        world.speed(1, 30, &uncut).await?;
        let speed_alone = reconciled(&world).await;
        for one in &speed_alone {
            assert!(
                one.is_sound() && one.different == 0 && one.equal == one.compared,
                "{one:?}"
            );
            let compared: Vec<_> = one
                .partitions
                .iter()
                .map(|partition| (partition.mark, partition.up_to))
                .collect();
            assert_eq!(compared, [(0, 37), (0, 30)]);
        }
        // 3 measures a cell: as many as the answer has.
        assert_eq!(speed_alone[0].compared, 3 * world.answer().await?.len() as u64);

        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        let both = reconciled(&world).await;
        for one in &both {
            assert!(one.is_sound() && one.different == 0, "{one:?}");
            let compared: Vec<_> = one
                .partitions
                .iter()
                .map(|partition| (partition.mark, partition.up_to))
                .collect();
            assert_eq!(compared, [(32, 37), (24, 30)]);
        }
        assert_eq!(both[0].compared, speed_alone[0].compared);
        Ok(())
    })
}

#[test]
fn what_the_archive_does_not_have_yet_is_left_out() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        world.archive([21, 16], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 37, &uncut).await?;
        world.speed(1, 16, &uncut).await?;
        for one in reconciled(&world).await {
            assert!(one.is_sound() && one.different == 0, "{one:?}");
            let compared: Vec<_> = one
                .partitions
                .iter()
                .map(|partition| (partition.up_to, partition.left_out))
                .collect();
            assert_eq!(compared, [(16, Some(LeftOut::ArchiveBehind)), (16, None)]);
        }
        Ok(())
    })
}

#[test]
fn repeats_that_the_speed_layer_could_not_know_are_explained() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(40);
        let first = events
            .iter()
            .find(|event| event.partition == 0 && event.offset == 34)
            .cloned()
            .unwrap();
        let other_partition = Event {
            partition: 1,
            offset: 26,
            ..first
        };
        let old = events
            .iter()
            .find(|event| event.partition == 0 && event.offset == 3)
            .cloned()
            .unwrap();
        let beyond_the_window = Event { offset: 35, ..old };
        for repeat in [other_partition, beyond_the_window] {
            events.retain(|event| (event.partition, event.offset) != (repeat.partition, repeat.offset));
            events.push(repeat);
        }
        events.sort_by_key(|event| (event.partition, event.offset));
        let world = world(&server, events).await?;
        world.archive([40, 40], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 40, &uncut).await?;
        world.speed(1, 40, &uncut).await?;
        for one in reconciled(&world).await {
            assert!(one.is_sound() && one.different > 0, "{one:?}");
            assert!(
                one.differences.iter().all(|difference| difference.explained.is_some()),
                "{one:?}"
            );
        }
        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        for one in reconciled(&world).await {
            assert!(one.is_sound() && one.different == 0, "a run drops them: {one:?}");
        }
        Ok(())
    })
}

#[test]
fn a_repeat_that_the_speed_layer_should_have_known_is_not() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(40);
        let old = events
            .iter()
            .find(|event| event.partition == 0 && event.offset == 31)
            .cloned()
            .unwrap();
        events.retain(|event| (event.partition, event.offset) != (0, 34));
        // Six minutes later, in a window of ten. The speed layer of these tests drops nothing.
        events.push(Event { offset: 34, ..old });
        events.sort_by_key(|event| (event.partition, event.offset));
        let world = world(&server, events).await?;
        world.archive([40, 40], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 40, &uncut).await?;
        world.speed(1, 40, &uncut).await?;
        for one in reconciled(&world).await {
            assert!(
                one.unexplained > 0 && one.unexplained == one.different && !one.is_sound(),
                "{one:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn lost_and_changed_rows_are_found() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        world.archive([37, 30], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 37, &uncut).await?;
        world.speed(1, 30, &uncut).await?;
        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        assert!(reconciled(&world).await.iter().all(Reconciled::is_sound));

        let (store, view) = (&world.batch.store, world.view("hourly"));
        let speed = format!("`{}`.`{}`", store.database(), speed_table_name(view));
        // Its cell has other rows, in batch or in speed: nothing but a count gives it away.
        let lose =
            format!("ALTER TABLE {speed} DELETE WHERE _start = 32 AND carrier = 'AA' SETTINGS mutations_sync = 2");
        store.execute("lose rows", &lose).await?;
        let found = reconciled(&world).await;
        assert!(found[1].is_sound(), "the other view lost nothing: {:?}", found[1]);
        assert!(found[0].unexplained > 0, "{:?}", found[0]);
        for difference in &found[0].differences {
            assert_eq!(
                difference.dimensions["carrier"].as_deref(),
                Some("AA"),
                "{difference:?}"
            );
        }

        let batch = format!("`{}`.`{}`", store.database(), batch_table_name(world.view("daily")));
        let change = format!(
            "ALTER TABLE {batch} UPDATE flights__count = flights__count + 1 WHERE 1 SETTINGS mutations_sync = 2"
        );
        store.execute("change rows", &change).await?;
        let found = reconciled(&world).await;
        assert!(
            found[1].unexplained > 0 && found[1].differences.iter().all(|one| one.measure == "flights"),
            "{:?}",
            found[1]
        );

        // States in a function's own form, in either layer's rows; and a set, which is what batch rows are answered from.
        let (batch, speed) = (
            batch_table_name(world.view("kinds")),
            speed_table_name(world.view("kinds")),
        );
        for (table, measure, change) in [
            (
                &speed,
                "carriers",
                "carriers__sketch = arrayReduce('uniqState', [toUInt64(9)])",
            ),
            (
                &batch,
                "carriers",
                "carriers__exact = arrayReduce('uniqExactState', [toUInt128(9)])",
            ),
            (&batch, "fares", "fares__beyond = 1"),
            (
                &batch,
                "delay_q",
                "delay_q__sketch = arrayReduce('quantilesDDState(0.01, 0.5, 0.95)', [7.5])",
            ),
            (
                &speed,
                "closing",
                "closing__last = arrayReduce('argMaxState', [CAST(1, 'Decimal(10, 2)')], \
                 [CAST((1, 2, 3), 'Tuple(Int64, UInt64, UInt32)')])",
            ),
        ] {
            let change = format!(
                "ALTER TABLE `{}`.`{table}` UPDATE {change} WHERE 1 SETTINGS mutations_sync = 2",
                store.database()
            );
            let before = reconciled(&world).await[2].clone();
            store.execute("change states", &change).await?;
            let found = reconciled(&world).await[2].clone();
            let of = |found: &Reconciled| found.differences.iter().filter(|one| one.measure == measure).count();
            assert!(
                of(&found) > of(&before) && found.unexplained > before.unexplained,
                "{measure}: {found:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_ledger_that_tells_something_else_is_found() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        // Two commits, so that the second chunk is told in two pieces.
        world.archive([11, 9], APART).await?;
        world.archive([37, 30], APART).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 37, &uncut).await?;
        world.speed(1, 27, &uncut).await?;
        for one in reconciled(&world).await {
            let ledgers = &one.ledgers;
            assert!(one.is_sound() && ledgers.equal == ledgers.compared, "{one:?}");
            // Five and four starts; the last one of partition 1 ends inside a piece.
            assert_eq!((ledgers.compared, ledgers.with_commits), (9, 8));
        }

        let (store, view) = (&world.batch.store, world.view("hourly"));
        let change = async |what: &str, start: u64| {
            let sql = format!(
                "ALTER TABLE `{}`.`progress` {what} WHERE fingerprint = '{}' AND _partition = 0 AND _start = {start} \
                 SETTINGS mutations_sync = 2",
                store.database(),
                view.fingerprint
            );
            store.execute("change progress", &sql).await
        };
        // It adds up, and is not what the archive read.
        change(
            "UPDATE read = read + 1, aggregated = aggregated + 1, holes = holes - 1",
            8,
        )
        .await?;
        let found = reconciled(&world).await;
        assert!(
            found[1].is_sound(),
            "the other view's ledgers are right: {:?}",
            found[1]
        );
        assert!(!found[0].is_sound() && found[0].alarms.is_empty(), "{:?}", found[0]);
        let difference = &found[0].ledgers.differences[0];
        assert_eq!((difference.partition, difference.start, difference.next), (0, 8, 16));
        assert_eq!(difference.told.read.map(|read| read - 1), difference.archived.read);
        assert_eq!((found[0].ledgers.unexplained, difference.explained), (1, None));

        // It does not add up.
        change("UPDATE repeated = repeated + 1", 8).await?;
        let found = reconciled(&world).await;
        assert!(
            found[0].alarms[0].contains("partition 0, start 8"),
            "{:?}",
            found[0].alarms
        );

        // It is gone: later chunks don't follow on what is before.
        change("DELETE", 8).await?;
        let found = reconciled(&world).await;
        assert_eq!(
            found[0].alarms,
            ["partition 0: offsets 8 to 15 are not counted, and later ones are"]
        );
        assert!(!found[0].is_sound());
        Ok(())
    })
}

#[test]
fn refused_records_are_compared_by_their_reasons() -> anyhow::Result<()> {
    on_engine(|server| async move {
        // Offset 5, 12, ... are holes in this log: here two of them are records that were refused, of which the speed
        // layer's ledgers know nothing.
        let world = world(&server, log(40)).await?;
        world.archive_refusing([16, 8], &[(0, 5), (0, 12)]).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 16, &uncut).await?;
        world.speed(1, 8, &uncut).await?;
        for one in reconciled(&world).await {
            assert!(!one.is_sound() && one.different == 0, "all cells are equal: {one:?}");
            let ledgers = &one.ledgers;
            assert_eq!((ledgers.compared, ledgers.equal, ledgers.unexplained), (3, 1, 2));
            let archived = ledgers.differences[0].archived.invalid.as_ref().unwrap();
            assert_eq!(archived["empty"], 1, "{ledgers:?}");
        }
        Ok(())
    })
}

/// As a build before this one made it.
#[test]
fn progress_of_an_earlier_build_gets_its_columns() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(16)).await?;
        let store = &world.batch.store;
        let table = format!("`{}`.`progress`", store.database());
        let lacking = "DROP COLUMN aggregated, DROP COLUMN reasons, DROP COLUMN gap";
        store
            .execute("alter", &format!("ALTER TABLE {table} {lacking}"))
            .await?;
        store.create_tables(&world.batch.definitions).await?;
        world.speed(0, 8, &BTreeSet::new()).await?;
        let ledgers = store.ledgers(world.view("hourly")).await?;
        assert_eq!(ledgers[0].2.balances(ledgers[0].1), Ok(()));
        Ok(())
    })
}
