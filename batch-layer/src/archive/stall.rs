//! What to say, and how long to wait, while an archiver can't go on.
//!
//! A trouble is told once when it begins, once more if it becomes another one, and once when it is over. Waits grow, with
//! jitter, so that many archivers don't come back to a store at the same moment.

use std::time::Duration;

use backon::ExponentialBackoff;
use metrics::Gauge;
use tokio::time::Instant;

use super::dead_letters::LetterError;
use super::error::ArchiveError;
use super::held::Broken;
use shared_connections::delays;
use shared_connections::log::LogError;

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(15);

/// Why an archiver can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Kafka(#[from] LogError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Letters(#[from] LetterError),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the topic is not the one that was read")]
    MadeAgain,
}

impl Trouble {
    /// Whether it may well go away by itself. Else a person must act.
    fn is_passing(&self) -> bool {
        match self {
            Self::Kafka(error) => error.is_passing(),
            Self::Archive(ArchiveError::Crowded { .. }) => true,
            Self::Letters(LetterError::Undelivered { .. }) => true,
            Self::Archive(_) | Self::Letters(_) | Self::Broken(_) | Self::MadeAgain => false,
        }
    }
}

/// Whether an archiver goes on, and since when not.
pub(super) struct Stall {
    dataset: String,
    gauge: Gauge,
    now: Option<Now>,
}

struct Now {
    said: String,
    since: Instant,
    waits: ExponentialBackoff,
}

impl Stall {
    pub(super) fn new(dataset: &str) -> Self {
        let gauge = super::metrics::stalled(dataset);
        gauge.set(0.0);
        Self {
            dataset: dataset.to_owned(),
            gauge,
            now: None,
        }
    }

    /// It can't go on. How long to wait until the next try.
    pub(super) fn wait(&mut self, trouble: &Trouble) -> Duration {
        self.gauge.set(1.0);
        let said = shared_connections::sentence(trouble);
        let now = self.now.get_or_insert_with(|| Now {
            said: String::new(),
            since: Instant::now(),
            waits: waits(),
        });
        if now.said != said {
            let dataset = &self.dataset;
            if trouble.is_passing() {
                tracing::warn!(dataset, "the archiver waits and holds what it has read: {said}");
            } else {
                tracing::error!(
                    dataset,
                    "the archiver can't commit; it holds what it has read and tries again: {said}"
                );
            }
            now.said = said;
        }
        now.waits.next().unwrap_or(LONGEST)
    }

    /// It goes on.
    pub(super) fn over(&mut self) {
        if let Some(now) = self.now.take() {
            self.gauge.set(0.0);
            let (dataset, seconds) = (&self.dataset, now.since.elapsed().as_secs());
            tracing::info!(dataset, "the archiver goes on after {seconds} s");
        }
    }
}

fn waits() -> ExponentialBackoff {
    delays(SHORTEST, LONGEST)
}
