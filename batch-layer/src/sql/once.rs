//! Each event once, as a plan that DataFusion can put other plans upon.
//!
//! It says what batch runs do in their own way: of events with an equal `event_id` and event time the lowest offset of a
//! partition stays, of those that stay the one with the lowest Kafka timestamp, then the lowest partition number, then
//! the lowest topic id; and all whose id is not whole. Rows are sorted and numbered, which spills to disk.

use datafusion::common::{DataFusionError, Result};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, ident, lit};
use shared_schemas::dataset::{EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::store::tables::TOPIC_COLUMN;

/// The same events without repeats.
pub(crate) fn once(events: LogicalPlan, event_id: &[String]) -> Result<LogicalPlan> {
    if event_id.is_empty() {
        return Ok(events);
    }
    let identity: Vec<_> = event_id.iter().map(String::as_str).chain([EVENT_TIME_COLUMN]).collect();
    let within_partition = [&identity[..], &[TOPIC_COLUMN, PARTITION_COLUMN]].concat();
    let events = first_of(events, event_id, &within_partition, &[OFFSET_COLUMN])?;
    let across = [KAFKA_TIME_COLUMN, PARTITION_COLUMN, TOPIC_COLUMN];
    first_of(events, event_id, &identity, &across)
}

/// Of rows that are equal in `same`, the first by `order`; and all whose id is not whole.
fn first_of(events: LogicalPlan, event_id: &[String], same: &[&str], order: &[&str]) -> Result<LogicalPlan> {
    let columns: Vec<_> = events.schema().columns().into_iter().map(Expr::Column).collect();
    let order: Vec<_> = order
        .iter()
        .map(|column| Sort::new(ident(*column), true, false))
        .collect();
    let number = row_number()
        .partition_by(same.iter().map(|column| ident(*column)).collect())
        .order_by(order)
        .build()?;
    let numbered = LogicalPlanBuilder::from(events).window([number])?;
    let number = numbered.schema().columns().pop().map(Expr::Column);
    let first = number
        .ok_or_else(|| DataFusionError::Internal("a window without a column".to_owned()))?
        .eq(lit(1_u64));
    let kept = event_id
        .iter()
        .fold(first, |kept, field| kept.or(ident(field).is_null()));
    numbered.filter(kept)?.project(columns)?.build()
}
