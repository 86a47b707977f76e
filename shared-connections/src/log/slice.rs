//! What a reader hands over: slices of a partition's log, decoded, and what the log lacks.

use arrow::array::RecordBatch;
use shared_schemas::decode::Reason;
use shared_schemas::handoff::{Offset, OffsetRange};

/// Something that a reader found, in the order of offsets within a partition.
#[derive(Debug)]
pub enum Event {
    /// Records.
    Slice(Slice),
    /// The log no longer has these offsets: it begins after them. What follows begins at the range's end.
    Gap {
        /// Kafka's partition number.
        partition: u32,
        /// From where the reader stood to where the log begins.
        range: OffsetRange,
    },
    /// The log ends below the offset from which the reader was to go on: records that were delivered before are gone
    /// (an unclean election, a topic made again). The reader reads this partition no further.
    Short {
        /// Kafka said so itself: the log has grown again since, and other records have those offsets now. Else it may be
        /// that a broker answered that does not know better yet.
        is_certain: bool,
        /// Kafka's partition number.
        partition: u32,
        /// Where the reader stood.
        cursor: Offset,
        /// Where the log ends; 0 where the topic was made again.
        end: Offset,
    },
}

impl Event {
    /// Kafka's number of the partition that it is about.
    pub fn partition(&self) -> u32 {
        match self {
            Self::Slice(slice) => slice.partition,
            Self::Gap { partition, .. } | Self::Short { partition, .. } => *partition,
        }
    }
}

/// The records of a partition from `from` on and below `next`, all of them.
#[derive(Debug)]
pub struct Slice {
    /// Kafka's partition number.
    pub partition: u32,
    /// The reader's cursor before: the records follow on whatever it handed over before.
    pub from: Offset,
    /// The last delivered record's offset + 1: the reader's cursor now.
    pub next: Offset,
    /// The accepted records as rows of the decoder's schema, in the order of offsets.
    pub batches: Vec<RecordBatch>,
    /// What became of each delivered record, in the order of offsets; never empty.
    pub records: Vec<ReadRecord>,
    /// Refused records with their bytes, where the reader was asked to keep them.
    pub refused: Vec<Refused>,
}

/// A delivered record, by its place and outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRecord {
    /// Its offset.
    pub offset: Offset,
    /// Its Kafka timestamp in milliseconds since 1970, `None` where it has none.
    pub kafka_time: Option<i64>,
    /// Whether it is a row.
    pub outcome: Outcome,
}

/// Whether a delivered record became a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is a row of the slice's batches.
    Accepted,
    /// It is not.
    Refused(Reason),
}

/// A refused record as it came, for the dead-letter topic.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its offset.
    pub offset: Offset,
    /// Its Kafka timestamp in milliseconds since 1970.
    pub kafka_time: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Why it was refused.
    pub reason: Reason,
    /// The sentence that goes with the reason; it holds no value of the record.
    pub detail: String,
}
