//! What two publications of a view hold, side by side: totals by day, and the cells that differ.
//!
//! For people and for a run's check of itself. Rows of a run never change, so days that both publications have from the same run
//! are equal without being looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::quote::{identifier, table};
use super::statement::{LENGTHY, Parameters, Statement, list, settings};
use super::tables::{DAY_COLUMN, RUN_COLUMN, TOPIC_COLUMN, batch_table_name, speed_table_name};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{EventDay, Mark, Partition, RunId};
use crate::measure::Held;
use crate::plan::{CellKey, FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN, key_fields};
use crate::view::{StateColumn, View};

/// A day and the run that holds it.
pub type DaysOfRuns = BTreeMap<EventDay, RunId>;

/// The columns of a view's cells that add up, in the rows of both layers: how often expressions failed, counts, and sums.
pub fn additive(view: &View) -> Vec<String> {
    let of_both = |column: &StateColumn<'_>| column.state.is_additive() && column.state.held == Held::Both;
    let states = view.states().filter(of_both);
    std::iter::once(FAILED_COLUMN.to_owned())
        .chain(states.map(|column| column.name))
        .collect()
}

/// The statement that gives for each of those days and runs one line: the day as a number, the run, how many cells, and for
/// each of [`additive`] its total and that of its magnitudes. Ask for `TabSeparated`.
pub fn day_totals(database: &str, view: &View, held: &[&DaysOfRuns]) -> Statement {
    let mut parameters = Parameters::default();
    let totals = additive(view);
    let totals = totals.iter().map(|column| {
        let column = identifier(column);
        format!(", sum({column}), sum(abs({column}))")
    });
    let (day, run) = (identifier(DAY_COLUMN), identifier(RUN_COLUMN));
    let rows = of_runs(held.iter().flat_map(|held| held.iter()), &mut parameters);
    Statement {
        sql: format!(
            "SELECT toInt32({day}) AS _d, {run} AS _r, count(){} FROM {} FINAL WHERE {rows} GROUP BY _d, _r ORDER BY _d, _r",
            totals.collect::<String>(),
            table(database, &batch_table_name(view)),
        ),
        parameters: parameters.0,
        settings: in_lines(),
    }
}

/// The statement that gives for each of those days one line as [`day_totals`] does, 0 as its run, of the speed layer's rows that count
/// between the two marks of each partition. The later marks must be chunks' first offsets. Ask for `TabSeparated`.
pub fn speed_totals(
    database: &str,
    view: &View,
    marks: &BTreeMap<Partition, (Mark, Mark)>,
    days: &BTreeSet<EventDay>,
) -> Statement {
    let mut parameters = Parameters::default();
    let start = identifier(START_COLUMN);
    let of_partition = |(partition, (from, to)): (&Partition, &(Mark, Mark))| {
        let topic = parameters.add("UInt128", &partition.topic.0);
        let number = parameters.add("UInt32", &partition.number);
        let (from, to) = (parameters.add("UInt64", &from.0.0), parameters.add("UInt64", &to.0.0));
        format!(
            "({} = {topic} AND {} = {number} AND {start} < {to} AND ({start} = {from} OR ({start} >= {from} AND \
             {start} % {} = 0)))",
            identifier(TOPIC_COLUMN),
            identifier(PARTITION_COLUMN),
            view.chunk,
        )
    };
    let rows: Vec<_> = marks.iter().map(of_partition).collect();
    let rows = if rows.is_empty() {
        "0".to_owned()
    } else {
        rows.join(" OR ")
    };
    let days = parameters.add("Array(Int32)", &list(days.iter().map(|day| day.0)));
    let totals = additive(view);
    let totals = totals.iter().map(|column| {
        let column = identifier(column);
        format!(", sum({column}), sum(abs({column}))")
    });
    let day = format!("toInt32(toDate32({}))", identifier(WINDOW_COLUMN));
    Statement {
        sql: format!(
            "SELECT {day} AS _d, 0, count(){} FROM {} FINAL WHERE has({days}, {day}) AND ({rows}) GROUP BY _d ORDER BY _d",
            totals.collect::<String>(),
            table(database, &speed_table_name(view)),
        ),
        parameters: parameters.0,
        settings: in_lines(),
    }
}

/// The statement that gives the cells whose rows are not the same bytes, in the order of their keys: the values of the key as a list of
/// texts, how many rows either side has, and then each state's text on either side, in the order of [`View::states`]. States of
/// ClickHouse's functions come as hexadecimal digits; the bytes of two may differ and mean the same, so of a view that has
/// any all cells come, and of others the first so many. Ask for `JSONCompactEachRow`.
pub fn different_cells(database: &str, view: &View, sides: [&DaysOfRuns; 2], limit: usize) -> Statement {
    let limit = if view.states().any(|column| column.state.is_serialized()) {
        String::new()
    } else {
        format!(" LIMIT {limit}")
    };
    let mut parameters = Parameters::default();
    let keys: Vec<_> = key_fields(view, CellKey::Cell)
        .iter()
        .map(|field| identifier(field.name()))
        .collect();
    let states: Vec<_> = view
        .states()
        .map(|column| {
            let name = identifier(&column.name);
            if column.state.is_serialized() {
                format!("hex({name})")
            } else {
                format!("ifNull(toString({name}), 'null')")
            }
        })
        .collect();
    let texts: Vec<_> = states
        .iter()
        .enumerate()
        .map(|(at, state)| format!("{state} AS _s{at}"))
        .collect();
    let key_texts: Vec<_> = keys
        .iter()
        .map(|key| format!("ifNull(toString({key}), 'null')"))
        .collect();
    let mut parts = Vec::new();
    for (side, days) in (1..).zip(sides) {
        parts.push(format!(
            "SELECT {}, [{}] AS _k, {side} AS _side{} FROM {} FINAL WHERE {}",
            keys.join(", "),
            key_texts.join(", "),
            texts.iter().map(|text| format!(", {text}")).collect::<String>(),
            table(database, &batch_table_name(view)),
            of_runs(days.iter(), &mut parameters),
        ));
    }
    let of_sides =
        (0..states.len()).map(|at| format!("anyIf(_s{at}, _side = 1) AS _a{at}, anyIf(_s{at}, _side = 2) AS _b{at}"));
    let columns: Vec<_> = [
        "any(_k) AS _key",
        "countIf(_side = 1) AS _na",
        "countIf(_side = 2) AS _nb",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(of_sides)
    .collect();
    let differ =
        std::iter::once("_na != _nb".to_owned()).chain((0..states.len()).map(|at| format!("_a{at} != _b{at}")));
    Statement {
        sql: format!(
            "SELECT {} FROM (\n  {}\n) GROUP BY {} HAVING {} ORDER BY {}{limit}",
            columns.join(", "),
            parts.join("\n  UNION ALL\n  "),
            keys.join(", "),
            differ.collect::<Vec<_>>().join(" OR "),
            keys.join(", "),
        ),
        parameters: parameters.0,
        // States of `quantilesDD` made the engine stand still on several threads, in Arrow; this statement's format was not tried.
        settings: in_lines().into_iter().chain([("max_threads", "1")]).collect(),
    }
}

/// The rows of those days and runs.
fn of_runs<'a>(days: impl Iterator<Item = (&'a EventDay, &'a RunId)>, parameters: &mut Parameters) -> String {
    let mut runs: BTreeMap<RunId, Vec<i32>> = BTreeMap::new();
    for (day, run) in days {
        runs.entry(*run).or_default().push(day.0);
    }
    let of_run = runs.into_iter().map(|(run, days)| {
        let run = parameters.add("UInt128", &run.0);
        let days = parameters.add("Array(Int32)", &list(days));
        let (run_column, day_column) = (identifier(RUN_COLUMN), identifier(DAY_COLUMN));
        format!("({run_column} = {run} AND {day_column} IN arrayMap(day -> toDate32(day), {days}))")
    });
    let of_runs: Vec<_> = of_run.collect();
    if of_runs.is_empty() {
        "0".to_owned()
    } else {
        format!("({})", of_runs.join(" OR "))
    }
}

/// Of a statement whose lines are read as numbers.
fn in_lines() -> Vec<(&'static str, &'static str)> {
    let mut settings = settings(LENGTHY);
    settings.push(("output_format_json_quote_64bit_integers", "0"));
    settings
}
