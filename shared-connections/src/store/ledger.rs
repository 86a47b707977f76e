//! What became of the records of a start, and whether it adds up.
//!
//! A ledger is a function of the log from its start up to `next`: whoever reads those offsets again counts the same. So late events are
//! not in it: which ones are late depends on what was read before the start, and a worker begins to read at one. How many
//! repeats a filter was unsure of depends on where it began, too: that is counted beside the identity, to explain
//! differences.

use std::collections::BTreeMap;

use shared_schemas::handoff::{Offset, Start};

/// What became of the records of a start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Up to where the start has come.
    pub next: Offset,
    /// The hash of the dataset's rules that the records were read by.
    pub rules: String,
    /// How many records were delivered.
    pub read: u64,
    /// How many offsets held no record that is ever delivered; gaps among them.
    pub holes: u64,
    /// How many of the holes are a recorded gap: the log no longer had them.
    pub gap: u64,
    /// How many records are in the start's cells.
    pub aggregated: u64,
    /// How many the view's filter left out.
    pub filtered: u64,
    /// How many were repeats.
    pub repeated: u64,
    /// How many could not be read, by reason.
    pub invalid: BTreeMap<String, u64>,
    /// How many were counted though the filter for repeats did not remember the whole window.
    pub unsure: u64,
    /// How often the view's filter failed on an event; it is among the filtered.
    pub failed_filters: u64,
}

/// What does not add up in a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unbalanced {
    /// Not every record became something.
    #[error(
        "{read} records were read, and {aggregated} aggregated, {filtered} filtered, {repeated} repeated and {invalid} \
         invalid ones are {sum}"
    )]
    Records {
        /// Delivered.
        read: u64,
        /// In the cells.
        aggregated: u64,
        /// Left out by the view's filter.
        filtered: u64,
        /// Repeats.
        repeated: u64,
        /// Refused.
        invalid: u64,
        /// What these four come to.
        sum: u64,
    },
    /// Not every offset is accounted for.
    #[error("{read} records and {holes} holes were told of {offsets} offsets")]
    Offsets {
        /// Delivered.
        read: u64,
        /// Without a record.
        holes: u64,
        /// From the start up to `next`.
        offsets: u64,
    },
    /// A gap is made of holes.
    #[error("a gap of {gap} offsets was told among {holes} holes")]
    Gap {
        /// In gaps.
        gap: u64,
        /// In all.
        holes: u64,
    },
}

impl Ledger {
    /// How many records could not be read.
    pub fn refused(&self) -> u64 {
        self.invalid.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many records are events: counted, or they would be by a view whose filter lets them pass, or repeats.
    pub fn accepted(&self) -> u64 {
        self.aggregated
            .saturating_add(self.filtered)
            .saturating_add(self.repeated)
    }

    /// Every record and every offset from the start on is accounted for, once.
    ///
    /// # Errors
    /// What does not add up.
    pub fn balances(&self, start: Start) -> Result<(), Unbalanced> {
        let refused = self.refused();
        let sum = self.accepted().saturating_add(refused);
        let offsets = self.next.0.saturating_sub(start.0.0);
        if sum != self.read {
            return Err(Unbalanced::Records {
                read: self.read,
                aggregated: self.aggregated,
                filtered: self.filtered,
                repeated: self.repeated,
                invalid: refused,
                sum,
            });
        }
        if self.read.saturating_add(self.holes) != offsets {
            return Err(Unbalanced::Offsets {
                read: self.read,
                holes: self.holes,
                offsets,
            });
        }
        if self.gap > self.holes {
            return Err(Unbalanced::Gap {
                gap: self.gap,
                holes: self.holes,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            next: Offset(30),
            read: 16,
            holes: 4,
            gap: 3,
            aggregated: 8,
            filtered: 4,
            repeated: 1,
            invalid: BTreeMap::from([("empty".to_owned(), 2), ("not_json".to_owned(), 1)]),
            ..Ledger::default()
        }
    }

    #[test]
    fn what_adds_up_balances_and_nothing_else() {
        let start = Start(Offset(10));
        assert_eq!(ledger().balances(start), Ok(()));
        assert_eq!(Ledger::default().balances(Start::default()), Ok(()));
        let changes: [fn(&mut Ledger); 8] = [
            |ledger| ledger.next = Offset(31),
            |ledger| ledger.read += 1,
            |ledger| ledger.holes -= 1,
            |ledger| ledger.gap = 5,
            |ledger| ledger.aggregated -= 1,
            |ledger| ledger.filtered += 1,
            |ledger| ledger.repeated += 1,
            |ledger| ledger.invalid.clear(),
        ];
        for change in changes {
            let mut ledger = ledger();
            change(&mut ledger);
            assert!(ledger.balances(start).is_err(), "{ledger:?}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_said() {
        let mut lost = ledger();
        lost.aggregated = 7;
        let said = lost.balances(Start(Offset(10))).unwrap_err().to_string();
        assert_eq!(
            said,
            "16 records were read, and 7 aggregated, 4 filtered, 1 repeated and 3 invalid ones are 15"
        );
        let said = ledger().balances(Start(Offset(9))).unwrap_err().to_string();
        assert_eq!(said, "16 records and 4 holes were told of 21 offsets");
    }
}
