//! A file that was put aside, put back into the table: its offsets are no gap any more.
//!
//! What the log said of the file when it went was kept, and the file must still be just that: a good copy may be laid in its place
//! below `_quarantine`. It comes back under a new name, since upkeep may be about to delete what had the old one.

use deltalake::kernel::Action;
use deltalake::protocol::{DeltaOperation, SaveMode};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Serialize;
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet};

use super::error::ArchiveError;
use super::files::{Home, date_text};
use super::intact::intact;
use super::pinned::{File, files_of};
use super::quarantine::{FOLDER, TRIES, beside, names, whole};
use super::standing::{Aside, topic_text};
use super::table::Archive;

/// A file that was put back, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The dataset.
    pub dataset: String,
    /// The file, as it was called before it was put aside.
    pub file: String,
    /// Its event day.
    pub day: String,
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// How many events it holds.
    pub events: u64,
    /// What it is called now; nothing where nothing was done.
    pub restored_to: Option<String>,
}

impl Archive {
    /// Puts back a file that was put aside, named as before, or as it is below `_quarantine`. Without `carry_out` it only tells
    /// what would be done.
    ///
    /// # Errors
    /// [`ArchiveError::NotAside`] where none of that name was put aside, [`ArchiveError::File`] where it is not whole,
    /// [`ArchiveError::NoGap`] where its offsets are archived otherwise by now, [`ArchiveError::Log`] where the store fails:
    /// nothing was done.
    pub async fn restore(&mut self, name: &str, carry_out: bool) -> Result<Restored, ArchiveError> {
        let mut copied: Option<Path> = None;
        for _ in 0..TRIES {
            self.refresh().await?;
            let aside = self.standing.aside.values().find(|aside| self.is_named(aside, name));
            let Some(aside) = aside.cloned() else {
                // One that was entered although its writer was told otherwise.
                if let Some(path) = copied.take() {
                    let files = files_of(&self.state, &self.place)?;
                    if let Some(file) = files.iter().find(|file| file.path == path) {
                        return Ok(self.restored(file, name, Some(path.to_string())));
                    }
                }
                return Err(ArchiveError::NotAside {
                    place: self.place.clone(),
                    file: name.to_owned(),
                });
            };
            let was = aside.file.path.to_string();
            if !self.standing.keeps(aside.file.range.day) {
                let day = date_text(aside.file.range.day);
                return Err(ArchiveError::Commit(format!(
                    "{was} is of {day}, which the dataset no longer keeps"
                )));
            }
            let from = Path::from(format!("{FOLDER}/{was}"));
            let lies = File {
                path: from.clone(),
                ..aside.file.clone()
            };
            let store = self.log.object_store(None);
            let summary = intact(&store, &self.place, &lies).await?;
            let everything = OffsetRange {
                from: Offset::default(),
                to: Offset(u64::MAX),
            };
            let held = self.offsets_of(&lies, everything).await?;
            let held: OffsetSet = held
                .into_iter()
                .map(|from| OffsetRange { from, to: from.next() })
                .collect();
            let after = self.standing.clone().put_back(&was, &held);
            let after = after.map_err(|offset| self.no_gap(&lies, offset))?;
            self.not_held_by_others(&lies, &held).await?;
            if !carry_out {
                return Ok(self.restored(&aside.file, &was, None));
            }
            let home = Home {
                partition: aside.file.range.partition,
                day: aside.file.range.day,
            };
            let to = match &copied {
                Some(path) => path.clone(),
                None => {
                    let to = Path::from(home.new_file(aside.file.range.first));
                    store.copy(&from, &to).await.map_err(|source| ArchiveError::Write {
                        path: format!("{}/{to}", self.place),
                        source: source.into(),
                    })?;
                    copied.insert(to).clone()
                }
            };
            let bytes = usize::try_from(aside.file.size).unwrap_or(usize::MAX);
            let add = Action::Add(home.add(to.to_string(), bytes, &summary, true));
            let operation = DeltaOperation::Write {
                mode: SaveMode::Append,
                partition_by: None,
                predicate: None,
            };
            let before = self.version();
            match Box::pin(self.amend(after, vec![add], operation)).await {
                Ok(()) => {
                    if let Err(error) = store.delete(&from).await {
                        tracing::warn!(path = %from, %error, "what was put back could not be deleted from where it lay: it does no harm");
                    }
                    return Ok(self.restored(&aside.file, &was, Some(to.to_string())));
                }
                Err(error) => self.overtaken(before, error).await?,
            }
        }
        Err(self.crowded())
    }

    fn is_named(&self, aside: &Aside, name: &str) -> bool {
        let path = aside.file.path.as_ref();
        names(&self.place, name, path) || names(&self.place, name, &format!("{FOLDER}/{path}"))
    }

    fn no_gap(&self, file: &File, offset: Offset) -> ArchiveError {
        ArchiveError::NoGap {
            path: format!("{}/{}", self.place, file.path),
            offset,
        }
    }

    /// A gap may have been told for more than what was lost.
    async fn not_held_by_others(&self, file: &File, held: &OffsetSet) -> Result<(), ArchiveError> {
        let whole = whole(file);
        let files = files_of(&self.state, &self.place)?;
        for other in beside(&files, file) {
            let theirs = self.offsets_of(other, whole).await?;
            if let Some(offset) = theirs.into_iter().find(|offset| held.contains(*offset)) {
                return Err(self.no_gap(file, offset));
            }
        }
        Ok(())
    }

    fn restored(&self, file: &File, name: &str, restored_to: Option<String>) -> Restored {
        Restored {
            dataset: self.dataset.name.clone(),
            file: name.to_owned(),
            day: date_text(file.range.day),
            topic: topic_text(file.range.partition.topic),
            partition: file.range.partition.number,
            events: file.rows,
            restored_to,
        }
    }
}
