//! What an archiver has read and not yet committed.
//!
//! It follows on the archive's ends without a hole, so that it can become a commit at any moment. Pure.

use std::collections::{BTreeMap, VecDeque};

use arrow::array::RecordBatch;
use shared_connections::log::{Outcome, Slice};
use shared_schemas::decode::Reason;
use shared_schemas::handoff::{ChunkSize, Offset, OffsetRange, Partition, TopicId};

use super::commit::Commit;
use super::dead_letters::Letter;

/// Read and not committed.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) commit: Commit,
    /// Those of its records that were refused, and whose letters are not delivered yet.
    pub(super) letters: VecDeque<Letter>,
    /// Bytes in memory, about.
    pub(super) bytes: usize,
    /// Accepted events.
    pub(super) events: u64,
    /// Refused records, by reason.
    pub(super) refused: BTreeMap<Reason, u64>,
}

/// What came does not follow on what is held: a fault in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("partition {number}: what begins at offset {from} does not follow on {next}")]
pub(super) struct Broken {
    /// The partition's number.
    pub(super) number: u32,
    /// Where it begins.
    pub(super) from: Offset,
    /// Where it should have begun.
    pub(super) next: Offset,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.commit.ranges.is_empty()
    }

    /// Records that came.
    pub(super) fn add(&mut self, topic: TopicId, chunk: ChunkSize, slice: Slice) -> Result<(), Broken> {
        let partition = Partition {
            topic,
            number: slice.partition,
        };
        self.extend(partition, slice.from, slice.next)?;
        let range = OffsetRange {
            from: slice.from,
            to: slice.next,
        };
        self.commit.accounts.add(partition, chunk, range, &slice.records);
        for record in &slice.records {
            match record.outcome {
                Outcome::Accepted => self.events += 1,
                Outcome::Refused(reason) => *self.refused.entry(reason).or_default() += 1,
            }
        }
        let batches = slice.batches.into_iter().map(|batch| (partition, batch));
        for (partition, batch) in batches {
            self.bytes += RecordBatch::get_array_memory_size(&batch);
            self.commit.batches.push((partition, batch));
        }
        for record in slice.refused {
            let letter = Letter {
                partition: partition.number,
                record,
            };
            self.bytes += letter.size();
            self.letters.push_back(letter);
        }
        Ok(())
    }

    /// Offsets that Kafka no longer has.
    pub(super) fn add_gap(&mut self, partition: Partition, chunk: ChunkSize, gap: OffsetRange) -> Result<(), Broken> {
        self.extend(partition, gap.from, gap.to)?;
        self.commit.accounts.add_gap(partition, chunk, gap);
        self.commit.gaps.entry(partition).or_default().insert(gap);
        Ok(())
    }

    /// The log ends at `end`, below `next`, up to where it was read.
    pub(super) fn cut_off(&mut self, partition: Partition, end: Offset, next: Offset) -> Result<(), Broken> {
        self.extend(partition, next, next)?;
        self.commit
            .truncated
            .insert(partition, OffsetRange { from: end, to: next });
        Ok(())
    }

    /// What came after it.
    pub(super) fn append(&mut self, chunk: ChunkSize, later: Self) -> Result<(), Broken> {
        for (partition, range) in later.commit.ranges {
            self.extend(partition, range.from, range.to)?;
        }
        self.commit.accounts.append(chunk, later.commit.accounts);
        self.commit.truncated.extend(later.commit.truncated);
        self.commit.batches.extend(later.commit.batches);
        for (partition, gaps) in later.commit.gaps {
            self.commit.gaps.entry(partition).or_default().extend(&gaps);
        }
        self.letters.extend(later.letters);
        self.bytes += later.bytes;
        self.events += later.events;
        for (reason, count) in later.refused {
            *self.refused.entry(reason).or_default() += count;
        }
        Ok(())
    }

    fn extend(&mut self, partition: Partition, from: Offset, to: Offset) -> Result<(), Broken> {
        let range = self
            .commit
            .ranges
            .entry(partition)
            .or_insert(OffsetRange { from, to: from });
        if range.to != from {
            return Err(Broken {
                number: partition.number,
                from,
                next: range.to,
            });
        }
        range.to = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shared_connections::log::{ReadRecord, Refused};

    use super::*;

    const TOPIC: TopicId = TopicId(7);

    fn slice(partition: u32, from: u64, next: u64, refused: &[u64]) -> Slice {
        let records = (from..next).map(|offset| ReadRecord {
            offset: Offset(offset),
            kafka_time: None,
            outcome: if refused.contains(&offset) {
                Outcome::Refused(Reason::Empty)
            } else {
                Outcome::Accepted
            },
        });
        let refused = refused.iter().map(|offset| Refused {
            offset: Offset(*offset),
            kafka_time: None,
            key: Some(vec![0; 10]),
            value: None,
            headers: Vec::new(),
            reason: Reason::Empty,
            detail: String::new(),
        });
        Slice {
            partition,
            from: Offset(from),
            next: Offset(next),
            batches: Vec::new(),
            records: records.collect(),
            refused: refused.collect(),
        }
    }

    fn chunk() -> ChunkSize {
        ChunkSize::new(8).unwrap()
    }

    fn partition(number: u32) -> Partition {
        Partition { topic: TOPIC, number }
    }

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    #[test]
    fn what_is_held_follows_on_itself() {
        let mut held = Held::default();
        held.add(TOPIC, chunk(), slice(0, 5, 9, &[6])).unwrap();
        held.add(TOPIC, chunk(), slice(1, 0, 1, &[0])).unwrap();
        held.add_gap(partition(0), chunk(), range(9, 12)).unwrap();
        let mut later = Held::default();
        later.add(TOPIC, chunk(), slice(0, 12, 14, &[])).unwrap();
        held.append(chunk(), later).unwrap();
        assert_eq!(
            held.commit.ranges,
            [(partition(0), range(5, 14)), (partition(1), range(0, 1))].into()
        );
        assert_eq!(
            held.commit.gaps,
            [(partition(0), [range(9, 12)].into_iter().collect())].into()
        );
        assert_eq!((held.events, held.letters.len(), held.bytes), (5, 2, 20));
        assert_eq!(held.refused, [(Reason::Empty, 2)].into());
        let told = |from, to| {
            let account = held.commit.accounts.of(partition(0), range(from, to)).unwrap();
            (account.read, account.refused(), account.gap)
        };
        assert_eq!((told(5, 8), told(8, 14)), ((3, 1, 0), (3, 0, 3)));

        let broken = held.add(TOPIC, chunk(), slice(0, 15, 16, &[])).unwrap_err();
        assert_eq!(
            broken,
            Broken {
                number: 0,
                from: Offset(15),
                next: Offset(14)
            }
        );
        assert!(held.add_gap(partition(1), chunk(), range(3, 4)).is_err());
    }
}
