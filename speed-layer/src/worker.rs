//! The loop of one dataset: read, aggregate, flush; look once a second; catch up where something was left behind.
//!
//! It reads the partitions that the consumer group gives it. Nothing in it waits for the store or for Kafka, but where
//! the hand-off wants something to be durable first: a flush runs beside it.

mod catch_up;
mod flushing;
mod fresh;
mod share;
mod truncated;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shared_connections::log::group::{Assigned, Membership};
use shared_connections::log::{Kafka, Topic};
use shared_connections::store::{Store, Truncation};
use shared_schemas::config::SpeedConfig;
use shared_schemas::dataset::Dataset;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, OffsetRange, Partition, Start};
use shared_schemas::view::View;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::aggregate::Aggregate;
use crate::alarm::Alarm;
use crate::dedupe::Budget;
use crate::error::SpeedError;
use crate::event_time;
use crate::flush::{self, persist};
use crate::lanes::{Lanes, Read, Step, now};
use crate::look::{self, Looked};
use crate::starts::{Starts, Wanted};
pub(crate) use fresh::precise;

use catch_up::{Came, CatchUp};
use flushing::Flushing;
use fresh::{Seen, Told};
use share::{Share, Warming};
use turns::Turns;

/// So many events are aggregated at once, one that two views count being two. With fewer, most of a view's cells are
/// merged again for a few events each; with more, those that wait take memory and gain little.
const MOST_WAITING: usize = 131_072;
/// The part of `speed.memory` that waiting events may take; the rest is for open cells and what a flush makes of them.
const WAITING_PART: u64 = 4;
/// How fresh all is, is told so often, whether the store answers or not.
const TELL: Duration = Duration::from_secs(1);
/// How long a flush may take once everything is to end. What it does not write is read again.
const DRAIN: Duration = Duration::from_secs(5);

/// What a worker needs to begin, and to begin again.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) dataset: Arc<Dataset>,
    /// The memory of all filters for repeats.
    pub(crate) dedupe: Arc<Budget>,
    pub(crate) views: Vec<View>,
    pub(crate) kafka: Kafka,
    pub(crate) store: Store,
    pub(crate) speed: SpeedConfig,
    pub(crate) cancel: CancellationToken,
}

/// Why a worker ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to.
    Cancelled,
    /// The topic is another one now, or has other partitions.
    TopicChanged,
}

/// A view as the worker keeps it.
pub(crate) struct ViewState {
    pub(crate) view: View,
    pub(crate) aggregate: Aggregate,
    pub(crate) partitions: BTreeMap<u32, OfPartition>,
}

/// A view on one partition.
pub(crate) struct OfPartition {
    pub(crate) starts: Starts,
    pub(crate) wanted: Wanted,
    /// The highest event time counted, in µs; none that is ahead of the clock by more than the dataset allows.
    pub(crate) highest: Option<i64>,
    /// The same of what is durable in the store, or may be.
    pub(crate) shown_highest: Option<i64>,
}

struct Worker {
    setup: Setup,
    topic: Topic,
    rules: String,
    chunk: ChunkSize,
    views: Vec<ViewState>,
    share: Share,
    warming: Warming,
    front: Lanes,
    catch_ups: Vec<CatchUp>,
    flushing: Flushing,
    turns: Turns,
    looked: watch::Receiver<Looked>,
    seen: BTreeMap<u32, Seen>,
    told: Told,
    /// One at most: saying how fresh all is. What comes of it is how many parts the fullest table has.
    telling: JoinSet<Option<u64>>,
    alarm: Alarm,
    /// Partitions whose log ends below what was read: they wait for a person.
    truncated: BTreeMap<u32, Truncation>,
}

/// Works until cancelled; begins again after an error, or when the topic has changed.
///
/// # Errors
/// Where nothing helps but a human: Kafka properties that don't go together, tables that are not as they should be.
pub(crate) async fn keep(setup: Setup) -> Result<(), SpeedError> {
    let group = setup.kafka.group("speed");
    let instance = setup.speed.instance.as_ref();
    // Each dataset has a member of its own, and members must not share a name.
    let instance = instance.map(|instance| format!("{instance}-{}", setup.dataset.name));
    let membership = Membership::join(&setup.kafka, group, &setup.dataset.topic, instance.as_deref())?;
    let ended = work(&setup, &membership).await;
    membership.leave().await;
    ended
}

async fn work(setup: &Setup, membership: &Membership) -> Result<(), SpeedError> {
    let mut delays = flush::delays();
    while !setup.cancel.is_cancelled() {
        let began = Instant::now();
        let work = async {
            Worker::start(setup.clone(), membership.assigned())
                .await?
                .run(membership)
                .await
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = drained(&setup.cancel) => {
                tracing::warn!(
                    dataset = setup.dataset.name,
                    "the last flush took too long and is given up: what it lacks is read again"
                );
                Ok(Ended::Cancelled)
            }
        };
        match ended {
            Ok(Ended::Cancelled) => return Ok(()),
            Ok(Ended::TopicChanged) => {
                tracing::warn!(topic = setup.dataset.topic, "the topic has changed, beginning anew");
            }
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                let error = shared_connections::sentence(&error);
                tracing::error!(
                    dataset = setup.dataset.name,
                    error,
                    "the speed layer's worker begins anew"
                );
            }
        }
        if began.elapsed() > Duration::from_secs(60) {
            delays = flush::delays();
        }
        let delay = delays.next().unwrap_or(DRAIN);
        tokio::select! {
            () = setup.cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(delay) => {}
        }
    }
    Ok(())
}

/// Comes when everything was told to end, and has had its time for a last flush.
async fn drained(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

impl Worker {
    async fn start(setup: Setup, assigned: watch::Receiver<Assigned>) -> Result<Self, SpeedError> {
        let name = &setup.dataset.topic;
        let topic = persist(&format!("find topic {name}"), || setup.kafka.topic(name)).await?;
        let looked = persist("read marks and progress", || look::look(&setup.store, &setup.views)).await?;
        let chunk = ChunkSize::new(setup.dataset.chunk)?;
        let mut views = Vec::with_capacity(setup.views.len());
        for view in &setup.views {
            let aggregate = Aggregate::new(view, &setup.dataset).map_err(|source| SpeedError::Plan {
                view: view.name.clone(),
                source,
            })?;
            let of_partition = || OfPartition {
                starts: Starts::new(chunk),
                wanted: Wanted::default(),
                highest: None,
                shown_highest: None,
            };
            views.push(ViewState {
                view: view.clone(),
                aggregate,
                partitions: (0..topic.partitions).map(|number| (number, of_partition())).collect(),
            });
        }
        take_in(&mut views, &looked, &topic);
        for view in &mut views {
            // What an earlier worker counted is still counted: without this a quiet topic would look new.
            let told = persist("read how fresh the rows are", || setup.store.freshness(&view.view)).await?;
            for row in told.into_iter().filter(|row| row.partition.topic == topic.id) {
                if let Some(of_partition) = view.partitions.get_mut(&row.partition.number) {
                    let highest = |watermark| event_time::highest_of(watermark, &setup.dataset);
                    of_partition.highest = row.watermark.map(highest);
                    of_partition.shown_highest = of_partition.highest;
                }
            }
        }
        let truncated = truncated::recorded(&looked, topic);
        let looked = look::watch(
            setup.store.clone(),
            setup.views.clone(),
            looked,
            setup.cancel.child_token(),
        );
        Ok(Self {
            rules: Fingerprint::of_rules(&setup.dataset).to_string(),
            seen: (0..topic.partitions).map(|number| (number, Seen::default())).collect(),
            front: Lanes::front(&setup.kafka, &setup.dataset)?,
            share: Share::new(assigned),
            warming: Warming::new(),
            alarm: Alarm::new(&setup.dataset.name, setup.speed.invalid_alarm),
            setup,
            topic,
            chunk,
            views,
            catch_ups: Vec::new(),
            flushing: Flushing::default(),
            turns: Turns::default(),
            looked,
            told: Told::default(),
            telling: JoinSet::new(),
            truncated,
        })
    }

    async fn run(mut self, membership: &Membership) -> Result<Ended, SpeedError> {
        let cancel = self.setup.cancel.clone();
        let mut ticks = tokio::time::interval(self.setup.speed.flush.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tells = tokio::time::interval(TELL);
        tells.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            membership.is_alive();
            let is_paused = self.is_paused();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Ended::Cancelled,
                _ = ticks.tick() => {
                    self.flushing.is_due();
                }
                _ = tells.tick() => self.tell_of_all(),
                flushed = self.flushing.done() => {
                    if let Some(ended) = self.flushed(flushed?, membership)? {
                        break ended;
                    }
                }
                changed = self.looked.changed() => {
                    if changed.is_err() {
                        // Whoever looks ends with the worker, or broke down.
                        if cancel.is_cancelled() {
                            break Ended::Cancelled;
                        }
                        return Err(self.broken());
                    }
                    if let Some(ended) = self.take_look().await? {
                        break ended;
                    }
                }
                () = share::changed(&mut self.share) => self.take_share()?,
                warmed = share::warmed(&mut self.warming) => self.take_warmed(warmed?).await?,
                step = catch_up::next_of(&mut self.catch_ups, &mut self.front), if !is_paused => match step {
                    Came::Behind(which, step) => self.behind(which, step).await?,
                    Came::Ahead(None) => {
                        return Err(self.front.failure().map_or_else(|| self.broken(), SpeedError::Log));
                    }
                    Came::Ahead(Some(step)) => {
                        if let Some(ended) = self.apply(step?, true).await? {
                            break ended;
                        }
                    }
                },
            }
            if self.is_full() {
                self.fold().await?;
            }
            self.flush_if_due().await?;
            // While reading waits all partitions look silent.
            if !is_paused {
                self.take_turns()?;
            }
        };
        if ended == Ended::Cancelled {
            self.flush_all(membership).await?;
        }
        for catch_up in self.catch_ups {
            catch_up.stop().await;
        }
        self.front.stop().await;
        Ok(ended)
    }

    /// Whether as much waits to be aggregated as may.
    fn is_full(&self) -> bool {
        let waiting = self.views.iter().map(|view| &view.aggregate);
        let (rows, bytes) = waiting.fold((0, 0), |(rows, bytes), view| (rows + view.rows(), bytes + view.bytes()));
        rows >= MOST_WAITING || bytes as u64 >= self.setup.speed.memory / WAITING_PART
    }

    fn broken(&self) -> SpeedError {
        SpeedError::Broken {
            dataset: self.setup.dataset.name.clone(),
        }
    }

    /// Gives what was read to each view's starts.
    async fn apply(&mut self, step: Step, is_front: bool) -> Result<Option<Ended>, SpeedError> {
        match step {
            Step::Warming => {}
            Step::Read(read) => {
                if is_front && let Some(seen) = self.seen.get_mut(&read.partition) {
                    self.alarm.take(&read);
                    seen.take(&read, &self.setup.dataset);
                }
                self.take(&read)?;
            }
            Step::Lost { partition, range } => {
                // What was read before must not be written under a version that includes these offsets.
                self.fold().await?;
                self.lose(partition, range).await?;
            }
            Step::Short {
                is_certain,
                partition,
                cursor,
                end,
            } => {
                let name = &self.setup.dataset.topic;
                if !flush::is_same_topic(&self.setup.kafka, name, &self.topic).await? {
                    return Ok(Some(Ended::TopicChanged));
                }
                if !is_certain {
                    self.is_short(partition, cursor).await?;
                }
                let next = cursor.max(self.counted(partition));
                self.cut_off(BTreeMap::from([(partition, Truncation { end, next })]))
                    .await?;
            }
        }
        Ok(None)
    }

    fn take(&mut self, read: &Read) -> Result<(), SpeedError> {
        if self.front.cursor(read.partition).is_none() {
            // Somebody else's by now.
            return Ok(());
        }
        let highest = event_time::highest(&read.batches, &self.setup.dataset, now());
        for view in &mut self.views {
            let Some(of_partition) = view.partitions.get_mut(&read.partition) else {
                continue;
            };
            let taken = of_partition
                .starts
                .take(&read.records, &of_partition.wanted, &self.rules);
            if !taken.is_empty() {
                // Of a view that counts nothing of this yet, it says nothing.
                of_partition.highest = of_partition.highest.max(highest);
            }
            for (start, range) in taken {
                view.aggregate
                    .add(read.partition, start, range, &read.batches)
                    .map_err(|source| SpeedError::Batch {
                        dataset: self.setup.dataset.name.clone(),
                        source,
                    })?;
            }
        }
        Ok(())
    }

    /// Records the gap before anything that lacks it is written.
    async fn lose(&mut self, number: u32, range: OffsetRange) -> Result<(), SpeedError> {
        let partition = Partition {
            topic: self.topic.id,
            number,
        };
        let mut gaps = Vec::new();
        for view in &mut self.views {
            let Some(of_partition) = view.partitions.get_mut(&number) else {
                continue;
            };
            let lost = of_partition.starts.lose(range, &of_partition.wanted, &self.rules);
            let offsets = lost.iter().map(|(_, piece)| piece.to.0 - piece.from.0);
            metrics::counter!("highwater_speed_gap_offsets_total", "view" => view.view.name.clone())
                .increment(offsets.sum());
            for (start, piece) in lost {
                of_partition.wanted.progress.record_gap(start, piece);
                gaps.push((view.view.fingerprint, partition, start, piece));
            }
        }
        if gaps.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            topic = self.setup.dataset.topic,
            partition = number,
            "the log begins at offset {}, and had been read up to {}: what lies between is gone, answers say so",
            range.to,
            range.from
        );
        let store = &self.setup.store;
        Ok(persist("record a gap", || store.record_gaps(&gaps)).await?)
    }

    /// Takes in what others have written, lets go of what nobody needs, and goes where something is lacking.
    async fn take_look(&mut self) -> Result<Option<Ended>, SpeedError> {
        let looked = Arc::clone(&self.looked.borrow_and_update());
        take_in(&mut self.views, &looked, &self.topic);
        for view in &mut self.views {
            let gone = dropped(view, |of| of.starts.retain_wanted(&of.wanted));
            self.setup.drop_cells(view, &gone)?;
        }
        self.take_truncations(&looked);
        self.end_catching_up_where_done().await;
        self.warm_up();
        self.seek_what_is_lacking();
        // New partitions of the topic need room too.
        let topic = self.front.reader().topic();
        Ok(topic.filter(|topic| *topic != self.topic).map(|_| Ended::TopicChanged))
    }
}

impl Setup {
    fn drop_cells(&self, view: &mut ViewState, gone: &BTreeSet<(u32, Start)>) -> Result<(), SpeedError> {
        view.aggregate.drop_starts(gone).map_err(|source| SpeedError::Batch {
            dataset: self.dataset.name.clone(),
            source,
        })
    }
}

fn dropped(view: &mut ViewState, mut drop: impl FnMut(&mut OfPartition) -> Vec<Start>) -> BTreeSet<(u32, Start)> {
    let of_partitions = view.partitions.iter_mut();
    of_partitions
        .flat_map(|(number, of)| drop(of).into_iter().map(|start| (*number, start)))
        .collect()
}

/// What a look saw, besides what this worker has recorded itself since.
fn take_in(views: &mut [ViewState], looked: &Looked, topic: &Topic) {
    for (view, facts) in views.iter_mut().zip(looked.iter()) {
        for (number, of_partition) in &mut view.partitions {
            let partition = Partition {
                topic: topic.id,
                number: *number,
            };
            let mut progress = std::mem::take(&mut of_partition.wanted.progress);
            progress.extend(&facts.progress(partition));
            progress.forget_below(facts.floor.mark(partition));
            of_partition.wanted = Wanted {
                mark: facts.mark(partition),
                cuts: facts.wanted_cuts(partition),
                progress,
            };
        }
    }
}
