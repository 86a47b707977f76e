//! DuckDB and the ClickHouse engine, each in a process of its own that does nothing else.
//!
//! DuckDB comes from PyPI into a folder of the cache, once; the engine is the library that `embedded-clickhouse` uses, asked directly,
//! since that server lets nobody read files.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::grouped;

const SCRIPT: &str = include_str!("others.py");
const DUCKDB: &str = "duckdb==1.5.5";

/// Another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    DuckDb,
    ClickHouse,
}

/// What a process told.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    pub(super) seconds: f64,
    /// What the counts of all cells add up to.
    pub(super) counted: u64,
    /// The most memory it had, in bytes.
    pub(super) peak: u64,
}

/// What is there of what they need.
pub(super) struct Others {
    python: anyhow::Result<PathBuf>,
    library: anyhow::Result<PathBuf>,
}

impl Others {
    pub(super) async fn prepare() -> Self {
        let library = local_stack::fetch::libchdb().await;
        Self {
            python: python().await,
            library: library.map_err(Into::into),
        }
    }

    /// Both views, one after the other, over the files of a folder.
    pub(super) async fn run(&self, engine: Engine, folder: &Path, dedupe: bool) -> anyhow::Result<Told> {
        let found = |found: &anyhow::Result<PathBuf>| match found {
            Ok(path) => Ok(path.to_string_lossy().into_owned()),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let (name, python, library) = match engine {
            Engine::DuckDb => ("duckdb", found(&self.python)?, String::new()),
            Engine::ClickHouse => ("clickhouse", "python3".to_owned(), found(&self.library)?),
        };
        let statements = [0, 1].map(|view| statement(engine, folder, dedupe, view));
        let task = serde_json::json!({"engine": name, "library": library, "statements": statements});
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("python3 does not start")?;
        let mut input = child.stdin.take().context("it has no stdin")?;
        input.write_all(task.to_string().as_bytes()).await?;
        drop(input);
        let output = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}",
            said.lines().last().unwrap_or("it ended without a word")
        );
        serde_json::from_slice(&output.stdout).context("it tells no figures")
    }
}

/// The statement of a view: how many cells, and what their counts add up to.
fn statement(engine: Engine, folder: &Path, dedupe: bool, view: usize) -> String {
    let files = format!("{}/**/*.parquet", folder.display());
    let columns = "scheduled_departure, flight, tail_number, carrier, origin, destination, departure_delay, distance";
    // Where the file lies says the partition.
    let first = "_kafka_time, _offset";
    let (events, minute) = match (engine, dedupe) {
        (Engine::DuckDb, false) => (
            format!("read_parquet('{files}')"),
            "date_trunc('minute', scheduled_departure)",
        ),
        (Engine::DuckDb, true) => (
            format!(
                "(SELECT {columns} FROM read_parquet('{files}') QUALIFY row_number() OVER \
                 (PARTITION BY flight, tail_number, scheduled_departure ORDER BY {first}) = 1)"
            ),
            "date_trunc('minute', scheduled_departure)",
        ),
        (Engine::ClickHouse, false) => (
            format!("file('{files}', Parquet)"),
            "toStartOfMinute(scheduled_departure)",
        ),
        (Engine::ClickHouse, true) => (
            format!(
                "(SELECT flight, tail_number, scheduled_departure, tupleElement(kept, 1) AS carrier, tupleElement(kept, 2) AS \
                 origin, tupleElement(kept, 3) AS destination, tupleElement(kept, 4) AS departure_delay, tupleElement(kept, 5) \
                 AS distance FROM (SELECT flight, tail_number, scheduled_departure, argMin((carrier, origin, destination, \
                 departure_delay, distance), ({first})) AS kept FROM file('{files}', Parquet) GROUP BY flight, tail_number, \
                 scheduled_departure))"
            ),
            "toStartOfMinute(scheduled_departure)",
        ),
    };
    format!(
        "SELECT count(*), sum(flights) FROM ({}) AS cells",
        grouped(&events, minute, view)
    )
}

/// A Python with DuckDB, made once.
async fn python() -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let folder = cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("highwater/bench-duckdb");
    let python = folder.join("bin/python");
    let check = ["-c", "import duckdb"];
    if python.is_file() && run(&python, &check).await.is_ok() {
        return Ok(python);
    }
    tracing::info!("installing {DUCKDB} into {}", folder.display());
    let place = folder.to_string_lossy();
    run(Path::new("python3"), &["-m", "venv", &place]).await?;
    run(&python, &["-m", "pip", "install", "--quiet", DUCKDB]).await?;
    run(&python, &check).await?;
    Ok(python)
}

async fn run(program: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{} does not start", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} {}: {}",
        program.display(),
        arguments.join(" "),
        said.lines().last().unwrap_or_default()
    );
    Ok(())
}
