//! How often a reconciliation reads the archive and the store: a number that must not grow with that of differences.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// How often the archive and the store were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// Readings of archived events, of some days each.
    pub archive: u64,
    /// Statements that read cells.
    pub store: u64,
    /// How many slices the differences were explained in.
    pub slices: u64,
}

/// The same while it goes on.
#[derive(Debug, Default)]
pub(super) struct Reading {
    archive: AtomicU64,
    store: AtomicU64,
    slices: AtomicU64,
}

impl Reading {
    pub(super) fn of_archive(&self) {
        self.archive.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of_store(&self) {
        self.store.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn slice(&self) {
        self.slices.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn told(&self) -> Reads {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Reads {
            archive: of(&self.archive),
            store: of(&self.store),
            slices: of(&self.slices),
        }
    }
}
