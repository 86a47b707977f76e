//! A compact table from an event's identity to the highest Kafka timestamp under which it came.
//!
//! 24 M events come within a window of 30 s at full speed, so what counts is bytes for each, and how often memory is waited
//! for. Slots lie in groups of 320 bytes:
//!
//! ```text
//! | 15 tags, how many slots are used | 15 slots of 14 bytes of the id and 6 bytes of the time | 4 bytes unused |
//! ```
//!
//! An id's place is its home group or, where that is full, the next one that is not: groups fill from the front, so a
//! search ends at the first group that has room. A search for an id that is not there reads one cache line, nearly always.
//! An id is known by 120 of its 128 bits: two of 24 M differ in none of them once in 10^21 times. Nothing is taken out but
//! by [`Table::keep_from`], which goes over the whole table once and leaves no trace of what it drops.

/// Slots in a group.
const SLOTS: usize = 15;
/// The greatest time that a slot can hold: 48 bits of milliseconds reach to the year 10889.
const LATEST: i64 = (1 << 48) - 1;

/// The bytes of a group.
pub(super) const GROUP: usize = size_of::<Group>();

const _: () = assert!(GROUP == 320, "as the module says");

/// So many parts of a table are moved one after the other where it changes its size.
const PARTS: usize = 64;

// Aligned as much as the allocator aligns by itself: what is aligned further it can't make larger where it is.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Group {
    /// The first byte of each used slot's id; and in the last byte how many slots are used, the first ones.
    tags: [u8; SLOTS + 1],
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Slot {
    id: [u8; 14],
    at: [u8; 6],
}

const EMPTY: Group = Group {
    tags: [0; SLOTS + 1],
    slots: [Slot {
        id: [0; 14],
        at: [0; 6],
    }; SLOTS],
};

/// An id as it is stored.
#[derive(Clone, Copy)]
struct Key {
    tag: u8,
    id: [u8; 14],
}

/// What [`Table::keep_from`] let go of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// How many ids.
    pub(super) ids: usize,
    /// The highest time among them.
    pub(super) latest: Option<i64>,
}

/// See the module.
pub(super) struct Table {
    groups: Vec<Group>,
    len: usize,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({} ids in {} groups)", self.len, self.groups.len())
    }
}

impl Slot {
    fn at(&self) -> i64 {
        let [a, b, c, d, e, f] = self.at;
        i64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

fn stored(at: i64) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = at.clamp(0, LATEST).to_le_bytes();
    [a, b, c, d, e, f]
}

impl Key {
    fn of(id: u128) -> Self {
        let [tag, a, b, c, d, e, f, g, h, i, j, k, l, m, n, _] = id.to_le_bytes();
        let id = [a, b, c, d, e, f, g, h, i, j, k, l, m, n];
        Self { tag, id }
    }

    /// Its home among so many groups.
    fn home(&self, groups: usize) -> usize {
        let [.., a, b, c, d] = self.id;
        let place = u64::from(u32::from_le_bytes([a, b, c, d])) * groups as u64;
        usize::try_from(place >> 32).unwrap_or_default()
    }
}

impl Group {
    /// The used slots with that tag: the top bit of each one's byte.
    fn with_tag(&self, tag: u8) -> u128 {
        const ONES: u128 = u128::from_le_bytes([1; 16]);
        const TOPS: u128 = ONES << 7;
        let differ = u128::from_le_bytes(self.tags) ^ (ONES * u128::from(tag));
        // A byte that is not zero has its top bit set, or gets it when all the bits below are added.
        let zero = !(((differ & !TOPS) + !TOPS) | differ) & TOPS;
        zero & ((1 << (8 * self.used())) - 1)
    }

    fn used(&self) -> usize {
        usize::from(self.tags[SLOTS])
    }

    fn is_full(&self) -> bool {
        self.used() == SLOTS
    }

    /// Uses the next slot; there is one.
    fn push(&mut self, key: Key, at: [u8; 6]) {
        let slot = self.used();
        self.tags[slot] = key.tag;
        self.slots[slot] = Slot { id: key.id, at };
        self.tags[SLOTS] += 1;
    }

    fn key(&self, slot: usize) -> Key {
        Key {
            tag: self.tags[slot],
            id: self.slots[slot].id,
        }
    }
}

impl Table {
    /// An empty one with so many groups, at least one.
    pub(super) fn new(groups: usize) -> Self {
        Self {
            groups: vec![EMPTY; groups.max(1)],
            len: 0,
        }
    }

    /// How many ids it holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many groups it has.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// With so many ids it is full: with more, searches would go through many groups.
    pub(super) fn most(&self) -> usize {
        Self::most_of(self.groups.len())
    }

    /// With so many ids one of so many groups is full.
    pub(super) fn most_of(groups: usize) -> usize {
        groups.saturating_mul(SLOTS) / 8 * 7
    }

    /// How many groups take so many ids.
    pub(super) fn groups_for(ids: usize) -> usize {
        let groups = ids.div_ceil(SLOTS * 7 / 8);
        if Self::most_of(groups) < ids {
            groups + 1
        } else {
            groups
        }
    }

    /// Reads the first line of an id's home, so that it is near when the id is looked for. The byte means nothing.
    #[inline]
    pub(super) fn touch_home(&self, id: u128) -> u8 {
        self.groups[Key::of(id).home(self.groups.len())].tags[SLOTS]
    }

    /// Reads where an id would be put, once its home was read.
    #[inline]
    pub(super) fn touch_slot(&self, id: u128) -> u8 {
        let mut place = Key::of(id).home(self.groups.len());
        while self.groups[place].is_full() {
            place = self.after(place);
        }
        let group = &self.groups[place];
        group.slots[group.used()].at[0]
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.groups.len() { 0 } else { place + 1 }
    }

    /// Notes that an id came at that time (ms): its highest time before, if it was noted. There is room for one more.
    #[inline]
    pub(super) fn note(&mut self, id: u128, at: i64) -> Option<i64> {
        let key = Key::of(id);
        let mut place = key.home(self.groups.len());
        loop {
            let group = &mut self.groups[place];
            let mut same_tag = group.with_tag(key.tag);
            while same_tag != 0 {
                let slot = &mut group.slots[same_tag.trailing_zeros() as usize / 8];
                if slot.id == key.id {
                    let before = slot.at();
                    if before < at {
                        slot.at = stored(at);
                    }
                    return Some(before);
                }
                same_tag &= same_tag - 1;
            }
            if !group.is_full() {
                group.push(key, stored(at));
                self.len += 1;
                return None;
            }
            place = self.after(place);
        }
    }

    /// The times of some thousand ids, evenly spread over the table, or of all if it is small; ascending.
    pub(super) fn some_times(&self) -> Vec<i64> {
        const ENOUGH: usize = 256;
        let step = (self.groups.len() / ENOUGH).max(1);
        let groups = self.groups.iter().step_by(step);
        let mut times: Vec<i64> = groups
            .flat_map(|group| &group.slots[..group.used()])
            .map(Slot::at)
            .collect();
        times.sort_unstable();
        times
    }

    /// Drops what came before `from` only.
    pub(super) fn keep_from(&mut self, from: i64) -> Dropped {
        let mut dropped = Dropped::default();
        let groups = self.groups.len();
        // No id went past a group that has room. So from there on each one's home is at or behind it in the order of the
        // walk, and what stays finds its place among groups that are done, its own at the latest.
        let Some(roomy) = self.groups.iter().position(|group| !group.is_full()) else {
            return dropped;
        };
        for step in 1..=groups {
            let place = (roomy + step) % groups;
            let group = self.groups[place];
            let stays = |slot: usize| group.slots[slot].at() >= from;
            let used = 0..group.used();
            if used
                .clone()
                .all(|slot| stays(slot) && group.key(slot).home(groups) == place)
            {
                continue;
            }
            self.groups[place].tags[SLOTS] = 0;
            for slot in used {
                let at = group.slots[slot].at;
                if stays(slot) {
                    self.place(group.key(slot), at);
                } else {
                    self.len -= 1;
                    dropped.ids += 1;
                    dropped.latest = dropped.latest.max(Some(group.slots[slot].at()));
                }
            }
        }
        dropped
    }

    /// Has another number of groups, which has room for all ids. What it takes meanwhile is one table, the larger of both,
    /// and a part of it: glibc makes a large allocation larger or smaller by mapping its pages elsewhere.
    ///
    /// Homes are in the same order whatever the number of groups. So groups are emptied from the end where there will be
    /// more of them and from the beginning where there will be fewer, and nearly all that was in them finds its place among
    /// groups that are done. What does not (its search would come to a group that is yet to be emptied) is put back last.
    pub(super) fn resize(&mut self, groups: usize) {
        let (before, groups) = (self.groups.len(), groups.max(1));
        let grows = groups > before;
        if grows {
            self.groups.reserve_exact(groups - before);
            self.groups.resize(groups, EMPTY);
        }
        let part = before.div_ceil(PARTS);
        let (mut moving, mut left) = (Vec::new(), Vec::new());
        for step in (0..before).step_by(part) {
            let from = if grows {
                before.saturating_sub(step + part)
            } else {
                step
            };
            let to = if grows { before - step } else { before.min(step + part) };
            for group in &mut self.groups[from..to] {
                moving.extend((0..group.used()).map(|slot| (group.key(slot), group.slots[slot].at)));
                *group = EMPTY;
            }
            let done = if grows { from..groups } else { 0..to.min(groups) };
            for (key, at) in moving.drain(..) {
                let home = key.home(groups);
                let mut search = if done.contains(&home) { home..done.end } else { 0..0 };
                match search.find(|place| !self.groups[*place].is_full()) {
                    Some(place) => self.groups[place].push(key, at),
                    None => left.push((key, at)),
                }
            }
        }
        self.groups.truncate(groups);
        self.groups.shrink_to_fit();
        for (key, at) in left {
            self.place(key, at);
        }
    }

    /// Puts a key that is not there where it belongs.
    fn place(&mut self, key: Key, at: [u8; 6]) {
        let mut place = key.home(self.groups.len());
        while self.groups[place].is_full() {
            place = self.after(place);
        }
        self.groups[place].push(key, at);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;

    fn id(name: u16) -> u128 {
        xxh3_128(&name.to_le_bytes())
    }

    proptest! {
        /// It says what a map says, also when it is nearly full, after dropping and in another size.
        #[test]
        fn a_table_is_a_map(
            groups in 1_usize..5,
            steps in prop::collection::vec(
                (
                    0_u16..300,
                    0_i64..50,
                    prop::option::weighted(0.05, 0_i64..50),
                    prop::option::weighted(0.1, 1_usize..200),
                ),
                0..600,
            ),
        ) {
            let mut table = Table::new(groups);
            let mut map: HashMap<u16, i64> = HashMap::new();
            for (name, at, from, groups) in steps {
                if table.len() + 1 >= table.groups() * SLOTS {
                    table.resize(table.groups() + 1);
                }
                if let Some(groups) = groups
                    && table.len() + 1 < groups * SLOTS
                {
                    table.resize(groups);
                    prop_assert_eq!(table.groups(), groups);
                }
                prop_assert_eq!(table.note(id(name), at), map.get(&name).copied());
                let highest = map.entry(name).or_insert(at);
                *highest = at.max(*highest);
                if let Some(from) = from {
                    let gone: Vec<i64> = map.values().copied().filter(|at| *at < from).collect();
                    let dropped = table.keep_from(from);
                    prop_assert_eq!(dropped, Dropped { ids: gone.len(), latest: gone.iter().copied().max() });
                    map.retain(|_, at| *at >= from);
                }
                prop_assert_eq!(table.len(), map.len());
                let mut times: Vec<i64> = map.values().copied().collect();
                times.sort_unstable();
                prop_assert_eq!(table.some_times(), times);
            }
        }
    }

    proptest! {
        /// Nearly full and of many parts, of one size and then of others, it holds what it held.
        #[test]
        fn a_table_of_any_size_holds_the_same(
            ids in 1_usize..3_000,
            percents in prop::collection::vec(prop_oneof![3 => 100..120_usize, 1 => 120..900_usize], 1..6),
        ) {
            let ids: Vec<u128> = (0..ids as u64).map(|name| xxh3_128(&name.to_le_bytes())).collect();
            let fewest = ids.len().div_ceil(SLOTS);
            let mut table = Table::new(fewest + 1);
            for (at, id) in (0..).zip(&ids) {
                prop_assert_eq!(table.note(*id, at), None);
            }
            for percent in percents {
                let groups = fewest * percent / 100 + 1;
                table.resize(groups);
                prop_assert_eq!((table.groups(), table.len()), (groups, ids.len()));
                for (at, id) in (0..).zip(&ids) {
                    prop_assert_eq!(table.note(*id, at), Some(at));
                }
            }
        }
    }

    #[test]
    fn times_of_all_years_that_are_read_fit() {
        let mut table = Table::new(1);
        let year_2300 = 10_413_792_000_000;
        assert_eq!(table.note(1, 0), None);
        assert_eq!(table.note(1, year_2300), Some(0));
        assert_eq!(table.note(1, 5), Some(year_2300));
    }
}
