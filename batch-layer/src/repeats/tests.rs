//! Which offsets are repeats: by the rule, one event at a time, and with any memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shared_schemas::handoff::TopicId;

use super::*;

/// An id whose hash lies in one of few buckets.
fn id(number: u64) -> EventId {
    EventId(u128::from(number % 3) << 120 | u128::from(number))
}

fn places() -> Vec<Partition> {
    [(9, 1), (9, 0), (4, 1)]
        .map(|(topic, number)| Partition {
            topic: TopicId(topic),
            number,
        })
        .to_vec()
}

/// What is found of them, how many, and how many bytes went to disk; each bucket is looked through with so many bytes.
fn found(
    rule: Rule,
    events: &[(u64, u32, i64)],
    memory: usize,
    room: usize,
    spill: &Arc<Spill>,
) -> (BTreeSet<usize>, u64, u64) {
    let sightings = Arc::new(Sightings::new(rule, places(), 2, memory, Arc::clone(spill)));
    let mut hands = [Hand::default(), Hand::default()];
    for (offset, (event, place, time)) in (0..).zip(events) {
        let hand = &mut hands[usize::from(offset % 7 == 0)];
        sightings
            .take(hand, id(*event), *place as usize, offset, *time)
            .unwrap();
    }
    hands.into_iter().for_each(|hand| sightings.hand_in(hand));
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let repeats = runtime.block_on(sightings.judge_within(2, room)).unwrap();
    let is_repeat = |at: &usize| {
        repeats
            .of(events[*at].1 as usize, Some((0, 1 << 40)))
            .contains(*at as u64)
    };
    let found = (0..events.len()).filter(is_repeat);
    (found.collect(), repeats.count(), sightings.spilled())
}

fn judged(events: &[(u64, u32, i64)], memory: usize) -> (BTreeSet<usize>, u64, u64) {
    found(
        Rule::AllButOne,
        events,
        memory,
        LEAST,
        &Arc::new(Spill::new(None).unwrap()),
    )
}

/// The speed layer's rule, one event at a time.
fn known(events: &[(u64, u32, i64)], window: i64) -> BTreeSet<usize> {
    let is_known = |at: &usize| {
        let (event, place, time) = events[*at];
        let before = events[..*at].iter();
        let mut same = before.filter(|other| (other.0, other.1) == (event, place));
        same.any(|other| other.2 >= time - window)
    };
    (0..events.len()).filter(is_known).collect()
}

/// The rule, one event at a time.
fn expected(events: &[(u64, u32, i64)]) -> BTreeSet<usize> {
    let (mut first, mut gone) = (BTreeMap::new(), BTreeSet::new());
    for (at, (event, place, _)) in events.iter().enumerate() {
        if *first.entry((*event, *place)).or_insert(at) != at {
            gone.insert(at);
        }
    }
    let places = places();
    let order = |at: usize| {
        let place = places[events[at].1 as usize];
        (events[at].2, place.number, place.topic)
    };
    for ((event, _), at) in &first {
        let others = first.iter().filter(|((other, _), _)| other == event);
        if others.into_iter().any(|(_, other)| order(*other) < order(*at)) {
            gone.insert(*at);
        }
    }
    gone
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// With and without room in memory, the same offsets are repeats: those that the rule says.
    #[test]
    fn the_rule_in_any_memory(events in prop::collection::vec((0_u64..200, 0_u32..3, 0_i64..4), 0..600)) {
        let (found, count, spilled) = judged(&events, 1 << 30);
        prop_assert_eq!(&found, &expected(&events));
        prop_assert_eq!((count, spilled), (found.len() as u64, 0));
        let (again, count, spilled) = judged(&events, 2000);
        prop_assert_eq!(&found, &again);
        prop_assert_eq!(count, found.len() as u64);
        prop_assert!(spilled > 0 || events.len() < 200);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The speed layer's rule too; and either in so little memory that every bucket is sorted on disk, two at a time in one folder.
    #[test]
    fn either_rule_is_the_same_from_disk(
        events in prop::collection::vec((0_u64..60, 0_u32..3, 0_i64..40), 0..600),
        window in 0_i64..9,
    ) {
        let spill = Arc::new(Spill::new(None).unwrap());
        for room in [LEAST, 700] {
            let (found_of_speed, count, spilled) = found(Rule::Known(window), &events, 2000, room, &spill);
            prop_assert_eq!(&found_of_speed, &known(&events, window));
            prop_assert_eq!(count, found_of_speed.len() as u64);
            prop_assert!(spilled > 0 || events.len() < 200);
            let (of_batch, ..) = found(Rule::AllButOne, &events, 2000, room, &spill);
            prop_assert_eq!(&of_batch, &expected(&events));
        }
    }
}

/// One event in all offsets of a partition, with times that ascend: by the speed layer's rule each may be what makes another known, so nothing is dropped.
/// It takes no more memory for that, and no error.
#[test]
fn one_event_in_more_offsets_than_there_is_memory_for() {
    let mut events: Vec<_> = (0..200_000).map(|at| (7, 1, at * 10)).collect();
    // Longer ago than the window.
    for event in &mut events[150_000..] {
        event.2 += 1_000;
    }
    let spill = Arc::new(Spill::new(None).unwrap());
    let (found, count, spilled) = found(Rule::Known(100), &events, 100_000, LEAST, &spill);
    assert_eq!((found.len(), count), (199_998, 199_998));
    assert!(!found.contains(&0) && !found.contains(&150_000));
    // Twice: as they come, and in their order.
    assert_eq!(spilled, 2 * 32 * 200_000);
    assert_eq!(
        std::fs::read_dir(spill.folder()).unwrap().count(),
        1,
        "the lock alone is left"
    );
}

#[test]
fn one_event_over_and_over_takes_no_room() {
    let events: Vec<_> = (0..100_000).map(|_| (7, 1, 0)).collect();
    let (found, count, spilled) = judged(&events, 100_000);
    assert_eq!((found.len(), count, spilled), (99_999, 99_999, 0));
    assert!(!found.contains(&0));
}

/// A file is there until what is in it is at hand in another way.
#[test]
fn what_is_sorted_or_read_back_leaves_one_file_at_most() {
    let spill = Spill::new(None).unwrap();
    let files = || std::fs::read_dir(spill.folder()).unwrap().count() - 1;
    let filled = || {
        let seen = |at: u64| Seen {
            id: [at * 7919 % 5000, 0],
            at,
            time: 0,
        };
        let mut bucket = Bucket::default();
        bucket.pieces.push((0..5000).map(seen).collect());
        assert!(bucket.write(&spill, 0).unwrap() > 0 && bucket.is_spilled());
        bucket
    };
    let mut bucket = filled();
    assert_eq!(files(), 1);
    let (all, _) = bucket.all(&spill, 0, 40_000).unwrap();
    assert_eq!(files(), 1, "the sorted one");
    let All::InOrder(seen) = all else {
        panic!("it does not fit")
    };
    let seen: Vec<_> = seen.map(Result::unwrap).collect();
    assert!(seen.len() == 5000 && seen.is_sorted() && bucket.is_spilled());
    assert_eq!(files(), 0);

    let mut bucket = filled();
    let (all, _) = bucket.all(&spill, 0, 1 << 30).unwrap();
    assert_eq!((matches!(all, All::Held(_)), files()), (true, 0), "it is in memory");
    assert!(bucket.is_spilled());
}
