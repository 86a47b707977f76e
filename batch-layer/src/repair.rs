//! Repair: some event days computed again at the published marks, which stay.
//!
//! It is a run over chosen days. That totals change is what it is for, so its checks don't stop it for that.

use std::collections::BTreeSet;

use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::EventDay;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use crate::progress::Watcher;
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
