//! When batch runs start: a cron expression in a time zone.
//!
//! The `cron` crate wants seconds first, numbers Sunday 1 and asks that day of month *and* day of week fit. People
//! write Unix cron: no seconds, Sunday 0 or 7, and where both days are restricted, either will do. Unix is what is read
//! here, with the seconds as an option.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

/// A schedule. A time that a change of the clocks leaves out is skipped; one that comes twice is met once.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    expression: String,
    time_zone: Tz,
    /// It starts whenever one of these does.
    alternatives: Vec<cron::Schedule>,
}

impl Default for Schedule {
    /// Never.
    fn default() -> Self {
        Self {
            expression: String::new(),
            time_zone: Tz::UTC,
            alternatives: Vec::new(),
        }
    }
}

impl Schedule {
    /// Reads a cron expression of five fields, or of six with seconds first.
    pub(crate) fn parse(expression: &str, time_zone: Tz) -> Result<Self, String> {
        let fields: Vec<&str> = expression.split_whitespace().collect();
        let [seconds, minute, hour, day, month, weekday] = match fields[..] {
            [minute, hour, day, month, weekday] => ["0", minute, hour, day, month, weekday],
            [seconds, minute, hour, day, month, weekday] => [seconds, minute, hour, day, month, weekday],
            _ => return Err(format!("it has {} fields", fields.len())),
        };
        let weekdays = weekdays(weekday)?;
        let build = |day: &str, weekdays: &str| {
            let text = format!("{seconds} {minute} {hour} {day} {month} {weekdays}");
            cron::Schedule::from_str(&text).map_err(|error| error.to_string().to_lowercase().replace('\n', " "))
        };
        let both = !day.starts_with(['*', '?']) && !weekday.starts_with(['*', '?']);
        let alternatives = if both {
            vec![build(day, "*")?, build("*", &weekdays)?]
        } else {
            vec![build(day, &weekdays)?]
        };
        let schedule = Self {
            expression: expression.to_owned(),
            time_zone,
            alternatives,
        };
        match schedule.after(DateTime::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err("no day ever meets it".to_owned()),
        }
    }

    /// The same hours in another time zone.
    pub(super) fn in_time_zone(&self, time_zone: Tz) -> Self {
        Self {
            time_zone,
            ..self.clone()
        }
    }

    /// The first start after a moment.
    pub fn after(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let moment = moment.with_timezone(&self.time_zone);
        let next = |schedule: &cron::Schedule| schedule.after(&moment).next();
        self.alternatives
            .iter()
            .filter_map(next)
            .min()
            .map(|start| start.with_timezone(&Utc))
    }

    /// The expression as written.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The time zone.
    pub fn time_zone(&self) -> Tz {
        self.time_zone
    }
}

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A Unix day-of-week field as a list of names.
fn weekdays(field: &str) -> Result<String, String> {
    if matches!(field, "*" | "?") {
        return Ok("*".to_owned());
    }
    let mut days = BTreeSet::new();
    for part in field.split(',') {
        let (range, step) = part
            .split_once('/')
            .map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, last) = match range.split_once('-') {
            None if range == "*" => (0, 6),
            None => (weekday(range)?, if step.is_some() { 6 } else { weekday(range)? }),
            Some((first, last)) => (weekday(first)?, weekday(last)?),
        };
        // `fri-sun`: Sunday is also 7.
        let last = if last < first && last == 0 { 7 } else { last };
        let step = step.map_or(Ok(1), |step| {
            step.parse::<usize>().map_err(|_| format!("`/{step}` is no step"))
        })?;
        if step == 0 || last < first {
            return Err(format!("`{part}` holds no day of the week"));
        }
        days.extend((first..=last).step_by(step).map(|day| DAYS[day % 7]));
    }
    Ok(days.into_iter().collect::<Vec<_>>().join(","))
}

fn weekday(text: &str) -> Result<usize, String> {
    let lower = text.to_lowercase();
    let by_name = DAYS.iter().position(|day| lower == *day);
    let by_number = || lower.parse().ok().filter(|number| *number <= 7);
    by_name
        .or_else(by_number)
        .ok_or_else(|| format!("`{text}` is no day of the week: 0 to 7, or `sun` to `sat`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(expression: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(expression, zone).unwrap();
        let mut moment: DateTime<Utc> = from.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            moment = schedule.after(moment).unwrap();
            found.push(moment.format("%a %d %H:%M:%S").to_string());
        }
        found
    }

    #[test]
    fn five_fields_are_unix_cron() {
        let from = "2026-11-21T12:00:00Z"; // a Saturday
        assert_eq!(starts("0 2 * * *", Tz::UTC, from, 1), ["Sun 22 02:00:00"]);
        assert_eq!(starts("30 4 * * 0", Tz::UTC, from, 1), ["Sun 22 04:30:00"]);
        assert_eq!(starts("30 4 * * 7", Tz::UTC, from, 1), ["Sun 22 04:30:00"]);
        assert_eq!(
            starts("0 9 * * 1-5", Tz::UTC, from, 2),
            ["Mon 23 09:00:00", "Tue 24 09:00:00"]
        );
        assert_eq!(
            starts("0 9 * * fri-sun", Tz::UTC, from, 2),
            ["Sun 22 09:00:00", "Fri 27 09:00:00"]
        );
        assert_eq!(
            starts("*/15 * * * *", Tz::UTC, from, 2),
            ["Sat 21 12:15:00", "Sat 21 12:30:00"]
        );
    }

    #[test]
    fn either_day_will_do_where_both_are_restricted() {
        let from = "2026-11-21T12:00:00Z";
        assert_eq!(
            starts("0 2 25 * 1", Tz::UTC, from, 3),
            ["Mon 23 02:00:00", "Wed 25 02:00:00", "Mon 30 02:00:00"]
        );
    }

    #[test]
    fn seconds_may_stand_first() {
        assert_eq!(
            starts("*/20 * * * * *", Tz::UTC, "2026-11-21T12:00:00Z", 2),
            ["Sat 21 12:00:20", "Sat 21 12:00:40"]
        );
    }

    #[test]
    fn changes_of_the_clocks() {
        let berlin = Tz::Europe__Berlin;
        // 02:30 does not exist on 29 March 2026, and comes twice on 25 October.
        assert_eq!(
            starts("30 2 * * *", berlin, "2026-03-28T00:00:00Z", 2),
            ["Sat 28 01:30:00", "Mon 30 00:30:00"]
        );
        assert_eq!(
            starts("30 2 * * *", berlin, "2026-10-24T12:00:00Z", 2),
            ["Sun 25 00:30:00", "Mon 26 01:30:00"]
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for wrong in [
            "",
            "* * * *",
            "61 * * * *",
            "0 2 30 2 *",
            "0 2 * * 8",
            "0 2 * * x",
            "0 2 * * 5-2",
            "0 2 * * 1/0",
            "a b c d e",
        ] {
            assert!(Schedule::parse(wrong, Tz::UTC).is_err(), "{wrong}");
        }
    }
}
