//! Flushes beside the worker, one at a time, each on what there was when it began.
//!
//! What comes meanwhile is folded into the open cells, and waits there for the next one. So a store that is slow or away
//! stops nothing until `speed.memory` is used up; then nothing is read until a flush is through: the readers' bounded
//! channels fill, and their consumers fetch no more. Where open cells alone take that much, partitions take turns (`turns`).

use std::time::Duration;

use shared_connections::log::Membership;
use shared_schemas::fingerprint::Fingerprint;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Ended, OfPartition, Worker, dropped};
use crate::error::SpeedError;
use crate::flush::{Flush, Flushed};

/// With more active parts than this in the fullest table flushes come half as often, until they are fewer than half as
/// many. ClickHouse slows inserts down at 1,000 and refuses them at 3,000 (`parts_to_delay_insert`, `parts_to_throw_insert`).
const MANY_PARTS: u64 = 300;
/// The longest pause between flushes that parts can bring about.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How many times `speed.flush` lie between flushes while all that is read is old. Each writes the touched cells whole: fewer
/// flushes write fewer rows, and no answer is less fresh for it.
const WHILE_OLD: u32 = 4;

/// Whether something is being flushed, and what is to come next.
#[derive(Default)]
pub(super) struct Flushing {
    /// What must lie between the beginnings of two flushes while parts pile up.
    pause: Duration,
    /// One at most. Given up where the worker is.
    under_way: JoinSet<Result<Flushed, SpeedError>>,
    began: Option<Instant>,
    /// When the last one began that wrote more than how fresh all is.
    wrote: Option<Instant>,
    due: bool,
    /// Whether the next one also says how fresh all is.
    tells: bool,
    /// Whether reading waits, as it was last told.
    is_paused: bool,
}

impl Flushing {
    /// How long the one that is under way takes.
    pub(super) fn takes(&self) -> Duration {
        let began = self.began.filter(|_| !self.under_way.is_empty());
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// It is time for one.
    pub(super) fn is_due(&mut self) {
        self.due = true;
    }

    /// The next one also says how fresh all is.
    pub(super) fn tell(&mut self) {
        self.tells = true;
        self.due = true;
    }

    /// Whether the last one began long enough ago.
    fn may_begin(&self) -> bool {
        self.under_way.is_empty() && self.has_passed(self.pause)
    }

    /// Whether the last one began so long ago.
    fn has_passed(&self, pause: Duration) -> bool {
        self.wrote.is_none_or(|wrote| wrote.elapsed() >= pause)
    }

    /// What must lie between the beginnings of two flushes.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Lets flushes come less often while parts pile up, and as often as they should when they are merged.
    pub(super) fn pace(&mut self, parts: u64, usual: Duration) {
        let before = self.pause;
        if parts > MANY_PARTS {
            self.pause = (self.pause.max(usual) * 2).min(LONGEST_PAUSE.max(usual));
        } else if parts < MANY_PARTS / 2 {
            self.pause = if self.pause <= 2 * usual {
                Duration::ZERO
            } else {
                self.pause / 2
            };
        }
        if (before == Duration::ZERO) != (self.pause == Duration::ZERO) {
            let pause = self.pause.max(usual);
            tracing::info!(parts, ?pause, "flushes come at another pace, for the store's sake");
        }
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
        let is_paused = !self.flushing.may_begin() && self.held_bytes() > self.setup.speed.memory;
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
                    of_partition.starts.folded(&counted);
                }
            }
            view.tell_open();
        }
        Ok(())
    }

    /// Begins to write what came: rows, then progress. Where one is under way it comes after it.
    pub(super) async fn flush_if_due(&mut self) -> Result<(), SpeedError> {
        let is_due = self.flushing.due && self.flushing.may_begin();
        // A flush also says that the worker is there.
        let while_old = (self.setup.speed.flush * WHILE_OLD).min(LONGEST_PAUSE);
        if is_due && (self.flushing.has_passed(while_old) || !self.may_wait()) {
            self.flush().await?;
        }
        Ok(())
    }

    /// Whether nobody waits for a flush: all that is read is old, and there is memory for more.
    fn may_wait(&self) -> bool {
        self.reads_what_is_old() && self.held_bytes() < self.setup.speed.memory / 2
    }

    async fn flush(&mut self) -> Result<(), SpeedError> {
        self.flushing.due = false;
        self.fold().await?;
        let mut flush = Flush::of(&mut self.views, &self.topic)?;
        if std::mem::take(&mut self.flushing.tells) {
            flush.tell(self.freshness(), self.cursors());
        }
        if !flush.is_empty() {
            let counts = flush.counts();
            let (kafka, store) = (self.setup.kafka.clone(), self.setup.store.clone());
            let write = flush.write(kafka, store, self.setup.dataset.topic.clone(), self.topic);
            self.flushing.under_way.spawn(write);
            let now = Some(Instant::now());
            self.flushing.began = now;
            if counts {
                self.flushing.wrote = now;
            }
        }
        Ok(())
    }

    /// Takes in what a flush came to.
    pub(super) fn flushed(&mut self, flushed: Flushed, membership: &Membership) -> Result<Option<Ended>, SpeedError> {
        let Flushed::Written {
            refused,
            progress,
            cursors,
            highest,
            rows,
            took,
            telling,
        } = flushed
        else {
            return Ok(Some(Ended::TopicChanged));
        };
        for row in progress {
            if let Some(of_partition) = self.of_partition(row.fingerprint, row.partition.number) {
                let (start, redo, next) = (row.start, row.redo, row.ledger.next);
                of_partition.starts.mark_shown(start, redo, next);
                of_partition.wanted.progress.record_after(start, redo, next);
            }
        }
        for (view, number, highest) in highest {
            if let Some(of_partition) = self.of_partition(view, number) {
                of_partition.shown_highest = of_partition.shown_highest.max(highest);
            }
        }
        for row in refused {
            let of_partition = self.of_partition(row.fingerprint, row.partition);
            if of_partition.is_some_and(|of| of.starts.withhold(row.start)) {
                tracing::error!(
                    "ClickHouse refuses a row of view {}, partition {}: {} ({}). Nothing from offset {} on is promised \
                     there, answers say `partial`: mend the table and restart this worker",
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
        if let Some(telling) = telling {
            self.tell(telling);
        }
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
            self.flushing.tells = true;
            self.flush().await?;
            // What is told while the last flush is under way must not keep back what is told after it.
            self.told().await;
            self.under_way_is_over(membership).await?;
            self.told().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_slow_down_while_parts_pile_up_and_recover() {
        let usual = Duration::from_millis(250);
        let mut flushing = Flushing::default();
        flushing.pace(100, usual);
        assert_eq!(flushing.pause, Duration::ZERO);
        for _ in 0..10 {
            flushing.pace(400, usual);
        }
        assert_eq!(flushing.pause, LONGEST_PAUSE);
        flushing.pace(200, usual);
        assert_eq!(flushing.pause, LONGEST_PAUSE, "neither many nor few");
        for _ in 0..10 {
            flushing.pace(100, usual);
        }
        assert_eq!(flushing.pause, Duration::ZERO);
    }
}
