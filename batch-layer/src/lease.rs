//! The lease: one run at a time, so that two don't do the same work.
//!
//! It is advice. Nothing is wrong if two runs go on at once, on two machines say: their publications are ordered all the
//! same. So a lock on a file beside the archive is enough; the system lets go of it when its holder ends, however it ends.
//! The file says who holds it, and is empty when nobody does; it is never removed, since a lock on a removed file keeps
//! nobody out.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use shared_schemas::config::{ArchiveConfig, ArchiveUrl};
use tokio_util::sync::CancellationToken;

const FILE_NAME: &str = "batch.lock";
/// How often one who waits looks again.
const LOOKS: Duration = Duration::from_millis(100);
/// A holder that has just taken the lock may not have said yet who it is.
const READS: usize = 20;

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it does, as in "batch run".
    pub doing: String,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Since when, RFC 3339.
    pub begun: String,
    /// An id of its own: two holders never look the same.
    pub id: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            doing,
            pid,
            host,
            begun,
            ..
        } = self;
        write!(f, "{doing} of process {pid} on {host}, begun {begun}")
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else has it.
    #[error("another is under way: {}", holder_text(.holder.as_ref()))]
    Held {
        /// Who, if it says so.
        holder: Option<Holder>,
    },
    /// The file can't be locked.
    #[error("{path} can't be locked")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Told to end while waiting.
    #[error("cancelled while another one was under way")]
    Cancelled,
}

fn holder_text(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "it does not say who".to_owned(), Holder::to_string)
}

/// The lease, held until it is dropped.
#[derive(Debug)]
pub struct Lease {
    file: File,
    holder: Holder,
}

impl Lease {
    /// Where the lease of an archive is: beside it, or for one in an object store in this machine's folder for
    /// temporary files.
    pub fn path(archive: &ArchiveConfig) -> PathBuf {
        match &archive.url {
            ArchiveUrl::Folder(folder) => folder.join(FILE_NAME),
            url @ ArchiveUrl::Store { .. } => {
                let name = url
                    .to_string()
                    .replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
                std::env::temp_dir().join(format!("highwater-{name}-{FILE_NAME}"))
            }
        }
    }

    /// Takes it, or says who has it.
    ///
    /// # Errors
    /// [`LeaseError::Held`], or a file that can't be made or locked.
    pub fn take(path: &Path, doing: &str) -> Result<Self, LeaseError> {
        let file_error = |source| LeaseError::File {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(file_error)?;
        }
        let mut options = OpenOptions::new();
        // Not truncated: another one's words may be in it.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(file_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LeaseError::Held {
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(file_error(source)),
        }
        let holder = Holder {
            doing: doing.to_owned(),
            pid: std::process::id(),
            host: host(),
            begun: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            id: uuid::Uuid::now_v7().simple().to_string(),
        };
        let text = serde_json::to_vec(&holder).map_err(|error| file_error(error.into()))?;
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(&text));
        written.map_err(file_error)?;
        Ok(Self { file, holder })
    }

    /// Takes it once nobody else has it. `waits` is told of each holder that it waits for.
    ///
    /// # Errors
    /// A file that can't be locked, or being told to end.
    pub async fn wait(
        path: &Path,
        doing: &str,
        cancel: &CancellationToken,
        mut waits: impl FnMut(&str),
    ) -> Result<Self, LeaseError> {
        let mut told = None;
        loop {
            match Self::take(path, doing) {
                Err(LeaseError::Held { holder }) => {
                    if told.as_ref() != Some(&holder) {
                        waits(&holder_text(holder.as_ref()));
                        told = Some(holder);
                    }
                }
                taken => return taken,
            }
            if cancel.run_until_cancelled(tokio::time::sleep(LOOKS)).await.is_none() {
                return Err(LeaseError::Cancelled);
            }
        }
    }

    /// Who holds it now, as far as can be told without taking it; `None` for nobody, or somebody who does not say so. The
    /// words of a holder that was killed stay: on this machine they count for as long as there is its process.
    pub fn holder_at(path: &Path) -> Option<Holder> {
        let holder: Holder = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let is_gone = holder.host == host() && !Path::new("/proc").join(holder.pid.to_string()).exists();
        (!is_gone).then_some(holder)
    }

    /// Who holds it: we.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Only for people.
        let _ = self.file.set_len(0);
        // Closing it is not enough: a child that is being started has the file open too until it has become another program.
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> Option<Holder> {
    let mut read = || {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    };
    (0..READS).find_map(|_| {
        read().or_else(|| {
            std::thread::yield_now();
            None
        })
    })
}

/// This machine's name.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "this machine".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive").join(FILE_NAME);
        let first = Lease::take(&path, "batch run").unwrap();
        let Err(error) = Lease::take(&path, "batch run") else {
            panic!("two at once");
        };
        let said = error.to_string();
        let expected = format!("another is under way: batch run of process {}", std::process::id());
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(Lease::holder_at(&path).as_ref(), Some(first.holder()));
        drop(first);
        assert_eq!(Lease::holder_at(&path), None);
        assert_eq!(Lease::take(&path, "rollback").unwrap().holder().doing, "rollback");
    }

    #[test]
    fn whoever_was_killed_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let lease = Lease::take(&path, "batch run").unwrap();
        // Beyond the numbers that Linux gives to processes.
        let killed = Holder {
            pid: u32::MAX,
            ..lease.holder().clone()
        };
        std::fs::write(&path, serde_json::to_vec(&killed).unwrap()).unwrap();
        assert_eq!(Lease::holder_at(&path), None);
        let elsewhere = Holder {
            host: "another machine".to_owned(),
            ..killed
        };
        std::fs::write(&path, serde_json::to_vec(&elsewhere).unwrap()).unwrap();
        assert_eq!(Lease::holder_at(&path), Some(elsewhere));
    }

    #[tokio::test]
    async fn who_waits_gets_it_next_or_is_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let cancel = CancellationToken::new();
        let mut held = Some(Lease::take(&path, "first").unwrap());
        let mut told = Vec::new();
        let second = Lease::wait(&path, "second", &cancel, |holder| {
            told.push(holder.to_owned());
            held.take();
        });
        let second = second.await.unwrap();
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("first "), "{told:?}");
        let third = Lease::wait(&path, "third", &cancel, |_| cancel.cancel()).await;
        assert!(matches!(third, Err(LeaseError::Cancelled)), "{third:?}");
        assert_eq!(second.holder().doing, "second");
    }
}
