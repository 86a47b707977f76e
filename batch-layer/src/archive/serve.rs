//! All datasets' archivers, as one program runs them.

use shared_connections::log::Kafka;
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{DecodeSetupError, Decoder, EnvironmentKeys, Options};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{BadChunk, ChunkSize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::archiver::Archiver;
use super::dead_letters::LetterError;
use super::error::ArchiveError;
use super::metrics;
use super::table::Archive;
use super::upkeep::keep_tidy;

/// Why the archivers can't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A dataset's records can't be read.
    #[error("dataset {dataset} can't be archived")]
    Decoder {
        /// The dataset.
        dataset: String,
        /// Why.
        source: DecodeSetupError,
    },
    /// The archive can't be opened.
    #[error("dataset {dataset} can't be archived")]
    Archive {
        /// The dataset.
        dataset: String,
        /// Why.
        source: ArchiveError,
    },
    /// The dataset's chunk is not a power of two; definitions are checked for it.
    #[error("dataset {dataset} can't be archived")]
    Chunk {
        /// The dataset.
        dataset: String,
        /// Why.
        source: BadChunk,
    },
    /// Dead letters can't be sent.
    #[error("dataset {dataset} can't be archived")]
    Letters {
        /// The dataset.
        dataset: String,
        /// Why.
        source: LetterError,
    },
    /// An archiver panicked: a fault in this program. The others were told to end.
    #[error("an archiver panicked")]
    Panicked,
}

/// Archives all datasets until cancelled. Once they run, troubles are told and waited out; a Kafka that is not there and a
/// topic that is not made yet are such troubles.
///
/// # Errors
/// What keeps any of them from starting, before any has: mask keys that are not set, a place that can't be used, a field
/// that is archived with another type.
pub async fn serve(
    config: &Config,
    definitions: &Definitions,
    kafka: &Kafka,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    metrics::describe();
    for dataset in &definitions.datasets {
        let options = Options {
            extra: true,
            keys: &EnvironmentKeys,
        };
        Decoder::new(dataset, options).map_err(|source| ServeError::Decoder {
            dataset: dataset.name.clone(),
            source,
        })?;
    }
    // One that panics ends the others, in order.
    let ending = cancel.child_token();
    let mut archivers = Vec::with_capacity(definitions.datasets.len());
    for dataset in &definitions.datasets {
        let started = tokio::select! {
            started = start(config, dataset, kafka, &ending) => started?,
            () = cancel.cancelled() => return Ok(()),
        };
        archivers.push(started);
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_tidy(config.clone(), definitions.datasets.clone(), ending.clone()));
    for archiver in archivers {
        tasks.spawn(archiver.run());
    }
    let mut panicked = false;
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err() {
            panicked = true;
            ending.cancel();
        }
    }
    if panicked { Err(ServeError::Panicked) } else { Ok(()) }
}

async fn start(
    config: &Config,
    dataset: &Dataset,
    kafka: &Kafka,
    cancel: &CancellationToken,
) -> Result<Archiver, ServeError> {
    let name = || dataset.name.clone();
    let archive = Archive::open_or_create(&config.archive, dataset).await;
    let archive = archive.map_err(|source| ServeError::Archive {
        dataset: name(),
        source,
    })?;
    let chunk = ChunkSize::new(dataset.chunk).map_err(|source| ServeError::Chunk {
        dataset: name(),
        source,
    })?;
    let archiver = Archiver::new(config, dataset, chunk, kafka, archive, cancel.clone());
    archiver.map_err(|source| ServeError::Letters {
        dataset: name(),
        source,
    })
}
