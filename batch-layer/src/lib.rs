//! The batch layer: exact results, computed again from the archive and published.
//!
//! All decisions about marks, cuts, days and publications are `shared_schemas::handoff`'s; this reads the facts, asks, and
//! carries the answer out. In reading order:
//!
//! - [`recompute`]: the exact cells of some event days, from archived events below the marks
//! - `dedupe`: repeats, all of them

mod dedupe;
pub mod recompute;
//! The batch layer.
//!
//! - [`archive`]: every accepted event, in Parquet under Delta Lake, by ranges of offsets

pub mod archive;
