//! What all layers agree on: datasets, decoding, views, measures, plans, the ClickHouse schema and the hand-off.

pub mod config;
pub mod dataset;
pub mod decode;
pub mod definitions;
pub mod fingerprint;
pub mod handoff;
pub mod identity;
pub mod measure;
pub mod mistake;
pub mod plan;
mod section;
pub mod sketch;
pub mod store;
pub mod units;
pub mod view;
