//! How far each layer has come, from what the speed layer's workers say each second and from the publication.

use std::collections::BTreeMap;

use serde::Serialize;
use shared_connections::store::{Facts, FreshnessOfPartition, Published};
use shared_schemas::handoff::{Partition, TopicId};

use crate::answer::rfc3339_millis;

/// A worker that has said nothing for so long, in milliseconds, may be gone. It speaks each second.
const SILENT: i64 = 10_000;

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
    /// By partition.
    pub partitions: BTreeMap<String, PartitionFreshness>,
}

/// How far the speed layer has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionFreshness {
    /// What its worker does there.
    pub state: State,
    /// Up to which offset it has counted.
    pub next: u64,
    /// The highest event time counted.
    pub watermark: Option<String>,
}

/// What a worker does in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It counts what comes.
    Live,
    /// It counts what came earlier.
    CatchingUp,
    /// Nothing comes.
    Idle,
    /// It cannot reach Kafka.
    KafkaAway,
    /// It reads no further until a person has looked: the log ends below what was read.
    Stopped,
    /// Nobody has spoken of the partition for a while.
    Unknown,
}

impl State {
    /// What is known at `now`, in milliseconds since 1970.
    pub fn of(row: &FreshnessOfPartition, now: i64) -> Self {
        // A moment far ahead is of a clock that was set back since: nothing newer can replace it.
        if now.saturating_sub(row.seen).abs() > SILENT {
            return Self::Unknown;
        }
        match row.state.as_str() {
            "live" => Self::Live,
            "catching_up" => Self::CatchingUp,
            "idle" => Self::Idle,
            "kafka_away" => Self::KafkaAway,
            "stopped" => Self::Stopped,
            _ => Self::Unknown,
        }
    }
}

impl Freshness {
    /// At `now`, in milliseconds since 1970.
    pub fn of(facts: &Facts, rows: &[FreshnessOfPartition], now: i64) -> Self {
        let topic = topic(rows);
        let rows: Vec<_> = rows.iter().filter(|row| Some(row.partition.topic) == topic).collect();
        let ups = rows.iter().map(|row| up_to(row, now));
        // One partition of which nothing is known leaves nothing known of all.
        let up_to = ups.reduce(|lowest, next| lowest.min(next)).flatten();
        let lag = |row: &&FreshnessOfPartition| row.log_end.0.saturating_sub(row.next.0);
        let partition = |row: &&FreshnessOfPartition| {
            let freshness = PartitionFreshness {
                state: State::of(row, now),
                next: row.next.0,
                watermark: row.watermark.and_then(crate::answer::rfc3339_micros),
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
                partitions: rows.iter().map(partition).collect(),
            },
        }
    }

    /// What a person should know, in sentences; nothing where all is well.
    pub fn complaints(&self, view: &str) -> Vec<String> {
        let troubles = [
            (State::Unknown, "is silent on"),
            (State::KafkaAway, "cannot reach Kafka for"),
            (State::Stopped, "has stopped reading"),
        ];
        let trouble = |(state, what): (State, &str)| {
            let of_state = self
                .speed
                .partitions
                .iter()
                .filter(|(_, partition)| partition.state == state);
            let numbers: Vec<_> = of_state.map(|(number, _)| number.as_str()).collect();
            (!numbers.is_empty())
                .then(|| format!("view {view}: the speed layer {what} partition {}", numbers.join(", ")))
        };
        troubles.into_iter().filter_map(trouble).collect()
    }
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
pub fn is_at_end(row: &FreshnessOfPartition, state: State) -> bool {
    row.next >= row.log_end && matches!(state, State::Live | State::CatchingUp | State::Idle)
}

/// All that Kafka had at that moment is counted, in milliseconds since 1970. A worker that went silent at the end of the
/// log had counted all until then; one that cannot reach Kafka does not know where the log ends.
fn up_to(row: &FreshnessOfPartition, now: i64) -> Option<i64> {
    let state = State::of(row, now);
    if is_at_end(row, state) || (state == State::Unknown && row.next >= row.log_end && row.state != "kafka_away") {
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
