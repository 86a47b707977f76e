//! What the store acknowledged and lost is read again when somebody orders it.

use std::time::Duration;

use anyhow::ensure;
use highwater_batch::{Batch, Logs, Reconciled, Selection, reconcile};
use highwater_tests::platform::{Platform, cells, events, total};
use highwater_tests::stack::{PATIENCE, run, unique};
use serde_json::Value;
use shared_connections::store::{Ledger, ProgressRow, Store};
use shared_schemas::handoff::{Offset, Partition, Redo, Start, TopicId};
use shared_schemas::store::tables::{PROGRESS, control_tables, speed_table_name};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounting::delete_below;

async fn hourly(platform: &Platform) -> anyhow::Result<Reconciled> {
    let batch = Batch::new(platform.config.clone(), platform.definitions.clone())?;
    let views = batch.selected(&Selection {
        views: vec!["hourly".to_owned()],
        datasets: Vec::new(),
    })?;
    Ok(reconcile(&batch, &views, &Logs, &CancellationToken::new())
        .await
        .remove(0))
}

/// Waits until what a reconciliation finds is so.
async fn until_reconciled(platform: &Platform, is: impl Fn(&Reconciled) -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let found = hourly(platform).await?;
        if is(&found) {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{found:?}");
        // sleeps: between two looks
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What `highwater speed redo --view hourly` with these arguments says, and with what it exits.
async fn redo(platform: &Platform, more: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let arguments = [&["speed", "redo", "--view", "hourly", "--output", "json"][..], more].concat();
    let (code, out, said) = platform.highwater(&arguments).await?;
    let shown = serde_json::from_str(&out);
    Ok((code, shown.map_err(|error| anyhow::anyhow!("{error}: {said}"))?))
}

#[test]
fn rows_that_the_store_lost_are_read_again() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        // Whole chunks, and one that a worker keeps open: of that it has the cells, and would never write them again.
        platform.send(events(0..1_500)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        // The last progress comes after the rows that are answered.
        until_reconciled(&platform, |found| {
            found.partitions.len() == 2 && found.partitions.iter().all(|one| one.up_to == one.archive_end)
        })
        .await?;
        let (store, table) = (platform.store(), speed_table_name(&platform.definitions.views[0]));
        let lose = format!(
            "ALTER TABLE `{}`.`{table}` DELETE WHERE kind = 'b' SETTINGS mutations_sync = 2",
            store.database()
        );
        store.execute("lose rows", &lose).await?;
        let (lost, _) = total(&platform.answer("merged").await?);
        assert_eq!(lost, 1_000, "nobody misses them");
        let found = hourly(&platform).await?;
        ensure!(found.unexplained > 0 && !found.is_sound(), "{found:?}");

        let (code, would) = redo(&platform, &["--dry-run", "--partition", "1", "--from", "300"]).await?;
        assert_eq!((code, would.as_array().map(Vec::len)), (Some(0), Some(1)), "{would:#}");
        assert_eq!(
            (&would[0]["partition"], &would[0]["from"]),
            (&Value::from(1), &Value::from(256))
        );
        assert_eq!(total(&platform.answer("merged").await?).0, lost, "it was only asked");
        let (code, done) = redo(&platform, &[]).await?;
        assert_eq!((code, done.as_array().map(Vec::len)), (Some(0), Some(2)), "{done:#}");
        platform.until_whole().await?;

        // What follows is counted under the new reading, and all of it adds up.
        platform.send(events(1_500..1_700)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        until_reconciled(&platform, |found| found.is_sound() && found.different == 0).await?;

        // What Kafka has no longer can't be read again, and stays as it is.
        delete_below(&platform, 0, Offset(300)).await?;
        let (code, left) = redo(&platform, &["--partition", "0"]).await?;
        assert_eq!(
            (code, &left[0]["left"]),
            (Some(1), &serde_json::json!([0, 256])),
            "{left:#}"
        );
        assert_eq!(left[0]["from"], 512);
        platform.until_whole().await?;
        assert_eq!(platform.answer("merged").await?, cells(&platform.sent()));
        let (code, _, said) = platform.highwater(&["speed", "redo", "--view", "nowhere"]).await?;
        assert!(code == Some(2) && said.contains("there is no view `nowhere`"), "{said}");
        platform.stop_all().await
    })
}

/// A table of progress as builds made it that knew no redo.
#[tokio::test(flavor = "multi_thread")]
async fn progress_of_an_earlier_build_can_be_voided() -> anyhow::Result<()> {
    let platform = Platform::new(None).await?;
    let mut config = platform.config.clone();
    config.clickhouse.database = unique("earlier");
    let store = Store::new(&config.clickhouse);
    let create = format!("CREATE DATABASE {}", store.database());
    store.execute("make a database", &create).await?;
    let mut earlier = control_tables();
    earlier.retain(|table| table.name == PROGRESS);
    for table in &mut earlier {
        table.columns.retain(|(name, _)| name != "redo");
        table.order_by.retain(|name| name != "redo");
        store.execute("make a table", &table.create(store.database())).await?;
    }
    let view = &platform.definitions.views[0];
    let insert = format!(
        "INSERT INTO {}.progress (fingerprint, _topic, _partition, _start, _next) VALUES ('{}', 7, 0, 0, 200)",
        store.database(),
        view.fingerprint
    );
    store.execute("write progress", &insert).await?;
    store.create_tables(&platform.definitions).await?;
    store.create_tables(&platform.definitions).await?;
    // Else an insert of a worker that does not know the column would be refused.
    let defaults = format!(
        "SELECT throwIf(count() != 1) FROM system.columns WHERE database = '{}' AND table = '{PROGRESS}' AND name = 'redo' \
         AND default_kind = 'DEFAULT'",
        store.database()
    );
    store.execute("look for the default", &defaults).await?;

    let (partition, start) = (
        Partition {
            topic: TopicId(7),
            number: 0,
        },
        Start(Offset(0)),
    );
    let row = |redo, next| ProgressRow {
        redo: Redo(redo),
        ledger: Ledger {
            next: Offset(next),
            read: next,
            ..Ledger::default()
        },
        ..ProgressRow::void(view.fingerprint, partition, start, Redo(0))
    };
    let come = async || -> anyhow::Result<_> {
        let progress = store.facts(view).await?.progress(partition);
        let ledgers = store.ledgers(view).await?;
        let read: Vec<u64> = ledgers.iter().map(|(_, _, ledger)| ledger.read).collect();
        Ok((progress.redo(start).0, progress.next(start).map(|next| next.0), read))
    };
    assert_eq!(come().await?, (0, Some(200), vec![0]));
    let void = ProgressRow::void(view.fingerprint, partition, start, Redo(1));
    store.record_progress(&[void]).await?;
    assert_eq!(come().await?, (1, Some(0), vec![]));
    // Of a worker that knows of no redo, and of one that does.
    store.record_progress(&[row(0, 256)]).await?;
    assert_eq!(come().await?, (1, Some(0), vec![]));
    store.record_progress(&[row(1, 40)]).await?;
    let optimize = format!("OPTIMIZE TABLE {}.progress FINAL", store.database());
    store.execute("merge", &optimize).await?;
    assert_eq!(come().await?, (1, Some(40), vec![40]));
    assert_eq!(
        store.facts(view).await?.progress(partition).highest_next(),
        Some(Offset(256))
    );
    Ok(())
}
