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

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int32Type, SchemaRef, UInt64Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::{Sort, WindowFunction};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, cast, ident, lit, when,
};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, Offset, OffsetSet, Partition, TopicId};
use shared_schemas::plan::{CellKey, CellPlan, MergePlan, START_COLUMN, WINDOW_COLUMN};
use shared_schemas::store::tables::TOPIC_COLUMN;
use shared_schemas::view::{UTC, View};

use crate::recompute::{Room, at_offsets, of_days, topic_text};

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
    fn topics(&self) -> Vec<TopicId> {
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
    session: SessionContext,
    plan: CellPlan,
    merge: MergePlan,
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
            session: room.session(),
            plan: CellPlan::new(view, dataset, CellKey::Start)?,
            merge: MergePlan::new(view, CellKey::OneStart)?,
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

    /// Of these cells what the events of each class come to.
    pub(crate) async fn cells(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        wanted: &BTreeSet<OwnedRow>,
    ) -> Result<ByClass> {
        let class = cast(ident(CLASS), DataType::UInt64);
        let mut found = ByClass::new();
        self.run(events, days, places, [None, None], class, wanted, |batch, starts, _| {
            for class in Class::ALL {
                let of_class: BooleanArray = starts.iter().map(|start| Some(*start == class as u64)).collect();
                let rows = filter_record_batch(batch, &of_class)?;
                if rows.num_rows() > 0 {
                    found.entry(class).or_default().push(rows);
                }
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// The events of these cells, with a window that begins at that moment; by partition and offset. At most so many.
    pub(crate) async fn events(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        window: i64,
        wanted: &BTreeSet<OwnedRow>,
        most: usize,
    ) -> Result<Vec<EventCell>> {
        let within = self.of_window(window);
        let mut found = self
            .each(events, days, places, [Some(within), None], wanted, most, |_| true)
            .await?;
        found.sort_by_key(|event| (event.partition, event.offset));
        Ok(found)
    }

    /// Whether an event lies in the window that begins at that moment.
    fn of_window(&self, window: i64) -> Expr {
        let length = i64::try_from(self.view.grain.as_micros()).unwrap_or(i64::MAX);
        ident(EVENT_TIME_COLUMN)
            .gt_eq(moment(window))
            .and(ident(EVENT_TIME_COLUMN).lt(moment(window.saturating_add(length))))
    }

    /// What these expressions give of the events of one window that count, each once, behind the columns of their cells' keys. At most so
    /// many.
    pub(crate) async fn values(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        window: i64,
        values: Vec<Expr>,
        most: usize,
    ) -> Result<Vec<RecordBatch>> {
        let classified = self.classified(events, days, places, Some(self.of_window(window)))?;
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

    /// The repeats that the speed layer's rule drops, at these offsets and of these cells. At most so many.
    pub(crate) async fn known(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        wanted: &BTreeSet<OwnedRow>,
        offsets: &BTreeMap<Partition, OffsetSet>,
        most: usize,
    ) -> Result<Vec<EventCell>> {
        let is_known = ident(CLASS).eq(Class::Known.lit());
        let is_in = |event: &EventCell| {
            let of = offsets.get(&event.partition);
            of.is_some_and(|of| of.contains(Offset(event.offset)))
        };
        self.each(events, days, places, [None, Some(is_known)], wanted, most, is_in)
            .await
    }

    /// Events, each with its cell.
    #[expect(clippy::too_many_arguments, reason = "two callers, each with all of them")]
    async fn each(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        only: [Option<Expr>; 2],
        wanted: &BTreeSet<OwnedRow>,
        most: usize,
        is_meant: impl Fn(&EventCell) -> bool,
    ) -> Result<Vec<EventCell>> {
        let topics = places.topics();
        // Events at the same offset of two incarnations are two.
        let count = lit(topics.len().max(1) as u64);
        let mut topic = lit(0_u64);
        for (at, of) in (0_u64..).zip(&topics).skip(1) {
            topic = when(ident(TOPIC_COLUMN).eq(lit(topic_text(*of))), lit(at)).otherwise(topic)?;
        }
        let offset = cast(ident(OFFSET_COLUMN), DataType::UInt64);
        let start = (offset * count + topic) * lit(CLASSES) + cast(ident(CLASS), DataType::UInt64);
        let mut found = Vec::new();
        let take = |batch: &RecordBatch, starts: &[u64], partitions: &[i32]| {
            for (row, (start, partition)) in starts.iter().zip(partitions).enumerate() {
                let place = start / CLASSES;
                let incarnations = topics.len().max(1) as u64;
                let topic = usize::try_from(place % incarnations).ok().and_then(|at| topics.get(at));
                let (Some(class), Some(topic)) = (Class::of(start % CLASSES), topic) else {
                    continue;
                };
                let number = u32::try_from(*partition).unwrap_or_default();
                let event = EventCell {
                    partition: Partition { topic: *topic, number },
                    offset: place / incarnations,
                    class,
                    cell: batch.slice(row, 1),
                };
                if found.len() < most && is_meant(&event) {
                    found.push(event);
                }
            }
            Ok(())
        };
        self.run(events, days, places, only, start, wanted, take).await?;
        Ok(found)
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

    /// Runs the view's plan with `start` in a start's place; calls for each batch of wanted cells, with starts and partitions. Which
    /// events there are is said before they are classified, and which are looked at after it.
    #[expect(clippy::too_many_arguments, reason = "two callers, each with all of them")]
    async fn run(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        [only, of_these]: [Option<Expr>; 2],
        start: Expr,
        wanted: &BTreeSet<OwnedRow>,
        mut call: impl FnMut(&RecordBatch, &[u64], &[i32]) -> Result<()>,
    ) -> Result<()> {
        let classified = self.classified(events, days, places, only)?;
        let classified = match of_these {
            Some(of_these) => LogicalPlanBuilder::from(classified).filter(of_these)?.build()?,
            None => classified,
        };
        let columns: Vec<_> = classified.schema().columns().into_iter().map(Expr::Column).collect();
        let started = LogicalPlanBuilder::from(classified)
            .project(columns.into_iter().chain([start.alias(START_COLUMN)]))?
            .build()?;
        let frame = self.session.execute_logical_plan(self.plan.over(started)?).await?;
        let mut cells = frame.execute_stream().await?;
        let keys = 1 + self.view.dimensions.len();
        while let Some(batch) = cells.try_next().await? {
            let rows = rows_of(&batch, keys)?;
            let is_wanted: BooleanArray = rows.iter().map(|row| Some(wanted.contains(row))).collect();
            let batch = filter_record_batch(&batch, &is_wanted)?;
            if batch.num_rows() == 0 {
                continue;
            }
            let column = |name: &str| {
                let lacking = || DataFusionError::Internal(format!("cells without a column {name}"));
                batch.column_by_name(name).ok_or_else(lacking)
            };
            let starts = column(START_COLUMN)?.as_primitive::<UInt64Type>().values().to_vec();
            let partitions = column(PARTITION_COLUMN)?.as_primitive::<Int32Type>().values().to_vec();
            let kept: Vec<_> = (0..batch.num_columns())
                .filter(|at| *at != keys && *at != keys + 1)
                .collect();
            let plain = RecordBatch::try_new(Arc::clone(self.schema()), batch.project(&kept)?.columns().to_vec())?;
            call(&plain, &starts, &partitions)?;
        }
        Ok(())
    }

    /// The events of those days, or some of them, with their class.
    fn classified(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        places: &Places,
        only: Option<Expr>,
    ) -> Result<LogicalPlan> {
        let scan = LogicalPlanBuilder::scan("events", provider_as_source(events), None)?.filter(of_days(days))?;
        let scan = match only {
            // Equal events have equal times: none that matters is left out.
            Some(only) => scan.filter(only)?,
            None => scan,
        };
        classified(scan.build()?, &self.dataset, places)
    }
}

fn moment(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into())))
}

/// The keys of cells: their first columns, as rows that compare.
pub(crate) fn rows_of(batch: &RecordBatch, keys: usize) -> Result<Vec<OwnedRow>> {
    let keys: Vec<_> = batch.columns().iter().take(keys).cloned().collect();
    let fields = keys.iter().map(|key| SortField::new(key.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(&keys)?;
    Ok(rows.iter().map(|row| row.owned()).collect())
}

/// The column that the class is in.
const CLASS: &str = "_class";

/// Columns on the way there.
const AMONG: &str = "_among";
const PREVIOUS: &str = "_previous";
const LATEST: &str = "_latest";
const FIRST: &str = "_first_in_partition";
const RANK: &str = "_rank";
const COUNTED: &str = "_counted";

/// Whose offset it is, before anything is said of repeats; and of speed's whether it drops the event.
const OF_BATCH: i64 = 0;
const OF_SPEED: i64 = 1;
const KNOWN: i64 = 2;
const IN_GAP: i64 = 3;
const ELSEWHERE: i64 = 4;

/// The events at these places with their class.
fn classified(events: LogicalPlan, dataset: &Dataset, places: &Places) -> Result<LogicalPlan> {
    let (batch, speed, gap) = (
        at_offsets(&places.batch),
        at_offsets(&places.speed),
        at_offsets(&places.gaps),
    );
    let id = &dataset.event_id;
    if id.is_empty() {
        let class = when(batch.or(speed), Class::Kept.lit())
            .when(gap, Class::Gap.lit())
            .otherwise(lit(ELSEWHERE + 100))?;
        let all = with(events, CLASS, class)?;
        return LogicalPlanBuilder::from(all)
            .filter(ident(CLASS).lt(lit(100_i64)))?
            .build();
    }
    let identity: Vec<&str> = id.iter().map(String::as_str).chain([EVENT_TIME_COLUMN]).collect();
    let of_partition = [&identity[..], &[TOPIC_COLUMN, PARTITION_COLUMN]].concat();
    let is_whole = || {
        let known = id.iter().map(|field| ident(field).is_not_null());
        known.reduce(Expr::and).unwrap_or_else(|| lit(true))
    };
    // What an earlier copy in the partition says, counted or not.
    let micros = || cast(ident(KAFKA_TIME_COLUMN), DataType::Int64);
    let events = with_window(events, LATEST, highest_before(micros(), &of_partition)?)?;
    let events = with_window(events, PREVIOUS, highest_before(ident(OFFSET_COLUMN), &of_partition)?)?;
    let window = lit(i64::try_from(dataset.dedupe_window.as_micros()).unwrap_or(i64::MAX / 2));
    let is_known = is_whole()
        .and(ident(LATEST).is_not_null())
        .and(ident(LATEST).gt_eq(micros() - window));
    let among = when(batch, lit(OF_BATCH))
        .when(speed.clone().and(is_known), lit(KNOWN))
        .when(speed, lit(OF_SPEED))
        .when(gap, lit(IN_GAP))
        .otherwise(lit(ELSEWHERE))?;
    let events = LogicalPlanBuilder::from(with(events, AMONG, among)?)
        .filter(ident(AMONG).not_eq(lit(ELSEWHERE)))?
        .build()?;
    // Batch's rule, over what is below the marks alone.
    let events = ranked(events, &identity)?;
    let counted = ident(AMONG).eq(lit(OF_SPEED)).or(ident(AMONG)
        .eq(lit(OF_BATCH))
        .and(ident(RANK).eq(lit(1_u64)).or(!is_whole())));
    let events = with(events, COUNTED, when(counted, lit(1_i64)).otherwise(lit(0_i64))?)?;
    let among = when(ident(COUNTED).eq(lit(1_i64)), lit(OF_SPEED))
        .when(ident(AMONG).eq(lit(IN_GAP)), lit(IN_GAP))
        .when(ident(AMONG).eq(lit(KNOWN)), lit(KNOWN))
        .otherwise(lit(OF_BATCH))?;
    let events = without(events, &[FIRST, RANK])?;
    let events = replaced(events, AMONG, among)?;
    // The same rule over all that is counted: who is not its first is counted again.
    let events = ranked(events, &identity)?;
    let events = with_window(events, "_copies", over_all(ident(COUNTED), &identity)?)?;
    let is_first = || ident(RANK).eq(lit(1_u64)).or(!is_whole());
    let is_counted = || ident(COUNTED).eq(lit(1_i64));
    let class = when(is_counted().and(is_first()), Class::Kept.lit())
        .when(is_counted().and(ident(PREVIOUS).is_not_null()), Class::Beyond.lit())
        .when(is_counted(), Class::Across.lit())
        .when(ident(AMONG).eq(lit(KNOWN)), Class::Known.lit())
        .when(
            ident(AMONG)
                .eq(lit(IN_GAP))
                .and(is_first())
                .and(ident("_copies").eq(lit(0_i64)).or(!is_whole())),
            Class::Gap.lit(),
        )
        .otherwise(Class::Dropped.lit())?;
    with(events, CLASS, class)
}

/// With the place of each row among its copies: first in its partition comes first, then by Kafka's time.
fn ranked(events: LogicalPlan, identity: &[&str]) -> Result<LogicalPlan> {
    let of_partition = [identity, &[TOPIC_COLUMN, PARTITION_COLUMN, AMONG]].concat();
    let first = numbered(&of_partition, vec![ascending(ident(OFFSET_COLUMN))])?;
    let events = with_window(events, FIRST, first)?;
    let order = [
        ident(FIRST).gt(lit(1_u64)),
        ident(KAFKA_TIME_COLUMN),
        ident(PARTITION_COLUMN),
        ident(TOPIC_COLUMN),
    ];
    let rank = numbered(
        &[identity, &[AMONG]].concat(),
        order.into_iter().map(ascending).collect(),
    )?;
    with_window(events, RANK, rank)
}

fn ascending(by: Expr) -> Sort {
    Sort::new(by, true, false)
}

fn names(names: &[&str]) -> Vec<Expr> {
    names.iter().map(|name| ident(*name)).collect()
}

fn numbered(same: &[&str], order: Vec<Sort>) -> Result<Expr> {
    row_number().partition_by(names(same)).order_by(order).build()
}

/// The highest value of the rows before, by offset.
fn highest_before(value: Expr, same: &[&str]) -> Result<Expr> {
    let before = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::Preceding(ScalarValue::UInt64(Some(1))),
    );
    Expr::from(WindowFunction::new(
        WindowFunctionDefinition::AggregateUDF(max_udaf()),
        vec![value],
    ))
    .partition_by(names(same))
    .order_by(vec![ascending(ident(OFFSET_COLUMN))])
    .window_frame(before)
    .build()
}

/// The highest value of all rows.
fn over_all(value: Expr, same: &[&str]) -> Result<Expr> {
    let all = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::Following(ScalarValue::UInt64(None)),
    );
    Expr::from(WindowFunction::new(
        WindowFunctionDefinition::AggregateUDF(max_udaf()),
        vec![value],
    ))
    .partition_by(names(same))
    .order_by(vec![ascending(ident(OFFSET_COLUMN))])
    .window_frame(all)
    .build()
}

fn columns(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().columns().into_iter().map(Expr::Column).collect()
}

/// With one column more.
fn with(plan: LogicalPlan, name: &str, value: Expr) -> Result<LogicalPlan> {
    let all = columns(&plan).into_iter().chain([value.alias(name)]);
    LogicalPlanBuilder::from(plan).project(all)?.build()
}

/// With one column less, and then that one made anew.
fn replaced(plan: LogicalPlan, name: &str, value: Expr) -> Result<LogicalPlan> {
    let kept = plan.schema().columns().into_iter().filter(|column| column.name != name);
    let all: Vec<_> = kept.map(Expr::Column).chain([value.alias(name)]).collect();
    LogicalPlanBuilder::from(plan).project(all)?.build()
}

fn without(plan: LogicalPlan, gone: &[&str]) -> Result<LogicalPlan> {
    let kept = plan
        .schema()
        .columns()
        .into_iter()
        .filter(|column| !gone.contains(&column.name.as_str()));
    let kept: Vec<_> = kept.map(Expr::Column).collect();
    LogicalPlanBuilder::from(plan).project(kept)?.build()
}

/// With what a window function gives.
fn with_window(plan: LogicalPlan, name: &str, window: Expr) -> Result<LogicalPlan> {
    let before = columns(&plan);
    let plan = LogicalPlanBuilder::from(plan).window([window])?.build()?;
    let last = plan.schema().columns().pop().map(Expr::Column);
    let last = last.ok_or_else(|| DataFusionError::Internal("a window without a column".to_owned()))?;
    let all = before.into_iter().chain([last.alias(name)]);
    LogicalPlanBuilder::from(plan).project(all)?.build()
}
