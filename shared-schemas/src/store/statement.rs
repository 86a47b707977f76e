//! The merging statement: one question, one answer, from both layers' rows.
//!
//! The batch rows of the publication's runs, and the speed rows that count above its marks, merged by the table of
//! measures. Three things make it exact whatever happens meanwhile:
//!
//! - It names runs and marks that were read *before* it was sent, so a publication in between changes nothing.
//! - Both tables are read with `FINAL`: of a cell's rows the highest version counts, once. All conditions are on
//!   columns of the sorting key, so they never decide which version wins.
//! - The floor is checked once more inside, in a scalar subquery that is evaluated even where no row is left.

mod selection;
mod states;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::quote::{identifier, table};
use super::tables::{DAY_COLUMN, FLOORS, MARKS_TYPE, RUN_COLUMN, TOPIC_COLUMN, batch_table_name, speed_table_name};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{Offset, Partition, Publication, RunId, TopicId};
use crate::plan::{FAILED_COLUMN, START_COLUMN, WINDOW_COLUMN};
use crate::view::{Dimension, Measure, View};

pub use selection::{Filter, FilterValues, Layers, Order, Selection};
use states::States;
pub use states::{bound_column, confidence_column, error_column};

/// What the error says when the floor has risen above the publication.
pub const BELOW_FLOOR: &str = "this publication lies below the floor";

/// How long a statement may run, as its settings say: far less than collection waits between a floor and the first
/// delete ([`crate::handoff::floor::COLLECT_WAITS`]), so that none outlives the rows that it was allowed to read.
pub const STATEMENT_LIMIT: Duration = Duration::from_secs(60);

/// The same as ClickHouse has it, in seconds.
pub(super) const SHORT: &str = "60";

/// The same for a statement of the batch layer, in seconds, which may scan months: half of what collection waits.
pub(super) const LENGTHY: &str = "300";

const SECONDS_PER_DAY: i64 = 86_400;

/// SQL for ClickHouse with the values that go along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The text, with `{name:Type}` for each parameter.
    pub sql: String,
    /// Values by name; the HTTP interface takes them as `param_<name>`.
    pub parameters: Vec<(String, String)>,
    /// Settings to send along.
    pub settings: Vec<(&'static str, &'static str)>,
}

/// A question about one view.
#[derive(Debug, Clone, Copy)]
pub struct Merging<'a> {
    /// The database.
    pub database: &'a str,
    /// The view.
    pub view: &'a View,
    /// The newest publication, read from the replica that will answer; `None` where there is none yet.
    pub publication: Option<&'a Publication>,
    /// The first moment, in seconds since 1970.
    pub from: i64,
    /// The end, exclusive, in seconds since 1970.
    pub to: i64,
    /// The length of a bucket: a whole multiple of the view's grain. `None`: one bucket for all.
    pub bucket: Option<Duration>,
    /// The dimensions to group by.
    pub dimensions: &'a [&'a str],
    /// The measures to answer.
    pub measures: &'a [&'a str],
}

/// A question that the view cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// There is no such dimension.
    #[error("view `{view}` has no dimension `{name}`")]
    Dimension {
        /// The view.
        view: String,
        /// The name asked for.
        name: String,
    },
    /// There is no such measure.
    #[error("view `{view}` has no measure `{name}`")]
    Measure {
        /// The view.
        view: String,
        /// The name asked for.
        name: String,
    },
    /// The values of a filter are not of its dimension's type.
    #[error("the filter's values are of another type than dimension `{name}` of view `{view}`")]
    Filter {
        /// The view.
        view: String,
        /// The dimension.
        name: String,
    },
    /// The answer has no such column to be in order of.
    #[error("an answer without `{name}` cannot be in its order")]
    Order {
        /// The column asked for.
        name: String,
    },
    /// The bucket is no multiple of the grain.
    #[error("a bucket of {bucket:?} is no whole multiple of the grain of view `{view}`, {grain:?}")]
    Bucket {
        /// The view.
        view: String,
        /// The length asked for.
        bucket: Duration,
        /// The view's grain.
        grain: Duration,
    },
}

impl Merging<'_> {
    /// The statement that answers with everything: see [`Merging::selecting`].
    ///
    /// # Errors
    /// A name that the view does not have, or a bucket that its windows don't fill.
    pub fn statement(&self) -> Result<Statement, StatementError> {
        self.selecting(&Selection::default())
    }

    /// The statement that answers with a part: `time` (unless it is one bucket), the dimensions, the measures, each with
    /// [`bound_column`] where its result is rounded, and with [`error_column`] and [`confidence_column`] where it can be an
    /// estimate, `layer` (`batch`, `speed` or `merged`) and `_failed`.
    ///
    /// # Errors
    /// A name that the view or the answer does not have, values of another type than their dimension, or a bucket that
    /// the view's windows don't fill.
    pub fn selecting(&self, selection: &Selection<'_>) -> Result<Statement, StatementError> {
        let dimensions = self.dimensions()?;
        let measures = self.measures()?;
        let states = States::of(self.view, &measures, selection.without_sets);
        let mut parameters = Parameters::default();
        let bucket = self.bucket_sql()?;
        let (from, to) = (parameters.add("Int64", &self.from), parameters.add("Int64", &self.to));
        let mut rows = format!(
            "{window} >= toDateTime64({from}, 0, 'UTC') AND {window} < toDateTime64({to}, 0, 'UTC')",
            window = identifier(WINDOW_COLUMN)
        );
        for condition in selection.conditions(self.view, &mut parameters)? {
            // Writing to a string does not fail.
            let _ = write!(rows, " AND {condition}");
        }

        let keys: Vec<_> = dimensions.iter().map(|dimension| identifier(&dimension.name)).collect();
        let mut parts = Vec::new();
        if selection.layers != Layers::Speed {
            // Where no run holds a day of the range there is nothing to read, but there are columns.
            let days = self.days(&mut parameters);
            if days.is_some() || selection.layers == Layers::Batch {
                parts.push(format!(
                    "SELECT {}, 0 AS _layer FROM {} FINAL WHERE {rows} AND {}",
                    states.columns_of_batch(&keys),
                    table(self.database, &batch_table_name(self.view)),
                    days.as_deref().unwrap_or("0"),
                ));
            }
        }
        if selection.layers != Layers::Batch {
            let mark = self.mark(&mut parameters);
            let start = identifier(START_COLUMN);
            parts.push(format!(
                "SELECT {}, 1 AS _layer FROM {} FINAL WHERE {rows} AND \
                 ({start} = {mark} OR ({start} >= {mark} AND {start} % {} = 0))",
                states.columns_of_speed(&keys),
                table(self.database, &speed_table_name(self.view)),
                self.view.chunk,
            ));
        }

        let floor = self.floor(&mut parameters);
        let groups: Vec<_> = bucket
            .iter()
            .map(|_| "time".to_owned())
            .chain(keys.iter().cloned())
            .collect();
        let time = bucket.map(|bucket| format!("{bucket} AS time"));
        let inner: Vec<_> = time
            .into_iter()
            .chain(keys)
            .chain(states.merged())
            .chain([
                format!("sum({}) AS _failures", identifier(FAILED_COLUMN)),
                "min(_layer) AS _first_layer".to_owned(),
                "max(_layer) AS _last_layer".to_owned(),
            ])
            .collect();
        let outer: Vec<_> = groups
            .iter()
            .cloned()
            .chain(measures.iter().flat_map(|measure| states.results(self.view, measure)))
            .chain([
                "multiIf(_last_layer = 0, 'batch', _first_layer = 1, 'speed', 'merged') AS layer".to_owned(),
                format!("_failures AS {}", identifier(FAILED_COLUMN)),
            ])
            .collect();
        let group_by = if groups.is_empty() {
            // Without a group there is always a row, also of nothing.
            " HAVING count() > 0".to_owned()
        } else {
            format!(" GROUP BY {}", groups.join(", "))
        };
        let tail = selection.tail(&groups, self.dimensions, self.measures)?;
        let sql = format!(
            "WITH ({floor}) AS _below_floor\nSELECT {}\nFROM (\n  SELECT {}\n  FROM (\n    {}\n  )\n  \
             WHERE _below_floor = 0{group_by}\n){tail}",
            outer.join(", "),
            inner.join(", "),
            parts.join("\n    UNION ALL\n    "),
        );
        Ok(Statement {
            sql,
            parameters: parameters.0,
            settings: settings(SHORT),
        })
    }

    fn dimensions(&self) -> Result<Vec<&Dimension>, StatementError> {
        let find = |name: &&str| {
            self.view
                .dimensions
                .iter()
                .find(|dimension| dimension.name == *name)
                .ok_or_else(|| StatementError::Dimension {
                    view: self.view.name.clone(),
                    name: (*name).to_owned(),
                })
        };
        self.dimensions.iter().map(find).collect()
    }

    fn measures(&self) -> Result<Vec<&Measure>, StatementError> {
        let find = |name: &&str| {
            self.view
                .measures
                .iter()
                .find(|measure| measure.name == *name)
                .ok_or_else(|| StatementError::Measure {
                    view: self.view.name.clone(),
                    name: (*name).to_owned(),
                })
        };
        self.measures.iter().map(find).collect()
    }

    fn bucket_sql(&self) -> Result<Option<String>, StatementError> {
        let Some(bucket) = self.bucket else {
            return Ok(None);
        };
        let (length, grain) = (bucket.as_secs(), self.view.grain.as_secs());
        if length == 0 || bucket.subsec_nanos() != 0 || !length.is_multiple_of(grain) {
            return Err(StatementError::Bucket {
                view: self.view.name.clone(),
                bucket,
                grain: self.view.grain,
            });
        }
        let window = identifier(WINDOW_COLUMN);
        let start = format!("toInt64({window}) - positiveModulo(toInt64({window}), {length})");
        Ok(Some(format!("toDateTime64({start}, 0, 'UTC')")))
    }

    /// The condition for the batch rows: of each event day in range, the rows of the run that holds it.
    fn days(&self, parameters: &mut Parameters) -> Option<String> {
        let within = |day: i32| {
            let start = i64::from(day) * SECONDS_PER_DAY;
            start < self.to && start + SECONDS_PER_DAY > self.from
        };
        let mut runs: BTreeMap<RunId, Vec<i32>> = BTreeMap::new();
        for (day, run) in self.publication.into_iter().flat_map(|publication| &publication.days) {
            if within(day.0) {
                runs.entry(*run).or_default().push(day.0);
            }
        }
        let (day_column, run_column) = (identifier(DAY_COLUMN), identifier(RUN_COLUMN));
        let conditions: Vec<_> = runs
            .into_iter()
            .map(|(run, days)| {
                let run = parameters.add("UInt128", &run.0);
                let days = parameters.add("Array(Int32)", &list(days));
                format!("({run_column} = {run} AND {day_column} IN arrayMap(day -> toDate32(day), {days}))")
            })
            .collect();
        (!conditions.is_empty()).then(|| format!("({})", conditions.join(" OR ")))
    }

    /// SQL for the mark of a speed row's partition; 0 for one that has none.
    fn mark(&self, parameters: &mut Parameters) -> String {
        let mut topics: BTreeMap<TopicId, (Vec<u32>, Vec<u64>)> = BTreeMap::new();
        for (partition, mark) in self.publication.into_iter().flat_map(|publication| &publication.marks) {
            let (partitions, marks) = topics.entry(partition.topic).or_default();
            partitions.push(partition.number);
            marks.push(mark.0.0);
        }
        if topics.is_empty() {
            return "0".to_owned();
        }
        let mut sql = "multiIf(".to_owned();
        for (topic, (partitions, marks)) in topics {
            let topic = parameters.add("UInt128", &topic.0);
            let partitions = parameters.add("Array(UInt32)", &list(partitions));
            let marks = parameters.add("Array(UInt64)", &list(marks));
            let (topic_column, partition_column) = (identifier(TOPIC_COLUMN), identifier(PARTITION_COLUMN));
            // Writing to a string does not fail.
            let _ = write!(
                sql,
                "{topic_column} = {topic}, transform({partition_column}, {partitions}, {marks}, toUInt64(0)), "
            );
        }
        sql + "toUInt64(0))"
    }

    /// SQL that is 0, or an error where a floor row lies above the publication. It says what
    /// [`crate::handoff::Floor::admits`] says, about the floors of this moment.
    fn floor(&self, parameters: &mut Parameters) -> String {
        let fingerprint = parameters.add("String", &self.view.fingerprint);
        let (number, content) = self
            .publication
            .map_or((0, 0), |publication| (publication.number.0, publication.content.0));
        let number = parameters.add("UInt64", &number.min(content));
        let marks = self
            .publication
            .into_iter()
            .flat_map(|publication| &publication.marks)
            .map(|(Partition { topic, number }, mark)| {
                let Offset(mark) = mark.0;
                format!("({},{number},{mark})", topic.0)
            });
        let marks = parameters.add(MARKS_TYPE, &list(marks));
        format!(
            "SELECT throwIf(count() > 0, '{BELOW_FLOOR}') FROM {} WHERE fingerprint = {fingerprint} AND \
             (number > {number} OR arrayExists(floor -> floor.3 > arrayMax(arrayMap(mark -> \
             if(mark.1 = floor.1 AND mark.2 = floor.2, mark.3, 0), arrayPushBack({marks}, (0, 0, 0)))), marks))",
            table(self.database, FLOORS),
        )
    }
}

/// Of a statement that reads a view's rows with `FINAL`, and may run for so many seconds.
pub(super) fn settings(limit: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        // The partition is a function of the sorting key, so versions of a cell are never in two.
        ("do_not_merge_across_partitions_select_final", "1"),
        ("optimize_move_to_prewhere_if_final", "0"),
        ("max_execution_time", limit),
        ("timeout_overflow_mode", "throw"),
    ]
}

/// The values of a statement, named in order.
#[derive(Debug, Default)]
pub(super) struct Parameters(pub(super) Vec<(String, String)>);

impl Parameters {
    /// Adds a value and gives the SQL that stands for it.
    pub(super) fn add(&mut self, clickhouse_type: &str, value: &impl ToString) -> String {
        let name = format!("p{}", self.0.len());
        let sql = format!("{{{name}:{clickhouse_type}}}");
        self.0.push((name, value.to_string()));
        sql
    }
}

/// A value of an array's type.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    format!("[{}]", items.join(","))
}
