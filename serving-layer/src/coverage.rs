//! What of the events an answer holds, per bucket.
//!
//! Three things can be missing. Offsets that neither layer has any more: then no bucket can be called whole, since
//! nobody knows their event times. Offsets that are skipped for now: the rows that count have come less far than others.
//! And events that have not come yet: a bucket is open until every partition's watermark has passed it: its highest
//! event time less the lateness that the dataset expects. A late event can still fall into any bucket; the answer is then another, and was right before.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shared_connections::store::{Facts, FreshnessOfPartition, PartitionState};
use shared_schemas::handoff::{ChunkSize, Offset, OffsetSet, Partition};
use shared_schemas::store::Layers;

use crate::freshness;
use crate::query::held_from;
use crate::request::Range;

const MICROS: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS;

/// How much of a bucket's events its row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// All that were counted anywhere, and no later ones are expected.
    Complete,
    /// Not all; the reason says why.
    Partial,
    /// Events are lost for good, perhaps some of this bucket.
    Gap,
}

/// Why a bucket is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Offsets that the log no longer had when a layer came to read them.
    Lost,
    /// One layer alone was asked for.
    Layers,
    /// The bucket lies before what the view still holds, or begins there.
    Dropped,
    /// The range cuts the bucket.
    Range,
    /// Offsets are skipped that the speed layer is to fill in.
    Behind,
    /// Not every partition's watermark has passed the bucket.
    Open,
}

/// What an answer holds, of all buckets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Offsets that no layer holds, by partition.
    pub gaps: BTreeMap<Partition, OffsetSet>,
    /// Rows that count have come less far than others.
    pub behind: bool,
    /// The view's watermark: no earlier event is expected of any partition, in microseconds since 1970; `None`: unknown.
    pub watermark: Option<i64>,
    /// The first moment that the view holds, in seconds since 1970; `None`: it holds all.
    pub held_from: Option<i64>,
    layers: Layers,
}

impl Coverage {
    /// From the facts and freshness that were read before the rows, and the gaps that were read after them. `now` is in
    /// milliseconds since 1970.
    pub fn of(facts: &Facts, freshness: &[FreshnessOfPartition], chunk: ChunkSize, layers: Layers, now: i64) -> Self {
        let mut gaps: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
        if layers != Layers::Speed
            && let Some(newest) = facts.newest()
        {
            gaps.clone_from(&newest.publication.gaps);
        }
        let mut behind = false;
        if layers != Layers::Batch {
            for (partition, once) in counted_once(facts) {
                let coverage = facts.progress(partition).coverage(facts.mark(partition), chunk);
                behind |= once > coverage.covered;
                gaps.entry(partition).or_default().extend(&coverage.gaps);
            }
            // A worker that catches up knows of events that it has not counted.
            let topic = freshness::topic(freshness);
            let of_topic = freshness.iter().filter(|row| Some(row.partition.topic) == topic);
            let is_known = |state| matches!(state, PartitionState::Behind | PartitionState::Stuck);
            let mut held_up = of_topic.filter(|row| is_known(freshness::state(facts, row, now)));
            behind |= held_up.any(|row| row.next < row.log_end);
            // A gap is durable before any row that lacks its offsets: what was read lacks nothing else.
            for (partition, progress) in &facts.progress {
                let later = progress.gaps_from(facts.mark(*partition), chunk);
                gaps.entry(*partition).or_default().extend(&later);
            }
        }
        gaps.retain(|_, gaps| !gaps.is_empty());
        Self {
            gaps,
            behind,
            watermark: watermark(facts, freshness, now),
            held_from: held_from(facts),
            layers,
        }
    }

    /// Of the bucket from `start` to `end`, in seconds since 1970.
    pub fn bucket(&self, range: &Range, start: i64, end: i64) -> (Extent, Option<Reason>) {
        let reason = if !self.gaps.is_empty() {
            Reason::Lost
        } else if self.layers != Layers::Merged {
            Reason::Layers
        } else if self.held_from.is_some_and(|held| start < held) {
            Reason::Dropped
        } else if start < range.from || end > range.to {
            Reason::Range
        } else if self.behind {
            Reason::Behind
        } else if self
            .watermark
            .is_none_or(|watermark| end.saturating_mul(MICROS) > watermark.min(range.now.saturating_mul(1_000)))
        {
            Reason::Open
        } else {
            return (Extent::Complete, None);
        };
        let extent = if reason == Reason::Lost {
            Extent::Gap
        } else {
            Extent::Partial
        };
        (extent, Some(reason))
    }
}

/// Up to which offset some row has ever counted each partition: a start of the speed layer, or a publication that was
/// rolled back, whose offsets the speed layer is to read again.
fn counted_once(facts: &Facts) -> BTreeMap<Partition, Offset> {
    let nexts = facts
        .progress
        .iter()
        .map(|(partition, progress)| (*partition, progress.highest_next().unwrap_or_default()));
    let published = facts
        .publications
        .iter()
        .flat_map(|published| &published.publication.marks);
    let mut once: BTreeMap<Partition, Offset> = BTreeMap::new();
    for (partition, offset) in nexts.chain(published.map(|(partition, mark)| (*partition, mark.0))) {
        let held = once.entry(partition).or_default();
        *held = offset.max(*held);
    }
    once
}

/// The view's watermark: the lowest of its partitions', each the highest event time seen there less the lateness.
///
/// A partition with nothing left to read holds no other back when it is idle, or when its worker has counted nothing yet. Where batch has passed the speed layer's
/// worker, or there is none, what is known is that some event of the partition's last published day was counted.
pub(crate) fn watermark(facts: &Facts, freshness: &[FreshnessOfPartition], now: i64) -> Option<i64> {
    let newest = facts.newest().map(|published| &published.publication);
    let last_days = facts.newest().map(|published| &published.origin.last_days);
    let published = |partition| {
        let day = last_days.and_then(|days| days.get(&partition))?;
        Some(i64::from(day.0) * MICROS_PER_DAY)
    };

    let topic = freshness::topic(freshness);
    let partitions: BTreeSet<Partition> = freshness
        .iter()
        .map(|row| row.partition)
        .chain(
            newest
                .into_iter()
                .flat_map(|publication| publication.marks.keys().copied()),
        )
        .chain(facts.progress.keys().copied())
        .filter(|partition| topic.is_none_or(|topic| partition.topic == topic))
        .collect();
    let mut idle = None;
    let mut held: Option<Option<i64>> = None;
    for partition in partitions {
        let row = freshness.iter().find(|row| row.partition == partition);
        let next = row
            .map(|row| row.next)
            .max(facts.progress(partition).highest_next())
            .unwrap_or_default();
        let own = row.and_then(|row| row.watermark);
        let counted = if next <= facts.mark(partition).0 && facts.mark(partition).0 > Offset::default() {
            own.max(published(partition))
        } else {
            own
        };
        let is_idle = row.is_some_and(|row| {
            let state = freshness::state(facts, row, now);
            freshness::is_at_end(row, state) && (state == PartitionState::Idle || own.is_none())
        });
        if is_idle {
            idle = idle.max(counted);
        } else {
            // `None` is less than any: of this partition nothing is known.
            held = Some(held.map_or(counted, |lowest| lowest.min(counted)));
        }
    }
    held.unwrap_or(idle)
}

#[cfg(test)]
mod tests;
