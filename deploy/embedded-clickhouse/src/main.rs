//! `embedded-clickhouse`: the ClickHouse engine (libchdb) behind ClickHouse's HTTP interface, in one process.
//!
//! In reading order: what a request asks (`request`, `intake`, `statement` with `lexer` and `guard`), who may (`auth`), how it
//! is run (`engine`, `session`, `config`, `library`) and answered (`respond`, `native`, `compression`, `exception`), and the process
//! around it (`server`, `process`). README.md says what differs from a ClickHouse server.

mod auth;
mod compression;
mod config;
mod engine;
mod exception;
mod guard;
mod intake;
mod lexer;
mod library;
mod native;
mod process;
mod request;
mod respond;
mod server;
mod session;
mod statement;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nix::unistd::{Pid, getppid};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::auth::Access;
use crate::config::Bounds;
use crate::engine::{Engine, Limits};
use crate::library::Library;
use crate::server::Service;

/// The version that `fetch-libchdb` fetches.
const LIBCHDB: &str = "26.5.3";
/// After this, a statement that cannot be ended is left to its fate.
const HARD_DEADLINE: Duration = Duration::from_secs(10);

/// The ClickHouse engine behind ClickHouse's HTTP interface.
///
/// Prints one line with its address to stdout when it is ready. SIGTERM and Ctrl-C end it cleanly.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    embedded-clickhouse --data data/clickhouse\n  \
    embedded-clickhouse --data /tmp/ch --listen 127.0.0.1:0\n  \
    CLICKHOUSE_PASSWORD=… embedded-clickhouse --data data --listen 0.0.0.0:8123 --user highwater"
)]
struct Arguments {
    /// The folder that holds everything this server stores; made if it is not there
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8123")]
    listen: SocketAddr,
    /// libchdb.so [default: where fetch-libchdb puts it, below the user's cache folder]
    #[arg(long, value_name = "FILE", env = "HIGHWATER_LIBCHDB")]
    library: Option<PathBuf>,
    /// The user that may ask [default: default]
    #[arg(long, value_name = "NAME", env = "CLICKHOUSE_USER")]
    user: Option<String>,
    /// The user's password, best given by the environment variable; without one nobody is asked for any
    #[arg(long, value_name = "PASSWORD", env = "CLICKHOUSE_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// What the server calls itself [default: the host's name]
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Queries at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    max_queries: u16,
    /// Queries that wait for a place; further ones are refused with status 503
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_waiting: u16,
    /// How long a query waits for a place, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    queue_timeout: u32,
    /// The longest a query may take, in seconds; 0: as long as it wants
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    max_query_time: u32,
    /// Memory of all queries together, in MiB; 0: nine tenths of the machine's
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_memory: u32,
    /// The largest body, unpacked, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16384)]
    max_body: u32,
    /// How long a client may be silent within a request, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle_timeout: u32,
    /// How long running queries may go on after SIGTERM, in seconds, before they are ended
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    grace: u32,
    /// End when the process that started this one ends; its id, so that it cannot have ended before this is read
    #[arg(long, value_name = "PID")]
    parent_pid: Option<i32>,
    /// End when the process that started this one ends
    #[arg(long, conflicts_with = "parent_pid")]
    die_with_parent: bool,
}

impl Arguments {
    fn library(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.library {
            return Ok(path.clone());
        }
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cache = set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set: name the library with --library FILE")?;
        Ok(cache.join(format!("highwater/libchdb-{LIBCHDB}/libchdb.so")))
    }

    fn limits(&self) -> Limits {
        Limits {
            running: self.max_queries.into(),
            waiting: self.max_waiting.into(),
            patience: Duration::from_secs(self.queue_timeout.into()),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            memory: u64::from(self.max_memory) << 20,
            query_seconds: self.max_query_time.into(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // The engine's threads are its own; these serve connections, and the blocking ones run statements and read bodies.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(usize::from(arguments.max_queries) + 256)
        .enable_all()
        .build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(&arguments)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "embedded-clickhouse: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let own_password = arguments.password.as_deref().filter(|password| !password.is_empty());
    if !arguments.listen.ip().is_loopback() && (arguments.user.is_none() || own_password.is_none()) {
        bail!(
            "{} can be reached from other machines: set --user and CLICKHOUSE_PASSWORD, or listen on 127.0.0.1",
            arguments.listen
        );
    }
    let parent = if arguments.die_with_parent {
        Some(getppid())
    } else {
        arguments.parent_pid.map(Pid::from_raw)
    };
    if let Some(parent) = parent {
        process::die_with(parent, HARD_DEADLINE + Duration::from_secs(arguments.grace.into()))?;
    }
    // Before the engine, so that whoever waits for the address or the folder learns of a conflict at once.
    make_folder(&arguments.data)?;
    let data = arguments.data.canonicalize().context("cannot find the data folder")?;
    let _lock = process::lock(&data)?;
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: is another server there? choose another address with --listen",
            arguments.listen
        )
    })?;
    let spool = data.join("spool");
    make_folder(&spool)?;
    // Where this folder is missing the engine starts none of its background tasks, and `DROP … SYNC` never ends.
    make_folder(&data.join("store/metadata"))?;

    let path = arguments.library()?;
    let (bounds, limits) = (arguments.bounds(), arguments.limits());
    let started = tokio::task::spawn_blocking(move || {
        let library = Library::load(&path)?;
        Engine::start(library, &data, bounds, limits)
    });
    let engine = Arc::new(started.await??);
    let address = listener.local_addr()?;
    let display_name = match &arguments.display_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(),
    };
    let service = Arc::new(Service::new(
        engine.clone(),
        Access::new(arguments.user.clone(), own_password),
        display_name,
        spool,
        u64::from(arguments.max_body) << 20,
        Duration::from_secs(arguments.idle_timeout.into()),
    ));

    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let serving = tokio::spawn(server::serve(listener, service, stop.clone()));
    announce(address)?;
    tracing::info!(%address, version = engine.version, "ready");
    let mut housekeeping = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = housekeeping.tick() => engine.sessions.expire(),
        }
    }
    tracing::info!("stopping");
    stop.cancel();
    let connections = serving.await?;
    let grace = Duration::from_secs(arguments.grace.into());
    if !engine.shut_down(grace, grace + HARD_DEADLINE).await {
        tracing::error!("a query could not be ended, the process is left as kill -9 would: no stored row is lost");
        process::leave();
    }
    // The last bytes of responses.
    let _ = tokio::time::timeout(Duration::from_secs(1), connections.wait()).await;
    tracing::info!("stopped");
    Ok(())
}

fn announce(address: SocketAddr) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "http://{address}")?;
    out.flush()?;
    Ok(())
}
