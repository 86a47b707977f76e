//! Growing columns that can forget their last rows: a refused record may have filled some of its columns already.
//!
//! Arrow's own string builder cannot be cut back. Plain vectors can, and become Arrow buffers without a copy; appending at
//! once and cutting back on the rare refusal was faster than to convert a whole record first and append it then.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, TimeUnit};

use crate::dataset::FieldType;

/// The Arrow type of a moment.
pub(super) fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The Arrow type of a declared field.
pub(super) fn arrow_type(field_type: FieldType) -> DataType {
    match field_type {
        FieldType::String => DataType::Utf8,
        FieldType::Bool => DataType::Boolean,
        FieldType::Int64 => DataType::Int64,
        FieldType::Float64 => DataType::Float64,
        FieldType::Decimal { precision, scale } => DataType::Decimal128(precision, scale.cast_signed()),
        FieldType::Timestamp { .. } => moment_type(),
        FieldType::Date => DataType::Date32,
    }
}

/// A column's values so far.
pub(super) struct Column {
    pub(super) values: Values,
    /// Which rows are not null; nothing where none may be.
    valid: Option<BooleanBufferBuilder>,
}

pub(super) enum Values {
    Text(Text),
    Bool(BooleanBufferBuilder),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Decimal(Vec<i128>, u8, u8),
    Moment(Vec<i64>),
    Day(Vec<i32>),
}

/// Texts end to end, and where each ends; the first entry is 0.
#[derive(Default)]
pub(super) struct Text {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Text {
    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    /// The decoder seals a batch long before its texts reach 2 GiB.
    fn end(&mut self) {
        if self.ends.is_empty() {
            self.ends.push(0);
        }
        self.ends.push(i32::try_from(self.bytes.len()).unwrap_or(i32::MAX));
    }
}

impl Column {
    pub(super) fn new(values: Values, nullable: bool) -> Self {
        Column {
            values,
            valid: nullable.then(|| BooleanBufferBuilder::new(0)),
        }
    }

    pub(super) fn of(field_type: FieldType, nullable: bool) -> Self {
        let values = match field_type {
            FieldType::String => Values::Text(Text::default()),
            FieldType::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            FieldType::Int64 => Values::Int64(Vec::new()),
            FieldType::Float64 => Values::Float64(Vec::new()),
            FieldType::Decimal { precision, scale } => Values::Decimal(Vec::new(), precision, scale),
            FieldType::Timestamp { .. } => Values::Moment(Vec::new()),
            FieldType::Date => Values::Day(Vec::new()),
        };
        Column::new(values, nullable)
    }

    /// Marks the row whose value was pushed as not null.
    #[inline]
    fn mark(&mut self, valid: bool) {
        if let Some(bits) = &mut self.valid {
            bits.append(valid);
        }
    }

    pub(super) fn push_null(&mut self) {
        self.mark(false);
        match &mut self.values {
            Values::Text(text) => text.end(),
            Values::Bool(values) => values.append(false),
            Values::Int32(values) | Values::Day(values) => values.push(0),
            Values::Int64(values) | Values::Moment(values) => values.push(0),
            Values::Float64(values) => values.push(0.0),
            Values::Decimal(values, ..) => values.push(0),
        }
    }

    /// Keeps the first `rows` rows.
    pub(super) fn truncate(&mut self, rows: usize) {
        if let Some(bits) = &mut self.valid {
            bits.truncate(rows);
        }
        match &mut self.values {
            Values::Text(text) => {
                text.ends.truncate(rows + 1);
                let end = text.ends.last().map_or(0, |&end| usize::try_from(end).unwrap_or(0));
                text.bytes.truncate(end);
            }
            Values::Bool(values) => values.truncate(rows),
            Values::Int32(values) | Values::Day(values) => values.truncate(rows),
            Values::Int64(values) | Values::Moment(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Decimal(values, ..) => values.truncate(rows),
        }
    }

    /// The last row's moment.
    pub(super) fn last_moment(&self) -> Option<i64> {
        match &self.values {
            Values::Moment(values) => values.last().copied(),
            _ => None,
        }
    }

    /// The column as an array; it is empty again then, with room for as many rows as it had.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let nulls = self.valid.as_mut().map(|bits| NullBuffer::new(bits.finish()));
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        match &mut self.values {
            Values::Text(text) => {
                let Text { mut ends, bytes } = std::mem::take(text);
                text.ends.reserve(ends.len());
                text.bytes.reserve(bytes.len());
                if ends.is_empty() {
                    ends.push(0);
                }
                let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(StringArray::new(ends, Buffer::from_vec(bytes), nulls))
            }
            Values::Bool(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int32(values) => Arc::new(Int32Array::new(taken(values).into(), nulls)),
            Values::Int64(values) => Arc::new(Int64Array::new(taken(values).into(), nulls)),
            Values::Float64(values) => Arc::new(Float64Array::new(taken(values).into(), nulls)),
            Values::Decimal(values, precision, scale) => {
                let data_type = arrow_type(FieldType::Decimal {
                    precision: *precision,
                    scale: *scale,
                });
                Arc::new(Decimal128Array::new(taken(values).into(), nulls).with_data_type(data_type))
            }
            Values::Moment(values) => {
                Arc::new(TimestampMicrosecondArray::new(taken(values).into(), nulls).with_timezone("UTC"))
            }
            Values::Day(values) => Arc::new(Date32Array::new(taken(values).into(), nulls)),
        }
    }
}

fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(values.len());
    std::mem::replace(values, room)
}

macro_rules! push {
    ($($name:ident, $variant:ident, $value:ty;)*) => { $(
        impl Column {
            /// Appends a value; a column of another type takes null instead, which no checked dataset can cause.
            #[inline]
            pub(super) fn $name(&mut self, value: $value) {
                match &mut self.values {
                    Values::$variant(values, ..) => {
                        values.push(value);
                        self.mark(true);
                    }
                    _ => self.push_null(),
                }
            }
        }
    )* };
}

push! {
    push_text, Text, &str;
    push_int32, Int32, i32;
    push_int64, Int64, i64;
    push_float64, Float64, f64;
    push_decimal, Decimal, i128;
    push_moment, Moment, i64;
    push_day, Day, i32;
}

impl Column {
    #[inline]
    pub(super) fn push_bool(&mut self, value: bool) {
        if let Values::Bool(values) = &mut self.values {
            values.append(value);
            self.mark(true);
        } else {
            self.push_null();
        }
    }
}
