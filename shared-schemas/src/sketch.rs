//! The states of `distinct`, `quantiles`, `first` and `last`: made and merged in Rust, in the form that ClickHouse writes.
//!
//! A state is made once and merged anywhere: by the speed layer with an open cell, by a batch run, by the merging statement
//! with `-Merge`, or by whoever points a tool at the tables. So its bytes are ClickHouse's own, they travel as Arrow
//! `Binary`, and merging is free of order: the same values give the same bytes, however they were split and in whatever
//! order they came. (ClickHouse writes the elements of a set in the order of its hash table, which depends on history;
//! here they are sorted.)
//!
//! Pure states first ([`Uniq`], [`ExactSet`], [`DdSketch`], [`Extreme`]), then the functions that make DataFusion aggregates
//! of them, each in two: one takes values, one takes states (`merge_…`).

mod aggregate;
mod columns;
mod dd;
mod distinct;
mod extreme;
mod form;
mod function;
#[cfg(test)]
mod grouped;
mod identity;
#[cfg(test)]
mod laws;
mod sorted;
#[cfg(test)]
mod tests;
mod uniq;

use datafusion::logical_expr::Expr;

use crate::view::ValueType;

pub use dd::{DdSketch, QUANTILE_ERROR, SMALLEST_VALUE};
pub use distinct::{ExactSet, Identity};
pub use extreme::{Extreme, Moment, Side};
pub use form::Malformed;
pub use function::{Act, ByGroup, Kind};
pub use identity::{identities, identity, identity_is_wide};
pub use uniq::{KEPT_AT_MOST, Uniq, uniq_bound, uniq_bound_sql};

use function::call;

/// Aggregate of identities: the state of `uniq` over `UInt64`, of wide ones over their low 64 bits. Never null: no values
/// give the empty state.
pub fn uniq(identity: Expr) -> Expr {
    call(Kind::Uniq, Act::Make, vec![identity])
}

/// Aggregate of states of `uniq`: one state.
pub fn merge_uniq(states: Expr) -> Expr {
    call(Kind::Uniq, Act::Merge, vec![states])
}

/// Aggregate of identities: the state of `uniqExact` over `UInt64`, of wide ones over `UInt128`. Null once there are more
/// than so many.
pub fn uniq_exact(identity: Expr, limit: u64) -> Expr {
    // Whether they are wide, the column's type says.
    call(Kind::UniqExact { limit, wide: false }, Act::Make, vec![identity])
}

/// Aggregate of states of `uniqExact`: one state. Null where one of them is, or where together there are more than the limit.
pub fn merge_uniq_exact(states: Expr, limit: u64, wide: bool) -> Expr {
    call(Kind::UniqExact { limit, wide }, Act::Merge, vec![states])
}

/// Aggregate of doubles: the state of `quantilesDD(0.01, …)`. What is null or not finite is passed over, what is smaller than
/// [`SMALLEST_VALUE`] counts as zero.
pub fn quantiles_dd(value: Expr) -> Expr {
    call(Kind::QuantilesDd, Act::Make, vec![value])
}

/// Aggregate of states of `quantilesDD`: one state.
pub fn merge_quantiles_dd(states: Expr) -> Expr {
    call(Kind::QuantilesDd, Act::Merge, vec![states])
}

/// Aggregate: the value, of those that are not null, with the least event time; of several the one with the least offset,
/// then partition. The state of `argMin` of the value by `Tuple(Int64, UInt64, UInt32)`.
pub fn first(value: Expr, time: Expr, offset: Expr, partition: Expr) -> Expr {
    extreme(Side::First, value, time, offset, partition)
}

/// Aggregate: as [`first`], with the greatest; the state of `argMax`.
pub fn last(value: Expr, time: Expr, offset: Expr, partition: Expr) -> Expr {
    extreme(Side::Last, value, time, offset, partition)
}

/// Aggregate of states of [`first`]: one state.
pub fn merge_first(states: Expr, value_type: ValueType) -> Expr {
    let value_type = Some(value_type);
    let side = Side::First;
    call(Kind::Extreme { side, value_type }, Act::Merge, vec![states])
}

/// Aggregate of states of [`last`]: one state.
pub fn merge_last(states: Expr, value_type: ValueType) -> Expr {
    let value_type = Some(value_type);
    let side = Side::Last;
    call(Kind::Extreme { side, value_type }, Act::Merge, vec![states])
}

fn extreme(side: Side, value: Expr, time: Expr, offset: Expr, partition: Expr) -> Expr {
    // Of what type the values are, the column says.
    let value_type = None;
    let arguments = vec![value, time, offset, partition];
    call(Kind::Extreme { side, value_type }, Act::Make, arguments)
}

/// The state of `uniq` of no values.
pub fn empty_uniq() -> Vec<u8> {
    Uniq::default().write()
}

/// The state of `uniqExact` of no values, of either width.
pub fn empty_uniq_exact() -> Vec<u8> {
    ExactSet::<u64>::default().write()
}

/// The state of `quantilesDD(0.01, …)` of no values.
pub fn empty_quantiles_dd() -> Vec<u8> {
    DdSketch::default().write()
}

/// The state of `argMin` and `argMax` of no values.
pub fn empty_first(value_type: ValueType) -> Vec<u8> {
    Extreme::default().write(value_type)
}
