//! Differences explained: predicted by the layers' own rules, proved by events, narrowed down to places.
//!
//! Only where something differs: the archive is read again for it, with each event's class.

use std::collections::{BTreeMap, BTreeSet};

use shared_connections::store::{Pace, RulesDiffer, RulesKnown};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, EventDay, Offset, OffsetRange, OffsetSet, Partition, Publication};
use shared_schemas::plan::{CellKey, MergePlan};
use shared_schemas::store::cells::{HeldCells, times_of};

use super::cause::Proof;
use super::classes::{Classes, EventCell, Places};
use super::compare::{Cells, Compare, Difference};
use super::place::{self, MOST_EVENTS, Narrow};
use super::{Ground, OfView, computing};
use crate::error::RunError;
use crate::recompute::{Recompute, below};
use crate::retry::patiently;

/// So many differences of a view are narrowed down, unexplained ones first: each takes a statement and a scan of its day.
pub(super) const NARROWED: usize = 20;

/// The days that were compared, and what the store holds of them.
pub(super) struct Compared<'a> {
    pub(super) ground: &'a Ground,
    pub(super) publication: Option<&'a Publication>,
    pub(super) days: &'a BTreeSet<EventDay>,
    pub(super) held: &'a Cells,
    /// Whether the filter of a compared start was cut short.
    pub(super) cut_short: bool,
}

impl OfView<'_> {
    /// Puts differences down to causes. `left` is how many more may be narrowed down.
    pub(super) async fn explain(
        &self,
        of: &Compared<'_>,
        found: &mut Compare,
        left: &mut usize,
    ) -> Result<(), RunError> {
        let plan_error = |error: datafusion::error::DataFusionError| RunError::Plan(error.to_string());
        let failed = |error| computing(of.days, &error);
        let memory = self.batch.config.batch.memory;
        let of_both = Recompute::of_both_layers(self.view, self.dataset, memory).map_err(plan_error)?;
        let merge = MergePlan::new(self.view, CellKey::OneStart).map_err(plan_error)?;
        let predicted = self.predicted(&of_both, &merge, of.ground, of.days).await?;
        found.explain(self.view, of.held, &predicted, of.cut_short);

        let classes = Classes::new(self.view, self.dataset, memory).map_err(plan_error)?;
        let places = of.ground.places(self.chunk()?);
        let cells = found.different.iter().filter_map(|difference| difference.cell.clone());
        let wanted: BTreeSet<_> = cells.collect();
        let events = of.ground.pinned.events(of.days);
        let by_class = classes.cells(events, of.days, &places, &wanted).await.map_err(failed)?;
        let mut proof = Proof {
            classes: BTreeMap::new(),
            counted: self.made(&classes, Vec::new(), of.days).await?,
        };
        let mut counted = Vec::new();
        for (class, cells) in by_class {
            if class.is_counted() {
                counted.extend(cells.iter().cloned());
            }
            proof.classes.insert(class, self.made(&classes, cells, of.days).await?);
        }
        proof.counted = self.made(&classes, counted, of.days).await?;
        found.prove(self.view, of.held, &proof);

        found.different.sort_by_key(|difference| difference.explained.is_some());
        let count = found.different.len().min(*left);
        *left -= count;
        let mut windows: BTreeMap<i64, Vec<&mut Difference>> = BTreeMap::new();
        for difference in found.different.iter_mut().take(count) {
            windows.entry(difference.begins).or_default().push(difference);
        }
        for (window, differences) in windows {
            self.narrow(of, &classes, &places, window, differences).await?;
        }
        let other = self.other_rules(of.ground).await?;
        for difference in found.different.iter_mut().take(count) {
            difference.blame_rules(&other);
        }
        Ok(())
    }

    /// What is known of rules, those of the dataset as it is now among them.
    pub(super) async fn rules_known(&self) -> Result<RulesKnown, RunError> {
        let known = patiently(|| self.batch.store.rules()).await?;
        Ok(known.with(self.dataset))
    }

    /// Where the archive was read under other rules than the speed layer reads by now, as far as an answer can tell.
    async fn other_rules(&self, ground: &Ground) -> Result<Vec<(Partition, OffsetRange, RulesDiffer)>, RunError> {
        let known = self.rules_known().await?;
        let now = Fingerprint::of_rules(self.dataset).to_string();
        let rules = ground.pinned.rules().into_iter();
        Ok(rules
            .filter_map(|((partition, rules), range)| Some((partition, range, known.differ(rules, &now)?)))
            .collect())
    }

    /// Cells of several batches as one for each key.
    async fn made(
        &self,
        classes: &Classes,
        cells: Vec<arrow::array::RecordBatch>,
        days: &BTreeSet<EventDay>,
    ) -> Result<Cells, RunError> {
        let merged = classes.merged(cells).await.map_err(|error| computing(days, &error))?;
        Cells::new(self.view, classes.schema(), &[merged]).map_err(|error| RunError::Plan(error.to_string()))
    }

    /// Finds the places of differences of one window.
    async fn narrow(
        &self,
        of: &Compared<'_>,
        classes: &Classes,
        places: &Places,
        window: i64,
        differences: Vec<&mut Difference>,
    ) -> Result<(), RunError> {
        // A row under a day that its window is not of should hold nothing.
        let days = differences.iter().map(|difference| difference.day());
        let days: BTreeSet<_> = days.filter(|day| of.days.contains(day)).collect();
        let failed = |error| computing(&days, &error);
        let wanted: BTreeSet<_> = differences
            .iter()
            .filter_map(|difference| difference.cell.clone())
            .collect();
        let starts = of.ground.starts();
        let cells = HeldCells {
            database: self.batch.store.database(),
            view: self.view,
            publication: of.publication,
            starts: &starts,
            // A row of a wrong day counts too.
            days: of.days,
            time: times_of(of.days).unwrap_or_default(),
        };
        let parts = match cells.parts(window) {
            Some(statement) => {
                let store = &self.batch.store;
                let answer = patiently(|| store.answer_at_length(&statement, "ArrowStream", Pace::AT_LENGTH)).await?;
                place::parts(self.view, classes, &answer.body, &wanted)
                    .map_err(|error| RunError::Plan(error.to_string()))?
            }
            None => Vec::new(),
        };
        let provider = || of.ground.pinned.events(&days);
        let events = classes
            .events(provider(), &days, places, window, &wanted, MOST_EVENTS)
            .await
            .map_err(failed)?;
        let marks = of.ground.marks();
        let narrow = Narrow {
            view: self.view,
            classes,
            chunk: self.chunk()?,
            marks: &marks,
            parts: &parts,
            // Of a cell that was read in part nothing can be said.
            events: if events.len() < MOST_EVENTS { &events } else { &[] },
        };
        let fields: Vec<_> = self.dataset.fields.iter().map(|field| field.name.clone()).collect();
        for difference in differences {
            if events.len() >= MOST_EVENTS {
                continue;
            }
            let (found, mut of_place) = narrow.down(difference).await.map_err(failed)?;
            difference.place = found;
            difference.events_in_place = of_place.len();
            of_place.truncate(place::SHOWN);
            let offsets = offsets(&of_place, &marks.keys().copied().collect());
            let rows = classes.details(provider(), &days, &offsets).await.map_err(failed)?;
            difference.events = place::shown(&rows, &of_place, &fields);
        }
        Ok(())
    }
}

/// The offsets of these events.
fn offsets(events: &[EventCell], partitions: &BTreeSet<Partition>) -> BTreeMap<Partition, OffsetSet> {
    let mut offsets: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
    for event in events {
        let from = Offset(event.offset);
        let range = OffsetRange { from, to: from.next() };
        for partition in partitions
            .iter()
            .filter(|partition| partition.number == event.partition)
        {
            offsets.entry(*partition).or_default().insert(range);
        }
    }
    offsets
}

impl Ground {
    /// Which offsets are compared, and whose they are.
    pub(super) fn places(&self, chunk: ChunkSize) -> Places {
        let mut gaps = BTreeMap::new();
        for (partition, found) in &self.partitions {
            let of_speed = self.facts.progress(*partition).gaps_from(found.mark, chunk);
            gaps.insert(*partition, of_speed.within(found.mark.0, found.end));
        }
        Places {
            batch: below(&self.marks()),
            speed: self.of_speed(chunk),
            gaps,
        }
    }
}
