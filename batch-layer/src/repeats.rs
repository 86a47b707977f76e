//! Which events are repeats: all of them, however far apart; or those that the speed layer knows of.
//!
//! Two events are the same when their `event_id` and event time are equal, and none where a part of the id is null. Of
//! equal ones in a partition the lowest offset stays; of those that stay across partitions, the one with the lowest Kafka
//! timestamp, then the lowest partition number, then the lowest topic id. Equal events have equal event times, so a day
//! can be done without its neighbours. The speed layer knows only what its partition held within a window: reconciliation tells with
//! the same code what that layer should hold.
//!
//! Events are known by a hash of 128 bits, as in the speed layer: 32 bytes each with their place, whatever they carry. They are put into buckets by
//! that hash, so that equal ones meet in one bucket, and each bucket is looked through by itself. What exceeds the memory goes to a file
//! for each bucket, after those are dropped of which a lower offset is known already: one event sent over and over takes
//! no room. A bucket that is too large for the memory is sorted on disk and looked through as it is read. What comes out is only which offsets are
//! repeats, and a second reading of the events leaves those out.
//!
//! By the speed layer's rule nothing can be dropped early. An occurrence is a repeat if any lower offset's time is late enough, so an event that comes
//! later may stand between any two of those that came already, and what counts for it is the highest time below it: where times ascend, as
//! they mostly do, each occurrence is that for some offset.
//!
//! Sorting the events themselves, as plain SQL would, moves every byte of them several times: a day of wide events went to disk
//! whole, twice.

mod bucket;
mod offsets;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::{DataFusionError, Result};
use shared_schemas::handoff::Partition;
use shared_schemas::identity::EventId;

use crate::spill::Spill;

use self::bucket::{All, Bucket, bytes};
pub(crate) use self::offsets::{Repeats, Within};

/// One for each value of the hash's first byte: a day of 100 M events makes buckets of 12 MB.
const BUCKETS: usize = 256;
/// Bytes of memory in which a thread looks through a bucket, at least.
const LEAST: usize = 1 << 20;
/// An offset takes so many bits of a place, the partition's index the rest.
const OFFSET_BITS: u32 = 48;
const OFFSETS: u64 = (1 << OFFSET_BITS) - 1;
/// Events are kept in pieces of so many, which never move; of fewer where a quarter of the memory would not hold a piece of each bucket for
/// each thread.
const PIECE: usize = 512;
const SHORTEST: usize = 4;

/// Which of equal events are repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All but one, in all partitions: the batch layer's.
    AllButOne,
    /// The speed layer's: those with an equal one at a lower offset of their partition whose Kafka timestamp is so many microseconds before
    /// their own at most. That one may be a repeat too, and need not count.
    Known(i64),
}

/// An occurrence of an event. The order is what makes the first of equal ones in a partition come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    id: [u64; 2],
    /// The partition's index, then the offset.
    at: u64,
    time: i64,
}

impl Seen {
    fn place(&self) -> usize {
        usize::try_from(self.at >> OFFSET_BITS).unwrap_or(usize::MAX)
    }

    fn offset(&self) -> u64 {
        self.at & OFFSETS
    }
}

/// Occurrences of events, until all are known. Filled from several threads.
#[derive(Debug)]
pub(crate) struct Sightings {
    rule: Rule,
    /// What `place` stands for.
    places: Vec<Partition>,
    buckets: Vec<Mutex<Bucket>>,
    held: AtomicUsize,
    /// So many bytes are held in memory, about.
    most: usize,
    /// Events in a piece.
    piece: usize,
    making_room: Mutex<()>,
    gone: Mutex<Repeats>,
    spill: Arc<Spill>,
    spilled: AtomicU64,
}

/// What a thread has seen and not handed in yet: of each bucket a piece that is not full.
#[derive(Debug)]
pub(crate) struct Hand {
    seen: Vec<Vec<Seen>>,
}

impl Default for Hand {
    fn default() -> Self {
        Self {
            seen: vec![Vec::new(); BUCKETS],
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sightings {
    /// Of events in these partitions, seen by so many threads, with about so many bytes of memory.
    pub(crate) fn new(rule: Rule, places: Vec<Partition>, threads: usize, memory: usize, spill: Arc<Spill>) -> Self {
        let of_bucket = memory / 4 / BUCKETS / threads.max(1);
        Self {
            rule,
            gone: Mutex::new(Repeats::new(places.len())),
            places,
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
            held: AtomicUsize::new(0),
            most: memory,
            piece: (of_bucket / size_of::<Seen>()).clamp(SHORTEST, PIECE),
            making_room: Mutex::new(()),
            spill,
            spilled: AtomicU64::new(0),
        }
    }

    /// A thread saw an event at that offset of the partition with this index, with that Kafka timestamp.
    ///
    /// # Errors
    /// A disk that is full, and a place that no [`Seen`] can hold.
    pub(crate) fn take(
        &self,
        hand: &mut Hand,
        EventId(id): EventId,
        place: usize,
        offset: u64,
        time: i64,
    ) -> Result<()> {
        let [bucket, ..] = id.to_be_bytes();
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let id = [(id >> 64) as u64, id as u64];
        let place = u64::from(u16::try_from(place).unwrap_or(u16::MAX));
        if offset > OFFSETS || place == u64::from(u16::MAX) {
            let most = "finding repeats takes offsets below 2^48, of fewer than 65,535 partitions".to_owned();
            return Err(DataFusionError::Execution(most));
        }
        let seen = &mut hand.seen[usize::from(bucket)];
        if seen.capacity() == 0 {
            seen.reserve_exact(self.piece);
            self.held.fetch_add(bytes(seen), Ordering::Relaxed);
        }
        seen.push(Seen {
            id,
            at: place << OFFSET_BITS | offset,
            time,
        });
        if seen.len() < self.piece {
            return Ok(());
        }
        let full = std::mem::take(seen);
        if let Some(bucket) = self.buckets.get(usize::from(bucket)) {
            lock(bucket).pieces.push(full);
        }
        if self.held.load(Ordering::Relaxed) > self.most {
            let _one = lock(&self.making_room);
            // Another thread may have made room meanwhile.
            if self.held.load(Ordering::Relaxed) > self.most {
                self.make_room()?;
            }
        }
        Ok(())
    }

    /// A thread has seen all that it will see.
    pub(crate) fn hand_in(&self, hand: Hand) {
        for (bucket, seen) in self.buckets.iter().zip(hand.seen) {
            if !seen.is_empty() {
                lock(bucket).pieces.push(seen);
            }
        }
    }

    /// Drops what is known to be a repeat; where little goes, the rest goes to disk.
    fn make_room(&self) -> Result<()> {
        if self.rule != Rule::AllButOne {
            return self.spill_all();
        }
        let mut gone = Repeats::new(self.places.len());
        for bucket in &self.buckets {
            let mut bucket = lock(bucket);
            let before = bucket.bytes();
            bucket.drop_later(&mut gone);
            self.held.fetch_sub(before - bucket.bytes(), Ordering::Relaxed);
        }
        lock(&self.gone).extend(gone);
        if self.held.load(Ordering::Relaxed) <= self.most / 2 {
            return Ok(());
        }
        self.spill_all()
    }

    fn spill_all(&self) -> Result<()> {
        for (number, bucket) in self.buckets.iter().enumerate() {
            let mut bucket = lock(bucket);
            self.held.fetch_sub(bucket.bytes(), Ordering::Relaxed);
            let written = bucket.write(&self.spill, number)?;
            self.spilled.fetch_add(written, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes written to disk.
    pub(crate) fn spilled(&self) -> u64 {
        self.spilled.load(Ordering::Relaxed)
    }

    /// Files written to.
    pub(crate) fn files(&self) -> u64 {
        self.buckets.iter().filter(|bucket| lock(bucket).is_spilled()).count() as u64
    }

    /// Which of all that were handed in are repeats. Works on so many threads.
    ///
    /// # Errors
    /// Files that can't be written or read.
    pub(crate) async fn judge(self: &Arc<Self>, threads: usize) -> Result<Repeats> {
        self.judge_within(threads, (self.most / threads.max(1)).max(LEAST))
            .await
    }

    /// The same, with so many bytes for each thread.
    async fn judge_within(self: &Arc<Self>, threads: usize, room: usize) -> Result<Repeats> {
        if self.spilled() > 0 {
            // What is still held would stand beside what is read back.
            let all = Arc::clone(self);
            let spilled = tokio::task::spawn_blocking(move || all.spill_all());
            spilled
                .await
                .map_err(|error| DataFusionError::External(Box::new(error)))??;
        }
        let next = Arc::new(AtomicUsize::new(0));
        let mut work = tokio::task::JoinSet::new();
        for _ in 0..threads.max(1) {
            let (all, next) = (Arc::clone(self), Arc::clone(&next));
            work.spawn_blocking(move || {
                let mut repeats = Repeats::new(all.places.len());
                let mut table = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(bucket) = all.buckets.get(number) else { break };
                    let mut judge = Judge::new(&all, &mut repeats);
                    let (seen, written) = lock(bucket).all(&all.spill, number, room)?;
                    all.spilled.fetch_add(written, Ordering::Relaxed);
                    match seen {
                        All::Held(seen) => {
                            let mut same = equal(&seen, &mut table);
                            same.sort_unstable();
                            same.into_iter().for_each(|seen| judge.see(seen));
                        }
                        All::InOrder(seen) => {
                            for seen in seen {
                                judge.see(seen?);
                            }
                        }
                    }
                }
                Ok::<_, DataFusionError>(repeats)
            });
        }
        let mut repeats = std::mem::replace(&mut *lock(&self.gone), Repeats::new(self.places.len()));
        while let Some(part) = work.join_next().await {
            repeats.extend(part.map_err(|error| DataFusionError::External(Box::new(error)))??);
        }
        repeats.seal();
        Ok(repeats)
    }
}

/// Tells repeats among events that come in their order.
struct Judge<'a> {
    of: &'a Sightings,
    repeats: &'a mut Repeats,
    last: Option<Seen>,
    /// The highest time of the last event in its partition so far.
    latest: i64,
    /// Of the last event the one that stays so far.
    stays: Option<Seen>,
}

impl<'a> Judge<'a> {
    fn new(of: &'a Sightings, repeats: &'a mut Repeats) -> Self {
        Self {
            of,
            repeats,
            last: None,
            latest: i64::MIN,
            stays: None,
        }
    }

    fn see(&mut self, seen: Seen) {
        let last = self.last.replace(seen).filter(|last| last.id == seen.id);
        let in_partition = last.is_some_and(|last| last.place() == seen.place());
        match self.of.rule {
            Rule::Known(window) => {
                if in_partition && self.latest >= seen.time.saturating_sub(window) {
                    self.repeats.insert(seen.place(), seen.offset());
                }
                self.latest = if in_partition {
                    self.latest.max(seen.time)
                } else {
                    seen.time
                };
            }
            Rule::AllButOne if in_partition => self.repeats.insert(seen.place(), seen.offset()),
            Rule::AllButOne => {
                let order = |seen: &Seen| {
                    let place = self.of.places.get(seen.place());
                    (seen.time, place.map(|place| (place.number, place.topic)))
                };
                match self.stays.filter(|_| last.is_some()) {
                    Some(other) if order(&other) <= order(&seen) => self.repeats.insert(seen.place(), seen.offset()),
                    other => {
                        if let Some(other) = other {
                            self.repeats.insert(other.place(), other.offset());
                        }
                        self.stays = Some(seen);
                    }
                }
            }
        }
    }
}

/// Those events of which an equal one is among them: few of many, mostly, so nothing is sorted before they are found.
///
/// They are looked up in a table with open addresses. A slot holds the number of an event and half of its hash; their whole hashes are compared where
/// those halves are equal.
fn equal(seen: &[Vec<Seen>], table: &mut Vec<u64>) -> Vec<Seen> {
    let pieces: Vec<&[Seen]> = seen.iter().flat_map(|piece| piece.chunks(PIECE)).collect();
    let events: usize = pieces.iter().map(|piece| piece.len()).sum();
    let slots = (events * 2).next_power_of_two();
    table.clear();
    table.resize(slots, u64::MAX);
    let mut found = Vec::new();
    // Of each event whether it is found already.
    let mut first = vec![false; pieces.len() * PIECE];
    for (number, piece) in pieces.iter().enumerate() {
        for (at, event) in piece.iter().enumerate() {
            let at = number * PIECE + at;
            let half = event.id[1] & !u64::from(u32::MAX);
            #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
            let mut slot = event.id[1] as usize & (slots - 1);
            loop {
                let held = table[slot];
                if held == u64::MAX {
                    table[slot] = half | at as u64;
                    break;
                }
                #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
                let other = held as u32 as usize;
                let same = || &pieces[other / PIECE][other % PIECE];
                if held & !u64::from(u32::MAX) == half && same().id == event.id {
                    if !std::mem::replace(&mut first[other], true) {
                        found.push(*same());
                    }
                    found.push(*event);
                    break;
                }
                slot = (slot + 1) & (slots - 1);
            }
        }
    }
    found
}
