//! What each stage does alone on one core, without Kafka and ClickHouse.
//!
//! Each stage is what the worker calls, on events in slices as they come from 8 partitions. What counts is the processor
//! time of the thread that works, so that whatever else the machine does changes little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use highwater_speed::aggregate::Aggregate;
use highwater_speed::dedupe::{Budget, Filter, Identities, Judgement};
use shared_schemas::dataset::{EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN};
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange, Start};
use shared_schemas::plan::event_schema;

use super::events::{self, Events};
use super::figure::{Figure, number};

/// Partitions that the events come from.
pub(super) const PARTITIONS: u32 = 8;
/// Events of one partition that come at once.
const SLICE: u64 = 4_096;
/// Slices that are measured with, again and again: about what 250 ms bring at 800,000 events a second.
const SLICES: u64 = 48;
/// 2024-01-01T00:00:00Z.
const SINCE: i64 = 1_704_067_200;

/// Events that came at once from a partition.
struct Slice {
    partition: u32,
    /// The number of the first; each next one has a number higher by [`PARTITIONS`].
    first: u64,
    values: Vec<Vec<u8>>,
    batches: Vec<RecordBatch>,
}

/// All figures; each stage works about that long. Blocks, and takes a core.
pub(crate) fn figures(each: Duration) -> anyhow::Result<Vec<Figure>> {
    let definitions = Definitions::parse([("flights.toml", events::definitions("flights", PARTITIONS))])?;
    let mut slices: Vec<Slice> = (0..SLICES)
        .map(|at| Slice::new(at, &mut Events::since(SINCE)))
        .collect();
    let decoded = decode(&definitions, &mut slices, each)?;
    let deduped = dedupe(&definitions, &slices, each)?;
    let aggregated = aggregate(&definitions, &slices, each)?;
    let aims = [
        ("decode alone, per core", decoded, Some(2_000_000.0)),
        ("dedupe alone, per core", deduped, None),
        (
            "group and aggregate alone, two views, per core",
            aggregated,
            Some(8_000_000.0),
        ),
    ];
    let figure = |(name, rate, aim)| match aim {
        Some(aim) => Figure::at_least(name, rate, "events/s", aim),
        None => Figure::plain(name, rate, "events/s"),
    };
    Ok(aims.map(figure).to_vec())
}

/// Events a second that go from columns to whole cells, for a definition with the dataset of the bench.
pub(super) fn aggregated(definitions: &str, each: Duration) -> anyhow::Result<f64> {
    let definitions = Definitions::parse([("flights.toml", definitions.to_owned())])?;
    let mut slices: Vec<Slice> = (0..SLICES)
        .map(|at| Slice::new(at, &mut Events::since(SINCE)))
        .collect();
    // Once will do.
    decode(&definitions, &mut slices, Duration::from_millis(1))?;
    aggregate(&definitions, &slices, each)
}

impl Slice {
    fn new(at: u64, events: &mut Events) -> Self {
        let partitions = u64::from(PARTITIONS);
        let first = at / partitions * partitions * SLICE + at % partitions;
        let mut slice = Self {
            partition: u32::try_from(at % partitions).unwrap_or_default(),
            first,
            values: Vec::new(),
            batches: Vec::new(),
        };
        slice.values = (0..SLICE)
            .map(|event| events.event(slice.number(event)).to_vec())
            .collect();
        slice
    }

    fn number(&self, event: u64) -> u64 {
        self.first + event * u64::from(PARTITIONS)
    }

    fn offset(&self) -> u64 {
        self.first / u64::from(PARTITIONS)
    }
}

/// Works until so much time has passed; events a second of processor time. `work` says how many events it worked on.
pub(super) fn rate(each: Duration, mut work: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let (began, worked, mut events) = (Instant::now(), processor_time()?, 0);
    while began.elapsed() < each {
        events += work()?;
    }
    let worked = processor_time()?.saturating_sub(worked);
    Ok(number(events) / worked.as_secs_f64())
}

/// The processor time of this thread, as Linux counts it.
fn processor_time() -> anyhow::Result<Duration> {
    let told =
        std::fs::read_to_string("/proc/thread-self/schedstat").context("the thread's processor time is not told")?;
    let nanoseconds = told
        .split_whitespace()
        .next()
        .context("the thread's processor time is not told")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// From messages to columns.
fn decode(definitions: &Definitions, slices: &mut [Slice], each: Duration) -> anyhow::Result<f64> {
    let options = Options {
        extra: false,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(&definitions.datasets[0], options)?;
    rate(each, || {
        for slice in &mut *slices {
            for (event, value) in (0..).zip(&slice.values) {
                let record = Record {
                    partition: i32::try_from(slice.partition)?,
                    offset: i64::try_from(slice.offset() + event)?,
                    timestamp: Some(SINCE * 1000 + i64::try_from(slice.number(event) * 1000 / events::A_SECOND)?),
                    key: None,
                    value: Some(value),
                    headers: &(),
                };
                let read = decoder.push(&record);
                read.map_err(|refusal| anyhow::anyhow!("an event of the bench is refused: {refusal}"))?;
            }
            slice.batches = decoder.finish();
        }
        Ok(SLICES * SLICE)
    })
}

/// From columns to which of them are repeats. In each round the events come anew, with later times, so that none is a
/// repeat. Filters begin empty, so how full they become depends on how much of a core there is.
fn dedupe(definitions: &Definitions, slices: &[Slice], each: Duration) -> anyhow::Result<f64> {
    let dataset = &definitions.datasets[0];
    let identities = Identities::new(dataset, &event_schema(dataset))?.context("the events have ids")?;
    let budget = Budget::new(dataset.dedupe_memory);
    let mut filters: Vec<Filter> = (0..PARTITIONS)
        .map(|_| Filter::new(dataset, &budget, i64::MIN))
        .collect();
    let span = i64::try_from(SLICES * SLICE * 1_000_000 / events::A_SECOND)?;
    let mut round = 0;
    rate(each, || {
        round += 1;
        for slice in slices {
            let filter = &mut filters[usize::try_from(slice.partition)?];
            for batch in &slice.batches {
                let judged = filter.judge_all(&identities.of(&later(batch, round * span)?)?);
                anyhow::ensure!(
                    !judged.contains(&Judgement::Repeat),
                    "an event of the bench is a repeat"
                );
            }
        }
        Ok(SLICES * SLICE)
    })
}

/// The same events, later by so many µs.
fn later(batch: &RecordBatch, by: i64) -> anyhow::Result<RecordBatch> {
    let mut columns = batch.columns().to_vec();
    for name in [KAFKA_TIME_COLUMN, EVENT_TIME_COLUMN] {
        let column = &mut columns[batch.schema().index_of(name)?];
        let times = column.as_primitive::<TimestampMicrosecondType>();
        *column = Arc::new(
            times
                .unary::<_, TimestampMicrosecondType>(|at| at + by)
                .with_timezone("UTC"),
        );
    }
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// From columns to whole cells of both views, and what a flush takes of them.
fn aggregate(definitions: &Definitions, slices: &[Slice], each: Duration) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let dataset = &definitions.datasets[0];
    let of_view = |view| Aggregate::new(view, dataset);
    let mut views = definitions.views.iter().map(of_view).collect::<Result<Vec<_>, _>>()?;
    rate(each, || {
        for view in &mut views {
            for slice in slices {
                let range = OffsetRange {
                    from: Offset(0),
                    to: Offset(u64::MAX),
                };
                view.add(slice.partition, Start(Offset(0)), range, &slice.batches)?;
            }
            runtime.block_on(view.fold())?;
            std::hint::black_box(view.touched()?);
        }
        Ok(SLICES * SLICE)
    })
}
