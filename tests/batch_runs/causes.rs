//! Causes of differences: each planted, and put down to just what it is; corruption by hand, found with its place.

use std::collections::BTreeSet;

use highwater_batch::reconcile::{Cause, Difference, keep};
use highwater_batch::{Reconciled, Selection, reconcile, repair};
use highwater_tests::clickhouse::{ClickHouse, until};
use shared_connections::store::reconciliations::RECONCILIATIONS_KEPT;
use shared_connections::store::{ProgressRow, RulesDiffer};
use shared_schemas::dataset::{Dataset, KeyCheck, Mask};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, OffsetRange, Redo, Start};
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::world::{Event, Quiet, World, log, partition};
use super::{on_engine, published};

/// Kafka's clock between records, in seconds.
pub(super) const APART: i64 = 120;

pub(super) async fn world(server: &ClickHouse, log: Vec<Event>) -> anyhow::Result<World> {
    World::new(server, log, "commit_every = \"100ms\"\n[batch]\ncut_wait = \"0s\"\n").await
}

/// What comes of the view `hourly`.
pub(super) async fn hourly(world: &World) -> Reconciled {
    let only = Selection {
        views: vec!["hourly".to_owned()],
        datasets: Vec::new(),
    };
    let views = world.batch.selected(&only).unwrap();
    let mut found = reconcile(&world.batch, &views, &Quiet, &CancellationToken::new()).await;
    found.remove(0)
}

/// Both partitions are archived and counted up to there.
pub(super) async fn counted(world: &World, ends: [u64; 2]) -> anyhow::Result<()> {
    world.archive(ends, APART).await?;
    speed(world, ends).await
}

pub(super) async fn speed(world: &World, ends: [u64; 2]) -> anyhow::Result<()> {
    for (number, end) in (0..).zip(ends) {
        world.speed(number, end, &BTreeSet::new()).await?;
    }
    Ok(())
}

/// The log with these events in place of what is there.
fn with(mut events: Vec<Event>, planted: impl IntoIterator<Item = Event>) -> Vec<Event> {
    for event in planted {
        events.retain(|other| (other.partition, other.offset) != (event.partition, event.offset));
        events.push(event);
    }
    events.sort_by_key(|event| (event.partition, event.offset));
    events
}

fn event(events: &[Event], partition: u32, offset: u64) -> Event {
    let found = events
        .iter()
        .find(|event| (event.partition, event.offset) == (partition, offset));
    found.cloned().unwrap()
}

/// Where events are shown of differences, and as what.
fn shown(differences: &[Difference]) -> BTreeSet<(u32, u64, &'static str)> {
    let events = differences.iter().flat_map(|difference| &difference.events);
    events
        .map(|event| (event.partition, event.offset, event.counted))
        .collect()
}

pub(super) async fn alter(world: &World, table: &str, what: &str) -> anyhow::Result<()> {
    let store = &world.batch.store;
    let sql = format!(
        "ALTER TABLE `{}`.`{table}` {what} SETTINGS mutations_sync = 2",
        store.database()
    );
    Ok(store.execute("change rows", &sql).await?)
}

#[test]
fn each_repeat_is_put_down_to_what_hid_it() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let events = log(40);
        let beyond = Event {
            offset: 35,
            ..event(&events, 0, 3)
        };
        let across = Event {
            partition: 1,
            offset: 36,
            ..event(&events, 0, 34)
        };
        let world = world(&server, with(events, [beyond.clone(), across.clone()])).await?;
        counted(&world, [40, 40]).await?;
        let found = hourly(&world).await;
        assert!(found.is_sound() && found.different > 0, "{found:?}");
        let carrier = |difference: &Difference| difference.dimensions["carrier"].clone();
        for (planted, cause, name) in [
            (&beyond, Cause::RepeatBeyondWindow, "beyond_window"),
            (&across, Cause::RepeatAcrossPartitions, "across_partitions"),
        ] {
            let of: Vec<_> = found
                .differences
                .iter()
                .filter(|one| one.cause == cause)
                .cloned()
                .collect();
            assert!(!of.is_empty(), "{name}: {found:?}");
            for difference in &of {
                assert_eq!(carrier(difference).as_deref(), planted.carrier);
                let contributed: Vec<_> = difference.contributions.iter().map(|one| one.cause).collect();
                assert_eq!(contributed, [cause], "{difference:?}");
                assert!(
                    difference.place.is_empty(),
                    "the rows are as they should be: {difference:?}"
                );
            }
            assert_eq!(shown(&of), BTreeSet::from([(planted.partition, planted.offset, name)]));
            assert_eq!(found.causes[&cause], of.len() as u64);
            // By how much: the one event that is too much.
            let flights = of.iter().find(|one| one.measure == "flights").unwrap();
            assert_eq!(flights.contributions[0].state, "flights__count=1");
        }
        Ok(())
    })
}

#[test]
fn what_a_gap_lacks_is_put_down_to_it() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = world(&server, log(24)).await?;
        world.archive([24, 16], APART).await?;
        // The speed layer came when Kafka had lost offsets 8 to 11 of partition 0.
        let whole = world.log.clone();
        let gap = |event: &Event| event.partition == 0 && (8..12).contains(&event.offset);
        world.log.retain(|event| !gap(event));
        speed(&world, [24, 16]).await?;
        world.log = whole;
        let unrecorded = hourly(&world).await;
        assert!(
            unrecorded.unexplained > 0 && unrecorded.unexplained == unrecorded.different,
            "{unrecorded:?}"
        );
        assert!(
            unrecorded.differences.iter().all(|one| one.cause == Cause::Unexplained),
            "a gap that nobody recorded is none: {unrecorded:?}"
        );

        let store = &world.batch.store;
        let view = world.view("hourly");
        let range = OffsetRange {
            from: Offset(8),
            to: Offset(12),
        };
        store
            .record_gaps(&[(view.fingerprint, partition(0), Start(Offset(8)), range)])
            .await?;
        let (_, _, mut ledger) = store
            .ledgers(view)
            .await?
            .into_iter()
            .find(|(of, start, _)| *of == partition(0) && *start == Start(Offset(8)))
            .unwrap();
        ledger.gap = 4;
        let progress = ProgressRow {
            fingerprint: view.fingerprint,
            partition: partition(0),
            start: Start(Offset(8)),
            redo: Redo::default(),
            ledger,
        };
        store.record_progress(&[progress]).await?;
        let found = hourly(&world).await;
        assert!(found.is_sound() && found.different > 0, "{found:?}");
        assert!(found.differences.iter().all(|one| one.cause == Cause::Gap), "{found:?}");
        assert_eq!(
            shown(&found.differences),
            BTreeSet::from([(0, 8, "gap"), (0, 9, "gap"), (0, 10, "gap"), (0, 11, "gap")])
        );
        Ok(())
    })
}

#[test]
fn corruption_is_unexplained_and_has_its_place() -> anyhow::Result<()> {
    on_engine(|server| async move {
        // In the speed layer: a row removed, changed, doubled under another start.
        let of_start = "_partition = 0 AND _start = 32 AND carrier = 'AA'";
        let changes = [
            format!("DELETE WHERE {of_start}"),
            format!("UPDATE flights__count = flights__count + 1 WHERE {of_start}"),
        ];
        for (at, change) in changes.iter().enumerate() {
            let world = world(&server, log(40)).await?;
            // Seconds apart: of minutes above the boundary the run asks for a cut, which a slow one gets.
            world.archive([37, 30], 1).await?;
            speed(&world, [37, 30]).await?;
            published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
            assert!(hourly(&world).await.is_sound());
            alter(&world, &speed_table_name(world.view("hourly")), change).await?;
            let found = hourly(&world).await;
            assert!(
                found.different > 0 && found.unexplained == found.different,
                "{change}: {found:?}"
            );
            for difference in &found.differences {
                let place = &difference.place[0];
                assert_eq!(difference.place.len(), 1, "{difference:?}");
                assert_eq!(
                    (place.layer, place.partition, place.start),
                    ("speed", Some(0), Some(32)),
                    "{difference:?}"
                );
                assert_eq!(place.held.is_none(), at == 0, "{difference:?}");
                assert!(!difference.events.is_empty(), "{difference:?}");
                assert!(
                    difference.events.iter().all(|event| (32..37).contains(&event.offset)),
                    "{difference:?}"
                );
                assert_eq!(difference.events[0].values["carrier"].as_deref(), Some("AA"));
            }
        }

        // A row of the speed layer doubled: it also stands under a start that has none.
        let world = world(&server, log(40)).await?;
        counted(&world, [37, 30]).await?;
        let table = speed_table_name(world.view("hourly"));
        let store = &world.batch.store;
        let into = format!("`{}`.`{table}`", store.database());
        let double = format!(
            "INSERT INTO {into} SELECT * REPLACE(toUInt32(1) AS _partition, toUInt64(0) AS _start) FROM \
             (SELECT * FROM {into} FINAL WHERE {of_start})"
        );
        store.execute("double rows", &double).await?;
        let found = hourly(&world).await;
        assert!(found.different > 0 && found.unexplained == found.different, "{found:?}");
        for difference in &found.differences {
            let place = &difference.place[0];
            assert_eq!(
                (place.layer, place.partition, place.start),
                ("speed", Some(1), Some(0)),
                "{difference:?}"
            );
            assert!(place.held.is_some() && place.expected.is_none(), "{difference:?}");
        }
        Ok(())
    })
}

#[test]
fn corrupted_batch_rows_are_found_with_their_run() -> anyhow::Result<()> {
    on_engine(|server| async move {
        for change in [
            "DELETE WHERE carrier = 'ZZ' AND _window < '2013-11-01 02:00:00'",
            "UPDATE delay__sum = delay__sum + 1 WHERE carrier = 'ZZ' AND _window < '2013-11-01 02:00:00'",
        ] {
            let world = world(&server, log(40)).await?;
            counted(&world, [37, 30]).await?;
            published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
            let run = format!("{:032x}", world.newest("hourly").await?.run.0);
            alter(&world, &batch_table_name(world.view("hourly")), change).await?;
            let found = hourly(&world).await;
            assert!(
                found.different > 0 && found.unexplained == found.different,
                "{change}: {found:?}"
            );
            for difference in &found.differences {
                assert_eq!(difference.dimensions["carrier"].as_deref(), Some("ZZ"));
                let place = &difference.place[0];
                assert_eq!(place.layer, "batch", "{difference:?}");
                assert!(place.run.as_ref().is_none_or(|held| *held == run), "{difference:?}");
                assert!(
                    !difference.events.is_empty() && place.expected.is_some(),
                    "{difference:?}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn a_batch_row_that_stands_twice_is_found() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(80)).await?;
        counted(&world, [80, 80]).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let store = &world.batch.store;
        let into = format!("`{}`.`{}`", store.database(), batch_table_name(world.view("hourly")));
        let double = format!(
            "INSERT INTO {into} SELECT * REPLACE(toDate32('2013-11-01') AS _day) FROM \
             (SELECT * FROM {into} FINAL WHERE carrier = 'ZZ' AND _day = '2013-10-31')"
        );
        store.execute("double rows", &double).await?;
        let found = hourly(&world).await;
        assert!(found.different > 0 && found.unexplained == found.different, "{found:?}");
        for difference in found.differences.iter().filter(|one| one.measure == "flights") {
            let too_many: Vec<_> = difference
                .place
                .iter()
                .filter(|place| place.expected.is_none())
                .collect();
            assert_eq!((too_many.len(), too_many[0].layer), (1, "batch"), "{difference:?}");
            assert!(
                too_many[0].held.is_some() && too_many[0].run.is_some(),
                "{difference:?}"
            );
        }
        Ok(())
    })
}

/// A worker's row that stands as of an earlier offset, though progress says more: the store lost the newer one.
#[test]
fn a_row_that_fell_back_is_narrowed_to_the_offsets_it_lacks() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(24);
        // Three events of one cell in one start.
        let first = event(&events, 0, 16);
        events = with(
            events,
            [18, 20].map(|offset| Event {
                offset,
                flight: 1000 + i64::try_from(offset).unwrap(),
                ..first.clone()
            }),
        );
        let world = world(&server, events).await?;
        world.archive([24, 16], APART).await?;
        world.speed(1, 16, &BTreeSet::new()).await?;
        // Rows up to 19; then progress alone goes on.
        world.speed(0, 19, &BTreeSet::new()).await?;
        let store = &world.batch.store;
        let view = world.view("hourly");
        let table = speed_table_name(view);
        let [rows, kept] = ["", "_kept"].map(|more| format!("`{}`.`{table}{more}`", store.database()));
        store
            .execute(
                "keep",
                &format!("CREATE TABLE {kept} ENGINE = Memory AS SELECT * FROM {rows}"),
            )
            .await?;
        world.speed(0, 24, &BTreeSet::new()).await?;
        store.execute("lose", &format!("TRUNCATE TABLE {rows}")).await?;
        store
            .execute("restore", &format!("INSERT INTO {rows} SELECT * FROM {kept}"))
            .await?;
        let found = hourly(&world).await;
        assert!(
            found.unexplained > 0 && found.unexplained == found.different,
            "{found:?}"
        );
        let of_cell: Vec<_> = found
            .differences
            .iter()
            .filter(|one| one.measure == "flights" && one.place.iter().any(|place| place.held.is_some()))
            .collect();
        assert_eq!(of_cell.len(), 1, "{found:?}");
        let place = &of_cell[0].place[0];
        assert_eq!(
            (place.partition, place.start, place.next),
            (Some(0), Some(16), Some(19))
        );
        assert_eq!(place.offsets, Some((20, 21)), "{place:?}");
        assert!(
            place.finding.is_some_and(|finding| finding.contains("earlier offset")),
            "{place:?}"
        );
        assert_eq!(of_cell[0].events.len(), 1);
        Ok(())
    })
}

#[test]
fn stated_bounds_are_looked_at() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        counted(&world, [37, 30]).await?;
        let only = Selection {
            views: vec!["kinds".to_owned()],
            datasets: Vec::new(),
        };
        let views = world.batch.selected(&only).unwrap();
        let found = reconcile(&world.batch, &views, &Quiet, &CancellationToken::new()).await;
        let of = |measure: &str| found[0].calibration.iter().find(|one| one.measure == measure);
        let carriers = of("carriers").unwrap();
        assert_eq!((carriers.of, carriers.within), (Cause::Estimate, carriers.cells));
        assert!(carriers.cells > 0 && carriers.stated < 1.0);
        // Quantiles beside the values themselves.
        let quantiles = of("delay_q").unwrap();
        assert_eq!((quantiles.of, quantiles.within), (Cause::Estimate, quantiles.cells));
        assert!(
            quantiles.cells > 0 && quantiles.off > 0 && quantiles.worst <= 1.0,
            "{quantiles:?}"
        );
        let distance = of("distance").unwrap();
        assert_eq!((distance.of, distance.within), (Cause::Rounding, distance.cells));
        assert!(of("flights").is_none(), "counts state no bound");

        // A row that was changed by hand is no estimate that is off.
        let change = "UPDATE carriers__sketch = arrayReduce('uniqState', [toUInt64(9), toUInt64(10), toUInt64(11)]), \
                      distance__sum = distance__sum + 1000 WHERE 1";
        alter(&world, &speed_table_name(world.view("kinds")), change).await?;
        let found = reconcile(&world.batch, &views, &Quiet, &CancellationToken::new()).await;
        assert!(found[0].unexplained > 0, "{found:?}");
        for one in &found[0].calibration {
            assert_eq!(one.within, one.cells, "{one:?}");
        }
        Ok(())
    })
}

#[test]
fn a_repair_computes_wrong_days_again_and_keeps_the_marks() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        counted(&world, [37, 30]).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let before = world.newest("hourly").await?;
        let change =
            "UPDATE flights__count = flights__count + 1 WHERE carrier = 'ZZ' AND _window < '2013-11-01 00:00:00'";
        alter(&world, &batch_table_name(world.view("hourly")), change).await?;
        let found = hourly(&world).await;
        assert!(found.unexplained > 0 && found.mendable.len() == 1, "{found:?}");
        let repaired = repair(
            &world.batch,
            world.view("hourly"),
            world.dataset(),
            &found.mendable,
            &Quiet,
            &CancellationToken::new(),
        )
        .await;
        assert_eq!(
            (repaired.days, repaired.first_day.as_deref()),
            (1, Some("2013-10-31")),
            "{:?}",
            repaired.why
        );
        let after = world.newest("hourly").await?;
        assert_eq!(
            (after.marks.clone(), after.number.0),
            (before.marks.clone(), before.number.0 + 1)
        );
        for (day, run) in &after.days {
            let is_new = *run != before.days[day];
            assert_eq!(is_new, found.mendable.contains(day), "{day:?}");
        }
        let mended = hourly(&world).await;
        assert!(mended.is_sound() && mended.different == 0, "{mended:?}");
        // Nothing is mended where nothing is published.
        let never = repair(
            &world.batch,
            world.view("daily"),
            world.dataset(),
            &found.mendable,
            &Quiet,
            &CancellationToken::new(),
        )
        .await;
        assert_eq!((never.publication, never.rows), (None, 0), "{:?}", never.why);
        Ok(())
    })
}

#[test]
fn reports_are_kept_and_can_be_read_again() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(40)).await?;
        counted(&world, [37, 30]).await?;
        let lose = "DELETE WHERE _partition = 0 AND _start = 32 AND carrier = 'AA'";
        alter(&world, &speed_table_name(world.view("hourly")), lose).await?;
        let found = hourly(&world).await;
        let store = &world.batch.store;
        let mut ids = Vec::new();
        for _ in 0..RECONCILIATIONS_KEPT + 2 {
            ids.push(keep(&world.batch, std::slice::from_ref(&found)).await?);
        }
        let newest = ids.last().unwrap();
        let report = store.reconciliation(newest).await?;
        assert_eq!(report.len(), 1);
        assert_eq!((report[0].sound, report[0].unexplained), (false, found.unexplained));
        let document: serde_json::Value = serde_json::from_str(&report[0].document)?;
        let difference = &document["differences"][0];
        assert_eq!(
            (&difference["cause"], &difference["place"][0]["start"]),
            (&"unexplained".into(), &32.into())
        );
        assert!(difference["events"][0]["values"]["carrier"] == "AA", "{difference}");
        for text in [
            "# hourly: something is wrong",
            "partition 0 from offset 32 on",
            "carrier=AA",
            "| unexplained |",
        ] {
            assert!(report[0].page.contains(text), "{text}: {}", report[0].page);
        }
        // The oldest go; ClickHouse takes its time.
        let count = async || anyhow::Ok(store.reconciliations().await?.len().to_string());
        until(count, |count| count == RECONCILIATIONS_KEPT.to_string()).await?;
        assert!(store.reconciliation(&ids[0]).await?.is_empty());
        Ok(())
    })
}

/// Another key of a mask is named as such.
#[test]
fn another_key_is_named() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, log(24)).await?;
        let text = |key: &[u8; 8]| {
            let mut dataset = world.dataset().clone();
            let carrier = dataset.fields.iter_mut().find(|field| field.name == "carrier").unwrap();
            carrier.mask = Some(Mask::Hash { key: "KEY".to_owned() });
            dataset.privacy.key_checks.insert("KEY".to_owned(), KeyCheck(*key));
            dataset
        };
        let (old, new, other) = (text(b"old key!"), text(b"new key!"), world.dataset().clone());
        world.batch.store.record_rules(&[old.clone(), new.clone()]).await?;
        let known = world.batch.store.rules().await?;
        let rules = |dataset: &Dataset| Fingerprint::of_rules(dataset).to_string();
        assert_eq!(known.differ(&rules(&old), &rules(&new)), Some(RulesDiffer::ByKeys));
        assert_eq!(known.differ(&rules(&old), &rules(&other)), Some(RulesDiffer::Otherwise));
        Ok(())
    })
}
