//! Readers, each warmed before it counts.
//!
//! A lane is a reader's way through one partition: it begins as far back as its dedupe filter needs, and hands records on
//! from where they are to count. The worker has one set of lanes at the log's head, and at times one that catches up on
//! what was left behind; both judge repeats alike, since a filter is a function of the log.

mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::error::ArrowError;
use shared_connections::log::{Event, Kafka, LogError, Outcome, Reader, ReaderOptions, Slice};
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::EnvironmentKeys;
use shared_schemas::handoff::{Offset, OffsetRange};
use shared_schemas::plan::event_schema;

use crate::dedupe::{Budget, Filter, Identities, Judgement, window};
use crate::error::SpeedError;
use crate::starts::{Fate, Records};
use told::Told;

/// How long to wait for the first record of a partition, to learn its time. Where only control records are left, none
/// ever comes.
const PROBE: Duration = Duration::from_secs(5);

/// Of a lane that is read, and of which nothing came for so long, nothing is expected. Between two fetches less time passes.
const SILENT: Duration = Duration::from_secs(2);

/// What a lane gives to the worker.
#[derive(Debug)]
pub(crate) enum Step {
    /// Records that count.
    Read(Read),
    /// Offsets that the log has lost.
    Lost {
        /// Kafka's partition number.
        partition: u32,
        /// The offsets.
        range: OffsetRange,
    },
    /// The log ends below what was read.
    Short {
        /// It need not be asked for again.
        is_certain: bool,
        /// Kafka's partition number.
        partition: u32,
        /// Up to where it was read.
        cursor: Offset,
        /// Where it ends.
        end: Offset,
    },
    /// Nothing to count: a lane is warming, or has been given up.
    Warming,
}

/// Records that count.
#[derive(Debug)]
pub(crate) struct Read {
    /// Kafka's partition number.
    pub(crate) partition: u32,
    /// The records' fates.
    pub(crate) records: Records,
    /// The events among them, repeats left out, ascending by offset.
    pub(crate) batches: Vec<RecordBatch>,
    /// The last record's Kafka timestamp in ms.
    pub(crate) kafka_time: Option<i64>,
}

#[derive(Debug)]
struct Lane {
    cursor: Offset,
    counts_from: Offset,
    filter: Option<Filter>,
    /// The log's head cut the filter short: it is complete from the first record on.
    cut_short: bool,
    /// How many events the filter forgot early, as last told.
    evicted: u64,
    /// It is not read for now.
    waits: bool,
    /// When something came of it last, or it was last begun to be read.
    heard: Instant,
}

/// A reader and its lanes.
pub(crate) struct Lanes {
    dataset: Arc<Dataset>,
    kafka: Kafka,
    reader: Reader,
    lanes: BTreeMap<u32, Lane>,
    identities: Option<Identities>,
    /// What was told of the filters.
    told: Told,
}

/// Lanes that know where to begin, not read yet.
#[derive(Debug, Default)]
pub(crate) struct Prepared(BTreeMap<u32, Lane>);

impl Prepared {
    /// Finds where to begin so that records count from these offsets on. Asks Kafka.
    pub(crate) async fn find(
        kafka: &Kafka,
        dataset: &Arc<Dataset>,
        budget: &Arc<Budget>,
        from: &BTreeMap<u32, Offset>,
    ) -> Result<Self, SpeedError> {
        let identities = identities(dataset)?;
        let mut lanes = BTreeMap::new();
        let (mut logs, mut times) = (BTreeMap::new(), BTreeMap::new());
        if identities.is_some() {
            for &partition in from.keys() {
                logs.insert(partition, kafka.bounds(&dataset.topic, partition).await?);
            }
            times = first_times(kafka, dataset, from, &logs).await?;
        }
        for (&partition, &counts_from) in from {
            let mut lane = Lane {
                cursor: counts_from,
                counts_from,
                filter: None,
                cut_short: false,
                evicted: 0,
                waits: false,
                heard: Instant::now(),
            };
            if let Some(log) = logs.get(&partition) {
                let first = times.get(&partition).copied().unwrap_or_else(now);
                let target = first.saturating_sub(window(dataset).saturating_mul(2));
                let warm = kafka.offset_at(&dataset.topic, partition, target.max(0)).await?;
                // Further back than it can remember, reading is in vain: one old timestamp must not mean the whole log.
                let capacity = budget.capacity_with(from.len()) as u64;
                let earliest = log.from.max(Offset(counts_from.0.saturating_sub(capacity)));
                lane.cursor = warm.max(earliest).min(counts_from);
                let whole_log = log.from == Offset(0) && lane.cursor == Offset(0);
                lane.cut_short = !whole_log && warm <= earliest;
                let complete_from = if whole_log { i64::MIN } else { target };
                lane.filter = Some(Filter::new(dataset, budget, complete_from));
            }
            lanes.insert(partition, lane);
        }
        Ok(Self(lanes))
    }

    /// With those too.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Without the lanes of partitions that are not among these.
    pub(crate) fn retain(&mut self, partitions: &BTreeSet<u32>) {
        self.0.retain(|number, _| partitions.contains(number));
    }
}

impl Lanes {
    /// Those at the log's head, none yet.
    pub(crate) fn front(kafka: &Kafka, dataset: &Arc<Dataset>) -> Result<Self, SpeedError> {
        Self::none(kafka, dataset, true)
    }

    fn none(kafka: &Kafka, dataset: &Arc<Dataset>, is_front: bool) -> Result<Self, SpeedError> {
        Ok(Self {
            dataset: Arc::clone(dataset),
            kafka: kafka.clone(),
            reader: Reader::start(kafka, options(kafka, dataset), &BTreeMap::new())?,
            lanes: BTreeMap::new(),
            identities: identities(dataset)?,
            told: Told::new(&dataset.name, is_front),
        })
    }

    /// Begins to read behind the log's head so that records count from these offsets on.
    pub(crate) async fn start(
        kafka: &Kafka,
        dataset: &Arc<Dataset>,
        budget: &Arc<Budget>,
        from: &BTreeMap<u32, Offset>,
    ) -> Result<Self, SpeedError> {
        let prepared = Prepared::find(kafka, dataset, budget, from).await?;
        let mut lanes = Self::none(kafka, dataset, false)?;
        lanes.add(prepared)?;
        Ok(lanes)
    }

    /// Begins to read further lanes.
    pub(crate) fn add(&mut self, prepared: Prepared) -> Result<(), SpeedError> {
        let cursors = prepared.0.iter().map(|(number, lane)| (*number, lane.cursor));
        self.reader
            .add(&options(&self.kafka, &self.dataset), &cursors.collect())?;
        self.lanes.extend(prepared.0);
        Ok(())
    }

    /// Reads these partitions no longer.
    pub(crate) fn remove(&mut self, partitions: &BTreeSet<u32>) {
        self.reader.remove(partitions);
        self.told.forget(partitions);
        self.lanes.retain(|number, _| !partitions.contains(number));
    }

    /// Reads these partitions no further for now, and all others on from where they are.
    pub(crate) fn wait(&mut self, waiting: &BTreeSet<u32>) -> Result<(), SpeedError> {
        let (mut stop, mut go_on) = (BTreeSet::new(), BTreeMap::new());
        for (number, lane) in &mut self.lanes {
            let waits = waiting.contains(number);
            if waits && !lane.waits {
                stop.insert(*number);
            } else if !waits && lane.waits {
                go_on.insert(*number, lane.cursor);
                lane.heard = Instant::now();
            }
            lane.waits = waits;
        }
        if !stop.is_empty() {
            self.reader.rest(&stop);
        }
        if !go_on.is_empty() {
            self.reader.add(&options(&self.kafka, &self.dataset), &go_on)?;
        }
        Ok(())
    }

    /// Whether a partition is read, and nothing came of it for a while.
    pub(crate) fn is_silent(&self, partition: u32) -> Option<bool> {
        let lane = self.lanes.get(&partition)?;
        Some(!lane.waits && lane.heard.elapsed() >= SILENT)
    }

    /// The next thing read. `None`: the reader has ended, [`Lanes::failure`] says why. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Result<Step, SpeedError>> {
        let event = self.reader.next().await?;
        Some(match event {
            Event::Slice(slice) => self.judge(slice).map_err(|source| batch_error(&self.dataset, source)),
            Event::Gap { partition, range } => Ok(self.lose(partition, range)),
            Event::Short {
                is_certain,
                partition,
                cursor,
                end,
            } => Ok(Step::Short {
                is_certain,
                partition,
                cursor,
                end,
            }),
        })
    }

    /// From where each partition is read on.
    pub(crate) fn cursor(&self, partition: u32) -> Option<Offset> {
        self.lanes.get(&partition).map(|lane| lane.cursor.max(lane.counts_from))
    }

    /// The reader itself.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Why the reader ended.
    pub(crate) fn failure(&self) -> Option<LogError> {
        self.reader.failure()
    }

    /// Ends the reader.
    pub(crate) async fn stop(self) {
        self.reader.stop().await;
    }

    fn lose(&mut self, partition: u32, range: OffsetRange) -> Step {
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return Step::Warming;
        };
        lane.cursor = range.to;
        // What a filter did not see it can't judge by.
        lane.cut_short = true;
        let counts = OffsetRange {
            from: range.from.max(lane.counts_from),
            to: range.to,
        };
        if counts.is_empty() {
            return Step::Warming;
        }
        Step::Lost {
            partition,
            range: counts,
        }
    }

    /// Judges each record, and drops repeats and what only warms the filter.
    fn judge(&mut self, slice: Slice) -> Result<Step, ArrowError> {
        let Some(lane) = self.lanes.get_mut(&slice.partition) else {
            return Ok(Step::Warming);
        };
        if lane.cut_short
            && let (Some(filter), Some(first)) = (
                &mut lane.filter,
                slice.records.iter().find_map(|record| record.kafka_time),
            )
        {
            // Records before it may be younger, by as much as timestamps may be out of order.
            filter.is_complete_from(first.saturating_add(window(&self.dataset)));
            lane.cut_short = false;
        }
        lane.cursor = slice.next;
        lane.heard = Instant::now();
        let counts_from = lane.counts_from.max(slice.from);
        let mut fates: Vec<_> = slice
            .records
            .iter()
            .map(|record| {
                let fate = match record.outcome {
                    Outcome::Accepted => Fate::Accepted(Judgement::First),
                    Outcome::Refused(reason) => Fate::Refused(reason),
                };
                (record.offset, fate)
            })
            .collect();
        let mut batches = slice.batches;
        if let (Some(identities), Some(filter)) = (&self.identities, &mut lane.filter) {
            let mut accepted = fates.iter_mut().filter(|(_, fate)| matches!(fate, Fate::Accepted(_)));
            for batch in &mut batches {
                let judged = filter.judge_all(&identities.of(batch)?);
                // The batch has a row for each accepted record.
                for ((_, fate), judgement) in accepted.by_ref().zip(&judged) {
                    *fate = Fate::Accepted(*judgement);
                }
                if judged.contains(&Judgement::Repeat) {
                    let keep = judged.iter().map(|judgement| Some(*judgement != Judgement::Repeat));
                    *batch = filter_record_batch(batch, &keep.collect::<BooleanArray>())?;
                }
            }
        }
        if slice.next <= counts_from {
            return Ok(Step::Warming);
        }
        fates.retain(|(offset, _)| *offset >= counts_from);
        Ok(Step::Read(Read {
            partition: slice.partition,
            kafka_time: slice.records.last().and_then(|record| record.kafka_time),
            records: Records {
                from: counts_from,
                next: slice.next,
                fates,
            },
            batches,
        }))
    }

    /// Sets the metrics of the filters.
    pub(crate) fn tell(&mut self) {
        for (partition, lane) in &mut self.lanes {
            if let Some(filter) = &lane.filter {
                let evicted = filter.evicted() - std::mem::replace(&mut lane.evicted, filter.evicted());
                self.told.of(*partition, filter, evicted);
            }
        }
    }
}

fn identities(dataset: &Dataset) -> Result<Option<Identities>, SpeedError> {
    Identities::new(dataset, &event_schema(dataset)).map_err(|source| batch_error(dataset, source))
}

fn options<'a>(kafka: &Kafka, dataset: &'a Dataset) -> ReaderOptions<'a> {
    ReaderOptions {
        dataset,
        keys: &EnvironmentKeys,
        group: kafka.group("speed"),
        extra: false,
        keep_refused: false,
    }
}

fn batch_error(dataset: &Dataset, source: ArrowError) -> SpeedError {
    SpeedError::Batch {
        dataset: dataset.name.clone(),
        source,
    }
}

/// The Kafka timestamp (ms) of the first records at or after these offsets, where there are any yet.
async fn first_times(
    kafka: &Kafka,
    dataset: &Dataset,
    from: &BTreeMap<u32, Offset>,
    logs: &BTreeMap<u32, OffsetRange>,
) -> Result<BTreeMap<u32, i64>, SpeedError> {
    let mut wanted = BTreeMap::new();
    for (partition, log) in logs {
        let offset = from.get(partition).copied().unwrap_or_default();
        // At the log's end the record before tells the time as well as the next one.
        let last = Offset(offset.0.min(log.to.0.saturating_sub(1))).max(log.from);
        if last < log.to {
            wanted.insert(*partition, last);
        }
    }
    let mut times = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(times);
    }
    let mut probe = Reader::start(kafka, options(kafka, dataset), &wanted)?;
    let read = async {
        while times.len() < wanted.len()
            && let Some(event) = probe.next().await
        {
            if let Event::Slice(slice) = event
                && let Some(first) = slice.records.iter().filter_map(|record| record.kafka_time).min()
            {
                times.entry(slice.partition).or_insert(first);
            }
        }
    };
    // Too late means that nothing is there to be read yet: such partitions begin from now.
    let _ = tokio::time::timeout(PROBE, read).await;
    probe.stop().await;
    Ok(times)
}

/// The clock, in milliseconds since 1970: to choose where warming begins (what it misses, the filter says), and to say
/// when something was seen. Nothing that counts rests on it.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
