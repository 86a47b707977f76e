//! Rows, then progress: in that order, each tried until it is durable.
//!
//! Every row is a function of the log, so a try whose reply was lost is sent again as it is. A flush runs beside the
//! worker, on what there was when it began, one at a time; the worker reads on meanwhile, within `speed.memory`.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use backon::{BackoffBuilder, ExponentialBuilder};
use shared_connections::log::{Kafka, LogError, Topic};
use shared_connections::sentence;
use shared_connections::store::{FreshnessOfPartition, ProgressRow, Store};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, Partition, Start};
use shared_schemas::store::speed_rows;
use shared_schemas::store::tables::speed_table_name;
use tokio::time::Instant;

use crate::error::SpeedError;
use crate::worker::ViewState;

/// Between tries, growing.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Delays between tries, without end.
pub(crate) fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Does it until it succeeds. Says once that it does not, and once that it does again.
pub(crate) async fn persist<T, E, F>(what: &str, mut act: impl FnMut() -> F) -> T
where
    E: std::error::Error,
    F: Future<Output = Result<T, E>>,
{
    let mut delays = delays();
    let mut failed = false;
    loop {
        match act().await {
            Ok(done) => {
                if failed {
                    metrics::gauge!("highwater_speed_stalled").set(0.0);
                    tracing::info!("can {what} again");
                }
                return done;
            }
            Err(error) => {
                if !failed {
                    failed = true;
                    metrics::gauge!("highwater_speed_stalled").set(1.0);
                    tracing::warn!(error = %sentence(&error), "cannot {what}, reading waits until it can");
                }
                tokio::time::sleep(delays.next().unwrap_or(LONGEST)).await;
            }
        }
    }
}

/// Whether the topic is still the one that the records came from. Waits while Kafka is away.
pub(crate) async fn is_same_topic(kafka: &Kafka, name: &str, topic: &Topic) -> bool {
    persist(&format!("ask for the id of topic {name}"), || async {
        match kafka.topic(name).await {
            Ok(found) => Ok(found.id == topic.id),
            Err(LogError::NoTopic { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await
}

/// What a flush writes, as of the moment it began.
#[derive(Debug, Default)]
pub(crate) struct Flush {
    /// For each view with touched cells: its name, its table, the rows.
    rows: Vec<(String, String, RecordBatch)>,
    /// How far the starts have come whose rows are above or durable already: cuts, then the chunks' own.
    progress: [Vec<ProgressRow>; 2],
    /// How fresh all is then.
    freshness: Vec<(Fingerprint, FreshnessOfPartition)>,
    /// From where each partition is read on.
    cursors: BTreeMap<u32, Offset>,
}

/// What a flush came to.
#[derive(Debug)]
pub(crate) enum Flushed {
    /// All of it is durable.
    Written {
        /// The progress that was recorded.
        progress: Vec<ProgressRow>,
        /// From where each partition was read on when it began.
        cursors: BTreeMap<u32, Offset>,
        /// How many rows of cells were written.
        rows: usize,
        /// How long it took.
        took: Duration,
    },
    /// Nothing was written: the topic is another one now.
    TopicChanged,
}

impl Flush {
    /// What is to be written now: the touched cells and the progress that they bear out. What waits was folded in.
    pub(crate) fn of(views: &mut [ViewState], topic: &Topic) -> Result<Self, SpeedError> {
        let mut flush = Self::default();
        for view in views {
            if let Some(rows) = rows(view, topic)? {
                let name = view.view.name.clone();
                flush.rows.push((name, speed_table_name(&view.view), rows));
            }
            for (number, of_partition) in &view.partitions {
                let shown = of_partition.starts.to_show(&of_partition.wanted);
                for (group, shown) in flush.progress.iter_mut().zip(shown) {
                    group.extend(shown.into_iter().map(|(start, ledger)| ProgressRow {
                        fingerprint: view.view.fingerprint,
                        partition: Partition {
                            topic: topic.id,
                            number: *number,
                        },
                        start,
                        ledger: ledger.clone(),
                    }));
                }
            }
        }
        Ok(flush)
    }

    /// Says how fresh all is, too, and from where it is read on.
    pub(crate) fn tell(&mut self, freshness: Vec<(Fingerprint, FreshnessOfPartition)>, cursors: BTreeMap<u32, Offset>) {
        self.freshness = freshness;
        self.cursors = cursors;
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.progress.iter().all(Vec::is_empty) && self.freshness.is_empty()
    }

    /// Writes it, each part until it is durable. May be given up at any moment: what is missing then is read again.
    pub(crate) async fn write(self, kafka: Kafka, store: Store, name: String, topic: Topic) -> Flushed {
        let began = Instant::now();
        let counts = !self.rows.is_empty() || self.progress.iter().any(|group| !group.is_empty());
        // After the records were read and before anything is written: records of a topic made again count for no other.
        if counts && !is_same_topic(&kafka, &name, &topic).await {
            return Flushed::TopicChanged;
        }
        let writes = self.rows.iter().map(|(view, table, rows)| {
            let store = &store;
            async move {
                let rows = std::slice::from_ref(rows);
                persist(&format!("write rows of view {view}"), async || {
                    store.insert(table, rows).await
                })
                .await;
            }
        });
        futures::future::join_all(writes).await;
        for rows in self.progress.iter().filter(|rows| !rows.is_empty()) {
            persist("record progress", || store.record_progress(rows)).await;
        }
        // Only for people: whoever waits for it sees the next one.
        if let Err(error) = store.record_freshness(&self.freshness).await {
            tracing::debug!(error = %sentence(&error), "cannot say how fresh the rows are");
        }
        Flushed::Written {
            progress: self.progress.into_iter().flatten().collect(),
            cursors: self.cursors,
            rows: self.rows.iter().map(|(_, _, rows)| rows.num_rows()).sum(),
            took: began.elapsed(),
        }
    }
}

/// The touched cells of a view, whole, as rows of its table.
fn rows(state: &mut ViewState, topic: &Topic) -> Result<Option<RecordBatch>, SpeedError> {
    let batch_error = |source| SpeedError::Batch {
        dataset: state.view.dataset.clone(),
        source,
    };
    let Some(cells) = state.aggregate.touched().map_err(batch_error)? else {
        return Ok(None);
    };
    let partitions = &state.partitions;
    let version = |partition: Partition, start: Start| -> Option<Offset> {
        let kept = partitions.get(&partition.number)?.starts.kept().get(&start)?;
        Some(kept.ledger.next)
    };
    let rows = speed_rows(&cells, topic.id, &version).map_err(batch_error)?;
    Ok(Some(rows).filter(|rows| rows.num_rows() > 0))
}
