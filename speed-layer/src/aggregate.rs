//! A view's plan over what came since the last flush.
//!
//! Each start's events are run through the plan by themselves: to group by partition and start, which are the same in all
//! of them, would cost as much as to group by two dimensions more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use shared_schemas::dataset::{Dataset, OFFSET_COLUMN};
use shared_schemas::handoff::{OffsetRange, Start};
use shared_schemas::plan::{CellKey, CellPlan, Filtered, event_schema, of_start};
use shared_schemas::view::View;

use crate::cells::OpenCells;

/// A view's events since the last flush, and its open cells.
#[derive(Debug)]
pub struct Aggregate {
    plan: CellPlan,
    schema: SchemaRef,
    pending: BTreeMap<(u32, Start), Vec<RecordBatch>>,
    rows: usize,
    bytes: usize,
    cells: OpenCells,
}

/// What became of the events of a start that were folded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Kafka's partition number.
    pub partition: u32,
    /// The start.
    pub start: Start,
    /// How many there were.
    pub events: u64,
    /// What the view's filter made of them.
    pub filtered: Filtered,
}

impl Aggregate {
    /// For a view, nothing read yet.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan the view.
    pub fn new(view: &View, dataset: &Dataset) -> Result<Self, DataFusionError> {
        let schema = event_schema(dataset);
        Ok(Self {
            plan: CellPlan::new(view, dataset, CellKey::OneStart)?,
            schema: Arc::new(schema),
            pending: BTreeMap::new(),
            rows: 0,
            bytes: 0,
            cells: OpenCells::new(view)?,
        })
    }

    /// The events waiting for a flush; one that counts for two starts is two.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes that the waiting events hold on to. Batches share buffers, so some may be told twice.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The open cells.
    pub fn cells(&self) -> &OpenCells {
        &self.cells
    }

    /// Takes the events of a start: those of the batches, ascending by offset, that lie in the range.
    ///
    /// # Errors
    /// Arrow's, for batches of another schema.
    pub fn add(
        &mut self,
        partition: u32,
        start: Start,
        range: OffsetRange,
        batches: &[RecordBatch],
    ) -> Result<(), ArrowError> {
        for batch in batches {
            let part = within(batch, range)?;
            if part.num_rows() == 0 {
                continue;
            }
            // The declared fields and those of the reader come first, as the plan wants them.
            let columns = part.columns()[..self.schema.fields().len()].to_vec();
            self.rows += part.num_rows();
            self.bytes += part.get_array_memory_size();
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
            self.pending.entry((partition, start)).or_default().push(batch);
        }
        Ok(())
    }

    /// Aggregates what came since the last time into the open cells. Returns what became of it, by partition and start.
    ///
    /// # Errors
    /// DataFusion's: memory.
    pub async fn fold(&mut self) -> Result<Vec<Counted>, DataFusionError> {
        let pending = std::mem::take(&mut self.pending);
        (self.rows, self.bytes) = (0, 0);
        let mut counted = Vec::with_capacity(pending.len());
        let mut fresh = Vec::with_capacity(pending.len());
        for ((partition, start), batches) in pending {
            counted.push(Counted {
                partition,
                start,
                events: batches.iter().map(|batch| batch.num_rows() as u64).sum(),
                filtered: self.plan.filtered(batches.clone()).await?,
            });
            let cells = self.plan.run(batches).await?;
            let partition = i32::try_from(partition).unwrap_or(i32::MAX);
            fresh.push(of_start(&cells, self.cells.schema(), partition, start.0.0)?);
        }
        self.cells.fold(fresh).await?;
        Ok(counted)
    }

    /// The cells that were touched since the last time, whole, by partition and start; `None` where none was. What waits
    /// is not in them: fold first.
    ///
    /// # Errors
    /// Arrow's: a mistake of ours.
    pub fn touched(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.cells.touched()
    }

    /// Lets go of the cells and events of these starts.
    ///
    /// # Errors
    /// Arrow's: a mistake of ours.
    pub fn drop_starts(&mut self, gone: &BTreeSet<(u32, Start)>) -> Result<(), ArrowError> {
        self.pending.retain(|place, _| !gone.contains(place));
        self.rows = self.pending.values().flatten().map(RecordBatch::num_rows).sum();
        self.cells.drop_starts(gone)
    }
}

/// The rows of a batch, ascending by offset, that lie in the range.
fn within(batch: &RecordBatch, range: OffsetRange) -> Result<RecordBatch, ArrowError> {
    let offsets = batch
        .column_by_name(OFFSET_COLUMN)
        .ok_or_else(|| ArrowError::SchemaError(format!("no column {OFFSET_COLUMN}")))?
        .as_primitive::<Int64Type>();
    // A record's offset is never negative.
    let place = |end: u64| offsets.values().partition_point(|offset| offset.unsigned_abs() < end);
    let (from, to) = (place(range.from.0), place(range.to.0));
    Ok(batch.slice(from, to.saturating_sub(from)))
}
