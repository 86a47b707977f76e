//! What all layers agree on: datasets, decoding, views, measures, plans, the ClickHouse schema and the hand-off.

pub mod dataset;
pub mod decode;
