//! `highwater produce`: lines of a file into a dataset's topic, as they are.
//!
//! Nothing is checked: what is no event becomes a dead letter, and sending one on purpose must be possible. The producer
//! is idempotent, so that a line is in the log once however often librdkafka had to send it.

pub(super) mod key;
mod lines;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use serde::Serialize;
use shared_connections::log::Kafka;

use super::output::Output;
use super::{Place, dataset};
use key::Key;
use lines::{LARGEST_LINE, Lines};

/// How long a Kafka that does not answer yet is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// While librdkafka's queue is full, or a line is not due: how long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(10);
/// What is behind a rate by more than this is not caught up with.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Beyond the time that a record may take, for the last ones.
const FLUSH: Duration = Duration::from_secs(600);
/// Lines between two looks at what to show.
const SHOW_EVERY: usize = 512;

/// Send the lines of a file to a dataset's topic, each as it is
///
/// Every line is one event, also one that is not JSON, and an empty line is an event with an empty value. The key is the
/// JSON array of the values of the dataset's `event_id`; there is none where the line can't be read or lacks one. Files
/// that end in .gz or .zst are unpacked. Ends when Kafka acknowledged all of them, or with the first that it did not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater produce flights flights.ndjson\n  \
    highwater produce flights january.ndjson.gz --rate 5000\n  \
    tail -f events.ndjson | highwater produce flights - --output json")]
pub(crate) struct Produce {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: String,
    /// The file, one event a line; - is stdin
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// At most so many events a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    output: Output,
}

/// What Kafka has acknowledged.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) acknowledged: u64,
}

impl Report {
    /// In words.
    pub(super) fn text(&self) -> String {
        let events = if self.acknowledged == 1 { "event" } else { "events" };
        format!("{} {events} acknowledged\n", self.acknowledged)
    }
}

impl Produce {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(wrong) => return Ok(wrong),
        };
        let progress = lines::progress(&self.file);
        let lines = Lines::open(&self.file, &progress)?;
        let kafka = Kafka::new(&config.kafka)?;
        let found = kafka.topic_within(&dataset.topic, PATIENCE);
        tokio::runtime::Runtime::new()?.block_on(found)?;

        let sending = Sending::new(&kafka, &dataset.topic, "line", progress)?;
        let sent = sending.send_all(lines, &Key::of(dataset), self.rate);
        let acknowledged = sending.finish(sent.is_ok());
        let report = Report {
            acknowledged: sending.acknowledged(),
        };
        self.output.print_text(&report, Report::text)?;
        sent.and(acknowledged)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Records on their way. They are numbered, from 1, for what is said of one that is not accepted.
pub(super) struct Sending<'a> {
    topic: &'a str,
    /// What a record is called, as in "line".
    what: &'static str,
    producer: ThreadedProducer<Deliveries>,
    progress: ProgressBar,
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        kafka: &Kafka,
        topic: &'a str,
        what: &'static str,
        progress: ProgressBar,
    ) -> anyhow::Result<Self> {
        let mut config = kafka.producer_config();
        // The topic decides what is too large; librdkafka is not to decide before it.
        config.set("message.max.bytes", (LARGEST_LINE + (1 << 20)).to_string());
        let producer = config
            .create_with_context(Deliveries::default())
            .context("kafka.properties: no producer can be made with them")?;
        Ok(Self {
            topic,
            what,
            producer,
            progress,
        })
    }

    fn deliveries(&self) -> &Deliveries {
        self.producer.context()
    }

    /// How many Kafka has acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.deliveries().acknowledged()
    }

    /// Whether one was not delivered.
    pub(super) fn failed(&self) -> bool {
        self.deliveries().failed()
    }

    /// Hands all lines to librdkafka, or those up to the first that can't be read or was not delivered.
    fn send_all(&self, mut lines: Lines, key: &Key, rate: Option<NonZeroU32>) -> anyhow::Result<()> {
        let mut pace = Pace::new(rate);
        let mut number = 0;
        while let Some(line) = lines.next_line()? {
            number += 1;
            self.wait(&mut pace);
            let key = key.of_line(line);
            let mut record = BaseRecord::with_opaque_to(self.topic, number).payload(line);
            if let Some(key) = &key {
                record = record.key(key.as_slice());
            }
            self.send(number, record)?;
            if self.failed() {
                break;
            }
        }
        Ok(())
    }

    /// Waits until the next record is due.
    pub(super) fn wait(&self, pace: &mut Option<Pace>) {
        while pace.as_ref().is_some_and(Pace::is_early) && !self.failed() {
            std::thread::park_timeout(PAUSE);
        }
        if let Some(pace) = pace {
            pace.sent();
        }
    }

    /// Hands a record to librdkafka, as soon as it has room for it.
    pub(super) fn send(&self, number: usize, mut record: BaseRecord<'_, [u8], [u8], usize>) -> anyhow::Result<()> {
        loop {
            let full = match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => back,
                Err((error, _)) => return Err(self.not_accepted(number, &error)),
            };
            // Those before it are on their way; each is delivered or given up in time.
            if self.failed() {
                break;
            }
            self.show();
            std::thread::park_timeout(PAUSE);
            record = full;
        }
        if number.is_multiple_of(SHOW_EVERY) {
            self.show();
        }
        Ok(())
    }

    fn not_accepted(&self, number: usize, error: &KafkaError) -> anyhow::Error {
        anyhow!("{} {number} was not accepted by Kafka: {error}", self.what)
    }

    fn show(&self) {
        let acknowledged = self.deliveries().acknowledged();
        self.progress.set_message(format!("{acknowledged} events acknowledged"));
    }

    /// Waits until each line is delivered or given up.
    pub(super) fn finish(&self, sent: bool) -> anyhow::Result<()> {
        let started = Instant::now();
        let flushed = loop {
            self.show();
            match self.producer.flush(Duration::from_millis(200)) {
                Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) if started.elapsed() < FLUSH => {}
                flushed => break flushed,
            }
        };
        self.progress.finish_and_clear();
        if let Some((number, error)) = self.deliveries().failure() {
            return Err(self.not_accepted(number, &error));
        }
        if sent {
            flushed.context("some events were not acknowledged")?;
        }
        Ok(())
    }
}

/// When the next record is due.
pub(super) struct Pace {
    every: Duration,
    due: Instant,
}

impl Pace {
    /// At most so many a second; none where nothing is said.
    pub(super) fn new(rate: Option<NonZeroU32>) -> Option<Self> {
        rate.map(|rate| Self {
            every: Duration::from_secs(1) / rate.get(),
            due: Instant::now(),
        })
    }

    fn is_early(&self) -> bool {
        Instant::now() < self.due
    }

    fn sent(&mut self) {
        let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(self.due);
        self.due = self.due.max(earliest) + self.every;
    }
}

/// What became of the lines.
#[derive(Default)]
struct Deliveries {
    acknowledged: AtomicU64,
    /// The first line that was not delivered.
    failure: Mutex<Option<(usize, KafkaError)>>,
}

impl Deliveries {
    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn failure(&self) -> Option<(usize, KafkaError)> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Deliveries {
    /// The line's number.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, number: usize) {
        match delivered {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::AcqRel);
            }
            Err((error, _)) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|(first, _)| number < *first) {
                    *failure = Some((number, error.clone()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_does_not_catch_up_with_a_long_pause() {
        let mut pace = Pace::new(NonZeroU32::new(10)).unwrap();
        assert!(!pace.is_early());
        pace.sent();
        assert!(pace.is_early());
        let long_ago = Instant::now()
            .checked_sub(Duration::from_secs(3600))
            .unwrap_or(pace.due);
        pace.due = long_ago;
        (0..100).for_each(|_| pace.sent());
        assert!(pace.is_early(), "an hour was caught up with");
    }
}
