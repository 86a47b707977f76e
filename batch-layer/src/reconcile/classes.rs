//! What each archived event is to the layers: counted once, counted again, dropped, or lacking.
//!
//! The archive holds every event with its id, its offset and Kafka's time, so it can be told of each one what either layer did
//! with it by its own rule, and why it is counted twice where it is. That is what a cause is proved with: not "the answer could be
//! explained by a repeat", but these events, at these offsets, contribute just what is too much.
//!
//! ```text
//! all archived events of the days
//!   ├ below the mark: batch's rule ────────────────┬▶ dropped
//!   ├ from the mark on: the speed layer's rule ────┼▶ known: a repeat that it drops
//!   │                                              └▶ counted ─┬▶ kept: the one that counts
//!   │                                                          ├▶ beyond: its own partition held it before, longer ago than the window
//!   │                                                          └▶ across: another partition held it
//!   └ in a gap of the speed layer, and no copy of it is counted ▶ gap
//! ```
//!
//! The class, or an offset with a class, takes the place of a start in the view's plan, so one run gives the cells of every
//! class, or of every event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int32Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int32Type, SchemaRef, TimestampMicrosecondType, UInt64Type};
use arrow::row::OwnedRow;
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident, lit, when};
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, OffsetSet, Partition, TopicId};
use shared_schemas::plan::{CellKey, CellPlan, MergePlan, START_COLUMN, WINDOW_COLUMN};
use shared_schemas::store::tables::TOPIC_COLUMN;
use shared_schemas::view::{UTC, View};

use super::classified::{CLASS, Classified};
use super::sorted::{Stream, key_converter};
use crate::recompute::{Room, at_offsets, of_days, settled, topic_text};

/// What an archived event is to the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Class {
    /// Counted, and it is the one that counts.
    Kept = 0,
    /// Counted again: its own partition held it before, longer ago than the speed layer remembers.
    Beyond = 1,
    /// Counted again: another partition held it.
    Across = 2,
    /// A repeat that the speed layer drops.
    Known = 3,
    /// In a gap of the speed layer, and counted nowhere.
    Gap = 4,
    /// A repeat that the batch layer drops, or a copy in a gap.
    Dropped = 5,
}

/// Above any class.
const CLASSES: u64 = 8;

impl Class {
    pub(crate) const ALL: [Self; 6] = [
        Self::Kept,
        Self::Beyond,
        Self::Across,
        Self::Known,
        Self::Gap,
        Self::Dropped,
    ];

    /// Whether the layers count it, by their own rules.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::Kept | Self::Beyond | Self::Across)
    }

    fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u64 == number)
    }

    fn lit(self) -> Expr {
        lit(self as i64)
    }
}

/// Which offsets are whose.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// Below the marks: batch rows count them.
    pub(crate) batch: BTreeMap<Partition, OffsetSet>,
    /// Speed rows count them.
    pub(crate) speed: BTreeMap<Partition, OffsetSet>,
    /// The speed layer lacks them, since Kafka no longer had them.
    pub(crate) gaps: BTreeMap<Partition, OffsetSet>,
}

impl Places {
    /// The topics' incarnations, each once. Two may have the same partition numbers and offsets.
    pub(super) fn topics(&self) -> Vec<TopicId> {
        let partitions = self.batch.keys().chain(self.speed.keys()).chain(self.gaps.keys());
        let topics: BTreeSet<_> = partitions.map(|partition| partition.topic).collect();
        topics.into_iter().collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<Partition, OffsetSet> {
        let mut all = self.batch.clone();
        for (partition, offsets) in self.speed.iter().chain(&self.gaps) {
            all.entry(*partition).or_default().extend(offsets);
        }
        all
    }
}

/// Cells by class, or by event.
pub(crate) struct Classes {
    room: Room,
    session: SessionContext,
    plan: CellPlan,
    merge: MergePlan,
    merge_by_class: MergePlan,
    view: View,
    dataset: Dataset,
}

/// An event as the view sees it: its place, what it is, and its cell, which is of nothing else.
#[derive(Debug, Clone)]
pub(crate) struct EventCell {
    pub(crate) partition: Partition,
    pub(crate) offset: u64,
    pub(crate) class: Class,
    /// In the columns of [`CellKey::OneStart`].
    pub(crate) cell: RecordBatch,
}

/// Cells in the columns of [`CellKey::OneStart`], by class.
pub(crate) type ByClass = BTreeMap<Class, Vec<RecordBatch>>;

impl Classes {
    pub(crate) fn new(view: &View, dataset: &Dataset, room: &Room) -> Result<Self> {
        Ok(Self {
            room: room.clone(),
            session: room.session(),
            plan: CellPlan::new(view, dataset, CellKey::Start)?,
            merge: MergePlan::new(view, CellKey::OneStart)?,
            merge_by_class: MergePlan::new(view, CellKey::Start)?,
            view: view.clone(),
            dataset: dataset.clone(),
        })
    }

    /// The columns of what comes out.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.merge.schema()
    }

    /// Cells that are one of several for a key, made one for each key.
    pub(crate) async fn merged(&self, cells: Vec<RecordBatch>) -> Result<RecordBatch> {
        self.merge.run(cells).await
    }

    /// What the events of each class come to in each cell, in no order; in the columns of [`Classes::columns`].
    pub(crate) async fn by_class(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let class = cast(ident(CLASS), DataType::UInt64);
        self.started(events, days, classified, [None, None], class).await
    }

    /// Cells of [`Classes::by_class`], of all partitions as if they were of one; there may be several for a key then.
    pub(crate) fn over_partitions(&self, cells: Stream) -> Stream {
        let (schema, at) = (SchemaRef::clone(self.columns()), 1 + self.view.dimensions.len());
        let as_one = move |batch: Result<RecordBatch>| {
            let batch = batch?;
            let mut columns = batch.columns().to_vec();
            if let Some(partitions) = columns.get_mut(at) {
                *partitions = Arc::new(Int32Array::from(vec![0; batch.num_rows()]));
            }
            Ok(RecordBatch::try_new(SchemaRef::clone(&schema), columns)?)
        };
        cells.map(as_one).boxed()
    }

    /// What makes one for each key of them.
    pub(crate) fn merge_by_class(&self) -> &MergePlan {
        &self.merge_by_class
    }

    /// The columns of cells by class: with a partition and, as their start, the class.
    pub(crate) fn columns(&self) -> &SchemaRef {
        self.plan.schema()
    }

    /// Cells of [`Classes::by_class`], by class.
    pub(crate) fn parted(&self, cells: &[RecordBatch]) -> Result<ByClass> {
        let mut found = ByClass::new();
        for batch in cells {
            let (plain, starts, _) = self.plain(batch)?;
            for class in Class::ALL {
                let of_class: BooleanArray = starts.iter().map(|start| Some(*start == class as u64)).collect();
                let rows = filter_record_batch(&plain, &of_class)?;
                if rows.num_rows() > 0 {
                    found.entry(class).or_default().push(rows);
                }
            }
        }
        Ok(found)
    }

    /// The events of these cells, with a window that begins at that moment; by partition and offset. At most so many.
    pub(crate) async fn events(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
        window: i64,
        wanted: &BTreeSet<OwnedRow>,
        most: usize,
    ) -> Result<Vec<EventCell>> {
        let topics = classified.places.topics();
        let incarnations = topics.len().max(1) as u64;
        let only = [Some(self.of_window(window)), None];
        let mut cells = self.started(events, days, classified, only, placed(&topics)?).await?;
        let keys = 1 + self.view.dimensions.len();
        let mut found = Vec::new();
        while let Some(batch) = cells.try_next().await? {
            let rows = rows_of(&batch, keys)?;
            let is_wanted: BooleanArray = rows.iter().map(|row| Some(wanted.contains(row))).collect();
            let (plain, starts, partitions) = self.plain(&filter_record_batch(&batch, &is_wanted)?)?;
            for (row, (start, partition)) in starts.iter().zip(partitions).enumerate() {
                let place = start / CLASSES;
                let topic = usize::try_from(place % incarnations).ok().and_then(|at| topics.get(at));
                let (Some(class), Some(topic)) = (Class::of(start % CLASSES), topic) else {
                    continue;
                };
                let number = u32::try_from(partition).unwrap_or_default();
                if found.len() < most {
                    found.push(EventCell {
                        partition: Partition { topic: *topic, number },
                        offset: place / incarnations,
                        class,
                        cell: plain.slice(row, 1),
                    });
                }
            }
        }
        found.sort_by_key(|event| (event.partition, event.offset));
        Ok(found)
    }

    /// Whether an event lies in the window that begins at that moment.
    fn of_window(&self, window: i64) -> Expr {
        self.of_windows(window, window)
    }

    /// Whether it lies in one of those that begin from the one moment to the other.
    fn of_windows(&self, first: i64, last: i64) -> Expr {
        let length = i64::try_from(self.view.grain.as_micros()).unwrap_or(i64::MAX);
        ident(EVENT_TIME_COLUMN)
            .gt_eq(moment(first))
            .and(ident(EVENT_TIME_COLUMN).lt(moment(last.saturating_add(length))))
    }

    /// What these expressions give of the events of one window that count, each once, behind the columns of their cells' keys. At most so
    /// many.
    pub(crate) async fn values(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: Places,
        window: i64,
        values: Vec<Expr>,
        most: usize,
    ) -> Result<Vec<RecordBatch>> {
        let only = self.of_window(window);
        let classified = Classified::find(&self.room, &events, &self.dataset, days, places, Some(only.clone())).await?;
        let classified = self.classified(events, days, &Arc::new(classified), Some(only))?;
        let is_counted = [Class::Kept, Class::Gap].map(|class| ident(CLASS).eq(class.lit()));
        let is_counted = is_counted.into_iter().reduce(Expr::or).unwrap_or_else(|| lit(false));
        let mut rows = LogicalPlanBuilder::from(classified).filter(is_counted)?;
        if let Some(filter) = &self.view.filter {
            rows = rows.filter(filter.expr.clone())?;
        }
        let dimensions = self.view.dimensions.iter();
        let dimensions = dimensions.map(|dimension| dimension.expression.expr.clone().alias(&dimension.name));
        let key = std::iter::once(moment(window).alias(WINDOW_COLUMN)).chain(dimensions);
        let values = (0..)
            .zip(values)
            .map(|(at, value): (usize, Expr)| value.alias(format!("_value{at}")));
        let rows = rows.project(key.chain(values))?.limit(0, Some(most))?.build()?;
        self.session.execute_logical_plan(rows).await?.collect().await
    }

    /// The repeats that the speed layer's rule drops, at these offsets, each in a row of its own, in no order; in the columns of
    /// [`Classes::columns`].
    pub(crate) async fn known(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
        offsets: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let is_known = ident(CLASS).eq(Class::Known.lit()).and(at_offsets(offsets));
        let each = placed(&classified.places.topics())?;
        self.started(events, days, classified, [None, Some(is_known)], each)
            .await
    }

    /// The events at these offsets, each in a row of its own, in no order; in the columns of [`Classes::columns`]. Where cells are named, none of windows
    /// before or behind all of these.
    pub(crate) async fn each(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
        offsets: &BTreeMap<Partition, OffsetSet>,
        cells: Option<&BTreeSet<OwnedRow>>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let each = placed(&classified.places.topics())?;
        let mut of_these = at_offsets(offsets);
        if let Some([first, last]) = cells.map(|cells| self.windows(cells)).transpose()?.flatten() {
            of_these = of_these.and(self.of_windows(first, last));
        }
        self.started(events, days, classified, [None, Some(of_these)], each)
            .await
    }

    /// Where the first and the last window of these cells begin; keys are in the order of windows.
    fn windows(&self, cells: &BTreeSet<OwnedRow>) -> Result<Option<[i64; 2]>> {
        let converter = key_converter(self.schema(), 1 + self.view.dimensions.len())?;
        let parser = converter.parser();
        let ends = [cells.first(), cells.last()].into_iter().flatten();
        let columns = converter.convert_rows(ends.map(|cell| parser.parse(cell.as_ref())))?;
        let windows = columns
            .first()
            .and_then(|windows| windows.as_primitive_opt::<TimestampMicrosecondType>());
        Ok(windows.and_then(|windows| windows.values().first_chunk().copied()))
    }

    /// The rows of cells that are of one event each, without their place.
    pub(crate) fn one_by_one(&self, cells: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
        let mut events = Vec::new();
        for batch in cells {
            let (plain, _, _) = self.plain(batch)?;
            events.extend((0..plain.num_rows()).map(|row| plain.slice(row, 1)));
        }
        Ok(events)
    }

    /// The archive's rows of these events.
    pub(crate) async fn details(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        offsets: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<Vec<RecordBatch>> {
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        let rows = LogicalPlanBuilder::scan("events", provider_as_source(events), None)?
            .filter(of_days(days))?
            .filter(at_offsets(offsets))?
            .build()?;
        self.session.execute_logical_plan(rows).await?.collect().await
    }

    /// The view's plan with `start` in a start's place. Which events there are is said before they are classified, and which are
    /// looked at after it.
    async fn started(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
        [only, of_these]: [Option<Expr>; 2],
        start: Expr,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let classified = self.classified(events, days, classified, only)?;
        let classified = match of_these {
            Some(of_these) => LogicalPlanBuilder::from(classified).filter(of_these)?.build()?,
            None => classified,
        };
        let columns: Vec<_> = classified.schema().columns().into_iter().map(Expr::Column).collect();
        let started = LogicalPlanBuilder::from(classified)
            .project(columns.into_iter().chain([start.alias(START_COLUMN)]))?
            .build()?;
        let frame = self.session.execute_logical_plan(self.plan.over(started)?).await?;
        Ok(settled(frame.execute_stream().await?, self.plan.schema()))
    }

    /// Cells without their partition and start, and these.
    fn plain(&self, batch: &RecordBatch) -> Result<(RecordBatch, Vec<u64>, Vec<i32>)> {
        let column = |name: &str| {
            let lacking = || DataFusionError::Internal(format!("cells without a column {name}"));
            batch.column_by_name(name).ok_or_else(lacking)
        };
        let starts = column(START_COLUMN)?.as_primitive::<UInt64Type>().values().to_vec();
        let partitions = column(PARTITION_COLUMN)?.as_primitive::<Int32Type>().values().to_vec();
        let keys = 1 + self.view.dimensions.len();
        let kept: Vec<_> = (0..batch.num_columns())
            .filter(|at| *at != keys && *at != keys + 1)
            .collect();
        let plain = RecordBatch::try_new(Arc::clone(self.schema()), batch.project(&kept)?.columns().to_vec())?;
        Ok((plain, starts, partitions))
    }

    /// Tells the classes of all events of those days.
    pub(crate) async fn classify(
        &self,
        events: &Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: Places,
    ) -> Result<Classified> {
        Classified::find(&self.room, events, &self.dataset, days, places, None).await
    }

    /// The events of those days, or some of them, with their class.
    fn classified(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        classified: &Arc<Classified>,
        only: Option<Expr>,
    ) -> Result<LogicalPlan> {
        let events = classified.table(events);
        let scan = LogicalPlanBuilder::scan("events", provider_as_source(events), None)?.filter(of_days(days))?;
        match only {
            Some(only) => scan.filter(only)?.build(),
            None => scan.build(),
        }
    }
}

/// A number for each offset of each incarnation with each class: events at the same offset of two incarnations are two.
fn placed(topics: &[TopicId]) -> Result<Expr> {
    let mut topic = lit(0_u64);
    for (at, of) in (0_u64..).zip(topics).skip(1) {
        topic = when(ident(TOPIC_COLUMN).eq(lit(topic_text(*of))), lit(at)).otherwise(topic)?;
    }
    let count = lit(topics.len().max(1) as u64);
    let offset = cast(ident(OFFSET_COLUMN), DataType::UInt64);
    Ok((offset * count + topic) * lit(CLASSES) + cast(ident(CLASS), DataType::UInt64))
}

fn moment(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into())))
}

/// The keys of cells: their first columns, as rows that compare.
pub(crate) fn rows_of(batch: &RecordBatch, keys: usize) -> Result<Vec<OwnedRow>> {
    let keys: Vec<_> = batch.columns().iter().take(keys).cloned().collect();
    let rows = key_converter(&batch.schema(), keys.len())?.convert_columns(&keys)?;
    Ok(rows.iter().map(|row| row.owned()).collect())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, TimestampMicrosecondArray, UInt64Array};
    use shared_schemas::definitions::Definitions;

    use super::super::laid::merged;
    use super::super::sorted::sorted;
    use super::*;
    use crate::spill::Spill;

    const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
fields = { at = "timestamp" }
[view.hourly]
dataset = "flights"
grain = "1h"
[view.hourly.measures]
flights = "count()"
"#;

    /// However many partitions there are, a cell has a row for each class.
    #[tokio::test]
    async fn the_cells_of_a_class_are_those_of_all_partitions() {
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
        let room = Room::with_cores(64 << 20, 1, Arc::new(Spill::new(None).unwrap())).unwrap();
        let classes = Classes::new(&definitions.views[0], &definitions.datasets[0], &room).unwrap();
        let of_partition = |number: i32| {
            let windows: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 0, 7]).with_timezone("UTC"));
            let starts = [Class::Kept, Class::Across, Class::Kept].map(|class| class as u64);
            let [starts, failed, counts]: [ArrayRef; 3] =
                [starts, [0; 3], [1, 10, 100]].map(|numbers| Arc::new(UInt64Array::from(numbers.to_vec())) as _);
            let partitions: ArrayRef = Arc::new(Int32Array::from(vec![number; 3]));
            let columns = vec![windows, partitions, starts, failed, counts];
            Ok(RecordBatch::try_new(classes.columns().clone(), columns).unwrap())
        };
        let cells: Vec<_> = (0..5).map(of_partition).collect();
        let cells = futures::stream::iter(cells).boxed();
        let cells = sorted(&room, classes.columns(), 3, classes.over_partitions(cells))
            .await
            .unwrap();
        let cells: Vec<_> = merged(classes.merge_by_class().clone(), 3, cells, 64)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(cells.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
        let parted = classes.parted(&cells).unwrap();
        let counts = |class| {
            let counts = parted[&class].iter().flat_map(|cells| {
                let counts = cells.column_by_name("flights__count").unwrap();
                counts.as_primitive::<UInt64Type>().values().to_vec()
            });
            counts.collect::<Vec<_>>()
        };
        assert_eq!((counts(Class::Kept), counts(Class::Across)), (vec![5, 500], vec![50]));
    }
}
