//! Fault 11: the archive in an object store, on a real S3 server: every event once, whatever becomes of requests and programs.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use highwater_batch::archive::{Archive, ArchiveError, Upkeep, held_archives, remove_archive, tidy};
use highwater_batch::{Batch, Logs, Outcome, Selection, Today, reconcile};
use highwater_tests::platform::{Platform, cells, events};
use highwater_tests::proxy::{Act, Gate, Proxy, Then, Way};
use highwater_tests::s3::S3;
use highwater_tests::stack::program;
use highwater_tests::table::{Table, offsets, partition, texts};
use highwater_tests::workers::Worker;
use shared_connections::sentence;
use shared_schemas::config::{ArchiveUrl, Secret};
use shared_schemas::handoff::{EventDay, Offset};
use tokio_util::sync::CancellationToken;

use crate::faults::clock::Clock;
use crate::faults::trial::trials;

/// A table on that server, reached at that URL.
fn table(url: &str) -> anyhow::Result<Table> {
    let mut table = Table::new()?;
    S3::hold(&mut table.config, url);
    Ok(table)
}

/// Whether a request writes an entry of the log.
fn writes_entry(request: &str) -> bool {
    let line = request.lines().next().unwrap_or_default();
    line.starts_with("PUT ") && line.contains("/_delta_log/") && line.contains(".json")
}

/// Whether it writes a file of events.
fn writes_file(request: &str) -> bool {
    let line = request.lines().next().unwrap_or_default();
    line.starts_with("PUT ") && line.contains(".zstd.parquet")
}

/// How many files of events there are in the bucket.
fn files(server: &S3) -> anyhow::Result<usize> {
    let mut folders = vec![server.bucket().join("archive/trips")];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(".zstd.parquet") {
                found += 1;
            }
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_is_told() -> anyhow::Result<()> {
    let server = S3::start().await?;
    let told = async |change: &dyn Fn(&mut Table)| -> anyhow::Result<String> {
        let mut table = table(&server.url())?;
        change(&mut table);
        let error = table.open().await.err().map(|error| format!("{error:#}"));
        Ok(error.unwrap_or_default())
    };
    let said = told(&|table| {
        if let ArchiveUrl::Store { bucket, .. } = &mut table.config.url {
            "nothing".clone_into(bucket);
        }
    })
    .await?;
    let text = "the archive can't be at s3://nothing/archive: there is no bucket `nothing`: make it, or name another";
    assert_eq!(said, text);
    for option in ["aws_access_key_id", "aws_secret_access_key"] {
        let said = told(&|table| {
            let options = &mut table.config.options;
            options.insert(option.to_owned(), Secret::new("wrong"));
        })
        .await?;
        assert!(
            said.contains("the store refuses its keys: look at AWS_ACCESS_KEY_ID"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let nobody = told(&|table| S3::hold(&mut table.config, "http://127.0.0.1:1")).await?;
    assert!(nobody.contains("it can't be reached: look at AWS_ENDPOINT"), "{nobody}");
    Ok(())
}

/// What may become of a request that writes.
fn mishap(random: &mut fastrand::Rng) -> Act {
    let acts = [
        Act::Lose,
        Act::LoseReply,
        Act::Leave,
        Act::Twice,
        Act::Refuse(1),
        Act::Halve,
        Act::Status(503),
        Act::HalveReply,
    ];
    acts[random.usize(..acts.len())].clone()
}

/// Requests are lost, done without a reply, done twice, refused, cut off: tried again as the archiver does, each offset
/// is there once, and no file is that nobody names.
#[test]
fn requests_of_which_nobody_knows_what_became_archive_once() -> anyhow::Result<()> {
    trials("11", "writes to S3 lost, halved, doubled, refused", 4, async |trial| {
        let server = S3::start().await?;
        let proxy = Proxy::of_statements(&server.url())?;
        let table = table(&proxy.url())?;
        let mut archive = table.open().await?;
        let (mut failed, rounds) = (0, trial.times(20, 40));
        for round in 0..rounds {
            let commit = table.commit(0, round * 10..(round + 1) * 10)?;
            let act = mishap(&mut trial.random);
            if trial.random.u8(..8) < 6 {
                proxy.once(0, writes_entry, act);
            } else {
                proxy.once(trial.random.usize(..3), writes_file, act);
            }
            let mut tries = 0;
            while let Err(error) = archive.commit(&commit).await {
                failed += 1;
                tries += 1;
                anyhow::ensure!(tries < 10, "{}", sentence(&error));
            }
            proxy.forget();
        }
        println!("{failed} tries failed");
        let pinned = table.pin().await?;
        let found = offsets(&pinned).await?;
        trial.found(0..rounds * 10, found.get(&0).context("nothing is there")?)?;
        let there = files(&server)?;
        anyhow::ensure!(there == pinned.ranges().len(), "{there} files: some that nobody names");
        Ok(())
    })
}

/// The archive is optimized over the same line, entries of the log and files too: rows stay as they are, and what nobody
/// names goes.
#[test]
fn optimizing_over_a_bad_line_changes_no_row() -> anyhow::Result<()> {
    trials("11", "archive optimize over a bad line to S3", 4, async |trial| {
        let server = S3::start().await?;
        let (proxy, direct) = (Proxy::of_statements(&server.url())?, table(&server.url())?);
        let over_line = table(&proxy.url())?;
        let mut archive = over_line.open().await?;
        let upkeep = |keep_removed| Upkeep {
            keep_removed,
            ..Upkeep::of(&over_line.config, &over_line.dataset, &Today::Is(EventDay(0)), false)
        };
        let (cancel, week) = (CancellationToken::new(), Duration::from_secs(7 * 86_400));
        let mut failed = 0;
        for round in 0..trial.times(4, 8) {
            direct.fill(0, round * 30..(round + 1) * 30, 3).await?;
            let act = mishap(&mut trial.random);
            match round % 4 {
                0 => proxy.once(0, writes_entry, Act::LoseReply),
                1 => proxy.once(0, writes_entry, act),
                2 => proxy.once(trial.random.usize(..3), writes_file, act),
                _ => disturb(&proxy, &mut trial.random, reads, 20),
            }
            let mut tries = 0;
            let done = loop {
                match archive.optimize(&upkeep(week), &cancel).await {
                    // What can't be read for now is no damage.
                    Ok(done) => break done,
                    Err(error) => {
                        failed += 1;
                        tries += 1;
                        anyhow::ensure!(tries < 10, "{}", sentence(&error));
                        proxy.forget();
                    }
                }
            };
            anyhow::ensure!(done.damaged.is_empty(), "round {round}: {done:?}");
            proxy.forget();
            let found = offsets(&direct.pin().await?).await?;
            trial.found(0..(round + 1) * 30, &found[&0])?;
        }
        println!("{failed} tries failed");
        // sleeps: a file is old once its time has passed
        tokio::time::sleep(Duration::from_millis(1100)).await;
        archive.optimize(&upkeep(Duration::ZERO), &cancel).await?;
        let pinned = direct.pin().await?;
        let there = files(&server)?;
        anyhow::ensure!(there == pinned.ranges().len(), "{there} files: some that nobody names");
        trial.found(0..trial.times(4, 8) * 30, &offsets(&pinned).await?[&0])
    })
}

/// Whether a request gets an object or lists some.
fn reads(request: &str) -> bool {
    request.starts_with("GET ")
}

/// Whether it gets a file of events.
fn reads_file(request: &str) -> bool {
    let line = request.lines().next().unwrap_or_default();
    line.starts_with("GET ") && line.contains(".zstd.parquet")
}

/// Lets so many of a hundred of these requests be refused, cut off or lost.
fn disturb(proxy: &Proxy, random: &mut fastrand::Rng, which: fn(&str) -> bool, percent: u8) {
    let mut random = random.fork();
    proxy.on(move |request| {
        let acts = [Act::Status(503), Act::Status(500), Act::HalveReply, Act::Lose];
        let act = acts[random.usize(..acts.len())].clone();
        (which(request) && random.u8(..100) < percent).then_some(act)
    });
}

/// Where the store fails, is slow or breaks off while it is read, what is read is all, or it is said that it can't be read now:
/// never that a file is damaged, never less.
#[test]
fn reads_from_a_bad_store_give_all_or_say_so() -> anyhow::Result<()> {
    trials("11", "reads from S3 refused, cut off, slow", 4, async |trial| {
        let server = S3::start().await?;
        let proxy = Proxy::of_statements(&server.url())?;
        let (direct, over_line) = (table(&server.url())?, table(&proxy.url())?);
        direct.fill(0, 0..300, 4).await?;
        let rows = texts(&direct.pin().await?).await?;
        let (mut whole, mut said_so) = (0, 0);
        for round in 0..trial.times(8, 16) {
            match round % 4 {
                // Nothing of one kind comes through, and so it can't be read.
                0 => disturb(&proxy, &mut trial.random, reads_file, 100),
                1 => proxy.set(Way::Slow(100_000)),
                2 => disturb(&proxy, &mut trial.random, reads, 15),
                _ => disturb(&proxy, &mut trial.random, reads, 50),
            }
            let read = async { texts(&over_line.pin().await?).await };
            match read.await {
                Ok(read) => {
                    anyhow::ensure!(read == rows, "other rows, and no word");
                    anyhow::ensure!(round % 4 != 0, "nothing was in the way");
                    whole += 1;
                }
                Err(error) => {
                    let said = format!("{error:#}");
                    let of_file = said.contains("can't be read now: the store does not give it");
                    let of_log = ["can't be read", "can't be looked for", "can't be at s3://"]
                        .iter()
                        .any(|words| said.contains(words));
                    anyhow::ensure!(of_file || (of_log && !said.contains(".zstd.parquet")), "{said}");
                    anyhow::ensure!(round % 4 != 0 || of_file, "{said}");
                    said_so += 1;
                }
            }
            proxy.forget();
            proxy.set(Way::Open);
        }
        println!("{whole} read, {said_so} not");
        anyhow::ensure!(
            whole > 1 && said_so > 1,
            "{whole} read, {said_so} not: it means nothing"
        );
        let found = offsets(&over_line.pin().await?).await?;
        trial.found(0..300, &found[&0])
    })
}

/// Days that a dataset no longer keeps, and a whole archive, go from a store as they do from a folder; in the bucket itself too.
#[tokio::test(flavor = "multi_thread")]
async fn days_and_whole_archives_go() -> anyhow::Result<()> {
    let server = S3::start().await?;
    for below in ["archive", ""] {
        let mut table = table(&server.url())?;
        if let ArchiveUrl::Store { path, .. } = &mut table.config.url {
            below.clone_into(path);
        }
        assert_eq!(held_archives(&table.config).await?, [], "{below}");
        table.fill(0, 0..30, 3).await?;
        let held = held_archives(&table.config).await?;
        let told: Vec<_> = held.iter().map(|one| (one.dataset.as_str(), one.events)).collect();
        assert_eq!(told, [("trips", 30)], "{below}: {held:?}");
        assert_eq!(held[0].topics, [partition(0).topic].into());

        let mut archive = table.open().await?;
        let first = table.pin().await?.ranges().iter().map(|range| range.day).min();
        let upkeep = Upkeep {
            horizon: first.map(|day| EventDay(day.0 + 1)),
            ..Upkeep::of(&table.config, &table.dataset, &Today::Is(EventDay(0)), false)
        };
        let done = archive.optimize(&upkeep, &CancellationToken::new()).await?;
        assert!(done.let_go.files > 0, "{done:?}");
        let left = (0..30).filter(|offset| offset % 3 != 0).collect();
        assert_eq!(offsets(&table.pin().await?).await?, [(0, left)].into());

        remove_archive(&table.config, "trips").await?;
        assert_eq!(held_archives(&table.config).await?, [], "{below}");
        assert!(Archive::open(&table.config, &table.dataset).await?.is_none());
    }
    Ok(())
}

/// Where ClickHouse can't be asked, the store says what time it is: days go, and files that nobody needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_stores_clock_is_the_second_one() -> anyhow::Result<()> {
    let server = S3::start().await?;
    let mut table = table(&server.url())?;
    table.fill(0, 0..90, 9).await?;
    let mut config = table.without_clickhouse()?;
    config.archive.keep_removed = Duration::from_secs(3600);
    let cancel = CancellationToken::new();
    let done = tidy(&config, &table.dataset, false, &cancel).await?;
    assert_eq!((done.replaced.files, done.by.files), (27, 3), "{done:?}");
    assert_eq!((done.doubt.as_deref(), done.deleted.files), (None, 0), "{done:?}");
    let site = table.site("[clickhouse]\nurl = \"http://127.0.0.1:9\"\n[archive]\nurl = \"s3://highwater/archive\"\nkeep_removed = \"1h\"\n")?;

    // A clock that is years ahead is nobody's second one: the store may refuse it, too.
    let clock = Clock::new(&site)?;
    clock.set(3 * 365 * 86_400)?;
    let mut wrong = Command::new(program("highwater")?);
    wrong.current_dir(&site).args(["archive", "optimize"]);
    wrong.envs(clock.environment()).envs(S3::environment(&server.url()));
    let wrong = wrong.output()?;
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(files(&server)?, 30, "{}", String::from_utf8_lossy(&wrong.stderr));

    table.dataset.keep = Some(Duration::from_secs(86_400));
    config.archive.keep_removed = Duration::ZERO;
    // sleeps: a file is old once its time has passed
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let done = tidy(&config, &table.dataset, false, &cancel).await?;
    assert_eq!((done.doubt.as_deref(), done.let_go.files), (None, 3), "{done:?}");
    assert!(done.horizon.is_some() && done.deleted.files >= 27, "{done:?}");
    assert_eq!(offsets(&table.pin().await?).await?, [].into());
    let left = server.bucket().join("archive/trips/_clock");
    assert!(!left.is_dir() || left.read_dir()?.next().is_none());
    Ok(())
}

/// The entry of a commit whose writer has given up is written after all: before it tries again, or after. Its files are
/// there.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_arrives_late_names_files_that_are_there() -> anyhow::Result<()> {
    let server = S3::start().await?;
    let proxy = Proxy::of_statements(&server.url())?;
    let mut table = table(&proxy.url())?;
    let options = &mut table.config.options;
    options.insert("timeout".to_owned(), Secret::new("3 seconds"));
    let mut archive = table.open().await?;
    for (round, before) in (0..4).zip([true, false, true, false]) {
        let commit = table.commit(0, round * 10..(round + 1) * 10)?;
        let gate = Gate::closed();
        proxy.once(0, writes_entry, Act::Hold(gate.clone()));
        let error = archive.commit(&commit).await.err();
        assert!(matches!(error, Some(ArchiveError::Log { .. })), "{error:?}");
        gate.until_held(1, 1).await?;
        if before {
            gate.open(Then::SendOn);
            gate.until_done(1).await?;
            assert_eq!(
                table.pin().await?.ends[&partition(0)],
                Offset((round + 1) * 10),
                "it did not arrive"
            );
        }
        archive.commit(&commit).await?;
        if !before {
            gate.open(Then::SendOn);
            gate.until_done(1).await?;
        }
        let pinned = table.pin().await?;
        assert_eq!(offsets(&pinned).await?, [(0, (0..(round + 1) * 10).collect())].into());
        assert_eq!(files(&server)?, pinned.ranges().len());
    }
    // Somebody else is first with it: the entry that comes late finds its place taken.
    let gate = Gate::closed();
    proxy.once(0, writes_entry, Act::Hold(gate.clone()));
    assert!(archive.commit(&table.commit(0, 40..50)?).await.is_err());
    gate.until_held(1, 1).await?;
    let mut rival = table.open().await?;
    rival.commit(&table.commit(0, 40..45)?).await?;
    gate.open(Then::SendOn);
    gate.until_done(1).await?;
    // The zombie is told where the archive stands, goes there, and cleans up after itself.
    let error = archive.commit(&table.commit(0, 40..50)?).await.err();
    assert!(
        matches!(error, Some(ArchiveError::Overtaken { end: Offset(45), .. })),
        "{error:?}"
    );
    archive.refresh().await?;
    archive.commit(&table.commit(0, 45..50)?).await?;
    let pinned = table.pin().await?;
    assert_eq!(offsets(&pinned).await?, [(0, (0..50).collect())].into());
    assert_eq!(files(&server)?, pinned.ranges().len());
    Ok(())
}

/// Events stream into two archivers that die in the middle of commits, over a line that is cut and slow; a batch run over the
/// same line publishes what was sent or says what it could not read, and reconciliation finds nothing.
#[test]
fn all_that_was_sent_comes_out_of_a_store_once() -> anyhow::Result<()> {
    trials("11", "S3 slow and cut, archivers killed, a run", 3, async |trial| {
        let server = S3::start().await?;
        let proxy = Proxy::of_statements(&server.url())?;
        let mut platform = Platform::new(None).await?;
        S3::hold(&mut platform.config.archive, &proxy.url());
        platform.start_speed()?;
        platform.start_serving().await?;
        let (place, environment) = (platform.place(), S3::environment(&proxy.url()));
        let start = || Worker::start(&platform, "archive", &place, &environment);
        let mut workers = Vec::new();
        platform
            .while_streaming(async {
                workers.extend([start()?, start()?]);
                for round in 0..6 {
                    let gate = Gate::closed();
                    let act = match round % 3 {
                        0 => Act::Hold(gate.clone()),
                        1 => Act::HoldReply(gate.clone()),
                        _ => Act::LoseReply,
                    };
                    let is_held = round % 3 != 2;
                    proxy.once(trial.random.usize(..3), writes_entry, act);
                    if is_held {
                        gate.until_held(1, 0).await?;
                        // One of them is in the middle of a commit, and maybe both.
                        workers.swap_remove(trial.random.usize(..2)).kill().await;
                        proxy.set(if round % 2 == 0 { Way::Cut } else { Way::Slow(200_000) });
                        // sleeps: how long the line is bad, not a wait for anything
                        tokio::time::sleep(trial.instant(400)).await;
                        proxy.set(Way::Open);
                        gate.open(Then::SendOn);
                        workers.push(start()?);
                    }
                }
                Ok(())
            })
            .await?;
        platform.send(events(1_000_000..1_000_300)).await?;
        proxy.forget();
        platform.until_archived().await?;

        // Nothing of one file comes, so its days can't be computed; what was answered stands, and so does the archive.
        disturb(&proxy, &mut trial.random, reads_file, 100);
        for report in platform.batch(&[]).await? {
            let why = report.why.clone().unwrap_or_default();
            let is_said = why.contains("can't be read now: the store does not give it");
            anyhow::ensure!(report.result == Outcome::Failed && is_said, "{report:?}");
        }
        trial.whole(&platform).await?;
        // Of a store that is bad now and then it reads what there is, or says so; of a slow one all, from the store alone.
        let mut batch = Batch::new(platform.config.clone(), platform.definitions.clone())?;
        batch.to_end = true;
        let views = batch.selected(&Selection::default())?;
        let cancel = CancellationToken::new();
        let lease = batch.lease("a test's run", true, &Logs, &cancel).await?;
        for way in [Way::Open, Way::Slow(500_000)] {
            proxy.forget();
            proxy.set(way);
            if way == Way::Open {
                disturb(&proxy, &mut trial.random, reads, 10);
            }
            for report in batch.run(&views, &Logs, &cancel).await {
                let why = report.why.clone().unwrap_or_default();
                let is_said = why.contains("the archive can't be") || why.contains("the archive at s3://");
                let done = matches!(report.result, Outcome::Published | Outcome::NothingToDo);
                anyhow::ensure!(done || (way == Way::Open && is_said), "{report:?}");
            }
            trial.whole(&platform).await?;
        }
        proxy.set(Way::Open);
        drop(lease);
        let sent: BTreeSet<_> = platform.sent();
        anyhow::ensure!(platform.answer("batch").await? == cells(&sent), "not all of it");
        platform.send(events(2_000_000..2_000_100)).await?;
        platform.until_archived().await?;
        trial.whole(&platform).await?;
        disturb(&proxy, &mut trial.random, reads_file, 5);
        for one in reconcile(&batch, &views, &Logs, &cancel).await {
            let is_said = one.why.as_deref().is_some_and(|why| why.contains("can't be read"));
            anyhow::ensure!(one.unexplained == 0, "{one:?}");
            anyhow::ensure!(one.compared > 0 || is_said, "{one:?}");
        }
        proxy.forget();
        for worker in workers {
            worker.end_well().await?;
        }
        platform.stop_all().await
    })
}
