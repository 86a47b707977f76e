//! The thread that reads: polls, decodes, and hands slices over in the order of offsets.
//!
//! Only a delivered record moves a cursor. Ends of partitions, positions and watermarks say nothing about what lies
//! between: an open transaction may still commit below them. Where librdkafka has nowhere to go on (the cursor is not in
//! the log) it says so once, without saying for which partition, and stands still there. Then all partitions are asked
//! about, what each log lacks is told, and all are assigned anew at their cursors; what is delivered twice by that is
//! below a cursor and passed over.
//!
//! A full channel blocks the thread, then librdkafka's queue fills, then it fetches no more: that is the backpressure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use shared_schemas::handoff::{Offset, OffsetRange};
use tokio::sync::mpsc;

use super::batch::{Batch, Queue};
use super::error::{LogError, is_away};
use super::kafka::{Kafka, Listener};
use super::open::{OpenSlice, Standing, standing};
use super::reader::{Change, Found, Shared, positions};
use super::slice::Event;
use super::watch::Watch;
use crate::sentence;

/// All open slices are closed with so many records in them. With more, columns outgrow the processor's caches.
const MOST_RECORDS: usize = 16_384;
/// Of many partitions so many of each (every slice costs its columns), but no more than so many in all.
const OF_EACH: usize = 2_048;
const OF_MANY: usize = 32_768;
/// Or with so many bytes of keys and values for each of those records,
const BYTES_OF_EACH: usize = 256;
/// or so long after the first record, unless many more are there already. Records that come one by one are gathered for
/// that long, so that a thousand a second are not a thousand batches; nobody sees the difference in how fresh an answer is.
const GATHER: Duration = Duration::from_millis(10);
/// So many records at once are a log that is read from behind: there is nothing to be prompt for.
const MANY: usize = 1_024;
/// How long one poll waits for a first record. Then the thread looks whether it is to end.
const IDLE: Duration = Duration::from_millis(100);
/// Where Kafka could not say why it has nowhere to go on, it is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// librdkafka (2.12) ends the process (`rd_kafka_assignment_partition_stopped`, its issue 5573) where a partition is stopped once more before it
/// has stopped. That takes it some milliseconds, which nobody is told of: between two stops of a partition lies at least this.
const STOPS: Duration = Duration::from_millis(500);

/// The reading thread's state.
pub(super) struct Worker {
    kafka: Kafka,
    topic: String,
    consumer: Arc<BaseConsumer<Listener>>,
    /// Those that are still read.
    partitions: BTreeMap<u32, OpenSlice>,
    /// In all open slices.
    records: usize,
    bytes: usize,
    events: mpsc::Sender<Vec<Found>>,
    changes: Receiver<Change>,
    shared: Arc<Shared>,
    /// Partitions of which Kafka said that the log was cut off below the cursor. It may have grown again since.
    truncated: BTreeSet<u32>,
    /// When to ask where the logs begin and end.
    look_at: Option<Instant>,
    /// Those that librdkafka is to deliver.
    assigned: BTreeSet<u32>,
    /// When it was last told to stop delivering one.
    stopped: BTreeMap<u32, Instant>,
}

/// Why the thread reads no further.
enum Ended {
    /// The layer takes no more events.
    Stopped,
    /// It can't.
    Failed(LogError),
}

impl From<LogError> for Ended {
    fn from(failure: LogError) -> Self {
        Self::Failed(failure)
    }
}

impl Worker {
    pub(super) fn new(
        kafka: &Kafka,
        topic: String,
        partitions: BTreeMap<u32, OpenSlice>,
        consumer: Arc<BaseConsumer<Listener>>,
        events: mpsc::Sender<Vec<Found>>,
        changes: Receiver<Change>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            kafka: kafka.clone(),
            topic,
            consumer,
            partitions,
            records: 0,
            bytes: 0,
            events,
            changes,
            shared,
            truncated: BTreeSet::new(),
            look_at: None,
            assigned: BTreeSet::new(),
            stopped: BTreeMap::new(),
        }
    }

    /// Starts the thread, and the one that watches beside it.
    pub(super) fn spawn(self) -> Result<std::thread::JoinHandle<()>, LogError> {
        let topic = self.topic.clone();
        let unable = |source| LogError::Thread {
            topic: topic.clone(),
            source: Arc::new(source),
        };
        // The watch ends when the worker's end of this channel is dropped.
        let (alive, ended) = sync_channel(0);
        let watch = Watch {
            kafka: self.kafka.clone(),
            topic: self.topic.clone(),
            shared: Arc::clone(&self.shared),
            ended,
        };
        std::thread::Builder::new()
            .name("kafka watch".to_owned())
            .spawn(move || watch.run())
            .map_err(unable)?;
        std::thread::Builder::new()
            .name("kafka reader".to_owned())
            .spawn(move || {
                let guard = Guard {
                    topic: self.topic.clone(),
                    shared: Arc::clone(&self.shared),
                };
                self.run();
                drop(guard);
                // The watch may be in the middle of a question to a Kafka that is away; it ends after it, by itself.
                drop(alive);
            })
            .map_err(unable)
    }

    fn run(mut self) {
        if let Err(Ended::Failed(failure)) = self.read() {
            self.shared.fail(failure);
        }
    }

    fn read(&mut self) -> Result<(), Ended> {
        let mut queue = Queue::of(&self.consumer).map_err(|source| self.failed(source))?;
        self.assign_all()?;
        while !self.events.is_closed() {
            self.change()?;
            if self.shared.is_made_again() {
                self.end_all()?;
            }
            if self.look_at.is_some_and(|at| at <= Instant::now()) {
                self.look()?;
            }
            let errors = self.gather(&mut queue);
            self.hand_over()?;
            for error in errors {
                self.on_error(error)?;
            }
        }
        Ok(())
    }

    /// Takes in which partitions are to be read now. All slices are closed.
    fn change(&mut self) -> Result<(), Ended> {
        let mut changed = BTreeSet::new();
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Add(slices) => {
                    let slices = slices.into_iter().map(|slice| (slice.partition(), slice));
                    self.partitions.extend(slices.inspect(|(number, _)| {
                        changed.insert(*number);
                    }));
                }
                Change::Remove(gone) => {
                    self.partitions.retain(|number, _| !gone.contains(number));
                    self.truncated.retain(|number| !gone.contains(number));
                    changed.extend(gone);
                }
            }
        }
        Ok(self.assign(&changed)?)
    }

    /// Waits for a first record, then takes what comes until the slices are full or old enough. The errors that came
    /// instead of records end it early.
    fn gather(&mut self, queue: &mut Queue) -> Vec<KafkaError> {
        let mut errors = Vec::new();
        let first = queue.take(1, IDLE);
        if first.is_empty() {
            drop(first);
            errors.extend(queue.fatal());
            return errors;
        }
        self.take(&first, &mut errors);
        drop(first);
        let until = Instant::now() + GATHER;
        let most = (OF_EACH * self.partitions.len()).clamp(MOST_RECORDS, OF_MANY);
        while errors.is_empty() && self.records < most && self.bytes < most * BYTES_OF_EACH {
            let left = until.saturating_duration_since(Instant::now());
            let batch = queue.take(most - self.records, left);
            let is_behind = batch.len() >= MANY;
            self.take(&batch, &mut errors);
            if left.is_zero() && !is_behind {
                break;
            }
        }
        errors
    }

    /// Takes messages. An error that tells of a log that was cut off is remembered with its partition.
    fn take(&mut self, batch: &Batch<'_>, errors: &mut Vec<KafkaError>) {
        let mut open = None;
        for message in batch.messages() {
            let message = match message {
                Ok(message) => message,
                Err((partition, error)) => {
                    if error.rdkafka_error_code() == Some(Code::LogTruncation) {
                        self.truncated.extend(u32::try_from(partition));
                    }
                    errors.push(error);
                    continue;
                }
            };
            // They come in runs of one partition.
            let number = u32::try_from(message.partition()).unwrap_or(u32::MAX);
            if open
                .as_ref()
                .is_none_or(|open: &&mut OpenSlice| open.partition() != number)
            {
                open = self.partitions.get_mut(&number);
            }
            if let Some(open) = &mut open
                && open.push(message)
            {
                self.records += 1;
                self.bytes += message.size();
            }
        }
    }

    /// Closes all slices and sends them together. So what waits for the layer is bounded by records, not by slices: of many
    /// partitions no fewer wait than of one.
    fn hand_over(&mut self) -> Result<(), Ended> {
        if self.records == 0 {
            return Ok(());
        }
        self.shared.content();
        (self.records, self.bytes) = (0, 0);
        let slices = self.partitions.values_mut();
        let slices = slices.filter_map(|open| Some((open.generation(), open.close()?)));
        let found = slices.map(|(generation, slice)| Found {
            generation,
            event: Event::Slice(slice),
        });
        send(&self.events, found.collect())
    }

    fn on_error(&mut self, error: KafkaError) -> Result<(), Ended> {
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation) => {
                self.look_at = Some(Instant::now());
            }
            // The watch tells of it.
            Some(code) if is_away(code) => tracing::debug!(%error, topic = self.topic, "a poll failed"),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => return Err(self.failed(error).into()),
            _ => {
                let said = sentence(&self.failed(error));
                if self.shared.complain(&said) {
                    tracing::warn!("{said}; trying again");
                }
            }
        }
        Ok(())
    }

    fn failed(&self, source: KafkaError) -> LogError {
        LogError::refused(self.kafka.brokers(), format!("read topic {}", self.topic), source)
    }

    /// Asks how every cursor stands to its log, tells what the logs lack, and goes on. All slices are closed. Partitions of
    /// which Kafka tells nothing are asked about again, and keep no other back.
    fn look(&mut self) -> Result<(), Ended> {
        self.look_at = None;
        let mut logs = Vec::new();
        for (partition, open) in &self.partitions {
            if self.events.is_closed() {
                return Err(Ended::Stopped);
            }
            match self.bounds(*partition, open.cursor()) {
                Ok(log) => logs.push((*partition, log)),
                Err(error) => {
                    // The watch asks the same, and tells if it goes on.
                    tracing::debug!(%error, "the log's bounds are not known yet");
                    self.look_at = Some(Instant::now() + ASK_AGAIN);
                }
            }
        }
        for (partition, log) in logs {
            let Some(open) = self.partitions.get_mut(&partition) else {
                continue;
            };
            let (cursor, generation) = (open.cursor(), open.generation());
            let is_certain = self.truncated.remove(&partition);
            let short = |end| Event::Short {
                is_certain,
                partition,
                cursor,
                end,
            };
            let event = match standing(cursor, log) {
                Standing::Beyond(end) => {
                    self.partitions.remove(&partition);
                    short(end)
                }
                _ if is_certain => {
                    self.partitions.remove(&partition);
                    // Where it ended before it grew again nobody says.
                    short(Offset(cursor.0.saturating_sub(1)))
                }
                Standing::Within => continue,
                Standing::Below(range) => {
                    open.skip(range.to);
                    Event::Gap { partition, range }
                }
            };
            send(&self.events, vec![Found { generation, event }])?;
        }
        Ok(self.assign_all()?)
    }

    /// Where the log begins and ends. A gap is recorded for good, so a beginning above the cursor is asked for more than once.
    fn bounds(&self, partition: u32, cursor: Offset) -> Result<OffsetRange, LogError> {
        let is_above = |log: OffsetRange| log.from > cursor;
        let goes_on = || !self.events.is_closed();
        self.kafka.bounds_for_sure(&self.topic, partition, is_above, goes_on)
    }

    /// The topic was made again: none of its records are those of the partitions that were to be read.
    fn end_all(&mut self) -> Result<(), Ended> {
        let ended = std::mem::take(&mut self.partitions);
        if ended.is_empty() {
            return Ok(());
        }
        self.assign_all()?;
        for (partition, open) in ended {
            let event = Event::Short {
                is_certain: false,
                partition,
                cursor: open.cursor(),
                end: Offset::default(),
            };
            let generation = open.generation();
            send(&self.events, vec![Found { generation, event }])?;
        }
        Ok(())
    }

    /// Has librdkafka deliver all partitions from their cursors on.
    fn assign_all(&mut self) -> Result<(), LogError> {
        let mut all = self.assigned.clone();
        all.extend(self.partitions.keys());
        self.assign(&all)
    }

    /// Has librdkafka deliver these partitions from their cursors on, or no longer where they are read no longer; all others it goes on with.
    fn assign(&mut self, changed: &BTreeSet<u32>) -> Result<(), LogError> {
        let gone: BTreeSet<u32> = self.assigned.intersection(changed).copied().collect();
        if !gone.is_empty() {
            self.wait_for_stops(&gone);
            // It looks at no offset of theirs.
            let from = gone.iter().map(|number| (*number, Offset::default())).collect();
            positions(&self.topic, &from)
                .and_then(|gone| self.consumer.incremental_unassign(&gone))
                .map_err(|source| self.failed(source))?;
            self.assigned.retain(|number| !gone.contains(number));
            let now = Instant::now();
            self.stopped.extend(gone.into_iter().map(|number| (number, now)));
        }
        let from: BTreeMap<u32, Offset> = self
            .partitions
            .iter()
            .filter(|(number, _)| changed.contains(number))
            .map(|(number, open)| (*number, open.cursor()))
            .collect();
        if !from.is_empty() {
            positions(&self.topic, &from)
                .and_then(|from| self.consumer.incremental_assign(&from))
                .map_err(|source| self.failed(source))?;
            self.assigned.extend(from.into_keys());
        }
        Ok(())
    }

    /// Waits until these partitions have stopped that were stopped just now: see [`STOPS`].
    fn wait_for_stops(&self, partitions: &BTreeSet<u32>) {
        let last = partitions.iter().filter_map(|number| self.stopped.get(number)).max();
        let left = last.map_or(Duration::ZERO, |last| STOPS.saturating_sub(last.elapsed()));
        #[expect(clippy::disallowed_methods, reason = "nobody tells when a partition has stopped")]
        std::thread::sleep(left);
    }
}

fn send(events: &mpsc::Sender<Vec<Found>>, found: Vec<Found>) -> Result<(), Ended> {
    events.blocking_send(found).map_err(|_| Ended::Stopped)
}

/// Tells of a thread that panics.
pub(super) struct Guard {
    pub(super) topic: String,
    pub(super) shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(LogError::Panicked {
                topic: self.topic.clone(),
            });
        }
    }
}
