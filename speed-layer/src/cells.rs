//! The open cells of a view, whole.
//!
//! A flush writes each touched cell as it is in total, not the difference. So all cells of the kept starts are held here,
//! by key; new cells are merged in by the same plan that the batch layer could merge them with. Only touched cells are
//! looked up, merged and returned: a flush costs what came, not what is open.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Int32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::DataFusionError;
use shared_schemas::dataset::PARTITION_COLUMN;
use shared_schemas::handoff::{Offset, Start};
use shared_schemas::plan::{CellKey, FAILED_COLUMN, MergePlan, START_COLUMN};
use shared_schemas::view::View;

/// Batches are joined to one when there are more than these, or when most of their rows are replaced ones.
const MOST_BATCHES: usize = 64;

/// Where a cell is held: which batch, which row.
type Place = (usize, usize);

/// The cells of all kept starts of a view, on all partitions.
#[derive(Debug)]
pub struct OpenCells {
    merge: MergePlan,
    key: KeyReader,
    places: HashMap<Box<[u8]>, Place>,
    held: Vec<RecordBatch>,
    /// The keys of those that were touched since somebody asked.
    touched: HashSet<Box<[u8]>>,
}

/// Reads the columns that tell cells apart, the first ones of a batch of cells.
#[derive(Debug)]
struct KeyReader {
    converter: RowConverter,
    columns: usize,
}

impl OpenCells {
    /// None yet, of cells with that schema.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan the merge.
    pub fn new(view: &View, schema: &arrow::datatypes::Schema) -> Result<Self, DataFusionError> {
        // The key comes first, then the count of failures and the states.
        let columns = schema.index_of(FAILED_COLUMN)?;
        let fields = schema.fields()[..columns]
            .iter()
            .map(|field| SortField::new(field.data_type().clone()))
            .collect();
        Ok(Self {
            merge: MergePlan::new(view, CellKey::Start)?,
            key: KeyReader {
                converter: RowConverter::new(fields)?,
                columns,
            },
            places: HashMap::new(),
            held: Vec::new(),
            touched: HashSet::new(),
        })
    }

    /// How many cells are open.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no cell is open.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        let key = self.places.keys().next().map_or(0, |key| key.len());
        let batches: usize = self.held.iter().map(RecordBatch::get_array_memory_size).sum();
        batches + self.places.len() * (key + 2 * size_of::<Place>())
    }

    /// Merges fresh cells in: they are touched.
    ///
    /// # Errors
    /// DataFusion's: memory, or cells of another schema.
    pub async fn fold(&mut self, fresh: RecordBatch) -> Result<(), DataFusionError> {
        let before = {
            let keys = self.key.read(&fresh)?;
            let places: Vec<Place> = keys
                .iter()
                .filter_map(|key| self.places.get(key.as_ref()).copied())
                .collect();
            self.at(&places)?
        };
        let whole = match before {
            Some(before) => self.merge.run(vec![before, fresh]).await?,
            None => fresh,
        };
        Ok(self.hold(&whole)?)
    }

    /// The cells that were touched since the last time, whole.
    ///
    /// # Errors
    /// Arrow's, where batches don't fit each other: a mistake of ours.
    pub fn touched(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let touched = std::mem::take(&mut self.touched);
        let mut places: Vec<Place> = touched.iter().filter_map(|key| self.places.get(key).copied()).collect();
        places.sort_unstable();
        self.at(&places)
    }

    /// Lets go of the cells of these starts.
    ///
    /// # Errors
    /// Arrow's, where batches don't fit each other: a mistake of ours.
    pub fn drop_starts(&mut self, gone: &BTreeSet<(u32, Start)>) -> Result<(), ArrowError> {
        if gone.is_empty() || self.places.is_empty() {
            return Ok(());
        }
        let held = &self.held;
        let is_gone = |(batch, row): Place| {
            let batch = &held[batch];
            let partition = batch
                .column_by_name(PARTITION_COLUMN)
                .map(|column| column.as_primitive::<Int32Type>().value(row));
            let start = batch
                .column_by_name(START_COLUMN)
                .map(|column| column.as_primitive::<UInt64Type>().value(row));
            match (partition.and_then(|number| u32::try_from(number).ok()), start) {
                (Some(partition), Some(start)) => gone.contains(&(partition, Start(Offset(start)))),
                _ => false,
            }
        };
        self.places.retain(|_, place| !is_gone(*place));
        self.touched.retain(|key| self.places.contains_key(key));
        self.join()
    }

    /// The cells at these places as one batch.
    fn at(&self, places: &[Place]) -> Result<Option<RecordBatch>, ArrowError> {
        if places.is_empty() {
            return Ok(None);
        }
        let batches: Vec<_> = self.held.iter().collect();
        interleave_record_batch(&batches, places).map(Some)
    }

    fn hold(&mut self, whole: &RecordBatch) -> Result<(), ArrowError> {
        let batch = self.held.len();
        let keys = self.key.read(whole)?;
        for (row, key) in keys.iter().enumerate() {
            match self.places.get_mut(key.as_ref()) {
                Some(place) => *place = (batch, row),
                None => {
                    self.places.insert(key.as_ref().into(), (batch, row));
                }
            }
            self.touched.insert(key.as_ref().into());
        }
        self.held.push(whole.clone());
        let rows: usize = self.held.iter().map(RecordBatch::num_rows).sum();
        if self.held.len() > MOST_BATCHES || rows > 2 * self.places.len() + 1024 {
            self.join()?;
        }
        Ok(())
    }

    /// Makes one batch of what is held, without the rows that were replaced.
    fn join(&mut self) -> Result<(), ArrowError> {
        let mut places: Vec<&mut Place> = self.places.values_mut().collect();
        places.sort_unstable();
        let from: Vec<Place> = places.iter().map(|place| **place).collect();
        for (row, place) in places.into_iter().enumerate() {
            *place = (0, row);
        }
        let batches: Vec<_> = self.held.iter().collect();
        self.held = if from.is_empty() {
            Vec::new()
        } else {
            vec![interleave_record_batch(&batches, &from)?]
        };
        Ok(())
    }
}

impl KeyReader {
    fn read(&self, cells: &RecordBatch) -> Result<Rows, ArrowError> {
        let columns: Vec<_> = cells.columns()[..self.columns].iter().map(Arc::clone).collect();
        self.converter.convert_columns(&columns)
    }
}
