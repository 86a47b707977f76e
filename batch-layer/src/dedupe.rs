//! Drops what the speed layer knows to be a repeat, by the dataset's window: reconciliation tells with it which differences are that
//! layer's nature, and which are none. The batch layer drops all repeats: `repeats`.
//!
//! It looks back from each of sorted rows, which spills to disk; a hash of all ids would not.

use std::time::Duration;

use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::logical_expr::expr::{Sort, WindowFunction};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, cast, ident, lit,
};
use shared_schemas::dataset::{EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::store::tables::TOPIC_COLUMN;

/// The same events without those that the speed layer knows to be repeats: the same event stands at a lower offset of the
/// same partition, with a Kafka timestamp from `window` before this record's on. The earlier ones may be repeats too, and
/// need not count, so nothing must be filtered out before.
pub(crate) fn without_known_repeats(events: LogicalPlan, event_id: &[String], window: Duration) -> Result<LogicalPlan> {
    if event_id.is_empty() {
        return Ok(events);
    }
    let columns: Vec<_> = events.schema().columns().into_iter().map(Expr::Column).collect();
    let same = event_id
        .iter()
        .map(String::as_str)
        .chain([EVENT_TIME_COLUMN, TOPIC_COLUMN, PARTITION_COLUMN]);
    let before = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::Preceding(ScalarValue::UInt64(Some(1))),
    );
    let micros = || cast(ident(KAFKA_TIME_COLUMN), DataType::Int64);
    let latest = Expr::from(WindowFunction::new(
        WindowFunctionDefinition::AggregateUDF(max_udaf()),
        vec![micros()],
    ))
    .partition_by(same.map(ident).collect())
    .order_by(vec![Sort::new(ident(OFFSET_COLUMN), true, false)])
    .window_frame(before)
    .build()?;
    let marked = LogicalPlanBuilder::from(events).window([latest])?;
    let latest = marked.schema().columns().pop().map(Expr::Column);
    let latest = latest.ok_or_else(|| DataFusionError::Internal("a window without a column".to_owned()))?;
    let window = lit(i64::try_from(window.as_micros()).unwrap_or(i64::MAX / 2));
    let new = latest.clone().is_null().or(latest.lt(micros() - window));
    let kept = event_id.iter().fold(new, |kept, field| kept.or(ident(field).is_null()));
    marked.filter(kept)?.project(columns)?.build()
}
