//! What a reader, a worker or a run reads before it decides.
//!
//! Publications and floors are read before progress, and progress before cuts: a reader that saw a publication then
//! sees all progress that the publication waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use clickhouse::Row;
use serde::Deserialize;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    EventDay, Floor, Mark, Offset, OffsetRange, OffsetSet, Partition, Publication, PublicationNumber, Redo, RunId,
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
    view: String,
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
    view: String,
    number: u64,
    marks: Vec<(u128, u32, u64)>,
}

#[derive(Debug, Row, Deserialize)]
struct HorizonRow {
    view: String,
    day: i32,
}

#[derive(Debug, Row, Deserialize)]
struct GapRow {
    view: String,
    topic: u128,
    partition: u32,
    start: u64,
    from: u64,
    to: u64,
}

#[derive(Debug, Row, Deserialize)]
struct NextRow {
    view: String,
    topic: u128,
    partition: u32,
    start: u64,
    redo: u64,
    next: u64,
}

#[derive(Debug, Row, Deserialize)]
struct CutRow {
    view: String,
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

/// The condition on rows that are about one of these views, of which there is one at least.
fn of_views(views: &[View]) -> String {
    let fingerprints: Vec<_> = views
        .iter()
        .map(|view| quote::text(&view.fingerprint.to_string()))
        .collect();
    format!("fingerprint IN ({})", fingerprints.join(", "))
}

/// What there is of each view, in the views' order.
fn in_order<T: Default + Clone>(views: &[View], of: &BTreeMap<String, T>) -> Vec<T> {
    // Two views may have one fingerprint.
    let of_view = |view: &View| of.get(&view.fingerprint.to_string()).cloned().unwrap_or_default();
    views.iter().map(of_view).collect()
}

/// What there is of the only view that was asked for.
fn of_one<T: Default>(of_views: Vec<T>) -> T {
    of_views.into_iter().next().unwrap_or_default()
}

impl Store {
    /// All facts about a view.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn facts(&self, view: &View) -> Result<Facts, StoreError> {
        Ok(of_one(self.facts_of(slice::from_ref(view)).await?))
    }

    /// All facts about each of these views, in their order. It takes as many statements as for one.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn facts_of(&self, views: &[View]) -> Result<Vec<Facts>, StoreError> {
        if views.is_empty() {
            return Ok(Vec::new());
        }
        // Boxed: several statements at once are large to carry through every caller.
        let mut all = Box::pin(self.facts_of_before_rows(views)).await?;
        self.read_gaps_of(views, &mut all).await?;
        let cuts = self.cuts(views).await?;
        for (facts, cuts) in all.iter_mut().zip(cuts) {
            let is_above = |cut: &Cut| cut.start >= facts.floor.mark(cut.partition).start();
            facts.cuts = cuts.into_iter().filter(is_above).collect();
        }
        Ok(all)
    }

    /// What has to be read before rows are, so that what it promises is in them: all facts but gaps and cuts. Gaps come
    /// after the rows ([`Store::read_gaps`]), and cuts are no reader's concern.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn facts_before_rows(&self, view: &View) -> Result<Facts, StoreError> {
        Ok(of_one(
            Box::pin(self.facts_of_before_rows(slice::from_ref(view))).await?,
        ))
    }

    async fn facts_of_before_rows(&self, views: &[View]) -> Result<Vec<Facts>, StoreError> {
        // Nothing is decided by the order in which these are read, but for what follows.
        let (floors, horizons, truncations, publications) = tokio::try_join!(
            self.floors(views),
            self.horizons(views),
            self.truncations(),
            self.recent_publications(views)
        )?;
        let mut all = Vec::with_capacity(views.len());
        for (((view, floor), horizon), mut publications) in views.iter().zip(floors).zip(horizons).zip(publications) {
            let is_admitted = |published: &Published| floor.admits(&published.publication);
            // More are below the floor than are recent; or publications were read just before the one that the floor speaks of.
            if !publications.is_empty() && !publications.iter().any(is_admitted) {
                publications = self.publications(view).await?;
            }
            all.push(Facts {
                publications,
                floor,
                horizon,
                progress: BTreeMap::new(),
                cuts: Vec::new(),
                truncations: truncations.clone(),
            });
        }
        let progress = self.progress_of(views).await?;
        for (facts, progress) in all.iter_mut().zip(progress) {
            facts.progress = progress;
            forget_below(&mut facts.progress, &facts.floor);
        }
        Ok(all)
    }

    /// Every publication of a view that is still in the store, ascending.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn publications(&self, view: &View) -> Result<Vec<Published>, StoreError> {
        let all = self
            .publications_where(slice::from_ref(view), "ORDER BY number, run")
            .await?;
        Ok(of_one(all))
    }

    async fn recent_publications(&self, views: &[View]) -> Result<Vec<Vec<Published>>, StoreError> {
        let newest_first = format!("ORDER BY number DESC, run DESC LIMIT {RECENT} BY fingerprint");
        self.publications_where(views, &newest_first).await
    }

    async fn publications_where(&self, views: &[View], tail: &str) -> Result<Vec<Vec<Published>>, StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, number, run, parent, content, marks, gaps, days, rules, archive_version, last_days, \
             toUnixTimestamp64Milli(published) AS at FROM {} FINAL WHERE {} {tail}",
            self.table(PUBLICATIONS),
            of_views(views)
        );
        let rows = self.rows::<PublicationRow>("read publications", &sql, &[]).await?;
        let mut of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for mut row in rows {
            let view = std::mem::take(&mut row.view);
            of.entry(view).or_default().push(row.published());
        }
        Ok(in_order(views, &of))
    }

    /// The union of a view's floors.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn floor(&self, view: &View) -> Result<Floor, StoreError> {
        Ok(of_one(self.floors(slice::from_ref(view)).await?))
    }

    async fn floors(&self, views: &[View]) -> Result<Vec<Floor>, StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, number, marks FROM {} FINAL WHERE {}",
            self.table(FLOORS),
            of_views(views)
        );
        let mut of: BTreeMap<_, Floor> = BTreeMap::new();
        for row in self.rows::<FloorRow>("read floors", &sql, &[]).await? {
            let floor = of.entry(row.view).or_default();
            *floor = std::mem::take(floor).union(&Floor {
                number: PublicationNumber(row.number),
                marks: marks(row.marks),
            });
        }
        Ok(in_order(views, &of))
    }

    /// The first event day that a view holds: what is older was let go, or will be. It only rises.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn horizon(&self, view: &View) -> Result<Option<EventDay>, StoreError> {
        Ok(of_one(self.horizons(slice::from_ref(view)).await?))
    }

    async fn horizons(&self, views: &[View]) -> Result<Vec<Option<EventDay>>, StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, toInt32(max(day)) AS day FROM {} WHERE {} GROUP BY fingerprint",
            self.table(HORIZONS),
            of_views(views)
        );
        let rows = self.rows::<HorizonRow>("read the horizon", &sql, &[]).await?;
        let of = rows.into_iter().map(|row| (row.view, Some(EventDay(row.day))));
        Ok(in_order(views, &of.collect()))
    }

    /// How far the speed layer has come, for each partition, from the floor on. Without gaps: those come with
    /// [`Store::read_gaps`].
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn progress(&self, view: &View, floor: &Floor) -> Result<BTreeMap<Partition, SpeedProgress>, StoreError> {
        let mut progress = of_one(self.progress_of(slice::from_ref(view)).await?);
        forget_below(&mut progress, floor);
        Ok(progress)
    }

    async fn progress_of(&self, views: &[View]) -> Result<Vec<BTreeMap<Partition, SpeedProgress>>, StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, _topic AS topic, _partition AS partition, _start AS start, redo, _next AS next \
             FROM {} FINAL WHERE {}",
            self.table(PROGRESS),
            of_views(views)
        );
        let mut of: BTreeMap<_, BTreeMap<Partition, SpeedProgress>> = BTreeMap::new();
        for row in self.rows::<NextRow>("read progress", &sql, &[]).await? {
            let of_view = of.entry(row.view).or_default();
            let held = of_view.entry(partition(row.topic, row.partition)).or_default();
            held.record_after(Start(Offset(row.start)), Redo(row.redo), Offset(row.next));
        }
        Ok(in_order(views, &of))
    }

    /// Adds the gaps to the progress. They are read last: whoever saw a row then also sees the gap that it lacks.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn read_gaps(&self, view: &View, facts: &mut Facts) -> Result<(), StoreError> {
        self.read_gaps_of(slice::from_ref(view), slice::from_mut(facts)).await
    }

    async fn read_gaps_of(&self, views: &[View], all: &mut [Facts]) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, _topic AS topic, _partition AS partition, _start AS start, from, to \
             FROM {} FINAL WHERE {}",
            self.table(GAPS),
            of_views(views)
        );
        let mut of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in self.rows::<GapRow>("read gaps", &sql, &[]).await? {
            let range = OffsetRange {
                from: Offset(row.from),
                to: Offset(row.to),
            };
            let gap = (partition(row.topic, row.partition), Start(Offset(row.start)), range);
            of.entry(row.view).or_default().push(gap);
        }
        for (facts, gaps) in all.iter_mut().zip(in_order(views, &of)) {
            for (partition, start, range) in gaps {
                facts.progress.entry(partition).or_default().record_gap(start, range);
            }
            forget_below(&mut facts.progress, &facts.floor);
        }
        Ok(())
    }

    /// The progress rows with their ledgers, for `status` and reconciliation; without those that are void, and those that void
    /// them.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn ledgers(&self, view: &View) -> Result<Vec<(Partition, Start, Ledger)>, StoreError> {
        let sql = format!(
            "SELECT _topic AS topic, _partition AS partition, _start AS start, _next AS next, rules, read, holes, \
             gap, aggregated, filtered, repeated, reasons, unsure, failed_filters FROM (SELECT * FROM {} FINAL \
             WHERE fingerprint = {{view:String}} ORDER BY _topic, _partition, _start, redo DESC LIMIT 1 BY _topic, _partition, _start) \
             WHERE _next > _start ORDER BY topic, partition, start",
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

    async fn cuts(&self, views: &[View]) -> Result<Vec<Vec<Cut>>, StoreError> {
        let sql = format!(
            "SELECT fingerprint AS view, _topic AS topic, _partition AS partition, _start AS start, run, withdrawn \
             FROM {} FINAL WHERE {}",
            self.table(CUTS),
            of_views(views)
        );
        let mut of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in self.rows::<CutRow>("read cuts", &sql, &[]).await? {
            of.entry(row.view).or_default().push(Cut {
                partition: partition(row.topic, row.partition),
                start: Start(Offset(row.start)),
                run: RunId(row.run),
                withdrawn: row.withdrawn != 0,
            });
        }
        Ok(in_order(views, &of))
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
