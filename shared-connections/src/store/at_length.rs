//! The answer of a lengthy statement, piece by piece: whoever takes the pieces never holds all of it.
//!
//! How long the taker needs between two pieces counts as time of the statement in all, but not as standing still. A statement whose
//! answer is not taken to its end is ended on the server too.

use bytes::Bytes;
use clickhouse::query::BytesCursor;
use shared_schemas::store::Statement;
use tokio::time::Instant;

use super::client::{ANSWERS, Store};
use super::error::StoreError;
use super::pace::{Moved, Pace, Watched};

/// An answer that is under way.
pub struct AtLength<'a> {
    store: &'a Store,
    id: String,
    rows: BytesCursor,
    pace: Pace,
    watched: Watched,
    moved: Moved,
    is_done: bool,
}

impl Drop for AtLength<'_> {
    /// Nobody wants the rest: the server is told so.
    fn drop(&mut self) {
        if !self.is_done {
            self.store.end(self.id.clone());
        }
    }
}

impl Store {
    /// Runs a statement of `shared_schemas::store` that may take long; the rows in that ClickHouse format. It is given up where nothing
    /// moves any more, see [`Pace`].
    ///
    /// # Errors
    /// ClickHouse's.
    pub fn begin_at_length(&self, statement: &Statement, format: &str, pace: Pace) -> Result<AtLength<'_>, StoreError> {
        let id = self.ids.next();
        let rows = self.query(statement, &id, format).fetch_bytes(format);
        Ok(AtLength {
            store: self,
            rows: rows.map_err(|error| StoreError::new(self.url(), ANSWERS, error))?,
            id,
            pace,
            watched: Watched::new(pace, Instant::now()),
            moved: Moved::default(),
            is_done: false,
        })
    }
}

impl AtLength<'_> {
    /// The next bytes; `None` at the end. After an error there are none.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let looks = Instant::now() + self.pace.looks_every();
            match tokio::time::timeout_at(looks, self.rows.next()).await {
                Ok(Ok(Some(bytes))) => {
                    self.moved.bytes += bytes.len() as u64;
                    self.note()?;
                    return Ok(Some(bytes));
                }
                Ok(Ok(None)) => {
                    self.is_done = true;
                    return Ok(None);
                }
                Ok(Err(error)) => return Err(StoreError::new(self.store.url(), ANSWERS, error)),
                Err(_) => {}
            }
            // What the server does not say this time is no step back.
            self.moved.work = self.store.work_of(&self.id).await.max(self.moved.work);
            self.note()?;
        }
    }

    /// Gives up where a limit is passed.
    fn note(&mut self) -> Result<(), StoreError> {
        let Some(limit) = self.watched.note(self.moved, Instant::now()) else {
            return Ok(());
        };
        let doing = ANSWERS.to_owned();
        Err(StoreError::Slow { doing, limit })
    }
}
