//! ClickHouse: the tables, the rows that go in, and the one statement that merges both layers.
//!
//! Everything is text made from typed values, here and nowhere else: layers send it, they don't write SQL. A view's
//! own tables carry its fingerprint in their name, so two definitions never share a row.
//!
//! In reading order:
//! - [`quote`]: names and texts inside SQL
//! - [`tables`]: what is created, and why each engine, sorting key and partition is what it is
//! - [`rows`]: cells as Arrow rows of those tables
//! - [`statement`]: the merging statement
//! - [`check`]: what a run has written, counted before it is published
//! - [`compared`]: what two publications hold, side by side
//! - [`cells`]: what an answer is made of, for reconciliation

pub mod cells;
pub mod check;
pub mod compared;
pub mod quote;
pub mod rows;
pub mod statement;
pub mod tables;
#[cfg(test)]
mod tests;

pub use rows::{SpeedVersions, arrow_stream, batch_rows, speed_rows};
pub use statement::{
    Filter, FilterValues, Layers, Merging, Order, STATEMENT_LIMIT, Selection, Statement, StatementError, bound_column,
    confidence_column, error_column,
};
pub use tables::{Table, batch_table, control_tables, speed_table, view_tables};
