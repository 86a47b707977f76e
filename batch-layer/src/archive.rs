//! The archive: every accepted event of a dataset, masked and typed, in Parquet files under a Delta Lake log.
//!
//! A version of the archive *is* a vector of offsets, one end for each partition: all accepted events below it, none from
//! it on. What makes that true is [`Archive::commit`]: it adds a whole range of offsets and moves the ends in one entry
//! of the log, on the very version in which each end equals the range's first offset. A rival that committed in between
//! is found there, whatever it committed.
//!
//! ```text
//! file:data/archive/flights/                                          one folder for a dataset
//!   _delta_log/00000000000000000007.json                              which files, which ends, which gaps: one version
//!   _date=2013-11-01/_topic=6f…/_partition=0/….zstd.parquet           one file for a day and a partition in a commit
//!   _readers/…                                                        a reader that takes long says that it reads
//! ```
//!
//! Where each thing is kept in the log, and why there:
//! - The **end** of a partition is the version of the application transaction `highwater/<topic id>/<partition>`. Delta
//!   keeps these over checkpoints and the cleanup of old entries, and other Delta writers understand them.
//! - **Gaps**, and the list of partitions (a transaction can only be asked for by its name), are the table property
//!   `highwater.partitions`. It is written in the commit that brings a gap or a partition, and every checkpoint carries
//!   it. The information about a commit would be cleaned up with its log entry, and `domainMetadata` is a table feature
//!   that the library can't write.
//!   The first event day that is kept is in it too, where `keep` let go of earlier ones.
//! - The **day and partition** of each file are Delta's partition values, its lowest and highest offset and Kafka time
//!   its statistics. The topic's incarnation is a partition value too: so a file never mixes two, and nobody has to open
//!   it to know.
//!
//! - What became of the records of a commit, the refused ones too, is in its entry's own information, for reconciliation: it
//!   may be cleaned up with the entry.
//!
//! The parts, in reading order: `columns`, `standing`, `accounts`, `store`, `table`, `sums`, `files`, `commit`; for readers `pinned`, `readers`, `later`, `shares`, `scan` and `query`; to keep it tidy `optimize`, `let_go`, `clock`, `upkeep`, `intact`, `quarantine`, `restore`, `accept` and `whole`; for the
//! archiver `held`, `dead_letters`, `stall`, `metrics`, `archiver`, `serve`.

mod accept;
mod accounts;
mod archiver;
mod clock;
mod columns;
mod commit;
mod dead_letters;
mod error;
mod files;
mod held;
mod intact;
mod later;
mod let_go;
mod metrics;
mod optimize;
mod pinned;
mod quarantine;
mod query;
mod readers;
mod restore;
mod scan;
mod serve;
mod shares;
mod stall;
mod standing;
mod store;
mod sums;
mod table;
mod upkeep;
mod whole;

#[cfg(test)]
mod tests;

pub use accept::Accepted;
pub use accounts::{Account, Accounts};
pub use columns::{DATE_COLUMN, SCHEMA_COLUMN, TOPIC_COLUMN};
pub use commit::Commit;
pub use dead_letters::LetterError;
pub use error::ArchiveError;
pub use optimize::{Files, Optimized, Upkeep};
pub use pinned::Pinned;
pub use quarantine::Quarantined;
pub use restore::Restored;
pub use serve::{ServeError, serve};
pub use table::Archive;
pub use upkeep::tidy;
pub use whole::{HeldArchive, held_archives, remove_archive};
