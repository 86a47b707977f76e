//! What a run says on its way, for whoever watches it.

use std::fmt;
use std::time::Duration;

use shared_schemas::handoff::{EventDay, PublicationNumber, RunId};

use crate::report::day_text;

/// A step of a run of one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Another run holds the lease, and this one waits for it.
    WaitsForLease {
        /// Who holds it, in words.
        holder: String,
    },
    /// Its marks are chosen.
    Chosen {
        /// The archive's version that it computes from.
        archive_version: u64,
        /// How many event days it computes.
        days: usize,
        /// How many cuts it asked for.
        cuts: usize,
        /// Under which id.
        run: RunId,
    },
    /// It computes.
    Computes {
        /// Days that are done.
        done: usize,
        /// Days in all.
        days: usize,
        /// Rows written so far.
        rows: u64,
        /// The day that it is at.
        at: Option<EventDay>,
        /// Archived events of all these days that it is done with, about.
        events: u64,
        /// How many there are.
        of: u64,
    },
    /// Its rows are written, and are counted in the store.
    Checks,
    /// It waits for the speed layer to catch up at its cuts.
    Waits {
        /// Cuts that are not ready.
        cuts: usize,
        /// How much longer it waits at most.
        left: Duration,
    },
    /// Cuts were not ready in time: it computes up to the chunk boundaries there.
    FallsBack {
        /// How many.
        cuts: usize,
    },
    /// Another publication came first: it begins anew.
    StartsOver,
    /// It has published.
    Published {
        /// The publication's number.
        number: PublicationNumber,
    },
    /// A collection raises the floor.
    RaisesFloor {
        /// To that publication.
        number: PublicationNumber,
    },
    /// It raises the horizon: event days before are let go.
    RaisesHorizon {
        /// To that day.
        day: EventDay,
    },
    /// It waits until no statement runs that may read below the floor.
    WaitsToDelete {
        /// How much longer.
        left: Duration,
    },
    /// It deletes what lies below the floor.
    Deletes {
        /// Which rows.
        what: &'static str,
        /// How many.
        rows: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitsForLease { holder } => write!(f, "waits for {holder}"),
            Self::Chosen {
                archive_version,
                days,
                cuts,
                run,
            } => write!(
                f,
                "run {:032x}: {days} event days to compute from archive version {archive_version}, {cuts} cuts asked for",
                run.0
            ),
            Self::Computes {
                done,
                days,
                rows,
                events,
                of,
                ..
            } => write!(f, "{done} of {days} event days, {events} of {of} events, {rows} cells"),
            Self::Checks => write!(f, "counts what was written"),
            Self::Waits { cuts, left } => {
                write!(
                    f,
                    "waits for the speed layer at {cuts} cuts, {} s at most",
                    left.as_secs()
                )
            }
            Self::FallsBack { cuts } => write!(f, "does without {cuts} cuts, up to the chunk before"),
            Self::StartsOver => write!(f, "another publication came first: begins anew"),
            Self::Published { number } => write!(f, "published {}", number.0),
            Self::RaisesFloor { number } => write!(f, "publications below {} are let go", number.0),
            Self::RaisesHorizon { day } => write!(f, "event days before {} are let go", day_text(*day)),
            Self::WaitsToDelete { left } => write!(f, "waits {} s for queries that may still read", left.as_secs()),
            Self::Deletes { what, rows } => write!(f, "deletes {rows} rows of {what}"),
        }
    }
}

/// Is told of each step. Called from the run itself: it must not block.
pub trait Watcher: Send + Sync {
    /// A run of that view came to that step.
    fn step(&self, view: &str, step: &Step);
}

/// Writes steps to the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Logs;

impl Watcher for Logs {
    fn step(&self, view: &str, step: &Step) {
        match step {
            Step::Computes { .. } | Step::Waits { .. } | Step::Checks => tracing::debug!(view, "batch run: {step}"),
            Step::Deletes { .. } => tracing::debug!(view, "collection: {step}"),
            Step::RaisesFloor { .. } | Step::RaisesHorizon { .. } | Step::WaitsToDelete { .. } => {
                tracing::info!(view, "collection: {step}")
            }
            _ => tracing::info!(view, "batch run: {step}"),
        }
    }
}
