//! What makes a batch result visible: an immutable row that stands on its own.
//!
//! A publication carries its marks and, for every event day, the run that holds it, so a reader needs no other. Rows
//! are only ever added. Two runs may add the same number; then the higher run id is the newest, for every reader
//! alike, and the other run finds out when it reads back.

use std::collections::{BTreeMap, BTreeSet};

use super::days::EventDay;
use super::floor::Floor;
use super::marks::CutState;
use super::offset::{Mark, Offset, OffsetSet, Partition};

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
    /// The publication of a run that recomputed `dirty` days up to `marks` from an archive with `gaps`: those days are
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

/// Whether a publication may go out. `cuts` are the states of the cuts among its marks, `waited` says that the run
/// has waited for them as long as it may.
pub fn may_publish(
    publication: &Publication,
    newest: Option<&Publication>,
    floor: &Floor,
    cuts: impl IntoIterator<Item = CutState>,
    waited: bool,
) -> Verdict {
    if newest.map(Publication::key) != publication.parent || !floor.admits(publication) {
        return Verdict::StartOver;
    }
    cuts.into_iter()
        .fold(Verdict::Publish, |verdict, cut| match (verdict, cut) {
            (Verdict::FallBack, _) | (_, CutState::Lost) => Verdict::FallBack,
            (_, CutState::Waiting) if waited => Verdict::FallBack,
            (_, CutState::Waiting) => Verdict::Wait,
            (verdict, CutState::Ready) => verdict,
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

    use super::super::offset::TopicId;
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
        let first = run(None, 1, 4, &[0]);
        let second = run(Some(&first), 2, 8, &[0]);
        let verdict = |newest, cuts: &[CutState], waited| {
            may_publish(&second, newest, &Floor::default(), cuts.iter().copied(), waited)
        };
        let (ready, waiting, lost) = (CutState::Ready, CutState::Waiting, CutState::Lost);
        assert_eq!(verdict(Some(&first), &[ready, ready], false), Verdict::Publish);
        assert_eq!(verdict(Some(&first), &[ready, waiting], false), Verdict::Wait);
        assert_eq!(verdict(Some(&first), &[waiting, ready], true), Verdict::FallBack);
        assert_eq!(verdict(Some(&first), &[lost, waiting], false), Verdict::FallBack);
        assert_eq!(
            verdict(Some(&second), &[ready], false),
            Verdict::StartOver,
            "another one was faster"
        );
        assert_eq!(verdict(None, &[], false), Verdict::StartOver);
        let risen = Floor {
            number: PublicationNumber(3),
            ..Floor::default()
        };
        assert_eq!(
            may_publish(&second, Some(&first), &risen, [], false),
            Verdict::StartOver
        );
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
