//! When batch runs start: a cron expression in a time zone.
//!
//! The `cron` crate wants seconds first, numbers Sunday 1 and asks that day of month *and* day of week fit. People
//! write Unix cron: no seconds, Sunday 0 or 7, and where both days are restricted, either will do. Unix is what is read
//! here, with the seconds as an option.
//!
//! **Changes of the clocks.** Starts are times on the wall, looked for as if every day had 24 hours, and only then turned into
//! moments. A time that a change leaves out is met by the first moment after it, so that no day goes without; one that
//! comes twice is met when it first comes, so that none is done twice. Only where the hour is open (`*`, `*/2`) both
//! hours have their starts: whoever wants a run each quarter of an hour wants no hour without.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::{DateTime, Duration, MappedLocalTime, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

/// No change of the clocks leaves out more: some islands once left out a day.
const LONGEST_CHANGE_HOURS: i64 = 48;

/// A schedule. A time that a change of the clocks leaves out is met right after it; one that comes twice is met once, unless
/// every hour is meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    expression: String,
    time_zone: Tz,
    /// Whether no hour is singled out.
    any_hour: bool,
    /// It starts whenever one of these does.
    alternatives: Vec<cron::Schedule>,
}

impl Default for Schedule {
    /// Never.
    fn default() -> Self {
        Self {
            expression: String::new(),
            time_zone: Tz::UTC,
            any_hour: false,
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
            any_hour: hour.starts_with('*'),
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
        let wall = moment.with_timezone(&self.time_zone).naive_local();
        let mut from = wall;
        if let MappedLocalTime::Ambiguous(first, second) = self.time_zone.from_local_datetime(&wall)
            && self.any_hour
            && moment < second
        {
            // Times on the wall that have been, and come again.
            from = wall - (second - first);
        }
        let next = |schedule: &cron::Schedule| self.first_of(schedule, from, moment);
        self.alternatives.iter().filter_map(next).min()
    }

    /// The first start after a moment, of those that the wall shows after `from`.
    fn first_of(&self, schedule: &cron::Schedule, from: NaiveDateTime, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut found: Option<DateTime<Utc>> = None;
        for wall in schedule.after(&from.and_utc()) {
            let (first, again) = self.moments(wall.naive_utc());
            let later = again.filter(|again| self.any_hour && *again > moment);
            found = found.into_iter().chain(later).min();
            // Those to come are first met later than this one.
            if first > moment {
                return found.into_iter().chain([first]).min();
            }
        }
        found
    }

    /// When the wall shows that time, and when it does again; the first moment after it where it never does.
    fn moments(&self, wall: NaiveDateTime) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
        match self.time_zone.from_local_datetime(&wall) {
            MappedLocalTime::Single(moment) => (moment.to_utc(), None),
            MappedLocalTime::Ambiguous(first, second) => (first.to_utc(), Some(second.to_utc())),
            MappedLocalTime::None => (self.change_before(wall), None),
        }
    }

    /// The moment of the change that leaves that time out.
    fn change_before(&self, wall: NaiveDateTime) -> DateTime<Utc> {
        let zone = self.time_zone;
        let shown = |hours| zone.from_local_datetime(&(wall - Duration::hours(hours))).latest();
        // Without an end to the time that is left out it would be no time at all: then as if it were UTC.
        let Some(before) = (1..=LONGEST_CHANGE_HOURS).find_map(shown) else {
            return wall.and_utc();
        };
        let offset = before.offset().fix();
        let is_before = |seconds: i64| {
            let moment = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            moment.with_timezone(&zone).offset().fix() == offset
        };
        // Changes come at whole seconds.
        let (mut before, mut after) = (before.timestamp(), (wall - offset).and_utc().timestamp());
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if is_before(middle) {
                before = middle;
            } else {
                after = middle;
            }
        }
        DateTime::from_timestamp(after, 0).unwrap_or_default()
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
            starts("30 2 * * *", berlin, "2026-03-28T00:00:00Z", 3),
            ["Sat 28 01:30:00", "Sun 29 01:00:00", "Mon 30 00:30:00"],
            "the clocks go from 02:00 to 03:00, which is 01:00 UTC"
        );
        assert_eq!(
            starts("30 2 * * *", berlin, "2026-10-24T12:00:00Z", 2),
            ["Sun 25 00:30:00", "Mon 26 01:30:00"]
        );
        // Times of an hour that is left out come together, and only once.
        assert_eq!(
            starts("0,30 2,3 * * *", berlin, "2026-03-29T00:00:00Z", 3),
            ["Sun 29 01:00:00", "Sun 29 01:30:00", "Mon 30 00:00:00"]
        );
        // Half an hour, in the south; midnight that does not exist; a day that was left out.
        assert_eq!(
            starts("15 2 * * *", Tz::Australia__Lord_Howe, "2026-10-03T12:00:00Z", 2),
            ["Sat 03 15:30:00", "Sun 04 15:15:00"]
        );
        assert_eq!(
            starts("0 0 * * *", Tz::America__Santiago, "2026-09-05T12:00:00Z", 2),
            ["Sun 06 04:00:00", "Mon 07 03:00:00"]
        );
        assert_eq!(
            starts("0 2 * * *", Tz::Pacific__Apia, "2011-12-29T00:00:00Z", 3),
            ["Thu 29 12:00:00", "Fri 30 10:00:00", "Fri 30 12:00:00"]
        );
    }

    #[test]
    fn every_hour_means_also_the_one_that_comes_twice() {
        let berlin = Tz::Europe__Berlin;
        assert_eq!(
            starts("30 * * * *", berlin, "2026-10-24T23:45:00Z", 3),
            ["Sun 25 00:30:00", "Sun 25 01:30:00", "Sun 25 02:30:00"]
        );
        assert_eq!(
            starts("*/30 * * * *", berlin, "2026-10-25T00:10:00Z", 4),
            [
                "Sun 25 00:30:00",
                "Sun 25 01:00:00",
                "Sun 25 01:30:00",
                "Sun 25 02:00:00"
            ]
        );
        assert_eq!(
            starts("30 * * * *", berlin, "2026-03-29T00:00:00Z", 3),
            ["Sun 29 00:30:00", "Sun 29 01:00:00", "Sun 29 01:30:00"]
        );
    }

    proptest::proptest! {
        /// Every local day has exactly one start, whatever the clocks do.
        #[test]
        fn a_daily_schedule_starts_once_each_local_day(
            zone in 0..chrono_tz::TZ_VARIANTS.len(), hour in 0_u32..24, minute in 1_u32..60, year in 1990_i64..2038,
        ) {
            let zone = chrono_tz::TZ_VARIANTS[zone];
            let schedule = Schedule::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
            let mut moment = DateTime::UNIX_EPOCH + Duration::days((year - 1970) * 365);
            let mut day = schedule.after(moment).unwrap().with_timezone(&zone).date_naive();
            for _ in 0..400 {
                moment = schedule.after(moment).unwrap();
                let local = moment.with_timezone(&zone);
                // A day that was left out has its start right behind it.
                proptest::prop_assert!(local.date_naive() >= day, "{local} instead of {day}");
                let shown = local.date_naive() == day;
                let exists = (0..1440).any(|minute| {
                    let wall = day.and_hms_opt(minute / 60, minute % 60, 0).unwrap();
                    zone.from_local_datetime(&wall).earliest().is_some()
                });
                proptest::prop_assert!(shown || !exists, "{local} instead of {day}");
                day = day.succ_opt().unwrap();
            }
        }
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
