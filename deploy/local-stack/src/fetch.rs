//! The jars of Kafka and the library of ClickHouse: downloaded once into the user's cache folder, with pinned checksums.
//!
//! One script each does it, the same whether a developer runs it from the repository or `highwater up` from the copy
//! it carries. A script prints the path of what it fetched on stdout; progress and, where it fails, the one sentence
//! why go to stderr.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::StackError;
use crate::process::{Launch, Process};

/// After this long the user is told what is being waited for; what is there already takes less.
const SILENT: Duration = Duration::from_secs(1);

/// What a script says when it begins to download.
const FETCHING: &str = ": fetching ";

struct Script {
    name: &'static str,
    /// What it fetches, in words.
    what: &'static str,
    /// The script first, then what it wants beside it.
    files: &'static [(&'static str, &'static str)],
}

const KAFKA: Script = Script {
    name: "fetch-kafka",
    what: "Apache Kafka (38 MB, with Maven)",
    files: &[
        ("fetch-kafka", include_str!("../../local-kafka/fetch-kafka")),
        ("pom.xml", include_str!("../../local-kafka/pom.xml")),
        ("jars.sha256", include_str!("../../local-kafka/jars.sha256")),
    ],
};

const LIBCHDB: Script = Script {
    name: "fetch-libchdb",
    what: "libchdb, the ClickHouse engine (170 MB, with npm)",
    files: &[("fetch-libchdb", include_str!("../../embedded-clickhouse/fetch-libchdb"))],
};

/// The folder of Kafka's jars: every jar is there and has its pinned checksum.
pub async fn kafka_jars() -> Result<PathBuf, StackError> {
    run(&KAFKA).await
}

/// The ClickHouse engine as a library.
pub async fn libchdb() -> Result<PathBuf, StackError> {
    run(&LIBCHDB).await
}

async fn run(script: &Script) -> Result<PathBuf, StackError> {
    let folder = tempfile::Builder::new()
        .prefix("highwater-fetch-")
        .tempdir()
        .map_err(StackError::file("create a folder in", &std::env::temp_dir()))?;
    for (name, text) in script.files {
        let path = folder.path().join(name);
        std::fs::write(&path, text).map_err(StackError::file("write", &path))?;
    }
    let mut command = Command::new("sh");
    command.arg(folder.path().join(script.name));
    let (output, log) = (folder.path().join("output"), folder.path().join("log"));
    let process = Process::start(Launch {
        name: script.name,
        command,
        log: log.clone(),
        output: Some(output.clone()),
        details: None,
        record: None,
    })?;
    let status = match tokio::time::timeout(SILENT, process.wait()).await {
        Ok(status) => status,
        Err(_) => {
            // On a busy machine looking at what is there may take as long.
            if crate::process::tail(&log).contains(FETCHING) {
                tracing::info!("fetching {}: this happens once", script.what);
            }
            process.wait().await
        }
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    if status.success() {
        let printed = std::fs::read_to_string(&output).map_err(StackError::file("read", &output))?;
        if let Some(path) = printed.lines().last().filter(|path| !path.is_empty()) {
            return Ok(PathBuf::from(path));
        }
    }
    Err(StackError::Fetch(sentence(script.name, &said, status)))
}

/// The script's own words; where it has none, how it ended.
fn sentence(name: &str, said: &str, status: std::process::ExitStatus) -> String {
    let prefix = format!("{name}: ");
    match said.lines().rfind(|line| line.starts_with(&prefix)) {
        Some(line) => {
            let why = line.trim_start_matches(&prefix);
            let before: Vec<&str> = said.lines().filter(|line| !line.starts_with(&prefix)).collect();
            if before.is_empty() {
                why.to_owned()
            } else {
                format!("{why}; it said:\n{}", before.join("\n"))
            }
        }
        None => format!("{name} failed ({status}): {}", said.trim()),
    }
}
