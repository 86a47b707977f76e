//! `highwater dead-letters list`: one line for each refused record.

use std::process::ExitCode;

use serde::Serialize;
use shared_connections::log::Kafka;
use shared_connections::log::letters::find::Order;
use shared_connections::log::letters::{Letter, letters_topic};

use super::chosen::Filters;
use super::{plain, told};
use crate::commands::output::Output;
use crate::commands::{Place, dataset};

/// List dead letters: where the record lies, when it came, why it was refused, whether it was sent again
///
/// The newest first, by the records' Kafka timestamps. The whole topic of dead letters is read for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater dead-letters list flights\n  \
    highwater dead-letters list flights --reason bad_time --from 1h --open\n  \
    highwater dead-letters list flights --partition 3 --limit 1000 --output json")]
pub(super) struct List {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: String,
    #[command(flatten)]
    filters: Filters,
    /// Only those that were not sent again
    #[arg(long, conflicts_with = "replayed")]
    open: bool,
    /// Only those that were sent again
    #[arg(long)]
    replayed: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    dataset: String,
    /// The topic of dead letters.
    topic: String,
    letters: Vec<Row>,
    /// Whether older ones are left out.
    more: bool,
}

/// A dead letter, without its bytes.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    source: String,
    /// The record's Kafka timestamp.
    time: Option<String>,
    reason: String,
    detail: String,
    /// Where the letter lies.
    letter: String,
    /// Bytes of the value in the letter; null where it has none.
    value_bytes: Option<usize>,
    /// The source of the record that this one was when it was sent again before.
    replay_of: Option<String>,
    /// How often it was sent again.
    replayed: u64,
    /// When last.
    replayed_at: Option<String>,
}

impl Row {
    pub(super) fn of(letter: &Letter) -> Self {
        let topic = letters_topic(&letter.source.topic);
        Self {
            source: letter.source.to_string(),
            time: letter.source_time.clone(),
            reason: letter.reason.clone(),
            detail: letter.detail.clone(),
            letter: format!("{topic}/{}/{}", letter.partition, letter.offset),
            value_bytes: letter.value_bytes,
            replay_of: letter.replay_of.clone(),
            replayed: letter.replayed.map_or(0, |replays| replays.times),
            replayed_at: letter.replayed.and_then(|replays| replays.last).and_then(told::moment),
        }
    }

    /// Whether it was sent again, for people.
    pub(super) fn sent_again(&self) -> String {
        match (self.replayed, &self.replayed_at) {
            (0, _) => "no".to_owned(),
            (1, None) => "yes".to_owned(),
            (1, Some(at)) => at.clone(),
            (times, at) => format!("{times} times, last {}", at.as_deref().unwrap_or("?")),
        }
    }
}

impl List {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(wrong) => return Ok(wrong),
        };
        let kafka = Kafka::new(&config.kafka)?;
        let wanted = |letter: &Letter| letter.dataset == dataset.name && self.filters.fit(letter);
        let found = kafka.letters(&dataset.topic, Order::NewestFirst, &wanted)?;
        let is_shown = |letter: &&Letter| {
            let was_sent = letter.replayed.is_some();
            !(self.open && was_sent || self.replayed && !was_sent)
        };
        let mut letters = found.letters.iter().filter(is_shown);
        let most = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let rows: Vec<_> = letters.by_ref().take(most).map(Row::of).collect();
        let report = Report {
            dataset: dataset.name.clone(),
            topic: letters_topic(&dataset.topic),
            more: letters.next().is_some() || found.is_cut,
            letters: rows,
        };
        self.output.print(&report, table)?;
        if report.more {
            tracing::info!(
                "older ones are not shown: raise --limit, or say with --to before when; at most {} are looked at",
                shared_connections::log::letters::find::MOST_LETTERS
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(report: &Report) -> Vec<Vec<String>> {
    let row = |letter: &Row| {
        [
            letter.source.clone(),
            letter.time.clone().unwrap_or_default(),
            letter.reason.clone(),
            letter.sent_again(),
            plain(&letter.detail),
        ]
        .to_vec()
    };
    let title = ["source", "time", "reason", "sent again", "detail"].map(str::to_owned);
    let rows = report.letters.iter().map(row);
    if report.letters.is_empty() {
        return vec![vec!["no dead letters".to_owned()]];
    }
    std::iter::once(title.to_vec()).chain(rows).collect()
}
