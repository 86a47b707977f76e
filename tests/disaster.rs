//! What an operator fears: ClickHouse lost as a whole, the archive gone back to a copy of last night.

use std::path::{Path, PathBuf};

use anyhow::Context;
use highwater_batch::{Outcome, ViewReport};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::platform::{Platform, cells, events, total};
use highwater_tests::stack::{run, said_in};
use shared_schemas::config::ArchiveUrl;
use shared_schemas::handoff::{Offset, Partition};

use crate::accounting::delete_below;

fn archive_of(platform: &Platform) -> anyhow::Result<PathBuf> {
    match &platform.config.archive.url {
        ArchiveUrl::Folder(folder) => Ok(folder.clone()),
        ArchiveUrl::Store { .. } => anyhow::bail!("the archive is no folder"),
    }
}

/// Copies a folder; with a table in it its log first: what a log names was written before it, so the copy has it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let mut entries: Vec<_> = std::fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|entry| entry.file_name() != "_delta_log");
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            // A commit's file may have another name for a moment.
            std::fs::copy(entry.path(), target)
                .map(|_| ())
                .or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
        }
    }
    Ok(())
}

/// All of ClickHouse is gone, and Kafka holds nothing any more of what was published: a new, empty server is enough.
#[test]
fn a_store_that_is_lost_is_rebuilt_from_the_archive() -> anyhow::Result<()> {
    run(async {
        let lost = ClickHouse::start()?;
        let mut platform = Platform::new(Some(lost.url())).await?;
        platform.start().await?;
        platform.send(events(0..1800)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        platform.publish().await?;
        platform.send(events(1800..2300)).await?;
        platform.until_whole().await?;
        platform.stop("serving").await?;
        platform.stop("speed").await?;
        drop(lost);

        let empty = ClickHouse::start()?;
        let brokers = platform.config.kafka.bootstrap_servers();
        let archive = archive_of(&platform)?;
        platform.config = platform
            .config
            .clone()
            .at(&brokers, empty.url(), &archive)
            .map_err(anyhow::Error::msg)?;
        platform.until_archived().await?;
        // As an operator does it: a run by command makes the tables too.
        let place = platform.folder_of("operator", &platform.place())?;
        let (code, told, stderr) = said_in(&place, &["batch", "run", "--full"]).await?;
        assert_eq!(code, Some(0), "{told} {stderr}");
        let reports: Vec<ViewReport> = serde_json::from_value(told)?;
        let is_first = |report: &ViewReport| report.result == Outcome::Published && report.publication == Some(1);
        assert!(!reports.is_empty() && reports.iter().all(is_first), "{reports:?}");
        for moved in &reports[0].marks {
            delete_below(&platform, moved.partition, Offset(moved.to)).await?;
        }
        platform.start_serving().await?;
        let below = total(&platform.answer("batch").await?).0;
        assert!(below > 1500, "{below} events are answered from the archive alone");
        platform.start_speed()?;
        platform.until_whole().await?;
        platform.send(events(2300..2500)).await?;
        platform.until_whole().await?;
        assert_eq!(platform.answer("merged").await?, cells(&platform.sent()));
        platform.stop_all().await
    })
}

/// ClickHouse goes back to a copy that was made between two publications, and Kafka no longer holds what came before the second:
/// it goes on from its own marks, and a run to the archive's end gives back what the speed layer can't.
#[test]
fn a_store_that_went_back_to_a_copy_goes_on_from_its_marks() -> anyhow::Result<()> {
    run(async {
        let mut clickhouse = ClickHouse::start()?;
        let mut platform = Platform::new(Some(clickhouse.url())).await?;
        platform.start().await?;
        platform.send(events(0..1200)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        platform.publish().await?;
        platform.send(events(1200..1500)).await?;
        platform.until_whole().await?;

        // Where nothing writes: the archive and the query API may go on.
        platform.stop("speed").await?;
        let backup = tempfile::tempdir()?;
        clickhouse.stop()?;
        copy(clickhouse.folder(), backup.path())?;
        clickhouse.start_again_there()?;
        platform.start_speed()?;
        platform.send(events(1500..2300)).await?;
        platform.until_archived().await?;
        let second = platform.publish().await?;
        platform.send(events(2300..2600)).await?;
        platform.until_whole().await?;
        for moved in &second[0].marks {
            delete_below(&platform, moved.partition, Offset(moved.to)).await?;
        }

        platform.stop("speed").await?;
        clickhouse.stop()?;
        std::fs::remove_dir_all(clickhouse.folder())?;
        copy(backup.path(), clickhouse.folder())?;
        clickhouse.start_again_there()?;
        platform.start_speed()?;
        platform.until_archived().await?;
        for report in platform.publish_to_end().await? {
            assert_eq!(report.publication, Some(2), "the second is not in the copy: {report:?}");
        }
        platform.until_whole().await?;
        platform.send(events(2600..2800)).await?;
        platform.until_whole().await?;
        assert_eq!(platform.answer("merged").await?, cells(&platform.sent()));
        platform.stop_all().await
    })
}

/// The archive is lost and a copy from before the last publication takes its place: no run publishes from it before the
/// archiver has read again what it lacks.
#[test]
fn an_archive_that_went_back_to_a_copy_is_found_and_goes_on() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        platform.send(events(0..700)).await?;
        platform.until_whole().await?;
        platform.until_archived().await?;
        let archive = archive_of(&platform)?;
        let backup = archive.with_file_name("backup");
        // While the archiver works.
        platform.send(events(700..900)).await?;
        copy(&archive, &backup)?;
        platform.send(events(900..2000)).await?;
        platform.until_archived().await?;
        platform.publish().await?;
        platform.until_whole().await?;
        let whole = platform.answer("merged").await?;

        platform.stop("archive").await?;
        std::fs::remove_dir_all(&archive)?;
        std::fs::rename(&backup, &archive)?;
        let place = platform.folder_of("operator", &platform.place())?;
        let (code, told, stderr) = said_in(&place, &["batch", "run"]).await?;
        assert_eq!(code, Some(1), "{told} {stderr}");
        for report in serde_json::from_value::<Vec<ViewReport>>(told)? {
            assert_eq!(report.result, Outcome::Failed, "{report:?}");
            let why = report.why.context("no reason")?;
            let (place, sentence) = why.split_once(": ").context("no place")?;
            assert!(place.starts_with("partition ") && place.contains(" of topic "), "{why}");
            let (ends, gone) = sentence
                .split_once(", below the published mark ")
                .context(why.clone())?;
            assert!(ends.starts_with("the archive ends at offset "), "{why}");
            assert!(gone.ends_with(": commits that were published from are gone"), "{why}");
        }
        assert_eq!(platform.answer("merged").await?, whole, "what was published stands");

        platform.start_archive()?;
        platform.until_archived().await?;
        platform.publish_if_any().await?;
        platform.send(events(2000..2800)).await?;
        platform.until_archived().await?;
        platform.publish().await?;
        platform.until_whole().await?;
        let dataset = &platform.definitions.datasets[0];
        let table = highwater_batch::archive::Archive::open(&platform.config.archive, dataset).await?;
        let table = table.context("no archive")?;
        assert!(
            table.gaps().values().all(|gaps| gaps.is_empty()),
            "Kafka still had all of it"
        );
        let ends: u64 = table.ends().values().map(|end| end.0).sum();
        let held: u64 = futures::future::try_join_all(table.ends().iter().map(async |(partition, end)| {
            let all = shared_schemas::handoff::OffsetRange {
                from: Offset::default(),
                to: *end,
            };
            let partition: Partition = *partition;
            table.pin().await?.events_within(partition, all).await
        }))
        .await?
        .into_iter()
        .sum();
        assert_eq!(held, ends, "each event once");
        platform.stop_all().await
    })
}
