//! What all layers agree on: datasets, decoding, views, measures, plans, the ClickHouse schema and the hand-off.

pub mod config;
pub mod dataset;
pub mod handoff;
pub mod mistake;
mod section;
pub mod units;
pub mod view;
