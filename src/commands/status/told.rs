//! Moments, ages and offsets as people read them.

use chrono::{DateTime, SecondsFormat, Utc};
use shared_schemas::handoff::{OffsetRange, TopicId};

/// A moment in milliseconds since 1970 as RFC 3339.
pub(in crate::commands) fn moment(millis: i64) -> Option<String> {
    DateTime::from_timestamp_millis(millis).map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A moment in microseconds since 1970 as RFC 3339.
pub(super) fn moment_of_micros(micros: i64) -> Option<String> {
    DateTime::from_timestamp_micros(micros).map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// How long before `now` a moment in milliseconds lies, in seconds; 0 for one that other clocks put after it.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of an age are far fewer than 2^52"
)]
pub(super) fn seconds_since(millis: i64, now: DateTime<Utc>) -> f64 {
    now.timestamp_millis().saturating_sub(millis).max(0) as f64 / 1_000.0
}

/// A length of time for people, to two units at most; below a second it is `now`.
pub(super) fn age(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds are wanted, and an age is not negative"
    )]
    let whole = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3_600, whole / 86_400);
    match whole {
        0 => "now".to_owned(),
        1..60 => format!("{whole} s"),
        60..3_600 => format!("{minutes} min"),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// How long ago, for people.
pub(super) fn ago(seconds: f64) -> String {
    match age(seconds) {
        now if now == "now" => "just now".to_owned(),
        age => format!("{age} ago"),
    }
}

/// A topic's incarnation, as everywhere in Highwater.
pub(super) fn topic_id(id: TopicId) -> String {
    format!("{:032x}", id.0)
}

/// Offsets for people. A range's end is exclusive: this names the first and the last.
pub(super) fn offsets(range: OffsetRange) -> String {
    format!("offsets {} to {}", range.from, range.to.0.saturating_sub(1))
}

/// A noun with its number.
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let shown = [
            0.0, 0.99, 1.0, 59.9, 60.0, 3_599.0, 3_600.0, 12_345.0, 86_400.0, 777_777.0,
        ]
        .map(age);
        assert_eq!(
            shown,
            [
                "now",
                "now",
                "1 s",
                "59 s",
                "1 min",
                "59 min",
                "1 h 0 min",
                "3 h 25 min",
                "1 d 0 h",
                "9 d 0 h"
            ]
        );
        assert_eq!((ago(0.4), ago(5.0)), ("just now".to_owned(), "5 s ago".to_owned()));
    }

    #[test]
    fn a_clock_that_is_ahead_makes_no_negative_age() {
        let now = DateTime::from_timestamp_millis(1_000).unwrap_or_default();
        assert!(seconds_since(5_000, now).abs() < f64::EPSILON);
        assert!((seconds_since(-500, now) - 1.5).abs() < f64::EPSILON);
    }
}
