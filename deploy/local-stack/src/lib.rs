//! Apache Kafka and ClickHouse on one machine, as child processes that end with their parent.
//!
//! In reading order:
//!
//! - [`address`]: what a configured address says: is it this machine's, and which port is free.
//! - [`folder`]: the data folder: one user at a time, and what it remembers between two starts.
//! - [`process`]: a child that cannot outlive its parent, and leftovers of a parent that was killed.
//! - [`sockets`]: who listens on a port, from `/proc`.
//! - [`fetch`]: the jars and the library, downloaded once, with pinned checksums.
//! - [`kafka`], [`clickhouse`]: one server each: settings, start, readiness.
//! - [`topics`]: the topics that datasets need.
//! - [`stack`]: all of it together, for `highwater up` and for tests.
//!
//! Linux only: it reads `/proc` and asks the kernel to end children with their parent.

pub mod address;
pub mod clickhouse;
mod error;
pub mod fetch;
pub mod folder;
pub mod kafka;
pub mod process;
pub mod sockets;
pub mod stack;
pub mod topics;

pub use error::StackError;
pub use stack::{Addresses, Stack, StackOptions};
