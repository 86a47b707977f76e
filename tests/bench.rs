//! `highwater bench` as its users run it. How fast it is depends on the machine and the build; that every figure is there,
//! that the counts are right, and that nothing stays behind, does not.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::stack::{Site, program, until};
use local_stack::process::record::Record;
use tokio::process::Command;

/// Longer than one condition may take: it waits for many, and computes, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(1200);

/// `highwater bench` whose temporary folders are in that one.
fn bench(arguments: &[&str], temporary: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program("highwater")?);
    command
        .arg("bench")
        .args(arguments)
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

fn is_empty(folder: &Path) -> anyhow::Result<bool> {
    Ok(std::fs::read_dir(folder)?.next().is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_is_measured_and_every_count_is_right() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::with_prefix("highwater-test-")?;
    // It fails where an answer does not have each event once.
    let run = bench(
        &["speed", "--quick", "--events", "15000", "--output", "json"],
        folder.path(),
    )?
    .output();
    let Output { status, stdout, stderr } = tokio::time::timeout(PATIENCE, run).await??;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{stderr}");
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&stdout)?;
    let value = |name: &str| {
        let found = figures.iter().find(|one| one["figure"] == name);
        found
            .and_then(|one| one["value"].as_f64())
            .with_context(|| format!("no figure: {name}\n{stderr}"))
    };
    for name in [
        "decode alone, per core",
        "filling the topic",
        "bare consumer, messages thrown away",
        "Kafka to visible in ClickHouse, whole box",
        "its ratio to the bare consumer",
        "processor time of ClickHouse, per million events",
        "rows written for each cell",
        "active parts of a view's table, most at once",
        "freshness: events produced a second",
        "freshness, produced to visible in the API, p50",
        "freshness, produced to visible in the API, p99",
        "resident memory of the worker at full speed",
        "events/s with 1 partition and 1 worker",
        "events/s with 16 partitions and 1 worker",
        "events/s with 8 partitions and 2 workers",
        "events/s with a distinct and quantiles beside",
    ] {
        ensure!(value(name)? > 0.0, "{name} is nothing:\n{stderr}");
    }
    for figure in &figures {
        let both = figure["aim"].is_null() == figure["met"].is_null();
        ensure!(both, "an aim is met or missed: {figure}");
    }
    ensure!(is_empty(folder.path())?, "data stays behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_is_measured() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::with_prefix("highwater-test-")?;
    let run = bench(&["measures", "--quick", "--output", "json"], folder.path())?.output();
    let Output { status, stdout, stderr } = tokio::time::timeout(PATIENCE, run).await??;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{stderr}");
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&stdout)?;
    // Six kinds: made, merged, and the bytes of three sizes. Then the views.
    ensure!(figures.len() == 6 * 5 + 3, "{} figures", figures.len());
    for figure in &figures {
        ensure!(figure["value"].as_f64() > Some(0.0), "{figure}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_batch_layer_is_measured_beside_others() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::with_prefix("highwater-test-")?;
    // It fails where any of them does not count each event once. DuckDB is left out where it can't be fetched.
    let run = bench(&["batch", "--events", "20000", "--output", "json"], folder.path())?.output();
    let Output { status, stdout, stderr } = tokio::time::timeout(PATIENCE, run).await??;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{stderr}");
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&stdout)?;
    for name in [
        "archive writing, per core",
        "archived, for an event",
        "plain DataFusion, both views one after the other",
        "recompute without dedupe, both views at once",
        "recompute with exact dedupe",
        "recompute with exact dedupe: memory, highest",
        "ClickHouse engine, group",
        "ClickHouse engine, dedupe and group",
        "time with exact dedupe, in that of plain DataFusion without",
        "time with exact dedupe, in that of the ClickHouse engine",
        "one dirty day with 1 archived",
        "one dirty day with 100 archived",
    ] {
        let found = figures.iter().find(|one| one["figure"] == name);
        let value = found.and_then(|one| one["value"].as_f64());
        ensure!(value > Some(0.0), "{name}: {value:?}\n{stderr}");
    }
    ensure!(is_empty(folder.path())?, "data stays behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_many_groups_is_computed() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::with_prefix("highwater-test-")?;
    // It fails where an event is not counted once.
    let arguments = ["batch", "--large", "--events", "20000", "--output", "json"];
    let run = bench(&arguments, folder.path())?.output();
    let Output { status, stdout, stderr } = tokio::time::timeout(PATIENCE, run).await??;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&stdout)?;
    let groups = figures.iter().find(|one| one["figure"] == "groups");
    ensure!(groups.is_some_and(|groups| groups["value"] == 19_800.0), "{figures:?}");
    ensure!(is_empty(folder.path())?, "data stays behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_bench_leaves_nothing_running_and_a_kept_topic_is_used_again() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut bench = site.start(&["bench", "speed", "--only", "throughput", "--data", "data"])?;
    // Far from done: it is at the beginning of 20,000,000 events.
    until("a topic is being filled", || {
        bench.said().contains("filling topic") || bench.said().contains("highwater:")
    })
    .await?;
    let children = bench.children();
    ensure!(children.len() == 2, "Kafka and ClickHouse: {}", bench.said());
    bench.signal("INT")?;
    let status = bench.ended().await?;
    let said = bench.said();
    ensure!(
        status.code() == Some(1) && said.contains("not everything was measured"),
        "{status}: {said}"
    );
    ensure!(!children.iter().any(Record::runs), "a server stays behind");

    let again = [
        "bench",
        "speed",
        "--only",
        "throughput",
        "--events",
        "20000",
        "--data",
        "data",
    ];
    for fills in [true, false] {
        let (code, stdout, stderr) = site.run(&again).await?;
        ensure!(code == Some(0), "{stderr}");
        ensure!(stderr.contains("filling topic") == fills, "{stderr}");
        ensure!(stdout.contains("filling the topic") == fills, "{stdout}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_somebody_else_is_refused() -> anyhow::Result<()> {
    let site = Site::new()?;
    let (code, _, stderr) = site
        .run(&["bench", "speed", "--only", "freshness", "--data", "."])
        .await?;
    ensure!(code == Some(1), "{stderr}");
    ensure!(!site.path().join("kafka").exists(), "servers were started there");
    Ok(())
}
