//! How fresh the layers are, from facts made by hand.

use super::*;
use crate::fixture::{TOPIC, facts, fresh, partition, view};
use shared_connections::store::PartitionState::{Behind, Live, Stuck};
use shared_connections::store::Truncation;
use shared_schemas::handoff::{Offset, OffsetRange, Publication, RunId, Start};

const NOW: i64 = 1_001_000;

#[test]
fn a_partition_that_is_read_is_as_fresh_as_its_worker_says() {
    let rows = [fresh(0, 4, 4, Live, Some(5_000_000)), fresh(1, 6, 9, Behind, None)];
    let freshness = Freshness::of(view(), &facts(&[], &[], &[]), &rows, NOW);
    assert_eq!(
        serde_json::to_value(&freshness).unwrap(),
        serde_json::json!({
            "batch": {"up_to": null},
            // The second one has counted up to a Kafka timestamp of 999,000 ms.
            "speed": {"up_to": "1970-01-01T00:16:39.000Z", "lag_events": 3, "lag_seconds": 2.0, "watermark": null, "partitions": {
                "0": {"state": "live", "next": 4, "watermark": "1970-01-01T00:00:05.000000Z", "gap_offsets": 0},
                "1": {"state": "behind", "next": 6, "watermark": null, "gap_offsets": 0},
            }},
        })
    );
    let one = Freshness::of(view(), &facts(&[], &[], &[]), &rows[..1], NOW);
    assert_eq!((one.speed.lag_seconds, one.speed.lag_events), (Some(1.0), Some(0)));
    assert_eq!(one.speed.watermark.as_deref(), Some("1970-01-01T00:00:05.000000Z"));
    assert_eq!(one.complaints("departures"), Vec::<String>::new());
}

#[test]
fn what_is_not_known_is_null() {
    let none = Freshness::of(view(), &facts(&[], &[], &[]), &[], NOW);
    assert_eq!((none.speed.up_to, none.speed.lag_events), (None, None));
    let mut behind = fresh(1, 6, 9, Behind, None);
    behind.kafka_time = None;
    let rows = [fresh(0, 4, 4, Live, None), behind];
    let freshness = Freshness::of(view(), &facts(&[], &[], &[]), &rows, NOW);
    assert_eq!((freshness.speed.up_to, freshness.speed.lag_events), (None, Some(3)));
}

#[test]
fn a_silent_worker_is_stuck_and_told() {
    let mut silent = fresh(1, 6, 6, Live, None);
    silent.seen = NOW - 10_001;
    let freshness = Freshness::of(
        view(),
        &facts(&[], &[], &[]),
        &[fresh(0, 4, 4, Live, None), silent],
        NOW,
    );
    assert_eq!(freshness.speed.partitions["1"].state, "stuck");
    assert_eq!(freshness.speed.lag_seconds, Some(10.001));
    assert_eq!(
        freshness.complaints("departures"),
        ["view departures: the speed layer is stuck on partition 1: no worker has spoken of it for 10 s"]
    );
}

#[test]
fn after_a_rollback_batch_is_as_fresh_as_the_content_it_went_back_to() {
    let mut facts = facts(&[(0, 8)], &[1], &[]);
    let first = facts.publications[0].clone();
    let rollback = Publication::rollback(&first.publication, &first.publication, RunId(9));
    facts.publications.push(Published {
        publication: rollback,
        at: 2_000,
        ..first
    });
    assert_eq!(facts.newest().unwrap().at, 2_000);
    let freshness = Freshness::of(view(), &facts, &[], NOW);
    assert_eq!(freshness.batch.up_to.as_deref(), Some("1970-01-01T00:00:01.000Z"));
}

#[test]
fn a_partition_of_an_earlier_topic_has_a_longer_name() {
    assert_eq!(partition_name(partition(3), Some(TOPIC)), "3");
    assert_eq!(partition_name(partition(3), None), "3");
    assert_eq!(
        partition_name(partition(3), Some(TopicId(1))),
        "00000000000000000000000000000007/3"
    );
}

#[test]
fn a_worker_in_trouble_does_not_look_fresh() {
    let rows = [fresh(0, 4, 4, Stuck, None), fresh(1, 4, 4, Live, None)];
    let freshness = Freshness::of(view(), &facts(&[], &[], &[]), &rows, NOW);
    // Not when it spoke, but the Kafka timestamp that it had come to.
    assert_eq!(freshness.speed.lag_seconds, Some(2.0));
    assert_eq!(
        freshness.complaints("departures"),
        ["view departures: the speed layer is stuck on partition 0: Kafka is away"]
    );
}

#[test]
fn a_log_that_was_cut_off_and_what_it_lacks_are_told() {
    let mut facts = facts(&[(0, 8)], &[1], &[(0, 8, 12)]);
    let held = facts.progress.get_mut(&partition(0)).unwrap();
    let lost = |from, to| OffsetRange {
        from: Offset(from),
        to: Offset(to),
    };
    held.record_gap(Start(Offset(8)), lost(8, 10));
    // Below the mark batch answers.
    held.record_gap(Start(Offset(0)), lost(0, 3));
    let truncation = Truncation {
        end: Offset(11),
        next: Offset(12),
    };
    facts.truncations.insert(partition(0), truncation);
    // Also where nobody speaks of it any more.
    let mut row = fresh(0, 12, 12, Live, None);
    row.seen = 0;
    let freshness = Freshness::of(view(), &facts, &[row], NOW);
    let told = &freshness.speed.partitions["0"];
    assert_eq!(
        (told.state, told.reason.clone()),
        ("stuck", Some(truncation.to_string()))
    );
    assert_eq!((told.gap_offsets, told.gaps.clone()), (2, vec![[8, 10]]));
}
