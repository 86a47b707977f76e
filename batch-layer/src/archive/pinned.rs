//! One version of the archive, for readers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use chrono::DateTime;
use datafusion::catalog::TableProvider;
use deltalake::table::state::DeltaTableState;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use parquet::errors::ParquetError;
use serde::Deserialize;
use shared_schemas::dataset::{Dataset, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::handoff::{ArchivedRange, EventDay, Mark, Offset, OffsetRange, OffsetSet, Partition};

use super::columns::{DATE_COLUMN, TOPIC_COLUMN, lean};
use super::error::ArchiveError;
use super::files::date;
use super::readers::Reading;
use super::scan::{Events, open};
use super::standing::topic;

/// One version of the archive. Its files are never changed, and kept while it is read, so that may take as long as it takes.
#[derive(Clone)]
pub struct Pinned {
    /// The version.
    pub version: u64,
    /// Each partition's end: all accepted events below are archived, none from there on.
    pub ends: BTreeMap<Partition, Offset>,
    /// What is lacking below the ends, because Kafka no longer had it; no entry where nothing is.
    pub gaps: BTreeMap<Partition, OffsetSet>,
    /// Logs that ended below what was archived: from their end then, up to there. Such a partition is archived no further.
    pub truncated: BTreeMap<Partition, OffsetRange>,
    /// Those of the gaps that a person accepted, by putting a file aside.
    pub accepted: BTreeMap<Partition, OffsetSet>,
    /// The first event day of which events are kept; none where all are. Those of earlier days are not among what is read.
    pub horizon: Option<EventDay>,
    /// Of each partition that had events of earlier days: from there on there is none. Below, fewer events are here than were
    /// archived.
    pub let_go: BTreeMap<Partition, Offset>,
    pub(super) files: Arc<[File]>,
    pub(super) dataset: Arc<Dataset>,
    /// What readers get.
    pub(super) schema: SchemaRef,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) place: String,
    /// For as long as it lasts, files that this version names are kept.
    pub(super) reading: Arc<Reading>,
}

/// A file, as the log describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) path: object_store::path::Path,
    pub(super) size: u64,
    pub(super) rows: u64,
    pub(super) range: ArchivedRange,
    /// The lowest and highest Kafka time, in milliseconds.
    pub(super) times: (i64, i64),
    /// The fingerprint of the rules by which its events were read; unknown where the log does not say.
    pub(super) rules: Option<String>,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned")
            .field("place", &self.place)
            .field("version", &self.version)
            .field("ends", &self.ends)
            .field("gaps", &self.gaps)
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

impl Pinned {
    /// Whether events of these offsets may have been let go with their days.
    pub fn may_lack(&self, partition: Partition, range: OffsetRange) -> bool {
        self.let_go.get(&partition).is_some_and(|offset| range.from < *offset)
    }

    /// What each file holds: its day, its partition and its lowest and highest offset.
    pub fn ranges(&self) -> Vec<ArchivedRange> {
        self.files.iter().map(|file| file.range).collect()
    }

    /// How many events are archived of these days.
    pub fn rows_of(&self, days: &BTreeSet<EventDay>) -> u64 {
        let files = self.files.iter().filter(|file| days.contains(&file.range.day));
        files.map(|file| file.rows).sum()
    }

    /// About how many events are archived of these days below those marks: of a file that a mark goes through, its share by
    /// offsets.
    pub fn rows_below(&self, days: &BTreeSet<EventDay>, marks: &BTreeMap<Partition, Mark>) -> u64 {
        let below = |file: &File| {
            let range = file.range;
            let mark = marks.get(&range.partition).map_or(0, |mark| mark.0.0);
            let span = u128::from(range.last.0 - range.first.0) + 1;
            let part = u128::from(mark.saturating_sub(range.first.0)).min(span);
            u64::try_from(u128::from(file.rows) * part / span).unwrap_or(file.rows)
        };
        let files = self.files.iter().filter(|file| days.contains(&file.range.day));
        files.map(below).sum()
    }

    /// By which rules the events were read: the fingerprint of each, and within which offsets there are events under it.
    pub fn rules(&self) -> BTreeMap<(Partition, &str), OffsetRange> {
        let mut rules: BTreeMap<_, OffsetRange> = BTreeMap::new();
        for file in self.files.iter() {
            let Some(of_file) = file.rules.as_deref() else {
                continue;
            };
            let range = OffsetRange {
                from: file.range.first,
                to: file.range.last.next(),
            };
            let known = rules.entry((file.range.partition, of_file)).or_insert(range);
            known.from = known.from.min(range.from);
            known.to = known.to.max(range.to);
        }
        rules
    }

    /// The lowest and the highest Kafka time, in milliseconds, of the partition's archived events from that offset on;
    /// `None` where there are none. Files that lie beyond the offset as a whole are not opened.
    ///
    /// # Errors
    /// [`ArchiveError::File`] for a file that can't be read.
    pub async fn kafka_times(&self, partition: Partition, from: Offset) -> Result<Option<(i64, i64)>, ArchiveError> {
        let mut times: Option<(i64, i64)> = None;
        let mut include = |(low, high): (i64, i64)| {
            times = Some(times.map_or((low, high), |(lowest, highest)| (lowest.min(low), highest.max(high))));
        };
        let files = self
            .files
            .iter()
            .filter(|file| file.range.partition == partition && file.range.last >= from);
        for file in files {
            if file.range.first >= from {
                include(file.times);
            } else if let Some(times) = self.times_within(file, from).await? {
                include(times);
            }
        }
        Ok(times)
    }

    /// How many events are archived at these offsets. Files that lie within them as a whole are not opened.
    ///
    /// # Errors
    /// [`ArchiveError::File`] for a file that can't be read.
    pub async fn events_within(&self, partition: Partition, range: OffsetRange) -> Result<u64, ArchiveError> {
        let touches = |of: &ArchivedRange| of.partition == partition && of.first < range.to && of.last >= range.from;
        let mut events = 0;
        for file in self.files.iter().filter(|file| touches(&file.range)) {
            if file.range.first >= range.from && file.range.last < range.to {
                events += file.rows;
                continue;
            }
            let mut batches = self.open(file, &[OFFSET_COLUMN]).await?;
            while let Some(batch) = batches.try_next().await? {
                let offsets = batch.column_by_name(OFFSET_COLUMN);
                let Some(offsets) = offsets.and_then(|column| column.as_primitive_opt::<Int64Type>()) else {
                    return Err(damaged(&self.place, &file.path, "it lacks a column of Highwater's"));
                };
                let within = offsets.values().iter().filter(|offset| {
                    u64::try_from(**offset).is_ok_and(|offset| offset >= range.from.0 && offset < range.to.0)
                });
                events += within.count() as u64;
            }
        }
        Ok(events)
    }

    /// The Kafka times of a file that begins below `from`.
    async fn times_within(&self, file: &File, from: Offset) -> Result<Option<(i64, i64)>, ArchiveError> {
        let columns = [OFFSET_COLUMN, KAFKA_TIME_COLUMN];
        let mut batches = self.open(file, &columns).await?;
        let mut found: Option<(i64, i64)> = None;
        while let Some(batch) = batches.try_next().await? {
            let offsets = batch.column_by_name(OFFSET_COLUMN);
            let times = batch.column_by_name(KAFKA_TIME_COLUMN);
            let offsets = offsets.and_then(|column| column.as_primitive_opt::<Int64Type>());
            let times = times.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
            let Some((offsets, times)) = offsets.zip(times) else {
                return Err(damaged(&self.place, &file.path, "it lacks a column of Highwater's"));
            };
            for (offset, micros) in offsets.values().iter().zip(times.values()) {
                if u64::try_from(*offset).is_ok_and(|offset| offset >= from.0) {
                    let millis = micros.div_euclid(1000);
                    found = Some(found.map_or((millis, millis), |(low, high)| (low.min(millis), high.max(millis))));
                }
            }
        }
        Ok(found)
    }

    /// A file's rows, of these columns.
    async fn open(
        &self,
        file: &File,
        columns: &[&str],
    ) -> Result<BoxStream<'static, Result<RecordBatch, ArchiveError>>, ArchiveError> {
        match open(&self.store, &self.place, file, columns, BATCH_ROWS).await {
            Ok((_, batches)) => Ok(batches),
            Err(error) => Err(self.reading.told(error).await),
        }
    }

    /// The events of these days, as a table: the columns of `plan::event_schema`, and [`TOPIC_COLUMN`]. Files of other days
    /// are not touched. Fields that a file is older than are read from its undeclared data. Fields with a mask rule are
    /// masked by it, in files that are older than the rule too.
    ///
    /// What can't be read is told when it is read: a file that is damaged, cut short or gone ends the plan with
    /// [`ArchiveError::File`] inside DataFusion's error, one that was taken out meanwhile with [`ArchiveError::TakenOut`], one
    /// that the store does not give with [`ArchiveError::Away`], one that lacks a value which is declared never null with [`ArchiveError::NeverNull`]; a mask rule without its key with
    /// [`ArchiveError::Masks`].
    pub fn events(&self, days: &BTreeSet<EventDay>) -> Arc<dyn TableProvider> {
        self.events_as(days, Arc::clone(&self.schema))
    }

    /// The same in types that cost less to read: texts as views, the topic as a dictionary. For plans that know them.
    pub fn lean_events(&self, days: &BTreeSet<EventDay>) -> Arc<dyn TableProvider> {
        self.events_as(days, lean(&self.schema, &self.dataset))
    }

    /// How many events the files hold that may hold some of these offsets.
    pub(crate) fn events_at_most(&self, days: &BTreeSet<EventDay>, offsets: &BTreeMap<Partition, OffsetSet>) -> u64 {
        self.files_at(days, offsets).map(|file| file.rows).sum()
    }

    /// The same of the files alone that may hold some of these offsets.
    pub(crate) fn lean_events_at(
        &self,
        days: &BTreeSet<EventDay>,
        offsets: &BTreeMap<Partition, OffsetSet>,
    ) -> Arc<dyn TableProvider> {
        self.table(self.files_at(days, offsets), lean(&self.schema, &self.dataset))
    }

    fn events_as(&self, days: &BTreeSet<EventDay>, schema: SchemaRef) -> Arc<dyn TableProvider> {
        self.table(self.files_of(days), schema)
    }

    fn files_of<'a>(&'a self, days: &'a BTreeSet<EventDay>) -> impl Iterator<Item = &'a File> {
        self.files.iter().filter(|file| days.contains(&file.range.day))
    }

    fn files_at<'a>(
        &'a self,
        days: &'a BTreeSet<EventDay>,
        offsets: &'a BTreeMap<Partition, OffsetSet>,
    ) -> impl Iterator<Item = &'a File> {
        let may_hold = move |range: &ArchivedRange| {
            let of_partition = offsets.get(&range.partition);
            of_partition.is_some_and(|offsets| !offsets.within(range.first, range.last.next()).is_empty())
        };
        self.files_of(days).filter(move |file| may_hold(&file.range))
    }

    fn table<'a>(&self, files: impl Iterator<Item = &'a File>, schema: SchemaRef) -> Arc<dyn TableProvider> {
        Arc::new(Events::new(files.cloned().collect(), schema, self))
    }
}

/// Rows at a time where only a few numbers of each are looked at.
const BATCH_ROWS: usize = 8192;

/// The files of a version.
pub(super) fn files_of(state: &DeltaTableState, place: &str) -> Result<Vec<File>, ArchiveError> {
    let files = state
        .snapshot()
        .try_log_data()
        .map_err(super::table::failed(place, "read"))?;
    files
        .iter()
        .map(|view| {
            let path = view.object_store_path();
            let described = describe(
                &path,
                &view.partition_values_map(),
                view.stats().as_deref(),
                view.size(),
            );
            described.ok_or_else(|| ArchiveError::Foreign {
                place: place.to_owned(),
                what: format!("its log does not say what {path} holds"),
            })
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statistics {
    num_records: u64,
    min_values: Bounds,
    max_values: Bounds,
}

#[derive(Deserialize)]
struct Bounds {
    #[serde(rename = "_offset")]
    offset: u64,
    #[serde(rename = "_kafka_time")]
    kafka_time: String,
    #[serde(rename = "_schema")]
    rules: Option<String>,
}

fn describe(
    path: &object_store::path::Path,
    places: &std::collections::HashMap<String, Option<String>>,
    statistics: Option<&str>,
    size: i64,
) -> Option<File> {
    let value = |name: &str| places.get(name)?.as_deref();
    let statistics: Statistics = serde_json::from_str(statistics?).ok()?;
    let range = ArchivedRange {
        day: date(value(DATE_COLUMN)?)?,
        partition: Partition {
            topic: topic(value(TOPIC_COLUMN)?)?,
            number: value(PARTITION_COLUMN)?.parse().ok()?,
        },
        first: Offset(statistics.min_values.offset),
        last: Offset(statistics.max_values.offset),
    };
    let millis = |text: &str| Some(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis());
    let times = (
        millis(&statistics.min_values.kafka_time)?,
        millis(&statistics.max_values.kafka_time)?,
    );
    Some(File {
        path: path.clone(),
        size: u64::try_from(size).ok()?,
        rows: statistics.num_records,
        range,
        times,
        rules: statistics.min_values.rules,
    })
}

/// A store that does not give what it has.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Away(#[from] pub(super) object_store::Error);

/// The error of reading a file: of the store, or of the file.
pub(super) fn unread(place: &str, path: &object_store::path::Path, error: ParquetError) -> ArchiveError {
    match error {
        ParquetError::External(source) if source.is::<Away>() => ArchiveError::Away {
            path: format!("{place}/{path}"),
            source,
        },
        damage => damaged(place, path, damage),
    }
}

/// The error of a file that can't be read.
pub(super) fn damaged(
    place: &str,
    path: &object_store::path::Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ArchiveError {
    ArchiveError::File {
        path: format!("{place}/{path}"),
        source: source.into(),
    }
}
