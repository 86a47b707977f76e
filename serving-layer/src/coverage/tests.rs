//! Which buckets are whole, from facts made by hand.

use shared_connections::store::Published;
use shared_schemas::handoff::{Mark, OffsetRange, Publication, RunId, Start, TopicId};

use shared_connections::store::PartitionState::{Behind, Idle, Live, Stuck};

use super::*;
use crate::fixture::{facts, fresh, partition};

/// The moment of the request, in milliseconds; workers spoke a second ago.
const NOW: i64 = 1_001_000;

fn of(facts: &Facts, freshness: &[FreshnessOfPartition]) -> Coverage {
    let chunk = ChunkSize::new(8).unwrap();
    Coverage::of(facts, freshness, chunk, Layers::Merged, NOW)
}

fn watermark(facts: &Facts, freshness: &[FreshnessOfPartition]) -> Option<i64> {
    of(facts, freshness).watermark
}

fn lost(from: u64, to: u64) -> OffsetRange {
    OffsetRange {
        from: Offset(from),
        to: Offset(to),
    }
}

fn range(from: i64, to: i64) -> Range {
    Range {
        from,
        to,
        grain: None,
        now: NOW,
    }
}

#[test]
fn a_partition_that_is_behind_holds_the_watermark() {
    let facts = facts(&[], &[], &[(0, 0, 4), (1, 0, 6)]);
    let rows = [fresh(0, 4, 4, Live, Some(500)), fresh(1, 6, 9, Behind, Some(300))];
    assert_eq!(watermark(&facts, &rows), Some(300));
}

#[test]
fn an_idle_partition_holds_nobody_back_once_it_is_read() {
    let facts = facts(&[], &[], &[(0, 0, 4), (1, 0, 6)]);
    let live = fresh(0, 4, 4, Live, Some(500));
    assert_eq!(
        watermark(&facts, &[live.clone(), fresh(1, 6, 6, Idle, Some(300))]),
        Some(500)
    );
    assert_eq!(
        watermark(&facts, &[live.clone(), fresh(1, 6, 7, Idle, Some(300))]),
        Some(300)
    );
    // All are idle: nothing is known to be on its way.
    let all = [fresh(0, 4, 4, Idle, Some(500)), fresh(1, 6, 6, Idle, Some(300))];
    assert_eq!(watermark(&facts, &all), Some(500));
    // A worker that came anew, with nothing to read, has seen no event time yet.
    assert_eq!(watermark(&facts, &[live, fresh(1, 6, 6, Live, None)]), Some(500));
}

#[test]
fn a_silent_worker_is_not_idle() {
    let facts = facts(&[], &[], &[(0, 0, 4), (1, 0, 6)]);
    let silent = FreshnessOfPartition {
        seen: NOW - 10_001,
        ..fresh(1, 6, 6, Idle, Some(300))
    };
    assert_eq!(watermark(&facts, &[fresh(0, 4, 4, Live, Some(500)), silent]), Some(300));
}

#[test]
fn a_partition_that_nobody_spoke_of_leaves_nothing_known() {
    let facts = facts(&[], &[], &[(0, 0, 4), (1, 0, 6)]);
    assert_eq!(watermark(&facts, &[fresh(0, 4, 4, Live, Some(500))]), None);
}

#[test]
fn batch_alone_knows_the_last_day_it_computed() {
    let day = 20_000;
    let facts = facts(&[(0, 8), (1, 16)], &[day - 1, day], &[]);
    assert_eq!(watermark(&facts, &[]), Some(i64::from(day) * MICROS_PER_DAY));
    // A worker that died long before tells less than the run that passed it.
    let dead = FreshnessOfPartition {
        seen: 0,
        ..fresh(0, 4, 4, Live, Some(500))
    };
    assert_eq!(watermark(&facts, &[dead]), Some(i64::from(day) * MICROS_PER_DAY));
}

#[test]
fn a_partition_that_nobody_has_counted_keeps_every_bucket_open() {
    let day = 20_000;
    let facts = facts(&[(0, 8), (1, 0)], &[day], &[]);
    assert_eq!(watermark(&facts, &[]), None, "nothing of partition 1 is in any answer");
    // The worker has read it, but not to where its own batch rows end.
    let behind = fresh(1, 0, 9, Live, Some(500));
    let ahead = fresh(0, 9, 9, Live, Some(700));
    assert_eq!(watermark(&facts, &[behind, ahead]), Some(500));
}

#[test]
fn rows_of_an_earlier_topic_say_nothing() {
    let facts = facts(&[], &[], &[(0, 0, 4)]);
    let mut earlier = fresh(0, 2, 9, Live, Some(1));
    earlier.partition.topic = TopicId(6);
    earlier.seen = 5;
    assert_eq!(
        watermark(&facts, &[fresh(0, 4, 4, Live, Some(500)), earlier]),
        Some(500)
    );
}

#[test]
fn gaps_of_every_source_count_also_those_found_meanwhile() {
    let mut before = facts(&[(0, 8)], &[1], &[(0, 8, 12)]);
    let published = &mut before.publications[0].publication;
    published.gaps.insert(partition(0), [lost(2, 3)].into_iter().collect());
    let held = before.progress.get_mut(&partition(0)).unwrap();
    held.record_gap(Start(Offset(8)), lost(8, 9));
    // Below the mark batch answers.
    held.record_gap(Start(Offset(0)), lost(0, 1));
    held.record_gap(Start(Offset(8)), lost(10, 11));
    let chunk = ChunkSize::new(8).unwrap();
    let gaps = |layers| {
        let coverage = Coverage::of(&before, &[], chunk, layers, NOW);
        let ranges = coverage.gaps.get(&partition(0)).map(|set| set.ranges().to_vec());
        ranges.unwrap_or_default()
    };
    assert_eq!(gaps(Layers::Merged), [lost(2, 3), lost(8, 9), lost(10, 11)]);
    assert_eq!(gaps(Layers::Batch), [lost(2, 3)]);
    assert_eq!(gaps(Layers::Speed), [lost(8, 9), lost(10, 11)]);
    let coverage = Coverage::of(&before, &[], chunk, Layers::Merged, NOW);
    assert_eq!(coverage.bucket(&range(0, 1), 0, 1), (Extent::Gap, Some(Reason::Lost)));
}

#[test]
fn rows_that_have_come_less_far_than_others_are_behind() {
    // The chunk at 8 is not complete, and the next one is begun.
    assert!(of(&facts(&[], &[], &[(0, 0, 8), (0, 8, 12), (0, 16, 18)]), &[]).behind);
    // The cut's own rows have come less far than its chunk's.
    assert!(of(&facts(&[(0, 11)], &[1], &[(0, 8, 14), (0, 11, 12)]), &[]).behind);
    assert!(!of(&facts(&[(0, 11)], &[1], &[(0, 8, 14), (0, 11, 14)]), &[]).behind);
    assert!(!of(&facts(&[], &[], &[(0, 0, 8), (0, 8, 12)]), &[]).behind);
    // A worker that knows of more than it has counted.
    let one = facts(&[], &[], &[(0, 0, 4)]);
    assert!(of(&one, &[fresh(0, 4, 9, Behind, Some(1))]).behind);
    assert!(
        !of(&one, &[fresh(0, 4, 9, Live, Some(1))]).behind,
        "what streams in is on its way"
    );
    // Batch has passed the worker.
    assert!(!of(&facts(&[(0, 24)], &[1], &[(0, 0, 8), (0, 8, 12)]), &[]).behind);
}

/// Batch had passed a dead worker, and was rolled back: nobody has counted what lies between.
#[test]
fn what_a_publication_counted_before_a_rollback_is_known_to_be_there() {
    let mut facts = facts(&[(0, 8)], &[1], &[(0, 8, 12)]);
    let first = facts.publications[0].clone();
    let publication = &first.publication;
    let marks = BTreeMap::from([(partition(0), Mark(Offset(24)))]);
    let second = Publication::of_run(Some(publication), RunId(4), marks, &BTreeMap::new(), &BTreeSet::new());
    let back = Publication::rollback(&second, publication, RunId(5));
    assert!(!of(&facts, &[]).behind);
    for publication in [second, back] {
        facts.publications.push(Published {
            publication,
            ..first.clone()
        });
    }
    assert!(of(&facts, &[]).behind);
    // Once the speed layer has read it again, all is well.
    let mut counted = |start: u64, next: u64| {
        let held = facts.progress.get_mut(&partition(0)).unwrap();
        held.record(Start(Offset(start)), Offset(next));
        of(&facts, &[]).behind
    };
    assert!(counted(8, 16));
    assert!(!counted(16, 24));
}

#[test]
fn a_worker_without_kafka_is_not_idle() {
    let facts = facts(&[], &[], &[(0, 0, 4), (1, 0, 6)]);
    let live = fresh(0, 4, 4, Live, Some(500));
    assert_eq!(
        watermark(&facts, &[live.clone(), fresh(1, 6, 6, Stuck, Some(300))]),
        Some(300)
    );
    assert_eq!(watermark(&facts, &[live, fresh(1, 6, 6, Stuck, None)]), None);
}

#[test]
fn a_bucket_has_the_first_reason_that_holds() {
    let facts = facts(&[], &[], &[(0, 0, 4)]);
    let second = 900 * MICROS;
    let coverage = of(&facts, &[fresh(0, 4, 4, Live, Some(second))]);
    let bucket = |from, to, start, end| coverage.bucket(&range(from, to), start, end);
    assert_eq!(bucket(0, 2_000, 840, 900), (Extent::Complete, None));
    assert_eq!(bucket(0, 2_000, 860, 920), (Extent::Partial, Some(Reason::Open)));
    assert_eq!(bucket(850, 2_000, 840, 900), (Extent::Partial, Some(Reason::Range)));
    assert_eq!(bucket(0, 890, 840, 900), (Extent::Partial, Some(Reason::Range)));
    let one_side = Coverage {
        layers: Layers::Batch,
        ..coverage.clone()
    };
    assert_eq!(
        one_side.bucket(&range(0, 890), 840, 900),
        (Extent::Partial, Some(Reason::Layers))
    );
    let behind = Coverage {
        behind: true,
        ..coverage
    };
    assert_eq!(
        behind.bucket(&range(0, 2_000), 840, 900),
        (Extent::Partial, Some(Reason::Behind))
    );
    let kept = Coverage {
        held_from: Some(860),
        ..behind.clone()
    };
    assert_eq!(
        kept.bucket(&range(0, 2_000), 840, 900),
        (Extent::Partial, Some(Reason::Dropped)),
        "it begins before what is held"
    );
    assert_eq!(kept.bucket(&range(0, 2_000), 860, 900).1, Some(Reason::Behind));
    // An event from the future closes no bucket that is not over.
    let ahead = Coverage {
        watermark: Some(5_000 * MICROS),
        behind: false,
        ..behind
    };
    assert_eq!(ahead.bucket(&range(0, 2_000), 960, 1_020).0, Extent::Partial);
    assert_eq!(ahead.bucket(&range(0, 2_000), 900, 960).0, Extent::Complete);
}
