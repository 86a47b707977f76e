//! What makes a batch result visible: an immutable row that stands on its own.
//!
//! A publication carries its marks and, for every event day, the run that holds it, so a reader needs no other. Rows
//! are only ever added. Two runs may add the same number; then the higher run id is the newest, for every reader
//! alike, and the other run finds out when it reads back.

use std::collections::{BTreeMap, BTreeSet};

use super::days::EventDay;
use super::floor::Floor;
use super::marks::CutState;
use super::offset::{ChunkSize, Mark, Offset, OffsetSet, Partition};

/// A publication's place in the line, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PublicationNumber(pub u64);

impl PublicationNumber {
    /// The number of a publication made on top of this one.
    pub const fn child(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One try at a batch run. Every try has a fresh one, also when a run starts over: rows of another try are never
/// under the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u128);

/// One immutable row that makes a batch result of one view visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publication {
    /// One more than the parent's.
    pub number: PublicationNumber,
    /// Who made it; decides between equal numbers.
    pub run: RunId,
    /// What was the newest when it was made.
    pub parent: Option<(PublicationNumber, RunId)>,
    /// The number whose content it carries: its own, or an older one's after a rollback.
    pub content: PublicationNumber,
    /// Below which offset batch answers, per partition. A partition that is absent has mark 0.
    pub marks: BTreeMap<Partition, Mark>,
    /// What the archive lacked below the marks, per partition; answers say `gap`.
    pub gaps: BTreeMap<Partition, OffsetSet>,
    /// The run that holds each event day.
    pub days: BTreeMap<EventDay, RunId>,
}

impl Publication {
    /// The publication of a run that recomputed `dirty` days up to `marks` (the parent's where it has none) from an archive with `gaps`: those days are
    /// its own, clean ones its parent's.
    pub fn of_run(
        parent: Option<&Self>,
        run: RunId,
        marks: BTreeMap<Partition, Mark>,
        gaps: &BTreeMap<Partition, OffsetSet>,
        dirty: &BTreeSet<EventDay>,
    ) -> Self {
        let number = following(parent);
        let mut days = parent.map(|parent| parent.days.clone()).unwrap_or_default();
        days.extend(dirty.iter().map(|day| (*day, run)));
        // A partition that the run did not look at, such as one of a topic that was made again, keeps its mark.
        let mut all = parent.map(|parent| parent.marks.clone()).unwrap_or_default();
        all.extend(marks);
        let marks = all;
        let below = |(partition, mark): (&Partition, &Mark)| {
            let of_parent = parent.and_then(|parent| parent.gaps.get(partition));
            let mut below = gaps
                .get(partition)
                .map(|gaps| gaps.within(Offset::default(), mark.0))
                .unwrap_or_default();
            of_parent.into_iter().for_each(|gaps| below.extend(gaps));
            (!below.is_empty()).then_some((*partition, below))
        };
        let gaps = marks.iter().filter_map(below).collect();
        Self {
            number,
            run,
            parent: parent.map(Self::key),
            content: number,
            marks,
            gaps,
            days,
        }
    }

    /// A publication that brings back the content of an older one.
    pub fn rollback(newest: &Self, to: &Self, run: RunId) -> Self {
        Self {
            number: newest.number.child(),
            run,
            parent: Some(newest.key()),
            content: to.content,
            marks: to.marks.clone(),
            gaps: to.gaps.clone(),
            days: to.days.clone(),
        }
    }

    /// The same without the event days before a view's horizon: nobody answers them, and no run is kept for their sake.
    #[must_use]
    pub fn kept_from(mut self, horizon: Option<EventDay>) -> Self {
        self.days.retain(|day, _| horizon.is_none_or(|horizon| *day >= horizon));
        self
    }

    /// What orders publications: the number, then the run id.
    pub fn key(&self) -> (PublicationNumber, RunId) {
        (self.number, self.run)
    }

    /// The mark of a partition; 0 where it has none.
    pub fn mark(&self, partition: Partition) -> Mark {
        self.marks.get(&partition).copied().unwrap_or_default()
    }
}

/// The number that a publication on top of `parent` has.
pub fn following(parent: Option<&Publication>) -> PublicationNumber {
    parent.map(|parent| parent.number).unwrap_or_default().child()
}

/// The publication that answers: the highest by number, then run id, of those that the floor admits.
pub fn newest<'a>(publications: impl IntoIterator<Item = &'a Publication>, floor: &Floor) -> Option<&'a Publication> {
    publications
        .into_iter()
        .filter(|publication| floor.admits(publication))
        .max_by_key(|publication| publication.key())
}

/// What a run does that has computed its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Insert the publication.
    Publish,
    /// A cut has not caught up yet.
    Wait,
    /// A cut never will, or not in time: withdraw it and compute up to the fallback marks, under a fresh run id.
    FallBack,
    /// The parent is no longer what answers, or the floor has passed it: withdraw the cuts and begin anew.
    StartOver,
}

/// Whether a run's publication may go out. `cuts` are the states of the cuts among its marks: a new mark inside a
/// chunk of which nothing is known is waited for. `waited` says that the run has waited as long as it may.
pub fn may_publish(
    publication: &Publication,
    newest: Option<&Publication>,
    floor: &Floor,
    chunk: ChunkSize,
    cuts: &BTreeMap<Partition, CutState>,
    waited: bool,
) -> Verdict {
    if newest.map(Publication::key) != publication.parent || !floor.admits(publication) {
        return Verdict::StartOver;
    }
    let published = |partition| newest.map(|newest| newest.mark(partition)).unwrap_or_default();
    if newest.is_some_and(|newest| {
        newest
            .marks
            .iter()
            .any(|(partition, mark)| publication.mark(*partition) < *mark)
    }) {
        return Verdict::StartOver;
    }
    let inside = |(partition, mark): &(&Partition, &Mark)| !chunk.is_first(mark.0) && **mark != published(**partition);
    let states = publication
        .marks
        .iter()
        .filter(inside)
        .map(|(partition, _)| cuts.get(partition));
    states.fold(Verdict::Publish, |verdict, cut| match (verdict, cut) {
        (Verdict::FallBack, _) | (_, Some(CutState::Lost)) => Verdict::FallBack,
        (verdict, Some(CutState::Ready)) => verdict,
        (_, Some(CutState::Waiting) | None) if waited => Verdict::FallBack,
        (_, Some(CutState::Waiting) | None) => Verdict::Wait,
    })
}

/// How a run's publication stands when the run reads back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It answers now.
    Newest,
    /// Another one was built on top of it: it answered, and lives on in that one.
    Succeeded,
    /// It never answers, or no longer does: the run says so and starts over.
    Beaten,
}

impl Standing {
    /// How `mine` stands among `publications`.
    pub fn of(mine: &Publication, publications: &[Publication], floor: &Floor) -> Self {
        let Some(newest) = newest(publications, floor) else {
            return Self::Beaten;
        };
        let mut at = newest;
        loop {
            if at.key() == mine.key() {
                return if at.key() == newest.key() {
                    Self::Newest
                } else {
                    Self::Succeeded
                };
            }
            let parent = at
                .parent
                .and_then(|key| publications.iter().find(|other| other.key() == key));
            match parent {
                Some(parent) if parent.number < at.number => at = parent,
                _ => return Self::Beaten,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::offset::{OffsetRange, TopicId};
    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(1),
        number: 0,
    };

    fn run(parent: Option<&Publication>, id: u128, mark: u64, dirty: &[i32]) -> Publication {
        let dirty = dirty.iter().map(|day| EventDay(*day)).collect();
        Publication::of_run(
            parent,
            RunId(id),
            BTreeMap::from([(PARTITION, Mark(Offset(mark)))]),
            &BTreeMap::new(),
            &dirty,
        )
    }

    #[test]
    fn clean_days_are_the_parents() {
        let first = run(None, 1, 4, &[0, 1]);
        let second = run(Some(&first), 2, 8, &[1, 2]);
        assert_eq!(second.number, PublicationNumber(2));
        let days: Vec<_> = second.days.iter().map(|(day, run)| (day.0, run.0)).collect();
        assert_eq!(days, [(0, 1), (1, 2), (2, 2)]);
    }

    #[test]
    fn of_equal_numbers_the_higher_run_answers_and_the_other_finds_out() {
        let first = run(None, 1, 4, &[0]);
        let (low, high) = (run(Some(&first), 2, 8, &[0]), run(Some(&first), 3, 6, &[0]));
        let all = [high.clone(), first.clone(), low.clone()];
        let floor = Floor::default();
        assert_eq!(newest(&all, &floor), Some(&high));
        assert_eq!(Standing::of(&high, &all, &floor), Standing::Newest);
        assert_eq!(Standing::of(&low, &all, &floor), Standing::Beaten);
        assert_eq!(Standing::of(&first, &all, &floor), Standing::Succeeded);
    }

    #[test]
    fn a_rollback_is_a_new_row_with_old_content() {
        let first = run(None, 1, 4, &[0]);
        let second = run(Some(&first), 2, 8, &[0, 1]);
        let back = Publication::rollback(&second, &first, RunId(3));
        assert_eq!(
            (back.number, back.content),
            (PublicationNumber(3), PublicationNumber(1))
        );
        assert_eq!((&back.marks, &back.days), (&first.marks, &first.days));
        let again = Publication::rollback(&back, &second, RunId(4));
        assert_eq!(
            (again.number, again.content, &again.days),
            (PublicationNumber(4), second.content, &second.days)
        );
    }

    #[test]
    fn a_publication_goes_out_on_the_newest_with_ready_cuts() {
        let second_partition = Partition { number: 1, ..PARTITION };
        let chunk = ChunkSize::new(4).unwrap();
        let first = run(None, 1, 4, &[0]);
        let marks = BTreeMap::from([(PARTITION, Mark(Offset(7))), (second_partition, Mark(Offset(5)))]);
        let second = Publication::of_run(Some(&first), RunId(2), marks, &BTreeMap::new(), &BTreeSet::new());
        let floor = Floor::default();
        let verdict = |newest, cuts: [Option<CutState>; 2], waited| {
            let cuts = [PARTITION, second_partition].into_iter().zip(cuts);
            let cuts = cuts.filter_map(|(partition, cut)| Some((partition, cut?))).collect();
            may_publish(&second, newest, &floor, chunk, &cuts, waited)
        };
        let (ready, waiting, lost) = (Some(CutState::Ready), Some(CutState::Waiting), Some(CutState::Lost));
        assert_eq!(verdict(Some(&first), [ready, ready], false), Verdict::Publish);
        assert_eq!(verdict(Some(&first), [ready, waiting], false), Verdict::Wait);
        assert_eq!(
            verdict(Some(&first), [ready, None], false),
            Verdict::Wait,
            "a cut of which nothing is known"
        );
        assert_eq!(verdict(Some(&first), [waiting, ready], true), Verdict::FallBack);
        assert_eq!(verdict(Some(&first), [lost, waiting], false), Verdict::FallBack);
        assert_eq!(
            verdict(Some(&second), [ready, ready], false),
            Verdict::StartOver,
            "another one was faster"
        );
        assert_eq!(verdict(None, [ready, ready], false), Verdict::StartOver);
        let publish = |publication: &Publication, newest, floor: &Floor| {
            may_publish(publication, newest, floor, chunk, &BTreeMap::new(), false)
        };
        let third = run(Some(&second), 3, 8, &[]);
        assert_eq!(
            publish(&third, Some(&second), &floor),
            Verdict::Publish,
            "the parent's cut needs no state again"
        );
        let lower = run(Some(&second), 3, 4, &[]);
        assert_eq!(
            publish(&lower, Some(&second), &floor),
            Verdict::StartOver,
            "a mark below the parent's"
        );
        let risen = Floor {
            number: PublicationNumber(4),
            ..Floor::default()
        };
        assert_eq!(publish(&third, Some(&second), &risen), Verdict::StartOver);
    }

    #[test]
    fn a_partition_that_a_run_does_not_look_at_keeps_its_mark_and_gaps() {
        let made_again = Partition {
            topic: TopicId(2),
            number: 0,
        };
        let gap = OffsetRange {
            from: Offset(1),
            to: Offset(2),
        };
        let gaps = BTreeMap::from([(PARTITION, OffsetSet::from_iter([gap]))]);
        let marks = |partition, mark| BTreeMap::from([(partition, Mark(Offset(mark)))]);
        let first = Publication::of_run(None, RunId(1), marks(PARTITION, 8), &gaps, &BTreeSet::new());
        let second = Publication::of_run(
            Some(&first),
            RunId(2),
            marks(made_again, 4),
            &BTreeMap::new(),
            &BTreeSet::new(),
        );
        assert_eq!(
            (second.mark(PARTITION), second.mark(made_again)),
            (Mark(Offset(8)), Mark(Offset(4)))
        );
        assert_eq!(second.gaps, gaps);
    }

    proptest! {
        /// Whatever the order in which rows are seen, everybody calls the same one newest, and it is never one that
        /// the floor refuses.
        #[test]
        fn everybody_sees_the_same_newest(
            rows in prop::collection::vec((0_u64..4, 0_u128..5, 0_u64..4), 1..8), number in 0_u64..4, mark in 0_u64..4, turn in 0_usize..8,
        ) {
            let mut publications: Vec<_> = rows
                .into_iter()
                .map(|(number, id, mark)| Publication { number: PublicationNumber(number), ..run(None, id, mark, &[]) })
                .collect();
            publications.dedup_by_key(|publication| publication.key());
            let floor = Floor { number: PublicationNumber(number), marks: BTreeMap::from([(PARTITION, Mark(Offset(mark)))]) };
            let seen = newest(&publications, &floor).map(Publication::key);
            let middle = turn % publications.len();
            publications.rotate_left(middle);
            prop_assert_eq!(newest(&publications, &floor).map(Publication::key), seen);
            prop_assert!(newest(&publications, &floor).is_none_or(|newest| floor.admits(newest)));
        }
    }
}
