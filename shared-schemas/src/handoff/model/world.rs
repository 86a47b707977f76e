//! The state, the bounds, the actions, and one step.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use super::batch::{Archive, Collector, Run};
use super::laws::{Reader, Seen};
use super::rules::Rule;
use super::speed::Worker;
use crate::handoff::{
    ChunkSize, EventDay, Floor, Offset, OffsetRange, OffsetSet, Partition, Publication, PublicationNumber, Redo, RunId,
    SpeedProgress, Start, TopicId, newest,
};

/// The one partition.
pub(super) const PARTITION: Partition = Partition {
    topic: TopicId(1),
    number: 0,
};
/// Windows, one a day; an event's is its offset's remainder.
pub(super) const CELLS: u64 = 2;

/// Which offsets a cell counts, as bits.
pub(super) type Content = u16;

/// A delivered record: offsets that are absent from the log are holes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) offset: Offset,
    /// Equal events are repeats.
    pub(super) event: u8,
}

impl Record {
    pub(super) fn bit(self) -> Content {
        1 << self.offset.0
    }

    pub(super) fn cell(self) -> u64 {
        self.offset.0 % CELLS
    }

    pub(super) fn day(self) -> EventDay {
        EventDay(i32::from(self.cell() == 1))
    }
}

/// What is explored.
#[derive(Debug, Clone)]
pub(super) struct Protocol {
    pub(super) chunk: ChunkSize,
    pub(super) log: Vec<Record>,
    /// A record repeats an equal one at most so many offsets below it.
    pub(super) window: u64,
    pub(super) workers: usize,
    pub(super) runs: usize,
    pub(super) budget: Budget,
    pub(super) broken: Option<Rule>,
    /// What was found to become whole.
    pub(super) seen: Seen,
}

/// How often each costly thing may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Budget {
    /// Crashes, lost replies, halves and late inserts.
    pub(super) faults: u8,
    /// Offsets that leave the log.
    pub(super) retention: u8,
    /// Runs begun.
    pub(super) pins: u8,
    pub(super) rollbacks: u8,
    pub(super) collections: u8,
    /// Queries whose steps lie apart.
    pub(super) queries: u8,
    pub(super) archive_losses: u8,
    /// Rows that the store acknowledged and lost, each followed by a redo.
    pub(super) redos: u8,
}

/// A row of the speed layer: the highest version, and where equal versions differ, what any and what all of them hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) version: Offset,
    pub(super) any: Content,
    pub(super) all: Content,
}

/// What ClickHouse holds, durably.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Store {
    pub(super) rows: BTreeMap<(Start, u64), Row>,
    pub(super) progress: SpeedProgress,
    pub(super) asked: BTreeSet<(Start, RunId)>,
    pub(super) withdrawn: BTreeSet<(Start, RunId)>,
    pub(super) batch: BTreeMap<(RunId, EventDay), Content>,
    pub(super) parents: BTreeMap<RunId, PublicationNumber>,
    pub(super) publications: Vec<Publication>,
    pub(super) floor: Floor,
}

/// One insert on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Insert {
    /// Whole cells of a start.
    Cells {
        start: Start,
        /// For the reply alone: the row does not have it.
        redo: Redo,
        version: Offset,
        cells: Vec<(u64, Content)>,
    },
    Progress {
        start: Start,
        redo: Redo,
        next: Offset,
    },
    Gap {
        start: Start,
        range: OffsetRange,
    },
    /// The publication of that run; the run keeps the row until it is answered.
    Publication {
        row: Box<PublicationRow>,
    },
    /// A run's rows, once more.
    Batch {
        run: RunId,
        rows: Vec<(EventDay, Content)>,
    },
}

/// A publication as a row that can be ordered, so that flights have one order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PublicationRow(pub(super) Publication);

impl PartialOrd for PublicationRow {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicationRow {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(&other.0.key())
    }
}

/// Who waits for an insert's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Sender {
    Worker(usize),
    Run(usize),
    /// Its sender crashed or gave up on the reply.
    Nobody,
}

/// An insert and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flight {
    pub(super) sender: Sender,
    pub(super) insert: Insert,
    /// Runs for whose cuts the sender had not looked when it sent this.
    pub(super) unaware: BTreeSet<RunId>,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) log_start: Offset,
    pub(super) store: Store,
    pub(super) flights: Vec<Flight>,
    pub(super) workers: Vec<Worker>,
    pub(super) archive: Archive,
    pub(super) runs: Vec<Run>,
    pub(super) collector: Collector,
    pub(super) reader: Reader,
    pub(super) left: Budget,
    pub(super) next_run: u128,
    /// What readers of the newest publication were promised, and which that was.
    pub(super) promised: Content,
    pub(super) promised_by: Option<(PublicationNumber, RunId)>,
    /// Somebody was slower than cuts settle: promises no longer hold.
    pub(super) overdue: bool,
    /// The law that did not hold.
    pub(super) violated: Option<&'static str>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// A worker reads mark, cuts and progress, and goes where it is needed.
    Look(usize),
    /// A line of a worker reads the next record.
    Read(usize, usize),
    /// A worker sends the next insert for a start.
    Flush(usize, Start),
    CrashWorker(usize),
    /// An insert arrives, and its reply.
    Deliver(usize),
    /// An insert arrives; its reply is lost.
    LoseReply(usize),
    /// The first cell of an insert arrives, the rest never.
    Half(usize),
    /// The sender gives up on an insert that is still on its way.
    Delay(usize),
    /// The store has lost a row, and somebody orders that what progress claims is read again.
    Redo(Start, u64),
    /// The lowest offset leaves the log.
    Retain,
    Archive,
    LoseArchive,
    /// A run begins, and may ask for a cut.
    Pin(usize, bool),
    /// A run that may publish sends its publication.
    Publish(usize),
    /// A run begins that computes a day, or all, again.
    Repair(usize, Option<EventDay>),
    /// An insert of a run's rows was sent twice; the second is still on its way.
    DoubleBatch(usize),
    /// A run waited for its cut in vain.
    FallBack(usize),
    /// A worker did not look, or its insert did not arrive, within the time that cuts settle in.
    Overdue(usize),
    CrashRun(usize),
    /// An operator brings back the publication at that place.
    Rollback(usize),
    RaiseFloor,
    Collect,
    /// A query reads the publication and the progress,
    Load,
    /// its statement checks the floor,
    Check,
    /// and reads the rows.
    Answer,
}

impl Protocol {
    pub(super) fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    pub(super) fn log_end(&self) -> Offset {
        self.log.last().map_or(Offset(0), |record| record.offset.next())
    }

    pub(super) fn record_from(&self, cursor: Offset) -> Option<Record> {
        self.log.iter().copied().find(|record| record.offset >= cursor)
    }

    /// Whether a record repeats one at or above `from`, by the log alone.
    pub(super) fn repeats(&self, record: Record, from: Offset) -> bool {
        self.log.iter().any(|earlier| {
            earlier.offset < record.offset
                && earlier.offset >= from
                && earlier.event == record.event
                && record.offset.0 - earlier.offset.0 <= self.window
        })
    }

    /// One step, without looking at the laws.
    pub(super) fn act(&self, world: &mut World, action: &Action) {
        match *action {
            Action::Look(worker) => self.look(world, worker),
            Action::Read(worker, line) => self.read(world, worker, line),
            Action::Flush(worker, start) => self.flush(world, worker, start),
            Action::CrashWorker(worker) => {
                world.left.faults -= 1;
                world.workers[worker] = Worker::default();
                world.abandon(Sender::Worker(worker));
            }
            Action::Deliver(flight) => {
                let flight = world.flights.remove(flight);
                self.apply(&mut world.store, &flight.insert);
                self.acknowledge(world, &flight);
            }
            Action::LoseReply(flight) => {
                world.left.faults -= 1;
                let flight = world.flights.remove(flight);
                self.apply(&mut world.store, &flight.insert);
                self.refuse(world, flight.sender);
            }
            Action::Half(flight) => {
                world.left.faults -= 1;
                let mut flight = world.flights.remove(flight);
                if let Insert::Cells { cells, .. } = &mut flight.insert {
                    cells.truncate(1);
                }
                self.apply(&mut world.store, &flight.insert);
                self.refuse(world, flight.sender);
            }
            Action::Delay(flight) => {
                world.left.faults -= 1;
                let sender = std::mem::replace(&mut world.flights[flight].sender, Sender::Nobody);
                self.refuse(world, sender);
            }
            Action::Redo(start, cell) => self.redo(world, (start, cell)),
            Action::Retain => {
                world.left.retention -= 1;
                world.log_start = world.log_start.next();
            }
            Action::Load | Action::Check | Action::Answer => self.query(world, action),
            _ => self.act_batch(world, action),
        }
        world.flights.sort();
    }

    fn apply(&self, store: &mut Store, insert: &Insert) {
        match insert {
            Insert::Cells {
                start, version, cells, ..
            } => {
                for (cell, content) in cells {
                    let row = Row {
                        version: *version,
                        any: *content,
                        all: *content,
                    };
                    let held = store.rows.entry((*start, *cell)).or_insert(row);
                    if *version > held.version || self.breaks(Rule::HighestVersionWins) {
                        *held = row;
                    } else if *version == held.version {
                        held.any |= content;
                        held.all &= content;
                    }
                }
            }
            Insert::Batch { run, rows } => {
                store
                    .batch
                    .extend(rows.iter().map(|(day, content)| ((*run, *day), *content)));
            }
            Insert::Progress { start, redo, next } => {
                let redo = if self.breaks(Rule::HighestRedoWins) {
                    store.progress.redo(*start)
                } else {
                    *redo
                };
                store.progress.record_after(*start, redo, *next);
            }
            Insert::Gap { start, range } => store.progress.record_gap(*start, *range),
            Insert::Publication { row } => {
                if !store.publications.contains(&row.0) {
                    store.publications.push(row.0.clone());
                    store.publications.sort_by_key(Publication::key);
                }
            }
        }
    }

    fn acknowledge(&self, world: &mut World, flight: &Flight) {
        match flight.sender {
            Sender::Worker(worker) => world.workers[worker].acknowledged(&flight.insert, self.chunk),
            Sender::Run(run) => self.read_back(world, run),
            Sender::Nobody => {}
        }
    }

    /// The sender saw an error: it will send again.
    fn refuse(&self, world: &mut World, sender: Sender) {
        match sender {
            Sender::Worker(worker) => world.workers[worker].waits = false,
            Sender::Run(run) => world.runs[run].refused(),
            Sender::Nobody => {}
        }
    }
}

impl World {
    pub(super) fn newest(&self, protocol: &Protocol) -> Option<&Publication> {
        let admitting = Floor::default();
        let floor = if protocol.breaks(Rule::IgnoreBelowFloor) {
            &admitting
        } else {
            &self.store.floor
        };
        newest(&self.store.publications, floor)
    }

    /// Nobody waits for this sender's inserts any more; they may still arrive.
    pub(super) fn abandon(&mut self, sender: Sender) {
        for flight in self.flights.iter_mut().filter(|flight| flight.sender == sender) {
            flight.sender = Sender::Nobody;
        }
    }

    pub(super) fn gaps_of_speed(&self) -> OffsetSet {
        let mut gaps = OffsetSet::default();
        for at in 0..16 {
            if let Some(of_start) = self.store.progress.gaps(Start(Offset(at))) {
                gaps.extend(of_start);
            }
        }
        gaps
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            log_start: Offset(0),
            store: Store::default(),
            flights: Vec::new(),
            workers: vec![Worker::default(); self.workers],
            archive: Archive::default(),
            runs: vec![Run::Idle; self.runs],
            collector: Collector::Idle,
            reader: Reader::Idle,
            left: self.budget,
            next_run: 1,
            promised: 0,
            promised_by: None,
            overdue: false,
            violated: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violated.is_some() {
            return;
        }
        self.speed_actions(world, actions);
        self.batch_actions(world, actions);
        self.query_actions(world, actions);
        let faults = world.left.faults > 0;
        for (at, flight) in world.flights.iter().enumerate() {
            actions.push(Action::Deliver(at));
            if faults && flight.sender != Sender::Nobody {
                actions.extend([Action::LoseReply(at), Action::Delay(at)]);
                if matches!(&flight.insert, Insert::Cells { cells, .. } if cells.len() > 1) {
                    actions.push(Action::Half(at));
                }
            }
        }
        self.redo_actions(world, actions);
        if world.left.retention > 0 && world.log_start < self.log_end() {
            actions.push(Action::Retain);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.act(&mut world, &action);
        self.observe(&mut world);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every answer is right", |_, world: &World| world.violated.is_none()),
            Property::always("it becomes whole once faults end", Protocol::becomes_whole),
            Property::sometimes("a cut is a mark", |model: &Protocol, world: &World| {
                world
                    .newest(model)
                    .is_some_and(|newest| !model.chunk.is_first(newest.mark(PARTITION).0))
            }),
            Property::sometimes("a publication is forgotten", |_, world: &World| {
                let first = world.store.publications.iter().map(|one| one.number.0).min();
                first.is_some_and(|first| first > 1)
            }),
            Property::sometimes("all is covered", |model: &Protocol, world: &World| {
                model.log.iter().all(|record| world.promised & record.bit() != 0)
            }),
        ]
    }
}
