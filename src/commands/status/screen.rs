//! The report on one screen.

use std::fmt::Write;

use super::super::output::columns;
use super::report::{DatasetReport, LastRun, PartitionReport, Report, RunResult, State, ViewReport};
use super::told::{age, ago, count};

/// What stands where nothing is known.
const NONE: &str = "-";

/// The screen.
pub(super) fn text(report: &Report) -> String {
    let mut screen = servers(report);
    report
        .datasets
        .iter()
        .for_each(|dataset| screen.push_str(&of_dataset(dataset, report)));
    report.views.iter().for_each(|view| screen.push_str(&of_view(view)));
    let sentences = [("warnings", &report.warnings), ("problems", &report.problems)];
    for (title, sentences) in sentences.iter().filter(|(_, sentences)| !sentences.is_empty()) {
        let lines: String = sentences.iter().map(|sentence| format!("  {sentence}\n")).collect();
        // Writing to a string can't fail.
        let _ = write!(screen, "\n{title}\n{lines}");
    }
    screen
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn servers(report: &Report) -> String {
    let answers = |answers| if answers { "" } else { "away" };
    let batch = &report.batch;
    let next = batch.next.as_ref().zip(batch.seconds_to_next).map_or_else(
        || "no next run".to_owned(),
        |(next, seconds)| format!("next run {next}, in {}", age(seconds)),
    );
    let mut rows = vec![
        row(["kafka", &report.kafka.address, answers(report.kafka.answers)]),
        row([
            "clickhouse",
            &report.clickhouse.address,
            answers(report.clickhouse.answers),
        ]),
        row(["archive", &report.archive]),
        row(["batch", &format!("{next} ({}, {})", batch.schedule, batch.time_zone)]),
    ];
    if let Some(holder) = &batch.running {
        rows.push(row(["", &format!("under way: {holder}")]));
    }
    columns(&rows)
}

fn of_dataset(dataset: &DatasetReport, report: &Report) -> String {
    let mut text = format!("\ndataset {} (topic {})\n", dataset.dataset, dataset.topic);
    let is_unread = |partition: &PartitionReport| {
        let states = [partition.speed.layer.state, partition.archive.state];
        partition.log_end == Some(0)
            && states
                .iter()
                .all(|state| matches!(state, State::NothingYet | State::NoView))
    };
    if dataset.partitions.is_empty() {
        text.push_str("  nothing is known of its partitions\n");
    } else if dataset.partitions.iter().all(is_unread) {
        let partitions = u64::try_from(dataset.partitions.len()).unwrap_or(u64::MAX);
        let _ = writeln!(
            text,
            "  nothing in the topic and nothing read yet, {}",
            count(partitions, "partition")
        );
    } else {
        let title = [
            "  partition",
            "log end",
            "speed",
            "lag",
            "fresh",
            "watermark",
            "archive",
            "lag",
            "fresh",
        ];
        let mut rows = vec![row(title)];
        rows.extend(dataset.partitions.iter().map(of_partition));
        text.push_str(&columns(&rows));
    }
    let letters = match &dataset.dead_letters {
        Some(letters) if letters.letters == 0 => "none".to_owned(),
        Some(letters) => {
            let reasons = letters
                .by_reason
                .iter()
                .map(|(reason, number)| format!("{reason} {number}"));
            let again = match letters.replayed {
                0 => String::new(),
                replayed => format!("; {replayed} of them sent again"),
            };
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            format!("{}: {reasons}{again}", letters.letters)
        }
        None if report.kafka.answers => "not counted, see problems".to_owned(),
        None => "not counted, Kafka is away".to_owned(),
    };
    let _ = writeln!(text, "  dead letters  {letters}");
    text
}

fn of_partition(partition: &PartitionReport) -> Vec<String> {
    let number = |number: Option<u64>| number.map_or_else(|| NONE.to_owned(), |number| number.to_string());
    let fresh = |seconds: Option<f64>| seconds.map_or_else(|| NONE.to_owned(), age);
    let (speed, archive) = (&partition.speed, &partition.archive);
    vec![
        format!("  {}", partition.partition),
        number(partition.log_end),
        speed.layer.state.words().to_owned(),
        number(speed.layer.lag_events),
        fresh(speed.layer.lag_seconds),
        speed.watermark.clone().unwrap_or_else(|| NONE.to_owned()),
        archive.state.words().to_owned(),
        number(archive.lag_events),
        fresh(archive.lag_seconds),
    ]
}

fn of_view(view: &ViewReport) -> String {
    let mut text = format!("\nview {} (dataset {})\n", view.view, view.dataset);
    if !view.known {
        text.push_str("  nothing is known of it\n");
        return text;
    }
    let publication = view.publication.as_ref().map_or_else(
        || {
            let who = if view.answered_by.is_some() {
                "its old definition answers"
            } else {
                "the speed layer answers alone"
            };
            let far = view.counted.map(|counted| format!(", {} % counted", counted.percent()));
            format!("none yet: {who}{}", far.unwrap_or_default())
        },
        |publication| {
            let content = if publication.content == publication.number {
                String::new()
            } else {
                format!(", with the content of {}", publication.content)
            };
            format!(
                "{}{content}, {}, {}, archive version {}",
                publication.number,
                ago(publication.age_seconds),
                count(u64::try_from(publication.days).unwrap_or(u64::MAX), "event day"),
                publication.archive_version,
            )
        },
    );
    let last_run = view.last_run.as_ref().map_or_else(|| "none yet".to_owned(), of_run);
    text.push_str(&columns(&[
        row(["  publication", &publication]),
        row(["  last run", &last_run]),
    ]));
    if view.marks.is_empty() {
        return text;
    }
    let mut rows = vec![row(["  partition", "mark", "speed up to", "read above the mark"])];
    rows.extend(view.marks.iter().map(|mark| {
        let counts = mark.counts.iter().filter(|(_, number)| **number > 0);
        let counts: Vec<_> = counts.map(|(what, number)| format!("{what} {number}")).collect();
        vec![
            format!("  {}", mark.partition),
            mark.mark.to_string(),
            mark.covered.to_string(),
            if counts.is_empty() {
                NONE.to_owned()
            } else {
                counts.join(", ")
            },
        ]
    }));
    text.push_str(&columns(&rows));
    text
}

fn of_run(run: &LastRun) -> String {
    let result = match (run.result, run.publication) {
        (RunResult::Published, Some(number)) => format!("published {number}"),
        (RunResult::Published, None) => "published".to_owned(),
        (RunResult::UnderWay, _) => "under way".to_owned(),
        (RunResult::NotPublished, _) => match &run.why {
            Some(why) => format!("did not publish: {why}"),
            None => "did not publish, and told nothing".to_owned(),
        },
    };
    format!("begun {}, {result}", ago(run.age_seconds))
}
