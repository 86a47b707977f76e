//! What there is to see: Kafka, the store and the archive are asked, each for itself.
//!
//! One that does not answer keeps nothing of the others from being seen. Nothing is tried twice and nothing written: whoever
//! looks wants to know how it is now.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use highwater_batch::Lease;
use highwater_batch::archive::{Archive, ArchiveError};
use highwater_batch::lease::Holder;
use shared_connections::log::{DeadLetters, Kafka, LogError};
use shared_connections::store::{Facts, FreshnessOfPartition, Ledger, Run, Store, StoreError};
use shared_schemas::config::{ArchiveConfig, Config};
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{Answering, Offset, OffsetRange, OffsetSet, Partition, Start, TopicId};
use shared_schemas::view::View;

/// How long one archive may take to say where it stands.
const ARCHIVE: Duration = Duration::from_secs(30);
/// ClickHouse's codes for a table and a database that are not there: nothing was ever recorded.
const NOTHING_THERE: [u32; 2] = [60, 81];

/// A part of what was asked for, or a sentence on why it can't be seen.
pub(super) type Seen<T> = Result<T, String>;

/// All that was seen.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    /// When.
    pub(super) at: DateTime<Utc>,
    pub(super) kafka: KafkaSight,
    pub(super) store: StoreSight,
    /// By dataset; `None` where nothing was archived yet.
    pub(super) archives: BTreeMap<String, Seen<Option<ArchiveSight>>>,
    /// Who holds the lease of batch runs.
    pub(super) running: Option<Holder>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct KafkaSight {
    /// Why it does not answer.
    pub(super) away: Option<String>,
    /// By name of the topic; not all of them where it is away.
    pub(super) topics: BTreeMap<String, Seen<TopicSight>>,
    /// By name of the dataset's topic.
    pub(super) letters: BTreeMap<String, Seen<DeadLetters>>,
}

#[derive(Debug, Clone)]
pub(super) struct TopicSight {
    pub(super) id: TopicId,
    pub(super) logs: BTreeMap<u32, OffsetRange>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct StoreSight {
    /// Why it does not answer.
    pub(super) away: Option<String>,
    /// By name of the view; not all of them where it is away.
    pub(super) views: BTreeMap<String, Seen<ViewSight>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ViewSight {
    pub(super) facts: Facts,
    pub(super) freshness: Vec<FreshnessOfPartition>,
    pub(super) ledgers: Vec<(Partition, Start, Ledger)>,
    /// The latest first.
    pub(super) runs: Vec<Run>,
    /// What the latest came to; none where it told nothing.
    pub(super) last_report: Option<highwater_batch::ViewReport>,
    /// Another definition that answers until the first publication.
    pub(super) answered_by: Option<Fingerprint>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ArchiveSight {
    pub(super) version: u64,
    pub(super) ends: BTreeMap<Partition, Offset>,
    pub(super) gaps: BTreeMap<Partition, OffsetSet>,
    /// Logs that ended below what was archived: from their end, up to there.
    pub(super) truncated: BTreeMap<Partition, OffsetRange>,
    /// The highest Kafka time archived, in milliseconds since 1970.
    pub(super) latest: BTreeMap<Partition, i64>,
    /// By which rules, and within which offsets.
    pub(super) rules: BTreeMap<(Partition, String), OffsetRange>,
}

impl Sight {
    /// Looks at everything at once.
    pub(super) async fn of(kafka: &Kafka, config: &Config, definitions: &Definitions) -> Self {
        let store = Store::new(&config.clickhouse);
        let (kafka, store, archives) = tokio::join!(
            Box::pin(KafkaSight::of(kafka, definitions)),
            Box::pin(StoreSight::of(&store, definitions)),
            Box::pin(archives(&config.archive, definitions)),
        );
        Self {
            at: Utc::now(),
            kafka,
            store,
            archives,
            running: Lease::holder_at(&Lease::path(&config.archive)),
        }
    }
}

impl KafkaSight {
    async fn of(kafka: &Kafka, definitions: &Definitions) -> Self {
        let mut sight = Self::default();
        for dataset in &definitions.datasets {
            if sight.topics.contains_key(&dataset.topic) {
                continue;
            }
            let away = match sight.look_at(kafka, &dataset.topic).await {
                Ok(()) => continue,
                Err(away) => away,
            };
            // All others would be waited for as long.
            sight.away = Some(away.to_string());
            break;
        }
        sight
    }

    /// Looks at a topic and its dead letters.
    ///
    /// # Errors
    /// Kafka is away. What else goes wrong is about this topic, and part of what is seen.
    async fn look_at(&mut self, kafka: &Kafka, topic: &str) -> Result<(), LogError> {
        let found = match topic_sight(kafka, topic).await {
            Err(away @ LogError::Away { .. }) => return Err(away),
            other => other.map_err(sentence),
        };
        let is_there = found.is_ok();
        self.topics.insert(topic.to_owned(), found);
        if is_there {
            let letters = match kafka.dead_letters(&format!("{topic}.dead-letters")).await {
                Err(away @ LogError::Away { .. }) => return Err(away),
                other => other.map_err(sentence),
            };
            self.letters.insert(topic.to_owned(), letters);
        }
        Ok(())
    }
}

async fn topic_sight(kafka: &Kafka, name: &str) -> Result<TopicSight, LogError> {
    let topic = kafka.topic(name).await?;
    let mut logs = BTreeMap::new();
    for partition in 0..topic.partitions {
        logs.insert(partition, kafka.bounds(name, partition).await?);
    }
    Ok(TopicSight { id: topic.id, logs })
}

impl StoreSight {
    async fn of(store: &Store, definitions: &Definitions) -> Self {
        let mut sight = Self::default();
        if let Err(error) = store.ping().await {
            sight.away = Some(error.to_string());
            return sight;
        }
        for view in &definitions.views {
            let seen = match view_sight(store, view).await {
                Err(away @ (StoreError::Away { .. } | StoreError::Slow { .. })) => {
                    sight.away = Some(away.to_string());
                    break;
                }
                Err(StoreError::Refused { code, .. }) if NOTHING_THERE.contains(&code) => Ok(ViewSight::default()),
                other => other.map_err(sentence),
            };
            sight.views.insert(view.name.clone(), seen);
        }
        sight
    }
}

async fn view_sight(store: &Store, view: &View) -> Result<ViewSight, StoreError> {
    let facts = store.facts(view).await?;
    let answered_by = if facts.newest().is_none() {
        answered_by(store, view).await?
    } else {
        None
    };
    let runs = store.runs(view).await?;
    let told = match runs.first() {
        Some(run) => match store.report(view, run.id).await {
            // The store of a build that kept none.
            Err(StoreError::Refused { code, .. }) if NOTHING_THERE.contains(&code) => None,
            told => told?,
        },
        None => None,
    };
    Ok(ViewSight {
        facts,
        freshness: store.freshness(view).await?,
        ledgers: store.ledgers(view).await?,
        runs,
        last_report: told.and_then(|told| serde_json::from_str(&told).ok()),
        answered_by,
    })
}

async fn answered_by(store: &Store, view: &View) -> Result<Option<Fingerprint>, StoreError> {
    match store.answering(view).await {
        Ok(Answering::Another(kept)) => Ok(Some(kept.view.fingerprint)),
        Ok(Answering::Itself | Answering::ItselfUnpublished) => Ok(None),
        // An earlier build made the tables, and kept no definitions.
        Err(StoreError::Refused { code, .. }) if NOTHING_THERE.contains(&code) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn archives(config: &ArchiveConfig, definitions: &Definitions) -> BTreeMap<String, Seen<Option<ArchiveSight>>> {
    let mut archives = BTreeMap::new();
    for dataset in &definitions.datasets {
        let seen = match tokio::time::timeout(ARCHIVE, Box::pin(archive_sight(config, dataset))).await {
            Ok(seen) => seen.map_err(sentence),
            Err(_) => Err(format!(
                "the archive of dataset {} at {} (archive.url) does not say within {} s where it stands",
                dataset.name,
                config.url,
                ARCHIVE.as_secs()
            )),
        };
        archives.insert(dataset.name.clone(), seen);
    }
    archives
}

async fn archive_sight(config: &ArchiveConfig, dataset: &Dataset) -> Result<Option<ArchiveSight>, ArchiveError> {
    let Some(archive) = Archive::open(config, dataset).await? else {
        return Ok(None);
    };
    let pinned = archive.pin().await?;
    let mut latest = BTreeMap::new();
    for partition in pinned.ends.keys() {
        // From the first offset on, so that the log's statistics tell it and no file is opened.
        if let Some((_, highest)) = pinned.kafka_times(*partition, Offset::default()).await? {
            latest.insert(*partition, highest);
        }
    }
    let rules = pinned.rules().into_iter();
    Ok(Some(ArchiveSight {
        version: pinned.version,
        latest,
        rules: rules
            .map(|((partition, rules), range)| ((partition, rules.to_owned()), range))
            .collect(),
        ends: pinned.ends,
        gaps: pinned.gaps,
        truncated: pinned.truncated,
    }))
}

/// An error and its causes, in one line.
fn sentence(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
