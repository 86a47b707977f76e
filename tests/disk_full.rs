//! Fault 20: a disk that is full or read-only while events are archived, files made one, or a batch run spills: told, nothing half
//! done, and on it goes once there is room.

use std::time::Duration;

use anyhow::ensure;
use highwater_batch::Today;
use highwater_batch::archive::{Archive, Upkeep};
use highwater_tests::disk::Disk;
use highwater_tests::platform::{Difference, Platform, events};
use highwater_tests::stack::until;
use highwater_tests::table::{Table, offsets, texts};
use highwater_tests::workers::Worker;
use shared_connections::sentence;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::EventDay;
use tokio_util::sync::CancellationToken;

use crate::faults::trial::trials;
use crate::privacy::spilled::{DEFINITIONS, PEOPLE, archived, computed};

#[test]
fn an_archiver_goes_on_when_there_is_room_again() -> anyhow::Result<()> {
    trials("20", "no room for what is archived", 3, async |trial| {
        let mut platform = Platform::new(None).await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        let archiver = Worker::limited(&platform, "archive", trial.random.u32(40..56))?;
        platform.send(events(0..100)).await?;
        platform.until_archived().await?;
        let dataset = &platform.definitions.datasets[0];
        let pin = async || {
            anyhow::Ok(
                Archive::open(&platform.config.archive, dataset)
                    .await?
                    .unwrap()
                    .pin()
                    .await?,
            )
        };
        let before = pin().await?;

        // So many days at once that neither their entry nor some of their files fit: read as they come they might be parts
        // that do.
        archiver.stop();
        platform.send(events(100..9_000)).await?;
        archiver.go_on();
        archiver.until_said("File too large").await?;
        let stalled = pin().await?;
        let held: usize = offsets(&stalled).await?.values().map(Vec::len).sum();
        let ends: u64 = stalled.ends.values().map(|end| end.0).sum();
        ensure!(
            held as u64 == ends,
            "{held} of {ends}: all below the ends, and none beyond"
        );
        ensure!(stalled.version >= before.version, "it went back");
        ensure!(archiver.runs(), "{}", archiver.said());

        archiver.unlimited()?;
        platform.until_archived().await?;
        let whole = pin().await?;
        let held: usize = offsets(&whole).await?.values().map(Vec::len).sum();
        ensure!(held == 9_000, "{held} of 9,000 are archived");
        platform.publish().await?;
        trial.whole(&platform).await?;
        archiver.end_well().await?;
        platform.stop_all().await
    })
}

#[test]
fn a_run_that_has_no_room_to_spill_fails_and_leaves_nothing() -> anyhow::Result<()> {
    if Disk::is_elsewhere(
        module_path!(),
        "a_run_that_has_no_room_to_spill_fails_and_leaves_nothing",
    )? {
        return Ok(());
    }
    trials("20", "no room for what a run spills", 3, async |trial| {
        let disk = Disk::here();
        let site = tempfile::TempDir::with_prefix("highwater-test-")?;
        let definitions = Definitions::parse([("people.toml", DEFINITIONS)])?;
        let archive = archived(&definitions, &site.path().join("archive")).await?;
        let spill = site.path().join("spill");
        std::fs::create_dir(&spill)?;
        let all = usize::try_from(PEOPLE)? * 9 / 10;
        let left = || anyhow::Ok(std::fs::read_dir(&spill)?.count());
        // The first is not enough for what is kept of ids, the second one not for cells.
        let enough_for_ids = match disk {
            Disk::Small(_) => trial.random.u64(4 << 20..6 << 20),
            Disk::Limited => 16 << 10,
        };
        for room in [4 << 10, enough_for_ids] {
            disk.fill(room)?;
            let result = computed(&archive, &definitions, &spill).await;
            disk.free()?;
            let error = result.err().map(|error| format!("{error:#}"));
            let error = error.unwrap_or_default();
            ensure!(error.contains(disk.full()), "with {room} bytes: {error:?}");
            // Tasks of the plan may end after it.
            until("spilled files are gone", || left().is_ok_and(|left| left == 0)).await?;
        }
        if disk.read_only(true)? {
            let result = computed(&archive, &definitions, &spill).await;
            disk.read_only(false)?;
            let error = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(error.contains("Read-only file system"), "{error:?}");
        }
        let rows = computed(&archive, &definitions, &spill).await?;
        ensure!(rows == all, "{rows} of {all}");
        trial.told(PEOPLE.unsigned_abs(), Difference::default());
        Ok(())
    })
}

/// Commits and the optimizer on a disk that is full, has a little room, or is read-only: each says so in a sentence, what was
/// archived is read as before, and once there is room both go on, and leave no file behind that nobody names.
#[test]
fn an_archive_without_room_stays_as_it_is_and_goes_on() -> anyhow::Result<()> {
    if Disk::is_elsewhere(module_path!(), "an_archive_without_room_stays_as_it_is_and_goes_on")? {
        return Ok(());
    }
    trials("20", "disk full, read-only: commits, optimize", 4, async |trial| {
        let disk = Disk::here();
        let table = Table::new()?;
        let mut archive = table.open().await?;
        let upkeep = |keep_removed| Upkeep {
            keep_removed,
            ..Upkeep::of(&table.config, &table.dataset, &Today::Is(EventDay(0)), false)
        };
        let (cancel, week) = (CancellationToken::new(), Duration::from_secs(7 * 86_400));
        table.fill(0, 0..200, 4).await?;
        archive.refresh().await?;
        let (mut end, mut refused) = (200, 0);
        for round in 0..trial.times(6, 16) {
            let rows = texts(&table.pin().await?).await?;
            let commit = table.commit(0, end..end + 200)?;
            let read_only = round % 4 == 3 && disk.read_only(true)?;
            if !read_only {
                let room = trial.random.u64(0..64 << 10);
                disk.fill(if round < 3 { 0 } else { room })?;
            }
            let optimizes = round % 2 == 1;
            let result = if optimizes {
                archive.optimize(&upkeep(week), &cancel).await.map(drop)
            } else {
                archive.commit(&commit).await.map(drop)
            };
            if let Err(error) = &result {
                let said = sentence(error);
                let why = if read_only {
                    "Read-only file system"
                } else {
                    disk.full()
                };
                ensure!(said.contains(why) && !said.contains('\n'), "{said}");
                ensure!(texts(&table.pin().await?).await? == rows, "rows changed: {said}");
                refused += 1;
            }
            if read_only {
                disk.read_only(false)?;
            } else {
                disk.free()?;
            }
            if !optimizes {
                if result.is_err() {
                    archive.commit(&commit).await?;
                }
                end += 200;
            }
            trial.found(0..end, &offsets(&table.pin().await?).await?[&0])?;
        }
        ensure!(refused > 2, "only {refused} were refused: it means nothing");
        // sleeps: a file is old once its time has passed
        tokio::time::sleep(Duration::from_millis(1100)).await;
        archive.optimize(&upkeep(Duration::ZERO), &cancel).await?;
        let pinned = table.pin().await?;
        let (there, named) = (table.files()?.len(), pinned.ranges().len());
        ensure!(there == named, "{there} files, {named} of them named");
        trial.found(0..end, &offsets(&pinned).await?[&0])
    })
}
