//! Events whose hashes begin alike: in memory, in a file, and in their order where memory does not hold them.
//!
//! A bucket that is too large is sorted as usual: what fits into half of the memory at a time goes to a second file in its order, and the pieces are merged as
//! they are read, each with its part of the other half. However large it is, an event is written twice and read twice; what it was sorted from goes
//! as soon as that is done, so both files are there for one bucket of a thread at a time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use datafusion::common::Result;

use super::{Repeats, Seen};
use crate::spill::{Spill, Spilled};

/// Bytes of one event in a file.
const RECORD: usize = 32;
/// Bytes that looking through an event in memory takes: the event, the table in which it is looked up, and the event once more where it is one of
/// several equal ones.
const OF_EVENT: usize = 2 * size_of::<Seen>() + 4 * size_of::<u64>();
/// So many events of a piece are read at once, at most.
const AT_ONCE: usize = 2048;

/// Events in memory, and more of them in a file.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) pieces: Vec<Vec<Seen>>,
    /// Until all of it is taken.
    file: Option<Spilled>,
    /// Bytes that were written to it.
    spilled: usize,
}

/// All events of a bucket.
pub(super) enum All {
    /// In memory, in any order.
    Held(Vec<Vec<Seen>>),
    /// From disk, in their order.
    InOrder(InOrder),
}

/// Bytes that events take in memory.
pub(super) fn bytes(seen: &Vec<Seen>) -> usize {
    seen.capacity() * size_of::<Seen>()
}

impl Bucket {
    pub(super) fn bytes(&self) -> usize {
        self.pieces.iter().map(bytes).sum()
    }

    /// Whether any of it went to disk.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled > 0
    }

    /// All in memory, in one piece.
    fn taken(&mut self) -> Vec<Seen> {
        match &mut self.pieces[..] {
            [only] => {
                let only = std::mem::take(only);
                self.pieces.clear();
                only
            }
            _ => std::mem::take(&mut self.pieces).concat(),
        }
    }

    /// Of equal events in a partition only the one with the lowest offset can still stay.
    pub(super) fn drop_later(&mut self, gone: &mut Repeats) {
        let mut seen = self.taken();
        seen.sort_unstable();
        seen.dedup_by(|later, first| {
            let same = (later.id, later.place()) == (first.id, first.place());
            if same {
                gone.insert(later.place(), later.offset());
            }
            same
        });
        seen.shrink_to_fit();
        self.pieces.extend((!seen.is_empty()).then_some(seen));
    }

    /// Appends all to the bucket's file; how many bytes.
    pub(super) fn write(&mut self, spill: &Spill, number: usize) -> Result<u64> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(spill.file(&format!("ids-{number:03}"))?),
        };
        let mut out = BufWriter::new(file.writer()?);
        let mut written = 0;
        for seen in std::mem::take(&mut self.pieces) {
            seen.iter().try_for_each(|seen| out.write_all(&record(seen)))?;
            written += seen.len() * RECORD;
        }
        out.flush()?;
        drop(out);
        self.spilled += written;
        Ok(written as u64)
    }

    /// All of it, once, within so many bytes of memory; and how many more went to disk.
    pub(super) fn all(&mut self, spill: &Spill, number: usize, room: usize) -> Result<(All, u64)> {
        let held: usize = self.pieces.iter().map(Vec::len).sum();
        let events = self.spilled / RECORD + held;
        if events * OF_EVENT > room {
            let written = self.write(spill, number)?;
            let in_order = self.in_order(spill, number, room)?;
            return Ok((All::InOrder(in_order), written + self.spilled as u64));
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        if let Some(mut file) = self.file.take() {
            file.file.rewind()?;
            let mut input = BufReader::with_capacity(1 << 16, &file.file);
            pieces.push(read(&mut input, self.spilled / RECORD)?);
        }
        Ok((All::Held(pieces), 0))
    }

    /// Sorts the file into another one, and lets it go.
    fn in_order(&mut self, spill: &Spill, number: usize, room: usize) -> Result<InOrder> {
        let sorted = spill.file(&format!("ids-{number:03}-sorted"))?;
        let Some(mut file) = self.file.take() else {
            return Ok(InOrder::new(sorted, Vec::new(), 1));
        };
        file.file.rewind()?;
        let mut input = BufReader::with_capacity(1 << 16, &file.file);
        let mut out = BufWriter::new(sorted.writer()?);
        let at_once = (room / 2 / size_of::<Seen>()).max(1);
        let mut left = self.spilled / RECORD;
        let (mut runs, mut from) = (Vec::new(), 0);
        while left > 0 {
            let mut seen = read(&mut input, left.min(at_once))?;
            seen.sort_unstable();
            seen.iter().try_for_each(|seen| out.write_all(&record(seen)))?;
            left -= seen.len();
            let to = from + (seen.len() * RECORD) as u64;
            runs.push(Run {
                from,
                to,
                at_hand: Vec::new(),
            });
            from = to;
        }
        out.flush()?;
        drop(out);
        let at_once = room / 2 / size_of::<Seen>() / runs.len().max(1);
        Ok(InOrder::new(sorted, runs, at_once.clamp(1, AT_ONCE)))
    }
}

fn record(seen: &Seen) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let numbers = [seen.id[0], seen.id[1], seen.at, seen.time.cast_unsigned()];
    for (to, number) in record.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    record
}

fn seen(record: &[u8; RECORD]) -> Seen {
    let number = |at: usize| {
        let mut bytes = [0_u8; 8];
        bytes.copy_from_slice(&record[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Seen {
        id: [number(0), number(8)],
        at: number(16),
        time: number(24).cast_signed(),
    }
}

/// The next so many events.
fn read(input: &mut impl Read, count: usize) -> std::io::Result<Vec<Seen>> {
    let mut all = Vec::with_capacity(count);
    let mut record = [0_u8; RECORD];
    for _ in 0..count {
        input.read_exact(&mut record)?;
        all.push(seen(&record));
    }
    Ok(all)
}

/// Sorted pieces of a file, merged.
pub(super) struct InOrder {
    file: Spilled,
    runs: Vec<Run>,
    /// Of each piece the next event, and which piece it is.
    next: BinaryHeap<Reverse<(Seen, usize)>>,
    /// So many events of a piece are read at once.
    at_once: usize,
    is_begun: bool,
}

/// A sorted piece.
struct Run {
    /// What was not read yet, in bytes.
    from: u64,
    to: u64,
    /// What was, the next one last.
    at_hand: Vec<Seen>,
}

impl InOrder {
    fn new(file: Spilled, runs: Vec<Run>, at_once: usize) -> Self {
        Self {
            file,
            runs,
            next: BinaryHeap::new(),
            at_once,
            is_begun: false,
        }
    }

    /// The next event of a piece takes its place among the next ones.
    fn advance(&mut self, number: usize) -> std::io::Result<()> {
        let Some(run) = self.runs.get_mut(number) else {
            return Ok(());
        };
        if run.at_hand.is_empty() && run.from < run.to {
            let left = run.to - run.from;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.at_once * RECORD);
            let mut bytes = vec![0; length];
            self.file.file.read_exact_at(&mut bytes, run.from)?;
            run.from += length as u64;
            run.at_hand.extend(bytes.as_chunks::<RECORD>().0.iter().rev().map(seen));
        }
        self.next.extend(run.at_hand.pop().map(|seen| Reverse((seen, number))));
        Ok(())
    }

    fn step(&mut self) -> std::io::Result<Option<Seen>> {
        if !std::mem::replace(&mut self.is_begun, true) {
            (0..self.runs.len()).try_for_each(|number| self.advance(number))?;
        }
        let Some(Reverse((seen, number))) = self.next.pop() else {
            return Ok(None);
        };
        self.advance(number)?;
        Ok(Some(seen))
    }
}

impl Iterator for InOrder {
    type Item = std::io::Result<Seen>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
