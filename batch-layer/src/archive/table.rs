//! The table of one dataset: opened, made, loaded at its newest version.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use deltalake::DeltaTableError;
use deltalake::logstore::{LogStoreRef, StorageConfig, logstore_for};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::SaveMode;
use deltalake::table::state::DeltaTableState;
use serde::Deserialize;
use shared_schemas::config::{ArchiveConfig, ArchiveUrl};
use shared_schemas::dataset::Dataset;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet, Partition};
use url::Url;

use super::columns;
use super::commit::Try;
use super::error::ArchiveError;
use super::pinned::{Pinned, files_of};
use super::readers::Reading;
use super::standing::{PROPERTY, Standing, topic_text, transaction};
use super::store::log_in_store;

/// So many commits between checkpoints: a reader replays at most as many entries of the log.
pub(super) const CHECKPOINT_EVERY: u64 = 50;

/// How long entries of the log that a checkpoint made superfluous are kept. Readers pin the newest version and read files,
/// which are never removed, so this is for people who look back.
const LOG_KEPT: &str = "interval 1 days";

/// A dataset's archive.
pub struct Archive {
    pub(super) place: String,
    pub(super) dataset: Dataset,
    /// The rules by which what is committed was read.
    pub(super) rules: Fingerprint,
    pub(super) log: LogStoreRef,
    /// The version that the next commit builds upon.
    pub(super) state: DeltaTableState,
    pub(super) standing: Standing,
    /// Tries of which nobody knows yet what became.
    pub(super) undecided: Vec<Try>,
}

/// What a table asks of those who read and write it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    min_reader_version: u64,
    min_writer_version: u64,
}

/// What Highwater's own tables ask for. Whoever made it more uses what nobody here looks for: rows marked as deleted, say.
const KNOWN: Protocol = Protocol {
    min_reader_version: 1,
    min_writer_version: 2,
};

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("place", &self.place)
            .field("version", &self.state.version())
            .field("standing", &self.standing)
            .finish_non_exhaustive()
    }
}

impl Archive {
    /// Opens a dataset's archive at its newest version; `None` where nothing was archived yet.
    ///
    /// # Errors
    /// [`ArchiveError::Place`] for a place that can't be used, [`ArchiveError::Log`] where the table can't be read,
    /// [`ArchiveError::Foreign`] where it is not Highwater's.
    pub async fn open(config: &ArchiveConfig, dataset: &Dataset) -> Result<Option<Self>, ArchiveError> {
        let (log, place) = log_store(config, &dataset.name).await?;
        let there = log.is_delta_table_location().await;
        if !there.map_err(failed(&place, "looked for"))? {
            return Ok(None);
        }
        let (state, standing) = load(&log, &place).await?;
        Ok(Some(Self {
            place,
            dataset: dataset.clone(),
            rules: Fingerprint::of_rules(dataset),
            log,
            state,
            standing,
            undecided: Vec::new(),
        }))
    }

    /// As [`Archive::open`], but makes an empty table where there is none. Two may try at once: one makes it.
    ///
    /// # Errors
    /// As [`Archive::open`]; [`ArchiveError::FieldChanged`] for a field that is archived with another type.
    pub async fn open_or_create(config: &ArchiveConfig, dataset: &Dataset) -> Result<Self, ArchiveError> {
        let archive = match Self::open(config, dataset).await? {
            Some(archive) => archive,
            None => {
                let (log, place) = log_store(config, &dataset.name).await?;
                let made = Box::pin(create(&log, dataset)).await;
                match (Self::open(config, dataset).await?, made) {
                    (Some(archive), _) => archive,
                    (None, Err(error)) => return Err(failed(&place, "made")(error)),
                    (None, Ok(())) => {
                        let what = "it was made, and is not there".to_owned();
                        return Err(ArchiveError::Foreign { place, what });
                    }
                }
            }
        };
        columns::grown(&archive.state.schema(), dataset)?;
        Ok(archive)
    }

    /// The newest version, fixed: what is committed later does not change it.
    ///
    /// # Errors
    /// [`ArchiveError::Log`] where the table can't be read, [`ArchiveError::Foreign`] where it is not Highwater's.
    pub async fn pin(&self) -> Result<Pinned, ArchiveError> {
        let (state, standing) = load(&self.log, &self.place).await?;
        let files = files_of(&state, &self.place)?;
        let (files, gone): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| standing.keeps(file.range.day));
        let standing = standing.kept_from(None, gone.iter().map(|file| file.range));
        Ok(Pinned {
            version: state.version(),
            ends: standing.ends,
            gaps: standing.gaps,
            truncated: standing.truncated,
            accepted: standing.accepted,
            horizon: standing.horizon,
            let_go: standing.let_go,
            files: files.into(),
            dataset: Arc::new(self.dataset.clone()),
            schema: columns::read_schema(&self.dataset),
            store: self.log.object_store(None),
            reading: Arc::new(Reading::begin(&self.log, &self.place, state.version())),
            place: self.place.clone(),
        })
    }

    /// Where each partition's archive ends, at the version that this handle knows: its last commit's, or the one that was
    /// newest when it was opened or refreshed. A partition that was never committed to is not among them.
    pub fn ends(&self) -> &BTreeMap<Partition, Offset> {
        &self.standing.ends
    }

    /// What the archive lacks below its ends, at the same version.
    pub fn gaps(&self) -> &BTreeMap<Partition, OffsetSet> {
        &self.standing.gaps
    }

    /// Logs that ended below what was archived, at the same version: from their end, up to what was archived.
    pub fn truncated(&self) -> &BTreeMap<Partition, OffsetRange> {
        &self.standing.truncated
    }

    /// The version that this handle knows.
    pub fn version(&self) -> u64 {
        self.state.version()
    }

    /// Goes to the newest version.
    ///
    /// # Errors
    /// As [`Archive::pin`].
    pub async fn refresh(&mut self) -> Result<(), ArchiveError> {
        (self.state, self.standing) = load(&self.log, &self.place).await?;
        Ok(())
    }
}

/// The newest version, and where it stands.
pub(super) async fn load(log: &LogStoreRef, place: &str) -> Result<(DeltaTableState, Standing), ArchiveError> {
    let state = DeltaTableState::try_new(log, None)
        .await
        .map_err(failed(place, "read"))?;
    let foreign = |what| ArchiveError::Foreign {
        place: place.to_owned(),
        what,
    };
    let asks: Protocol = serde_json::to_value(state.protocol())
        .and_then(serde_json::from_value)
        .map_err(|error| foreign(error.to_string()))?;
    if asks.min_reader_version > KNOWN.min_reader_version || asks.min_writer_version > KNOWN.min_writer_version {
        let (reader, writer) = (asks.min_reader_version, asks.min_writer_version);
        return Err(foreign(format!(
            "it asks for version {reader} of Delta Lake's readers and {writer} of its writers, and this Highwater knows {} \
             and {}",
            KNOWN.min_reader_version, KNOWN.min_writer_version
        )));
    }
    let text = state.metadata().configuration().get(PROPERTY);
    let text = text.ok_or_else(|| foreign(format!("it has no property {PROPERTY}")))?;
    let mut standing = Standing::parse(text).map_err(foreign)?;
    for (partition, end) in &mut standing.ends {
        let version = state.transaction_version(log, transaction(*partition)).await;
        let version = version.map_err(failed(place, "read"))?;
        *end = version
            .and_then(|version| u64::try_from(version).ok())
            .map(Offset)
            .ok_or_else(|| {
                let topic = topic_text(partition.topic);
                foreign(format!("partition {} of topic {topic} has no end", partition.number))
            })?;
    }
    Ok((state, standing))
}

async fn create(log: &LogStoreRef, dataset: &Dataset) -> Result<(), DeltaTableError> {
    let properties = [
        ("delta.checkpointInterval", CHECKPOINT_EVERY.to_string()),
        ("delta.logRetentionDuration", LOG_KEPT.to_owned()),
        (PROPERTY, Standing::default().text()),
    ];
    CreateBuilder::new()
        .with_log_store(Arc::clone(log))
        .with_table_name(&dataset.name)
        .with_comment(format!("accepted events of topic {}, by Highwater", dataset.topic))
        .with_columns(columns::table_fields(dataset))
        .with_partition_columns(columns::PLACES)
        .with_configuration(properties.map(|(name, value)| (name, Some(value))))
        .with_raise_if_key_not_exists(false)
        .with_save_mode(SaveMode::ErrorIfExists)
        .await?;
    Ok(())
}

/// The log of the table of a dataset of that name, and its place for messages; without a name where all tables are.
pub(super) async fn log_store(config: &ArchiveConfig, name: &str) -> Result<(LogStoreRef, String), ArchiveError> {
    let wrong = |why: String| ArchiveError::Place {
        url: config.url.to_string(),
        why,
    };
    let folder = match &config.url {
        ArchiveUrl::Folder(folder) => folder,
        ArchiveUrl::Store { kind, bucket, path } => {
            let path = [path.as_str(), name].join("/");
            let path = path.trim_matches('/');
            return log_in_store(*kind, bucket, path, &config.options).await.map_err(wrong);
        }
    };
    let folder = std::path::absolute(folder.join(Path::new(name)));
    let folder = folder.map_err(|error| wrong(error.to_string()))?;
    let place = folder.display().to_string();
    let url = Url::from_directory_path(&folder).map_err(|()| wrong("it is no absolute path".to_owned()))?;
    let log = logstore_for(&url, StorageConfig::default()).map_err(failed(&place, "opened"))?;
    Ok((log, place))
}

/// What the table format's error means for the archive at `place`.
pub(super) fn failed(place: &str, doing: &'static str) -> impl FnOnce(DeltaTableError) -> ArchiveError {
    let place = place.to_owned();
    move |source| ArchiveError::Log {
        place,
        doing,
        source: Box::new(source),
    }
}
