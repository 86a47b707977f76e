//! What was seen, as data. Pure: the same sight gives the same report.

mod datasets;
mod views;

use chrono::SecondsFormat;
use highwater_batch::lease::Holder;
use serde::Serialize;
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;

pub(super) use datasets::{DatasetReport, PartitionReport, State, topic_in_use};
pub(super) use views::{LastRun, RunResult, ViewReport};

use super::look::Sight;
use super::told::seconds_since;
use super::warnings::warnings;

/// All that `status` shows.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// When it was seen.
    pub(super) at: String,
    pub(super) kafka: Server,
    pub(super) clickhouse: Server,
    /// Where the archive is.
    pub(super) archive: String,
    pub(super) datasets: Vec<DatasetReport>,
    pub(super) views: Vec<ViewReport>,
    pub(super) batch: BatchReport,
    /// What needs attention, in sentences.
    pub(super) warnings: Vec<String>,
    /// What could not be seen, in sentences.
    pub(super) problems: Vec<String>,
}

/// A server, as configured.
#[derive(Debug, Serialize)]
pub(super) struct Server {
    pub(super) address: String,
    pub(super) answers: bool,
}

/// When batch runs are.
#[derive(Debug, Serialize)]
pub(super) struct BatchReport {
    pub(super) schedule: String,
    pub(super) time_zone: String,
    /// When the schedule has its next start, for whoever runs it.
    pub(super) next: Option<String>,
    pub(super) seconds_to_next: Option<f64>,
    /// What is under way.
    pub(super) running: Option<Holder>,
}

impl Report {
    /// Of what was seen.
    pub(super) fn of(config: &Config, definitions: &Definitions, sight: &Sight) -> Self {
        let server = |address: String, away: Option<&String>| Server {
            address,
            answers: away.is_none(),
        };
        let datasets = definitions.datasets.iter();
        let views = definitions.views.iter();
        Self {
            at: sight.at.to_rfc3339_opts(SecondsFormat::Millis, true),
            kafka: server(config.kafka.bootstrap_servers(), sight.kafka.away.as_ref()),
            clickhouse: server(config.clickhouse.url.to_string(), sight.store.away.as_ref()),
            archive: config.archive.url.to_string(),
            datasets: datasets
                .map(|dataset| DatasetReport::of(dataset, definitions, sight))
                .collect(),
            views: views.map(|view| ViewReport::of(view, definitions, sight)).collect(),
            batch: BatchReport::of(config, sight),
            warnings: warnings(config, definitions, sight),
            problems: problems(sight),
        }
    }
}

impl BatchReport {
    fn of(config: &Config, sight: &Sight) -> Self {
        let schedule = &config.batch.schedule;
        let next = schedule.after(sight.at);
        Self {
            schedule: schedule.expression().to_owned(),
            time_zone: schedule.time_zone().to_string(),
            next: next.map(|next| next.to_rfc3339_opts(SecondsFormat::Secs, true)),
            seconds_to_next: next.map(|next| seconds_since(sight.at.timestamp_millis(), next)),
            running: sight.running.clone(),
        }
    }
}

/// What could not be seen. Each sentence once: what two datasets have in common is told of both.
fn problems(sight: &Sight) -> Vec<String> {
    let topics = sight.kafka.topics.values().filter_map(|seen| seen.as_ref().err());
    let letters = sight.kafka.letters.values().filter_map(|seen| seen.as_ref().err());
    let views = sight.store.views.values().filter_map(|seen| seen.as_ref().err());
    let archives = sight.archives.values().filter_map(|seen| seen.as_ref().err());
    let all = sight.kafka.away.iter().chain(topics).chain(letters);
    let all = all.chain(&sight.store.away).chain(views).chain(archives);
    let mut problems: Vec<String> = Vec::new();
    for problem in all {
        if !problems.contains(problem) {
            problems.push(problem.clone());
        }
    }
    problems
}

#[cfg(test)]
mod tests;
