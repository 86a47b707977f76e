//! The length of a bucket as queries write it: `5m`, `1h`, `day`.

use std::time::Duration;

use shared_schemas::units::{duration, show_duration};
use shared_schemas::view::View;

use super::shown;
use crate::problem::Fault;

/// Words for fixed lengths.
const WORDS: [(&str, u64); 3] = [("minute", 60), ("hour", 3_600), ("day", 86_400)];
/// Words for what has no fixed length, or no fixed beginning.
const CALENDAR: [&str; 5] = ["week", "month", "quarter", "year", "auto"];

/// The longest bucket: as long as the years that there can be events in.
const LONGEST: Duration = Duration::from_secs(330 * 366 * 86_400);

/// A whole multiple of the view's grain.
pub(super) fn read(given: &str, view: &View) -> Result<Duration, Fault> {
    let own = show_duration(view.grain);
    let multiple = format!("a whole multiple of the view's own, {own}, such as {own} or 1d");
    if CALENDAR.contains(&given) {
        return Err(Fault::impossible(
            "grain",
            "unsupported_grain",
            format!("buckets of a calendar {given} are not answered yet"),
            multiple,
        ));
    }
    let word = WORDS.iter().find(|(word, _)| *word == given);
    let length = match word {
        Some((_, seconds)) => Duration::from_secs(*seconds),
        None => duration(given).map_err(|why| {
            let detail = format!("`{}` is no length of time: {why}", shown(given));
            Fault::malformed("grain", "malformed_value", detail, multiple.as_str())
        })?,
    };
    if length.is_zero() || length > LONGEST {
        let detail = format!("buckets cannot be {} long", shown(given));
        return Err(Fault::malformed("grain", "malformed_value", detail, multiple));
    }
    if length.subsec_nanos() != 0 || !length.as_secs().is_multiple_of(view.grain.as_secs().max(1)) {
        return Err(Fault::impossible(
            "grain",
            "grain_not_multiple",
            format!("{} is no whole multiple of the view's grain", show_duration(length)),
            multiple,
        ));
    }
    Ok(length)
}
