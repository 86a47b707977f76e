//! Which starts a speed worker keeps on one partition, and where it goes next.
//!
//! A worker reads forward and keeps the cells of each wanted start that it passed. Once a second it reads the newest
//! mark, the cuts and the progress again and asks [`next_start`]: the answer is the same for a new worker, one that
//! fell behind, one that passed a cut before it was asked for, and one that came back to find a rollback.

use std::collections::{BTreeMap, BTreeSet};

use super::offset::{ChunkSize, Mark, Offset, OffsetRange, Start};
use super::progress::SpeedProgress;

/// What a delivered record means to a start that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It belongs to the start's cells; they hold everything up to this `next`, the offset after the record's.
    Counts {
        /// The version of the rows to come.
        next: Offset,
    },
    /// It lies at or past the end of the start's chunk: the chunk is complete, whatever holes it ended in.
    Completes {
        /// The chunk's end, the last version of its rows.
        next: Offset,
    },
}

/// What a record at `offset` means to `start`.
///
/// Only a record that was delivered moves `next`: a consumer's position, the end of the partition and watermarks say
/// nothing of what an open transaction may still bring.
pub fn delivered(start: Start, offset: Offset, chunk: ChunkSize) -> Delivered {
    let end = chunk.end(start.0);
    if offset >= end {
        Delivered::Completes { next: end }
    } else {
        Delivered::Counts { next: offset.next() }
    }
}

/// The offsets that the log no longer has for somebody who reads on from `cursor`. They must be recorded as a gap of
/// every start they are missing from, durably, before any row that lacks them. A worker asks for the part in its
/// cursor's chunk, since each chunk has a gap row of its own.
pub fn missing(cursor: Offset, log_start: Offset) -> Option<OffsetRange> {
    (log_start > cursor).then_some(OffsetRange {
        from: cursor,
        to: log_start,
    })
}

/// Whether progress of `start` up to `next` may be inserted: not past a cut in its chunk that is behind it. `cuts`
/// are the cuts that the worker saw, with what it knows of their progress. A run that finds its cut caught up may then
/// publish it: nobody's promise reaches beyond. Rows need not wait.
pub fn may_show(start: Start, next: Offset, cuts: &BTreeMap<Start, Option<Offset>>, chunk: ChunkSize) -> bool {
    let end = next.min(chunk.end(start.0));
    let mut passed = cuts.iter().filter(|(cut, _)| **cut > start && cut.0 < end);
    passed.all(|(_, shown)| shown.is_some_and(|shown| shown >= next))
}

/// Whether somebody needs rows of that start: it is the newest mark, a cut still wanted, or a chunk's own.
pub fn wanted(start: Start, mark: Mark, cuts: &BTreeSet<Start>, chunk: ChunkSize) -> bool {
    start >= mark.start() && (start == mark.start() || chunk.is_first(start.0) || cuts.contains(&start))
}

/// Where a worker goes next: the lowest wanted start below `log_end` that is not complete, that it does not keep,
/// and that it will not come to by reading on. `None`: it is where it should be.
///
/// `kept` are the starts whose cells it holds, `cursors` the offsets from which it reads on.
pub fn next_start(
    mark: Mark,
    cuts: &BTreeSet<Start>,
    progress: &SpeedProgress,
    chunk: ChunkSize,
    kept: &BTreeSet<Start>,
    cursors: &[Offset],
    log_end: Offset,
) -> Option<Start> {
    let comes_by_itself = |start: Start| cursors.iter().any(|cursor| *cursor <= start.0);
    let lacking = |start: &Start| !kept.contains(start) && !comes_by_itself(*start);
    let cut = cuts
        .range(mark.start()..)
        .copied()
        .filter(|cut| progress.complete(*cut, chunk).is_none())
        .find(lacking)
        .filter(|cut| cut.0 < log_end);
    // From the lowest cursor on all comes by itself: a worker that reads the log's head need not walk to its end.
    let behind = cursors.iter().copied().fold(log_end, Offset::min);
    let own = open_starts(mark, progress, chunk, behind).find(lacking);
    match (cut, own) {
        (Some(cut), Some(own)) => Some(cut.min(own)),
        (cut, own) => cut.or(own),
    }
}

/// The starts that count from the mark on and are not complete, ascending, below `log_end`.
pub fn open_starts(
    mark: Mark,
    progress: &SpeedProgress,
    chunk: ChunkSize,
    log_end: Offset,
) -> impl Iterator<Item = Start> {
    let following = move |start: &Start| {
        let complete = progress.complete(*start, chunk);
        Some(complete.unwrap_or(Start(chunk.end(start.0))))
    };
    std::iter::successors(Some(mark.start()), following)
        .take_while(move |start| start.0 < log_end)
        .filter(move |start| progress.complete(*start, chunk).is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk() -> ChunkSize {
        ChunkSize::new(4).unwrap()
    }

    fn starts(of: &[u64]) -> BTreeSet<Start> {
        of.iter().map(|at| Start(Offset(*at))).collect()
    }

    fn progress(rows: &[(u64, u64)]) -> SpeedProgress {
        let mut progress = SpeedProgress::default();
        rows.iter()
            .for_each(|(start, next)| progress.record(Start(Offset(*start)), Offset(*next)));
        progress
    }

    fn next(mark: u64, cuts: &[u64], rows: &[(u64, u64)], kept: &[u64], cursors: &[u64]) -> Option<u64> {
        let cursors: Vec<_> = cursors.iter().map(|at| Offset(*at)).collect();
        next_start(
            Mark(Offset(mark)),
            &starts(cuts),
            &progress(rows),
            chunk(),
            &starts(kept),
            &cursors,
            Offset(12),
        )
        .map(|start| start.0.0)
    }

    #[test]
    fn where_a_worker_goes() {
        assert_eq!(next(0, &[], &[], &[], &[]), Some(0), "a new worker begins at the mark");
        assert_eq!(
            next(0, &[], &[(0, 4), (4, 6)], &[], &[]),
            Some(4),
            "and after a restart at the open chunk's start"
        );
        assert_eq!(
            next(6, &[], &[(0, 4), (4, 6)], &[], &[]),
            Some(6),
            "a cut's mark is a start"
        );
        assert_eq!(
            next(0, &[], &[(0, 4)], &[4], &[6]),
            None,
            "one that keeps the open chunk reads on"
        );
        assert_eq!(
            next(0, &[7], &[(0, 4)], &[4], &[6]),
            None,
            "a cut ahead comes by itself"
        );
        assert_eq!(
            next(0, &[5], &[(0, 4)], &[4], &[6]),
            Some(5),
            "a cut that was passed is read again"
        );
        assert_eq!(
            next(0, &[5], &[(0, 4), (5, 8)], &[4], &[6]),
            None,
            "unless it is complete"
        );
        assert_eq!(
            next(0, &[], &[(0, 2), (4, 8)], &[8], &[9]),
            Some(0),
            "what a dead worker left open is filled"
        );
        assert_eq!(
            next(8, &[5], &[(0, 2)], &[8], &[9]),
            None,
            "below the mark nothing is wanted"
        );
        assert_eq!(next(12, &[], &[], &[], &[]), None, "nor beyond the log");
    }

    #[test]
    fn a_record_past_the_end_completes_a_chunk() {
        let start = Start(Offset(5));
        assert_eq!(
            delivered(start, Offset(6), chunk()),
            Delivered::Counts { next: Offset(7) }
        );
        assert_eq!(
            delivered(start, Offset(7), chunk()),
            Delivered::Counts { next: Offset(8) }
        );
        assert_eq!(
            delivered(start, Offset(11), chunk()),
            Delivered::Completes { next: Offset(8) }
        );
    }

    #[test]
    fn a_log_that_begins_later_is_missing_its_head() {
        assert_eq!(missing(Offset(4), Offset(4)), None);
        assert_eq!(
            missing(Offset(4), Offset(7)),
            Some(OffsetRange {
                from: Offset(4),
                to: Offset(7)
            })
        );
    }

    #[test]
    fn progress_does_not_pass_a_cut_that_is_behind() {
        let show = |next, cuts: &[(u64, Option<u64>)]| {
            let cuts = cuts
                .iter()
                .map(|(at, shown)| (Start(Offset(*at)), shown.map(Offset)))
                .collect();
            may_show(Start(Offset(4)), Offset(next), &cuts, chunk())
        };
        assert!(show(8, &[]));
        assert!(show(6, &[(6, None)]), "up to the cut");
        assert!(!show(7, &[(6, None)]));
        assert!(!show(8, &[(6, Some(7))]));
        assert!(show(8, &[(6, Some(8))]));
        assert!(show(4, &[(6, None)]) && show(4, &[]), "nothing read yet");
        assert!(
            show(8, &[(3, None), (4, None), (8, None), (9, None)]),
            "cuts elsewhere do not matter"
        );
    }

    proptest! {
        /// A worker that goes where it is sent until it is sent nowhere has opened all that coverage waits for.
        #[test]
        fn nothing_wanted_is_left_behind(
            rows in prop::collection::vec((0_u64..12, 0_u64..=4), 0..10),
            cuts in prop::collection::btree_set(0_u64..12, 0..3),
            mark in 0_u64..12,
        ) {
            let mark = Mark(Offset(mark));
            let cuts: BTreeSet<_> = cuts.into_iter().map(|at| Start(Offset(at))).collect();
            let mut progress = SpeedProgress::default();
            for (start, ahead) in rows {
                progress.record(Start(Offset(start)), Offset(start + ahead).min(chunk().end(Offset(start))));
            }
            let mut kept = BTreeSet::new();
            while let Some(start) = next_start(mark, &cuts, &progress, chunk(), &kept, &[], Offset(12)) {
                prop_assert!(wanted(start, mark, &cuts, chunk()));
                prop_assert!(kept.insert(start), "sent to {start:?} twice");
            }
            for at in (0..12).map(|at| Start(Offset(at))) {
                let open = wanted(at, mark, &cuts, chunk()) && progress.complete(at, chunk()).is_none();
                prop_assert_eq!(kept.contains(&at), open);
            }
        }
    }
}
