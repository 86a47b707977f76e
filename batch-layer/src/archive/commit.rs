//! Ranges of offsets into the archive, exactly once.
//!
//! The files come first; nobody sees them until an entry of the log names them. That entry is written only as the very next
//! one after a version in which each partition's end equals its range's first offset: `max_retries` is 0, because Delta's
//! own resolution of conflicts rebases a commit past others that it takes for independent, and transactions of the same
//! name count as dependent there only if the commit is told that it read them. After a conflict, or an error that leaves
//! open whether the entry was written, the newest version is read and everything is checked again.
//!
//! A request to an object store may do its work after its writer has given up. So a try whose entry is not there is not
//! known to have failed: its entry may still come, and must never name a file that is gone. It can't come any more once its
//! version is there, since an entry is only written where none is. Until then the files stay, and the next try of the same
//! ranges names the same files.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

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

/// A commit that was tried, and nobody knows what became of it.
#[derive(Debug)]
pub(super) struct Try {
    /// The version that its entry would be, or is.
    version: u64,
    ranges: BTreeMap<Partition, OffsetRange>,
    adds: Vec<Add>,
}

/// How a commit came to be in the archive.
enum Entered {
    /// By the entry that was just written.
    Now(u64),
    /// It was found there: by an earlier try, or from a rival with the same ranges.
    Before(u64),
}

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
        let adds = match self.written(commit) {
            Some(adds) => adds,
            None => self.write(commit).await?,
        };
        let mut version = self.version() + 1;
        let entered = self.enter(commit, &adds, &mut version).await;
        if !matches!(entered, Ok(Entered::Now(_))) {
            let ranges = commit.ranges.clone();
            self.undecided.push(Try { version, ranges, adds });
        }
        // An error may come after the entry was written, from what is done behind it: only the newest version tells.
        if entered.is_ok() || self.refresh().await.is_ok() {
            self.decide().await;
        }
        entered.map(|(Entered::Now(version) | Entered::Before(version))| version)
    }

    /// The files of an earlier try of the same ranges whose entry may still come: what is in them is the same, since the
    /// log alone decides it.
    fn written(&mut self, commit: &Commit) -> Option<Vec<Add>> {
        let version = self.version() + 1;
        let same = |earlier: &Try| earlier.version >= version && earlier.ranges == commit.ranges;
        let place = self.undecided.iter().position(same)?;
        Some(self.undecided.swap_remove(place).adds)
    }

    /// Removes files of tries that are known to have failed.
    async fn decide(&mut self) {
        let newest = self.version();
        let (decided, open) = std::mem::take(&mut self.undecided)
            .into_iter()
            .partition(|tried| tried.version <= newest);
        self.undecided = open;
        for tried in decided {
            match self.log.read_commit_entry(tried.version).await {
                Ok(Some(entry)) => {
                    let mut lost = tried.adds;
                    let named = named(&entry);
                    lost.retain(|add| !named.contains(&add.path));
                    self.discard(&lost).await;
                }
                // Cleaned up long ago: `optimize` finds what nobody names.
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "what became of a try is not known yet");
                    self.undecided.push(tried);
                }
            }
        }
    }

    /// Where the archive stands once that is in it.
    fn after(&self, commit: &Commit) -> Result<Standing, ArchiveError> {
        let after = self.standing.after(&commit.ranges, &commit.gaps)?;
        Ok(after.cut_off(&commit.truncated))
    }

    /// Writes the entry of the log; `tried` is the version that it was last tried as.
    async fn enter(&mut self, commit: &Commit, adds: &[Add], tried: &mut u64) -> Result<Entered, ArchiveError> {
        for _ in 0..TRIES {
            let after = self.after(commit)?;
            *tried = self.version() + 1;
            let error = match Box::pin(self.try_enter(&after, commit, adds)).await {
                Ok(()) => return Ok(Entered::Now(self.version())),
                Err(error) => error,
            };
            let before = self.version();
            self.refresh().await?;
            if self.standing.holds(&commit.ranges, &commit.truncated) {
                return Ok(Entered::Before(self.version()));
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
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(columns::PLACES.map(ToOwned::to_owned).into()),
            predicate: None,
        };
        self.append(actions, operation, transactions.collect(), self.told(commit))
            .await?;
        self.standing = after.clone();
        Ok(())
    }

    /// Writes the entry after the version that this handle knows, or none.
    pub(super) async fn append(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        transactions: Vec<Transaction>,
        told: Option<(String, serde_json::Value)>,
    ) -> Result<(), ArchiveError> {
        let next = self.version() + 1;
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_application_transactions(transactions)
            .with_metadata(told)
            // To look for old entries is to list all there are, so only where a checkpoint makes some superfluous.
            .with_cleanup_expired_logs(Some((next + 1).is_multiple_of(CHECKPOINT_EVERY)));
        let entry = CommitBuilder::from(properties).with_actions(actions).build(
            Some(&self.state),
            Arc::clone(&self.log),
            operation,
        );
        let entered = entry.await.map_err(failed(&self.place, "committed to"))?;
        self.state = entered.snapshot;
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

    pub(super) fn failed_schema(&self, error: impl std::fmt::Display) -> ArchiveError {
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
        // All are awaited, also after one failed: what was written must be known, to be removed.
        let writing: Vec<_> = files
            .into_iter()
            .map(|rows| self.write_file(rows, Arc::clone(&schema)).boxed())
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

    async fn write_file(&self, rows: Rows, schema: arrow::datatypes::SchemaRef) -> Result<Add, ArchiveError> {
        let encoded = spawn_blocking(move || rows.encode(&schema)).await;
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

    /// Removes files that no entry of the log names, or will name.
    pub(super) async fn discard(&self, adds: &[Add]) {
        let store = self.log.object_store(None);
        for add in adds {
            let path = object_store::path::Path::from(add.path.as_str());
            if let Err(error) = store.delete(&path).await {
                tracing::debug!(%path, %error, "a file that was not committed is left behind");
            }
        }
    }
}

/// The files that an entry of the log adds.
pub(super) fn named(entry: &[u8]) -> HashSet<String> {
    let lines = entry.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|action| Some(action.get("add")?.get("path")?.as_str()?.to_owned()))
        .collect()
}
