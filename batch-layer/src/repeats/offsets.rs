//! Offsets that are repeats: few of a block are listed, of many each has a bit.

use std::collections::BTreeMap;
use std::ops::Range;

/// So many offsets of a block are listed; of more, each offset of the block has a bit.
const LISTED: usize = 4096;

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
    pub(super) fn new(places: usize) -> Self {
        Self {
            of: (0..places).map(|_| BTreeMap::new()).collect(),
            count: 0,
        }
    }

    /// Each offset once.
    pub(super) fn insert(&mut self, place: usize, offset: u64) {
        let Some(blocks) = self.of.get_mut(place) else {
            return;
        };
        self.count += 1;
        let block = blocks.entry(offset >> 16).or_insert_with(|| Block::Few(Vec::new()));
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        block.insert(offset as u16);
    }

    pub(super) fn extend(&mut self, other: Self) {
        for (place, blocks) in other.of.into_iter().enumerate() {
            for (block, low) in blocks {
                low.each(|low| self.insert(place, block << 16 | u64::from(low)));
            }
        }
    }

    pub(super) fn seal(&mut self) {
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

    /// How many at these offsets of a partition.
    pub(crate) fn within(&self, place: usize, offsets: Range<u64>) -> u64 {
        let Some(blocks) = self.of.get(place).filter(|_| !offsets.is_empty()) else {
            return 0;
        };
        let mut count = 0;
        for (block, low) in blocks.range(offsets.start >> 16..=(offsets.end - 1) >> 16) {
            low.each(|low| count += u64::from(offsets.contains(&(block << 16 | u64::from(low)))));
        }
        count
    }

    /// Bytes in memory, about.
    pub(crate) fn memory(&self) -> usize {
        let bytes = |block: &Block| match block {
            Block::Few(few) => few.len() * 2 + 64,
            Block::Many(_) => 8192 + 64,
        };
        self.of.iter().flat_map(BTreeMap::values).map(bytes).sum()
    }

    /// Those of a partition, to look up offsets from the lowest to the highest.
    pub(crate) fn of(&self, place: usize, bounds: Option<(i64, i64)>) -> Within<'_> {
        let block = |offset: i64| offset.cast_unsigned() >> 16;
        let blocks =
            self.of.get(place).zip(bounds).filter(|(blocks, (low, high))| {
                low <= high && blocks.range(block(*low)..=block(*high)).next().is_some()
            });
        Within {
            blocks: blocks.map(|(blocks, _)| blocks),
            number: None,
            block: None,
            at: 0,
        }
    }
}

/// Repeats of one partition. Looks up offsets in any order, and fast where they ascend.
pub(crate) struct Within<'a> {
    blocks: Option<&'a BTreeMap<u64, Block>>,
    /// The block of the last one that was looked up.
    number: Option<u64>,
    block: Option<&'a Block>,
    /// How many of a list lie below it.
    at: usize,
}

impl Within<'_> {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_none()
    }

    /// Whether that offset is one.
    pub(crate) fn contains(&mut self, offset: u64) -> bool {
        if self.number != Some(offset >> 16) {
            self.number = Some(offset >> 16);
            self.block = self.blocks.and_then(|blocks| blocks.get(&(offset >> 16)));
            self.at = 0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let low = offset as u16;
        match self.block {
            None => false,
            Some(Block::Many(bits)) => bits[usize::from(low >> 6)] & (1 << (low & 63)) != 0,
            Some(Block::Few(few)) => {
                let mut at = self.at;
                if at > 0 && few[at - 1] >= low {
                    at = few.partition_point(|one| *one < low);
                }
                while few.get(at).is_some_and(|one| *one < low) {
                    at += 1;
                }
                self.at = at;
                few.get(at) == Some(&low)
            }
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
