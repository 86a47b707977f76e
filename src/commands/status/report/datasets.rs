//! A dataset's partitions, as the speed layer and the archive have read them, and its dead letters.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared_connections::store::{FreshnessOfPartition, PartitionState};
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{ChunkSize, Offset, OffsetRange, Partition, TopicId};

use super::super::look::{ArchiveSight, Sight, TopicSight, ViewSight};
use super::super::told::{moment, moment_of_micros, seconds_since, topic_id};

/// A dataset.
#[derive(Debug, Serialize)]
pub(in super::super) struct DatasetReport {
    pub(in super::super) dataset: String,
    pub(in super::super) topic: String,
    /// The topic's incarnation.
    pub(in super::super) topic_id: Option<String>,
    /// The archive's version; null before the first.
    pub(in super::super) archive_version: Option<u64>,
    pub(in super::super) partitions: Vec<PartitionReport>,
    /// Null where they could not be counted.
    pub(in super::super) dead_letters: Option<LettersReport>,
}

/// A partition of its topic.
#[derive(Debug, Serialize)]
pub(in super::super) struct PartitionReport {
    pub(in super::super) partition: u32,
    /// The first offset that Kafka still has.
    pub(in super::super) log_begin: Option<u64>,
    /// Where the log ends; where Kafka is away, where it ended when the speed layer spoke last.
    pub(in super::super) log_end: Option<u64>,
    /// All views together: the one that is furthest behind.
    pub(in super::super) speed: SpeedReport,
    pub(in super::super) archive: LayerReport,
}

/// How far the speed layer has come.
#[derive(Debug, Serialize)]
pub(in super::super) struct SpeedReport {
    #[serde(flatten)]
    pub(in super::super) layer: LayerReport,
    /// Why it is stuck, or has to wait; null where neither is.
    pub(in super::super) reason: Option<String>,
    /// The highest event time seen less the dataset's lateness.
    pub(in super::super) watermark: Option<String>,
    /// How many offsets from the mark on it lacks, because Kafka no longer had them; of the view that lacks most.
    pub(in super::super) gap_offsets: u64,
    /// When the speed layer spoke last.
    pub(in super::super) told_at: Option<String>,
}

/// How far a layer has come.
#[derive(Debug, Serialize)]
pub(in super::super) struct LayerReport {
    pub(in super::super) state: State,
    /// Everything below this offset is counted, or archived.
    pub(in super::super) next: Option<u64>,
    /// How many offsets of the log are above it.
    pub(in super::super) lag_events: Option<u64>,
    /// How long ago the moment is up to which all is counted, or archived.
    pub(in super::super) lag_seconds: Option<f64>,
}

/// What a layer does in a partition; of several views the one furthest down counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum State {
    /// Nothing comes.
    Idle,
    /// Counts what comes.
    Live,
    /// Has all that the log has.
    Complete,
    /// Lacks some of what the log has.
    Behind,
    /// Nothing was read yet.
    NothingYet,
    /// Nothing is counted, or archived, until something else changes.
    Stuck,
    /// No view counts it.
    NoView,
    /// It could not be seen.
    Unknown,
}

impl State {
    /// In words.
    pub(in super::super) fn words(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Live => "live",
            Self::Complete => "complete",
            Self::Behind => "behind",
            Self::NothingYet => "nothing read yet",
            Self::Stuck => "stuck",
            Self::NoView => "no view",
            Self::Unknown => "unknown",
        }
    }
}

impl From<PartitionState> for State {
    fn from(state: PartitionState) -> Self {
        match state {
            PartitionState::Idle => Self::Idle,
            PartitionState::Live => Self::Live,
            PartitionState::Behind => Self::Behind,
            PartitionState::Stuck => Self::Stuck,
        }
    }
}

/// What becomes of a partition's records, for a view, and why where it is stuck or has to wait.
pub(in super::super) fn standing(
    view: &ViewSight,
    row: &FreshnessOfPartition,
    now: DateTime<Utc>,
) -> (State, Option<String>) {
    let truncation = view.facts.truncations.get(&row.partition);
    let (state, reason) = row.standing(truncation, now.timestamp_millis());
    (state.into(), reason)
}

/// Dead letters.
#[derive(Debug, Serialize)]
pub(in super::super) struct LettersReport {
    pub(in super::super) topic: String,
    /// How many records were refused, of those counted.
    pub(in super::super) letters: u64,
    pub(in super::super) by_reason: BTreeMap<String, u64>,
    /// How many of them were sent again since.
    pub(in super::super) replayed: u64,
    /// How many of the topic's offsets were not looked at.
    pub(in super::super) unread: u64,
}

impl DatasetReport {
    pub(super) fn of(dataset: &Dataset, definitions: &Definitions, sight: &Sight) -> Self {
        let of_dataset = OfDataset::new(dataset, definitions, sight);
        let letters = sight
            .kafka
            .letters
            .get(&dataset.topic)
            .and_then(|seen| seen.as_ref().ok());
        let dead_letters = letters.map(|letters| {
            let by_reason = letters.counts.get(&dataset.name).cloned().unwrap_or_default();
            LettersReport {
                topic: format!("{}.dead-letters", dataset.topic),
                letters: by_reason.values().sum(),
                by_reason,
                replayed: letters.replayed.get(&dataset.name).copied().unwrap_or_default(),
                unread: letters.unread,
            }
        });
        Self {
            dataset: dataset.name.clone(),
            topic: dataset.topic.clone(),
            topic_id: of_dataset.id.map(topic_id),
            archive_version: of_dataset.archive.flatten().map(|archive| archive.version),
            partitions: of_dataset.partitions(),
            dead_letters,
        }
    }
}

/// The topic's incarnation that all is about: Kafka's, or where that is away the one that was read last.
pub(in super::super) fn topic_in_use(dataset: &Dataset, definitions: &Definitions, sight: &Sight) -> Option<TopicId> {
    OfDataset::new(dataset, definitions, sight).id
}

/// What was seen of one dataset.
struct OfDataset<'a> {
    now: DateTime<Utc>,
    id: Option<TopicId>,
    topic: Option<&'a TopicSight>,
    chunk: Option<ChunkSize>,
    /// `None` where one could not be seen.
    views: Vec<Option<&'a ViewSight>>,
    /// `None` where it could not be seen; inside, where nothing is archived.
    archive: Option<Option<&'a ArchiveSight>>,
}

impl<'a> OfDataset<'a> {
    fn new(dataset: &Dataset, definitions: &Definitions, sight: &'a Sight) -> Self {
        let topic = sight
            .kafka
            .topics
            .get(&dataset.topic)
            .and_then(|seen| seen.as_ref().ok());
        let of_dataset = definitions.views.iter().filter(|view| view.dataset == dataset.name);
        let seen = |name: &str| sight.store.views.get(name).and_then(|seen| seen.as_ref().ok());
        let views: Vec<_> = of_dataset.map(|view| seen(&view.name)).collect();
        let archive = sight.archives.get(&dataset.name).and_then(|seen| seen.as_ref().ok());
        let archive = archive.map(Option::as_ref);
        let told = || {
            let rows = views.iter().flatten().flat_map(|view| &view.freshness);
            rows.max_by_key(|row| row.seen).map(|row| row.partition.topic)
        };
        let archived = || {
            let latest = archive.flatten()?.latest.iter();
            latest
                .max_by_key(|(_, time)| **time)
                .map(|(partition, _)| partition.topic)
        };
        Self {
            now: sight.at,
            id: topic.map(|topic| topic.id).or_else(told).or_else(archived),
            topic,
            // A checked dataset's chunk is a power of two.
            chunk: ChunkSize::new(dataset.chunk).ok(),
            views,
            archive,
        }
    }

    /// All partitions that anybody knows of.
    fn partitions(&self) -> Vec<PartitionReport> {
        let Some(id) = self.id else {
            return Vec::new();
        };
        let logs = self.topic.into_iter().flat_map(|topic| topic.logs.keys().copied());
        let told = self.views.iter().flatten().flat_map(|view| &view.freshness);
        let told = told.map(|row| row.partition);
        let archived = self
            .archive
            .flatten()
            .into_iter()
            .flat_map(|archive| archive.ends.keys().copied());
        let others = told.chain(archived).filter(|partition| partition.topic == id);
        let numbers: BTreeSet<u32> = logs.chain(others.map(|partition| partition.number)).collect();
        let partition = |number| Partition { topic: id, number };
        numbers
            .into_iter()
            .map(|number| self.partition(partition(number)))
            .collect()
    }

    fn partition(&self, partition: Partition) -> PartitionReport {
        let log = self.topic.and_then(|topic| topic.logs.get(&partition.number)).copied();
        let rows = self.rows(partition);
        let told = rows.iter().map(|(_, row)| row.log_end).max();
        let end = log.map(|log| log.to).or(told);
        PartitionReport {
            partition: partition.number,
            log_begin: log.map(|log| log.from.0),
            log_end: end.map(|end| end.0),
            speed: self.speed(partition, &rows, log),
            archive: self.archived(partition, log, end),
        }
    }

    fn rows(&self, partition: Partition) -> Vec<(&'a ViewSight, &'a FreshnessOfPartition)> {
        let views = self.views.iter().flatten();
        let rows = views.flat_map(|view| view.freshness.iter().map(move |row| (*view, row)));
        rows.filter(|(_, row)| row.partition == partition).collect()
    }

    /// How many offsets of a partition a view lacks from its mark on.
    fn gap_offsets(&self, view: &ViewSight, partition: Partition) -> u64 {
        let Some(chunk) = self.chunk else {
            return 0;
        };
        let gaps = view
            .facts
            .progress(partition)
            .gaps_from(view.facts.mark(partition), chunk);
        gaps.ranges().iter().map(|gap| gap.to.0 - gap.from.0).sum()
    }

    fn speed(
        &self,
        partition: Partition,
        told: &[(&ViewSight, &FreshnessOfPartition)],
        log: Option<OffsetRange>,
    ) -> SpeedReport {
        let furthest = told
            .iter()
            .map(|(view, row)| standing(view, row, self.now))
            .max_by_key(|(state, _)| *state);
        let rows: Vec<_> = told.iter().map(|(_, row)| *row).collect();
        let (state, reason) = if self.views.is_empty() {
            (State::NoView, None)
        } else if self.views.iter().any(Option::is_none) {
            (State::Unknown, None)
        } else if rows.len() < self.views.len() {
            (State::NothingYet, None)
        } else {
            furthest.unwrap_or((State::Unknown, None))
        };
        let gaps = self
            .views
            .iter()
            .flatten()
            .map(|view| self.gap_offsets(view, partition));
        let end = |row: &FreshnessOfPartition| log.map_or(row.log_end, |log| log.to);
        let lag = |row: &FreshnessOfPartition| end(row).0.saturating_sub(row.next.0);
        let seconds = |row: &FreshnessOfPartition| {
            if log.is_some_and(|log| row.next >= log.to) {
                Some(0.0)
            } else if row.next >= row.log_end {
                Some(seconds_since(row.seen, self.now))
            } else {
                row.kafka_time.map(|time| seconds_since(time, self.now))
            }
        };
        let unread = log
            .filter(|_| state == State::NothingYet)
            .map(|log| log.to.0 - log.from.0);
        // One of which nothing is known leaves nothing known of all.
        let lag_seconds = rows
            .iter()
            .map(|row| seconds(row))
            .reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)))
            .flatten();
        SpeedReport {
            layer: LayerReport {
                state,
                next: rows.iter().map(|row| row.next.0).min(),
                lag_events: rows.iter().map(|row| lag(row)).max().or(unread),
                lag_seconds,
            },
            reason,
            watermark: rows
                .iter()
                .filter_map(|row| row.watermark)
                .max()
                .and_then(moment_of_micros),
            gap_offsets: gaps.max().unwrap_or_default(),
            told_at: rows.iter().map(|row| row.seen).max().and_then(moment),
        }
    }

    fn archived(&self, partition: Partition, log: Option<OffsetRange>, log_end: Option<Offset>) -> LayerReport {
        let none = |state| LayerReport {
            state,
            next: None,
            lag_events: log
                .filter(|_| state == State::NothingYet)
                .map(|log| log.to.0 - log.from.0),
            lag_seconds: None,
        };
        let Some(archive) = self.archive else {
            return none(State::Unknown);
        };
        let Some((archive, end)) = archive.and_then(|archive| Some((archive, *archive.ends.get(&partition)?))) else {
            return none(State::NothingYet);
        };
        let latest = archive
            .latest
            .get(&partition)
            .map(|time| seconds_since(*time, self.now));
        let is_complete = log_end.map(|log_end| end >= log_end);
        LayerReport {
            state: match is_complete {
                _ if archive.truncated.contains_key(&partition) => State::Stuck,
                Some(true) => State::Complete,
                Some(false) => State::Behind,
                None => State::Unknown,
            },
            next: Some(end.0),
            lag_events: log_end.map(|log_end| log_end.0.saturating_sub(end.0)),
            lag_seconds: if is_complete == Some(true) { Some(0.0) } else { latest },
        }
    }
}
