//! All archives below `archive.url`, whoever defined them; and taking one away as a whole.
//!
//! A dataset that no definition names any more leaves its archive behind, in a folder of its name. What is there of it is told by
//! its table's log. Files of events go first and the log last: ended in the middle, it is still seen, and can be taken away again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use shared_connections::sentence;
use shared_schemas::config::{ArchiveConfig, ArchiveUrl};
use shared_schemas::handoff::TopicId;

use super::clock;
use super::columns::DATE_COLUMN;
use super::error::ArchiveError;
use super::optimize::Files;
use super::pinned::files_of;
use super::quarantine;
use super::readers;
use super::table::{failed, load, log_store};

/// Where a table's log is, within its folder.
const LOG: &str = "_delta_log/";
/// Files that are deleted at the same time.
const DELETES_AT_ONCE: usize = 8;

/// What is archived of one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldArchive {
    /// The dataset.
    pub dataset: String,
    /// The incarnations of topics that its events came from.
    pub topics: BTreeSet<TopicId>,
    /// How many events it holds.
    pub events: u64,
    /// All of its files, those of the log and those put aside too.
    pub files: Files,
    /// Why it can't be read, if it can't.
    pub problem: Option<String>,
}

/// All archives, by name.
///
/// # Errors
/// [`ArchiveError::Place`] for a place that can't be used, [`ArchiveError::Log`] where it can't be listed.
pub async fn held_archives(config: &ArchiveConfig) -> Result<Vec<HeldArchive>, ArchiveError> {
    if let ArchiveUrl::Folder(folder) = &config.url
        && !folder.is_dir()
    {
        return Ok(Vec::new());
    }
    let (root, place) = log_store(config, "").await?;
    let listed = root.object_store(None).list_with_delimiter(None).await;
    let listed = listed.map_err(|error| failed(&place, "listed")(error.into()))?;
    let mut held = Vec::new();
    for folder in listed.common_prefixes {
        if let Some(name) = folder.filename() {
            held.extend(held_archive(config, name).await?);
        }
    }
    held.sort_by(|a, b| a.dataset.cmp(&b.dataset));
    Ok(held)
}

/// The archive of that name; `None` where there is none.
async fn held_archive(config: &ArchiveConfig, name: &str) -> Result<Option<HeldArchive>, ArchiveError> {
    let (log, place) = log_store(config, name).await?;
    let objects = objects(&log.object_store(None), &place).await?;
    if !objects.iter().any(is_of_log) {
        return Ok(None);
    }
    let mut held = HeldArchive {
        dataset: name.to_owned(),
        ..HeldArchive::default()
    };
    objects
        .iter()
        .filter(|object| is_ours(object))
        .for_each(|object| held.files.add(object.size));
    let read = match load(&log, &place).await {
        Ok((state, standing)) => files_of(&state, &place).map(|files| (files, standing)),
        Err(error) => Err(error),
    };
    match read {
        Ok((files, standing)) => {
            held.events = files.iter().map(|file| file.rows).sum();
            held.topics = standing.ends.keys().map(|partition| partition.topic).collect();
        }
        Err(error) => held.problem = Some(sentence(&error)),
    }
    Ok(Some(held))
}

/// Takes away the archive of that name. What else lies in its folder stays.
///
/// # Errors
/// [`ArchiveError::Foreign`] for a table that is not known to be an archive, [`ArchiveError::Log`] where the store fails: done
/// again it goes on.
pub async fn remove_archive(config: &ArchiveConfig, name: &str) -> Result<(), ArchiveError> {
    let (log, place) = log_store(config, name).await?;
    let store = log.object_store(None);
    let mut objects = objects(&store, &place).await?;
    // Of one that was ended in the middle nothing but a part of its log is left.
    if objects.iter().any(|object| !is_of_log(object)) {
        load(&log, &place).await?;
    }
    objects.retain(is_ours);
    let (mut entries, files): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_of_log);
    // The newest first: what is left is an older version.
    entries.sort_by(|a, b| b.location.cmp(&a.location));
    let delete = |object: ObjectMeta| {
        let (store, place) = (&store, &place);
        async move {
            match store.delete(&object.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(place, "deleted from")(error.into())),
            }
        }
    };
    let gone = futures::stream::iter(files)
        .map(delete)
        .buffer_unordered(DELETES_AT_ONCE);
    gone.try_collect::<()>().await?;
    for entry in entries {
        delete(entry).await?;
    }
    if let ArchiveUrl::Folder(folder) = &config.url {
        without_empty(&folder.join(name));
    }
    Ok(())
}

async fn objects(store: &Arc<dyn ObjectStore>, place: &str) -> Result<Vec<ObjectMeta>, ArchiveError> {
    let listed = store.list(None).try_collect().await;
    listed.map_err(|error: object_store::Error| failed(place, "listed")(error.into()))
}

fn is_of_log(object: &ObjectMeta) -> bool {
    object.location.as_ref().starts_with(LOG)
}

fn is_ours(object: &ObjectMeta) -> bool {
    let path = object.location.as_ref();
    let begins = |folder: &str, end: char| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(end));
    let folders = [quarantine::FOLDER, readers::FOLDER, clock::FOLDER];
    is_of_log(object) || begins(DATE_COLUMN, '=') || folders.into_iter().any(|folder| begins(folder, '/'))
}

/// Removes folders that nothing is left in, as well as it can be done.
fn without_empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            without_empty(&entry.path());
        }
    }
    // One that is not empty stays.
    let _ = std::fs::remove_dir(folder);
}
