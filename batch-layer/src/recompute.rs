//! The exact cells of some event days, from archived events below the marks.
//!
//! The view's plan, on top of the archive without repeats. Which events count is said by offset, per partition; that is
//! applied first, so that an event above the mark never takes the place of its copy below.
//!
//! Memory is bounded: beyond it, groups and the ids of events spill to a folder of their own, and cells come out as a stream.
//! `feed` reads the events once for all views that want the same ones; `counted` says which count; `room` is the memory.

pub(crate) mod counted;
pub(crate) mod feed;
mod room;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{Expr, ident, lit};
use futures::stream::BoxStream;
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, Mark, Offset, OffsetRange, OffsetSet, Partition, TopicId};
use shared_schemas::plan::{CellKey, CellPlan};
use shared_schemas::store::tables::TOPIC_COLUMN;
use shared_schemas::view::{UTC, View};

use self::feed::{Wanted, feed};
pub use self::room::Room;
pub(crate) use self::room::settled;
use crate::repeats::Rule;

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
    room: Room,
    plan: CellPlan,
    dataset: Dataset,
}

impl Recompute {
    /// For a view over that dataset, with so many bytes of memory.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass, or has no place to spill to.
    pub fn new(view: &View, dataset: &Dataset, memory: u64) -> Result<Self> {
        Self::within(&Room::own(memory)?, view, dataset)
    }

    /// The same, but with only those states that the speed layer has too.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass.
    pub(crate) fn of_both_layers(view: &View, dataset: &Dataset, room: &Room) -> Result<Self> {
        Self::with_states(room, view, dataset, CellKey::OneStart)
    }

    /// For a view over that dataset, in a memory that others may share.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan what the view's compiler let pass.
    pub fn within(room: &Room, view: &View, dataset: &Dataset) -> Result<Self> {
        Self::with_states(room, view, dataset, CellKey::Cell)
    }

    fn with_states(room: &Room, view: &View, dataset: &Dataset, key: CellKey) -> Result<Self> {
        Ok(Self {
            room: room.clone(),
            plan: CellPlan::new(view, dataset, key)?,
            dataset: dataset.clone(),
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
        self.without(Rule::AllButOne, events, days, counted).await
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
        let window = i64::try_from(self.dataset.dedupe_window.as_micros()).unwrap_or(i64::MAX);
        self.without(Rule::Known(window), events, days, counted).await
    }

    async fn without(
        &self,
        rule: Rule,
        events: Arc<dyn TableProvider>,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let wanted = Wanted {
            dataset: &self.dataset,
            events,
            days,
            counted,
            since: &BTreeSet::new(),
            rule,
        };
        let cells = feed(&self.room, &[&self.plan], &wanted, &Arc::default()).await?;
        let cells = cells.into_iter().next();
        cells.ok_or_else(|| DataFusionError::Internal("a plan without cells".to_owned()))
    }

    /// The columns of the cells.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.plan.schema()
    }
}

/// The microseconds of those days, ascending; neighbours are one range.
fn moments(days: &BTreeSet<EventDay>) -> Vec<Range<i64>> {
    let mut runs: Vec<Range<i64>> = Vec::new();
    for first in days.iter().map(|day| day.first_micros()) {
        let of_day = first..first.saturating_add(EventDay::MICROS);
        match runs.last_mut() {
            Some(run) if run.end == of_day.start => run.end = of_day.end,
            _ => runs.push(of_day),
        }
    }
    runs
}

/// Whether an event's time lies in one of those days.
pub(crate) fn of_days(days: &BTreeSet<EventDay>) -> Expr {
    let moment = |micros: i64| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into())));
    let within = |run: Range<i64>| {
        let time = || ident(EVENT_TIME_COLUMN);
        time().gt_eq(moment(run.start)).and(time().lt(moment(run.end)))
    };
    either(moments(days).into_iter().map(within))
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
