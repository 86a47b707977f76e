//! The batch layer: exact results, computed again from the archive and published.
//!
//! All decisions about marks, cuts, days and publications are `shared_schemas::handoff`'s; this reads the facts, asks, and
//! carries the answer out. In reading order:
//!
//! - [`archive`]: every accepted event, in Parquet files under a Delta Lake log
//! - [`run`]: a batch run, from pinning the archive to the publication
//! - `marks`: where its marks may be; `scope`: which days it computes; [`planned`]: what it would do
//! - `together`: views that read the same events are computed in one go
//! - [`recompute`]: the exact cells of some event days, from archived events below the marks
//! - `repeats`: which events are repeats: all of them, or those that the speed layer knows of
//! - [`spill`]: where what exceeds the memory goes
//! - `write`: a run's rows into the store, and counted there
//! - [`checks`]: what a run checks of itself before it publishes
//! - `publish`: waiting for the speed layer at cuts, publishing, reading back
//! - [`lease`]: one run at a time
//! - [`schedule`](Batch::schedule): runs by the clock
//! - [`list`], [`show`], [`diff`], [`rollback`]: what was published, what changed, and going back
//! - [`repair`]: some days computed again at the published marks
//! - [`collect`]: what nobody may use any more is let go; [`clock`]: on which day
//! - [`reconcile`]: what the store answers from, beside a computation from the archive
//! - [`sql`], [`replay`]: queries over the archive, and its events as records again
//! - [`progress`], [`report`]: what a run says on its way, and in the end
//! - [`measured`]: what `highwater bench batch` measures
//! - [`error`]: why a view was not published

pub mod archive;
pub mod checks;
pub mod clock;
pub mod collect;
pub mod diff;
pub mod error;
pub mod lease;
pub mod list;
mod marks;
pub mod measured;
pub mod planned;
pub mod progress;
mod publish;
pub mod recompute;
pub mod reconcile;
pub mod repair;
mod repeats;
pub mod replay;
pub mod report;
mod retry;
pub mod rollback;
pub mod run;
mod schedule;
mod scope;
pub mod show;
pub mod spill;
pub mod sql;
mod together;
mod write;

pub use clock::Today;
pub use collect::Collected;
pub use diff::{Differences, diff};
pub use lease::{Lease, LeaseError};
pub use list::{Listed, list};
pub use planned::Planned;
pub use progress::{Logs, Step, Watcher};
pub use reconcile::{Reconciled, reconcile};
pub use repair::{reconcile_and_repair, repair};
pub use report::{Outcome, ViewReport};
pub use rollback::{RollbackError, RolledBack, rollback};
pub use run::{Batch, Selection, Unknown};
pub use schedule::{Clock, MachineClock};
pub use scope::{DayRange, Scope};
pub use show::{LookError, Shown, ShownRun, WhichRun, show, show_run};
