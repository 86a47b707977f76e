//! This process and others: one server per data folder, and no server without its parent.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

/// How soon the end of the parent is seen.
const LOOK_FOR_PARENT: Duration = Duration::from_millis(100);

/// Locks a data folder for as long as the process lives. The lock goes with it, however it ends.
pub(crate) fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write in {}", data.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "{} is in use by another embedded-clickhouse (process {}): stop it, or give another folder with --data",
                data.display(),
                holder.trim()
            );
        }
        Err(TryLockError::Error(e)) => return Err(e).context(format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Ends this process when its parent ends: first as SIGTERM would, and after `deadline` without ceremony.
///
/// A thread of its own looks whose child we are. `PR_SET_PDEATHSIG` is no substitute: it fires when the *thread* that started
/// us ends, which in a program with a thread pool is no sign of anything.
pub(crate) fn die_with(parent: Pid, deadline: Duration) -> anyhow::Result<()> {
    if getppid() != parent {
        bail!("process {parent} is not (or no longer) the parent of this one");
    }
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        while getppid() == parent {
            pause(LOOK_FOR_PARENT);
        }
        tracing::info!("the parent process ended, so does this one");
        // Our own process is there.
        let _ = kill(getpid(), Signal::SIGTERM);
        pause(deadline);
        leave();
    })?;
    Ok(())
}

/// Ends the process as `kill -9` would: without the engine's exit handlers, which would wait for its connections.
pub(crate) fn leave() {
    let _ = kill(getpid(), Signal::SIGKILL);
}

fn pause(time: Duration) {
    let (_never, wait) = std::sync::mpsc::channel::<()>();
    let _ = wait.recv_timeout(time);
}
