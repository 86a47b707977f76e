//! A version of the archive as tables for SQL: as events arrived, and each once.
//!
//! Which files a query needs is told by what the log says of each, before one is opened: its day, partition, offsets and
//! Kafka times. Conditions on the time or the identity of events are applied before repeats are dropped, which changes
//! nothing, since repeats agree in them, and so a query of a day reads a day's files. Any other condition waits until then:
//! it could hold for a repeat and not for the event that stays.
//!
//! The declared field of the event's time is another name for that time only in files that were written by the rules of now:
//! before `event_time` was changed files were parted, and repeats known, by another field.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, ident};
use datafusion::physical_optimizer::pruning::{PruningPredicateBuilder, PruningStatistics};
use datafusion::physical_plan::ExecutionPlan;
use shared_schemas::dataset::{
    EVENT_TIME_COLUMN, EXTRA_COLUMN, EventTime, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN,
};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::EventDay;
use shared_schemas::view::UTC;

use super::columns::{DATE_COLUMN, TOPIC_COLUMN};
use super::pinned::{File, Pinned};
use super::scan::Events;
use super::standing::topic_text;
use crate::recompute::feed::{identifying, origin};
use crate::sql::once;

/// The archived events as they arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pinned: Pinned,
    schema: SchemaRef,
    /// The fingerprint of the rules of now.
    rules: String,
}

/// The same, each event once.
#[derive(Debug)]
struct Once {
    arrived: Arc<Arrived>,
    /// The columns in which an event and its repeats agree.
    agreeing: BTreeSet<String>,
}

impl Pinned {
    /// Every archived event as it arrived, repeats too, as a table: the declared fields, and Highwater's own columns. Masked
    /// by the rules of now. Undeclared data is among them only where the dataset hides nothing: what was stored before a rule
    /// may hold what it hides.
    pub fn as_arrived(&self) -> Arc<dyn TableProvider> {
        Arc::new(self.arrived())
    }

    fn arrived(&self) -> Arrived {
        let day = Field::new(DATE_COLUMN, DataType::Date32, false);
        let extra = (!self.dataset.hides()).then(|| Field::new(EXTRA_COLUMN, DataType::Utf8, true));
        let own = [Some(day), extra].into_iter().flatten().map(Arc::new);
        let fields: Vec<_> = self.schema.fields().iter().cloned().chain(own).collect();
        Arrived {
            pinned: self.clone(),
            schema: Arc::new(Schema::new(fields)),
            rules: Fingerprint::of_rules(&self.dataset).to_string(),
        }
    }

    /// Every archived event once, by the dedupe of batch runs, with the same columns.
    pub fn once(&self) -> Arc<dyn TableProvider> {
        let arrived = self.arrived();
        let mut agreeing = BTreeSet::from([EVENT_TIME_COLUMN, DATE_COLUMN].map(str::to_owned));
        agreeing.extend(self.dataset.event_id.iter().cloned());
        if self.files.iter().all(|file| arrived.is_of_now(file)) {
            agreeing.extend(self.event_time_field().map(str::to_owned));
        }
        Arc::new(Once {
            arrived: Arc::new(arrived),
            agreeing,
        })
    }

    /// The declared field that holds the event's time.
    fn event_time_field(&self) -> Option<&str> {
        match &self.dataset.event_time {
            EventTime::Field(field) => Some(field),
            EventTime::KafkaTime => None,
        }
    }
}

impl Arrived {
    /// Whether the file was written by the rules of now.
    fn is_of_now(&self, file: &File) -> bool {
        file.rules.as_ref() == Some(&self.rules)
    }

    /// The files that may hold an event for which all filters hold.
    fn files(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<File>> {
        let all = || self.pinned.files.to_vec();
        let Some(filter) = conjunction(filters.iter().cloned()) else {
            return Ok(all());
        };
        let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        let predicate = state.create_physical_expr(filter, &schema)?;
        let Ok(predicate) = PruningPredicateBuilder::new()
            .with_file_schema(Arc::clone(&self.schema))
            .try_build(predicate)
        else {
            return Ok(all());
        };
        let needed = predicate.prune(self)?;
        let files = self.pinned.files.iter().zip(needed);
        Ok(files
            .filter(|(_, needed)| *needed)
            .map(|(file, _)| file.clone())
            .collect())
    }

    /// For each file a lowest or highest value.
    fn bounds(&self, column: &Column, of: impl Fn(&File) -> Bounds) -> Option<ArrayRef> {
        let bounds = self.pinned.files.iter().map(&of);
        let times =
            |micros: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(micros).with_timezone(UTC)) };
        Some(match column.name() {
            DATE_COLUMN => Arc::new(bounds.map(|bounds| Some(bounds.day)).collect::<Date32Array>()) as ArrayRef,
            TOPIC_COLUMN => Arc::new(bounds.map(|bounds| Some(bounds.topic)).collect::<StringArray>()),
            PARTITION_COLUMN => Arc::new(bounds.map(|bounds| bounds.partition).collect::<Int32Array>()),
            OFFSET_COLUMN => Arc::new(bounds.map(|bounds| bounds.offset).collect::<Int64Array>()),
            KAFKA_TIME_COLUMN => times(bounds.map(|bounds| bounds.kafka_time).collect()),
            EVENT_TIME_COLUMN => times(bounds.map(|bounds| bounds.event_time).collect()),
            name if self.pinned.event_time_field() == Some(name) => {
                // Null is not known.
                let files = self.pinned.files.iter();
                let known = files.map(|file| self.is_of_now(file).then(|| of(file).event_time));
                Arc::new(known.collect::<TimestampMicrosecondArray>().with_timezone(UTC))
            }
            _ => return None,
        })
    }
}

/// One end of what a file holds.
struct Bounds {
    day: i32,
    topic: String,
    partition: Option<i32>,
    offset: Option<i64>,
    kafka_time: i64,
    event_time: i64,
}

fn lowest(file: &File) -> Bounds {
    let range = file.range;
    Bounds {
        day: range.day.0,
        topic: topic_text(range.partition.topic),
        partition: i32::try_from(range.partition.number).ok(),
        offset: i64::try_from(range.first.0).ok(),
        kafka_time: file.times.0.saturating_mul(1000),
        event_time: range.day.first_micros(),
    }
}

fn highest(file: &File) -> Bounds {
    let range = file.range;
    Bounds {
        offset: i64::try_from(range.last.0).ok(),
        // The log knows milliseconds.
        kafka_time: file.times.1.saturating_mul(1000).saturating_add(999),
        event_time: range.day.first_micros().saturating_add(EventDay::MICROS) - 1,
        ..lowest(file)
    }
}

impl PruningStatistics for Arrived {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, lowest)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, highest)
    }

    fn num_containers(&self) -> usize {
        self.pinned.files.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[async_trait]
impl TableProvider for Arrived {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Whole files are left out, never rows.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let events = Events::new(self.files(state, filters)?, Arc::clone(&self.schema), &self.pinned);
        events.plan(state.config().target_partitions(), projection)
    }
}

impl Once {
    /// Whether an event and its repeats all fulfil it or none does.
    fn agree_in(&self, filter: &Expr) -> bool {
        let columns = filter.column_refs();
        !filter.is_volatile() && columns.iter().all(|column| self.agreeing.contains(column.name()))
    }

    async fn plan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = &self.arrived.schema;
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all).iter();
        let wanted: Vec<_> = wanted.map(|column| schema.field(*column).name().clone()).collect();
        let dataset = &self.arrived.pinned.dataset;
        if dataset.event_id.is_empty() {
            return self.reading(state, filters, &wanted).await;
        }
        let ids: Vec<_> = identifying(dataset).into_iter().collect();
        let places = origin().into_iter().filter(|column| !wanted.contains(column));
        let with_places: Vec<_> = wanted.iter().cloned().chain(places).collect();
        let partitions: BTreeSet<_> = self
            .arrived
            .pinned
            .files
            .iter()
            .map(|file| file.range.partition)
            .collect();
        let once = once::Once::new(
            Arc::clone(dataset),
            self.reading(state, filters, &ids).await?,
            self.reading(state, filters, &with_places).await?,
            wanted.len(),
            partitions.into_iter(),
        );
        Ok(Arc::new(once?))
    }

    /// Reads these columns of the events as they arrived, of those for which the filters hold.
    async fn reading(
        &self,
        state: &dyn Session,
        filters: &[Expr],
        columns: &[String],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let source = provider_as_source(Arc::clone(&self.arrived) as Arc<dyn TableProvider>);
        let mut events = LogicalPlanBuilder::scan("arrived", source, None)?;
        for filter in filters {
            // Without the name that the query gave the table.
            let filter = unqualified(filter.clone())?;
            events = events.filter(filter)?;
        }
        let events = events.project(columns.iter().map(|column| ident(column.as_str())))?;
        state.create_physical_plan(&events.build()?).await
    }
}

/// The same condition on columns without a table.
fn unqualified(filter: Expr) -> Result<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    let renamed = filter.transform(|part| {
        Ok(match part {
            Expr::Column(column) => Transformed::yes(ident(column.name)),
            other => Transformed::no(other),
        })
    });
    Ok(renamed?.data)
}

#[async_trait]
impl TableProvider for Once {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.arrived.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let supported = |filter: &&Expr| {
            if self.agree_in(filter) {
                TableProviderFilterPushDown::Exact
            } else {
                TableProviderFilterPushDown::Unsupported
            }
        };
        Ok(filters.iter().map(supported).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.plan(state, projection, filters).await
    }
}
