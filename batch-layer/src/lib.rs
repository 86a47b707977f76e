//! The batch layer: exact results, computed again from the archive and published.
//!
//! All decisions about marks, cuts, days and publications are `shared_schemas::handoff`'s; this reads the facts, asks, and
//! carries the answer out. In reading order:
//!
//! - [`archive`]: every accepted event, in Parquet files under a Delta Lake log
//! - [`run`]: a batch run, from pinning the archive to the publication
//! - `marks`: where its marks may be
//! - [`recompute`]: the exact cells of some event days, from archived events below the marks
//! - `dedupe`: repeats, all of them
//! - `write`: a run's rows into the store, and counted there
//! - `publish`: waiting for the speed layer at cuts, publishing, reading back
//! - [`lease`]: one run at a time
//! - [`schedule`](Batch::schedule): runs by the clock
//! - [`list`], [`rollback`]: what was published, and going back
//! - [`repair`]: some days computed again at the published marks
//! - [`reconcile`]: what the store answers from, beside a computation from the archive
//! - [`progress`], [`report`]: what a run says on its way, and in the end
//! - [`error`]: why a view was not published

pub mod archive;
mod dedupe;
pub mod error;
pub mod lease;
pub mod list;
mod marks;
pub mod progress;
mod publish;
pub mod recompute;
pub mod reconcile;
pub mod repair;
pub mod report;
mod retry;
pub mod rollback;
pub mod run;
mod schedule;
mod write;

pub use lease::{Lease, LeaseError};
pub use list::{Listed, list};
pub use progress::{Logs, Step, Watcher};
pub use reconcile::{Reconciled, reconcile};
pub use repair::{Repaired, repair};
pub use report::{Outcome, ViewReport};
pub use rollback::{RollbackError, RolledBack, rollback};
pub use run::{Batch, Selection, Unknown};
