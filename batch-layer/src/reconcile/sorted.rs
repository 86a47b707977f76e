//! Cells in the order of their keys, and two such streams side by side.
//!
//! A day can have more cells than there is memory. So nothing holds them all: each side is sorted within its part of the memory, what
//! exceeds that goes to disk, and the sides are gone through together. At any time a batch of each is at hand.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::{Result, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::expr::Sort;
use datafusion::logical_expr::{LogicalPlanBuilder, ident};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::StreamExt;
use futures::stream::BoxStream;
use shared_schemas::handoff::EventDay;

use super::computing;
use super::read::Broken;
use crate::error::RunError;
use crate::recompute::Room;

/// Cells as they come.
pub(super) type Stream = BoxStream<'static, Result<RecordBatch>>;

/// Makes rows that compare of the key columns, the first so many.
pub(super) fn key_converter(schema: &Schema, keys: usize) -> Result<RowConverter, ArrowError> {
    let fields = schema.fields().iter().take(keys);
    RowConverter::new(fields.map(|field| SortField::new(field.data_type().clone())).collect())
}

/// The same rows in the order of their first so many columns.
pub(super) async fn sorted(room: &Room, schema: &SchemaRef, keys: usize, cells: Stream) -> Result<Stream> {
    let handed = Handed {
        schema: Arc::clone(schema),
        cells: Mutex::new(Some(cells)),
    };
    let table = StreamingTable::try_new(Arc::clone(schema), vec![Arc::new(handed)])?;
    // As rows that compare are sorted: nulls first.
    let by = schema.fields().iter().take(keys);
    let by = by.map(|field| Sort::new(ident(field.name()), true, true));
    let plan = LogicalPlanBuilder::scan("cells", provider_as_source(Arc::new(table)), None)?
        .sort(by)?
        .build()?;
    let frame = room.session().execute_logical_plan(plan).await?;
    Ok(frame.execute_stream().await?.boxed())
}

/// A stream as a table, which can be read once.
struct Handed {
    schema: SchemaRef,
    cells: Mutex<Option<Stream>>,
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handed({:?})", self.schema)
    }
}

impl PartitionStream for Handed {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner).take();
        let cells =
            cells.unwrap_or_else(|| futures::stream::iter([internal_err!("cells can be read once only")]).boxed());
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), cells))
    }
}

/// Cells in the order of their keys, of which a batch is at hand.
pub(super) struct Side {
    cells: Stream,
    schema: SchemaRef,
    converter: RowConverter,
    keys: usize,
    at_hand: Option<(RecordBatch, Rows)>,
    /// The first row of it that was not handed on.
    from: usize,
    /// The last key of the batch before, where each key is to come once.
    last: Option<OwnedRow>,
    is_each_once: bool,
    /// Only rows with these keys, where some are named.
    wanted: Option<Arc<BTreeSet<OwnedRow>>>,
    broken: Broken,
}

impl Side {
    pub(super) fn new(schema: &SchemaRef, keys: usize, cells: Stream) -> Result<Self> {
        Ok(Self {
            cells,
            schema: Arc::clone(schema),
            converter: key_converter(schema, keys)?,
            keys,
            at_hand: None,
            from: 0,
            last: None,
            is_each_once: false,
            wanted: None,
            broken: Broken::default(),
        })
    }

    /// Of rows with equal keys only the first.
    pub(super) fn each_once(mut self) -> Self {
        self.is_each_once = true;
        self
    }

    /// Of the rows that are still to come only those with these keys.
    pub(super) fn with_keys(mut self, wanted: Arc<BTreeSet<OwnedRow>>) -> Self {
        self.wanted = Some(wanted);
        self
    }

    /// What is told there is why the stream breaks off.
    pub(super) fn told_by(mut self, broken: Broken) -> Self {
        self.broken = broken;
        self
    }

    /// The error of a run that this one is.
    pub(super) fn failed(&self, days: &BTreeSet<EventDay>, error: &datafusion::error::DataFusionError) -> RunError {
        let told = self.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        told.unwrap_or_else(|| computing(days, error))
    }

    /// Sees to it that a row is at hand, if there is one left.
    pub(super) async fn fill(&mut self) -> Result<()> {
        loop {
            if let Some((batch, _)) = &self.at_hand {
                if self.from < batch.num_rows() {
                    return Ok(());
                }
                self.at_hand = None;
            }
            let Some(batch) = self.cells.next().await else {
                return Ok(());
            };
            self.from = 0;
            let batch = match &self.wanted {
                Some(wanted) => only(&self.converter, self.keys, &batch?, wanted)?,
                None => batch?,
            };
            self.at_hand = Some(self.with_rows(batch)?);
        }
    }

    fn with_rows(&mut self, batch: RecordBatch) -> Result<(RecordBatch, Rows)> {
        let rows = self.converter.convert_columns(&batch.columns()[..self.keys])?;
        if !self.is_each_once {
            return Ok((batch, rows));
        }
        let is_new = |at: usize| match at.checked_sub(1) {
            Some(before) => rows.row(before) != rows.row(at),
            None => self.last.as_ref().is_none_or(|last| last.row() != rows.row(at)),
        };
        let new: BooleanArray = (0..rows.num_rows()).map(|at| Some(is_new(at))).collect();
        if let Some(last) = rows.num_rows().checked_sub(1) {
            self.last = Some(rows.row(last).owned());
        }
        if new.true_count() == batch.num_rows() {
            return Ok((batch, rows));
        }
        let batch = filter_record_batch(&batch, &new)?;
        let rows = self.converter.convert_columns(&batch.columns()[..self.keys])?;
        Ok((batch, rows))
    }

    /// The last key at hand.
    fn last(&self) -> Option<Row<'_>> {
        let (_, rows) = self.at_hand.as_ref()?;
        Some(rows.row(rows.num_rows().checked_sub(1)?))
    }

    /// What is at hand up to that key.
    fn cut(&mut self, bound: &OwnedRow) -> RecordBatch {
        let Some((batch, rows)) = &self.at_hand else {
            return RecordBatch::new_empty(Arc::clone(&self.schema));
        };
        let (mut low, mut high) = (self.from, rows.num_rows());
        while low < high {
            let middle = usize::midpoint(low, high);
            if rows.row(middle) <= bound.row() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let cut = batch.slice(self.from, low - self.from);
        self.from = low;
        cut
    }

    /// The next rows, in batches as they come; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.fill().await?;
        let Some((batch, _)) = self.at_hand.take() else {
            return Ok(None);
        };
        Ok(Some(batch.slice(self.from, batch.num_rows() - self.from)))
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many columns tell rows apart: the first ones.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }
}

/// Of a batch the rows with those keys.
pub(super) fn only(
    converter: &RowConverter,
    keys: usize,
    batch: &RecordBatch,
    wanted: &BTreeSet<OwnedRow>,
) -> Result<RecordBatch> {
    let rows = converter.convert_columns(&batch.columns()[..keys])?;
    let is_wanted: BooleanArray = rows.iter().map(|row| Some(wanted.contains(&row.owned()))).collect();
    Ok(filter_record_batch(batch, &is_wanted)?)
}

/// Of a stream the rows with those keys.
pub(super) fn of_keys(
    schema: &SchemaRef,
    keys: usize,
    cells: Stream,
    wanted: Arc<BTreeSet<OwnedRow>>,
) -> Result<Stream> {
    let converter = key_converter(schema, keys)?;
    Ok(cells.map(move |batch| only(&converter, keys, &batch?, &wanted)).boxed())
}

/// Two sides, gone through together.
pub(super) struct Beside {
    pub(super) held: Side,
    pub(super) exact: Side,
}

impl Beside {
    /// The next cells of both sides: of each key between two keys all that either side has. `None` at the end.
    pub(super) async fn next(&mut self, days: &BTreeSet<EventDay>) -> Result<Option<[RecordBatch; 2]>, RunError> {
        // Side by side: the store works on the one, this on the other.
        let (held, exact) = futures::join!(self.held.fill(), self.exact.fill());
        held.map_err(|error| self.held.failed(days, &error))?;
        exact.map_err(|error| self.exact.failed(days, &error))?;
        let bound = match (self.held.last(), self.exact.last()) {
            (None, None) => return Ok(None),
            (Some(one), None) | (None, Some(one)) => one.owned(),
            (Some(held), Some(exact)) => held.min(exact).owned(),
        };
        Ok(Some([self.held.cut(&bound), self.exact.cut(&bound)]))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;
    use shared_schemas::handoff::EventDay;

    use super::super::laid::Laid;
    use super::*;
    use crate::spill::Spill;

    fn batch(rows: &[(Option<String>, i64)]) -> RecordBatch {
        let names: ArrayRef = Arc::new(rows.iter().map(|(name, _)| name.clone()).collect::<StringArray>());
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, value)| *value)));
        RecordBatch::try_from_iter_with_nullable([("name", names, true), ("value", values, false)]).unwrap()
    }

    async fn side(rows: &[(Option<String>, i64)], length: usize) -> Side {
        let empty = batch(&[]);
        let room = Room::own(16 << 20).unwrap();
        let batches: Vec<_> = rows.chunks(length).map(|rows| Ok(batch(rows))).collect();
        let cells = sorted(&room, &empty.schema(), 1, futures::stream::iter(batches).boxed()).await;
        // Sorted batches are long: cut, so that their bounds are met.
        let cells = cells.unwrap().flat_map(move |batch| {
            let batch = batch.unwrap();
            let starts = (0..batch.num_rows()).step_by(length);
            let parts: Vec<_> = starts
                .map(|at| Ok(batch.slice(at, length.min(batch.num_rows() - at))))
                .collect();
            futures::stream::iter(parts)
        });
        Side::new(&empty.schema(), 1, cells.boxed()).unwrap().each_once()
    }

    /// A sort that is read in part keeps its memory; what is laid down keeps none, and the next one has all of it.
    #[tokio::test]
    async fn what_is_laid_down_takes_no_memory_from_others() {
        let room = Room::with_cores(4 << 20, 1, Arc::new(Spill::new(None).unwrap())).unwrap();
        let empty = batch(&[]);
        let schema = empty.schema();
        let cells = || {
            let of = |at: i64| (Some(format!("{:0100}", at * 7919 % 50_000)), at);
            let batches =
                (0..100).map(move |number| Ok(batch(&(number * 500..(number + 1) * 500).map(of).collect::<Vec<_>>())));
            futures::stream::iter(batches).boxed()
        };
        let mut in_part = sorted(&room, &schema, 1, cells()).await.unwrap();
        in_part.next().await.unwrap().unwrap();
        assert!(room.taken() > 0);
        drop(in_part);
        let mut all = Vec::new();
        for _ in 0..4 {
            let cells = sorted(&room, &schema, 1, cells()).await.unwrap();
            all.push(Laid::of_sorted(&room.spill(), &schema, 1, cells).await.unwrap());
            assert_eq!(room.taken(), 0);
        }
        // Read in part, all of them side by side.
        for laid in &mut all {
            let mut rows = laid.rows().unwrap();
            let first = rows.next().await.unwrap().unwrap();
            assert_eq!(read(&first)[0].0, Some(format!("{:0100}", 0)));
            let wanted = crate::reconcile::classes::rows_of(&batch(&[(Some(format!("{:0100}", 4711)), 0)]), 1).unwrap();
            let found = laid.of(&wanted.into_iter().collect()).unwrap();
            assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
            assert_eq!(room.taken(), 0);
        }
    }

    fn read(batch: &RecordBatch) -> Vec<(Option<String>, i64)> {
        let (names, values) = (batch.column(0).as_string::<i32>(), batch.column(1));
        let values = values.as_primitive::<Int64Type>().values();
        names
            .iter()
            .map(|name| name.map(str::to_owned))
            .zip(values.iter().copied())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each key comes once, with all that either side has of it, whatever the batches are; and what is asked for by key is found.
        #[test]
        fn each_key_is_met_with_both_its_cells(
            held in prop::collection::vec((prop::option::of("[a-d]{0,3}"), 0_i64..9), 0..60),
            exact in prop::collection::btree_map(prop::option::of("[a-d]{0,3}"), 0_i64..9, 0..40),
            lengths in (1_usize..9, 1_usize..9),
            every in 1_usize..5,
        ) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let exact: Vec<_> = exact.into_iter().collect();
                let days = BTreeSet::from([EventDay(0)]);
                let mut beside = Beside { held: side(&held, lengths.0).await, exact: side(&exact, lengths.1).await };
                let (mut seen, mut of_exact) = (BTreeSet::new(), Vec::new());
                while let Some([held, exact]) = beside.next(&days).await.unwrap() {
                    let (held, exact) = (read(&held), read(&exact));
                    let keys: BTreeSet<_> = held.iter().chain(&exact).map(|(name, _)| name.clone()).collect();
                    prop_assert!(seen.last() < keys.first(), "{seen:?} {keys:?}");
                    prop_assert!(held.windows(2).all(|pair| pair[0].0 < pair[1].0));
                    seen.extend(keys);
                    of_exact.extend(exact);
                }
                prop_assert_eq!(&of_exact, &exact);
                let all: BTreeSet<_> = held.iter().chain(&exact).map(|(name, _)| name.clone()).collect();
                prop_assert_eq!(&seen, &all);

                let mut laid = Laid::down(&Spill::new(None).unwrap(), side(&exact, lengths.1).await, &days).await.unwrap();
                let rows = crate::reconcile::classes::rows_of(&batch(&exact), 1).unwrap();
                for wanted in rows.chunks(7).rev() {
                    let wanted: BTreeSet<_> = wanted.iter().step_by(every).cloned().collect();
                    let found: usize = laid.of(&wanted).unwrap().iter().map(RecordBatch::num_rows).sum();
                    prop_assert_eq!(found, wanted.len());
                }
                let all: Vec<_> = laid.rows().unwrap().map(|batch| read(&batch.unwrap())).collect().await;
                prop_assert_eq!(all.concat(), exact);
                Ok(())
            })?;
        }
    }
}
