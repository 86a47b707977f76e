//! Differences explained: predicted by the layers' own rules, proved by events, narrowed down to places.
//!
//! Only where something differs: the archive is read again for it, with each event's class.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use shared_connections::store::{Pace, RulesKnown};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition, Publication};
use shared_schemas::plan::{CellKey, MergePlan};
use shared_schemas::store::cells::{Among, HeldCells, times_of};

use super::apart::Other;
use super::calibration::{self, Calibration};
use super::cause::Proof;
use super::classes::{Classes, EventCell, Places};
use super::compare::{Cells, Compare, Difference};
use super::ledgers::Placed;
use super::place::{self, MOST_EVENTS, Narrow};
use super::{Ground, OfView, computing};
use crate::error::RunError;
use crate::recompute::{Recompute, Room};
use crate::retry::patiently;

/// So many differences of a view are narrowed down, unexplained ones first: each takes a statement and a scan of its day.
pub(super) const NARROWED: usize = 20;

/// So many windows of a view are read for the values that quantiles stand for: each takes a scan of its day.
pub(super) const CALIBRATED: usize = 3;
/// A window of more events than these is not.
const MOST_VALUES: usize = 1 << 20;

/// The days that were compared, and what the store holds of them.
pub(super) struct Compared<'a> {
    pub(super) ground: &'a Ground,
    /// The memory of all.
    pub(super) room: &'a Room,
    pub(super) publication: Option<&'a Publication>,
    pub(super) days: &'a BTreeSet<EventDay>,
    pub(super) held: &'a Cells,
    /// The columns of exact cells.
    pub(super) schema: &'a SchemaRef,
    /// The ledgers of the compared starts.
    pub(super) ledgers: &'a [Placed],
    /// Where the archive was read under other rules.
    pub(super) other: &'a Other,
}

impl OfView<'_> {
    /// Puts differences down to causes. `left` is how many more may be narrowed down, `room_in_gaps` how many events may lie in files that
    /// were put aside.
    pub(super) async fn explain(
        &self,
        of: &Compared<'_>,
        found: &mut Compare,
        left: &mut usize,
        room_in_gaps: &mut u64,
    ) -> Result<(), RunError> {
        let plan_error = |error: datafusion::error::DataFusionError| RunError::Plan(error.to_string());
        let failed = |error| computing(of.days, &error);
        let of_both = Recompute::of_both_layers(self.view, self.dataset, of.room).map_err(plan_error)?;
        let merge = MergePlan::new(self.view, CellKey::OneStart).map_err(plan_error)?;
        let predicted = self.predicted(&of_both, &merge, of.ground, of.days, Among::All).await?;
        found.explain(self.view, of.held, &predicted);

        let classes = Classes::new(self.view, self.dataset, of.room).map_err(plan_error)?;
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
        self.take_apart(of, found, (&of_both, &merge), (&classes, &places))
            .await?;
        found.excuse_gaps(self.view, of.held, &predicted, room_in_gaps);

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
        Ok(())
    }

    /// How quantiles lie to the values of one of the compared windows, where the view has any.
    pub(super) async fn calibrate(
        &self,
        of: &Compared<'_>,
        different: &[Difference],
    ) -> Result<Vec<Calibration>, RunError> {
        let plan_error = |error: datafusion::error::DataFusionError| RunError::Plan(error.to_string());
        let values = calibration::values(self.view).map_err(plan_error)?;
        let Some(window) = of.held.middle_window().filter(|_| !values.is_empty()) else {
            return Ok(Vec::new());
        };
        let days = BTreeSet::from([EventDay::of_micros(window)]);
        let failed = |error| computing(&days, &error);
        let classes = Classes::new(self.view, self.dataset, of.room).map_err(plan_error)?;
        let places = of.ground.places(self.chunk()?);
        let events = of.ground.pinned.events(&days);
        let events = classes
            .values(events, &days, &places, window, values, MOST_VALUES)
            .await
            .map_err(failed)?;
        let rows: usize = events.iter().map(RecordBatch::num_rows).sum();
        if rows >= MOST_VALUES {
            return Ok(Vec::new());
        }
        calibration::of_quantiles(self.view, of.held, different, &events).map_err(failed)
    }

    /// What is known of rules, those of the dataset as it is now among them.
    pub(super) async fn rules_known(&self) -> Result<RulesKnown, RunError> {
        let known = patiently(|| self.batch.store.rules()).await?;
        Ok(known.with(self.dataset))
    }

    /// Where the archive was read under other rules than the speed layer reads by now, as far as an answer can tell.
    pub(super) async fn other_rules(&self, ground: &Ground) -> Result<Other, RunError> {
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
            among: Among::All,
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
            let offsets = offsets(&of_place);
            let rows = classes.details(provider(), &days, &offsets).await.map_err(failed)?;
            difference.events = place::shown(&rows, &of_place, &fields);
        }
        Ok(())
    }
}

/// The offsets of these events.
fn offsets(events: &[EventCell]) -> BTreeMap<Partition, OffsetSet> {
    let mut offsets: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
    for event in events {
        let from = Offset(event.offset);
        let range = OffsetRange { from, to: from.next() };
        offsets.entry(event.partition).or_default().insert(range);
    }
    offsets
}
