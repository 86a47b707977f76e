//! Lengths of time, sizes and shares as people write them: a number with its unit.

use std::fmt::Write;
use std::time::Duration;

/// Units of time, longest first, in microseconds.
const TIMES: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Units of size, largest first of each kind, in bytes.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// Reads a length of time: `250ms`, `1h30m`.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = 0_u64;
    loop {
        let (part, after) = number_and_unit(rest, &TIMES, "`us`, `ms`, `s`, `m`, `h` or `d`")?;
        total = total.checked_add(part).ok_or("it is too long")?;
        if after.is_empty() {
            return Ok(Duration::from_micros(total));
        }
        rest = after;
    }
}

/// Reads a size: `64MiB`.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence.
pub fn size(text: &str) -> Result<u64, String> {
    match number_and_unit(text, &SIZES, "`B`, `KiB`, `MiB`, `GiB` or `TiB`")? {
        (bytes, "") => Ok(bytes),
        (_, after) => Err(format!("`{after}` stands behind the unit")),
    }
}

/// Reads a share: `1%`, `0.25%`, above 0 % and up to 100 %; as a fraction of 1.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').ok_or("it has no `%` at its end")?;
    let is_decimal = number.starts_with(|first: char| first.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let percent: f64 = Some(number)
        .filter(|_| is_decimal)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("`{number}` is no decimal number"))?;
    if percent > 0.0 && percent <= 100.0 {
        Ok(percent / 100.0)
    } else {
        Err("it is not above 0% and up to 100%".to_owned())
    }
}

/// Writes a length of time as [`duration`] reads it, in as few units as there can be.
pub fn show_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".to_owned();
    }
    let mut shown = String::new();
    for (unit, micros) in TIMES {
        if left >= micros {
            // Writing to a string can't fail.
            let _ = write!(shown, "{}{unit}", left / micros);
            left %= micros;
        }
    }
    shown
}

/// Writes a size as [`size`] reads it.
pub fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZES[..5]
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Splits off a whole number and its unit; returns what both come to, and the rest.
fn number_and_unit<'a>(text: &'a str, units: &[(&str, u64)], known: &str) -> Result<(u64, &'a str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, after) = text.split_at(digits);
    if number.is_empty() {
        return Err(if text.is_empty() {
            "it is empty".to_owned()
        } else {
            format!("`{text}` does not begin with a whole number")
        });
    }
    let number: u64 = number.parse().map_err(|_| "the number is too large".to_owned())?;
    let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
    let (unit, rest) = after.split_at(unit_end);
    if unit.is_empty() {
        return Err(match rest.chars().next() {
            None => "it has no unit".to_owned(),
            Some('.') => "fractions are not read".to_owned(),
            Some(_) => format!("`{rest}` is no unit"),
        });
    }
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| format!("`{unit}` is none of the units {known}"))?;
    let total = number.checked_mul(factor).ok_or_else(|| "it is too large".to_owned())?;
    Ok((total, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("10"), Err("it has no unit".to_owned()));
        assert_eq!(duration("1.5h"), Err("fractions are not read".to_owned()));
        assert_eq!(
            duration("-1s"),
            Err("`-1s` does not begin with a whole number".to_owned())
        );
        assert_eq!(
            duration("5min"),
            Err("`min` is none of the units `us`, `ms`, `s`, `m`, `h` or `d`".to_owned())
        );
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1kB"), Ok(1000));
        assert_eq!(size("1 MiB"), Err("` MiB` is no unit".to_owned()));
        assert_eq!(size("99999999TiB"), Err("it is too large".to_owned()));
    }

    #[test]
    fn shares_are_read_in_percent() {
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("100%"), Ok(1.0));
        assert_eq!(share("0.5%"), Ok(0.005));
        assert_eq!(share("1"), Err("it has no `%` at its end".to_owned()));
        for out in ["0%", "0.0%", "100.1%"] {
            assert_eq!(share(out), Err("it is not above 0% and up to 100%".to_owned()), "{out}");
        }
        for none in ["%", "-1%", "1e1%", "nan%", "1 %", ".5%", "1.2.3%"] {
            assert!(
                share(none).is_err_and(|why| why.ends_with("is no decimal number")),
                "{none}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(micros in 0..u64::MAX / 2, bytes in 0..u64::MAX / 2) {
            let time = Duration::from_micros(micros);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,12}") {
            let _ = duration(&text);
            let _ = size(&text);
            let _ = share(&text);
        }
    }
}
