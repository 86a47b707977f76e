//! Reports of reconciliation, kept: the newest few, each view's as a document for machines and a page for people.

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::store::tables::RECONCILIATIONS;

use super::client::Store;
use super::error::StoreError;

/// So many reports are kept; each time one is written, older ones go.
pub const RECONCILIATIONS_KEPT: u64 = 50;

/// A view's part of a report.
#[derive(Debug, Clone, PartialEq, Eq, Row, Serialize, Deserialize)]
pub struct ReconciliationRow {
    /// The report: later ones are higher.
    pub id: String,
    /// The view.
    pub view: String,
    /// When it was written, in milliseconds since 1970.
    pub at: i64,
    /// Whether nothing is wrong.
    pub sound: bool,
    /// How many values were compared.
    pub compared: u64,
    /// How many differ.
    pub different: u64,
    /// How many of these nothing explains.
    pub unexplained: u64,
    /// All of it as JSON.
    pub document: String,
    /// All of it as Markdown.
    pub page: String,
}

const COLUMNS: &str = "id, view, toUnixTimestamp64Milli(at) AS at, sound, compared, different, unexplained";

impl Store {
    /// Writes a report and lets go of those that are too many.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn record_reconciliation(&self, rows: &[ReconciliationRow]) -> Result<(), StoreError> {
        self.record(RECONCILIATIONS, rows).await?;
        let table = self.table(RECONCILIATIONS);
        // What is gone is gone by name: a report that arrives meanwhile stays.
        let old = format!(
            "ALTER TABLE {table} DELETE WHERE id IN (SELECT DISTINCT id FROM {table} ORDER BY id DESC LIMIT 1000000 \
             OFFSET {RECONCILIATIONS_KEPT})"
        );
        self.execute("let go of old reports", &old).await
    }

    /// The reports, the newest first, without their documents and pages.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn reconciliations(&self) -> Result<Vec<ReconciliationRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, '' AS document, '' AS page FROM {} FINAL ORDER BY id DESC, view",
            self.table(RECONCILIATIONS)
        );
        self.rows("list reports", &sql, &[]).await
    }

    /// A report: a row for each view; none where there is no such report. The beginning of its id will do.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn reconciliation(&self, id: &str) -> Result<Vec<ReconciliationRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, document, page FROM {} FINAL WHERE startsWith(id, {{id:String}}) ORDER BY id DESC, view",
            self.table(RECONCILIATIONS)
        );
        self.rows("show a report", &sql, &[("id", id.to_owned())]).await
    }
}
