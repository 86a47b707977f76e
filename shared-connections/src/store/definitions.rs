//! What the fingerprints of views mean, and who answers for one that has no publication yet.
//!
//! Definitions are written wherever tables are made, so a view that is changed has left behind what its old fingerprint means.
//! What cannot be read, since a later build wrote it, or an earlier one computed otherwise, is as if it were not there; it is told.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::{Definitions, KeptDefinition, KeptView, Unreadable};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Answering, ChunkSize, Mark, OffsetSet, answering};
use shared_schemas::store::tables::{DEFINITIONS, PUBLICATIONS};
use shared_schemas::view::View;

use super::client::Store;
use super::error::StoreError;
use super::facts::Facts;
use super::freshness::FreshnessOfPartition;

#[derive(Debug, Row, Serialize, Deserialize)]
struct DefinitionRow {
    fingerprint: String,
    dataset: String,
    view: String,
    form: u32,
    rules: String,
    definition: String,
    plan: u32,
}

#[derive(Debug, Row, Deserialize)]
struct LastRow {
    fingerprint: String,
    last: i64,
}

impl DefinitionRow {
    fn of(kept: KeptDefinition) -> Self {
        Self {
            fingerprint: kept.fingerprint.to_string(),
            dataset: kept.dataset,
            view: kept.view,
            form: kept.form,
            rules: kept.rules.to_string(),
            definition: kept.text,
            plan: kept.plan,
        }
    }

    fn kept(self) -> Option<KeptDefinition> {
        Some(KeptDefinition {
            fingerprint: Fingerprint::read(&self.fingerprint)?,
            dataset: self.dataset,
            view: self.view,
            form: self.form,
            rules: Fingerprint::read(&self.rules)?,
            plan: self.plan,
            text: self.definition,
        })
    }
}

/// What is known of all fingerprints: when each was published last, and what those mean whose definitions are kept.
#[derive(Debug, Clone, Default)]
pub struct Known {
    published: BTreeMap<Fingerprint, i64>,
    kept: Vec<KeptDefinition>,
}

impl Known {
    /// Who answers for a view.
    pub fn answering(&self, view: &View) -> Answering<Box<KeptView>> {
        let of_name = self
            .kept
            .iter()
            .filter(|kept| kept.dataset == view.dataset && kept.view == view.name);
        let mut of_name: BTreeMap<_, _> = of_name.map(|kept| (kept.fingerprint, kept)).collect();
        loop {
            match answering(view.fingerprint, &self.published, of_name.keys().copied()) {
                Answering::Itself => return Answering::Itself,
                Answering::ItselfUnpublished => return Answering::ItselfUnpublished,
                // What cannot be read is as if it were not there.
                Answering::Another(other) => {
                    if let Some(kept) = of_name.remove(&other).and_then(|kept| kept.read().ok()) {
                        return Answering::Another(Box::new(kept));
                    }
                }
            }
        }
    }

    /// The dataset whose rules, those that a view can see, have that fingerprint: as one of its views was kept. `now` is the dataset as it is
    /// defined now, with its keys.
    pub fn rules(&self, events: Fingerprint, now: &Dataset) -> Option<Dataset> {
        let kept = self.kept.iter().filter(|kept| kept.rules == events);
        kept.into_iter().find_map(|kept| kept.dataset_with_keys_of(now))
    }

    /// What was published of views that are building, and can't answer for them: the fingerprint, the view, and why.
    pub fn unanswerable(&self, definitions: &Definitions) -> Vec<(Fingerprint, String, Unreadable)> {
        let building = definitions
            .views
            .iter()
            .filter(|view| !self.published.contains_key(&view.fingerprint));
        let of_view = |view: &View| {
            let of_name = self.kept.iter().filter(|kept| {
                let is_it = kept.dataset == view.dataset && kept.view == view.name;
                is_it && self.published.contains_key(&kept.fingerprint)
            });
            let why = of_name.filter_map(|kept| Some((kept.fingerprint, kept.view.clone(), kept.read().err()?)));
            why.collect::<Vec<_>>()
        };
        building.flat_map(of_view).collect()
    }

    /// The fingerprints that answer for others, and for which views.
    pub fn answering_for_others(&self, definitions: &Definitions) -> BTreeMap<Fingerprint, Vec<String>> {
        let mut others: BTreeMap<Fingerprint, Vec<String>> = BTreeMap::new();
        for view in &definitions.views {
            if let Answering::Another(kept) = self.answering(view) {
                others.entry(kept.view.fingerprint).or_default().push(view.name.clone());
            }
        }
        others
    }
}

/// How many of the offsets that the log holds a view has counted, over all partitions that a worker spoke of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counted {
    /// Counted, in one piece from where it began.
    pub offsets_read: u64,
    /// There to be counted.
    pub offsets: u64,
}

impl Counted {
    /// From facts with gaps, of a view that is not published. `None` where no worker spoke of it yet.
    pub fn of(view: &View, facts: &Facts, freshness: &[FreshnessOfPartition]) -> Option<Self> {
        let chunk = ChunkSize::new(view.chunk).ok()?;
        // The incarnation of the topic that workers spoke of last.
        let topic = freshness.iter().max_by_key(|row| row.seen)?.partition.topic;
        let mut counted = Self::default();
        for row in freshness.iter().filter(|row| row.partition.topic == topic) {
            let progress = facts.progress(row.partition);
            let Some(first) = progress.first_start() else {
                counted.offsets += row.log_end.0;
                continue;
            };
            let coverage = progress.coverage(Mark(first.0), chunk);
            let end = row.log_end.max(coverage.covered);
            let there = |to: u64| to.saturating_sub(first.0.0) - lost(&coverage.gaps, first.0.0, to);
            counted.offsets_read += there(coverage.covered.0);
            counted.offsets += there(end.0);
        }
        Some(counted)
    }

    /// In percent, 100 only where all is.
    pub fn percent(&self) -> u64 {
        if self.offsets_read >= self.offsets {
            return 100;
        }
        u64::try_from(u128::from(self.offsets_read) * 100 / u128::from(self.offsets)).unwrap_or(100)
    }
}

/// How many of the offsets from `from` up to `to` are in gaps.
fn lost(gaps: &OffsetSet, from: u64, to: u64) -> u64 {
    let within = gaps.ranges().iter().map(|gap| (gap.from.0.max(from), gap.to.0.min(to)));
    within.map(|(from, to)| to.saturating_sub(from)).sum()
}

impl Store {
    /// Writes what the fingerprints of these definitions mean, where that is not there yet. Safe to do again.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn record_definitions(&self, definitions: &Definitions) -> Result<(), StoreError> {
        let mut keep = definitions.to_keep();
        let there = self.kept("1", &[]).await?;
        keep.retain(|kept| !there.contains(kept));
        let rows: Vec<_> = keep.into_iter().map(DefinitionRow::of).collect();
        self.record(DEFINITIONS, &rows).await?;
        if there.iter().any(|kept| kept.read().is_err()) {
            self.tell_unanswerable(definitions).await?;
        }
        Ok(())
    }

    /// Writes to the log which views were answered before, by rows that this build can't read.
    async fn tell_unanswerable(&self, definitions: &Definitions) -> Result<(), StoreError> {
        for (fingerprint, view, why) in self.known().await?.unanswerable(definitions) {
            tracing::warn!(
                view,
                %fingerprint,
                "what was published of the view before can't answer for it, and it has no publication yet: {why}; \
                 `highwater batch run --view {view}` computes it anew"
            );
        }
        Ok(())
    }

    /// What is known of all fingerprints.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn known(&self) -> Result<Known, StoreError> {
        let (published, kept) = tokio::try_join!(self.last_published(), self.kept("1", &[]))?;
        Ok(Known { published, kept })
    }

    /// Who answers for a view that was found without a publication.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn answering(&self, view: &View) -> Result<Answering<Box<KeptView>>, StoreError> {
        let of_name = [("dataset", view.dataset.clone()), ("view", view.name.clone())];
        let condition = "dataset = {dataset:String} AND view = {view:String}";
        let kept = self.kept(condition, &of_name).await?;
        // Most views that are building are new: nobody else is asked about.
        if kept.iter().all(|kept| kept.fingerprint == view.fingerprint) {
            return Ok(Answering::ItselfUnpublished);
        }
        let published = self.last_published().await?;
        Ok(Known { published, kept }.answering(view))
    }

    /// When each fingerprint was published last, in milliseconds since 1970.
    async fn last_published(&self) -> Result<BTreeMap<Fingerprint, i64>, StoreError> {
        let sql = format!(
            "SELECT fingerprint, toUnixTimestamp64Milli(max(published)) AS last FROM {} FINAL GROUP BY fingerprint",
            self.table(PUBLICATIONS)
        );
        let rows = self
            .rows::<LastRow>("tell which views are published", &sql, &[])
            .await?;
        let published = |row: LastRow| Some((Fingerprint::read(&row.fingerprint)?, row.last));
        Ok(rows.into_iter().filter_map(published).collect())
    }

    async fn kept(
        &self,
        condition: &str,
        parameters: &[(&'static str, String)],
    ) -> Result<Vec<KeptDefinition>, StoreError> {
        let sql = format!(
            "SELECT fingerprint, dataset, view, form, rules, definition, plan FROM {} FINAL WHERE {condition}",
            self.table(DEFINITIONS)
        );
        let rows = self
            .rows::<DefinitionRow>("read kept definitions", &sql, parameters)
            .await?;
        Ok(rows.into_iter().filter_map(DefinitionRow::kept).collect())
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::handoff::{Offset, OffsetRange, Partition, Start, TopicId};

    use super::super::freshness::PartitionState;
    use super::*;

    fn definitions(measure: &str) -> Definitions {
        let text = format!(
            "[dataset.flights]\ntopic = \"flights\"\nevent_time = \"at\"\nchunk = 8\n[dataset.flights.fields]\n\
             at = \"timestamp\"\nn = \"int64\"\n[view.hourly]\ndataset = \"flights\"\ngrain = \"1h\"\n[view.hourly.measures]\n\
             events = \"{measure}\"\n"
        );
        Definitions::parse([("flights.toml", text)]).unwrap()
    }

    #[test]
    fn what_cannot_be_read_does_not_answer() {
        let [first, second, third] = ["count()", "sum(n)", "max(n)"].map(definitions);
        let fingerprint = |of: &Definitions| of.views[0].fingerprint;
        let known = Known {
            published: BTreeMap::from([(fingerprint(&first), 10), (fingerprint(&second), 20)]),
            kept: [&first, &second, &third].map(|of| of.to_keep().remove(0)).to_vec(),
        };
        let who = |known: &Known| match known.answering(&third.views[0]) {
            Answering::Another(kept) => Some(kept.view.fingerprint),
            _ => None,
        };
        assert_eq!(who(&known), Some(fingerprint(&second)));
        assert_eq!(
            known.answering_for_others(&third),
            BTreeMap::from([(fingerprint(&second), vec!["hourly".to_owned()])])
        );
        assert!(known.answering_for_others(&second).is_empty());
        let mut later = known.clone();
        later.kept[1].form += 1;
        assert_eq!(who(&later), Some(fingerprint(&first)));
        let told = vec![(fingerprint(&second), "hourly".to_owned(), Unreadable::Form)];
        assert_eq!(
            (known.unanswerable(&third), later.unanswerable(&third)),
            (Vec::new(), told)
        );
        assert!(later.unanswerable(&first).is_empty(), "it is published itself");
        later.kept[0].text.clear();
        assert_eq!(who(&later), None);
        let mut of_another_dataset = known;
        of_another_dataset
            .kept
            .iter_mut()
            .for_each(|kept| kept.dataset = "trains".to_owned());
        assert_eq!(who(&of_another_dataset), None);
    }

    #[test]
    fn progress_is_of_what_the_log_holds() {
        let view = &definitions("count()").views[0];
        let partition = |number| Partition {
            topic: TopicId(7),
            number,
        };
        let row = |number, log_end| FreshnessOfPartition {
            partition: partition(number),
            next: Offset(0),
            log_end: Offset(log_end),
            watermark: None,
            kafka_time: None,
            state: PartitionState::Behind,
            reason: String::new(),
            seen: 5,
        };
        let mut facts = Facts::default();
        let counted = |facts: &Facts| Counted::of(view, facts, &[row(0, 40), row(1, 20)]);
        assert_eq!(Counted::of(view, &facts, &[]), None);
        let of = |offsets_read, offsets| Counted { offsets_read, offsets };
        assert_eq!(counted(&facts), Some(of(0, 60)));
        // A log that begins at 12: what it no longer had is neither read nor there.
        let held = facts.progress.entry(partition(0)).or_default();
        for (from, to) in [(0, 8), (8, 12)] {
            let range = OffsetRange {
                from: Offset(from),
                to: Offset(to),
            };
            held.record_gap(Start(Offset(from)), range);
        }
        held.record(Start(Offset(8)), Offset(16));
        held.record(Start(Offset(16)), Offset(19));
        // What lies behind a hole does not count.
        held.record(Start(Offset(32)), Offset(40));
        let half = counted(&facts).unwrap();
        assert_eq!((half, half.percent()), (of(7, 48), 14));
        assert_eq!((of(9, 9).percent(), of(999, 1000).percent()), (100, 99));
    }
}
