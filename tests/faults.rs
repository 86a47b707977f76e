//! Faults that the platform survives, on real Kafka and the real engine, with the layers as processes of their own. Those of
//! archives, batch runs and schemas stand with the rest of their tests, and are told as these are ([`trial`]).
//!
//! Every test ends in the same oracle: what was sent against the merged answer, lost 0, counted twice 0. Where it can, it
//! is watched on the way too: never more than was sent, never less than was promised, no promise taken back. Seeds are printed;
//! `HIGHWATER_SEED` repeats one. `make test` takes one seed of each, `make faults` (`HIGHWATER_FAULTS=all`) more, for longer.

mod brokers;
pub(crate) mod clock;
mod ground;
mod killed;
mod memory;
mod mock;
mod network;
mod rivals;
mod store;
mod stream;
pub(crate) mod trial;
