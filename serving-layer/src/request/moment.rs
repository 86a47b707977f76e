//! Moments as queries write them: RFC 3339, or seconds or milliseconds since 1970.

use chrono::DateTime;

use super::shown;
use crate::problem::Fault;

/// Numbers from here on are milliseconds: as seconds they would lie beyond the year 5000, as milliseconds this one is in
/// 1973.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

const MICROS: i64 = 1_000_000;
/// 2300-01-01T00:00:00Z in microseconds: no event is later.
const END: i64 = 10_413_792_000 * MICROS;

/// Why a text is no moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoMoment {
    /// It is written otherwise.
    Form,
    /// It is before 1970 or after 2299.
    Beyond,
}

/// A moment, in microseconds since 1970.
pub(super) fn read(text: &str) -> Result<i64, NoMoment> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let micros = if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let number: i64 = text.parse().map_err(|_| NoMoment::Beyond)?;
        let unit = if number.abs() >= MILLISECONDS_FROM {
            1_000
        } else {
            MICROS
        };
        number.checked_mul(unit).ok_or(NoMoment::Beyond)?
    } else {
        DateTime::parse_from_rfc3339(text)
            .map_err(|_| NoMoment::Form)?
            .timestamp_micros()
    };
    if (0..=END).contains(&micros) {
        Ok(micros)
    } else {
        Err(NoMoment::Beyond)
    }
}

/// What to tell of a text that is no moment.
pub(super) fn fault(parameter: &str, given: &str, why: NoMoment) -> Fault {
    let given_shown = shown(given);
    let (detail, mend) = match why {
        NoMoment::Beyond => (
            format!("`{given_shown}` is not in the years 1970 to 2299"),
            "a moment in the years 1970 to 2299",
        ),
        // In an address `+` is a space unless it is escaped.
        NoMoment::Form if given.contains(' ') && read(&given.replacen(' ', "+", 1)).is_ok() => (
            format!("`{given_shown}` is no moment"),
            "`%2B` for the `+` of an offset, or `Z`: 2013-11-01T00:00:00Z",
        ),
        NoMoment::Form => (
            format!("`{given_shown}` is no moment"),
            "RFC 3339 with `Z` or an offset, as in 2013-11-01T00:00:00Z, or seconds or milliseconds since 1970",
        ),
    };
    Fault::malformed(parameter, "malformed_value", detail, mend)
}

/// Only UTC is answered so far.
pub(super) fn check_zone(given: Option<&str>, faults: &mut Vec<Fault>) {
    match given {
        None | Some("UTC") => {}
        Some(name) if name.parse::<chrono_tz::Tz>().is_ok() => faults.push(Fault::impossible(
            "tz",
            "unsupported_tz",
            format!("buckets in {name} are not answered yet"),
            "UTC",
        )),
        Some(name) => faults.push(Fault::malformed(
            "tz",
            "malformed_value",
            format!("`{}` is no time zone", shown(name)),
            "UTC",
        )),
    }
}
