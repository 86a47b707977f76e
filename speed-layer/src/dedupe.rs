//! Which records are repeats, as a function of the log.
//!
//! A record is a repeat when the same event (equal `event_id` and event time) occurs at a lower offset of its partition
//! within `dedupe.window` before this record's Kafka timestamp; repeats count as occurrences. The filter remembers each
//! event's highest Kafka timestamp, which answers just that: there is an occurrence at or after `t` exactly when the
//! highest is at or after `t`.
//!
//! The answer must be the same for a reader that began elsewhere. So a filter knows from which Kafka timestamp on it
//! remembers everything ([`Filter::complete_from`]); a record that looks back further is *unsure*: counted, and told in the
//! ledger. Filters are warmed, and remember, two windows back, so that timestamps may be out of order by one.
//!
//! All filters of a dataset share one [`Budget`]. A filter whose part of it is full forgets first what lies two windows
//! back; then the oldest eighth of what it remembers goes, all at once: that is counted, and told as the window that it
//! really holds.

mod budget;
mod table;

use std::sync::Arc;

use shared_schemas::dataset::Dataset;

pub use budget::{Budget, FEWEST};
pub use shared_schemas::identity::{EventId, Identities, Occurrences};

use budget::Part;
use table::Table;

/// Where memory is waited for, so many ids' is asked for at once.
const AT_ONCE: usize = 64;

/// What a filter says of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Not a repeat.
    First,
    /// A repeat: it does not count.
    Repeat,
    /// Not a repeat as far as the filter remembers, which is not the whole window. It counts.
    Unsure,
}

/// What one reader remembers of one partition.
#[derive(Debug)]
pub struct Filter {
    /// Milliseconds.
    window: i64,
    part: Part,
    /// Each event's highest Kafka timestamp.
    seen: Table,
    recent: Recent,
    complete_from: i64,
    evicted: u64,
}

/// The lowest Kafka timestamp of the last records: what is forgotten is counted back from there, so that one record
/// with a timestamp far ahead makes nothing be forgotten.
#[derive(Debug)]
struct Recent {
    /// The lowest of the block before, and of this one.
    lowest: [i64; 2],
    records: usize,
}

impl Recent {
    /// Records in a block.
    const BLOCK: usize = 512;

    fn new() -> Self {
        Self {
            lowest: [i64::MIN, i64::MAX],
            records: 0,
        }
    }

    fn take(&mut self, at: i64) {
        self.lowest[1] = self.lowest[1].min(at);
        self.records += 1;
        if self.records == Self::BLOCK {
            self.lowest = [self.lowest[1], i64::MAX];
            self.records = 0;
        }
    }

    fn lowest(&self) -> i64 {
        self.lowest[0].min(self.lowest[1])
    }

    /// The lowest of those there were; `None` where there were none.
    fn known(&self) -> Option<i64> {
        let [before, now] = self.lowest;
        let known = if before == i64::MIN { now } else { before.min(now) };
        (known != i64::MAX).then_some(known)
    }
}

impl Filter {
    /// A filter that remembers every event at the offsets before, with a Kafka timestamp from `complete_from` (ms) on:
    /// there are none, or they are judged first.
    pub fn new(dataset: &Dataset, budget: &Arc<Budget>, complete_from: i64) -> Self {
        let part = budget.part();
        Self {
            window: window(dataset),
            seen: Table::new(part.first()),
            part,
            recent: Recent::new(),
            complete_from,
            evicted: 0,
        }
    }

    /// Judges the next record of the log, and remembers it. Every accepted record is judged once, in the order of
    /// offsets. `at` is its Kafka timestamp in ms.
    pub fn judge(&mut self, id: EventId, at: i64) -> Judgement {
        if self.seen.len() >= self.seen.most() || self.seen.groups() > self.part.groups() {
            self.make_room();
        }
        self.judge_one(id, at)
    }

    /// Judges the next records, and remembers them; one whose event is not known is no repeat.
    pub fn judge_all(&mut self, records: &Occurrences) -> Vec<Judgement> {
        let mut judged = Vec::with_capacity(records.len());
        let (ids, times) = (records.ids(), records.times());
        for (ids, times) in ids.chunks(AT_ONCE).zip(times.chunks(AT_ONCE)) {
            if self.seen.len() + AT_ONCE > self.seen.most() || self.seen.groups() > self.part.groups() {
                self.make_room();
            }
            // None of these reads waits for another, so they wait together. What they read is not needed.
            let homes = ids.iter().flatten().map(|id| self.seen.touch_home(id.0));
            std::hint::black_box(homes.fold(0, |all: u8, one| all ^ one));
            let slots = ids.iter().flatten().map(|id| self.seen.touch_slot(id.0));
            std::hint::black_box(slots.fold(0, |all: u8, one| all ^ one));
            for (id, at) in ids.iter().zip(times) {
                judged.push(id.map_or(Judgement::First, |id| self.judge_one(id, *at)));
            }
        }
        judged
    }

    /// The table has room.
    #[inline]
    fn judge_one(&mut self, id: EventId, at: i64) -> Judgement {
        let back = at.saturating_sub(self.window);
        let before = self.seen.note(id.0, at);
        self.recent.take(at);
        match before {
            Some(before) if before >= back => Judgement::Repeat,
            _ if back < self.complete_from => Judgement::Unsure,
            _ => Judgement::First,
        }
    }

    /// It begins where the log now begins, with a record of that Kafka timestamp (ms).
    pub fn is_complete_from(&mut self, at: i64) {
        self.complete_from = self.complete_from.max(at);
    }

    /// From which Kafka timestamp (ms) on it remembers everything.
    pub fn complete_from(&self) -> i64 {
        self.complete_from
    }

    /// The window (ms) that it really holds: the dataset's, or less where memory or the log's head cut it short.
    pub fn window_held(&self) -> i64 {
        let held = self.recent.known().map(|now| now.saturating_sub(self.complete_from));
        held.map_or(self.window, |held| held.clamp(0, self.window))
    }

    /// How many events it forgot before their time, for want of memory.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.seen.bytes()
    }

    /// Has room for [`AT_ONCE`] more, within its part of the budget: forgets what lies two windows back of the last
    /// records; else takes more memory; else forgets the oldest.
    #[cold]
    fn make_room(&mut self) {
        let allowed = self.part.groups();
        let horizon = self.recent.lowest().saturating_sub(self.window.saturating_mul(2));
        if self.seen.groups() <= allowed {
            let times = self.seen.some_times();
            let old = times.partition_point(|at| *at < horizon);
            if old > times.len() / 8 {
                self.forget_before(horizon);
            } else if self.seen.groups() < allowed {
                let groups = (self.seen.groups() * 2).min(allowed);
                self.seen.resize(groups);
            }
        }
        let fits = |seen: &Table, groups: usize| {
            let most = Table::most_of(groups);
            seen.len() + AT_ONCE.min(most / 2) <= most
        };
        while !fits(&self.seen, self.seen.groups().min(allowed)) {
            let times = self.seen.some_times();
            // A sample of a table that is nearly empty may hold none.
            let oldest = times.get(times.len() / 8).copied();
            let before = self.seen.len();
            if before == 0 {
                break;
            }
            self.forget_before(oldest.map_or(i64::MAX, |oldest| oldest.saturating_add(1).max(horizon)));
            self.evicted += (before - self.seen.len()) as u64;
        }
        if self.seen.groups() > allowed {
            self.seen.resize(allowed);
        }
    }

    fn forget_before(&mut self, from: i64) {
        if let Some(latest) = self.seen.keep_from(from).latest {
            self.complete_from = self.complete_from.max(latest.saturating_add(1));
        }
    }
}

/// The dataset's window in ms.
pub fn window(dataset: &Dataset) -> i64 {
    i64::try_from(dataset.dedupe_window.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use shared_schemas::dataset::{EventTime, Format, Privacy};
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;

    const WINDOW: i64 = 10;

    fn dataset() -> Dataset {
        Dataset {
            name: "d".to_owned(),
            topic: "d".to_owned(),
            partitions: 1,
            format: Format::Json,
            event_time: EventTime::KafkaTime,
            event_id: vec!["id".to_owned()],
            lateness: Duration::ZERO,
            future: Duration::ZERO,
            dedupe_window: Duration::from_millis(WINDOW.unsigned_abs()),
            dedupe_memory: 0,
            max_event_size: 1,
            chunk: 1,
            keep: None,
            privacy: Privacy::default(),
            fields: vec![],
        }
    }

    /// A filter that remembers so many groups of events at most, with smaller tables than a budget would give it.
    fn filter(groups: usize, complete_from: i64) -> Filter {
        let budget = Budget::of_groups(0, groups);
        Filter::new(&dataset(), &budget, complete_from)
    }

    /// The rule as written: the same event at a lower offset, within the window before.
    fn is_repeat(log: &[(u8, i64)], at: usize) -> bool {
        let (id, time) = log[at];
        log[..at]
            .iter()
            .any(|(other, before)| *other == id && *before >= time - WINDOW)
    }

    /// Timestamps go forward, and back by as much as that at most.
    fn logs(back: i64) -> impl Strategy<Value = Vec<(u8, i64)>> {
        let backs = prop_oneof![3 => Just(0), 1 => 0..=back];
        prop::collection::vec((0_u8..6, 0_i64..4, backs), 1..60).prop_map(|steps| {
            let mut now = 100;
            let mut log = Vec::new();
            for (id, forward, back) in steps {
                now += forward;
                log.push((id, now - back));
            }
            log
        })
    }

    proptest! {
        /// A filter that is sure says what the rule says, wherever its reader began.
        #[test]
        fn a_filter_is_a_function_of_the_log(log in logs(2 * WINDOW), from in 0_usize..60, memory in 1_usize..5) {
            let from = from % log.len();
            let lowest = log[from..].iter().map(|(_, at)| *at).min().unwrap();
            let warm = log.iter().position(|(_, at)| *at >= lowest - 2 * WINDOW).unwrap_or(from).min(from);
            let mut filter = filter(memory, lowest - 2 * WINDOW);
            for at in warm..log.len() {
                let (id, time) = log[at];
                let judged = filter.judge(EventId(id.into()), time);
                if at >= from {
                    match judged {
                        Judgement::First => prop_assert!(!is_repeat(&log, at)),
                        Judgement::Repeat => prop_assert!(is_repeat(&log, at)),
                        Judgement::Unsure => {}
                    }
                }
            }
        }

        /// Timestamps that are out of order by less than a window leave nothing unsure.
        #[test]
        fn a_warm_filter_is_sure(log in logs(WINDOW), from in 0_usize..60) {
            let from = from % log.len();
            let lowest = log[from].1;
            let warm = log.iter().position(|(_, at)| *at >= lowest - 2 * WINDOW).unwrap_or(from).min(from);
            let mut filter = filter(1000, lowest - 2 * WINDOW);
            for (at, (id, time)) in log.iter().enumerate().skip(warm) {
                let judged = filter.judge(EventId((*id).into()), *time);
                prop_assert!(at < from || judged != Judgement::Unsure);
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_what_was_forgotten_is_told() {
        let budget = Budget::new(0);
        let mut filter = Filter::new(&dataset(), &budget, i64::MIN);
        let most = budget.capacity_with(0);
        assert!(most >= FEWEST);
        assert_eq!(filter.window_held(), WINDOW);
        // Few enough for all to lie within a window.
        for id in 0..4 * most {
            let at = 1_000 + i64::try_from(id * 8 / (4 * most)).unwrap();
            assert_ne!(
                filter.judge(EventId(xxh3_128(&id.to_le_bytes())), at),
                Judgement::Repeat
            );
        }
        assert!(filter.seen.len() <= most && filter.seen.len() > most / 2);
        assert_eq!(filter.evicted() + filter.seen.len() as u64, 4 * most as u64);
        assert!(filter.complete_from() > 1_000 && filter.window_held() < WINDOW);
        assert_eq!(filter.judge(EventId(0), 1_008), Judgement::Unsure);
        assert_eq!(filter.judge(EventId(0), 1_008), Judgement::Repeat);
    }

    #[test]
    fn events_of_one_moment_are_forgotten_together() {
        let budget = Budget::new(0);
        let mut filter = Filter::new(&dataset(), &budget, i64::MIN);
        for id in 0..budget.capacity_with(0) {
            assert_eq!(filter.judge(EventId(xxh3_128(&id.to_le_bytes())), 5), Judgement::First);
        }
        assert_eq!(filter.judge(EventId(1 << 80), 5), Judgement::Unsure);
        assert_eq!(filter.complete_from(), 6);
    }

    /// What a filter forgets by age is not early.
    #[test]
    fn a_budget_for_two_windows_is_enough_for_ever() {
        let budget = Budget::new(100_000);
        let mut filter = Filter::new(&dataset(), &budget, i64::MIN);
        for at in 0..10_000 {
            for copy in 0..2 {
                let id = EventId(xxh3_128(&[at, copy].map(i64::to_le_bytes).concat()));
                assert_eq!(filter.judge(id, at), Judgement::First);
            }
        }
        assert_eq!((filter.evicted(), filter.window_held()), (0, WINDOW));
        assert!(filter.bytes() <= 100_000);
    }

    /// Together they stay within the budget, whenever they came.
    #[test]
    fn filters_share_a_budget() {
        const MEMORY: usize = 1 << 20;
        let budget = Budget::new(MEMORY as u64);
        let fill = |filter: &mut Filter, name: u64| {
            for id in 0..50_000_u64 {
                filter.judge(
                    EventId(xxh3_128(&[name, id].map(u64::to_le_bytes).concat())),
                    1_000 + i64::try_from(id / 10_000).unwrap(),
                );
            }
        };
        let mut filters = Vec::new();
        for name in 0..4 {
            filters.push(Filter::new(&dataset(), &budget, i64::MIN));
            filters.iter_mut().for_each(|filter| fill(filter, name));
            let bytes: usize = filters.iter().map(Filter::bytes).sum();
            assert!(bytes <= MEMORY && bytes > MEMORY / 2, "{bytes}");
        }
        // One that is alone has it all.
        filters.truncate(1);
        fill(&mut filters[0], 9);
        assert!(filters[0].bytes() > MEMORY / 2);
    }
}
