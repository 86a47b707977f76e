//! Which events are repeats: all of them, however far apart.
//!
//! Two events are the same when their `event_id` and event time are equal, and none where a part of the id is null. Of
//! equal ones in a partition the lowest offset stays; of those that stay across partitions, the one with the lowest Kafka
//! timestamp, then the lowest partition number, then the lowest topic id. Equal events have equal event times, so a day
//! can be done without its neighbours.
//!
//! Events are known by a hash of 128 bits, as in the speed layer: 32 bytes each with their place, whatever they carry. They are put into buckets by
//! that hash, so that equal ones meet in one bucket, and each bucket is sorted by itself. What exceeds the memory goes to a file
//! for each bucket, after those are dropped of which a lower offset is known already: one event sent over and over takes
//! no room. What comes out is only which offsets are repeats, and a second reading of the events leaves those out.
//!
//! Sorting the events themselves, as plain SQL would, moves every byte of them several times: a day of wide events went to disk
//! whole, twice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::{DataFusionError, Result};
use shared_schemas::handoff::Partition;
use shared_schemas::identity::EventId;

use crate::spill::Spill;

/// One for each value of the hash's first byte: a day of 100 M events makes buckets of 12 MB.
const BUCKETS: usize = 256;
/// Bytes of one event in a file.
const RECORD: usize = 32;
/// An offset takes so many bits of a place, the partition's index the rest.
const OFFSET_BITS: u32 = 48;
const OFFSETS: u64 = (1 << OFFSET_BITS) - 1;
/// A bucket grows by this part of what it holds: doubling would leave half of the memory empty.
const GROWS: usize = 8;
/// So many offsets of a block are listed; of more, each offset of the block has a bit.
const LISTED: usize = 4096;

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
    /// What `place` stands for.
    places: Vec<Partition>,
    buckets: Vec<Mutex<Bucket>>,
    held: AtomicUsize,
    /// So many bytes are held in memory, about.
    most: usize,
    making_room: Mutex<()>,
    gone: Mutex<Repeats>,
    spill: Arc<Spill>,
    spilled: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    seen: Vec<Seen>,
    file: Option<File>,
    /// Bytes in the file.
    spilled: usize,
}

/// What a thread has seen and not handed in yet.
#[derive(Debug)]
pub(crate) struct Hand {
    seen: Vec<Vec<Seen>>,
    beyond: bool,
}

impl Default for Hand {
    fn default() -> Self {
        Self {
            seen: vec![Vec::new(); BUCKETS],
            beyond: false,
        }
    }
}

impl Hand {
    /// An event at that offset of the partition with this index, with that Kafka timestamp.
    pub(crate) fn take(&mut self, EventId(id): EventId, place: usize, offset: u64, time: i64) {
        let [bucket, ..] = id.to_be_bytes();
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let id = [(id >> 64) as u64, id as u64];
        let place = u64::from(u16::try_from(place).unwrap_or(u16::MAX));
        self.beyond |= offset > OFFSETS || place == u64::from(u16::MAX);
        self.seen[usize::from(bucket)].push(Seen {
            id,
            at: place << OFFSET_BITS | (offset & OFFSETS),
            time,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sightings {
    /// Of events in these partitions, with about so many bytes of memory.
    pub(crate) fn new(places: Vec<Partition>, memory: usize, spill: Arc<Spill>) -> Self {
        Self {
            gone: Mutex::new(Repeats::new(places.len())),
            places,
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
            held: AtomicUsize::new(0),
            most: memory,
            making_room: Mutex::new(()),
            spill,
            spilled: AtomicU64::new(0),
        }
    }

    /// Takes what a thread has seen.
    ///
    /// # Errors
    /// A disk that is full.
    pub(crate) fn hand_in(&self, hand: &mut Hand) -> Result<()> {
        if hand.beyond {
            let most = "finding repeats takes offsets below 2^48, of fewer than 65,535 partitions".to_owned();
            return Err(DataFusionError::Execution(most));
        }
        let mut grown = 0;
        for (bucket, new) in self.buckets.iter().zip(&mut hand.seen) {
            let mut bucket = lock(bucket);
            let before = bucket.bytes();
            let seen = &mut bucket.seen;
            if seen.capacity() - seen.len() < new.len() {
                seen.reserve_exact(new.len().max(seen.len() / GROWS));
            }
            seen.append(new);
            grown += bucket.bytes() - before;
        }
        if self.held.fetch_add(grown, Ordering::Relaxed) + grown > self.most {
            let _one = lock(&self.making_room);
            // Another thread may have made room meanwhile.
            if self.held.load(Ordering::Relaxed) > self.most {
                self.make_room()?;
            }
        }
        Ok(())
    }

    /// Drops what is known to be a repeat; where little goes, the rest goes to disk.
    fn make_room(&self) -> Result<()> {
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
        self.buckets.iter().filter(|bucket| lock(bucket).file.is_some()).count() as u64
    }

    /// Which of all that were handed in are repeats. Works on so many threads.
    ///
    /// # Errors
    /// Files that can't be read, or a memory that holds no bucket.
    pub(crate) async fn judge(self: &Arc<Self>, threads: usize) -> Result<Repeats> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut work = tokio::task::JoinSet::new();
        let room = (self.most / threads.max(1)).max(1 << 20);
        for _ in 0..threads.max(1) {
            let (all, next) = (Arc::clone(self), Arc::clone(&next));
            work.spawn_blocking(move || {
                let mut repeats = Repeats::new(all.places.len());
                while let Some(bucket) = all.buckets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seen = lock(bucket).all(room)?;
                    all.judge_bucket(seen, &mut repeats);
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

    fn judge_bucket(&self, mut seen: Vec<Seen>, repeats: &mut Repeats) {
        seen.sort_unstable();
        for same in seen.chunk_by(|one, other| one.id == other.id) {
            let [_, _, ..] = same else { continue };
            let mut stays: Option<&Seen> = None;
            for of_partition in same.chunk_by(|one, other| one.place() == other.place()) {
                let (first, later) = of_partition.split_at(1);
                later
                    .iter()
                    .for_each(|seen| repeats.insert(seen.place(), seen.offset()));
                let [first] = first else { continue };
                let order = |seen: &Seen| {
                    let place = self.places.get(seen.place());
                    (seen.time, place.map(|place| (place.number, place.topic)))
                };
                match stays {
                    None => stays = Some(first),
                    Some(other) if order(first) < order(other) => {
                        repeats.insert(other.place(), other.offset());
                        stays = Some(first);
                    }
                    Some(_) => repeats.insert(first.place(), first.offset()),
                }
            }
        }
    }
}

impl Bucket {
    fn bytes(&self) -> usize {
        self.seen.capacity() * size_of::<Seen>()
    }

    /// Of equal events in a partition only the one with the lowest offset can still stay.
    fn drop_later(&mut self, gone: &mut Repeats) {
        self.seen.sort_unstable();
        self.seen.dedup_by(|later, first| {
            let same = (later.id, later.place()) == (first.id, first.place());
            if same {
                gone.insert(later.place(), later.offset());
            }
            same
        });
        self.seen.shrink_to_fit();
    }

    /// Appends all to the bucket's file; how many bytes.
    fn write(&mut self, spill: &Spill, number: usize) -> Result<u64> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(spill.file(&format!("ids-{number:03}"))?),
        };
        let mut out = BufWriter::new(file);
        for seen in &self.seen {
            out.write_all(&seen.id[0].to_le_bytes())?;
            out.write_all(&seen.id[1].to_le_bytes())?;
            out.write_all(&seen.at.to_le_bytes())?;
            out.write_all(&seen.time.to_le_bytes())?;
        }
        out.flush()?;
        drop(out);
        let written = self.seen.len() * RECORD;
        self.spilled += written;
        self.seen = Vec::new();
        Ok(written as u64)
    }

    /// All of it, from memory and file, within so many bytes.
    fn all(&mut self, room: usize) -> Result<Vec<Seen>> {
        let mut seen = std::mem::take(&mut self.seen);
        let Some(file) = &mut self.file else {
            return Ok(seen);
        };
        let needed = (self.spilled / RECORD + seen.len()) * size_of::<Seen>();
        if needed > room {
            let (needed, factor) = (needed >> 20, needed.div_ceil(room));
            return Err(DataFusionError::ResourcesExhausted(format!(
                "finding repeats needs {needed} MiB for one of {BUCKETS} parts of a day's events, and has {} MiB: raise \
                 `batch.memory` to {factor} times as much",
                room >> 20
            )));
        }
        seen.reserve_exact(self.spilled / RECORD);
        file.rewind()?;
        let mut input = BufReader::with_capacity(1 << 16, file);
        let mut record = [0_u8; RECORD];
        for _ in 0..self.spilled / RECORD {
            input.read_exact(&mut record)?;
            let number = |at: usize| {
                let mut bytes = [0_u8; 8];
                bytes.copy_from_slice(&record[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            seen.push(Seen {
                id: [number(0), number(8)],
                at: number(16),
                time: number(24).cast_signed(),
            });
        }
        Ok(seen)
    }
}

/// Offsets that are repeats, by the index of their partition.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    of: Vec<BTreeMap<u64, Block>>,
    count: u64,
}

/// Offsets of a block of 65,536, by their lower half.
#[derive(Debug)]
enum Block {
    Few(Vec<u16>),
    Many(Box<[u64; 1024]>),
}

impl Repeats {
    fn new(places: usize) -> Self {
        Self {
            of: (0..places).map(|_| BTreeMap::new()).collect(),
            count: 0,
        }
    }

    /// Each offset once.
    fn insert(&mut self, place: usize, offset: u64) {
        let Some(blocks) = self.of.get_mut(place) else {
            return;
        };
        self.count += 1;
        let block = blocks.entry(offset >> 16).or_insert_with(|| Block::Few(Vec::new()));
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        block.insert(offset as u16);
    }

    fn extend(&mut self, other: Self) {
        for (place, blocks) in other.of.into_iter().enumerate() {
            for (block, low) in blocks {
                low.each(|low| self.insert(place, block << 16 | u64::from(low)));
            }
        }
    }

    fn seal(&mut self) {
        for block in self.of.iter_mut().flat_map(BTreeMap::values_mut) {
            if let Block::Few(few) = block {
                few.sort_unstable();
                few.shrink_to_fit();
            }
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes in memory, about.
    pub(crate) fn memory(&self) -> usize {
        let bytes = |block: &Block| match block {
            Block::Few(few) => few.len() * 2 + 64,
            Block::Many(_) => 8192 + 64,
        };
        self.of.iter().flat_map(BTreeMap::values).map(bytes).sum()
    }

    /// Whether that offset of the partition with this index is one.
    pub(crate) fn contains(&self, place: usize, offset: u64) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let low = offset as u16;
        let block = self.of.get(place).and_then(|blocks| blocks.get(&(offset >> 16)));
        match block {
            None => false,
            Some(Block::Few(few)) => few.binary_search(&low).is_ok(),
            Some(Block::Many(bits)) => bits[usize::from(low >> 6)] & (1 << (low & 63)) != 0,
        }
    }
}

impl Block {
    fn insert(&mut self, low: u16) {
        match self {
            Self::Few(few) if few.len() < LISTED => few.push(low),
            Self::Few(few) => {
                let mut bits = Box::new([0_u64; 1024]);
                for low in few.iter().chain([&low]) {
                    bits[usize::from(low >> 6)] |= 1 << (low & 63);
                }
                *self = Self::Many(bits);
            }
            Self::Many(bits) => bits[usize::from(low >> 6)] |= 1 << (low & 63),
        }
    }

    fn each(&self, mut take: impl FnMut(u16)) {
        match self {
            Self::Few(few) => few.iter().for_each(|low| take(*low)),
            Self::Many(bits) => {
                for low in 0..=u16::MAX {
                    if bits[usize::from(low >> 6)] & (1 << (low & 63)) != 0 {
                        take(low);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use shared_schemas::handoff::TopicId;

    use super::*;

    /// An id whose hash lies in one of few buckets.
    fn id(number: u64) -> EventId {
        EventId(u128::from(number % 3) << 120 | u128::from(number))
    }

    fn places() -> Vec<Partition> {
        [(9, 1), (9, 0), (4, 1)]
            .map(|(topic, number)| Partition {
                topic: TopicId(topic),
                number,
            })
            .to_vec()
    }

    fn judged(events: &[(u64, u32, i64)], memory: usize) -> (BTreeSet<usize>, u64, u64) {
        let spill = Arc::new(Spill::new(None).unwrap());
        let sightings = Arc::new(Sightings::new(places(), memory, spill));
        let mut hand = Hand::default();
        for (offset, (event, place, time)) in (0..).zip(events) {
            hand.take(id(*event), *place as usize, offset, *time);
            if offset % 50 == 0 {
                sightings.hand_in(&mut hand).unwrap();
            }
        }
        sightings.hand_in(&mut hand).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let repeats = runtime.block_on(sightings.judge(2)).unwrap();
        let found = (0..events.len()).filter(|at| repeats.contains(events[*at].1 as usize, *at as u64));
        (found.collect(), repeats.count(), sightings.spilled())
    }

    /// The rule, one event at a time.
    fn expected(events: &[(u64, u32, i64)]) -> BTreeSet<usize> {
        let (mut first, mut gone) = (BTreeMap::new(), BTreeSet::new());
        for (at, (event, place, _)) in events.iter().enumerate() {
            if *first.entry((*event, *place)).or_insert(at) != at {
                gone.insert(at);
            }
        }
        let places = places();
        let order = |at: usize| {
            let place = places[events[at].1 as usize];
            (events[at].2, place.number, place.topic)
        };
        for ((event, _), at) in &first {
            let others = first.iter().filter(|((other, _), _)| other == event);
            if others.into_iter().any(|(_, other)| order(*other) < order(*at)) {
                gone.insert(*at);
            }
        }
        gone
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// With and without room in memory, the same offsets are repeats: those that the rule says.
        #[test]
        fn the_rule_in_any_memory(events in prop::collection::vec((0_u64..200, 0_u32..3, 0_i64..4), 0..600)) {
            let (found, count, spilled) = judged(&events, 1 << 30);
            prop_assert_eq!(&found, &expected(&events));
            prop_assert_eq!((count, spilled), (found.len() as u64, 0));
            let (again, count, spilled) = judged(&events, 2000);
            prop_assert_eq!(&found, &again);
            prop_assert_eq!(count, found.len() as u64);
            prop_assert!(spilled > 0 || events.len() < 200);
        }
    }

    #[test]
    fn one_event_over_and_over_takes_no_room() {
        let events: Vec<_> = (0..100_000).map(|_| (7, 1, 0)).collect();
        let (found, count, spilled) = judged(&events, 100_000);
        assert_eq!((found.len(), count, spilled), (99_999, 99_999, 0));
        assert!(!found.contains(&0));
    }
}
