//! A file that can't be read, put aside: taken out of the table, its offsets recorded as a gap, and kept for people.
//!
//! A run that meets a damaged file does not publish, since it would lose events without a word. That is right until
//! somebody has looked: no better copy will come. What a person puts aside is a gap that marks may pass, and answers say so.
//!
//! It is for good unless a good copy turns up, so the file is read first, as a whole: one that can be is not put aside, nor one
//! that the store does not give just now. The log keeps what it said of the file, so that it can be put back.
//!
//! Which offsets the file held can't always be read from it. They are those between its first and its last that no other
//! file of the partition holds; offsets that were refused, or never were, are among them. Too many is told rather than
//! too few.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use deltalake::kernel::{Action, MetadataExt};
use deltalake::protocol::DeltaOperation;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Serialize;
use shared_connections::sentence;
use shared_schemas::dataset::OFFSET_COLUMN;
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet};

use super::error::ArchiveError;
use super::files::date_text;
use super::intact::intact;
use super::optimize::removed;
use super::pinned::{File, damaged, files_of};
use super::scan::open;
use super::standing::{PROPERTY, Standing, topic_text};
use super::table::Archive;

/// Where files are moved to, within the table's folder. Programs that read the table pass over it.
pub(super) const FOLDER: &str = "_quarantine";
/// How often the entry is tried on a newer version.
pub(super) const TRIES: u32 = 20;
/// Rows that are looked at at a time.
const BATCH_ROWS: usize = 8192;
/// A gap in more parts than these is told as one: the log's metadata carries them from then on.
const PARTS: usize = 1000;

/// A file that was put aside, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The dataset.
    pub dataset: String,
    /// The file, within the table's folder.
    pub file: String,
    /// Its event day.
    pub day: String,
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// How many events it held, as the log says.
    pub events: u64,
    /// The offsets that are recorded as a gap: from, and the first one after.
    pub gap: Vec<(u64, u64)>,
    /// Where it is now; nothing where there was no file to move, or nothing was done.
    pub moved_to: Option<String>,
}

impl Archive {
    /// Puts a file aside: one that an error named, with or without the table's place, or its path. Without `carry_out` it only
    /// tells what would be done. With `force` also one that can be read.
    ///
    /// # Errors
    /// [`ArchiveError::NoFile`] where the newest version does not name it, [`ArchiveError::Whole`] where nothing is wrong with
    /// it, [`ArchiveError::Away`] where that can't be told now, [`ArchiveError::Log`] where the store fails: nothing was done.
    pub async fn quarantine(&mut self, file: &str, force: bool, carry_out: bool) -> Result<Quarantined, ArchiveError> {
        for _ in 0..TRIES {
            self.refresh().await?;
            let files = files_of(&self.state, &self.place)?;
            let aside = self.find(&files, file)?.clone();
            if !force {
                match intact(&self.log.object_store(None), &self.place, &aside).await {
                    Err(ArchiveError::File { .. }) => {}
                    Err(error) => return Err(error),
                    Ok(_) => {
                        let path = format!("{}/{}", self.place, aside.path);
                        return Err(ArchiveError::Whole { path });
                    }
                }
            }
            let gap = self.lacking(&files, &aside).await;
            let mut told = Quarantined {
                dataset: self.dataset.name.clone(),
                file: aside.path.to_string(),
                day: date_text(aside.range.day),
                topic: topic_text(aside.range.partition.topic),
                partition: aside.range.partition.number,
                events: aside.rows,
                gap: gap.ranges().iter().map(|range| (range.from.0, range.to.0)).collect(),
                moved_to: None,
            };
            if !carry_out {
                return Ok(told);
            }
            let before = self.version();
            if let Err(error) = Box::pin(self.take_out(&aside, &gap)).await {
                self.refresh().await?;
                let still = files_of(&self.state, &self.place)?;
                if still.iter().any(|one| one.path == aside.path) {
                    if self.version() == before {
                        return Err(error);
                    }
                    continue;
                }
            }
            told.moved_to = self.set_aside(&aside.path).await;
            return Ok(told);
        }
        Err(self.crowded())
    }

    fn find<'a>(&self, files: &'a [File], name: &str) -> Result<&'a File, ArchiveError> {
        let is_it = |file: &&File| names(&self.place, name, file.path.as_ref());
        files.iter().find(is_it).ok_or_else(|| ArchiveError::NoFile {
            place: self.place.clone(),
            file: name.to_owned(),
        })
    }

    /// The offsets that go with a file.
    async fn lacking(&self, files: &[File], aside: &File) -> OffsetSet {
        let whole = whole(aside);
        let mut held = BTreeSet::new();
        for other in beside(files, aside) {
            match self.offsets_of(other, whole).await {
                Ok(offsets) => held.extend(offsets),
                // What it holds is not known, so it may be that nothing is.
                Err(error) => tracing::warn!("{}", sentence(&error)),
            }
        }
        let parts = between(whole, &held);
        if parts.ranges().len() > PARTS {
            return [whole].into_iter().collect();
        }
        parts
    }

    pub(super) async fn offsets_of(&self, file: &File, within: OffsetRange) -> Result<Vec<Offset>, ArchiveError> {
        let store = self.log.object_store(None);
        let (_, mut batches) = open(&store, &self.place, file, &[OFFSET_COLUMN], BATCH_ROWS).await?;
        let mut found = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let offsets = batch.column_by_name(OFFSET_COLUMN);
            let Some(offsets) = offsets.and_then(|column| column.as_primitive_opt::<Int64Type>()) else {
                return Err(damaged(&self.place, &file.path, "it lacks a column of Highwater's"));
            };
            let offsets = offsets.values().iter().filter_map(|offset| u64::try_from(*offset).ok());
            found.extend(
                offsets
                    .map(Offset)
                    .filter(|offset| within.from <= *offset && *offset < within.to),
            );
        }
        Ok(found)
    }

    /// The entry of the log: without the file, and with the gap.
    async fn take_out(&mut self, aside: &File, gap: &OffsetSet) -> Result<(), ArchiveError> {
        let after = self.standing.clone().put_aside(aside, gap);
        let remove = Action::Remove(removed(aside, true));
        self.amend(after, vec![remove], DeltaOperation::Delete { predicate: None })
            .await
    }

    /// After an entry that could not be made on that version: whether it may be tried on a newer one.
    ///
    /// # Errors
    /// The entry's, where there is none.
    pub(super) async fn overtaken(&mut self, before: u64, error: ArchiveError) -> Result<(), ArchiveError> {
        self.refresh().await?;
        if self.version() == before { Err(error) } else { Ok(()) }
    }

    /// That others came first as often as an entry is tried.
    pub(super) fn crowded(&self) -> ArchiveError {
        ArchiveError::Crowded {
            place: self.place.clone(),
            tries: TRIES,
        }
    }

    /// An entry of the log that changes where the archive stands, and no end.
    pub(super) async fn amend(
        &mut self,
        after: Standing,
        actions: Vec<Action>,
        operation: DeltaOperation,
    ) -> Result<(), ArchiveError> {
        let metadata = self.state.metadata().clone();
        let metadata = metadata.add_config_key(PROPERTY.to_owned(), after.text());
        let metadata = metadata.map_err(|error| self.failed_schema(error))?;
        let actions = [Action::Metadata(metadata)].into_iter().chain(actions).collect();
        self.append(actions, operation, Vec::new(), None).await?;
        self.standing = after;
        Ok(())
    }

    /// Moves it, so that no upkeep deletes it. It is out of the table already.
    async fn set_aside(&self, path: &Path) -> Option<String> {
        let to = Path::from(format!("{FOLDER}/{path}"));
        match self.log.object_store(None).rename(path, &to).await {
            Ok(()) => Some(to.to_string()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => {
                tracing::warn!(%path, %error, "the file could not be moved: it is out of the table, and is deleted in time");
                None
            }
        }
    }
}

/// From a file's first offset to its last.
pub(super) fn whole(file: &File) -> OffsetRange {
    OffsetRange {
        from: file.range.first,
        to: file.range.last.next(),
    }
}

/// Other files that may hold offsets from a file's first to its last.
pub(super) fn beside<'a>(files: &'a [File], of: &'a File) -> impl Iterator<Item = &'a File> {
    files.iter().filter(|file| {
        file.path != of.path
            && file.range.partition == of.range.partition
            && file.range.first < whole(of).to
            && file.range.last >= whole(of).from
    })
}

/// Whether a name means the file at that path: as an error has it, with or without the table's place, the name alone, or a path
/// from here.
pub(super) fn names(place: &str, name: &str, path: &str) -> bool {
    let within = name.strip_prefix(place).unwrap_or(name).trim_start_matches('/');
    if path == within || (!within.is_empty() && path.rsplit('/').next() == Some(within)) {
        return true;
    }
    let there = std::path::Path::new(place).join(path);
    let is_there = |found: std::io::Result<std::path::PathBuf>| found.is_ok_and(|found| found == there);
    is_there(std::path::absolute(name)) || is_there(std::fs::canonicalize(name))
}

/// The offsets of the range but these.
fn between(whole: OffsetRange, held: &BTreeSet<Offset>) -> OffsetSet {
    let mut lacking = OffsetSet::default();
    let mut from = whole.from;
    for at in held.iter().copied().chain([whole.to]) {
        if from < at {
            lacking.insert(OffsetRange { from, to: at });
        }
        from = from.max(at.next());
    }
    lacking
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each offset of the range is either held or lacking.
        #[test]
        fn what_nobody_holds_is_lacking(held in prop::collection::btree_set(10_u64..30, 0..20)) {
            let whole = OffsetRange { from: Offset(10), to: Offset(30) };
            let lacking = between(whole, &held.iter().copied().map(Offset).collect());
            for at in 0..40 {
                prop_assert_eq!(lacking.contains(Offset(at)), (10..30).contains(&at) && !held.contains(&at));
            }
        }
    }
}
