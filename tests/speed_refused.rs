//! A worker whose rows ClickHouse refuses: one row for good, or all, since the table is another one.

use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Cells, Event, Platform, cells, events, total};
use highwater_tests::stack::{PATIENCE, run};
use highwater_tests::workers::Worker;
use serde_json::Value;
use shared_connections::log::Kafka;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, Partition};
use shared_schemas::store::tables::{speed_table, speed_table_name};
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(50);
const ALL: &str = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z";

/// Changes the table of the view `hourly`.
async fn alter(platform: &Platform, what: &str) -> anyhow::Result<()> {
    let store = platform.store();
    let table = speed_table_name(&platform.definitions.views[0]);
    let sql = format!("ALTER TABLE `{}`.`{table}` {what}", store.database());
    Ok(store.execute("alter a table", &sql).await?)
}

/// Waits until the answer has these cells, and no more.
async fn until(platform: &Platform, expected: &Cells) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let now = platform.answer("merged").await?;
        if now == *expected {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{:?} of {:?}", total(&now), total(expected));
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the view's page says so of the speed layer's partitions.
async fn until_told(platform: &Platform, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let page = platform.ask("/api/v1/views/hourly").await?;
        let partitions = &page["freshness"]["speed"]["partitions"];
        if is(partitions) {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "never {what}: {partitions:#}");
        tokio::time::sleep(POLL).await;
    }
}

#[test]
fn a_row_that_is_refused_holds_back_its_start_and_nothing_else() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        platform.send(events(0..100)).await?;
        platform.until_whole().await?;
        // The only event of its cell.
        let bad = Event(701);
        let hour = bad.at() - bad.at().rem_euclid(3600);
        let kind = bad.kind();
        alter(
            &platform,
            &format!("ADD CONSTRAINT refused CHECK NOT (toUnixTimestamp(_window) = {hour} AND kind = '{kind}')"),
        )
        .await?;
        platform.send(events(100..1_500)).await?;

        // Every other row is written, in the chunks behind it too.
        let mut others = cells(&platform.sent());
        for (cell, counted) in cells(&[bad]) {
            ensure!(others.remove(&cell) == Some(counted), "{cell:?} has other events, too");
        }
        until(&platform, &others).await?;
        let (number, offset) = platform.position(bad).context("it was sent")?;
        let is_stuck = |partitions: &Value, number: u32| {
            let partition = &partitions[number.to_string()];
            let reason = partition["reason"].as_str().unwrap_or_default();
            partition["state"] == "stuck" && reason.starts_with("ClickHouse refuses one of its rows")
        };
        let (one, other) = (number, 1 - number);
        until_told(&platform, "stuck", |partitions| {
            is_stuck(partitions, one) && !is_stuck(partitions, other)
        })
        .await?;

        // Nothing is promised from the row's start on; the other partition is promised to its end.
        let kafka = Kafka::new(&platform.config.kafka)?;
        let topic = kafka.topic(&platform.topic).await?.id;
        let chunk = ChunkSize::new(platform.definitions.datasets[0].chunk)?;
        let view = &platform.definitions.views[0];
        let ends = [
            kafka.bounds(&platform.topic, 0).await?.to,
            kafka.bounds(&platform.topic, 1).await?.to,
        ];
        // Below that, all is.
        let held_back = chunk.first(Offset(offset));
        let began = Instant::now();
        loop {
            let facts = platform.store().facts(view).await?;
            let coverage = |number| {
                let progress = facts.progress(Partition { topic, number });
                progress.coverage(Mark::default(), chunk)
            };
            let (held, whole) = (coverage(one), coverage(other));
            ensure!(held.covered <= Offset(offset), "{offset} is promised: {held:?}");
            if held.open == held_back && whole.covered == ends[usize::try_from(other)?] {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{held:?}, {whole:?} of {ends:?}");
            tokio::time::sleep(POLL).await;
        }
        let answer = platform.ask(&format!("{ALL}&measures=events")).await?;
        assert_eq!(answer["data"][0]["coverage"], "partial", "{answer:#}");

        // A worker that begins again finds the same; without what refuses it, all is written.
        platform.stop("speed").await?;
        alter(&platform, "DROP CONSTRAINT refused").await?;
        platform.start_speed()?;
        platform.until_whole().await?;
        let none_is_stuck = |partitions: &Value| !is_stuck(partitions, 0) && !is_stuck(partitions, 1);
        until_told(&platform, "going on", none_is_stuck).await?;
        platform.stop_all().await
    })
}

/// The process ends and says what to do; who does it has everything again.
#[test]
fn a_table_that_lacks_a_column_ends_the_worker_with_what_to_do() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start_serving().await?;
        let worker = Worker::speed(&platform)?;
        platform.send(events(0..700)).await?;
        platform.until_whole().await?;
        let view = platform.definitions.views[0].clone();
        let (column, _) = speed_table(&view).columns.pop().context("no column")?;
        alter(&platform, &format!("DROP COLUMN `{column}`")).await?;
        platform.send(events(700..800)).await?;
        let (status, said) = worker.ended().await?;
        assert_eq!(status.code(), Some(1), "{said}");
        let remedy = "undo what altered them; or, of a view's own alone, drop them, start again, and have them filled by `highwater speed redo`";
        for sentence in ["rows can't be written: its tables are not as these definitions", remedy] {
            assert!(said.contains(sentence), "{said}");
        }

        let store = platform.store();
        let drop = format!("DROP TABLE `{}`.`{}`", store.database(), speed_table_name(&view));
        store.execute("drop it", &drop).await?;
        let worker = Worker::speed(&platform)?;
        worker.until_said("metrics at").await?;
        let (code, _, said) = platform.highwater(&["speed", "redo", "--view", "hourly"]).await?;
        assert_eq!(code, Some(0), "{said}");
        platform.until_whole().await?;
        worker.end_well().await
    })
}
