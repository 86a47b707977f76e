//! Archived events as a DataFusion table.
//!
//! Delta's own table provider is not used. Readers need the exact columns of a view's plan, whatever a file of another
//! time holds; and an error must name the file it comes from, which a decoder deep inside a generic scan can't do.
//! Projection is pushed down to the files. Filters are not: the caller has chosen the days already. A large file is read by several
//! readers, each some of its groups of rows.
//!
//! What readers get is masked by the rules of now. A file may be older than a rule, and a view whose definition masks a
//! field must not carry its values on.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, DictionaryArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
    new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
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
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::SchemaDescriptor;
use shared_schemas::dataset::{Dataset, EXTRA_COLUMN, PARTITION_COLUMN};
use shared_schemas::decode::{EnvironmentKeys, StoredMasks};

use super::columns::{DATE_COLUMN, TOPIC_COLUMN};
use super::error::ArchiveError;
use super::later;
use super::pinned::{Away, File, Pinned, damaged, unread};
use super::readers::Reading;
use super::shares::{Share, shares};
use super::standing::topic_text;
use super::sums::{ROW_GROUP, Sums};

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
    reading: Arc<Reading>,
    /// A file is not cut into pieces of fewer bytes.
    least_piece: u64,
}

impl Events {
    /// These files of a version.
    pub(super) fn new(files: Vec<File>, schema: SchemaRef, of: &Pinned) -> Self {
        Self {
            files,
            dataset: Arc::clone(&of.dataset),
            schema,
            store: Arc::clone(&of.store),
            place: of.place.clone(),
            reading: Arc::clone(&of.reading),
            least_piece: ROW_GROUP as u64,
        }
    }

    pub(super) fn plan(&self, partitions: usize, projection: Option<&Vec<usize>>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let masks = StoredMasks::new(&self.dataset, &EnvironmentKeys)
            .map_err(|error| DataFusionError::External(Box::new(ArchiveError::Masks(error))))?;
        let shares = shares(&self.files, partitions, self.least_piece);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(shares.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(Scan {
            shares,
            dataset: Arc::clone(&self.dataset),
            masks: Arc::new(masks),
            schema,
            store: Arc::clone(&self.store),
            place: self.place.clone(),
            reading: Arc::clone(&self.reading),
            properties: Arc::new(properties.with_scheduling_type(SchedulingType::NonCooperative)),
        }))
    }
}

#[async_trait]
impl TableProvider for Events {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.plan(state.config().target_partitions(), projection)
    }
}

/// Reads files and pieces of them: those of a share one after the other.
#[derive(Debug)]
struct Scan {
    shares: Vec<Vec<Share>>,
    dataset: Arc<Dataset>,
    masks: Arc<StoredMasks>,
    schema: SchemaRef,
    store: Arc<dyn ObjectStore>,
    place: String,
    reading: Arc<Reading>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Scan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.shares.iter().flatten();
        let files: BTreeSet<_> = all.clone().map(|share| &share.file.path).collect();
        let pieces = all.filter(|share| share.piece.is_some()).count();
        write!(
            f,
            "ArchiveScan: files={}, pieces={pieces}, groups={}",
            files.len(),
            self.shares.len()
        )
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
        let Some(share) = self.shares.get(partition).cloned() else {
            return internal_err!("the archive's scan has no group {partition}");
        };
        let (store, place, schema) = (Arc::clone(&self.store), self.place.clone(), Arc::clone(&self.schema));
        let (masks, dataset) = (Arc::clone(&self.masks), Arc::clone(&self.dataset));
        let reading = Arc::clone(&self.reading);
        let rows = context.session_config().batch_size();
        let batches = futures::stream::iter(share)
            .then(move |share| {
                let (schema, masks) = (Arc::clone(&schema), Arc::clone(&masks));
                let dataset = Arc::clone(&dataset);
                read(Arc::clone(&store), place.clone(), share, schema, dataset, masks, rows)
            })
            .try_flatten()
            .or_else(move |error| {
                let reading = Arc::clone(&reading);
                async move { Err(reading.told(error).await) }
            })
            .map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        )))
    }
}

/// The rows of a file, or of a piece of it, as readers get them.
async fn read(
    store: Arc<dyn ObjectStore>,
    place: String,
    share: Share,
    schema: SchemaRef,
    dataset: Arc<Dataset>,
    masks: Arc<StoredMasks>,
    rows: usize,
) -> Result<BoxStream<'static, Result<RecordBatch, ArchiveError>>, ArchiveError> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mask = |held: &SchemaDescriptor| {
        let has = |name: &str| held.columns().iter().any(|column| column.name() == name);
        let lacks = names.iter().any(|name| !is_place(name) && !has(name));
        let later = lacks.then_some(EXTRA_COLUMN);
        ProjectionMask::columns(held, names.iter().copied().chain(later))
    };
    let views = names.iter().copied().filter(|name| {
        let field = schema.field_with_name(name);
        field.is_ok_and(|field| *field.data_type() == DataType::Utf8View)
    });
    let views: BTreeSet<_> = views.collect();
    let (held, batches) = open_with(&store, &place, &share, mask, &views, rows).await?;
    let file = share.file;
    for wanted in schema.fields().iter().filter(|field| !is_place(field.name())) {
        if let Ok(field) = held.field_with_name(wanted.name())
            && field.data_type() != wanted.data_type()
        {
            return Err(ArchiveError::FieldChanged {
                field: wanted.name().clone(),
                archived: field.data_type().to_string(),
                declared: wanted.data_type().to_string(),
            });
        }
    }
    let batches = batches.map(move |batch| {
        let columns = shape(&batch?, &file, &schema, &dataset, &masks);
        let (columns, options) = columns.map_err(|error| damaged(&place, &file.path, error))?;
        if let Some(field) = never_null(&schema, &columns) {
            let path = format!("{place}/{}", file.path);
            return Err(ArchiveError::NeverNull { field, path });
        }
        let shaped = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options);
        shaped.map_err(|error| damaged(&place, &file.path, error))
    });
    Ok(batches.boxed())
}

fn is_place(column: &str) -> bool {
    column == TOPIC_COLUMN || column == PARTITION_COLUMN || column == DATE_COLUMN
}

/// The columns of the file, masked, those that its place tells, and for what it lacks what its undeclared data says.
fn shape(
    batch: &RecordBatch,
    file: &File,
    schema: &SchemaRef,
    dataset: &Dataset,
    masks: &StoredMasks,
) -> Result<(Vec<ArrayRef>, RecordBatchOptions), ArrowError> {
    let rows = batch.num_rows();
    let columns = schema.fields().iter().map(|field| -> Result<ArrayRef, ArrowError> {
        let partition = file.range.partition;
        Ok(match field.name().as_str() {
            TOPIC_COLUMN => {
                let topic = Arc::new(StringArray::from(vec![topic_text(partition.topic)]));
                let column = DictionaryArray::<Int32Type>::try_new(Int32Array::from_value(0, rows), topic)?;
                cast(&column, field.data_type())?
            }
            PARTITION_COLUMN => {
                let number = i32::try_from(partition.number).unwrap_or(i32::MAX);
                Arc::new(Int32Array::from_value(number, rows))
            }
            DATE_COLUMN => Arc::new(Date32Array::from_value(file.range.day.0, rows)),
            name => match batch.column_by_name(name) {
                Some(column) => masks.apply(name, column),
                None => masks.apply(name, &declared_later(batch, dataset, field)?),
            },
        })
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok((columns.collect::<Result<_, _>>()?, options))
}

/// The field that is declared never null and has no value in some row: the definition is at fault, not the file.
fn never_null(schema: &SchemaRef, columns: &[ArrayRef]) -> Option<String> {
    let mut fields = schema.fields().iter().zip(columns);
    let (field, _) = fields.find(|(field, column)| !field.is_nullable() && column.null_count() > 0)?;
    Some(field.name().clone())
}

/// A column that the file lacks.
fn declared_later(batch: &RecordBatch, dataset: &Dataset, wanted: &Field) -> Result<ArrayRef, ArrowError> {
    let extra = batch.column_by_name(EXTRA_COLUMN);
    let extra = extra.and_then(|extra| extra.as_string_opt::<i32>());
    match dataset.field(wanted.name()).zip(extra) {
        Some((field, extra)) => cast(&later::column(dataset, field, extra)?, wanted.data_type()),
        None => Ok(new_null_array(wanted.data_type(), batch.num_rows())),
    }
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
    let named = |schema: &SchemaDescriptor| ProjectionMask::columns(schema, columns.iter().copied());
    open_with(store, place, &whole(file), named, &BTreeSet::new(), rows).await
}

fn whole(file: &File) -> Share {
    Share {
        file: file.clone(),
        piece: None,
    }
}

/// `views`: texts that are read without being copied.
async fn open_with(
    store: &Arc<dyn ObjectStore>,
    place: &str,
    share: &Share,
    mask: impl Fn(&SchemaDescriptor) -> ProjectionMask + Send,
    views: &BTreeSet<&str>,
    rows: usize,
) -> Result<(SchemaRef, BoxStream<'static, Result<RecordBatch, ArchiveError>>), ArchiveError> {
    let file = &share.file;
    let mut reader = Reader {
        store: Arc::clone(store),
        path: file.path.clone(),
        size: file.size,
        sums: Arc::default(),
    };
    let wrong = |error: ParquetError| unread(place, &file.path, error);
    // A footer that makes no sense makes decoders panic, too.
    let opened =
        AssertUnwindSafe(ArrowReaderMetadata::load_async(&mut reader, ArrowReaderOptions::new())).catch_unwind();
    let mut footer = match opened.await {
        Ok(opened) => opened.map_err(wrong)?,
        Err(_) => return Err(damaged(place, &file.path, "its footer makes no sense")),
    };
    if !views.is_empty() {
        let schema = Arc::new(with_views(footer.schema(), views));
        let options = ArrowReaderOptions::new().with_schema(schema);
        footer = ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options).map_err(wrong)?;
    }
    let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer);
    let held = u64::try_from(builder.metadata().file_metadata().num_rows());
    if held != Ok(file.rows) {
        let what = format!("it holds {held:?} rows, its log entry says {}", file.rows);
        return Err(damaged(place, &file.path, what));
    }
    let schema = Arc::clone(builder.schema());
    let mask = mask(builder.parquet_schema());
    let groups = share.groups(builder.metadata());
    let builder = match groups {
        Some(groups) => builder.with_row_groups(groups),
        None => builder,
    };
    let stream = builder
        .with_projection(mask)
        .with_batch_size(rows)
        .build()
        .map_err(wrong)?;
    let (place, path) = (place.to_owned(), file.path.clone());
    let stream = stream.map_err(move |error| unread(&place, &path, error));
    Ok((schema, stream.boxed()))
}

fn with_views(held: &Schema, views: &BTreeSet<&str>) -> Schema {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 if views.contains(field.name().as_str()) => {
            Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View))
        }
        _ => Arc::clone(field),
    };
    let fields: Vec<_> = held.fields().iter().map(field).collect();
    Schema::new_with_metadata(fields, held.metadata().clone())
}

/// As [`open`], with all columns that the file has.
pub(super) async fn open_whole(
    store: &Arc<dyn ObjectStore>,
    place: &str,
    file: &File,
    rows: usize,
) -> Result<(SchemaRef, BoxStream<'static, Result<RecordBatch, ArchiveError>>), ArchiveError> {
    open_with(
        store,
        place,
        &whole(file),
        |_| ProjectionMask::all(),
        &BTreeSet::new(),
        rows,
    )
    .await
}

/// A file as Parquet reads it.
struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    /// Of its chunks, once the footer is read.
    sums: Arc<OnceLock<Arc<Sums>>>,
}

impl Reader {
    /// What is read before the footer is the footer, and what has no checksums is taken as it is.
    fn check(&self, range: &Range<u64>, bytes: &Bytes) -> Result<(), ParquetError> {
        self.sums.get().map_or(Ok(()), |sums| sums.check(range, bytes))
    }
}

impl Reader {
    /// What the store's error means: a file that is gone or of another size is damaged, any other one may be read later.
    async fn failed(&self, error: object_store::Error) -> ParquetError {
        let gone = |error: &object_store::Error| matches!(error, object_store::Error::NotFound { .. });
        let is_damaged = gone(&error)
            || match self.store.head(&self.path).await {
                Ok(there) => there.size != self.size,
                Err(error) => gone(&error),
            };
        if is_damaged {
            error.into()
        } else {
            ParquetError::External(Box::new(Away(error)))
        }
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            match self.store.get_range(&self.path, range.clone()).await {
                Ok(bytes) => self.check(&range, &bytes).map(|()| bytes),
                Err(error) => Err(self.failed(error).await),
            }
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let all = match self.store.get_ranges(&self.path, &ranges).await {
                Ok(all) => all,
                Err(error) => return Err(self.failed(error).await),
            };
            for (range, bytes) in ranges.iter().zip(&all) {
                self.check(range, bytes)?;
            }
            Ok(all)
        }
        .boxed()
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
            let metadata = reader.load_and_finish(&mut *self, size).await?;
            if let Some(sums) = Sums::of(&metadata)? {
                // Set once: each file has a reader of its own.
                let _ = self.sums.set(sums);
            }
            Ok(Arc::new(metadata))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Int64Type;
    use datafusion::prelude::SessionContext;
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
    use parquet::file::properties::WriterProperties;

    use super::super::tests::{Site, commit, flights, partition, range};
    use super::*;

    /// A file of many groups of rows, read by so many readers: each row once.
    #[tokio::test]
    async fn a_file_is_read_by_many() {
        let (site, dataset) = (Site::new(), flights());
        let mut archive = site.archive(&dataset).await;
        let all = commit(&dataset, partition(0), range(0, 3000));
        archive.commit(&all).await.unwrap();
        let pinned = archive.pin().await.unwrap();
        let path = site.table().join(pinned.files[0].path.as_ref());

        // The same rows in groups of a hundred.
        let rows = ParquetRecordBatchReader::try_new(Bytes::from(std::fs::read(&path).unwrap()), 1000).unwrap();
        let rows: Vec<_> = rows.map(|batch| batch.unwrap()).collect();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(100))
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows[0].schema(), Some(properties)).unwrap();
        rows.iter().for_each(|batch| writer.write(batch).unwrap());
        let bytes = writer.into_inner().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let file = File {
            size: bytes.len() as u64,
            ..pinned.files[0].clone()
        };

        let events = Events {
            least_piece: 1,
            ..Events::new(vec![file], Arc::clone(&pinned.schema), &pinned)
        };
        for readers in [1, 2, 3, 7, 100, 10_000] {
            let plan = events.plan(readers, None).unwrap();
            let (mut offsets, mut busy) = (Vec::new(), 0);
            for reader in 0..plan.properties().output_partitioning().partition_count() {
                let batches = plan.execute(reader, SessionContext::new().task_ctx()).unwrap();
                let batches: Vec<_> = batches.try_collect().await.unwrap();
                let before = offsets.len();
                for batch in &batches {
                    let column = batch.column_by_name("_offset").unwrap();
                    offsets.extend_from_slice(column.as_primitive::<Int64Type>().values());
                }
                busy += usize::from(offsets.len() > before);
            }
            offsets.sort_unstable();
            let expected: Vec<i64> = (0..3000).step_by(3).collect();
            assert_eq!(offsets, expected, "by {readers}");
            // Behind the last group there is the footer.
            assert!(
                busy >= readers.min(10).div_ceil(2),
                "{busy} of {readers} readers had work"
            );
        }
    }
}
