//! What runs and rollbacks came to, as tables for people.

use highwater_batch::report::MarkMoved;
use highwater_batch::{Listed, Outcome, RolledBack, ViewReport};

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A line for each view, then each mark that moved.
pub(super) fn reports(reports: &[ViewReport]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "view",
        "result",
        "publication",
        "days",
        "cells",
        "marks",
        "seconds",
    ])];
    for report in reports {
        let ViewReport { days, rows: cells, .. } = report;
        let published = report.result == Outcome::Published;
        let shown = |text: String| if published { text } else { String::new() };
        rows.push(vec![
            report.view.clone(),
            report.result.word().replace('_', " "),
            report.publication.map(|number| number.to_string()).unwrap_or_default(),
            shown(match (&report.first_day, &report.last_day) {
                (Some(first), Some(last)) => format!("{days} ({first} to {last})"),
                _ => days.to_string(),
            }),
            shown(cells.to_string()),
            shown(moved(&report.marks)),
            format!("{:.1}", report.seconds),
        ]);
        rows.extend(report.why.iter().map(|why| vec![String::new(), why.clone()]));
        if report.fell_back > 0 {
            let why = format!(
                "the speed layer was not ready at {} cuts: marked at the chunk before",
                report.fell_back
            );
            rows.push(vec![String::new(), why]);
        }
    }
    align_last(rows)
}

/// A cell that stands last in its row needs no room beside it: sentences would make their column as wide as they are.
fn align_last(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let (lines, sentences): (Vec<_>, Vec<_>) = rows.into_iter().enumerate().partition(|(_, row)| row.len() > 2);
    let text = super::super::output::columns(&lines.iter().map(|(_, row)| row.clone()).collect::<Vec<_>>());
    let mut placed: Vec<(usize, String)> = lines
        .iter()
        .map(|(at, _)| *at)
        .zip(text.lines().map(str::to_owned))
        .collect();
    placed.extend(
        sentences
            .into_iter()
            .map(|(at, row)| (at, format!("  {}", row.concat()))),
    );
    placed.sort();
    placed.into_iter().map(|(_, line)| vec![line]).collect()
}

/// `0: 8192→16384  1: 8192`
fn moved(marks: &[MarkMoved]) -> String {
    let shown = marks.iter().map(|mark| {
        let MarkMoved {
            partition, from, to, ..
        } = mark;
        if from == to {
            format!("{partition}: {to}")
        } else {
            format!("{partition}: {from} → {to}")
        }
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// A line for each publication.
pub(super) fn publications(listed: &[Listed]) -> Vec<Vec<String>> {
    let head = row([
        "view",
        "number",
        "state",
        "content",
        "published at",
        "run",
        "days",
        "marks",
    ]);
    let line = |one: &Listed| {
        let marks = one
            .marks
            .iter()
            .map(|mark| format!("{}: {}", mark.partition, mark.mark));
        let days = one.days;
        vec![
            one.view.clone(),
            one.number.to_string(),
            one.state.words().to_owned(),
            one.content.to_string(),
            one.published_at.clone(),
            one.run.clone(),
            match (&one.first_day, &one.last_day) {
                (Some(first), Some(last)) => format!("{days} ({first} to {last})"),
                _ => days.to_string(),
            },
            marks.collect::<Vec<_>>().join("  "),
        ]
    };
    std::iter::once(head).chain(listed.iter().map(line)).collect()
}

/// What a rollback did, in a sentence and the marks.
pub(super) fn rolled_back(done: &RolledBack) -> String {
    let RolledBack {
        view,
        published,
        publication,
        content,
        before,
        content_before,
        marks,
    } = done;
    if !published {
        return format!(
            "{view}: publication {publication} already carries the content of {content}; nothing was published\n"
        );
    }
    let was = if before == content_before {
        String::new()
    } else {
        format!(" (content of {content_before})")
    };
    format!(
        "{view}: publication {publication} carries the content of {content} and answers now; before it was {before}{was}\n\
         marks  {}\n",
        moved(marks)
    )
}
