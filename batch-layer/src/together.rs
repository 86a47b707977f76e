//! Views of a dataset that come to compute the same events are computed together, so that these are read once.
//!
//! Each view goes its own way to its marks, and asks here for its rows. Nobody begins before every view of the dataset has asked, or
//! has ended without asking; then those over the same offsets of the same archive version are computed in one go. A view that
//! asks again, since it fell back or began anew, is computed with those that ask at the same time, if any.
//!
//! One group at a time has all the memory, whatever its dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{EventDay, Mark, OffsetSet, Partition, RunId};
use shared_schemas::view::View;
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit, oneshot};

use crate::archive::Pinned;
use crate::error::RunError;
use crate::progress::Watcher;
use crate::recompute::Room;
use crate::run::Batch;
use crate::write::{Job, Work, Written};

/// What a view wants computed.
pub(crate) struct Request {
    pub(crate) view: View,
    pub(crate) pinned: Pinned,
    pub(crate) days: BTreeSet<EventDay>,
    pub(crate) counted: BTreeMap<Partition, OffsetSet>,
    /// The parent's marks.
    pub(crate) old: BTreeMap<Partition, Mark>,
    pub(crate) run: RunId,
}

impl Request {
    /// Whether both are over the same events.
    fn is_alike(&self, other: &Self) -> bool {
        self.pinned.version == other.pinned.version && self.counted == other.counted
    }
}

/// What all datasets of a run share: the memory, and whose turn it is.
pub(crate) struct Turn {
    turn: Semaphore,
    room: OnceCell<Room>,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self {
            turn: Semaphore::new(1),
            room: OnceCell::new(),
        }
    }

    /// Memory, and a folder to spill to, made when they are first needed.
    async fn room(&self, batch: &Batch) -> Result<&Room, RunError> {
        self.room
            .get_or_try_init(|| async { Room::of(&batch.config.batch) })
            .await
    }
}

/// The views of one dataset.
pub(crate) struct Together<'a> {
    batch: &'a Batch,
    dataset: &'a Dataset,
    watcher: &'a dyn Watcher,
    turn: &'a Turn,
    state: Mutex<State>,
    changed: Notify,
}

type Reply = oneshot::Sender<Result<Written, RunError>>;

#[derive(Default)]
struct State {
    /// Views that have not asked yet.
    coming: usize,
    /// Views that may ask once more.
    alive: usize,
    waiting: Vec<(Request, Reply)>,
}

/// One view's place among them.
pub(crate) struct Seat<'a> {
    together: &'a Together<'a>,
    coming: Mutex<bool>,
}

impl<'a> Together<'a> {
    pub(crate) fn new(batch: &'a Batch, dataset: &'a Dataset, watcher: &'a dyn Watcher, turn: &'a Turn) -> Self {
        Self {
            batch,
            dataset,
            watcher,
            turn,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) fn dataset(&self) -> &'a Dataset {
        self.dataset
    }

    /// A place for a view; all views must have theirs before the first one asks.
    pub(crate) fn seat(&self) -> Seat<'_> {
        let mut state = self.state();
        state.coming += 1;
        state.alive += 1;
        drop(state);
        Seat {
            together: self,
            coming: Mutex::new(true),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes what is asked for, until no view can ask any more.
    pub(crate) async fn compute(&self) {
        loop {
            let ready = {
                let mut state = self.state();
                if state.coming > 0 || state.waiting.is_empty() {
                    if state.alive == 0 {
                        return;
                    }
                    Vec::new()
                } else {
                    std::mem::take(&mut state.waiting)
                }
            };
            if ready.is_empty() {
                self.changed.notified().await;
                continue;
            }
            for alike in alike(ready) {
                self.compute_together(alike).await;
            }
        }
    }

    async fn compute_together(&self, alike: Vec<(Request, Reply)>) {
        // Never closed: it is ours for as long as all views run.
        let _turn = self.turn.turn.acquire().await;
        let Some((first, _)) = alike.first() else { return };
        let room = match self.turn.room(self.batch).await {
            Ok(room) => room,
            Err(error) => {
                let why = shared_connections::sentence(&error);
                for (_, reply) in alike {
                    // Who has gone needs no answer.
                    let _ = reply.send(Err(RunError::Room(why.clone())));
                }
                return;
            }
        };
        let work = Work {
            store: &self.batch.store,
            dataset: self.dataset,
            room,
            pinned: &first.pinned,
            ranges: &first.pinned.ranges(),
            counted: &first.counted,
            watcher: self.watcher,
        };
        let jobs: Vec<_> = alike
            .iter()
            .map(|(request, _)| Job {
                view: &request.view,
                days: &request.days,
                run: request.run,
                old: &request.old,
            })
            .collect();
        let written = work.write(&jobs).await;
        drop(jobs);
        for ((_, reply), written) in alike.into_iter().zip(written) {
            // Who has gone needs no answer.
            let _ = reply.send(written);
        }
    }
}

/// Those over the same events in one group each.
fn alike(waiting: Vec<(Request, Reply)>) -> Vec<Vec<(Request, Reply)>> {
    let mut groups: Vec<Vec<(Request, Reply)>> = Vec::new();
    for one in waiting {
        let group = groups
            .iter_mut()
            .find(|group| group.iter().all(|(other, _)| one.0.is_alike(other)));
        match group {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups
}

impl Seat<'_> {
    /// Rows of this view, written and counted in the store.
    ///
    /// # Errors
    /// What failed; told to end.
    pub(crate) async fn compute(&self, request: Request) -> Result<Written, RunError> {
        let (reply, written) = oneshot::channel();
        self.together.state().waiting.push((request, reply));
        self.has_come();
        written.await.unwrap_or(Err(RunError::Cancelled))
    }

    /// All the memory for the view alone, for as long as the turn is kept.
    ///
    /// # Errors
    /// There is no place for what exceeds it.
    pub(crate) async fn room(&self) -> Result<(SemaphorePermit<'_>, &Room), RunError> {
        let turn = self.together.turn;
        // Never closed: it is ours for as long as all views run.
        let held = turn.turn.acquire().await.map_err(|_| RunError::Cancelled)?;
        Ok((held, turn.room(self.together.batch).await?))
    }

    fn has_come(&self) {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *coming) {
            self.together.state().coming -= 1;
        }
        self.together.changed.notify_one();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.together.state().alive -= 1;
        self.has_come();
    }
}
