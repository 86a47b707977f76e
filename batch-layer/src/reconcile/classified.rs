//! The plan that tells each archived event's class: both layers' rules for repeats, as functions over rows that are sorted by id.

use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::{Sort, WindowFunction};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, cast, ident, lit, when,
};
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::store::tables::TOPIC_COLUMN;

use super::classes::{Class, Places};
use crate::recompute::at_offsets;

/// The column that the class is in.
pub(super) const CLASS: &str = "_class";

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
pub(super) fn classified(events: LogicalPlan, dataset: &Dataset, places: &Places) -> Result<LogicalPlan> {
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
