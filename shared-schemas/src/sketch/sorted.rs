//! A set of numbers as a sorted list, with what came lately behind it.
//!
//! To put a number behind a list costs a few nanoseconds and touches one line of memory, which is what counts when a batch
//! scatters over a thousand groups. Only when the list is full is it sorted and rid of repeats, and grown if that did not
//! free half of it; so a number costs its share of a sort, whatever the numbers are, and no choice of them makes it dear as it
//! does a hash table. A sorted list is also its own canonical form, and two of them merge in one pass.

use std::fmt::Debug;

/// A number of fixed width.
pub trait Number: Copy + Ord + Debug + Send + Sync + 'static {
    /// Its bytes.
    const WIDTH: usize;
    /// From little-endian bytes, of that width.
    fn read(bytes: &[u8]) -> Self;
    /// To little-endian bytes, of that width.
    fn write(self, bytes: &mut [u8]);
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Number for $type {
            const WIDTH: usize = size_of::<Self>();
            #[inline]
            fn read(bytes: &[u8]) -> Self {
                bytes.try_into().map_or(0, <$type>::from_le_bytes)
            }
            #[inline]
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
number!(u32, u64, u128);

/// Below so many it is cheaper to grow than to look for repeats.
const SMALL: usize = 64;

/// A set.
#[derive(Debug, Clone)]
pub(super) struct Sorted<T> {
    /// Ascending and without repeats up to `settled`, then as they came.
    items: Vec<T>,
    settled: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            settled: 0,
        }
    }
}

impl<T: Number> Sorted<T> {
    /// Whether the next number would make it sort or grow.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.items.len() == self.items.capacity()
    }

    /// Puts a number in; [`Sorted::make_room`] first if it is full.
    #[inline]
    pub(super) fn push(&mut self, number: T) {
        self.items.push(number);
    }

    /// Makes room for one number or more.
    #[cold]
    pub(super) fn make_room(&mut self) {
        let capacity = self.items.capacity();
        if capacity >= SMALL {
            self.settle();
        }
        if self.items.len() > self.items.capacity() / 2 || capacity < SMALL {
            self.items.reserve_exact(capacity.max(8));
        }
    }

    /// Sorts it, and rids it of repeats.
    pub(super) fn settle(&mut self) {
        if self.settled == self.items.len() {
            return;
        }
        let capacity = self.items.capacity();
        let (head, tail) = self.items.split_at_mut(self.settled);
        tail.sort_unstable();
        let behind = match (head.last(), tail.first()) {
            (Some(last), Some(first)) => last < first,
            _ => true,
        };
        if behind {
            self.items.dedup();
        } else {
            let mut merged = Vec::with_capacity(capacity);
            merge(head, tail, &mut merged);
            self.items = merged;
        }
        self.settled = self.items.len();
    }

    /// Puts many in, from their bytes.
    pub(super) fn extend(&mut self, bytes: &[u8], keep: impl Fn(T) -> bool) {
        let numbers = bytes.chunks_exact(T::WIDTH).map(T::read).filter(|number| keep(*number));
        let count = bytes.len() / T::WIDTH;
        if count * 4 < self.items.len() {
            for number in numbers {
                if self.is_full() {
                    self.make_room();
                }
                self.push(number);
            }
            return;
        }
        let mut other: Vec<T> = Vec::with_capacity(count);
        other.extend(numbers);
        if !other.is_sorted_by(|a, b| a < b) {
            other.sort_unstable();
            other.dedup();
        }
        self.settle();
        if self.items.is_empty() {
            self.items = other;
        } else {
            let mut merged = Vec::with_capacity(self.items.len() + other.len());
            merge(&self.items, &other, &mut merged);
            self.items = merged;
        }
        self.settled = self.items.len();
    }

    /// Only those for which it is true.
    pub(super) fn retain(&mut self, keep: impl Fn(T) -> bool) {
        self.settle();
        self.items.retain(|number| keep(*number));
        self.settled = self.items.len();
    }

    /// All of them, ascending.
    pub(super) fn numbers(&mut self) -> &[T] {
        self.settle();
        &self.items
    }

    /// How many there are, repeats of late included.
    pub(super) fn most(&self) -> usize {
        self.items.len()
    }

    /// Writes them, ascending.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        self.settle();
        let at = out.len();
        out.resize(at + self.items.len() * T::WIDTH, 0);
        let places = out[at..].chunks_exact_mut(T::WIDTH);
        for (number, place) in self.items.iter().zip(places) {
            number.write(place);
        }
    }

    /// The bytes it holds on to, besides itself.
    #[inline]
    pub(super) fn heap(&self) -> usize {
        self.items.capacity() * size_of::<T>()
    }
}

/// Merges what is sorted, repeats within the second list and between both once.
fn merge<T: Number>(left: &[T], right: &[T], out: &mut Vec<T>) {
    let (mut at, mut other) = (0, 0);
    while at < left.len() && other < right.len() {
        let (a, b) = (left[at], right[other]);
        // Without branches that nobody could foretell.
        let next = a.min(b);
        at += usize::from(a <= b);
        other += usize::from(b <= a);
        if out.last() != Some(&next) {
            out.push(next);
        }
    }
    for &number in left[at..].iter().chain(&right[other..]) {
        if out.last() != Some(&number) {
            out.push(number);
        }
    }
}
