//! The archive on a folder: what goes in comes out, once, whoever writes beside it and whatever breaks.

mod commits;
mod keeping;
mod querying;
mod reading;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use shared_schemas::config::ArchiveConfig;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange, OffsetSet, Partition, TopicId};
use tempfile::TempDir;

use super::{Archive, Commit, Pinned, TOPIC_COLUMN};

pub(super) const TOPIC: TopicId = TopicId(0x00ab_cdef_0123_4567_89ab_cdef_0123_4567);

/// A dataset with these fields beside its time.
pub(super) fn dataset(fields: &str) -> Dataset {
    let text = format!(
        "[dataset.flights]\ntopic = \"flights\"\npartitions = 2\nformat = \"json\"\nevent_time = \"at\"\n\
         [dataset.flights.fields]\nat = \"timestamp\"\n{fields}\n"
    );
    let definitions = Definitions::parse([("flights.toml", text)]).unwrap();
    definitions.datasets[0].clone()
}

pub(super) fn flights() -> Dataset {
    dataset("origin = \"string\"\ndelay = \"float64?\"\nprice = \"decimal(10,2)?\"")
}

pub(super) fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

pub(super) fn range(from: u64, to: u64) -> OffsetRange {
    OffsetRange {
        from: Offset(from),
        to: Offset(to),
    }
}

pub(super) struct Site {
    folder: TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    pub(super) fn config(&self) -> ArchiveConfig {
        ArchiveConfig::in_folder(self.folder.path().join("archive"))
    }

    pub(super) async fn archive(&self, dataset: &Dataset) -> Archive {
        Archive::open_or_create(&self.config(), dataset).await.unwrap()
    }

    pub(super) fn table(&self) -> PathBuf {
        self.folder.path().join("archive/flights")
    }

    /// Every Parquet file that holds events.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && path.file_name().unwrap() != "_delta_log" {
                    visit(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "parquet") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        visit(&self.table(), &mut found);
        found.sort();
        found
    }
}

/// Reads records at these offsets as the archiver does; `value` makes a record of an offset. Kafka's time is the offset
/// in seconds after midnight of 2013-11-05.
pub(super) fn decoded(
    dataset: &Dataset,
    partition: Partition,
    offsets: OffsetRange,
    value: impl Fn(u64) -> String,
) -> Vec<(Partition, RecordBatch)> {
    let options = Options {
        extra: true,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options).unwrap();
    for offset in offsets.from.0..offsets.to.0 {
        let value = value(offset);
        let record = Record {
            partition: i32::try_from(partition.number).unwrap(),
            offset: i64::try_from(offset).unwrap(),
            timestamp: Some(kafka_time(offset)),
            key: None,
            value: Some(value.as_bytes()),
            headers: &(),
        };
        decoder.push(&record).unwrap();
    }
    decoder.finish().into_iter().map(|batch| (partition, batch)).collect()
}

pub(super) fn kafka_time(offset: u64) -> i64 {
    1_383_609_600_000 + i64::try_from(offset).unwrap() * 1000
}

/// Three days take turns.
pub(super) fn flight(offset: u64) -> String {
    let day = 1 + offset % 3;
    format!(
        r#"{{"at":"2013-11-0{day}T23:59:59.999999Z","origin":"JFK","delay":{offset}.5,"price":1.25,"gate":"B{offset}"}}"#
    )
}

/// A commit of one partition's range.
pub(super) fn commit(dataset: &Dataset, partition: Partition, offsets: OffsetRange) -> Commit {
    Commit {
        ranges: [(partition, offsets)].into(),
        batches: decoded(dataset, partition, offsets, flight),
        ..Commit::default()
    }
}

/// A commit that says of a whole range that Kafka no longer had it.
pub(super) fn gap(partition: Partition, offsets: OffsetRange) -> Commit {
    Commit {
        ranges: [(partition, offsets)].into(),
        gaps: [(partition, [offsets].into_iter().collect::<OffsetSet>())].into(),
        ..Commit::default()
    }
}

/// All of a version's events.
pub(super) async fn rows(pinned: &Pinned) -> Result<Vec<RecordBatch>, datafusion::error::DataFusionError> {
    let days: BTreeSet<_> = pinned.ranges().iter().map(|range| range.day).collect();
    let session = SessionContext::new();
    session.read_table(pinned.events(&days))?.collect().await
}

/// Which offsets of which partition there are, with repeats if there are any.
pub(super) async fn offsets(pinned: &Pinned) -> Vec<(Partition, u64)> {
    let mut found = Vec::new();
    for batch in rows(pinned).await.unwrap() {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let topics = column(TOPIC_COLUMN).as_string::<i32>();
        let numbers = column("_partition").as_primitive::<Int32Type>();
        let offsets = column("_offset").as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let partition = Partition {
                topic: TopicId(u128::from_str_radix(topics.value(row), 16).unwrap()),
                number: u32::try_from(numbers.value(row)).unwrap(),
            };
            found.push((partition, u64::try_from(offsets.value(row)).unwrap()));
        }
    }
    found.sort_unstable();
    found
}
