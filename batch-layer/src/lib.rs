//! The batch layer.
//!
//! - [`archive`]: every accepted event, in Parquet under Delta Lake, by ranges of offsets

pub mod archive;
