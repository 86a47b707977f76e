//! Cells as rows of the tables, in Arrow, ready for `INSERT … FORMAT ArrowStream`.
//!
//! 128-bit ids travel as 16 bytes, little-endian: ClickHouse reads `FixedSizeBinary(16)` into `UInt128` so.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, FixedSizeBinaryArray, RecordBatch, UInt64Array};
use arrow::datatypes::{Date32Type, Field, Int32Type, Schema, TimestampMicrosecondType, UInt64Type};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;

use super::tables::{DAY_COLUMN, NEXT_COLUMN, RUN_COLUMN, TOPIC_COLUMN};
use crate::dataset::PARTITION_COLUMN;
use crate::handoff::{Offset, Partition, RunId, Start, TopicId};
use crate::plan::{START_COLUMN, WINDOW_COLUMN};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Knows up to which offset a start's cells count.
pub trait SpeedVersions {
    /// The `next` of that start; its rows' version.
    fn next(&self, partition: Partition, start: Start) -> Option<Offset>;
}

impl<F: Fn(Partition, Start) -> Option<Offset>> SpeedVersions for F {
    fn next(&self, partition: Partition, start: Start) -> Option<Offset> {
        self(partition, start)
    }
}

/// Speed rows from cells by partition and start, all of one topic's incarnation.
///
/// # Errors
/// A cell of a start without a version: its rows would never give way to newer ones.
pub fn speed_rows(
    cells: &RecordBatch,
    topic: TopicId,
    versions: &impl SpeedVersions,
) -> Result<RecordBatch, ArrowError> {
    let partitions = column(cells, PARTITION_COLUMN)?.as_primitive::<Int32Type>();
    let starts = column(cells, START_COLUMN)?.as_primitive::<UInt64Type>();
    let nexts: Vec<u64> = partitions
        .values()
        .iter()
        .zip(starts.values())
        .map(|(&number, &start)| {
            let number = u32::try_from(number)
                .map_err(|_| ArrowError::InvalidArgumentError(format!("a partition cannot be {number}")))?;
            let partition = Partition { topic, number };
            versions
                .next(partition, Start(Offset(start)))
                .map(|next| next.0)
                .ok_or_else(|| {
                    ArrowError::InvalidArgumentError(format!("no version for partition {number} from offset {start}"))
                })
        })
        .collect::<Result<_, _>>()?;
    with_columns(
        cells,
        [
            (TOPIC_COLUMN, ids(topic.0, cells.num_rows())?),
            (NEXT_COLUMN, Arc::new(UInt64Array::from(nexts))),
        ],
    )
}

/// Batch rows of a run from cells.
///
/// # Errors
/// Cells without a window.
pub fn batch_rows(cells: &RecordBatch, run: RunId) -> Result<RecordBatch, ArrowError> {
    let windows = column(cells, WINDOW_COLUMN)?.as_primitive::<TimestampMicrosecondType>();
    let days: Vec<i32> = windows
        .values()
        .iter()
        .map(|window| i32::try_from(window.div_euclid(MICROS_PER_DAY)))
        .collect::<Result<_, _>>()
        .map_err(|error| ArrowError::InvalidArgumentError(format!("a window beyond all days: {error}")))?;
    with_columns(
        cells,
        [
            (DAY_COLUMN, Arc::new(Date32Array::from(days))),
            (RUN_COLUMN, ids(run.0, cells.num_rows())?),
        ],
    )
}

/// Rows as an Arrow stream, the body of an insert.
///
/// # Errors
/// Batches of different schemas.
pub fn arrow_stream(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let Some(first) = batches.first() else {
        return Ok(Vec::new());
    };
    let mut writer = StreamWriter::try_new(Vec::new(), first.schema_ref())?;
    for batch in batches {
        writer.write(&without_days_below_nulls(batch)?)?;
    }
    writer.into_inner()
}

/// The same rows, with day 0 below every null of a column of dates. Arrow leaves open what stands there, DataFusion's `max`
/// leaves the lowest number, and ClickHouse refuses a whole insert for a number there that is no date of its own.
fn without_days_below_nulls(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let plain = |column: &ArrayRef| -> ArrayRef {
        match column.as_primitive_opt::<Date32Type>() {
            Some(dates) if dates.null_count() > 0 => Arc::new(dates.iter().collect::<Date32Array>()),
            _ => Arc::clone(column),
        }
    };
    RecordBatch::try_new(batch.schema(), batch.columns().iter().map(plain).collect())
}

fn column<'a>(cells: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    cells
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("the cells have no column `{name}`")))
}

/// The same id for every row.
fn ids(id: u128, rows: usize) -> Result<ArrayRef, ArrowError> {
    let ids = std::iter::repeat_n(id.to_le_bytes(), rows);
    if rows == 0 {
        return Ok(Arc::new(FixedSizeBinaryArray::try_new(
            16,
            Vec::<u8>::new().into(),
            None,
        )?));
    }
    Ok(Arc::new(FixedSizeBinaryArray::try_from_iter(ids)?))
}

fn with_columns(cells: &RecordBatch, added: [(&str, ArrayRef); 2]) -> Result<RecordBatch, ArrowError> {
    let mut fields = cells.schema().fields().to_vec();
    let mut columns = cells.columns().to_vec();
    for (name, array) in added {
        fields.push(Arc::new(Field::new(name, array.data_type().clone(), false)));
        columns.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
