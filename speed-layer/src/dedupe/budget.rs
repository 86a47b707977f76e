//! The memory for a dataset's filters, in equal parts for however many there are.
//!
//! A part shrinks when a filter comes to be, and grows when one goes. Filters look at each batch and give back what is too
//! much; a new one begins small, so together they are over the budget only until they have done so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::table::{GROUP, Table};

/// As many events are always remembered, whatever the budget.
pub const FEWEST: usize = 1024;

/// The memory for all filters of a dataset.
#[derive(Debug)]
pub struct Budget {
    /// In groups of the filters' tables.
    groups: usize,
    /// What a filter may have in any case, in groups.
    fewest: usize,
    filters: AtomicUsize,
}

/// One filter's part.
#[derive(Debug)]
pub(super) struct Part(Arc<Budget>);

impl Budget {
    /// So many bytes.
    pub fn new(memory: u64) -> Arc<Self> {
        let groups = usize::try_from(memory).unwrap_or(usize::MAX) / GROUP;
        Self::of_groups(groups, Table::groups_for(FEWEST))
    }

    /// So many groups, and at least so many for each filter.
    pub(super) fn of_groups(groups: usize, fewest: usize) -> Arc<Self> {
        Arc::new(Self {
            groups,
            fewest,
            filters: AtomicUsize::new(0),
        })
    }

    /// How many events each filter remembers once there are so many more of them.
    pub fn capacity_with(&self, more: usize) -> usize {
        let filters = self.filters.load(Ordering::Relaxed);
        Table::most_of(self.groups_of(filters.saturating_add(more)))
    }

    fn groups_of(&self, filters: usize) -> usize {
        (self.groups / filters.max(1)).max(self.fewest)
    }

    pub(super) fn part(self: &Arc<Self>) -> Part {
        self.filters.fetch_add(1, Ordering::Relaxed);
        Part(Arc::clone(self))
    }
}

impl Part {
    /// How many groups the filter's table begins with.
    pub(super) fn first(&self) -> usize {
        self.0.fewest
    }

    /// How many groups the filter's table may have now.
    pub(super) fn groups(&self) -> usize {
        self.0.groups_of(self.0.filters.load(Ordering::Relaxed))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.filters.fetch_sub(1, Ordering::Relaxed);
    }
}
