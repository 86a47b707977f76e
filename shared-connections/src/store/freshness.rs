//! How fresh the speed layer is on each partition, as its workers say once a second: for people and for waiting, never for
//! deciding what counts.
//!
//! There is one row for each view and partition; what was said last stands. Workers fall silent, so what a reader is told
//! depends on when he asks: [`FreshnessOfPartition::standing`].

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Offset, Partition, TopicId};
use shared_schemas::store::tables::FRESHNESS;
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;
use super::facts::of;
use super::truncation::Truncation;

/// A worker that has said nothing for so long, in milliseconds, may be gone. It speaks each second.
pub const SILENT: i64 = 10_000;

/// What becomes of a partition's records, for a view. In the order of how much attention it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartitionState {
    /// Nothing comes, and nothing is left to count.
    Idle,
    /// What comes is counted.
    Live,
    /// What came earlier is being counted.
    Behind,
    /// Nothing is counted until something else changes; a reason says what.
    Stuck,
}

impl PartitionState {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Live, Self::Behind, Self::Stuck];

    /// The word for it, everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Live => "live",
            Self::Behind => "behind",
            Self::Stuck => "stuck",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// How fresh the speed layer is on a partition, as its worker said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshnessOfPartition {
    /// The partition.
    pub partition: Partition,
    /// Up to where its worker has counted.
    pub next: Offset,
    /// Where the log ended then.
    pub log_end: Offset,
    /// The highest event time seen less the dataset's `lateness`, in microseconds since 1970: what comes later with an
    /// earlier event time is late.
    pub watermark: Option<i64>,
    /// The last counted record's Kafka timestamp, in milliseconds since 1970.
    pub kafka_time: Option<i64>,
    /// What becomes of its records.
    pub state: PartitionState,
    /// Why it is stuck, or has to wait; else empty.
    pub reason: String,
    /// When the worker said so, in milliseconds since 1970.
    pub seen: i64,
}

impl FreshnessOfPartition {
    /// What becomes of the partition's records at `now`, in milliseconds since 1970, and why where it is stuck, or
    /// has to wait.
    pub fn standing(&self, truncation: Option<&Truncation>, now: i64) -> (PartitionState, Option<String>) {
        let stuck = |reason: String| (PartitionState::Stuck, Some(reason));
        // It stays so whether a worker speaks or not.
        if let Some(truncation) = truncation {
            return stuck(truncation.to_string());
        }
        let silent = now.saturating_sub(self.seen);
        if silent > SILENT {
            let last = match self.reason.as_str() {
                "" => String::new(),
                reason => format!("; the last one said: {reason}"),
            };
            return stuck(format!("no worker has spoken of it for {} s{last}", silent / 1_000));
        }
        if silent < -SILENT {
            // Nothing newer can replace it.
            return stuck("its worker's clock was ahead, and nothing can be known until then".to_owned());
        }
        match self.state {
            PartitionState::Stuck => stuck(self.reason.clone()),
            state => (state, Some(self.reason.clone()).filter(|reason| !reason.is_empty())),
        }
    }
}

#[derive(Debug, Row, Serialize)]
struct Told {
    fingerprint: String,
    _topic: u128,
    _partition: u32,
    next: u64,
    log_end: u64,
    watermark: Option<i64>,
    kafka_time: Option<i64>,
    state: String,
    reason: String,
    seen: i64,
}

#[derive(Debug, Row, Deserialize)]
struct Read {
    topic: u128,
    partition: u32,
    next: u64,
    log_end: u64,
    watermark: Option<i64>,
    kafka_time: Option<i64>,
    state: String,
    reason: String,
    at: i64,
}

impl Store {
    /// Says how fresh a view's rows are, for people.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_freshness(&self, rows: &[(Fingerprint, FreshnessOfPartition)]) -> Result<(), StoreError> {
        let rows: Vec<_> = rows
            .iter()
            .map(|(fingerprint, row)| Told {
                fingerprint: fingerprint.to_string(),
                _topic: row.partition.topic.0,
                _partition: row.partition.number,
                next: row.next.0,
                log_end: row.log_end.0,
                watermark: row.watermark,
                kafka_time: row.kafka_time,
                state: row.state.name().to_owned(),
                reason: row.reason.clone(),
                seen: row.seen,
            })
            .collect();
        self.record(FRESHNESS, &rows).await
    }

    /// How fresh the speed layer is, for each partition that a worker spoke of.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn freshness(&self, view: &View) -> Result<Vec<FreshnessOfPartition>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, next, log_end, \
             toUnixTimestamp64Micro(watermark) AS watermark, toUnixTimestamp64Milli(kafka_time) AS kafka_time, state, \
             reason, toUnixTimestamp64Milli(seen) AS at FROM {} FINAL WHERE fingerprint = {{view:String}} \
             ORDER BY topic, partition",
            self.table(FRESHNESS)
        );
        let rows = self.rows::<Read>("read freshness", &sql, &of(view)).await?;
        Ok(rows.into_iter().map(Read::freshness).collect())
    }
}

impl Read {
    fn freshness(self) -> FreshnessOfPartition {
        let state = PartitionState::of_name(&self.state);
        FreshnessOfPartition {
            partition: Partition {
                topic: TopicId(self.topic),
                number: self.partition,
            },
            next: Offset(self.next),
            log_end: Offset(self.log_end),
            watermark: self.watermark,
            kafka_time: self.kafka_time,
            state: state.unwrap_or(PartitionState::Stuck),
            reason: match state {
                Some(_) => self.reason,
                None => format!("its worker is of another build and says `{}`", self.state),
            },
            seen: self.at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn row(state: PartitionState, reason: &str, ago: i64) -> FreshnessOfPartition {
        FreshnessOfPartition {
            partition: Partition {
                topic: TopicId(7),
                number: 0,
            },
            next: Offset(4),
            log_end: Offset(9),
            watermark: None,
            kafka_time: None,
            state,
            reason: reason.to_owned(),
            seen: NOW - ago,
        }
    }

    #[test]
    fn what_a_worker_said_stands_for_a_while() {
        use PartitionState::{Behind, Idle, Live, Stuck};
        for state in [Behind, Idle, Live] {
            assert_eq!(row(state, "", 9_999).standing(None, NOW), (state, None));
            let (later, reason) = row(state, "", 12_345).standing(None, NOW);
            assert_eq!(later, Stuck);
            assert_eq!(reason.as_deref(), Some("no worker has spoken of it for 12 s"));
        }
        let waits = row(Behind, "it waits", 0);
        assert_eq!(waits.standing(None, NOW), (Behind, Some("it waits".to_owned())));
        let away = row(Stuck, "Kafka is away", 0);
        assert_eq!(away.standing(None, NOW), (Stuck, Some("Kafka is away".to_owned())));
        let reason = row(Stuck, "Kafka is away", 11_000).standing(None, NOW).1;
        assert_eq!(
            reason.as_deref(),
            Some("no worker has spoken of it for 11 s; the last one said: Kafka is away")
        );
        assert_eq!(
            row(Live, "", -10_001).standing(None, NOW).0,
            Stuck,
            "a clock that was set back"
        );
        let truncation = Truncation {
            end: Offset(3),
            next: Offset(4),
        };
        let (state, reason) = row(Live, "", 0).standing(Some(&truncation), NOW);
        assert_eq!((state, reason), (Stuck, Some(truncation.to_string())));
    }

    #[test]
    fn states_have_names() {
        for state in PartitionState::ALL {
            assert_eq!(PartitionState::of_name(state.name()), Some(state));
        }
        assert_eq!(PartitionState::of_name("catching_up"), None);
    }
}
