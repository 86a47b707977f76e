//! The thread that asks, about every second: where do the logs end, is the topic still the same, does Kafka answer at all.
//!
//! It is apart from the reading thread so that a Kafka that does not answer, or a layer that takes nothing, holds up
//! neither.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use shared_schemas::handoff::TopicId;

use super::error::LogError;
use super::kafka::Kafka;
use super::reader::Shared;
use super::worker::Guard;
use crate::sentence;

/// The pause between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// The watching thread's state.
pub(super) struct Watch {
    pub(super) kafka: Kafka,
    pub(super) topic: String,
    pub(super) shared: Arc<Shared>,
    /// Closed when the reading thread has ended.
    pub(super) ended: Receiver<()>,
}

impl Watch {
    pub(super) fn run(self) {
        let _guard = Guard {
            topic: self.topic.clone(),
            shared: Arc::clone(&self.shared),
        };
        let mut first = None;
        loop {
            match self.look(&mut first) {
                Ok(()) => {
                    if self.shared.back() {
                        tracing::info!("Kafka at {} is back", self.kafka.brokers());
                    }
                }
                Err(error) => {
                    let said = sentence(&error);
                    if self.shared.away(said.clone()) {
                        tracing::warn!("{said}; trying until it is back");
                    }
                }
            }
            if self.ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&self, first: &mut Option<TopicId>) -> Result<(), LogError> {
        let topic = self.kafka.topic_now(&self.topic)?;
        self.shared.saw(topic);
        if *first.get_or_insert(topic.id) != topic.id {
            self.shared.made_again.store(true, Ordering::Release);
        }
        // One partition without a leader keeps nothing back of the others.
        let mut failed = None;
        let mut ends = BTreeMap::new();
        for partition in self.shared.partitions() {
            match self.kafka.bounds_now(&self.topic, partition) {
                Ok(bounds) => {
                    ends.insert(partition, bounds.to);
                }
                Err(error) => failed = Some(error),
            }
        }
        self.shared.looked(ends);
        failed.map_or(Ok(()), Err)
    }
}
