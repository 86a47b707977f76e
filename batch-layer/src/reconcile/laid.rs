//! Cells in the order of their keys, laid down on disk: read once from where they come from, and looked up as often as it takes.
//!
//! A sort that was read in part keeps its memory, and others that share it with the sort get none. So what explains differences is drained at
//! once, one after the other, each with all of its room; what is left of it is a file, and a batch of that in memory at a time. Slices
//! of differences look up their cells there, in any order: neither the store nor the archive is asked again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::ops::Bound;

use arrow::array::RecordBatch;
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use arrow::row::{OwnedRow, RowConverter};
use datafusion::common::Result;
use futures::{StreamExt, TryStreamExt};
use shared_schemas::handoff::EventDay;
use shared_schemas::plan::MergePlan;

use super::sorted::{Side, Stream, key_converter, only};
use crate::error::RunError;
use crate::spill::{Spill, Spilled, Writer};

/// Cells on disk, in the order of their keys; of a key there may be several rows.
pub(super) struct Laid {
    keys: usize,
    converter: RowConverter,
    /// None where there are no cells.
    file: Option<(FileReader<File>, Spilled)>,
    /// The first and the last key of each batch in it.
    bounds: Vec<(OwnedRow, OwnedRow)>,
}

impl Laid {
    /// Drains a side.
    pub(super) async fn down(spill: &Spill, mut side: Side, days: &BTreeSet<EventDay>) -> Result<Self, RunError> {
        let mut laying = Laying::new(side.schema(), side.keys()).map_err(|error| side.failed(days, &error))?;
        loop {
            let next = match side.next().await {
                Ok(None) => break,
                Ok(Some(batch)) => laying.lay(spill, &batch),
                Err(error) => Err(error),
            };
            next.map_err(|error| side.failed(days, &error))?;
        }
        laying.done().map_err(|error| side.failed(days, &error))
    }

    /// Drains cells that come in the order of their first so many columns.
    pub(super) async fn of_sorted(spill: &Spill, schema: &SchemaRef, keys: usize, mut cells: Stream) -> Result<Self> {
        let mut laying = Laying::new(schema, keys)?;
        while let Some(batch) = cells.try_next().await? {
            laying.lay(spill, &batch)?;
        }
        laying.done()
    }

    /// The rows with those keys, in the order of keys.
    pub(super) fn of(&mut self, wanted: &BTreeSet<OwnedRow>) -> Result<Vec<RecordBatch>> {
        self.at_most(wanted, usize::MAX)
    }

    /// The same, but no batch more once there are so many rows.
    pub(super) fn at_most(&mut self, wanted: &BTreeSet<OwnedRow>, most: usize) -> Result<Vec<RecordBatch>> {
        let mut found = Vec::new();
        let (Some(first), Some(last), Some((file, _))) = (wanted.first(), wanted.last(), &mut self.file) else {
            return Ok(found);
        };
        let mut rows = 0;
        let from = self.bounds.partition_point(|(_, to)| to < first);
        for (at, (low, high)) in self.bounds.iter().enumerate().skip(from) {
            if low > last || rows >= most {
                break;
            }
            let within = (Bound::Included(low), Bound::Included(high));
            if wanted.range::<OwnedRow, _>(within).next().is_none() {
                continue;
            }
            file.set_index(at)?;
            let Some(batch) = file.next().transpose()? else { break };
            let of_these = only(&self.converter, self.keys, &batch, wanted)?;
            rows += of_these.num_rows();
            if of_these.num_rows() > 0 {
                found.push(of_these);
            }
        }
        Ok(found)
    }

    /// All rows, in the order of keys.
    pub(super) fn rows(&self) -> Result<Stream> {
        let Some((_, spilled)) = &self.file else {
            return Ok(futures::stream::empty().boxed());
        };
        // Their position is one: who goes through all of them is done before the next is looked up.
        let file = FileReader::try_new(spilled.file.try_clone()?, None)?;
        Ok(futures::stream::iter(file).map_err(Into::into).boxed())
    }
}

/// Cells that are being laid down.
struct Laying {
    schema: SchemaRef,
    keys: usize,
    converter: RowConverter,
    file: Option<(FileWriter<BufWriter<Writer>>, Spilled)>,
    bounds: Vec<(OwnedRow, OwnedRow)>,
}

impl Laying {
    fn new(schema: &SchemaRef, keys: usize) -> Result<Self> {
        Ok(Self {
            schema: SchemaRef::clone(schema),
            keys,
            converter: key_converter(schema, keys)?,
            file: None,
            bounds: Vec::new(),
        })
    }

    fn lay(&mut self, spill: &Spill, batch: &RecordBatch) -> Result<()> {
        let Some(last) = batch.num_rows().checked_sub(1) else {
            return Ok(());
        };
        let ends = [0, last].map(|row| batch.slice(row, 1).columns()[..self.keys].to_vec());
        let [first, last] = ends
            .map(|columns| Ok::<_, arrow::error::ArrowError>(self.converter.convert_columns(&columns)?.row(0).owned()));
        self.bounds.push((first?, last?));
        let (file, _) = match &mut self.file {
            Some(file) => file,
            none => {
                let spilled = spill.file("cells")?;
                let to = BufWriter::new(spilled.writer()?);
                none.insert((FileWriter::try_new(to, &self.schema)?, spilled))
            }
        };
        Ok(file.write(batch)?)
    }

    fn done(self) -> Result<Laid> {
        let file = match self.file {
            Some((file, spilled)) => {
                let file = file.into_inner()?.into_inner();
                let file = file.map_err(std::io::IntoInnerError::into_error)?;
                Some((FileReader::try_new(file.into_file(), None)?, spilled))
            }
            None => None,
        };
        Ok(Laid {
            keys: self.keys,
            converter: self.converter,
            file,
            bounds: self.bounds,
        })
    }
}

/// Of cells in the order of their keys, of which there are several for a key, one for each; about so many bytes are gathered for that.
pub(super) fn merged(merge: MergePlan, keys: usize, cells: Stream, most: usize) -> Stream {
    struct Merging {
        merge: MergePlan,
        cells: Stream,
        gathered: Vec<RecordBatch>,
        bytes: usize,
        most: usize,
        is_done: bool,
    }
    let merging = Merging {
        merge,
        cells,
        gathered: Vec::new(),
        bytes: 0,
        most,
        is_done: false,
    };
    let next = move |mut of: Merging| async move {
        while !of.is_done {
            match of.cells.try_next().await? {
                Some(batch) => {
                    of.bytes += batch.get_array_memory_size();
                    of.gathered.push(batch);
                }
                None => of.is_done = true,
            }
            if of.bytes < of.most && !of.is_done {
                continue;
            }
            if of.gathered.is_empty() {
                break;
            }
            let all = of.merge.run(std::mem::take(&mut of.gathered)).await?;
            let all = in_order(&all, keys)?;
            // Of the last key more may come.
            let ready = if of.is_done {
                all.num_rows()
            } else {
                all.num_rows().saturating_sub(1)
            };
            let last = all.slice(ready, all.num_rows() - ready);
            let last = concat_batches(&all.schema(), [&last])?;
            of.bytes = last.get_array_memory_size();
            of.gathered.extend((last.num_rows() > 0).then_some(last));
            if ready > 0 {
                return Ok(Some((all.slice(0, ready), of)));
            }
        }
        Ok(None)
    };
    futures::stream::try_unfold(merging, next).boxed()
}

/// The same rows in the order of their keys.
fn in_order(batch: &RecordBatch, keys: usize) -> Result<RecordBatch> {
    let by = |column: &arrow::array::ArrayRef| SortColumn {
        values: column.clone(),
        options: Some(SortOptions::new(false, true)),
    };
    let by: Vec<_> = batch.columns().iter().take(keys).map(by).collect();
    Ok(take_record_batch(batch, &lexsort_to_indices(&by, None)?)?)
}
