//! ClickHouse as the store: the facts that the hand-off decides on, and inserts that may be tried again.
//!
//! What the SQL of answers and tables is stands in `shared_schemas::store`; this sends it. Every table replaces, so an
//! insert that failed, or whose reply was lost, is sent again as it is; nothing here keeps state between calls.
//!
//! - `at_length`: answers of lengthy statements, piece by piece
//! - [`client`]: statements and inserts, with timeouts and errors that say whether to try again
//! - [`upgrade`]: columns that a table of an earlier build lacks
//! - [`ledger`]: what became of the records of a start, and whether it adds up
//! - [`facts`]: what a reader, a worker or a run reads before it decides
//! - `isolate`: the rows of an insert that the server refuses, found by halving
//! - [`record`]: what they write: progress, gaps, cuts, runs, publications, floors
//! - `reports`: what batch runs came to, for people
//! - [`letting_go`]: what lies below a floor, counted and deleted
//! - [`all_views`]: what it holds of views, and taking one away
//! - [`definitions`]: what the fingerprints of views mean, and who answers for one that has no publication yet
//! - [`freshness`]: how fresh the speed layer is, and which partitions are stuck, and why
//! - [`pace`]: how long a statement may take, and ending one that is given up
//! - [`reconciliations`]: reports of reconciliation, the newest few
//! - [`rules`]: what the hashes of rules mean
//! - [`timetable`]: how the schedule of batch runs stands
//! - [`truncation`]: logs that ended below what was read from them

pub mod all_views;
mod at_length;
pub mod client;
pub mod definitions;
mod error;
pub mod facts;
pub mod freshness;
mod isolate;
pub mod ledger;
pub mod letting_go;
pub mod pace;
pub mod reconciliations;
pub mod record;
mod reports;
pub mod rules;
pub mod timetable;
pub mod truncation;
mod upgrade;

pub use all_views::HeldView;
pub use at_length::AtLength;
pub use client::{Answer, Store};
pub use definitions::{Counted, Known};
pub use error::{ErrorKind, Fault, StoreError};
pub use facts::{Cut, Facts, Published, Run};
pub use freshness::{FreshnessOfPartition, PartitionState};
pub use isolate::RefusedRow;
pub use ledger::{Ledger, Unbalanced};
pub use letting_go::{Below, Gone, Raised, RaisedHorizon};
pub use pace::Pace;
pub use reconciliations::ReconciliationRow;
pub use record::{Origin, ProgressRow};
pub use rules::{RulesDiffer, RulesKnown};
pub use timetable::Timetable;
pub use truncation::Truncation;
