//! Which event days a run computes again.
//!
//! A day is dirty when it has archived events between the parent's mark and the new one. By offset, never by archive
//! version: an event may be archived in one run and stay above the mark until the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::offset::{Mark, Offset, Partition};

/// A calendar day in UTC, by event time: days since 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventDay(pub i32);

const SECONDS_PER_DAY: u64 = 86_400;

impl EventDay {
    /// A day in microseconds.
    pub const MICROS: i64 = 86_400_000_000;

    /// The day of a moment, in microseconds since 1970.
    pub fn of_micros(micros: i64) -> Self {
        // No i64 of microseconds has more days than an i32 holds.
        Self(i32::try_from(micros.div_euclid(Self::MICROS)).unwrap_or(i32::MAX))
    }

    /// The first microsecond of the day.
    pub fn first_micros(self) -> i64 {
        i64::from(self.0).saturating_mul(Self::MICROS)
    }

    /// The first day that is held on this one by who keeps so many days; this one is among them.
    #[must_use]
    pub fn first_kept(self, keep: Duration) -> Self {
        let days = i32::try_from(keep.as_secs() / SECONDS_PER_DAY).unwrap_or(i32::MAX);
        Self(self.0.saturating_sub(days).saturating_add(1))
    }
}

/// That some archived events of a day lie between two offsets of a partition, as a file's statistics say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedRange {
    /// The day of all the events.
    pub day: EventDay,
    /// Where they came from.
    pub partition: Partition,
    /// The lowest offset among them.
    pub first: Offset,
    /// The highest offset among them.
    pub last: Offset,
}

/// The days with archived events at or above the old mark and below the new one.
///
/// A range that only straddles them makes its day dirty too: computing a clean day again gives the same rows.
pub fn dirty_days(
    old: &BTreeMap<Partition, Mark>,
    new: &BTreeMap<Partition, Mark>,
    archived: impl IntoIterator<Item = ArchivedRange>,
) -> BTreeSet<EventDay> {
    let mark = |marks: &BTreeMap<Partition, Mark>, partition| marks.get(&partition).copied().unwrap_or_default();
    archived
        .into_iter()
        .filter(|range| {
            let (old, new) = (mark(old, range.partition), mark(new, range.partition));
            old < new && range.last >= old.0 && range.first < new.0
        })
        .map(|range| range.day)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::offset::TopicId;
    use super::*;

    fn partition(number: u32) -> Partition {
        Partition {
            topic: TopicId(7),
            number,
        }
    }

    fn marks(of: &[u64]) -> BTreeMap<Partition, Mark> {
        (0..)
            .zip(of)
            .map(|(number, mark)| (partition(number), Mark(Offset(*mark))))
            .collect()
    }

    proptest! {
        /// A day that is left clean has the same events below the old marks as below the new ones.
        #[test]
        fn a_clean_day_did_not_change(
            events in prop::collection::vec((0_u32..2, 0_u64..16, 0_i32..4), 0..24),
            old in prop::collection::vec(0_u64..16, 2),
            forward in prop::collection::vec(0_u64..8, 2),
        ) {
            let new: Vec<_> = old.iter().zip(&forward).map(|(mark, by)| mark + by).collect();
            let archived = events.iter().map(|(number, offset, day)| ArchivedRange {
                day: EventDay(*day), partition: partition(*number), first: Offset(*offset), last: Offset(*offset),
            });
            let dirty = dirty_days(&marks(&old), &marks(&new), archived);
            for day in 0..4 {
                let below = |marks: &[u64]| -> Vec<_> {
                    events.iter().filter(|(number, offset, of)| *of == day && *offset < marks[*number as usize]).collect()
                };
                prop_assert_eq!(dirty.contains(&EventDay(day)), below(&old).len() != below(&new).len());
            }
        }
    }
}
