//! What must hold in every answer at every moment, and what must be whole once faults end.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::batch::{Collector, Run};
use super::rules::Rule;
use super::world::{Action, Budget, Content, PARTITION, Protocol, Sender, World};
use crate::handoff::{
    ArchiveBehind, Coverage, Floor, Offset, Publication, PublicationNumber, Verdict, counts, mark_limit,
};

/// A query whose steps lie apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    Idle,
    /// It read the newest publication and the coverage.
    Loaded {
        publication: Option<Publication>,
        coverage: Coverage,
    },
    /// Its statement passed the floor check; `outlived` once the floor has risen since.
    Checked {
        publication: Option<Publication>,
        coverage: Coverage,
        outlived: bool,
    },
    /// Broken: it read the rows first.
    Counted {
        counted: Counted,
        publication: Option<Publication>,
    },
}

impl Reader {
    pub(super) fn outlived(&mut self) {
        if let Self::Checked { outlived, .. } = self {
            *outlived = true;
        }
    }

    pub(super) fn is_outlived(&self) -> bool {
        matches!(self, Self::Checked { outlived: true, .. })
    }
}

/// What was found to become whole, by hash. Many ways lead to the same rest: each is gone to its end once, which takes longer by far
/// than a step.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    hashes: RandomState,
    whole: Arc<Mutex<HashSet<u64>>>,
}

impl Seen {
    fn or_sees(&self, of: &impl Hash, sees: impl FnOnce() -> bool) -> bool {
        let key = self.hashes.hash_one(of);
        let seen = || self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().contains(&key) {
            return true;
        }
        let whole = sees();
        if whole {
            seen().insert(key);
        }
        whole
    }
}

/// How often an answer counts each event, at most and at least; they differ where equal versions do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Counted {
    most: [u8; 16],
    least: [u8; 16],
}

impl Protocol {
    pub(super) fn query_actions(&self, world: &World, actions: &mut Vec<Action>) {
        match &world.reader {
            Reader::Idle if world.left.queries > 0 => actions.push(Action::Load),
            Reader::Idle => {}
            Reader::Loaded { .. } => actions.push(Action::Check),
            Reader::Checked { .. } | Reader::Counted { .. } => actions.push(Action::Answer),
        }
    }

    fn coverage(&self, world: &World, publication: Option<&Publication>) -> Coverage {
        let mark = publication
            .map(|publication| publication.mark(PARTITION))
            .unwrap_or_default();
        world.store.progress.coverage(mark, self.chunk)
    }

    pub(super) fn query(&self, world: &mut World, action: &Action) {
        let reader = std::mem::replace(&mut world.reader, Reader::Idle);
        match (action, reader) {
            (Action::Load, _) => {
                world.left.queries -= 1;
                let publication = world.newest(self).cloned();
                world.reader = if self.breaks(Rule::ProgressBeforeRows) {
                    Reader::Counted {
                        counted: self.count(world, publication.as_ref()),
                        publication,
                    }
                } else {
                    Reader::Loaded {
                        coverage: self.coverage(world, publication.as_ref()),
                        publication,
                    }
                };
            }
            (Action::Check, Reader::Loaded { publication, coverage }) => {
                let floor = if self.breaks(Rule::StatementChecksFloor) {
                    &Floor::default()
                } else {
                    &world.store.floor
                };
                let nothing_let_go = floor.number == PublicationNumber::default();
                if publication
                    .as_ref()
                    .map_or(nothing_let_go, |publication| floor.admits(publication))
                {
                    world.reader = Reader::Checked {
                        publication,
                        coverage,
                        outlived: false,
                    };
                }
            }
            (
                Action::Answer,
                Reader::Checked {
                    publication,
                    mut coverage,
                    ..
                },
            ) => {
                let counted = self.count(world, publication.as_ref());
                if !self.breaks(Rule::GapsAfterRows) {
                    coverage.gaps.extend(&self.coverage(world, publication.as_ref()).gaps);
                }
                self.judge(world, publication.as_ref(), &coverage, &counted);
            }
            (Action::Answer, Reader::Counted { counted, publication }) => {
                let coverage = self.coverage(world, publication.as_ref());
                self.judge(world, publication.as_ref(), &coverage, &counted);
            }
            _ => {}
        }
    }

    /// What the merging statement counts.
    fn count(&self, world: &World, publication: Option<&Publication>) -> Counted {
        let mut counted = Counted {
            most: [0; 16],
            least: [0; 16],
        };
        let mut add = |any: Content, all: Content| {
            for record in &self.log {
                counted.most[usize::from(record.event)] += u8::from(any & record.bit() != 0);
                counted.least[usize::from(record.event)] += u8::from(all & record.bit() != 0);
            }
        };
        let days = publication.iter().flat_map(|publication| &publication.days);
        for content in days.filter_map(|(day, run)| world.store.batch.get(&(*run, *day))) {
            add(*content, *content);
        }
        let mark = publication
            .map(|publication| publication.mark(PARTITION))
            .unwrap_or_default();
        for ((start, _), row) in &world.store.rows {
            let selected =
                counts(mark, *start, self.chunk) || (self.breaks(Rule::SelectStarts) && *start >= mark.start());
            if selected {
                add(row.any, row.all);
            }
        }
        counted
    }

    /// Which offsets an answer states to be whole: below its coverage, and in no gap.
    fn whole(&self, publication: Option<&Publication>, coverage: &Coverage) -> Content {
        let mark = publication
            .map(|publication| publication.mark(PARTITION))
            .unwrap_or_default();
        let published = publication.and_then(|publication| publication.gaps.get(&PARTITION));
        let stated = self.log.iter().filter(|record| {
            let gap = if record.offset < mark.0 {
                published
            } else {
                Some(&coverage.gaps)
            };
            record.offset < coverage.covered && gap.is_none_or(|gap| !gap.contains(record.offset))
        });
        stated.fold(0, |bits, record| bits | record.bit())
    }

    fn judge(&self, world: &mut World, publication: Option<&Publication>, coverage: &Coverage, counted: &Counted) {
        let whole = self.whole(publication, coverage);
        for record in &self.log {
            let event = usize::from(record.event);
            if counted.most[event] > 1 {
                world.violated = Some("an event is counted twice");
            } else if whole & record.bit() != 0 && counted.least[event] == 0 {
                world.violated = Some("an event below the stated coverage is not counted");
            }
        }
    }

    /// Looks at the answer of this moment.
    pub(super) fn observe(&self, world: &mut World) {
        let publication = world.newest(self).cloned();
        let coverage = self.coverage(world, publication.as_ref());
        let counted = self.count(world, publication.as_ref());
        self.judge(world, publication.as_ref(), &coverage, &counted);
        self.keep_promise(world, publication.as_ref(), &coverage);
    }

    /// What was whole stays whole, as long as publications follow on each other: not across a rollback, or when of
    /// two publications with one number the second arrives; nor where a worker found the log shorter than before, or what
    /// somebody ordered to be read again is not read yet: a run that had waited for it publishes all the same.
    fn keep_promise(&self, world: &mut World, publication: Option<&Publication>, coverage: &Coverage) {
        let key = publication.map(Publication::key);
        let mark = publication.map(|newest| newest.mark(PARTITION)).unwrap_or_default();
        let follows = !world.overdue
            && !world.store.progress.is_read_again(mark.start())
            && (key == world.promised_by
                || publication
                    .is_some_and(|newest| newest.parent == world.promised_by && newest.content == newest.number));
        let whole = self.whole(publication, coverage);
        let lost = world.gaps_of_speed();
        let excused = self.log.iter().filter(|record| lost.contains(record.offset));
        let excused = excused.fold(0, |bits, record| bits | record.bit());
        if follows && world.promised & !whole & !excused != 0 {
            world.violated = Some("an event that was promised is no longer covered");
        }
        (world.promised, world.promised_by) = (whole, key);
    }

    /// Faults end and everything on its way arrives. With a worker that lives on the answer is whole now, and after
    /// a batch run; and the run's mark is in the archive's last chunk, with a worker or without.
    pub(super) fn becomes_whole(&self, world: &World) -> bool {
        if world.violated.is_some() {
            return true;
        }
        // What is on its way arrives first, whoever lives on: states that differ in that alone are one from here on.
        let mut ended = self.ended(world, true);
        self.deliver(&mut ended);
        self.seen.or_sees(&ended, || {
            let alone = self.ended(&ended, false);
            self.ends_whole(&self.at_rest(ended.clone(), true), true)
                && self.ends_whole(&self.at_rest(alone, false), false)
        })
    }

    /// Whether a rested world is right and whole, and will be after its runs came to an end, and one more.
    fn ends_whole(&self, rested: &World, speed: bool) -> bool {
        let whole = |world: &World| !speed || self.workers == 0 || self.is_whole(world);
        self.seen.or_sees(&(rested, speed), || {
            let settled = self.settled(rested.clone(), speed);
            let right = rested.violated.is_none() && settled.violated.is_none();
            right && whole(rested) && whole(&settled) && self.is_caught_up(&settled)
        })
    }

    /// The world once faults end, with a worker that lives on, or without.
    fn ended(&self, world: &World, speed: bool) -> World {
        let mut world = world.clone();
        world.left = Budget::default();
        world.reader = Reader::Idle;
        world.collector = Collector::Idle;
        let living = usize::from(speed).min(world.workers.len());
        for worker in living..world.workers.len() {
            world.workers[worker] = super::speed::Worker::default();
            world.abandon(Sender::Worker(worker));
        }
        world.flights.sort();
        world
    }

    fn at_rest(&self, mut ended: World, speed: bool) -> World {
        self.settle(&mut ended, speed);
        self.observe(&mut ended);
        ended
    }

    /// The world after faults ended, with a worker that lives on, or without, before any run goes on.
    pub(super) fn rested(&self, world: &World, speed: bool) -> World {
        self.at_rest(self.ended(world, speed), speed)
    }

    /// A rested world after its runs came to an end, and one more.
    fn settled(&self, mut world: World, speed: bool) -> World {
        for run in 0..world.runs.len() {
            self.finish(&mut world, run, speed);
        }
        for cut in [true, true, false] {
            if world.runs[0] == Run::Idle {
                self.act(&mut world, &Action::Pin(0, cut));
                self.finish(&mut world, 0, speed);
            }
        }
        self.settle(&mut world, speed);
        self.observe(&mut world);
        world
    }

    fn is_whole(&self, world: &World) -> bool {
        let newest = world.newest(self);
        let coverage = self.coverage(world, newest);
        let lost = world.gaps_of_speed();
        let whole = self.whole(newest, &coverage);
        let gone = |offset: Offset| lost.contains(offset) || world.archive.gaps.contains(offset);
        coverage.covered >= self.log_end()
            && self
                .log
                .iter()
                .all(|record| whole & record.bit() != 0 || gone(record.offset))
    }

    /// Whether the mark is as far as the archive allows. One that lacks what was published needs an operator.
    fn is_caught_up(&self, world: &World) -> bool {
        let newest = world.newest(self);
        let mark = newest.map(|newest| newest.mark(PARTITION)).unwrap_or_default();
        let published = newest
            .and_then(|newest| newest.gaps.get(&PARTITION))
            .cloned()
            .unwrap_or_default();
        let excused = self.coverage(world, newest).gaps;
        match mark_limit(world.archive.end, mark, &world.archive.gaps, &published, &excused) {
            Ok(limit) => mark.start() >= self.chunk.first(limit),
            Err(behind) => matches!(behind, ArchiveBehind::Lacks { .. }),
        }
    }

    /// Everything goes on without faults until nothing moves, but no run begins.
    fn settle(&self, world: &mut World, speed: bool) {
        world.collector = Collector::Idle;
        for _ in 0..400 {
            let before = world.clone();
            self.deliver(world);
            if speed && !world.workers.is_empty() {
                self.work(world);
            }
            if world.archive.end < self.log_end() {
                self.act(world, &Action::Archive);
            }
            if *world == before {
                return;
            }
        }
    }

    /// All that is on its way arrives.
    fn deliver(&self, world: &mut World) {
        while !world.flights.is_empty() {
            self.act(world, &Action::Deliver(0));
        }
    }

    /// The worker that lives on looks, then flushes or reads.
    fn work(&self, world: &mut World) {
        self.act(world, &Action::Look(0));
        let mut actions = Vec::new();
        self.speed_actions(world, &mut actions);
        let flush = actions.iter().find(|action| matches!(action, Action::Flush(0, _)));
        let read = || actions.iter().find(|action| matches!(action, Action::Read(0, _)));
        if let Some(action) = flush.or_else(read) {
            self.act(world, action);
        }
    }

    /// A run goes on to its end, or gives up.
    fn finish(&self, world: &mut World, run: usize, speed: bool) {
        for _ in 0..8 {
            self.settle(world, speed);
            let action = match &world.runs[run] {
                Run::Idle | Run::Publishing { .. } => return,
                Run::Unsure { .. } => Action::Publish(run),
                Run::Computed {
                    publication, settled, ..
                } => match self.verdict(world, publication, *settled) {
                    Verdict::Publish | Verdict::StartOver => Action::Publish(run),
                    Verdict::Wait | Verdict::FallBack => Action::FallBack(run),
                },
            };
            self.act(world, &action);
        }
    }
}
