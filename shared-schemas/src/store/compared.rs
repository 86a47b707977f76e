//! What two publications of a view hold, side by side: totals by day, and the cells that differ.
//!
//! For people and for a run's check of itself. Rows of a run never change, so days that both publications have from the same run
//! are equal without being looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::quote::{identifier, table};
use super::statement::{LENGTHY, Parameters, Statement, list, settings};
use super::tables::{DAY_COLUMN, RUN_COLUMN, TOPIC_COLUMN, batch_table_name, speed_table_name};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{EventDay, OffsetRange, OffsetSet, Partition, RunId};
use crate::measure::Held;
use crate::plan::{CellKey, FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN, key_fields};
use crate::view::{StateColumn, ValueType, View};

/// A day and the run that holds it.
pub type DaysOfRuns = BTreeMap<EventDay, RunId>;

/// One thread, since states of `quantilesDD` made the engine stand still on several, in Arrow. Few rows in a block, since states may be
/// as large as 512 KiB in digits. In the table's order, which is also what is done by itself.
const PIECE_BY_PIECE: [(&str, &str); 4] = [
    ("output_format_json_named_tuples_as_objects", "0"),
    ("max_threads", "1"),
    ("max_block_size", "512"),
    ("optimize_read_in_order", "1"),
];

/// Keys of a day fall into so many buckets, each hashed as a whole: a day of a million cells has fifteen in a bucket, and what the server
/// holds of them is a few MB, however large the day.
const BUCKETS: u32 = 1 << 16;

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
/// these offsets of each partition. Each range begins at a start and ends with a chunk. Ask for `TabSeparated`.
pub fn speed_totals(
    database: &str,
    view: &View,
    counted: &BTreeMap<Partition, OffsetSet>,
    days: &BTreeSet<EventDay>,
) -> Statement {
    let mut parameters = Parameters::default();
    let start = identifier(START_COLUMN);
    let ranges = counted
        .iter()
        .flat_map(|(partition, offsets)| offsets.ranges().iter().map(move |range| (partition, range)));
    let of_range = |(partition, OffsetRange { from, to }): (&Partition, &OffsetRange)| {
        let topic = parameters.add("UInt128", &partition.topic.0);
        let number = parameters.add("UInt32", &partition.number);
        let (from, to) = (parameters.add("UInt64", &from.0), parameters.add("UInt64", &to.0));
        format!(
            "({} = {topic} AND {} = {number} AND {start} < {to} AND ({start} = {from} OR ({start} >= {from} AND \
             {start} % {} = 0)))",
            identifier(TOPIC_COLUMN),
            identifier(PARTITION_COLUMN),
            view.chunk,
        )
    };
    let rows: Vec<_> = ranges.map(of_range).collect();
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

/// The statement that gives the cells of a day as that run left them, in the order of their keys: the values of the key as a list of
/// texts, the same as a list that sorts as the cells do (numbers, texts and nulls, which come last), and then each state's text, in
/// the order of [`View::states`]; states of ClickHouse's functions as hexadecimal digits. Ask for `JSONCompactEachRow`.
///
/// Where another run is named, only those of buckets in which the two runs' cells are not equal byte by byte: among them are all that
/// differ, and a few that lie in a bucket with one.
///
/// Rows of a run and day lie in the table in that order. So the server reads on as its answer is read, and neither holds nor
/// sorts a day, however large.
pub fn cells_of_day(database: &str, view: &View, day: EventDay, run: RunId, beside: Option<RunId>) -> Statement {
    let mut parameters = Parameters::default();
    let fields = key_fields(view, CellKey::Cell);
    let keys: Vec<_> = fields.iter().map(|field| identifier(field.name())).collect();
    let texts: Vec<_> = keys
        .iter()
        .map(|key| format!("ifNull(toString({key}), 'null')"))
        .collect();
    let order: Vec<_> = fields
        .iter()
        .zip(&keys)
        .map(|(field, key)| match ValueType::of_arrow(field.data_type()) {
            Some(ValueType::Timestamp) => format!("toUnixTimestamp64Micro({key})"),
            Some(ValueType::Date) => format!("toInt32({key})"),
            Some(ValueType::Bool) => format!("toInt8({key})"),
            _ => key.clone(),
        })
        .collect();
    let states = view.states().map(|column| {
        let name = identifier(&column.name);
        if column.state.is_serialized() {
            format!(", hex({name})")
        } else {
            format!(", ifNull(toString({name}), 'null')")
        }
    });
    let among = match beside {
        None => String::new(),
        Some(other) => format!(
            " AND {} IN ({})",
            bucket(view),
            unequal(database, view, day, [run, other], &mut parameters)
        ),
    };
    let (day, run) = (parameters.add("Int32", &day.0), parameters.add("UInt128", &run.0));
    Statement {
        sql: format!(
            "SELECT [{}], tuple({}){} FROM {} FINAL WHERE {} = toDate32({day}) AND {} = {run}{among} ORDER BY {}",
            texts.join(", "),
            order.join(", "),
            states.collect::<String>(),
            table(database, &batch_table_name(view)),
            identifier(DAY_COLUMN),
            identifier(RUN_COLUMN),
            keys.join(", "),
        ),
        parameters: parameters.0,
        settings: in_lines().into_iter().chain(PIECE_BY_PIECE).collect(),
    }
}

/// The statement that gives one number: in how many buckets of keys the cells of a day as two runs left them are not equal byte by
/// byte. None where all are equal. Ask for `TabSeparated`.
pub fn unequal_buckets(database: &str, view: &View, day: EventDay, runs: [RunId; 2]) -> Statement {
    let mut parameters = Parameters::default();
    let unequal = unequal(database, view, day, runs, &mut parameters);
    Statement {
        sql: format!("SELECT count() FROM ({unequal})"),
        parameters: parameters.0,
        settings: in_lines().into_iter().chain(PIECE_BY_PIECE).collect(),
    }
}

/// Selects the buckets in which two runs' cells of a day are not equal. A cell that is the same in both goes into its bucket's value twice,
/// and so leaves nothing; any other leaves its hash.
fn unequal(database: &str, view: &View, day: EventDay, runs: [RunId; 2], parameters: &mut Parameters) -> String {
    let states = view.states().flat_map(|column| {
        if column.state.is_serialized() {
            vec![format!("hex({})", identifier(&column.name))]
        } else {
            hashed(&column.name)
        }
    });
    let cell: Vec<_> = hashed_key(view).chain(states).collect();
    let day = parameters.add("Int32", &day.0);
    let runs = runs.map(|run| parameters.add("UInt128", &run.0));
    format!(
        "SELECT {} AS _b FROM {} FINAL WHERE {} = toDate32({day}) AND {} IN ({}) GROUP BY _b HAVING \
         groupBitXor(sipHash64({})) <> 0",
        bucket(view),
        table(database, &batch_table_name(view)),
        identifier(DAY_COLUMN),
        identifier(RUN_COLUMN),
        runs.join(", "),
        cell.join(", "),
    )
}

/// The bucket of a cell's key.
fn bucket(view: &View) -> String {
    let key: Vec<_> = hashed_key(view).collect();
    format!("sipHash64({}) % {BUCKETS}", key.join(", "))
}

fn hashed_key(view: &View) -> impl Iterator<Item = String> {
    key_fields(view, CellKey::Cell)
        .into_iter()
        .flat_map(|field| hashed(field.name()))
}

/// What of a value is hashed. A null is no text: of a null the hash would be null.
fn hashed(column: &str) -> Vec<String> {
    let column = identifier(column);
    vec![format!("isNull({column})"), format!("ifNull(toString({column}), '')")]
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
