//! A view's publication, its marks and its last batch run.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use highwater_batch::lease::Holder;
use serde::Serialize;
use shared_connections::store::{Counted, Ledger, Published, Run};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{ChunkSize, Partition, Start, counts};
use shared_schemas::view::View;

use super::super::look::{Sight, ViewSight};
use super::super::told::{moment, seconds_since, topic_id};
use super::datasets::topic_in_use;

/// A view.
#[derive(Debug, Serialize)]
pub(in super::super) struct ViewReport {
    pub(in super::super) view: String,
    pub(in super::super) dataset: String,
    pub(in super::super) fingerprint: String,
    /// Whether all is known that follows.
    pub(in super::super) known: bool,
    /// What answers below the marks; null before the first.
    pub(in super::super) publication: Option<PublicationReport>,
    /// Before it, the fingerprint of the old definition that answers, where there is one.
    pub(in super::super) answered_by: Option<String>,
    /// Before it, how far the speed layer has come; null where no worker speaks of it.
    pub(in super::super) counted: Option<Counted>,
    pub(in super::super) marks: Vec<MarkReport>,
    /// Null before the first.
    pub(in super::super) last_run: Option<LastRun>,
}

/// A publication.
#[derive(Debug, Serialize)]
pub(in super::super) struct PublicationReport {
    pub(in super::super) number: u64,
    pub(in super::super) run: String,
    /// The number whose content it carries; another than its own after a rollback.
    pub(in super::super) content: u64,
    pub(in super::super) published_at: Option<String>,
    pub(in super::super) age_seconds: f64,
    pub(in super::super) archive_version: u64,
    /// How many event days it holds.
    pub(in super::super) days: usize,
}

/// Where batch ends and speed begins in a partition.
#[derive(Debug, Serialize)]
pub(in super::super) struct MarkReport {
    pub(in super::super) partition: u32,
    /// The topic's incarnation.
    pub(in super::super) topic_id: String,
    /// Below this offset batch answers.
    pub(in super::super) mark: u64,
    /// From the mark up to here the speed layer answers, without a hole.
    pub(in super::super) covered: u64,
    /// What became of the records that the speed layer read from the mark on: `read` are `aggregated`, `filtered`,
    /// `repeated` and invalid, each reason by its name. Beside them `unsure` (counted, but the filter for repeats was too
    /// short to be sure), `failed_filters`, and the offsets of a `gap`.
    pub(in super::super) counts: BTreeMap<String, u64>,
}

/// The batch run that was begun last.
#[derive(Debug, Serialize)]
pub(in super::super) struct LastRun {
    pub(in super::super) run: String,
    pub(in super::super) begun_at: Option<String>,
    pub(in super::super) age_seconds: f64,
    pub(in super::super) result: RunResult,
    /// The number of what it published.
    pub(in super::super) publication: Option<u64>,
    /// Why it did not publish; null where it did, or told nothing.
    pub(in super::super) why: Option<String>,
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum RunResult {
    Published,
    UnderWay,
    NotPublished,
}

impl ViewReport {
    pub(super) fn of(view: &View, definitions: &Definitions, sight: &Sight) -> Self {
        let seen = sight.store.views.get(&view.name).and_then(|seen| seen.as_ref().ok());
        let newest = seen.and_then(|seen| seen.facts.newest());
        let building = seen.filter(|_| newest.is_none());
        let last_run = seen.and_then(|seen| Some((seen, *seen.runs.first()?)));
        Self {
            view: view.name.clone(),
            dataset: view.dataset.clone(),
            fingerprint: view.fingerprint.to_string(),
            known: seen.is_some(),
            publication: newest.map(|newest| PublicationReport::of(newest, sight.at)),
            answered_by: building.and_then(|seen| Some(seen.answered_by?.to_string())),
            counted: building.and_then(|seen| Counted::of(view, &seen.facts, &seen.freshness)),
            marks: seen
                .map(|seen| marks(view, seen, definitions, sight))
                .unwrap_or_default(),
            last_run: last_run.map(|(seen, run)| LastRun::of(run, seen, sight)),
        }
    }
}

impl PublicationReport {
    fn of(published: &Published, now: DateTime<Utc>) -> Self {
        let publication = &published.publication;
        Self {
            number: publication.number.0,
            run: format!("{:032x}", publication.run.0),
            content: publication.content.0,
            published_at: moment(published.at),
            age_seconds: seconds_since(published.at, now),
            archive_version: published.origin.archive_version,
            days: publication.days.len(),
        }
    }
}

/// The marks of every partition of the topic in use that either layer has come to; where that is not known, of all.
fn marks(view: &View, seen: &ViewSight, definitions: &Definitions, sight: &Sight) -> Vec<MarkReport> {
    let dataset = definitions.dataset(&view.dataset);
    // A checked dataset's chunk is a power of two.
    let Some((dataset, chunk)) = dataset.and_then(|dataset| Some((dataset, ChunkSize::new(dataset.chunk).ok()?)))
    else {
        return Vec::new();
    };
    let topic = topic_in_use(dataset, definitions, sight);
    let marked = seen.facts.newest().map(|newest| newest.publication.marks.keys());
    let mut partitions: Vec<Partition> = seen
        .facts
        .progress
        .keys()
        .chain(marked.into_iter().flatten())
        .copied()
        .collect();
    partitions.retain(|partition| topic.is_none_or(|topic| partition.topic == topic));
    partitions.sort_unstable();
    partitions.dedup();
    let report = |partition: Partition| {
        let mark = seen.facts.mark(partition);
        let counting = |start: Start| start >= mark.start() && counts(mark, start, chunk);
        MarkReport {
            partition: partition.number,
            topic_id: topic_id(partition.topic),
            mark: mark.0.0,
            covered: seen.facts.progress(partition).coverage(mark, chunk).covered.0,
            counts: sum(&seen.ledgers, partition, counting),
        }
    };
    partitions.into_iter().map(report).collect()
}

/// What became of the records of these starts of a partition.
fn sum(
    ledgers: &[(Partition, Start, Ledger)],
    partition: Partition,
    of: impl Fn(Start) -> bool,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    let wanted = ledgers.iter().filter(|(one, start, _)| *one == partition && of(*start));
    for (_, _, ledger) in wanted {
        let counts = [
            ("read", ledger.read),
            ("aggregated", ledger.aggregated),
            ("filtered", ledger.filtered),
            ("repeated", ledger.repeated),
            ("unsure", ledger.unsure),
            ("failed_filters", ledger.failed_filters),
            ("gap", ledger.gap),
        ];
        let reasons = ledger.invalid.iter().map(|(reason, number)| (reason.as_str(), *number));
        for (name, number) in counts.into_iter().chain(reasons) {
            *sums.entry(name.to_owned()).or_default() += number;
        }
    }
    sums
}

impl LastRun {
    fn of(run: Run, seen: &ViewSight, sight: &Sight) -> Self {
        let made = seen.facts.publications.iter().map(|published| &published.publication);
        let publication = made.into_iter().find(|publication| publication.run == run.id);
        let began = |holder: &Holder| DateTime::parse_from_rfc3339(&holder.begun).ok();
        let held = sight.running.as_ref().and_then(began);
        // The holder's words are cut to a second.
        let is_the_holders = held.is_some_and(|held| run.begun >= held.timestamp_millis());
        Self {
            run: format!("{:032x}", run.id.0),
            begun_at: moment(run.begun),
            age_seconds: seconds_since(run.begun, sight.at),
            result: match publication {
                Some(_) => RunResult::Published,
                None if is_the_holders => RunResult::UnderWay,
                None => RunResult::NotPublished,
            },
            publication: publication.map(|publication| publication.number.0),
            why: match publication {
                Some(_) => None,
                None => seen.last_report.as_ref().and_then(|report| report.why.clone()),
            },
        }
    }
}
