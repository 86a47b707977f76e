//! `highwater topics create`: the topics that the definitions need.

use std::process::ExitCode;

use local_stack::topics::{Outcome, Partitions, Topic};
use serde::Serialize;
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;

use super::Place;
use super::output::Output;

/// Topics in Kafka
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater topics create")]
pub(crate) struct Topics {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the topics that the datasets need, and those for their dead letters; check those that are there
    ///
    /// A topic that is there is never changed: another number of partitions, or a compacted topic, is an error.
    #[command(after_help = "Examples:\n  \
        highwater topics create\n  \
        highwater topics create --config /etc/highwater/highwater.toml --output json")]
    Create {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    topic: String,
    partitions: Option<u32>,
    created: bool,
}

impl Topics {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let Command::Create { output } = self.command;
        let (config, definitions) = place.join()?;
        let brokers = config.kafka.bootstrap_servers();
        let ensured = ensure(&brokers, &config, &definitions);
        let rows = tokio::runtime::Runtime::new()?.block_on(ensured)?;
        output.print(&rows, |rows| {
            rows.iter()
                .map(|row| {
                    let partitions = row.partitions.map(|partitions| format!("{partitions} partitions"));
                    let outcome = if row.created { "created" } else { "was there" };
                    vec![row.topic.clone(), partitions.unwrap_or_default(), outcome.to_owned()]
                })
                .collect()
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The user's librdkafka properties.
pub(super) fn properties(config: &Config) -> Vec<(String, String)> {
    config
        .kafka
        .properties
        .iter()
        .map(|(key, value)| (key.clone(), value.reveal().to_owned()))
        .collect()
}

/// Makes the topics of all datasets, or checks them.
pub(super) async fn ensure(brokers: &str, config: &Config, definitions: &Definitions) -> anyhow::Result<Vec<Row>> {
    let topics: Vec<Topic> = definitions
        .datasets
        .iter()
        .flat_map(|dataset| Topic::of_dataset(&dataset.topic, dataset.partitions.into(), dataset.max_event_size))
        .collect();
    let outcomes = local_stack::topics::ensure(brokers, &properties(config), &topics).await?;
    let rows = topics.into_iter().zip(outcomes).map(|(topic, outcome)| {
        let created = outcome == Outcome::Created;
        let partitions = match topic.partitions {
            Partitions::Exactly(partitions) => Some(partitions),
            Partitions::Initially(partitions) => created.then_some(partitions),
        };
        tracing::info!(
            "topic {} {}",
            topic.name,
            if created { "was created" } else { "is there" }
        );
        Row {
            topic: topic.name,
            partitions,
            created,
        }
    });
    Ok(rows.collect())
}
