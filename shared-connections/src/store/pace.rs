//! How long a statement may take: until it stands still, or for so long in all.
//!
//! A scan of the batch layer may take minutes, and nothing is wrong with it. One that stands still never ends: the engine
//! (26.5) can come to a standstill in its own pipeline, where its limit of time does not end it. What tells the two apart is
//! whether anything moves: bytes that arrive, or rows and processor time that the server counts for the statement.
//!
//! Whoever gives up on a statement says so to the server, by the statement's id. A connection that is dropped ends only those
//! statements that a setting says so of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared_schemas::handoff::floor::COLLECT_WAITS;
use tokio::time::Instant;

use super::client::{PROBE, Store};

/// How long a statement may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Without anything that moves.
    pub still: Duration,
    /// In all.
    pub all: Duration,
}

/// How often it is looked whether a statement moves, of the time that it may stand still.
const LOOKS: u32 = 4;

impl Pace {
    /// For a statement of the batch layer: a minute without any sign is far more than a disk ever needs, and in all it takes half the
    /// time that collection waits before it deletes what a statement may still be reading.
    pub const AT_LENGTH: Self = Self {
        still: Duration::from_secs(60),
        all: Duration::from_secs(COLLECT_WAITS.as_secs() / 2),
    };

    pub(super) fn looks_every(&self) -> Duration {
        self.still.min(self.all) / LOOKS
    }
}

/// How far a statement has come, in whatever it is that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    /// Bytes of the answer that have arrived.
    pub(super) bytes: u64,
    /// Rows read and microseconds of processors, as the server counts them; 0 where it does not say.
    pub(super) work: u64,
}

/// Watches one statement.
#[derive(Debug)]
pub(super) struct Watched {
    pace: Pace,
    begun: Instant,
    last: Moved,
    since: Instant,
}

impl Watched {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            begun: now,
            last: Moved::default(),
            since: now,
        }
    }

    /// Notes how far it has come. Gives the limit that is passed, if one is.
    pub(super) fn note(&mut self, moved: Moved, now: Instant) -> Option<Duration> {
        if moved != self.last {
            self.last = moved;
            self.since = now;
        }
        if now - self.begun >= self.pace.all {
            Some(self.pace.all)
        } else {
            (now - self.since >= self.pace.still).then_some(self.pace.still)
        }
    }
}

/// Ids for statements, each once in all the world as far as it matters: they name what is to be ended.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    prefix: Arc<str>,
    next: Arc<AtomicU64>,
}

impl Ids {
    pub(super) fn new() -> Self {
        // The seeds of the standard library's maps are random.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Self {
            prefix: format!("highwater-{}-{random:016x}", std::process::id()).into(),
            next: Arc::default(),
        }
    }

    pub(super) fn next(&self) -> String {
        format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Store {
    /// What the server has done for a statement until now; 0 where it does not know, or does not say.
    pub(super) async fn work_of(&self, id: &str) -> u64 {
        let sql = "SELECT toUInt64(sum(read_rows + written_rows + ProfileEvents['OSCPUVirtualTimeMicroseconds'] \
                   + ProfileEvents['UserTimeMicroseconds'])) FROM system.processes WHERE query_id = ?";
        let asked = self.client.query(sql).bind(id).fetch_one::<u64>();
        match tokio::time::timeout(PROBE, asked).await {
            Ok(Ok(work)) => work,
            _ => 0,
        }
    }

    /// Tells the server to end a statement that nobody waits for any more. It is not waited for, and may not help: a
    /// statement that stands still in the engine's pipeline does not always hear it.
    pub(super) fn end(&self, id: String) {
        // Where the program ends there is nobody to do it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let client = self.client.clone();
        runtime.spawn(async move {
            let sql = format!("KILL QUERY WHERE query_id = '{id}' ASYNC");
            let told = client.query_raw(&sql).execute();
            if !matches!(tokio::time::timeout(PROBE, told).await, Ok(Ok(()))) {
                tracing::debug!(id, "ClickHouse could not be told to end a statement that was given up");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_may_take_its_time_and_what_stands_still_may_not() {
        let pace = Pace {
            still: Duration::from_secs(10),
            all: Duration::from_secs(25),
        };
        let begun = Instant::now();
        let mut watched = Watched::new(pace, begun);
        let mut note = |bytes, work, second| watched.note(Moved { bytes, work }, begun + Duration::from_secs(second));
        assert_eq!(note(0, 0, 9), None);
        assert_eq!(note(0, 1, 9), None, "the server works");
        assert_eq!(note(1, 1, 18), None, "bytes arrive");
        assert_eq!(note(1, 1, 24), None);
        assert_eq!(note(2, 2, 25), Some(pace.all), "though it moves");

        let mut watched = Watched::new(pace, begun);
        let mut note = |work, second| watched.note(Moved { bytes: 0, work }, begun + Duration::from_secs(second));
        assert_eq!(note(7, 5), None);
        assert_eq!(note(7, 14), None);
        assert_eq!(note(7, 15), Some(pace.still));
    }

    #[test]
    fn no_two_statements_have_one_id() {
        let (a, b) = (Ids::new(), Ids::new());
        let ids = std::collections::BTreeSet::from([a.next(), a.next(), b.next()]);
        assert_eq!(ids.len(), 3);
    }
}
