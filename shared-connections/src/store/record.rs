//! What layers write about themselves: progress, gaps, cuts, runs, publications, floors.
//!
//! Every row may be sent again: it replaces itself, or gives way to a higher version. A method returns when the rows
//! are durable (`fsync_after_insert`), so whoever must write in an order awaits one before it begins the next.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    EventDay, Floor, Mark, OffsetRange, Partition, Publication, PublicationNumber, Redo, RunId, Start,
};
use shared_schemas::store::tables::{CUTS, FLOORS, GAPS, HORIZONS, PROGRESS, PUBLICATIONS, RUNS};
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;
use super::facts::Cut;
use super::ledger::Ledger;

/// What a publication's content was computed from, for those who read it. No decision of the hand-off rests on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The hash of the dataset's rules.
    pub rules: Fingerprint,
    /// The archive's version that the run pinned.
    pub archive_version: u64,
    /// Of each partition the last event day that has events below the mark; none where no event is below it.
    pub last_days: BTreeMap<Partition, EventDay>,
}

/// One row of progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressRow {
    /// The view.
    pub fingerprint: Fingerprint,
    /// The partition.
    pub partition: Partition,
    /// The start.
    pub start: Start,
    /// Under which redo of the start its records were read.
    pub redo: Redo,
    /// How far it has come, and what became of the records.
    pub ledger: Ledger,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct Progress {
    fingerprint: String,
    _topic: u128,
    _partition: u32,
    _start: u64,
    redo: u64,
    _next: u64,
    rules: String,
    read: u64,
    holes: u64,
    gap: u64,
    aggregated: u64,
    filtered: u64,
    repeated: u64,
    invalid: u64,
    reasons: Vec<(String, u64)>,
    unsure: u64,
    failed_filters: u64,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct Gap {
    fingerprint: String,
    _topic: u128,
    _partition: u32,
    _start: u64,
    from: u64,
    to: u64,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct CutRow {
    fingerprint: String,
    _topic: u128,
    _partition: u32,
    _start: u64,
    run: u128,
    withdrawn: u8,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct RunRow {
    fingerprint: String,
    run: u128,
    parent: u64,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct PublicationRow {
    fingerprint: String,
    number: u64,
    run: u128,
    parent: Vec<(u64, u128)>,
    content: u64,
    marks: Vec<(u128, u32, u64)>,
    gaps: Vec<(u128, u32, u64, u64)>,
    days: Vec<(i32, u128)>,
    rules: String,
    archive_version: u64,
    last_days: Vec<(u128, u32, i32)>,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct FloorRow {
    fingerprint: String,
    number: u64,
    marks: Vec<(u128, u32, u64)>,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct HorizonRow {
    fingerprint: String,
    day: i32,
}

fn marks(marks: &BTreeMap<Partition, Mark>) -> Vec<(u128, u32, u64)> {
    marks
        .iter()
        .map(|(partition, mark)| (partition.topic.0, partition.number, mark.0.0))
        .collect()
}

impl ProgressRow {
    /// Voids what was recorded of a start under lower redos: it is to be read again.
    pub fn void(fingerprint: Fingerprint, partition: Partition, start: Start, redo: Redo) -> Self {
        Self {
            fingerprint,
            partition,
            start,
            redo,
            ledger: Ledger {
                next: start.0,
                ..Ledger::default()
            },
        }
    }
}

impl Store {
    /// Records progress. The rows that it speaks of must be durable before.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_progress(&self, rows: &[ProgressRow]) -> Result<(), StoreError> {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| Progress {
                fingerprint: row.fingerprint.to_string(),
                _topic: row.partition.topic.0,
                _partition: row.partition.number,
                _start: row.start.0.0,
                redo: row.redo.0,
                _next: row.ledger.next.0,
                rules: row.ledger.rules.clone(),
                read: row.ledger.read,
                holes: row.ledger.holes,
                gap: row.ledger.gap,
                aggregated: row.ledger.aggregated,
                filtered: row.ledger.filtered,
                repeated: row.ledger.repeated,
                invalid: row.ledger.refused(),
                reasons: row.ledger.invalid.clone().into_iter().collect(),
                unsure: row.ledger.unsure,
                failed_filters: row.ledger.failed_filters,
            })
            .collect();
        self.record(PROGRESS, &rows).await
    }

    /// Records that the writer of these starts did not find those offsets in the log. To be awaited before any row that
    /// lacks them is sent.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_gaps(&self, gaps: &[(Fingerprint, Partition, Start, OffsetRange)]) -> Result<(), StoreError> {
        let rows: Vec<_> = gaps
            .iter()
            .map(|(fingerprint, partition, start, range)| Gap {
                fingerprint: fingerprint.to_string(),
                _topic: partition.topic.0,
                _partition: partition.number,
                _start: start.0.0,
                from: range.from.0,
                to: range.to.0,
            })
            .collect();
        self.record(GAPS, &rows).await
    }

    /// Asks for cuts, or withdraws them.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_cuts(&self, view: &View, cuts: &[Cut]) -> Result<(), StoreError> {
        let rows: Vec<_> = cuts
            .iter()
            .map(|cut| CutRow {
                fingerprint: view.fingerprint.to_string(),
                _topic: cut.partition.topic.0,
                _partition: cut.partition.number,
                _start: cut.start.0.0,
                run: cut.run.0,
                withdrawn: cut.withdrawn.into(),
            })
            .collect();
        self.record(CUTS, &rows).await
    }

    /// Says that a run was begun, before its first row.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn record_run(&self, view: &View, run: RunId, parent: PublicationNumber) -> Result<(), StoreError> {
        let row = RunRow {
            fingerprint: view.fingerprint.to_string(),
            run: run.0,
            parent: parent.0,
        };
        self.record(RUNS, &[row]).await
    }

    /// Publishes. On an error it may have happened all the same: read back.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn publish(&self, view: &View, publication: &Publication, origin: &Origin) -> Result<(), StoreError> {
        let gaps = publication.gaps.iter().flat_map(|(partition, set)| {
            set.ranges()
                .iter()
                .map(|range| (partition.topic.0, partition.number, range.from.0, range.to.0))
        });
        let row = PublicationRow {
            fingerprint: view.fingerprint.to_string(),
            number: publication.number.0,
            run: publication.run.0,
            parent: publication
                .parent
                .iter()
                .map(|(number, run)| (number.0, run.0))
                .collect(),
            content: publication.content.0,
            marks: marks(&publication.marks),
            gaps: gaps.collect(),
            days: publication.days.iter().map(|(day, run)| (day.0, run.0)).collect(),
            rules: origin.rules.to_string(),
            archive_version: origin.archive_version,
            last_days: origin
                .last_days
                .iter()
                .map(|(partition, day)| (partition.topic.0, partition.number, day.0))
                .collect(),
        };
        self.record(PUBLICATIONS, &[row]).await
    }

    /// Raises a view's floor.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn raise_floor(&self, view: &View, floor: &Floor) -> Result<(), StoreError> {
        let row = FloorRow {
            fingerprint: view.fingerprint.to_string(),
            number: floor.number.0,
            marks: marks(&floor.marks),
        };
        self.record(FLOORS, &[row]).await
    }

    /// Says that a view holds nothing before that event day from now on.
    ///
    /// # Errors
    /// ClickHouse's; sending again is safe.
    pub async fn raise_horizon(&self, view: &View, day: EventDay) -> Result<(), StoreError> {
        let row = HorizonRow {
            fingerprint: view.fingerprint.to_string(),
            day: day.0,
        };
        self.record(HORIZONS, &[row]).await
    }
}
