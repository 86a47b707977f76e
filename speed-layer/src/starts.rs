//! Which starts a slice of the log counts for, and how far each has come: for one view and one partition.
//!
//! A start takes from a slice what follows on what it has read, whoever read it: the reader at the log's head, one
//! that catches up, or both one after the other. Records are never skipped and never taken twice, since each start knows up
//! to where it has read. Pure state: the worker does what comes out.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::store::Ledger;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetRange, Redo, SpeedProgress, Start, may_show, wanted};

use crate::aggregate::Counted;
use crate::dedupe::Judgement;
use shared_schemas::decode::Reason;
use shared_schemas::plan::Filtered;

/// What became of a delivered record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is counted, or would be by a view whose filter lets it pass.
    Accepted(Judgement),
    /// It could not be read; the archiver writes the dead letter.
    Refused(Reason),
}

/// The delivered records of a slice, in the order of offsets.
#[derive(Debug, Clone)]
pub struct Records {
    /// From where they follow on what was read before.
    pub from: Offset,
    /// The last one's offset + 1.
    pub next: Offset,
    /// Each one's offset and fate.
    pub fates: Vec<(Offset, Fate)>,
}

/// What the view wants on this partition, as of the last look.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The newest publication's mark.
    pub mark: Mark,
    /// The cuts that runs wait for.
    pub cuts: BTreeSet<Start>,
    /// What is recorded, by whomever.
    pub progress: SpeedProgress,
}

impl Wanted {
    /// Whether somebody needs rows of that start, and they are not complete.
    pub fn lacks(&self, start: Start, chunk: ChunkSize) -> bool {
        wanted(start, self.mark, &self.cuts, chunk) && self.progress.complete(start, chunk).is_none()
    }

    /// The starts from `from` on and below `to` that are lacking, ascending.
    fn lacking(&self, from: Offset, to: Offset, chunk: ChunkSize) -> BTreeSet<Start> {
        let from = from.max(self.mark.0);
        if from >= to {
            return BTreeSet::new();
        }
        let first = if chunk.is_first(from) { from } else { chunk.end(from) };
        let ends = std::iter::successors(Some(first), |at| Some(chunk.end(*at)).filter(|end| end > at));
        let own = ends.take_while(|at| *at < to).map(Start);
        let cuts = self.cuts.range(Start(from)..Start(to)).copied();
        let mark = Some(self.mark.start()).filter(|mark| mark.0 >= from && mark.0 < to);
        own.chain(cuts)
            .chain(mark)
            .filter(|start| self.lacks(*start, chunk))
            .collect()
    }
}

/// A start whose cells are kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Under which redo it is read.
    pub redo: Redo,
    /// Up to where it has read, or knows that the log has nothing.
    read_to: Offset,
    /// A record at or past the chunk's end was delivered.
    complete: bool,
    /// What became of the records. Its `next` is the version of the cells. It adds up once what was taken is folded in
    /// ([`Starts::folded`]).
    pub ledger: Ledger,
    /// Offsets that the log lost beyond the last record that was read: holes, once a record follows on them.
    lost: u64,
    /// Up to where progress was recorded.
    shown: Option<Offset>,
    /// A row of its cells is refused by the store: nothing is claimed of it.
    is_withheld: bool,
}

impl Kept {
    /// Up to where it has read.
    pub fn read_to(&self) -> Offset {
        self.read_to
    }

    /// Whether the store refuses a row of its cells.
    pub fn is_withheld(&self) -> bool {
        self.is_withheld
    }

    /// Whether nothing more will come.
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

/// The starts that are kept on one partition, for one view.
#[derive(Debug, Clone)]
pub struct Starts {
    chunk: ChunkSize,
    kept: BTreeMap<Start, Kept>,
}

impl Starts {
    /// None yet.
    pub fn new(chunk: ChunkSize) -> Self {
        Self {
            chunk,
            kept: BTreeMap::new(),
        }
    }

    /// The kept starts, ascending.
    pub fn kept(&self) -> &BTreeMap<Start, Kept> {
        &self.kept
    }

    /// The names of the kept starts.
    pub fn names(&self) -> BTreeSet<Start> {
        self.kept.keys().copied().collect()
    }

    /// Takes what each start lacks of the records, and begins the starts among them that are lacking. Returns for each
    /// start the offsets that it takes now: their events belong to its cells.
    pub fn take(&mut self, records: &Records, wanted: &Wanted, rules: &str) -> Vec<(Start, OffsetRange)> {
        self.begin(records.from, records.next, wanted, rules);
        let mut taken = Vec::new();
        for (start, kept) in &mut self.kept {
            let end = self.chunk.end(start.0);
            let follows_on = kept.read_to >= records.from || kept.read_to == end;
            if kept.complete || !follows_on || kept.read_to >= records.next {
                continue;
            }
            let range = OffsetRange {
                from: kept.read_to,
                to: records.next.min(end),
            };
            kept.count(range, records);
            kept.read_to = range.to;
            kept.ledger.next = range.to;
            // `next` is above the last record: one at or past the chunk's end has come, or the last one before it.
            kept.complete = range.to == end;
            if !range.is_empty() {
                taken.push((*start, range));
            }
        }
        taken
    }

    /// The log has lost these offsets. Returns what each start lacks of them: to be recorded, durably, before any row
    /// that lacks them.
    pub fn lose(&mut self, range: OffsetRange, wanted: &Wanted, rules: &str) -> Vec<(Start, OffsetRange)> {
        self.begin(range.from, range.to, wanted, rules);
        let mut lost = Vec::new();
        for (start, kept) in &mut self.kept {
            let to = range.to.min(self.chunk.end(start.0));
            if kept.complete || kept.read_to < range.from || kept.read_to >= to {
                continue;
            }
            let piece = OffsetRange { from: kept.read_to, to };
            let offsets = piece.to.0 - piece.from.0;
            kept.lost += offsets;
            kept.read_to = to;
            lost.push((*start, piece));
        }
        lost
    }

    /// Begins the lacking starts in that range.
    fn begin(&mut self, from: Offset, to: Offset, wanted: &Wanted, rules: &str) {
        for start in wanted.lacking(from, to, self.chunk) {
            self.kept.entry(start).or_insert_with(|| Kept {
                redo: wanted.progress.redo(start),
                read_to: start.0,
                complete: false,
                ledger: Ledger {
                    next: start.0,
                    rules: rules.to_owned(),
                    ..Ledger::default()
                },
                lost: 0,
                shown: None,
                is_withheld: false,
            });
        }
    }

    /// Lets go of what nobody needs any more, and of what is to be read again from its first offset. Returns the starts whose cells
    /// can be dropped.
    pub fn retain_wanted(&mut self, now: &Wanted) -> Vec<Start> {
        let chunk = self.chunk;
        self.drop_where(|start, kept| {
            !wanted(start, now.mark, &now.cuts, chunk) || kept.redo < now.progress.redo(start)
        })
    }

    /// Lets go of starts that a reader fed that is no more: they are read again from their first offset.
    pub fn forget_behind(&mut self, front: Offset) -> Vec<Start> {
        self.drop_where(|_, kept| !kept.complete && kept.read_to < front)
    }

    /// Lets go of the complete starts whose progress is recorded.
    pub fn drop_shown(&mut self) -> Vec<Start> {
        self.drop_where(|_, kept| kept.complete && kept.shown == Some(kept.ledger.next))
    }

    /// Lets go of all: they are another's.
    pub fn drop_all(&mut self) -> Vec<Start> {
        self.drop_where(|_, _| true)
    }

    fn drop_where(&mut self, gone: impl Fn(Start, &Kept) -> bool) -> Vec<Start> {
        let dropped: Vec<_> = self
            .kept
            .iter()
            .filter(|(start, kept)| gone(**start, kept))
            .map(|(start, _)| *start)
            .collect();
        dropped.iter().for_each(|start| {
            self.kept.remove(start);
        });
        dropped
    }

    /// The progress that may be recorded now, cuts before the chunk's own: each group is to be durable before the next
    /// is sent. Rows of these starts must be durable already.
    pub fn to_show(&self, wanted: &Wanted) -> [Vec<(Start, &Kept)>; 2] {
        let mut shown: BTreeMap<Start, Option<Offset>> = wanted
            .cuts
            .iter()
            .map(|cut| (*cut, wanted.progress.next(*cut)))
            .collect();
        let news = |start: &Start, shown: &BTreeMap<Start, Option<Offset>>| {
            let kept = self.kept.get(start)?;
            let is_news = kept.ledger.next > start.0 && kept.shown < Some(kept.ledger.next) && !kept.is_withheld;
            (is_news && may_show(*start, kept.ledger.next, shown, self.chunk)).then_some((*start, kept))
        };
        let (mut cuts, mut own) = (Vec::new(), Vec::new());
        // From the highest start down: a lower one waits for the cuts behind it.
        for start in self.kept.keys().rev() {
            if self.chunk.is_first(start.0) {
                own.extend(news(start, &shown));
            } else if let Some((cut, kept)) = news(start, &shown) {
                shown.insert(cut, Some(kept.ledger.next));
                cuts.push((cut, kept));
            }
        }
        [cuts, own]
    }

    /// The store refuses a row of this start's cells: no progress of it is shown any more. Whether that is news.
    pub fn withhold(&mut self, start: Start) -> bool {
        let kept = self.kept.get_mut(&start);
        kept.is_some_and(|kept| !std::mem::replace(&mut kept.is_withheld, true))
    }

    /// Progress was recorded up to there, under that redo: of another one it says nothing.
    pub fn mark_shown(&mut self, start: Start, redo: Redo, next: Offset) {
        if let Some(kept) = self.kept.get_mut(&start).filter(|kept| kept.redo == redo) {
            kept.shown = kept.shown.max(Some(next));
        }
    }

    /// Counts what the view's plan made of the events that a start took.
    pub fn folded(&mut self, counted: &Counted) {
        if let Some(kept) = self.kept.get_mut(&counted.start) {
            let Filtered { passed, failed } = counted.filtered;
            kept.ledger.aggregated += passed;
            kept.ledger.filtered += counted.events.saturating_sub(passed);
            kept.ledger.failed_filters += failed;
        }
    }
}

impl Kept {
    /// Counts the records in a range that is taken. Of the accepted the plan says more.
    fn count(&mut self, range: OffsetRange, records: &Records) {
        let first = records.fates.partition_point(|(offset, _)| *offset < range.from);
        let length = records.fates[first..].partition_point(|(offset, _)| *offset < range.to);
        let (ledger, mut unsure, mut repeated) = (&mut self.ledger, 0, 0);
        for (_, fate) in &records.fates[first..first + length] {
            match fate {
                Fate::Accepted(Judgement::First) => {}
                Fate::Accepted(Judgement::Unsure) => unsure += 1,
                Fate::Accepted(Judgement::Repeat) => repeated += 1,
                Fate::Refused(reason) => *ledger.invalid.entry(reason.name().to_owned()).or_default() += 1,
            }
        }
        let read = length as u64;
        ledger.read += read;
        ledger.unsure += unsure;
        ledger.repeated += repeated;
        // What lies between the records, and behind the last where the chunk ends in a hole.
        ledger.holes += range.to.0 - range.from.0 - read + self.lost;
        ledger.gap += std::mem::take(&mut self.lost);
    }
}

#[cfg(test)]
mod tests;
