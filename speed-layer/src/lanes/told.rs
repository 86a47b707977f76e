//! What is told in metrics of the filters for repeats, and in the log where one forgets too early.
//!
//! Of a partition that is read at the log's head and behind it, only what the head's filter holds is told: it judges what comes. What
//! was told of a partition that is read no longer is taken back.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::{counter, gauge};

use crate::dedupe::Filter;

/// What was told.
#[derive(Debug)]
pub(super) struct Told {
    dataset: String,
    /// Whether these are the filters at the log's head.
    is_front: bool,
    /// Partitions whose gauges are set.
    partitions: BTreeSet<u32>,
    /// Whether the log says that something was forgotten.
    has_warned: bool,
}

impl Told {
    pub(super) fn new(dataset: &str, is_front: bool) -> Self {
        Self {
            dataset: dataset.to_owned(),
            is_front,
            partitions: BTreeSet::new(),
            has_warned: false,
        }
    }

    /// Tells of a partition's filter, and that it has forgotten so many events more before their time.
    pub(super) fn of(&mut self, partition: u32, filter: &Filter, evicted: u64) {
        let labels = self.labels(partition);
        counter!("highwater_speed_dedupe_evicted_total", &labels).increment(evicted);
        let held = Duration::from_millis(filter.window_held().unsigned_abs());
        if evicted > 0 && !self.has_warned {
            self.has_warned = true;
            tracing::warn!(
                dataset = self.dataset,
                partition,
                "`dedupe.memory` does not hold the window: repeats are known for {held:?} back, later ones are counted until \
                 the next batch run; raise it, or shorten `dedupe.window`"
            );
        }
        if !self.is_front {
            return;
        }
        self.partitions.insert(partition);
        gauge!("highwater_speed_dedupe_window_seconds", &labels).set(held.as_secs_f64());
        let bytes = u32::try_from(filter.bytes() >> 10);
        let bytes = bytes.map_or(f64::INFINITY, |kibibytes| f64::from(kibibytes) * 1024.0);
        gauge!("highwater_speed_dedupe_bytes", &labels).set(bytes);
    }

    /// These partitions are read no longer.
    pub(super) fn forget(&mut self, partitions: &BTreeSet<u32>) {
        for partition in partitions {
            if self.partitions.remove(partition) {
                let labels = self.labels(*partition);
                // Not 0: whoever holds it now knows.
                gauge!("highwater_speed_dedupe_window_seconds", &labels).set(f64::NAN);
                gauge!("highwater_speed_dedupe_bytes", &labels).set(f64::NAN);
            }
        }
    }

    fn labels(&self, partition: u32) -> [(&'static str, String); 2] {
        [("dataset", self.dataset.clone()), ("partition", partition.to_string())]
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.forget(&self.partitions.clone());
    }
}
