//! `argMin` and `argMax` by a moment: the first and the last value that is not null.
//!
//! A moment is the event time, then the offset, then the partition, so no two events of a dataset share one, and it does not
//! matter in which order they are looked at. Form: the value (a byte `01` and as many bytes as its type has; a string with a
//! zero behind it, and before it the length of both as `i32`), then `01` and the moment as `Int64, UInt64, UInt32`. Of no
//! values: `00`, of strings a length of -1, and `00` for the moment.

use arrow::array::{Array as _, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use datafusion::common::{Result, exec_datafusion_err};

use super::aggregate::{State, rows, scatter};
use super::columns::typed;
use super::form::{Malformed, Reader};
use crate::view::ValueType;

/// Which of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one with the least moment.
    First,
    /// The one with the greatest moment.
    Last,
}

/// Where an event stands among all of its dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// Its time, in µs.
    pub time: i64,
    /// Its offset.
    pub offset: u64,
    /// Kafka's partition number.
    pub partition: u32,
}

/// A value and its moment, or none yet.
#[derive(Debug, Clone, Default)]
pub struct Extreme {
    moment: Option<Moment>,
    /// As ClickHouse writes it, a string without its length.
    value: Vec<u8>,
    /// The row of the batch at hand that holds the value, until it is copied.
    row: Option<usize>,
}

/// How many bytes a value takes; a string as many as it has.
fn width(value_type: ValueType) -> Option<usize> {
    Some(match value_type {
        ValueType::String => return None,
        ValueType::Bool => 1,
        ValueType::Date => 4,
        ValueType::Int64 | ValueType::Float64 | ValueType::Timestamp => 8,
        // As ClickHouse's Decimal32, Decimal64 and Decimal128.
        ValueType::Decimal { precision: ..=9, .. } => 4,
        ValueType::Decimal { precision: ..=18, .. } => 8,
        ValueType::Decimal { .. } => 16,
    })
}

impl Extreme {
    /// Takes a value, in ClickHouse's form without a string's length, if its moment is further to that side.
    pub fn insert(&mut self, side: Side, moment: Moment, value: &[u8]) {
        if self.wins(side, moment) {
            self.moment = Some(moment);
            self.value.clear();
            self.value.extend_from_slice(value);
        }
    }

    #[inline]
    fn wins(&self, side: Side, moment: Moment) -> bool {
        match (side, self.moment) {
            (_, None) => true,
            (Side::First, Some(held)) => moment < held,
            (Side::Last, Some(held)) => moment > held,
        }
    }

    /// Takes what another state holds, from its bytes.
    ///
    /// # Errors
    /// Bytes that are no state of such values; this one is then as it was.
    pub fn merge(&mut self, side: Side, value_type: ValueType, state: &[u8]) -> Result<(), Malformed> {
        if let Some((moment, value)) = read(value_type, state)? {
            self.insert(side, moment, value);
        }
        Ok(())
    }

    /// Its bytes, put behind others.
    pub fn write_to(&self, value_type: ValueType, out: &mut Vec<u8>) {
        let string = value_type == ValueType::String;
        let Some(moment) = self.moment else {
            out.extend_from_slice(if string { &[0xFF, 0xFF, 0xFF, 0xFF, 0] } else { &[0, 0] });
            return;
        };
        if string {
            // A record is a few megabytes at most.
            let length = i32::try_from(self.value.len() + 1).unwrap_or(i32::MAX);
            out.extend(length.to_le_bytes());
            out.extend_from_slice(&self.value);
            out.push(0);
        } else {
            out.push(1);
            out.extend_from_slice(&self.value);
        }
        out.push(1);
        out.extend(moment.time.to_le_bytes());
        out.extend(moment.offset.to_le_bytes());
        out.extend(moment.partition.to_le_bytes());
    }

    /// Its bytes.
    pub fn write(self, value_type: ValueType) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(value_type, &mut out);
        out
    }

    /// The value, in ClickHouse's form without a string's length, and its moment.
    pub fn value(&self) -> Option<(Moment, &[u8])> {
        self.moment.map(|moment| (moment, self.value.as_slice()))
    }
}

fn read(value_type: ValueType, state: &[u8]) -> Result<Option<(Moment, &[u8])>, Malformed> {
    let mut reader = Reader::new("argMin or argMax", state);
    let value = match width(value_type) {
        Some(width) => match reader.byte()? {
            0 => None,
            1 => Some(reader.bytes(width)?),
            _ => return Err(reader.malformed("a value neither there nor not")),
        },
        None => match i32::from_le_bytes(reader.array()?) {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| reader.malformed("a length below zero"))?;
                match reader.bytes(length)? {
                    [value @ .., 0] => Some(value),
                    _ => return Err(reader.malformed("a string without a zero at its end")),
                }
            }
        },
    };
    let there = reader.byte()?;
    match value {
        Some(value) if there == 1 => {
            let moment = Moment {
                time: i64::from_le_bytes(reader.array()?),
                offset: u64::from_le_bytes(reader.array()?),
                partition: u32::from_le_bytes(reader.array()?),
            };
            reader.end()?;
            Ok(Some((moment, value)))
        }
        None if there == 0 => reader.end().map(|()| None),
        _ => Err(reader.malformed("a value without a moment, or the other way round")),
    }
}

/// Which values a column of states is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) side: Side,
    pub(super) value_type: ValueType,
}

impl State for Extreme {
    type Rule = Rule;

    fn none(_: &Rule) -> Self {
        Self::default()
    }

    fn take(
        rule: &Rule,
        groups: &mut [Self],
        columns: &[ArrayRef],
        group_of: &[usize],
        kept: Option<&NullBuffer>,
    ) -> Result<usize> {
        let [values, times, offsets, partitions] = columns else {
            return Err(exec_datafusion_err!("first and last take a value and its moment"));
        };
        let times = typed::<TimestampMicrosecondType>(times)?;
        let offsets = typed::<Int64Type>(offsets)?;
        let partitions = typed::<Int32Type>(partitions)?;
        rows(group_of, kept, |group, row| {
            let moment = Moment {
                time: times.value(row),
                offset: offsets.value(row).cast_unsigned(),
                partition: partitions.value(row).cast_unsigned(),
            };
            let held = &mut groups[group];
            if held.wins(rule.side, moment) {
                held.moment = Some(moment);
                held.row = Some(row);
            }
        });
        // Only what won in the end is copied.
        let mut copy = copier(values, rule.value_type)?;
        Ok(scatter(groups, group_of, kept, |held, row| {
            if held.row == Some(row) {
                held.row = None;
                held.value.clear();
                copy(row, &mut held.value);
            }
        }))
    }

    fn join(&mut self, rule: &Rule, state: Option<&[u8]>) -> Result<(), Malformed> {
        match state {
            Some(state) => self.merge(rule.side, rule.value_type, state),
            None => Ok(()),
        }
    }

    fn emit(&mut self, rule: &Rule, out: &mut Vec<u8>) -> bool {
        self.write_to(rule.value_type, out);
        true
    }

    fn heap(&self) -> usize {
        self.value.capacity()
    }
}

/// Puts the value of a row, in ClickHouse's form, behind what is there.
type Copier<'a> = Box<dyn FnMut(usize, &mut Vec<u8>) + 'a>;

fn copier(values: &ArrayRef, value_type: ValueType) -> Result<Copier<'_>> {
    let width = width(value_type).unwrap_or_default();
    Ok(match values.data_type() {
        DataType::Utf8 => {
            let values = values.as_string::<i32>();
            Box::new(|row, out| out.extend_from_slice(values.value(row).as_bytes()))
        }
        DataType::Boolean => {
            let values = values.as_boolean();
            Box::new(|row, out| out.push(u8::from(values.value(row))))
        }
        DataType::Int64 => {
            let values = typed::<Int64Type>(values)?;
            Box::new(|row, out| out.extend(values.value(row).to_le_bytes()))
        }
        DataType::Float64 => {
            let values = typed::<Float64Type>(values)?;
            Box::new(|row, out| out.extend(values.value(row).to_le_bytes()))
        }
        DataType::Date32 => {
            let values = typed::<Date32Type>(values)?;
            Box::new(|row, out| out.extend(values.value(row).to_le_bytes()))
        }
        DataType::Timestamp(..) => {
            let values = typed::<TimestampMicrosecondType>(values)?;
            Box::new(|row, out| out.extend(values.value(row).to_le_bytes()))
        }
        // So many digits fit into so many bytes.
        DataType::Decimal128(..) => {
            let values = typed::<Decimal128Type>(values)?;
            Box::new(move |row, out| out.extend_from_slice(&values.value(row).to_le_bytes()[..width]))
        }
        other => return Err(exec_datafusion_err!("first and last know no values of type {other}")),
    })
}
