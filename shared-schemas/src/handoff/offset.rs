//! Offsets, chunks, starts, marks and ranges of offsets.
//!
//! The offset is the only clock on which both layers agree. Offsets have holes (transactions, control records),
//! so they are compared and never subtracted to count events.

use std::fmt;

/// A Kafka offset, within one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset after this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a speed row begins to count: a chunk's first offset, or a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Start(pub Offset);

/// The start below which batch answers, and from which speed answers. `Mark::default()` is 0: all is speed's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mark(pub Offset);

impl Mark {
    /// The start that a query reads first.
    pub const fn start(self) -> Start {
        Start(self.0)
    }
}

/// One incarnation of a topic: Kafka's topic id. A topic deleted and made again has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u128);

/// A partition of one incarnation of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The topic's incarnation.
    pub topic: TopicId,
    /// Kafka's partition number.
    pub number: u32,
}

/// How many offsets a chunk spans: `C` in the rules, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkSize(u64);

/// The number is not a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of {0} offsets is not a power of two")]
pub struct BadChunk(pub u64);

impl ChunkSize {
    /// A chunk of that many offsets.
    ///
    /// # Errors
    /// [`BadChunk`] unless it is a power of two.
    pub const fn new(offsets: u64) -> Result<Self, BadChunk> {
        if offsets.is_power_of_two() {
            Ok(Self(offsets))
        } else {
            Err(BadChunk(offsets))
        }
    }

    /// How many offsets.
    pub const fn offsets(self) -> u64 {
        self.0
    }

    /// The first offset of the chunk that holds `offset`.
    pub const fn first(self, offset: Offset) -> Start {
        Start(Offset(offset.0 & !(self.0 - 1)))
    }

    /// The end (exclusive) of the chunk that holds `offset`.
    pub const fn end(self, offset: Offset) -> Offset {
        Offset(self.first(offset).0.0.saturating_add(self.0))
    }

    /// Whether `offset` is the first of its chunk.
    pub const fn is_first(self, offset: Offset) -> bool {
        offset.0 & (self.0 - 1) == 0
    }
}

/// The offsets from `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    /// The first.
    pub from: Offset,
    /// The end, exclusive.
    pub to: Offset,
}

impl OffsetRange {
    /// Whether it holds no offset.
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// A set of offsets, as ranges that are sorted, apart from each other and never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OffsetSet(Vec<OffsetRange>);

impl OffsetSet {
    /// The ranges, ascending, none touching the next.
    pub fn ranges(&self) -> &[OffsetRange] {
        &self.0
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the range; one that is empty changes nothing.
    pub fn insert(&mut self, range: OffsetRange) {
        if range.is_empty() {
            return;
        }
        let touched = self.0.partition_point(|held| held.to < range.from);
        let beyond = self.0.partition_point(|held| held.from <= range.to);
        let merged = self.0[touched..beyond].iter().fold(range, |all, held| OffsetRange {
            from: all.from.min(held.from),
            to: all.to.max(held.to),
        });
        self.0.splice(touched..beyond, [merged]);
    }

    /// Adds all of the other.
    pub fn extend(&mut self, other: &Self) {
        for range in &other.0 {
            self.insert(*range);
        }
    }

    /// What it holds and the other does not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for held in &self.0 {
            let mut from = held.from;
            for gone in other.within(held.from, held.to).0 {
                left.insert(OffsetRange { from, to: gone.from });
                from = gone.to;
            }
            left.insert(OffsetRange { from, to: held.to });
        }
        left
    }

    /// Whether it holds that offset.
    pub fn contains(&self, offset: Offset) -> bool {
        self.reach(offset) > offset
    }

    /// The end of the unbroken run that holds `offset`; `offset` itself where it is not held.
    pub fn reach(&self, offset: Offset) -> Offset {
        let at = self.0.partition_point(|held| held.to <= offset);
        self.0
            .get(at)
            .filter(|held| held.from <= offset)
            .map_or(offset, |held| held.to)
    }

    /// The first offset at or above `from` and below `to` that this set holds and the other does not.
    pub fn first_beyond(&self, other: &Self, from: Offset, to: Offset) -> Option<Offset> {
        self.0
            .iter()
            .map(|held| OffsetRange {
                from: held.from.max(from),
                to: held.to.min(to),
            })
            .filter(|held| !held.is_empty())
            .find_map(|held| Some(other.reach(held.from)).filter(|reached| *reached < held.to))
    }

    /// The part of it from `from` on and below `to`.
    pub fn within(&self, from: Offset, to: Offset) -> Self {
        let clipped = self.0.iter().map(|held| OffsetRange {
            from: held.from.max(from),
            to: held.to.min(to),
        });
        Self(clipped.filter(|held| !held.is_empty()).collect())
    }
}

impl FromIterator<OffsetRange> for OffsetSet {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    fn sets() -> impl Strategy<Value = (OffsetSet, BTreeSet<u64>)> {
        prop::collection::vec((0_u64..24, 0_u64..6), 0..6).prop_map(|pairs| {
            let set = pairs.iter().map(|(from, len)| range(*from, from + len)).collect();
            (set, pairs.iter().flat_map(|(from, len)| *from..from + len).collect())
        })
    }

    proptest! {
        #[test]
        fn a_chunk_holds_its_offsets(exponent in 0_u32..20, offset in 0_u64..1 << 40) {
            let chunk = ChunkSize::new(1 << exponent).unwrap();
            let (first, end) = (chunk.first(Offset(offset)), chunk.end(Offset(offset)));
            prop_assert!(first.0 <= Offset(offset) && Offset(offset) < end);
            prop_assert_eq!(end.0 - first.0.0, chunk.offsets());
            prop_assert!(chunk.is_first(first.0) && chunk.is_first(end));
            prop_assert_eq!(chunk.first(end).0, end);
        }

        #[test]
        fn an_offset_set_is_a_set((set, model) in sets(), (other, other_model) in sets(), from in 0_u64..30, len in 0_u64..30) {
            for offset in 0..32 {
                prop_assert_eq!(set.contains(Offset(offset)), model.contains(&offset));
                let reach = (offset..64).find(|at| !model.contains(at)).unwrap();
                prop_assert_eq!(set.reach(Offset(offset)), Offset(reach));
            }
            for pair in set.ranges().windows(2) {
                prop_assert!(pair[0].to < pair[1].from);
            }
            let to = from + len;
            let beyond = (from..to).find(|at| model.contains(at) && !other_model.contains(at));
            prop_assert_eq!(set.first_beyond(&other, Offset(from), Offset(to)), beyond.map(Offset));
            let within = set.within(Offset(from), Offset(to));
            let without = set.without(&other);
            for offset in 0..32 {
                let is_left = model.contains(&offset) && !other_model.contains(&offset);
                prop_assert_eq!(without.contains(Offset(offset)), is_left);
                prop_assert_eq!(within.contains(Offset(offset)), model.contains(&offset) && (from..to).contains(&offset));
            }
        }
    }

    #[test]
    fn a_chunk_is_a_power_of_two() {
        assert_eq!(ChunkSize::new(0), Err(BadChunk(0)));
        assert_eq!(
            ChunkSize::new(6).unwrap_err().to_string(),
            "a chunk of 6 offsets is not a power of two"
        );
        assert!(ChunkSize::new(262_144).is_ok());
    }
}
