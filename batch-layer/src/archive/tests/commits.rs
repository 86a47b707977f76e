//! Each range once: again, late, from rivals, over checkpoints, and when files can't be written.

use super::super::ArchiveError;
use super::*;

#[tokio::test]
async fn what_is_committed_is_there_for_others() {
    let (site, dataset) = (Site::new(), flights());
    assert!(Archive::open(&site.config(), &dataset).await.unwrap().is_none());
    let mut archive = site.archive(&dataset).await;
    assert!(archive.pin().await.unwrap().ends.is_empty());
    let mut both = commit(&dataset, partition(0), range(0, 7));
    let other = commit(&dataset, partition(1), range(0, 4));
    both.ranges.extend(other.ranges);
    both.batches.extend(other.batches);
    let version = archive.commit(&both).await.unwrap();

    let reopened = Archive::open(&site.config(), &dataset).await.unwrap().unwrap();
    assert_eq!(reopened.version(), version);
    let pinned = reopened.pin().await.unwrap();
    assert_eq!(
        pinned.ends,
        [(partition(0), Offset(7)), (partition(1), Offset(4))].into()
    );
    assert!(pinned.gaps.is_empty());
    let expected: Vec<_> = (0..7)
        .map(|at| (partition(0), at))
        .chain((0..4).map(|at| (partition(1), at)))
        .collect();
    assert_eq!(offsets(&pinned).await, expected);

    // One file for each day and partition, and its statistics are exact.
    assert_eq!(site.files().len(), 6);
    let mut ranges: Vec<_> = pinned
        .ranges()
        .iter()
        .map(|range| (range.partition, range.first.0, range.last.0))
        .collect();
    ranges.sort_unstable();
    let (zero, one) = (partition(0), partition(1));
    assert_eq!(
        ranges,
        [
            (zero, 0, 6),
            (zero, 1, 4),
            (zero, 2, 5),
            (one, 0, 3),
            (one, 1, 1),
            (one, 2, 2)
        ]
    );

    // What was pinned stays as it was.
    archive
        .commit(&commit(&dataset, partition(0), range(7, 9)))
        .await
        .unwrap();
    assert_eq!(offsets(&pinned).await.len(), 11);
    assert_eq!(offsets(&reopened.pin().await.unwrap()).await.len(), 13);
}

#[tokio::test]
async fn a_commit_that_does_not_follow_is_refused() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&commit(&dataset, partition(0), range(0, 5)))
        .await
        .unwrap();
    for stale in [range(0, 4), range(3, 8), range(6, 9)] {
        let error = archive
            .commit(&commit(&dataset, partition(0), stale))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ArchiveError::Overtaken { end: Offset(5), .. }),
            "{error}"
        );
    }
    assert_eq!(site.files().len(), 3, "files of what was refused are left behind");
    // The same once more is no other commit.
    let version = archive
        .commit(&commit(&dataset, partition(0), range(0, 5)))
        .await
        .unwrap();
    assert_eq!(version, 1);
    assert_eq!(offsets(&archive.pin().await.unwrap()).await.len(), 5);
    // A new incarnation begins at 0, beside the old one.
    let again = Partition {
        topic: TopicId(9),
        number: 0,
    };
    archive.commit(&commit(&dataset, again, range(0, 2))).await.unwrap();
    let pinned = archive.pin().await.unwrap();
    assert_eq!(pinned.ends, [(again, Offset(2)), (partition(0), Offset(5))].into());
    assert_eq!(offsets(&pinned).await.len(), 7);
}

#[tokio::test]
async fn events_outside_their_range_are_refused() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    let mut wrong = commit(&dataset, partition(0), range(0, 5));
    wrong.ranges = [(partition(0), range(0, 4))].into();
    assert!(matches!(archive.commit(&wrong).await, Err(ArchiveError::Commit(_))));
    wrong.ranges = [(partition(1), range(0, 5))].into();
    assert!(matches!(archive.commit(&wrong).await, Err(ArchiveError::Commit(_))));
    assert_eq!(archive.version(), 0);
}

/// Two archivers that know nothing of each other, in step: each range is there once, and the loser is told.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_rivals_one_wins() {
    let (site, dataset) = (Site::new(), flights());
    let (mut one, mut two) = (site.archive(&dataset).await, site.archive(&dataset).await);
    let (mut end, mut lost) = (0, 0);
    for round in 0..8 {
        // Ranges of another length, so that the loser's is not what the winner committed.
        let (mine, theirs) = (range(end, end + 3), range(end, end + 4 + round % 2));
        let (mine, theirs) = (
            commit(&dataset, partition(0), mine),
            commit(&dataset, partition(0), theirs),
        );
        let (first, second) = tokio::join!(one.commit(&mine), two.commit(&theirs));
        for result in [&first, &second] {
            if let Err(error) = result {
                assert!(matches!(error, ArchiveError::Overtaken { .. }), "{error}");
                lost += 1;
            }
        }
        assert!(first.is_ok() != second.is_ok());
        one.refresh().await.unwrap();
        two.refresh().await.unwrap();
        assert_eq!(one.ends(), two.ends());
        end = one.ends()[&partition(0)].0;
    }
    assert_eq!(lost, 8);
    let expected: Vec<_> = (0..end).map(|at| (partition(0), at)).collect();
    assert_eq!(offsets(&one.pin().await.unwrap()).await, expected);
}

/// Rivals with the very same range are both told that it is archived, and its events are there once.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_from_two_is_there_once() {
    let (site, dataset) = (Site::new(), flights());
    let (mut one, mut two) = (site.archive(&dataset).await, site.archive(&dataset).await);
    for round in 0..4 {
        let same = commit(&dataset, partition(0), range(round * 3, round * 3 + 3));
        let (first, second) = tokio::join!(one.commit(&same), two.commit(&same));
        assert_eq!(first.unwrap(), second.unwrap());
    }
    assert_eq!(offsets(&one.pin().await.unwrap()).await.len(), 12);
    assert_eq!(site.files().len(), 12, "files of the slower one are left behind");
}

/// Writers of different partitions are in each other's way only for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_other_partitions_go_on() {
    let (site, dataset) = (Site::new(), flights());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..3 {
        let (mut archive, dataset) = (site.archive(&dataset).await, dataset.clone());
        tasks.spawn(async move {
            for round in 0..6 {
                let commit = commit(&dataset, partition(number), range(round * 2, round * 2 + 2));
                // Whoever lost too often comes again, as the archiver does.
                while let Err(error) = archive.commit(&commit).await {
                    assert!(matches!(error, ArchiveError::Crowded { .. }), "{error}");
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let pinned = site.archive(&dataset).await.pin().await.unwrap();
    assert_eq!(pinned.version, 18);
    assert_eq!(
        pinned.ends,
        (0..3).map(|number| (partition(number), Offset(12))).collect()
    );
    assert_eq!(offsets(&pinned).await.len(), 36);
}

/// Checkpoints carry ends and gaps; the entries before them may go.
#[tokio::test]
async fn ends_and_gaps_survive_checkpoints() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive.commit(&gap(partition(0), range(0, 40))).await.unwrap();
    archive
        .commit(&commit(&dataset, partition(0), range(40, 46)))
        .await
        .unwrap();
    let mut mixed = commit(&dataset, partition(1), range(5, 9));
    mixed.ranges = [(partition(1), range(0, 9))].into();
    mixed.gaps = [(partition(1), [range(0, 2), range(3, 5)].into_iter().collect())].into();
    archive.commit(&mixed).await.unwrap();
    for at in 46..96 {
        archive
            .commit(&commit(&dataset, partition(0), range(at, at + 1)))
            .await
            .unwrap();
    }
    let log = site.table().join("_delta_log");
    let checkpoint = log.join(format!("{:020}.checkpoint.parquet", 49));
    assert!(checkpoint.is_file(), "there is no checkpoint");
    for version in 0..49 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    let archive = Archive::open(&site.config(), &dataset).await.unwrap().unwrap();
    let pinned = archive.pin().await.unwrap();
    assert_eq!(
        pinned.ends,
        [(partition(0), Offset(96)), (partition(1), Offset(9))].into()
    );
    let gaps = |ranges: &[OffsetRange]| -> OffsetSet { ranges.iter().copied().collect() };
    let expected = [
        (partition(0), gaps(&[range(0, 40)])),
        (partition(1), gaps(&[range(0, 2), range(3, 5)])),
    ];
    assert_eq!(pinned.gaps, expected.into());
    let expected: Vec<_> = (40..96)
        .map(|at| (partition(0), at))
        .chain((5..9).map(|at| (partition(1), at)))
        .collect();
    assert_eq!(offsets(&pinned).await, expected);
    // Statistics come through a checkpoint too.
    assert_eq!(
        pinned.kafka_times(partition(0), Offset(43)).await.unwrap(),
        Some((kafka_time(43), kafka_time(95)))
    );
}

/// A disk that can't take a file: nothing is committed or left behind, and the same commit succeeds afterwards.
#[tokio::test]
async fn a_failed_write_leaves_nothing() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    let blocked = site.table().join("_date=2013-11-03");
    std::fs::write(&blocked, "in the way").unwrap();
    let commit = commit(&dataset, partition(0), range(0, 5));
    let error = archive.commit(&commit).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Write { .. }), "{error}");
    assert!(error.to_string().contains("_date=2013-11-03"), "{error}");
    assert!(site.files().is_empty());
    assert_eq!(archive.pin().await.unwrap().version, 0);
    std::fs::remove_file(&blocked).unwrap();
    archive.commit(&commit).await.unwrap();
    assert_eq!(offsets(&archive.pin().await.unwrap()).await.len(), 5);
}

/// An entry that can't be written, with all files there, and a log that can't be read: nobody knows what became of them, so
/// they stay. The same commit succeeds afterwards, and then what is superfluous goes.
#[tokio::test]
async fn a_failed_entry_leaves_nothing() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    let (log, away) = (site.table().join("_delta_log"), site.table().join("_delta_log_away"));
    std::fs::rename(&log, &away).unwrap();
    std::fs::write(&log, "in the way").unwrap();
    let commit = commit(&dataset, partition(0), range(0, 5));
    let error = archive.commit(&commit).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Log { .. }), "{error}");
    let undecided = site.files().len();
    assert!(undecided > 0);
    std::fs::remove_file(&log).unwrap();
    std::fs::rename(&away, &log).unwrap();
    archive.commit(&commit).await.unwrap();
    assert_eq!(offsets(&archive.pin().await.unwrap()).await.len(), 5);
    assert_eq!(site.files().len(), undecided, "one file for each of the table's");
}

/// What a later program wrote in its own way is left alone, by readers and writers.
#[tokio::test]
async fn a_table_of_a_newer_form_is_left_alone() {
    for (from, to) in [
        (r#""minReaderVersion":1"#, r#""minReaderVersion":9"#),
        (r#""minWriterVersion":2"#, r#""minWriterVersion":9"#),
        (r#"\"form\":1"#, r#"\"form\":2"#),
    ] {
        let (site, dataset) = (Site::new(), flights());
        site.archive(&dataset).await;
        let entry = site.table().join(format!("_delta_log/{:020}.json", 0));
        let text = std::fs::read_to_string(&entry).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&entry, text.replace(from, to)).unwrap();
        let error = match Archive::open(&site.config(), &dataset).await {
            Err(error) => error,
            // Whoever may read it may still not write.
            Ok(opened) => {
                let commit = commit(&dataset, partition(0), range(0, 3));
                opened.unwrap().commit(&commit).await.unwrap_err()
            }
        };
        let said = shared_connections::sentence(&error);
        assert!(!said.contains('\n'), "{said}");
        assert!(said.contains("version") || said.contains("form 2"), "{said}");
        assert!(site.files().is_empty());
        assert_eq!(std::fs::read_dir(site.table().join("_delta_log")).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_table_of_others_is_refused() {
    let (site, dataset) = (Site::new(), flights());
    site.archive(&dataset).await;
    let entry = site.table().join(format!("_delta_log/{:020}.json", 0));
    let text = std::fs::read_to_string(&entry).unwrap();
    std::fs::write(&entry, text.replace("highwater.partitions", "somebody.else")).unwrap();
    let error = Archive::open(&site.config(), &dataset).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Foreign { .. }), "{error}");
}
