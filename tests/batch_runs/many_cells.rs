//! More cells than there is memory: all are compared, and each difference has its cause, within the memory.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use highwater_batch::reconcile::Cause;
use highwater_batch::{Selection, reconcile};
use highwater_tests::stack::highwater_in as highwater;
use serde_json::Value;
use shared_connections::store::{Ledger, ProgressRow};
use shared_schemas::handoff::Redo;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::causes::alter;
use super::commands::of;
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

/// However many slices the differences are explained in, what they are explained with is read once.
#[test]
fn more_slices_of_differences_take_no_more_readings() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(1_600), LITTLE).await?;
        // The first half was archived under other rules; of the second half filters were cut short.
        let now = world.batch.definitions.datasets[0].clone();
        world.batch.definitions.datasets[0].future = Duration::from_secs(60);
        let store = world.batch.store.clone();
        store.record_rules(&world.batch.definitions.datasets).await?;
        world.archive([800, 800], 120).await?;
        world.batch.definitions.datasets[0] = now;
        world.archive([1_600, 1_600], 120).await?;
        // By the rules of now some of that was refused.
        world.log.retain(|event| event.offset >= 800 || event.offset % 4 != 1);
        for number in 0..2 {
            world.speed(number, 1_600, &BTreeSet::new()).await?;
        }
        let view = world.view("kinds");
        let mut unsure = store.ledgers(view).await?;
        unsure.retain(|(_, start, _)| start.0.0 >= 800);
        let progress = unsure.into_iter().map(|(partition, start, ledger)| ProgressRow {
            fingerprint: view.fingerprint,
            partition,
            start,
            redo: Redo::default(),
            ledger: Ledger { unsure: 1, ..ledger },
        });
        store.record_progress(&progress.collect::<Vec<_>>()).await?;
        let change = "UPDATE distance__sum = distance__sum + 1000, mean_distance__sum = mean_distance__sum + 1000, \
                      fare__sum = fare__sum + 1000, mean_fare__sum = mean_fare__sum + 1000 WHERE 1";
        alter(&world, &speed_table_name(view), change).await?;

        let mut all = Vec::new();
        for memory in [16_u64 << 20, 96 << 20] {
            world.batch.config.batch.memory = memory;
            let only = Selection {
                views: vec!["kinds".to_owned()],
                datasets: Vec::new(),
            };
            let views = world.batch.selected(&only).unwrap();
            let mut found = reconcile(&world.batch, &views, &Quiet, &CancellationToken::new()).await;
            all.push(found.remove(0));
        }
        let [little, much] = &all[..] else { anyhow::bail!("two") };
        assert!(little.different > 4_000, "{:?}", little.causes);
        assert_eq!(
            (&little.causes, little.different, little.unexplained),
            (&much.causes, much.different, much.unexplained)
        );
        for cause in [Cause::DefinitionChanged, Cause::Unexplained] {
            assert!(little.causes[&cause] > 1_000, "{:?}", little.causes);
        }
        assert!(
            little.reads.slices > 2 * much.reads.slices,
            "{:?} {:?}",
            little.reads,
            much.reads
        );
        assert_eq!(
            (little.reads.archive, little.reads.store),
            (much.reads.archive, much.reads.store)
        );
        Ok(())
    })
}
