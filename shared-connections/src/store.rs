//! ClickHouse as the store: the facts that the hand-off decides on, and inserts that may be tried again.
//!
//! What the SQL of answers and tables is stands in `shared_schemas::store`; this sends it. Every table replaces, so an
//! insert that failed, or whose reply was lost, is sent again as it is; nothing here keeps state between calls.
//!
//! - [`client`]: statements and inserts, with timeouts and errors that say whether to try again
//! - [`facts`]: what a reader, a worker or a run reads before it decides
//! - `isolate`: the rows of an insert that the server refuses, found by halving
//! - [`record`]: what they write: progress, gaps, cuts, runs, publications, floors, freshness

pub mod client;
mod error;
pub mod facts;
mod isolate;
pub mod record;

pub use client::{Answer, Store};
pub use error::{ErrorKind, Fault, StoreError};
pub use facts::{Cut, Facts, FreshnessOfPartition, Published, Run};
pub use isolate::RefusedRow;
pub use record::{Ledger, Origin, ProgressRow};
