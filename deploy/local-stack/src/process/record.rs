//! Which process was started, on disk, for the next start to find and end what was left behind.
//!
//! A process number alone names nobody: numbers come back. So a record also holds the process's start time (field 22
//! of `/proc/PID/stat`) and the machine's boot id; a process that has the number and not the start time is a stranger
//! and is left alone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::StackError;
use crate::folder::write_atomically;

/// How long a leftover may take to end in an orderly way before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed process may take to disappear.
const AFTER_KILL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// One started process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which server.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's clock ticks since boot.
    pub started: u64,
    /// Which boot that was.
    pub boot: String,
}

impl Record {
    /// The record of a process that runs now, if it does.
    pub fn of(name: &str, pid: u32) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            pid,
            started: started(pid)?,
            boot: boot(),
        })
    }

    /// Does the very process that was recorded still run?
    pub fn runs(&self) -> bool {
        self.boot == boot() && started(self.pid) == Some(self.started)
    }
}

/// Records a process that was just started. One that has ended already needs no record.
pub fn write(path: &Path, name: &str, pid: u32) -> Result<(), StackError> {
    match Record::of(name, pid) {
        Some(record) => {
            let text = serde_json::to_vec(&record).map_err(|error| StackError::file("write", path)(error.into()))?;
            write_atomically(path, &text)
        }
        None => Ok(()),
    }
}

/// Takes the record back, after the process has ended.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove the record of an ended process");
    }
}

/// Ends the process that the record names, if it is still that process; then removes the record.
pub async fn end_leftover(path: &Path) -> Result<Option<Record>, StackError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StackError::file("read", path)(error)),
    };
    let ended = match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.runs() => {
            tracing::info!(
                name = record.name,
                pid = record.pid,
                "ending a process that an earlier start left behind"
            );
            end(&record).await?;
            Some(record)
        }
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a process record cannot be read and is dropped");
            None
        }
    };
    remove(path);
    Ok(ended)
}

async fn end(record: &Record) -> Result<(), StackError> {
    let pid = Pid::from_raw(record.pid.cast_signed());
    let _ = kill(pid, Signal::SIGTERM);
    if gone(record, PATIENCE).await {
        return Ok(());
    }
    if killpg(pid, Signal::SIGKILL).is_err() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    if gone(record, AFTER_KILL).await {
        Ok(())
    } else {
        Err(StackError::Leftover {
            name: record.name.clone(),
            pid: record.pid,
        })
    }
}

/// Not our child, so there is nothing to wait on: look until it is gone.
async fn gone(record: &Record, patience: Duration) -> bool {
    let look = async {
        while record.runs() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(patience, look).await.is_ok()
}

/// When the process started; none if there is no such process, or it has ended and only waits to be reaped.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2 is the name in brackets and may hold anything, brackets too: count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
