//! What lies below a floor: counted, and deleted by name.
//!
//! The order is the caller's, and matters: progress before the rows that it speaks of, a run's rows before the run. Each
//! delete ends when it is done in the store. Data is deleted month by month, a partition of its table, with an `ALTER TABLE
//! … DELETE`: that rewrites the parts that hold something of it and gives the disk back at once, where a lightweight delete
//! would leave old months as they are, since nobody merges them any more. Done twice it finds nothing, so it may be sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use shared_schemas::handoff::{EventDay, Floor, Mark, Partition, PublicationNumber, RunId};
use shared_schemas::plan::{START_COLUMN, WINDOW_COLUMN};
use shared_schemas::store::quote::{self, identifier};
use shared_schemas::store::tables::{
    CUTS, DAY_COLUMN, FLOORS, GAPS, HORIZONS, PROGRESS, PUBLICATIONS, RUN_COLUMN, RUN_REPORTS, RUNS, TOPIC_COLUMN,
    batch_table_name, speed_table_name,
};
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;
use super::facts::{marks, of};

/// So many runs are named in one statement: it stays far below the size that ClickHouse takes.
const RUNS_AT_A_TIME: usize = 1000;

/// A floor row as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The floor.
    pub floor: Floor,
    /// How long ago it was written, by the server's clock.
    pub age: Duration,
}

/// A horizon as it stands in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaisedHorizon {
    /// Before that day the view holds nothing.
    pub day: EventDay,
    /// How long ago it was written, by the server's clock.
    pub age: Duration,
}

/// Where rows are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The speed layer's progress.
    Progress,
    /// The speed layer's rows.
    Speed,
    /// The gaps that it recorded.
    Gaps,
    /// The cuts that runs asked for.
    Cuts,
    /// Rows of batch runs.
    Batch,
    /// Runs that have no rows.
    Runs,
    /// What runs came to, of those that nobody can ask for.
    Reports,
    /// Publications that nobody can ask for.
    Publications,
}

/// What is to go, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone {
    /// Starts below its marks.
    pub floor: Floor,
    /// Runs whose rows nobody can reach.
    pub runs: BTreeSet<RunId>,
    /// Runs whose reports go.
    pub reports: BTreeSet<RunId>,
    /// Publications that go.
    pub publications: BTreeSet<(PublicationNumber, RunId)>,
}

impl Place {
    /// In the order in which they are deleted: nobody then ever sees progress without its rows.
    pub const ORDER: [Self; 8] = [
        Self::Progress,
        Self::Speed,
        Self::Gaps,
        Self::Cuts,
        Self::Batch,
        Self::Runs,
        Self::Reports,
        Self::Publications,
    ];

    /// The word for reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Speed => "speed",
            Self::Gaps => "gaps",
            Self::Cuts => "cuts",
            Self::Batch => "batch",
            Self::Runs => "runs",
            Self::Reports => "reports",
            Self::Publications => "publications",
        }
    }

    fn table(self, view: &View) -> String {
        match self {
            Self::Progress => PROGRESS.to_owned(),
            Self::Speed => speed_table_name(view),
            Self::Gaps => GAPS.to_owned(),
            Self::Cuts => CUTS.to_owned(),
            Self::Batch => batch_table_name(view),
            Self::Runs => RUNS.to_owned(),
            Self::Reports => RUN_REPORTS.to_owned(),
            Self::Publications => PUBLICATIONS.to_owned(),
        }
    }

    /// What the months of its table are made of; a control table has none.
    const fn months_of(self) -> Option<&'static str> {
        match self {
            Self::Speed => Some(WINDOW_COLUMN),
            Self::Batch => Some(DAY_COLUMN),
            Self::Progress | Self::Gaps | Self::Cuts | Self::Runs | Self::Reports | Self::Publications => None,
        }
    }
}

/// Rows below a floor, by place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    /// How many in each month, as 201311; month 0 is a table without months. Rows that others replace count too.
    pub rows: BTreeMap<(Place, u32), u64>,
    /// About how many bytes on disk they take.
    pub bytes: u64,
}

impl Below {
    /// How many there are in a place.
    pub fn of(&self, place: Place) -> u64 {
        let of_place = self.rows.iter().filter(|((of, _), _)| *of == place);
        of_place.map(|(_, rows)| rows).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[derive(Debug, Row, Deserialize)]
struct RaisedRow {
    number: u64,
    marks: Vec<(u128, u32, u64)>,
    age: i64,
}

#[derive(Debug, Row, Deserialize)]
struct HorizonRow {
    day: i32,
    age: i64,
}

#[derive(Debug, Row, Deserialize)]
struct MonthRow {
    month: u32,
    rows: u64,
}

#[derive(Debug, Row, Deserialize)]
struct SizeRow {
    bytes: u64,
    rows: u64,
}

/// A number of 128 bits in SQL. As a plain literal it would be a float.
fn wide(number: u128) -> String {
    format!("toUInt128('{number}')")
}

/// Whether a row's start lies below its partition's mark; none where no mark is above 0.
fn below_marks(marks: &BTreeMap<Partition, Mark>) -> Option<String> {
    let conditions: Vec<_> = marks
        .iter()
        .filter(|(_, mark)| mark.0.0 > 0)
        .map(|(partition, mark)| {
            format!(
                "({} = {} AND {} = {} AND {} < {})",
                identifier(TOPIC_COLUMN),
                wide(partition.topic.0),
                identifier("_partition"),
                partition.number,
                identifier(START_COLUMN),
                mark.0.0
            )
        })
        .collect();
    (!conditions.is_empty()).then(|| format!("({})", conditions.join(" OR ")))
}

fn one_of(column: &str, runs: &[RunId]) -> String {
    let runs: Vec<_> = runs.iter().map(|run| wide(run.0)).collect();
    format!("{} IN ({})", identifier(column), runs.join(", "))
}

/// Whether a row is of an event day before that one.
fn before(place: Place, day: EventDay) -> Option<String> {
    let column = identifier(place.months_of()?);
    Some(match place {
        Place::Batch => format!("{column} < toDate32({})", day.0),
        _ => format!("{column} < toDateTime64({}, 0, 'UTC')", i64::from(day.0) * 86_400),
    })
}

/// What is to go from a place: the conditions, each a statement's. `empty` are those of the runs that have no rows.
fn conditions(view: &View, place: Place, gone: &Gone, empty: &BTreeSet<RunId>) -> Vec<String> {
    let of_view = format!("fingerprint = {}", quote::text(&view.fingerprint.to_string()));
    let named = |column: &str, runs: &BTreeSet<RunId>| -> Vec<String> {
        let runs: Vec<_> = runs.iter().copied().collect();
        runs.chunks(RUNS_AT_A_TIME).map(|runs| one_of(column, runs)).collect()
    };
    let of_view_and = |conditions: Vec<String>| {
        let both = conditions
            .into_iter()
            .map(|condition| format!("{of_view} AND {condition}"));
        both.collect::<Vec<_>>()
    };
    let below = || below_marks(&gone.floor.marks).into_iter().collect();
    match place {
        Place::Speed => below(),
        Place::Progress | Place::Gaps | Place::Cuts => of_view_and(below()),
        Place::Batch => named(RUN_COLUMN, &gone.runs),
        Place::Runs => of_view_and(named("run", empty)),
        Place::Reports => of_view_and(named("run", &gone.reports)),
        Place::Publications => {
            let keys: Vec<_> = gone.publications.iter().collect();
            let some = keys.chunks(RUNS_AT_A_TIME).map(|keys| {
                let keys: Vec<_> = keys
                    .iter()
                    .map(|(number, run)| format!("({}, {})", number.0, wide(run.0)))
                    .collect();
                format!("(number, run) IN ({})", keys.join(", "))
            });
            of_view_and(some.collect())
        }
    }
}

impl Store {
    /// A view's floor rows, the lowest number first.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn raised_floors(&self, view: &View) -> Result<Vec<Raised>, StoreError> {
        let sql = format!(
            "SELECT number, marks, toUnixTimestamp64Milli(now64(3)) - toUnixTimestamp64Milli(raised) AS age \
             FROM {} FINAL WHERE fingerprint = {{view:String}} ORDER BY number, marks",
            self.table(FLOORS)
        );
        let rows = self.rows::<RaisedRow>("read floors", &sql, &of(view)).await?;
        let raised = |row: RaisedRow| Raised {
            floor: Floor {
                number: PublicationNumber(row.number),
                marks: marks(row.marks),
            },
            age: Duration::from_millis(u64::try_from(row.age).unwrap_or_default()),
        };
        Ok(rows.into_iter().map(raised).collect())
    }

    /// A view's horizons.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn raised_horizons(&self, view: &View) -> Result<Vec<RaisedHorizon>, StoreError> {
        let sql = format!(
            "SELECT toInt32(day) AS day, toUnixTimestamp64Milli(now64(3)) - toUnixTimestamp64Milli(raised) AS age \
             FROM {} FINAL WHERE fingerprint = {{view:String}} ORDER BY day",
            self.table(HORIZONS)
        );
        let rows = self.rows::<HorizonRow>("read horizons", &sql, &of(view)).await?;
        let raised = |row: HorizonRow| RaisedHorizon {
            day: EventDay(row.day),
            age: Duration::from_millis(u64::try_from(row.age).unwrap_or_default()),
        };
        Ok(rows.into_iter().map(raised).collect())
    }

    /// How many rows of a view, in either layer, are of event days before that one: by place and month, as 201311.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn before(&self, view: &View, day: EventDay) -> Result<Below, StoreError> {
        let mut found = Below::default();
        for place in [Place::Speed, Place::Batch] {
            let Some((column, condition)) = place.months_of().zip(before(place, day)) else {
                continue;
            };
            let sql = format!(
                "SELECT toYYYYMM({}) AS month, count() AS rows FROM {} WHERE {condition} GROUP BY month",
                identifier(column),
                self.table(&place.table(view))
            );
            let mut rows = 0;
            for row in self
                .rows::<MonthRow>("count what is before the horizon", &sql, &[])
                .await?
            {
                found.rows.insert((place, row.month), row.rows);
                rows += row.rows;
            }
            if rows > 0 {
                found.bytes += self.bytes_of(&place.table(view), rows).await?;
            }
        }
        Ok(found)
    }

    /// Deletes what [`Store::before`] found, and waits until it is done. Months that lie before the day as a whole are
    /// dropped, which costs nothing; of the day's own month the parts are written anew.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn delete_before(&self, view: &View, day: EventDay, found: &Below) -> Result<(), StoreError> {
        let sql = format!("SELECT toUInt32(toYYYYMM(toDate32({}))) AS month", day.0);
        let own_month = self.rows::<u32>("tell a day's month", &sql, &[]).await?;
        let own_month = own_month.into_iter().next().unwrap_or_default();
        for (place, month) in found.rows.keys() {
            let Some(condition) = before(*place, day) else {
                continue;
            };
            let table = place.table(view);
            let sql = if *month < own_month {
                format!("ALTER TABLE {} DROP PARTITION {month}", self.table(&table))
            } else {
                format!(
                    "ALTER TABLE {} DELETE IN PARTITION {month} WHERE {condition} SETTINGS mutations_sync = 2",
                    self.table(&table)
                )
            };
            self.execute_for_long(&format!("delete from {table}"), &sql).await?;
        }
        Ok(())
    }

    /// How many rows there are of what is to go; of the runs, those that have no rows any more.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn below(&self, view: &View, gone: &Gone) -> Result<Below, StoreError> {
        let empty = self.without_rows(view, &gone.runs).await?;
        let mut found = Below::default();
        for place in Place::ORDER {
            let mut rows = 0;
            for condition in conditions(view, place, gone, &empty) {
                let month = place.months_of().map_or_else(
                    || "toUInt32(0)".to_owned(),
                    |column| format!("toYYYYMM({})", identifier(column)),
                );
                let sql = format!(
                    "SELECT {month} AS month, count() AS rows FROM {} WHERE {condition} GROUP BY month",
                    self.table(&place.table(view))
                );
                for row in self
                    .rows::<MonthRow>("count what is below the floor", &sql, &[])
                    .await?
                {
                    *found.rows.entry((place, row.month)).or_default() += row.rows;
                    rows += row.rows;
                }
            }
            if rows > 0 {
                found.bytes += self.bytes_of(&place.table(view), rows).await?;
            }
        }
        Ok(found)
    }

    /// Deletes from one place what [`Store::below`] found there, and waits until it is done.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn delete_below(&self, view: &View, place: Place, gone: &Gone, found: &Below) -> Result<(), StoreError> {
        let empty = if place == Place::Runs {
            self.without_rows(view, &gone.runs).await?
        } else {
            BTreeSet::new()
        };
        let table = place.table(view);
        let months = found
            .rows
            .keys()
            .filter(|(of, _)| *of == place)
            .map(|(_, month)| *month);
        for month in months {
            let partition = place
                .months_of()
                .map_or_else(String::new, |_| format!(" IN PARTITION {month}"));
            for condition in conditions(view, place, gone, &empty) {
                let sql = format!(
                    "ALTER TABLE {} DELETE{partition} WHERE {condition} SETTINGS mutations_sync = 2",
                    self.table(&table)
                );
                self.execute_for_long(&format!("delete from {table}"), &sql).await?;
            }
        }
        Ok(())
    }

    /// The runs of a view that told what they came to.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn reported_runs(&self, view: &View) -> Result<BTreeSet<RunId>, StoreError> {
        let sql = format!(
            "SELECT DISTINCT run FROM {} WHERE fingerprint = {{view:String}}",
            self.table(RUN_REPORTS)
        );
        let runs = self.rows::<u128>("read which runs told", &sql, &of(view)).await?;
        Ok(runs.into_iter().map(RunId).collect())
    }

    /// Deletes the horizons before that one, which says what they say.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn delete_horizons(&self, view: &View, before: EventDay) -> Result<(), StoreError> {
        let sql = format!(
            "ALTER TABLE {} DELETE WHERE fingerprint = {} AND day < toDate32({}) SETTINGS mutations_sync = 2",
            self.table(HORIZONS),
            quote::text(&view.fingerprint.to_string()),
            before.0
        );
        self.execute_for_long("delete from horizons", &sql).await
    }

    /// Deletes floor rows by name: those that another one lies above in every component.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn delete_floors(&self, view: &View, floors: &[Floor]) -> Result<(), StoreError> {
        for some in floors.chunks(RUNS_AT_A_TIME) {
            let names: Vec<_> = some
                .iter()
                .map(|floor| {
                    let marks = floor.marks.iter().map(|(partition, mark)| {
                        format!(
                            "({}, toUInt32({}), toUInt64({}))",
                            wide(partition.topic.0),
                            partition.number,
                            mark.0.0
                        )
                    });
                    let marks: Vec<_> = marks.collect();
                    let marks = if marks.is_empty() {
                        "empty(marks)".to_owned()
                    } else {
                        format!("marks = [{}]", marks.join(", "))
                    };
                    format!("(number = {} AND {marks})", floor.number.0)
                })
                .collect();
            let sql = format!(
                "ALTER TABLE {} DELETE WHERE fingerprint = {} AND ({}) SETTINGS mutations_sync = 2",
                self.table(FLOORS),
                quote::text(&view.fingerprint.to_string()),
                names.join(" OR ")
            );
            self.execute_for_long("delete from floors", &sql).await?;
        }
        Ok(())
    }

    /// Those of the runs that have no row in the view's table. Their rows went in an earlier collection; what arrived
    /// since then would have been found.
    async fn without_rows(&self, view: &View, runs: &BTreeSet<RunId>) -> Result<BTreeSet<RunId>, StoreError> {
        let mut empty = runs.clone();
        let all: Vec<_> = runs.iter().copied().collect();
        for some in all.chunks(RUNS_AT_A_TIME) {
            let sql = format!(
                "SELECT DISTINCT {} FROM {} WHERE {}",
                identifier(RUN_COLUMN),
                self.table(&batch_table_name(view)),
                one_of(RUN_COLUMN, some)
            );
            for run in self.rows::<u128>("read runs", &sql, &[]).await? {
                empty.remove(&RunId(run));
            }
        }
        Ok(empty)
    }

    /// About how many bytes so many rows of a table take on disk.
    async fn bytes_of(&self, table: &str, rows: u64) -> Result<u64, StoreError> {
        let sql = "SELECT sum(bytes_on_disk) AS bytes, sum(rows) AS rows FROM system.parts \
                   WHERE active AND database = {database:String} AND table = {table:String}";
        let parameters = [("database", self.database().to_owned()), ("table", table.to_owned())];
        let sizes = self
            .rows::<SizeRow>("tell the size of its tables", sql, &parameters)
            .await?;
        let of_rows = |size: &SizeRow| {
            let bytes = u128::from(size.bytes) * u128::from(rows) / u128::from(size.rows.max(1));
            u64::try_from(bytes).unwrap_or(u64::MAX).min(size.bytes)
        };
        Ok(sizes.first().map(of_rows).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::definitions::Definitions;
    use shared_schemas::handoff::{Offset, TopicId};

    use super::*;

    const FLIGHTS: &str = "[dataset.flights]\ntopic = \"flights\"\nevent_time = \"at\"\n[dataset.flights.fields]\n\
                           at = \"timestamp\"\n[view.hourly]\ndataset = \"flights\"\ngrain = \"1h\"\n\
                           [view.hourly.measures]\nflights = \"count()\"\n";

    #[test]
    fn only_what_is_named_is_deleted() {
        let partition = |number| Partition {
            topic: TopicId(u128::MAX),
            number,
        };
        let marks = BTreeMap::from([(partition(0), Mark(Offset(0))), (partition(1), Mark(Offset(16)))]);
        assert_eq!(
            below_marks(&marks).as_deref(),
            Some(
                "((`_topic` = toUInt128('340282366920938463463374607431768211455') AND `_partition` = 1 AND `_start` < 16))"
            )
        );
        assert_eq!(
            below_marks(&BTreeMap::new()),
            None,
            "without a mark there is no condition, and no statement"
        );
        assert_eq!(
            before(Place::Batch, EventDay(15_736)).as_deref(),
            Some("`_day` < toDate32(15736)")
        );
        assert_eq!(
            before(Place::Speed, EventDay(1)).as_deref(),
            Some("`_window` < toDateTime64(86400, 0, 'UTC')")
        );
        assert_eq!(before(Place::Progress, EventDay(1)), None, "offsets have no day");
        assert_eq!(one_of("_run", &[RunId(7)]), "`_run` IN (toUInt128('7'))");
        let view = &Definitions::parse([("flights.toml", FLIGHTS)]).unwrap().views[0];
        let gone = Gone {
            publications: BTreeSet::from([(PublicationNumber(3), RunId(7))]),
            ..Gone::default()
        };
        for place in Place::ORDER {
            let wanted = (place == Place::Publications).then(|| {
                format!(
                    "fingerprint = '{}' AND (number, run) IN ((3, toUInt128('7')))",
                    view.fingerprint
                )
            });
            let conditions = conditions(view, place, &gone, &BTreeSet::new());
            assert_eq!(conditions, wanted.into_iter().collect::<Vec<_>>(), "{place:?}");
        }
    }
}
