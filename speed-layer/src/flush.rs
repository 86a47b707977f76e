//! Rows, then progress: in that order, each tried until it is durable.
//!
//! Every row is a function of the log, so a try whose reply was lost is sent again as it is. While the store is away
//! nothing is read: the reader's bounded channel fills, and the consumer stops fetching.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use shared_connections::log::{Kafka, LogError, Topic};
use shared_connections::sentence;
use shared_connections::store::{ProgressRow, Store};
use shared_schemas::handoff::{Offset, Partition, Start};
use shared_schemas::store::speed_rows;
use shared_schemas::store::tables::speed_table_name;

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
pub(crate) async fn persist<T, E: std::error::Error>(what: &str, mut act: impl AsyncFnMut() -> Result<T, E>) -> T {
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
    persist(&format!("ask for the id of topic {name}"), async || {
        match kafka.topic(name).await {
            Ok(found) => Ok(found.id == topic.id),
            Err(LogError::NoTopic { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Aggregates what came and writes the touched cells, whole. Returns how many rows.
pub(crate) async fn rows(state: &mut ViewState, topic: &Topic, store: &Store) -> Result<usize, SpeedError> {
    let counted = state.aggregate.fold().await.map_err(|source| SpeedError::Plan {
        view: state.view.name.clone(),
        source,
    })?;
    for counted in counted {
        if let Some(of_partition) = state.partitions.get_mut(&counted.partition) {
            of_partition.starts.folded(&counted);
        }
    }
    let touched = state.aggregate.touched().map_err(|source| SpeedError::Batch {
        dataset: state.view.dataset.clone(),
        source,
    })?;
    let Some(cells) = touched else {
        return Ok(0);
    };
    let partitions = &state.partitions;
    let version = |partition: Partition, start: Start| -> Option<Offset> {
        let kept = partitions.get(&partition.number)?.starts.kept().get(&start)?;
        Some(kept.ledger.next)
    };
    let rows = speed_rows(&cells, topic.id, &version).map_err(|source| SpeedError::Batch {
        dataset: state.view.dataset.clone(),
        source,
    })?;
    let table = speed_table_name(&state.view);
    let rows = [rows];
    persist(&format!("write rows of view {}", state.view.name), async || {
        store.insert(&table, &rows).await
    })
    .await;
    Ok(rows[0].num_rows())
}

/// Records how far the starts have come whose rows are durable: cuts first, then the chunks' own.
pub(crate) async fn progress(views: &mut [ViewState], topic: &Topic, store: &Store) {
    for group in 0..2 {
        let mut rows = Vec::new();
        for view in views.iter() {
            for (number, of_partition) in &view.partitions {
                let [cuts, own] = of_partition.starts.to_show(&of_partition.wanted);
                let shown = if group == 0 { cuts } else { own };
                rows.extend(shown.into_iter().map(|(start, ledger)| ProgressRow {
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
        if rows.is_empty() {
            continue;
        }
        persist("record progress", async || store.record_progress(&rows).await).await;
        for row in rows {
            let view = views.iter_mut().find(|view| view.view.fingerprint == row.fingerprint);
            if let Some(of_partition) = view.and_then(|view| view.partitions.get_mut(&row.partition.number)) {
                of_partition.starts.mark_shown(row.start, row.ledger.next);
                of_partition.wanted.progress.record(row.start, row.ledger.next);
            }
        }
    }
}
