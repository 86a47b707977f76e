//! What a run has written, counted in the store before it is published.

use std::ops::RangeInclusive;

use super::quote::{identifier, table};
use super::statement::{LENGTHY, Statement, settings};
use super::tables::{DAY_COLUMN, RUN_COLUMN, batch_table_name};
use crate::handoff::{EventDay, RunId};
use crate::plan::FAILED_COLUMN;
use crate::view::View;

/// The columns of a view's cells that add up exactly: how often expressions failed, and every count.
pub fn exact_sums(view: &View) -> Vec<String> {
    let counts = view
        .states()
        .filter(|column| column.state.is_count())
        .map(|column| column.name);
    std::iter::once(FAILED_COLUMN.to_owned()).chain(counts).collect()
}

/// The statement that gives, as one row, how many cells a run has in those days, and the sums of [`exact_sums`]. All days
/// of the run must lie within.
pub fn run_totals(database: &str, view: &View, run: RunId, days: &RangeInclusive<EventDay>) -> Statement {
    let sums = exact_sums(view);
    let sums = sums.iter().map(|column| format!(", sum({})", identifier(column)));
    let (day, of_run) = (identifier(DAY_COLUMN), identifier(RUN_COLUMN));
    Statement {
        sql: format!(
            "SELECT count(){} FROM {} FINAL WHERE {day} BETWEEN toDate32({{first:Int32}}) AND toDate32({{last:Int32}}) \
             AND {of_run} = {{run:UInt128}}",
            sums.collect::<String>(),
            table(database, &batch_table_name(view)),
        ),
        parameters: vec![
            ("first".to_owned(), days.start().0.to_string()),
            ("last".to_owned(), days.end().0.to_string()),
            ("run".to_owned(), run.0.to_string()),
        ],
        settings: settings(LENGTHY),
    }
}
