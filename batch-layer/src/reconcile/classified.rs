//! Tells each archived event's class, by the batch run's own code for repeats, and puts it beside the events as they are read.
//!
//! | what is found | among | by |
//! |---|---|---|
//! | what the batch layer drops | offsets below the marks | its rule |
//! | what the speed layer drops | all offsets | its rule |
//! | copies of which the same partition held one before | all offsets | the speed layer's rule, without a window |
//! | what is counted again | what neither drops; and after all that is counted, what lies in gaps | the batch layer's rule |
//!
//! Only ids and offsets are read for that, four times, and only offsets are kept of it. So whoever asks for classes, of all events of some days or of one
//! window's, reads events once and sorts none.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{BooleanArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::provider_as_source;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableType, ident};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{StreamExt, TryStreamExt};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition};

use super::classes::{Class, Places};
use crate::recompute::Room;
use crate::recompute::counted::Counted;
use crate::recompute::feed::{Among, identifying, origin, see};
use crate::repeats::{Repeats, Rule, Sightings, Within};

/// The column that the class is in.
pub(super) const CLASS: &str = "_class";

/// The part of the memory, in eighths, in which repeats are looked for.
const FOR_REPEATS: usize = 6;

/// What lies in a gap comes after all that is counted, whatever Kafka's times are, and keeps its order.
const AFTER_ALL: i64 = i64::MAX / 2;

/// Which class each event is of, by its partition and offset.
#[derive(Debug)]
pub(crate) struct Classified {
    pub(super) places: Places,
    counted: Arc<OfLayers>,
    /// Copies of which the same partition held one before.
    before: Repeats,
    /// What is counted again; of what lies in gaps, by further indices of partitions, what has a copy that counts, or an earlier one there.
    again: Repeats,
    _kept: MemoryReservation,
}

/// Whose offsets there are, and what each layer drops of its own. The indices of partitions are the same in all of them.
#[derive(Debug)]
struct OfLayers {
    batch: Counted,
    dropped: Repeats,
    speed: Counted,
    known: Repeats,
    gaps: Counted,
    partitions: usize,
}

impl Among for OfLayers {
    fn each(&self, batch: &RecordBatch, mut take: impl FnMut(usize, usize, u64, i64) -> Result<()>) -> Result<()> {
        let (mut dropped, mut known) = (Looked::new(&self.dropped), Looked::new(&self.known));
        self.batch
            .each(batch, |row, place, offset| match dropped.contains(place, offset) {
                true => Ok(()),
                false => take(row, place, offset, 0),
            })?;
        self.speed
            .each(batch, |row, place, offset| match known.contains(place, offset) {
                true => Ok(()),
                false => take(row, place, offset, 0),
            })?;
        self.gaps.each(batch, |row, place, offset| {
            take(row, self.partitions + place, offset, AFTER_ALL)
        })
    }
}

/// Looks up offsets of one partition after the other.
struct Looked<'a> {
    repeats: &'a Repeats,
    within: Option<(usize, Within<'a>)>,
}

impl<'a> Looked<'a> {
    fn new(repeats: &'a Repeats) -> Self {
        Self { repeats, within: None }
    }

    fn contains(&mut self, place: usize, offset: u64) -> bool {
        if self.within.as_ref().is_none_or(|(of, _)| *of != place) {
            self.within = Some((place, self.repeats.of(place, Some((0, i64::MAX)))));
        }
        self.within.as_mut().is_some_and(|(_, within)| within.contains(offset))
    }
}

/// Where the events are read.
struct Reader<'a> {
    room: &'a Room,
    events: &'a Arc<dyn TableProvider>,
    dataset: &'a Dataset,
    /// Which of them: of equal events all or none.
    only: Option<Expr>,
}

impl Reader<'_> {
    /// Which of these events are repeats.
    async fn look(&self, rule: Rule, among: Arc<impl Among>, places: Vec<Partition>) -> Result<Repeats> {
        if self.dataset.event_id.is_empty() {
            return Ok(Repeats::default());
        }
        let session = self.room.session();
        let mut ids = LogicalPlanBuilder::scan("events", provider_as_source(Arc::clone(self.events)), None)?;
        if let Some(only) = &self.only {
            ids = ids.filter(only.clone())?;
        }
        let ids = ids.project(identifying(self.dataset).into_iter().map(ident))?.build()?;
        let ids = session.execute_logical_plan(ids).await?.create_physical_plan().await?;
        let threads = ids.output_partitioning().partition_count();
        let memory = self.room.memory() / 8 * FOR_REPEATS;
        let sightings = Sightings::new(rule, places, threads, memory, self.room.spill());
        let sightings = see(&ids, &session.task_ctx(), self.dataset, &among, sightings, |_| ()).await?;
        sightings.judge(self.room.cores()).await
    }
}

impl Classified {
    /// Of the events of those days at these places. Where only some of them are read, these must be all or none of equal ones.
    pub(super) async fn find(
        room: &Room,
        events: &Arc<dyn TableProvider>,
        dataset: &Dataset,
        days: &BTreeSet<EventDay>,
        places: Places,
        only: Option<Expr>,
    ) -> Result<Self> {
        let all = places.all();
        let of = |some: &BTreeMap<Partition, OffsetSet>| {
            let of_partition = |partition: &Partition| some.get(partition).cloned().unwrap_or_default();
            let offsets = all.keys().map(|partition| (*partition, of_partition(partition)));
            Counted::new(days, &offsets.collect(), &BTreeSet::new())
        };
        let whole = OffsetSet::from_iter([OffsetRange {
            from: Offset(0),
            to: Offset(u64::MAX),
        }]);
        let whole: BTreeMap<_, _> = all.keys().map(|partition| (*partition, whole.clone())).collect();
        let everywhere = Arc::new(of(&whole));
        let partitions: Vec<_> = all.keys().copied().collect();
        let reader = Reader {
            room,
            events,
            dataset,
            only,
        };
        let window = i64::try_from(dataset.dedupe_window.as_micros()).unwrap_or(i64::MAX);
        let below = Arc::new(of(&places.batch));
        let dropped = reader
            .look(Rule::AllButOne, Arc::clone(&below), partitions.clone())
            .await?;
        let known = reader
            .look(Rule::Known(window), Arc::clone(&everywhere), partitions.clone())
            .await?;
        let before = reader
            .look(Rule::Known(i64::MAX), everywhere, partitions.clone())
            .await?;
        let counted = Arc::new(OfLayers {
            batch: of(&places.batch),
            dropped,
            speed: of(&places.speed),
            known,
            gaps: of(&places.gaps),
            partitions: partitions.len(),
        });
        let twice = [&partitions[..], &partitions[..]].concat();
        let again = reader.look(Rule::AllButOne, Arc::clone(&counted), twice).await?;
        let kept = MemoryConsumer::new("Repeats").register(&room.session().runtime_env().memory_pool);
        let all = [&counted.dropped, &counted.known, &before, &again];
        kept.try_grow(all.into_iter().map(Repeats::memory).sum())?;
        Ok(Self {
            places,
            counted,
            before,
            again,
            _kept: kept,
        })
    }

    /// How many repeats the speed layer's rule drops at these offsets.
    pub(super) fn known(&self, partition: Partition, range: OffsetRange) -> u64 {
        let place = self.places.all().keys().position(|of| *of == partition);
        place.map_or(0, |place| self.counted.known.within(place, range.from.0..range.to.0))
    }

    /// The class of each row; none of those at other places.
    fn classes(&self, batch: &RecordBatch) -> Result<Vec<Option<Class>>> {
        let of = &self.counted;
        let mut classes = vec![None; batch.num_rows()];
        let mut set = |row: usize, class| {
            if let Some(place) = classes.get_mut(row) {
                *place = Some(class);
            }
        };
        let (mut dropped, mut known) = (Looked::new(&of.dropped), Looked::new(&of.known));
        let (mut before, mut again) = (Looked::new(&self.before), Looked::new(&self.again));
        let mut counted = |place, offset| match again.contains(place, offset) {
            false => Class::Kept,
            true if before.contains(place, offset) => Class::Beyond,
            true => Class::Across,
        };
        of.batch.each(batch, |row, place, offset| {
            let is_dropped = dropped.contains(place, offset);
            set(
                row,
                if is_dropped {
                    Class::Dropped
                } else {
                    counted(place, offset)
                },
            );
            Ok(())
        })?;
        of.speed.each(batch, |row, place, offset| {
            let is_known = known.contains(place, offset);
            set(row, if is_known { Class::Known } else { counted(place, offset) });
            Ok(())
        })?;
        let mut again = Looked::new(&self.again);
        of.gaps.each(batch, |row, place, offset| {
            let has_copy = again.contains(of.partitions + place, offset);
            set(row, if has_copy { Class::Dropped } else { Class::Gap });
            Ok(())
        })?;
        Ok(classes)
    }

    /// Events with their class, as a table.
    pub(super) fn table(self: &Arc<Self>, events: Arc<dyn TableProvider>) -> Arc<dyn TableProvider> {
        let class = Arc::new(Field::new(CLASS, DataType::Int64, false));
        let fields = events
            .schema()
            .fields()
            .iter()
            .cloned()
            .chain([class])
            .collect::<Vec<_>>();
        Arc::new(Table {
            schema: Arc::new(Schema::new(fields)),
            events,
            classified: Arc::clone(self),
        })
    }
}

/// Events at these places, with their class as the last column.
#[derive(Debug)]
struct Table {
    events: Arc<dyn TableProvider>,
    schema: SchemaRef,
    classified: Arc<Classified>,
}

impl Table {
    async fn plan(&self, state: &dyn Session, projection: Option<&Vec<usize>>) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<_> = (0..self.schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all);
        // What says where an event stands is read in any case.
        let events = self.events.schema();
        let mut read: BTreeSet<usize> = wanted
            .iter()
            .copied()
            .filter(|at| *at < events.fields().len())
            .collect();
        for column in origin() {
            read.insert(events.index_of(&column)?);
        }
        let read: Vec<_> = read.into_iter().collect();
        let plan = self.events.scan(state, Some(&read), &[], None).await?;
        let schema: SchemaRef = Arc::new(self.schema.project(wanted)?);
        // Of what is read, with the class behind it.
        let columns = wanted.iter().map(|at| read.binary_search(at).unwrap_or(read.len()));
        let columns: Vec<_> = columns.collect();
        let lane = |partition| -> Arc<dyn PartitionStream> {
            Arc::new(Lane {
                plan: Arc::clone(&plan),
                partition,
                classified: Arc::clone(&self.classified),
                columns: columns.clone(),
                schema: Arc::clone(&schema),
            })
        };
        let lanes = (0..plan.output_partitioning().partition_count()).map(lane).collect();
        let plan = StreamingTableExec::try_new(Arc::clone(&schema), lanes, None, [], false, None)?;
        Ok(Arc::new(plan))
    }
}

#[async_trait]
impl TableProvider for Table {
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
        self.plan(state, projection).await
    }
}

/// A part of the events.
#[derive(Debug)]
struct Lane {
    plan: Arc<dyn ExecutionPlan>,
    partition: usize,
    classified: Arc<Classified>,
    /// Of the columns that are read, and the class behind them, those that are wanted.
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for Lane {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (classified, schema, wanted) = (
            Arc::clone(&self.classified),
            Arc::clone(&self.schema),
            self.columns.clone(),
        );
        let with_class = move |batch: RecordBatch| {
            let classes = classified.classes(&batch)?;
            let is_placed: BooleanArray = classes.iter().map(|class| Some(class.is_some())).collect();
            let class: Int64Array = classes
                .into_iter()
                .map(|class| class.map(|class| class as i64))
                .collect();
            let mut columns = batch.columns().to_vec();
            columns.push(Arc::new(class));
            let lacking = || DataFusionError::Internal("events without a column that was asked for".to_owned());
            let columns = wanted.iter().map(|at| columns.get(*at).cloned().ok_or_else(lacking));
            let columns: Vec<_> = columns.collect::<Result<_>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            // Rows at other places have no class, and go.
            let fields: Vec<_> = schema
                .fields()
                .iter()
                .map(|field| field.as_ref().clone().with_nullable(true))
                .collect();
            let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
            let batch = filter_record_batch(&batch, &is_placed)?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            Ok(RecordBatch::try_new_with_options(
                Arc::clone(&schema),
                batch.columns().to_vec(),
                &options,
            )?)
        };
        let batches = self.plan.execute(self.partition, context);
        let batches = futures::stream::once(std::future::ready(batches)).try_flatten();
        let batches = batches.map(move |batch| with_class(batch?));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}
