//! What ends a worker, or makes it wait.

use shared_connections::log::LogError;
use shared_connections::store::{ErrorKind, StoreError};

/// Why the speed layer could not do something.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// Kafka's.
    #[error(transparent)]
    Log(#[from] LogError),
    /// ClickHouse's, where a human must act.
    #[error("rows can't be written: {}", source.remedy().unwrap_or("ClickHouse says why"))]
    Store {
        /// What it says.
        #[from]
        source: StoreError,
    },
    /// The plan of a view could not be made or run: memory, or a mistake of ours. Never an event's values.
    #[error("view {view} can't be computed")]
    Plan {
        /// The view.
        view: String,
        /// DataFusion's error.
        source: datafusion::error::DataFusionError,
    },
    /// Batches that do not fit each other: a mistake of ours.
    #[error("events of dataset {dataset} don't fit its plan")]
    Batch {
        /// The dataset.
        dataset: String,
        /// Arrow's error.
        source: arrow::error::ArrowError,
    },
    /// The dataset can't be read as it is defined.
    #[error("dataset {dataset} can't be read")]
    Decode {
        /// The dataset.
        dataset: String,
        /// Why.
        source: shared_schemas::decode::DecodeSetupError,
    },
    /// The dataset's chunk is not a power of two; definitions are checked for it.
    #[error(transparent)]
    Chunk(#[from] shared_schemas::handoff::BadChunk),
    /// A task of the worker ended by a panic.
    #[error("a task of the speed layer broke down: a mistake of ours, please report it")]
    Task,
    /// The worker's thread ended by a panic.
    #[error("the worker of dataset {dataset} broke down: a mistake of ours, please report it")]
    Broken {
        /// The dataset.
        dataset: String,
    },
}

impl SpeedError {
    /// Whether nothing helps before a human has changed something.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Store { source } if matches!(source.kind(), ErrorKind::Fatal(_)))
    }
}
