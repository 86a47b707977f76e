//! The tables: two for each view, and a few that all views share.
//!
//! **Every table replaces.** A row that is written twice is the same row, so any insert may be tried again, in any
//! number of blocks. Where versions differ the highest wins: `next` of a speed row, of a progress row.
//!
//! **Partitions** are a function of the sorting key, as replacing works within a partition only: by month of the
//! window. An insert of fresh rows then makes one part, and `FINAL` merges months apart from each other. What was
//! measured is in `docs/decisions/final-and-sorting-keys.md`.
//!
//! **Nullable keys.** A dimension may be null; ClickHouse then wants `allow_nullable_key`. A stand-in value for null
//! would need a value that no event has.

use super::quote::{identifier, table as qualified};
use crate::dataset::PARTITION_COLUMN;
use crate::plan::{CellKey, FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN, key_fields};
use crate::view::{ValueType, View};

/// Column of speed rows and progress: the topic's incarnation, Kafka's topic id as a number.
pub const TOPIC_COLUMN: &str = "_topic";
/// Column of speed rows and progress: the version, up to which offset the row counts.
pub const NEXT_COLUMN: &str = "_next";
/// Column of batch rows: the run that wrote the row.
pub const RUN_COLUMN: &str = "_run";
/// Column of batch rows: the event day, which is the window's.
pub const DAY_COLUMN: &str = "_day";

/// What the name of a view's table of speed rows begins with; its fingerprint follows.
pub const SPEED_PREFIX: &str = "speed_";
/// What the name of a view's table of batch rows begins with; its fingerprint follows.
pub const BATCH_PREFIX: &str = "batch_";

/// Progress of the speed layer.
pub const PROGRESS: &str = "progress";
/// Offsets that the log no longer had.
pub const GAPS: &str = "gaps";
/// Cuts that batch runs ask for.
pub const CUTS: &str = "cuts";
/// Batch runs that were begun.
pub const RUNS: &str = "runs";
/// What runs came to: for people, never for deciding.
pub const RUN_REPORTS: &str = "run_reports";
/// Publications.
pub const PUBLICATIONS: &str = "publications";
/// Floors.
pub const FLOORS: &str = "floors";
/// Horizons.
pub const HORIZONS: &str = "horizons";
/// How the schedule of batch runs stands: for people.
pub const TIMETABLE: &str = "timetable";
/// Logs that ended below what was read from them.
pub const TRUNCATIONS: &str = "truncations";
/// Table of reports of reconciliation.
pub const RECONCILIATIONS: &str = "reconciliations";
/// Table of what the hashes of rules mean.
pub const RULES: &str = "rules";
/// Table of what the fingerprints of views mean.
pub const DEFINITIONS: &str = "definitions";
/// How fresh the speed layer is: for people and for waiting, never for deciding what counts.
pub const FRESHNESS: &str = "freshness";

/// A mark of a partition, in a list of them: topic, partition, mark.
pub const MARKS_TYPE: &str = "Array(Tuple(UInt128, UInt32, UInt64))";

/// Between a column's type and its default. A column that a later build added has one: workers of an earlier build, which write beside
/// new ones while all are updated, don't know it.
const DEFAULT: &str = " DEFAULT ";

/// A table as it is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns: name, ClickHouse type.
    pub columns: Vec<(String, String)>,
    /// `ReplacingMergeTree` or `ReplacingMergeTree(column)`.
    pub engine: String,
    /// A function of the sorting key; empty for none.
    pub partition_by: String,
    /// The sorting key, and what makes a row replace another.
    pub order_by: Vec<String>,
}

impl Table {
    /// The statement that creates it, if it is not there yet.
    pub fn create(&self, database: &str) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|(name, column_type)| format!("    {} {column_type}", identifier(name)))
            .collect();
        let partition = if self.partition_by.is_empty() {
            String::new()
        } else {
            format!("PARTITION BY {}\n", self.partition_by)
        };
        format!(
            "CREATE TABLE IF NOT EXISTS {}\n(\n{}\n)\nENGINE = {}\n{partition}ORDER BY ({})\n\
             SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, allow_nullable_key = 1",
            qualified(database, &self.name),
            columns.join(",\n"),
            self.engine,
            self.order(),
        )
    }

    fn order(&self) -> String {
        let order: Vec<_> = self.order_by.iter().map(|column| identifier(column)).collect();
        order.join(", ")
    }

    /// The statements that add these of its columns; the others are there. Where one is of the sorting key it becomes so: a new
    /// column at the key's end changes the order of no row. Such a one gets its default afterwards, for ClickHouse takes none before.
    pub fn add_columns(&self, database: &str, lacking: &[&str]) -> Vec<String> {
        let is_key = |name: &String| self.order_by.contains(name);
        let added = || {
            let columns = self.columns.iter();
            columns.filter(|(name, _)| lacking.contains(&name.as_str()))
        };
        let add = |(name, column_type): &(String, String)| {
            let bare = column_type.split(DEFAULT).next().unwrap_or_default();
            let column_type = if is_key(name) { bare } else { column_type };
            format!("ADD COLUMN IF NOT EXISTS {} {column_type}", identifier(name))
        };
        let mut changes = added().map(add).collect::<Vec<_>>().join(", ");
        if added().any(|(name, _)| is_key(name)) {
            changes += &format!(", MODIFY ORDER BY ({})", self.order());
        }
        let with_default = added().filter(|(name, column_type)| is_key(name) && column_type.contains(DEFAULT));
        let defaults =
            with_default.map(|(name, column_type)| format!("MODIFY COLUMN {} {column_type}", identifier(name)));
        let table = qualified(database, &self.name);
        std::iter::once(changes)
            .chain(defaults)
            .map(|changes| format!("ALTER TABLE {table} {changes}"))
            .collect()
    }
}

/// The statement that creates the database, if it is not there yet.
pub fn create_database(database: &str) -> String {
    format!("CREATE DATABASE IF NOT EXISTS {}", identifier(database))
}

/// The name of a view's table of speed rows.
pub fn speed_table_name(view: &View) -> String {
    format!("{SPEED_PREFIX}{}", view.fingerprint)
}

/// The name of a view's table of batch rows.
pub fn batch_table_name(view: &View) -> String {
    format!("{BATCH_PREFIX}{}", view.fingerprint)
}

/// A view's own tables.
pub fn view_tables(view: &View) -> [Table; 2] {
    [speed_table(view), batch_table(view)]
}

/// The table of a view's speed rows: for each cell, partition and start its state up to `_next`.
pub fn speed_table(view: &View) -> Table {
    let key = cell_columns(view);
    let place = [
        (TOPIC_COLUMN, "UInt128"),
        (PARTITION_COLUMN, "UInt32"),
        (START_COLUMN, "UInt64"),
    ]
    .map(owned);
    let order_by = key.iter().chain(&place).map(|(name, _)| name.clone()).collect();
    let next = owned((NEXT_COLUMN, "UInt64"));
    Table {
        name: speed_table_name(view),
        columns: key
            .into_iter()
            .chain(place)
            .chain([next])
            .chain(state_columns(view, CellKey::Start))
            .collect(),
        engine: format!("ReplacingMergeTree({})", identifier(NEXT_COLUMN)),
        partition_by: format!("toYYYYMM({})", identifier(WINDOW_COLUMN)),
        order_by,
    }
}

/// The table of a view's batch rows: for each run and event day the states of its cells.
pub fn batch_table(view: &View) -> Table {
    let run = [(DAY_COLUMN, "Date32"), (RUN_COLUMN, "UInt128")].map(owned);
    let key: Vec<_> = run.into_iter().chain(cell_columns(view)).collect();
    let order_by = key.iter().map(|(name, _)| name.clone()).collect();
    Table {
        name: batch_table_name(view),
        columns: key.into_iter().chain(state_columns(view, CellKey::Cell)).collect(),
        engine: "ReplacingMergeTree".to_owned(),
        partition_by: format!("toYYYYMM({})", identifier(DAY_COLUMN)),
        order_by,
    }
}

/// The tables that all views share; what is a view's is told apart by a column `fingerprint`.
pub fn control_tables() -> Vec<Table> {
    let place = "fingerprint String, _topic UInt128, _partition UInt32, _start UInt64";
    vec![
        // Of a start's rows the highest `redo` counts: it is in the key, so that a late row of an earlier one replaces none.
        // The ledger: `read = aggregated + filtered + repeated + invalid`, `read + holes = _next - _start`. The reasons are
        // those of the invalid, a gap is among the holes; the last two are counted beside.
        control(
            PROGRESS,
            &format!(
                "{place}, redo UInt64{DEFAULT}0, _next UInt64, rules String, read UInt64, holes UInt64, gap UInt64, aggregated UInt64, \
                 filtered UInt64, repeated UInt64, invalid UInt64, reasons Map(String, UInt64), unsure UInt64, \
                 failed_filters UInt64, written DateTime64(3, 'UTC') DEFAULT now64(3)"
            ),
            "_next",
            &["fingerprint", "_topic", "_partition", "_start", "redo"],
        ),
        // The key is the whole fact: a gap is never replaced by another.
        control(
            GAPS,
            &format!("{place}, from UInt64, to UInt64, found DateTime64(3, 'UTC') DEFAULT now64(3)"),
            "",
            &["fingerprint", "_topic", "_partition", "_start", "from", "to"],
        ),
        // Once withdrawn a cut stays so: 1 replaces 0.
        control(
            CUTS,
            &format!("{place}, run UInt128, withdrawn UInt8, asked DateTime64(3, 'UTC') DEFAULT now64(3)"),
            "withdrawn",
            &["fingerprint", "_topic", "_partition", "_start", "run"],
        ),
        control(
            RUNS,
            "fingerprint String, run UInt128, parent UInt64, begun DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["fingerprint", "run"],
        ),
        // The report is JSON, as `batch run --output json` shows it.
        control(
            RUN_REPORTS,
            "fingerprint String, run UInt128, report String, told DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["fingerprint", "run"],
        ),
        control(
            PUBLICATIONS,
            "fingerprint String, number UInt64, run UInt128, parent Array(Tuple(UInt64, UInt128)), content UInt64, \
             marks Array(Tuple(UInt128, UInt32, UInt64)), gaps Array(Tuple(UInt128, UInt32, UInt64, UInt64)), \
             days Array(Tuple(Date32, UInt128)), rules String, archive_version UInt64, \
             last_days Array(Tuple(UInt128, UInt32, Date32)), published DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["fingerprint", "number", "run"],
        ),
        // Read as the maximum of each component over all rows: the key keeps every one of them.
        control(
            FLOORS,
            "fingerprint String, number UInt64, marks Array(Tuple(UInt128, UInt32, UInt64)), \
             raised DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["fingerprint", "number", "marks"],
        ),
        // Before that event day a view holds nothing. Read as the maximum over all rows, as a floor is.
        control(
            HORIZONS,
            "fingerprint String, day Date32, raised DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["fingerprint", "day"],
        ),
        control(
            TIMETABLE,
            "name String, next Int64, succeeded Int64, failures UInt32, failing Array(String), \
             seen DateTime64(3, 'UTC') DEFAULT now64(3)",
            "seen",
            &["name"],
        ),
        // Of a topic's partition, whatever views there are. The key is the whole fact: it is never taken back.
        control(
            TRUNCATIONS,
            "_topic UInt128, _partition UInt32, end UInt64, next UInt64, found DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["_topic", "_partition", "end", "next"],
        ),
        control(
            RECONCILIATIONS,
            "id String, view String, at DateTime64(3, 'UTC'), sound Bool, compared UInt64, different UInt64, \
             unexplained UInt64, document String, page String",
            "",
            &["id", "view"],
        ),
        // `events` is the hash of the rules that views can see, `unkeyed` of those without keys.
        control(
            RULES,
            "rules String, events String, unkeyed String, known DateTime64(3, 'UTC') DEFAULT now64(3)",
            "",
            &["rules"],
        ),
        // `form` says how `definition` is to be read, `rules` is the hash of those rules of the dataset that the view can see. Names
        // are no part of a fingerprint, so one may have several.
        control(
            DEFINITIONS,
            // Builds that kept no plan version had the first.
            "fingerprint String, dataset String, view String, form UInt32, rules String, definition String, \
             plan UInt32 DEFAULT 1, known DateTime64(3, 'UTC') DEFAULT now64(3)",
            "known",
            &["fingerprint", "dataset", "view"],
        ),
        // `watermark` is the highest event time seen less the lateness, `kafka_time` the last counted record's Kafka
        // timestamp; `reason` says why a partition is stuck.
        control(
            FRESHNESS,
            "fingerprint String, _topic UInt128, _partition UInt32, next UInt64, log_end UInt64, \
             watermark Nullable(DateTime64(6, 'UTC')), kafka_time Nullable(DateTime64(3, 'UTC')), state String, \
             reason String, \
             seen DateTime64(3, 'UTC')",
            "seen",
            &["fingerprint", "_topic", "_partition"],
        ),
    ]
}

fn control(name: &str, columns: &str, version: &str, order_by: &[&str]) -> Table {
    Table {
        name: name.to_owned(),
        columns: split_columns(columns),
        engine: if version.is_empty() {
            "ReplacingMergeTree".to_owned()
        } else {
            format!("ReplacingMergeTree({})", identifier(version))
        },
        partition_by: String::new(),
        order_by: order_by.iter().map(|&column| column.to_owned()).collect(),
    }
}

/// Splits `name type, name type` at the commas outside of brackets.
fn split_columns(columns: &str) -> Vec<(String, String)> {
    let mut depth = 0_i32;
    columns
        .split(|letter| {
            depth += i32::from(letter == '(') - i32::from(letter == ')');
            letter == ',' && depth == 0
        })
        .filter_map(|column| column.trim().split_once(' '))
        .map(owned)
        .collect()
}

fn owned((name, column_type): (&str, &str)) -> (String, String) {
    (name.to_owned(), column_type.to_owned())
}

/// The window and the dimensions.
fn cell_columns(view: &View) -> Vec<(String, String)> {
    key_fields(view, CellKey::Cell)
        .iter()
        .map(|field| {
            let plain = if field.name() == WINDOW_COLUMN {
                // Whole seconds: a grain is at least one.
                "DateTime64(0, 'UTC')".to_owned()
            } else {
                ValueType::of_arrow(field.data_type())
                    .unwrap_or(ValueType::String)
                    .clickhouse()
            };
            (
                field.name().clone(),
                if field.is_nullable() {
                    format!("Nullable({plain})")
                } else {
                    plain
                },
            )
        })
        .collect()
}

/// The count of failures and the states of all measures.
fn state_columns(view: &View, key: CellKey) -> Vec<(String, String)> {
    let failed = owned((FAILED_COLUMN, "UInt64"));
    let states = key.states(view).map(|column| (column.name, column.state.clickhouse()));
    std::iter::once(failed).chain(states).collect()
}
