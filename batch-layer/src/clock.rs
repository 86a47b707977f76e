//! Which day it is, for what is let go by its age: the day of which this machine's clock and another one are both sure.
//!
//! A horizon never falls, and what it let go of does not come back; so a clock that is years ahead, once, would take everything
//! from both layers and the archive. Two clocks are asked therefore, and where they are apart nothing goes, whichever is wrong.
//! Of two that agree the one that is behind counts. Where both are one machine's, they are one clock: nothing notices it.
//!
//! The other clock is ClickHouse's. Where it can't be asked, an archive in an object store has one too: the store says when an object
//! was written. A folder's files say what this machine's clock says, so there nothing goes until ClickHouse answers.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use shared_connections::sentence;
use shared_connections::store::Store;
use shared_schemas::handoff::EventDay;

/// Clocks further apart than this are not believed. Those of machines that keep time at all are seconds apart; what is let go is
/// counted in days.
const APART: TimeDelta = TimeDelta::hours(1);

/// Two clocks that don't agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no further event day is let go: this machine's clock says {}, {whose}'s {}; set the wrong one right",
    moment(*ours),
    moment(*theirs)
)]
pub struct ClocksApart {
    ours: DateTime<Utc>,
    whose: Whose,
    theirs: DateTime<Utc>,
}

/// Whose clock was asked beside this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    ClickHouse,
    /// The object store's that holds the archive.
    Store,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClickHouse => "ClickHouse",
            Self::Store => "the archive's object store",
        })
    }
}

/// Which day it is, as far as that is known.
#[derive(Debug)]
pub enum Today {
    /// Both clocks say it.
    Is(EventDay),
    /// They don't agree.
    Apart(ClocksApart),
    /// There is no second clock that can be asked; the sentence says why.
    Unknown(String),
}

fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn day(ours: DateTime<Utc>, whose: Whose, theirs: DateTime<Utc>) -> Result<EventDay, ClocksApart> {
    if (ours - theirs).abs() > APART {
        return Err(ClocksApart { ours, whose, theirs });
    }
    Ok(EventDay::of_micros(ours.min(theirs).timestamp_micros()))
}

impl Today {
    /// Asks this machine's clock and ClickHouse's, once.
    pub async fn ask(store: &Store) -> Self {
        match store.clock().await {
            Ok(theirs) => Self::of(theirs),
            Err(error) => Self::Unknown(format!("ClickHouse can't be asked: {}", sentence(&error))),
        }
    }

    /// Of what ClickHouse's said, just now, in milliseconds since 1970.
    pub(crate) fn of(theirs: i64) -> Self {
        let theirs = DateTime::from_timestamp_millis(theirs).unwrap_or_default();
        Self::told(Whose::ClickHouse, theirs)
    }

    /// Of what another clock said, just now.
    pub(crate) fn told(whose: Whose, theirs: DateTime<Utc>) -> Self {
        day(Utc::now(), whose, theirs).map_or_else(Self::Apart, Self::Is)
    }

    /// The first event day that is kept today by who keeps so long; none where it is not known.
    pub(crate) fn first_kept(&self, keep: Duration) -> Option<EventDay> {
        match self {
            Self::Is(day) => Some(day.first_kept(keep)),
            Self::Apart(_) | Self::Unknown(_) => None,
        }
    }

    /// Whether what is deleted by its age may be: two clocks say which day it is.
    pub(crate) fn is_believed(&self) -> bool {
        matches!(self, Self::Is(_))
    }

    /// Why nothing may be let go today.
    pub(crate) fn doubt(&self) -> Option<String> {
        match self {
            Self::Is(_) => None,
            Self::Apart(apart) => Some(apart.to_string()),
            Self::Unknown(why) => Some(format!(
                "no event day is let go and no file deleted before a second clock says what time it is: {why}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_what_two_clocks_agree_on() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let is = |ours, theirs| day(at(ours), Whose::Store, at(theirs)).map(|day| day.0).ok();
        assert_eq!(is("1970-01-03T12:00:00Z", "1970-01-03T12:00:05Z"), Some(2));
        // The day begins when it has begun for both.
        assert_eq!(is("1970-01-04T00:00:01Z", "1970-01-03T23:59:59Z"), Some(2));
        assert_eq!(is("1970-01-03T23:59:59Z", "1970-01-04T00:00:01Z"), Some(2));
        assert_eq!(is("1970-01-04T01:00:00Z", "1970-01-04T00:00:00Z"), Some(3));
        // Whichever is wrong.
        for (one, other) in [
            ("1970-01-04T01:00:01Z", "1970-01-04T00:00:00Z"),
            ("2031-01-04T00:00:00Z", "2026-01-04T00:00:00Z"),
        ] {
            assert_eq!((is(one, other), is(other, one)), (None, None));
        }
        for (whose, name) in [
            (Whose::ClickHouse, "ClickHouse"),
            (Whose::Store, "the archive's object store"),
        ] {
            let apart = day(at("2031-01-04T00:00:00Z"), whose, at("2026-01-04T06:00:00Z")).unwrap_err();
            assert_eq!(
                apart.to_string(),
                format!(
                    "no further event day is let go: this machine's clock says 2031-01-04T00:00:00Z, {name}'s \
                     2026-01-04T06:00:00Z; set the wrong one right"
                )
            );
        }
    }

    #[test]
    fn one_clock_deletes_nothing() {
        let (now, week) = (Utc::now(), TimeDelta::days(7));
        let keep = Duration::from_secs(86_400);
        let agreed = Today::told(Whose::Store, now);
        assert!(agreed.is_believed() && agreed.first_kept(keep).is_some() && agreed.doubt().is_none());
        let apart = [now - week, now + week].map(|theirs| Today::told(Whose::Store, theirs));
        for today in apart.into_iter().chain([Today::Unknown("nobody answers".to_owned())]) {
            assert!(!today.is_believed() && today.first_kept(keep).is_none(), "{today:?}");
            assert!(today.doubt().is_some(), "{today:?}");
        }
    }
}
