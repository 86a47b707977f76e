//! Where a computation puts what its memory does not hold: a folder of its own, which nobody else can look into.
//!
//! It lies in `batch.spill`, or in the system's folder for temporary files, and goes when the computation ends. What a killed
//! process left behind is removed by the next computation: each folder holds a file that its owner keeps locked, and the
//! system lets go of the lock however the owner ends.
//!
//! What is written to such files at once is bounded, as what DataFusion writes there by itself is. A computation that would take more than that fails: a
//! disk that is full would stop whoever else writes to it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How such folders are called, before an id.
pub const PREFIX: &str = "highwater-batch-";
const LOCK: &str = "lock";
/// Bytes on disk where nothing else is said.
const LIMIT: u64 = 100 << 30;

/// What exceeds the memory exceeds its bound on disk too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", crate::write::BEYOND_LIMIT)]
pub(crate) struct BeyondLimit;

/// A folder of one computation.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    /// How many files were made in it.
    files: AtomicU64,
    disk: Arc<Disk>,
    // Locked for as long as the folder is in use.
    _lock: File,
}

impl Spill {
    /// Makes one in `place`, and removes there what killed processes left behind; `None` is the system's folder for temporary
    /// files.
    ///
    /// # Errors
    /// A place where no folder can be made.
    pub fn new(place: Option<&Path>) -> std::io::Result<Self> {
        let place = place.map_or_else(std::env::temp_dir, Path::to_owned);
        std::fs::create_dir_all(&place)?;
        sweep(&place);
        let id = uuid::Uuid::now_v7().simple().to_string();
        // Under another name until it is locked: else a sweep could take it for one that was left behind.
        let unlocked = place.join(format!(".{PREFIX}{id}"));
        DirBuilder::new().mode(0o700).create(&unlocked)?;
        let folder = place.join(format!("{PREFIX}{id}"));
        let made = create(&unlocked.join(LOCK)).and_then(|lock| {
            lock.lock()?;
            std::fs::rename(&unlocked, &folder)?;
            Ok(lock)
        });
        match made {
            Ok(lock) => Ok(Self {
                folder,
                files: AtomicU64::new(0),
                disk: Arc::new(Disk {
                    limit: LIMIT,
                    taken: AtomicU64::new(0),
                }),
                _lock: lock,
            }),
            Err(error) => {
                // Nothing is in it yet.
                let _ = std::fs::remove_dir_all(&unlocked);
                Err(error)
            }
        }
    }

    /// With so many bytes on disk at most.
    #[must_use]
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.disk = Arc::new(Disk {
            limit,
            taken: AtomicU64::new(0),
        });
        self
    }

    /// So many bytes may be on disk.
    pub(crate) fn limit(&self) -> u64 {
        self.disk.limit
    }

    /// So many are, in files that are there now.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.disk.taken.load(Ordering::Relaxed)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new file in it, to be written and read again. Several may have one name.
    pub(crate) fn file(&self, name: &str) -> std::io::Result<Spilled> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{name}-{number}"));
        let file = create(&path)?;
        Ok(Spilled {
            file,
            path,
            disk: Arc::clone(&self.disk),
            bytes: Arc::default(),
        })
    }
}

/// What files of one folder take.
#[derive(Debug)]
struct Disk {
    limit: u64,
    taken: AtomicU64,
}

/// A file of a computation, which goes with its owner.
#[derive(Debug)]
pub(crate) struct Spilled {
    pub(crate) file: File,
    path: PathBuf,
    disk: Arc<Disk>,
    /// Those that were written to it.
    bytes: Arc<AtomicU64>,
}

impl Spilled {
    /// Writes at its end, as far as there may be more on disk.
    ///
    /// # Errors
    /// The system's, where it has no further name for the file.
    pub(crate) fn writer(&self) -> std::io::Result<Writer> {
        Ok(Writer {
            file: self.file.try_clone()?,
            disk: Arc::clone(&self.disk),
            bytes: Arc::clone(&self.bytes),
        })
    }
}

/// Writes to a file of a computation, and counts. Beyond the bound it fails with [`BeyondLimit`].
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    disk: Arc<Disk>,
    bytes: Arc<AtomicU64>,
}

impl Writer {
    /// The file.
    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let wanted = buffer.len() as u64;
        let taken = self.disk.taken.fetch_add(wanted, Ordering::Relaxed);
        let is_beyond = taken.saturating_add(wanted) > self.disk.limit;
        let written = match is_beyond {
            true => Err(std::io::Error::other(BeyondLimit)),
            false => self.file.write(buffer),
        };
        let kept = written.as_ref().map_or(0, |written| *written as u64);
        self.disk.taken.fetch_sub(wanted - kept, Ordering::Relaxed);
        self.bytes.fetch_add(kept, Ordering::Relaxed);
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        // What stays goes with the folder.
        let _ = std::fs::remove_file(&self.path);
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.disk.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "what was spilled to disk could not be removed: the next run tries again");
        }
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Removes the folders whose owners are gone. What can't be looked at or removed is somebody else's, or goes next time.
fn sweep(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let folder = entry.path();
        let lock = OpenOptions::new().append(true).open(folder.join(LOCK));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            match std::fs::remove_dir_all(&folder) {
                Ok(()) => tracing::info!(folder = %folder.display(), "removed what a killed run had spilled to disk"),
                Err(error) => tracing::debug!(%error, folder = %folder.display(), "an old spill folder stays"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folders(place: &Path) -> usize {
        std::fs::read_dir(place).unwrap().count()
    }

    #[test]
    fn it_is_ones_own_and_goes() {
        let place = tempfile::TempDir::new().unwrap();
        let place = place.path().join("deep/spill");
        let one = Spill::new(Some(&place)).unwrap();
        let mode = std::fs::metadata(one.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let other = Spill::new(Some(&place)).unwrap();
        assert_eq!(folders(&place), 2, "what is in use stays");
        drop(one);
        drop(other);
        assert_eq!(folders(&place), 0);
    }

    #[test]
    fn files_go_with_their_owners() {
        let place = tempfile::TempDir::new().unwrap();
        let spill = Spill::new(Some(place.path())).unwrap();
        let [one, other] = ["ids", "ids"].map(|name| spill.file(name).unwrap());
        assert_eq!(folders(spill.folder()), 3, "and the lock");
        drop((one, other));
        assert_eq!(folders(spill.folder()), 1);
    }

    #[test]
    fn no_more_than_its_bound_is_on_disk_at_once() {
        let place = tempfile::TempDir::new().unwrap();
        let spill = Spill::new(Some(place.path())).unwrap().with_limit(100);
        let [one, other] = ["ids", "ids"].map(|name| spill.file(name).unwrap());
        one.writer().unwrap().write_all(&[1; 60]).unwrap();
        other.writer().unwrap().write_all(&[2; 40]).unwrap();
        let why = other.writer().unwrap().write_all(&[3]).unwrap_err();
        assert!(why.to_string().contains("`batch.spill_limit`"), "{why}");
        assert_eq!(spill.taken(), 100);
        drop(one);
        assert_eq!(spill.taken(), 40, "what is gone takes nothing");
        other.writer().unwrap().write_all(&[3; 60]).unwrap();
        assert_eq!(other.file.metadata().unwrap().len(), 100);
        drop(other);
        assert_eq!(spill.taken(), 0);
    }

    #[test]
    fn what_was_left_behind_goes_with_the_next() {
        let place = tempfile::TempDir::new().unwrap();
        let left = Spill::new(Some(place.path())).unwrap();
        std::fs::write(left.folder().join("something"), "of it").unwrap();
        // As a kill leaves it: the lock is gone, the folder is not.
        left._lock.unlock().unwrap();
        std::mem::forget(left);
        let other = place.path().join("highwater-batch-of-somebody");
        std::fs::create_dir(&other).unwrap();
        let next = Spill::new(Some(place.path())).unwrap();
        assert_eq!(folders(place.path()), 2, "its own, and one without a lock");
        assert!(other.exists() && next.folder().exists());
    }
}
