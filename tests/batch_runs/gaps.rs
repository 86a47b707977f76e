//! What the archive lacks: days whose last file went, and gaps that no file ever held, until a person has decided.

use std::collections::BTreeSet;

use anyhow::Context;
use highwater_batch::archive::{Archive, ArchiveError, Commit};
use highwater_batch::{Outcome, Scope, ViewReport};
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetRange};
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, files, log, partition};
use super::{on_engine, published};

fn why(reports: &[ViewReport], result: Outcome) -> String {
    for report in reports {
        assert_eq!(report.result, result, "{report:?}");
    }
    reports[0].why.clone().unwrap_or_default()
}

/// The lines of an answer that are of a day.
fn of_day(lines: Vec<String>, day: &str) -> Vec<String> {
    lines.into_iter().filter(|line| line.starts_with(day)).collect()
}

#[test]
fn a_day_whose_last_file_went_is_published_empty_and_comes_back() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        published(&world.run(&[], &Quiet, &cancel).await);
        let (first, second) = ("2013-10-31", "2013-11-01");
        assert!(!of_day(world.answer().await?, second).is_empty());

        let archive = Archive::open(&world.batch.config.archive, world.dataset()).await?;
        let mut archive = archive.context("no archive")?;
        let parquet: Vec<_> = files(&world.archive_folder())
            .into_iter()
            .filter(|path| path.to_string_lossy().contains(&format!("_date={second}")))
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        assert_eq!(parquet.len(), 2, "one of each partition");
        for name in &parquet {
            let refused = archive.quarantine(name, false, true).await;
            assert!(matches!(refused, Err(ArchiveError::Whole { .. })), "{refused:?}");
            archive.quarantine(name, true, true).await?;
        }

        world.batch.scope = Scope::Days(vec![second.parse().map_err(anyhow::Error::msg)?]);
        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(said.contains(second) && said.contains("--accept"), "{said}");
        assert!(!of_day(world.answer().await?, second).is_empty(), "the old one stands");
        world.batch.accept = true;
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(of_day(world.answer().await?, second), Vec::<String>::new());
        let truth = world.truth([16, 16]);
        assert_eq!(of_day(world.answer().await?, first), of_day(truth.clone(), first));
        assert!(!world.newest("hourly").await?.gaps.is_empty(), "answers say `gap`");

        // All days, the empty one among them.
        world.batch.scope = Scope::Full;
        world.batch.accept = false;
        let full = world.run(&[], &Quiet, &cancel).await;
        assert_eq!(published(&full)[0].1, 2, "{full:?}");

        for name in &parquet {
            archive.restore(name, true).await?;
        }
        world.batch.scope = Scope::Days(vec![second.parse().map_err(anyhow::Error::msg)?]);
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(world.answer().await?, truth);
        assert!(
            !world.newest("hourly").await?.gaps.is_empty(),
            "of the others nobody looked"
        );
        world.batch.scope = Scope::Full;
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(world.answer().await?, truth);
        assert!(
            world.newest("hourly").await?.gaps.is_empty(),
            "nothing is lacking any more"
        );
        Ok(())
    })
}

/// The archiver came too late for some offsets of a partition, which the speed layer has counted.
#[test]
fn a_gap_that_no_file_held_is_named_until_it_is_accepted() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([8, 16], 1).await?;
        published(&world.run(&[], &Quiet, &cancel).await);
        let mut archive = Archive::open_or_create(&world.batch.config.archive, world.dataset()).await?;
        let gap = OffsetRange {
            from: Offset(8),
            to: Offset(12),
        };
        let mut commit = Commit::default();
        commit.ranges.insert(partition(0), gap);
        commit.gaps.insert(partition(0), [gap].into_iter().collect());
        commit.accounts.add_gap(partition(0), ChunkSize::new(8)?, gap);
        archive.commit(&commit).await?;
        world.archive([24, 16], 1).await?;

        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::NothingToDo);
        assert!(
            said.contains("lacks offsets 8..12") && said.contains("has not come there"),
            "{said}"
        );
        for number in 0..2 {
            world.speed(number, 24, &BTreeSet::new()).await?;
        }
        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(
            said.contains("`highwater archive accept-gap flights 0 8..12`"),
            "{said}"
        );
        let planned = world.batch.plan(&[(world.view("hourly"), world.dataset())]).await;
        let planned = planned[0].as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        assert!(!planned.computes && planned.why.contains("8..12"), "{planned:?}");

        // Another partition goes on, and it is told all the same.
        world.archive([24, 24], 1).await?;
        let held = world.run(&[], &Quiet, &cancel).await;
        published(&held);
        assert!(
            held[0].held.as_deref().is_some_and(|held| held.contains("8..12")),
            "{held:?}"
        );
        assert_eq!(world.newest("hourly").await?.mark(partition(0)), Mark(Offset(8)));

        for wrong in [(7, 12), (8, 13), (30, 31)] {
            let range = OffsetRange {
                from: Offset(wrong.0),
                to: Offset(wrong.1),
            };
            let refused = archive.accept_gap(0, range, true).await;
            assert!(matches!(refused, Err(ArchiveError::NotLacking { .. })), "{refused:?}");
        }
        assert!(!archive.accept_gap(0, gap, false).await?.done);
        why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(archive.accept_gap(0, gap, true).await?.done);
        let passed = world.run(&[], &Quiet, &cancel).await;
        published(&passed);
        assert_eq!(passed[0].held, None);
        let newest = world.newest("hourly").await?;
        assert_eq!(newest.mark(partition(0)), Mark(Offset(24)));
        assert_eq!(newest.gaps[&partition(0)].ranges(), [gap], "answers say so");
        Ok(())
    })
}
