//! Which speed rows count above a mark.
//!
//! The speed layer may hold several rows over the same offsets: a chunk's own, and one for each cut in it. A query
//! takes the mark's own rows and those of every chunk that begins at or above it. [`counting_start`] is why that
//! counts each offset once: it names the one start, among those selected, whose rows hold the offset.

use super::offset::{ChunkSize, Mark, Offset, Start};

/// Whether rows of that start are part of an answer with that mark.
///
/// The merging statement says the same in SQL: `start = mark or (start >= mark and start % C = 0)`.
pub fn counts(mark: Mark, start: Start, chunk: ChunkSize) -> bool {
    start == mark.start() || (start >= mark.start() && chunk.is_first(start.0))
}

/// The one start, of those that count, whose rows hold `offset`; `None` below the mark, where batch answers.
pub fn counting_start(mark: Mark, offset: Offset, chunk: ChunkSize) -> Option<Start> {
    (offset >= mark.0).then(|| chunk.first(offset).max(mark.start()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The law that the merge rests on: of all starts, counted ones hold every offset from the mark on exactly once.
        #[test]
        fn every_offset_counts_once(exponent in 0_u32..4, mark in 0_u64..40, offset in 0_u64..64) {
            let chunk = ChunkSize::new(1 << exponent).unwrap();
            let (mark, offset) = (Mark(Offset(mark)), Offset(offset));
            let holds = |start: Start| start.0 <= offset && offset < chunk.end(start.0);
            let holders: Vec<_> =
                (0..64).map(|at| Start(Offset(at))).filter(|start| counts(mark, *start, chunk) && holds(*start)).collect();
            prop_assert_eq!(holders, Vec::from_iter(counting_start(mark, offset, chunk)));
        }
    }
}
