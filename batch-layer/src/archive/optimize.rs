//! Small files made into large ones, and files removed that no version names any more.
//!
//! A commit writes a file for each event day and partition that it holds, however small, and each run opens every file of
//! its days. So files of a day and partition that follow on each other are replaced by one, in the order of offsets, in an
//! entry of the log that says that it changes no data: ends, gaps and accounts stay as they are, and so do rows. Rows are
//! streamed, a group of rows at a time; how large a day is does not matter.
//!
//! An archiver may commit meanwhile. Whoever comes second finds the place of its entry taken, looks again, and goes on.
//!
//! Before that, days go that the dataset no longer keeps (`let_go`).
//!
//! What was replaced is kept for `archive.keep_removed`. After that time files go that the newest version does not name:
//! replaced ones, and those of commits that never came to be. That they are old enough, two clocks must say; small files are made
//! large ones without them. A batch run reads the version that it pinned, for as long as it takes: while one does that began before
//! that time, nothing goes (`readers`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::Schema;
use chrono::Utc;
use deltalake::kernel::{Action, Add, MetadataExt, Remove};
use deltalake::protocol::DeltaOperation;
use futures::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use shared_connections::sentence;
use shared_schemas::config::ArchiveConfig;
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{EventDay, Offset, Partition};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::columns::DATE_COLUMN;
use super::commit::named;
use super::error::ArchiveError;
use super::files::{Home, Summary, now, offsets, properties};
use super::pinned::{File, damaged, files_of};
use super::quarantine::TRIES;
use super::scan::open_whole;
use super::sums::FileWriter;
use super::table::{Archive, failed};
use crate::clock::Today;
use crate::report::day_text;

/// One entry of the log replaces at most so many bytes, or makes so many files: a stop loses no more work than that.
const ENTRY_BYTES: u64 = 1 << 30;
const ENTRY_FILES: usize = 200;
/// Rows are read so many at a time, fewer where they are wide.
const BATCH_ROWS: u64 = 8192;
const BATCH_BYTES: u64 = 1 << 20;
/// Files that are deleted at the same time.
const DELETES_AT_ONCE: usize = 8;
/// The table property that says how long the log tells of removed files.
pub(super) const TOLD_FOR: &str = "delta.deletedFileRetentionDuration";

/// How the archive is kept tidy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// About how large files become.
    pub target_file: u64,
    /// How long files are kept that no newer version names.
    pub keep_removed: Duration,
    /// The first event day that is kept; none where all are.
    pub horizon: Option<EventDay>,
    /// Whether files that no newer version names are deleted: not by one clock alone.
    pub deletes: bool,
    /// Only tell what would be done.
    pub dry_run: bool,
}

impl Upkeep {
    /// As configured, for this dataset today.
    pub fn of(config: &ArchiveConfig, dataset: &Dataset, today: &Today, dry_run: bool) -> Self {
        Self {
            target_file: config.target_file,
            keep_removed: config.keep_removed,
            horizon: dataset.keep.and_then(|keep| today.first_kept(keep)),
            deletes: today.is_believed(),
            dry_run,
        }
    }
}

/// For how long the log tells of removed files, as Delta writes it.
pub(super) fn told_for(upkeep: &Upkeep) -> String {
    format!("interval {} seconds", upkeep.keep_removed.as_secs())
}

/// Some files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Files {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Files {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    fn extend(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
    }
}

/// What became of a dataset's archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Optimized {
    /// The dataset.
    pub dataset: String,
    /// Files before.
    pub before: Files,
    /// The first event day that is kept, as in 2013-01-31; none where all are.
    pub horizon: Option<String>,
    /// Why no further day was let go, or nothing deleted, where which day it is can't be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// Files of earlier days that were taken out, or would be.
    pub let_go: Files,
    /// Small ones that were replaced, or would be.
    pub replaced: Files,
    /// What they were replaced by. Where nothing is done, as large as what would be replaced.
    pub by: Files,
    /// Files that no version names, deleted or to be deleted.
    pub deleted: Files,
    /// Files that are old enough by this machine's clock, and stay until another one agrees with it.
    pub waiting: Files,
    /// Why none is deleted for now: who reads a version for so long that a file it needs would go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_need: Option<String>,
    /// Files that could not be read, and stay as they are.
    pub damaged: Vec<String>,
}

/// A file that replaces others.
struct Merged {
    sources: Vec<File>,
    add: Add,
}

impl Archive {
    /// Replaces small files and deletes what nobody names. Cancelled, it ends after what it is at; what was done stays.
    ///
    /// # Errors
    /// [`ArchiveError::Log`] and [`ArchiveError::Write`] where the store fails. What was replaced before stays so.
    pub async fn optimize(&mut self, upkeep: &Upkeep, cancel: &CancellationToken) -> Result<Optimized, ArchiveError> {
        self.refresh().await?;
        let mut done = Optimized {
            dataset: self.dataset.name.clone(),
            ..Optimized::default()
        };
        files_of(&self.state, &self.place)?
            .iter()
            .for_each(|file| done.before.add(file.size));
        let (horizon, let_go) = self.let_go(upkeep).await?;
        done.horizon = horizon.map(day_text);
        done.let_go = let_go;
        let mut files = files_of(&self.state, &self.place)?;
        files.retain(|file| horizon.is_none_or(|horizon| file.range.day >= horizon));
        let mut merged: Vec<Merged> = Vec::new();
        for group in groups(files, upkeep.target_file) {
            if cancel.is_cancelled() {
                break;
            }
            if upkeep.dry_run {
                let bytes = group.iter().map(|file| file.size).sum();
                group.iter().for_each(|file| done.replaced.add(file.size));
                done.by.add(bytes);
                continue;
            }
            match Box::pin(self.merge(group)).await {
                Ok(one) => merged.push(one),
                Err(error @ ArchiveError::File { .. }) => done.damaged.push(sentence(&error)),
                Err(error) => {
                    self.give_up(merged).await;
                    return Err(error);
                }
            }
            let bytes: u64 = merged.iter().flat_map(|one| &one.sources).map(|file| file.size).sum();
            if bytes >= ENTRY_BYTES || merged.len() >= ENTRY_FILES {
                self.replace(std::mem::take(&mut merged), upkeep, &mut done).await?;
            }
        }
        self.replace(merged, upkeep, &mut done).await?;
        if !cancel.is_cancelled() {
            done.in_need = self.readers_in_need(upkeep).await?;
            if done.in_need.is_none() {
                let old = self.remove_unnamed(upkeep).await?;
                *(if upkeep.deletes {
                    &mut done.deleted
                } else {
                    &mut done.waiting
                }) = old;
            }
        }
        Ok(done)
    }

    /// Writes one file of several.
    async fn merge(&self, sources: Vec<File>) -> Result<Merged, ArchiveError> {
        let store = self.log.object_store(None);
        let Some(first) = sources.first() else {
            return Err(ArchiveError::Commit("no files to replace".to_owned()));
        };
        let home = Home {
            partition: first.range.partition,
            day: first.range.day,
        };
        let path = home.new_file(first.range.first);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ArchiveError::Write {
            path: format!("{}/{path}", self.place),
            source,
        };
        // The columns alone: what else a file says is of that file.
        let (held, _) = open_whole(&store, &self.place, first, 1).await?;
        let schema = Arc::new(Schema::new(held.fields().clone()));
        let mut output = BufWriter::new(Arc::clone(&store), Path::from(path.as_str()));
        let written = async {
            let properties = properties().map_err(|error| failed(error.into()))?;
            let mut writer = FileWriter::new(&schema, properties).map_err(|error| failed(error.into()))?;
            let (mut all, mut length) = (Summary::default(), 0);
            let mut next = Offset::default();
            for file in &sources {
                let (held, mut batches) = open_whole(&store, &self.place, file, rows_at_once(file)).await?;
                if held.fields() != schema.fields() {
                    let what = "its columns are not those of the day's other files";
                    return Err(damaged(&self.place, &file.path, what));
                }
                let mut of_file: Option<(Offset, Offset)> = None;
                while let Some(batch) = batches.try_next().await? {
                    let Some((low, high)) = offsets(&batch) else {
                        return Err(damaged(&self.place, &file.path, "it lacks offsets"));
                    };
                    if low < next {
                        return Err(damaged(&self.place, &file.path, "its offsets are not in order"));
                    }
                    next = high.next();
                    of_file = Some((of_file.map_or(low, |(first, _)| first), high));
                    all.add(&batch);
                    let bytes = writer.write(&batch).map_err(|error| failed(error.into()))?;
                    length += bytes.len();
                    output.put(bytes.into()).await.map_err(|error| failed(error.into()))?;
                }
                if of_file != Some((file.range.first, file.range.last)) {
                    let what = "its offsets are not those that its log entry says";
                    return Err(damaged(&self.place, &file.path, what));
                }
            }
            let bytes = writer.finish().map_err(|error| failed(error.into()))?;
            length += bytes.len();
            output.put(bytes.into()).await.map_err(|error| failed(error.into()))?;
            Ok((all, length))
        };
        match written.await {
            Ok((all, bytes)) => {
                // One that fails here is over with, and must not be aborted any more.
                output.shutdown().await.map_err(|error| failed(error.into()))?;
                Ok(Merged {
                    add: home.add(path, bytes, &all, false),
                    sources,
                })
            }
            Err(error) => {
                // What a store keeps of a file that was never finished costs space and no more.
                if let Err(error) = output.abort().await {
                    tracing::debug!(%error, "an unfinished file may be left behind");
                }
                Err(error)
            }
        }
    }

    /// Names the new files in the place of the old ones, in one entry. Those whose old files are gone meanwhile are left out.
    async fn replace(
        &mut self,
        merged: Vec<Merged>,
        upkeep: &Upkeep,
        done: &mut Optimized,
    ) -> Result<(), ArchiveError> {
        let mut merged = merged;
        for _ in 0..TRIES {
            let there: HashSet<Path> = files_of(&self.state, &self.place)?
                .into_iter()
                .map(|file| file.path)
                .collect();
            let is_whole = |one: &Merged| one.sources.iter().all(|file| there.contains(&file.path));
            let (whole, stale): (Vec<_>, Vec<_>) = merged.into_iter().partition(is_whole);
            self.give_up(stale).await;
            merged = whole;
            if merged.is_empty() {
                return Ok(());
            }
            let tried = self.version() + 1;
            if let Err(error) = Box::pin(self.enter_replacement(&merged, upkeep)).await {
                let before = self.version();
                // Where that fails, or the entry may still come, the new files stay until their time is over.
                self.overtaken(before, error).await?;
                let entry = self.log.read_commit_entry(tried).await;
                let entry = entry.map_err(failed(&self.place, "read"))?;
                let named = entry.map(|entry| named(&entry)).unwrap_or_default();
                if !merged.iter().all(|one| named.contains(&one.add.path)) {
                    continue;
                }
            }
            for one in &merged {
                one.sources.iter().for_each(|file| done.replaced.add(file.size));
                done.by.add(u64::try_from(one.add.size).unwrap_or_default());
            }
            return Ok(());
        }
        self.give_up(merged).await;
        Err(self.crowded())
    }

    async fn enter_replacement(&mut self, merged: &[Merged], upkeep: &Upkeep) -> Result<(), ArchiveError> {
        let mut actions = Vec::new();
        let told_for = told_for(upkeep);
        let metadata = self.state.metadata();
        if metadata.configuration().get(TOLD_FOR) != Some(&told_for) {
            let metadata = metadata.clone().add_config_key(TOLD_FOR.to_owned(), told_for);
            actions.push(Action::Metadata(metadata.map_err(|error| self.failed_schema(error))?));
        }
        for one in merged {
            actions.push(Action::Add(one.add.clone()));
            actions.extend(one.sources.iter().map(|file| Action::Remove(removed(file, false))));
        }
        let operation = DeltaOperation::Optimize {
            predicate: None,
            target_size: i64::try_from(upkeep.target_file).unwrap_or(i64::MAX),
        };
        self.append(actions, operation, Vec::new(), None).await
    }

    /// Removes new files that no entry names, nor will.
    async fn give_up(&self, merged: Vec<Merged>) {
        let adds: Vec<Add> = merged.into_iter().map(|one| one.add).collect();
        self.discard(&adds).await;
    }

    /// Deletes files that the newest version does not name, once they are old enough; tells of them where that is not to be done.
    async fn remove_unnamed(&mut self, upkeep: &Upkeep) -> Result<Files, ArchiveError> {
        self.refresh().await?;
        let now = Utc::now().timestamp_millis();
        let mut known = Known {
            named: files_of(&self.state, &self.place)?
                .into_iter()
                .map(|file| file.path)
                .collect(),
            removed: HashMap::new(),
        };
        let mut removed = self.state.all_tombstones(&self.log);
        while let Some(one) = removed.try_next().await.map_err(failed(&self.place, "read"))? {
            let path = Path::from(one.path().as_ref());
            known.removed.insert(path, one.deletion_timestamp().unwrap_or(now));
        }
        drop(removed);
        let keep = i64::try_from(upkeep.keep_removed.as_millis()).unwrap_or(i64::MAX);
        let store = self.log.object_store(None);
        let mut doomed = Vec::new();
        let mut listed = store.list(None);
        let unlisted = |error: object_store::Error| failed(&self.place, "listed")(error.into());
        while let Some(object) = listed.try_next().await.map_err(unlisted)? {
            let since = object.last_modified.timestamp_millis();
            if known.lets_go(&object.location, since, now.saturating_sub(keep)) {
                doomed.push((object.location, object.size));
            }
        }
        drop(listed);
        let deletes = upkeep.deletes && !upkeep.dry_run;
        let deleting = futures::stream::iter(doomed).map(|(path, size)| {
            let store = &store;
            async move {
                match if deletes { store.delete(&path).await } else { Ok(()) } {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Some(size),
                    Err(error) => {
                        tracing::warn!(%path, %error, "a file that nobody names can't be deleted: next time again");
                        None
                    }
                }
            }
        });
        let deleted = deleting.buffer_unordered(DELETES_AT_ONCE);
        let count = |mut files: Files, size: Option<u64>| {
            files.extend(size.map(|bytes| Files { files: 1, bytes }).unwrap_or_default());
            async move { files }
        };
        Ok(deleted.fold(Files::default(), count).await)
    }
}

/// What the newest version says of files.
struct Known {
    named: HashSet<Path>,
    /// When, for those that were named before.
    removed: HashMap<Path, i64>,
}

impl Known {
    /// Whether a file that is there since then may go: one of events that the version does not name, neither written nor
    /// removed after `before`.
    fn lets_go(&self, path: &Path, since: i64, before: i64) -> bool {
        let is_of_events = path.as_ref().starts_with(&format!("{DATE_COLUMN}=")) && path.as_ref().ends_with(".parquet");
        let removed = self.removed.get(path).copied().unwrap_or(since);
        is_of_events && !self.named.contains(path) && since.max(removed) < before
    }
}

/// The action that takes a file out of the table.
pub(super) fn removed(file: &File, data_change: bool) -> Remove {
    let home = Home {
        partition: file.range.partition,
        day: file.range.day,
    };
    Remove {
        path: file.path.to_string(),
        data_change,
        deletion_timestamp: Some(now()),
        extended_file_metadata: Some(true),
        partition_values: Some(home.values()),
        size: i64::try_from(file.size).ok(),
        tags: None,
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
    }
}

/// How many rows of a file are decoded at once.
fn rows_at_once(file: &File) -> usize {
    let width = (file.size / file.rows.max(1)).max(1);
    usize::try_from((BATCH_BYTES / width).clamp(16, BATCH_ROWS)).unwrap_or(16)
}

/// Which files are made into one: those of a day and partition that follow on each other, are read by the same rules, and
/// are each no larger than half the target; together at most the target.
fn groups(files: Vec<File>, target: u64) -> Vec<Vec<File>> {
    let mut places: BTreeMap<(EventDay, Partition), Vec<File>> = BTreeMap::new();
    for file in files {
        let place = (file.range.day, file.range.partition);
        places.entry(place).or_default().push(file);
    }
    let mut groups = Vec::new();
    for mut files in places.into_values() {
        files.sort_by_key(|file| file.range.first);
        let mut group: Vec<File> = Vec::new();
        for file in files {
            let size: u64 = group.iter().map(|file| file.size).sum();
            let is_small = file.size <= target / 2;
            let goes_with = group.last().is_none_or(|last| last.rules == file.rules) && size + file.size <= target;
            if !is_small || !goes_with {
                groups.push(std::mem::take(&mut group));
            }
            if is_small {
                group.push(file);
            }
        }
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;
    use shared_schemas::handoff::{ArchivedRange, TopicId};

    use super::*;

    fn file(place: u32, first: u64, size: u64, rules: u8) -> File {
        File {
            path: Path::from(format!("{place}/{first}")),
            size,
            rows: 1,
            range: ArchivedRange {
                day: EventDay(i32::try_from(place / 2).unwrap()),
                partition: Partition {
                    topic: TopicId(1),
                    number: place % 2,
                },
                first: Offset(first),
                last: Offset(first + 9),
            },
            times: (0, 0),
            rules: Some(rules.to_string()),
        }
    }

    proptest! {
        /// Each group is worth it, within the target, of one place and one set of rules, and nothing lies in between.
        #[test]
        fn files_that_follow_on_each_other_are_made_one(
            of in prop::collection::vec((0_u32..4, 1_u64..120, 0_u8..2), 0..40), target in 1_u64..200,
        ) {
            let files: Vec<_> = (0..).step_by(10).zip(of).map(|(first, (place, size, rules))| file(place, first, size, rules)).collect();
            let mut groups = groups(files.clone(), target);
            for group in &groups {
                prop_assert!(group.len() > 1);
                prop_assert!(group.iter().map(|file| file.size).sum::<u64>() <= target);
                let (first, last) = (&group[0], &group[group.len() - 1]);
                let between = files.iter().filter(|file| {
                    (file.range.day, file.range.partition) == (first.range.day, first.range.partition)
                        && file.range.first >= first.range.first && file.range.first <= last.range.first
                });
                let paths: Vec<_> = between.map(|file| &file.path).collect();
                prop_assert_eq!(paths, group.iter().map(|file| &file.path).collect::<Vec<_>>());
                prop_assert!(group.iter().all(|file| file.rules == first.rules));
            }
            // Once more finds less to do: no file is in two groups.
            let mut all: Vec<_> = groups.drain(..).flatten().map(|file| file.path).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn only_old_files_of_events_that_nobody_names_go() {
        let path = |name: &str| Path::from(format!("_date=2013-11-01/{name}.parquet"));
        let known = Known {
            named: [path("named")].into(),
            removed: [(path("removed"), 50), (path("just removed"), 100)].into(),
        };
        for (name, since, goes) in [
            ("named", 1, false),
            ("removed", 1, true),
            ("just removed", 1, false),
            ("never committed", 1, true),
            ("being written", 100, false),
        ] {
            assert_eq!(known.lets_go(&path(name), since, 100), goes, "{name}");
        }
        for other in [
            "_delta_log/00000000000000000050.checkpoint.parquet",
            "_quarantine/x.parquet",
            "notes.txt",
        ] {
            assert!(!known.lets_go(&Path::from(other), 1, 100), "{other}");
        }
    }
}
