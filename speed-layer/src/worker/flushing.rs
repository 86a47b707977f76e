//! Flushes beside the worker, one at a time, each on what there was when it began.
//!
//! What comes meanwhile is folded into the open cells, and waits there for the next one. So a store that is slow or away
//! stops nothing until `speed.memory` is used up; then nothing is read until a flush is through: the readers' bounded
//! channels fill, and their consumers fetch no more.

use shared_connections::log::Membership;
use shared_schemas::fingerprint::Fingerprint;
use tokio::task::JoinSet;

use super::{Ended, OfPartition, Worker, dropped};
use crate::error::SpeedError;
use crate::flush::{Flush, Flushed};

/// Whether something is being flushed, and what is to come next.
#[derive(Default)]
pub(super) struct Flushing {
    /// One at most. Given up where the worker is.
    under_way: JoinSet<Result<Flushed, SpeedError>>,
    due: bool,
    /// Whether the next one also says how fresh all is.
    tells: bool,
    /// Whether reading waits, as it was last told.
    is_paused: bool,
}

impl Flushing {
    /// It is time for one.
    pub(super) fn is_due(&mut self) {
        self.due = true;
    }

    /// The next one also says how fresh all is.
    pub(super) fn tell(&mut self) {
        self.tells = true;
        self.due = true;
    }

    /// Waits for the one that is under way; for ever where none is. Safe to cancel.
    pub(super) async fn done(&mut self) -> Result<Flushed, SpeedError> {
        match self.under_way.join_next().await {
            Some(flushed) => flushed.unwrap_or(Err(SpeedError::Task)),
            None => std::future::pending().await,
        }
    }
}

impl Worker {
    /// Whether reading has to wait for a flush, for lack of memory.
    pub(super) fn is_paused(&mut self) -> bool {
        let is_paused = !self.flushing.under_way.is_empty() && self.held_bytes() > self.setup.speed.memory;
        if is_paused != self.flushing.is_paused {
            self.flushing.is_paused = is_paused;
            let dataset = self.setup.dataset.name.clone();
            tracing::debug!(dataset, is_paused, "reading waits for a flush");
            metrics::gauge!("highwater_speed_paused", "dataset" => dataset).set(if is_paused { 1.0 } else { 0.0 });
        }
        is_paused
    }

    /// The bytes of open cells and waiting events.
    fn held_bytes(&self) -> u64 {
        let aggregates = self.views.iter().map(|view| &view.aggregate);
        let bytes: usize = aggregates.map(|view| view.bytes() + view.cells().bytes()).sum();
        bytes as u64
    }

    /// Aggregates what waits into the open cells.
    pub(super) async fn fold(&mut self) -> Result<(), SpeedError> {
        for view in &mut self.views {
            let counted = view.aggregate.fold().await.map_err(|source| SpeedError::Plan {
                view: view.view.name.clone(),
                source,
            })?;
            for counted in counted {
                if let Some(of_partition) = view.partitions.get_mut(&counted.partition) {
                    let starts = &mut of_partition.starts;
                    starts.count(counted.start, "failed_filters", counted.filtered.failed);
                }
            }
        }
        Ok(())
    }

    /// Begins to write what came: rows, then progress. Where one is under way it comes after it.
    pub(super) async fn flush_if_due(&mut self) -> Result<(), SpeedError> {
        if !self.flushing.due || !self.flushing.under_way.is_empty() {
            return Ok(());
        }
        self.flushing.due = false;
        self.fold().await?;
        let mut flush = Flush::of(&mut self.views, &self.topic)?;
        if std::mem::take(&mut self.flushing.tells) {
            flush.tell(self.freshness(), self.cursors());
        }
        if !flush.is_empty() {
            let (kafka, store) = (self.setup.kafka.clone(), self.setup.store.clone());
            let write = flush.write(kafka, store, self.setup.dataset.topic.clone(), self.topic);
            self.flushing.under_way.spawn(write);
        }
        Ok(())
    }

    /// Takes in what a flush came to.
    pub(super) fn flushed(&mut self, flushed: Flushed, membership: &Membership) -> Result<Option<Ended>, SpeedError> {
        let Flushed::Written {
            refused,
            progress,
            cursors,
            rows,
            took,
        } = flushed
        else {
            return Ok(Some(Ended::TopicChanged));
        };
        for row in progress {
            if let Some(of_partition) = self.of_partition(row.fingerprint, row.partition.number) {
                of_partition.starts.mark_shown(row.start, row.ledger.next);
                of_partition.wanted.progress.record(row.start, row.ledger.next);
            }
        }
        for row in refused {
            let of_partition = self.of_partition(row.fingerprint, row.partition);
            if of_partition.is_some_and(|of| of.starts.withhold(row.start)) {
                tracing::error!(
                    "ClickHouse refuses a row of view {}, partition {}: {} ({}). Until it takes it nothing from offset {} \
                     on is promised there: answers say `partial`",
                    row.view,
                    row.partition,
                    row.key,
                    row.why,
                    row.start.0.0
                );
            }
        }
        for view in &mut self.views {
            let gone = dropped(view, |of| of.starts.drop_shown());
            self.setup.drop_cells(view, &gone)?;
        }
        if !cursors.is_empty() {
            membership.commit(cursors);
        }
        let dataset = self.setup.dataset.name.clone();
        metrics::histogram!("highwater_speed_flush_seconds", "dataset" => dataset.clone()).record(took);
        metrics::counter!("highwater_speed_rows_total", "dataset" => dataset).increment(rows as u64);
        Ok(None)
    }

    fn of_partition(&mut self, view: Fingerprint, number: u32) -> Option<&mut OfPartition> {
        let mut views = self.views.iter_mut();
        let view = views.find(|of| of.view.fingerprint == view)?;
        view.partitions.get_mut(&number)
    }

    /// Writes all that came, before the worker ends.
    pub(super) async fn flush_all(&mut self, membership: &Membership) -> Result<(), SpeedError> {
        if self.under_way_is_over(membership).await?.is_none() {
            self.flushing.tell();
            self.flush_if_due().await?;
            self.under_way_is_over(membership).await?;
        }
        Ok(())
    }

    async fn under_way_is_over(&mut self, membership: &Membership) -> Result<Option<Ended>, SpeedError> {
        if self.flushing.under_way.is_empty() {
            return Ok(None);
        }
        let flushed = self.flushing.done().await?;
        self.flushed(flushed, membership)
    }
}
