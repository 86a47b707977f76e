//! `keep`, of a dataset and of a view: for how many days of event time something is held.
//!
//! A view can't hold what its dataset has let go: what is archived no longer can't be computed again.

use std::time::Duration;

use crate::section::{Entry, Findings, Section};
use crate::units::show_duration;

const DAY: Duration = Duration::from_secs(86_400);

/// Whole days, since what goes are event days.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings<'_>) -> Option<Duration> {
    let entry = section.get("keep")?;
    let keep = entry.duration("\"400d\"", findings)?;
    if keep.is_zero() || !keep.as_micros().is_multiple_of(DAY.as_micros()) {
        let given = entry.as_str().unwrap_or_default();
        let what = format!("event days are kept as a whole: `{given}` is no number of days");
        findings.add(&entry.span, what, "\"400d\"");
        return None;
    }
    Some(keep)
}

/// A view's own, or its dataset's.
pub(super) fn of_view(
    section: &Section<'_>,
    dataset: Option<(&str, Option<Duration>)>,
    findings: &mut Findings<'_>,
) -> Option<Duration> {
    let own = read(section, findings);
    let Some((name, Some(of_dataset))) = dataset else {
        return own;
    };
    if let (Some(own), Some(entry)) = (own, section.get("keep"))
        && own > of_dataset
    {
        too_long(&entry, own, name, of_dataset, findings);
    }
    Some(own.map_or(of_dataset, |own| own.min(of_dataset)))
}

fn too_long(entry: &Entry<'_>, own: Duration, dataset: &str, of_dataset: Duration, findings: &mut Findings<'_>) {
    let (own, longest) = (show_duration(own), show_duration(of_dataset));
    findings.add(
        &entry.span,
        format!("the view keeps {own}, and its dataset `{dataset}` only {longest}"),
        format!("\"{longest}\" or less, or leave it out"),
    );
}
