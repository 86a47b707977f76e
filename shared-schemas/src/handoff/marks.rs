//! The mark a batch run may choose for a partition, and when the cut it asked for is ready.
//!
//! Everything below a mark is answered from the archive alone, so a mark never passes what the archive lacks. A mark
//! at a chunk's first offset needs nothing from the speed layer; one inside a chunk needs rows that begin just there,
//! so the run asks for a cut and waits, and falls back to the chunk's first offset when it waited in vain.

use std::collections::BTreeSet;
use std::time::Duration;

use super::offset::{ChunkSize, Mark, Offset, OffsetSet, Start};
use super::progress::SpeedProgress;
use super::publication::RunId;

/// A cut is asked for where the chunk boundary would leave more than this of archived events above the mark.
pub const CUT_AFTER: Duration = Duration::from_secs(60);

/// A cut is not published before it was asked for this long ago: by then every worker has looked for cuts (it does so
/// every second) and what it sent before has arrived or failed, so none shows more of the chunk than of the cut. A
/// worker that is slower than this can lower what readers are promised, for as long as it takes to read the cut; it
/// can not make an answer wrong.
pub const CUT_SETTLES: Duration = Duration::from_secs(5);

/// The archive no longer holds what was already published from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveBehind {
    /// Commits were lost. The archiver reads them again from Kafka, if it still has them.
    #[error(
        "the archive ends at offset {end}, below the published mark {mark}: commits that were published from are gone"
    )]
    Short {
        /// Where the archive ends.
        end: Offset,
        /// The parent's mark.
        mark: Offset,
    },
    /// It has a gap that the publication did not have: its days can not be computed again without losing events.
    #[error(
        "the archive lacks offset {offset}, which is published below the mark {mark}: restore the archive, or accept the gap"
    )]
    Lacks {
        /// The first offset that is gone.
        offset: Offset,
        /// The parent's mark.
        mark: Offset,
    },
}

/// The mark that a run chose for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkChoice {
    /// A chunk's first offset, or the parent's mark again: may be published as it is.
    Settled(Mark),
    /// Inside a chunk: the speed layer must keep rows from there on, first.
    Cut {
        /// The cut asked for.
        mark: Mark,
        /// What may be published without it.
        fallback: Mark,
    },
}

/// How far a mark may go: to the archive's end, or to the first offset from the parent's mark on that the archive
/// lacks and that nobody excused. A gap is excused by an explicit command, or where the speed layer has it too.
/// `published` are the gaps that the parent has below its mark.
///
/// # Errors
/// [`ArchiveBehind`] if the archive holds less below the parent's mark than was published.
pub fn mark_limit(
    archive_end: Offset,
    parent: Mark,
    archive_gaps: &OffsetSet,
    published: &OffsetSet,
    excused: &OffsetSet,
) -> Result<Offset, ArchiveBehind> {
    if archive_end < parent.0 {
        return Err(ArchiveBehind::Short {
            end: archive_end,
            mark: parent.0,
        });
    }
    let mut known = published.clone();
    known.extend(excused);
    if let Some(offset) = archive_gaps.first_beyond(&known, Offset::default(), parent.0) {
        return Err(ArchiveBehind::Lacks { offset, mark: parent.0 });
    }
    Ok(archive_gaps
        .first_beyond(excused, parent.0, archive_end)
        .unwrap_or(archive_end))
}

/// The mark for a partition whose limit is `limit`, never below the parent's. `left_above` is how long a time of
/// archived events the chunk boundary at or below the limit would leave above the mark.
pub fn choose_mark(limit: Offset, parent: Mark, chunk: ChunkSize, left_above: Duration) -> MarkChoice {
    let settled = Mark(chunk.first(limit).0.max(parent.0));
    if left_above > CUT_AFTER && limit > settled.0 && !chunk.is_first(limit) {
        MarkChoice::Cut {
            mark: Mark(limit),
            fallback: settled,
        }
    } else {
        MarkChoice::Settled(settled)
    }
}

/// Whether a cut that was asked for may be published as a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutState {
    /// Its rows hold all that any start of the chunk holds: no reader sees less than before.
    Ready,
    /// The speed layer has not come that far yet.
    Waiting,
    /// The log no longer has what the cut needs: only the fallback is left.
    Lost,
}

/// The state of a cut at `mark` that was asked for `asked_for` ago, on the run's own monotonic clock since the request
/// was acknowledged. `highest_version` is the highest version of any
/// speed row of that view and partition, `None` where there is none; `log_start` the log's first offset.
pub fn cut_state(
    mark: Mark,
    asked_for: Duration,
    progress: &SpeedProgress,
    highest_version: Option<Offset>,
    log_start: Offset,
    chunk: ChunkSize,
) -> CutState {
    let cut = mark.start();
    if asked_for < CUT_SETTLES {
        return CutState::Waiting;
    }
    if highest_version
        .max(progress.highest_next())
        .is_none_or(|version| version <= mark.0)
    {
        return CutState::Ready;
    }
    if progress.gaps(cut).is_some() {
        return CutState::Lost;
    }
    let target = progress.highest_next().unwrap_or_default().min(chunk.end(mark.0));
    match progress.next(cut) {
        Some(next) if next >= target => CutState::Ready,
        _ if log_start > mark.0 => CutState::Lost,
        _ => CutState::Waiting,
    }
}

/// The cuts that runs still wait for, from the mark on: asked for, and not withdrawn by the run that asked.
pub fn wanted_cuts(
    asked: impl IntoIterator<Item = (Start, RunId)>,
    withdrawn: &BTreeSet<(Start, RunId)>,
    mark: Mark,
) -> BTreeSet<Start> {
    let wanted = asked
        .into_iter()
        .filter(|cut| cut.0 >= mark.start() && !withdrawn.contains(cut));
    wanted.map(|(start, _)| start).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::offset::OffsetRange;
    use super::*;

    const LONG: Duration = Duration::from_secs(61);

    fn chunk() -> ChunkSize {
        ChunkSize::new(8).unwrap()
    }

    fn gaps(of: &[(u64, u64)]) -> OffsetSet {
        of.iter()
            .map(|(from, to)| OffsetRange {
                from: Offset(*from),
                to: Offset(*to),
            })
            .collect()
    }

    proptest! {
        /// A chosen mark is at or above the parent's, and at or below what the archive holds without an unexcused gap.
        #[test]
        fn a_mark_stays_within_the_archive(
            end in 0_u64..40, parent in 0_u64..40, hole in 0_u64..40, length in 0_u64..6, excuse in 0_u64..6, long in any::<bool>(),
        ) {
            let (archive_gaps, excused) = (gaps(&[(hole, hole + length)]), gaps(&[(hole, hole + excuse)]));
            let parent = Mark(Offset(parent));
            let limit = match mark_limit(Offset(end), parent, &archive_gaps, &gaps(&[]), &excused) {
                Ok(limit) => limit,
                Err(ArchiveBehind::Short { .. }) => {
                    prop_assert!(end < parent.0.0);
                    return Ok(());
                }
                Err(ArchiveBehind::Lacks { offset, .. }) => {
                    prop_assert!(offset < parent.0 && archive_gaps.contains(offset) && !excused.contains(offset));
                    return Ok(());
                }
            };
            for offset in (0..parent.0.0).map(Offset) {
                prop_assert!(!archive_gaps.contains(offset) || excused.contains(offset));
            }
            let choices = match choose_mark(limit, parent, chunk(), if long { LONG } else { CUT_AFTER }) {
                MarkChoice::Settled(mark) => vec![mark],
                MarkChoice::Cut { mark, fallback } => {
                    prop_assert!(long && mark > fallback && !chunk().is_first(mark.0));
                    vec![mark, fallback]
                }
            };
            for mark in choices {
                prop_assert!(mark >= parent && mark.0.0 <= end);
                for offset in (parent.0.0..mark.0.0).map(Offset) {
                    prop_assert!(!archive_gaps.contains(offset) || excused.contains(offset));
                }
            }
        }

        /// Publishing a cut that is ready, or a chunk's first offset, never lowers what readers are promised.
        #[test]
        fn a_ready_mark_promises_no_less(
            rows in prop::collection::vec((0_u64..24, 0_u64..=8), 0..10), lost in prop::collection::vec((0_u64..24, 0_u64..=8), 0..3),
            old in 0_u64..12, forward in 0_u64..12,
        ) {
            let mut progress = SpeedProgress::default();
            for (start, ahead) in rows {
                progress.record(Start(Offset(start)), Offset(start + ahead).min(chunk().end(Offset(start))));
            }
            for (start, length) in lost {
                let to = Offset(start + length).min(chunk().end(Offset(start)));
                progress.record_gap(Start(Offset(start)), OffsetRange { from: Offset(start), to });
            }
            let (old, new) = (Mark(Offset(old)), Mark(Offset(old + forward)));
            let state = cut_state(new, CUT_SETTLES, &progress, progress.highest_next(), Offset(0), chunk());
            if chunk().is_first(new.0) || state == CutState::Ready {
                let (before, after) = (progress.coverage(old, chunk()), progress.coverage(new, chunk()));
                for offset in (new.0.0..before.covered.0).map(Offset).filter(|offset| !before.gaps.contains(*offset)) {
                    prop_assert!(offset < after.covered && !after.gaps.contains(offset), "{offset} of {before:?}, {after:?}");
                }
            }
        }
    }

    #[test]
    fn an_archive_that_lost_commits_is_refused() {
        let limit = |end, archived: &[_], published: &[_]| {
            mark_limit(
                Offset(end),
                Mark(Offset(8)),
                &gaps(archived),
                &gaps(published),
                &gaps(&[]),
            )
        };
        let short = limit(7, &[], &[]).unwrap_err().to_string();
        assert!(
            short.starts_with("the archive ends at offset 7, below the published mark 8"),
            "{short}"
        );
        let lacks = limit(12, &[(2, 4)], &[]).unwrap_err().to_string();
        assert!(
            lacks.starts_with("the archive lacks offset 2, which is published below the mark 8"),
            "{lacks}"
        );
        assert_eq!(
            limit(12, &[(2, 4)], &[(2, 4)]),
            Ok(Offset(12)),
            "a gap that was published is no news"
        );
    }

    #[test]
    fn a_cut_is_wanted_until_who_asked_withdraws() {
        let cut = |at, run| (Start(Offset(at)), RunId(run));
        let asked = [cut(5, 1), cut(5, 2), cut(6, 1), cut(3, 3)];
        let wanted = |withdrawn: &[_]| {
            let cuts = wanted_cuts(asked, &withdrawn.iter().copied().collect(), Mark(Offset(4)));
            Vec::from_iter(cuts.into_iter().map(|start| start.0.0))
        };
        assert_eq!(wanted(&[]), [5, 6], "below the mark nobody waits");
        assert_eq!(wanted(&[cut(5, 1)]), [5, 6]);
        assert_eq!(wanted(&[cut(5, 1), cut(5, 2)]), [6]);
    }

    #[test]
    fn a_cut_waits_for_the_speed_layer_unless_it_is_behind() {
        let mark = Mark(Offset(5));
        let state = |rows: &[(u64, u64)], log_start| {
            let mut progress = SpeedProgress::default();
            rows.iter()
                .for_each(|(start, next)| progress.record(Start(Offset(*start)), Offset(*next)));
            cut_state(
                mark,
                CUT_SETTLES,
                &progress,
                progress.highest_next(),
                Offset(log_start),
                chunk(),
            )
        };
        assert_eq!(
            state(&[], 0),
            CutState::Ready,
            "a speed layer that never ran goes on from the mark"
        );
        assert_eq!(state(&[(0, 5)], 0), CutState::Ready, "and so does one that is behind");
        assert_eq!(state(&[(0, 7)], 0), CutState::Waiting);
        assert_eq!(state(&[(0, 7), (5, 6)], 0), CutState::Waiting);
        assert_eq!(state(&[(0, 7), (5, 7)], 0), CutState::Ready);
        assert_eq!(state(&[(0, 8), (8, 12), (5, 8)], 0), CutState::Ready);
        assert_eq!(
            state(&[(0, 7)], 6),
            CutState::Lost,
            "what the cut needs has left the log"
        );
    }
}
