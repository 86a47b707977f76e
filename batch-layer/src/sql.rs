//! SQL over the archive: each dataset a table, without repeats and as it arrived.
//!
//! DataFusion answers, with the memory of a batch run and what it spills. Nothing can be changed: whatever is not a query is
//! refused before it runs. The archive's newest version is pinned when the query begins; events that are archived
//! meanwhile are not in it.

pub(crate) mod once;
pub mod output;

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{DataFrame, SessionConfig};
use datafusion::sql::sqlparser::parser::ParserError;
use futures::StreamExt;
use shared_connections::sentence;
use shared_schemas::config::{BatchConfig, Config};
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;

use crate::archive::{Archive, ArchiveError};
use crate::spill::Spill;
use crate::write::{BEYOND_LIMIT, is_beyond_limit};

/// What a sort keeps aside to merge what it spilled: DataFusion's default, but no more than this part of all memory.
const SPILL_RESERVE: usize = 10 << 20;
const SPILL_RESERVE_PART: usize = 16;
/// Each further core sorts and groups on its own, and needs room for it.
const MEMORY_OF_A_CORE: usize = 128 << 20;
/// What the name of a dataset's table of events as they arrived ends with.
const ARRIVED: &str = "_raw";

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The query is none, or names what is not there.
    #[error("the query can't be answered: {0}")]
    Query(String),
    /// It would change something.
    #[error("the archive can only be read: {0} is refused")]
    ReadOnly(String),
    /// There is no such table.
    #[error("there is no table `{name}`: {known}")]
    Table {
        /// The name.
        name: String,
        /// Those that there are, in words.
        known: String,
    },
    /// Nothing of the dataset was archived yet.
    #[error("nothing of dataset `{dataset}` is archived yet at {url}: does `highwater archive` run?")]
    Nothing {
        /// The dataset.
        dataset: String,
        /// Where the archive would be.
        url: String,
    },
    /// It needs more memory than it may have, also with what it spills.
    #[error(
        "the query needs more memory than batch.memory ({} MiB): ask for fewer columns, days or groups, or raise it",
        memory >> 20
    )]
    Memory {
        /// What it may have.
        memory: u64,
    },
    /// There is no place for what exceeds the memory.
    #[error("{} can't be used for what exceeds the memory: `batch.spill` names another folder", .place.display())]
    Spill {
        /// The folder that one was to be made in.
        place: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The archive can't be opened or read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Files of the archive can't be read, or there is no disk to spill to.
    #[error("the query broke off: {0}")]
    Broken(String),
    /// What was answered can't be written.
    #[error("the answer can't be written: {0}")]
    Output(String),
}

/// Answers one query; its rows come as they are found.
///
/// # Errors
/// What is wrong with the query, or with the archive.
pub async fn query(
    config: &Config,
    definitions: &Definitions,
    sql: &str,
) -> Result<SendableRecordBatchStream, SqlError> {
    let memory = config.batch.memory;
    let told = |error: DataFusionError| told(&error, memory);
    let session = session(&config.batch)?;
    for (dataset, is_asked) in asked(&session, definitions, sql).map_err(told)? {
        let archive = Archive::open(&config.archive, dataset).await?;
        let Some(archive) = archive else {
            if is_asked {
                return Err(SqlError::Nothing {
                    dataset: dataset.name.clone(),
                    url: config.archive.url.to_string(),
                });
            }
            continue;
        };
        let pinned = archive.pin().await?;
        let arrived = arrived(definitions, dataset);
        let tables = [
            Some((dataset.name.clone(), pinned.once())),
            arrived.map(|name| (name, pinned.as_arrived())),
        ];
        for (name, table) in tables.into_iter().flatten() {
            session
                .register_table(TableReference::bare(name), table)
                .map_err(told)?;
        }
    }
    let options = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let frame = session.sql_with_options(sql, options).await;
    let frame = frame.map_err(|error| missing(&error, definitions).unwrap_or_else(|| told(error)))?;
    answer(&session, frame).await.map_err(told)
}

/// The rows of a query. What they spill stays for as long as they do; a plan that runs keeps its session no longer than it needs it.
pub(crate) async fn answer(
    session: &SessionContext,
    frame: DataFrame,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let spill = session.state().config().get_extension::<Spill>();
    let rows = frame.execute_stream().await?;
    let schema = rows.schema();
    let rows = rows.inspect(move |_| {
        let _held = &spill;
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// The error of a stream of [`query`].
pub fn broken(error: &DataFusionError, config: &Config) -> SqlError {
    told(error, config.batch.memory)
}

/// A session with the memory of a batch run; what exceeds it goes to a folder of its own, as a run's does. Names are plain
/// SQL's: small letters where they stand without quotes.
pub(crate) fn session(config: &BatchConfig) -> Result<SessionContext, SqlError> {
    let spill = Spill::new(config.spill.as_deref()).map_err(|source| SqlError::Spill {
        place: config.spill.clone().unwrap_or_else(std::env::temp_dir),
        source,
    })?;
    let spill = spill.with_limit(config.spill_limit);
    let memory = usize::try_from(config.memory).unwrap_or(usize::MAX);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .with_temp_file_path(spill.folder())
        .with_max_temp_directory_size(spill.limit())
        .build_arc()
        .map_err(|error| told(&error, config.memory))?;
    let mut config = SessionConfig::new()
        .with_target_partitions((memory / MEMORY_OF_A_CORE).clamp(1, cores))
        // For `answer`.
        .with_extension(Arc::new(spill))
        .with_information_schema(true);
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    options.execution.sort_spill_reservation_bytes = SPILL_RESERVE.min(memory / SPILL_RESERVE_PART);
    options.sql_parser.map_string_types_to_utf8view = false;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features();
    Ok(SessionContext::new_with_state(state.build()))
}

/// The name of the table of events as they arrived; none where a dataset is called so.
fn arrived(definitions: &Definitions, dataset: &Dataset) -> Option<String> {
    let name = format!("{}{ARRIVED}", dataset.name);
    definitions.dataset(&name).is_none().then_some(name)
}

/// The datasets that a query could need, and whether it names each: others are not even opened. One that names none may ask
/// what there is.
fn asked<'a>(
    session: &SessionContext,
    definitions: &'a Definitions,
    sql: &str,
) -> Result<Vec<(&'a Dataset, bool)>, DataFusionError> {
    let state = session.state();
    let dialect = state.config_options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect)?;
    let names: Vec<_> = state
        .resolve_table_references(&statement)?
        .iter()
        .map(|reference| reference.table().to_owned())
        .collect();
    let is_named = |dataset: &&Dataset| {
        let arrived = arrived(definitions, dataset);
        names
            .iter()
            .any(|name| *name == dataset.name || Some(name) == arrived.as_ref())
    };
    let named: Vec<_> = definitions
        .datasets
        .iter()
        .filter(is_named)
        .map(|dataset| (dataset, true))
        .collect();
    if named.is_empty() {
        return Ok(definitions.datasets.iter().map(|dataset| (dataset, false)).collect());
    }
    Ok(named)
}

/// The sentence about a table that is not there.
fn missing(error: &DataFusionError, definitions: &Definitions) -> Option<SqlError> {
    let DataFusionError::Plan(what) = error.find_root() else {
        return None;
    };
    let name = what.strip_prefix("table '")?.strip_suffix("' not found")?;
    let tables = definitions.datasets.iter().flat_map(|dataset| {
        let arrived = arrived(definitions, dataset);
        [Some(dataset.name.clone()), arrived].into_iter().flatten()
    });
    let tables: Vec<_> = tables.collect();
    Some(SqlError::Table {
        name: name.rsplit('.').next().unwrap_or(name).to_owned(),
        known: if tables.is_empty() {
            "no dataset is defined".to_owned()
        } else {
            format!("there is {}", tables.join(", "))
        },
    })
}

/// One sentence about what DataFusion says at length.
pub(crate) fn told(error: &DataFusionError, memory: u64) -> SqlError {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => SqlError::Memory { memory },
        DataFusionError::SQL(error, _) => SqlError::Query(match error.as_ref() {
            ParserError::ParserError(what) | ParserError::TokenizerError(what) => what.clone(),
            ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
        }),
        DataFusionError::Plan(what) => {
            let refused = ["DDL", "DML", "Statement"].iter().find_map(|kind| {
                let what = what.strip_prefix(kind)?.strip_prefix(" not supported: ")?;
                Some(SqlError::ReadOnly(what.to_owned()))
            });
            refused.unwrap_or_else(|| SqlError::Query(first_line(what)))
        }
        DataFusionError::SchemaError(what, _) => SqlError::Query(first_line(&what.to_string())),
        DataFusionError::NotImplemented(what) => SqlError::Query(first_line(what)),
        DataFusionError::External(error) => SqlError::Broken(sentence(&**error)),
        other if is_beyond_limit(other) => SqlError::Broken(BEYOND_LIMIT.to_owned()),
        other => SqlError::Broken(first_line(&sentence(other))),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn what_exceeds_the_memory_lies_where_nobody_else_looks_and_goes() {
        let place = tempfile::TempDir::new().unwrap();
        let mut config = Config::parse("", "highwater.toml", place.path(), &|_| None)
            .config
            .batch;
        config.spill = Some(place.path().join("spill"));
        config.memory = 8 << 20;
        let session = session(&config).unwrap();
        // 16 MB to be sorted.
        let sql =
            "SELECT value, repeat('x', 64) AS more FROM generate_series(1, 200000) ORDER BY (value * 7919) % 200003";
        let mut rows = answer(&session, session.sql(sql).await.unwrap()).await.unwrap();
        drop(session);
        assert!(rows.try_next().await.unwrap().is_some());
        let folders: Vec<_> = std::fs::read_dir(place.path().join("spill")).unwrap().collect();
        assert_eq!(folders.len(), 1);
        let folder = folders[0].as_ref().unwrap();
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let spilled = std::fs::read_dir(folder.path()).unwrap().count();
        assert!(spilled > 1, "only the lock is there: nothing was spilled");
        drop(rows);
        assert!(!folder.path().exists());
    }
}
