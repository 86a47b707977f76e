//! How far each layer has come, from what the speed layer's workers say each second and from the publication.

use std::collections::BTreeMap;

use serde::Serialize;
use shared_connections::store::{Facts, FreshnessOfPartition, PartitionState, Published};
use shared_schemas::handoff::{ChunkSize, OffsetSet, Partition, TopicId};
use shared_schemas::view::View;

use crate::answer::rfc3339_millis;
use crate::coverage;

/// So many gaps of a partition are listed; all are counted.
const LISTED: usize = 100;

/// How far each layer has come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Freshness {
    /// The batch layer.
    pub batch: BatchFreshness,
    /// The speed layer.
    pub speed: SpeedFreshness,
}

/// How far the batch layer has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BatchFreshness {
    /// When the batch result that answers was published; null before the first. What came later is the speed layer's.
    pub up_to: Option<String>,
}

/// How far the speed layer has come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeedFreshness {
    /// All that Kafka had then is counted; null where that is not known of every partition.
    pub up_to: Option<String>,
    /// How many offsets are still to be read, of those that a worker knows of.
    pub lag_events: Option<u64>,
    /// How long ago `up_to` is.
    pub lag_seconds: Option<f64>,
    /// The lowest of the partitions' watermarks, those that are idle left out: what comes later with an earlier event time
    /// is late. Null where one is not known.
    pub watermark: Option<String>,
    /// By partition.
    pub partitions: BTreeMap<String, PartitionFreshness>,
}

/// How far the speed layer has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionFreshness {
    /// What becomes of its records: `live`, `behind`, `idle` or `stuck`.
    pub state: &'static str,
    /// Why it is stuck, or has to wait; absent where neither is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Up to which offset it has counted.
    pub next: u64,
    /// The highest event time seen less the dataset's lateness.
    pub watermark: Option<String>,
    /// How many offsets from the mark on the speed layer lacks, because Kafka no longer had them.
    pub gap_offsets: u64,
    /// Which: from, and up to; the first hundred ranges. Absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<[u64; 2]>,
}

/// What becomes of a partition's records at `now`, in milliseconds since 1970.
pub(crate) fn state(facts: &Facts, row: &FreshnessOfPartition, now: i64) -> PartitionState {
    row.standing(facts.truncations.get(&row.partition), now).0
}

impl Freshness {
    /// At `now`, in milliseconds since 1970.
    pub fn of(view: &View, facts: &Facts, rows: &[FreshnessOfPartition], now: i64) -> Self {
        // A checked view's chunk is a power of two.
        let chunk = ChunkSize::new(view.chunk).ok();
        let topic = topic(rows);
        let watermark = coverage::watermark(facts, rows, now);
        let rows: Vec<_> = rows.iter().filter(|row| Some(row.partition.topic) == topic).collect();
        let ups = rows.iter().map(|row| up_to(row));
        // One partition of which nothing is known leaves nothing known of all.
        let up_to = ups.reduce(|lowest, next| lowest.min(next)).flatten();
        let lag = |row: &&FreshnessOfPartition| row.log_end.0.saturating_sub(row.next.0);
        let partition = |row: &&FreshnessOfPartition| {
            let (state, reason) = row.standing(facts.truncations.get(&row.partition), now);
            let progress = facts.progress(row.partition);
            let lost = chunk.map(|chunk| progress.gaps_from(facts.mark(row.partition), chunk));
            let lost = lost.unwrap_or_default();
            let freshness = PartitionFreshness {
                state: state.name(),
                reason,
                next: row.next.0,
                watermark: row.watermark.and_then(crate::answer::rfc3339_micros),
                gap_offsets: lost.ranges().iter().map(|gap| gap.to.0 - gap.from.0).sum(),
                gaps: listed(&lost),
            };
            (row.partition.number.to_string(), freshness)
        };
        Self {
            batch: BatchFreshness {
                up_to: facts
                    .newest()
                    .and_then(|newest| rfc3339_millis(content_at(facts, newest))),
            },
            speed: SpeedFreshness {
                up_to: up_to.and_then(rfc3339_millis),
                lag_events: (!rows.is_empty()).then(|| rows.iter().map(lag).sum()),
                lag_seconds: up_to.map(|up_to| seconds(now.saturating_sub(up_to).max(0))),
                watermark: watermark.and_then(crate::answer::rfc3339_micros),
                partitions: rows.iter().map(partition).collect(),
            },
        }
    }

    /// What a person should know, in sentences; nothing where all is well.
    pub fn complaints(&self, view: &str) -> Vec<String> {
        let with_reasons = self.speed.partitions.iter().filter_map(|(number, partition)| {
            let (state, reason) = (partition.state, partition.reason.as_ref()?);
            Some(format!(
                "view {view}: the speed layer is {state} on partition {number}: {reason}"
            ))
        });
        with_reasons.collect()
    }
}

/// The first ranges.
fn listed(gaps: &OffsetSet) -> Vec<[u64; 2]> {
    let ranges = gaps.ranges().iter().take(LISTED);
    ranges.map(|gap| [gap.from.0, gap.to.0]).collect()
}

/// The incarnation of the topic that workers spoke of last. Rows of an earlier one stay, and say nothing.
pub fn topic(rows: &[FreshnessOfPartition]) -> Option<TopicId> {
    rows.iter().max_by_key(|row| row.seen).map(|row| row.partition.topic)
}

/// How a partition is called in answers: its number, or, in an incarnation of the topic that is not the latest, with that.
pub fn partition_name(partition: Partition, topic: Option<TopicId>) -> String {
    if topic.is_none_or(|topic| topic == partition.topic) {
        partition.number.to_string()
    } else {
        format!("{:032x}/{}", partition.topic.0, partition.number)
    }
}

/// Whether the worker had nothing left to read when it spoke, and would know of more by now.
pub fn is_at_end(row: &FreshnessOfPartition, state: PartitionState) -> bool {
    row.next >= row.log_end && state != PartitionState::Stuck
}

/// All that Kafka had at that moment is counted, in milliseconds since 1970. A worker that went silent at the end of the
/// log had counted all until then; one that said itself that it was stuck does not know where the log ends.
fn up_to(row: &FreshnessOfPartition) -> Option<i64> {
    if is_at_end(row, row.state) {
        Some(row.seen)
    } else {
        row.kafka_time
    }
}

/// When the content was published that a publication carries: its own, or an older one's after a rollback.
fn content_at(facts: &Facts, newest: &Published) -> i64 {
    facts
        .publications
        .iter()
        .filter(|published| published.publication.number == newest.publication.content)
        .max_by_key(|published| published.publication.key())
        .map_or(newest.at, |published| published.at)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of a lag are far fewer than 2^52"
)]
fn seconds(millis: i64) -> f64 {
    millis as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
