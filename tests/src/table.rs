//! An archive of a test's own without a Kafka: events that follow from their offsets, committed and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::Context;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};
use datafusion::prelude::SessionContext;
use highwater_batch::archive::{Archive, Commit, Pinned};
use shared_schemas::config::{ArchiveConfig, Config};
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange, Partition, TopicId};
use tempfile::TempDir;

/// 2013-11-01T00:00:00Z: the first day.
const FIRST: i64 = 1_383_264_000;

const TOPIC: TopicId = TopicId(0x00ab_cdef_0123_4567_89ab_cdef_0123_4567);

/// A dataset with fields of every type.
pub const TRIPS: &str = r#"
[dataset.trips]
topic = "trips"
partitions = 2
event_time = "at"
event_id = ["n"]
chunk = 64

[dataset.trips.fields]
at = "timestamp"
n = "int64"
city = "string?"
fare = "decimal(12,2)?"
paid = "bool?"
day = "date?"
distance = "float64?"
"#;

/// The archive of one dataset.
pub struct Table {
    /// Where it is.
    pub config: ArchiveConfig,
    /// Whose it is.
    pub dataset: Dataset,
    /// Events are spread over so many days.
    pub days: u64,
    folder: TempDir,
}

/// One of the topic's partitions.
pub fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

/// The event at an offset, on one of so many days.
pub fn trip(number: u32, offset: u64, days: u64) -> String {
    let seconds = FIRST + i64::try_from((offset % days) * 86_400 + offset % 86_400).unwrap_or_default();
    let at = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    let day = at.date_naive().to_string();
    let rare = |value: serde_json::Value| {
        if offset % 5 == 2 {
            serde_json::Value::Null
        } else {
            value
        }
    };
    serde_json::json!({
        "at": at.to_rfc3339_opts(SecondsFormat::Secs, true),
        "n": offset * 2 + u64::from(number),
        "city": rare(["Oslo", "Nürnberg", "東京"][usize::try_from(offset % 3).unwrap_or_default()].into()),
        "fare": rare(format!("{}.{:02}", offset % 1000, offset % 100).into()),
        "paid": rare(offset.is_multiple_of(2).into()),
        "day": rare(day.into()),
        // So that sums of doubles are exact in any order.
        "distance": rare((f64::from(u32::try_from(offset % 4096).unwrap_or_default()) / 4.0).into()),
        "gate": format!("B{offset}"),
    })
    .to_string()
}

fn range(of: &Range<u64>) -> OffsetRange {
    OffsetRange {
        from: Offset(of.start),
        to: Offset(of.end),
    }
}

impl Table {
    /// In a folder of its own; nothing is there yet.
    pub fn new() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("highwater-test-")?;
        let reading = Config::parse("", "highwater.toml", folder.path(), &|_| None);
        Ok(Self {
            config: reading.config.archive,
            dataset: dataset(TRIPS)?,
            days: 3,
            folder,
        })
    }

    /// A configuration with this archive, and a ClickHouse that nobody answers for.
    pub fn without_clickhouse(&self) -> anyhow::Result<Config> {
        let text = "[clickhouse]\nurl = \"http://127.0.0.1:9\"\n";
        let reading = Config::parse(text, "highwater.toml", self.folder.path(), &|_| None);
        let mut config = reading.config;
        config.archive = self.config.clone();
        Ok(config)
    }

    /// A folder in which `highwater` finds it, with that configuration beside.
    pub fn site(&self, more: &str) -> anyhow::Result<std::path::PathBuf> {
        let home = self.folder.path();
        std::fs::create_dir_all(home.join("definitions"))?;
        std::fs::write(home.join("definitions/trips.toml"), TRIPS)?;
        std::fs::write(home.join("highwater.toml"), more)?;
        Ok(home.to_owned())
    }

    /// Each Parquet file of events that is in the table's folder, whoever names it.
    pub fn files(&self) -> anyhow::Result<Vec<std::path::PathBuf>> {
        let mut folders: Vec<_> = std::fs::read_dir(self.folder())?.collect::<Result<_, _>>()?;
        folders.retain(|folder| folder.file_name().to_string_lossy().starts_with("_date="));
        let mut folders: Vec<_> = folders.into_iter().map(|folder| folder.path()).collect();
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// The folder of the table, where it is in a folder.
    pub fn folder(&self) -> std::path::PathBuf {
        self.folder.path().join("data/archive/trips")
    }

    /// A handle of its own.
    pub async fn open(&self) -> anyhow::Result<Archive> {
        Ok(Archive::open_or_create(&self.config, &self.dataset).await?)
    }

    /// The newest version.
    pub async fn pin(&self) -> anyhow::Result<Pinned> {
        let archive = Archive::open(&self.config, &self.dataset).await?;
        Ok(archive.context("nothing is archived")?.pin().await?)
    }

    /// What goes into it of these offsets of a partition.
    pub fn commit(&self, number: u32, offsets: Range<u64>) -> anyhow::Result<Commit> {
        let options = Options {
            extra: true,
            keys: &EnvironmentKeys,
        };
        let mut decoder = Decoder::new(&self.dataset, options)?;
        for offset in offsets.clone() {
            let value = trip(number, offset, self.days);
            decoder.push(&Record {
                partition: i32::try_from(number)?,
                offset: i64::try_from(offset)?,
                timestamp: Some((FIRST + 400 * 86_400 + i64::try_from(offset)?) * 1000),
                key: None,
                value: Some(value.as_bytes()),
                headers: &(),
            })?;
        }
        let batches = decoder.finish().into_iter().map(|batch| (partition(number), batch));
        Ok(Commit {
            ranges: [(partition(number), range(&offsets))].into(),
            batches: batches.collect(),
            ..Commit::default()
        })
    }

    /// Archives these offsets in so many commits.
    pub async fn fill(&self, number: u32, offsets: Range<u64>, commits: u64) -> anyhow::Result<()> {
        let mut archive = self.open().await?;
        let step = (offsets.end - offsets.start).div_ceil(commits).max(1);
        let mut from = offsets.start;
        while from < offsets.end {
            let to = (from + step).min(offsets.end);
            archive.commit(&self.commit(number, from..to)?).await?;
            from = to;
        }
        Ok(())
    }
}

/// The dataset of these definitions.
pub fn dataset(text: &str) -> anyhow::Result<Dataset> {
    let definitions = Definitions::parse([("definitions.toml", text.to_owned())]);
    let definitions = definitions.map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    definitions.datasets.into_iter().next().context("no dataset")
}

/// All of a version's events.
pub async fn rows(pinned: &Pinned) -> anyhow::Result<Vec<RecordBatch>> {
    let days: BTreeSet<_> = pinned.ranges().iter().map(|range| range.day).collect();
    let session = SessionContext::new();
    Ok(session.read_table(pinned.events(&days))?.collect().await?)
}

/// All of a version's events as text, sorted.
pub async fn texts(pinned: &Pinned) -> anyhow::Result<Vec<String>> {
    let options = FormatOptions::default().with_null("null");
    let mut texts = Vec::new();
    for batch in rows(pinned).await? {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let values: Vec<_> = columns.iter().map(|column| column.value(row).to_string()).collect();
            texts.push(values.join("|"));
        }
    }
    texts.sort_unstable();
    Ok(texts)
}

/// Each partition's archived offsets, in order, repeats included.
pub async fn offsets(pinned: &Pinned) -> anyhow::Result<BTreeMap<u32, Vec<u64>>> {
    let mut found: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for batch in rows(pinned).await? {
        let column = |name: &str| batch.column_by_name(name).context("a column is missing");
        let numbers = column("_partition")?.as_primitive::<Int32Type>().values().to_vec();
        let offsets = column("_offset")?.as_primitive::<Int64Type>().values().to_vec();
        for (number, offset) in numbers.into_iter().zip(offsets) {
            found
                .entry(u32::try_from(number)?)
                .or_default()
                .push(u64::try_from(offset)?);
        }
    }
    found.values_mut().for_each(|offsets| offsets.sort_unstable());
    Ok(found)
}
