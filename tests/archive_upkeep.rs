//! Small files made into large ones, and what nobody names deleted: rows stay, whoever writes or reads beside it, and
//! wherever it is killed.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::ensure;
use highwater_batch::archive::{Archive, Commit, Optimized, Upkeep, tidy};
use highwater_tests::platform::{Platform, cells, events};
use highwater_tests::stack::{program, run};
use highwater_tests::table::{Table, offsets, partition, texts};
use shared_schemas::handoff::{Offset, OffsetRange};
use tokio_util::sync::CancellationToken;

use crate::faults::trial::trials;

const FOR_LONG: Duration = Duration::from_secs(7 * 86_400);

async fn optimize(archive: &mut Archive, target: u64, keep: Duration, dry_run: bool) -> anyhow::Result<Optimized> {
    let upkeep = Upkeep {
        target_file: target,
        keep_removed: keep,
        horizon: None,
        deletes: true,
        dry_run,
    };
    Ok(archive.optimize(&upkeep, &CancellationToken::new()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn optimized_rows_are_the_same_rows() -> anyhow::Result<()> {
    let table = Table::new()?;
    table.fill(0, 0..3000, 30).await?;
    table.fill(1, 0..500, 3).await?;
    let mut archive = table.open().await?;
    let gap = OffsetRange {
        from: Offset(500),
        to: Offset(510),
    };
    archive
        .commit(&Commit {
            ranges: [(partition(1), gap)].into(),
            gaps: [(partition(1), [gap].into_iter().collect())].into(),
            ..Commit::default()
        })
        .await?;
    let before = table.pin().await?;
    let rows = texts(&before).await?;
    assert_eq!(rows.len(), 3500);
    let files = before.ranges().len();
    assert_eq!(files, 99);

    let would = optimize(&mut archive, 1 << 20, FOR_LONG, true).await?;
    assert_eq!((would.before.files, would.replaced.files, would.by.files), (99, 99, 6));
    assert_eq!(
        table.pin().await?.version,
        before.version,
        "a dry run changed something"
    );

    let done = optimize(&mut archive, 1 << 20, FOR_LONG, false).await?;
    assert_eq!(
        (done.replaced, done.by.files, done.deleted.files),
        (would.replaced, 6, 0)
    );
    assert!(done.damaged.is_empty());
    let after = table.pin().await?;
    assert_eq!(after.version, before.version + 1, "one entry");
    assert_eq!(texts(&after).await?, rows);
    assert_eq!((&after.ends, &after.gaps), (&before.ends, &before.gaps));
    assert_eq!(after.ranges().len(), 6);
    for number in [0, 1] {
        for from in [0, 1, 77, 499, 2999] {
            let (partition, from) = (partition(number), Offset(from));
            assert_eq!(
                after.kafka_times(partition, from).await?,
                before.kafka_times(partition, from).await?
            );
            let range = OffsetRange { from, to: Offset(1500) };
            assert_eq!(
                after.events_within(partition, range).await?,
                before.events_within(partition, range).await?
            );
        }
    }
    // A run that pinned the version before reads on.
    assert_eq!(texts(&before).await?, rows);
    assert_eq!(table.files()?.len(), files + 6);

    // Nothing is left to do; the archiver goes on; and in time the old files go.
    let again = optimize(&mut archive, 1 << 20, FOR_LONG, false).await?;
    assert_eq!((again.replaced.files, again.deleted.files), (0, 0));
    table.fill(0, 3000..3100, 2).await?;
    archive.refresh().await?;
    assert_eq!(archive.ends()[&partition(0)], Offset(3100));
    std::fs::write(table.folder().join("notes.txt"), "not ours")?;
    // sleeps: a file is old once its time has passed
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let would = optimize(&mut archive, 1 << 10, Duration::ZERO, true).await?;
    assert_eq!(would.deleted.files, 99);
    assert_eq!(table.files()?.len(), files + 6 + 6);
    let last = optimize(&mut archive, 1 << 10, Duration::ZERO, false).await?;
    assert_eq!(last.deleted, would.deleted);
    assert_eq!(table.files()?.len(), 12);
    assert!(table.folder().join("notes.txt").is_file());
    assert_eq!(offsets(&table.pin().await?).await?[&0], (0..3100).collect::<Vec<_>>());
    assert!(texts(&before).await.is_err(), "its files are gone, and it says so");
    Ok(())
}

/// Without ClickHouse a folder's archive has one clock: small files are made large ones, and nothing goes that would not come back.
#[tokio::test(flavor = "multi_thread")]
async fn one_clock_lets_nothing_go() -> anyhow::Result<()> {
    let mut table = Table::new()?;
    table.fill(0, 0..90, 9).await?;
    let mut config = table.without_clickhouse()?;
    config.archive.keep_removed = Duration::ZERO;
    let cancel = CancellationToken::new();
    let done = tidy(&config, &table.dataset, false, &cancel).await?;
    assert_eq!((done.replaced.files, done.by.files), (27, 3), "{done:?}");
    // sleeps: a file is old once its time has passed
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let done = tidy(&config, &table.dataset, false, &cancel).await?;
    assert_eq!((done.waiting.files, done.deleted.files), (27, 0), "{done:?}");
    let doubt = done.doubt.unwrap_or_default();
    assert!(doubt.contains("before a second clock says what time it is"), "{doubt}");
    assert_eq!(table.files()?.len(), 30);

    // All of its days are older than that.
    table.dataset.keep = Some(FOR_LONG);
    let done = tidy(&config, &table.dataset, false, &cancel).await?;
    assert_eq!((done.horizon, done.let_go.files), (None, 0));
    assert!(done.doubt.is_some());
    assert_eq!(offsets(&table.pin().await?).await?[&0], (0..90).collect::<Vec<_>>());
    Ok(())
}

/// Archivers commit and others optimize, all the time: each offset is there once.
#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_goes_on_beside_it() -> anyhow::Result<()> {
    let table = Table::new()?;
    table.open().await?;
    let writing = async {
        for number in [0, 1]
            .into_iter()
            .cycle()
            .take(60)
            .enumerate()
            .map(|(at, number)| (at as u64 / 2, number))
        {
            let (round, number) = number;
            let mut archive = table.open().await?;
            let commit = table.commit(number, round * 20..(round + 1) * 20)?;
            // Whoever lost too often comes again, as the archiver does.
            while let Err(error) = archive.commit(&commit).await {
                ensure!(error.to_string().contains("other writers"), "{error}");
            }
        }
        anyhow::Ok(())
    };
    let ended = CancellationToken::new();
    let optimizing = async {
        let mut replaced = 0;
        let mut archive = table.open().await?;
        while !ended.is_cancelled() {
            replaced += optimize(&mut archive, 1 << 20, FOR_LONG, false).await?.replaced.files;
        }
        anyhow::Ok(replaced)
    };
    let writing = async {
        let written = writing.await;
        ended.cancel();
        written
    };
    let (written, replaced, rival) = tokio::join!(writing, optimizing, async {
        let (mut archive, mut replaced) = (table.open().await?, 0);
        while !ended.is_cancelled() {
            replaced += optimize(&mut archive, 1 << 20, FOR_LONG, false).await?.replaced.files;
        }
        anyhow::Ok(replaced)
    });
    written?;
    assert!(replaced? + rival? > 0, "nothing was optimized");
    let all: Vec<u64> = (0..600).collect();
    assert_eq!(
        offsets(&table.pin().await?).await?,
        BTreeMap::from([(0, all.clone()), (1, all)])
    );
    Ok(())
}

/// `highwater archive optimize`, killed at any moment: the table is as it was, or as it should be.
#[test]
fn killed_anywhere_it_loses_nothing() -> anyhow::Result<()> {
    trials("1", "kill -9 of archive optimize", 3, async |trial| {
        let mut table = Table::new()?;
        table.days = 40;
        let home = table.site("[archive]\ntarget_file = \"1MiB\"\n")?;
        let mut end = 0;
        let mut killed = 0;
        for _ in 0..8 {
            table.fill(0, end..end + 400, 5).await?;
            end += 400;
            let before = texts(&table.pin().await?).await?;
            let mut child = tokio::process::Command::new(program("highwater")?)
                .current_dir(&home)
                .args(["archive", "optimize"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            // sleeps: the instant of a death, not a wait for anything
            tokio::time::sleep(trial.instant(600)).await;
            if child.try_wait()?.is_none() {
                child.kill().await?;
                killed += 1;
            }
            ensure!(texts(&table.pin().await?).await? == before, "rows changed");
        }
        println!("killed {killed} of 8");
        let mut archive = table.open().await?;
        optimize(&mut archive, 1 << 20, Duration::ZERO, false).await?;
        let pinned = table.pin().await?;
        ensure!(pinned.ranges().len() == 40, "one file a day");
        trial.found(0..end, &offsets(&pinned).await?[&0])
    })
}

/// A commit that holds four hundred days makes as many files, and optimizing so many takes little memory.
#[tokio::test(flavor = "multi_thread")]
async fn many_days_in_one_commit_are_archived() -> anyhow::Result<()> {
    let mut table = Table::new()?;
    table.days = 400;
    table.fill(0, 0..40_000, 2).await?;
    let pinned = table.pin().await?;
    assert_eq!(pinned.ranges().len(), 800);
    assert_eq!(offsets(&pinned).await?[&0], (0..40_000).collect::<Vec<_>>());
    let mut archive = table.open().await?;
    let done = optimize(&mut archive, 1 << 20, FOR_LONG, false).await?;
    assert_eq!((done.replaced.files, done.by.files), (800, 400));
    assert_eq!(offsets(&table.pin().await?).await?[&0], (0..40_000).collect::<Vec<_>>());
    Ok(())
}

/// What a batch run publishes from optimized files is what was sent, and reconciliation's ledgers still fit.
#[test]
fn a_batch_run_gives_the_same_before_and_after() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        for round in 0..4 {
            platform.send(events(round * 400..(round + 1) * 400)).await?;
            platform.until_archived().await?;
        }
        platform.publish_to_end().await?;
        assert_eq!(platform.answer("batch").await?, cells(&platform.sent()));
        let dataset = &platform.definitions.datasets[0];
        let mut archive = Archive::open(&platform.config.archive, dataset).await?.unwrap();
        let done = optimize(&mut archive, 1 << 20, FOR_LONG, false).await?;
        assert!(done.replaced.files > done.by.files, "{done:?}");
        // Each day has further events, so all days are computed anew, from the optimized files.
        platform.send(events(4_000..5_600)).await?;
        platform.until_archived().await?;
        platform.publish_to_end().await?;
        assert_eq!(platform.answer("batch").await?, cells(&platform.sent()));
        platform.stop_all().await
    })
}
