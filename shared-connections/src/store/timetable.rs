//! What the schedule of batch runs says of itself, for others to see whether it is kept: no decision rests on it.
//!
//! Several processes may run one schedule, which is no harm; what the one that spoke last says, is read.

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::store::tables::TIMETABLE;

use super::client::Store;
use super::error::StoreError;

/// Of what the row is. There is one schedule.
const NAME: &str = "batch";

/// The schedule as it stood when it was last spoken of. Moments are in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timetable {
    /// When the next run starts.
    pub next: i64,
    /// Nobody is there to start it: who ran the schedule was told to end.
    pub ended: bool,
    /// When the last one ended in which no view failed; none where that is not known.
    pub succeeded: Option<i64>,
    /// How many failed since.
    pub failures: u32,
    /// The views that did, the last time; in brackets what a person has to decide about one.
    pub failing: Vec<String>,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct TimetableRow {
    name: String,
    /// Below 0 where nobody is there to start it.
    next: i64,
    succeeded: i64,
    failures: u32,
    failing: Vec<String>,
}

impl Store {
    /// Says how the schedule stands.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_timetable(&self, timetable: &Timetable) -> Result<(), StoreError> {
        let row = TimetableRow {
            name: NAME.to_owned(),
            next: if timetable.ended {
                -timetable.next
            } else {
                timetable.next
            },
            succeeded: timetable.succeeded.unwrap_or_default(),
            failures: timetable.failures,
            failing: timetable.failing.clone(),
        };
        self.record(TIMETABLE, &[row]).await
    }

    /// How it stood; none where no schedule was ever run.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn timetable(&self) -> Result<Option<Timetable>, StoreError> {
        let sql = format!(
            "SELECT name, next, succeeded, failures, failing FROM {} FINAL WHERE name = {{name:String}}",
            self.table(TIMETABLE)
        );
        let parameters = [("name", NAME.to_owned())];
        let rows = self
            .rows::<TimetableRow>("read the timetable", &sql, &parameters)
            .await?;
        Ok(rows.into_iter().next().map(|row| Timetable {
            next: row.next.saturating_abs(),
            ended: row.next < 0,
            succeeded: Some(row.succeeded).filter(|at| *at != 0),
            failures: row.failures,
            failing: row.failing,
        }))
    }
}
