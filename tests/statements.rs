//! Statements that take long, and statements that stand still, on the real engine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use highwater_tests::clickhouse::{ClickHouse, until};
use shared_connections::store::{Pace, Store, StoreError};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{EventDay, Mark, Offset, Partition, Publication, RunId, Start, TopicId};
use shared_schemas::store::cells::{Among, HeldCells};
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use shared_schemas::store::{Merging, Statement};

fn store(server: &ClickHouse) -> anyhow::Result<Store> {
    let text = format!("[clickhouse]\nurl = \"{}\"\n", server.url());
    let reading = Config::parse(&text, "test.toml", Path::new(""), &|_| None);
    anyhow::ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
    Ok(Store::new(&reading.config.clickhouse))
}

fn statement(sql: &str, settings: &[(&'static str, &'static str)]) -> Statement {
    Statement {
        sql: sql.to_owned(),
        parameters: Vec::new(),
        settings: settings.to_vec(),
    }
}

/// How many statements of that text run.
async fn running(store: &Store, text: &str) -> anyhow::Result<String> {
    let sql =
        format!("SELECT count() FROM system.processes WHERE query LIKE '%{text}%' AND query NOT LIKE '%processes%'");
    let answer = store.answer(&statement(&sql, &[]), "TSV").await?;
    Ok(String::from_utf8(answer.body.to_vec())?.trim().to_owned())
}

/// It sleeps in one block: no row comes, no processor works.
const STILL: &str = "SELECT sum(sleepEachRow(0.5)) FROM numbers(40)";

#[tokio::test]
async fn what_stands_still_is_given_up_and_ended() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let store = store(&server)?;
    let pace = Pace {
        still: Duration::from_secs(3),
        all: Duration::from_secs(60),
    };
    let begun = Instant::now();
    let settings = [("function_sleep_max_microseconds_per_block", "60000000")];
    let error = store.answer_at_length(&statement(STILL, &settings), "TSV", pace).await;
    let error = error.expect_err("it stands still for 20 seconds");
    assert!(
        matches!(&error, StoreError::Slow { limit, .. } if *limit == pace.still),
        "{error}"
    );
    assert!(
        error.is_passing() && begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    // It was told to end, and does before it would by itself.
    until(|| running(&store, "sleepEachRow"), |running| running == "0").await?;
    Ok(())
}

#[tokio::test]
async fn what_moves_may_take_longer_than_it_may_stand_still() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let store = store(&server)?;
    let moving = "SELECT sum(cityHash64(cityHash64(number), number)) > 0 FROM numbers(4000000000)";
    let pace = |still, all| Pace {
        still: Duration::from_millis(still),
        all: Duration::from_millis(all),
    };
    let threads = [("max_threads", "1")];
    let begun = Instant::now();
    let answer = store
        .answer_at_length(&statement(moving, &threads), "TSV", pace(1_000, 300_000))
        .await?;
    assert_eq!(&answer.body[..], b"1\n");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(1), "too quick to say anything: {took:?}");
    // But not without end.
    let error = store
        .answer_at_length(&statement(moving, &threads), "TSV", pace(60_000, 500))
        .await;
    assert!(matches!(error, Err(StoreError::Slow { .. })), "{error:?}");
    until(|| running(&store, "cityHash64"), |running| running == "0").await?;
    Ok(())
}

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
chunk = 8192
fields = { at = "timestamp", origin = "string", carrier = "string", tail = "int64", delay = "float64" }

[view.departures]
dataset = "flights"
grain = "1h"
dimensions = ["origin", "carrier"]
[view.departures.measures]
flights = "count()"
planes = "distinct(tail)"
delay_q = "quantiles(delay, [0.5, 0.95, 0.99])"
"#;

/// The first second of the month, and how many days it has.
const MONTH: i64 = 1_356_998_400;
const DAYS: i32 = 31;

/// Rows of both layers: a month of cells, those of the speed layer several times over, as it writes them.
async fn month_of_cells(store: &Store, definitions: &Definitions, run: RunId) -> anyhow::Result<()> {
    store.create_tables(definitions).await?;
    let view = &definitions.views[0];
    let database = store.database();
    let events = format!(
        "(SELECT toDateTime64({MONTH} + cityHash64(number, 1) % ({DAYS} * 24) * 3600, 0, 'UTC') AS w, \
         ['EWR', 'JFK', 'LGA'][1 + cityHash64(number, 2) % 3] AS o, toString(cityHash64(number, 3) % 14) AS c, \
         toFloat64(cityHash64(number, 4) % 1500) - 60 AS d, toUInt64(cityHash64(number, 5) % 4000) AS t, number AS n \
         FROM numbers(60000))"
    );
    let states = "uniqState(t), quantilesDDState(0.01, 0.5, 0.95, 0.99)(d)";
    let batch = format!(
        "INSERT INTO `{database}`.`{}` (_day, _run, _window, origin, carrier, _failed, planes__exact, planes__beyond, \
         flights__count, planes__sketch, delay_q__sketch) SELECT toDate32(w), {}, w, o, c, 0, uniqExactState(t), 0, count(), \
         {states} FROM {events} GROUP BY w, o, c",
        batch_table_name(view),
        run.0,
    );
    store.execute("insert batch rows", &batch).await?;
    for version in 1..4_u64 {
        let speed = format!(
            "INSERT INTO `{database}`.`{}` (_window, origin, carrier, _topic, _partition, _start, _next, _failed, \
             flights__count, planes__sketch, delay_q__sketch) SELECT w, o, c, 9, n % 4 AS p, intDiv(n, 30000) * 8192 AS s, \
             s + {version}, 0, count(), {states} FROM {events} GROUP BY w, o, c, p, s",
            speed_table_name(view),
        );
        store.execute("insert speed rows", &speed).await?;
    }
    Ok(())
}

/// The engine (26.5) was seen to come to a standstill over as many cells with states of quantiles in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_cells_with_states_are_answered_again_and_again() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let store = store(&server)?;
    let definitions = Definitions::parse([("flights.toml", DEFINITIONS)])?;
    let view = &definitions.views[0];
    let run = RunId(7);
    month_of_cells(&store, &definitions, run).await?;
    let first = i32::try_from(MONTH / 86_400)?;
    let days: BTreeSet<_> = (first..first + DAYS).map(EventDay).collect();
    let marks = (0..4).map(|number| {
        let topic = TopicId(9);
        (Partition { topic, number }, Mark::default())
    });
    let marks: BTreeMap<_, _> = marks.collect();
    let publication = Publication::of_run(None, run, marks.clone(), &BTreeMap::new(), &days);
    let starts = marks
        .iter()
        .map(|(partition, mark)| (*partition, (*mark, Start(Offset(1 << 20)))))
        .collect();
    let cells = HeldCells {
        database: store.database(),
        view,
        publication: Some(&publication),
        starts: &starts,
        among: Among::All,
        days: &days,
        time: (MONTH, MONTH + i64::from(DAYS) * 86_400),
    };
    let held = cells.statement().expect("rows count");
    let pace = Pace {
        still: Duration::from_secs(30),
        all: Duration::from_secs(120),
    };
    for _ in 0..3 {
        let answer = store.answer_at_length(&held, "ArrowStream", pace).await?;
        assert!(
            answer.body.len() > 4 << 20,
            "too few cells: {} bytes",
            answer.body.len()
        );
    }
    // What the query API asks, on as many threads as there are, four at a time.
    let merging = Merging {
        database: store.database(),
        view,
        publication: Some(&publication),
        from: MONTH,
        to: MONTH + i64::from(DAYS) * 86_400,
        bucket: Some(Duration::from_secs(3600)),
        dimensions: &["origin", "carrier"],
        measures: &["flights", "planes", "delay_q"],
    }
    .statement()?;
    let ask = async |_| {
        store
            .answer(&merging, "JSONCompact")
            .await
            .map(|answer| answer.body.len())
    };
    let sizes: Vec<_> = stream::iter(0..24).map(ask).buffer_unordered(4).try_collect().await?;
    assert!(sizes.iter().all(|size| *size > 1 << 20), "{sizes:?}");
    Ok(())
}
