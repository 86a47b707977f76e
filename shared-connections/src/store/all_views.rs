//! Everything that the store holds of views, whoever defined them; and taking one away as a whole.
//!
//! Rows belong to a fingerprint, and what no definition names any more goes by its fingerprint alone.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;
use shared_schemas::handoff::TopicId;
use shared_schemas::store::tables::{
    BATCH_PREFIX, CUTS, FLOORS, FRESHNESS, GAPS, HORIZONS, PROGRESS, PUBLICATIONS, RUNS, SPEED_PREFIX,
};
use shared_schemas::store::{Table, control_tables, quote};

use super::client::Store;
use super::error::StoreError;

/// The control tables that come first where a view's rows are taken away; others with such rows follow. Progress before anything that it speaks
/// of: should the view come back before all is gone, it is then read again. Floors right after the publications
/// that they are about.
const FIRST: [&str; 8] = [PROGRESS, PUBLICATIONS, FLOORS, FRESHNESS, CUTS, GAPS, RUNS, HORIZONS];

/// The control tables with rows of views, in the order in which they are emptied.
fn of_views() -> Vec<String> {
    let is_of_views = |table: &Table| table.columns.iter().any(|(name, _)| name == "fingerprint");
    let others = control_tables()
        .into_iter()
        .filter(is_of_views)
        .map(|table| table.name)
        .filter(|name| !FIRST.contains(&name.as_str()));
    FIRST.map(str::to_owned).into_iter().chain(others).collect()
}

/// What the store holds under one fingerprint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldView {
    /// Rows of batch runs, those that others replace too.
    pub batch_rows: u64,
    /// Rows of the speed layer, those that others replace too.
    pub speed_rows: u64,
    /// Rows of control tables: progress, publications and so on.
    pub control_rows: u64,
    /// What its own tables take on disk.
    pub bytes: u64,
    /// How many publications there are.
    pub publications: u64,
    /// When it was last published, in milliseconds since 1970; 0 for never.
    pub published: i64,
}

#[derive(Debug, Row, Deserialize)]
struct TableRow {
    name: String,
    rows: u64,
    bytes: u64,
}

#[derive(Debug, Row, Deserialize)]
struct ControlRow {
    fingerprint: String,
    rows: u64,
}

#[derive(Debug, Row, Deserialize)]
struct PublishedRow {
    fingerprint: String,
    publications: u64,
    last: i64,
}

#[derive(Debug, Row, Deserialize)]
struct TopicRow {
    fingerprint: String,
    topic: u128,
}

impl Store {
    /// Which incarnations of topics each view has counted, as progress and publications tell.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn topics_of_views(&self) -> Result<BTreeMap<String, BTreeSet<TopicId>>, StoreError> {
        let sql = format!(
            "SELECT DISTINCT fingerprint, _topic AS topic FROM {} UNION DISTINCT \
             SELECT DISTINCT fingerprint, tupleElement(arrayJoin(marks), 1) AS topic FROM {}",
            self.table(PROGRESS),
            self.table(PUBLICATIONS)
        );
        let mut topics: BTreeMap<String, BTreeSet<TopicId>> = BTreeMap::new();
        for row in self.rows::<TopicRow>("read which topics views have", &sql, &[]).await? {
            topics.entry(row.fingerprint).or_default().insert(TopicId(row.topic));
        }
        Ok(topics)
    }

    /// All views that the store holds something of, by fingerprint.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn held_views(&self) -> Result<BTreeMap<String, HeldView>, StoreError> {
        let mut held: BTreeMap<String, HeldView> = BTreeMap::new();
        let sql = "SELECT name, toUInt64(ifNull(total_rows, 0)) AS rows, toUInt64(ifNull(total_bytes, 0)) AS bytes \
                   FROM system.tables WHERE database = {database:String}";
        let parameters = [("database", self.database().to_owned())];
        for row in self.rows::<TableRow>("list its tables", sql, &parameters).await? {
            if let Some(fingerprint) = row.name.strip_prefix(SPEED_PREFIX) {
                let view = held.entry(fingerprint.to_owned()).or_default();
                view.speed_rows += row.rows;
                view.bytes += row.bytes;
            } else if let Some(fingerprint) = row.name.strip_prefix(BATCH_PREFIX) {
                let view = held.entry(fingerprint.to_owned()).or_default();
                view.batch_rows += row.rows;
                view.bytes += row.bytes;
            }
        }
        for table in of_views() {
            let table = table.as_str();
            let sql = format!(
                "SELECT fingerprint, count() AS rows FROM {} GROUP BY fingerprint",
                self.table(table)
            );
            for row in self.rows::<ControlRow>("count rows of views", &sql, &[]).await? {
                held.entry(row.fingerprint).or_default().control_rows += row.rows;
            }
        }
        let sql = format!(
            "SELECT fingerprint, count() AS publications, toUnixTimestamp64Milli(max(published)) AS last FROM {} FINAL \
             GROUP BY fingerprint",
            self.table(PUBLICATIONS)
        );
        for row in self.rows::<PublishedRow>("count publications", &sql, &[]).await? {
            let view = held.entry(row.fingerprint).or_default();
            view.publications = row.publications;
            view.published = row.last;
        }
        Ok(held)
    }

    /// Takes away all that the store holds under a fingerprint. Ended in the middle it may be done again, and must be
    /// before a definition brings the view back.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn remove_view(&self, fingerprint: &str) -> Result<(), StoreError> {
        for table in of_views() {
            let table = table.as_str();
            let sql = format!(
                "ALTER TABLE {} DELETE WHERE fingerprint = {} SETTINGS mutations_sync = 2",
                self.table(table),
                quote::text(fingerprint)
            );
            self.execute_for_long(&format!("delete from {table}"), &sql).await?;
        }
        for prefix in [BATCH_PREFIX, SPEED_PREFIX] {
            let table = self.table(&format!("{prefix}{fingerprint}"));
            let doing = format!("drop table {table}");
            self.execute_for_long(&doing, &format!("DROP TABLE IF EXISTS {table} SYNC"))
                .await?;
        }
        Ok(())
    }
}
