//! The archiver's metrics.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use shared_schemas::decode::Reason;

const EVENTS: &str = "highwater_archive_events_total";
const REFUSED: &str = "highwater_archive_refused_total";
const LAG: &str = "highwater_archive_lag_events";
const COMMITS: &str = "highwater_archive_commits_total";
const COMMIT_SECONDS: &str = "highwater_archive_commit_seconds";
const STUCK: &str = "highwater_archive_stuck";
const STALLED: &str = "highwater_archive_stalled";

/// Tells the recorder what they mean.
pub(super) fn describe() {
    describe_counter!(EVENTS, "Accepted events that were archived");
    describe_counter!(
        REFUSED,
        "Records that were refused, whose dead letters are delivered, by reason"
    );
    describe_gauge!(LAG, "Offsets between the archive's end and the log's, by partition");
    describe_counter!(COMMITS, "Commits to the archive");
    describe_histogram!(
        COMMIT_SECONDS,
        metrics::Unit::Seconds,
        "How long a commit took, files included"
    );
    describe_gauge!(
        STUCK,
        "1 for a partition that is archived no further, as its log ended below what was archived; else 0"
    );
    describe_gauge!(STALLED, "1 while the archiver can't commit, else 0");
}

/// A dataset's metrics.
pub(super) struct Metrics {
    dataset: String,
    pub(super) events: Counter,
    pub(super) commits: Counter,
    pub(super) commit_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new(dataset: &str) -> Self {
        let label = || dataset.to_owned();
        for reason in Reason::ALL {
            // So that a rate can be taken from the first one on.
            counter!(REFUSED, "dataset" => label(), "reason" => reason.name()).increment(0);
        }
        Self {
            dataset: label(),
            events: counter!(EVENTS, "dataset" => label()),
            commits: counter!(COMMITS, "dataset" => label()),
            commit_seconds: histogram!(COMMIT_SECONDS, "dataset" => label()),
        }
    }

    pub(super) fn refused(&self, reason: Reason, count: u64) {
        counter!(REFUSED, "dataset" => self.dataset.clone(), "reason" => reason.name()).increment(count);
    }

    pub(super) fn stuck(&self, partition: u32, is_stuck: bool) {
        let labels = [("dataset", self.dataset.clone()), ("partition", partition.to_string())];
        gauge!(STUCK, &labels).set(f64::from(u8::from(is_stuck)));
    }

    pub(super) fn lag(&self, partition: u32, offsets: u64) {
        let gauge = gauge!(LAG, "dataset" => self.dataset.clone(), "partition" => partition.to_string());
        #[expect(clippy::cast_precision_loss, reason = "gauges are doubles; a lag is far below 2^53")]
        gauge.set(offsets as f64);
    }
}

pub(super) fn stalled(dataset: &str) -> Gauge {
    gauge!(STALLED, "dataset" => dataset.to_owned())
}
