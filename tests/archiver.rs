//! The archiver against a real broker: every accepted event once, and a letter for each other record, whatever happens.

mod letters;
mod replay;
mod world;

use std::collections::BTreeSet;

use anyhow::ensure;
use highwater_batch::archive::ServeError;
use highwater_tests::stack::until;
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet};

use crate::faults::trial::trials;

use world::{FIELDS, World, event};

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_event_is_archived_once() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let archiver = world.start()?;
    world.send(0, (0..3000).map(event)).await?;
    world.send(1, (0..500).map(event)).await?;
    world.until_archived(&[3000, 500]).await?;
    archiver.stop().await?;

    // Another process goes on from where the archive stands.
    world.send(0, (3000..3500).map(event)).await?;
    let archiver = world.start()?;
    world.send(1, (500..501).map(event)).await?;
    world.until_archived(&[3500, 501]).await?;
    assert_eq!(world.archived().await?, world.offsets(&[0..3500, 0..501]).await?);
    assert!(world.pin().await?.gaps.is_empty());
    assert!(world.letters().await?.is_empty());
    world.until_group_is_at(&[3500, 501]).await?;
    archiver.stop().await
}

/// Killed anywhere, again and again, while records come: between files, between letters and commit, after the commit.
#[test]
fn killed_archivers_lose_and_double_nothing() -> anyhow::Result<()> {
    trials("1", "archivers ended anywhere, dead letters", 4, async |trial| {
        let world = World::new(2).await?;
        let mut sent = [0_u64; 2];
        for _ in 0..12 {
            let archiver = world.start()?;
            for (partition, sent) in sent.iter_mut().enumerate() {
                let count = trial.random.u64(50..400);
                let records = (*sent..*sent + count).map(|n| if n % 97 == 0 { "bad".to_owned() } else { event(n) });
                world.send(i32::try_from(partition)?, records).await?;
                *sent += count;
            }
            // sleeps: the instant of a death, not a wait for anything
            tokio::time::sleep(trial.instant(700)).await;
            archiver.kill().await;
        }
        let archiver = world.start()?;
        world.until_archived(&sent).await?;
        archiver.stop().await?;
        // Numbers of both partitions, apart from each other.
        let number = |partition: u64, n: u64| partition << 32 | n;
        let accepted = (0..2).flat_map(|partition: u64| {
            let sent = sent[usize::from(partition == 1)];
            let accepted = (0..sent).filter(|n| n % 97 != 0);
            accepted.map(move |n| number(partition, n))
        });
        let archived = world.archived().await?.into_iter();
        let archived: Vec<_> = archived.map(|(of, n)| number(of.number.into(), n)).collect();
        trial.found(accepted, &archived)?;
        let letters = world.letters().await?;
        let sources: BTreeSet<_> = letters
            .iter()
            .map(|letter| letter.header("highwater-source").to_owned())
            .collect();
        let refused = |partition: u64, sent: u64| {
            let topic = world.topic().to_owned();
            (0..sent).step_by(97).map(move |n| format!("{topic}/{partition}/{n}"))
        };
        ensure!(
            sources == refused(0, sent[0]).chain(refused(1, sent[1])).collect(),
            "{sources:?}"
        );
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_archive_everything_once() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let (one, two) = (world.start()?, world.start()?);
    for round in 0..10 {
        let numbers = round * 100..(round + 1) * 100;
        world.send(0, numbers.clone().map(event)).await?;
        world.send(1, numbers.map(event)).await?;
    }
    world.until_archived(&[1000, 1000]).await?;
    one.stop().await?;
    two.stop().await?;
    assert_eq!(world.archived().await?, world.offsets(&[0..1000, 0..1000]).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_forgot_is_a_gap() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    world.send(0, (0..100).map(event)).await?;
    world.delete_below(0, 30).await?;
    let archiver = world.start()?;
    world.until_archived(&[100]).await?;
    archiver.stop().await?;
    world.send(0, (100..200).map(event)).await?;
    world.delete_below(0, 150).await?;
    let archiver = world.start()?;
    world.until_archived(&[200]).await?;
    archiver.stop().await?;
    let pinned = world.pin().await?;
    let range = |from, to| OffsetRange {
        from: Offset(from),
        to: Offset(to),
    };
    let gaps: OffsetSet = [range(0, 30), range(100, 150)].into_iter().collect();
    assert_eq!(pinned.gaps, [(world.partition(0).await?, gaps)].into());
    let expected: Vec<u64> = (30..100).chain(150..200).collect();
    assert_eq!(world.archived().await?, world.offsets([expected]).await?);
    Ok(())
}

/// The archive goes further than the log, as after Kafka has lost the end of a log.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_below_what_is_archived_is_archived_no_further() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let archiver = world.start()?;
    world.send(0, (0..100).map(event)).await?;
    world.send(1, (0..10).map(event)).await?;
    world.until_archived(&[100, 10]).await?;
    archiver.stop().await?;
    let partition = world.partition(0).await?;
    world.archive_nothing(partition, 100, 150).await?;

    let archiver = world.start()?;
    world.until_cut_off(partition, 100, 150).await?;
    // The log grows past what was archived. Nobody could tell by it, and still it stays as it is.
    world.send(0, (100..300).map(event)).await?;
    world.send(1, (10..20).map(event)).await?;
    world.until_archived(&[150, 20]).await?;
    archiver.stop().await?;
    let archiver = world.start()?;
    world.send(1, (20..30).map(event)).await?;
    world.until_archived(&[150, 30]).await?;
    archiver.stop().await?;
    assert_eq!(world.archived().await?, world.offsets(&[0..100, 0..30]).await?);

    // A topic made again is another one.
    world.make_again(1).await?;
    world.send(0, (0..5).map(event)).await?;
    let archiver = world.start()?;
    world.until_archived(&[5]).await?;
    archiver.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_partitions_and_new_incarnations_are_followed() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let archiver = world.start()?;
    world.send(0, (0..50).map(event)).await?;
    world.until_archived(&[50]).await?;
    world.add_partitions(3).await?;
    world.send(2, (0..20).map(event)).await?;
    world.until_archived(&[50, 0, 20]).await?;
    let before = world.archived().await?;
    assert_eq!(before.len(), 70);

    world.make_again(1).await?;
    world.send(0, (0..30).map(event)).await?;
    world.until_archived(&[30]).await?;
    archiver.stop().await?;
    let after: Vec<_> = world
        .archived()
        .await?
        .into_iter()
        .filter(|event| !before.contains(event))
        .collect();
    let expected: Vec<u64> = (0..30).collect();
    assert_eq!(after, world.offsets([expected]).await?);
    assert_eq!(world.archived().await?.len(), 100);
    Ok(())
}

/// As when the disk is full: files can't be written. The letter of a bad record tells that a commit was tried.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_can_be_written_nothing_is_lost() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let archiver = world.start()?;
    world.send(0, (0..10).map(event)).await?;
    world.until_archived(&[10]).await?;
    let folder = world.table().join("_date=2013-11-01");
    let aside = world.table().join("_date_aside");
    std::fs::rename(&folder, &aside)?;
    std::fs::write(&folder, "in the way")?;
    world
        .send(0, std::iter::once("bad".to_owned()).chain((0..500).map(event)))
        .await?;
    world.until_letters(1).await?;
    let archived = world.pin().await?.ends[&world.partition(0).await?];
    std::fs::remove_file(&folder)?;
    std::fs::rename(&aside, &folder)?;
    world.until_archived(&[511]).await?;
    archiver.stop().await?;
    // The bad record may have been read by itself: it needs no file.
    assert!(archived <= Offset(11), "{archived:?}");
    let expected: Vec<u64> = (0..10).chain(11..511).collect();
    assert_eq!(world.archived().await?, world.offsets([expected]).await?);
    assert_eq!(world.letters().await?.len(), 1, "what was delivered is not sent again");
    Ok(())
}

/// `archive.optimize`: whenever it says so small files are made one, beside the archiver; and both end when they are told to.
#[tokio::test(flavor = "multi_thread")]
async fn the_archive_is_optimized_on_its_schedule() -> anyhow::Result<()> {
    let mut world = World::new(1).await?;
    let in_commits = async |world: &World, from: u64| {
        for end in (from..=from + 40).step_by(10).skip(1) {
            world.send(0, (end - 10..end).map(event)).await?;
            world.until_archived(&[end]).await?;
        }
        anyhow::Ok(world.pin().await?.ranges().len())
    };
    world.optimize("never")?;
    let archiver = world.start()?;
    // More than four where not all of a part are read at once.
    assert!(in_commits(&world, 0).await? >= 8, "two days, four commits");
    archiver.stop().await?;

    world.optimize("* * * * * *")?;
    let archiver = world.start()?;
    in_commits(&world, 40).await?;
    world.until_files(2).await?;
    archiver.stop().await?;
    let expected: Vec<u64> = (0..80).collect();
    assert_eq!(world.archived().await?, world.offsets([expected]).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_from_the_start_is_told_before_anything_runs() -> anyhow::Result<()> {
    let hashed = "secret = \"string?\"\n[dataset.flights.mask]\nsecret = { hash = \"HIGHWATER_NO_SUCH_KEY\" }";
    let world = World::new(1).await?.with_fields(&format!("{FIELDS}{hashed}"))?;
    let error = world.start()?.ended().await.unwrap_err();
    assert!(matches!(error, ServeError::Decoder { .. }), "{error}");
    assert!(!world.table().exists());

    let world = World::new(1).await?;
    let running = world.start()?;
    let entry = world.table().join(format!("_delta_log/{:020}.json", 0));
    until("the table is made", || entry.exists()).await?;
    running.stop().await?;
    let world = world.with_fields("n = \"string\"\nat = \"timestamp\"")?;
    let error = world.start()?.ended().await.unwrap_err();
    assert!(matches!(error, ServeError::Archive { .. }), "{error}");

    // Told to end at once, it ends.
    let world = World::new(1).await?;
    world.start()?.stop().await
}
