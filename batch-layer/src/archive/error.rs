//! What can go wrong with the archive.

use deltalake::DeltaTableError;
use shared_schemas::decode::DecodeSetupError;
use shared_schemas::handoff::{Offset, Partition};

/// An error of the archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The place can't be used at all.
    #[error("the archive can't be at {url}: {why}")]
    Place {
        /// The configured place.
        url: String,
        /// Why, and what to change.
        why: String,
    },
    /// The table's log can't be read or written.
    #[error("the archive at {place} can't be {doing}")]
    Log {
        /// Where the table is.
        place: String,
        /// What was to be done, as "opened".
        doing: &'static str,
        /// What the table format says.
        #[source]
        source: Box<DeltaTableError>,
    },
    /// A file can't be written.
    #[error("{path} of the archive can't be written")]
    Write {
        /// The file, with the table's place.
        path: String,
        /// What the store says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file can't be read: it is damaged, cut short or gone.
    #[error("{path} of the archive can't be read")]
    File {
        /// The file, with the table's place.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store did not give a file. It says nothing about the file, and may be over soon.
    #[error(
        "{path} of the archive can't be read now: the store does not give it, and nothing is known to be wrong with it"
    )]
    Away {
        /// The file, with the table's place.
        path: String,
        /// What the store says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file is gone that no newer version names: it went while it was still to be read. There is nothing wrong with the archive.
    #[error(
        "{path} of the archive was taken out while it was still to be read, and is deleted by now: begin anew, and let \
         archive.keep_removed be longer than that takes"
    )]
    TakenOut {
        /// The file, with the table's place.
        path: String,
    },
    /// A field is declared never null, and an archived event has none.
    #[error(
        "field `{field}` is declared never null, and events of {path} in the archive have none: declare it with `?`"
    )]
    NeverNull {
        /// The field.
        field: String,
        /// The file, with the table's place.
        path: String,
    },
    /// A file that can be read is not put aside.
    #[error("{path} of the archive can be read as a whole, so it is not put aside: with --force it is all the same")]
    Whole {
        /// The file, with the table's place.
        path: String,
    },
    /// No file of that name was put aside.
    #[error("the archive at {place} has put no file {file} aside")]
    NotAside {
        /// Where the table is.
        place: String,
        /// What was asked for.
        file: String,
    },
    /// What a file holds that was put aside is archived otherwise by now.
    #[error("{path} can't be put back: offset {offset}, which it holds, is no gap any more")]
    NoGap {
        /// The file, with the table's place.
        path: String,
        /// The first such offset.
        offset: Offset,
    },
    /// There is no such gap to accept.
    #[error("the archive at {place} does not lack offsets {from}..{to} of partition {partition}: {lacks}")]
    NotLacking {
        /// Where the table is.
        place: String,
        /// The partition's number.
        partition: u32,
        /// The first offset that was named.
        from: Offset,
        /// The one behind the last.
        to: Offset,
        /// What it lacks, in words.
        lacks: String,
    },
    /// There is no such file to put aside.
    #[error("the archive at {place} names no file {file} in its newest version")]
    NoFile {
        /// Where the table is.
        place: String,
        /// What was asked for.
        file: String,
    },
    /// What is archived can't be masked by the dataset's rules, so it is not read.
    #[error(transparent)]
    Masks(DecodeSetupError),
    /// The table says of itself what Highwater never writes.
    #[error("the archive at {place} is not as Highwater writes it: {what}")]
    Foreign {
        /// Where the table is.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// A declared field has another type than the one archived under its name.
    #[error(
        "field `{field}` is archived as {archived} and now declared as {declared}: give the new one another name, or the \
         dataset"
    )]
    FieldChanged {
        /// The field.
        field: String,
        /// Its type in the archive.
        archived: String,
        /// Its type in the definitions.
        declared: String,
    },
    /// Somebody else moved a partition's end: what I hold begins elsewhere.
    #[error(
        "the archive of partition {} of topic {:032x} ends at offset {end}, and what was to be committed begins at {from}",
        .partition.number, .partition.topic.0
    )]
    Overtaken {
        /// The partition.
        partition: Partition,
        /// The first offset of what was to be committed.
        from: Offset,
        /// Where the table stands.
        end: Offset,
    },
    /// What was to be committed contradicts itself.
    #[error("this can't be committed: {0}")]
    Commit(String),
    /// Rivals committed again and again.
    #[error("other writers committed to {place} {tries} times in between")]
    Crowded {
        /// Where the table is.
        place: String,
        /// How often it was tried.
        tries: u32,
    },
}
