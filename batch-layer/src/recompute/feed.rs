//! One reading of the events of some days feeds the plans of all views.
//!
//! ```text
//!   events ─▶ ids ─▶ which offsets are repeats          (only where the dataset has an event id)
//!   events ─▶ the columns that any view needs, counted rows, no repeats ──2 batches──▶ plan of each view ─▶ its cells
//! ```
//!
//! All plans take from one memory. They must be drained side by side: a plan that nobody asks for cells stops the reading
//! for all once its channels are full. One that is dropped is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err, internal_err};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use futures::stream::{BoxStream, StreamExt};
use shared_schemas::dataset::{Dataset, EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition};
use shared_schemas::identity::Identities;
use shared_schemas::plan::CellPlan;
use shared_schemas::store::tables::TOPIC_COLUMN;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::counted::Counted;
use super::room::{Room, settled};
use crate::repeats::{Hand, Repeats, Rule, Sightings};

/// Batches that wait for a plan, in each of its lanes: one to work on and one to come.
const AHEAD: usize = 2;
/// The part of the memory, in eighths, in which repeats are looked for. Plans do not run yet; what is read needs some besides.
const FOR_REPEATS: usize = 6;
const EVENTS: &str = "events";

/// What a reading comes to, while it goes on and in the end.
#[derive(Debug, Default)]
pub(crate) struct Told {
    looked_at: AtomicU64,
    read: AtomicU64,
    /// Of what was read, by partition, what lies from each of the given offsets on.
    since: Mutex<BTreeMap<(Partition, Offset), u64>>,
    /// How many cells were taken, by those who take them.
    pub(crate) cells: AtomicU64,
    repeats: AtomicU64,
    repeats_of: Mutex<BTreeMap<EventDay, u64>>,
    spilled: AtomicU64,
    files: AtomicU64,
    looked: Mutex<Duration>,
    plans: Mutex<Vec<Arc<dyn ExecutionPlan>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Told {
    /// Events whose ids were looked at so far.
    pub(crate) fn looked_at(&self) -> u64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    /// Events at offsets that count so far, repeats too.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// How many of them are repeats.
    pub(crate) fn repeats(&self) -> u64 {
        self.repeats.load(Ordering::Relaxed)
    }

    /// The same by the day that they are of. Whole when the cells are drained.
    pub(crate) fn repeats_of(&self) -> BTreeMap<EventDay, u64> {
        lock(&self.repeats_of).clone()
    }

    /// How long it took to find them.
    pub(crate) fn looked(&self) -> Duration {
        *lock(&self.looked)
    }

    /// How many of the events that count lie at or above that offset of the partition, one of those given.
    pub(crate) fn since(&self, partition: Partition, from: Offset) -> u64 {
        lock(&self.since).get(&(partition, from)).copied().unwrap_or_default()
    }

    /// Bytes and files that went to disk. Whole when the cells are drained.
    pub(crate) fn spilled(&self) -> (u64, u64) {
        let ids = (self.spilled.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed));
        lock(&self.plans)
            .iter()
            .map(spilled)
            .fold(ids, |(bytes, files), (more, others)| (bytes + more, files + others))
    }

    /// How many events each view's filter let pass, in the order of the plans; `None` where it has none. Whole when the
    /// cells are drained.
    pub(crate) fn passed(&self) -> Vec<Option<u64>> {
        lock(&self.plans).iter().map(passed).collect()
    }
}

/// The rows that come out of the plan's filter.
fn passed(plan: &Arc<dyn ExecutionPlan>) -> Option<u64> {
    if plan.name() == "FilterExec" {
        return plan.metrics()?.output_rows().map(|rows| rows as u64);
    }
    plan.children().into_iter().find_map(passed)
}

fn spilled(plan: &Arc<dyn ExecutionPlan>) -> (u64, u64) {
    let metrics = plan.metrics().unwrap_or_default();
    let own = (
        metrics.spilled_bytes().unwrap_or_default() as u64,
        metrics.spill_count().unwrap_or_default() as u64,
    );
    plan.children()
        .into_iter()
        .map(spilled)
        .fold(own, |(bytes, files), (more, others)| (bytes + more, files + others))
}

/// Which events are read.
pub(crate) struct Wanted<'a> {
    pub(crate) dataset: &'a Dataset,
    pub(crate) events: Arc<dyn TableProvider>,
    pub(crate) days: &'a BTreeSet<EventDay>,
    /// Those at these offsets count.
    pub(crate) counted: &'a BTreeMap<Partition, OffsetSet>,
    /// It is told how many lie from each of these offsets on.
    pub(crate) since: &'a BTreeSet<(Partition, Offset)>,
    /// Which of them are repeats.
    pub(crate) rule: Rule,
}

/// The cells of each plan, in their order, over the events of those days at those offsets, without what the rule says is a repeat.
///
/// # Errors
/// DataFusion's; the streams' too: a file that cannot be read, or no memory and no disk left.
pub(crate) async fn feed(
    room: &Room,
    plans: &[&CellPlan],
    wanted: &Wanted<'_>,
    told: &Arc<Told>,
) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
    let (dataset, events) = (wanted.dataset, &wanted.events);
    let session = room.session();
    let counted = Arc::new(Counted::new(wanted.days, wanted.counted, wanted.since));
    let began = Instant::now();
    let mut repeats = Repeats::default();
    if !dataset.event_id.is_empty() {
        let among = match wanted.rule {
            Rule::AllButOne => Arc::clone(&counted),
            // What does not count is remembered too.
            Rule::Known(_) => Arc::new(Counted::new(
                wanted.days,
                &every_offset(wanted.counted),
                &BTreeSet::new(),
            )),
        };
        let sightings = look_for_repeats(room, &session, wanted, &among, told).await?;
        repeats = sightings.judge(room.cores()).await?;
        told.spilled.fetch_add(sightings.spilled(), Ordering::Relaxed);
        told.files.fetch_add(sightings.files(), Ordering::Relaxed);
        told.repeats.fetch_add(repeats.count(), Ordering::Relaxed);
        *lock(&told.looked) += began.elapsed();
    }
    let kept = MemoryConsumer::new("Repeats").register(&session.runtime_env().memory_pool);
    kept.try_grow(repeats.memory())?;

    let mut columns = BTreeSet::new();
    for plan in plans {
        columns.extend(needed(plan, events)?);
    }
    let reading = scan(&session, events, &(&columns | &origin())).await?;
    let columns = indices(&reading.schema(), &columns)?;
    let schema = Arc::new(reading.schema().project(&columns)?);
    let lanes = room.cores();
    let (mut senders, mut tables) = (Vec::new(), Vec::new());
    let unfinished = Arc::new(AtomicUsize::new(reading.output_partitioning().partition_count()));
    for _ in plans {
        let (to, table) = lanes_of(lanes, &schema, &unfinished)?;
        senders.push(to);
        tables.push(table);
    }
    let mut physicals = Vec::with_capacity(plans.len());
    for (plan, table) in plans.iter().zip(tables) {
        let events = LogicalPlanBuilder::scan(EVENTS, provider_as_source(Arc::new(table)), None)?.build()?;
        physicals.push(physical(&session, plan.over(events)?).await?);
    }
    lock(&told.plans).clone_from(&physicals);
    let reading = Reading {
        plan: reading,
        columns,
        context: session.task_ctx(),
        counted,
        repeats: Arc::new((repeats, kept)),
        senders,
        unfinished,
        told: Arc::clone(told),
    };
    let readers = Arc::new(reading.begin());
    let mut cells = Vec::with_capacity(plans.len());
    for (plan, physical) in plans.iter().zip(physicals) {
        let stream = execute_stream(physical, session.task_ctx())?;
        // The readers end with the last of the streams.
        let readers = Arc::clone(&readers);
        let stream = settled(stream, plan.schema()).inspect(move |_| {
            let _held = &readers;
        });
        cells.push(stream.boxed());
    }
    Ok(cells)
}

/// All offsets of the same partitions.
fn every_offset(counted: &BTreeMap<Partition, OffsetSet>) -> BTreeMap<Partition, OffsetSet> {
    let to = Offset(u64::MAX);
    let all = |partition: &Partition| (*partition, OffsetSet::from_iter([OffsetRange { from: Offset(0), to }]));
    counted.keys().map(all).collect()
}

/// The columns that say where an event stands.
pub(crate) fn origin() -> BTreeSet<String> {
    [TOPIC_COLUMN, PARTITION_COLUMN, OFFSET_COLUMN, EVENT_TIME_COLUMN]
        .map(str::to_owned)
        .into()
}

/// The columns that a plan reads, as it is before anything is optimized: so it is built over them.
fn needed(plan: &CellPlan, events: &Arc<dyn TableProvider>) -> Result<BTreeSet<String>> {
    // In the types of the view, in which a plan names no more columns than it reads.
    let text = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8View => field.as_ref().clone().with_data_type(DataType::Utf8),
        _ => field.as_ref().clone(),
    };
    let schema = events.schema();
    let fields: Vec<_> = schema.fields().iter().map(text).collect();
    let nothing: Arc<dyn TableProvider> = Arc::new(EmptyTable::new(Arc::new(Schema::new(fields))));
    let scan = LogicalPlanBuilder::scan(EVENTS, provider_as_source(nothing), None)?.build()?;
    let mut columns = BTreeSet::new();
    plan.over(scan)?.apply(|node| {
        node.apply_expressions(|expression| {
            columns.extend(expression.column_refs().into_iter().map(|column| column.name.clone()));
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    columns.retain(|column| schema.index_of(column).is_ok());
    Ok(columns)
}

async fn physical(session: &SessionContext, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    session.execute_logical_plan(plan).await?.create_physical_plan().await
}

/// Reads these columns of the events, and does nothing else: a filter would copy them.
async fn scan(
    session: &SessionContext,
    events: &Arc<dyn TableProvider>,
    columns: &BTreeSet<String>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = indices(&events.schema(), columns)?;
    events.scan(&session.state(), Some(&columns), &[], None).await
}

fn indices(schema: &Schema, columns: &BTreeSet<String>) -> Result<Vec<usize>> {
    Ok(columns
        .iter()
        .map(|column| schema.index_of(column))
        .collect::<std::result::Result<_, _>>()?)
}

/// Reads the identities of all events that count.
async fn look_for_repeats(
    room: &Room,
    session: &SessionContext,
    wanted: &Wanted<'_>,
    counted: &Arc<Counted>,
    told: &Arc<Told>,
) -> Result<Arc<Sightings>> {
    let plan = scan(session, &wanted.events, &identifying(wanted.dataset)).await?;
    let threads = plan.output_partitioning().partition_count();
    let memory = room.memory() / 8 * FOR_REPEATS;
    let sightings = Sightings::new(wanted.rule, counted.partitions(), threads, memory, room.spill());
    let told = Arc::clone(told);
    let looked = move |events| {
        told.looked_at.fetch_add(events, Ordering::Relaxed);
    };
    see(&plan, &session.task_ctx(), wanted.dataset, counted, sightings, looked).await
}

/// The columns that say what an event is, where it stands, and when Kafka had it.
pub(crate) fn identifying(dataset: &Dataset) -> BTreeSet<String> {
    let mut columns = origin();
    columns.insert(KAFKA_TIME_COLUMN.to_owned());
    columns.extend(dataset.event_id.iter().cloned());
    columns
}

/// Which of the events that are read are looked at for repeats.
pub(crate) trait Among: Send + Sync + 'static {
    /// Calls with the row, the index of its partition, the offset, and how much later than Kafka's time it counts, of each row that is.
    ///
    /// # Errors
    /// The caller's, and a batch that does not say where its rows come from.
    fn each(&self, batch: &RecordBatch, take: impl FnMut(usize, usize, u64, i64) -> Result<()>) -> Result<()>;
}

impl Among for Counted {
    fn each(&self, batch: &RecordBatch, mut take: impl FnMut(usize, usize, u64, i64) -> Result<()>) -> Result<()> {
        Self::each(self, batch, |row, place, offset| take(row, place, offset, 0))
    }
}

/// Sees all events that a plan reads and that are looked at. Is told how many events each batch has.
pub(crate) async fn see(
    plan: &Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
    dataset: &Dataset,
    among: &Arc<impl Among>,
    sightings: Sightings,
    looked: impl Fn(u64) + Clone + Send + 'static,
) -> Result<Arc<Sightings>> {
    let sightings = Arc::new(sightings);
    let identities = Identities::new(dataset, &plan.schema())?;
    let identities = Arc::new(identities.ok_or_else(|| internal_datafusion_err!("a dataset without an event id"))?);
    let mut work = JoinSet::new();
    for partition in 0..plan.output_partitioning().partition_count() {
        let mut batches = plan.execute(partition, Arc::clone(context))?;
        let (sightings, identities, among) = (Arc::clone(&sightings), Arc::clone(&identities), Arc::clone(among));
        let looked = looked.clone();
        work.spawn(async move {
            let mut hand = Hand::default();
            while let Some(batch) = batches.next().await {
                let batch = batch?;
                let mut ids = identities.read(&batch)?;
                let times = batch.column_by_name(KAFKA_TIME_COLUMN);
                let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
                let times = times.ok_or_else(|| internal_datafusion_err!("events without Kafka's time"))?;
                Among::each(&*among, &batch, |row, place, offset, later| match ids.id(row) {
                    Some(id) => sightings.take(&mut hand, id, place, offset, times.value(row).saturating_add(later)),
                    None => Ok(()),
                })?;
                looked(batch.num_rows() as u64);
            }
            sightings.hand_in(hand);
            Ok::<_, DataFusionError>(())
        });
    }
    while let Some(done) = work.join_next().await {
        done.map_err(|error| DataFusionError::External(Box::new(error)))??;
    }
    Ok(sightings)
}

type Batches = mpsc::Sender<Result<RecordBatch>>;

/// The events as one plan reads them, in so many lanes, and where they come from.
fn lanes_of(lanes: usize, schema: &SchemaRef, unfinished: &Arc<AtomicUsize>) -> Result<(Vec<Batches>, StreamingTable)> {
    let (mut senders, mut partitions) = (Vec::new(), Vec::<Arc<dyn PartitionStream>>::new());
    for _ in 0..lanes {
        let (to, from) = mpsc::channel(AHEAD);
        senders.push(to);
        partitions.push(Arc::new(Lane {
            schema: Arc::clone(schema),
            batches: Mutex::new(Some(from)),
            unfinished: Arc::clone(unfinished),
        }));
    }
    Ok((senders, StreamingTable::try_new(Arc::clone(schema), partitions)?))
}

/// Reads, and hands what it has read to every plan.
struct Reading {
    plan: Arc<dyn ExecutionPlan>,
    /// Of what it reads, those that the views want.
    columns: Vec<usize>,
    context: Arc<TaskContext>,
    counted: Arc<Counted>,
    /// With the memory that they take.
    repeats: Arc<(Repeats, MemoryReservation)>,
    /// Of each plan, each lane.
    senders: Vec<Vec<Batches>>,
    unfinished: Arc<AtomicUsize>,
    told: Arc<Told>,
}

impl Reading {
    fn begin(self) -> JoinSet<()> {
        let mut readers = JoinSet::new();
        let all = Arc::new(self);
        for partition in 0..all.plan.output_partitioning().partition_count() {
            let all = Arc::clone(&all);
            readers.spawn(async move {
                if let Err(error) = all.read(partition).await {
                    let error = Arc::new(error);
                    for lane in all.senders.iter().filter_map(|lanes| lanes.first()) {
                        // Who has gone needs no telling.
                        let _ = lane.send(Err(DataFusionError::Shared(Arc::clone(&error)))).await;
                    }
                }
                all.unfinished.fetch_sub(1, Ordering::AcqRel);
            });
        }
        readers
    }

    async fn read(&self, partition: usize) -> Result<()> {
        let mut batches = self.plan.execute(partition, Arc::clone(&self.context))?;
        let mut number = partition;
        let mut tally = self.counted.tally();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let (kept, counted) = self.counted.kept(&batch, &self.repeats.0, &mut tally)?;
            self.told.read.fetch_add(counted, Ordering::Relaxed);
            let batch = batch.project(&self.columns)?;
            let batch = match kept {
                None => batch,
                Some(kept) => filter_record_batch(&batch, &kept)?,
            };
            if batch.num_rows() == 0 {
                continue;
            }
            number += 1;
            let mut gone = 0;
            for lanes in &self.senders {
                let sent = match lanes.get(number % lanes.len().max(1)) {
                    Some(lane) => lane.send(Ok(batch.clone())).await.is_ok(),
                    None => false,
                };
                gone += usize::from(!sent);
            }
            if gone == self.senders.len() {
                return Ok(());
            }
        }
        let mut all = lock(&self.told.since);
        for (of, count) in self.counted.since(&tally) {
            *all.entry(of).or_default() += count;
        }
        let mut all = lock(&self.told.repeats_of);
        for (day, count) in tally.repeats() {
            *all.entry(*day).or_default() += count;
        }
        Ok(())
    }
}

/// A lane of one plan's events.
#[derive(Debug)]
struct Lane {
    schema: SchemaRef,
    batches: Mutex<Option<mpsc::Receiver<Result<RecordBatch>>>>,
    unfinished: Arc<AtomicUsize>,
}

impl PartitionStream for Lane {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = lock(&self.batches).take();
        let unfinished = Arc::clone(&self.unfinished);
        let next = move |batches: Option<mpsc::Receiver<Result<RecordBatch>>>| {
            let unfinished = Arc::clone(&unfinished);
            async move {
                let mut batches = batches?;
                match batches.recv().await {
                    Some(batch) => Some((batch, Some(batches))),
                    // Every reader has let go of the lane; one that broke off did not say that it is done.
                    None if unfinished.load(Ordering::Acquire) == 0 => None,
                    None => Some((internal_err!("the events were not read to their end"), None)),
                }
            }
        };
        if batches.is_none() {
            let error = futures::stream::iter([internal_err!("events can be read once only")]);
            return Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), error));
        }
        let stream = futures::stream::unfold(batches, next);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream))
    }
}
