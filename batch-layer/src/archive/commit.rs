//! Ranges of offsets into the archive, exactly once.
//!
//! The files come first; nobody sees them until an entry of the log names them. That entry is written only as the very next
//! one after a version in which each partition's end equals its range's first offset: `max_retries` is 0, because Delta's
//! own resolution of conflicts rebases a commit past others that it takes for independent, and transactions of the same
//! name count as dependent there only if the commit is told that it read them. After a conflict, or an error that leaves
//! open whether the entry was written, the newest version is read and everything is checked again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, MetadataExt, StructType, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::{FutureExt, StreamExt};
use object_store::{ObjectStoreExt, PutPayload};
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet, Partition};
use tokio::task::spawn_blocking;

use super::accounts::{self, Accounts};
use super::columns;
use super::error::ArchiveError;
use super::files::{Rows, arrange, offsets};
use super::standing::{PROPERTY, Standing, transaction};
use super::table::{Archive, CHECKPOINT_EVERY, failed};

/// Files that are written at the same time: enough to keep a second processor busy while one waits for the disk.
const FILES_AT_ONCE: usize = 4;

/// Entries of the log that are read at the same time: each is small, and a store may be far away.
const ENTRIES_AT_ONCE: usize = 16;

/// How often a commit is tried on a newer version. Only writers to the same dataset meet, and they are few.
const TRIES: u32 = 10;

/// What goes into the archive at once.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// The offsets that are archived with it. Each begins at its partition's end in the archive.
    pub ranges: BTreeMap<Partition, OffsetRange>,
    /// The accepted events of these ranges, as the decoder made them, each partition's in the order of offsets.
    pub batches: Vec<(Partition, RecordBatch)>,
    /// The parts of these ranges that Kafka no longer had.
    pub gaps: BTreeMap<Partition, OffsetSet>,
    /// What became of the records of these ranges; nothing where that is not known.
    pub accounts: Accounts,
    /// Logs that ended below what was archived, or is with this: from their end, up to there.
    pub truncated: BTreeMap<Partition, OffsetRange>,
}

impl Commit {
    /// Whether no event lies outside its range, and the accounts tell of just the events that there are.
    fn check(&self) -> Result<(), ArchiveError> {
        for (partition, batch) in self.batches.iter().filter(|(_, batch)| batch.num_rows() > 0) {
            let inside = self.ranges.get(partition).zip(offsets(batch));
            if !inside.is_some_and(|(range, (first, last))| range.from <= first && last < range.to) {
                let range = self.ranges.get(partition);
                let what = format!(
                    "events of partition {} lie outside its range {range:?}",
                    partition.number
                );
                return Err(ArchiveError::Commit(what));
            }
        }
        if self.accounts.is_empty() {
            return Ok(());
        }
        for (partition, range) in self.ranges.iter().filter(|(_, range)| !range.is_empty()) {
            let of_partition = self.batches.iter().filter(|(one, _)| one == partition);
            let rows: u64 = of_partition.map(|(_, batch)| batch.num_rows() as u64).sum();
            let told = self.accounts.accepted(*partition, *range);
            if told != Some(rows) {
                let told = told.map_or_else(|| "not told of".to_owned(), |told| format!("told to be {told}"));
                return Err(ArchiveError::Commit(format!(
                    "{rows} events of partition {}, offsets {} to {}, are {told}",
                    partition.number, range.from, range.to
                )));
            }
        }
        Ok(())
    }
}

impl Archive {
    /// Archives the ranges: all of them, or none. The version that holds them.
    ///
    /// Safe to try again with the same ranges, also when an error left open what happened: a commit that did arrive is
    /// found, and not made a second time.
    ///
    /// # Errors
    /// [`ArchiveError::Overtaken`] where the archive does not stand at a range's first offset: read from
    /// [`Archive::ends`] on instead. [`ArchiveError::Write`] and [`ArchiveError::Log`] where the store fails: nothing is
    /// archived, try again later.
    pub async fn commit(&mut self, commit: &Commit) -> Result<u64, ArchiveError> {
        commit.check()?;
        if commit.ranges.is_empty() {
            return Ok(self.version());
        }
        match self.after(commit) {
            Ok(_) => {}
            Err(ArchiveError::Overtaken { .. }) => {
                // This handle may be behind; and the ranges may be there from an earlier try.
                self.refresh().await?;
                if self.standing.holds(&commit.ranges, &commit.truncated) {
                    return Ok(self.version());
                }
                self.after(commit)?;
            }
            Err(error) => return Err(error),
        }
        let adds = self.write(commit).await?;
        let result = self.enter(commit, &adds).await;
        // Of tries before this one, too: what became of them is known once the log can be read again.
        self.undecided.extend(adds);
        // An error may come after the entry was written, from what is done behind it: only the newest version tells.
        if result.is_ok() || self.refresh().await.is_ok() {
            let tried = std::mem::take(&mut self.undecided);
            self.discard(&self.unnamed(tried)).await;
        }
        result
    }

    /// Where the archive stands once that is in it.
    fn after(&self, commit: &Commit) -> Result<Standing, ArchiveError> {
        let after = self.standing.after(&commit.ranges, &commit.gaps)?;
        Ok(after.cut_off(&commit.truncated))
    }

    /// Those of the files that the version that this handle knows has not: not committed, or by a rival with the same
    /// ranges. A folder has no entry that arrives late.
    fn unnamed(&self, mut adds: Vec<Add>) -> Vec<Add> {
        match self.state.snapshot().try_log_data() {
            Ok(files) => {
                let tried: HashSet<_> = adds.iter().map(|add| add.path.clone()).collect();
                let paths = files.iter().map(|file| file.path().to_string());
                let named: HashSet<_> = paths.filter(|path| tried.contains(path)).collect();
                adds.retain(|add| !named.contains(&add.path));
                adds
            }
            // Where the log can't tell, they stay: a file too many harms nobody.
            Err(_) => Vec::new(),
        }
    }

    /// Writes the entry of the log.
    async fn enter(&mut self, commit: &Commit, adds: &[Add]) -> Result<u64, ArchiveError> {
        for _ in 0..TRIES {
            let after = self.after(commit)?;
            let error = match Box::pin(self.try_enter(&after, commit, adds)).await {
                Ok(()) => return Ok(self.version()),
                Err(error) => error,
            };
            let before = self.version();
            self.refresh().await?;
            if self.standing.holds(&commit.ranges, &commit.truncated) {
                return Ok(self.version());
            }
            if self.version() == before {
                return Err(error);
            }
        }
        Err(ArchiveError::Crowded {
            place: self.place.clone(),
            tries: TRIES,
        })
    }

    async fn try_enter(&mut self, after: &Standing, commit: &Commit, adds: &[Add]) -> Result<(), ArchiveError> {
        let mut actions: Vec<Action> = adds.iter().cloned().map(Action::Add).collect();
        actions.extend(self.changed_metadata(after)?);
        let transactions = commit.ranges.iter().map(|(partition, range)| {
            let end = i64::try_from(range.to.0).unwrap_or(i64::MAX);
            Transaction::new(transaction(*partition), end)
        });
        let next = self.version() + 1;
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_application_transactions(transactions.collect())
            .with_metadata(self.told(commit))
            // To look for old entries is to list all there are, so only where a checkpoint makes some superfluous.
            .with_cleanup_expired_logs(Some((next + 1).is_multiple_of(CHECKPOINT_EVERY)));
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(columns::PLACES.map(ToOwned::to_owned).into()),
            predicate: None,
        };
        let entry = CommitBuilder::from(properties).with_actions(actions).build(
            Some(&self.state),
            Arc::clone(&self.log),
            operation,
        );
        let entered = entry.await.map_err(failed(&self.place, "committed to"))?;
        self.state = entered.snapshot;
        self.standing = after.clone();
        Ok(())
    }

    /// What the entry says beside its actions.
    fn told(&self, commit: &Commit) -> Option<(String, serde_json::Value)> {
        let told = (!commit.accounts.is_empty()).then_some(&commit.accounts)?;
        Some((accounts::KEY.to_owned(), told.to_json(&self.rules.to_string())))
    }

    /// What entries of the log up to `version` say became of the records of each partition, from these offsets on; less
    /// where older entries are gone or don't tell.
    ///
    /// # Errors
    /// [`ArchiveError::Log`] where an entry can't be read.
    pub async fn accounts(&self, version: u64, from: &BTreeMap<Partition, Offset>) -> Result<Accounts, ArchiveError> {
        let read = |version| self.log.read_commit_entry(version);
        let mut entries = futures::stream::iter((0..=version).rev().map(read)).buffered(ENTRIES_AT_ONCE);
        let mut found = Accounts::default();
        let is_lacking = |found: &Accounts| {
            let told =
                |(partition, from): (&Partition, &Offset)| found.first(*partition).is_some_and(|first| first <= *from);
            !from.iter().all(told)
        };
        while is_lacking(&found)
            && let Some(entry) = entries.next().await
        {
            let Some(entry) = entry.map_err(failed(&self.place, "read"))? else {
                break;
            };
            found.prepend(Accounts::of_entry(&entry));
        }
        Ok(found)
    }

    /// The table's metadata, where a partition, a gap or a field is new.
    fn changed_metadata(&self, after: &Standing) -> Result<Option<Action>, ArchiveError> {
        let grown = columns::grown(&self.state.schema(), &self.dataset)?;
        let text = after.text();
        let metadata = self.state.metadata();
        if grown.is_none() && metadata.configuration().get(PROPERTY) == Some(&text) {
            return Ok(None);
        }
        let mut metadata = metadata.clone();
        if let Some(fields) = grown {
            let schema = StructType::try_new(fields).map_err(|error| self.failed_schema(error))?;
            metadata = metadata
                .with_schema(&schema)
                .map_err(|error| self.failed_schema(error))?;
        }
        let metadata = metadata.add_config_key(PROPERTY.to_owned(), text);
        Ok(Some(Action::Metadata(
            metadata.map_err(|error| self.failed_schema(error))?,
        )))
    }

    fn failed_schema(&self, error: impl std::fmt::Display) -> ArchiveError {
        ArchiveError::Foreign {
            place: self.place.clone(),
            what: format!("its columns can't be extended: {error}"),
        }
    }

    /// Writes the files. Where one can't be written, none is left behind.
    async fn write(&self, commit: &Commit) -> Result<Vec<Add>, ArchiveError> {
        let schema = columns::file_schema(&self.dataset);
        let wrong = |error: arrow::error::ArrowError| ArchiveError::Commit(error.to_string());
        let files = arrange(&commit.batches, &schema, self.rules).map_err(wrong)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or_default();
        // All are awaited, also after one failed: what was written must be known, to be removed.
        let writing: Vec<_> = files
            .into_iter()
            .map(|rows| self.write_file(rows, Arc::clone(&schema), now).boxed())
            .collect();
        let written: Vec<_> = futures::stream::iter(writing).buffered(FILES_AT_ONCE).collect().await;
        let (mut adds, mut failure) = (Vec::with_capacity(written.len()), None);
        for result in written {
            match result {
                Ok(add) => adds.push(add),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let Some(error) = failure else {
            return Ok(adds);
        };
        self.discard(&adds).await;
        Err(error)
    }

    async fn write_file(&self, rows: Rows, schema: arrow::datatypes::SchemaRef, now: i64) -> Result<Add, ArchiveError> {
        let encoded = spawn_blocking(move || rows.encode(&schema, now)).await;
        let failed = |path: &str, source| ArchiveError::Write {
            path: format!("{}/{path}", self.place),
            source,
        };
        let encoded = encoded.map_err(|error| failed("a file", error.into()))?;
        let encoded = encoded.map_err(|error| failed("a file", error.into()))?;
        let payload = PutPayload::from(encoded.bytes);
        match self.log.object_store(None).put(&encoded.path, payload).await {
            Ok(_) => Ok(encoded.add),
            Err(error) => Err(failed(encoded.path.as_ref(), error.into())),
        }
    }

    /// Removes files that no entry of the log names.
    async fn discard(&self, adds: &[Add]) {
        let store = self.log.object_store(None);
        for add in adds {
            let path = object_store::path::Path::from(add.path.as_str());
            if let Err(error) = store.delete(&path).await {
                tracing::debug!(%path, %error, "a file that was not committed is left behind");
            }
        }
    }
}
