//! Kafka as a log: partitions of one topic's incarnation, read forward from an offset.
//!
//! Both layers read with this code: the speed layer and the archiver differ in what they do with a [`Slice`], not in how
//! they come by it. What a reader promises: the slices and gaps of a partition follow on each other without a hole that is
//! not told. A [`Slice`] from `a` to `b` holds *every* record that the log has from `a` on and below `b`.
//!
//! - [`slice`]: what a reader hands over

pub mod slice;

pub use slice::{Event, Outcome, ReadRecord, Refused, Slice};
