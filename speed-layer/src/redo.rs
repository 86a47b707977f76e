//! `speed redo`: progress voided, so that workers read again what the store has lost.
//!
//! Which starts, and why others not, [`again`] decides. Nothing is deleted, and no worker is told: each sees at its next look that
//! the starts are open, lets go of what it keeps of them, and reads them from their first offset. A worker that writes progress
//! meanwhile writes it under the redo that it began with, which counts no more.

use std::collections::BTreeSet;

use shared_connections::log::Kafka;
use shared_connections::store::{ProgressRow, Store};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{Again, ChunkSize, Offset, Partition, Redo, Start, again};
use shared_schemas::view::View;

use crate::error::SpeedError;

/// What is to be read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Kafka's partition numbers; empty for all.
    pub partitions: BTreeSet<u32>,
    /// The chunk that holds this offset, and those above it.
    pub from: Offset,
    /// Only say what would be.
    pub dry_run: bool,
}

/// What became of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redone {
    /// The partition.
    pub partition: Partition,
    /// The starts that are read again, and up to where each had come.
    pub voided: Vec<(Start, Offset)>,
    /// Those that are to be read again already, and of which nothing is written yet.
    pub waiting: Vec<Start>,
    /// Those that can't be.
    pub left: Vec<Start>,
    /// Why, where there are any, and what to do instead.
    pub why: Option<String>,
}

/// Voids the progress of a view from its marks on, so that workers read it again, and says what of it. A partition that the topic
/// does not have is left out.
///
/// # Errors
/// Kafka's and ClickHouse's. Doing it again is safe.
pub async fn redo(
    kafka: &Kafka,
    store: &Store,
    dataset: &Dataset,
    view: &View,
    asked: &Asked,
) -> Result<Vec<Redone>, SpeedError> {
    let chunk = ChunkSize::new(dataset.chunk)?;
    let topic = kafka.topic(&dataset.topic).await?;
    let facts = store.facts(view).await?;
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    let is_asked = |number: u32| asked.partitions.is_empty() || asked.partitions.contains(&number);
    for number in (0..topic.partitions).filter(|number| is_asked(*number)) {
        let partition = Partition {
            topic: topic.id,
            number,
        };
        let log = kafka.bounds(&dataset.topic, number).await?;
        let progress = facts.progress(partition);
        let found = again(facts.mark(partition), &progress, chunk, asked.from, log);
        let cut_off = match (&found, facts.truncations.get(&partition)) {
            (_, Some(truncation)) => Some(truncation.to_string()),
            (Err(cut_off), None) => Some(format!("{cut_off}; make the topic again to go on")),
            (Ok(_), None) => None,
        };
        let found = if cut_off.is_some() {
            Again::default()
        } else {
            found.unwrap_or_default()
        };
        let is_gone = !found.gone.is_empty();
        all.push(Redone {
            partition,
            voided: found
                .voids
                .iter()
                .map(|(start, _)| (*start, progress.next(*start).unwrap_or(start.0)))
                .collect(),
            waiting: found.waiting,
            left: found.gone,
            why: cut_off.or_else(|| is_gone.then(|| gone(log.from))),
        });
        let void = |(start, redo): &(Start, Redo)| ProgressRow::void(view.fingerprint, partition, *start, *redo);
        rows.extend(found.voids.iter().map(void));
    }
    if !asked.dry_run && !rows.is_empty() {
        store.record_progress(&rows).await?;
    }
    Ok(all)
}

fn gone(below: Offset) -> String {
    format!(
        "Kafka has nothing below offset {below} any more; what they lack can only be computed from the archive: `highwater \
         batch run --to-end`"
    )
}
