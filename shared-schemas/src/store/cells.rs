//! The cells that an answer is made of, whole: each state merged over both layers' rows, for comparing them with a
//! computation from the archive.
//!
//! It is the merging statement's inner half, at the view's own grain and with all dimensions; but speed rows only up to a
//! given start of each partition, since rows beyond may be ahead of the archive.

use std::collections::{BTreeMap, BTreeSet};

use super::quote::{identifier, table};
use super::statement::Statement;
use super::tables::{DAY_COLUMN, NEXT_COLUMN, RUN_COLUMN, TOPIC_COLUMN, batch_table_name, speed_table_name};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{EventDay, Mark, Partition, Publication, RunId, Start};
use crate::measure::Held;
use crate::plan::{CellKey, FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN, key_fields};
use crate::view::{StateColumn, View};

/// Name of the column that says which layers' rows made a cell: 1 batch, 2 speed, 3 both.
pub const LAYERS_COLUMN: &str = "_layers";

const SECONDS_PER_DAY: i64 = 86_400;

/// Which cells.
#[derive(Debug, Clone, Copy)]
pub struct HeldCells<'a> {
    /// The database.
    pub database: &'a str,
    /// The view.
    pub view: &'a View,
    /// The publication whose batch rows count; `None` for none.
    pub publication: Option<&'a Publication>,
    /// For each partition its mark, and the first start that does not count any more.
    pub starts: &'a BTreeMap<Partition, (Mark, Start)>,
    /// The event days.
    pub days: &'a BTreeSet<EventDay>,
}

impl HeldCells<'_> {
    /// The statement: one row for each cell, with the columns of the plan's cells and [`LAYERS_COLUMN`]. States that only the
    /// batch layer keeps are whole where all rows are its. States of ClickHouse's functions come as hexadecimal digits. `None` where nothing counts. Ask for `ArrowStream`.
    pub fn statement(&self) -> Option<Statement> {
        let keys: Vec<_> = key_fields(self.view, CellKey::Cell)
            .iter()
            .map(|field| identifier(field.name()))
            .collect();
        let states: Vec<_> = self.view.states().collect();
        let columns = |of_batch: bool| {
            let of_state = |column: &StateColumn<'_>| match column.state.held {
                Held::Batch if !of_batch => format!("{} AS {}", column.state.empty_sql(), identifier(&column.name)),
                Held::Batch | Held::Both => identifier(&column.name),
            };
            let key = keys.iter().cloned().chain([identifier(FAILED_COLUMN)]);
            key.chain(states.iter().map(of_state)).collect::<Vec<_>>().join(", ")
        };
        let mut parameters = Vec::new();
        let mut add = |clickhouse_type: &str, value: String| {
            let name = format!("p{}", parameters.len());
            let sql = format!("{{{name}:{clickhouse_type}}}");
            parameters.push((name, value));
            sql
        };
        let mut parts = Vec::new();
        let batch: Vec<_> = self
            .runs()
            .into_iter()
            .map(|(run, days)| {
                let run = add("UInt128", run.0.to_string());
                let days = add("Array(Int32)", list(&days));
                let (run_column, day_column) = (identifier(RUN_COLUMN), identifier(DAY_COLUMN));
                format!("({run_column} = {run} AND {day_column} IN arrayMap(day -> toDate32(day), {days}))")
            })
            .collect();
        if !batch.is_empty() {
            parts.push(format!(
                "SELECT {}, 1 AS _layer FROM {} FINAL WHERE {}",
                columns(true),
                table(self.database, &batch_table_name(self.view)),
                batch.join(" OR ")
            ));
        }
        let start = identifier(START_COLUMN);
        let speed: Vec<_> = self
            .starts
            .iter()
            .filter(|(_, (mark, upto))| *upto > mark.start())
            .map(|(partition, (mark, upto))| {
                let topic = add("UInt128", partition.topic.0.to_string());
                let number = add("UInt32", partition.number.to_string());
                let mark = add("UInt64", mark.0.0.to_string());
                let upto = add("UInt64", upto.0.0.to_string());
                format!(
                    "({} = {topic} AND {} = {number} AND {start} < {upto} AND \
                     ({start} = {mark} OR ({start} >= {mark} AND {start} % {} = 0)))",
                    identifier(TOPIC_COLUMN),
                    identifier(PARTITION_COLUMN),
                    self.view.chunk,
                )
            })
            .collect();
        if let (false, Some(first), Some(last)) = (speed.is_empty(), self.days.first(), self.days.last()) {
            let window = identifier(WINDOW_COLUMN);
            let from = add("Int64", (i64::from(first.0) * SECONDS_PER_DAY).to_string());
            let to = add("Int64", ((i64::from(last.0) + 1) * SECONDS_PER_DAY).to_string());
            let days = add(
                "Array(Int32)",
                list(&self.days.iter().map(|day| day.0).collect::<Vec<_>>()),
            );
            parts.push(format!(
                "SELECT {}, 2 AS _layer FROM {} FINAL WHERE {window} >= toDateTime64({from}, 0, 'UTC') AND \
                 {window} < toDateTime64({to}, 0, 'UTC') AND \
                 toDate32({window}) IN arrayMap(day -> toDate32(day), {days}) AND ({})",
                columns(false),
                table(self.database, &speed_table_name(self.view)),
                speed.join(" OR "),
            ));
        }
        if parts.is_empty() {
            return None;
        }
        // Under other names than the columns', which they would hide.
        let merged = std::iter::once(format!("sum({}) AS _f", identifier(FAILED_COLUMN))).chain(
            states
                .iter()
                .enumerate()
                .map(|(at, column)| format!("{} AS _s{at}", column.state.merge_states_sql(&identifier(&column.name)))),
        );
        let named = std::iter::once(format!("_f AS {}", identifier(FAILED_COLUMN))).chain(
            states
                .iter()
                .enumerate()
                .map(|(at, column)| format!("_s{at} AS {}", identifier(&column.name))),
        );
        let by = keys.join(", ");
        let sql = format!(
            "SELECT {by}, {}, toUInt8(_l) AS {LAYERS_COLUMN} FROM (\n  SELECT {by}, {}, groupBitOr(_layer) AS _l\n  \
             FROM (\n    {}\n  )\n  GROUP BY {by}\n)",
            named.collect::<Vec<_>>().join(", "),
            merged.collect::<Vec<_>>().join(", "),
            parts.join("\n    UNION ALL\n    "),
        );
        Some(Statement {
            sql,
            parameters,
            // On several threads the engine (26.5) comes to a standstill in about half the tries at a month of a year's
            // flights with states of `quantilesDD` in them: its threads wait for each other, and no limit of time ends it.
            settings: settings().into_iter().chain([("max_threads", "1")]).collect(),
        })
    }

    fn runs(&self) -> BTreeMap<RunId, Vec<i32>> {
        let mut runs: BTreeMap<RunId, Vec<i32>> = BTreeMap::new();
        let held = self.publication.into_iter().flat_map(|publication| &publication.days);
        for (day, run) in held.filter(|(day, _)| self.days.contains(day)) {
            runs.entry(*run).or_default().push(day.0);
        }
        runs
    }
}

/// The statement that gives the event days of a view's speed rows, as numbers of days since 1970, one a line.
pub fn speed_days(database: &str, view: &View) -> Statement {
    Statement {
        sql: format!(
            "SELECT DISTINCT toInt32(toDate32({})) FROM {}",
            identifier(WINDOW_COLUMN),
            table(database, &speed_table_name(view))
        ),
        parameters: Vec::new(),
        settings: settings(),
    }
}

/// The statement that gives the highest version of a start's rows; 0 where it has none.
pub fn highest_of_start(database: &str, view: &View, partition: Partition, start: Start) -> Statement {
    Statement {
        sql: format!(
            "SELECT max({}) FROM {} WHERE {} = {{topic:UInt128}} AND {} = {{partition:UInt32}} AND \
             {} = {{start:UInt64}}",
            identifier(NEXT_COLUMN),
            table(database, &speed_table_name(view)),
            identifier(TOPIC_COLUMN),
            identifier(PARTITION_COLUMN),
            identifier(START_COLUMN),
        ),
        parameters: vec![
            ("topic".to_owned(), partition.topic.0.to_string()),
            ("partition".to_owned(), partition.number.to_string()),
            ("start".to_owned(), start.0.0.to_string()),
        ],
        settings: settings(),
    }
}

fn settings() -> Vec<(&'static str, &'static str)> {
    vec![
        ("do_not_merge_across_partitions_select_final", "1"),
        ("optimize_move_to_prewhere_if_final", "0"),
        ("output_format_arrow_compression_method", "none"),
        ("output_format_arrow_string_as_string", "1"),
        ("output_format_arrow_low_cardinality_as_dictionary", "0"),
        ("max_execution_time", "60"),
        ("timeout_overflow_mode", "throw"),
    ]
}

fn list(items: &[i32]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(","))
}
