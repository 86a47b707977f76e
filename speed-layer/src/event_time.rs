//! Event time: how far each partition has come, and which events are late, and by how much.
//!
//! A partition's watermark is the highest event time seen, less the dataset's `lateness`. What comes later with an earlier
//! event time is late: it is counted like any other, in its own window, and told. All of this is for people: nothing that
//! counts depends on it, so it may look at the clock, and what a worker calls late may depend on where it began to read.
//!
//! One event with a time far ahead must not make all others late. A record whose event time is ahead of its own Kafka
//! timestamp is refused (`future`); one whose Kafka timestamp is wrong as well is counted, and moves no watermark.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::TimestampMicrosecondType;
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN};

const MICROS: i64 = 1_000_000;

/// The highest event time, in µs, of those that can be: not further ahead of the clock than the dataset allows of its
/// records. `now` is in milliseconds since 1970.
pub(crate) fn highest(batches: &[RecordBatch], dataset: &Dataset, now: i64) -> Option<i64> {
    let limit = limit(dataset, now);
    let of_batch = |batch: &RecordBatch| {
        let times = batch.column_by_name(EVENT_TIME_COLUMN)?;
        let times = times.as_primitive_opt::<TimestampMicrosecondType>()?;
        match max(times) {
            // Rare, and only then is each looked at.
            Some(highest) if highest > limit => times.values().iter().copied().filter(|time| *time <= limit).max(),
            highest => highest,
        }
    };
    batches.iter().filter_map(of_batch).max()
}

/// The watermark of a partition whose highest event time that is, in µs.
pub(crate) fn watermark(highest: i64, dataset: &Dataset) -> i64 {
    highest.saturating_sub(micros(dataset.lateness))
}

/// The highest event time of a partition that has this watermark.
pub(crate) fn highest_of(watermark: i64, dataset: &Dataset) -> i64 {
    watermark.saturating_add(micros(dataset.lateness))
}

/// Tells late events of one partition, in the order in which one reader reads them.
#[derive(Debug, Default)]
pub(crate) struct Late {
    highest: Option<i64>,
}

impl Late {
    /// Takes events that were read. Returns how many were late by how many whole seconds.
    pub(crate) fn take(&mut self, batches: &[RecordBatch], dataset: &Dataset, now: i64) -> BTreeMap<u64, usize> {
        let (limit, lateness) = (limit(dataset, now), micros(dataset.lateness));
        let mut late = BTreeMap::new();
        for batch in batches {
            let Some(times) = batch
                .column_by_name(EVENT_TIME_COLUMN)
                .and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>())
            else {
                continue;
            };
            let (Some(lowest), Some(highest)) = (min(times), max(times)) else {
                continue;
            };
            let reached = self.highest.map_or(highest, |before| before.max(highest));
            if highest <= limit && lowest >= reached.saturating_sub(lateness) {
                // Nothing in it can be late.
                self.highest = Some(reached);
                continue;
            }
            for time in times.values() {
                let watermark = self
                    .highest
                    .map_or(i64::MIN, |highest| highest.saturating_sub(lateness));
                if *time < watermark {
                    let seconds = watermark.saturating_sub(*time).unsigned_abs() / MICROS.unsigned_abs();
                    *late.entry(seconds).or_default() += 1;
                } else if *time <= limit {
                    self.highest = self.highest.max(Some(*time));
                }
            }
        }
        late
    }

    /// Tells it.
    pub(crate) fn tell(late: &BTreeMap<u64, usize>, dataset: &str) {
        let labels = [("dataset", dataset.to_owned())];
        let counter = metrics::counter!("highwater_speed_late_total", &labels);
        let histogram = metrics::histogram!("highwater_speed_late_seconds", &labels);
        for (seconds, events) in late {
            counter.increment(*events as u64);
            histogram.record_many(Duration::from_secs(*seconds), *events);
        }
    }
}

/// The highest event time that moves a watermark.
fn limit(dataset: &Dataset, now: i64) -> i64 {
    now.saturating_mul(1_000).saturating_add(micros(dataset.future))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMicrosecondArray};
    use proptest::prelude::*;
    use shared_schemas::definitions::Definitions;

    use super::*;

    /// Seconds since 1970.
    const NOW: i64 = 1_800_000_000;

    fn dataset() -> Dataset {
        let text = "[dataset.flights]\ntopic = \"flights\"\nevent_time = \"at\"\nlateness = \"10s\"\nfuture = \"1m\"\n\
                    [dataset.flights.fields]\nat = \"timestamp\"\n";
        Definitions::parse([("flights.toml", text)]).unwrap().datasets[0].clone()
    }

    fn batch(seconds: &[i64]) -> RecordBatch {
        let times = seconds.iter().map(|second| second * MICROS);
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times));
        RecordBatch::try_from_iter([(EVENT_TIME_COLUMN, times)]).unwrap()
    }

    #[test]
    fn late_is_what_lies_behind_the_watermark() {
        let mut late = Late::default();
        let mut take = |seconds: &[i64]| late.take(&[batch(seconds)], &dataset(), NOW * 1_000);
        assert_eq!(take(&[100, 95, 90]), BTreeMap::new(), "within the lateness");
        assert_eq!(take(&[110, 99, 110, 40]), BTreeMap::from([(1, 1), (60, 1)]));
        assert_eq!(take(&[]), BTreeMap::new());
        // One that can't be makes nothing late, and is not late itself.
        assert_eq!(take(&[NOW + 61, 111]), BTreeMap::new());
        assert_eq!(take(&[NOW + 60, NOW + 61, 111]), BTreeMap::from([(1_799_999_939, 1)]));
    }

    #[test]
    fn one_event_from_the_future_moves_no_watermark() {
        let highest = |batches: &[RecordBatch]| highest(batches, &dataset(), NOW * 1_000);
        assert_eq!(highest(&[batch(&[5, 7]), batch(&[6])]), Some(7 * MICROS));
        assert_eq!(highest(&[batch(&[5, NOW + 61]), batch(&[6])]), Some(6 * MICROS));
        assert_eq!(highest(&[batch(&[NOW + 61])]), None);
        assert_eq!(highest(&[batch(&[5, NOW + 60])]), Some((NOW + 60) * MICROS));
        let mark = watermark(7 * MICROS, &dataset());
        assert_eq!((mark, highest_of(mark, &dataset())), (-3 * MICROS, 7 * MICROS));
    }

    proptest! {
        /// However the events are parted, the same ones are late, by the same time.
        #[test]
        fn batches_do_not_matter(seconds in prop::collection::vec(0_i64..60, 0..40), parts in prop::collection::vec(1_usize..9, 0..20)) {
            let mut one = Late::default();
            let whole = one.take(&[batch(&seconds)], &dataset(), NOW * 1_000);
            let mut many = Late::default();
            let mut parted: BTreeMap<u64, usize> = BTreeMap::new();
            let mut rest = seconds.as_slice();
            for length in parts.into_iter().chain([usize::MAX]) {
                let (part, later) = rest.split_at(length.min(rest.len()));
                for (by, events) in many.take(&[batch(part)], &dataset(), NOW * 1_000) {
                    *parted.entry(by).or_default() += events;
                }
                rest = later;
            }
            prop_assert_eq!(whole, parted);
            prop_assert_eq!(one.highest, many.highest);
        }
    }
}
