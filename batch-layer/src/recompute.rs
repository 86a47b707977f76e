//! The exact cells of some event days, from archived events below the marks.
//!
//! The view's plan, on top of the archive without repeats. Which events count is said by offset, per partition; that is
//! applied first, so that an event above the mark never takes the place of its copy below.
//!
//! Memory is bounded: beyond it, sorts and groups spill to a temporary folder, and cells come out as a stream.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, ident, lit};
use datafusion::prelude::SessionConfig;
use futures::stream::{BoxStream, StreamExt};
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, Mark, Offset, OffsetRange, OffsetSet, Partition, TopicId};
use shared_schemas::plan::{CellKey, CellPlan};
use shared_schemas::store::tables::TOPIC_COLUMN;
use shared_schemas::view::{UTC, View};

use crate::dedupe::{without_known_repeats, without_repeats};

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// What a sort keeps aside to merge what it spilled: DataFusion's default, but no more than this part of all memory.
const SPILL_RESERVE: usize = 10 << 20;
const SPILL_RESERVE_PART: usize = 16;
/// Each further core sorts and groups on its own, and needs room for it.
const MEMORY_OF_A_CORE: usize = 128 << 20;

/// A topic's incarnation as the archive's column `_topic` has it.
pub fn topic_text(topic: TopicId) -> String {
    format!("{:032x}", topic.0)
}

/// The offsets below each mark.
pub fn below(marks: &BTreeMap<Partition, Mark>) -> BTreeMap<Partition, OffsetSet> {
    let below = |mark: &Mark| {
        OffsetSet::from_iter([OffsetRange {
            from: Offset::default(),
            to: mark.0,
        }])
    };
    marks
        .iter()
        .map(|(partition, mark)| (*partition, below(mark)))
        .collect()
}

/// Computes cells of one view.
#[derive(Clone)]
pub struct Recompute {
    session: SessionContext,
    plan: CellPlan,
    event_id: Vec<String>,
    /// Within which the speed layer knows repeats.
    window: Duration,
}

impl Recompute {
    /// For a view over that dataset, with so many bytes of memory.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass, or has no place to spill to.
    pub fn new(view: &View, dataset: &Dataset, memory: u64) -> Result<Self> {
        Self::with_states(view, dataset, memory, CellKey::Cell)
    }

    /// The same, but with only those states that the speed layer has too.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass, or has no place to spill to.
    pub(crate) fn of_both_layers(view: &View, dataset: &Dataset, memory: u64) -> Result<Self> {
        Self::with_states(view, dataset, memory, CellKey::OneStart)
    }

    fn with_states(view: &View, dataset: &Dataset, memory: u64, key: CellKey) -> Result<Self> {
        Ok(Self {
            session: session(memory)?,
            plan: CellPlan::new(view, dataset, key)?,
            event_id: dataset.event_id.clone(),
            window: dataset.dedupe_window,
        })
    }

    /// The cells of those days, over exactly the events at those offsets, without repeats.
    ///
    /// # Errors
    /// DataFusion's; the stream's too: a file that cannot be read, or no memory and no disk left.
    pub async fn cells(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let events = LogicalPlanBuilder::scan("events", provider_as_source(events), None)?
            .filter(of_days(days))?
            .filter(at_offsets(counted))?
            .build()?;
        self.run(self.plan.over(without_repeats(events, &self.event_id)?)?)
            .await
    }

    /// The cells of those days as the speed layer counts the events at those offsets: without the repeats that it can
    /// know of. All archived events are looked at for that, counted or not.
    ///
    /// # Errors
    /// As [`Recompute::cells`].
    pub(crate) async fn cells_of_speed(
        &self,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let events = LogicalPlanBuilder::scan("events", provider_as_source(events), None)?
            .filter(of_days(days))?
            .build()?;
        let events = without_known_repeats(events, &self.event_id, self.window)?;
        let events = LogicalPlanBuilder::from(events).filter(at_offsets(counted))?.build()?;
        self.run(self.plan.over(events)?).await
    }

    /// The columns of the cells.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.plan.schema()
    }

    /// Runs a plan that gives cells.
    async fn run(&self, plan: LogicalPlan) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let schema = Arc::clone(self.plan.schema());
        let frame = self.session.execute_logical_plan(plan).await?;
        let stream = frame.execute_stream().await?;
        // DataFusion may think that a column could be null; that it is not is checked here.
        let settled = move |batch: Result<RecordBatch>| {
            let batch = batch?;
            Ok(RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?)
        };
        Ok(stream.map(settled).boxed())
    }
}

/// A session that reads expressions as the view's compiler does, and keeps to its memory.
pub(crate) fn session(memory: u64) -> Result<SessionContext> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut config = SessionConfig::new().with_target_partitions((memory / MEMORY_OF_A_CORE).clamp(1, cores));
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    options.execution.skip_physical_aggregate_schema_check = true;
    options.execution.sort_spill_reservation_bytes = SPILL_RESERVE.min(memory / SPILL_RESERVE_PART);
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .build_arc()?;
    Ok(SessionContext::new_with_state(
        SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_default_features()
            .build(),
    ))
}

/// Whether an event's time lies in one of those days.
pub(crate) fn of_days(days: &BTreeSet<EventDay>) -> Expr {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for day in days.iter().map(|day| i64::from(day.0)) {
        match runs.last_mut() {
            Some((_, end)) if *end == day => *end = day + 1,
            _ => runs.push((day, day + 1)),
        }
    }
    let moment = |day: i64| {
        let micros = Some(day.saturating_mul(MICROS_PER_DAY));
        lit(ScalarValue::TimestampMicrosecond(micros, Some(UTC.into())))
    };
    let within = |(from, to)| {
        let time = || ident(EVENT_TIME_COLUMN);
        time().gt_eq(moment(from)).and(time().lt(moment(to)))
    };
    either(runs.into_iter().map(within))
}

/// Whether an event's offset is one of its partition's.
pub(crate) fn at_offsets(counted: &BTreeMap<Partition, OffsetSet>) -> Expr {
    let offset = |offset: Offset| lit(i64::try_from(offset.0).unwrap_or(i64::MAX));
    let within = |range: &OffsetRange| {
        let column = || ident(OFFSET_COLUMN);
        column().gt_eq(offset(range.from)).and(column().lt(offset(range.to)))
    };
    either(
        counted
            .iter()
            .filter(|(_, offsets)| !offsets.is_empty())
            .map(|(partition, offsets)| {
                let number = lit(i32::try_from(partition.number).unwrap_or(i32::MAX));
                ident(TOPIC_COLUMN)
                    .eq(lit(topic_text(partition.topic)))
                    .and(ident(PARTITION_COLUMN).eq(number))
                    .and(either(offsets.ranges().iter().map(within)))
            }),
    )
}

fn either(conditions: impl Iterator<Item = Expr>) -> Expr {
    conditions.reduce(Expr::or).unwrap_or_else(|| lit(false))
}
