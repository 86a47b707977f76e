//! Differences explained: predicted by the layers' own rules, proved by events, narrowed down to places.
//!
//! Only where something differs: the archive is read again for it, with each event's class.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::Expr;
use futures::{StreamExt, TryStreamExt};
use shared_connections::store::RulesKnown;
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition, Publication};
use shared_schemas::plan::{CellKey, MergePlan};
use shared_schemas::store::cells::{Among, HeldCells, times_of};

use super::calibration::{self, Calibration};
use super::cause::Proof;
use super::classes::{Classes, EventCell};
use super::classified::Classified;
use super::compare::{Cells, Compare, Difference, with_layers};
use super::days::{Left, Rooms, Sample};
use super::laid::{Laid, merged};
use super::ledgers::Placed;
use super::other::Other;
use super::pieces::{GATHERED, Source};
use super::place::{self, MOST_EVENTS, Narrow};
use super::read::{Batches, Unread};
use super::sorted::{Stream, of_keys, sorted};
use super::{Ground, OfView, computing};
use crate::error::RunError;
use crate::recompute::{Recompute, below};
use crate::retry::patiently;

/// So many unexplained differences of a view are narrowed down, and so many explained ones: each takes a statement and a scan of its day.
pub(super) const NARROWED: usize = 20;

/// A window of more values than these is not compared with its quantiles; and so many values take as much memory as a difference.
const MOST_VALUES: usize = 1 << 20;
const VALUES: usize = 8;

/// The days that are compared, and with what.
pub(super) struct Compared<'a> {
    pub(super) ground: &'a Ground,
    /// The memory of all.
    pub(super) rooms: &'a Rooms,
    pub(super) publication: Option<&'a Publication>,
    pub(super) days: &'a BTreeSet<EventDay>,
    /// The columns of exact cells.
    pub(super) schema: &'a SchemaRef,
    /// The ledgers of the compared starts.
    pub(super) ledgers: &'a [Placed],
    /// Where the archive was read under other rules.
    pub(super) other: &'a Other,
}

/// What cells that differ are explained with. It is read once, however many slices of them there are, and laid down on disk.
pub(super) struct Explaining {
    pub(super) of_both: Recompute,
    pub(super) merge: MergePlan,
    pub(super) classes: Classes,
    /// Which class each event is of.
    pub(super) classified: Arc<Classified>,
    /// Which cells, where all of them are known.
    pub(super) only: Option<Arc<BTreeSet<OwnedRow>>>,
    /// What both layers should hold by their own rules.
    predicted: Laid,
    /// What the events of each class come to.
    by_class: Laid,
    /// What cells are taken apart with, once that was asked for.
    pub(super) sources: Option<Vec<Source>>,
}

/// Cells that differ, with what the store holds of them.
pub(super) struct Slice {
    pub(super) held: Cells,
    pub(super) found: Compare,
}

impl Slice {
    /// Which cells.
    pub(super) fn cells(&self) -> BTreeSet<OwnedRow> {
        wanted(&self.found)
    }
}

impl OfView<'_> {
    /// Begins to read what explains differences: of these cells alone, or of all.
    pub(super) async fn explaining(
        &self,
        of: &Compared<'_>,
        only: Option<BTreeSet<OwnedRow>>,
    ) -> Result<Explaining, RunError> {
        let plan_error = |error: DataFusionError| RunError::Plan(error.to_string());
        let failed = |error| computing(of.days, &error);
        let of_both = Recompute::of_both_layers(self.view, self.dataset, &of.rooms.predicted).map_err(plan_error)?;
        let merge = MergePlan::new(self.view, CellKey::OneStart).map_err(plan_error)?;
        let classes = Classes::new(self.view, self.dataset, &of.rooms.classes).map_err(plan_error)?;
        let only = only.map(Arc::new);
        let keys = 1 + self.view.dimensions.len();
        let spill = of.rooms.apart.spill();
        // One row for each of the first so many columns: what lies on disk grows with the cells, and not with layers and partitions.
        let laid = async |merge: &MergePlan, by: usize, cells: Stream| {
            let schema = merge.schema();
            let cells = match &only {
                Some(only) => of_keys(schema, keys, cells, Arc::clone(only))?,
                None => cells,
            };
            let cells = sorted(&of.rooms.apart, schema, by, cells).await?;
            let cells = merged(merge.clone(), by, cells, of.rooms.apart.memory() / GATHERED);
            Laid::of_sorted(&spill, schema, keys, cells).await
        };
        let counted = of.ground.of_starts(self.chunk()?, Among::All);
        let predicted = self.predicted(&of_both, of, Among::All, counted);
        let predicted = laid(&merge, keys, predicted).await.map_err(failed)?;
        let events = self.events(of, of.days);
        let classified = classes
            .classify(&events, of.days, of.ground.places(self.chunk()?))
            .await;
        let classified = Arc::new(classified.map_err(failed)?);
        let by_class = classes.by_class(events, of.days, &classified).await;
        let by_class = classes.over_partitions(by_class.map_err(failed)?);
        // A class stands where a start would.
        let by_class = laid(classes.merge_by_class(), keys + 2, by_class)
            .await
            .map_err(failed)?;
        Ok(Explaining {
            of_both,
            merge,
            classes,
            classified,
            only,
            predicted,
            by_class,
            sources: None,
        })
    }

    /// Puts the differences of a slice down to causes. `left` is what may still be done for the view.
    pub(super) async fn explain(
        &self,
        of: &Compared<'_>,
        with: &mut Explaining,
        Slice { held, found }: &mut Slice,
        left: &mut Left,
    ) -> Result<(), RunError> {
        let failed = |error| computing(of.days, &error);
        let wanted = wanted(found);
        self.reads.slice();
        let predicted = with.predicted.of(&wanted).map_err(failed)?;
        let predicted = self.as_cells(&with.merge, predicted, of.days).await?;
        found.explain(self.view, held, &predicted);

        let by_class = with.by_class.of(&wanted).map_err(failed)?;
        let by_class = with.classes.parted(&by_class).map_err(failed)?;
        let mut proof = Proof {
            classes: BTreeMap::new(),
            counted: self.as_cells(&with.merge, Vec::new(), of.days).await?,
        };
        let mut counted = Vec::new();
        for (class, cells) in by_class {
            if class.is_counted() {
                counted.extend(cells.iter().cloned());
            }
            let cells = self.as_cells(&with.merge, cells, of.days).await?;
            proof.classes.insert(class, cells);
        }
        proof.counted = self.as_cells(&with.merge, counted, of.days).await?;
        found.prove(self.view, held, &proof);
        Box::pin(self.take_apart(of, with, &mut found.different)).await?;
        found.excuse_gaps(self.view, held, &predicted, &mut left.in_gaps);

        found.different.sort_by_key(|difference| difference.explained.is_some());
        let mut windows: BTreeMap<i64, Vec<&mut Difference>> = BTreeMap::new();
        for difference in &mut found.different {
            let may = &mut left.narrowed[usize::from(difference.explained.is_some())];
            if *may == 0 {
                continue;
            }
            *may -= 1;
            windows.entry(difference.begins).or_default().push(difference);
        }
        for (window, differences) in windows {
            self.narrow(of, with, window, differences).await?;
        }
        Ok(())
    }

    /// Cells that may be several for a key, as one for each.
    pub(super) async fn as_cells(
        &self,
        merge: &MergePlan,
        cells: Vec<RecordBatch>,
        days: &BTreeSet<EventDay>,
    ) -> Result<Cells, RunError> {
        let merged = match &cells[..] {
            [] => Vec::new(),
            _ => vec![merge.run(cells).await.map_err(|error| computing(days, &error))?],
        };
        Cells::new(self.view, merge.schema(), &merged).map_err(|error| RunError::Plan(error.to_string()))
    }

    /// What both layers should hold by their own rules: batch below the marks, speed from there on, of these offsets; or of some starts
    /// alone. A cell may come in two rows, in any order. The layers come one after the other, so that neither has memory while the other
    /// asks for it.
    pub(super) fn predicted(
        &self,
        recompute: &Recompute,
        of: &Compared<'_>,
        among: Among<'_>,
        counted: BTreeMap<Partition, OffsetSet>,
    ) -> Stream {
        let batch = (!matches!(among, Among::Only(_))).then(|| {
            let (recompute, days, counted) = (recompute.clone(), of.days.clone(), below(&of.ground.marks()));
            let events = self.lean_events(of);
            futures::stream::once(async move { recompute.cells(events, &days, &counted).await }).try_flatten()
        });
        let (recompute, days, events) = (recompute.clone(), of.days.clone(), self.lean_events(of));
        let speed = async move { recompute.cells_of_speed(events, &days, &counted).await };
        let speed = futures::stream::once(speed).try_flatten();
        futures::stream::iter(batch).flatten().chain(speed).boxed()
    }

    /// The archived events of some days, to be read once.
    pub(super) fn events(&self, of: &Compared<'_>, days: &BTreeSet<EventDay>) -> Arc<dyn TableProvider> {
        self.reads.of_archive();
        of.ground.pinned.events(days)
    }

    /// The same without what was not declared.
    pub(super) fn lean_events(&self, of: &Compared<'_>) -> Arc<dyn TableProvider> {
        self.reads.of_archive();
        of.ground.pinned.lean_events(of.days)
    }

    /// How quantiles lie to the values of one of the compared windows, if there is any.
    pub(super) async fn calibrate(
        &self,
        of: &Compared<'_>,
        sample: &Sample,
        values: Vec<Expr>,
    ) -> Result<Vec<Calibration>, RunError> {
        let plan_error = |error: DataFusionError| RunError::Plan(error.to_string());
        let Some((window, held)) = sample.window() else {
            return Ok(Vec::new());
        };
        let days = BTreeSet::from([EventDay::of_micros(window)]);
        let failed = |error| computing(&days, &error);
        let held = Cells::new(self.view, &with_layers(of.schema), held).map_err(|error| failed(error.into()))?;
        let classes = Classes::new(self.view, self.dataset, &of.rooms.classes).map_err(plan_error)?;
        let places = of.ground.places(self.chunk()?);
        let events = self.events(of, &days);
        let most = MOST_VALUES.min(of.rooms.most() * VALUES);
        let events = classes
            .values(events, &days, places, window, values, most)
            .await
            .map_err(failed)?;
        let rows: usize = events.iter().map(RecordBatch::num_rows).sum();
        if rows >= most {
            return Ok(Vec::new());
        }
        calibration::of_quantiles(self.view, &held, sample.different(), &events).map_err(failed)
    }

    /// What is known of rules, those of the dataset as it is now among them.
    pub(super) async fn rules_known(&self) -> Result<RulesKnown, RunError> {
        let known = patiently(|| self.batch.store.rules()).await?;
        Ok(known.with(self.dataset))
    }

    /// Finds the places of differences of one window.
    async fn narrow(
        &self,
        of: &Compared<'_>,
        with: &Explaining,
        window: i64,
        differences: Vec<&mut Difference>,
    ) -> Result<(), RunError> {
        let classes = &with.classes;
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
        let mut parts = Vec::new();
        if let Some(statement) = cells.parts(window) {
            let read = async || {
                self.reads.of_store();
                let mut found = Vec::new();
                let mut answer = Batches::of(&self.batch.store, &statement)?;
                while let Some(batch) = answer.next().await? {
                    found.extend(place::parts(self.view, classes, &batch, &wanted)?);
                }
                Ok(found)
            };
            let told = || async {
                match read().await {
                    Ok(found) => Ok(Ok(found)),
                    Err(Unread::Store(error)) => Err(error),
                    Err(Unread::Rows(error)) => Ok(Err(RunError::Plan(error.to_string()))),
                }
            };
            parts = patiently(told).await??;
        }
        let provider = || self.events(of, &days);
        let events = classes
            .events(provider(), &days, &with.classified, window, &wanted, MOST_EVENTS)
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

/// The cells of differences.
fn wanted(found: &Compare) -> BTreeSet<OwnedRow> {
    found.different.iter().filter_map(|one| one.cell.clone()).collect()
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
