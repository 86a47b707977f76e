//! More cells than there is memory: all are compared, and each difference has its cause, within the memory.

use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use shared_schemas::store::tables::batch_table_name;
use tokio_util::sync::CancellationToken;

use super::commands::{highwater, of};
use super::world::{Quiet, World, log};
use super::{on_engine, published};

/// Two cells of `kinds` for each, less the holes.
const OFFSETS: u64 = 8_000;
/// So many measures `kinds` has.
const MEASURES: u64 = 18;
const LITTLE: &str = "commit_every = \"100ms\"\n[batch]\ncut_wait = \"0s\"\nmemory = \"16MiB\"\n";

/// Bytes that a process has for itself.
fn own_memory(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes: u64 = line.context("no RssAnon")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes << 10)
}

/// What a view's reconciliation says, and the most memory that it took.
async fn reconciled(site: &Path, view: &str) -> anyhow::Result<(Value, u64)> {
    let mut command = highwater(site, &["reconcile", "--view", view, "--output", "json"])?;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id().context("it runs")?;
    let mut output = pin!(child.wait_with_output());
    let mut most = 0;
    let output = loop {
        tokio::select! {
            output = &mut output => break output?,
            // sleeps: another process's memory is looked at now and then
            () = tokio::time::sleep(Duration::from_millis(5)) => most = most.max(own_memory(pid).unwrap_or_default()),
        }
    };
    let told = serde_json::from_slice(&output.stdout);
    let told: Value = told.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((of(&told, view).clone(), most))
}

#[test]
fn many_wrong_cells_take_no_more_memory_than_it_may_have() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(OFFSETS), LITTLE).await?;
        world.archive([OFFSETS, OFFSETS], 120).await?;
        published(&world.run(&["kinds", "hourly"], &Quiet, &CancellationToken::new()).await);
        let site = world.site(server.url(), LITTLE)?;
        let count = |told: &Value, name: &str| told[name].as_u64().unwrap_or_default();

        // What it takes without many cells.
        let (few, base) = reconciled(&site, "hourly").await?;
        assert!(count(&few, "compared") > 0 && count(&few, "different") == 0, "{few}");
        let (right, of_right) = reconciled(&site, "kinds").await?;
        let cells = count(&right, "compared") / MEASURES;
        assert!(cells > OFFSETS && count(&right, "different") == 0, "{right}");

        // Two measures of each cell are wrong; then none of the rows is there.
        let table = format!(
            "`{}`.`{}`",
            world.batch.store.database(),
            batch_table_name(world.view("kinds"))
        );
        let wrong = format!("ALTER TABLE {table} UPDATE flights__count = flights__count + 1 WHERE 1");
        let gone = format!("ALTER TABLE {table} DELETE WHERE 1");
        let mut most = vec![of_right];
        for (change, measures) in [(wrong, 2), (gone, MEASURES)] {
            let change = format!("{change} SETTINGS mutations_sync = 2");
            world.batch.store.execute("change rows", &change).await?;
            let (found, memory) = reconciled(&site, "kinds").await?;
            assert_eq!(count(&found, "different"), measures * cells, "{}", found["causes"]);
            assert_eq!(count(&found, "unexplained"), measures * cells, "{}", found["causes"]);
            assert_eq!(found["causes"]["unexplained"].as_u64(), Some(measures * cells));
            assert_eq!(found["differences"].as_array().map(Vec::len), Some(1000));
            most.push(memory);
        }
        // A difference takes a KB and more: all of them would be hundreds of MB.
        let most = most.into_iter().max().unwrap_or_default();
        let more = most.saturating_sub(base) >> 20;
        assert!(
            more < 96,
            "{more} MiB beside the {} MiB that few cells take",
            base >> 20
        );
        Ok(())
    })
}
