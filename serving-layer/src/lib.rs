//! The serving layer: HTTP queries, answered by one statement over both layers' rows.
//!
//! It holds no state that an answer depends on: facts are read for each request, decided on by the functions of
//! `shared_schemas::handoff`, and the answer says what it was made from.
//!
//! In reading order:
//! - [`request`]: a query as it came, checked: every fault of it at once
//! - [`query`]: the protocol of a query: facts, then one statement, then gaps
//! - [`changed`]: a view that is building, and who answers for it meanwhile
//! - [`coverage`]: what of the events an answer holds, per bucket
//! - [`freshness`]: how far each layer has come
//! - [`answer`]: the rows as JSON, each with how it was made
//! - [`views`]: what there is to ask
//! - [`problem`]: what a caller is told instead of an answer
//! - [`frame`]: what every request has: an id, a time limit, a place in the metrics
//! - [`routes`]: the paths
//! - [`watch`]: metrics of the views, and what readiness tells
//! - [`connection`]: so many connections, none idle for ever
//! - [`server`]: listening and ending; [`serve`] is the entry point

pub mod answer;
pub mod changed;
mod connection;
pub mod coverage;
#[cfg(test)]
mod fixture;
mod frame;
pub mod freshness;
pub mod problem;
pub mod query;
pub mod request;
mod routes;
pub mod server;
pub mod views;
mod watch;

pub use server::{Bound, ServeError, serve};
