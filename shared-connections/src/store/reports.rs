//! What batch runs came to, as they told it themselves: kept for people, beside the facts of the hand-off.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::handoff::RunId;
use shared_schemas::store::tables::RUN_REPORTS;
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;

#[derive(Debug, Row, Serialize, Deserialize)]
struct ReportRow {
    fingerprint: String,
    run: u128,
    report: String,
}

#[derive(Debug, Row, Deserialize)]
struct Told {
    run: u128,
    report: String,
}

impl Store {
    /// Keeps what a run came to, a JSON document.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_report(&self, view: &View, run: RunId, report: String) -> Result<(), StoreError> {
        let row = ReportRow {
            fingerprint: view.fingerprint.to_string(),
            run: run.0,
            report,
        };
        self.record(RUN_REPORTS, &[row]).await
    }

    /// What one run of a view came to; none where it was killed.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn report(&self, view: &View, run: RunId) -> Result<Option<String>, StoreError> {
        let sql = format!(
            "SELECT run, report FROM {} FINAL WHERE fingerprint = {{view:String}} AND run = {{run:UInt128}}",
            self.table(RUN_REPORTS)
        );
        let of = [("view", view.fingerprint.to_string()), ("run", run.0.to_string())];
        let rows = self.rows::<Told>("read what a run came to", &sql, &of).await?;
        Ok(rows.into_iter().next().map(|row| row.report))
    }

    /// What the runs of a view came to; none of runs that were killed.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn reports(&self, view: &View) -> Result<BTreeMap<RunId, String>, StoreError> {
        let sql = format!(
            "SELECT run, report FROM {} FINAL WHERE fingerprint = {{view:String}}",
            self.table(RUN_REPORTS)
        );
        let of = [("view", view.fingerprint.to_string())];
        let rows = self.rows::<Told>("read what runs came to", &sql, &of).await?;
        Ok(rows.into_iter().map(|row| (RunId(row.run), row.report)).collect())
    }
}
