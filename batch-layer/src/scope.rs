//! Which event days a run computes.
//!
//! By itself, those with events between the published marks and the new ones: `handoff::dirty_days`. Chosen days are computed
//! again at the published marks, and all days for who asks for all.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::NaiveDate;
use shared_schemas::handoff::{ArchivedRange, EventDay, Publication, dirty_days};

use crate::marks::Marks;

/// Which event days a run computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those that got events since the last publication.
    #[default]
    Dirty,
    /// These, at the published marks, which stay.
    Days(Vec<DayRange>),
    /// All that the archive has, and all that was published.
    Full,
}

/// Event days, from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayRange {
    /// The first.
    pub first: EventDay,
    /// The last: it is among them.
    pub last: EventDay,
}

impl From<EventDay> for DayRange {
    fn from(day: EventDay) -> Self {
        Self { first: day, last: day }
    }
}

impl FromStr for DayRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let day = |text: &str| {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d");
            let date = date.map_err(|_| format!("`{text}` is no day: write days like 2013-01-01..2013-01-31"))?;
            Ok::<_, String>(EventDay(date.to_epoch_days()))
        };
        let range = Self {
            first: day(first)?,
            last: day(last)?,
        };
        if range.last < range.first {
            return Err(format!("`{text}` ends before it starts: write the earlier day first"));
        }
        Ok(range)
    }
}

impl Scope {
    /// The days, among those of the archive's files; where days are chosen, or all, also those of the publication before: a day
    /// whose last file was put aside has no events any more, and is answered until it is computed again. Where days are
    /// chosen the marks must be the published ones.
    ///
    /// What came late for a day before the horizon is let go with it.
    pub(crate) fn days(
        &self,
        marks: &Marks,
        archived: &[ArchivedRange],
        parent: Option<&Publication>,
        horizon: Option<EventDay>,
    ) -> BTreeSet<EventDay> {
        let published = parent.into_iter().flat_map(|parent| parent.days.keys().copied());
        let mut days = self.all_days(marks, archived, published);
        days.retain(|day| horizon.is_none_or(|horizon| *day >= horizon));
        days
    }

    fn all_days(
        &self,
        marks: &Marks,
        archived: &[ArchivedRange],
        published: impl Iterator<Item = EventDay>,
    ) -> BTreeSet<EventDay> {
        let below = || {
            let mut days = dirty_days(&Default::default(), &marks.all(), archived.iter().copied());
            days.extend(published);
            days
        };
        match self {
            Self::Dirty => dirty_days(&marks.parent, &marks.all(), archived.iter().copied()),
            Self::Days(ranges) => {
                let mut days = below();
                days.retain(|day| ranges.iter().any(|range| (range.first..=range.last).contains(day)));
                days
            }
            Self::Full => below(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let range = |text: &str| text.parse::<DayRange>().map(|range| (range.first.0, range.last.0));
        assert_eq!(range("1970-01-02..1970-02-01"), Ok((1, 31)));
        assert_eq!(range("1970-01-02"), Ok((1, 1)));
        assert_eq!(
            range("2013-02-01..2013-01-31"),
            Err("`2013-02-01..2013-01-31` ends before it starts: write the earlier day first".to_owned())
        );
        for text in ["", "..", "2013-02-30", "2013-01-01..", "yesterday"] {
            assert!(range(text).unwrap_err().contains("is no day"), "{text}");
        }
    }
}
