//! How fresh the layers are, from facts made by hand.

use super::*;
use crate::fixture::{TOPIC, facts, fresh, partition};
use shared_schemas::handoff::{Publication, RunId};

const NOW: i64 = 1_001_000;

#[test]
fn a_partition_that_is_read_is_as_fresh_as_its_worker_says() {
    let rows = [
        fresh(0, 4, 4, "live", Some(5_000_000)),
        fresh(1, 6, 9, "catching_up", None),
    ];
    let freshness = Freshness::of(&facts(&[], &[], &[]), &rows, NOW);
    assert_eq!(
        serde_json::to_value(&freshness).unwrap(),
        serde_json::json!({
            "batch": {"up_to": null},
            // The second one has counted up to a Kafka timestamp of 999,000 ms.
            "speed": {"up_to": "1970-01-01T00:16:39.000Z", "lag_events": 3, "lag_seconds": 2.0, "partitions": {
                "0": {"state": "live", "next": 4, "watermark": "1970-01-01T00:00:05.000000Z"},
                "1": {"state": "catching_up", "next": 6, "watermark": null},
            }},
        })
    );
    let one = Freshness::of(&facts(&[], &[], &[]), &rows[..1], NOW);
    assert_eq!((one.speed.lag_seconds, one.speed.lag_events), (Some(1.0), Some(0)));
    assert_eq!(one.complaints("departures"), Vec::<String>::new());
}

#[test]
fn what_is_not_known_is_null() {
    let none = Freshness::of(&facts(&[], &[], &[]), &[], NOW);
    assert_eq!((none.speed.up_to, none.speed.lag_events), (None, None));
    let mut behind = fresh(1, 6, 9, "catching_up", None);
    behind.kafka_time = None;
    let rows = [fresh(0, 4, 4, "live", None), behind];
    let freshness = Freshness::of(&facts(&[], &[], &[]), &rows, NOW);
    assert_eq!((freshness.speed.up_to, freshness.speed.lag_events), (None, Some(3)));
}

#[test]
fn a_silent_worker_is_unknown_and_told() {
    let mut silent = fresh(1, 6, 6, "live", None);
    silent.seen = NOW - 10_001;
    let freshness = Freshness::of(&facts(&[], &[], &[]), &[fresh(0, 4, 4, "live", None), silent], NOW);
    assert_eq!(freshness.speed.partitions["1"].state, State::Unknown);
    assert_eq!(freshness.speed.lag_seconds, Some(10.001));
    assert_eq!(
        freshness.complaints("departures"),
        ["view departures: the speed layer is silent on partition 1"]
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
    let freshness = Freshness::of(&facts, &[], NOW);
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
