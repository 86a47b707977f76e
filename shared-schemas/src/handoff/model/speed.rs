//! Workers: what they read, keep and insert.

use std::collections::{BTreeMap, BTreeSet};

use super::laws::Reader;
use super::rules::Rule;
use super::world::{Action, CELLS, Content, Flight, Insert, PARTITION, Protocol, Sender, World};
use crate::handoff::marks::wanted_cuts;
use crate::handoff::worker::missing;
use crate::handoff::{
    Again, ChunkSize, Delivered, Mark, Offset, OffsetRange, OffsetSet, Redo, RunId, Start, again, delivered, may_show,
    next_start, wanted,
};

/// A worker's memory; a crash empties it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Worker {
    /// It reads at up to two places: where it is, and what it passed before it was asked for.
    pub(super) lines: Vec<Line>,
    /// One of its inserts is on its way.
    pub(super) waits: bool,
    /// The newest mark and the cuts, as it last saw them.
    mark: Mark,
    cuts: BTreeSet<Start>,
    /// The redos of starts that have one, as it last saw them.
    redos: BTreeMap<Start, Redo>,
    /// What it knows of the cuts' progress.
    shown: BTreeMap<Start, Option<Offset>>,
    /// Runs whose cuts it has not looked for yet.
    pub(super) unaware: BTreeSet<RunId>,
}

/// One place from which a worker reads on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) cursor: Offset,
    pub(super) kept: Vec<Kept>,
}

/// A start whose cells are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kept {
    pub(super) start: Start,
    redo: Redo,
    /// The version of its next rows.
    next: Offset,
    /// What its cells lack.
    missing: OffsetSet,
    /// What of that is recorded.
    recorded: OffsetSet,
    /// The version up to which its rows, and then its progress, were acknowledged.
    rows: Offset,
    shown: Offset,
}

impl Worker {
    fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.lines.iter().flat_map(|line| &line.kept)
    }

    /// One of its inserts was acknowledged. What it dropped meanwhile it has no use for.
    pub(super) fn acknowledged(&mut self, insert: &Insert, chunk: ChunkSize) {
        self.waits = false;
        let (start, of) = match insert {
            Insert::Cells { start, redo, .. } | Insert::Progress { start, redo, .. } => (*start, Some(*redo)),
            Insert::Gap { start, .. } => (*start, None),
            Insert::Publication { .. } | Insert::Batch { .. } => return,
        };
        let mut kept = self.lines.iter_mut().flat_map(|line| &mut line.kept);
        if let Some(kept) = kept.find(|kept| kept.start == start && of.is_none_or(|redo| redo == kept.redo)) {
            match insert {
                Insert::Cells { version, .. } => kept.rows = *version,
                Insert::Progress { next, .. } => {
                    kept.shown = *next;
                    self.shown.entry(start).and_modify(|shown| *shown = Some(*next));
                }
                Insert::Gap { range, .. } => kept.recorded.insert(*range),
                Insert::Publication { .. } | Insert::Batch { .. } => {}
            }
        }
        for line in &mut self.lines {
            line.kept.retain(|kept| kept.shown < chunk.end(kept.start.0));
        }
    }
}

impl Protocol {
    pub(super) fn speed_actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (at, worker) in world.workers.iter().enumerate() {
            actions.push(Action::Look(at));
            for (line, state) in worker.lines.iter().enumerate() {
                if self.can_read(worker, state) {
                    actions.push(Action::Read(at, line));
                }
                if !worker.waits {
                    let due = state.kept.iter().filter(|kept| self.due(worker, kept).is_some());
                    actions.extend(due.map(|kept| Action::Flush(at, kept.start)));
                }
            }
            if world.left.faults > 0 && !worker.lines.is_empty() {
                actions.push(Action::CrashWorker(at));
            }
        }
    }

    pub(super) fn look(&self, world: &mut World, at: usize) {
        let mark = world
            .newest(self)
            .map(|newest| newest.mark(PARTITION))
            .unwrap_or_default();
        let asked = world.store.asked.iter().copied();
        let mut cuts = wanted_cuts(asked, &world.store.withdrawn, mark);
        if self.breaks(Rule::LookForCuts) {
            cuts.clear();
        }
        let worker = &mut world.workers[at];
        let progress = &world.store.progress;
        for line in &mut worker.lines {
            line.kept.retain(|kept| wanted(kept.start, mark, &cuts, self.chunk));
            if self.breaks(Rule::BeginRedosAnew) {
                let now = |kept: &mut Kept| kept.redo = progress.redo(kept.start);
                line.kept.iter_mut().for_each(now);
            }
            line.kept.retain(|kept| kept.redo == progress.redo(kept.start));
        }
        worker.redos = progress
            .starts()
            .filter(|(_, redo, _)| *redo > Redo::default())
            .map(|(start, redo, _)| (start, redo))
            .collect();
        worker.lines.retain(|line| !line.kept.is_empty());
        let kept: BTreeSet<_> = worker.kept().map(|kept| kept.start).collect();
        let mut cursors: Vec<_> = worker.lines.iter().map(|line| line.cursor).collect();
        if self.breaks(Rule::FillWhatIsOpen) && !cursors.is_empty() {
            cursors = vec![Offset(0)];
        }
        let go = next_start(
            mark,
            &cuts,
            &world.store.progress,
            self.chunk,
            &kept,
            &cursors,
            self.log_end(),
        );
        worker.shown = cuts.iter().map(|cut| (*cut, world.store.progress.next(*cut))).collect();
        (worker.mark, worker.cuts) = (mark, cuts);
        worker.unaware.clear();
        if let Some(start) = go.filter(|_| worker.lines.len() < 2) {
            let cursor = match world.store.progress.next(start) {
                Some(next) if self.breaks(Rule::ReadFromTheStart) => next,
                _ => start.0,
            };
            worker.lines.push(Line {
                cursor,
                kept: vec![Kept::at(start, world.store.progress.redo(start), cursor)],
            });
            worker.lines.sort_by_key(|line| line.cursor);
        }
    }

    /// What a redo would void now.
    fn again(&self, world: &World) -> Option<Again> {
        let mark = world
            .newest(self)
            .map(|newest| newest.mark(PARTITION))
            .unwrap_or_default();
        let log = OffsetRange {
            from: world.log_start,
            to: self.log_end(),
        };
        again(mark, &world.store.progress, self.chunk, Offset(0), log).ok()
    }

    /// Rows that progress speaks of may be lost; not while a query is between its steps, which was promised them.
    pub(super) fn redo_actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.left.redos == 0 || world.reader != Reader::Idle {
            return;
        }
        let voids = self.again(world).map(|again| again.voids).unwrap_or_default();
        let rows = world.store.rows.keys();
        let lost = rows.filter(|(start, _)| voids.iter().any(|(voided, _)| voided == start));
        actions.extend(lost.map(|(start, cell)| Action::Redo(*start, *cell)));
    }

    /// The row is lost. All that is promised from the mark on is voided, and is no promise any more.
    pub(super) fn redo(&self, world: &mut World, row: (Start, u64)) {
        let Some(again) = self.again(world) else { return };
        world.left.redos -= 1;
        world.store.rows.remove(&row);
        for (start, redo) in again.voids {
            world.store.progress.record_after(start, redo, start.0);
        }
        world.promised = 0;
    }

    /// A line reads on once what it completed is flushed; one that keeps nothing, only if no other is ahead of it.
    fn can_read(&self, worker: &Worker, line: &Line) -> bool {
        let held_back = self.chunk.is_first(line.cursor) && line.kept.iter().any(|kept| kept.start.0 < line.cursor);
        let foremost = worker.lines.iter().all(|other| other.cursor <= line.cursor);
        !held_back && (foremost || !line.kept.is_empty()) && self.record_from(line.cursor).is_some()
    }

    pub(super) fn read(&self, world: &mut World, at: usize, line: usize) {
        let worker = &mut world.workers[at];
        let held: BTreeSet<_> = worker.kept().map(|kept| kept.start).collect();
        let (mark, cuts, redos) = (worker.mark, worker.cuts.clone(), worker.redos.clone());
        let line = &mut worker.lines[line];
        let end = self.chunk.end(line.cursor);
        let lost = missing(line.cursor, world.log_start.min(end));
        let Some(record) = self.record_from(line.cursor) else {
            return;
        };
        let reached = lost.map_or(record.offset.next().min(end), |lost| lost.to);
        // Starts that are wanted open as they are passed.
        for start in (line.cursor.0..reached.0).map(|offset| Start(Offset(offset))) {
            if !held.contains(&start) && wanted(start, mark, &cuts, self.chunk) {
                let redo = redos.get(&start).copied().unwrap_or_default();
                line.kept.push(Kept::at(start, redo, start.0));
            }
        }
        for kept in &mut line.kept {
            if let Some(lost) = lost {
                kept.missing.insert(OffsetRange {
                    from: lost.from.max(kept.start.0),
                    to: lost.to,
                });
                kept.next = kept.next.max(lost.to);
                continue;
            }
            kept.next = match delivered(kept.start, record.offset, self.chunk) {
                Delivered::Completes { .. } if self.breaks(Rule::CompleteByDelivery) => kept.next,
                Delivered::Completes { next } | Delivered::Counts { next } => next,
            };
        }
        line.kept.sort_by_key(|kept| kept.start);
        line.cursor = reached;
        if worker.lines.len() == 2 && worker.lines[0].cursor == worker.lines[1].cursor {
            let other = worker.lines.remove(1);
            worker.lines[0].kept.extend(other.kept);
            worker.lines[0].kept.sort_by_key(|kept| kept.start);
        }
        worker.lines.sort_by_key(|line| line.cursor);
    }

    /// What a kept start would insert next: a gap before all, rows before the progress that speaks of them.
    fn due(&self, worker: &Worker, kept: &Kept) -> Option<Insert> {
        let start = kept.start;
        let unrecorded = |range: &&OffsetRange| kept.recorded.reach(range.from) < range.to;
        let gap = kept
            .missing
            .ranges()
            .iter()
            .find(unrecorded)
            .map(|range| Insert::Gap { start, range: *range });
        if gap.is_some() && !self.breaks(Rule::GapBeforeRows) {
            return gap;
        }
        let redo = kept.redo;
        let rows = (kept.next > kept.rows).then(|| Insert::Cells {
            start,
            redo,
            version: kept.next,
            cells: (0..CELLS)
                .filter_map(|cell| self.touched(kept, cell).map(|content| (cell, content)))
                .collect(),
        });
        let progress = (kept.next > kept.shown).then_some(Insert::Progress {
            start,
            redo,
            next: kept.next,
        });
        if self.breaks(Rule::RowsBeforeProgress) {
            return progress.or(rows).or(gap);
        }
        let may = self.breaks(Rule::ShowCutsFirst) || may_show(start, kept.next, &worker.shown, self.chunk);
        rows.or(progress.filter(|_| may)).or(gap)
    }

    /// The whole content of a cell, if it changed since its rows were last acknowledged.
    fn touched(&self, kept: &Kept, cell: u64) -> Option<Content> {
        let now = self.content(kept, cell, kept.next);
        let changed = now != self.content(kept, cell, kept.rows.max(kept.start.0));
        if self.breaks(Rule::WholeCells) {
            return changed.then_some(now & !self.content(kept, cell, kept.rows.max(kept.start.0)));
        }
        changed.then_some(now)
    }

    fn content(&self, kept: &Kept, cell: u64, next: Offset) -> Content {
        let seen_from = if self.breaks(Rule::WarmFilter) {
            kept.start.0
        } else {
            Offset(0)
        };
        self.log
            .iter()
            .filter(|record| record.cell() == cell && record.offset >= kept.start.0 && record.offset < next)
            .filter(|record| !kept.missing.contains(record.offset) && !self.repeats(**record, seen_from))
            .fold(0, |bits, record| bits | record.bit())
    }

    pub(super) fn flush(&self, world: &mut World, at: usize, start: Start) {
        let worker = &world.workers[at];
        let found = worker.lines.iter().find_map(|line| {
            let kept = line.kept.iter().find(|kept| kept.start == start)?;
            self.due(worker, kept)
        });
        let Some(insert) = found else { return };
        if matches!(&insert, Insert::Cells { cells, .. } if cells.is_empty()) {
            // No cell was touched: nothing to insert, progress may go.
            world.workers[at].acknowledged(&insert, self.chunk);
            return;
        }
        world.workers[at].waits = true;
        let unaware = world.workers[at].unaware.clone();
        world.flights.push(Flight {
            sender: Sender::Worker(at),
            insert,
            unaware,
        });
    }
}

impl Kept {
    fn at(start: Start, redo: Redo, cursor: Offset) -> Self {
        let mut kept = Self {
            start,
            redo,
            next: cursor,
            missing: OffsetSet::default(),
            recorded: OffsetSet::default(),
            rows: cursor,
            shown: cursor,
        };
        // Only where the rule is broken does reading begin past the start.
        kept.missing.insert(OffsetRange {
            from: start.0,
            to: cursor,
        });
        kept.recorded.insert(OffsetRange {
            from: start.0,
            to: cursor,
        });
        kept
    }
}
