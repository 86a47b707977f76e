//! Which starts are read again when somebody orders it.
//!
//! Rows that the store acknowledged and lost are missed by nobody: progress says that they are there, so no worker reads them
//! again. Voiding that progress is enough. A void is a progress row of the next [`Redo`] that has come nowhere; it wins against all
//! that was written before it and against all that is still on its way, and a worker that keeps the start lets go of it at its next
//! look. What is written then is the same as before, row by row, so rows that are still there stay as they are.
//!
//! Only what the log still holds from the start's first offset on may be voided. Else the start would be read from where the log
//! begins, and rows that lack what was before it would take the place of rows that have it.

use super::offset::{ChunkSize, Mark, Offset, OffsetRange, Start};
use super::progress::{Redo, SpeedProgress};

/// What becomes of a partition's starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Again {
    /// Their progress is voided, each under this redo; ascending.
    pub voids: Vec<(Start, Redo)>,
    /// Kafka no longer holds all of them: what they lack only a batch run can give. Ascending.
    pub gone: Vec<Start>,
    /// They were voided before, and nothing of them is written since. Ascending.
    pub waiting: Vec<Start>,
}

/// The log ends below what was counted: the same offsets may hold other records than those that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its log ends at offset {end}, and was counted up to {counted}: what is counted can't be read again")]
pub struct CutOff {
    /// Where the log ends.
    pub end: Offset,
    /// Up to where it was counted.
    pub counted: Offset,
}

/// Which starts are to be read again: those with progress, from the mark on, of chunks that hold `from` or lie above it. `log`
/// is what Kafka holds now.
///
/// # Errors
/// Where the log ends below what was counted.
pub fn again(
    mark: Mark,
    progress: &SpeedProgress,
    chunk: ChunkSize,
    from: Offset,
    log: OffsetRange,
) -> Result<Again, CutOff> {
    if let Some(counted) = progress.highest_next().filter(|counted| *counted > log.to) {
        return Err(CutOff { end: log.to, counted });
    }
    let mut again = Again::default();
    let is_chosen = |start: Start| start >= mark.start() && chunk.end(start.0) > from;
    for (start, redo, next) in progress.starts() {
        if !is_chosen(start) {
            continue;
        }
        if next <= start.0 {
            if redo > Redo::default() {
                again.waiting.push(start);
            }
            continue;
        }
        // What the log had lost before is a gap already, and will be the same gap.
        let lost = progress.gaps(start).map_or(start.0, |gaps| gaps.reach(start.0));
        if lost >= chunk.end(start.0) {
            continue;
        }
        if log.from > lost {
            again.gone.push(start);
        } else {
            again.voids.push((start, Redo(redo.0 + 1)));
        }
    }
    Ok(again)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::worker::{next_start, open_starts};
    use super::*;

    const CHUNK: u64 = 4;

    fn chunk() -> ChunkSize {
        ChunkSize::new(CHUNK).unwrap()
    }

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    /// Progress rows: start, redo, next; the latter within each start's chunk, and within a log of 20 offsets.
    fn rows() -> impl Strategy<Value = Vec<(Start, Redo, Offset)>> {
        let row = (0_u64..20, 0_u64..3, 0_u64..=CHUNK).prop_map(|(start, redo, ahead)| {
            let next = Offset(start + ahead).min(chunk().end(Offset(start)));
            (Start(Offset(start)), Redo(redo), next)
        });
        prop::collection::vec(row, 0..24)
    }

    fn recorded(rows: &[(Start, Redo, Offset)]) -> SpeedProgress {
        let mut progress = SpeedProgress::default();
        let take = |(start, redo, next): &(Start, Redo, Offset)| progress.record_after(*start, *redo, *next);
        rows.iter().for_each(take);
        progress
    }

    proptest! {
        /// What is voided is open, and stays so whatever arrives of what was written before: a worker goes there. What is not
        /// chosen stays as it was. The new reading then leads as far as the old one did.
        #[test]
        fn what_is_voided_is_read_again(
            rows in rows(), mark in 0_u64..20, from in 0_u64..20, head in 0_u64..24, late in prop::collection::vec(0_usize..24, 0..6),
        ) {
            let (mark, from) = (Mark(Offset(mark)), Offset(from));
            let before = recorded(&rows);
            let found = again(mark, &before, chunk(), from, range(0, 24)).unwrap();
            prop_assert!(found.gone.is_empty());
            let mut after = before.clone();
            found.voids.iter().for_each(|(start, redo)| after.record_after(*start, *redo, start.0));
            let late = late.iter().filter_map(|which| rows.get(which % rows.len().max(1)));
            late.for_each(|(start, redo, next)| after.record_after(*start, *redo, *next));

            let voided: BTreeSet<Start> = found.voids.iter().map(|(start, _)| *start).collect();
            for (start, redo, next) in before.starts() {
                let chosen = start >= mark.start() && chunk().end(start.0) > from && next > start.0;
                prop_assert_eq!(voided.contains(&start), chosen, "{:?}", start);
                let waits = start >= mark.start() && chunk().end(start.0) > from && next <= start.0 && redo > Redo(0);
                prop_assert_eq!(found.waiting.contains(&start), waits, "{:?}", start);
                let expected = if chosen { (Redo(redo.0 + 1), Some(start.0)) } else { (redo, Some(next)) };
                prop_assert_eq!((after.redo(start), after.next(start)), expected);
            }
            // Ordered twice it is done once.
            let twice = again(mark, &after, chunk(), from, range(0, 24)).unwrap();
            prop_assert!(twice.voids.is_empty(), "{:?}", twice);
            prop_assert!(voided.iter().all(|start| twice.waiting.contains(start)));
            let covered = |of: &SpeedProgress| of.coverage(mark, chunk()).covered;
            prop_assert!(covered(&after) <= covered(&before));
            prop_assert_eq!(after.highest_next(), before.highest_next(), "what was counted once is not forgotten");
            // A worker that reads the log's head and keeps nothing goes to the lowest start that is open.
            let (head, none) = (Offset(head), BTreeSet::new());
            let goes = next_start(mark, &none, &after, chunk(), &none, &[head], Offset(24));
            let lowest = open_starts(mark, &after, chunk(), head).next();
            prop_assert_eq!(goes, lowest);
            let counting = voided.iter().find(|start| **start == mark.start() || chunk().is_first(start.0));
            if let Some(start) = counting.filter(|start| start.0 < head) {
                prop_assert!(goes.is_some_and(|goes| goes <= *start), "{goes:?}, and {start:?} is open");
            }

            found.voids.iter().for_each(|(start, redo)| after.record_after(*start, *redo, before.next(*start).unwrap()));
            prop_assert_eq!(covered(&after), covered(&before));
        }

        /// A start whose offsets the log has lost is left as it is; one that lost them before it was read is not.
        #[test]
        fn what_the_log_lost_is_left_as_it_is(rows in rows(), log_start in 0_u64..20, gap in 0_u64..20, length in 0_u64..6) {
            let mut progress = recorded(&rows);
            let lost = range(gap, (gap + length).min(chunk().end(Offset(gap)).0));
            progress.record_gap(Start(Offset(gap)), lost);
            let found = again(Mark::default(), &progress, chunk(), Offset(0), range(log_start, 24)).unwrap();
            for (start, _) in &found.voids {
                let is_gap = |offset: u64| start.0.0 == gap && lost.from <= Offset(offset) && Offset(offset) < lost.to;
                prop_assert!((start.0.0..log_start).all(is_gap), "{start:?} lacks what is below {log_start}");
            }
            prop_assert!(found.gone.iter().all(|start| start.0.0 < log_start));
        }
    }

    #[test]
    fn a_log_that_ends_below_what_was_counted_is_not_read_again() {
        let mut progress = SpeedProgress::default();
        progress.record(Start(Offset(4)), Offset(7));
        let cut_off = again(Mark::default(), &progress, chunk(), Offset(0), range(0, 6)).unwrap_err();
        assert_eq!(
            cut_off.to_string(),
            "its log ends at offset 6, and was counted up to 7: what is counted can't be read again"
        );
        assert!(again(Mark::default(), &progress, chunk(), Offset(0), range(0, 7)).is_ok());
    }
}
