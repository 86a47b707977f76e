//! The partitions that the consumer group gives this worker: taken up, each warmed first, and let go of.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::log::Topic;
use shared_connections::log::group::Assigned;
use shared_connections::sentence;
use shared_connections::store::Truncation;
use shared_schemas::handoff::Offset;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Setup, Worker, truncated};
use crate::error::SpeedError;
use crate::lanes::Prepared;

/// What the worker holds.
pub(super) struct Share {
    assigned: watch::Receiver<Assigned>,
    /// Whether what is assigned was ever looked at.
    looked: bool,
    held: BTreeSet<u32>,
}

/// One at most: where partitions are to be read from is being found out.
pub(super) type Warming = JoinSet<Warmed>;

/// Lanes that are ready to be read.
#[derive(Default)]
pub(super) struct Warmed {
    prepared: Prepared,
    /// Partitions that are not to be read.
    truncated: BTreeMap<u32, Truncation>,
    /// Why some are not ready.
    failed: Option<SpeedError>,
}

impl Warmed {
    /// Finds out where to read these partitions from, given up to where each was counted.
    async fn warm(
        &mut self,
        setup: &Setup,
        topic: Topic,
        counted: &BTreeMap<u32, Offset>,
        from: &BTreeMap<u32, Offset>,
    ) -> Result<(), SpeedError> {
        let truncated = truncated::find(&setup.kafka, &setup.dataset.topic, topic, counted).await?;
        let mut from = from.clone();
        from.retain(|number, _| !truncated.contains_key(number));
        let prepared = Prepared::find(&setup.kafka, &setup.dataset, &setup.dedupe, &from).await?;
        self.prepared.extend(prepared);
        self.truncated.extend(truncated);
        Ok(())
    }
}

impl Share {
    pub(super) fn new(assigned: watch::Receiver<Assigned>) -> Self {
        Self {
            assigned,
            looked: false,
            held: BTreeSet::new(),
        }
    }

    /// Whether the partition is this worker's.
    pub(super) fn holds(&self, partition: u32) -> bool {
        self.held.contains(&partition)
    }
}

/// Comes when the group gave or took partitions. Safe to cancel.
pub(super) async fn changed(share: &mut Share) {
    if !share.looked && share.assigned.borrow().is_some() {
        return;
    }
    if share.assigned.changed().await.is_err() {
        // The member has left the group: the worker ends, too.
        std::future::pending::<()>().await;
    }
}

/// Waits for lanes that are being prepared; for ever where none are. Safe to cancel.
pub(super) async fn warmed(warming: &mut Warming) -> Result<Warmed, SpeedError> {
    match warming.join_next().await {
        Some(warmed) => warmed.map_err(|_| SpeedError::Task),
        None => std::future::pending().await,
    }
}

impl Worker {
    /// Lets go of what is others' now, and begins to take up what is given.
    pub(super) fn take_share(&mut self) -> Result<(), SpeedError> {
        self.share.looked = true;
        let assigned = self.share.assigned.borrow_and_update().clone().unwrap_or_default();
        let assigned: BTreeSet<u32> = assigned
            .into_iter()
            .filter(|number| *number < self.topic.partitions)
            .collect();
        let gone: BTreeSet<u32> = self.share.held.difference(&assigned).copied().collect();
        if assigned != self.share.held {
            tracing::info!(dataset = self.setup.dataset.name, partitions = ?assigned, "holds");
        }
        self.share.held = assigned;
        if !gone.is_empty() {
            self.front.remove(&gone);
            for view in &mut self.views {
                let of_gone = view.partitions.iter_mut().filter(|(number, _)| gone.contains(number));
                let starts = of_gone.flat_map(|(number, of)| {
                    // What was not written is not counted any more.
                    of.highest = of.shown_highest;
                    of.starts.drop_all().into_iter().map(|start| (*number, start))
                });
                let starts = starts.collect();
                self.setup.drop_cells(view, &starts)?;
            }
        }
        self.warm_up();
        Ok(())
    }

    /// Reads what was prepared, where it is still this worker's.
    pub(super) async fn take_warmed(&mut self, warmed: Warmed) -> Result<(), SpeedError> {
        let Warmed {
            mut prepared,
            truncated,
            failed,
        } = warmed;
        self.cut_off(truncated).await?;
        let readable = self
            .share
            .held
            .iter()
            .filter(|number| !self.truncated.contains_key(number));
        prepared.retain(&readable.copied().collect());
        self.front.add(prepared)?;
        if let Some(error) = failed {
            // The next look tries again.
            let dataset = &self.setup.dataset.name;
            tracing::warn!(dataset, error = %sentence(&error), "some partitions can't be read yet, trying again");
        } else {
            self.warm_up();
        }
        Ok(())
    }

    /// Finds out where to read held partitions from that are not read yet.
    pub(super) fn warm_up(&mut self) {
        if !self.warming.is_empty() {
            return;
        }
        // The views that are furthest decide where the log's head is; others catch up with a reader of their own.
        let open = |number: u32| {
            let of_views = self.views.iter().filter_map(|view| view.partitions.get(&number));
            let opens = of_views.map(|of| of.wanted.progress.coverage(of.wanted.mark, self.chunk).open.0);
            opens.max().unwrap_or_default()
        };
        let unread = self
            .share
            .held
            .iter()
            .filter(|number| self.front.cursor(**number).is_none() && !self.truncated.contains_key(number));
        let from: BTreeMap<u32, Offset> = unread.map(|number| (*number, open(*number))).collect();
        if from.is_empty() {
            return;
        }
        tracing::info!(dataset = self.setup.dataset.name, ?from, "reading");
        let (setup, topic) = (self.setup.clone(), self.topic);
        let counted: BTreeMap<u32, Offset> = from.keys().map(|number| (*number, self.counted(*number))).collect();
        self.warming.spawn(async move {
            let mut warmed = Warmed::default();
            match warmed.warm(&setup, topic, &counted, &from).await {
                Ok(()) => {}
                Err(error) if from.len() == 1 => warmed.failed = Some(error),
                // One partition without a leader must not keep the others from being read.
                Err(_) => {
                    for (number, offset) in from {
                        let (counted, from) = (counted.get(&number).copied(), BTreeMap::from([(number, offset)]));
                        let counted = counted.map(|next| (number, next)).into_iter().collect();
                        if let Err(error) = warmed.warm(&setup, topic, &counted, &from).await {
                            warmed.failed = Some(error);
                        }
                    }
                }
            }
            warmed
        });
    }
}
