//! The speed layer: Kafka to ClickHouse within a second.
//!
//! ```text
//! Reader ─ slices ─► dedupe ─► starts ─► aggregate ─► flush ─► ClickHouse: rows, then progress
//! (a thread: consume,   │      which start   the view's plan,   every `speed.flush`
//!  decode, mask)        │      counts what   then whole cells
//!            bounded channel
//! ```
//!
//! One worker task for each dataset. What it writes is a function of the log: for each view, partition and start the
//! aggregate of every cell from the start up to `next`. So it may crash, be doubled, or try again, and nothing is lost or
//! counted twice. It decides nothing by itself: `shared_schemas::handoff` does.
//!
//! In reading order:
//! - [`dedupe`]: which records are repeats, as a function of the log
//! - [`starts`]: which starts a slice counts for, and how far each has come
//! - [`event_time`]: watermarks, and which events are late
//! - [`cells`]: the open cells, whole
//! - [`aggregate`]: a view's plan over what came since the last flush
//! - [`lanes`]: readers, each warmed before it counts
//! - [`look`]: what others have written, once a second
//! - [`flush`]: rows, then progress
//! - [`alarm`]: whether too many records are refused
//! - [`worker`]: the loop of one dataset
//! - [`layer`]: all datasets
//! - [`redo`]: what the store has lost is read again, by command

pub mod aggregate;
mod alarm;
pub mod cells;
pub mod dedupe;
mod error;
mod event_time;
mod flush;
mod lanes;
pub mod layer;
mod look;
pub mod redo;
pub mod starts;
mod worker;

pub use error::SpeedError;
pub use layer::run;
pub use redo::redo;
