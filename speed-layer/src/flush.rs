//! Rows, then progress: in that order, each tried until it is durable.
//!
//! Every row is a function of the log, so a try whose reply was lost is sent again as it is. A flush runs beside the
//! worker, on what there was when it began, one at a time; the worker reads on meanwhile, within `speed.memory`.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, UInt64Type};
use shared_connections::log::{Kafka, LogError, Topic};
use shared_connections::sentence;
use shared_connections::store::{ErrorKind, FreshnessOfPartition, ProgressRow, Store, StoreError};
use shared_schemas::dataset::PARTITION_COLUMN;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, Partition, Start};
use shared_schemas::plan::START_COLUMN;
use shared_schemas::store::speed_rows;
use shared_schemas::store::tables::{PROGRESS, speed_table_name};
use tokio::time::Instant;

use crate::error::SpeedError;
use crate::worker::ViewState;

/// Between tries, growing.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Delays between tries, without end.
pub(crate) fn delays() -> impl Iterator<Item = Duration> {
    shared_connections::delays(SHORTEST, LONGEST)
}

/// Does it until it succeeds. Says once that it does not, and once that it does again.
///
/// # Errors
/// Where trying again can't help before a human has changed something.
pub(crate) async fn persist<T, E, F>(what: &str, mut act: impl FnMut() -> F) -> Result<T, E>
where
    E: Failure,
    F: Future<Output = Result<T, E>>,
{
    let mut delays = delays();
    let mut stall = None;
    loop {
        match act().await {
            Ok(done) => {
                if stall.is_some() {
                    tracing::info!("can {what} again");
                }
                return Ok(done);
            }
            Err(error) if matches!(error.kind(), ErrorKind::Fatal(_)) => return Err(error),
            Err(error) => {
                if stall.is_none() {
                    stall = Some(Stall::begin());
                    let (error, kind) = (sentence(&error), error.kind());
                    match kind {
                        ErrorKind::Passing => tracing::warn!(error, "cannot {what}, trying until it can"),
                        _ => tracing::error!(error, "cannot {what}, trying on, though it may never pass"),
                    }
                }
                tokio::time::sleep(delays.next().unwrap_or(LONGEST)).await;
            }
        }
    }
}

/// One thing that fails and is tried again. They are counted: that one passes, or is given up, says nothing of the others.
struct Stall;

impl Stall {
    const GAUGE: &str = "highwater_speed_stalled";

    fn begin() -> Self {
        metrics::gauge!(Self::GAUGE).increment(1.0);
        Self
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        metrics::gauge!(Self::GAUGE).decrement(1.0);
    }
}

/// An error that says what it asks for.
pub(crate) trait Failure: std::error::Error {
    /// What that is.
    fn kind(&self) -> ErrorKind;
}

impl Failure for LogError {
    fn kind(&self) -> ErrorKind {
        // A topic may be made, a right given.
        ErrorKind::Passing
    }
}

impl Failure for StoreError {
    fn kind(&self) -> ErrorKind {
        self.kind()
    }
}

/// Whether the topic is still the one that the records came from. Waits while Kafka is away.
pub(crate) async fn is_same_topic(kafka: &Kafka, name: &str, topic: &Topic) -> Result<bool, LogError> {
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
    /// For each view with touched cells.
    rows: Vec<ViewRows>,
    /// How far the starts have come whose rows are above or durable already: cuts, then the chunks' own.
    progress: [Vec<ProgressRow>; 2],
    /// The highest event time that each view has counted on each partition.
    highest: Vec<(Fingerprint, u32, Option<i64>)>,
    /// How fresh all is then, where it is to be told.
    freshness: Option<Vec<(Fingerprint, FreshnessOfPartition)>>,
    /// From where each partition is read on.
    cursors: BTreeMap<u32, Offset>,
}

/// What is told after a flush, for people. Nothing waits for it: the next flush goes its way beside it.
#[derive(Debug)]
pub(crate) struct Telling {
    freshness: Vec<(Fingerprint, FreshnessOfPartition)>,
    /// The tables whose parts are asked about: those that were written to.
    tables: Vec<String>,
}

/// The touched cells of a view.
#[derive(Debug)]
struct ViewRows {
    view: String,
    fingerprint: Fingerprint,
    table: String,
    cells: RecordBatch,
}

/// A row that the server refuses.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) partition: u32,
    pub(crate) start: Start,
    /// Of which view.
    pub(crate) view: String,
    /// Which cell.
    pub(crate) key: String,
    /// What the server says.
    pub(crate) why: String,
}

/// What a flush came to.
#[derive(Debug)]
pub(crate) enum Flushed {
    /// All of it is durable, but what the server refuses.
    Written {
        /// The rows that the server refuses.
        refused: Vec<Refused>,
        /// The progress that was recorded.
        progress: Vec<ProgressRow>,
        /// From where each partition was read on when it began.
        cursors: BTreeMap<u32, Offset>,
        /// The highest event time that each view had counted on each partition then.
        highest: Vec<(Fingerprint, u32, Option<i64>)>,
        /// How many rows of cells were written.
        rows: usize,
        /// How long it took.
        took: Duration,
        /// What people are to be told now, if it is time for it.
        telling: Option<Telling>,
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
                flush.rows.push(ViewRows {
                    view: view.view.name.clone(),
                    fingerprint: view.view.fingerprint,
                    table: speed_table_name(&view.view),
                    cells: rows,
                });
            }
            for (number, of_partition) in &view.partitions {
                flush
                    .highest
                    .push((view.view.fingerprint, *number, of_partition.highest));
                let shown = of_partition.starts.to_show(&of_partition.wanted);
                for (group, shown) in flush.progress.iter_mut().zip(shown) {
                    group.extend(shown.into_iter().map(|(start, kept)| ProgressRow {
                        fingerprint: view.view.fingerprint,
                        partition: Partition {
                            topic: topic.id,
                            number: *number,
                        },
                        start,
                        redo: kept.redo,
                        ledger: kept.ledger.clone(),
                    }));
                }
            }
        }
        Ok(flush)
    }

    /// Says how fresh all is, too, and from where it is read on.
    pub(crate) fn tell(&mut self, freshness: Vec<(Fingerprint, FreshnessOfPartition)>, cursors: BTreeMap<u32, Offset>) {
        self.freshness = Some(freshness);
        self.cursors = cursors;
    }

    /// Whether anything is to be written that is counted.
    pub(crate) fn counts(&self) -> bool {
        !self.rows.is_empty() || self.progress.iter().any(|group| !group.is_empty())
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        !self.counts() && self.freshness.is_none()
    }

    /// Writes it, each part until it is durable. May be given up at any moment: what is missing then is read again.
    ///
    /// # Errors
    /// Where a human must act before anything can be written.
    pub(crate) async fn write(
        mut self,
        kafka: Kafka,
        store: Store,
        name: String,
        topic: Topic,
    ) -> Result<Flushed, SpeedError> {
        let began = Instant::now();
        let counts = self.counts();
        // After the records were read and before anything is written: records of a topic made again count for no other.
        if counts && !is_same_topic(&kafka, &name, &topic).await? {
            return Ok(Flushed::TopicChanged);
        }
        let writes = self.rows.iter().map(|rows| rows.write(&store));
        let refused = futures::future::try_join_all(writes).await?;
        let refused: Vec<Refused> = refused.into_iter().flatten().collect();
        for group in &mut self.progress {
            // Nothing is claimed of a start whose rows are not all there, and no start's promise passes a cut that makes none.
            group.retain(|row| refused.iter().all(|refused| !refused.keeps_back(row)));
            if !group.is_empty() {
                let rows = &*group;
                persist("record progress", || store.record_progress(rows)).await?;
            }
        }
        let tables = self.rows.iter().map(|rows| rows.table.clone());
        let tables = tables.chain([PROGRESS.to_owned()]).collect();
        let telling = self.freshness.map(|freshness| Telling { freshness, tables });
        Ok(Flushed::Written {
            refused,
            progress: self.progress.into_iter().flatten().collect(),
            cursors: self.cursors,
            highest: self.highest,
            rows: self.rows.iter().map(|rows| rows.cells.num_rows()).sum(),
            took: began.elapsed(),
            telling,
        })
    }
}

impl Telling {
    /// Says how fresh all is where nothing was written.
    pub(crate) fn of_a_stall(freshness: Vec<(Fingerprint, FreshnessOfPartition)>) -> Self {
        let tables = Vec::new();
        Self { freshness, tables }
    }

    /// Tells it, and returns how many active parts the fullest table has, where it was asked. Where it fails, whoever waits
    /// for it sees the next one.
    pub(crate) async fn tell(self, store: Store) -> Option<u64> {
        if let Err(error) = store.record_freshness(&self.freshness).await {
            tracing::debug!(error = %sentence(&error), "cannot say how fresh the rows are");
        }
        let asked = self.tables.iter().map(|table| store.active_parts(table));
        match futures::future::try_join_all(asked).await {
            Ok(parts) => parts.into_iter().max(),
            Err(error) => {
                tracing::debug!(error = %sentence(&error), "cannot ask how many parts the tables have");
                None
            }
        }
    }
}

impl ViewRows {
    /// Writes them until they are durable, without those that the server refuses.
    async fn write(&self, store: &Store) -> Result<Vec<Refused>, SpeedError> {
        let what = format!("write rows of view {}", self.view);
        let refused = persist(&what, || store.insert_isolating(&self.table, &self.cells)).await?;
        let refused = refused.into_iter().filter_map(|row| {
            let (partition, start) = place_of(&self.cells, row.row)?;
            Some(Refused {
                fingerprint: self.fingerprint,
                partition,
                start,
                view: self.view.clone(),
                key: row.key,
                why: sentence(&row.why),
            })
        });
        Ok(refused.collect())
    }
}

impl Refused {
    fn keeps_back(&self, row: &ProgressRow) -> bool {
        (self.fingerprint, self.partition) == (row.fingerprint, row.partition.number)
            && (row.start.0..row.ledger.next).contains(&self.start.0)
    }
}

/// The partition and start of a row of a speed table.
fn place_of(rows: &RecordBatch, row: usize) -> Option<(u32, Start)> {
    let partition = rows.column_by_name(PARTITION_COLUMN)?.as_primitive_opt::<Int32Type>()?;
    let start = rows.column_by_name(START_COLUMN)?.as_primitive_opt::<UInt64Type>()?;
    Some((
        u32::try_from(partition.value(row)).ok()?,
        Start(Offset(start.value(row))),
    ))
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    /// Keeps the sum of all gauges.
    #[derive(Default)]
    struct Gauges(Arc<Sum>);

    #[derive(Default)]
    struct Sum(Mutex<f64>);

    impl GaugeFn for Sum {
        fn increment(&self, value: f64) {
            *self.0.lock().unwrap() += value;
        }

        fn decrement(&self, value: f64) {
            *self.0.lock().unwrap() -= value;
        }

        fn set(&self, value: f64) {
            *self.0.lock().unwrap() = value;
        }
    }

    impl Recorder for Gauges {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::clone(&self.0))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn what_fails_is_counted_until_it_passes_or_is_given_up() {
        let gauges = Gauges::default();
        let stalled = || *gauges.0.0.lock().unwrap();
        let away = || LogError::NoTopic {
            brokers: "b".to_owned(),
            topic: "t".to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        metrics::with_local_recorder(&gauges, || {
            runtime.unwrap().block_on(async {
                let mut given_up = Box::pin(persist("a", async || Err::<(), _>(away())));
                assert!(futures::poll!(&mut given_up).is_pending());
                assert!(stalled() == 1.0);
                let mut tries = 0;
                let passes = persist("b", || {
                    tries += 1;
                    let (now, result) = (stalled(), if tries < 3 { Err(away()) } else { Ok(()) });
                    async move {
                        assert!(now == if tries == 1 { 1.0 } else { 2.0 });
                        result
                    }
                });
                passes.await.unwrap();
                assert!(stalled() == 1.0, "the other one still fails");
                drop(given_up);
                assert!(stalled() == 0.0);
            });
        });
    }
}
