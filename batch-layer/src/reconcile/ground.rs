//! What is compared: facts and an archive version that belong together, and what both layers hold of each partition.

use std::collections::BTreeMap;

use shared_connections::store::Facts;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetSet, Partition, Start};
use shared_schemas::store::cells::Among;

use super::classes::Places;
use super::comparable::Comparable;
use crate::archive::Pinned;
use crate::recompute::below;

/// What is compared: facts, an archive version, and what both hold of each partition.
pub(super) struct Ground {
    pub(super) facts: Facts,
    pub(super) pinned: Pinned,
    pub(super) partitions: BTreeMap<Partition, Comparable>,
}

impl Ground {
    /// Each partition's mark, and the first start that is not compared.
    pub(super) fn starts(&self) -> BTreeMap<Partition, (Mark, Start)> {
        let starts = self.partitions.iter();
        starts
            .map(|(partition, found)| (*partition, (found.mark, found.upto)))
            .collect()
    }

    pub(super) fn marks(&self) -> BTreeMap<Partition, Mark> {
        self.partitions
            .iter()
            .map(|(partition, found)| (*partition, found.mark))
            .collect()
    }

    /// The first offset of each partition that the speed layer answers for.
    pub(super) fn from(&self) -> BTreeMap<Partition, Offset> {
        let marks = self.marks().into_iter();
        marks.map(|(partition, mark)| (partition, mark.0)).collect()
    }

    /// What either layer recorded of a log that ended below what it had read.
    pub(super) fn cut_off(&self, partition: Partition) -> Option<(u64, u64)> {
        let of_speed = self.facts.truncations.get(&partition);
        let of_archive = self.pinned.truncated.get(&partition);
        let of_archive = of_archive.map(|range| (range.from.0, range.to.0));
        of_speed
            .map(|truncation| (truncation.end.0, truncation.next.0))
            .or(of_archive)
    }

    /// How many offsets below the marks were in files that were put aside: so many events may be in batch rows alone.
    pub(super) fn put_aside(&self) -> u64 {
        let of_partition = |(partition, found): (&Partition, &Comparable)| {
            let below = self
                .pinned
                .accepted
                .get(partition)?
                .within(Offset::default(), found.mark.0);
            Some(
                below
                    .ranges()
                    .iter()
                    .map(|range| range.to.0 - range.from.0)
                    .sum::<u64>(),
            )
        };
        self.partitions.iter().filter_map(of_partition).sum()
    }

    /// Whether progress leads from each mark as far as any start has come.
    pub(super) fn has_no_hole(&self, chunk: ChunkSize) -> bool {
        self.partitions.iter().all(|(partition, found)| {
            let progress = self.facts.progress(*partition);
            progress.highest_next() <= Some(progress.coverage(found.mark, chunk).covered)
        })
    }

    /// The offsets that the compared speed rows count.
    pub(super) fn of_speed(&self, chunk: ChunkSize) -> BTreeMap<Partition, OffsetSet> {
        let counted = self.partitions.iter().map(|(partition, found)| {
            let gaps = self.facts.progress(*partition).gaps_from(found.mark, chunk);
            (*partition, found.of_speed(&gaps))
        });
        counted.collect()
    }

    /// Which offsets are compared, and whose they are.
    pub(super) fn places(&self, chunk: ChunkSize) -> Places {
        let mut gaps = BTreeMap::new();
        for (partition, found) in &self.partitions {
            let of_speed = self.facts.progress(*partition).gaps_from(found.mark, chunk);
            gaps.insert(*partition, of_speed.within(found.mark.0, found.end));
        }
        Places {
            batch: below(&self.marks()),
            speed: self.of_speed(chunk),
            gaps,
        }
    }

    /// The offsets that the compared speed rows of some starts count.
    pub(super) fn of_starts(&self, chunk: ChunkSize, among: Among<'_>) -> BTreeMap<Partition, OffsetSet> {
        let mut counted = self.of_speed(chunk);
        for (partition, found) in &self.partitions {
            let Some(all) = counted.get_mut(partition) else {
                continue;
            };
            let mut of_starts = OffsetSet::default();
            for start in found.starts(chunk).filter(|start| among.counts(*partition, *start)) {
                of_starts.extend(&all.within(start.0, chunk.end(start.0)));
            }
            *all = of_starts;
        }
        counted
    }
}
