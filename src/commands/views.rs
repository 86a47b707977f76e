//! `highwater views`: what the store holds of views, and taking away what no definition names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use highwater_batch::{Batch, Logs};
use indicatif::BinaryBytes;
use serde::Serialize;
use shared_connections::store::{Counted, HeldView, Store};
use shared_schemas::definitions::Definitions;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::{Place, WOULD_GO, on_store, used_wrongly};

/// What ClickHouse holds of views, and removing what no definition names
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater views list\n  \
    highwater views remove --unused")]
pub(crate) struct Views {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show all views in ClickHouse, those that no definition names too
    ///
    /// Rows belong to a view's fingerprint, which changes with what the view computes; so a view that was changed or taken out
    /// of the definitions stays as it was, and comes back where it stood if its definition does. One that was changed is `building`
    /// until a batch run publishes it, and meanwhile what was published last under its name answers for it.
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
        /// All that no definition names, but what answers for a view that is building
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
    state: State,
    /// The views for which it answers, until the first publication of what they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<String>,
    /// Why it can't answer for a view that is building, although it was published under its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    /// How far the speed layer has come with what is building; none where it has not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
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

/// What a fingerprint is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Defined, and published.
    Published,
    /// Defined, and not published yet.
    Building,
    /// No definition names it, and it answers for a view that is building.
    Answers,
    /// No definition names it.
    Unused,
}

impl State {
    fn of(defined: bool, published: bool, answers: bool) -> Self {
        match (defined, published, answers) {
            (true, true, _) => Self::Published,
            (true, false, _) => Self::Building,
            (false, _, true) => Self::Answers,
            (false, _, false) => Self::Unused,
        }
    }
}

/// What there is to know besides what the store holds.
#[derive(Debug, Default)]
struct Names {
    /// The views that are defined, by fingerprint.
    defined: BTreeMap<String, String>,
    /// Those for which a fingerprint answers.
    answers: BTreeMap<String, Vec<String>>,
    /// Why others, that were published, can't.
    unreadable: BTreeMap<String, String>,
}

impl Row {
    fn of(fingerprint: String, held: &HeldView, names: &Names) -> Self {
        let published = DateTime::from_timestamp_millis(held.published).filter(|_| held.publications > 0);
        let view = names.defined.get(&fingerprint).cloned();
        let answers = names.answers.get(&fingerprint).cloned().unwrap_or_default();
        Self {
            state: State::of(view.is_some(), held.publications > 0, !answers.is_empty()),
            unreadable: names.unreadable.get(&fingerprint).cloned(),
            view,
            fingerprint,
            answers,
            counted: None,
            batch_rows: held.batch_rows,
            speed_rows: held.speed_rows,
            control_rows: held.control_rows,
            bytes: held.bytes,
            publications: held.publications,
            published_at: published.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            removed: None,
        }
    }

    /// Its state, for people.
    fn state(&self) -> String {
        match (self.state, self.counted) {
            (State::Published, _) => "published".to_owned(),
            (State::Building, Some(counted)) => format!("building, {} % counted", counted.percent()),
            (State::Building, None) => "building".to_owned(),
            (State::Answers, _) => format!("answers for {}", self.answers.join(", ")),
            (State::Unused, _) => match &self.unreadable {
                Some(why) => format!("unused, {why}"),
                None => "unused".to_owned(),
            },
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
                let kept = kept(&rows, unused);
                let mut chosen = match chosen(rows, &fingerprints, unused) {
                    Ok(chosen) => chosen,
                    Err(wrong) => return Ok(used_wrongly(&wrong)),
                };
                for line in kept {
                    // Nothing is left to do where even this can't be written.
                    let _ = writeln!(std::io::stderr().lock(), "{line}");
                }
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
                        (0, _) => "no view is unused: nothing to remove\n",
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
    let views = definitions.views.iter();
    let known = store.known().await?;
    let answers = known.answering_for_others(definitions);
    let unreadable = known.unanswerable(definitions).into_iter();
    let names = Names {
        defined: views
            .map(|view| (view.fingerprint.to_string(), view.name.clone()))
            .collect(),
        answers: answers
            .into_iter()
            .map(|(fingerprint, views)| (fingerprint.to_string(), views))
            .collect(),
        unreadable: unreadable
            .map(|(fingerprint, view, why)| (fingerprint.to_string(), format!("can't answer for {view}: {why}")))
            .collect(),
    };
    let held = store.held_views().await?;
    let mut rows: Vec<_> = held
        .into_iter()
        .map(|(fingerprint, held)| Row::of(fingerprint, &held, &names))
        .collect();
    for row in rows.iter_mut().filter(|row| row.state == State::Building) {
        let is_it = |view: &&View| view.fingerprint.to_string() == row.fingerprint;
        if let Some(view) = definitions.views.iter().find(is_it) {
            let (facts, freshness) = tokio::try_join!(store.facts(view), store.freshness(view))?;
            row.counted = Counted::of(view, &facts, &freshness);
        }
    }
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
    let is_chosen = |row: &Row| match row.state {
        State::Published | State::Building => false,
        State::Answers => wanted.contains(&row.fingerprint),
        State::Unused => unused || wanted.contains(&row.fingerprint),
    };
    Ok(rows.into_iter().filter(is_chosen).collect())
}

/// Why some that no definition names are not among those that are unused.
fn kept(rows: &[Row], unused: bool) -> Vec<String> {
    let kept = rows.iter().filter(|row| unused && row.state == State::Answers);
    let line = |row: &Row| {
        format!(
            "{} is kept: it answers for {} until the first publication of the new definition",
            row.fingerprint,
            row.answers.join(", ")
        )
    };
    kept.map(line).collect()
}

fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = [
        "view",
        "fingerprint",
        "state",
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
            row.state(),
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
        let names = Names {
            defined: BTreeMap::from([("aa".to_owned(), "hourly".to_owned())]),
            answers: BTreeMap::from([("dd".to_owned(), vec!["hourly".to_owned()])]),
            unreadable: BTreeMap::from([("cc".to_owned(), "can't answer for hourly: why".to_owned())]),
        };
        let rows = || {
            let row = |fingerprint: &str| Row::of(fingerprint.to_owned(), &HeldView::default(), &names);
            vec![row("aa"), row("bb"), row("cc"), row("dd")]
        };
        let of = |fingerprints: &[&str], unused| {
            let fingerprints: Vec<_> = fingerprints.iter().map(|&text| text.to_owned()).collect();
            let chosen = chosen(rows(), &fingerprints, unused)?;
            Ok::<_, String>(chosen.into_iter().map(|row| row.fingerprint).collect::<Vec<_>>())
        };
        assert_eq!(of(&[], true).unwrap(), ["bb", "cc"]);
        assert_eq!(of(&["cc"], false).unwrap(), ["cc"]);
        // What answers goes only where it is named.
        assert_eq!(of(&["dd"], false).unwrap(), ["dd"]);
        assert_eq!(kept(&rows(), false), Vec::<String>::new());
        assert_eq!(
            kept(&rows(), true),
            ["dd is kept: it answers for hourly until the first publication of the new definition"]
        );
        assert_eq!(
            rows().iter().map(Row::state).collect::<Vec<_>>(),
            [
                "building",
                "unused",
                "unused, can't answer for hourly: why",
                "answers for hourly"
            ]
        );
        for defined in ["aa", "hourly"] {
            assert!(
                of(&["cc", defined], false)
                    .unwrap_err()
                    .starts_with("view `hourly` is defined")
            );
        }
        assert!(
            of(&["ee"], false)
                .unwrap_err()
                .starts_with("ClickHouse holds no view `ee`")
        );
    }
}
