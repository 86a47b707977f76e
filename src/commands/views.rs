//! `highwater views`: what the store holds of views, and taking away what no definition names.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use highwater_batch::{Batch, Logs};
use indicatif::BinaryBytes;
use serde::Serialize;
use shared_connections::store::{HeldView, Store};
use shared_schemas::definitions::Definitions;
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::{Place, WOULD_GO, on_store, used_wrongly};

/// What ClickHouse holds of views, and removing what no definition names
#[derive(Debug, clap::Args)]
pub(crate) struct Views {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show all views in ClickHouse, those that no definition names too
    ///
    /// Rows belong to a view's fingerprint, which changes with what the view computes; so a view that was changed or taken out
    /// of the definitions stays as it was, and comes back where it stood if its definition does.
    #[command(after_help = "Examples:\n  \
        highwater views list\n  \
        highwater views list --output json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Remove views that no definition names: rows, progress, cuts, publications, floors
    ///
    /// Says what would go; with --yes it goes, for good. A view that the definitions name is refused: take it out of them, end or restart every
    /// process that knows it, then remove it. The archive keeps its events, so a definition that comes back is computed anew.
    #[command(after_help = "Examples:\n  \
        highwater views remove --unused\n  \
        highwater views remove --unused --yes\n  \
        highwater views remove 0a1b2c3d4e5f60718293a4b5c6d7e8f9 --yes")]
    Remove {
        /// Fingerprints, as `highwater views list` shows them
        #[arg(
            value_name = "FINGERPRINT",
            required_unless_present = "unused",
            conflicts_with = "unused"
        )]
        fingerprints: Vec<String>,
        /// All that no definition names
        #[arg(long)]
        unused: bool,
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Wait while a batch run is under way, instead of failing
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    /// Its name; none where no definition has this fingerprint.
    view: Option<String>,
    fingerprint: String,
    batch_rows: u64,
    speed_rows: u64,
    control_rows: u64,
    bytes: u64,
    publications: u64,
    published_at: Option<String>,
    /// Whether it was removed just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<bool>,
}

impl Row {
    fn of(fingerprint: String, held: &HeldView, names: &BTreeMap<String, String>) -> Self {
        let published = DateTime::from_timestamp_millis(held.published).filter(|_| held.publications > 0);
        Self {
            view: names.get(&fingerprint).cloned(),
            fingerprint,
            batch_rows: held.batch_rows,
            speed_rows: held.speed_rows,
            control_rows: held.control_rows,
            bytes: held.bytes,
            publications: held.publications,
            published_at: published.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            removed: None,
        }
    }
}

impl Views {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        on_store(place, async |batch| self.command.run(batch).await)
    }
}

impl Command {
    async fn run(self, batch: &Batch) -> anyhow::Result<ExitCode> {
        let rows = rows(&batch.store, &batch.definitions).await?;
        match self {
            Self::List { output } => {
                output.print(&rows, |rows| table(rows))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Remove {
                fingerprints,
                unused,
                yes,
                wait,
                output,
            } => {
                let mut chosen = match chosen(rows, &fingerprints, unused) {
                    Ok(chosen) => chosen,
                    Err(wrong) => return Ok(used_wrongly(&wrong)),
                };
                if yes {
                    let cancel = CancellationToken::new();
                    let _lease = batch.lease("views remove", wait, &Logs, &cancel).await?;
                    for row in &mut chosen {
                        batch.store.remove_view(&row.fingerprint).await?;
                        row.removed = Some(true);
                    }
                }
                output.print_text(&chosen, |chosen| {
                    let text = super::output::columns(&table(chosen));
                    let what = match (chosen.len(), yes) {
                        (0, _) => "no view is without a definition: nothing to remove\n",
                        (_, true) => "removed\n",
                        (_, false) => WOULD_GO,
                    };
                    if chosen.is_empty() {
                        what.to_owned()
                    } else {
                        text + what
                    }
                })?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Defined ones first, by name.
async fn rows(store: &Store, definitions: &Definitions) -> anyhow::Result<Vec<Row>> {
    let names: BTreeMap<_, _> = definitions
        .views
        .iter()
        .map(|view| (view.fingerprint.to_string(), view.name.clone()))
        .collect();
    let held = store.held_views().await?;
    let mut rows: Vec<_> = held
        .into_iter()
        .map(|(fingerprint, held)| Row::of(fingerprint, &held, &names))
        .collect();
    rows.sort_by(|a, b| (a.view.is_none(), &a.view, &a.fingerprint).cmp(&(b.view.is_none(), &b.view, &b.fingerprint)));
    Ok(rows)
}

/// Those to be removed; or why they can't be.
fn chosen(rows: Vec<Row>, fingerprints: &[String], unused: bool) -> Result<Vec<Row>, String> {
    for wanted in fingerprints {
        let row = rows
            .iter()
            .find(|row| row.fingerprint == *wanted || row.view.as_ref() == Some(wanted));
        match row {
            None => {
                return Err(format!(
                    "ClickHouse holds no view `{wanted}`: `highwater views list` shows the fingerprints of those that it holds"
                ));
            }
            Some(Row { view: Some(view), .. }) => {
                return Err(format!(
                    "view `{view}` is defined: take it out of the definitions first, and restart what runs with them"
                ));
            }
            Some(_) => {}
        }
    }
    let wanted: BTreeSet<_> = fingerprints.iter().collect();
    let is_chosen = |row: &Row| row.view.is_none() && (unused || wanted.contains(&row.fingerprint));
    Ok(rows.into_iter().filter(is_chosen).collect())
}

fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = [
        "view",
        "fingerprint",
        "batch rows",
        "speed rows",
        "bytes",
        "publications",
        "last published",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|row| {
        vec![
            row.view.clone().unwrap_or_else(|| "(no definition)".to_owned()),
            row.fingerprint.clone(),
            row.batch_rows.to_string(),
            row.speed_rows.to_string(),
            BinaryBytes(row.bytes).to_string(),
            row.publications.to_string(),
            row.published_at.clone().unwrap_or_default(),
        ]
    }));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_definition_names_is_chosen() {
        let names = BTreeMap::from([("aa".to_owned(), "hourly".to_owned())]);
        let rows = || {
            let row = |fingerprint: &str| Row::of(fingerprint.to_owned(), &HeldView::default(), &names);
            vec![row("aa"), row("bb"), row("cc")]
        };
        let of = |fingerprints: &[&str], unused| {
            let fingerprints: Vec<_> = fingerprints.iter().map(|&text| text.to_owned()).collect();
            let chosen = chosen(rows(), &fingerprints, unused)?;
            Ok::<_, String>(chosen.into_iter().map(|row| row.fingerprint).collect::<Vec<_>>())
        };
        assert_eq!(of(&[], true).unwrap(), ["bb", "cc"]);
        assert_eq!(of(&["cc"], false).unwrap(), ["cc"]);
        for defined in ["aa", "hourly"] {
            assert!(
                of(&["cc", defined], false)
                    .unwrap_err()
                    .starts_with("view `hourly` is defined")
            );
        }
        assert!(
            of(&["dd"], false)
                .unwrap_err()
                .starts_with("ClickHouse holds no view `dd`")
        );
    }
}
