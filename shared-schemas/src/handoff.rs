//! The hand-off: who counts which event, decided by offset alone.
//!
//! Batch answers below a partition's [`Mark`], speed from it on. Everything that keeps this exact under rivals,
//! crashes and delays is decided here, in functions of facts that were read: no clock, no I/O, no state. Layers
//! read the facts, ask, and carry the answer out. The laws are property tests beside each function; the protocol
//! they add up to is checked by the model in `handoff/model`, which calls these very functions.
//!
//! In reading order:
//! - [`offset`]: offsets, chunks, starts, marks and ranges of offsets
//! - [`select`]: which speed rows count above a mark, and why each offset is in exactly one of them
//! - [`progress`]: how far the speed layer has come: coverage, and where a worker resumes
//! - [`worker`]: which starts a worker keeps, and where it goes next
//! - [`redo`]: which starts are read again when somebody orders it
//! - [`publication`]: what makes a batch result visible, which one is newest, rollback
//! - [`marks`]: the mark a run may choose, the cut it asks for, when the cut is ready
//! - [`days`]: which event days a run computes again
//! - [`floor`]: what may be let go
//! - [`answering`]: which fingerprint answers a view's name

pub mod answering;
pub mod days;
pub mod floor;
pub mod marks;
pub mod offset;
pub mod progress;
pub mod publication;
pub mod redo;
pub mod select;
pub mod worker;

#[cfg(test)]
mod model;

pub use answering::{Answering, answering};
pub use days::{ArchivedRange, EventDay, dirty_days};
pub use floor::{Collectable, Floor};
pub use marks::{ArchiveBehind, CutState, MarkChoice, choose_mark, cut_state, mark_limit, wanted_cuts};
pub use offset::{BadChunk, ChunkSize, Mark, Offset, OffsetRange, OffsetSet, Partition, Start, TopicId};
pub use progress::{Coverage, Redo, SpeedProgress};
pub use publication::{Publication, PublicationNumber, RunId, Standing, Verdict, may_publish, newest};
pub use redo::{Again, CutOff, again};
pub use select::{counting_start, counts};
pub use worker::{Delivered, delivered, may_show, next_start, wanted};
