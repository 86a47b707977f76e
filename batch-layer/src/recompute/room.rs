//! The memory and the disk that computations have, and sessions that keep to them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use futures::stream::{BoxStream, StreamExt};
use shared_schemas::config::BatchConfig;

use crate::error::RunError;
use crate::spill::Spill;

/// What a sort keeps aside to merge what it spilled: DataFusion's default, but no more than this part of all memory.
const SPILL_RESERVE: usize = 10 << 20;
const SPILL_RESERVE_PART: usize = 16;
/// Each further core sorts and groups on its own, and needs room for it.
const MEMORY_OF_A_CORE: usize = 128 << 20;
/// A batch has a row for so many bytes of memory: many batches are held at once, and events may be a KB each. Within bounds: short
/// batches cost time, and longer ones gain none.
const MEMORY_OF_A_ROW: usize = 64 << 10;
const FEWEST_ROWS: usize = 128;
const MOST_ROWS: usize = 8192;

/// Memory, cores and a folder on disk: those of one run, or of one computation.
#[derive(Debug, Clone)]
pub struct Room {
    memory: usize,
    cores: usize,
    spill: Arc<Spill>,
    runtime: Arc<RuntimeEnv>,
}

impl Room {
    /// So many bytes of memory, and what exceeds it in that folder.
    ///
    /// # Errors
    /// DataFusion's, where the folder is none.
    pub fn new(memory: u64, spill: Arc<Spill>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        Self::with_cores(memory, (memory / MEMORY_OF_A_CORE).clamp(1, cores), spill)
    }

    /// The memory that is configured, and a new folder where it says.
    ///
    /// # Errors
    /// [`RunError::Spill`] where none can be made there; DataFusion's, as [`RunError::Plan`].
    pub(crate) fn of(config: &BatchConfig) -> std::result::Result<Self, RunError> {
        let spill = Spill::new(config.spill.as_deref()).map_err(|source| RunError::Spill {
            place: config.spill.clone().unwrap_or_else(std::env::temp_dir),
            source,
        })?;
        let spill = spill.with_limit(config.spill_limit);
        Self::new(config.memory, spill.into()).map_err(|error| RunError::Plan(error.to_string()))
    }

    /// Memory for one computation alone, which spills to the system's folder for temporary files.
    pub(crate) fn own(memory: u64) -> Result<Self> {
        Self::new(memory, Arc::new(Spill::new(None)?))
    }

    /// The same on so many cores.
    pub(crate) fn with_cores(memory: usize, cores: usize, spill: Arc<Spill>) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
            .with_temp_file_path(spill.folder())
            .with_max_temp_directory_size(spill.limit())
            .build_arc()?;
        Ok(Self {
            memory,
            cores,
            spill,
            runtime,
        })
    }

    /// So many eighths of the memory, apart from the rest: what others hold is nothing to it.
    pub(crate) fn eighths(&self, eighths: usize) -> Result<Self> {
        let memory = self.memory / 8 * eighths;
        let cores = (memory / MEMORY_OF_A_CORE).clamp(1, self.cores);
        Self::with_cores(memory, cores, self.spill())
    }

    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// So many bytes of it are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.runtime.memory_pool.reserved()
    }

    pub(crate) fn cores(&self) -> usize {
        self.cores
    }

    pub(crate) fn spill(&self) -> Arc<Spill> {
        Arc::clone(&self.spill)
    }

    /// A session that reads expressions as the view's compiler does, and keeps to its memory.
    pub(crate) fn session(&self) -> SessionContext {
        let mut config = SessionConfig::new()
            .with_target_partitions(self.cores)
            // The folder stays for as long as anything runs in the session.
            .with_extension(self.spill())
            .with_batch_size((self.memory / MEMORY_OF_A_ROW).clamp(FEWEST_ROWS, MOST_ROWS));
        let options = config.options_mut();
        options.execution.time_zone = Some("+00:00".to_owned());
        options.execution.skip_physical_aggregate_schema_check = true;
        options.execution.sort_spill_reservation_bytes = SPILL_RESERVE.min(self.memory / SPILL_RESERVE_PART);
        options.execution.parquet.schema_force_view_types = false;
        options.sql_parser.enable_ident_normalization = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        let session = SessionContext::new_with_state(
            SessionStateBuilder::new()
                .with_config(config)
                .with_runtime_env(Arc::clone(&self.runtime))
                .with_default_features()
                .build(),
        );
        // A filter that always or never holds stays: it is what tells how many events a view counts.
        session.remove_optimizer_rule("eliminate_filter");
        session
    }
}

/// A plan's rows in their schema. DataFusion may think that a column could be null; that it is not is checked here.
pub(crate) fn settled(
    stream: SendableRecordBatchStream,
    schema: &SchemaRef,
) -> BoxStream<'static, Result<RecordBatch>> {
    let schema = Arc::clone(schema);
    let settled = move |batch: Result<RecordBatch>| {
        let batch = batch?;
        Ok::<_, DataFusionError>(RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?)
    };
    stream.map(settled).boxed()
}
