//! Reports of reconciliation as people read them, and kept in the store.

use std::fmt::Write;

use shared_connections::store::{ReconciliationRow, StoreError};
use shared_schemas::dataset::Dataset;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use super::{Calibration, Difference, Place, Reconciled};
use crate::progress::Watcher;
use crate::retry::patiently;
use crate::run::Batch;

/// So many differences of a view are kept; the counts are of all.
const KEPT: usize = 100;
/// So many are on a page.
const ON_PAGE: usize = 20;

/// Keeps a report of these views; its id.
///
/// # Errors
/// The store's.
pub async fn keep(batch: &Batch, all: &[Reconciled]) -> Result<String, StoreError> {
    let id = uuid::Uuid::now_v7().to_string();
    let at = chrono::Utc::now().timestamp_millis();
    let rows: Vec<_> = all
        .iter()
        .map(|one| {
            let mut kept = one.clone();
            kept.differences.truncate(KEPT);
            kept.ledgers.differences.truncate(KEPT);
            ReconciliationRow {
                id: id.clone(),
                view: one.view.clone(),
                at,
                sound: one.is_sound(),
                compared: one.compared,
                different: one.different,
                unexplained: one.unexplained,
                // Numbers and texts alone are always written.
                document: serde_json::to_string(&kept).unwrap_or_default(),
                page: page(one),
            }
        })
        .collect();
    patiently(|| batch.store.record_reconciliation(&rows)).await?;
    Ok(id)
}

/// Reconciles these views after a run, and keeps the report. What it finds goes to the log and the metrics: a run that has
/// published stands.
pub async fn after_run(batch: &Batch, views: &[(&View, &Dataset)], watcher: &dyn Watcher, cancel: &CancellationToken) {
    let all = super::reconcile(batch, views, watcher, cancel).await;
    if cancel.is_cancelled() {
        return;
    }
    for one in &all {
        let Reconciled {
            view,
            compared,
            different,
            unexplained,
            ..
        } = one;
        if one.is_sound() {
            tracing::info!(view, compared, different, "reconciled: nothing is wrong");
        } else {
            let why = one
                .why
                .as_deref()
                .unwrap_or("`highwater reconcile list` names the report");
            tracing::error!(
                view,
                compared,
                different,
                unexplained,
                "reconciled, and something is wrong: {why}"
            );
        }
    }
    if let Err(error) = keep(batch, &all).await {
        tracing::warn!(%error, "the report of a reconciliation can't be kept");
    }
}

/// Counts the verdict, and shows it, as metrics.
pub(super) fn record(all: &[Reconciled]) {
    for one in all {
        let result = if one.is_sound() { "sound" } else { "unsound" };
        metrics::counter!("highwater_reconciliations_total", "view" => one.view.clone(), "result" => result)
            .increment(1);
        // Counts are below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
        let unexplained = (one.unexplained + one.ledgers.unexplained) as f64;
        metrics::gauge!("highwater_reconciliation_unexplained", "view" => one.view.clone()).set(unexplained);
    }
}

/// A view's report as Markdown.
pub fn page(one: &Reconciled) -> String {
    let mut page = String::new();
    let verdict = if one.is_sound() {
        "nothing is wrong"
    } else if one.compared == 0 {
        "nothing was compared"
    } else {
        "something is wrong"
    };
    line(&mut page, format_args!("# {}: {verdict}\n", one.view));
    if let Some(why) = &one.why {
        line(&mut page, format_args!("{why}\n"));
    }
    line(
        &mut page,
        format_args!(
            "{} values compared with the archive: {} equal, {} different, {} of these unexplained. {} ledgers compared: {} \
             different, {} unexplained.\n",
            one.compared,
            one.equal,
            one.different,
            one.unexplained,
            one.ledgers.compared,
            one.ledgers.different,
            one.ledgers.unexplained
        ),
    );
    if !one.causes.is_empty() {
        line(
            &mut page,
            format_args!("| cause | values | what it is |\n|---|---|---|"),
        );
        for (cause, count) in &one.causes {
            let name = serde_json::to_value(cause).unwrap_or_default();
            let name = name.as_str().unwrap_or_default();
            line(&mut page, format_args!("| {name} | {count} | {} |", cause.says()));
        }
        line(&mut page, format_args!(""));
    }
    if !one.partitions.is_empty() {
        line(
            &mut page,
            format_args!("| partition | batch below | speed up to | archived up to | gaps |\n|---|---|---|---|---|"),
        );
        for partition in &one.partitions {
            let gaps: Vec<_> = partition
                .gaps
                .iter()
                .map(|(from, to)| format!("{from} to {}", to.saturating_sub(1)))
                .collect();
            line(
                &mut page,
                format_args!(
                    "| {} | {} | {} | {} | {} |",
                    partition.partition,
                    partition.mark,
                    partition.up_to,
                    partition.archive_end,
                    gaps.join(", ")
                ),
            );
        }
        line(&mut page, format_args!(""));
    }
    for alarm in &one.alarms {
        line(&mut page, format_args!("- {alarm}"));
    }
    if !one.calibration.is_empty() {
        line(&mut page, format_args!("## Stated bounds\n"));
        one.calibration
            .iter()
            .for_each(|one| line(&mut page, format_args!("- {}", held(one))));
        line(&mut page, format_args!(""));
    }
    if !one.differences.is_empty() {
        line(&mut page, format_args!("## Differences\n"));
        one.differences
            .iter()
            .take(ON_PAGE)
            .for_each(|one| tell(&mut page, one));
        let more = one.different.saturating_sub(ON_PAGE as u64);
        if more > 0 {
            line(&mut page, format_args!("And {more} more."));
        }
    }
    page
}

/// How often a bound held, as a sentence.
pub fn held(one: &Calibration) -> String {
    let what = match one.of {
        super::Cause::Rounding => "rounding",
        _ => "estimate",
    };
    format!(
        "`{}`, {what}: the stated bound held in {} of {} cells ({:.0} % stated); {} were off at all, by {:.2} of the bound at most",
        one.measure,
        one.within,
        one.cells,
        one.stated * 100.0,
        one.off,
        one.worst
    )
}

fn tell(page: &mut String, one: &Difference) {
    let dimensions = one
        .dimensions
        .iter()
        .map(|(name, value)| format!(" {name}={}", null(value.as_deref())));
    line(
        page,
        format_args!(
            "### {} in {}{}\n",
            one.measure,
            one.window,
            dimensions.collect::<String>()
        ),
    );
    line(
        page,
        format_args!(
            "Answered `{}`, archived `{}`: {}.\n",
            null(one.held.as_deref()),
            null(one.exact.as_deref()),
            one.says()
        ),
    );
    for contribution in &one.contributions {
        line(
            page,
            format_args!("- {} contributes `{}`", contribution.cause.says(), contribution.state),
        );
    }
    one.place
        .iter()
        .for_each(|place| line(page, format_args!("- {}", placed(place))));
    if !one.events.is_empty() {
        line(
            page,
            format_args!("\n{} archived events there, of which:\n", one.events_in_place),
        );
        for event in &one.events {
            let values = event
                .values
                .iter()
                .map(|(name, value)| format!(" {name}={}", null(value.as_deref())));
            line(
                page,
                format_args!(
                    "    partition {} offset {} {}: {}{}",
                    event.partition,
                    event.offset,
                    event.counted,
                    event.event_time,
                    values.collect::<String>()
                ),
            );
        }
    }
    line(page, format_args!(""));
}

/// A place as a sentence.
pub fn placed(place: &Place) -> String {
    let whose = match (place.start, place.partition) {
        (Some(start), Some(partition)) => {
            format!("the speed layer's row of partition {partition} from offset {start} on")
        }
        _ => format!(
            "the batch row of run {}",
            place.run.as_deref().unwrap_or("(there is none)")
        ),
    };
    let offsets = place
        .offsets
        .map(|(from, to)| format!(", offsets {from} to {}", to.saturating_sub(1)));
    let finding = place.finding.map(|finding| format!(" ({finding})"));
    format!(
        "{whose} holds `{}` and should hold `{}`{}{}",
        null(place.held.as_deref()),
        null(place.expected.as_deref()),
        offsets.unwrap_or_default(),
        finding.unwrap_or_default()
    )
}

/// A value that anybody may have sent: what would move a terminal's cursor is escaped.
fn null(value: Option<&str>) -> String {
    let value = value.unwrap_or("null");
    let letters = value.chars().map(|letter| {
        if letter.is_control() {
            letter.escape_default().to_string()
        } else {
            letter.to_string()
        }
    });
    letters.collect()
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{text}");
}
