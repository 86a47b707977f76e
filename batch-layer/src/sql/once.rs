//! Each event once, as a plan that DataFusion can put other plans upon.
//!
//! What a repeat is, and how repeats are found, is the batch run's own code: the ids are read first, then the events, without those
//! at the offsets that were found. Both readings are of the same files, and of the same rows where a condition leaves some out.
//!
//! The plan shows no children: both are optimized already, and what is above must not reach into one of them alone. So it resets
//! them itself where it is executed again, as each round of a recursive query does: a plan inside may be good for one reading.
//! What repeats there are is found once for all rounds, since the version of the archive is pinned; a search that failed is
//! begun anew.

use std::fmt;
use std::sync::Arc;

use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, reset_plan_states};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, ReplaceChildrenOptions,
};
use futures::{StreamExt, TryStreamExt};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::Partition;
use tokio::sync::OnceCell;

use crate::recompute::counted::Counted;
use crate::recompute::feed::see;
use crate::repeats::{Repeats, Rule, Sightings};
use crate::spill::Spill;

/// Bytes of memory to find repeats in where a session has no limit.
const UNLIMITED: usize = 1 << 30;
/// The least that is tried.
const LEAST: usize = 1 << 20;

/// What is read, and what of it stays.
#[derive(Debug)]
pub(crate) struct Once {
    dataset: Arc<Dataset>,
    /// Reads the columns that tell repeats.
    ids: Arc<dyn ExecutionPlan>,
    /// Reads the events: the columns that are wanted, and those that say where an event stands.
    events: Arc<dyn ExecutionPlan>,
    /// The columns that are wanted, of these.
    columns: Vec<usize>,
    counted: Arc<Counted>,
    /// Found by whoever asks first.
    found: Arc<OnceCell<(Repeats, MemoryReservation)>>,
    properties: Arc<PlanProperties>,
}

impl Once {
    /// The events of those partitions, the first so many columns of them. Both plans read the same events.
    pub(crate) fn new(
        dataset: Arc<Dataset>,
        ids: Arc<dyn ExecutionPlan>,
        events: Arc<dyn ExecutionPlan>,
        columns: usize,
        partitions: impl Iterator<Item = Partition>,
    ) -> Result<Self> {
        let columns: Vec<_> = (0..columns).collect();
        let schema: SchemaRef = Arc::new(Schema::clone(&events.schema()).project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(events.output_partitioning().partition_count()),
            EmissionType::Both,
            Boundedness::Bounded,
        );
        Ok(Self {
            dataset,
            ids,
            events,
            columns,
            counted: Arc::new(Counted::all(partitions)),
            found: Arc::default(),
            properties: Arc::new(properties),
        })
    }
}

/// Half of what the session has, or as much of it as is left; the rest spills.
fn reserve(context: &TaskContext) -> Result<MemoryReservation> {
    let pool = context.memory_pool();
    let kept = MemoryConsumer::new("Repeats").register(pool);
    let mut wanted = match pool.memory_limit() {
        MemoryLimit::Finite(limit) => limit / 2,
        _ => UNLIMITED,
    };
    loop {
        match kept.try_grow(wanted) {
            Ok(()) => return Ok(kept),
            Err(_) if wanted / 2 >= LEAST => wanted /= 2,
            Err(error) => return Err(error),
        }
    }
}

async fn find(
    ids: &Arc<dyn ExecutionPlan>,
    dataset: &Dataset,
    counted: &Arc<Counted>,
    context: &Arc<TaskContext>,
) -> Result<(Repeats, MemoryReservation)> {
    let kept = reserve(context)?;
    let spill = match context.session_config().get_extension::<Spill>() {
        Some(spill) => spill,
        None => Arc::new(Spill::new(None)?),
    };
    // Another lane may have tried before, and failed.
    let ids = &reset_plan_states(Arc::clone(ids))?;
    let threads = ids.output_partitioning().partition_count();
    let sightings = Sightings::new(Rule::AllButOne, counted.partitions(), threads, kept.size(), spill);
    let sightings = see(ids, context, dataset, counted, sightings, |_| ()).await?;
    let repeats = sightings.judge(threads).await?;
    kept.try_resize(repeats.memory())?;
    Ok((repeats, kept))
}

impl DisplayAs for Once {
    fn fmt_as(&self, form: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Once: event_id=[{}], of ", self.dataset.event_id.join(", "))?;
        // What it reads is shown here, for it shows no children.
        let mut below = &self.events;
        while let Some(child) = below.children().into_iter().next() {
            below = child;
        }
        below.fmt_as(form, f)
    }
}

impl ExecutionPlan for Once {
    fn name(&self) -> &'static str {
        "Once"
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

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self {
            dataset: Arc::clone(&self.dataset),
            // Reset by each search.
            ids: Arc::clone(&self.ids),
            events: reset_plan_states(Arc::clone(&self.events))?,
            columns: self.columns.clone(),
            counted: Arc::clone(&self.counted),
            found: Arc::clone(&self.found),
            properties: Arc::clone(&self.properties),
        }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (ids, events) = (Arc::clone(&self.ids), Arc::clone(&self.events));
        let (dataset, counted) = (Arc::clone(&self.dataset), Arc::clone(&self.counted));
        let (found, columns) = (Arc::clone(&self.found), self.columns.clone());
        let batches = async move {
            found
                .get_or_try_init(|| find(&ids, &dataset, &counted, &context))
                .await?;
            let mut tally = counted.tally();
            let batches = events.execute(partition, context)?.map(move |batch| {
                let batch = batch?;
                let Some((repeats, _)) = found.get() else {
                    return Err(DataFusionError::Internal("repeats were not found yet".to_owned()));
                };
                let (kept, _) = counted.kept(&batch, repeats, &mut tally)?;
                let batch = batch.project(&columns)?;
                Ok(match kept {
                    None => batch,
                    Some(kept) => filter_record_batch(&batch, &kept)?,
                })
            });
            Ok::<_, DataFusionError>(batches)
        };
        let batches = futures::stream::once(batches).try_flatten();
        let schema = self.schema();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
