//! Kafka's classes: the jars, and beside them the archive of what a broker loads, as the JVM has it in memory.
//!
//! A start is mostly loading and checking 6,000 classes. With the archive (class-data sharing, <https://openjdk.org/jeps/350>)
//! it takes half the time and half the processor. The JVM itself looks whether the archive is of these jars and of this
//! Java, and does without where it is not. The archive is made once for each Java, by a broker in a folder of its own that starts
//! and ends. Nothing depends on it: where it can't be made, starts are slower.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::java::Java;
use super::{BrokerOptions, Kafka};
use crate::StackError;
use crate::address::Loopback;
use crate::folder::Folder;

/// Whoever makes an archive holds it, so that the others wait instead of making it too.
const LOCK: &str = "classes.lock";
/// Writing the archive takes a broker 2 s at its end.
const END: Duration = Duration::from_secs(60);

/// Where a JVM finds Kafka's classes.
#[derive(Debug)]
pub(super) struct Classes {
    jars: PathBuf,
    archive: Archive,
}

#[derive(Debug)]
enum Archive {
    None,
    Read(PathBuf),
    /// Written by the JVM when it ends.
    Write(PathBuf),
}

impl Classes {
    /// The jars with their archive, which is made if need be.
    pub(super) async fn of(jars: PathBuf, java: &Java, interface: Loopback) -> Self {
        // The JVM takes it for this build of Java alone, and for jars in this place.
        let of = format!("{}\n{}", java.said, jars.display());
        let of = hex::encode(Sha256::digest(of.as_bytes()));
        let path = jars.join(format!("classes-{}.jsa", of.get(..16).unwrap_or(&of)));
        let archive = match make(&jars, java, &path, interface).await {
            Ok(()) => Archive::Read(path),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "no archive of Kafka's classes, a start takes 2 s longer");
                Archive::None
            }
        };
        Self { jars, archive }
    }

    /// Tells the JVM of them.
    pub(super) fn give(&self, command: &mut Command) {
        if let Archive::Read(path) = &self.archive {
            command.arg(option("-XX:SharedArchiveFile=", path));
            command.args(["-Xshare:auto", "-Xlog:cds=error", "-Xlog:cds+dynamic=error"]);
        }
        command.arg("-cp").arg(self.jars.join("*"));
    }

    /// The same, and this JVM writes their archive where one is wanted.
    pub(super) fn give_and_keep(&self, command: &mut Command) {
        if let Archive::Write(path) = &self.archive {
            command.arg(option("-XX:ArchiveClassesAtExit=", path));
        }
        self.give(command);
    }
}

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push(path);
    option
}

/// Returns when the archive is there.
async fn make(jars: &Path, java: &Java, path: &Path, interface: Loopback) -> Result<(), StackError> {
    if path.is_file() {
        return Ok(());
    }
    let lock = jars.join(LOCK);
    let file = File::create(&lock).map_err(StackError::file("create", &lock))?;
    let held = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    let held = held.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let held = held.map_err(StackError::file("lock", &lock))?;
    let made = match path.is_file() {
        true => Ok(()),
        false => rehearse(jars, java, path, interface).await,
    };
    let _ = held.unlock();
    made
}

/// Starts a broker that writes the archive when it ends.
async fn rehearse(jars: &Path, java: &Java, path: &Path, interface: Loopback) -> Result<(), StackError> {
    let folder = tempfile::Builder::new()
        .prefix("highwater-classes-")
        .tempdir()
        .map_err(StackError::file("create a folder in", &std::env::temp_dir()))?;
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let classes = Classes {
        jars: jars.to_owned(),
        archive: Archive::Write(fresh.clone()),
    };
    let stack = Folder::take(&folder.path().join("stack"))?;
    let options = BrokerOptions::default();
    let kafka = Kafka::start_with(&stack, interface.with_port(0), &options, java, &classes).await?;
    kafka.into_process().stop(END).await;
    // On disk before it has its name: half an archive must not be there after a power cut.
    let synced = File::open(&fresh).and_then(|file| file.sync_all());
    synced.map_err(StackError::file("write", &fresh))?;
    fs::rename(&fresh, path).map_err(StackError::file("rename", &fresh))
}
