//! A run's rows into the store: month by month, in blocks of bounded size, and then counted there.
//!
//! Rows are a ReplacingMergeTree's under a fresh run id, so a block whose reply was lost is sent again as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, UInt64Type};
use chrono::{Datelike, NaiveDate};
use futures::TryStreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use shared_connections::sentence;
use shared_connections::store::{Pace, Store};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{ArchivedRange, EventDay, Mark, Offset, OffsetSet, Partition, RunId};
use shared_schemas::plan::{CellKey, CellPlan};
use shared_schemas::store::check::{exact_sums, run_totals};
use shared_schemas::store::{batch_rows, tables};
use shared_schemas::view::View;
use tokio::time::Instant;

use crate::archive::Pinned;
use crate::error::RunError;
use crate::progress::{Step, Watcher};
use crate::recompute::Room;
use crate::recompute::feed::{Told, Wanted, feed};
use crate::repeats::Rule;
use crate::retry::patiently;

/// Cells of one insert: some MiB, so that a retry costs little and a part is worth its files.
const BLOCK_ROWS: usize = 100_000;
/// Bytes of one insert, where cells are large: sets and sketches. Only a cell that is larger by itself is more.
const BLOCK_BYTES: usize = 32 << 20;
/// Archived events, at most about so many, that are computed at a time: then progress is shown. A day is never divided.
const EVENTS_AT_A_TIME: u64 = 4 << 20;

/// How often progress is told while a group of days is computed.
const TELLS: Duration = Duration::from_millis(200);

/// What runs compute from, and where their rows go: views of one dataset over the same events.
pub(crate) struct Work<'a> {
    pub(crate) store: &'a Store,
    pub(crate) dataset: &'a Dataset,
    pub(crate) room: &'a Room,
    pub(crate) pinned: &'a Pinned,
    pub(crate) ranges: &'a [ArchivedRange],
    pub(crate) counted: &'a BTreeMap<Partition, OffsetSet>,
    pub(crate) watcher: &'a dyn Watcher,
}

/// What one view wants of it.
pub(crate) struct Job<'a> {
    pub(crate) view: &'a View,
    pub(crate) days: &'a BTreeSet<EventDay>,
    pub(crate) run: RunId,
    /// The marks of its parent: events from there on are new to it.
    pub(crate) old: &'a BTreeMap<Partition, Mark>,
}

/// What a run has written, and from what.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Written {
    pub(crate) totals: Totals,
    /// Events at offsets that count, repeats too.
    pub(crate) read: u64,
    /// How many of them are repeats.
    pub(crate) repeats: u64,
    /// The same by the day that they are of.
    pub(crate) repeats_of: BTreeMap<EventDay, u64>,
    /// How many were counted: no repeats, and let pass by the view's filter.
    pub(crate) passed: u64,
    /// How many of those read lie from the old mark on, by partition.
    pub(crate) new: BTreeMap<Partition, u64>,
    /// Bytes and files that went to disk, for all views that were computed together.
    pub(crate) spilled: (u64, u64),
    /// How many views were computed together.
    pub(crate) together: usize,
    /// Looking for repeats; computing and writing cells; counting them in the store.
    pub(crate) took: [Duration; 3],
}

/// A job on its way.
struct InWork<'a> {
    job: &'a Job<'a>,
    plan: CellPlan,
    columns: Vec<String>,
    written: Written,
    failed: Option<RunError>,
    done: usize,
}

/// How many rows, and what their exact columns add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) rows: u64,
    pub(crate) sums: Vec<u128>,
}

impl Totals {
    fn add(&mut self, cells: &RecordBatch, columns: &[String]) {
        self.rows += cells.num_rows() as u64;
        self.sums.resize(columns.len(), 0);
        for (sum, column) in self.sums.iter_mut().zip(columns) {
            let counts = cells
                .column_by_name(column)
                .and_then(|column| column.as_primitive_opt::<UInt64Type>());
            *sum += counts.into_iter().flatten().flatten().map(u128::from).sum::<u128>();
        }
    }
}

/// Rows of one insert.
#[derive(Debug, Default)]
struct Block {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Block {
    /// Takes as many rows of a batch as there is room for, from one on; says up to which. The size of each is given.
    fn fill(&mut self, batch: &RecordBatch, sizes: &[usize], from: usize) -> usize {
        let mut end = from;
        while let Some(size) = sizes.get(end) {
            let fits = self.rows < BLOCK_ROWS && self.bytes.saturating_add(*size) <= BLOCK_BYTES;
            if !fits && self.rows > 0 {
                break;
            }
            self.rows += 1;
            self.bytes += size;
            end += 1;
        }
        if end > from {
            self.batches.push(batch.slice(from, end - from));
        }
        end
    }
}

/// About how many bytes each row of a batch takes. What the batch takes in memory says little: DataFusion cuts batches out of
/// larger ones, and each then counts as all of it.
fn sizes_of_rows(batch: &RecordBatch) -> Vec<usize> {
    let mut sizes = vec![0_usize; batch.num_rows()];
    for column in batch.columns() {
        for (row, size) in sizes.iter_mut().enumerate() {
            *size += match column.data_type() {
                DataType::Binary => column.as_binary::<i32>().value(row).len(),
                DataType::Utf8 => column.as_string::<i32>().value(row).len(),
                DataType::FixedSizeBinary(width) => usize::try_from(*width).unwrap_or_default(),
                plain => plain.primitive_width().unwrap_or(1),
            };
        }
    }
    sizes
}

impl Work<'_> {
    /// Computes the days of each job over the events that count, sends the rows, and counts them in the store. Events of a day are
    /// read once for all jobs that want the day. What fails for one job fails for no other, unless events can't be read.
    pub(crate) async fn write(&self, jobs: &[Job<'_>]) -> Vec<Result<Written, RunError>> {
        let prepared: Vec<_> = jobs.iter().map(|job| self.prepared(job, jobs.len())).collect();
        let mut works = Vec::with_capacity(jobs.len());
        let mut unplanned = BTreeMap::new();
        for (at, prepared) in prepared.into_iter().enumerate() {
            match prepared {
                Ok(work) => works.push((at, work)),
                Err(error) => {
                    unplanned.insert(at, error);
                }
            }
        }
        for group in shared_groups(jobs, self.ranges) {
            let mut of_group: Vec<_> = works
                .iter_mut()
                .map(|(_, work)| work)
                .filter(|work| work.failed.is_none() && group.is_subset(work.job.days))
                .collect();
            if !of_group.is_empty() {
                self.write_group(&group, &mut of_group).await;
            }
        }
        for (_, work) in &mut works {
            if work.failed.is_none() {
                work.failed = self.count(work.job, &mut work.written, &work.columns).await.err();
            }
        }
        let mut works = works.into_iter().map(|(_, work)| work);
        let finished = (0..jobs.len()).filter_map(|at| match unplanned.remove(&at) {
            Some(error) => Some(Err(error)),
            None => works.next().map(|work| work.failed.map_or(Ok(work.written), Err)),
        });
        finished.collect()
    }

    fn prepared<'b>(&self, job: &'b Job<'b>, together: usize) -> Result<InWork<'b>, RunError> {
        let plan = CellPlan::new(job.view, self.dataset, CellKey::Cell);
        Ok(InWork {
            plan: plan.map_err(|error| RunError::Plan(error.to_string()))?,
            columns: exact_sums(job.view),
            job,
            written: Written {
                together,
                ..Written::default()
            },
            failed: None,
            done: 0,
        })
    }

    /// Some days for all jobs that want them.
    async fn write_group(&self, days: &BTreeSet<EventDay>, works: &mut [&mut InWork<'_>]) {
        let began = Instant::now();
        let told = Arc::new(Told::default());
        let steps: Vec<_> = works
            .iter()
            .map(|work| (work.job, work.done, work.written.read, work.written.totals.rows))
            .collect();
        let tell = || {
            for (job, done, read, rows) in &steps {
                let of = self.pinned.rows_of(job.days);
                let step = Step::Computes {
                    done: *done,
                    days: job.days.len(),
                    rows: rows + told.cells.load(Ordering::Relaxed) / steps.len() as u64,
                    at: days.first().copied(),
                    events: (read + self.worked(&told)).min(of),
                    of,
                };
                self.watcher.step(&job.view.name, &step);
            }
        };
        let plans: Vec<_> = works.iter().map(|work| work.plan.clone()).collect();
        let work = async {
            let since = works
                .iter()
                .flat_map(|work| work.job.old)
                .map(|(partition, mark)| (*partition, mark.0));
            let wanted = Wanted {
                dataset: self.dataset,
                events: self.pinned.lean_events(days),
                days,
                rule: Rule::AllButOne,
                counted: self.counted,
                since: &since
                    .chain(self.counted.keys().map(|partition| (*partition, Offset(0))))
                    .collect(),
            };
            match feed(self.room, &plans.iter().collect::<Vec<_>>(), &wanted, &told).await {
                Ok(cells) => {
                    let drained = works
                        .iter_mut()
                        .zip(cells)
                        .map(|(work, cells)| self.drain(days, work, cells, &told));
                    join_all(drained).await;
                }
                Err(error) => works
                    .iter_mut()
                    .for_each(|work| work.failed = Some(failed(days, &error))),
            }
        };
        let mut ticks = tokio::time::interval(TELLS);
        {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    () = &mut work => break,
                    _ = ticks.tick() => tell(),
                }
            }
        }
        let (passed, (bytes, files)) = (told.passed(), told.spilled());
        for (work, passed) in works.iter_mut().zip(passed.into_iter().chain(std::iter::repeat(None))) {
            let written = &mut work.written;
            written.read += told.read();
            written.repeats += told.repeats();
            for (day, count) in told.repeats_of() {
                *written.repeats_of.entry(day).or_default() += count;
            }
            written.passed += passed.unwrap_or_else(|| told.read().saturating_sub(told.repeats()));
            for partition in self.counted.keys() {
                let old = work.job.old.get(partition).map_or(Offset(0), |mark| mark.0);
                *written.new.entry(*partition).or_default() += told.since(*partition, old);
            }
            written.spilled.0 += bytes;
            written.spilled.1 += files;
            written.took[0] += told.looked();
            written.took[1] += began.elapsed().saturating_sub(told.looked());
            work.done += days.len();
        }
    }

    /// How many events were worked through: looked at for repeats, or read.
    fn worked(&self, told: &Told) -> u64 {
        if self.dataset.event_id.is_empty() {
            told.read()
        } else {
            (told.looked_at() + told.read()) / 2
        }
    }

    async fn drain(
        &self,
        days: &BTreeSet<EventDay>,
        work: &mut InWork<'_>,
        cells: BoxStream<'static, datafusion::error::Result<RecordBatch>>,
        told: &Told,
    ) {
        if let Err(error) = self.insert_all(days, work, cells, told).await {
            work.failed = Some(error);
        }
    }

    async fn insert_all(
        &self,
        days: &BTreeSet<EventDay>,
        work: &mut InWork<'_>,
        mut cells: BoxStream<'static, datafusion::error::Result<RecordBatch>>,
        told: &Told,
    ) -> Result<(), RunError> {
        let mut block = Block::default();
        while let Some(batch) = cells.try_next().await.map_err(|error| failed(days, &error))? {
            work.written.totals.add(&batch, &work.columns);
            told.cells.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            let batch = batch_rows(&batch, work.job.run).map_err(|error| RunError::Plan(error.to_string()))?;
            let sizes = sizes_of_rows(&batch);
            let mut taken = block.fill(&batch, &sizes, 0);
            // A block takes one row at least, so this ends.
            while taken < sizes.len() {
                self.insert(work.job.view, &block.batches).await?;
                block = Block::default();
                taken = block.fill(&batch, &sizes, taken);
            }
        }
        self.insert(work.job.view, &block.batches).await
    }

    async fn insert(&self, view: &View, block: &[RecordBatch]) -> Result<(), RunError> {
        let table = tables::batch_table_name(view);
        Ok(patiently(|| self.store.insert(&table, block)).await?)
    }

    /// Counts in the store what was written.
    async fn count(&self, job: &Job<'_>, written: &mut Written, columns: &[String]) -> Result<(), RunError> {
        let (Some(first), Some(last)) = (job.days.first(), job.days.last()) else {
            return Ok(());
        };
        let began = Instant::now();
        self.watcher.step(&job.view.name, &Step::Checks);
        let statement = run_totals(self.store.database(), job.view, job.run, &(*first..=*last));
        let answer = patiently(|| self.store.answer_at_length(&statement, "TabSeparated", Pace::AT_LENGTH)).await?;
        let found = String::from_utf8_lossy(&answer.body);
        check(&written.totals, columns, found.trim_end())?;
        written.took[2] += began.elapsed();
        Ok(())
    }
}

fn failed(days: &BTreeSet<EventDay>, error: &datafusion::error::DataFusionError) -> RunError {
    RunError::Compute {
        days: span(days),
        why: reason(error),
    }
}

fn check(totals: &Totals, columns: &[String], found: &str) -> Result<(), RunError> {
    let names = std::iter::once("rows").chain(columns.iter().map(String::as_str));
    let written = std::iter::once(totals.rows.to_string());
    // A run without a cell has no sums; the store's are 0 then.
    let sums = (0..columns.len()).map(|at| totals.sums.get(at).copied().unwrap_or_default().to_string());
    let mut fields = found.split('\t');
    for (name, written) in names.zip(written.chain(sums)) {
        let found = fields.next().unwrap_or_default();
        if found != written {
            return Err(RunError::Check {
                what: name.to_owned(),
                written,
                found: found.to_owned(),
            });
        }
    }
    Ok(())
}

/// Days to be computed at a time, each for just those jobs that want it.
fn shared_groups(jobs: &[Job<'_>], ranges: &[ArchivedRange]) -> Vec<BTreeSet<EventDay>> {
    let mut wanted: BTreeMap<Vec<bool>, BTreeSet<EventDay>> = BTreeMap::new();
    for day in jobs.iter().flat_map(|job| job.days) {
        let by = jobs.iter().map(|job| job.days.contains(day)).collect();
        wanted.entry(by).or_default().insert(*day);
    }
    let mut all: Vec<_> = wanted.values().flat_map(|days| groups(days, ranges)).collect();
    all.sort_by_key(|group| group.first().copied());
    all
}

/// Days to be computed at a time: of one month, which is a partition of the table, and not too many events.
pub(crate) fn groups(days: &BTreeSet<EventDay>, ranges: &[ArchivedRange]) -> Vec<BTreeSet<EventDay>> {
    let mut events: BTreeMap<EventDay, u64> = BTreeMap::new();
    for range in ranges {
        // Offsets have holes and files overlap: at most so many.
        let most = range.last.0.saturating_sub(range.first.0).saturating_add(1);
        let held = events.entry(range.day).or_default();
        *held = held.saturating_add(most);
    }
    let mut groups: Vec<BTreeSet<EventDay>> = Vec::new();
    let mut held = 0_u64;
    for day in days {
        let of_day = events.get(day).copied().unwrap_or_default();
        let fits = held.saturating_add(of_day) <= EVENTS_AT_A_TIME;
        match groups.last_mut() {
            Some(group) if fits && group.last().is_some_and(|last| month(*last) == month(*day)) => {
                group.insert(*day);
                held = held.saturating_add(of_day);
            }
            _ => {
                groups.push(BTreeSet::from([*day]));
                held = of_day;
            }
        }
    }
    groups
}

/// A day's date; none so far away that no calendar has it.
pub(crate) fn date(day: EventDay) -> Option<NaiveDate> {
    NaiveDate::from_epoch_days(day.0)
}

fn month(day: EventDay) -> Option<(i32, u32)> {
    date(day).map(|date| (date.year(), date.month()))
}

/// Days in words.
pub(crate) fn span(days: &BTreeSet<EventDay>) -> String {
    let text = |day: &EventDay| date(*day).map_or_else(|| day.0.to_string(), |date| date.to_string());
    match (days.first(), days.last()) {
        (Some(first), Some(last)) if first == last => text(first),
        (Some(first), Some(last)) => format!("{} to {}", text(first), text(last)),
        _ => "none".to_owned(),
    }
}

/// What to do where a bound on disk was met.
pub(crate) const BEYOND_LIMIT: &str =
    "what exceeds the memory would take more room on disk than it may: give `batch.memory` or `batch.spill_limit` more";

/// What went wrong in a plan; the archive's own error, which names the file, where it was that.
pub(crate) fn reason(error: &datafusion::error::DataFusionError) -> String {
    match error.find_root() {
        datafusion::error::DataFusionError::ResourcesExhausted(what) => {
            format!("the memory does not suffice, give `batch.memory` more: {what}")
        }
        // Nothing else is written to a disk in a plan.
        root if is_full(root) => {
            "the disk is full, or will not take a larger file, where what exceeds the memory goes: make room \
            there, or name another folder as `batch.spill`"
                .to_owned()
        }
        root if is_beyond_limit(root) => BEYOND_LIMIT.to_owned(),
        datafusion::error::DataFusionError::External(error) => sentence(&**error),
        root => sentence(root),
    }
}

/// Whether a disk had no room.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    of_disk(error).any(|error| matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull))
}

/// Whether more was to be written than may be: to files of ours, or by DataFusion, which tells that in words alone.
pub(crate) fn is_beyond_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    of_disk(error).filter_map(std::io::Error::get_ref).any(|error| {
        error.is::<crate::spill::BeyondLimit>() || error.to_string().contains("has exceeded the allowable limit")
    })
}

/// What a disk said.
fn of_disk<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a std::io::Error> {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array};
    use shared_schemas::handoff::{Offset, TopicId};

    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_faults() {
        use datafusion::error::DataFusionError as Fault;
        let full = || std::io::Error::from_raw_os_error(28);
        let arrow = arrow::error::ArrowError::IoError("Io error".to_owned(), full());
        for fault in [Fault::IoError(full()), Fault::ArrowError(Box::new(arrow), None)] {
            let fault = Fault::Shared(Arc::new(fault.context("in a sort")));
            assert!(reason(&fault).contains("`batch.spill`"), "{}", reason(&fault));
        }
        let beyond = [
            std::io::Error::other(crate::spill::BeyondLimit),
            std::io::Error::other(
                "The used disk space during the spilling process has exceeded the allowable limit of 1 MB.",
            ),
        ];
        for beyond in beyond {
            let fault = Fault::Shared(Arc::new(Fault::IoError(beyond).context("in a sort")));
            assert!(reason(&fault).contains("`batch.spill_limit`"), "{}", reason(&fault));
        }
        let gone = Fault::IoError(std::io::ErrorKind::NotFound.into());
        assert!(!reason(&gone).contains("disk"), "{}", reason(&gone));
    }

    /// The bytes of each block that these states, one to a row, make in one batch after another.
    fn blocks(batches: &[&[usize]]) -> Vec<usize> {
        let (mut block, mut blocks) = (Block::default(), Vec::new());
        for lengths in batches {
            let states: BinaryArray = lengths.iter().map(|length| Some(vec![7; length - 8])).collect();
            let numbers: Int64Array = (0..).take(lengths.len()).collect::<Vec<i64>>().into();
            let columns = [("state", Arc::new(states) as ArrayRef), ("number", Arc::new(numbers))];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let sizes = sizes_of_rows(&batch);
            assert_eq!(sizes, *lengths);
            let mut taken = block.fill(&batch, &sizes, 0);
            while taken < sizes.len() {
                blocks.push(std::mem::take(&mut block));
                taken = block.fill(&batch, &sizes, taken);
            }
        }
        blocks.push(block);
        let rows = |block: &Block| block.batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert!(blocks.iter().all(|block| rows(block) == block.rows));
        let all = blocks.iter().flat_map(|block| &block.batches).flat_map(sizes_of_rows);
        assert_eq!(all.collect::<Vec<_>>(), batches.concat());
        blocks.iter().map(|block| block.bytes).collect()
    }

    #[test]
    fn a_batch_of_large_cells_is_more_than_one_block() {
        let (half, most) = (BLOCK_BYTES / 2, BLOCK_BYTES);
        assert_eq!(blocks(&[&[half, half - 1, 100], &[half]]), [most - 1, half + 100]);
        // Only a cell that is larger by itself makes a larger block, and it is alone there.
        assert_eq!(blocks(&[&[100, most + 1, 100]]), [100, most + 1, 100]);
        assert_eq!(blocks(&[&[], &[100]]), [100]);
    }

    #[test]
    fn a_block_has_so_many_rows_at_most() {
        let small = vec![9; BLOCK_ROWS - 1];
        assert_eq!(blocks(&[&small, &[9, 9]]), [9 * BLOCK_ROWS, 9]);
    }

    #[test]
    fn groups_are_of_one_month_and_not_too_large() {
        // 2013-01-30 is day 15735.
        let days: BTreeSet<_> = (15_735..15_740).map(EventDay).collect();
        let partition = Partition {
            topic: TopicId(1),
            number: 0,
        };
        let range = |day: i32, events: u64| ArchivedRange {
            day: EventDay(day),
            partition,
            first: Offset(10),
            last: Offset(9 + events),
        };
        let sizes = |ranges: &[ArchivedRange]| groups(&days, ranges).iter().map(BTreeSet::len).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [2, 3]);
        let large = [range(15_735, 5), range(15_738, EVENTS_AT_A_TIME), range(15_739, 1)];
        assert_eq!(sizes(&large), [2, 2, 1]);
        assert_eq!(span(&days), "2013-01-30 to 2013-02-03");
    }
}
