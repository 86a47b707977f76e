//! A real Kafka and a real ClickHouse for tests: one stack that a test program's tests share, or `highwater up` itself.
//!
//! Both are on ports of their own and in folders of their own. Servers end with the test program, however it ends; so do
//! the folders: a shell that waits for the program's end removes them.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use local_stack::process::record::Record;
use local_stack::{Addresses, Stack, StackOptions};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

/// How long a condition is waited for. Long, for a machine that does much else; nothing waits longer than it must.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

/// The stack that all tests of this program share. Take topics and databases of your own: [`unique`].
pub async fn shared() -> anyhow::Result<&'static Stack> {
    static SHARED: OnceCell<Stack> = OnceCell::const_new();
    SHARED
        .get_or_try_init(|| async {
            let folder = folder_of_run()?;
            Ok(Stack::start(&StackOptions::on_free_ports(folder)).await?)
        })
        .await
}

/// A new folder that is removed when this program ends, however it ends.
pub fn folder_of_run() -> anyhow::Result<PathBuf> {
    let folder = TempDir::with_prefix("highwater-test-")?.keep();
    remove_at_exit(&folder)?;
    Ok(folder)
}

/// Runs a test on a runtime with threads of its own: DataFusion's tasks and the workers need them.
pub fn run<T>(test: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(test)
}

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{prefix}_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Binds a port of this machine, any for 0, and does not listen: a server may bind it beside that, and nobody else is given it by chance.
pub fn keep_port(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Waits until the condition holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let wait = async {
        while !condition() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("never: {what}"))
}

/// A program of this workspace, built beside the test program.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let folder = tests
        .parent()
        .and_then(Path::parent)
        .context("the test program has no folder")?;
    let program = folder.join(name);
    ensure!(
        program.is_file(),
        "{} is not there: run `cargo build --workspace --all-targets` first",
        program.display()
    );
    Ok(program)
}

/// `highwater` with these arguments, in a folder that has its configuration; dropping the process kills it.
pub fn highwater_in(folder: &Path, arguments: &[&str]) -> anyhow::Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(program("highwater")?);
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command.kill_on_drop(true);
    Ok(command)
}

/// Runs it to its end: its exit code, what it said on stdout as JSON, what on stderr.
pub async fn said_in(folder: &Path, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value, String)> {
    let arguments = [arguments, &["--output", "json"]].concat();
    let output = tokio::time::timeout(PATIENCE, highwater_in(folder, &arguments)?.output()).await??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {stderr}"))?;
    Ok((output.status.code(), told, stderr))
}

/// A folder with a configuration and definitions for `highwater up`, and what it keeps in `data`.
pub struct Site {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

impl Site {
    /// Both servers on free ports.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_addresses("127.0.0.1:0", "http://127.0.0.1:0")
    }

    /// The servers at these addresses.
    pub fn with_addresses(brokers: &str, clickhouse: &str) -> anyhow::Result<Self> {
        let site = Self {
            folder: TempDir::with_prefix("highwater-test-")?,
            environment: Vec::new(),
        };
        let config = format!(
            "[serve]\nlisten = \"127.0.0.1:0\"\n[kafka]\nbrokers = \"{brokers}\"\n\n[clickhouse]\nurl = \"{clickhouse}\"\n"
        );
        std::fs::write(site.path().join("highwater.toml"), config)?;
        let definitions = site.path().join("definitions");
        std::fs::create_dir(&definitions)?;
        std::fs::write(definitions.join("flights.toml"), DEFINITIONS)?;
        Ok(site)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What `up` keeps.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// `highwater` with these arguments, in this folder.
    pub fn highwater(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("highwater")?);
        command.current_dir(self.path()).args(arguments).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Sets an environment variable for every command from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Runs `highwater` to its end: its exit code, what it said on stdout, what on stderr.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
        let mut command = tokio::process::Command::from(self.highwater(arguments)?);
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    /// Starts `highwater up` and waits until it is ready.
    pub async fn up(&self) -> anyhow::Result<Up> {
        let mut up = self.start(&["up"])?;
        up.ready().await?;
        Ok(up)
    }

    /// Starts `highwater` with these arguments.
    pub fn start(&self, arguments: &[&str]) -> anyhow::Result<Up> {
        let log = self.path().join(unique("log"));
        let addresses = self.data().join("addresses.json");
        let stale = written(&addresses);
        let mut command = self.highwater(arguments)?;
        let child = command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .process_group(0)
            .spawn()?;
        Ok(Up {
            child,
            log,
            addresses,
            stale,
        })
    }
}

/// A running `highwater up`. Dropping it kills it, and so its servers.
pub struct Up {
    child: Child,
    log: PathBuf,
    addresses: PathBuf,
    /// When the file was written that an earlier, killed one left behind.
    stale: Option<SystemTime>,
}

impl Up {
    /// Waits until its `addresses.json` is there; the content.
    pub async fn ready(&mut self) -> anyhow::Result<Addresses> {
        let wait = async {
            loop {
                let time = written(&self.addresses);
                if time.is_some() && time != self.stale {
                    return Ok(serde_json::from_slice(&std::fs::read(&self.addresses)?)?);
                }
                if let Some(status) = self.child.try_wait()? {
                    bail!("`highwater up` ended ({status}):\n{}", self.said());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .context("`highwater up` is not ready")?
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on stderr.
    pub fn said(&self) -> String {
        let mut said = String::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            let _ = file.read_to_string(&mut said);
        }
        said
    }

    /// Its children that run now.
    pub fn children(&self) -> Vec<Record> {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| parent(*pid) == Some(self.pid()))
            .filter_map(|pid| Record::of("child", pid))
            .collect()
    }

    /// Sends it a signal, by name: `TERM`, `KILL`.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.pid(), name)
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let mut status = None;
        until("`highwater up` ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .await?;
        status.context("it has ended")
    }

    /// Asks it to end, and waits until it has, with success.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        let status = self.ended().await?;
        ensure!(status.success(), "`highwater up` ended with {status}:\n{}", self.said());
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal, by name.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()?;
    ensure!(status.success(), "kill -{name} {pid} failed");
    Ok(())
}

fn written(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Has a shell wait for this program's end, which closes the pipe, and then remove the folder.
fn remove_at_exit(folder: &Path) -> std::io::Result<()> {
    let mut shell = Command::new("sh")
        .args(["-c", "cat; until rm -rf \"$1\"; do sleep 0.1; done", "sh"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    std::mem::forget(shell.stdin.take());
    Ok(())
}

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
partitions = 2
format = "json"
event_time = "at"

[dataset.flights.fields]
at = "timestamp"
origin = "string"

[view.departures]
dataset = "flights"
grain = "1h"
dimensions = ["origin"]

[view.departures.measures]
flights = "count()"
"#;
