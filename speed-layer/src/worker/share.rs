//! The partitions that the consumer group gives this worker: taken up, each warmed first, and let go of.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::log::group::Assigned;
use shared_schemas::handoff::Offset;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Worker;
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
pub(super) type Warming = JoinSet<Result<Warmed, SpeedError>>;

/// Lanes that are ready to be read.
pub(super) struct Warmed(Prepared);

impl Share {
    pub(super) fn new(assigned: watch::Receiver<Assigned>) -> Self {
        Self {
            assigned,
            looked: false,
            held: BTreeSet::new(),
        }
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
        Some(Ok(warmed)) => warmed,
        Some(Err(_)) => Err(SpeedError::Task),
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
            self.stopped.retain(|number| !gone.contains(number));
            for view in &mut self.views {
                let of_gone = view.partitions.iter_mut().filter(|(number, _)| gone.contains(number));
                let starts =
                    of_gone.flat_map(|(number, of)| of.starts.drop_all().into_iter().map(|start| (*number, start)));
                let starts = starts.collect();
                self.setup.drop_cells(view, &starts)?;
            }
        }
        self.warm_up();
        Ok(())
    }

    /// Reads what was prepared, where it is still this worker's.
    pub(super) fn take_warmed(&mut self, Warmed(mut prepared): Warmed) -> Result<(), SpeedError> {
        prepared.retain(&self.share.held);
        self.front.add(prepared)?;
        self.warm_up();
        Ok(())
    }

    /// Finds out where to read held partitions from that are not read yet.
    fn warm_up(&mut self) {
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
            .filter(|number| self.front.cursor(**number).is_none());
        let from: BTreeMap<u32, Offset> = unread.map(|number| (*number, open(*number))).collect();
        if from.is_empty() {
            return;
        }
        tracing::info!(dataset = self.setup.dataset.name, ?from, "reading");
        let (kafka, dataset) = (self.setup.kafka.clone(), self.setup.dataset.clone());
        let warm = async move { Ok(Warmed(Prepared::find(&kafka, &dataset, &from).await?)) };
        self.warming.spawn(warm);
    }
}
