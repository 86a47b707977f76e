//! `highwater reconcile list` and `show`: the reports that were kept.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use shared_connections::store::{ReconciliationRow, Store};

use super::super::output::{Output, columns};

/// A report in the list.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    view: String,
    at: String,
    verdict: &'static str,
    compared: u64,
    different: u64,
    unexplained: u64,
}

/// The newest reports, one line for each view.
pub(super) async fn list(store: &Store, output: Output) -> anyhow::Result<ExitCode> {
    let reports = store.reconciliations().await?;
    let lines: Vec<_> = reports.into_iter().map(line).collect();
    output.print_text(&lines, |lines| {
        let head = [
            "report",
            "view",
            "at",
            "verdict",
            "compared",
            "different",
            "unexplained",
        ];
        let rows = lines.iter().map(|one| {
            let counts = [one.compared, one.different, one.unexplained].map(|count| count.to_string());
            let texts = [&one.id, &one.view, &one.at, one.verdict].map(str::to_owned);
            texts.into_iter().chain(counts).collect()
        });
        columns(
            &std::iter::once(head.map(str::to_owned).to_vec())
                .chain(rows)
                .collect::<Vec<_>>(),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// How a report is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// Markdown
    Page,
    /// One JSON document
    Json,
}

/// One report: all of its views.
pub(super) async fn show(store: &Store, id: &str, form: Form) -> anyhow::Result<ExitCode> {
    let mut rows = store.reconciliation(id).await?;
    let Some(newest) = rows.first().map(|row| row.id.clone()) else {
        anyhow::bail!("there is no report `{id}`: `highwater reconcile list` shows those that are kept");
    };
    rows.retain(|row| row.id == newest);
    let mut stdout = std::io::stdout().lock();
    match form {
        Form::Page => {
            for row in &rows {
                writeln!(stdout, "{}", row.page)?;
            }
        }
        Form::Json => {
            let documents: Vec<serde_json::Value> = rows
                .iter()
                .map(|row| serde_json::from_str(&row.document).context("a kept report is no JSON"))
                .collect::<anyhow::Result<_>>()?;
            serde_json::to_writer_pretty(&mut stdout, &documents)?;
            writeln!(stdout)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(row: ReconciliationRow) -> Line {
    let at = DateTime::from_timestamp_millis(row.at).unwrap_or_default();
    Line {
        id: row.id,
        view: row.view,
        at: at.to_rfc3339_opts(SecondsFormat::Secs, true),
        verdict: if row.sound { "sound" } else { "unsound" },
        compared: row.compared,
        different: row.different,
        unexplained: row.unexplained,
    }
}
