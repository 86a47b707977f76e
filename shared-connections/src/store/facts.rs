//! What a reader, a worker or a run reads before it decides.
//!
//! Publications and floors are read before progress, and progress before cuts: a reader that saw a publication then
//! sees all progress that the publication waited for.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    EventDay, Floor, Mark, Offset, OffsetRange, OffsetSet, Partition, Publication, PublicationNumber, RunId,
    SpeedProgress, Start, TopicId, newest, wanted_cuts,
};
use shared_schemas::store::quote;
use shared_schemas::store::tables::{CUTS, FLOORS, GAPS, HORIZONS, PROGRESS, PUBLICATIONS, RUNS};
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;
use super::ledger::Ledger;
use super::record::Origin;
use super::truncation::Truncation;

/// More publications than can share the highest few numbers; older ones are read only when none of these answers.
const RECENT: usize = 8;

/// A publication as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The row.
    pub publication: Publication,
    /// When it was inserted, in milliseconds since 1970.
    pub at: i64,
    /// What its content was computed from.
    pub origin: Origin,
}

/// A cut that a run asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// The partition.
    pub partition: Partition,
    /// Where the rows are to begin.
    pub start: Start,
    /// Who asked.
    pub run: RunId,
    /// Whether the run has withdrawn it.
    pub withdrawn: bool,
}

/// A run that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The number of its parent publication; 0 for none.
    pub parent: PublicationNumber,
    /// When it was begun, in milliseconds since 1970.
    pub begun: i64,
}

/// The facts about one view.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The publications that can be the newest.
    pub publications: Vec<Published>,
    /// The union of all floor rows.
    pub floor: Floor,
    /// The first event day that the view holds; none where it holds all.
    pub horizon: Option<EventDay>,
    /// What the speed layer recorded, for each partition, from the floor on.
    pub progress: BTreeMap<Partition, SpeedProgress>,
    /// The cuts asked for, those withdrawn among them.
    pub cuts: Vec<Cut>,
    /// Logs that ended below what was read from them, of whatever topic.
    pub truncations: BTreeMap<Partition, Truncation>,
}

impl Facts {
    /// The publication that answers.
    pub fn newest(&self) -> Option<&Published> {
        let rows = self.publications.iter().map(|published| &published.publication);
        let key = newest(rows, &self.floor)?.key();
        self.publications
            .iter()
            .find(|published| published.publication.key() == key)
    }

    /// The newest publication's mark of a partition; 0 where there is none.
    pub fn mark(&self, partition: Partition) -> Mark {
        self.newest()
            .map(|newest| newest.publication.mark(partition))
            .unwrap_or_default()
    }

    /// What the speed layer recorded for a partition.
    pub fn progress(&self, partition: Partition) -> SpeedProgress {
        self.progress.get(&partition).cloned().unwrap_or_default()
    }

    /// The cuts that runs still wait for on a partition, from its mark on.
    pub fn wanted_cuts(&self, partition: Partition) -> BTreeSet<Start> {
        let of_partition = || self.cuts.iter().filter(|cut| cut.partition == partition);
        let withdrawn = of_partition()
            .filter(|cut| cut.withdrawn)
            .map(|cut| (cut.start, cut.run))
            .collect();
        let asked = of_partition().map(|cut| (cut.start, cut.run));
        wanted_cuts(asked, &withdrawn, self.mark(partition))
    }
}

#[derive(Debug, Row, Deserialize)]
struct PublicationRow {
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
    at: i64,
}

impl PublicationRow {
    fn published(self) -> Published {
        let mut gaps: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
        for (topic, number, from, to) in self.gaps {
            let range = OffsetRange {
                from: Offset(from),
                to: Offset(to),
            };
            gaps.entry(partition(topic, number)).or_default().insert(range);
        }
        Published {
            publication: Publication {
                number: PublicationNumber(self.number),
                run: RunId(self.run),
                parent: self
                    .parent
                    .first()
                    .map(|(number, run)| (PublicationNumber(*number), RunId(*run))),
                content: PublicationNumber(self.content),
                marks: marks(self.marks),
                gaps,
                days: self
                    .days
                    .into_iter()
                    .map(|(day, run)| (EventDay(day), RunId(run)))
                    .collect(),
            },
            at: self.at,
            origin: Origin {
                rules: Fingerprint(u128::from_str_radix(&self.rules, 16).unwrap_or_default()),
                archive_version: self.archive_version,
                last_days: self
                    .last_days
                    .into_iter()
                    .map(|(topic, number, day)| (partition(topic, number), EventDay(day)))
                    .collect(),
            },
        }
    }
}

#[derive(Debug, Row, Deserialize)]
struct FloorRow {
    number: u64,
    marks: Vec<(u128, u32, u64)>,
}

#[derive(Debug, Row, Deserialize)]
struct GapRow {
    topic: u128,
    partition: u32,
    start: u64,
    from: u64,
    to: u64,
}

#[derive(Debug, Row, Deserialize)]
struct NextRow {
    topic: u128,
    partition: u32,
    start: u64,
    next: u64,
}

#[derive(Debug, Row, Deserialize)]
struct CutRow {
    topic: u128,
    partition: u32,
    start: u64,
    run: u128,
    withdrawn: u8,
}

#[derive(Debug, Row, Deserialize)]
struct RunRow {
    run: u128,
    parent: u64,
    at: i64,
}

#[derive(Debug, Row, Deserialize)]
struct LedgerRow {
    topic: u128,
    partition: u32,
    start: u64,
    next: u64,
    rules: String,
    read: u64,
    holes: u64,
    gap: u64,
    aggregated: u64,
    filtered: u64,
    repeated: u64,
    reasons: Vec<(String, u64)>,
    unsure: u64,
    failed_filters: u64,
}

fn partition(topic: u128, number: u32) -> Partition {
    Partition {
        topic: TopicId(topic),
        number,
    }
}

fn forget_below(progress: &mut BTreeMap<Partition, SpeedProgress>, floor: &Floor) {
    for (partition, held) in progress {
        held.forget_below(floor.mark(*partition));
    }
}

pub(super) fn marks(rows: Vec<(u128, u32, u64)>) -> BTreeMap<Partition, Mark> {
    rows.into_iter()
        .map(|(topic, number, mark)| (partition(topic, number), Mark(Offset(mark))))
        .collect()
}

/// What ends each statement about one view.
pub(super) fn of(view: &View) -> [(&'static str, String); 1] {
    [("view", view.fingerprint.to_string())]
}

impl Store {
    /// All facts about a view.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn facts(&self, view: &View) -> Result<Facts, StoreError> {
        // Boxed: four statements at once are large to carry through every caller.
        let mut facts = Box::pin(self.facts_before_rows(view)).await?;
        self.read_gaps(view, &mut facts).await?;
        facts.cuts = self.cuts(view, &facts.floor).await?;
        Ok(facts)
    }

    /// What has to be read before rows are, so that what it promises is in them: all facts but gaps and cuts. Gaps come
    /// after the rows ([`Store::read_gaps`]), and cuts are no reader's concern.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn facts_before_rows(&self, view: &View) -> Result<Facts, StoreError> {
        // Nothing is decided by the order in which these are read, but for what follows.
        let (floor, horizon, truncations, mut publications) = tokio::try_join!(
            self.floor(view),
            self.horizon(view),
            self.truncations(),
            self.recent_publications(view)
        )?;
        let admitted = |all: &[Published]| all.iter().any(|published| floor.admits(&published.publication));
        // More are below the floor than are recent; or publications were read just before the one that the floor speaks of.
        if !publications.is_empty() && !admitted(&publications) {
            publications = self.publications(view).await?;
        }
        let progress = self.progress(view, &floor).await?;
        Ok(Facts {
            publications,
            floor,
            horizon,
            progress,
            cuts: Vec::new(),
            truncations,
        })
    }

    /// Every publication of a view that is still in the store, ascending.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn publications(&self, view: &View) -> Result<Vec<Published>, StoreError> {
        self.publications_where(view, "ORDER BY number, run").await
    }

    async fn recent_publications(&self, view: &View) -> Result<Vec<Published>, StoreError> {
        let newest_first = format!("ORDER BY number DESC, run DESC LIMIT {RECENT}");
        self.publications_where(view, &newest_first).await
    }

    async fn publications_where(&self, view: &View, tail: &str) -> Result<Vec<Published>, StoreError> {
        let sql = format!(
            "SELECT number, run, parent, content, marks, gaps, days, rules, archive_version, last_days, \
             toUnixTimestamp64Milli(published) AS at FROM {} FINAL WHERE fingerprint = {{view:String}} {tail}",
            self.table(PUBLICATIONS)
        );
        let rows = self
            .rows::<PublicationRow>("read publications", &sql, &of(view))
            .await?;
        Ok(rows.into_iter().map(PublicationRow::published).collect())
    }

    /// The union of a view's floors.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn floor(&self, view: &View) -> Result<Floor, StoreError> {
        let sql = format!(
            "SELECT number, marks FROM {} FINAL WHERE fingerprint = {{view:String}}",
            self.table(FLOORS)
        );
        let rows = self.rows::<FloorRow>("read floors", &sql, &of(view)).await?;
        Ok(rows.into_iter().fold(Floor::default(), |floor, row| {
            floor.union(&Floor {
                number: PublicationNumber(row.number),
                marks: marks(row.marks),
            })
        }))
    }

    /// The first event day that a view holds: what is older was let go, or will be. It only rises.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn horizon(&self, view: &View) -> Result<Option<EventDay>, StoreError> {
        let sql = format!(
            "SELECT toInt32(day) AS day FROM {} FINAL WHERE fingerprint = {{view:String}} ORDER BY day DESC LIMIT 1",
            self.table(HORIZONS)
        );
        let days = self.rows::<i32>("read the horizon", &sql, &of(view)).await?;
        Ok(days.into_iter().next().map(EventDay))
    }

    /// How far the speed layer has come, for each partition, from the floor on. Without gaps: those come with
    /// [`Store::read_gaps`].
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn progress(&self, view: &View, floor: &Floor) -> Result<BTreeMap<Partition, SpeedProgress>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, _start AS start, _next AS next FROM {} FINAL \
             WHERE fingerprint = {{view:String}}",
            self.table(PROGRESS)
        );
        let rows = self.rows::<NextRow>("read progress", &sql, &of(view)).await?;
        let mut progress: BTreeMap<Partition, SpeedProgress> = BTreeMap::new();
        for row in rows {
            let held = progress.entry(partition(row.topic, row.partition)).or_default();
            held.record(Start(Offset(row.start)), Offset(row.next));
        }
        forget_below(&mut progress, floor);
        Ok(progress)
    }

    /// Adds the gaps to the progress. They are read last: whoever saw a row then also sees the gap that it lacks.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn read_gaps(&self, view: &View, facts: &mut Facts) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, _start AS start, from, to FROM {} FINAL \
             WHERE fingerprint = {{view:String}}",
            self.table(GAPS)
        );
        for row in self.rows::<GapRow>("read gaps", &sql, &of(view)).await? {
            let range = OffsetRange {
                from: Offset(row.from),
                to: Offset(row.to),
            };
            let held = facts.progress.entry(partition(row.topic, row.partition)).or_default();
            held.record_gap(Start(Offset(row.start)), range);
        }
        forget_below(&mut facts.progress, &facts.floor);
        Ok(())
    }

    /// The progress rows with their ledgers, for `status` and reconciliation.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn ledgers(&self, view: &View) -> Result<Vec<(Partition, Start, Ledger)>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, _start AS start, _next AS next, rules, read, holes, \
             gap, aggregated, filtered, repeated, reasons, unsure, failed_filters FROM {} FINAL WHERE fingerprint = {{view:String}} ORDER BY topic, partition, start",
            self.table(PROGRESS)
        );
        let rows = self.rows::<LedgerRow>("read ledgers", &sql, &of(view)).await?;
        let ledger = |row: LedgerRow| {
            let ledger = Ledger {
                next: Offset(row.next),
                rules: row.rules,
                read: row.read,
                holes: row.holes,
                gap: row.gap,
                aggregated: row.aggregated,
                filtered: row.filtered,
                repeated: row.repeated,
                invalid: row.reasons.into_iter().collect(),
                unsure: row.unsure,
                failed_filters: row.failed_filters,
            };
            (partition(row.topic, row.partition), Start(Offset(row.start)), ledger)
        };
        Ok(rows.into_iter().map(ledger).collect())
    }

    async fn cuts(&self, view: &View, floor: &Floor) -> Result<Vec<Cut>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, _start AS start, run, withdrawn FROM {} FINAL \
             WHERE fingerprint = {{view:String}}",
            self.table(CUTS)
        );
        let rows = self.rows::<CutRow>("read cuts", &sql, &of(view)).await?;
        let cut = |row: CutRow| Cut {
            partition: partition(row.topic, row.partition),
            start: Start(Offset(row.start)),
            run: RunId(row.run),
            withdrawn: row.withdrawn != 0,
        };
        let above = |cut: &Cut| cut.start >= floor.mark(cut.partition).start();
        Ok(rows.into_iter().map(cut).filter(above).collect())
    }

    /// The runs of a view that were begun, the latest first.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn runs(&self, view: &View) -> Result<Vec<Run>, StoreError> {
        let sql = format!(
            "SELECT run, parent, toUnixTimestamp64Milli(begun) AS at FROM {} FINAL \
             WHERE fingerprint = {{view:String}} ORDER BY begun DESC, run DESC",
            self.table(RUNS)
        );
        let rows = self.rows::<RunRow>("read runs", &sql, &of(view)).await?;
        let run = |row: RunRow| Run {
            id: RunId(row.run),
            parent: PublicationNumber(row.parent),
            begun: row.at,
        };
        Ok(rows.into_iter().map(run).collect())
    }

    /// The highest version of any speed row of a view and partition, from a start on; `None` where there is none.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn highest_version(&self, view: &View, of: Partition, from: Start) -> Result<Option<Offset>, StoreError> {
        let sql = format!(
            "SELECT max(_next) FROM {} WHERE _topic = {{topic:UInt128}} AND _partition = {{partition:UInt32}} \
             AND _start >= {{start:UInt64}}",
            self.table(&shared_schemas::store::tables::speed_table_name(view))
        );
        let parameters = [
            ("topic", of.topic.0.to_string()),
            ("partition", of.number.to_string()),
            ("start", from.0.0.to_string()),
        ];
        let highest = self.rows::<u64>("read versions", &sql, &parameters).await?;
        // Every version is above 0: it is the offset after a record's.
        Ok(highest.into_iter().next().filter(|version| *version > 0).map(Offset))
    }

    pub(super) fn table(&self, name: &str) -> String {
        quote::table(self.database(), name)
    }
}
