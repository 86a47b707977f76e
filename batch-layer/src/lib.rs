//! The batch layer: exact results, computed again from the archive and published.
//!
//! All decisions about marks, cuts, days and publications are `shared_schemas::handoff`'s; this reads the facts, asks, and
//! carries the answer out. In reading order:
//!
//! - [`archive`]: every accepted event, in Parquet files under a Delta Lake log
//! - [`recompute`]: the exact cells of some event days, from archived events below the marks
//! - `dedupe`: repeats, all of them

pub mod archive;
mod dedupe;
pub mod recompute;
