//! This process and others: one server per data folder, and no server without its parent.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

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

/// Ends this process when that one ends: first as SIGTERM would, and after `deadline` without ceremony.
///
/// A thread of its own waits on a descriptor of the process. `PR_SET_PDEATHSIG` is no substitute: it fires when the *thread*
/// that started us ends, which in a program with a thread pool is no sign of anything.
pub(crate) fn die_with(parent: i32, deadline: std::time::Duration) -> anyhow::Result<()> {
    let pid = Pid::from_raw(parent).context("--parent-pid is the id of a process")?;
    let parent = pidfd_open(pid, PidfdFlags::empty()).context("the process of --parent-pid is not there")?;
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        let ended = poll(&mut [PollFd::new(&parent, PollFlags::IN)], None);
        tracing::info!(?ended, "the parent process ended, so does this one");
        // Our own process is there.
        let _ = kill_process(getpid(), Signal::TERM);
        let (_never, wait) = std::sync::mpsc::channel::<()>();
        let _ = wait.recv_timeout(deadline);
        let _ = kill_process(getpid(), Signal::KILL);
    })?;
    Ok(())
}
