//! A view's one DataFusion plan: filter, project, group, aggregate.
//!
//! [`CellPlan::over`] puts it on top of any plan that gives decoded events: batches in memory for the speed layer, the
//! archive's files for the batch layer. What comes out are *cells*: one row for each window and value of the
//! dimensions, holding the state of each measure. [`MergePlan`] makes one cell of several, by the same table of
//! measures; so `plan(all events) == merge(plan(each part))` for every way to part the events.
//!
//! The speed layer keeps cells per partition and start. Events of many starts may be handed in at once, with a column
//! [`START_COLUMN`]: [`CellKey::Start`] keeps their cells apart. Where all events are of one start
//! ([`CellKey::OneStart`]) it is cheaper to add the two columns to the cells ([`of_start`]) than to group by them.
//!
//! Some states are the batch layer's alone: only its cells, [`CellKey::Cell`], have them.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, AsArray, Int32Array, RecordBatch, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::{Column, Result, internal_err, plan_err};
use datafusion::datasource::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::TaskContext;
use datafusion::execution::context::SessionContext;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident, lit, when};
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

use crate::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use crate::measure::Held;
use crate::view::{self, MeasureForm, StateColumn, UTC, ValueType, View};

/// Name of the column that holds a cell's window: its start, `Timestamp(Microsecond, "UTC")`.
pub const WINDOW_COLUMN: &str = "_window";
/// Name of the column that holds the start that a row counts from, `UInt64`.
pub const START_COLUMN: &str = "_start";
/// Name of the column that holds how often an expression failed on the cell's events and gave null, `UInt64`.
pub const FAILED_COLUMN: &str = "_failed";

/// The columns that a plan reads: the declared fields, then what the decoder adds.
pub fn event_schema(dataset: &Dataset) -> Schema {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()));
    let declared = dataset.fields.iter().map(|field| {
        Field::new(
            &field.name,
            ValueType::of_field(field.field_type).arrow(),
            field.nullable,
        )
    });
    let added = [
        Field::new(PARTITION_COLUMN, DataType::Int32, false),
        Field::new(OFFSET_COLUMN, DataType::Int64, false),
        Field::new(KAFKA_TIME_COLUMN, time.clone(), false),
        Field::new(EVENT_TIME_COLUMN, time, false),
    ];
    Schema::new(declared.chain(added).collect::<Vec<_>>())
}

/// What tells one row from another, and whose rows they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellKey {
    /// The window and the dimensions, as in the batch layer's rows.
    Cell,
    /// The same within one partition and start, as in the speed layer's rows. Events then carry [`START_COLUMN`].
    Start,
    /// The window and the dimensions where all is of one partition and start; with the speed layer's states.
    OneStart,
}

impl CellKey {
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Cell | Self::OneStart => &[],
            Self::Start => &[PARTITION_COLUMN, START_COLUMN],
        }
    }

    /// The state columns of such rows.
    pub(crate) fn states(self, view: &View) -> impl Iterator<Item = StateColumn<'_>> {
        view.states()
            .filter(move |column| self == Self::Cell || column.state.held == Held::Both)
    }
}

/// From events to cells.
#[derive(Debug, Clone)]
pub struct CellPlan {
    view: View,
    key: CellKey,
    plan: Runner,
    filter: Option<Runner>,
}

/// What a view's filter made of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filtered {
    /// How many it let pass: they are in cells.
    pub passed: u64,
    /// On how many it failed. Such an event is in no cell, so no cell can count it; the layer that read it does.
    pub failed: u64,
}

/// Names of the columns in which the filter's counts come.
const PASSED: &str = "passed";

impl CellPlan {
    /// The plan of a view over its dataset's events.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass.
    pub fn new(view: &View, dataset: &Dataset, key: CellKey) -> Result<Self> {
        let mut fields = event_schema(dataset).fields.to_vec();
        if key == CellKey::Start {
            fields.push(Arc::new(Field::new(START_COLUMN, DataType::UInt64, false)));
        }
        let output = cell_schema(view, key);
        let input = Arc::new(Schema::new(fields));
        let filter = view.filter.as_ref().map(|filter| {
            let output = [PASSED, FAILED_COLUMN].map(|name| Field::new(name, DataType::Int64, true));
            let passed = when(filter.expr.clone(), lit(1_i64)).otherwise(lit(0_i64))?;
            let failed = filter.failures.clone().unwrap_or_else(|| lit(0_i64));
            let totals = vec![sum(passed).alias(PASSED), sum(failed).alias(FAILED_COLUMN)];
            Runner::new(Arc::clone(&input), Arc::new(Schema::new(output.to_vec())), |events| {
                LogicalPlanBuilder::from(events)
                    .aggregate(Vec::<Expr>::new(), totals)?
                    .build()
            })
        });
        let filter = filter.transpose()?;
        let plan = Runner::new(input, output, |events| over(view, key, events))?;
        Ok(Self {
            view: view.clone(),
            key,
            plan,
            filter,
        })
    }

    /// The view's plan on top of one that gives events.
    ///
    /// # Errors
    /// DataFusion's, where a column is missing or of another type.
    pub fn over(&self, events: LogicalPlan) -> Result<LogicalPlan> {
        over(&self.view, self.key, events)
    }

    /// The columns of the cells.
    pub fn schema(&self) -> &SchemaRef {
        &self.plan.output
    }

    /// Runs it over events in memory.
    ///
    /// # Errors
    /// DataFusion's: memory, or batches of another schema. Never an event's values.
    pub async fn run(&self, events: Vec<RecordBatch>) -> Result<RecordBatch> {
        self.plan.run(events).await
    }

    /// What the view's filter makes of these events.
    ///
    /// # Errors
    /// As [`CellPlan::run`].
    pub async fn filtered(&self, events: Vec<RecordBatch>) -> Result<Filtered> {
        let Some(plan) = &self.filter else {
            let rows: usize = events.iter().map(RecordBatch::num_rows).sum();
            return Ok(Filtered {
                passed: rows as u64,
                failed: 0,
            });
        };
        let totals = plan.run(events).await?;
        let total = |column: usize| {
            let totals = totals.column(column).as_primitive::<Int64Type>();
            totals.iter().flatten().map(i64::unsigned_abs).sum()
        };
        Ok(Filtered {
            passed: total(0),
            failed: total(1),
        })
    }
}

/// The cells of events of one partition and start: those of [`CellKey::OneStart`] as [`CellKey::Start`] has them, in
/// that schema.
///
/// # Errors
/// Cells of another view.
pub fn of_start(cells: &RecordBatch, schema: &SchemaRef, partition: i32, start: u64) -> Result<RecordBatch> {
    let rows = cells.num_rows();
    let mut columns = cells.columns().to_vec();
    let at = cells.schema().index_of(FAILED_COLUMN)?;
    let key: [ArrayRef; 2] = [
        Arc::new(Int32Array::from_value(partition, rows)),
        Arc::new(UInt64Array::from_value(start, rows)),
    ];
    columns.splice(at..at, key);
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// From cells, several with the same key, to one for each key.
#[derive(Debug, Clone)]
pub struct MergePlan {
    plan: Runner,
}

impl MergePlan {
    /// The plan that merges cells of a view.
    ///
    /// # Errors
    /// DataFusion's.
    pub fn new(view: &View, key: CellKey) -> Result<Self> {
        let schema = cell_schema(view, key);
        let states: Vec<_> = key.states(view).collect();
        let plan = Runner::new(Arc::clone(&schema), schema, |cells| {
            let group: Vec<_> = key_fields(view, key).iter().map(|key| ident(key.name())).collect();
            let mut merged = vec![sum(ident(FAILED_COLUMN)).alias(FAILED_COLUMN)];
            merged.extend(states.iter().filter_map(|column| {
                let merged = column.state.merge(&column.siblings())?;
                Some(merged.alias(&column.name))
            }));
            let output = group.iter().cloned().chain(settled(&states)).collect::<Vec<_>>();
            LogicalPlanBuilder::from(cells)
                .aggregate(group, merged)?
                .project(output)?
                .build()
        })?;
        Ok(Self { plan })
    }

    /// The columns of the cells.
    pub fn schema(&self) -> &SchemaRef {
        &self.plan.output
    }

    /// Merges cells.
    ///
    /// # Errors
    /// DataFusion's: memory, or batches of another schema.
    pub async fn run(&self, cells: Vec<RecordBatch>) -> Result<RecordBatch> {
        self.plan.run(cells).await
    }
}

/// The columns that tell cells apart, in the order of the tables' sorting key.
pub(crate) fn key_fields(view: &View, key: CellKey) -> Vec<Field> {
    let window = Field::new(WINDOW_COLUMN, ValueType::Timestamp.arrow(), false);
    let dimensions = view.dimensions.iter().map(|dimension| {
        let expression = &dimension.expression;
        Field::new(&dimension.name, expression.value_type.arrow(), expression.nullable)
    });
    let start = match key {
        CellKey::Cell | CellKey::OneStart => vec![],
        CellKey::Start => vec![
            Field::new(PARTITION_COLUMN, DataType::Int32, false),
            Field::new(START_COLUMN, DataType::UInt64, false),
        ],
    };
    std::iter::once(window).chain(dimensions).chain(start).collect()
}

/// The columns of cells: the key, the count of failures, the states.
fn cell_schema(view: &View, key: CellKey) -> SchemaRef {
    let failed = Field::new(FAILED_COLUMN, DataType::UInt64, false);
    let states = key
        .states(view)
        .map(|column| Field::new(&column.name, column.state.arrow(), column.state.is_nullable()));
    Arc::new(Schema::new(
        key_fields(view, key)
            .into_iter()
            .chain([failed])
            .chain(states)
            .collect::<Vec<_>>(),
    ))
}

fn over(view: &View, key: CellKey, events: LogicalPlan) -> Result<LogicalPlan> {
    let mut builder = LogicalPlanBuilder::from(readable(view, key, events)?);
    if let Some(filter) = &view.filter {
        builder = builder.filter(filter.expr.clone())?;
    }
    let length = i64::try_from(view.grain.as_micros()).unwrap_or(i64::MAX);
    let mut group = vec![view::window_start(ident(EVENT_TIME_COLUMN), length).alias(WINDOW_COLUMN)];
    group.extend(
        view.dimensions
            .iter()
            .map(|dimension| dimension.expression.expr.clone().alias(&dimension.name)),
    );
    group.extend(key.columns().iter().map(|column| ident(*column)));
    let states: Vec<_> = key.states(view).collect();
    let mut aggregates = vec![sum(cast(failures(view), DataType::UInt64)).alias(FAILED_COLUMN)];
    aggregates.extend(states.iter().filter_map(|column| {
        let StateColumn { state, aggregate, .. } = column;
        let argument = aggregate.argument.as_ref().map(|argument| argument.expr.clone());
        let condition = aggregate.condition.as_ref().map(|condition| condition.expr.clone());
        Some(state.make(argument, condition)?.alias(&column.name))
    }));
    let names = key_fields(view, key);
    let builder = builder.aggregate(group, aggregates)?;
    let name = |field: &Field| {
        let found = builder.schema().field_with_unqualified_name(field.name())?;
        let column = ident(field.name());
        Ok(match found.data_type() == field.data_type() {
            true => column,
            false => cast(column, field.data_type().clone()).alias(field.name()),
        })
    };
    let names = names.iter().map(name).collect::<Result<Vec<_>>>()?;
    builder.project(names.into_iter().chain(settled(&states)))?.build()
}

/// The events with texts as the view's expressions have them. Where they come as views, which cost no copy, they stay so if cells are only
/// grouped by them.
fn readable(view: &View, key: CellKey, events: LogicalPlan) -> Result<LogicalPlan> {
    let is_view = |field: &Field| *field.data_type() == DataType::Utf8View;
    let fields = Arc::clone(events.schema().inner());
    if !fields.fields().iter().any(|field| is_view(field)) {
        return Ok(events);
    }
    let dimensions = view.dimensions.iter().map(|dimension| &dimension.expression);
    let measures = key
        .states(view)
        .flat_map(|column| [column.aggregate.argument.as_ref(), column.aggregate.condition.as_ref()]);
    let computed = dimensions
        .clone()
        .filter(|dimension| !matches!(dimension.expr, Expr::Column(_)))
        .chain(view.filter.as_ref())
        .chain(measures.flatten());
    let expressions = computed.map(|expression| &expression.expr);
    let failures = failures(view);
    let read: HashSet<_> = expressions
        .chain([&failures])
        .flat_map(Expr::column_refs)
        .map(Column::name)
        .collect();
    let column = |(column, field): (Column, &Arc<Field>)| match is_view(field) && read.contains(column.name()) {
        true => cast(Expr::Column(column), DataType::Utf8).alias(field.name()),
        false => Expr::Column(column),
    };
    let columns: Vec<_> = events
        .schema()
        .columns()
        .into_iter()
        .zip(fields.fields())
        .map(column)
        .collect();
    LogicalPlanBuilder::from(events).project(columns)?.build()
}

/// The aggregated columns, brought to their types.
fn settled(states: &[StateColumn<'_>]) -> impl Iterator<Item = Expr> {
    let failed = std::iter::once(ident(FAILED_COLUMN));
    failed.chain(
        states
            .iter()
            .map(|column| column.state.settle(&column.siblings()).alias(&column.name)),
    )
}

/// How often any expression of the view failed on an event that it counts.
fn failures(view: &View) -> Expr {
    let dimensions = view
        .dimensions
        .iter()
        .map(|dimension| dimension.expression.failures.clone());
    let measures = view.measures.iter().map(|measure| match &measure.form {
        MeasureForm::Aggregate(aggregate) => aggregate.failures(),
        MeasureForm::Ratio { .. } => None,
    });
    dimensions
        .chain(measures)
        .fold(None, view::add)
        .unwrap_or_else(|| lit(0_i64))
}

/// A plan over a table that is exchanged for each run. It is planned once: that takes about a millisecond, and a run as
/// much as its events.
#[derive(Clone)]
struct Runner {
    session: SessionContext,
    task: Arc<TaskContext>,
    input: SchemaRef,
    output: SchemaRef,
    plan: LogicalPlan,
    physical: Arc<OnceLock<Arc<dyn ExecutionPlan>>>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.plan.display_indent())
    }
}

impl Runner {
    fn new(
        input: SchemaRef,
        output: SchemaRef,
        build: impl FnOnce(LogicalPlan) -> Result<LogicalPlan>,
    ) -> Result<Self> {
        let session = view::session();
        let empty = MemTable::try_new(Arc::clone(&input), vec![vec![]])?;
        let scan = LogicalPlanBuilder::scan("input", provider_as_source(Arc::new(empty)), None)?.build()?;
        let plan = session.state().optimize(&build(scan)?)?;
        Ok(Self {
            task: session.task_ctx(),
            session,
            input,
            output,
            plan,
            physical: Arc::default(),
        })
    }

    async fn run(&self, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        if batches.iter().any(|batch| !self.input.contains(&batch.schema())) {
            return plan_err!("the batches have another schema than the plan's input");
        }
        let physical = over_batches(&self.physical().await?, &[batches])?;
        let physical_schema = physical.schema();
        let batches = datafusion::physical_plan::collect(physical, Arc::clone(&self.task)).await?;
        let batch = concat_batches(&physical_schema, &batches)?;
        // DataFusion may think that a column could be null; that it is not is checked here.
        Ok(RecordBatch::try_new(
            Arc::clone(&self.output),
            batch.columns().to_vec(),
        )?)
    }

    async fn physical(&self) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(physical) = self.physical.get() {
            return Ok(Arc::clone(physical));
        }
        let state = self.session.state();
        let physical = state.query_planner().create_physical_plan(&self.plan, &state).await?;
        Ok(Arc::clone(self.physical.get_or_init(|| physical)))
    }
}

/// The same plan over these batches. Its steps are made anew: their metrics begin at nothing, and no run sees another's.
fn over_batches(plan: &Arc<dyn ExecutionPlan>, batches: &[Vec<RecordBatch>]) -> Result<Arc<dyn ExecutionPlan>> {
    let children = plan.children();
    if children.is_empty() {
        let source = plan.downcast_ref::<DataSourceExec>();
        let Some(source) = source.and_then(|scan| scan.data_source().downcast_ref::<MemorySourceConfig>()) else {
            return internal_err!("a plan over batches in memory reads something else");
        };
        let source = MemorySourceConfig::try_new(batches, source.original_schema(), source.projection().clone())?;
        return Ok(DataSourceExec::from_data_source(source));
    }
    let children = children.into_iter().map(|child| over_batches(child, batches));
    // Batches in memory have no order and no partitions, whichever they are.
    let same = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    Arc::clone(plan).replace_children(children.collect::<Result<_>>()?, same)
}
