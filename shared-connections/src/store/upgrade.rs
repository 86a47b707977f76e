//! Columns that a control table of an earlier build lacks.
//!
//! `CREATE TABLE IF NOT EXISTS` leaves an old table as it is, and the first insert would fail with words about a column. What
//! is new is added instead; old rows have its default. Tables of views never change: another layout is another
//! fingerprint.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;
use shared_schemas::store::Table;

use super::client::Store;
use super::error::StoreError;

#[derive(Debug, Row, Deserialize)]
struct ColumnRow {
    table: String,
    name: String,
}

impl Store {
    /// Adds to each of these tables, which are there, the columns that it lacks.
    pub(super) async fn upgrade(&self, tables: &[Table]) -> Result<(), StoreError> {
        let sql = "SELECT table, name FROM system.columns WHERE database = {database:String}";
        let parameters = [("database", self.database().to_owned())];
        let rows = self
            .rows::<ColumnRow>("tell its tables' columns", sql, &parameters)
            .await?;
        let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in rows {
            there.entry(row.table).or_default().insert(row.name);
        }
        for table in tables {
            let Some(there) = there.get(&table.name) else {
                continue;
            };
            let names = table.columns.iter().map(|(name, _)| name.as_str());
            let lacking: Vec<_> = names.filter(|name| !there.contains(*name)).collect();
            if lacking.is_empty() {
                continue;
            }
            tracing::info!(
                "table {} is of an earlier build: adding {}",
                table.name,
                lacking.join(", ")
            );
            let doing = format!("add columns to table {}", table.name);
            for statement in table.add_columns(self.database(), &lacking) {
                self.execute(&doing, &statement).await?;
            }
        }
        Ok(())
    }
}
