//! The open cells of a view, whole.
//!
//! A flush writes each touched cell as it is in total, not the difference. So all cells of the kept starts are held here,
//! by key; new cells are merged in by the same plan that the batch layer could merge them with. Only touched cells are
//! looked up, merged and returned: a flush costs what came, not what is open.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Int32Type, SchemaRef, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::DataFusionError;
use hashbrown::HashTable;
use shared_schemas::dataset::PARTITION_COLUMN;
use shared_schemas::handoff::{Offset, Start};
use shared_schemas::plan::{CellKey, FAILED_COLUMN, MergePlan, START_COLUMN};
use shared_schemas::view::View;
use xxhash_rust::xxh3::xxh3_64;

/// Batches are joined to one when there are more than these, or when most of their rows are replaced ones.
const MOST_BATCHES: usize = 64;

/// Where a cell is held: which batch, which row.
type Place = (usize, usize);

/// The cells of all kept starts of a view, on all partitions.
#[derive(Debug)]
pub struct OpenCells {
    merge: MergePlan,
    key: KeyReader,
    /// Found by a hash of the key.
    cells: HashTable<Cell>,
    /// The bytes of their keys.
    key_bytes: usize,
    held: Vec<RecordBatch>,
    /// Their bytes: asked for with each slice that is read, and slow to add up.
    held_bytes: usize,
    /// Which columns hold the partition and the start.
    partition: usize,
    start: usize,
}

#[derive(Debug)]
struct Cell {
    key: Box<[u8]>,
    place: Place,
    /// Since somebody asked for those that were.
    touched: bool,
}

impl Cell {
    fn hash(&self) -> u64 {
        xxh3_64(&self.key)
    }
}

/// Reads the columns that tell cells apart, the first ones of a batch of cells.
#[derive(Debug)]
struct KeyReader {
    converter: RowConverter,
    columns: usize,
}

impl OpenCells {
    /// None yet.
    ///
    /// # Errors
    /// DataFusion's, where it cannot plan the merge.
    pub fn new(view: &View) -> Result<Self, DataFusionError> {
        let merge = MergePlan::new(view, CellKey::Start)?;
        let schema = merge.schema();
        // The key comes first, then the count of failures and the states.
        let columns = schema.index_of(FAILED_COLUMN)?;
        let fields = schema.fields()[..columns]
            .iter()
            .map(|field| SortField::new(field.data_type().clone()))
            .collect();
        Ok(Self {
            key: KeyReader {
                converter: RowConverter::new(fields)?,
                columns,
            },
            cells: HashTable::new(),
            key_bytes: 0,
            held: Vec::new(),
            held_bytes: 0,
            partition: schema.index_of(PARTITION_COLUMN)?,
            start: schema.index_of(START_COLUMN)?,
            merge,
        })
    }

    /// The columns of the cells.
    pub fn schema(&self) -> &SchemaRef {
        self.merge.schema()
    }

    /// How many cells are open.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether no cell is open.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        self.held_bytes + self.cells.allocation_size() + self.key_bytes
    }

    /// Merges fresh cells in: they are touched.
    ///
    /// # Errors
    /// DataFusion's: memory, or cells of another schema.
    pub async fn fold(&mut self, mut fresh: Vec<RecordBatch>) -> Result<(), DataFusionError> {
        let mut places = Vec::new();
        for cells in &fresh {
            let keys = self.key.read(cells)?;
            places.extend(keys.iter().filter_map(|key| {
                let key = key.as_ref();
                let cell = self.cells.find(xxh3_64(key), |cell| *cell.key == *key);
                cell.map(|cell| cell.place)
            }));
        }
        fresh.extend(self.at(&places)?);
        let whole = match fresh.as_slice() {
            [] => return Ok(()),
            [only] => only.clone(),
            _ => self.merge.run(fresh).await?,
        };
        Ok(self.hold(&whole)?)
    }

    /// The cells that were touched since the last time, whole.
    ///
    /// # Errors
    /// Arrow's, where batches don't fit each other: a mistake of ours.
    pub fn touched(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let touched = self.cells.iter_mut().filter_map(|cell| {
            let touched = std::mem::take(&mut cell.touched);
            touched.then_some(cell.place)
        });
        let mut places: Vec<Place> = touched.collect();
        places.sort_unstable();
        self.at(&places)
    }

    /// Lets go of the cells of these starts.
    ///
    /// # Errors
    /// Arrow's, where batches don't fit each other: a mistake of ours.
    pub fn drop_starts(&mut self, gone: &BTreeSet<(u32, Start)>) -> Result<(), ArrowError> {
        if gone.is_empty() || self.cells.is_empty() {
            return Ok(());
        }
        let of_batch = |batch: &RecordBatch| {
            let partitions = batch.column(self.partition).as_primitive::<Int32Type>().clone();
            let starts = batch.column(self.start).as_primitive::<UInt64Type>().clone();
            (partitions, starts)
        };
        let held: Vec<_> = self.held.iter().map(of_batch).collect();
        self.cells.retain(|cell| {
            let (batch, row) = cell.place;
            let (partitions, starts) = &held[batch];
            let start = Start(Offset(starts.value(row)));
            let partition = u32::try_from(partitions.value(row));
            let stays = !partition.is_ok_and(|partition| gone.contains(&(partition, start)));
            if !stays {
                self.key_bytes -= cell.key.len();
            }
            stays
        });
        // A table keeps the room that it once had; what is let go of is to be free.
        if self.cells.len() < self.cells.capacity() / 4 {
            self.cells.shrink_to(2 * self.cells.len(), Cell::hash);
        }
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
            let (key, place) = (key.as_ref(), (batch, row));
            let hash = xxh3_64(key);
            match self.cells.find_mut(hash, |cell| *cell.key == *key) {
                Some(cell) => (cell.place, cell.touched) = (place, true),
                None => {
                    self.key_bytes += key.len();
                    let cell = Cell {
                        key: key.into(),
                        place,
                        touched: true,
                    };
                    self.cells.insert_unique(hash, cell, Cell::hash);
                }
            }
        }
        self.held.push(whole.clone());
        self.held_bytes += whole.get_array_memory_size();
        let rows: usize = self.held.iter().map(RecordBatch::num_rows).sum();
        if self.held.len() > MOST_BATCHES || rows > 2 * self.cells.len() + 1024 {
            self.join()?;
        }
        Ok(())
    }

    /// Makes one batch of what is held, without the rows that were replaced.
    fn join(&mut self) -> Result<(), ArrowError> {
        let mut places: Vec<&mut Place> = self.cells.iter_mut().map(|cell| &mut cell.place).collect();
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
        self.held_bytes = self.held.iter().map(RecordBatch::get_array_memory_size).sum();
        Ok(())
    }
}

impl KeyReader {
    fn read(&self, cells: &RecordBatch) -> Result<Rows, ArrowError> {
        let columns: Vec<_> = cells.columns()[..self.columns].iter().map(Arc::clone).collect();
        self.converter.convert_columns(&columns)
    }
}
