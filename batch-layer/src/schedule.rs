//! Runs on a schedule, one after the other.

use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;

use crate::progress::Watcher;
use crate::reconcile::after_run;
use crate::report::{Outcome, ViewReport};
use crate::run::{Batch, Selection};

/// The clock may be set, or the machine sleep: how often it is looked at while a start is waited for.
const LOOKS: Duration = Duration::from_secs(10);

impl Batch {
    /// Runs all views whenever `batch.schedule` says so, until cancelled. A run that takes longer than until the next
    /// start lets that one pass; one that somebody else is doing is waited for. Results go to the log.
    pub async fn schedule(&self, watcher: &dyn Watcher, cancel: &CancellationToken) {
        let schedule = &self.config.batch.schedule;
        while let Some(start) = schedule.after(Utc::now()) {
            tracing::info!(schedule = schedule.expression(), "next batch run at {start}");
            let waited = async {
                while let Ok(left) = (start - Utc::now()).to_std()
                    && !left.is_zero()
                {
                    tokio::time::sleep(left.min(LOOKS)).await;
                }
            };
            if cancel.run_until_cancelled(waited).await.is_none() {
                return;
            }
            self.scheduled_run(watcher, cancel).await;
            if cancel.is_cancelled() {
                return;
            }
        }
        tracing::warn!("batch.schedule names no further start: no batch run will start by itself");
        cancel.cancelled().await;
    }

    async fn scheduled_run(&self, watcher: &dyn Watcher, cancel: &CancellationToken) {
        let lease = match self.lease("scheduled batch run", true, watcher, cancel).await {
            Ok(lease) => lease,
            Err(_) if cancel.is_cancelled() => return,
            Err(error) => {
                tracing::error!(error = %shared_connections::sentence(&error), "a scheduled batch run could not begin");
                return;
            }
        };
        // All views: there is no name that could be unknown.
        let Ok(views) = self.selected(&Selection::default()) else {
            return;
        };
        for report in self.run(&views, watcher, cancel).await {
            tell(&report, cancel.is_cancelled());
        }
        drop(lease);
        if self.config.batch.reconcile && !cancel.is_cancelled() {
            after_run(self, &views, watcher, cancel).await;
        }
    }
}

fn tell(report: &ViewReport, cancelled: bool) {
    let ViewReport { view, days, rows, .. } = report;
    let seconds = report.seconds;
    let why = report.why.as_deref().unwrap_or_default();
    match report.result {
        Outcome::Published => {
            let number = report.publication.unwrap_or_default();
            tracing::info!(
                view,
                number,
                days,
                rows,
                seconds,
                fell_back = report.fell_back,
                "batch run published"
            );
        }
        Outcome::NothingToDo => tracing::info!(view, "batch run: {why}"),
        Outcome::Failed if cancelled => tracing::info!(view, "batch run: {why}"),
        Outcome::Failed => tracing::error!(view, "batch run failed, the old publication stands: {why}"),
    }
}
