//! What a run came to, as data: for the command line, the schedule's log and programs.

use serde::{Deserialize, Serialize};
use shared_schemas::handoff::{EventDay, Partition};

use crate::checks::Check;
use crate::recompute::topic_text;
use crate::write::{Written, date};

/// What a run of one view came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ViewReport {
    /// The view.
    pub view: String,
    /// Its dataset.
    pub dataset: String,
    /// Published, nothing to do, or failed.
    pub result: Outcome,
    /// Why it failed, or why there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What keeps marks from going further until a person has decided, also where others went on and were published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// The publication's number.
    pub publication: Option<u64>,
    /// The run's id, 32 hexadecimal digits; of the last try.
    pub run: Option<String>,
    /// The archive's version that it computed from.
    pub archive_version: Option<u64>,
    /// Each partition's mark before and after.
    pub marks: Vec<MarkMoved>,
    /// How many event days were computed.
    pub days: usize,
    /// The first of them, as in 2013-01-31.
    pub first_day: Option<String>,
    /// The last of them.
    pub last_day: Option<String>,
    /// How many cells were written.
    pub rows: u64,
    /// For how many partitions the mark fell back to a chunk's boundary, since the speed layer was not ready at the cut.
    pub fell_back: usize,
    /// How many archived events of these days were read, repeats too.
    pub read: u64,
    /// How many of them are repeats.
    pub repeats: u64,
    /// How many were counted: no repeats, and let pass by the view's filter.
    pub counted: u64,
    /// How many views were computed from one reading of the events; what went to disk is theirs together.
    pub together: usize,
    /// Bytes that exceeded the memory and went to disk.
    pub spilled_bytes: u64,
    /// Files that they went to.
    pub spill_files: u64,
    /// What it checked of itself.
    pub checks: Vec<Check>,
    /// How long each part took, in seconds.
    pub stages: Stages,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// How long the parts of a run took, in seconds; of the last try, and waiting in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stages {
    /// Reading facts and the archive's log, choosing marks.
    pub choosing: f64,
    /// Finding repeats.
    pub repeats: f64,
    /// Reading events, computing cells, writing them.
    pub cells: f64,
    /// Counting in the store what was written.
    pub counting: f64,
    /// Checking it against the archive's log and what was published before.
    pub checking: f64,
    /// Waiting for the speed layer at cuts.
    pub waiting: f64,
    /// Publishing, and reading back.
    pub publishing: f64,
}

impl ViewReport {
    /// What was computed last.
    pub(crate) fn computed(&mut self, written: &Written) {
        self.rows = written.totals.rows;
        self.read = written.read;
        self.repeats = written.repeats;
        self.counted = written.passed;
        self.together = written.together;
        (self.spilled_bytes, self.spill_files) = written.spilled;
        let [repeats, cells, counting] = written.took.map(|took| took.as_secs_f64());
        self.stages = Stages {
            repeats,
            cells,
            counting,
            ..self.stages
        };
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A new publication answers.
    Published,
    /// No mark moved: what was published is still all that can be.
    #[default]
    NothingToDo,
    /// It did not publish; the old publication stands.
    Failed,
}

impl Outcome {
    /// The word for metrics and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::NothingToDo => "nothing_to_do",
            Self::Failed => "failed",
        }
    }
}

/// The mark of a partition, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkMoved {
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// Below which offset batch answered before.
    pub from: u64,
    /// Below which offset it answers now.
    pub to: u64,
}

impl MarkMoved {
    pub(crate) fn new(partition: Partition, from: u64, to: u64) -> Self {
        Self {
            topic: topic_text(partition.topic),
            partition: partition.number,
            from,
            to,
        }
    }
}

/// A day as text.
pub(crate) fn day_text(day: EventDay) -> String {
    date(day).map_or_else(|| format!("day {}", day.0), |date| date.to_string())
}

/// Counts the run, and shows its marks, as metrics.
pub(crate) fn record(report: &ViewReport) {
    let view = || report.view.clone();
    metrics::counter!("highwater_batch_runs_total", "view" => view(), "result" => report.result.word()).increment(1);
    metrics::histogram!("highwater_batch_run_seconds", "view" => view()).record(report.seconds);
    if report.result != Outcome::Published {
        return;
    }
    // Offsets are below 2^53 for as long as anybody will look.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
    for moved in &report.marks {
        let partition = moved.partition.to_string();
        metrics::gauge!("highwater_batch_mark", "view" => view(), "partition" => partition).set(moved.to as f64);
    }
    let now = chrono::Utc::now().timestamp();
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
    metrics::gauge!("highwater_batch_published_timestamp", "view" => view()).set(now as f64);
}
