//! What can keep the local stack from running: one sentence each, which says what to change.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a server, or the whole stack, could not be started, or is no longer there.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A file or folder could not be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried, as a verb: `read`, `create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process holds the folder's lock.
    #[error(
        "the folder {} is in use by another `highwater up`{}: stop that one, or choose another folder with --data",
        folder.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// Who holds it, where that could be read.
        pid: Option<u32>,
    },
    /// The folder holds files that are not ours.
    #[error(
        "the folder {} holds files that `highwater up` did not make: choose a new or empty folder with --data",
        folder.display()
    )]
    NotOurs {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder was written by a version that lays it out otherwise.
    #[error(
        "the folder {} was made by another version of highwater (layout {found}, this one knows {known}): \
         use that version, or clear the folder with --fresh",
        folder.display()
    )]
    Layout {
        /// The folder.
        folder: PathBuf,
        /// The number it carries.
        found: u32,
        /// The number this program writes.
        known: u32,
    },
    /// A configured address cannot be understood.
    #[error("{setting} = \"{value}\" {why}")]
    Address {
        /// The setting that holds it.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// The configured port is taken by something else.
    #[error(
        "{address} is taken by {owner}, which does not answer as {expected}: stop it, or choose another port with \
         {setting} (port 0 picks a free one)"
    )]
    Busy {
        /// Where.
        address: String,
        /// By whom, as far as can be seen.
        owner: String,
        /// What was expected there.
        expected: &'static str,
        /// The setting to change.
        setting: &'static str,
    },
    /// An address that is not started here does not answer.
    #[error("no {expected} answers at {address} ({why}): start it, or change {setting}")]
    NoAnswer {
        /// What was expected there.
        expected: &'static str,
        /// Where.
        address: String,
        /// The last failure.
        why: String,
        /// The setting to change.
        setting: &'static str,
    },
    /// A program that is needed is not there, or too old.
    #[error("{0}")]
    Program(String),
    /// A download failed, or what is there has a wrong checksum. The sentence comes from the script.
    #[error("{0}")]
    Fetch(String),
    /// The program could not be started at all.
    #[error("cannot start {name} ({})", program.display())]
    Spawn {
        /// Which server.
        name: &'static str,
        /// The file that was to run.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A server ended by itself.
    #[error("{name} ended by itself ({status}); {}", tail(log, last))]
    Died {
        /// Which server.
        name: &'static str,
        /// Its exit status, in words.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of that file.
        last: String,
    },
    /// A server runs and does not become ready.
    #[error("{name} is not ready after {} s; {}", waited.as_secs(), tail(log, last))]
    NotReady {
        /// Which server.
        name: &'static str,
        /// How long it was waited for.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// The last lines of that file.
        last: String,
    },
    /// A process of an earlier start cannot be ended.
    #[error("{name} of an earlier start (pid {pid}) does not end: end it, then start again")]
    Leftover {
        /// Which server.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// Kafka refused or failed a request.
    #[error("Kafka could not {doing}")]
    Kafka {
        /// What was asked of it, as a verb.
        doing: String,
        /// Its answer.
        source: rdkafka::error::KafkaError,
    },
    /// ClickHouse refused a statement, or did not answer it.
    #[error("ClickHouse could not run `{statement}`: {why}")]
    ClickHouse {
        /// The statement.
        statement: String,
        /// Its answer.
        why: String,
    },
    /// A topic is not as its dataset needs it.
    #[error("topic {topic} {why}")]
    Topic {
        /// Its name.
        topic: String,
        /// What is wrong and what to do.
        why: String,
    },
}

impl StackError {
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

fn tail(log: &Path, last: &str) -> String {
    if last.is_empty() {
        format!("its log {} is empty", log.display())
    } else {
        format!("the end of its log {}:\n{last}", log.display())
    }
}
