//! Logs that end below what was read from them: found, recorded, and read no further.
//!
//! A reader finds out when it stands beyond the log's end. One that begins does not: it reads again from a chunk's first offset,
//! which the shorter log may still have. So progress is compared with the log before a partition is read. What is found
//! is durable ([`Truncation`]), and every worker looks for it: a log that has grown again looks as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::log::{Kafka, LogError, Topic};
use shared_connections::store::Truncation;
use shared_schemas::handoff::{Offset, Partition};

use super::{SpeedError, Worker};
use crate::flush::persist;
use crate::look::Looked;

/// Which of these partitions' logs end below what was counted of them.
///
/// # Errors
/// Kafka's.
pub(super) async fn find(
    kafka: &Kafka,
    name: &str,
    topic: Topic,
    counted: &BTreeMap<u32, Offset>,
) -> Result<BTreeMap<u32, Truncation>, LogError> {
    let mut found = BTreeMap::new();
    for (&partition, &next) in counted {
        let end = kafka.bounds(name, partition).await?.to;
        if end < next && kafka.still_ends_below(name, partition, next).await? {
            found.insert(partition, Truncation { end, next });
        }
    }
    // The log of a topic made again is another one.
    if !found.is_empty() && kafka.topic(name).await?.id != topic.id {
        found.clear();
    }
    Ok(found)
}

/// What any worker has recorded of this topic.
pub(super) fn recorded(looked: &Looked, topic: Topic) -> BTreeMap<u32, Truncation> {
    let all = looked.iter().flat_map(|facts| &facts.truncations);
    let of_topic = all.filter(|(partition, _)| partition.topic == topic.id);
    of_topic
        .map(|(partition, truncation)| (partition.number, *truncation))
        .collect()
}

impl Worker {
    /// Up to where any view has counted the partition.
    pub(super) fn counted(&self, partition: u32) -> Offset {
        let of_views = self.views.iter().filter_map(|view| view.partitions.get(&partition));
        let nexts = of_views.filter_map(|of| of.wanted.progress.highest_next());
        nexts.max().unwrap_or_default()
    }

    /// Takes in what any worker has recorded.
    pub(super) fn take_truncations(&mut self, looked: &Looked) {
        self.read_no_further(recorded(looked, self.topic));
    }

    /// Records these for good, and reads the partitions no further.
    ///
    /// # Errors
    /// ClickHouse's, where a human must act.
    pub(super) async fn cut_off(&mut self, found: BTreeMap<u32, Truncation>) -> Result<(), SpeedError> {
        if found.is_empty() {
            return Ok(());
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
        persist("record where a log was cut off", || store.record_truncations(&rows)).await?;
        self.read_no_further(found);
        Ok(())
    }

    /// A reader has found that the log ends below where it stands: asks again whether it is so.
    ///
    /// # Errors
    /// Kafka's; and where the log goes as far as before after all, so that its reader has to begin anew.
    pub(super) async fn is_short(&self, partition: u32, next: Offset) -> Result<(), SpeedError> {
        let topic = &self.setup.dataset.topic;
        if !self.setup.kafka.still_ends_below(topic, partition, next).await? {
            return Err(SpeedError::CameBack {
                topic: topic.clone(),
                partition,
            });
        }
        Ok(())
    }

    fn read_no_further(&mut self, found: BTreeMap<u32, Truncation>) {
        let known = &self.truncated;
        let news: BTreeSet<u32> = found
            .keys()
            .filter(|number| !known.contains_key(number))
            .copied()
            .collect();
        // What was read is counted still: it is what was delivered.
        self.front.remove(&news);
        self.truncated.extend(found);
    }
}
