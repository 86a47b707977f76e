//! What `highwater bench batch` measures: this layer's recomputation, and plain DataFusion over the same files.
//!
//! Nothing is written to a store: cells are made and counted. It lies here since the program itself knows nothing of DataFusion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::context::SessionContext;
use datafusion::prelude::ParquetReadOptions;
use futures::TryStreamExt;
use futures::future::try_join_all;
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, OffsetSet, Partition};
use shared_schemas::plan::{CellKey, CellPlan};
use shared_schemas::view::View;

use crate::archive::Pinned;
use crate::error::RunError;
use crate::recompute::Room;
use crate::recompute::feed::{Told, Wanted, feed};
use crate::repeats::Rule;
use crate::spill::Spill;
use crate::write::reason;

/// What a computation came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Came {
    /// How many cells.
    pub cells: u64,
    /// What the counts of all cells add up to.
    pub counted: u64,
    /// How many events were dropped as repeats.
    pub repeats: u64,
    /// Bytes that exceeded the memory and went to disk.
    pub spilled: u64,
}

/// The cells of these days of all views, as a batch run computes them, with so many bytes of memory and that folder beyond. `count`: the
/// column of each view that counts events.
///
/// # Errors
/// DataFusion's, or a folder that can't be used.
pub async fn recomputed(
    (memory, spill): (u64, &Path),
    dataset: &Dataset,
    views: &[View],
    pinned: &Pinned,
    days: &BTreeSet<EventDay>,
    count: &str,
) -> Result<Came, RunError> {
    let spill = Spill::new(Some(spill)).map_err(|source| RunError::Spill {
        place: spill.to_owned(),
        source,
    })?;
    let room = Room::new(memory, Arc::new(spill)).map_err(|error| planned(&error))?;
    cells(&room, dataset, views, pinned, days, count)
        .await
        .map_err(|error| planned(&error))
}

fn planned(error: &datafusion::error::DataFusionError) -> RunError {
    RunError::Plan(reason(error))
}

async fn cells(
    room: &Room,
    dataset: &Dataset,
    views: &[View],
    pinned: &Pinned,
    days: &BTreeSet<EventDay>,
    count: &str,
) -> Result<Came> {
    let whole = |(partition, end): (&Partition, &Offset)| {
        let range = OffsetRange {
            from: Offset::default(),
            to: *end,
        };
        (*partition, OffsetSet::from_iter([range]))
    };
    let counted: BTreeMap<_, _> = pinned.ends.iter().map(whole).collect();
    let plans = views.iter().map(|view| CellPlan::new(view, dataset, CellKey::Cell));
    let plans = plans.collect::<Result<Vec<_>>>()?;
    let told = Arc::new(Told::default());
    let wanted = Wanted {
        dataset,
        events: pinned.lean_events(days),
        days,
        rule: Rule::AllButOne,
        counted: &counted,
        since: &BTreeSet::new(),
    };
    let streams = feed(room, &plans.iter().collect::<Vec<_>>(), &wanted, &told).await?;
    let drained = streams.into_iter().map(|mut cells| async move {
        let mut came = Came::default();
        while let Some(batch) = cells.try_next().await? {
            came.cells += batch.num_rows() as u64;
            came.counted += sum(&batch, count)?;
        }
        Ok::<_, datafusion::error::DataFusionError>(came)
    });
    let all = try_join_all(drained).await?;
    Ok(Came {
        cells: all.iter().map(|came| came.cells).sum(),
        counted: all.iter().map(|came| came.counted).sum(),
        repeats: told.repeats(),
        spilled: told.spilled().0,
    })
}

fn sum(batch: &RecordBatch, column: &str) -> Result<u64> {
    let column = batch
        .column_by_name(column)
        .ok_or_else(|| internal_datafusion_err!("no column {column}"))?;
    if let Some(counts) = column.as_primitive_opt::<UInt64Type>() {
        return Ok(counts.values().iter().sum());
    }
    let counts = column.as_primitive_opt::<Int64Type>();
    let counts = counts.ok_or_else(|| internal_datafusion_err!("{column:?} is no count"))?;
    Ok(counts.values().iter().map(|count| count.unsigned_abs()).sum())
}

/// Plain SQL over Parquet files in a folder, as table `events`: DataFusion as it comes.
///
/// # Errors
/// DataFusion's.
pub async fn plain(folder: &str, statements: &[String], count: &str) -> Result<Came, RunError> {
    queried(folder, statements, count)
        .await
        .map_err(|error| planned(&error))
}

async fn queried(folder: &str, statements: &[String], count: &str) -> Result<Came> {
    let session = SessionContext::new();
    session
        .register_parquet("events", folder, ParquetReadOptions::default())
        .await?;
    let mut came = Came::default();
    for statement in statements {
        let mut cells = session.sql(statement).await?.execute_stream().await?;
        while let Some(batch) = cells.try_next().await? {
            came.cells += batch.num_rows() as u64;
            came.counted += sum(&batch, count)?;
        }
    }
    Ok(came)
}
