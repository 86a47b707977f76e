//! Kafka as a log: partitions of one topic's incarnation, read forward from an offset.
//!
//! Both layers read with this code: the speed layer and the archiver differ in what they do with a [`Slice`], not in how
//! they come by it. What a reader promises: the slices and gaps of a partition follow on each other without a hole that is
//! not told. A [`Slice`] from `a` to `b` holds *every* record that the log has from `a` on and below `b`.
//!
//! ```text
//! librdkafka, 14 MiB ─▶ worker thread: decode ─▶ slices, 2 times what it gathers ─▶ Reader::next
//!                       watch thread: ends, topic id, whether Kafka answers ─▶ Reader::log_ends, trouble
//! ```
//!
//! - [`slice`]: what a reader hands over
//! - [`reader`]: a reader, as its layer sees it
//! - [`kafka`]: how to reach Kafka, and what can be asked of it
//! - [`group`]: which partitions a process is to read
//! - [`letters`]: dead letters: counted, found, sent again
//! - `bare`: a consumer that throws messages away, to measure against
//! - [`error`]: what can go wrong
//! - `worker`, `open`: the thread that reads, and the slices it fills
//! - `watch`: the thread that asks where the logs end
//! - `batch`, `headers`, `topic_id`: what only librdkafka's C functions do; all unsafe code of this crate

mod bare;
mod batch;
pub mod error;
pub mod group;
mod headers;
pub mod kafka;
pub mod letters;
mod open;
pub mod reader;
pub mod slice;
mod topic_id;
mod watch;
mod worker;

pub use bare::BareConsumer;
pub use error::LogError;
pub use group::Membership;
pub use kafka::{Kafka, Topic};
pub use letters::DeadLetters;
pub use reader::{Reader, ReaderOptions};
pub use slice::{Event, Outcome, ReadRecord, Refused, Slice};
