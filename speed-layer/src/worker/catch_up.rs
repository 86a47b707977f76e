//! Catching up: further sets of lanes for what lies behind the log's head.
//!
//! A cut that was asked for after it was passed, what a dead worker left open, a view that is new: the hand-off names the
//! lowest start that is lacking, this reads from there. Starts take what they lack from whichever lane has it, so the
//! catching up is over when the head has come by all that is still open.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::sentence;
use shared_schemas::handoff::{Offset, next_start};
use tokio::task::JoinHandle;

use super::{SpeedError, Worker};
use crate::lanes::{Lanes, Step};
use crate::starts::Kept;

/// So many at once: a cut must not wait for a view that is new and reads the whole log. Each has a reader.
const MOST: usize = 4;

/// Something that is caught up on.
pub(super) enum CatchUp {
    /// A reader is being warmed.
    Warming {
        /// From where each partition will be read.
        from: BTreeMap<u32, Offset>,
        /// Gives the lanes.
        lanes: JoinHandle<Result<Lanes, SpeedError>>,
    },
    /// It is read.
    Reading {
        /// From where each partition was read.
        from: BTreeMap<u32, Offset>,
        /// The lanes.
        lanes: Box<Lanes>,
    },
}

/// What comes from catching up.
pub(super) enum Behind {
    /// The lanes are ready.
    Warm(Box<Lanes>),
    /// Something was read.
    Step(Box<Step>),
    /// It ended, with an error or by itself.
    Ended(Option<SpeedError>),
}

/// What was read, and by whom.
pub(super) enum Came {
    /// Behind the log's head, by which of those that catch up.
    Behind(usize, Behind),
    /// At the log's head; `None` where its reader has ended.
    Ahead(Option<Result<Step, SpeedError>>),
}

/// What comes first. In no fixed order: one that always has something must not keep the others waiting. Safe to cancel.
pub(super) async fn next_of(catch_ups: &mut [CatchUp], front: &mut Lanes) -> Came {
    let behind = async {
        let steps: Vec<_> = catch_ups.iter_mut().map(|catch_up| Box::pin(catch_up.next())).collect();
        if steps.is_empty() {
            return std::future::pending().await;
        }
        let (step, which, _) = futures::future::select_all(steps).await;
        (which, step)
    };
    tokio::select! {
        (which, step) = behind => Came::Behind(which, step),
        step = front.next() => Came::Ahead(step),
    }
}

impl CatchUp {
    /// Waits for what comes next. Safe to cancel.
    async fn next(&mut self) -> Behind {
        match self {
            Self::Warming { lanes, .. } => match lanes.await {
                Ok(Ok(lanes)) => Behind::Warm(Box::new(lanes)),
                Ok(Err(error)) => Behind::Ended(Some(error)),
                Err(_) => Behind::Ended(None),
            },
            Self::Reading { lanes, .. } => match lanes.next().await {
                Some(Ok(step)) => Behind::Step(Box::new(step)),
                Some(Err(error)) => Behind::Ended(Some(error)),
                None => Behind::Ended(lanes.failure().map(SpeedError::Log)),
            },
        }
    }

    /// From where a partition is, or will be, read on behind the head.
    pub(super) fn cursor(&self, partition: u32) -> Option<Offset> {
        match self {
            Self::Warming { from, .. } => from.get(&partition).copied(),
            Self::Reading { lanes, .. } => lanes.cursor(partition),
        }
    }

    /// Whether a partition is read, and nothing came of it for a while.
    pub(super) fn is_silent(&self, partition: u32) -> Option<bool> {
        match self {
            Self::Warming { .. } => None,
            Self::Reading { lanes, .. } => lanes.is_silent(partition),
        }
    }

    /// Reads these partitions no further for now, and all others on.
    pub(super) fn wait(&mut self, waiting: &BTreeSet<u32>) -> Result<(), SpeedError> {
        match self {
            Self::Warming { .. } => Ok(()),
            Self::Reading { lanes, .. } => lanes.wait(waiting),
        }
    }

    /// Tells what became of its filters, in metrics.
    pub(super) fn tell(&mut self) {
        if let Self::Reading { lanes, .. } = self {
            lanes.tell();
        }
    }

    pub(super) async fn stop(self) {
        match self {
            Self::Warming { lanes, .. } => lanes.abort(),
            Self::Reading { lanes, .. } => lanes.stop().await,
        }
    }
}

impl Worker {
    /// From where a partition is read on behind the head, by each that catches up on it.
    pub(super) fn behind_cursors(&self, partition: u32) -> impl Iterator<Item = Offset> {
        self.catch_ups
            .iter()
            .filter_map(move |catch_up| catch_up.cursor(partition))
    }

    /// Begins to catch up where a wanted start is kept by nobody and will not come by itself.
    pub(super) fn seek_what_is_lacking(&mut self) {
        if self.catch_ups.len() >= MOST {
            return;
        }
        let log_ends = self.front.reader().log_ends();
        let mut from: BTreeMap<u32, Offset> = BTreeMap::new();
        for view in &self.views {
            for (number, of) in &view.partitions {
                if self.truncated.contains_key(number) {
                    continue;
                }
                let Some(head) = self.front.cursor(*number) else {
                    continue;
                };
                let log_end = log_ends.get(number).copied().unwrap_or(head).max(head);
                let wanted = &of.wanted;
                let kept = of.starts.names();
                let cursors: Vec<Offset> = self.behind_cursors(*number).chain([head]).collect();
                let lacking = next_start(
                    wanted.mark,
                    &wanted.cuts,
                    &wanted.progress,
                    self.chunk,
                    &kept,
                    &cursors,
                    log_end,
                );
                if let Some(start) = lacking {
                    let lowest = from.entry(*number).or_insert(start.0);
                    *lowest = start.0.min(*lowest);
                }
            }
        }
        if from.is_empty() {
            return;
        }
        tracing::info!(dataset = self.setup.dataset.name, ?from, "catching up");
        let (setup, begin) = (self.setup.clone(), from.clone());
        let lanes =
            tokio::spawn(async move { Lanes::start(&setup.kafka, &setup.dataset, &setup.dedupe, &begin).await });
        self.catch_ups.push(CatchUp::Warming { from, lanes });
    }

    /// Takes what came from behind the head.
    pub(super) async fn behind(&mut self, which: usize, behind: Behind) -> Result<(), SpeedError> {
        match behind {
            Behind::Warm(lanes) => {
                if let CatchUp::Warming { from, .. } = self.catch_ups.swap_remove(which) {
                    self.catch_ups.push(CatchUp::Reading { from, lanes });
                }
            }
            Behind::Step(step) => {
                // A topic that changed is found by the head as well.
                self.apply(*step, false).await?;
                self.end_catching_up_where_done().await;
            }
            Behind::Ended(error) => {
                let why = error.map_or_else(|| "its reader ended".to_owned(), |error| sentence(&error));
                tracing::warn!(
                    dataset = self.setup.dataset.name,
                    why,
                    "catching up ended early, it begins again"
                );
                self.catch_ups.swap_remove(which).stop().await;
                self.forget_what_nobody_feeds()?;
            }
        }
        Ok(())
    }

    /// Lets go of the starts that no reader will come to: they are read again from their first offset.
    fn forget_what_nobody_feeds(&mut self) -> Result<(), SpeedError> {
        let cursors = (0..self.topic.partitions).map(|number| {
            let head = self.front.cursor(number);
            (number, self.behind_cursors(number).chain(head).min())
        });
        let cursors: BTreeMap<u32, Option<Offset>> = cursors.collect();
        for view in &mut self.views {
            let mut gone = BTreeSet::new();
            for (number, of) in &mut view.partitions {
                if let Some(lowest) = cursors.get(number).copied().flatten() {
                    let forgotten = of.starts.forget_behind(lowest);
                    gone.extend(forgotten.into_iter().map(|start| (*number, start)));
                }
            }
            self.setup.drop_cells(view, &gone)?;
        }
        Ok(())
    }

    /// Ends catching up where nothing behind the head waits for it.
    pub(super) async fn end_catching_up_where_done(&mut self) {
        let done = |catch_up: &CatchUp| self.has_caught_up(catch_up);
        let done: Vec<bool> = self.catch_ups.iter().map(done).collect();
        for (which, done) in done.into_iter().enumerate().rev() {
            if done {
                tracing::info!(dataset = self.setup.dataset.name, "caught up");
                self.catch_ups.swap_remove(which).stop().await;
            }
        }
    }

    /// Whether nothing behind the head waits for these lanes.
    fn has_caught_up(&self, catch_up: &CatchUp) -> bool {
        let CatchUp::Reading { from, lanes } = catch_up else {
            return false;
        };
        from.iter().all(|(number, began)| {
            if self.truncated.contains_key(number) {
                return true;
            }
            let (Some(cursor), Some(head)) = (lanes.cursor(*number), self.front.cursor(*number)) else {
                return true;
            };
            let mut starts = self
                .views
                .iter()
                .filter_map(|view| view.partitions.get(number))
                .flat_map(|of| of.starts.kept().values());
            // Those further back are fed by others, or by none.
            let waits = |kept: &Kept| !kept.is_complete() && (cursor..head).contains(&kept.read_to());
            cursor >= head || (cursor > *began && !starts.any(waits))
        })
    }
}
