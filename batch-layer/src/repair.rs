//! Repair: some event days computed again at the published marks, which stay.
//!
//! It is a run over chosen days. That totals change is what it is for, so its checks don't stop it for that.
//!
//! After reconciliation these are the days of which batch rows are wrong; what was mended is compared once more, and nothing else.

use std::collections::BTreeSet;

use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::EventDay;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use crate::lease::LeaseError;
use crate::progress::Watcher;
use crate::reconcile::{Reconciled, reconcile};
use crate::report::ViewReport;
use crate::run::Batch;
use crate::scope::{DayRange, Scope};

/// Computes these days of a view again. To be called with the lease.
pub async fn repair(
    batch: &Batch,
    view: &View,
    dataset: &Dataset,
    days: &BTreeSet<EventDay>,
    watcher: &dyn Watcher,
    cancel: &CancellationToken,
) -> ViewReport {
    let batch = Batch {
        scope: Scope::Days(days.iter().copied().map(DayRange::from).collect()),
        accept: true,
        ..batch.clone()
    };
    let reports = batch.run(&[(view, dataset)], watcher, cancel).await;
    // A report for each view.
    reports.into_iter().next().unwrap_or_default()
}

/// Reconciles these views; of those with wrong batch rows computes the days again and compares once more. A report for each, in
/// their order. It takes the lease only where something is to be repaired.
///
/// # Errors
/// The lease's.
pub async fn reconcile_and_repair(
    batch: &Batch,
    views: &[(&View, &Dataset)],
    wait_for_lease: bool,
    watcher: &dyn Watcher,
    cancel: &CancellationToken,
) -> Result<Vec<Reconciled>, LeaseError> {
    let mut all = reconcile(batch, views, watcher, cancel).await;
    let wrong: Vec<_> = (0..all.len()).filter(|at| !all[*at].mendable.is_empty()).collect();
    if wrong.is_empty() {
        return Ok(all);
    }
    let lease = batch.lease("repair", wait_for_lease, watcher, cancel).await?;
    let mut repaired = Vec::new();
    for at in &wrong {
        let (view, dataset) = views[*at];
        repaired.push(repair(batch, view, dataset, &all[*at].mendable, watcher, cancel).await);
    }
    drop(lease);
    let again: Vec<_> = wrong.iter().map(|at| views[*at]).collect();
    let again = reconcile(batch, &again, watcher, cancel).await;
    for ((at, one), report) in wrong.into_iter().zip(again).zip(repaired) {
        all[at] = Reconciled {
            repaired: Some(report),
            ..one
        };
    }
    Ok(all)
}
