//! The measure algebra: one table of the kinds of aggregate, for both layers and for ClickHouse.
//!
//! A kind is a set of *states*, each a column whose merge is a commutative monoid: it does not matter in which order
//! or in how many pieces events arrive, nor which layer made a piece. Everything else reads this table: which arguments
//! a kind takes, what DataFusion computes, what the tables hold, how SQL merges states and reads the result off them,
//! and how far the result may be from the truth. A kind is an entry in [`KINDS`], and no other code knows it by name;
//! `docs/adding-a-measure.md` adds one.
//!
//! | kind | states | merge | result |
//! |---|---|---|---|
//! | `count()`, `count(e)` | `count` UInt64 | sum | exact |
//! | `sum(e)` of int64, decimal | `sum` Decimal(38, s), null without values | sum | exact; 38 digits hold 10^10 values of 28 |
//! | `sum(e)` of float64 | `sum`, `magnitude` Float64, `count` | sum | error at most `count · ε · magnitude` |
//! | `min(e)`, `max(e)` | `min` or `max`, null without values | min, max | exact |
//! | `avg(e)` | as `sum(e)`, and `count` | sum | as its sum, then one division in Float64 |
//! | `distinct(e)` | `sketch`; in batch rows also `exact` and `beyond` | `uniq`, `uniqExact`, sum | exact where all is batch and no set was too large, else an estimate |
//! | `quantiles(e, […])` | `sketch` | `quantilesDD` | an estimate, within 1 % of the value |
//! | `first(e)`, `last(e)` | `first` or `last` | `argMin`, `argMax` by event time, then offset | exact |

mod algebra;
mod counts;
mod distinct;
mod ends;
mod extremes;
mod quantiles;
mod state;
mod sums;
#[cfg(test)]
mod tests;

pub use algebra::{Call, Estimate, Exactness, KINDS, Kind, Merged, ResultType, Takes, kind, kind_names, meant};
pub use state::{Columns, Held, Reading, State};
