//! Kafka's classes: the jars, and beside them the archive of what a broker loads, as the JVM has it in memory.
//!
//! A start is mostly loading and checking 6,000 classes. With the archive (class-data sharing, <https://openjdk.org/jeps/350>)
//! it takes half the time and half the processor. The JVM itself looks whether the archive is of these jars and of this
//! Java, and does without where it is not. The archive is made once for each Java, by a broker in a folder of its own that starts
//! and ends. Nothing depends on it: where it can't be made, starts are slower.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::java::Java;
use super::{BrokerOptions, Kafka};
use crate::StackError;
use crate::address::Loopback;
use crate::folder::Folder;

/// Whoever makes an archive holds it. Nobody waits for that: others start without.
const LOCK: &str = "classes.lock";
/// Where the broker has its data meanwhile, beside the jars. What a killed one left goes with the next.
const MAKING: &str = "classes.making";
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
        // The JVM takes it for this build of Java alone, and for jars in this place. Options from the environment are no part of that.
        let build = java.said.lines().filter(|line| !line.starts_with("Picked up"));
        let of = format!("{}\n{}", build.collect::<Vec<_>>().join("\n"), jars.display());
        let of = hex::encode(Sha256::digest(of.as_bytes()));
        let path = jars.join(format!("classes-{}.jsa", of.get(..16).unwrap_or(&of)));
        let archive = match make(&jars, java, &path, interface).await {
            Ok(true) => Archive::Read(path),
            Ok(false) => Archive::None,
            Err(error) => {
                tracing::info!("Kafka starts without an archive of its classes, 2 s later: {error}");
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

/// Whether the archive is there, at last. It is not where somebody else is making it, or where this Java was found to write none.
async fn make(jars: &Path, java: &Java, path: &Path, interface: Loopback) -> Result<bool, StackError> {
    let none = path.with_extension("none");
    if path.is_file() || none.exists() {
        return Ok(path.is_file());
    }
    let lock = jars.join(LOCK);
    let file = File::create(&lock).map_err(StackError::file("create", &lock))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(StackError::file("lock", &lock)(error)),
    }
    let made = match path.is_file() {
        true => Ok(true),
        false => rehearse(jars, java, path, &none, interface).await,
    };
    // A child that is being started has it open too: closing it is not enough.
    let _ = file.unlock();
    made
}

/// Starts a broker that writes the archive when it ends.
async fn rehearse(jars: &Path, java: &Java, path: &Path, none: &Path, interface: Loopback) -> Result<bool, StackError> {
    let (fresh, making) = (path.with_extension("new"), jars.join(MAKING));
    let _ = fs::remove_file(&fresh);
    let _ = fs::remove_dir_all(&making);
    let classes = Classes {
        jars: jars.to_owned(),
        archive: Archive::Write(fresh.clone()),
    };
    let stack = Folder::take(&making)?;
    let options = BrokerOptions::default();
    let ended = match Kafka::start_with(&stack, interface.with_port(0), &options, java, &classes).await {
        Ok(kafka) => Ok(kafka.into_process().stop(END).await),
        // A Java that has no such archives refuses the option.
        Err(StackError::Died { .. }) => Ok(true),
        Err(error) => Err(error),
    };
    drop(stack);
    let _ = fs::remove_dir_all(&making);
    if !ended? {
        let _ = fs::remove_file(&fresh);
        return Ok(false);
    }
    if !fresh.is_file() {
        tracing::info!("this Java keeps no archive of Kafka's classes: each start of a broker takes 2 s longer");
        // Not tried again: each time would be another start of a broker.
        File::create(none).map_err(StackError::file("create", none))?;
        return Ok(false);
    }
    // On disk before it has its name: half an archive must not be there after a power cut.
    let synced = File::open(&fresh).and_then(|file| file.sync_all());
    synced.map_err(StackError::file("write", &fresh))?;
    fs::rename(&fresh, path).map_err(StackError::file("rename", &fresh))?;
    Ok(true)
}
