//! Which reader reads what: files, and pieces of large ones, so that each reader has about as much.
//!
//! A piece is a stretch of a file's bytes, and its rows are those of the groups of rows that begin in it. So it can be told without a
//! look into the file, and its reader knows from the footer which groups are its own. Each group begins in one piece only, wherever the
//! cuts are: every row is read once, by however many readers.

use std::cmp::Reverse;
use std::ops::Range;

use parquet::file::metadata::ParquetMetaData;

use super::pinned::File;

/// A file, or a piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) file: File,
    /// The bytes in which its groups of rows begin; nothing for the whole file.
    pub(super) piece: Option<Range<u64>>,
}

impl Share {
    /// About how many bytes are read for it.
    fn size(&self) -> u64 {
        let size = self.file.size;
        self.piece
            .as_ref()
            .map_or(size, |piece| piece.end.min(size).saturating_sub(piece.start))
    }

    /// The numbers of its groups of rows; nothing where they are all of the file.
    pub(super) fn groups(&self, footer: &ParquetMetaData) -> Option<Vec<usize>> {
        let piece = self.piece.as_ref()?;
        let begins = |number: &usize| {
            let chunks = footer.row_group(*number).columns().iter();
            let first = chunks.map(|chunk| chunk.byte_range().0).min().unwrap_or_default();
            piece.contains(&first)
        };
        Some((0..footer.num_row_groups()).filter(begins).collect())
    }
}

/// Shares files out to so many readers, or fewer; none has nothing, but where there is nothing at all. A file that is more than a reader's
/// due is cut into pieces of no less than `least` bytes.
pub(super) fn shares(files: &[File], readers: usize, least: u64) -> Vec<Vec<Share>> {
    let readers = readers.max(1);
    let all: u64 = files.iter().map(|file| file.size).sum();
    let due = all.div_ceil(readers as u64).max(1);
    let mut pieces: Vec<(usize, Share)> = files
        .iter()
        .flat_map(|file| cut(file, file.size.div_ceil(due).min(file.size / least.max(1))))
        .enumerate()
        .collect();
    let mut shares: Vec<(u64, Vec<(usize, Share)>)> = vec![(0, Vec::new()); readers.min(pieces.len().max(1))];
    // The largest first, each to whom has least so far.
    pieces.sort_by_key(|(_, piece)| Reverse(piece.size()));
    for (number, piece) in pieces {
        if let Some((size, pieces)) = shares.iter_mut().min_by_key(|(size, pieces)| (*size, pieces.len())) {
            *size += piece.size();
            pieces.push((number, piece));
        }
    }
    let in_order = |(_, mut pieces): (u64, Vec<(usize, Share)>)| {
        pieces.sort_by_key(|(number, _)| *number);
        pieces.into_iter().map(|(_, piece)| piece).collect()
    };
    shares.into_iter().map(in_order).collect()
}

/// A file in so many pieces; the last one has no end, so that nothing lies behind it.
fn cut(file: &File, pieces: u64) -> impl Iterator<Item = Share> {
    let pieces = pieces.max(1);
    let at = move |number: u64| {
        let at = u128::from(file.size) * u128::from(number) / u128::from(pieces);
        u64::try_from(at).unwrap_or(u64::MAX)
    };
    (0..pieces).map(move |number| Share {
        file: file.clone(),
        piece: (pieces > 1).then(|| match number + 1 {
            next if next == pieces => at(number)..u64::MAX,
            next => at(number)..at(next),
        }),
    })
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;
    use proptest::prelude::*;
    use shared_schemas::handoff::{ArchivedRange, EventDay, Offset, Partition, TopicId};

    use super::*;

    fn file(number: usize, size: u64) -> File {
        let partition = Partition {
            topic: TopicId(1),
            number: 0,
        };
        let offset = Offset(number as u64);
        File {
            path: Path::from(number.to_string()),
            size,
            rows: 1,
            range: ArchivedRange {
                day: EventDay(0),
                partition,
                first: offset,
                last: offset,
            },
            times: (0, 0),
            rules: None,
        }
    }

    fn of(sizes: &[u64], readers: usize) -> Vec<Vec<Share>> {
        let files: Vec<_> = (0..).zip(sizes).map(|(number, size)| file(number, *size)).collect();
        shares(&files, readers, 16)
    }

    #[test]
    fn a_large_file_is_read_by_all() {
        let sizes = |sizes: &[u64], readers| {
            let shares = of(sizes, readers).into_iter();
            let of_reader = |share: Vec<Share>| share.iter().map(Share::size).collect::<Vec<_>>();
            shares.map(of_reader).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[100], 1), [[100]]);
        assert_eq!(sizes(&[100], 4), [[25], [25], [25], [25]]);
        // Not into pieces that are not worth it.
        assert_eq!(sizes(&[40], 4), [[20], [20]]);
        assert_eq!(sizes(&[31], 4), [[31]]);
        // A large one among small ones; and none that is no more than its reader's due.
        assert_eq!(sizes(&[10, 100, 10], 2), [vec![10, 50], vec![50, 10]]);
        assert_eq!(sizes(&[35, 35, 60], 2), [vec![60], vec![35, 35]]);
        assert_eq!(sizes(&[], 4), [[0; 0]]);
    }

    proptest! {
        /// Every byte in which a group may begin is in one share, none is empty, and none is much larger than its due.
        #[test]
        fn every_byte_is_somebodys(sizes in prop::collection::vec(1_u64..200, 1..12), readers in 1_usize..9) {
            let shares = of(&sizes, readers);
            prop_assert!(shares.len() <= readers && shares.iter().all(|share| !share.is_empty()));
            let all: Vec<&Share> = shares.iter().flatten().collect();
            for (number, size) in sizes.iter().enumerate() {
                let of_file = || all.iter().filter(|share| share.file == file(number, *size));
                for at in 0..*size {
                    let has = |share: &&&Share| share.piece.as_ref().is_none_or(|piece| piece.contains(&at));
                    prop_assert_eq!(of_file().filter(has).count(), 1);
                }
            }
            let most = shares.iter().map(|share| share.iter().map(Share::size).sum::<u64>()).max().unwrap();
            let due = sizes.iter().sum::<u64>().div_ceil(readers as u64);
            prop_assert!(most <= 2 * due.max(32), "{} of {}", most, due);
        }
    }
}
