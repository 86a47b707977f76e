//! How fresh the rows are: for people, metrics and lag monitoring, never for deciding what counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::{counter, gauge};
use shared_connections::store::{FreshnessOfPartition, PartitionState, Truncation};
use shared_schemas::dataset::Dataset;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, Partition};
use tokio::time::Instant;

use super::catch_up::CatchUp;
use super::{OfPartition, ViewState, Worker};
use crate::dedupe::Judgement;
use crate::event_time::{Late, watermark};
use crate::flush::Telling;
use crate::lanes::{Read, now};
use crate::starts::{Fate, Kept};

/// More offsets behind the log's end than this are not what streams in just now.
const FAR: u64 = 10_000;
/// A record was produced so long ago that nobody waits to see it within a second.
const OLD: Duration = Duration::from_secs(5);
/// A flush that takes longer than this is not slow: the store, or Kafka, does not take part.
const STALLED: Duration = Duration::from_secs(5);

/// Why a partition is not read for now.
const WAITS: &str = "it waits for its turn, since its worker's open cells take more than `speed.memory`: raise it, start further \
                     workers, or give the dataset a smaller `chunk`";

/// What the head of a partition's log has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    last: Option<Instant>,
    kafka_time: Option<i64>,
    late: Late,
}

impl Seen {
    pub(super) fn take(&mut self, read: &Read, dataset: &Dataset) {
        self.last = Some(Instant::now());
        self.kafka_time = read.kafka_time.or(self.kafka_time);
        let name = || dataset.name.clone();
        let (mut accepted, mut repeats) = (0, 0);
        for (_, fate) in &read.records.fates {
            match fate {
                Fate::Accepted(Judgement::Repeat) => repeats += 1,
                Fate::Accepted(_) => accepted += 1,
                Fate::Refused(reason) => {
                    counter!("highwater_speed_refused_total", "dataset" => name(), "reason" => reason.name())
                        .increment(1);
                }
            }
        }
        counter!("highwater_speed_events_total", "dataset" => name()).increment(accepted);
        counter!("highwater_speed_repeats_total", "dataset" => name()).increment(repeats);
        Late::tell(&self.late.take(&read.batches, dataset, now()), &dataset.name);
    }

    /// Whether what came last was produced long ago, by the producers' clocks.
    fn is_old(&self) -> bool {
        let age = self.kafka_time.map(|time| now().saturating_sub(time));
        age.is_some_and(|age| u128::try_from(age).is_ok_and(|age| age > OLD.as_millis()))
    }

    fn is_idle(&self, after: Duration) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= after)
    }
}

/// Whether each partition from which anything comes is far from its log's end, and what came of it is old. How much is left of
/// each, where that is known.
fn all_old<'a>(partitions: impl IntoIterator<Item = (Option<u64>, &'a Seen)>) -> bool {
    let mut reads = false;
    for (left, seen) in partitions {
        match left {
            Some(left) if left > FAR && seen.is_old() => reads = true,
            Some(left) if left <= FAR && seen.is_idle(OLD) => {}
            _ => return false,
        }
    }
    reads
}

/// What is known of a view on one partition.
#[derive(Debug, Clone, Copy, Default)]
struct Observed<'a> {
    truncation: Option<&'a Truncation>,
    /// What is wrong with Kafka, in a sentence.
    kafka: Option<&'a str>,
    /// The store refuses a row of it.
    is_refused: bool,
    /// How long the flush under way takes.
    flush: Duration,
    /// Open cells take too much, and it is not its turn.
    waits: bool,
    /// How many offsets are left to count.
    lag: u64,
    /// Something behind the head is read.
    catches_up: bool,
    /// Nothing came for a while.
    is_idle: bool,
}

impl Observed<'_> {
    /// What becomes of the partition's records, and why where nothing does for now.
    fn standing(&self) -> (PartitionState, String) {
        let stuck = |reason: String| (PartitionState::Stuck, reason);
        if let Some(truncation) = self.truncation {
            stuck(truncation.to_string())
        } else if let Some(said) = self.kafka {
            stuck(format!("its worker can't read from Kafka: {said}"))
        } else if self.is_refused {
            stuck("ClickHouse refuses one of its rows: the worker's log says which, and why".to_owned())
        } else if self.flush >= STALLED {
            stuck(format!(
                "its rows could not be written for {} s: ClickHouse does not take them, the worker's log says why",
                self.flush.as_secs()
            ))
        } else if self.waits && self.lag > 0 {
            (PartitionState::Behind, WAITS.to_owned())
        } else if self.catches_up || self.lag > FAR {
            (PartitionState::Behind, String::new())
        } else if self.is_idle {
            (PartitionState::Idle, String::new())
        } else {
            (PartitionState::Live, String::new())
        }
    }
}

/// What was told of in metrics: what is another's later is told to be nothing.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeSet<(String, u32)>);

impl Told {
    fn now(&mut self, now: BTreeSet<(String, u32)>) {
        for (view, partition) in self.0.difference(&now) {
            let labels = [("view", view.clone()), ("partition", partition.to_string())];
            // Not 0: whoever holds it now knows.
            gauge!("highwater_speed_lag_events", &labels).set(f64::NAN);
            gauge!("highwater_speed_watermark_timestamp", &labels).set(f64::NAN);
            tell_state(view, *partition, None);
        }
        self.0 = now;
    }
}

/// What a worker told that begins anew is told by nobody until it has begun.
impl Drop for Told {
    fn drop(&mut self) {
        self.now(BTreeSet::new());
    }
}

fn tell_state(view: &str, partition: u32, state: Option<PartitionState>) {
    for one in PartitionState::ALL {
        let labels = [
            ("view", view.to_owned()),
            ("partition", partition.to_string()),
            ("state", one.name().to_owned()),
        ];
        gauge!("highwater_speed_partition_state", &labels).set(f64::from(u8::from(state == Some(one))));
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

    /// Whether all that is read is old. It only sets a pace.
    pub(super) fn reads_what_is_old(&self) -> bool {
        let log_ends = self.front.reader().log_ends();
        all_old(self.seen.iter().filter_map(|(number, seen)| {
            let cursor = self.front.cursor(*number)?;
            let left = log_ends.get(number).map(|end| end.0.saturating_sub(cursor.0));
            Some((left, seen))
        }))
    }

    /// How fresh each view is on each partition that this worker holds.
    pub(super) fn freshness(&mut self) -> Vec<(Fingerprint, FreshnessOfPartition)> {
        let (mut rows, mut told) = (Vec::new(), BTreeSet::new());
        for view in &self.views {
            for (number, of) in &view.partitions {
                if let Some(row) = self.freshness_of(*number, of) {
                    tell(&view.view.name, &row);
                    told.insert((view.view.name.clone(), *number));
                    rows.push((view.view.fingerprint, row));
                }
            }
            view.tell_open();
        }
        self.told.now(told);
        rows
    }

    /// How fresh a view is on a partition; nothing where another worker knows better, or nobody knows yet.
    fn freshness_of(&self, number: u32, of: &OfPartition) -> Option<FreshnessOfPartition> {
        let truncation = self.truncated.get(&number).filter(|_| self.share.holds(number));
        let recorded = of.wanted.progress.highest_next();
        let (next, log_end, head) = if truncation.is_some() {
            let next = recorded.unwrap_or_default();
            (next, next, next)
        } else {
            let head = self.front.cursor(number)?;
            let behind = of.starts.kept().values().filter(|kept| !kept.is_complete());
            let next = behind.map(|kept| kept.read_to()).fold(head, Offset::min);
            let next = self.behind_cursors(number).fold(next, Offset::min);
            // Until Kafka has said where the log ends nothing is known of what is left to read.
            let log_end = self.front.reader().log_ends().get(&number).copied()?;
            (next, log_end.max(head), head)
        };
        let trouble = self.front.reader().trouble();
        if trouble.is_some() && recorded > Some(head) {
            // Cut off from Kafka, and another one goes on with it.
            return None;
        }
        let seen = self.seen.get(&number);
        let flush = self.flushing.takes();
        let is_refused = of.starts.kept().values().any(Kept::is_withheld);
        // What is not written is in no row yet.
        let is_held_up = is_refused || flush >= STALLED;
        let observed = Observed {
            truncation,
            kafka: trouble.as_deref(),
            is_refused,
            flush,
            waits: self.turns.waits(number),
            lag: log_end.0.saturating_sub(next.0),
            catches_up: next < head,
            is_idle: seen.is_none_or(|seen| seen.is_idle(self.setup.speed.idle_after)),
        };
        let (state, reason) = observed.standing();
        let highest = match (is_refused, is_held_up) {
            // A cell is missing, nobody knows of which time.
            (true, _) => None,
            (false, true) => of.shown_highest,
            (false, false) => of.highest,
        };
        Some(FreshnessOfPartition {
            partition: Partition {
                topic: self.topic.id,
                number,
            },
            next: if is_held_up {
                next.min(recorded.unwrap_or_default())
            } else {
                next
            },
            log_end,
            watermark: highest.map(|highest| watermark(highest, &self.setup.dataset)),
            // The head's; a view that is behind it has come less far.
            kafka_time: seen
                .and_then(|seen| seen.kafka_time)
                .filter(|_| next >= head && !is_held_up),
            state,
            reason,
            seen: now(),
        })
    }

    /// Tells people, beside all else. One at a time: a store that takes nothing is asked no more often than it answers.
    pub(super) fn tell(&mut self, telling: Telling) {
        self.take_told();
        if self.telling.is_empty() {
            self.telling.spawn(telling.tell(self.setup.store.clone()));
        }
    }

    /// Takes in what came of telling, where it has ended.
    fn take_told(&mut self) {
        while let Some(told) = self.telling.try_join_next() {
            if let Ok(Some(parts)) = told {
                self.flushing.pace(parts, self.setup.speed.flush);
                let dataset = self.setup.dataset.name.clone();
                let pause = self.flushing.pause().as_secs_f64();
                gauge!("highwater_speed_flush_pause_seconds", "dataset" => dataset.clone()).set(pause);
                gauge!("highwater_speed_parts", "dataset" => dataset).set(precise(parts));
            }
        }
    }

    /// Waits until all is told.
    pub(super) async fn told(&mut self) {
        while self.telling.join_next().await.is_some() {}
    }

    /// Tells all that people are told in metrics. The store hears it by the next flush; where one does not end, by itself.
    pub(super) fn tell_of_all(&mut self) {
        self.alarm.tell();
        self.front.tell();
        self.catch_ups.iter_mut().for_each(CatchUp::tell);
        self.flushing.tell();
        self.take_told();
        let freshness = self.freshness();
        if self.flushing.takes() >= STALLED && self.telling.is_empty() {
            self.tell(Telling::of_a_stall(freshness));
        }
    }
}

impl ViewState {
    /// Tells what its open cells take.
    pub(super) fn tell_open(&self) {
        let (cells, labels) = (self.aggregate.cells(), [("view", self.view.name.clone())]);
        gauge!("highwater_speed_open_cells", &labels).set(precise(cells.len() as u64));
        gauge!("highwater_speed_open_bytes", &labels).set(precise(cells.bytes() as u64));
    }
}

fn tell(view: &str, row: &FreshnessOfPartition) {
    let number = row.partition.number;
    let labels = [("view", view.to_owned()), ("partition", number.to_string())];
    let lag = row.log_end.0.saturating_sub(row.next.0);
    gauge!("highwater_speed_lag_events", &labels).set(precise(lag));
    gauge!("highwater_speed_watermark_timestamp", &labels).set(row.watermark.map_or(f64::NAN, seconds));
    tell_state(view, number, Some(row.state));
}

/// Metrics are doubles: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "a gauge, not a count that anything rests on")]
pub(crate) fn precise(value: u64) -> f64 {
    value as f64
}

/// Microseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a gauge, not a moment that anything rests on")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1_000_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_waits_for_is_old() {
        let read = |age: i64| Seen {
            last: Some(Instant::now()),
            kafka_time: Some(now() - age),
            late: Late::default(),
        };
        let (old, new, nothing) = (read(60_000), read(100), Seen::default());
        let far = Some(FAR + 1);
        assert!(all_old([(far, &old)]));
        assert!(
            all_old([(far, &old), (Some(0), &nothing)]),
            "nothing comes of the other"
        );
        assert!(!all_old([(far, &old), (far, &new)]), "someone may wait for the other");
        assert!(
            !all_old([(far, &old), (Some(0), &old)]),
            "the other has just reached its end"
        );
        assert!(!all_old([(far, &old), (None, &old)]), "nobody knows yet");
        assert!(!all_old([(far, &nothing)]), "nothing has come yet");
        assert!(!all_old([(Some(FAR), &old)]), "nearly there");
        assert!(!all_old([(Some(0), &nothing)]) && !all_old([]), "nothing is read");
    }

    #[test]
    fn the_worst_that_is_known_is_told() {
        use PartitionState::{Behind, Idle, Live, Stuck};
        let truncation = Truncation {
            end: Offset(3),
            next: Offset(9),
        };
        let mut observed = Observed::default();
        assert_eq!(observed.standing(), (Live, String::new()));
        observed.lag = FAR;
        assert_eq!(observed.standing().0, Live, "what streams in is on its way");
        observed.is_idle = true;
        assert_eq!(observed.standing().0, Idle);
        observed.lag += 1;
        assert_eq!(observed.standing().0, Behind);
        observed.lag = 0;
        observed.catches_up = true;
        assert_eq!(observed.standing().0, Behind);
        observed.waits = true;
        assert_eq!(observed.standing(), (Behind, String::new()), "nothing is left to read");
        observed.lag = 1;
        assert_eq!(observed.standing(), (Behind, WAITS.to_owned()));
        observed.flush = STALLED;
        let (state, reason) = observed.standing();
        assert!(state == Stuck && reason.contains("for 5 s: ClickHouse"), "{reason}");
        observed.is_refused = true;
        assert!(observed.standing().1.starts_with("ClickHouse refuses one of its rows"));
        observed.kafka = Some("no broker");
        assert_eq!(
            observed.standing(),
            (Stuck, "its worker can't read from Kafka: no broker".to_owned())
        );
        observed.truncation = Some(&truncation);
        assert_eq!(observed.standing(), (Stuck, truncation.to_string()));
    }
}
