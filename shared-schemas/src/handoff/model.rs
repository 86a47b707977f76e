//! The hand-off protocol as a state machine, checked with `stateright`.
//!
//! Two workers that may both hold the partition, an archiver, two batch runs, rollback, collection and a reader act in
//! any order; each may crash or pause between any two steps; inserts arrive late, twice, by halves, or without their
//! reply. Every decision is made by the functions that the layers call. What is modelled is one view and one
//! partition: partitions share nothing but the publication row, which is atomic.
//!
//! - `world`: the state, the bounds, the actions, and one step
//! - `speed`: workers, and what they insert
//! - `batch`: the archiver, runs, rollback, collection
//! - `laws`: what must hold in every state, and what must be whole once faults end
//! - `rules`: the rules of the design, each of which can be broken
//! - `tests`: exhaustive checks, long random walks, and every rule broken in turn

mod batch;
mod laws;
mod rules;
mod speed;
mod tests;
mod world;
