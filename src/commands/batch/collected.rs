//! What a collection did, or would do, as a table for people.

use highwater_batch::Collected;
use indicatif::BinaryBytes;

/// A line for each view; what could not be done stands below them.
pub(super) fn table(collected: &[Collected]) -> Vec<Vec<String>> {
    let head = [
        "view",
        "restorable from",
        "runs",
        "batch rows",
        "speed rows",
        "publications",
        "other rows",
        "bytes",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for report in collected {
        let gone = &report.rows;
        let from = if report.floor == report.floor_before {
            report.floor.max(1).to_string()
        } else {
            format!("{} → {}", report.floor_before.max(1), report.floor)
        };
        rows.push(vec![
            report.view.clone(),
            from,
            report.runs.to_string(),
            gone.batch.to_string(),
            gone.speed.to_string(),
            gone.publications.to_string(),
            (gone.progress + gone.gaps + gone.cuts + gone.reports).to_string(),
            BinaryBytes(report.bytes).to_string(),
        ]);
    }
    for report in collected {
        let said = report.doubt.iter().chain(&report.error);
        rows.extend(said.map(|said| vec![report.view.clone(), said.clone()]));
    }
    rows
}
