//! The rows of an insert that the server refuses, found by halving; all others are written.
//!
//! ```text
//! whole ─refused─▶ halves ─▶ …, each written or halved again ─▶ single rows that are refused
//! ```
//!
//! A refused row costs two inserts for each time that the batch can be halved, so at most [`MOST_REFUSED`] are looked for:
//! beyond that, or where all of several rows are refused, it is the table that does not fit, not the row. The codes can't
//! tell: of a column that was altered to another type the engine says row by row that it can't read the value. Every row replaces itself, so parts that were written before
//! an error may be sent again.

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::client::Store;
use super::error::{ErrorKind, StoreError};

/// So many rows of one insert are found and left out; with one more the insert has failed.
const MOST_REFUSED: usize = 8;
/// Characters that describe a row, at most.
const DESCRIBED: usize = 400;

/// A row that the server refuses.
#[derive(Debug)]
pub struct RefusedRow {
    /// Its place in the batch.
    pub row: usize,
    /// Its values but for states and hashes, as in `origin=EWR, _partition=0`.
    pub key: String,
    /// What the server says.
    pub why: StoreError,
}

impl Store {
    /// Inserts the batch; rows that the server refuses are left out and returned, in order. Empty where all is written,
    /// in one insert then. Safe to send again.
    ///
    /// # Errors
    /// ClickHouse's, of any kind but [`ErrorKind::OfInsert`]: some of the rows may be written.
    /// [`StoreError::ManyRefused`] where more than 8 rows are refused, or all of several.
    pub async fn insert_isolating(&self, table: &str, batch: &RecordBatch) -> Result<Vec<RefusedRow>, StoreError> {
        let mut refused = Vec::new();
        // Ranges yet to be written, the first one on top: one half of each halving waits here, so it stays short.
        let mut waiting = vec![(0, batch.num_rows())];
        while let Some((from, rows)) = waiting.pop() {
            let part = batch.slice(from, rows);
            let why = match self.insert(table, &[part]).await {
                Ok(()) => continue,
                Err(error) if error.kind() != ErrorKind::OfInsert => return Err(error),
                Err(error) => error,
            };
            if rows > 1 {
                let half = rows / 2;
                waiting.push((from + half, rows - half));
                waiting.push((from, half));
                continue;
            }
            refused.push(RefusedRow {
                row: from,
                key: describe(batch, from),
                why,
            });
            // Of one or two rows it may well be the rows.
            let is_all = batch.num_rows() > 2 && refused.len() == batch.num_rows();
            if (is_all || refused.len() > MOST_REFUSED)
                && let Some(first) = refused.first()
            {
                return Err(StoreError::ManyRefused {
                    table: table.to_owned(),
                    refused: refused.len(),
                    key: first.key.clone(),
                    why: first.why.to_string(),
                });
            }
        }
        Ok(refused)
    }

    /// How many active parts a table has in its fullest partition: inserts are slowed down, then refused (code 252),
    /// where there are too many. 0 where there is no such table.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn active_parts(&self, table: &str) -> Result<u64, StoreError> {
        let sql = "SELECT max(parts) FROM (SELECT count() AS parts FROM system.parts WHERE database = {database:String} \
                   AND table = {table:String} AND active GROUP BY partition_id)";
        let parameters = [("database", self.database().to_owned()), ("table", table.to_owned())];
        let rows = self
            .rows::<u64>(&format!("count the parts of {table}"), sql, &parameters)
            .await?;
        Ok(rows.first().copied().unwrap_or_default())
    }
}

/// A row's values, but for those that are no text for people.
fn describe(batch: &RecordBatch, row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    let schema = batch.schema_ref();
    let values = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .filter_map(|(field, column)| {
            let is_text = !matches!(
                field.data_type(),
                DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
            );
            let value = ArrayFormatter::try_new(column, &options).ok().filter(|_| is_text)?;
            Some(format!("{}={}", field.name(), value.value(row).try_to_string().ok()?))
        });
    let all = values.collect::<Vec<_>>().join(", ");
    match all.char_indices().nth(DESCRIBED) {
        Some((end, _)) => format!("{}…", &all[..end]),
        None => all,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray};

    use super::*;

    #[test]
    fn a_row_is_described_without_its_states() {
        let long = "x".repeat(1_000);
        let columns: [(&str, ArrayRef); 3] = [
            ("n", Arc::new(Int64Array::from(vec![None, Some(7)]))),
            ("state", Arc::new(BinaryArray::from(vec![&b"\x00"[..], b"\x01"]))),
            ("origin", Arc::new(StringArray::from(vec![long.as_str(), "EWR"]))),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
        assert_eq!(describe(&batch, 1), "n=7, origin=EWR");
        let first = describe(&batch, 0);
        assert!(first.starts_with("n=null, origin=xxx") && first.ends_with('…'));
        assert_eq!(first.chars().count(), DESCRIBED + 1);
    }
}
