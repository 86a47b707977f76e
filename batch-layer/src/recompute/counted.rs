//! Which events count: by partition and offset, and without repeats.
//!
//! Looked up row by row as batches come, not as an expression of the plan: batches of the archive are of one partition and
//! their offsets of few ranges, so nearly every row is answered by what answered the row before.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::{Result, internal_err};
use shared_schemas::dataset::{OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet, Partition};
use shared_schemas::store::tables::TOPIC_COLUMN;

use super::topic_text;
use crate::repeats::Repeats;

/// Offsets that count, of each partition.
#[derive(Debug)]
pub(super) struct Counted {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    partition: Partition,
    topic: String,
    number: i32,
    offsets: OffsetSet,
    /// From which offsets on events are counted, ascending.
    since: Vec<Offset>,
}

/// The columns that say where a row comes from.
struct Origins<'a> {
    topics: &'a StringArray,
    numbers: &'a [i32],
    offsets: &'a [i64],
}

/// What answered the last row.
#[derive(Default)]
struct Last {
    place: Option<usize>,
    range: Option<OffsetRange>,
}

impl Counted {
    pub(super) fn new(counted: &BTreeMap<Partition, OffsetSet>, since: &BTreeSet<(Partition, Offset)>) -> Self {
        let of = |partition| {
            since
                .iter()
                .filter(move |(of, _)| *of == partition)
                .map(|(_, from)| *from)
        };
        let place = |(partition, offsets): (&Partition, &OffsetSet)| Place {
            partition: *partition,
            topic: topic_text(partition.topic),
            number: i32::try_from(partition.number).unwrap_or(i32::MAX),
            offsets: offsets.clone(),
            since: of(*partition).collect(),
        };
        Self {
            places: counted.iter().map(place).collect(),
        }
    }

    /// The partitions, by index.
    pub(super) fn partitions(&self) -> Vec<Partition> {
        self.places.iter().map(|place| place.partition).collect()
    }

    /// Calls with the row, the index of its partition, and the offset, of each row that counts.
    pub(super) fn each(&self, batch: &RecordBatch, mut take: impl FnMut(usize, usize, u64)) -> Result<()> {
        let origins = Origins::of(batch)?;
        let mut last = Last::default();
        for row in 0..batch.num_rows() {
            if let Some((place, offset)) = self.find(&origins, row, &mut last) {
                take(row, place, offset);
            }
        }
        Ok(())
    }

    /// For each partition, and each offset from which on events are counted, a count of those below the next one.
    pub(super) fn nothing_since(&self) -> Vec<Vec<u64>> {
        self.places.iter().map(|place| vec![0; place.since.len()]).collect()
    }

    /// Such counts, added up: how many events lie from each of the offsets on.
    pub(super) fn since(&self, counts: &[Vec<u64>]) -> Vec<((Partition, Offset), u64)> {
        let of_place = |(place, counts): (&Place, &Vec<u64>)| {
            let sums = (0..counts.len()).map(|at| counts[at..].iter().sum::<u64>());
            let key = place.since.iter().map(|from| (place.partition, *from));
            key.zip(sums).collect::<Vec<_>>()
        };
        self.places.iter().zip(counts).flat_map(of_place).collect()
    }

    /// The rows that count and are no repeats; how many count, in all and added to `since`.
    pub(super) fn kept(
        &self,
        batch: &RecordBatch,
        repeats: &Repeats,
        since: &mut [Vec<u64>],
    ) -> Result<(BooleanArray, u64)> {
        let origins = Origins::of(batch)?;
        let mut last = Last::default();
        let mut counted = 0;
        let kept = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
            self.find(&origins, row, &mut last).is_some_and(|(place, offset)| {
                counted += 1;
                let from = self.places[place].since.partition_point(|from| from.0 <= offset);
                if let Some(count) = from.checked_sub(1).and_then(|at| since[place].get_mut(at)) {
                    *count += 1;
                }
                !repeats.contains(place, offset)
            })
        });
        Ok((BooleanArray::new(kept, None), counted))
    }

    fn find(&self, origins: &Origins<'_>, row: usize, last: &mut Last) -> Option<(usize, u64)> {
        let (topic, number) = (origins.topics.value(row), origins.numbers[row]);
        let is = |place: &Place| place.number == number && place.topic == topic;
        let known = last.place.filter(|at| self.places.get(*at).is_some_and(is));
        let at = match known {
            Some(at) => at,
            None => {
                let at = self.places.iter().position(is)?;
                *last = Last {
                    place: Some(at),
                    range: None,
                };
                at
            }
        };
        let offset = u64::try_from(origins.offsets[row]).ok()?;
        let holds = |range: &OffsetRange| range.from.0 <= offset && offset < range.to.0;
        if !last.range.as_ref().is_some_and(holds) {
            let ranges = self.places.get(at)?.offsets.ranges();
            let found = ranges.partition_point(|range| range.to <= Offset(offset));
            last.range = Some(*ranges.get(found).filter(|range| holds(range))?);
        }
        Some((at, offset))
    }
}

impl<'a> Origins<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let column = |name: &str| batch.column_by_name(name);
        let topics = column(TOPIC_COLUMN).and_then(|column| column.as_string_opt::<i32>());
        let numbers = column(PARTITION_COLUMN).and_then(|column| column.as_primitive_opt::<Int32Type>());
        let offsets = column(OFFSET_COLUMN).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let (Some(topics), Some(numbers), Some(offsets)) = (topics, numbers, offsets) else {
            return internal_err!("events without their place in the log: {:?}", batch.schema());
        };
        if topics.null_count() + numbers.null_count() + offsets.null_count() > 0 {
            return internal_err!("events whose place in the log is null");
        }
        Ok(Self {
            topics,
            numbers: numbers.values(),
            offsets: offsets.values(),
        })
    }
}
