//! The archiver, batch runs, rollback and collection.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::rules::Rule;
use super::world::{Action, Content, Flight, Insert, PARTITION, Protocol, PublicationRow, Sender, World};
use crate::handoff::marks::CUT_SETTLES;
use crate::handoff::worker::missing;
use crate::handoff::{
    ArchiveBehind, ArchivedRange, CutState, EventDay, Mark, MarkChoice, Offset, OffsetSet, Publication,
    PublicationNumber, RunId, Standing, Verdict, choose_mark, cut_state, dirty_days, mark_limit, may_publish,
};

/// The archive's newest version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Archive {
    /// It holds all accepted events below, but for the gaps.
    pub(super) end: Offset,
    pub(super) gaps: OffsetSet,
}

/// A batch run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Run {
    Idle,
    /// Its rows are written.
    /// `settled` once its cut was asked for long enough ago, however slow the workers were.
    Computed {
        publication: Publication,
        fallback: Option<Fallback>,
        settled: bool,
    },
    /// Its publication is on its way.
    Publishing {
        publication: Publication,
    },
    /// Whether its publication arrived is not known: it may still, so the cut is not withdrawn.
    Unsure {
        publication: Publication,
    },
}

/// Where a run goes that waited for its cut in vain, and what it was made on: that may be forgotten meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fallback {
    mark: Mark,
    parent: Option<Publication>,
}

impl Run {
    /// The reply to its publication was an error: it reads back, and sends the same row again if need be.
    pub(super) fn refused(&mut self) {
        if let Self::Publishing { publication } = self {
            *self = Self::Unsure {
                publication: publication.clone(),
            };
        }
    }
}

/// A collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Collector {
    Idle,
    /// The floor has risen; deleting may begin, progress first.
    Raised,
    /// Half of it is deleted.
    Half,
}

impl Protocol {
    pub(super) fn batch_actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.archive.end < self.log_end() {
            actions.push(Action::Archive);
        }
        if world.left.archive_losses > 0 && world.archive.end > Offset(0) {
            actions.push(Action::LoseArchive);
        }
        for (at, run) in world.runs.iter().enumerate() {
            match run {
                Run::Idle if world.left.pins > 0 => {
                    let pins = [true, false]
                        .into_iter()
                        .filter(|cut| self.choice(world, *cut).is_some());
                    actions.extend(pins.map(|cut| Action::Pin(at, cut)));
                    if let Some(newest) = world.newest(self) {
                        let days = newest.days.keys().copied();
                        actions.extend(
                            days.map(|day| Action::Repair(at, Some(day)))
                                .chain([Action::Repair(at, None)]),
                        );
                    }
                }
                Run::Idle => {}
                Run::Computed {
                    publication, settled, ..
                } => {
                    match self.verdict(world, publication, *settled) {
                        Verdict::Publish | Verdict::StartOver => actions.push(Action::Publish(at)),
                        Verdict::Wait | Verdict::FallBack => actions.push(Action::FallBack(at)),
                    }
                    if world.left.faults > 0 {
                        actions.push(Action::DoubleBatch(at));
                    }
                    let settles = *settled || world.settled(publication.run);
                    if world.left.faults > 0 && !settles {
                        actions.push(Action::Overdue(at));
                    }
                }
                Run::Publishing { .. } => {}
                Run::Unsure { .. } => {
                    actions.push(Action::Publish(at));
                    if self.breaks(Rule::KeepCutOnceSent) {
                        actions.push(Action::FallBack(at));
                    }
                }
            }
            if world.left.faults > 0 && *run != Run::Idle {
                actions.push(Action::CrashRun(at));
            }
        }
        if world.left.rollbacks > 0 {
            let newest = world.newest(self).map(Publication::key);
            let older = world.store.publications.iter().enumerate();
            let older = older.filter(|(_, to)| Some(to.key()) != newest && world.store.floor.admits(to));
            actions.extend(older.map(|(at, _)| Action::Rollback(at)));
        }
        match world.collector {
            Collector::Idle if world.left.collections > 0 => {
                if world.store.floor.keeping(2, &world.store.publications).is_some() {
                    actions.push(Action::RaiseFloor);
                }
            }
            Collector::Idle => {}
            Collector::Raised if !self.may_collect(world) => {}
            Collector::Raised | Collector::Half => actions.push(Action::Collect),
        }
    }

    pub(super) fn act_batch(&self, world: &mut World, action: &Action) {
        match *action {
            Action::Archive => self.archive(world),
            Action::LoseArchive => {
                world.left.archive_losses -= 1;
                world.archive.end = Offset(world.archive.end.0 - 1);
                world.archive.gaps = world.archive.gaps.within(Offset(0), world.archive.end);
            }
            Action::Pin(run, cut) => {
                world.left.pins = world.left.pins.saturating_sub(1);
                self.pin(world, run, cut);
            }
            Action::Repair(run, day) => {
                world.left.pins -= 1;
                self.repair(world, run, day);
            }
            Action::DoubleBatch(run) => {
                world.left.faults -= 1;
                let Run::Computed { publication, .. } = &world.runs[run] else {
                    return;
                };
                let rows = world.store.batch.iter().filter(|((of, _), _)| *of == publication.run);
                let rows = rows.map(|((_, day), content)| (*day, *content)).collect();
                let insert = Insert::Batch {
                    run: publication.run,
                    rows,
                };
                world.flights.push(Flight::of(Sender::Nobody, insert));
            }
            Action::Publish(run) => self.publish(world, run),
            Action::FallBack(run) => self.fall_back(world, run),
            Action::Overdue(run) => {
                world.left.faults -= 1;
                world.overdue = true;
                if let Run::Computed { settled, .. } = &mut world.runs[run] {
                    *settled = true;
                }
            }
            Action::CrashRun(run) => {
                world.left.faults -= 1;
                world.runs[run] = Run::Idle;
                world.abandon(Sender::Run(run));
            }
            Action::Rollback(to) => {
                world.left.rollbacks -= 1;
                let run = fresh(world);
                let to = world.store.publications[to].clone();
                let Some(newest) = world.newest(self) else { return };
                let row = Box::new(PublicationRow(Publication::rollback(newest, &to, run)));
                world
                    .flights
                    .push(Flight::of(Sender::Nobody, Insert::Publication { row }));
            }
            Action::RaiseFloor => {
                world.left.collections -= 1;
                let risen = world.store.floor.keeping(2, &world.store.publications);
                world.reader.outlived();
                if let Some(floor) = risen {
                    world.store.floor = world.store.floor.clone().union(&floor);
                }
                world.collector = Collector::Raised;
            }
            Action::Collect => self.collect(world),
            _ => {}
        }
    }

    fn archive(&self, world: &mut World) {
        let archive = &mut world.archive;
        if let Some(lost) = missing(archive.end, world.log_start) {
            archive.gaps.insert(lost);
            archive.end = lost.to;
        } else if let Some(record) = self.record_from(archive.end) {
            archive.end = record.offset.next();
        }
    }

    /// The mark that a run pinned now would choose; `None` where nothing would move.
    fn choice(&self, world: &World, cut: bool) -> Option<MarkChoice> {
        let newest = world.newest(self);
        let published = newest
            .and_then(|newest| newest.gaps.get(&PARTITION))
            .cloned()
            .unwrap_or_default();
        let parent = newest.map(|newest| newest.mark(PARTITION)).unwrap_or_default();
        let excused = world.store.progress.coverage(parent, self.chunk).gaps;
        let limit = match mark_limit(world.archive.end, parent, &world.archive.gaps, &published, &excused) {
            _ if self.breaks(Rule::MarkStopsAtArchiveGap) => world.archive.end.max(parent.0),
            Ok(limit) => limit,
            Err(ArchiveBehind::Short { end, .. }) if self.breaks(Rule::MarkNotBelowParent) => end,
            Err(ArchiveBehind::Lacks { .. }) if self.breaks(Rule::ArchiveHoldsPublished) => world.archive.end,
            Err(_) => return None,
        };
        let long = if cut { Duration::MAX } else { Duration::ZERO };
        let parent_or_any = if self.breaks(Rule::MarkNotBelowParent) {
            Mark::default()
        } else {
            parent
        };
        let choice = choose_mark(limit, parent_or_any, self.chunk, long);
        match choice {
            MarkChoice::Settled(mark) if mark == parent => None,
            // Without the wish for a cut the other choice is the same.
            MarkChoice::Settled(_) if cut => None,
            _ => Some(choice),
        }
    }

    fn pin(&self, world: &mut World, run: usize, cut: bool) {
        let Some(choice) = self.choice(world, cut) else { return };
        let id = fresh(world);
        let parent = world.newest(self).cloned();
        match choice {
            MarkChoice::Settled(mark) => self.compute(world, run, id, parent.as_ref(), mark, None),
            MarkChoice::Cut { mark, fallback } => {
                world.store.asked.insert((mark.start(), id));
                for worker in world.workers.iter_mut().filter(|worker| !worker.lines.is_empty()) {
                    worker.unaware.insert(id);
                }
                for flight in world
                    .flights
                    .iter_mut()
                    .filter(|flight| matches!(flight.insert, Insert::Progress { .. }))
                {
                    flight.unaware.insert(id);
                }
                self.compute(world, run, id, parent.as_ref(), mark, Some(fallback));
            }
        }
    }

    fn compute(
        &self,
        world: &mut World,
        run: usize,
        id: RunId,
        parent: Option<&Publication>,
        mark: Mark,
        fallback: Option<Mark>,
    ) {
        let old = parent.map(|parent| parent.marks.clone()).unwrap_or_default();
        let marks = BTreeMap::from([(PARTITION, mark)]);
        let archived = |offset: Offset| offset < world.archive.end && !world.archive.gaps.contains(offset);
        let ranges = self
            .log
            .iter()
            .filter(|record| archived(record.offset))
            .map(|record| ArchivedRange {
                day: record.day(),
                partition: PARTITION,
                first: record.offset,
                last: record.offset,
            });
        let dirty = if self.breaks(Rule::DirtyByOffset) {
            self.dirty_by_version(world, parent, mark)
        } else {
            dirty_days(&old, &marks, ranges)
        };
        self.write(world, id, parent, mark, &dirty);
        let gaps = BTreeMap::from([(PARTITION, world.archive.gaps.clone())]);
        let mut publication = Publication::of_run(parent, id, marks, &gaps, &dirty);
        if self.breaks(Rule::CleanDaysOfParent) {
            publication.days.retain(|day, _| dirty.contains(day));
        }
        let parent = parent.cloned();
        world.runs[run] = Run::Computed {
            publication,
            fallback: fallback.map(|mark| Fallback { mark, parent }),
            settled: false,
        };
    }

    /// Writes a run's rows: the events of those days below the mark, without repeats.
    fn write(&self, world: &mut World, id: RunId, parent: Option<&Publication>, mark: Mark, days: &BTreeSet<EventDay>) {
        let archive = world.archive.clone();
        let archived = |offset: Offset| offset < archive.end && !archive.gaps.contains(offset);
        for day in days {
            let end = if self.breaks(Rule::ComputeBelowMark) {
                world.archive.end
            } else {
                mark.0
            };
            let counted = self.log.iter().filter(|record| {
                let repeat = !self.breaks(Rule::BatchDropsRepeats)
                    && self.log.iter().any(|earlier| {
                        earlier.offset < record.offset && earlier.event == record.event && archived(earlier.offset)
                    });
                record.day() == *day && record.offset < end && archived(record.offset) && !repeat
            });
            let content: Content = counted.fold(0, |bits, record| bits | record.bit());
            world.store.batch.insert((id, *day), content);
        }
        let number = parent.map(|parent| parent.number).unwrap_or_default();
        world.store.parents.insert(id, number);
    }

    /// A run over chosen days, or all: at the published marks, which it keeps.
    fn repair(&self, world: &mut World, run: usize, day: Option<EventDay>) {
        let Some(parent) = world.newest(self).cloned() else {
            return;
        };
        let id = fresh(world);
        let chosen: BTreeSet<_> = parent
            .days
            .keys()
            .copied()
            .filter(|of| day.is_none_or(|day| day == *of))
            .collect();
        let published = parent.gaps.get(&PARTITION).cloned().unwrap_or_default();
        let mark = parent.mark(PARTITION);
        if mark_limit(
            world.archive.end,
            mark,
            &world.archive.gaps,
            &published,
            &OffsetSet::default(),
        )
        .is_ok()
        {
            self.write(world, id, Some(&parent), mark, &chosen);
            let gaps = BTreeMap::from([(PARTITION, world.archive.gaps.clone())]);
            let publication = Publication::of_run(Some(&parent), id, parent.marks.clone(), &gaps, &chosen);
            world.runs[run] = Run::Computed {
                publication,
                fallback: None,
                settled: true,
            };
        }
    }

    /// What an implementation by archive version would do: days of the commits since the parent's run.
    fn dirty_by_version(&self, world: &World, parent: Option<&Publication>, mark: Mark) -> BTreeSet<EventDay> {
        let pinned_then = parent
            .map(|parent| self.chunk.end(parent.mark(PARTITION).0))
            .unwrap_or_default();
        let since = self
            .log
            .iter()
            .filter(|record| record.offset >= pinned_then && record.offset < mark.0);
        since
            .filter(|record| record.offset < world.archive.end)
            .map(|record| record.day())
            .collect()
    }

    pub(super) fn verdict(&self, world: &World, publication: &Publication, settled: bool) -> Verdict {
        let mark = publication.mark(PARTITION);
        let highest = world.store.rows.values().map(|row| row.version).max();
        let settled = settled || world.settled(publication.run) || self.breaks(Rule::LetCutsSettle);
        let asked_for = if settled { CUT_SETTLES } else { Duration::ZERO };
        let state = cut_state(
            mark,
            asked_for,
            &world.store.progress,
            highest,
            world.log_start,
            self.chunk,
        );
        let state = if self.breaks(Rule::WaitForCut) {
            CutState::Ready
        } else {
            state
        };
        let newest = world.newest(self);
        if self.breaks(Rule::MarkNotBelowParent) && newest.map(Publication::key) == publication.parent {
            return Verdict::Publish;
        }
        let cuts = BTreeMap::from([(PARTITION, state)]);
        may_publish(publication, newest, &world.store.floor, self.chunk, &cuts, false)
    }

    fn publish(&self, world: &mut World, run: usize) {
        let verdict = match &world.runs[run] {
            Run::Computed {
                publication, settled, ..
            } => self.verdict(world, publication, *settled),
            Run::Unsure { publication } => match self.standing(world, publication) {
                Standing::Newest | Standing::Succeeded => {
                    world.runs[run] = Run::Idle;
                    return;
                }
                Standing::Beaten if self.is_newest(world, publication) => Verdict::Publish,
                Standing::Beaten => Verdict::StartOver,
            },
            Run::Idle | Run::Publishing { .. } => return,
        };
        let (Run::Computed { publication, .. } | Run::Unsure { publication }) = world.runs[run].clone() else {
            return;
        };
        if verdict == Verdict::Publish {
            let row = Box::new(PublicationRow(publication.clone()));
            world
                .flights
                .push(Flight::of(Sender::Run(run), Insert::Publication { row }));
            world.runs[run] = Run::Publishing { publication };
        } else {
            self.withdraw(world, &publication);
            world.runs[run] = Run::Idle;
        }
    }

    fn standing(&self, world: &World, publication: &Publication) -> Standing {
        Standing::of(publication, &world.store.publications, &world.store.floor)
    }

    /// Whether what it was made on is still the newest.
    fn is_newest(&self, world: &World, publication: &Publication) -> bool {
        world.newest(self).map(Publication::key) == publication.parent && world.store.floor.admits(publication)
    }

    fn fall_back(&self, world: &mut World, run: usize) {
        let (publication, fallback) = match world.runs[run].clone() {
            Run::Computed {
                publication, fallback, ..
            } => (publication, fallback),
            Run::Unsure { publication } => (publication, None),
            Run::Idle | Run::Publishing { .. } => return,
        };
        if self.breaks(Rule::FallBack) {
            return;
        }
        self.withdraw(world, &publication);
        world.runs[run] = Run::Idle;
        let Some(Fallback { mark, parent }) = fallback else {
            return;
        };
        let before = parent.as_ref().map(|parent| parent.mark(PARTITION)).unwrap_or_default();
        if mark > before {
            let id = if self.breaks(Rule::FreshRunId) {
                publication.run
            } else {
                fresh(world)
            };
            self.compute(world, run, id, parent.as_ref(), mark, None);
        }
    }

    fn withdraw(&self, world: &mut World, publication: &Publication) {
        world
            .store
            .withdrawn
            .insert((publication.mark(PARTITION).start(), publication.run));
    }

    /// The run's publication was acknowledged.
    pub(super) fn read_back(&self, world: &mut World, run: usize) {
        let Run::Publishing { publication } = std::mem::replace(&mut world.runs[run], Run::Idle) else {
            return;
        };
        if self.standing(world, &publication) == Standing::Beaten {
            self.withdraw(world, &publication);
        }
    }

    fn may_collect(&self, world: &World) -> bool {
        self.breaks(Rule::WaitAfterFloor) || !world.reader.is_outlived()
    }

    fn collect(&self, world: &mut World) {
        let raised = world.collector == Collector::Raised;
        world.collector = if raised { Collector::Half } else { Collector::Idle };
        let store = &mut world.store;
        if raised {
            store.progress.forget_below(store.floor.mark(PARTITION));
            // Last of a collection, and so before the runs of the next one go: here in one. None is listed for people, so
            // whatever may be forgotten is.
            let forgotten = if self.breaks(Rule::KeepParentsOfFloor) {
                let below = store.publications.iter().filter(|one| one.number < store.floor.number);
                below.map(Publication::key).collect()
            } else {
                store.floor.forgettable(0, &store.publications)
            };
            store.publications.retain(|one| !forgotten.contains(&one.key()));
            return;
        }
        let runs = store.parents.iter().map(|(run, parent)| (*run, *parent));
        let starts: BTreeSet<_> = store.rows.keys().map(|(start, _)| (PARTITION, *start)).collect();
        let mut gone = store.floor.collectable(&store.publications, runs, starts);
        if self.breaks(Rule::KeepRunsOfParent) {
            let held: BTreeSet<_> = store
                .publications
                .iter()
                .filter(|publication| publication.number >= store.floor.number)
                .flat_map(|publication| publication.days.values().copied())
                .collect();
            let below = |(run, parent): (&RunId, &PublicationNumber)| {
                (parent.child() < store.floor.number && !held.contains(run)).then_some(*run)
            };
            gone.runs = store.parents.iter().filter_map(below).collect();
        }
        store
            .rows
            .retain(|(start, _), _| !gone.starts.contains(&(PARTITION, *start)));
        store.batch.retain(|(run, _), _| !gone.runs.contains(run));
        store.parents.retain(|run, _| !gone.runs.contains(run));
        let mark = store.floor.mark(PARTITION).start();
        store.asked.retain(|(start, _)| *start >= mark);
        store.withdrawn.retain(|(start, _)| *start >= mark);
    }
}

impl World {
    /// Whether every worker has looked since that run asked for its cut, and what was sent before has arrived.
    fn settled(&self, run: RunId) -> bool {
        let unaware = self.workers.iter().map(|worker| &worker.unaware);
        let mut unaware = unaware.chain(self.flights.iter().map(|flight| &flight.unaware));
        !unaware.any(|runs| runs.contains(&run))
    }
}

impl Flight {
    fn of(sender: Sender, insert: Insert) -> Self {
        Self {
            sender,
            insert,
            unaware: BTreeSet::new(),
        }
    }
}

fn fresh(world: &mut World) -> RunId {
    let id = RunId(world.next_run);
    world.next_run += 1;
    id
}
