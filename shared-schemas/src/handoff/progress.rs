//! How far the speed layer has come, for one view and one partition.
//!
//! From a mark, the starts that count follow on each other: the mark's own, then every chunk's. Walking them until
//! one is not complete gives both what a reader may promise ([`Coverage::covered`]) and where a worker without
//! memory takes up the work ([`Coverage::open`]).
//!
//! Progress of a start only grows, but by command: a redo ([`super::redo`]) begins the start anew. It is a row like any other, of
//! the next [`Redo`] and without an offset, and what was written before it, or arrives later from somebody who has not seen it,
//! counts no more.

use std::collections::BTreeMap;

use super::offset::{ChunkSize, Mark, Offset, OffsetRange, OffsetSet, Start};
use super::select::counts;

/// How often a start was ordered to be read again before whoever writes of it began to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Redo(pub u64);

/// What the speed layer has recorded for one view and partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SpeedProgress {
    nexts: BTreeMap<Start, Come>,
    gaps: BTreeMap<Start, OffsetSet>,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Come {
    redo: Redo,
    next: Offset,
    /// The highest `next` of any redo.
    once: Offset,
}

/// What the starts from a mark on hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Coverage {
    /// Every offset from the mark up to here is in the rows that count, but for `gaps`. Promised.
    pub covered: Offset,
    /// The first start that is not complete: where progress stops leading on.
    pub open: Start,
    /// Offsets that the log no longer had when the rows that count were made.
    pub gaps: OffsetSet,
}

impl SpeedProgress {
    /// Takes in a progress row of a start that was never to be read again; the highest `next` of a start stays.
    pub fn record(&mut self, start: Start, next: Offset) {
        self.record_after(start, Redo::default(), next);
    }

    /// Takes in a progress row; of a start's rows the highest redo stays, and of those the highest `next`.
    pub fn record_after(&mut self, start: Start, redo: Redo, next: Offset) {
        self.come(start, Come { redo, next, once: next });
    }

    fn come(&mut self, start: Start, come: Come) {
        let held = self.nexts.entry(start).or_insert(come);
        let once = held.once.max(come.once);
        if (come.redo, come.next) > (held.redo, held.next) {
            *held = come;
        }
        held.once = once;
    }

    /// The redo under which a start is to be read now.
    pub fn redo(&self, start: Start) -> Redo {
        self.nexts.get(&start).map(|come| come.redo).unwrap_or_default()
    }

    /// Whether a start from there on has not come as far again as before it was to be read again.
    pub fn is_read_again(&self, from: Start) -> bool {
        self.nexts.range(from..).any(|(_, come)| come.next < come.once)
    }

    /// What was recorded of each start: its redo, and up to where it has come.
    pub fn starts(&self) -> impl Iterator<Item = (Start, Redo, Offset)> {
        self.nexts.iter().map(|(start, come)| (*start, come.redo, come.next))
    }

    /// Takes in a gap row: a writer of `start` did not find these offsets in the log.
    pub fn record_gap(&mut self, start: Start, range: OffsetRange) {
        if !range.is_empty() {
            self.gaps.entry(start).or_default().insert(range);
        }
    }

    /// Takes in all that another recorded.
    pub fn extend(&mut self, other: &Self) {
        other.nexts.iter().for_each(|(start, come)| self.come(*start, *come));
        for (start, gaps) in &other.gaps {
            self.gaps.entry(*start).or_default().extend(gaps);
        }
    }

    /// Forgets the progress of starts below `floor`; their gaps too.
    pub fn forget_below(&mut self, floor: Mark) {
        self.nexts.retain(|start, _| *start >= floor.start());
        self.gaps.retain(|start, _| *start >= floor.start());
    }

    /// Up to where that start's rows have come; `None`: no progress was ever recorded.
    pub fn next(&self, start: Start) -> Option<Offset> {
        self.nexts.get(&start).map(|come| come.next)
    }

    /// The first start of which anything was recorded.
    pub fn first_start(&self) -> Option<Start> {
        let gap = self.gaps.keys().next().copied();
        self.nexts.keys().next().copied().into_iter().chain(gap).min()
    }

    /// The highest `next` of any start, under any redo: up to where anything was ever counted.
    pub fn highest_next(&self) -> Option<Offset> {
        self.nexts.values().map(|come| come.once).max()
    }

    /// The gaps recorded for that start.
    pub fn gaps(&self, start: Start) -> Option<&OffsetSet> {
        self.gaps.get(&start)
    }

    /// Whether nothing was ever recorded.
    pub fn is_empty(&self) -> bool {
        self.nexts.is_empty() && self.gaps.is_empty()
    }

    /// Where the next start follows on, if this one is complete: the end of its chunk. A gap that spans the rest of
    /// the chunk completes it as well. Each chunk of a log that begins late has its own gap row, so that a chunk's
    /// first offset promises as much to whom it is the mark as to whom it is passed on the way.
    pub fn complete(&self, start: Start, chunk: ChunkSize) -> Option<Start> {
        let end = chunk.end(start.0);
        let lost = self.gaps(start).is_some_and(|gaps| gaps.reach(start.0) >= end);
        let complete = lost || self.next(start).is_some_and(|next| next >= end);
        // The last chunk that offsets can name has no end: nothing follows it.
        (complete && end > start.0).then_some(Start(end))
    }

    /// The gaps of all starts that count from the mark on.
    ///
    /// A query reads them again *after* the rows, and adds them to its coverage: a gap is durable before any row that
    /// lacks its offsets, so no row that was read lacks what was not stated.
    pub fn gaps_from(&self, mark: Mark, chunk: ChunkSize) -> OffsetSet {
        let mut gaps = OffsetSet::default();
        let counting = self
            .gaps
            .range(mark.start()..)
            .filter(|(start, _)| counts(mark, **start, chunk));
        counting.for_each(|(_, of_start)| gaps.extend(of_start));
        gaps
    }

    /// Walks the starts that count from the mark on.
    pub fn coverage(&self, mark: Mark, chunk: ChunkSize) -> Coverage {
        let mut open = mark.start();
        while let Some(following) = self.complete(open, chunk) {
            open = following;
        }
        let gaps = self.gaps_from(mark, chunk);
        Coverage {
            covered: self.next(open).unwrap_or(open.0).max(open.0),
            open,
            gaps,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::select::counting_start;
    use super::*;

    const CHUNK: u64 = 4;

    fn chunk() -> ChunkSize {
        ChunkSize::new(CHUNK).unwrap()
    }

    /// Progress of arbitrary starts, `next` within each start's chunk; some starts have gaps at their front.
    fn progress() -> impl Strategy<Value = SpeedProgress> {
        let rows = prop::collection::vec((0_u64..20, 0_u64..=CHUNK), 0..24);
        let gaps = prop::collection::vec((0_u64..20, 1_u64..10), 0..3);
        (rows, gaps).prop_map(|(rows, gaps)| {
            let mut progress = SpeedProgress::default();
            for (start, ahead) in rows {
                progress.record(
                    Start(Offset(start)),
                    Offset(start + ahead).min(chunk().end(Offset(start))),
                );
            }
            for (start, length) in gaps {
                progress.record_gap(
                    Start(Offset(start)),
                    OffsetRange {
                        from: Offset(start),
                        to: Offset(start + length).min(chunk().end(Offset(start))),
                    },
                );
            }
            progress
        })
    }

    proptest! {
        /// An offset that coverage promises is in the rows of the one start that counts it, or in a stated gap.
        #[test]
        fn what_is_covered_was_read(progress in progress(), mark in 0_u64..20) {
            let mark = Mark(Offset(mark));
            let coverage = progress.coverage(mark, chunk());
            for offset in (mark.0.0..coverage.covered.0).map(Offset) {
                let start = counting_start(mark, offset, chunk()).unwrap();
                let read = progress.next(start).is_some_and(|next| next > offset);
                prop_assert!(read || coverage.gaps.contains(offset), "offset {offset} of {coverage:?}");
            }
        }

        /// Coverage of one mark never goes back, whatever rows arrive.
        #[test]
        fn more_rows_never_cover_less(progress in progress(), start in 0_u64..20, ahead in 0_u64..=CHUNK, mark in 0_u64..20) {
            let mark = Mark(Offset(mark));
            let mut more = progress.clone();
            let next = Offset(start + ahead).min(chunk().end(Offset(start)));
            more.record(Start(Offset(start)), next);
            prop_assert!(more.coverage(mark, chunk()).covered >= progress.coverage(mark, chunk()).covered);
            more.record_gap(Start(Offset(start)), OffsetRange { from: Offset(start), to: next });
            prop_assert!(more.coverage(mark, chunk()).covered >= progress.coverage(mark, chunk()).covered);
        }

        /// The order in which rows arrive, and how often, changes nothing.
        #[test]
        fn rows_commute(rows in prop::collection::vec((0_u64..20, 0_u64..3, 0_u64..24), 0..12), seed in 0_usize..12) {
            let take = |into: &mut SpeedProgress, (start, redo, next): &(u64, u64, u64)| {
                into.record_after(Start(Offset(*start)), Redo(*redo), Offset(*next));
            };
            let mut forward = SpeedProgress::default();
            rows.iter().for_each(|row| take(&mut forward, row));
            let mut shuffled = SpeedProgress::default();
            let turned = rows.iter().cycle().skip(seed).take(rows.len() * 2);
            turned.for_each(|row| take(&mut shuffled, row));
            prop_assert_eq!(forward, shuffled);
        }

        /// Where a worker resumes is at or above the mark, is a start that counts, and is not complete.
        #[test]
        fn a_worker_resumes_at_the_first_open_start(progress in progress(), mark in 0_u64..20) {
            let mark = Mark(Offset(mark));
            let open = progress.coverage(mark, chunk()).open;
            prop_assert!(open == mark.start() || (open > mark.start() && chunk().is_first(open.0)));
            prop_assert_eq!(progress.complete(open, chunk()), None);
        }
    }

    #[test]
    fn a_log_that_begins_late_has_a_gap_in_each_chunk() {
        let mut progress = SpeedProgress::default();
        for chunk in 0..4 {
            let (from, to) = (Offset(chunk * CHUNK), Offset(chunk * CHUNK + CHUNK));
            progress.record_gap(Start(from), OffsetRange { from, to });
        }
        let coverage = progress.coverage(Mark::default(), chunk());
        assert_eq!(coverage.open, Start(Offset(4 * CHUNK)));
        assert_eq!(coverage.covered, Offset(4 * CHUNK));
        let lost = OffsetRange {
            from: Offset(0),
            to: Offset(4 * CHUNK),
        };
        assert_eq!(coverage.gaps.ranges(), [lost]);
    }

    #[test]
    fn the_highest_offsets_end_the_walk() {
        let mut progress = SpeedProgress::default();
        progress.record_gap(
            Start(Offset(0)),
            OffsetRange {
                from: Offset(0),
                to: Offset(u64::MAX),
            },
        );
        progress.record(Start(Offset(u64::MAX - 3)), Offset(u64::MAX));
        progress.record(Start(Offset(u64::MAX)), Offset(u64::MAX));
        assert_eq!(
            progress.coverage(Mark(Offset(u64::MAX - 3)), chunk()).open,
            Start(Offset(u64::MAX))
        );
        assert_eq!(
            progress.coverage(Mark(Offset(u64::MAX)), chunk()).covered,
            Offset(u64::MAX)
        );
    }
}
