//! How every layer reaches Kafka and ClickHouse: a partition's log, the store's facts and rows.
//!
//! Nothing is decided here. `shared_schemas::handoff` decides, from facts that are read here; layers carry it out.
//!
//! - [`delays()`]: between tries of what is tried until it succeeds
//! - [`log`]: reading a partition's log, record by record and without a hole that is not told
//! - [`store`]: the facts of the hand-off, and inserts that may be tried again
//! - [`sentence()`]: an error with its causes, in one line

mod delays;
pub mod log;
mod sentence;
pub mod store;

pub use delays::delays;
pub use sentence::sentence;
