//! Logs that end below what was read from them: found, recorded, and read no further.
//!
//! A reader finds out when it stands beyond the log's end. One that begins does not: it reads again from a chunk's first offset,
//! which the shorter log may still have. So progress is compared with the log before a partition is read. What is found
//! is durable ([`Truncation`]): a log that has grown again looks as if nothing had happened.

use std::collections::BTreeMap;

use shared_connections::log::{Kafka, LogError};
use shared_connections::store::Truncation;
use shared_schemas::handoff::{Offset, Partition};

use super::{SpeedError, Worker};
use crate::flush::persist;

/// Which of these partitions' logs end below what was counted of them.
///
/// # Errors
/// Kafka's.
pub(super) async fn find(
    kafka: &Kafka,
    topic: &str,
    counted: &BTreeMap<u32, Offset>,
) -> Result<BTreeMap<u32, Truncation>, LogError> {
    let mut found = BTreeMap::new();
    for (&partition, &next) in counted {
        let end = kafka.bounds(topic, partition).await?.to;
        if end < next && kafka.still_ends_below(topic, partition, next).await? {
            found.insert(partition, Truncation { end, next });
        }
    }
    Ok(found)
}

impl Worker {
    /// Up to where any view has counted the partition.
    pub(super) fn counted(&self, partition: u32) -> Offset {
        let of_views = self.views.iter().filter_map(|view| view.partitions.get(&partition));
        let nexts = of_views.filter_map(|of| of.wanted.progress.highest_next());
        nexts.max().unwrap_or_default()
    }

    /// Reads these partitions no further, for good.
    pub(super) async fn cut_off(&mut self, found: BTreeMap<u32, Truncation>) {
        if found.is_empty() {
            return;
        }
        let topic = self.topic.id;
        for (number, truncation) in &found {
            tracing::error!(
                dataset = self.setup.dataset.name,
                "partition {number} of topic {} is read no further: {truncation}",
                self.setup.dataset.topic
            );
        }
        let rows: Vec<_> = found
            .iter()
            .map(|(&number, truncation)| (Partition { topic, number }, *truncation))
            .collect();
        let store = &self.setup.store;
        persist("record where a log was cut off", || store.record_truncations(&rows)).await;
        self.truncated.extend(found);
    }

    /// A reader has found that the log ends below where it stands.
    ///
    /// # Errors
    /// Kafka's; and a reader has to begin anew, where the log goes as far as before after all.
    pub(super) async fn is_short(&mut self, partition: u32, next: Offset, end: Offset) -> Result<(), SpeedError> {
        let topic = &self.setup.dataset.topic;
        if self.setup.kafka.still_ends_below(topic, partition, next).await? {
            self.cut_off(BTreeMap::from([(partition, Truncation { end, next })]))
                .await;
            return Ok(());
        }
        Err(SpeedError::CameBack {
            topic: topic.clone(),
            partition,
        })
    }
}
