//! The identities of decoded events: a hash of `event_id` and event time, read straight from the columns.
//!
//! A row's values are written one after the other, texts with their length, and hashed: equal values give equal bytes, and
//! no two lists of values the same ones. Both layers know events by this hash, of 128 bits: of a thousand million events of
//! a day, two would share one in fewer than one of 10^20 days.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch, StringViewArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use xxhash_rust::xxh3::xxh3_128;

use crate::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN};

/// An event's identity: a hash of its `event_id` and event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u128);

/// Reads the identities of decoded events.
#[derive(Debug)]
pub struct Identities {
    columns: Vec<usize>,
    kafka_time: usize,
}

/// The events of a batch, by identity and Kafka timestamp.
#[derive(Debug, Clone, Default)]
pub struct Occurrences {
    ids: Vec<Option<EventId>>,
    times: Vec<i64>,
}

impl Occurrences {
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Each record's identity; `None` where a part of it is null: then it is no repeat.
    pub fn ids(&self) -> &[Option<EventId>] {
        &self.ids
    }

    /// Each record's Kafka timestamp in ms.
    pub fn times(&self) -> &[i64] {
        &self.times
    }
}

/// The identities of a batch, read one by one.
pub struct Reading<'a> {
    parts: Vec<Part<'a>>,
    nulls: Option<NullBuffer>,
    bytes: Vec<u8>,
}

impl Reading<'_> {
    /// The row's identity; `None` where a part of it is null: then it is no repeat.
    #[inline]
    pub fn id(&mut self, row: usize) -> Option<EventId> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        self.bytes.clear();
        self.parts.iter().for_each(|part| part.write(row, &mut self.bytes));
        Some(EventId(xxh3_128(&self.bytes)))
    }
}

/// A column's values as bytes.
enum Part<'a> {
    /// All of one width.
    Fixed(&'a [u8], usize),
    /// Texts end to end, and where each begins and ends.
    Text(&'a [u8], &'a [i32]),
    /// Texts that lie in several buffers.
    Views(&'a StringViewArray),
    /// Of another type.
    Rows(Rows),
}

fn fixed<T: ArrowPrimitiveType>(column: &ArrayRef) -> Part<'_> {
    let values = column.as_primitive::<T>().values().inner();
    Part::Fixed(values.as_slice(), size_of::<T::Native>())
}

fn fixed_at<const WIDTH: usize>(values: &[u8], row: usize) -> [u8; WIDTH] {
    values.as_chunks().0[row]
}

impl<'a> Part<'a> {
    fn of(column: &'a ArrayRef) -> Result<Self, ArrowError> {
        Ok(match column.data_type() {
            DataType::Utf8 => {
                let texts = column.as_string::<i32>();
                Self::Text(texts.value_data(), texts.value_offsets())
            }
            DataType::Utf8View => Self::Views(column.as_string_view()),
            DataType::Int64 => fixed::<Int64Type>(column),
            DataType::Timestamp(TimeUnit::Microsecond, _) => fixed::<TimestampMicrosecondType>(column),
            DataType::Date32 => fixed::<Date32Type>(column),
            DataType::Decimal128(..) => fixed::<Decimal128Type>(column),
            other => {
                let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
                Self::Rows(converter.convert_columns(&[Arc::clone(column)])?)
            }
        })
    }

    /// Appends a row's value.
    #[inline]
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        let mut with_length = |value: &[u8]| {
            out.extend_from_slice(&value.len().to_le_bytes());
            out.extend_from_slice(value);
        };
        match self {
            // Of a length that the compiler knows, a copy is two instructions and no call.
            Self::Fixed(values, 8) => out.extend_from_slice(&fixed_at::<8>(values, row)),
            Self::Fixed(values, width) => out.extend_from_slice(&values[row * width..(row + 1) * width]),
            Self::Text(texts, ends) => {
                let end = |at: usize| usize::try_from(ends[at]).unwrap_or_default();
                with_length(&texts[end(row)..end(row + 1)]);
            }
            Self::Views(texts) => with_length(texts.value(row).as_bytes()),
            Self::Rows(rows) => with_length(rows.row(row).as_ref()),
        }
    }
}

impl Identities {
    /// For events of a dataset, in batches of that schema; `None` where nothing is ever a repeat.
    ///
    /// # Errors
    /// A column that is not there.
    pub fn new(dataset: &Dataset, schema: &Schema) -> Result<Option<Self>, ArrowError> {
        if dataset.event_id.is_empty() {
            return Ok(None);
        }
        let names = dataset.event_id.iter().map(String::as_str);
        let columns = names.chain([EVENT_TIME_COLUMN]).map(|name| schema.index_of(name));
        Ok(Some(Self {
            columns: columns.collect::<Result<_, _>>()?,
            kafka_time: schema.index_of(KAFKA_TIME_COLUMN)?,
        }))
    }

    /// To read identities of a batch's rows.
    ///
    /// # Errors
    /// A batch of another schema, or a column of a type that has no order.
    pub fn read<'a>(&self, batch: &'a RecordBatch) -> Result<Reading<'a>, ArrowError> {
        let columns = || self.columns.iter().map(|&column| batch.column(column));
        Ok(Reading {
            parts: columns().map(Part::of).collect::<Result<_, _>>()?,
            nulls: columns().fold(None, |nulls, column| NullBuffer::union(nulls.as_ref(), column.nulls())),
            bytes: Vec::new(),
        })
    }

    /// Each row's identity and Kafka timestamp.
    ///
    /// # Errors
    /// As [`Identities::read`].
    pub fn of(&self, batch: &RecordBatch) -> Result<Occurrences, ArrowError> {
        let mut reading = self.read(batch)?;
        let times = batch.column(self.kafka_time).as_primitive::<TimestampMicrosecondType>();
        Ok(Occurrences {
            ids: (0..batch.num_rows()).map(|row| reading.id(row)).collect(),
            times: times.values().iter().map(|at| at.div_euclid(1000)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use arrow::array::{BooleanArray, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::Field;

    use super::*;

    fn identities(columns: Vec<ArrayRef>) -> Occurrences {
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![5_000; columns[0].len()]));
        let columns = [columns, vec![time]].concat();
        let field = |(at, column): (usize, &ArrayRef)| Field::new(at.to_string(), column.data_type().clone(), true);
        let schema = Schema::new(columns.iter().enumerate().map(field).collect::<Vec<_>>());
        let identities = Identities {
            columns: (0..columns.len()).collect(),
            kafka_time: columns.len() - 1,
        };
        identities
            .of(&RecordBatch::try_new(Arc::new(schema), columns).unwrap())
            .unwrap()
    }

    fn texts(texts: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(texts.to_vec()))
    }

    /// Where one text ends and the next begins matters.
    #[test]
    fn other_values_are_other_events() {
        let found = identities(vec![
            texts(&[Some("ab"), Some("a"), Some("abc"), Some(""), Some("ab")]),
            texts(&[Some("c"), Some("bc"), Some(""), Some("abc"), Some("c")]),
        ]);
        let ids: Vec<_> = found.ids().iter().flatten().collect();
        assert_eq!(ids.len(), 5);
        assert_eq!(ids[0], ids[4]);
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 4);
        assert_eq!(found.times(), [5; 5]);
    }

    #[test]
    fn an_event_is_the_same_in_any_batch() {
        let columns: Vec<ArrayRef> = vec![
            texts(&[Some("a"), Some("b"), None, Some("c")]),
            Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(true), None])),
        ];
        let sliced = columns.iter().map(|column| column.slice(1, 3)).collect();
        let (all, part) = (identities(columns), identities(sliced));
        assert_eq!(all.ids()[1..], *part.ids());
        // A null anywhere, and nothing is known.
        assert_eq!(
            all.ids().iter().map(Option::is_some).collect::<Vec<_>>(),
            [true, true, false, false]
        );
    }
}
