//! `first(e)` and `last(e)`: the value of the first and of the last event that has one.
//!
//! Events are in the order of their times, then of their offsets, then of their partitions. So it does not matter when an
//! event came, and a repeat changes nothing: it is the same event, with the same value. Only where a topic was deleted and made
//! again can two events stand at the same time, offset and partition; which of the two values counts is then open.

use datafusion::logical_expr::{Expr, ident};

use super::algebra::{Call, Kind, Merged};
use super::state::{Function, Reading, State};
use crate::dataset::{EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use crate::sketch::{self, Extreme, Side};
use crate::view::ValueType;

pub(super) const FIRST: Kind = Kind {
    name: "first",
    also: &["first_value", "earliest", "arg_min"],
    states: |call| vec![end("first", Side::First, call.value())],
    result,
    ..Kind::PLAIN
};

pub(super) const LAST: Kind = Kind {
    name: "last",
    also: &["last_value", "latest", "arg_max"],
    states: |call| vec![end("last", Side::Last, call.value())],
    result,
    ..Kind::PLAIN
};

fn end(suffix: &'static str, side: Side, value_type: ValueType) -> State {
    let function = Function {
        name: match side {
            Side::First => "argMin",
            Side::Last => "argMax",
        },
        of: format!("{}, Tuple(Int64, UInt64, UInt32)", value_type.clickhouse()),
        empty: sketch::empty_first(value_type),
        ..Function::default()
    };
    let make = move |value: Expr| {
        let [time, offset, partition] = [EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN].map(ident);
        match side {
            Side::First => sketch::first(value, time, offset, partition),
            Side::Last => sketch::last(value, time, offset, partition),
        }
    };
    let merge = move |states: Expr| match side {
        Side::First => sketch::merge_first(states, value_type),
        Side::Last => sketch::merge_last(states, value_type),
    };
    let read = move |bytes: &[u8]| {
        let mut state = Extreme::default();
        state.merge(side, value_type, bytes)?;
        let result = state.value().map_or_else(
            || "none".to_owned(),
            |(moment, value)| format!("{} at offset {}", text(value_type, value), moment.offset),
        );
        Ok(Reading {
            result,
            canonical: state.write(value_type),
        })
    };
    let contains = move |held: &[u8], less: &[u8]| {
        let mut all = Extreme::default();
        all.merge(side, value_type, held)?;
        let before = all.clone().write(value_type);
        all.merge(side, value_type, less)?;
        Ok(all.write(value_type) == before)
    };
    State::function(suffix, function, make, merge, read)
        .containing(contains)
        .kept_whole()
}

/// The function itself gives 0 or an empty text where there was no value. Its state is then the shortest that there is.
fn result(call: &Call, merged: &Merged<'_>) -> String {
    let [state] = merged.states else {
        return String::new();
    };
    let empty = sketch::empty_first(call.value());
    let digits: String = empty.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("if(hex({state}) = '{digits}', NULL, finalizeAggregation({state}))")
}

/// A value in ClickHouse's form, for people: moments in microseconds, days since 1970, decimals without their point.
fn text(value_type: ValueType, value: &[u8]) -> String {
    match value_type {
        ValueType::String => String::from_utf8_lossy(value).into_owned(),
        ValueType::Float64 => {
            let bytes = value.try_into().unwrap_or_default();
            f64::from_le_bytes(bytes).to_string()
        }
        _ => {
            let sign = if value.last().is_some_and(|last| *last >= 0x80) {
                0xFF
            } else {
                0
            };
            let mut bytes = [sign; 16];
            bytes.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
            i128::from_le_bytes(bytes).to_string()
        }
    }
}
