//! The hand-off on the engine itself: whatever becomes of the inserts, the merging statement gives the oracle's answer.

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::engine::Engine;
use highwater_tests::flights::{Flight, view};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shared_schemas::handoff::{Mark, Offset, Publication};
use shared_schemas::store::statement::BELOW_FLOOR;
use shared_schemas::store::tables::{FLOORS, batch_table_name, speed_table_name};
use shared_schemas::store::{Filter, FilterValues, Layers, Merging, Order, Selection, control_tables, view_tables};

use crate::faults::trial::is_long;
use world::{Flush, LOG, PARTITIONS, TOPIC, World, partition};

fn flushes() -> impl Strategy<Value = Vec<Flush>> {
    let flush = (
        0_usize..2,
        0..PARTITIONS,
        0_u64..14,
        any::<u64>(),
        any::<bool>(),
        1_usize..5,
        prop::option::weighted(0.25, 0_usize..6),
        0_usize..8,
    );
    prop::collection::vec(flush, 8..20).prop_map(|flushes| {
        flushes
            .into_iter()
            .map(
                |(writer, partition, reads, shuffle, doubled, block, dies_after, mark)| Flush {
                    writer,
                    partition,
                    reads,
                    shuffle,
                    doubled,
                    block,
                    dies_after,
                    mark,
                },
            )
            .collect()
    })
}

/// A log with holes, of few cells, some events days late.
fn log() -> impl Strategy<Value = Vec<Flight>> {
    let event = (
        any::<bool>(),
        prop_oneof![5 => 0_i64..4 * 3600, 1 => -3 * 86_400_i64..0],
        prop::option::of(prop_oneof![Just("AA"), Just("ZZ")]),
        prop::option::of(0_i64..30),
        prop::option::of(0_i32..1000),
    );
    let places = usize::try_from(u64::from(PARTITIONS) * LOG).unwrap();
    prop::collection::vec(prop::option::weighted(0.8, event), places).prop_map(|events| {
        (0..)
            .zip(events)
            .filter_map(|(place, event)| {
                let (_, at, carrier, delay, distance) = event?;
                Some(Flight {
                    partition: u32::try_from(place / LOG).unwrap(),
                    offset: place % LOG,
                    at,
                    carrier: carrier.map(str::to_owned),
                    delay,
                    distance,
                })
            })
            .collect()
    })
}

fn without_layer(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| format!("{}\t", line.rsplit_once('\t').map_or(line.as_str(), |(rest, _)| rest)))
        .collect()
}

/// A part of an answer is what the whole says of it: cells that a filter names, the first rows of an order, and one
/// layer's share, which with the other's makes the whole.
async fn assert_parts(world: &World, publication: Option<&Publication>) -> anyhow::Result<()> {
    let field = |line: &String, index: usize| line.split('\t').nth(index).unwrap_or_default().to_owned();
    let whole = world.oracle(publication);
    let filters = [
        Filter {
            dimension: "carrier".to_owned(),
            values: FilterValues::String(vec!["AA".to_owned(), "it's none".to_owned()]),
        },
        Filter {
            dimension: "late".to_owned(),
            values: FilterValues::Bool(vec![true]),
        },
    ];
    let filtered = Selection {
        filters: &filters,
        ..Selection::default()
    };
    let mut part = world.part(publication, &filtered).await?;
    part.sort();
    let named = |line: &&String| field(line, 1) == "AA" && field(line, 2) == "true";
    assert_eq!(part, whole.iter().filter(named).cloned().collect::<Vec<_>>());

    let order = [Order {
        column: "flights".to_owned(),
        descending: true,
    }];
    let first = Selection {
        order: &order,
        limit: Some(3),
        ..Selection::default()
    };
    let flights = |line: &String| field(line, 3).parse::<u64>().unwrap_or_default();
    let mut counts: Vec<_> = whole.iter().map(flights).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(*count));
    counts.truncate(3);
    let found = world.part(publication, &first).await?;
    assert_eq!(found.iter().map(flights).collect::<Vec<_>>(), counts);
    assert!(found.iter().all(|line| whole.contains(line)));

    let mut shares: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for (layers, name) in [(Layers::Batch, "batch"), (Layers::Speed, "speed")] {
        let one = Selection {
            layers,
            ..Selection::default()
        };
        for line in world.part(publication, &one).await? {
            assert_eq!(field(&line, 14), name);
            let cell = (0..3).map(|index| field(&line, index)).collect();
            *shares.entry(cell).or_default() += flights(&line);
        }
    }
    let cells = whole
        .iter()
        .map(|line| ((0..3).map(|index| field(line, index)).collect(), flights(line)));
    assert_eq!(shares, cells.collect());
    Ok(())
}

/// Two rival writers, and a reader after every flush, with a mark that lies anywhere.
async fn rivals(url: &str, database: &str, log: Vec<Flight>, flushes: &[Flush]) -> anyhow::Result<()> {
    let mut world = World::new(url, database, log).await?;
    // What a batch run computes depends on the log and its marks alone, so all of them can be there from the beginning.
    let marks: Vec<_> = World::all_starts().into_iter().map(|start| Mark(start.0)).collect();
    let mut publications = Vec::new();
    for (number, mark) in (1..).zip(&marks) {
        let other = marks[(publications.len() * 3 + 1) % marks.len()];
        let marks = BTreeMap::from([(partition(0), *mark), (partition(1), other)]);
        publications.push(world.publish(number, marks).await?);
    }
    for (number, flush) in flushes.iter().enumerate() {
        world.flush(flush).await?;
        for publication in [None, Some(&publications[flush.mark % publications.len()])] {
            assert_eq!(
                world.answer(publication).await?,
                world.oracle(publication),
                "after flush {number}"
            );
            if number % 3 == 0 {
                assert_parts(&world, publication).await?;
            }
        }
    }
    // Both read to the end; one of them dies once more on the way.
    for writer in 0..2 {
        for partition in 0..PARTITIONS {
            let mut last = Flush {
                writer,
                partition,
                reads: LOG,
                shuffle: 1,
                doubled: false,
                block: 3,
                dies_after: Some(1),
                mark: 0,
            };
            world.flush(&last).await?;
            last.dies_after = None;
            world.flush(&last).await?;
        }
    }
    let truth = world.truth();
    anyhow::ensure!(!truth.is_empty(), "the log is empty");
    for publication in &publications {
        let answer = without_layer(&world.answer(Some(publication)).await?);
        assert_eq!(answer, truth, "at {:?}", publication.marks);
    }
    assert_eq!(without_layer(&world.answer(None).await?), truth);
    world.engine.execute(&format!("DROP DATABASE {database}")).await?;
    Ok(())
}

#[test]
fn rival_writers_give_the_oracles_answer_at_each_step() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut runner = TestRunner::new(Config {
        // Each reads the engine some hundred times.
        cases: if is_long() { 12 } else { 2 },
        max_shrink_iters: 20,
        failure_persistence: None,
        ..Config::default()
    });
    let case = std::cell::Cell::new(0);
    runner
        .run(&(log(), flushes()), |(log, flushes)| {
            case.set(case.get() + 1);
            let database = format!("rivals_{}", case.get());
            let done = runtime.block_on(rivals(server.url(), &database, log, &flushes));
            done.map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// A log for tests that need no random one.
fn plain_log() -> Vec<Flight> {
    let event = |partition, offset: u64| Flight {
        partition,
        offset,
        at: i64::try_from(offset * 700).unwrap(),
        carrier: (!offset.is_multiple_of(3)).then(|| format!("C{}", offset % 5)),
        delay: Some(i64::try_from(offset).unwrap()),
        distance: Some(1),
    };
    (0..PARTITIONS)
        .flat_map(|partition| (0..LOG).map(move |offset| event(partition, offset)))
        .collect()
}

fn whole(writer: usize, partition: u32, reads: u64) -> Flush {
    Flush {
        writer,
        partition,
        reads,
        shuffle: 7,
        doubled: false,
        block: 2,
        dies_after: None,
        mark: 0,
    }
}

#[test]
fn killing_the_server_loses_nothing_that_it_acknowledged() -> anyhow::Result<()> {
    let mut server = ClickHouse::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut world = World::new(server.url(), "killed", plain_log()).await?;
        for round in 0..8_u64 {
            world.flush(&whole(0, 0, 5)).await?;
            world.flush(&whole(0, 1, 5)).await?;
            // An insert is under way when the server dies, sooner or later in it; its writer never hears of it.
            let rows = world.rows(0, 0, LOG.min((round + 2) * 5)).await?;
            let blocks: Vec<_> = (0..rows.num_rows()).map(|row| rows.slice(row, 1)).collect();
            let engine = world.engine.clone();
            let table = speed_table_name(&world.view);
            let insert = tokio::spawn(async move {
                let settings = [("min_insert_block_size_rows", "1"), ("max_insert_block_size", "1")];
                engine.insert(&table, &blocks, &settings).await
            });
            tokio::time::timeout(Duration::from_millis(round * round * 3), async {
                std::future::pending::<()>().await
            })
            .await
            .ok();
            server.kill()?;
            let heard = insert.await?;
            server.start_again()?;
            world.engine = world.engine.moved(server.url());
            // What was acknowledged is there; what was not is there in whole rows or not at all.
            let acknowledged = world.oracle(None);
            let found = world.answer(None).await?;
            if heard.is_ok() {
                world.note(0, 0, LOG.min((round + 2) * 5));
                assert_eq!(found, world.oracle(None), "round {round}");
            } else {
                assert!(found.len() >= acknowledged.len(), "round {round}: rows were lost");
                world.assert_between(&found).await?;
            }
            // The writer tries again.
            let again = world.rows(0, 0, LOG.min((round + 2) * 5)).await?;
            world
                .engine
                .insert(&speed_table_name(&world.view), &[again], &[])
                .await?;
            world.note(0, 0, LOG.min((round + 2) * 5));
            assert_eq!(
                world.answer(None).await?,
                world.oracle(None),
                "round {round}, after the retry"
            );
        }
        world.flush(&whole(1, 0, LOG)).await?;
        world.flush(&whole(1, 1, LOG)).await?;
        assert_eq!(without_layer(&world.answer(None).await?), world.truth());
        anyhow::Ok(())
    })
}

#[test]
fn the_floor_refuses_also_where_no_row_is_left() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let world = World::new(server.url(), "floors", plain_log()).await?;
        let marks = BTreeMap::from([(partition(0), Mark(Offset(8))), (partition(1), Mark(Offset(16)))]);
        let publication = world.publish(1, marks).await?;
        world
            .engine
            .execute(&format!("TRUNCATE TABLE floors.{}", batch_table_name(&world.view)))
            .await?;
        let questions = [
            world.question(Some(&publication)),
            Merging {
                bucket: None,
                dimensions: &[],
                ..world.question(Some(&publication))
            },
        ];
        let fingerprint = world.view.fingerprint;
        let raise = |number: u64, marks: String| {
            format!(
                "INSERT INTO floors.{FLOORS} (fingerprint, number, marks) VALUES ('{fingerprint}', {number}, {marks})"
            )
        };
        // At the publication's own height, and another view's floor: both are no obstacle.
        world
            .engine
            .execute(&raise(1, format!("[({}, 0, 8), ({}, 1, 16)]", TOPIC.0, TOPIC.0)))
            .await?;
        world
            .engine
            .execute(&raise(9, "[]".to_owned()).replace(&fingerprint.to_string(), "another"))
            .await?;
        for question in &questions {
            assert_eq!(world.engine.run(&question.statement()?).await?, Vec::<String>::new());
        }
        for row in [
            raise(2, "[]".to_owned()),
            raise(0, format!("[({}, 1, 17)]", TOPIC.0)),
            raise(0, "[(5, 0, 1)]".to_owned()),
        ] {
            world.engine.execute(&row).await?;
            for question in &questions {
                let error = world.engine.run(&question.statement()?).await.unwrap_err().to_string();
                assert!(error.contains(BELOW_FLOOR), "{error}");
            }
            // Nobody ever published: below every floor, too.
            let error = world
                .engine
                .run(&world.question(None).statement()?)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(BELOW_FLOOR), "{error}");
            world.engine.execute(&format!("TRUNCATE TABLE floors.{FLOORS}")).await?;
        }
        assert_eq!(
            world.engine.run(&questions[0].statement()?).await?,
            Vec::<String>::new()
        );
        anyhow::Ok(())
    })
}

/// What the control tables are made of is what the engine takes, also a second time.
#[test]
fn tables_are_created_once() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let view = view()?;
        for _ in 0..2 {
            let engine = Engine::create(server.url(), "odd `name\\", &view_tables(&view)).await?;
            let sql = "SELECT count() FROM system.tables WHERE database = 'odd `name\\\\'";
            let tables = control_tables().len() + view_tables(&view).len();
            assert_eq!(engine.execute(sql).await?.trim(), tables.to_string());
        }
        anyhow::Ok(())
    })
}
