//! What the tests of the hand-off drive: a log, its writers, and an oracle.
//!
//! The oracle knows the log and, for each cell and start, the highest version that was ever sent in full. It computes
//! answers in plain Rust, from events. The rows come from the product's own plans, tables and statement.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch, TimestampSecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{TimestampMicrosecondType, UInt64Type};
use arrow::util::display::array_value_to_string;
use highwater_tests::engine::Engine;
use highwater_tests::flights::{FIRST_SECOND, Flight, batch, dataset, view};
use shared_schemas::handoff::{
    ChunkSize, EventDay, Mark, Offset, Partition, Publication, RunId, Start, TopicId, counts,
};
use shared_schemas::plan::{CellKey, CellPlan, START_COLUMN, WINDOW_COLUMN};
use shared_schemas::sketch::DdSketch;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use shared_schemas::store::{Merging, Selection, batch_rows, speed_rows, view_tables};
use shared_schemas::view::View;

/// A topic id with its highest bit set: nothing on the way may take it for a signed number.
pub(super) const TOPIC: TopicId = TopicId(u128::MAX - 6);
pub(super) const PARTITIONS: u32 = 2;
pub(super) const LOG: u64 = 40;
/// The levels of the view's quantiles.
const SPREAD: [f64; 2] = [0.5, 0.95];
/// Cuts that every writer keeps; the second lies in a chunk of its own.
pub(super) const CUTS: [u64; 2] = [11, 29];

pub(super) fn chunk() -> ChunkSize {
    ChunkSize::new(dataset().chunk).unwrap()
}

pub(super) fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

/// A cell: its window in seconds, carrier, late.
pub(super) type Cell = (i64, Option<String>, Option<bool>);

pub(super) fn cell(event: &Flight) -> Cell {
    let at = FIRST_SECOND + event.at;
    (
        at - at.rem_euclid(3600),
        event.carrier.clone(),
        event.delay.map(|delay| delay > 15),
    )
}

/// What becomes of one flush.
#[derive(Debug, Clone)]
pub(super) struct Flush {
    pub(super) writer: usize,
    pub(super) partition: u32,
    /// How many offsets further it reads.
    pub(super) reads: u64,
    pub(super) shuffle: u64,
    /// Sent twice.
    pub(super) doubled: bool,
    /// In blocks of so many rows.
    pub(super) block: usize,
    /// The writer dies after so many rows: the rest never arrives, and the next flush sends everything again.
    pub(super) dies_after: Option<usize>,
    /// Which of the marks a reader asks with: its index into the partition's starts.
    pub(super) mark: usize,
}

/// One line of the answer for a set of events of one cell, as the engine writes it.
pub(super) fn line(cell: &Cell, events: &[&Flight], layer: &str) -> String {
    let null = || "\\N".to_owned();
    let (window, carrier, late) = cell;
    let delays: Vec<_> = events.iter().filter_map(|event| event.delay).collect();
    let distances: Vec<_> = events.iter().filter_map(|event| event.distance).collect();
    let sum: i64 = delays.iter().sum();
    let bound = |n: usize, magnitude: f64| {
        let n = u32::try_from(n).unwrap();
        if n == 0 {
            null()
        } else {
            format!("{:e}", f64::from(n) * f64::EPSILON * magnitude)
        }
    };
    let total: i64 = distances.iter().map(|&distance| i64::from(distance)).sum();
    let first = events.iter().map(|event| FIRST_SECOND + event.at).min();
    let mut ordered = events.to_vec();
    ordered.sort_by_key(|event| (event.at, event.offset, event.partition));
    let mean = if delays.is_empty() {
        null()
    } else {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let mean = sum as f64 / delays.len() as f64;
        mean.to_string()
    };
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let bound = bound(distances.len(), total as f64);
    let fields = [
        moment(*window),
        carrier.clone().unwrap_or_else(null),
        late.map_or_else(null, |late| late.to_string()),
        events.len().to_string(),
        if delays.is_empty() { null() } else { sum.to_string() },
        if distances.is_empty() {
            null()
        } else {
            total.to_string()
        },
        bound,
        first.map_or_else(null, |first| moment(first) + ".000000"),
        delays.iter().max().map_or_else(null, ToString::to_string),
        mean,
        delays.iter().collect::<BTreeSet<_>>().len().to_string(),
        spread(&delays),
        end(ordered.iter(), |event| event.delay),
        end(ordered.iter().rev(), |event| event.distance.map(i64::from)),
        layer.to_owned(),
    ];
    fields.join("\t")
}

/// The value of the first event that has one.
fn end<'a>(mut events: impl Iterator<Item = &'a &'a Flight>, value: impl Fn(&Flight) -> Option<i64>) -> String {
    let value = events.find_map(|event| value(event));
    value.map_or_else(|| "\\N".to_owned(), |value| value.to_string())
}

/// The quantiles of all delays; that these are near the truth is the sketches' own tests' to hold.
fn spread(delays: &[i64]) -> String {
    let mut sketch = DdSketch::default();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    delays.iter().for_each(|delay| sketch.insert(*delay as f64));
    let levels = SPREAD.map(|level| sketch.quantile(level).map_or("NULL".to_owned(), rounded));
    format!("[{}]", levels.join(","))
}

/// Without the last digits, in which the engine's logarithm and ours may differ.
fn rounded(value: f64) -> String {
    format!("{value:.9e}")
}

/// A line as the engine wrote it, without `_failed`, the bound as Rust writes it, and without how far estimates may be off
/// once that is looked at.
pub(super) fn normal(line: &str) -> String {
    let mut fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
    fields.pop();
    let estimates: Vec<_> = [11, 11, 12, 12].map(|at| fields.remove(at)).into();
    let values: Vec<_> = fields[11]
        .trim_matches(['[', ']'])
        .split(',')
        .map(str::to_owned)
        .collect();
    let has_values = values[0] != "NULL";
    let none = || "\\N".to_owned();
    let error = |is: bool, error: &str| if is { error.to_owned() } else { none() };
    // Few values: how many of them there are is known but for hashes that collide.
    let of_distinct = estimates[0].parse::<f64>().map(|error| error <= 1.0);
    let is_estimate = fields[10] != "0" && fields.last().is_none_or(|layer| layer != "batch");
    assert_eq!(of_distinct.is_ok(), is_estimate, "{line}");
    assert!(of_distinct.unwrap_or(true), "{line}");
    assert_eq!(
        estimates[1..],
        ["0.95".to_owned(), error(has_values, "0.01"), "1".to_owned()],
        "{line}"
    );
    let values = values.iter().map(|value| value.parse().map_or(value.clone(), rounded));
    fields[11] = format!("[{}]", values.collect::<Vec<_>>().join(","));
    if let Ok(bound) = fields[6].parse::<f64>() {
        fields[6] = format!("{bound:e}");
    }
    fields.join("\t")
}

/// A moment as the engine writes it, given in seconds.
pub(super) fn moment(seconds: i64) -> String {
    let text = array_value_to_string(&TimestampSecondArray::from(vec![seconds]), 0).unwrap();
    text.replace('T', " ")
}

/// What a test drives: the engine, the plans, and what the oracle knows.
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) view: View,
    starts: CellPlan,
    log: Vec<Flight>,
    /// The highest version of each row that arrived.
    arrived: BTreeMap<(u32, Start, Cell), u64>,
    /// Per writer and partition: how far it read, and from where its last flush that was acknowledged went on.
    read: BTreeMap<(usize, u32), (u64, u64)>,
}

impl World {
    pub(super) async fn new(url: &str, database: &str, log: Vec<Flight>) -> anyhow::Result<Self> {
        let view = view()?;
        let engine = Engine::create(url, database, &view_tables(&view)).await?;
        let starts = CellPlan::new(&view, &dataset(), CellKey::Start)?;
        Ok(Self {
            engine,
            view,
            starts,
            log,
            arrived: BTreeMap::new(),
            read: BTreeMap::new(),
        })
    }

    /// The starts of a partition: each chunk's, and the cuts.
    pub(super) fn all_starts() -> BTreeSet<Start> {
        let chunks = (0..LOG).step_by(usize::try_from(chunk().offsets()).unwrap());
        chunks.chain(CUTS).map(|at| Start(Offset(at))).collect()
    }

    /// The rows of every start that a read up to `next` touches: whole cells, touched from `since` on.
    pub(super) async fn rows(&self, number: u32, since: u64, next: u64) -> anyhow::Result<RecordBatch> {
        let mut events = Vec::new();
        let mut touched: BTreeSet<(Start, Cell)> = BTreeSet::new();
        for start in Self::all_starts() {
            let end = chunk().end(start.0).0.min(next);
            for event in self.log.iter().filter(|event| event.partition == number) {
                if (start.0.0..end).contains(&event.offset) {
                    events.push((event.clone(), start.0.0));
                    if event.offset >= since {
                        touched.insert((start, cell(event)));
                    }
                }
            }
        }
        let cells = self.starts.run(vec![batch(&events)?]).await?;
        let kept: UInt32Array = (0..u32::try_from(cells.num_rows())?)
            .filter(|&row| touched.contains(&row_key(&cells, row as usize)))
            .collect::<Vec<_>>()
            .into();
        let cells = take_record_batch(&cells, &kept)?;
        let versions = |_: Partition, start: Start| Some(Offset(next).min(chunk().end(start.0)));
        Ok(speed_rows(&cells, TOPIC, &versions)?)
    }

    pub(super) async fn flush(&mut self, flush: &Flush) -> anyhow::Result<()> {
        let (read, acknowledged) = self
            .read
            .get(&(flush.writer, flush.partition))
            .copied()
            .unwrap_or_default();
        let next = (read + flush.reads).min(LOG);
        let rows = self.rows(flush.partition, acknowledged, next).await?;
        let order: UInt32Array = shuffled(rows.num_rows(), flush.shuffle).into();
        let rows = take_record_batch(&rows, &order)?;
        let sent = flush
            .dies_after
            .map_or(rows.num_rows(), |rows_sent| rows_sent.min(rows.num_rows()));
        let table = speed_table_name(&self.view);
        let blocks: Vec<_> = (0..sent)
            .step_by(flush.block)
            .map(|from| rows.slice(from, flush.block.min(sent - from)))
            .collect();
        for _ in 0..=usize::from(flush.doubled) {
            if !blocks.is_empty() {
                // Each Arrow batch a block of its own, and a part of its own.
                let settings = [("min_insert_block_size_rows", "1"), ("max_insert_block_size", "1")];
                self.engine.insert(&table, &blocks, &settings).await?;
            }
        }
        for row in 0..sent {
            let (start, cell) = row_key(&rows, row);
            let version = next.min(chunk().end(start.0).0);
            let held = self.arrived.entry((flush.partition, start, cell)).or_default();
            *held = version.max(*held);
        }
        let acknowledged = if sent == rows.num_rows() { next } else { acknowledged };
        self.read.insert((flush.writer, flush.partition), (next, acknowledged));
        Ok(())
    }

    /// Publishes a batch result with these marks: the rows of every day, under one run.
    pub(super) async fn publish(&self, number: u64, marks: BTreeMap<Partition, Mark>) -> anyhow::Result<Publication> {
        let below: Vec<_> = self
            .log
            .iter()
            .filter(|event| event.offset < marks[&partition(event.partition)].0.0)
            .map(|event| (event.clone(), 0))
            .collect();
        let days: BTreeSet<_> = below
            .iter()
            .map(|(event, _)| EventDay(i32::try_from((FIRST_SECOND + event.at).div_euclid(86_400)).unwrap()))
            .collect();
        let run = RunId(u128::MAX - u128::from(number));
        let publication = Publication::of_run(None, run, marks, &BTreeMap::new(), &days);
        let plan = CellPlan::new(&self.view, &dataset(), CellKey::Cell)?;
        let mut events = batch(&below)?;
        events.remove_column(events.schema().index_of(START_COLUMN)?);
        let rows = batch_rows(&plan.run(vec![events]).await?, run)?;
        for _ in 0..2 {
            self.engine
                .insert(&batch_table_name(&self.view), std::slice::from_ref(&rows), &[])
                .await?;
        }
        Ok(publication)
    }

    pub(super) fn question<'a>(&'a self, publication: Option<&'a Publication>) -> Merging<'a> {
        Merging {
            database: &self.engine.database,
            view: &self.view,
            publication,
            from: 0,
            to: 1 << 34,
            bucket: Some(Duration::from_secs(3600)),
            dimensions: &["carrier", "late"],
            measures: &[
                "flights", "delay", "distance", "first", "worst", "mean", "delays", "spread", "opening", "closing",
            ],
        }
    }

    pub(super) async fn answer(&self, publication: Option<&Publication>) -> anyhow::Result<Vec<String>> {
        let lines = self.engine.run(&self.question(publication).statement()?).await?;
        let mut lines: Vec<_> = lines.iter().map(|line| normal(line)).collect();
        lines.sort();
        Ok(lines)
    }

    /// The answer to a part of the question.
    pub(super) async fn part(
        &self,
        publication: Option<&Publication>,
        selection: &Selection<'_>,
    ) -> anyhow::Result<Vec<String>> {
        let statement = self.question(publication).selecting(selection)?;
        let lines = self.engine.run(&statement).await?;
        Ok(lines.iter().map(|line| normal(line)).collect())
    }

    /// What the answer must be, from the log and what arrived.
    pub(super) fn oracle(&self, publication: Option<&Publication>) -> Vec<String> {
        let mark = |number| {
            publication
                .map(|publication| publication.mark(partition(number)))
                .unwrap_or_default()
        };
        let mut cells: BTreeMap<Cell, (Vec<&Flight>, bool, bool)> = BTreeMap::new();
        for event in &self.log {
            if event.offset < mark(event.partition).0.0 {
                let entry = cells.entry(cell(event)).or_default();
                entry.0.push(event);
                entry.1 = true;
            }
        }
        for ((number, start, of), version) in &self.arrived {
            if !counts(mark(*number), *start, chunk()) {
                continue;
            }
            let entry = cells.entry(of.clone()).or_default();
            entry.2 = true;
            entry.0.extend(self.log.iter().filter(|event| {
                event.partition == *number && (start.0.0..*version).contains(&event.offset) && cell(event) == *of
            }));
        }
        let mut lines: Vec<_> = cells
            .iter()
            .map(|(cell, (events, batch, speed))| {
                line(
                    cell,
                    events,
                    match (batch, speed) {
                        (true, true) => "merged",
                        (true, false) => "batch",
                        _ => "speed",
                    },
                )
            })
            .collect();
        lines.sort();
        lines
    }

    /// What the answer must be once everything was read: each event once, whoever counted it.
    pub(super) fn truth(&self) -> Vec<String> {
        let mut cells: BTreeMap<Cell, Vec<&Flight>> = BTreeMap::new();
        for event in &self.log {
            cells.entry(cell(event)).or_default().push(event);
        }
        let mut lines: Vec<_> = cells.iter().map(|(cell, events)| line(cell, events, "")).collect();
        lines.sort();
        lines
    }
}

/// The key of a row: its start and cell.
pub(super) fn row_key(rows: &RecordBatch, row: usize) -> (Start, Cell) {
    let column = |name: &str| rows.column_by_name(name).unwrap();
    let start = column(START_COLUMN).as_primitive::<UInt64Type>().value(row);
    let window = column(WINDOW_COLUMN)
        .as_primitive::<TimestampMicrosecondType>()
        .value(row)
        / 1_000_000;
    let carrier = column("carrier").as_string::<i32>();
    let late = column("late").as_boolean();
    let carrier = carrier.is_valid(row).then(|| carrier.value(row).to_owned());
    (
        Start(Offset(start)),
        (window, carrier, late.is_valid(row).then(|| late.value(row))),
    )
}

/// A permutation of so many rows.
pub(super) fn shuffled(rows: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(rows).unwrap()).collect();
    let mix = |row: u32| {
        (u64::from(row) ^ seed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(31)
            .wrapping_mul(seed | 1)
    };
    order.sort_by_key(|&row| mix(row));
    order
}

impl World {
    /// Takes note that all rows of a partition from `since` up to `next` arrived.
    pub(super) fn note(&mut self, number: u32, since: u64, next: u64) {
        for start in Self::all_starts() {
            let version = next.min(chunk().end(start.0).0);
            for event in self.log.iter().filter(|event| event.partition == number) {
                if event.offset >= since.max(start.0.0) && event.offset < version {
                    let held = self.arrived.entry((number, start, cell(event))).or_default();
                    *held = version.max(*held);
                }
            }
        }
    }

    /// Every cell that is there counts at least what was acknowledged and at most what was sent.
    pub(super) async fn assert_between(&self, found: &[String]) -> anyhow::Result<()> {
        let count = |line: &String| -> (String, u64) {
            let fields: Vec<_> = line.split('\t').collect();
            (fields[..3].join("\t"), fields[3].parse().unwrap_or_default())
        };
        let found: BTreeMap<_, _> = found.iter().map(count).collect();
        for (cell, least) in self.oracle(None).iter().map(count) {
            let counted = found.get(&cell).copied().with_context(|| format!("{cell} was lost"))?;
            assert!(counted >= least, "{cell}: {counted} of {least}");
        }
        let most: BTreeMap<_, _> = self.truth().iter().map(count).collect();
        for (cell, counted) in &found {
            assert!(counted <= &most[cell], "{cell} counts {counted}");
        }
        Ok(())
    }
}
