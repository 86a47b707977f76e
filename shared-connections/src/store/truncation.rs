//! Logs that ended below what was read from them: what is recorded of it, durably, before anything else happens there.
//!
//! Kafka may lose the end of a log (an unclean election, a disk that forgot). The records at the offsets from its new end
//! up to `next` were delivered and are counted; the log has them no longer, and the same offsets will be given to
//! other records. Once the log has grown past `next` again nobody can tell by its offsets that anything happened, and a start
//! that is read again from its chunk's first offset would mix what was with what is now. So the record is durable, of the
//! topic's incarnation and the partition, and whoever finds it reads the partition no further until a person has acted:
//! has made the topic again, which is another incarnation.
//!
//! It is no gap: no answer lacks those offsets.

use std::collections::BTreeMap;
use std::fmt;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::handoff::{Offset, Partition, TopicId};
use shared_schemas::store::tables::TRUNCATIONS;

use super::client::Store;
use super::error::StoreError;

/// A log that ended below what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Truncation {
    /// Where the log ended.
    pub end: Offset,
    /// Up to where it was read before. What was there from `end` on is counted, and is not in the log any more.
    pub next: Offset,
}

impl Truncation {
    /// What both say.
    fn union(self, other: Self) -> Self {
        Self {
            end: self.end.min(other.end),
            next: self.next.max(other.next),
        }
    }
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its log ended at offset {} after it was read up to {}: Kafka has lost records that are counted, and what follows \
             can't be told from them; make the topic again to go on",
            self.end, self.next
        )
    }
}

#[derive(Debug, Row, Serialize)]
struct Recorded {
    _topic: u128,
    _partition: u32,
    end: u64,
    next: u64,
}

#[derive(Debug, Row, Deserialize)]
struct Read {
    topic: u128,
    partition: u32,
    end: u64,
    next: u64,
}

impl Store {
    /// Records that a log ended below what was read. For good: it is never taken back.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_truncations(&self, found: &[(Partition, Truncation)]) -> Result<(), StoreError> {
        let rows: Vec<_> = found
            .iter()
            .map(|(partition, truncation)| Recorded {
                _topic: partition.topic.0,
                _partition: partition.number,
                end: truncation.end.0,
                next: truncation.next.0,
            })
            .collect();
        self.record(TRUNCATIONS, &rows).await
    }

    /// All that are recorded, of whatever topic.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn truncations(&self) -> Result<BTreeMap<Partition, Truncation>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, end, next FROM {} FINAL",
            self.table(TRUNCATIONS)
        );
        let rows = self.rows::<Read>("read where logs were cut off", &sql, &[]).await?;
        let mut all: BTreeMap<Partition, Truncation> = BTreeMap::new();
        for row in rows {
            let partition = Partition {
                topic: TopicId(row.topic),
                number: row.partition,
            };
            let truncation = Truncation {
                end: Offset(row.end),
                next: Offset(row.next),
            };
            let held = all.entry(partition).or_insert(truncation);
            *held = held.union(truncation);
        }
        Ok(all)
    }
}
