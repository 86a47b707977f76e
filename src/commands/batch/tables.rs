//! What runs and rollbacks came to, as tables for people.

use highwater_batch::report::MarkMoved;
use highwater_batch::report::Stages;
use highwater_batch::{Differences, Listed, Outcome, Planned, RolledBack, Shown, ShownRun, ViewReport};
use serde::Deserialize;

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
        if published {
            rows.extend(report.held.iter().map(|held| vec![String::new(), held.clone()]));
            rows.push(vec![String::new(), worked(report)]);
        }
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

/// What a run read and how long each part took.
fn worked(report: &ViewReport) -> String {
    let ViewReport {
        read,
        repeats,
        counted,
        rows,
        ..
    } = report;
    let mut text = format!("{read} events read, {repeats} repeats, {counted} counted, {rows} cells written");
    if report.spilled_bytes > 0 {
        let mib = report.spilled_bytes.div_ceil(1 << 20);
        text.push_str(&format!(
            "; {mib} MiB in {} files exceeded the memory",
            report.spill_files
        ));
    }
    if report.together > 1 {
        text.push_str(&format!("; {} views from one reading", report.together));
    }
    let Stages {
        choosing,
        repeats,
        cells,
        counting,
        checking,
        waiting,
        publishing,
    } = report.stages;
    let stages = [
        ("choosing", choosing),
        ("repeats", repeats),
        ("cells", cells),
        ("counting", counting),
        ("checking", checking),
        ("waiting", waiting),
        ("publishing", publishing),
    ];
    let stages = stages.map(|(name, seconds)| format!("{name} {seconds:.1} s"));
    format!("{text}; {}", stages.join(", "))
}

/// So many days are listed of those that would be computed.
const DAYS: usize = 10;

/// What a run would do, view by view.
pub(super) fn planned(planned: &[Planned]) -> String {
    let mut text = String::new();
    for one in planned {
        let does = if one.computes {
            "would be computed"
        } else {
            "nothing to do"
        };
        text.push_str(&format!("{}  {does}: {}\n", one.view, one.why));
        if !one.computes {
            continue;
        }
        let days: Vec<_> = one.days.iter().take(DAYS).map(String::as_str).collect();
        let more = one.days.len().saturating_sub(DAYS);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        text.push_str(&format!("  marks   {}\n", moved(&one.marks)));
        if one.cuts > 0 {
            text.push_str(&format!(
                "  cuts    {}: the speed layer has to catch up there first\n",
                one.cuts
            ));
        }
        text.push_str(&format!("  events  {} archived of these days\n", one.events));
        text.push_str(&format!("  days    {}{more}\n", days.join(" ")));
    }
    text
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

/// One publication after the other, with what its run told.
pub(super) fn shown(shown: &[Shown]) -> String {
    let mut text = String::new();
    for one in shown {
        let rows = publications(std::slice::from_ref(&one.listed));
        if let [head, values] = &rows[..] {
            for (name, value) in head.iter().zip(values) {
                text.push_str(&format!("{name:14}{value}\n"));
            }
        }
        text.push_str(&format!("{:14}{}\n", "archive", one.listed.archive_version));
        text.push_str(&told(one.report.as_ref()));
        text.push('\n');
    }
    text
}

/// One run after the other.
pub(super) fn shown_runs(shown: &[ShownRun]) -> String {
    let mut text = String::new();
    for one in shown {
        let number = one.publication.map(|number| number.to_string());
        let lines = [
            ("view", Some(one.view.clone())),
            ("run", Some(one.run.clone())),
            ("begun at", one.begun_at.clone()),
            ("publication", Some(number.unwrap_or_else(|| "none".to_owned()))),
        ];
        for (name, value) in lines {
            text.push_str(&value.map(|value| line(name, &value)).unwrap_or_default());
        }
        text.push_str(&told(one.report.as_ref()));
        text.push('\n');
    }
    text
}

fn line(name: &str, value: &str) -> String {
    format!("{name:14}{value}\n")
}

/// What a run told, a line for each thing.
fn told(report: Option<&serde_json::Value>) -> String {
    let report = report.and_then(|report| ViewReport::deserialize(report).ok());
    let Some(report) = report else {
        return "its run told nothing: it is under way, was killed, or made by another build\n".to_owned();
    };
    let mut text = line("result", &report.result.word().replace('_', " "));
    for (name, sentence) in [("why", &report.why), ("held", &report.held)] {
        text.push_str(&sentence.as_ref().map(|said| line(name, said)).unwrap_or_default());
    }
    if report.result == Outcome::Published {
        text.push_str(&line("moved", &moved(&report.marks)));
    }
    text.push_str(&line(
        "computed",
        &format!("{} event days; {}", report.days, worked(&report)),
    ));
    if report.fell_back > 0 {
        text.push_str(&line("fell back", &format!("at {} cuts", report.fell_back)));
    }
    text.push_str(&line("took", &format!("{:.1} s", report.seconds)));
    for check in &report.checks {
        let verdict = if check.holds { "holds" } else { "fails" };
        text.push_str(&line("check", &format!("{} {verdict}: {}", check.name, check.says)));
    }
    text
}

/// What changed, day by day, then cell by cell.
pub(super) fn differences(found: &Differences) -> String {
    let Differences {
        view,
        from,
        to,
        held_from,
        let_go_days,
        same_days,
        equal_days,
        days,
        cells,
    } = found;
    let mut text = format!(
        "{view}: publications {from} and {to} share {same_days} event days; {equal_days} more have equal totals, {} differ\n",
        days.len()
    );
    if let Some(held_from) = held_from.as_ref().filter(|_| *let_go_days > 0) {
        text.push_str(&format!(
            "  event days before {held_from} are let go and not compared: {let_go_days}\n"
        ));
    }
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    for day in days {
        for column in &day.columns {
            let (from, to) = (value(&column.from), value(&column.to));
            text.push_str(&format!("  {}  {}  {from} → {to}\n", day.day, column.column));
        }
    }
    for cell in cells {
        let names = cell.cell.iter().map(|(name, value)| format!("{name} {value}"));
        text.push_str(&format!("  cell {}\n", names.collect::<Vec<_>>().join(", ")));
        for column in &cell.columns {
            let (from, to) = (value(&column.from), value(&column.to));
            text.push_str(&format!("    {}  {from} → {to}\n", column.column));
        }
    }
    text
}
