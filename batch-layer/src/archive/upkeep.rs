//! The archive kept tidy, one dataset after the other: by command, or on a schedule beside the archivers.

use std::time::Duration;

use chrono::Utc;
use shared_connections::sentence;
use shared_connections::store::Store;
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use tokio_util::sync::CancellationToken;

use super::error::ArchiveError;
use super::optimize::{Optimized, Upkeep};
use super::table::Archive;
use crate::clock::Today;

/// The clock may be set, or the machine sleep: how often it is looked at while a start is waited for.
const LOOKS: Duration = Duration::from_secs(10);

/// Optimizes each dataset's archive whenever `archive.optimize` says so, until cancelled. What it came to goes to the log.
pub(super) async fn keep_tidy(config: Config, datasets: Vec<Dataset>, cancel: CancellationToken) {
    let schedule = &config.archive.optimize;
    while let Some(start) = schedule.after(Utc::now()) {
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
        for dataset in &datasets {
            if cancel.is_cancelled() {
                return;
            }
            match tidy(&config, dataset, false, &cancel).await {
                Ok(done) => tell(&done),
                Err(error) => {
                    let said = sentence(&error);
                    tracing::warn!(dataset = dataset.name, "the archive could not be optimized: {said}");
                }
            }
        }
    }
    cancel.cancelled().await;
}

/// Optimizes a dataset's archive, if there is one, as configured. It does without ClickHouse, which only says what time it is: then
/// an object store is asked instead, and where the archive is in a folder no day is let go and no file deleted.
///
/// # Errors
/// Those of [`Archive::optimize`].
pub async fn tidy(
    config: &Config,
    dataset: &Dataset,
    dry_run: bool,
    cancel: &CancellationToken,
) -> Result<Optimized, ArchiveError> {
    let Some(mut archive) = Archive::open(&config.archive, dataset).await? else {
        return Ok(Optimized {
            dataset: dataset.name.clone(),
            ..Optimized::default()
        });
    };
    let mut today = Today::ask(&Store::new(&config.clickhouse)).await;
    if let Today::Unknown(why) = &today {
        today = archive.today_without_clickhouse(&config.archive.url, why).await;
    }
    let upkeep = Upkeep::of(&config.archive, dataset, &today, dry_run);
    let mut done = Box::pin(archive.optimize(&upkeep, cancel)).await?;
    // Where nothing is old there is nothing to tell.
    if dataset.keep.is_some() || done.waiting.files > 0 || matches!(today, Today::Apart(_)) {
        done.doubt = today.doubt();
    }
    Ok(done)
}

fn tell(done: &Optimized) {
    if let Some(doubt) = &done.doubt {
        tracing::warn!(dataset = done.dataset, "{doubt}");
    }
    for damaged in &done.damaged {
        tracing::error!(dataset = done.dataset, "{damaged}");
    }
    if let Some(horizon) = done.horizon.as_ref().filter(|_| done.let_go.files > 0) {
        tracing::info!(
            dataset = done.dataset,
            files = done.let_go.files,
            bytes = done.let_go.bytes,
            "events before {horizon} are out of the archive"
        );
    }
    if let Some(in_need) = &done.in_need {
        tracing::info!(dataset = done.dataset, "{in_need}");
    }
    tracing::info!(
        dataset = done.dataset,
        replaced = done.replaced.files,
        by = done.by.files,
        deleted = done.deleted.files,
        "the archive is optimized"
    );
}
