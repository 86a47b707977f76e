//! The cells that an answer is made of, whole: each state merged over both layers' rows, for comparing them with a
//! computation from the archive.
//!
//! It is the merging statement's inner half, at the view's own grain and with all dimensions; but speed rows only up to a
//! given start of each partition, since rows beyond may be ahead of the archive.

use std::collections::{BTreeMap, BTreeSet};

use super::quote::{identifier, table};
use super::statement::{LENGTHY, Parameters, SHORT, Statement, settings};
use super::tables::{DAY_COLUMN, NEXT_COLUMN, RUN_COLUMN, TOPIC_COLUMN, batch_table_name, speed_table_name};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{EventDay, Mark, Partition, Publication, RunId, Start};
use crate::measure::Held;
use crate::plan::{CellKey, FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN, key_fields};
use crate::view::{StateColumn, View};

/// Name of the column that says which layers' rows made a cell: 1 batch, 2 speed, 3 both.
pub const LAYERS_COLUMN: &str = "_layers";

/// Whose rows the parts of cells are: the layer as in [`LAYERS_COLUMN`], the run in decimal digits, the topic likewise, the
/// partition, the start and its version; empty or 0 where the layer has none.
pub const PLACE_COLUMNS: [&str; 6] = [
    "_layer",
    "_of_run",
    "_of_topic",
    "_of_partition",
    "_of_start",
    "_of_next",
];

const SECONDS_PER_DAY: i64 = 86_400;

/// Some starts of some partitions.
pub type Starts = BTreeMap<Partition, BTreeSet<Start>>;

/// Which of the speed layer's rows count, of those that do by their marks.
#[derive(Debug, Clone, Copy, Default)]
pub enum Among<'a> {
    /// All.
    #[default]
    All,
    /// Those of these starts.
    Only(&'a Starts),
    /// Those of other starts.
    Without(&'a Starts),
}

impl Among<'_> {
    /// Whether rows of that start do.
    pub fn counts(&self, partition: Partition, start: Start) -> bool {
        let is_in = |starts: &Starts| starts.get(&partition).is_some_and(|starts| starts.contains(&start));
        match self {
            Self::All => true,
            Self::Only(starts) => is_in(starts),
            Self::Without(starts) => !is_in(starts),
        }
    }
}

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
    /// Which of the speed layer's rows count besides that.
    pub among: Among<'a>,
    /// The event days.
    pub days: &'a BTreeSet<EventDay>,
    /// Windows that begin within: from, and before, in seconds since 1970. All of those days, or a part of that.
    pub time: (i64, i64),
}

/// From the first day's beginning to the last one's end, in seconds since 1970; `None` without days.
pub fn times_of(days: &BTreeSet<EventDay>) -> Option<(i64, i64)> {
    let (first, last) = days.first().zip(days.last())?;
    let begin = |day: i64| day * SECONDS_PER_DAY;
    Some((begin(i64::from(first.0)), begin(i64::from(last.0) + 1)))
}

impl HeldCells<'_> {
    /// The statement: one row for each cell, with the columns of the plan's cells and [`LAYERS_COLUMN`]. States that only the
    /// batch layer keeps are whole where all rows are its. States of ClickHouse's functions come as hexadecimal digits. `None` where nothing counts. Ask for `ArrowStream`.
    pub fn statement(&self) -> Option<Statement> {
        let keys = self.keys();
        let states: Vec<_> = self.view.states().collect();
        let columns = |of_batch: bool| {
            let of_state = |column: &StateColumn<'_>| match column.state.held {
                Held::Batch if !of_batch => format!("{} AS {}", column.state.empty_sql(), identifier(&column.name)),
                Held::Batch | Held::Both => identifier(&column.name),
            };
            let key = keys.iter().cloned().chain([identifier(FAILED_COLUMN)]);
            key.chain(states.iter().map(of_state)).collect::<Vec<_>>().join(", ")
        };
        let mut parameters = Parameters::default();
        let mut parts = Vec::new();
        if let Some(condition) = self.batch(&mut parameters) {
            parts.push(format!(
                "SELECT {}, 1 AS _layer FROM {} FINAL WHERE {condition}",
                columns(true),
                table(self.database, &batch_table_name(self.view)),
            ));
        }
        if let Some(condition) = self.speed(&mut parameters) {
            parts.push(format!(
                "SELECT {}, 2 AS _layer FROM {} FINAL WHERE {condition}",
                columns(false),
                table(self.database, &speed_table_name(self.view)),
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
            parameters: parameters.0,
            settings: in_arrow(LENGTHY),
        })
    }

    /// The statement that gives the rows which these cells are made of, as they stand, of the one window that begins at that moment, in
    /// microseconds since 1970: the columns of the plan's cells, and before them whose rows they are, in [`PLACE_COLUMNS`].
    /// States of ClickHouse's functions come as hexadecimal digits, those that only the batch layer keeps are left out. `None`
    /// where nothing counts. Ask for `ArrowStream`.
    pub fn parts(&self, window: i64) -> Option<Statement> {
        let keys = self.keys();
        let states = self.view.states().filter(|column| column.state.held == Held::Both);
        let states = states.map(|column| {
            let name = identifier(&column.name);
            if column.state.is_serialized() {
                format!("hex({name})")
            } else {
                name
            }
        });
        let columns: Vec<_> = keys
            .into_iter()
            .chain([identifier(FAILED_COLUMN)])
            .chain(states)
            .collect();
        let mut parameters = Parameters::default();
        let window = parameters.add("Int64", &window);
        let of_window = format!(
            "{} = fromUnixTimestamp64Micro({window}, 'UTC')",
            identifier(WINDOW_COLUMN)
        );
        let mut parts = Vec::new();
        let mut part = |place: [String; 6], table_name: &str, condition: &str| {
            let place = place
                .iter()
                .zip(PLACE_COLUMNS)
                .map(|(sql, name)| format!("{sql} AS {name}"));
            let selected: Vec<_> = place.chain(columns.iter().cloned()).collect();
            parts.push(format!(
                "SELECT {} FROM {} FINAL WHERE {of_window} AND ({condition})",
                selected.join(", "),
                table(self.database, table_name),
            ));
        };
        let number = |column: &str| format!("toUInt64({})", identifier(column));
        let none = || "toUInt64(0)".to_owned();
        let text = |column: &str| format!("toString({})", identifier(column));
        if let Some(condition) = self.batch(&mut parameters) {
            let place = [
                "toUInt8(1)".to_owned(),
                text(RUN_COLUMN),
                "''".to_owned(),
                none(),
                none(),
                none(),
            ];
            part(place, &batch_table_name(self.view), &condition);
        }
        if let Some(condition) = self.speed(&mut parameters) {
            let [partition, start, next] = [PARTITION_COLUMN, START_COLUMN, NEXT_COLUMN].map(number);
            let place = [
                "toUInt8(2)".to_owned(),
                "''".to_owned(),
                text(TOPIC_COLUMN),
                partition,
                start,
                next,
            ];
            part(place, &speed_table_name(self.view), &condition);
        }
        (!parts.is_empty()).then(|| Statement {
            sql: parts.join("\nUNION ALL\n"),
            parameters: parameters.0,
            settings: in_arrow(SHORT),
        })
    }

    /// The columns that tell cells apart.
    fn keys(&self) -> Vec<String> {
        let fields = key_fields(self.view, CellKey::Cell);
        fields.iter().map(|field| identifier(field.name())).collect()
    }

    /// Which batch rows count.
    fn batch(&self, parameters: &mut Parameters) -> Option<String> {
        let runs = self.runs().into_iter().map(|(run, days)| {
            let run = parameters.add("UInt128", &run.0);
            let days = parameters.add("Array(Int32)", &list(&days));
            let (run_column, day_column) = (identifier(RUN_COLUMN), identifier(DAY_COLUMN));
            format!("({run_column} = {run} AND {day_column} IN arrayMap(day -> toDate32(day), {days}))")
        });
        let runs: Vec<_> = runs.collect();
        if runs.is_empty() {
            return None;
        }
        let runs = runs.join(" OR ");
        // A row whose window is not of its day is wrong, and is to be seen.
        let is_all = times_of(self.days) == Some(self.time);
        Some(if is_all {
            runs
        } else {
            format!("{} AND ({runs})", self.within(parameters))
        })
    }

    /// Which speed rows count.
    fn speed(&self, parameters: &mut Parameters) -> Option<String> {
        if self.days.is_empty() {
            return None;
        }
        let start = identifier(START_COLUMN);
        let starts = self.starts.iter().filter(|(_, (mark, upto))| *upto > mark.start());
        let starts: Vec<_> = starts
            .filter_map(|(partition, (mark, upto))| {
                let chosen = self.chosen(partition, parameters)?;
                let topic = parameters.add("UInt128", &partition.topic.0);
                let number = parameters.add("UInt32", &partition.number);
                let mark = parameters.add("UInt64", &mark.0.0);
                let upto = parameters.add("UInt64", &upto.0.0);
                Some(format!(
                    "({} = {topic} AND {} = {number} AND {start} < {upto} AND \
                     ({start} = {mark} OR ({start} >= {mark} AND {start} % {} = 0)){chosen})",
                    identifier(TOPIC_COLUMN),
                    identifier(PARTITION_COLUMN),
                    self.view.chunk,
                ))
            })
            .collect();
        if starts.is_empty() {
            return None;
        }
        let window = identifier(WINDOW_COLUMN);
        let days: Vec<_> = self.days.iter().map(|day| day.0).collect();
        let days = parameters.add("Array(Int32)", &list(&days));
        Some(format!(
            "{} AND toDate32({window}) IN arrayMap(day -> toDate32(day), {days}) AND ({})",
            self.within(parameters),
            starts.join(" OR "),
        ))
    }

    /// What else a start of that partition must be; `None` where none counts.
    fn chosen(&self, partition: &Partition, parameters: &mut Parameters) -> Option<String> {
        let (starts, not) = match self.among {
            Among::All => return Some(String::new()),
            Among::Only(starts) => (Some(starts.get(partition)?), ""),
            Among::Without(starts) => (starts.get(partition), "NOT "),
        };
        let Some(starts) = starts else {
            return Some(String::new());
        };
        let starts = parameters.add("Array(UInt64)", &numbers(starts));
        Some(format!(" AND {not}has({starts}, {})", identifier(START_COLUMN)))
    }

    /// Whether a window begins in the time that is asked for.
    fn within(&self, parameters: &mut Parameters) -> String {
        let window = identifier(WINDOW_COLUMN);
        let (from, to) = self.time;
        let [from, to] = [from, to].map(|second| parameters.add("Int64", &second));
        format!("{window} >= toDateTime64({from}, 0, 'UTC') AND {window} < toDateTime64({to}, 0, 'UTC')")
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
        settings: in_arrow(SHORT),
    }
}

/// The statement that gives for each of those starts one line: the topic in decimal digits, the partition, the start, and what a
/// column of counts adds up to over its rows. Ask for `TabSeparated`. `None` without starts.
pub fn totals_of_starts(database: &str, view: &View, column: &str, starts: &Starts) -> Option<Statement> {
    let mut parameters = Parameters::default();
    let [topic, number, start, column] = [TOPIC_COLUMN, PARTITION_COLUMN, START_COLUMN, column].map(identifier);
    let of_partition = |(partition, starts): (&Partition, &BTreeSet<Start>)| {
        let of_topic = parameters.add("UInt128", &partition.topic.0);
        let of_number = parameters.add("UInt32", &partition.number);
        let starts = parameters.add("Array(UInt64)", &numbers(starts));
        format!("({topic} = {of_topic} AND {number} = {of_number} AND has({starts}, {start}))")
    };
    let rows: Vec<_> = starts.iter().map(of_partition).collect();
    (!rows.is_empty()).then(|| Statement {
        sql: format!(
            "SELECT toString({topic}), {number}, {start}, sum({column}) FROM {} FINAL WHERE {} GROUP BY {topic}, {number}, {start}",
            table(database, &speed_table_name(view)),
            rows.join(" OR "),
        ),
        parameters: parameters.0,
        settings: settings(LENGTHY),
    })
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
        settings: in_arrow(SHORT),
    }
}

/// Of a statement whose answer comes in Arrow.
fn in_arrow(limit: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut settings = settings(limit);
    settings.extend([
        ("output_format_arrow_compression_method", "none"),
        ("output_format_arrow_string_as_string", "1"),
        ("output_format_arrow_low_cardinality_as_dictionary", "0"),
    ]);
    settings
}

fn numbers(starts: &BTreeSet<Start>) -> String {
    let numbers: Vec<_> = starts.iter().map(|start| start.0.0.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

fn list(items: &[i32]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(","))
}
