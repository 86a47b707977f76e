//! Readers that take long say so beside the table, and for as long as they read no file goes that they may need.
//!
//! Files that no newer version names are deleted after `archive.keep_removed`. A reader that is done by then never notices; one that
//! takes longer would find its files gone. So whoever has read one version for [`SAYS_SO`] writes a small object below
//! [`FOLDER`], and again each time that this is over; and whoever deletes files looks there first. It lies in the archive
//! itself, so it holds for readers on other machines, and without ClickHouse.
//!
//! - A reader that pinned its version within `keep_removed` is in nobody's way: what goes was taken out before it began.
//! - For one that began earlier nothing is deleted at all: the log has forgotten by then when files were taken out. The next
//!   time it is tried again.
//! - One that was killed says nothing any more: after [`SILENT`] it counts as gone, and its object is removed.
//! - One that may not write there is warned, and reads on without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use deltalake::logstore::LogStoreRef;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::ArchiveError;
use super::optimize::Upkeep;
use super::pinned::{File, files_of};
use super::table::{Archive, failed, load};
use crate::lease::host;

/// Where readers say that they read.
pub(super) const FOLDER: &str = "_readers";
/// After so long a reader says so, and then as often: well within the shortest `keep_removed`, an hour.
const SAYS_SO: Duration = Duration::from_secs(600);
/// A reader that has said nothing for so long is gone: longer than the store's clock and this machine's may be apart.
const SILENT: TimeDelta = TimeDelta::hours(2);
/// Clocks of machines that work together are no further apart.
const APART: TimeDelta = TimeDelta::hours(1);

/// What a reader says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    /// The version that it reads.
    version: u64,
    /// Since when, RFC 3339.
    since: String,
    /// Its process.
    pid: u32,
    /// Its machine.
    host: String,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            version,
            since,
            pid,
            host,
        } = self;
        write!(f, "process {pid} on {host} reads version {version} since {since}")
    }
}

/// What is written, and where.
struct Sign {
    store: Arc<dyn ObjectStore>,
    path: Path,
    said: Said,
    is_written: AtomicBool,
}

impl Sign {
    async fn write(&self) -> object_store::Result<()> {
        let text = serde_json::to_vec(&self.said).unwrap_or_default();
        self.store.put(&self.path, text.into()).await?;
        self.is_written.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn remove(&self) {
        // What stays counts for a while, and goes with the next upkeep.
        if self.is_written.load(Ordering::Relaxed)
            && let Err(error) = self.store.delete(&self.path).await
        {
            tracing::debug!(path = %self.path, %error, "a reader's object stays behind");
        }
    }
}

/// A version being read, until the last of its readers is dropped.
pub(super) struct Reading {
    log: LogStoreRef,
    place: String,
    sign: Arc<Sign>,
    _end: DropGuard,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reading({})", self.sign.said)
    }
}

impl Reading {
    /// From now on.
    pub(super) fn begin(log: &LogStoreRef, place: &str, version: u64) -> Self {
        let said = Said {
            version,
            since: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            pid: std::process::id(),
            host: host(),
        };
        let sign = Arc::new(Sign {
            store: log.object_store(None),
            path: Path::from(format!("{FOLDER}/{}", uuid::Uuid::now_v7().simple())),
            said,
            is_written: AtomicBool::new(false),
        });
        let end = CancellationToken::new();
        tokio::spawn(say_so(Arc::clone(&sign), place.to_owned(), end.clone()));
        Self {
            log: Arc::clone(log),
            place: place.to_owned(),
            sign,
            _end: end.drop_guard(),
        }
    }

    /// Says now that it reads.
    #[cfg(test)]
    pub(super) async fn say(&self) {
        self.sign.write().await.unwrap();
    }

    /// What an error means to this reader: a file that is gone and that the newest version does not name was taken out
    /// meanwhile. There is nothing wrong with the archive then.
    pub(super) async fn told(&self, error: ArchiveError) -> ArchiveError {
        let ArchiveError::File { path, source } = &error else {
            return error;
        };
        if !is_missing(source.as_ref()) {
            return error;
        }
        let Ok((state, _)) = Box::pin(load(&self.log, &self.place)).await else {
            return error;
        };
        let is_named = files_of(&state, &self.place).map(|files| {
            let full = |file: &File| format!("{}/{}", self.place, file.path);
            files.iter().any(|file| full(file) == *path)
        });
        match is_named {
            Ok(false) => ArchiveError::TakenOut { path: path.clone() },
            Ok(true) | Err(_) => error,
        }
    }
}

/// Whether an error says that an object is not there.
fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    errors.any(|error| {
        matches!(
            error.downcast_ref::<object_store::Error>(),
            Some(object_store::Error::NotFound { .. })
        )
    })
}

async fn say_so(sign: Arc<Sign>, place: String, end: CancellationToken) {
    let mut is_warned = false;
    while end.run_until_cancelled(tokio::time::sleep(SAYS_SO)).await.is_some() {
        if let Err(error) = sign.write().await
            && !std::mem::replace(&mut is_warned, true)
        {
            let version = sign.said.version;
            tracing::warn!(
                %place, version, %error,
                "that this version is being read can't be said there: what it needs stays for archive.keep_removed and no longer"
            );
        }
    }
    sign.remove().await;
}

/// Whether files may still be read that went so long ago that they would be deleted now.
fn is_in_need(said: &Said, now: DateTime<Utc>, keep_removed: Duration) -> bool {
    let since = DateTime::parse_from_rfc3339(&said.since).map(|since| since.to_utc());
    let keep = TimeDelta::from_std(keep_removed).unwrap_or(TimeDelta::MAX);
    // Whoever does not say since when may have begun at any time.
    !since.is_ok_and(|since| now.signed_duration_since(since) + APART < keep)
}

impl Archive {
    /// Why no file may be deleted now: the reader that began first of those that may need one. What readers left behind that
    /// are gone is removed.
    pub(super) async fn readers_in_need(&self, upkeep: &Upkeep) -> Result<Option<String>, ArchiveError> {
        let store = self.log.object_store(None);
        let failed = |error: object_store::Error| failed(&self.place, "listed")(error.into());
        let now = Utc::now();
        let mut in_need: Option<(String, String)> = None;
        let listed = store.list(Some(&Path::from(FOLDER))).try_collect();
        let objects: Vec<ObjectMeta> = listed.await.map_err(failed)?;
        for object in objects {
            if now.signed_duration_since(object.last_modified) > SILENT {
                if upkeep.deletes
                    && !upkeep.dry_run
                    && let Err(error) = store.delete(&object.location).await
                {
                    tracing::debug!(path = %object.location, %error, "a reader's object stays behind");
                }
                continue;
            }
            let bytes = async { store.get(&object.location).await?.bytes().await }.await;
            let bytes = match bytes {
                Ok(bytes) => bytes,
                // It is done.
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(error) => return Err(failed(error)),
            };
            let said = match serde_json::from_slice::<Said>(&bytes) {
                Ok(said) if !is_in_need(&said, now, upkeep.keep_removed) => continue,
                Ok(said) => (said.since.clone(), said.to_string()),
                Err(_) => (String::new(), format!("{} is not understood", object.location)),
            };
            if in_need.as_ref().is_none_or(|other| said < *other) {
                in_need = Some(said);
            }
        }
        Ok(in_need.map(|(_, said)| format!("no file is deleted for now: {said}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_within_the_time_that_files_are_kept_needs_none_that_go() {
        let now: DateTime<Utc> = "2026-01-08T00:00:00Z".parse().unwrap();
        let week = Duration::from_secs(7 * 86_400);
        for (since, keep, needs) in [
            ("2026-01-07T00:00:00Z", week, false),
            ("2026-01-01T01:30:00Z", week, false),
            // Its clock may be an hour ahead.
            ("2026-01-01T00:30:00Z", week, true),
            ("2025-12-01T00:00:00Z", week, true),
            ("2026-01-07T23:50:00Z", Duration::from_secs(3600), true),
            ("", week, true),
        ] {
            let said = Said {
                version: 7,
                since: since.to_owned(),
                pid: 1,
                host: "here".to_owned(),
            };
            assert_eq!(is_in_need(&said, now, keep), needs, "{since}");
        }
    }
}
