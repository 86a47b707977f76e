//! Why a view was not published.

use shared_connections::store::StoreError;
use shared_schemas::handoff::{ArchiveBehind, Partition, PublicationNumber};

use crate::archive::ArchiveError;

/// Why a run of a view failed. What was published before stands.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The archive can't be opened, or its version not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The archive lost what was published from it.
    #[error("partition {} of topic {:032x}", .partition.number, .partition.topic.0)]
    Behind {
        /// Where.
        partition: Partition,
        /// How.
        source: ArchiveBehind,
    },
    /// The archive has a gap that no mark may pass.
    #[error("no mark moves: {0}")]
    Held(String),
    /// The days can't be computed: a damaged file, no memory and no disk left.
    #[error("event days {days} can't be computed: {why}")]
    Compute {
        /// Which, as "2013-01-01 to 2013-01-31".
        days: String,
        /// What went wrong; a file is named.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store is not what was written.
    #[error("of {what} the store has {found}, and {written} were written: nothing was published")]
    Check {
        /// Rows, or a column's sum.
        what: String,
        /// What was computed and sent.
        written: String,
        /// What was found.
        found: String,
    },
    /// Others published first, each time.
    #[error("other publications came first {tries} times: try again when they are done")]
    Beaten {
        /// How often it began anew.
        tries: u32,
    },
    /// It was sent, and whether it arrived could not be found out.
    #[error(
        "publication {} was sent, and whether it arrived is not known: {source}; `highwater batch list` shows it if it did",
        number.0
    )]
    Unsure {
        /// The publication's number.
        number: PublicationNumber,
        /// What the store said last.
        source: StoreError,
    },
    /// Collection found no publication that may answer.
    #[error("no publication is left that the floor at {number} admits: nothing is deleted before somebody has looked")]
    NothingAdmitted {
        /// The floor's.
        number: u64,
    },
    /// A definition that DataFusion can't plan after all, or a plan's rows that are none.
    #[error("the view's plan can't be run: {0}")]
    Plan(String),
    /// There is no place for what exceeds the memory.
    #[error("{} can't be used for what exceeds the memory: `batch.spill` names another folder", .place.display())]
    Spill {
        /// The folder that one was to be made in.
        place: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The same, for each view that waited for it.
    #[error("{0}")]
    Room(String),
    /// What it computed does not fit to what it read, or to what was published before.
    #[error("nothing was published: {0}")]
    Suspect(String),
    /// Told to end.
    #[error("cancelled: nothing was published")]
    Cancelled,
}
