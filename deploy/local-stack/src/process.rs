//! A child that cannot outlive its parent, and can be ended in an orderly way.
//!
//! Three things make sure that nothing stays behind:
//!
//! 1. The kernel kills the child when its parent dies (`PR_SET_PDEATHSIG`), also by `kill -9`. The kernel means the
//!    *thread* that forked, so each child has a thread of its own that forks it and then waits for its end.
//! 2. Dropping a [`Process`] kills it and waits until it is gone.
//! 3. A [`record`] on disk says which process was started, for the next start to look for what 1 and 2 could not
//!    reach.
//!
//! A child leads a process group of its own: Ctrl-C in the terminal reaches the parent alone, which then decides the
//! order of things, and what the child itself started ends with it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::StackError;

pub mod record;

/// How much of a log's end goes into an error.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 * 1024;

/// What to start, and where its traces go.
#[derive(Debug)]
pub struct Launch {
    /// Which server, for messages.
    pub name: &'static str,
    /// Program, arguments, environment, folder.
    pub command: Command,
    /// What the child says goes to the end of this file.
    pub log: PathBuf,
    /// Its standard output alone goes here instead, where that is data.
    pub output: Option<PathBuf>,
    /// A log that the program keeps itself, for errors where it said nothing.
    pub details: Option<PathBuf>,
    /// Where to record that it runs; none for a child that the next start need not know of.
    pub record: Option<PathBuf>,
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    pid: Pid,
    log: PathBuf,
    details: Option<PathBuf>,
    record: Option<PathBuf>,
    /// True once the child's number may belong to somebody else. Signals are sent under this lock.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts the child. Blocks for the fork only, so that no caller can be cancelled between fork and ownership.
    pub fn start(launch: Launch) -> Result<Self, StackError> {
        let Launch {
            name,
            mut command,
            log,
            output,
            details,
            record,
        } = launch;
        let program = PathBuf::from(command.get_program());
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(StackError::file("open", path))
        };
        command
            .stdin(Stdio::null())
            .stdout(open(output.as_deref().unwrap_or(&log))?)
            .stderr(open(&log)?)
            .process_group(0);
        die_with_parent(&mut command);

        let reaped = Arc::new(Mutex::new(false));
        let (exit_sender, exit) = watch::channel(None);
        let (started_sender, started) = std::sync::mpsc::sync_channel(1);
        let keeper = {
            let reaped = Arc::clone(&reaped);
            std::thread::Builder::new()
                .name(format!("keeps {name}"))
                .spawn(move || {
                    keep(command, &started_sender, &reaped, &exit_sender);
                })
        };
        let spawn_error = |source| StackError::Spawn {
            name,
            program: program.clone(),
            source,
        };
        let keeper = keeper.map_err(spawn_error)?;
        let pid = match started.recv() {
            Ok(Ok(pid)) => pid,
            Ok(Err(error)) => return Err(spawn_error(error)),
            Err(_) => return Err(spawn_error(io::Error::other("its thread ended"))),
        };
        let process = Self {
            name,
            pid,
            log,
            details,
            record,
            reaped,
            exit,
            keeper: Some(keeper),
        };
        if let Some(path) = &process.record {
            record::write(path, name, process.pid())?;
        }
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Which server it is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its exit status, once it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        loop {
            if let Some(status) = *exit.borrow_and_update() {
                return status;
            }
            if exit.changed().await.is_err() {
                // The keeper sends before it ends, so this is a keeper that panicked: its child died with it.
                return ExitStatus::default();
            }
        }
    }

    /// The error that says it ended by itself, with the end of its log.
    pub fn died(&self, status: ExitStatus) -> StackError {
        let (log, last) = self.last_words();
        StackError::Died {
            name: self.name,
            status: status.to_string(),
            log,
            last,
        }
    }

    /// The error that says it does not become ready, with the end of its log.
    pub fn not_ready(&self, waited: Duration) -> StackError {
        let (log, last) = self.last_words();
        StackError::NotReady {
            name: self.name,
            waited,
            log,
            last,
        }
    }

    fn last_words(&self) -> (PathBuf, String) {
        let last = tail(&self.log);
        match &self.details {
            Some(details) if last.is_empty() => (details.clone(), tail(details)),
            _ => (self.log.clone(), last),
        }
    }

    /// Asks it to end, and kills it when it has not after `patience`. True if it ended when asked.
    pub async fn stop(self, patience: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        let orderly = tokio::time::timeout(patience, self.wait()).await.is_ok();
        self.kill().await;
        orderly
    }

    /// Kills it, and waits until it is gone.
    pub async fn kill(self) {
        self.signal_group(Signal::SIGKILL);
        self.wait().await;
    }

    /// Sends a signal to the process itself; to one that has ended, nothing.
    pub fn signal(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if !*reaped && let Err(error) = kill(self.pid, signal) {
            tracing::warn!(name = self.name, pid = self.pid(), %error, "cannot signal the child");
        }
    }

    fn signal_group(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if !*reaped && let Err(error) = killpg(self.pid, signal) {
            tracing::warn!(name = self.name, pid = self.pid(), %error, "cannot signal the child's group");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal_group(Signal::SIGKILL);
        if let Some(keeper) = self.keeper.take() {
            // Brief: the child was killed, and the keeper ends when it has reaped it.
            let _ = keeper.join();
        }
        if let Some(path) = &self.record {
            record::remove(path);
        }
    }
}

/// The keeper's whole life: forks the child, waits for its end, reaps it.
fn keep(
    mut command: Command,
    started: &SyncSender<io::Result<Pid>>,
    reaped: &Mutex<bool>,
    exit: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = started.send(Ok(pid));
    // Wait without reaping first: until the lock is held, the number stays the child's, so that no signal can go astray.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
    let mut reaped = lock(reaped);
    // What the child left in its group goes with it; the group's number is the child's, still ours here.
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.wait().unwrap_or_default();
    *reaped = true;
    exit.send_replace(Some(status));
}

fn lock(reaped: &Mutex<bool>) -> MutexGuard<'_, bool> {
    reaped.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the kernel kill the child when the thread that forks it ends, however it ends.
#[expect(unsafe_code, reason = "code between fork and exec cannot be checked by the compiler")]
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Had the parent died before that call, nobody would ever tell.
        if nix::unistd::getppid() == parent {
            Ok(())
        } else {
            Err(nix::errno::Errno::ESRCH.into())
        }
    };
    // SAFETY: the closure makes two system calls (prctl, getppid) and allocates nothing: both are safe after a fork.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// The last lines of a log; empty where there is none.
pub fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests;
