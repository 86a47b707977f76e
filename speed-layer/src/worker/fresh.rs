//! How fresh the rows are: for people, metrics and lag monitoring, never for deciding what counts.

use std::collections::BTreeMap;
use std::time::Duration;

use shared_connections::store::FreshnessOfPartition;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, Partition};
use tokio::time::Instant;

use super::Worker;
use crate::dedupe::Judgement;
use crate::lanes::{Read, now};
use crate::starts::Fate;

/// More offsets behind the log's end than this is catching up.
const FAR: u64 = 10_000;

/// What the head of a partition's log has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    last: Option<Instant>,
    kafka_time: Option<i64>,
}

impl Seen {
    pub(super) fn take(&mut self, read: &Read, dataset: &str) {
        self.last = Some(Instant::now());
        self.kafka_time = read.kafka_time.or(self.kafka_time);
        let (mut accepted, mut repeats) = (0, 0);
        for (_, fate) in &read.records.fates {
            match fate {
                Fate::Accepted(Judgement::Repeat) => repeats += 1,
                Fate::Accepted(_) => accepted += 1,
                Fate::Refused(reason) => {
                    metrics::counter!("highwater_speed_refused_total",
                        "dataset" => dataset.to_owned(), "reason" => reason.name())
                    .increment(1);
                }
            }
        }
        metrics::counter!("highwater_speed_events_total", "dataset" => dataset.to_owned()).increment(accepted);
        metrics::counter!("highwater_speed_repeats_total", "dataset" => dataset.to_owned()).increment(repeats);
    }

    fn is_idle(&self, after: Duration) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= after)
    }
}

impl Worker {
    /// From where each partition is read on, for lag monitoring.
    pub(super) fn cursors(&self) -> BTreeMap<u32, Offset> {
        let numbers = 0..self.topic.partitions;
        numbers
            .filter_map(|number| Some((number, self.front.cursor(number)?)))
            .collect()
    }

    /// How fresh each view is on each partition that is read.
    pub(super) fn freshness(&self) -> Vec<(Fingerprint, FreshnessOfPartition)> {
        let now = now();
        let log_ends = self.front.reader().log_ends();
        let trouble = self.front.reader().trouble().is_some();
        let mut rows = Vec::new();
        for view in &self.views {
            for (number, of) in &view.partitions {
                let Some(head) = self.front.cursor(*number) else {
                    continue;
                };
                let behind = of.starts.kept().values().filter(|kept| !kept.is_complete());
                let next = behind.map(|kept| kept.read_to()).fold(head, Offset::min);
                let next = self.behind_cursors(*number).fold(next, Offset::min);
                let Some(log_end) = log_ends.get(number).copied() else {
                    // Until Kafka has said where the log ends nothing is known of what is left to read.
                    continue;
                };
                let log_end = log_end.max(head);
                let seen = self.seen.get(number);
                let lag = log_end.0.saturating_sub(next.0);
                let state = if self.stopped.contains(number) {
                    "stopped"
                } else if trouble {
                    "kafka_away"
                } else if lag > FAR || next < head {
                    "catching_up"
                } else if seen.is_none_or(|seen| seen.is_idle(self.setup.speed.idle_after)) {
                    "idle"
                } else {
                    "live"
                };
                let labels = [("view", view.view.name.clone()), ("partition", number.to_string())];
                metrics::gauge!("highwater_speed_lag_events", &labels).set(precise(lag));
                rows.push((
                    view.view.fingerprint,
                    FreshnessOfPartition {
                        partition: Partition {
                            topic: self.topic.id,
                            number: *number,
                        },
                        next,
                        log_end,
                        watermark: of.watermark,
                        // The head's; a view that is behind it has come less far.
                        kafka_time: seen.and_then(|seen| seen.kafka_time).filter(|_| next >= head),
                        state: state.to_owned(),
                        seen: now,
                    },
                ));
            }
            let labels = [("view", view.view.name.clone())];
            metrics::gauge!("highwater_speed_open_cells", &labels).set(precise(view.aggregate.cells().len() as u64));
            metrics::gauge!("highwater_speed_open_bytes", &labels).set(precise(view.aggregate.cells().bytes() as u64));
        }
        rows
    }
}

/// Metrics are doubles: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "a gauge, not a count that anything rests on")]
fn precise(value: u64) -> f64 {
    value as f64
}
