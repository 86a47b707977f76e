//! A ClickHouse server of a test's own: `embedded-clickhouse` on a free port and a new folder, ended with the test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::stack::{PATIENCE, keep_port};

/// The environment variable that names another program than the one beside the test.
pub const PROGRAM_VARIABLE: &str = "HIGHWATER_EMBEDDED_CLICKHOUSE";

/// A running server, or one that was stopped and can be started again on its data.
#[derive(Debug)]
pub struct ClickHouse {
    child: Option<Child>,
    url: String,
    folder: TempDir,
    arguments: Vec<String>,
    password: Option<String>,
    /// Keeps its port for it while it does not run: others ask for any that is free.
    port: Option<TcpSocket>,
}

/// The program, built with the tests.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()) {
        return Ok(program.into());
    }
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("the test has no folder")?;
    let program = folder.join("embedded-clickhouse");
    ensure!(
        program.is_file(),
        "{} is missing: run `cargo build --workspace --all-targets` first",
        program.display()
    );
    Ok(program)
}

/// libchdb, fetched if it is not there yet.
pub fn library() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/embedded-clickhouse/fetch-libchdb");
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run fetch-libchdb")?;
    ensure!(output.status.success(), "fetch-libchdb failed");
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Asks again and again, until `done` says that the answer will do.
pub async fn until<F>(mut ask: impl FnMut() -> F, done: impl Fn(&str) -> bool) -> anyhow::Result<String>
where
    F: Future<Output = anyhow::Result<String>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await?;
        if done(&answer) {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "still {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks until the answer has stayed the same for half a second.
pub async fn settled<F>(mut ask: impl FnMut() -> F) -> anyhow::Result<String>
where
    F: Future<Output = anyhow::Result<String>>,
{
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (ask().await?, Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        ensure!(Instant::now() < deadline, "never the same for long");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = ask().await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

impl ClickHouse {
    /// Starts a server without a password.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[], None)
    }

    /// Starts a server with further arguments, and a password if there is to be one.
    pub fn start_with(arguments: &[&str], password: Option<&str>) -> anyhow::Result<Self> {
        let mut server = ClickHouse {
            child: None,
            url: String::new(),
            folder: TempDir::with_prefix("embedded-clickhouse")?,
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            password: password.map(str::to_owned),
            port: None,
        };
        server.start_again()?;
        Ok(server)
    }

    /// The command of a server on a folder.
    pub fn command(folder: &Path) -> anyhow::Result<Command> {
        Self::command_at(folder, "127.0.0.1:0")
    }

    fn command_at(folder: &Path, listen: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(program()?);
        command
            .arg("--data")
            .arg(folder)
            .arg("--library")
            .arg(library()?)
            .args(["--listen", listen, "--die-with-parent"])
            .env_remove("CLICKHOUSE_PASSWORD")
            .env_remove("CLICKHOUSE_USER")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(command)
    }

    /// Starts the server on the data it left. It may get another address.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.start_at("127.0.0.1:0")
    }

    /// Starts the server on the data it left, at the address it had.
    pub fn start_again_there(&mut self) -> anyhow::Result<()> {
        let address = self.url.trim_start_matches("http://").to_owned();
        self.start_at(&address)
    }

    fn start_at(&mut self, listen: &str) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the server is running");
        let mut command = Self::command_at(self.folder.path(), listen)?;
        command.args(&self.arguments);
        if let Some(password) = &self.password {
            command.env("CLICKHOUSE_PASSWORD", password);
        }
        let mut child = command.spawn().context("cannot start embedded-clickhouse")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        self.url = line.trim().to_owned();
        self.child = Some(child);
        drop(self.port.take());
        if !self.url.starts_with("http://") {
            let status = self.wait();
            bail!("embedded-clickhouse did not start: {status:?}");
        }
        Ok(())
    }

    /// Where it listens, as `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder with its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// A client of the `clickhouse` crate.
    pub fn client(&self) -> clickhouse::Client {
        clickhouse::Client::default().with_url(&self.url)
    }

    /// Ends it as a power cut of the process would: `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
            self.keep_port();
        }
        Ok(())
    }

    /// Nobody else is given its port by chance.
    fn keep_port(&mut self) {
        let address = self.url.trim_start_matches("http://").parse().ok();
        self.port = address.and_then(|address| keep_port(address).ok());
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        ensure!(status.success(), "cannot send SIGTERM");
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().context("the server is not running")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                self.keep_port();
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("the server did not end");
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// A line of `/proc/PID/status` in bytes: `VmRSS` is its memory now, `VmHWM` the most it ever had.
    pub fn memory(&self, line: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        let kilobytes: u64 = found.context("no such line")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes << 10)
    }

    /// Sets `VmHWM` back to what it has now.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        // A test that failed must not leave it running either.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
