//! Measuring Highwater on this machine, with the aims that stand in `docs/performance.md`.
//!
//! - [`figure`]: a figure and its aim
//! - [`events`]: the events that are measured with
//! - [`stages`]: what each stage does alone on one core
//! - [`measures`]: what the states of measures cost that estimate
//! - [`batch`]: the batch layer's computation beside other engines
//! - [`site`], [`topic`], [`process`]: servers, topics and processes of the bench's own
//! - [`bare`]: a consumer that throws messages away
//! - [`passage`]: from Kafka to visible in ClickHouse
//! - [`freshness`]: from produced to visible in the API
//! - [`memory`]: a worker at full speed, for long
//! - [`scaling`]: more partitions, more workers
//! - [`speed`]: all of it

mod bare;
pub(crate) mod batch;
pub(crate) mod events;
pub(crate) mod figure;
mod freshness;
pub(crate) mod measures;
mod memory;
mod passage;
mod process;
pub(crate) mod scaling;
mod site;
pub(crate) mod speed;
pub(crate) mod stages;
mod topic;

pub(crate) use figure::Figure;
