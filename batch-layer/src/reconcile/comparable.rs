//! Which offsets can be compared: those whose speed rows stand still and that the archive holds.
//!
//! Speed rows are whole for each start, so a start is compared whole or not at all. From the mark on, starts are taken
//! for as long as each is complete, or its rows stand where progress says, and the archive reaches as far.

use serde::Serialize;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetRange, OffsetSet, SpeedProgress, Start};

/// What of a partition is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comparable {
    /// Below it batch rows.
    pub(crate) mark: Mark,
    /// The first start whose rows are not compared.
    pub(crate) upto: Start,
    /// All offsets below are compared, but for gaps.
    pub(crate) end: Offset,
    /// The start among them that is not complete, and its `next`: it may move on.
    pub(crate) open: Option<(Start, Offset)>,
    /// Why no more is compared.
    pub(crate) left_out: Option<LeftOut>,
}

/// Why a partition is compared no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// The speed layer has counted more than is archived.
    ArchiveBehind,
    /// The archive lacks offsets that the speed layer has.
    ArchiveGap,
    /// Rows of the last start are being written.
    Moving,
}

impl Comparable {
    /// Walks the starts from the mark on. `moves` says whether the rows of a start that is not complete are elsewhere than
    /// its progress says.
    pub(crate) fn of(
        mark: Mark,
        chunk: ChunkSize,
        progress: &SpeedProgress,
        archive_end: Offset,
        archive_gaps: &OffsetSet,
        moves: bool,
    ) -> Self {
        let speed_gaps = progress.gaps_from(mark, chunk);
        let mut found = Self {
            mark,
            upto: mark.start(),
            end: mark.0,
            open: None,
            left_out: None,
        };
        let lacks = |from, to| {
            if to > archive_end {
                Some(LeftOut::ArchiveBehind)
            } else {
                archive_gaps
                    .first_beyond(&speed_gaps, from, to)
                    .map(|_| LeftOut::ArchiveGap)
            }
        };
        while let Some(following) = progress.complete(found.upto, chunk) {
            found.left_out = lacks(found.end, following.0);
            if found.left_out.is_some() {
                return found;
            }
            found.upto = following;
            found.end = following.0;
        }
        let Some(next) = progress.next(found.upto).filter(|next| *next > found.upto.0) else {
            return found;
        };
        found.left_out = lacks(found.end, next).or(moves.then_some(LeftOut::Moving));
        if found.left_out.is_none() {
            found.open = Some((found.upto, next));
            found.upto = Start(chunk.end(found.upto.0));
            found.end = next;
        }
        found
    }

    /// The starts whose rows are compared.
    pub(crate) fn starts(&self, chunk: ChunkSize) -> impl Iterator<Item = Start> {
        let following = move |start: &Start| Some(Start(chunk.end(start.0)));
        let upto = self.upto;
        std::iter::successors(Some(self.mark.start()), following).take_while(move |start| *start < upto)
    }

    /// The offsets that the speed rows count: from the mark on, without what the log no longer had.
    pub(crate) fn of_speed(&self, gaps: &OffsetSet) -> OffsetSet {
        let mut from = self.mark.0;
        let mut counted = OffsetSet::default();
        for gap in gaps.within(self.mark.0, self.end).ranges() {
            counted.insert(OffsetRange { from, to: gap.from });
            from = gap.to;
        }
        counted.insert(OffsetRange { from, to: self.end });
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    fn walk(
        mark: u64,
        rows: &[(u64, u64)],
        end: u64,
        gaps: &[OffsetRange],
        moves: bool,
    ) -> (u64, u64, Option<LeftOut>) {
        let mut progress = SpeedProgress::default();
        rows.iter()
            .for_each(|(start, next)| progress.record(Start(Offset(*start)), Offset(*next)));
        let gaps = gaps.iter().copied().collect();
        let chunk = ChunkSize::new(8).unwrap();
        let found = Comparable::of(Mark(Offset(mark)), chunk, &progress, Offset(end), &gaps, moves);
        (found.upto.0.0, found.end.0, found.left_out)
    }

    #[test]
    fn starts_are_compared_whole_and_in_a_row() {
        let rows = [(0, 8), (8, 16), (16, 20), (11, 16)];
        assert_eq!(walk(0, &rows, 20, &[], false), (24, 20, None));
        assert_eq!(walk(11, &rows, 20, &[], false), (24, 20, None), "from a cut on");
        assert_eq!(walk(0, &rows, 20, &[], true), (16, 16, Some(LeftOut::Moving)));
        assert_eq!(walk(0, &rows, 19, &[], false), (16, 16, Some(LeftOut::ArchiveBehind)));
        assert_eq!(walk(0, &rows, 15, &[], false), (8, 8, Some(LeftOut::ArchiveBehind)));
        assert_eq!(
            walk(0, &rows, 20, &[range(9, 10)], false),
            (8, 8, Some(LeftOut::ArchiveGap))
        );
        assert_eq!(
            walk(24, &rows, 30, &[], false),
            (24, 24, None),
            "the speed layer has nothing there"
        );
        assert_eq!(
            walk(0, &[(8, 16)], 30, &[], false),
            (0, 0, None),
            "nor is a hole passed"
        );
    }

    #[test]
    fn gaps_are_not_counted() {
        let mut progress = SpeedProgress::default();
        progress.record_gap(Start(Offset(0)), range(0, 5));
        progress.record(Start(Offset(0)), Offset(8));
        progress.record(Start(Offset(8)), Offset(10));
        let chunk = ChunkSize::new(8).unwrap();
        let archive_gaps = OffsetSet::from_iter([range(0, 4)]);
        let found = Comparable::of(Mark::default(), chunk, &progress, Offset(10), &archive_gaps, false);
        assert_eq!(found.end, Offset(10), "both lack it");
        let gaps = progress.gaps_from(Mark::default(), chunk);
        assert_eq!(found.of_speed(&gaps).ranges(), [range(5, 10)]);
    }
}
