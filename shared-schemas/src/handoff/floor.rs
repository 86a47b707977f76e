//! What may be let go, and what nobody may use from then on.
//!
//! A floor row is written before anything is deleted, and floors only rise: whoever comes late, with a publication,
//! a rollback or a statement from before, is refused instead of served from rows that are half gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::offset::{Mark, Partition, Start};
use super::publication::{Publication, PublicationNumber, RunId};

/// How long collection waits between writing a floor and deleting what lies below: longer than any statement that
/// checked the floor before may run, [`crate::store::STATEMENT_LIMIT`].
pub const COLLECT_WAITS: Duration = Duration::from_secs(600);

/// So many publications of a view stay to be looked at, those that may be restored among them: some months of nightly runs.
pub const PUBLICATIONS_LISTED: usize = 100;

/// The lowest marks, and the oldest publication, that may still be served or restored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Floor {
    /// The oldest publication, by its own number and by its content's.
    pub number: PublicationNumber,
    /// The lowest mark of each partition.
    pub marks: BTreeMap<Partition, Mark>,
}

/// What lies below a floor, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collectable {
    /// Runs whose batch rows nobody can reach.
    pub runs: BTreeSet<RunId>,
    /// Starts whose progress, then rows, nobody can reach.
    pub starts: BTreeSet<(Partition, Start)>,
}

impl Floor {
    /// The floor that several floor rows make: the maximum of each component.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.number = self.number.max(other.number);
        for (partition, mark) in &other.marks {
            let held = self.marks.entry(*partition).or_default();
            *held = (*mark).max(*held);
        }
        self
    }

    /// Whether a publication may be served, resumed from, built on or restored.
    pub fn admits(&self, publication: &Publication) -> bool {
        // A content's number is never above its publication's, so the first says nothing that the second does not.
        publication.number >= self.number
            && publication.content >= self.number
            && self
                .marks
                .iter()
                .all(|(partition, mark)| publication.mark(*partition) >= *mark)
    }

    /// The lowest mark of a partition.
    pub fn mark(&self, partition: Partition) -> Mark {
        self.marks.get(&partition).copied().unwrap_or_default()
    }

    /// The floor that leaves the newest `keep` publications (at least 2) restorable: one for each number, the one
    /// that answers for it. `None` where there are not more than that, or nothing would rise.
    pub fn keeping(&self, keep: usize, publications: &[Publication]) -> Option<Self> {
        let mut line: BTreeMap<PublicationNumber, &Publication> = BTreeMap::new();
        for publication in publications.iter().filter(|publication| self.admits(publication)) {
            let held = line.entry(publication.number).or_insert(publication);
            if publication.key() > held.key() {
                *held = publication;
            }
        }
        let kept: Vec<_> = line.into_values().rev().take(keep.max(2)).collect();
        let number = kept.iter().map(|publication| publication.content).min()?;
        let partitions: BTreeSet<_> = kept.iter().flat_map(|publication| publication.marks.keys()).collect();
        let lowest = |partition| {
            kept.iter()
                .map(|publication| publication.mark(partition))
                .min()
                .unwrap_or_default()
        };
        let marks = partitions
            .into_iter()
            .map(|partition| (*partition, lowest(*partition)))
            .collect();
        let risen = self.clone().union(&Self { number, marks });
        (risen != *self).then_some(risen)
    }

    /// The publications whose rows nobody needs: all but the newest `listed` ones, the floor's parents, and what lies from the
    /// floor on. A reader takes none of the rest, nothing restores it, and no run's rows are kept for it
    /// ([`Floor::collectable`] looks at the floor's parents too). Should one of them arrive once more, it is as if it had stayed.
    pub fn forgettable(&self, listed: usize, publications: &[Publication]) -> BTreeSet<(PublicationNumber, RunId)> {
        let keys: BTreeSet<_> = publications.iter().map(Publication::key).collect();
        let older = keys.into_iter().rev().skip(listed);
        older.filter(|(number, _)| number.child() < self.number).collect()
    }

    /// What of these runs and starts lies below the floor.
    ///
    /// A run is out of reach when what it publishes would lie below the floor (`runs` says the number of its parent,
    /// 0 for none), and no publication from the floor's *parent* on holds one of its days: something not yet seen may
    /// still be published at the floor's own number, and its clean days are its parent's.
    pub fn collectable(
        &self,
        publications: &[Publication],
        runs: impl IntoIterator<Item = (RunId, PublicationNumber)>,
        starts: impl IntoIterator<Item = (Partition, Start)>,
    ) -> Collectable {
        let held: BTreeSet<_> = publications
            .iter()
            .filter(|publication| publication.number.child() >= self.number)
            .flat_map(|publication| publication.days.values().copied())
            .collect();
        let below = |(run, parent): &(RunId, PublicationNumber)| parent.child() < self.number && !held.contains(run);
        Collectable {
            runs: runs.into_iter().filter(below).map(|(run, _)| run).collect(),
            starts: starts
                .into_iter()
                .filter(|(partition, start)| *start < self.mark(*partition).start())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::days::EventDay;
    use super::super::offset::{Offset, TopicId};
    use super::super::publication::{Standing, newest};
    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(1),
        number: 0,
    };

    /// A line of runs and rollbacks: how far the mark moves and which day is dirty, or which number comes back.
    fn line(steps: &[(u64, i32, Option<usize>)]) -> Vec<Publication> {
        let mut line: Vec<Publication> = Vec::new();
        for (id, (forward, day, back)) in (1..).zip(steps) {
            let next = match (line.last(), back) {
                (Some(newest), Some(back)) => Publication::rollback(newest, &line[back % line.len()], RunId(id)),
                (parent, _) => {
                    let mark = parent.map_or(0, |parent| parent.mark(PARTITION).0.0) + forward;
                    let marks = BTreeMap::from([(PARTITION, Mark(Offset(mark)))]);
                    Publication::of_run(
                        parent,
                        RunId(id),
                        marks,
                        &BTreeMap::new(),
                        &BTreeSet::from([EventDay(*day)]),
                    )
                }
            };
            line.push(next);
        }
        line
    }

    proptest! {
        /// The newest `keep` stay restorable, the newest stays the newest, and nothing that any admitted publication
        /// holds is let go.
        #[test]
        fn what_is_kept_stays_whole(
            steps in prop::collection::vec((0_u64..5, 0_i32..3, prop::option::weighted(0.3, 0_usize..8)), 1..8), keep in 0_usize..4,
        ) {
            let line = line(&steps);
            let old = Floor::default();
            let Some(floor) = old.keeping(keep, &line) else { return Ok(()) };
            prop_assert_eq!(newest(&line, &floor), newest(&line, &old));
            for kept in line.iter().rev().take(keep.max(2)) {
                prop_assert!(floor.admits(kept));
            }
            let runs = line.iter().map(|publication| (publication.run, PublicationNumber(publication.number.0 - 1)));
            let starts = (0..64).map(|at| (PARTITION, Start(Offset(at))));
            let gone = floor.collectable(&line, runs, starts);
            for admitted in line.iter().filter(|publication| floor.admits(publication)) {
                prop_assert!(admitted.days.values().all(|run| !gone.runs.contains(run)));
                prop_assert!(gone.starts.iter().all(|(_, start)| *start < admitted.mark(PARTITION).start()));
            }
        }

        /// Without the publications that are forgotten the same one answers, the same ones can be restored, the floor rises as
        /// far, and the same runs go; what a run made on the newest one finds when it reads back is the same too.
        #[test]
        fn what_is_forgotten_is_missed_by_nobody(
            steps in prop::collection::vec((0_u64..5, 0_i32..3, prop::option::weighted(0.3, 0_usize..8)), 1..12), keep in 0_usize..4,
            later in 0_usize..4, listed in 0_usize..6,
        ) {
            let line = line(&steps);
            let old = Floor::default();
            let Some(floor) = old.keeping(keep, &line[..line.len() - later.min(line.len() - 1)]) else { return Ok(()) };
            let gone = floor.forgettable(listed, &line);
            let left: Vec<_> = line.iter().filter(|one| !gone.contains(&one.key())).cloned().collect();
            prop_assert!(left.len() >= listed.min(line.len()));
            prop_assert!(left.len() <= listed.max(line.iter().filter(|one| one.number.child() >= floor.number).count()));
            let admitted = |all: &[Publication]| all.iter().filter(|one| floor.admits(one)).cloned().collect::<Vec<_>>();
            prop_assert_eq!(admitted(&left), admitted(&line));
            prop_assert_eq!(newest(&left, &floor), newest(&line, &floor));
            let higher = floor.keeping(keep, &line);
            prop_assert_eq!(&floor.keeping(keep, &left), &higher);
            let runs = || line.iter().map(|publication| (publication.run, PublicationNumber(publication.number.0 - 1)));
            for floor in [Some(floor.clone()), higher].into_iter().flatten() {
                prop_assert_eq!(floor.collectable(&left, runs(), []), floor.collectable(&line, runs(), []));
                for mine in line.iter().filter(|one| floor.admits(one)) {
                    prop_assert_eq!(Standing::of(mine, &left, &floor), Standing::of(mine, &line, &floor));
                }
            }
        }

        /// Floors only rise, in whatever order their rows are read.
        #[test]
        fn floors_unite(a in (0_u64..5, 0_u64..5), b in (0_u64..5, 0_u64..5)) {
            let floor = |(number, mark)| Floor {
                number: PublicationNumber(number), marks: BTreeMap::from([(PARTITION, Mark(Offset(mark)))]),
            };
            let united = floor(a).union(&floor(b));
            prop_assert_eq!(&united, &floor(b).union(&floor(a)));
            prop_assert!(united.number >= floor(a).number && united.mark(PARTITION) >= floor(b).mark(PARTITION));
        }
    }
}
