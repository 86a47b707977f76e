//! Which records are repeats, as a function of the log.
//!
//! A record is a repeat when the same event (equal `event_id` and event time) occurs at a lower offset of its partition
//! within `dedupe.window` before this record's Kafka timestamp; repeats count as occurrences. The filter remembers each
//! event's highest Kafka timestamp, which answers just that: there is an occurrence at or after `t` exactly when the
//! highest is at or after `t`.
//!
//! The answer must be the same for a reader that began elsewhere. So a filter knows from which Kafka timestamp on it
//! remembers everything ([`Filter::complete_from`]); a record that looks back further is *unsure*: counted, and told in the
//! ledger. Filters are warmed, and remember, two windows back, so that timestamps may be out of order by one.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes that one remembered event takes: its entry in the map at the usual load, and in the queue.
const ENTRY: u64 = 80;
/// Fewer than this are always remembered, whatever the budget.
const FEWEST: usize = 1024;

/// An event's identity: a hash of its `event_id` and event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub u128);

/// What a filter says of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Not a repeat.
    First,
    /// A repeat: it does not count.
    Repeat,
    /// Not a repeat as far as the filter remembers, which is not the whole window. It counts.
    Unsure,
}

/// The ids are hashes already.
#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut low = [0; 8];
        let length = bytes.len().min(8);
        low[..length].copy_from_slice(&bytes[..length]);
        self.0 = u64::from_le_bytes(low);
    }
}

/// What one reader remembers of one partition.
#[derive(Debug)]
pub struct Filter {
    /// Milliseconds.
    window: i64,
    most: usize,
    /// Each event's highest Kafka timestamp.
    seen: HashMap<u128, i64, BuildHasherDefault<Identity>>,
    /// The same in order of arrival, to forget by.
    arrived: VecDeque<(i64, u128)>,
    recent: Recent,
    complete_from: i64,
}

/// The lowest Kafka timestamp of the last records: what is forgotten is counted back from there, so that one record
/// with a timestamp far ahead makes nothing be forgotten.
#[derive(Debug)]
struct Recent {
    /// The lowest of the block before, and of this one.
    lowest: [i64; 2],
    records: usize,
}

impl Recent {
    /// Records in a block.
    const BLOCK: usize = 512;

    fn new() -> Self {
        Self {
            lowest: [i64::MIN, i64::MAX],
            records: 0,
        }
    }

    fn take(&mut self, at: i64) {
        self.lowest[1] = self.lowest[1].min(at);
        self.records += 1;
        if self.records == Self::BLOCK {
            self.lowest = [self.lowest[1], i64::MAX];
            self.records = 0;
        }
    }

    fn lowest(&self) -> i64 {
        self.lowest[0].min(self.lowest[1])
    }
}

impl Filter {
    /// A filter that remembers every event at the offsets before, with a Kafka timestamp from `complete_from` (ms) on:
    /// there are none, or they are judged first. `memory` is in bytes.
    pub fn new(dataset: &Dataset, memory: u64, complete_from: i64) -> Self {
        Self {
            window: window(dataset),
            most: capacity(memory),
            seen: HashMap::default(),
            arrived: VecDeque::new(),
            recent: Recent::new(),
            complete_from,
        }
    }

    /// Judges the next record of the log, and remembers it. Every accepted record is judged once, in the order of
    /// offsets. `at` is its Kafka timestamp in ms.
    pub fn judge(&mut self, id: EventId, at: i64) -> Judgement {
        let back = at.saturating_sub(self.window);
        let before = self.seen.get(&id.0).copied();
        if before.is_none_or(|before| before < at) {
            self.seen.insert(id.0, at);
            self.arrived.push_back((at, id.0));
        }
        self.recent.take(at);
        let judgement = match before {
            Some(before) if before >= back => Judgement::Repeat,
            _ if back < self.complete_from => Judgement::Unsure,
            _ => Judgement::First,
        };
        self.forget();
        judgement
    }

    /// It begins where the log now begins, with a record of that Kafka timestamp (ms).
    pub fn is_complete_from(&mut self, at: i64) {
        self.complete_from = self.complete_from.max(at);
    }

    /// From which Kafka timestamp (ms) on it remembers everything.
    pub fn complete_from(&self) -> i64 {
        self.complete_from
    }

    /// Forgets what lies two windows back of the last records, and the oldest where there are too many.
    fn forget(&mut self) {
        let horizon = self.recent.lowest().saturating_sub(self.window.saturating_mul(2));
        while let Some(&(at, id)) = self.arrived.front() {
            if at >= horizon && self.arrived.len() <= self.most {
                break;
            }
            self.arrived.pop_front();
            // What came again later is remembered under its later timestamp.
            if self.seen.get(&id) == Some(&at) {
                self.seen.remove(&id);
            }
            self.complete_from = self.complete_from.max(at.saturating_add(1));
        }
    }
}

/// How many events a filter remembers with so many bytes.
pub fn capacity(memory: u64) -> usize {
    usize::try_from(memory / ENTRY).unwrap_or(usize::MAX).max(FEWEST)
}

/// The dataset's window in ms.
pub fn window(dataset: &Dataset) -> i64 {
    i64::try_from(dataset.dedupe_window.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Reads the identities of decoded events.
#[derive(Debug)]
pub struct Identities {
    columns: Vec<usize>,
    converter: RowConverter,
}

impl Identities {
    /// For events of a dataset, in batches of that schema; `None` where nothing is ever a repeat.
    ///
    /// # Errors
    /// A column that is not there, or of a type that has no order.
    pub fn new(dataset: &Dataset, schema: &arrow::datatypes::Schema) -> Result<Option<Self>, ArrowError> {
        if dataset.event_id.is_empty() {
            return Ok(None);
        }
        let names = dataset.event_id.iter().map(String::as_str);
        let columns: Vec<usize> = names
            .chain([EVENT_TIME_COLUMN])
            .map(|name| schema.index_of(name))
            .collect::<Result<_, _>>()?;
        let fields = columns
            .iter()
            .map(|&column| SortField::new(schema.field(column).data_type().clone()))
            .collect();
        Ok(Some(Self {
            columns,
            converter: RowConverter::new(fields)?,
        }))
    }

    /// Each row's identity, `None` where a part of it is null, with its Kafka timestamp in ms.
    ///
    /// # Errors
    /// A batch of another schema.
    pub fn of(&self, batch: &RecordBatch) -> Result<Vec<(Option<EventId>, i64)>, ArrowError> {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|&column| std::sync::Arc::clone(batch.column(column)))
            .collect();
        let rows = self.converter.convert_columns(&columns)?;
        let kafka_time = batch
            .column_by_name(KAFKA_TIME_COLUMN)
            .ok_or_else(|| ArrowError::SchemaError(format!("no column {KAFKA_TIME_COLUMN}")))?
            .as_primitive::<TimestampMicrosecondType>();
        let nullable: Vec<_> = columns.iter().filter(|column| column.null_count() > 0).collect();
        let id = |row: usize| {
            let known = nullable.iter().all(|column| column.is_valid(row));
            known.then(|| EventId(xxh3_128(rows.row(row).as_ref())))
        };
        Ok((0..batch.num_rows())
            .map(|row| (id(row), kafka_time.value(row).div_euclid(1000)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use shared_schemas::dataset::{EventTime, Format};

    use super::*;

    const WINDOW: i64 = 10;

    fn dataset() -> Dataset {
        Dataset {
            name: "d".to_owned(),
            topic: "d".to_owned(),
            partitions: 1,
            format: Format::Json,
            event_time: EventTime::KafkaTime,
            event_id: vec!["id".to_owned()],
            lateness: Duration::ZERO,
            future: Duration::ZERO,
            dedupe_window: Duration::from_millis(WINDOW.unsigned_abs()),
            dedupe_memory: 0,
            max_event_size: 1,
            chunk: 1,
            fields: vec![],
        }
    }

    /// The rule as written: the same event at a lower offset, within the window before.
    fn is_repeat(log: &[(u8, i64)], at: usize) -> bool {
        let (id, time) = log[at];
        log[..at]
            .iter()
            .any(|(other, before)| *other == id && *before >= time - WINDOW)
    }

    /// Timestamps go forward, and back by as much as that at most.
    fn logs(back: i64) -> impl Strategy<Value = Vec<(u8, i64)>> {
        let backs = prop_oneof![3 => Just(0), 1 => 0..=back];
        prop::collection::vec((0_u8..6, 0_i64..4, backs), 1..60).prop_map(|steps| {
            let mut now = 100;
            let mut log = Vec::new();
            for (id, forward, back) in steps {
                now += forward;
                log.push((id, now - back));
            }
            log
        })
    }

    proptest! {
        /// A filter that is sure says what the rule says, wherever its reader began.
        #[test]
        fn a_filter_is_a_function_of_the_log(log in logs(2 * WINDOW), from in 0_usize..60, memory in prop::option::of(Just(0_u64))) {
            let from = from % log.len();
            let lowest = log[from..].iter().map(|(_, at)| *at).min().unwrap();
            let warm = log.iter().position(|(_, at)| *at >= lowest - 2 * WINDOW).unwrap_or(from).min(from);
            let mut filter = Filter::new(&dataset(), memory.unwrap_or(u64::MAX), lowest - 2 * WINDOW);
            for at in warm..log.len() {
                let (id, time) = log[at];
                let judged = filter.judge(EventId(id.into()), time);
                if at >= from {
                    match judged {
                        Judgement::First => prop_assert!(!is_repeat(&log, at)),
                        Judgement::Repeat => prop_assert!(is_repeat(&log, at)),
                        Judgement::Unsure => {}
                    }
                }
            }
        }

        /// Timestamps that are out of order by less than a window leave nothing unsure.
        #[test]
        fn a_warm_filter_is_sure(log in logs(WINDOW), from in 0_usize..60) {
            let from = from % log.len();
            let lowest = log[from].1;
            let warm = log.iter().position(|(_, at)| *at >= lowest - 2 * WINDOW).unwrap_or(from).min(from);
            let mut filter = Filter::new(&dataset(), u64::MAX, lowest - 2 * WINDOW);
            for (at, (id, time)) in log.iter().enumerate().skip(warm) {
                let judged = filter.judge(EventId((*id).into()), *time);
                prop_assert!(at < from || judged != Judgement::Unsure);
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_what_was_forgotten_is_told() {
        let mut filter = Filter::new(&dataset(), 0, i64::MIN);
        for id in 0..=FEWEST {
            assert_eq!(filter.judge(EventId(id as u128), 5), Judgement::First);
        }
        assert_eq!(filter.seen.len(), FEWEST);
        assert_eq!(filter.judge(EventId(1 << 80), 5), Judgement::Unsure);
    }
}
