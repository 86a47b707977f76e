//! `highwater datasets`: what is held of datasets, and taking away what no definition names.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use highwater_batch::archive::{HeldArchive, held_archives, remove_archive};
use highwater_batch::{Batch, Logs};
use indicatif::BinaryBytes;
use serde::Serialize;
use shared_connections::store::HeldView;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::TopicId;
use tokio_util::sync::CancellationToken;

use super::output::{Output, columns};
use super::{Place, WOULD_GO, on_store, used_wrongly};

/// What is held of datasets, and removing what no definition names
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater datasets list\n  \
    highwater datasets remove flights")]
pub(crate) struct Datasets {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show all datasets that are defined, or of which something is archived
    ///
    /// Views of a dataset that no definition names are told by the topics that its archive came from; `highwater views list` shows
    /// all there are.
    #[command(after_help = "Examples:\n  \
        highwater datasets list\n  \
        highwater datasets list --output json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Remove a dataset that no definition names: its archive, and its views' rows, progress and publications
    ///
    /// Says what would go; with --yes it goes, for good. A dataset that the definitions name is refused: take it and its views out
    /// of them, end or restart every process that knows it, then remove it. The topic and its dead letters stay as they are: they
    /// are Kafka's. Killed on the way, it is done again.
    #[command(after_help = "Examples:\n  \
        highwater datasets remove flights\n  \
        highwater datasets remove flights --yes")]
    Remove {
        /// Its name, as `highwater datasets list` shows it
        #[arg(value_name = "DATASET")]
        dataset: String,
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

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Row {
    dataset: String,
    /// Whether a definition names it.
    defined: bool,
    /// Archived events.
    events: u64,
    /// Files of the archive, and their bytes.
    files: u64,
    bytes: u64,
    /// Its views: names, or fingerprints where no definition has it.
    views: Vec<String>,
    batch_rows: u64,
    speed_rows: u64,
    control_rows: u64,
    publications: u64,
    /// What the views take on disk.
    view_bytes: u64,
    /// Why the archive can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Whether it was removed just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<bool>,
}

impl Datasets {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        on_store(place, async |batch| self.command.run(batch).await)
    }
}

impl Command {
    async fn run(self, batch: &Batch) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { output } => {
                output.print(&rows(batch).await?, |rows| table(rows))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Remove {
                dataset,
                yes,
                wait,
                output,
            } => {
                let lease = if yes {
                    let cancel = CancellationToken::new();
                    Some(batch.lease("datasets remove", wait, &Logs, &cancel).await?)
                } else {
                    None
                };
                let mut row = match chosen(rows(batch).await?, &dataset) {
                    Ok(row) => row,
                    Err(wrong) => return Ok(used_wrongly(&wrong)),
                };
                if yes {
                    // The archive tells which views are its own: it goes last.
                    for fingerprint in &row.views {
                        batch.store.remove_view(fingerprint).await?;
                    }
                    remove_archive(&batch.config.archive, &row.dataset).await?;
                    row.removed = Some(true);
                }
                drop(lease);
                output.print_text(&row, |row| text(row, yes))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn rows(batch: &Batch) -> anyhow::Result<Vec<Row>> {
    let archives = held_archives(&batch.config.archive).await?;
    let held = batch.store.held_views().await?;
    let topics = batch.store.topics_of_views().await?;
    Ok(rows_of(&batch.definitions, &archives, &held, &topics))
}

/// Defined ones first, then by name.
fn rows_of(
    definitions: &Definitions,
    archives: &[HeldArchive],
    held: &BTreeMap<String, HeldView>,
    topics: &BTreeMap<String, BTreeSet<TopicId>>,
) -> Vec<Row> {
    let defined: BTreeMap<_, _> = definitions
        .views
        .iter()
        .map(|view| (view.fingerprint.to_string(), view))
        .collect();
    let archived = |name: &str| archives.iter().find(|archive| archive.dataset == name).cloned();
    let mut rows = Vec::new();
    for dataset in &definitions.datasets {
        let mut row = Row::of(archived(&dataset.name).unwrap_or_default());
        row.dataset.clone_from(&dataset.name);
        row.defined = true;
        let views = defined.iter().filter(|(_, view)| view.dataset == dataset.name);
        for (fingerprint, view) in views {
            row.add(view.name.clone(), held.get(fingerprint));
        }
        rows.push(row);
    }
    let known = |archive: &&HeldArchive| definitions.dataset(&archive.dataset).is_none();
    for archive in archives.iter().filter(known) {
        // A topic that another dataset was read from too tells nothing.
        let others = archives.iter().filter(|other| other.dataset != archive.dataset);
        let shared: BTreeSet<_> = others.flat_map(|other| &other.topics).collect();
        let is_its = |topic: &TopicId| archive.topics.contains(topic) && !shared.contains(topic);
        let mut row = Row::of(archive.clone());
        for (fingerprint, of_view) in topics
            .iter()
            .filter(|(fingerprint, _)| !defined.contains_key(*fingerprint))
        {
            if of_view.iter().any(is_its) {
                row.add(fingerprint.clone(), held.get(fingerprint));
            }
        }
        rows.push(row);
    }
    rows.sort_by(|a, b| (!a.defined, &a.dataset).cmp(&(!b.defined, &b.dataset)));
    rows
}

impl Row {
    fn of(archive: HeldArchive) -> Self {
        Self {
            dataset: archive.dataset,
            events: archive.events,
            files: archive.files.files,
            bytes: archive.files.bytes,
            problem: archive.problem,
            ..Self::default()
        }
    }

    fn add(&mut self, view: String, held: Option<&HeldView>) {
        self.views.push(view);
        if let Some(held) = held {
            self.batch_rows += held.batch_rows;
            self.speed_rows += held.speed_rows;
            self.control_rows += held.control_rows;
            self.publications += held.publications;
            self.view_bytes += held.bytes;
        }
    }
}

/// The one to be removed; or why it can't be.
fn chosen(rows: Vec<Row>, dataset: &str) -> Result<Row, String> {
    match rows.into_iter().find(|row| row.dataset == dataset) {
        None => Err(format!(
            "nothing is archived of a dataset `{dataset}`: `highwater datasets list` shows those that there are"
        )),
        Some(Row { defined: true, .. }) => Err(format!(
            "dataset `{dataset}` is defined: take it and its views out of the definitions first, and restart what runs with them"
        )),
        Some(row) => Ok(row),
    }
}

fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = [
        "dataset",
        "defined",
        "events",
        "files",
        "bytes",
        "views",
        "batch rows",
        "speed rows",
        "publications",
        "bytes of views",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|row| {
        vec![
            row.dataset.clone(),
            if row.defined { "yes" } else { "no" }.to_owned(),
            row.events.to_string(),
            row.files.to_string(),
            BinaryBytes(row.bytes).to_string(),
            row.views.len().to_string(),
            row.batch_rows.to_string(),
            row.speed_rows.to_string(),
            row.publications.to_string(),
            BinaryBytes(row.view_bytes).to_string(),
        ]
    }));
    for row in rows {
        let problem = row.problem.as_ref();
        table.extend(problem.map(|problem| vec![row.dataset.clone(), problem.clone()]));
    }
    table
}

fn text(row: &Row, done: bool) -> String {
    let mut text = columns(&table(std::slice::from_ref(row)));
    for view in &row.views {
        text.push_str(&format!("view {view}\n"));
    }
    text.push_str("the topic and its dead letters stay in Kafka\n");
    text.push_str(if done { "removed\n" } else { WOULD_GO });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLIGHTS: &str = "[dataset.flights]\nevent_time = \"at\"\n[dataset.flights.fields]\nat = \"timestamp\"\n\
                           [view.hourly]\ndataset = \"flights\"\ngrain = \"1h\"\n[view.hourly.measures]\nn = \"count()\"\n";

    fn archive(dataset: &str, topics: &[u128]) -> HeldArchive {
        HeldArchive {
            dataset: dataset.to_owned(),
            topics: topics.iter().copied().map(TopicId).collect(),
            ..HeldArchive::default()
        }
    }

    #[test]
    fn a_view_without_a_definition_goes_with_the_dataset_whose_topic_it_counted() {
        let definitions = Definitions::parse([("flights.toml", FLIGHTS)]).unwrap();
        let hourly = definitions.views[0].fingerprint.to_string();
        let archives = [
            archive("flights", &[1, 2]),
            archive("old", &[2, 3]),
            archive("older", &[4]),
            archive("oldest", &[5]),
        ];
        let of = |topics: &[u128]| topics.iter().copied().map(TopicId).collect::<BTreeSet<_>>();
        let topics = BTreeMap::from([
            (hourly, of(&[1])),
            ("aa".to_owned(), of(&[3, 9])),
            ("bb".to_owned(), of(&[2])),
            ("cc".to_owned(), of(&[4])),
            ("dd".to_owned(), of(&[9])),
        ]);
        let rows = rows_of(&definitions, &archives, &BTreeMap::new(), &topics);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.dataset.as_str(), row.defined, row.views.join(" ")))
            .collect();
        assert_eq!(
            told,
            [
                ("flights", true, "hourly".to_owned()),
                ("old", false, "aa".to_owned()),
                ("older", false, "cc".to_owned()),
                ("oldest", false, String::new())
            ],
            "of a topic that two were read from nobody knows whose views are"
        );
        assert_eq!(chosen(rows.clone(), "old").unwrap().views, ["aa"]);
        assert!(
            chosen(rows.clone(), "flights")
                .unwrap_err()
                .starts_with("dataset `flights` is defined")
        );
        assert!(
            chosen(rows, "../etc")
                .unwrap_err()
                .starts_with("nothing is archived of a dataset `../etc`")
        );
    }
}
