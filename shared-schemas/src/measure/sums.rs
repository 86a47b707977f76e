//! `sum(e)` and `avg(e)`.
//!
//! Whole numbers and decimals are added up in 38 digits, of which a value may have 28, so that no sum overflows. Doubles
//! are added up as doubles; beside them the sum of their magnitudes and their count say how far rounding can have come.

use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::logical_expr::cast;

use super::algebra::{Call, Exactness, Kind, ResultType};
use super::counts::number;
use super::state::State;
use crate::view::{ValueType, magnitude};

pub(super) const SUM: Kind = Kind {
    name: "sum",
    also: &["total"],
    accepts: ValueType::is_number,
    accepts_what: "a number",
    adds_up: true,
    states: sums,
    result_type: |call| ResultType::Value(sum_type(call)),
    result: |call, merged| match merged.states {
        [sum, _, count] if call.is_of_float() => format!("if({count} = 0 OR NOT isFinite({sum}), NULL, {sum})"),
        states => states.join(""),
    },
    exactness: |call| {
        if call.is_of_float() {
            Exactness::Rounded
        } else {
            Exactness::Exact
        }
    },
    // ε is 2^-52. Each of n additions rounds by at most half of it, in any order and in any pieces.
    bound: |call, merged| match merged.states {
        [_, magnitude, count] if call.is_of_float() => Some(format!(
            "if({count} = 0, NULL, {count} * 2.220446049250313e-16 * {magnitude})"
        )),
        _ => None,
    },
    ..Kind::PLAIN
};

pub(super) const AVG: Kind = Kind {
    name: "avg",
    also: &["mean", "average"],
    accepts: ValueType::is_number,
    accepts_what: "a number",
    adds_up: true,
    states: |call| {
        let mut states = sums(call);
        if !call.is_of_float() {
            states.push(number());
        }
        states
    },
    result_type: |_| ResultType::Value(ValueType::Float64),
    result: |call, merged| match merged.states {
        [sum, _, count] if call.is_of_float() => {
            format!("if({count} = 0 OR NOT isFinite({sum}), NULL, {sum} / {count})")
        }
        [sum, count] => format!("if({count} = 0, NULL, toFloat64({sum}) / {count})"),
        _ => String::new(),
    },
    exactness: |_| Exactness::Rounded,
    bound: |call, merged| match merged.states {
        [_, magnitude, count] if call.is_of_float() => Some(format!(
            "if({count} = 0, NULL, ({count} + 1) * 2.220446049250313e-16 * {magnitude} / {count})"
        )),
        _ => None,
    },
    ..Kind::PLAIN
};

/// A sum that cannot overflow: 38 digits, of which a value may have 28.
fn sum_type(call: &Call) -> ValueType {
    match call.argument {
        Some(ValueType::Float64) => ValueType::Float64,
        Some(ValueType::Decimal { scale, .. }) => ValueType::Decimal { precision: 38, scale },
        _ => ValueType::Decimal {
            precision: 38,
            scale: 0,
        },
    }
}

fn sums(call: &Call) -> Vec<State> {
    let total = sum_type(call);
    let added = State::sum("sum", total, move |value| sum(cast(value, total.arrow())));
    if call.is_of_float() {
        let magnitudes = State::sum("magnitude", total, |value| sum(magnitude(value)));
        vec![added, magnitudes, number()]
    } else {
        vec![added.or_null()]
    }
}
