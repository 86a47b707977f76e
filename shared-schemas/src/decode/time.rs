//! Moments and days from their text, strictly by RFC 3339's grammar, as whole microseconds and days since 1970.
//!
//! Years end where ClickHouse's types end: a moment in 1970-2299, a day in 1900-2299. A row that the store would clamp or
//! refuse later must be refused here, where it becomes a dead letter and does not stop its partition.

use crate::dataset::TimeUnit;

use super::number;

/// Microseconds a day.
pub(super) const DAY: i64 = 86_400_000_000;
/// Microseconds an hour.
pub(super) const HOUR: i64 = 3_600_000_000;

/// 2300-01-01 in days since 1970.
const END_DAY: i64 = 120_530;
/// 1900-01-01 in days since 1970.
const FIRST_DAY: i64 = -25_567;

/// The moment, if it is in the years 1970-2299.
pub(super) fn moment(micros: i64) -> Option<i64> {
    (0..END_DAY * DAY).contains(&micros).then_some(micros)
}

/// A number of units since 1970; digits finer than a microsecond are cut.
pub(super) fn count(literal: &str, unit: TimeUnit) -> Option<i64> {
    let scale = match unit {
        TimeUnit::Second => 6,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 0,
    };
    moment(number::cut(literal, scale)?)
}

/// `YYYY-MM-DD`.
pub(super) fn date(text: &str) -> Option<i32> {
    let text = text.as_bytes().first_chunk::<10>().filter(|_| text.len() == 10)?;
    i32::try_from(day(text)?).ok()
}

/// RFC 3339 with an offset or `Z`. Digits finer than a microsecond are cut. A leap second, 23:59:60 in UTC, is the first
/// second of the next day, as POSIX counts.
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = text.as_bytes().split_first_chunk::<10>()?;
    let (clock, mut rest) = rest.split_first_chunk::<9>()?;
    let &[b'T' | b't', h1, h2, b':', m1, m2, b':', s1, s2] = clock else {
        return None;
    };
    let (hour, minute, second) = (pair(h1, h2)?, pair(m1, m2)?, pair(s1, s2)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut micros = 0;
    if let Some((b'.', fraction)) = rest.split_first() {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let mut unit = 100_000;
        for byte in &fraction[..digits.min(6)] {
            micros += i64::from(byte - b'0') * unit;
            unit /= 10;
        }
        rest = &fraction[digits..];
    }
    let ahead = match *rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (pair(h1, h2)?, pair(m1, m2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let minutes = day(date)? * 1440 + hour * 60 + minute - ahead;
    if second == 60 && minutes.rem_euclid(1440) != 1439 {
        return None;
    }
    moment((minutes * 60 + second) * 1_000_000 + micros)
}

fn day(text: &[u8; 10]) -> Option<i64> {
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else {
        return None;
    };
    let (year, month, day) = (pair(y1, y2)? * 100 + pair(y3, y4)?, pair(m1, m2)?, pair(d1, d2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if day < 1 || day > length {
        return None;
    }
    // Howard Hinnant's days from the civil date, with years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    (FIRST_DAY..END_DAY).contains(&days).then_some(days)
}

fn pair(tens: u8, ones: u8) -> Option<i64> {
    let digit = |byte: u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    Some(digit(tens)? * 10 + digit(ones)?)
}
