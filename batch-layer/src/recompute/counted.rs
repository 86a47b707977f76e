//! Which events count: by partition and offset, by day, and without repeats.
//!
//! Seen to as batches come, not as an expression of the plan. A batch of the archive is of one partition and one day, its offsets
//! of few ranges: what holds for the lowest and the highest of its values mostly holds for all, and no row is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use arrow::array::{Array, AsArray, BooleanArray, BooleanBufferBuilder, DictionaryArray, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::common::{Result, internal_err};
use shared_schemas::dataset::{EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition};
use shared_schemas::store::tables::TOPIC_COLUMN;

use super::{moments, topic_text};
use crate::repeats::Repeats;

/// Offsets that count, of each partition.
#[derive(Debug)]
pub(crate) struct Counted {
    places: Vec<Place>,
    /// In microseconds, ascending.
    times: Vec<Range<i64>>,
}

#[derive(Debug)]
struct Place {
    partition: Partition,
    topic: String,
    number: i32,
    /// Those that count, ascending.
    offsets: Vec<Range<i64>>,
    /// From which offsets on events are counted, ascending.
    since: Vec<Offset>,
}

/// The columns that say where and when a row comes from.
struct Origins<'a> {
    /// Of each row, which of the `names` its topic is.
    topics: DictionaryArray<Int32Type>,
    numbers: &'a [i32],
    offsets: &'a [i64],
    times: &'a [i64],
}

/// Rows of a batch, one after the other, that are of one partition.
struct Stretch<'a> {
    rows: Range<usize>,
    place: usize,
    offsets: &'a [i64],
    times: &'a [i64],
    /// Which of them count; nothing where all do.
    counted: Option<BooleanBuffer>,
}

/// What a reader counts on the way.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// For each partition, and each offset from which on events are counted, how many lie from it on and below the next one.
    since: Vec<Vec<u64>>,
    /// How many of the events that count are repeats, by the day that they are of.
    repeats: BTreeMap<EventDay, u64>,
}

impl Tally {
    /// How many of the events that count are repeats, by the day that they are of.
    pub(crate) fn repeats(&self) -> &BTreeMap<EventDay, u64> {
        &self.repeats
    }
}

impl Stretch<'_> {
    fn counts(&self, at: usize) -> bool {
        self.counted.as_ref().is_none_or(|counted| counted.value(at))
    }

    fn count(&self) -> usize {
        self.counted
            .as_ref()
            .map_or(self.rows.len(), BooleanBuffer::count_set_bits)
    }
}

impl Counted {
    /// Events of those days at those offsets.
    pub(crate) fn new(
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
        since: &BTreeSet<(Partition, Offset)>,
    ) -> Self {
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
            offsets: offsets.ranges().iter().map(signed).collect(),
            since: of(*partition).collect(),
        };
        Self {
            places: counted.iter().map(place).collect(),
            times: moments(days),
        }
    }

    /// All events of these partitions.
    pub(crate) fn all(partitions: impl Iterator<Item = Partition>) -> Self {
        let place = |partition: Partition| Place {
            partition,
            topic: topic_text(partition.topic),
            number: i32::try_from(partition.number).unwrap_or(i32::MAX),
            offsets: std::iter::once(0..i64::MAX).collect(),
            since: Vec::new(),
        };
        Self {
            places: partitions.map(place).collect(),
            times: std::iter::once(i64::MIN..i64::MAX).collect(),
        }
    }

    /// The partitions, by index.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.places.iter().map(|place| place.partition).collect()
    }

    /// Calls with the row, the index of its partition, and the offset, of each row that counts.
    ///
    /// # Errors
    /// The caller's, and a batch that does not say where its rows come from.
    pub(crate) fn each(
        &self,
        batch: &RecordBatch,
        mut take: impl FnMut(usize, usize, u64) -> Result<()>,
    ) -> Result<()> {
        let origins = Origins::of(batch)?;
        for stretch in self.stretches(&origins) {
            for (at, offset) in stretch.offsets.iter().enumerate() {
                if stretch.counts(at) {
                    take(stretch.rows.start + at, stretch.place, offset.cast_unsigned())?;
                }
            }
        }
        Ok(())
    }

    /// Nothing counted.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            since: self.places.iter().map(|place| vec![0; place.since.len()]).collect(),
            repeats: BTreeMap::new(),
        }
    }

    /// How many events lie from each of the offsets on.
    pub(crate) fn since(&self, tally: &Tally) -> Vec<((Partition, Offset), u64)> {
        let of_place = |(place, counts): (&Place, &Vec<u64>)| {
            let sums = (0..counts.len()).map(|at| counts[at..].iter().sum::<u64>());
            let key = place.since.iter().map(|from| (place.partition, *from));
            key.zip(sums).collect::<Vec<_>>()
        };
        self.places.iter().zip(&tally.since).flat_map(of_place).collect()
    }

    /// The rows that count and are no repeats, or nothing where that is all of them; how many count, in all and added to the tally.
    ///
    /// # Errors
    /// A batch that does not say where its rows come from.
    pub(crate) fn kept(
        &self,
        batch: &RecordBatch,
        repeats: &Repeats,
        tally: &mut Tally,
    ) -> Result<(Option<BooleanArray>, u64)> {
        let origins = Origins::of(batch)?;
        let mut kept = BooleanBufferBuilder::new(batch.num_rows());
        let mut all = 0;
        for stretch in self.stretches(&origins) {
            kept.append_n(stretch.rows.start - kept.len(), false);
            all += stretch.count() as u64;
            if let Some((place, counts)) = self.places.get(stretch.place).zip(tally.since.get_mut(stretch.place)) {
                place.count_since(&stretch, counts);
            }
            let mut repeats = repeats.of(stretch.place, bounds(stretch.offsets));
            match (&stretch.counted, repeats.is_empty()) {
                (None, true) => kept.append_n(stretch.rows.len(), true),
                (Some(counted), true) => kept.append_buffer(counted),
                (_, false) => kept.append_buffer(&BooleanBuffer::collect_bool(stretch.rows.len(), |at| {
                    let repeat = stretch.counts(at) && repeats.contains(stretch.offsets[at].cast_unsigned());
                    if repeat {
                        let day = EventDay::of_micros(stretch.times[at]);
                        *tally.repeats.entry(day).or_default() += 1;
                    }
                    stretch.counts(at) && !repeat
                })),
            }
        }
        kept.append_n(batch.num_rows() - kept.len(), false);
        let kept = BooleanArray::new(kept.finish(), None);
        let whole = kept.true_count() == batch.num_rows();
        Ok(((!whole).then_some(kept), all))
    }

    /// The rows of a batch that are of these partitions, in stretches of one.
    fn stretches<'o>(&self, origins: &'o Origins<'_>) -> Vec<Stretch<'o>> {
        let (topics, numbers) = (origins.topics.keys().values(), origins.numbers);
        let mut stretches = Vec::new();
        let mut from = 0;
        while from < numbers.len() {
            let origin = (topics[from], numbers[from]);
            let others = (topics[from..].iter().copied()).zip(numbers[from..].iter().copied());
            let rows = from..from + others.take_while(|of| *of == origin).count();
            from = rows.end;
            let Some(place) = self.place(origins.topic(origin.0), origin.1) else {
                continue;
            };
            let (offsets, times) = (&origins.offsets[rows.clone()], &origins.times[rows.clone()]);
            let ranges = &self.places[place].offsets;
            let whole = within(ranges, bounds(offsets)) && within(&self.times, bounds(times));
            let counted = (!whole).then(|| {
                BooleanBuffer::collect_bool(rows.len(), |at| {
                    within(ranges, Some((offsets[at], offsets[at])))
                        && within(&self.times, Some((times[at], times[at])))
                })
            });
            stretches.push(Stretch {
                rows,
                place,
                offsets,
                times,
                counted,
            });
        }
        stretches
    }

    fn place(&self, topic: &str, number: i32) -> Option<usize> {
        let is = |place: &Place| place.number == number && place.topic == topic;
        self.places.iter().position(is)
    }
}

impl Place {
    /// Adds to each offset's count the rows that count from it on, and below the next one.
    fn count_since(&self, stretch: &Stretch<'_>, counts: &mut [u64]) {
        let place = |offset: i64| self.since.partition_point(|from| from.0 <= offset.cast_unsigned());
        let mut add = |place: usize, rows: u64| {
            if let Some(count) = place.checked_sub(1).and_then(|at| counts.get_mut(at)) {
                *count += rows;
            }
        };
        match bounds(stretch.offsets).map(|(low, high)| (place(low), place(high))) {
            Some((low, high)) if low == high => add(low, stretch.count() as u64),
            _ => {
                for (at, offset) in stretch.offsets.iter().enumerate() {
                    add(place(*offset), u64::from(stretch.counts(at)));
                }
            }
        }
    }
}

/// Offsets as the archive has them.
fn signed(range: &OffsetRange) -> Range<i64> {
    let offset = |offset: Offset| i64::try_from(offset.0).unwrap_or(i64::MAX);
    offset(range.from)..offset(range.to)
}

/// The lowest and the highest.
fn bounds(values: &[i64]) -> Option<(i64, i64)> {
    let first = *values.first()?;
    // Both in one pass without a branch.
    let wider = |(low, high): (i64, i64), value: &i64| (low.min(*value), high.max(*value));
    Some(values.iter().fold((first, first), wider))
}

/// Whether all from the lowest to the highest lie in one of the ranges, which ascend.
fn within(ranges: &[Range<i64>], bounds: Option<(i64, i64)>) -> bool {
    bounds.is_some_and(|(low, high)| {
        let at = ranges.partition_point(|range| range.end <= low);
        ranges
            .get(at)
            .is_some_and(|range| range.contains(&low) && range.contains(&high))
    })
}

impl<'a> Origins<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let column = |name: &str| batch.column_by_name(name);
        let names = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let topics = column(TOPIC_COLUMN).map(|topics| cast(topics, &names)).transpose()?;
        let topics = topics
            .as_ref()
            .and_then(|topics| topics.as_dictionary_opt::<Int32Type>());
        let numbers = column(PARTITION_COLUMN).and_then(|column| column.as_primitive_opt::<Int32Type>());
        let offsets = column(OFFSET_COLUMN).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let times = column(EVENT_TIME_COLUMN).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let (Some(topics), Some(numbers), Some(offsets), Some(times)) = (topics, numbers, offsets, times) else {
            return internal_err!("events without their place in the log: {:?}", batch.schema());
        };
        if topics.null_count() + numbers.null_count() + offsets.null_count() + times.null_count() > 0 {
            return internal_err!("events whose place in the log is null");
        }
        Ok(Self {
            topics: topics.clone(),
            numbers: numbers.values(),
            offsets: offsets.values(),
            times: times.values(),
        })
    }

    fn topic(&self, key: i32) -> &str {
        let names: Option<&StringArray> = self.topics.values().as_string_opt();
        names
            .zip(usize::try_from(key).ok())
            .filter(|(names, key)| *key < names.len())
            .map_or("", |(names, key)| names.value(key))
    }
}
