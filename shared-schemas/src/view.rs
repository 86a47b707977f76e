//! A view: a grouped aggregate over a dataset.

mod source;

pub use source::{DimensionSource, MeasureSource, ViewMistake, ViewPlace, ViewSource};
