//! The data folder of one stack: one user at a time, and what it remembers between two starts.
//!
//! ```text
//! DIR/lock             held (flock) by the running `up`, whose pid it holds as text; freed by the kernel, however it ends
//! DIR/stack.json       says that the folder is ours, in which layout; ports and engine of the last start
//! DIR/addresses.json   there while the stack is ready
//! DIR/run/             records of the running children
//! DIR/kafka/           Kafka's data, settings and log
//! DIR/clickhouse/      ClickHouse's data, settings and log
//! DIR/archive/         the archive, unless configured elsewhere
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::StackError;

const LOCK: &str = "lock";
const STATE: &str = "stack.json";
pub(crate) const ADDRESSES: &str = "addresses.json";
const RUN: &str = "run";
/// Changes when an older program could no longer use the folder.
const LAYOUT: u32 = 1;
/// What `--fresh` removes: all that the stack's servers and layers keep. `stack.json` stays, and with it the ports.
const DATA: [&str; 4] = ["kafka", "clickhouse", "archive", ADDRESSES];
/// What may be in a folder that no `up` has used yet: a layer that ran by itself may have made its archive there.
const HARMLESS: [&str; 2] = [LOCK, "archive"];

/// What the folder remembers between two starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    layout: u32,
    /// The port that Kafka listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<u16>,
    /// The port that Kafka's controller, part of the same process, listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka_controller: Option<u16>,
    /// The port that ClickHouse listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<u16>,
    /// Which kind of ClickHouse made the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// A data folder that this process alone uses, until dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    remembered: Mutex<Remembered>,
    lock: File,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is being started has the file open too until it has become another program.
        let _ = self.lock.unlock();
    }
}

impl Folder {
    /// Takes the folder, and makes it where there is none.
    pub fn take(path: &Path) -> Result<Self, StackError> {
        fs::create_dir_all(path).map_err(StackError::file("create", path))?;
        let path = path.canonicalize().map_err(StackError::file("use", path))?;
        let state = path.join(STATE);
        if !state.exists() && !only_harmless(&path)? {
            return Err(StackError::NotOurs { folder: path });
        }
        let lock = lock(&path)?;
        let remembered = match fs::read(&state) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| StackError::file("read", &state)(error.into()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Remembered {
                layout: LAYOUT,
                ..Remembered::default()
            },
            Err(error) => return Err(StackError::file("read", &state)(error)),
        };
        let folder = Self {
            path,
            remembered: Mutex::new(remembered),
            lock,
        };
        folder.forget_addresses()?;
        Ok(folder)
    }

    /// Removes all data, and keeps the ports. Only of a folder that an earlier start has marked as ours.
    pub fn clear(&self) -> Result<(), StackError> {
        if !self.path.join(STATE).exists() && self.path.join("archive").exists() {
            return Err(StackError::NotOurs {
                folder: self.path.clone(),
            });
        }
        for name in DATA {
            let path = self.path.join(name);
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StackError::file("remove", &path)(error));
                }
                _ => {}
            }
        }
        let mut remembered = self.locked();
        remembered.layout = LAYOUT;
        remembered.engine = None;
        Ok(())
    }

    /// Refuses a folder that another version laid out otherwise.
    pub fn check_layout(&self) -> Result<(), StackError> {
        match self.locked().layout {
            LAYOUT => Ok(()),
            found => Err(StackError::Layout {
                folder: self.path.clone(),
                found,
                known: LAYOUT,
            }),
        }
    }

    /// Where it is, from the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the last start left to remember.
    pub fn remembered(&self) -> Remembered {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is remembered, on disk too.
    pub fn remember(&self, change: impl FnOnce(&mut Remembered)) -> Result<(), StackError> {
        let mut remembered = self.locked();
        change(&mut remembered);
        let path = self.path.join(STATE);
        let text =
            serde_json::to_vec_pretty(&*remembered).map_err(|error| StackError::file("write", &path)(error.into()))?;
        write_atomically(&path, &text)
    }

    /// A folder of this name inside, made if it is not there.
    pub fn inside(&self, name: &str) -> Result<PathBuf, StackError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(StackError::file("create", &path))?;
        Ok(path)
    }

    /// Where the record of a running child goes.
    pub fn record(&self, name: &str) -> Result<PathBuf, StackError> {
        Ok(self.inside(RUN)?.join(format!("{name}.json")))
    }

    /// Tells everybody where the servers are. Whoever sees the file may connect.
    pub fn publish_addresses(&self, text: &[u8]) -> Result<(), StackError> {
        write_atomically(&self.path.join(ADDRESSES), text)
    }

    /// Takes the addresses back: a file of an earlier start would send scripts to servers that are not there.
    pub fn forget_addresses(&self) -> Result<(), StackError> {
        let path = self.path.join(ADDRESSES);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StackError::file("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

fn only_harmless(path: &Path) -> Result<bool, StackError> {
    for entry in fs::read_dir(path).map_err(StackError::file("read", path))? {
        let name = entry.map_err(StackError::file("read", path))?.file_name();
        if !HARMLESS.iter().any(|harmless| name == *harmless) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(folder: &Path) -> Result<File, StackError> {
    let path = folder.join(LOCK);
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(StackError::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            return Err(StackError::InUse {
                folder: folder.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(StackError::file("lock", &path)(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(StackError::file("write", &path))?;
    Ok(file)
}

/// Puts a whole file there in one step: a reader, or a crash, sees the old one or the new one. Readable by its owner
/// alone, for it may hold a password.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> Result<(), StackError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(StackError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = Folder::take(folder.path()).unwrap();
        let message = Folder::take(folder.path()).unwrap_err().to_string();
        assert!(
            message.contains(&format!(
                "in use by another `highwater up` (pid {})",
                std::process::id()
            )),
            "{message}"
        );
        drop(first);
        Folder::take(folder.path()).unwrap();
    }

    #[test]
    fn what_is_remembered_is_there_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let first = Folder::take(folder.path()).unwrap();
        first.remember(|remembered| remembered.kafka = Some(4711)).unwrap();
        first.publish_addresses(b"{}").unwrap();
        drop(first);
        let second = Folder::take(folder.path()).unwrap();
        assert_eq!(second.remembered().kafka, Some(4711));
        assert!(
            !folder.path().join(ADDRESSES).exists(),
            "addresses of a stack that is gone"
        );
    }

    #[test]
    fn clearing_takes_our_data_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Folder::take(folder.path()).unwrap();
        ours.remember(|remembered| remembered.kafka = Some(4711)).unwrap();
        for name in ["kafka", "clickhouse", "archive", "notes"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("file"), "x").unwrap();
        }
        ours.clear().unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "notes", "stack.json"]);
        assert_eq!(ours.remembered().kafka, Some(4711));
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "x").unwrap();
        assert!(matches!(Folder::take(folder.path()), Err(StackError::NotOurs { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was put there");

        let archive_alone = tempfile::tempdir().unwrap();
        fs::create_dir(archive_alone.path().join("archive")).unwrap();
        let taken = Folder::take(archive_alone.path()).unwrap();
        assert!(
            matches!(taken.clear(), Err(StackError::NotOurs { .. })),
            "no `up` made this archive"
        );
    }

    #[test]
    fn a_folder_of_another_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(STATE), r#"{"layout": 2, "later": true}"#).unwrap();
        let taken = Folder::take(folder.path()).unwrap();
        let message = taken.check_layout().unwrap_err().to_string();
        assert!(
            message.contains("made by another version of highwater (layout 2, this one knows 1)"),
            "{message}"
        );
        taken.clear().unwrap();
        taken.check_layout().unwrap();
    }
}
