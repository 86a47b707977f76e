//! Logs, always on stderr. `HIGHWATER_LOG` chooses which, as in `info,shared_schemas=debug`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What `HIGHWATER_LOG` adds to. Delta Lake tells each step of each commit, and conflicts as errors that the archive
/// resolves; what matters of it comes back as an error, and is told once.
const USUAL: &str = "info,deltalake_core=off,buoyant_kernel=off";

/// How logs are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging; once, first thing.
pub(crate) fn start(format: LogFormat) {
    let chosen = std::env::var("HIGHWATER_LOG").unwrap_or_default();
    // Of two directives for the same target the later one counts.
    let filter = EnvFilter::builder().parse_lossy(format!("{USUAL},{chosen}"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}
