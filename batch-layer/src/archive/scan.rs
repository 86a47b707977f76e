//! Archived events as a DataFusion table.
//!
//! Delta's own table provider is not used. Readers need the exact columns of a view's plan, whatever a file of another
//! time holds; and an error must name the file it comes from, which a decoder deep inside a generic scan can't do.
//! Projection is pushed down to the files. Filters are not: the caller has chosen the days already.
//!
//! What readers get is masked by the rules of now. A file may be older than a rule, and a view whose definition masks a
//! field must not carry its values on.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, RecordBatchOptions, StringArray, new_null_array};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use shared_schemas::dataset::{Dataset, PARTITION_COLUMN};
use shared_schemas::decode::{EnvironmentKeys, StoredMasks};

use super::columns::TOPIC_COLUMN;
use super::error::ArchiveError;
use super::pinned::{File, damaged};
use super::standing::topic_text;

/// `bytes::Bytes`, as the object store and Parquet exchange them.
type Bytes = <PutPayload as IntoIterator>::Item;

/// So much of a file's end is read at first; the footer of a file of usual width fits.
const FOOTER: usize = 32 * 1024;

/// Files of the archive as a table.
#[derive(Debug)]
pub(super) struct Events {
    files: Vec<File>,
    dataset: Arc<Dataset>,
    schema: SchemaRef,
    store: Arc<dyn ObjectStore>,
    place: String,
}

impl Events {
    pub(super) fn new(
        files: Vec<File>,
        dataset: Arc<Dataset>,
        schema: SchemaRef,
        store: Arc<dyn ObjectStore>,
        place: String,
    ) -> Self {
        Self {
            files,
            dataset,
            schema,
            store,
            place,
        }
    }

    fn plan(&self, partitions: usize, projection: Option<&Vec<usize>>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let masks = StoredMasks::new(&self.dataset, &EnvironmentKeys)
            .map_err(|error| DataFusionError::External(Box::new(ArchiveError::Masks(error))))?;
        let mut groups: Vec<(u64, Vec<File>)> = vec![(0, Vec::new()); partitions.clamp(1, self.files.len().max(1))];
        for file in &self.files {
            // Each file goes where there is least so far.
            if let Some((size, files)) = groups.iter_mut().min_by_key(|(size, _)| *size) {
                *size += file.size;
                files.push(file.clone());
            }
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(groups.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(Scan {
            groups: groups.into_iter().map(|(_, files)| files).collect(),
            masks: Arc::new(masks),
            schema,
            store: Arc::clone(&self.store),
            place: self.place.clone(),
            properties: Arc::new(properties.with_scheduling_type(SchedulingType::NonCooperative)),
        }))
    }
}

impl TableProvider for Events {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    // An async fn of the trait, as `async_trait` writes it.
    fn scan<'life0, 'life1, 'life2, 'life3, 'async_trait>(
        &'life0 self,
        state: &'life1 dyn Session,
        projection: Option<&'life2 Vec<usize>>,
        _filters: &'life3 [Expr],
        _limit: Option<usize>,
    ) -> BoxFuture<'async_trait, Result<Arc<dyn ExecutionPlan>>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        'life3: 'async_trait,
        Self: 'async_trait,
    {
        let plan = self.plan(state.config().target_partitions(), projection);
        futures::future::ready(plan).boxed()
    }
}

/// Reads groups of files, each one after the other.
#[derive(Debug)]
struct Scan {
    groups: Vec<Vec<File>>,
    masks: Arc<StoredMasks>,
    schema: SchemaRef,
    store: Arc<dyn ObjectStore>,
    place: String,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Scan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: usize = self.groups.iter().map(Vec::len).sum();
        write!(f, "ArchiveScan: files={files}, groups={}", self.groups.len())
    }
}

impl ExecutionPlan for Scan {
    fn name(&self) -> &'static str {
        "ArchiveScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(files) = self.groups.get(partition).cloned() else {
            return internal_err!("the archive's scan has no group {partition}");
        };
        let (store, place, schema) = (Arc::clone(&self.store), self.place.clone(), Arc::clone(&self.schema));
        let masks = Arc::clone(&self.masks);
        let rows = context.session_config().batch_size();
        let batches = futures::stream::iter(files)
            .then(move |file| {
                let (schema, masks) = (Arc::clone(&schema), Arc::clone(&masks));
                read(Arc::clone(&store), place.clone(), file, schema, masks, rows)
            })
            .try_flatten()
            .map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        )))
    }
}

/// A file's rows as readers get them.
async fn read(
    store: Arc<dyn ObjectStore>,
    place: String,
    file: File,
    schema: SchemaRef,
    masks: Arc<StoredMasks>,
    rows: usize,
) -> Result<BoxStream<'static, Result<RecordBatch, ArchiveError>>, ArchiveError> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let (held, batches) = open(&store, &place, &file, &names, rows).await?;
    for wanted in schema.fields().iter().filter(|field| !is_place(field.name())) {
        let what = match held.field_with_name(wanted.name()) {
            Ok(field) if field.data_type() != wanted.data_type() => {
                format!(
                    "its column {} is {}, declared is {}",
                    wanted.name(),
                    field.data_type(),
                    wanted.data_type()
                )
            }
            Err(_) if !wanted.is_nullable() => {
                format!(
                    "it is older than field {}, which is declared never null: declare it with `?`",
                    wanted.name()
                )
            }
            _ => continue,
        };
        return Err(damaged(&place, &file.path, what));
    }
    let batches = batches.map(move |batch| {
        let shaped = shape(&batch?, &file, &schema, &masks);
        shaped.map_err(|error| damaged(&place, &file.path, error))
    });
    Ok(batches.boxed())
}

fn is_place(column: &str) -> bool {
    column == TOPIC_COLUMN || column == PARTITION_COLUMN
}

/// The columns of the file, masked, those that its place tells, and nulls for what it lacks.
fn shape(
    batch: &RecordBatch,
    file: &File,
    schema: &SchemaRef,
    masks: &StoredMasks,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let rows = batch.num_rows();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        let partition = file.range.partition;
        match field.name().as_str() {
            TOPIC_COLUMN => {
                let texts = std::iter::repeat_n(topic_text(partition.topic), rows);
                Arc::new(StringArray::from_iter_values(texts))
            }
            PARTITION_COLUMN => {
                let number = i32::try_from(partition.number).unwrap_or(i32::MAX);
                Arc::new(Int32Array::from_iter_values(std::iter::repeat_n(number, rows)))
            }
            name => match batch.column_by_name(name) {
                Some(column) => masks.apply(name, column),
                None => new_null_array(field.data_type(), rows),
            },
        }
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect(), &options)
}

/// Opens a file: all of its columns, and a stream of those of these names that it has. Every error names the file.
///
/// A file that holds another number of rows than the log says is damaged.
pub(super) async fn open(
    store: &Arc<dyn ObjectStore>,
    place: &str,
    file: &File,
    columns: &[&str],
    rows: usize,
) -> Result<(SchemaRef, BoxStream<'static, Result<RecordBatch, ArchiveError>>), ArchiveError> {
    let reader = Reader {
        store: Arc::clone(store),
        path: file.path.clone(),
        size: file.size,
    };
    let wrong = |error: ParquetError| damaged(place, &file.path, error);
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(wrong)?;
    let held = u64::try_from(builder.metadata().file_metadata().num_rows());
    if held != Ok(file.rows) {
        let what = format!("it holds {held:?} rows, its log entry says {}", file.rows);
        return Err(damaged(place, &file.path, what));
    }
    let schema = Arc::clone(builder.schema());
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let stream = builder
        .with_projection(mask)
        .with_batch_size(rows)
        .build()
        .map_err(wrong)?;
    let (place, path) = (place.to_owned(), file.path.clone());
    let stream = stream.map_err(move |error| damaged(&place, &path, error));
    Ok((schema, stream.boxed()))
}

/// A file as Parquet reads it.
struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        self.store
            .get_range(&self.path, range)
            .map_err(ParquetError::from)
            .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { Ok(self.store.get_ranges(&self.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.size;
        async move {
            let reader = ParquetMetaDataReader::new()
                .with_metadata_options(options.map(|options| options.metadata_options().clone()))
                .with_prefetch_hint(Some(FOOTER));
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}
