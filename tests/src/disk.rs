//! A disk of a test's own that can be full or read-only: a small file system in memory, mounted for the test's process alone.
//!
//! Not every machine lets a process mount one. There a full disk is a limit on the size of files instead, which is another error
//! of the system, and a read-only one is not had.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::alone::{is_elsewhere, is_elsewhere_by, limit_files};

/// Set in a process that has such a disk: where it is. Its temporary files are there, too.
const DISK: &str = "HIGHWATER_TEST_DISK";
/// Takes up what is not to be left.
const BALLAST: &str = "ballast";
/// Mounts it and goes on with the rest of its arguments.
const MOUNT: &str = "mount -t tmpfs -o size=64m tmpfs \"$0\" && exec \"$@\"";

/// What stands in for the disk.
pub enum Disk {
    /// A file system of 64 MiB at this folder.
    Small(PathBuf),
    /// Files that can't become larger than so much.
    Limited,
}

impl Disk {
    /// Whether the test was run in a process with a disk of its own, as [`is_elsewhere`] does.
    ///
    /// # Errors
    /// As there.
    pub fn is_elsewhere(module: &str, test: &str) -> anyhow::Result<bool> {
        let folder = tempfile::TempDir::with_prefix("highwater-test-")?;
        let mounting = |path: &Path| {
            let mut command = Command::new("unshare");
            command.args(["-rm", "bash", "-c", MOUNT]).arg(path);
            command
        };
        let mut may_mount = mounting(folder.path());
        may_mount.arg("true").stdout(Stdio::null()).stderr(Stdio::null());
        if !may_mount.status().is_ok_and(|status| status.success()) {
            return is_elsewhere(module, test);
        }
        let mut command = mounting(folder.path());
        command.env(DISK, folder.path()).env("TMPDIR", folder.path());
        is_elsewhere_by(command, module, test)
    }

    /// This process's, in its temporary folder; says which it is.
    #[expect(clippy::print_stdout, reason = "a test says what it was tried with")]
    pub fn here() -> Self {
        match std::env::var_os(DISK) {
            Some(folder) => {
                println!("on a small file system: no space left on it");
                Self::Small(folder.into())
            }
            None => {
                println!("no file system can be mounted: files are limited in size");
                Self::Limited
            }
        }
    }

    /// What the system says where it is full.
    pub fn full(&self) -> &'static str {
        match self {
            Self::Small(_) => "No space left on device",
            Self::Limited => "File too large",
        }
    }

    /// Leaves about so many bytes on it, for all files or for each.
    pub fn fill(&self, left: u64) -> anyhow::Result<()> {
        let Self::Small(folder) = self else {
            return limit_files(Some(left));
        };
        let mut ballast = std::fs::File::create(folder.join(BALLAST))?;
        let zeros = vec![0; 1 << 16];
        while ballast.write_all(&zeros).is_ok() {}
        let length = ballast.metadata()?.len();
        Ok(ballast.set_len(length.saturating_sub(left))?)
    }

    /// There is room again.
    pub fn free(&self) -> anyhow::Result<()> {
        match self {
            Self::Small(folder) => Ok(std::fs::remove_file(folder.join(BALLAST))?),
            Self::Limited => limit_files(None),
        }
    }

    /// Nothing can be written to it, or everything again; whether it can be had.
    pub fn read_only(&self, is: bool) -> anyhow::Result<bool> {
        let Self::Small(folder) = self else {
            return Ok(false);
        };
        let how = if is { "remount,ro" } else { "remount,rw" };
        let status = Command::new("mount").args(["-o", how]).arg(folder).status()?;
        ensure!(status.success(), "mount -o {how}: {status}");
        Ok(true)
    }
}
