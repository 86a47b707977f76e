//! The measure algebra: one table of the kinds of aggregate, for both layers and for ClickHouse.
//!
//! A kind is a set of *states*, each a column whose merge is a commutative monoid: it does not matter in which order
//! or in how many pieces events arrive, nor which layer made a piece. Everything else reads this table: which arguments
//! a kind takes, what DataFusion computes, what the tables hold, how SQL merges states and reads the result off them.
//!
//! | kind | states | merge | result |
//! |---|---|---|---|
//! | `count()`, `count(e)` | `count` UInt64 | sum | exact |
//! | `sum(e)` of int64, decimal | `sum` Decimal(38, s), null without values | sum | exact; 38 digits hold 10^10 values of 28 |
//! | `sum(e)` of float64 | `sum`, `magnitude` Float64, `count` | sum | error at most `count · ε · magnitude` |
//! | `min(e)`, `max(e)` | `min` or `max`, null without values | min, max | exact |
//! | `avg(e)` | as `sum(e)`, and `count` | sum | as its sum, then one division in Float64 |

mod algebra;
#[cfg(test)]
mod tests;

pub use algebra::{Exactness, KINDS, Kind, Merge, ResultType, State, StateType, Takes, kind, kind_names};
