//! `highwater check`: all mistakes, or what the definitions come to.

use std::process::ExitCode;

use serde::Serialize;
use shared_schemas::dataset::{Dataset, EventTime, PathMask, Undeclared};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::measure::Exactness;
use shared_schemas::mistake::Mistakes;
use shared_schemas::store;
use shared_schemas::units::show_duration;
use shared_schemas::view::View;

use super::Place;
use super::output::{Output, columns};
use crate::USED_WRONGLY;

/// What missing keys mean.
const WITHOUT_KEYS: &str =
    "Without these keys nothing starts, and with them the fingerprints of rules and views are others.\n";

/// Check the configuration and the definitions; show all mistakes, or what each view comes to
///
/// Nothing is started and nothing is reached. With a mistake it exits 2. Keys of mask rules need not be set here: it says
/// which are not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater check\n  \
    highwater check --config deploy/examples/flights/highwater.toml\n  \
    highwater check --output json")]
pub(crate) struct Check {
    #[command(flatten)]
    output: Output,
}

impl Check {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let report = Report::of(place);
        self.output.print_text(&report, Report::text)?;
        Ok(if report.mistakes.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(USED_WRONGLY)
        })
    }
}

/// All that is found.
#[derive(Debug, Serialize)]
struct Report {
    mistakes: Mistakes,
    /// Keys of mask rules that this environment does not have. Another one may, so they are no mistakes here.
    #[serde(skip_serializing_if = "Mistakes::is_empty")]
    missing_keys: Mistakes,
    #[serde(skip_serializing_if = "Option::is_none")]
    datasets: Option<Vec<DatasetReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    views: Option<Vec<ViewReport>>,
}

#[derive(Debug, Serialize)]
struct DatasetReport {
    name: String,
    topic: String,
    partitions: u16,
    event_time: String,
    event_id: Vec<String>,
    /// The fingerprint of its rules.
    rules: String,
    /// What becomes of undeclared data.
    extra: &'static str,
    /// The paths of undeclared data that are masked, as definitions write them.
    masked_paths: Vec<String>,
    fields: Vec<FieldReport>,
}

#[derive(Debug, Serialize)]
struct FieldReport {
    name: String,
    r#type: String,
    masked: bool,
}

#[derive(Debug, Serialize)]
struct ViewReport {
    name: String,
    dataset: String,
    grain: String,
    fingerprint: String,
    tables: Vec<String>,
    columns: Vec<ColumnReport>,
}

#[derive(Debug, Serialize)]
struct ColumnReport {
    name: String,
    r#type: String,
    expression: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exactness: Option<&'static str>,
}

impl Report {
    fn of(place: &Place) -> Self {
        match place.read() {
            Ok((_, definitions, missing_keys)) => Self {
                mistakes: Mistakes::default(),
                missing_keys,
                datasets: Some(definitions.datasets.iter().map(DatasetReport::of).collect()),
                views: Some(definitions.views.iter().map(ViewReport::of).collect()),
            },
            Err(mistakes) => Self {
                mistakes,
                missing_keys: Mistakes::default(),
                datasets: None,
                views: None,
            },
        }
    }

    fn text(&self) -> String {
        if !self.mistakes.is_empty() {
            return format!("{}\n", self.mistakes);
        }
        let datasets = self.datasets.iter().flatten().map(DatasetReport::text);
        let views = self.views.iter().flatten().map(ViewReport::text);
        let missing = self.missing_keys.iter().map(ToString::to_string);
        let mut parts: Vec<String> = datasets.chain(views).chain(missing).collect();
        if !self.missing_keys.is_empty() {
            parts.push(WITHOUT_KEYS.to_owned());
        }
        parts.join("\n")
    }
}

impl DatasetReport {
    fn of(dataset: &Dataset) -> Self {
        let field = |field: &shared_schemas::dataset::Field| FieldReport {
            name: field.name.clone(),
            r#type: format!("{}{}", field.field_type, if field.nullable { "?" } else { "" }),
            masked: field.mask.is_some(),
        };
        Self {
            name: dataset.name.clone(),
            topic: dataset.topic.clone(),
            partitions: dataset.partitions,
            event_time: match &dataset.event_time {
                EventTime::Field(name) => name.clone(),
                EventTime::KafkaTime => "$kafka_time".to_owned(),
            },
            event_id: dataset.event_id.clone(),
            rules: Fingerprint::of_rules(dataset).to_string(),
            extra: match dataset.privacy.undeclared {
                Undeclared::Keep => "keep",
                Undeclared::Drop => "drop",
            },
            masked_paths: dataset.privacy.paths.iter().map(PathMask::written).collect(),
            fields: dataset.fields.iter().map(field).collect(),
        }
    }

    fn text(&self) -> String {
        let event_id = if self.event_id.is_empty() {
            "none: nothing is a repeat".to_owned()
        } else {
            self.event_id.join(", ")
        };
        let mut rows = vec![
            vec![
                "  topic".to_owned(),
                format!("{}, {} partitions", self.topic, self.partitions),
            ],
            vec!["  event time".to_owned(), self.event_time.clone()],
            vec!["  event id".to_owned(), event_id],
            vec!["  rules".to_owned(), self.rules.clone()],
        ];
        let extra = match &self.masked_paths[..] {
            [] if self.extra == "drop" => "dropped: nothing undeclared is kept".to_owned(),
            [] => String::new(),
            paths => format!("masked at {}", paths.join(", ")),
        };
        if !extra.is_empty() {
            rows.push(vec!["  undeclared".to_owned(), extra]);
        }
        let mut text = format!("dataset {}\n{}", self.name, columns(&rows));
        rows.clear();
        for field in &self.fields {
            let masked = if field.masked { "masked" } else { "" };
            rows.push(vec![
                format!("    {}", field.name),
                field.r#type.clone(),
                masked.to_owned(),
            ]);
        }
        text.push_str(&columns(&rows));
        text
    }
}

impl ViewReport {
    fn of(view: &View) -> Self {
        let column = |column: shared_schemas::view::ResultColumn| ColumnReport {
            name: column.name,
            r#type: column.type_name,
            expression: column.expression,
            exactness: column.exactness.map(exactness),
        };
        Self {
            name: view.name.clone(),
            dataset: view.dataset.clone(),
            grain: show_duration(view.grain),
            fingerprint: view.fingerprint.to_string(),
            tables: store::view_tables(view).map(|table| table.name).to_vec(),
            columns: view.columns().into_iter().map(column).collect(),
        }
    }

    fn text(&self) -> String {
        let about = [
            vec!["  dataset".to_owned(), self.dataset.clone()],
            vec!["  grain".to_owned(), self.grain.clone()],
            vec!["  fingerprint".to_owned(), self.fingerprint.clone()],
            vec!["  tables".to_owned(), self.tables.join(", ")],
        ];
        let rows = self.columns.iter().map(|column| {
            let exactness = column.exactness.unwrap_or_default().to_owned();
            vec![
                format!("    {}", column.name),
                column.r#type.clone(),
                exactness,
                column.expression.clone(),
            ]
        });
        format!(
            "view {}\n{}{}",
            self.name,
            columns(&about),
            columns(&rows.collect::<Vec<_>>())
        )
    }
}

/// An exactness in a word.
fn exactness(exactness: Exactness) -> &'static str {
    match exactness {
        Exactness::Exact => "exact",
        Exactness::Rounded => "rounded",
        Exactness::ExactInBatch => "exact_in_batch",
        Exactness::Estimated => "estimated",
    }
}
