//! Repair: some event days computed again at the published marks, which stay.
//!
//! It is a run that moves nothing: the same offsets, the same archive, fresh rows under a fresh run id, and a publication that
//! takes those days from it and all others from its parent. Whoever publishes first wins, as with any run.

use std::collections::BTreeSet;

use serde::Serialize;
use shared_connections::store::Origin;
use shared_schemas::dataset::Dataset;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, EventDay, Publication, RunId};
use shared_schemas::view::View;
use uuid::Uuid;

use crate::archive::Archive;
use crate::error::RunError;
use crate::marks::choose;
use crate::progress::Watcher;
use crate::publish::{Sent, send};
use crate::recompute::{Recompute, below};
use crate::report::day_text;
use crate::retry::patiently;
use crate::run::{Batch, last_days};
use crate::write::Work;

/// What a repair came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// The new publication's number.
    pub publication: u64,
    /// Its run, 32 hexadecimal digits.
    pub run: String,
    /// The days that it holds.
    pub days: Vec<String>,
    /// How many rows were written.
    pub rows: u64,
}

/// Computes these days of a view again. To be called with the lease. `None` where nothing is published, or none of the days.
///
/// # Errors
/// As of a run; what was published before stands.
pub async fn repair(
    batch: &Batch,
    view: &View,
    dataset: &Dataset,
    days: &BTreeSet<EventDay>,
    watcher: &dyn Watcher,
) -> Result<Option<Repaired>, RunError> {
    let plan_error = |error: &dyn std::fmt::Display| RunError::Plan(error.to_string());
    let chunk = ChunkSize::new(dataset.chunk).map_err(|error| plan_error(&error))?;
    let store = &batch.store;
    let Some(archive) = Archive::open(&batch.config.archive, dataset).await? else {
        return Ok(None);
    };
    let facts = patiently(|| store.facts(view)).await?;
    let pinned = archive.pin().await?;
    let Some(parent) = facts.newest().map(|newest| newest.publication.clone()) else {
        return Ok(None);
    };
    // The archive holds what was published from it, or nothing is computed from what is left.
    choose(&pinned, &facts, chunk, false).await?;
    let ranges = pinned.ranges();
    let is_below = |day: &EventDay| {
        let below = |range: &shared_schemas::handoff::ArchivedRange| {
            range.day == *day && range.first < parent.mark(range.partition).0
        };
        parent.days.contains_key(day) || ranges.iter().any(below)
    };
    let days: BTreeSet<_> = days.iter().copied().filter(is_below).collect();
    if days.is_empty() {
        return Ok(None);
    }
    let run = RunId(Uuid::now_v7().as_u128());
    patiently(|| store.record_run(view, run, parent.number)).await?;
    let publication = Publication::of_run(Some(&parent), run, parent.marks.clone(), &pinned.gaps, &days);
    let recompute = Recompute::new(view, dataset, batch.config.batch.memory).map_err(|error| plan_error(&error))?;
    let work = Work {
        store,
        view,
        recompute: &recompute,
        pinned: &pinned,
        ranges: &ranges,
        watcher,
    };
    let totals = work.write(&days, &below(&publication.marks), run).await?;
    let origin = Origin {
        rules: Fingerprint::of_rules(dataset),
        archive_version: pinned.version,
        last_days: last_days(&publication.marks, &ranges),
    };
    match send(store, view, &publication, &origin).await? {
        Sent::Beaten => Err(RunError::Beaten { tries: 1 }),
        Sent::Published => Ok(Some(Repaired {
            publication: publication.number.0,
            run: format!("{:032x}", run.0),
            days: days.iter().map(|day| day_text(*day)).collect(),
            rows: totals.rows,
        })),
    }
}
