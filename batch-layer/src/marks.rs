//! The marks of a run: read what the archive and the speed layer have, ask where the marks may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared_connections::store::Facts;
use shared_schemas::handoff::{
    ChunkSize, Mark, MarkChoice, Offset, OffsetRange, OffsetSet, Partition, choose_mark, mark_limit,
};

use crate::archive::Pinned;
use crate::error::RunError;

/// The marks that a run goes for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The parent's.
    pub(crate) parent: BTreeMap<Partition, Mark>,
    /// What may be published as it is, per partition: a chunk's first offset, or the parent's again.
    settled: BTreeMap<Partition, Mark>,
    /// Inside a chunk: what may be published once the speed layer has caught up there.
    cuts: BTreeMap<Partition, Mark>,
    /// Where a mark could go further but for what the archive lacks.
    held: BTreeMap<Partition, Held>,
}

/// What keeps a mark from going further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// What the archive lacks, and neither the speed layer nor by a person's word.
    gap: OffsetRange,
    /// Whether the speed layer has come to it, and counted what is lacking: then nothing but a person's word helps.
    for_good: bool,
}

impl Marks {
    /// The mark of each partition, the cuts among them.
    pub(crate) fn all(&self) -> BTreeMap<Partition, Mark> {
        let mut all = self.settled.clone();
        all.extend(&self.cuts);
        all
    }

    /// Those that lie inside a chunk and are new.
    pub(crate) fn cuts(&self) -> &BTreeMap<Partition, Mark> {
        &self.cuts
    }

    /// Whether any lies above the parent's.
    pub(crate) fn move_on(&self) -> bool {
        let before = |partition| self.parent.get(partition).copied().unwrap_or_default();
        self.all().iter().any(|(partition, mark)| *mark > before(partition))
    }

    /// Goes nowhere: the parent's marks are kept.
    pub(crate) fn stay(&mut self) {
        self.settled.clone_from(&self.parent);
        self.cuts.clear();
        self.held.clear();
    }

    /// What keeps marks from going further, in words.
    pub(crate) fn held_back(&self, dataset: &str) -> Option<String> {
        let sentences: Vec<_> = self
            .held
            .iter()
            .map(|(partition, held)| held.says(dataset, *partition))
            .collect();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }

    /// The same of marks that go no further until a person has decided.
    pub(crate) fn held_for_good(&self, dataset: &str) -> Option<String> {
        let mut for_good = self.clone();
        for_good.held.retain(|_, held| held.for_good);
        for_good.held_back(dataset)
    }

    /// Gives up the cuts of these partitions: their marks are then the settled ones.
    pub(crate) fn fall_back(&mut self, partitions: &BTreeSet<Partition>) {
        self.cuts.retain(|partition, _| !partitions.contains(partition));
    }
}

impl Held {
    fn says(self, dataset: &str, partition: Partition) -> String {
        let (number, OffsetRange { from, to }) = (partition.number, self.gap);
        let command = format!("`highwater archive accept-gap {dataset} {number} {from}..{to}`");
        let lacks = format!("of partition {number} the archive lacks offsets {from}..{to}");
        if self.for_good {
            format!(
                "{lacks}, which the speed layer has: no mark passes them until {command} takes them out of the answers"
            )
        } else {
            format!(
                "{lacks}, and the speed layer has not come there: no mark passes them until it has, or {command} lets it"
            )
        }
    }
}

/// Chooses them for one view. `to_end`: up to the archive's end, however little that is beyond a chunk's boundary.
///
/// # Errors
/// An archive that holds less than was published from it, or that can't be read.
pub(crate) async fn choose(pinned: &Pinned, facts: &Facts, chunk: ChunkSize, to_end: bool) -> Result<Marks, RunError> {
    let parent = facts.newest().map(|newest| &newest.publication);
    let mut marks = Marks {
        parent: parent.map(|parent| parent.marks.clone()).unwrap_or_default(),
        ..Marks::default()
    };
    let nothing = OffsetSet::default();
    let partitions: BTreeSet<Partition> = pinned.ends.keys().chain(marks.parent.keys()).copied().collect();
    for partition in partitions {
        let before = facts.mark(partition);
        let end = pinned.ends.get(&partition).copied().unwrap_or_default();
        let lacks = pinned.gaps.get(&partition).unwrap_or(&nothing);
        let published = parent
            .and_then(|parent| parent.gaps.get(&partition))
            .unwrap_or(&nothing);
        let coverage = facts.progress(partition).coverage(before, chunk);
        let mut excused = coverage.gaps;
        if let Some(accepted) = pinned.accepted.get(&partition) {
            excused.extend(accepted);
        }
        let limit = mark_limit(end, before, lacks, published, &excused)
            .map_err(|source| RunError::Behind { partition, source })?;
        if limit < end {
            let held = Held {
                gap: gap_at(lacks, &excused, limit),
                for_good: coverage.covered > limit,
            };
            marks.held.insert(partition, held);
        }
        let boundary = chunk.first(limit).0.max(before.0);
        let times = if limit > boundary {
            pinned.kafka_times(partition, boundary).await?
        } else {
            None
        };
        let left_above = times.map(|(first, last)| {
            if to_end {
                Duration::MAX
            } else {
                Duration::from_millis(last.abs_diff(first))
            }
        });
        match choose_mark(limit, before, chunk, left_above.unwrap_or_default()) {
            MarkChoice::Settled(mark) => {
                marks.settled.insert(partition, mark);
            }
            MarkChoice::Cut { mark, fallback } => {
                marks.settled.insert(partition, fallback);
                marks.cuts.insert(partition, mark);
            }
        }
    }
    Ok(marks)
}

/// What the archive lacks from that offset on, and nobody excused.
fn gap_at(lacks: &OffsetSet, excused: &OffsetSet, from: Offset) -> OffsetRange {
    let to = lacks.without(excused).reach(from);
    OffsetRange { from, to }
}
