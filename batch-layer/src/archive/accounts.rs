//! What became of the records of a commit: told in its entry of the log, for reconciliation.
//!
//! Files tell which events are archived, not which records were read: a refused one leaves nothing in the archive. So
//! each commit says how many records were delivered at its offsets, and how many were refused, by reason. It says so piece by
//! piece, cut at the chunks' boundaries, so that the pieces add up to the starts of the speed layer: those begin and end at such
//! boundaries, or at the end of a commit (a cut).
//!
//! The entry's own information is the place: it is one write with what it speaks of. It is kept for as long as entries
//! are, a day at least, and what answers above the marks is seldom older; older offsets can't be compared this way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared_connections::log::{Outcome, ReadRecord};
use shared_schemas::handoff::{ChunkSize, Offset, OffsetRange, Partition};

use super::standing::{topic, topic_text};

/// The key under which an entry of the log tells it.
pub(super) const KEY: &str = "highwater.accounts";

/// What became of the records of a few offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The offsets: of one chunk, or of several that were added up.
    pub range: OffsetRange,
    /// How many records were delivered.
    pub read: u64,
    /// How many of them were refused, by reason.
    pub invalid: BTreeMap<String, u64>,
    /// How many of the offsets Kafka no longer had.
    pub gap: u64,
    /// The hash of the rules that they were read by.
    pub rules: String,
}

/// The accounts of partitions, each in the order of offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts(BTreeMap<Partition, Vec<Account>>);

impl Account {
    /// Of no records at these offsets.
    fn empty(range: OffsetRange) -> Self {
        Self {
            range,
            read: 0,
            invalid: BTreeMap::new(),
            gap: 0,
            rules: String::new(),
        }
    }

    /// How many of the records are events.
    pub fn accepted(&self) -> u64 {
        self.read.saturating_sub(self.refused())
    }

    /// How many are not.
    pub fn refused(&self) -> u64 {
        self.invalid.values().sum()
    }

    /// Adds one that follows on it. The rules stay those of the first where they differ.
    fn extend(&mut self, later: &Self) {
        self.range.to = later.range.to;
        self.read += later.read;
        self.gap += later.gap;
        for (reason, count) in &later.invalid {
            *self.invalid.entry(reason.clone()).or_default() += count;
        }
    }
}

impl Accounts {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Records that were delivered, in the order of offsets, all there are in that range.
    pub fn add(&mut self, partition: Partition, chunk: ChunkSize, range: OffsetRange, records: &[ReadRecord]) {
        for piece in pieces(range, chunk) {
            let place = |end: Offset| records.partition_point(|record| record.offset < end);
            let mut account = Account::empty(piece);
            for record in &records[place(piece.from)..place(piece.to)] {
                account.read += 1;
                if let Outcome::Refused(reason) = record.outcome {
                    *account.invalid.entry(reason.name().to_owned()).or_default() += 1;
                }
            }
            self.push(partition, chunk, account);
        }
    }

    /// Offsets that Kafka no longer has.
    pub fn add_gap(&mut self, partition: Partition, chunk: ChunkSize, range: OffsetRange) {
        for piece in pieces(range, chunk) {
            let mut account = Account::empty(piece);
            account.gap = piece.to.0 - piece.from.0;
            self.push(partition, chunk, account);
        }
    }

    /// Adds what came later.
    pub fn append(&mut self, chunk: ChunkSize, later: Self) {
        for (partition, accounts) in later.0 {
            accounts
                .into_iter()
                .for_each(|account| self.push(partition, chunk, account));
        }
    }

    fn push(&mut self, partition: Partition, chunk: ChunkSize, account: Account) {
        let held = self.0.entry(partition).or_default();
        match held.last_mut() {
            Some(last) if last.range.to == account.range.from && !chunk.is_first(account.range.from) => {
                last.extend(&account);
            }
            _ => held.push(account),
        }
    }

    /// What they say of these offsets in all; `None` where they don't say it of just these: something is not told, or
    /// told of other pieces.
    pub fn of(&self, partition: Partition, range: OffsetRange) -> Option<Account> {
        let held = self.0.get(&partition)?;
        let first = held.partition_point(|account| account.range.from < range.from);
        let mut sum = Account::empty(OffsetRange {
            from: range.from,
            to: range.from,
        });
        sum.rules.clone_from(&held.get(first)?.rules);
        for account in &held[first..] {
            if sum.range.to == range.to {
                break;
            }
            if account.range.from != sum.range.to {
                return None;
            }
            sum.extend(account);
        }
        (sum.range.to == range.to).then_some(sum)
    }

    /// How many accepted events they tell of in a partition; `None` where they say nothing of just that range.
    pub(super) fn accepted(&self, partition: Partition, range: OffsetRange) -> Option<u64> {
        self.of(partition, range).map(|account| account.accepted())
    }

    /// By which rules offsets were read, piece by piece.
    pub(crate) fn by_rules(&self) -> impl Iterator<Item = (Partition, OffsetRange, &str)> {
        self.0.iter().flat_map(|(partition, accounts)| {
            let told = accounts.iter().filter(|account| account.read > 0);
            told.map(|account| (*partition, account.range, account.rules.as_str()))
        })
    }

    /// From which offset on they tell of a partition.
    pub(super) fn first(&self, partition: Partition) -> Option<Offset> {
        Some(self.0.get(&partition)?.first()?.range.from)
    }

    /// Adds what an earlier entry told.
    pub(super) fn prepend(&mut self, earlier: Self) {
        for (partition, mut accounts) in earlier.0 {
            let held = self.0.entry(partition).or_default();
            accounts.append(held);
            *held = accounts;
        }
    }

    /// As it stands in an entry of the log.
    pub(super) fn to_json(&self, rules: &str) -> serde_json::Value {
        let partitions = self.0.iter().map(|(partition, accounts)| ListedPartition {
            topic: topic_text(partition.topic),
            partition: partition.number,
            pieces: accounts
                .iter()
                .map(|account| Listed {
                    from: account.range.from.0,
                    to: account.range.to.0,
                    read: account.read,
                    gap: account.gap,
                    invalid: account.invalid.clone(),
                })
                .collect(),
        });
        serde_json::json!(Listing {
            rules: rules.to_owned(),
            partitions: partitions.collect(),
        })
    }

    /// Of an entry of the log, as it is written: a JSON object a line. Nothing where it does not tell: another build or
    /// program wrote it.
    pub(super) fn of_entry(entry: &[u8]) -> Self {
        let lines = entry.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let told = lines
            .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
            .find_map(|entry| entry.commit_info?.accounts);
        let Some(listing) = told else {
            return Self::default();
        };
        let mut accounts = Self::default();
        for listed in listing.partitions {
            let Some(topic) = topic(&listed.topic) else {
                continue;
            };
            let partition = Partition {
                topic,
                number: listed.partition,
            };
            let pieces = listed.pieces.into_iter().map(|piece| Account {
                range: OffsetRange {
                    from: Offset(piece.from),
                    to: Offset(piece.to),
                },
                read: piece.read,
                invalid: piece.invalid,
                gap: piece.gap,
                rules: listing.rules.clone(),
            });
            accounts.0.entry(partition).or_default().extend(pieces);
        }
        accounts
    }
}

/// The parts of a range that lie in one chunk each.
fn pieces(range: OffsetRange, chunk: ChunkSize) -> impl Iterator<Item = OffsetRange> {
    let piece = move |from: Offset| {
        let to = chunk.end(from).min(range.to);
        (from < to).then_some(OffsetRange { from, to })
    };
    std::iter::successors(piece(range.from), move |last| piece(last.to))
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "commitInfo")]
    commit_info: Option<Information>,
}

#[derive(Deserialize)]
struct Information {
    #[serde(rename = "highwater.accounts")]
    accounts: Option<Listing>,
}

#[derive(Serialize, Deserialize)]
struct Listing {
    rules: String,
    partitions: Vec<ListedPartition>,
}

#[derive(Serialize, Deserialize)]
struct ListedPartition {
    topic: String,
    partition: u32,
    pieces: Vec<Listed>,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    from: u64,
    to: u64,
    read: u64,
    gap: u64,
    invalid: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use shared_schemas::decode::Reason;
    use shared_schemas::handoff::TopicId;

    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(0xab),
        number: 3,
    };

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    fn chunk() -> ChunkSize {
        ChunkSize::new(8).unwrap()
    }

    /// Every third record is refused.
    fn records(range: OffsetRange) -> Vec<ReadRecord> {
        (range.from.0..range.to.0)
            .map(|at| ReadRecord {
                offset: Offset(at),
                kafka_time: None,
                outcome: if at % 3 == 0 {
                    Outcome::Refused(Reason::Empty)
                } else {
                    Outcome::Accepted
                },
            })
            .collect()
    }

    fn of(ranges: &[OffsetRange]) -> Accounts {
        let mut accounts = Accounts::default();
        for range in ranges {
            accounts.add(PARTITION, chunk(), *range, &records(*range));
        }
        accounts
    }

    #[test]
    fn pieces_add_up_to_chunks_however_the_records_came() {
        let (one, many) = (of(&[range(3, 20)]), of(&[range(3, 7), range(7, 17), range(17, 20)]));
        assert_eq!(one, many);
        let account = one.of(PARTITION, range(8, 16)).unwrap();
        assert_eq!((account.read, account.refused(), account.accepted()), (8, 3, 5));
        assert_eq!(account.invalid, BTreeMap::from([("empty".to_owned(), 3)]));
        assert_eq!(one.accepted(PARTITION, range(3, 20)), Some(11));
        for other in [range(3, 9), range(4, 8), range(8, 24), range(20, 21)] {
            assert_eq!(one.of(PARTITION, other), None, "{other:?}");
        }
        // Commits one after the other: the second begins inside a chunk.
        let mut later = of(&[range(20, 30)]);
        later.prepend(one);
        assert_eq!(later.of(PARTITION, range(16, 24)).unwrap().read, 8);
        assert_eq!(later.of(PARTITION, range(3, 20)).unwrap().read, 17, "to a commit's end");
        assert_eq!(later.first(PARTITION), Some(Offset(3)));
    }

    #[test]
    fn what_an_entry_tells_is_read_again() {
        let mut accounts = Accounts::default();
        accounts.add_gap(PARTITION, chunk(), range(5, 12));
        accounts.add(PARTITION, chunk(), range(12, 14), &records(range(12, 14)));
        let told = accounts.to_json("0123");
        let entry = serde_json::json!({"commitInfo": {"timestamp": 7, "operation": "WRITE", KEY: told}});
        let entry = format!(
            "{}\n{entry}\n",
            serde_json::json!({"txn": {"appId": "a", "version": 1}})
        );
        let read = Accounts::of_entry(entry.as_bytes());
        let account = read.of(PARTITION, range(8, 14)).unwrap();
        assert_eq!((account.read, account.gap, account.rules.as_str()), (2, 4, "0123"));
        assert!(Accounts::of_entry(b"{\"commitInfo\":{\"operation\":\"WRITE\"}}").is_empty());
        assert!(Accounts::of_entry(b"not a line").is_empty());
    }
}
