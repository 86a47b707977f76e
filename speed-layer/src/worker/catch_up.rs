//! Catching up: a second set of lanes for what lies behind the log's head.
//!
//! A cut that was asked for after it was passed, what a dead worker left open, a view that is new: the hand-off names the
//! lowest start that is lacking, this reads from there. Starts take what they lack from whichever lane has it, so the
//! catching up is over when the head has come by all that is still open.

use std::collections::BTreeMap;

use shared_connections::sentence;
use shared_schemas::handoff::{Offset, next_start};
use tokio::task::JoinHandle;

use super::{SpeedError, Worker, dropped};
use crate::lanes::{Lanes, Step};

/// Whether something is caught up on.
pub(super) enum CatchUp {
    /// Nothing is behind.
    Idle,
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

impl CatchUp {
    /// Waits for what comes next; for ever while idle. Safe to cancel.
    pub(super) async fn next(&mut self) -> Behind {
        match self {
            Self::Idle => std::future::pending().await,
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
            Self::Idle => None,
            Self::Warming { from, .. } => from.get(&partition).copied(),
            Self::Reading { lanes, .. } => lanes.cursor(partition),
        }
    }

    pub(super) async fn stop(self) {
        match self {
            Self::Idle => {}
            Self::Warming { lanes, .. } => lanes.abort(),
            Self::Reading { lanes, .. } => lanes.stop().await,
        }
    }
}

impl Worker {
    /// Begins to catch up where a wanted start is kept by nobody and will not come by itself.
    pub(super) fn seek_what_is_lacking(&mut self) {
        if !matches!(self.catch_up, CatchUp::Idle) {
            return;
        }
        let log_ends = self.front.reader().log_ends();
        let mut from: BTreeMap<u32, Offset> = BTreeMap::new();
        for view in &self.views {
            for (number, of) in &view.partitions {
                if self.stopped.contains(number) {
                    continue;
                }
                let Some(head) = self.front.cursor(*number) else {
                    continue;
                };
                let log_end = log_ends.get(number).copied().unwrap_or(head).max(head);
                let wanted = &of.wanted;
                let kept = of.starts.names();
                let lacking = next_start(
                    wanted.mark,
                    &wanted.cuts,
                    &wanted.progress,
                    self.chunk,
                    &kept,
                    &[head],
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
        self.catch_up = CatchUp::Warming { from, lanes };
    }

    /// Takes what came from behind the head.
    pub(super) async fn behind(&mut self, behind: Behind) -> Result<(), SpeedError> {
        match behind {
            Behind::Warm(lanes) => {
                if let CatchUp::Warming { from, .. } = std::mem::replace(&mut self.catch_up, CatchUp::Idle) {
                    self.catch_up = CatchUp::Reading { from, lanes };
                }
            }
            Behind::Step(step) => {
                // A topic that changed is found by the head as well.
                self.apply(*step, false).await?;
                self.end_catching_up_if_done().await;
            }
            Behind::Ended(error) => {
                let why = error.map_or_else(|| "its reader ended".to_owned(), |error| sentence(&error));
                tracing::warn!(
                    dataset = self.setup.dataset.name,
                    why,
                    "catching up ended early, it begins again"
                );
                std::mem::replace(&mut self.catch_up, CatchUp::Idle).stop().await;
                // What it fed has nobody to feed it now.
                let heads: BTreeMap<u32, Offset> = (0..self.topic.partitions)
                    .filter_map(|number| Some((number, self.front.cursor(number)?)))
                    .collect();
                for view in &mut self.views {
                    let mut numbers = view.partitions.keys().copied().collect::<Vec<_>>().into_iter();
                    let gone = dropped(view, |of| {
                        let head = numbers.next().and_then(|number| heads.get(&number)).copied();
                        of.starts.forget_behind(head.unwrap_or_default())
                    });
                    self.setup.drop_cells(view, &gone)?;
                }
            }
        }
        Ok(())
    }

    /// Ends catching up when nothing behind the head waits for it.
    pub(super) async fn end_catching_up_if_done(&mut self) {
        if self.has_caught_up() {
            tracing::info!(dataset = self.setup.dataset.name, "caught up");
            std::mem::replace(&mut self.catch_up, CatchUp::Idle).stop().await;
        }
    }

    /// Whether nothing behind the head waits for these lanes.
    fn has_caught_up(&self) -> bool {
        let CatchUp::Reading { from, lanes } = &self.catch_up else {
            return false;
        };
        from.iter().all(|(number, began)| {
            if self.stopped.contains(number) {
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
            cursor >= head || (cursor > *began && !starts.any(|kept| !kept.is_complete() && kept.read_to() < head))
        })
    }
}
