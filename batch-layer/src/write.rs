//! A run's rows into the store: month by month, in blocks of bounded size, and then counted there.
//!
//! Rows are a ReplacingMergeTree's under a fresh run id, so a block whose reply was lost is sent again as it is.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, UInt64Type};
use chrono::{Datelike, NaiveDate};
use futures::TryStreamExt;
use shared_connections::sentence;
use shared_connections::store::{Pace, Store};
use shared_schemas::handoff::{ArchivedRange, EventDay, OffsetSet, Partition, RunId};
use shared_schemas::store::check::{exact_sums, run_totals};
use shared_schemas::store::{batch_rows, tables};
use shared_schemas::view::View;

use crate::archive::Pinned;
use crate::error::RunError;
use crate::progress::{Step, Watcher};
use crate::recompute::Recompute;
use crate::retry::patiently;

/// Cells of one insert: some MiB, so that a retry costs little and a part is worth its files.
const BLOCK_ROWS: usize = 100_000;
/// Bytes of one insert, where cells are large: sets and sketches. Only a cell that is larger by itself is more.
const BLOCK_BYTES: usize = 32 << 20;
/// Archived events, at most about so many, that are computed at a time: then progress is shown. A day is never divided.
const EVENTS_AT_A_TIME: u64 = 4 << 20;

/// What a run computes from, and where its rows go.
pub(crate) struct Work<'a> {
    pub(crate) store: &'a Store,
    pub(crate) view: &'a View,
    pub(crate) recompute: &'a Recompute,
    pub(crate) pinned: &'a Pinned,
    pub(crate) ranges: &'a [ArchivedRange],
    pub(crate) watcher: &'a dyn Watcher,
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
    /// Computes the days over the events at those offsets, sends the rows, and counts them in the store.
    ///
    /// # Errors
    /// A day that can't be computed, a store that does not take the rows or does not have them afterwards.
    pub(crate) async fn write(
        &self,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
        run: RunId,
    ) -> Result<Totals, RunError> {
        let columns = exact_sums(self.view);
        let mut totals = Totals::default();
        let mut done = 0;
        for group in groups(days, self.ranges) {
            self.watcher.step(
                &self.view.name,
                &Step::Computes {
                    done,
                    days: days.len(),
                    rows: totals.rows,
                    at: group.first().copied(),
                },
            );
            self.write_group(&group, counted, run, &columns, &mut totals).await?;
            done += group.len();
        }
        if let (Some(first), Some(last)) = (days.first(), days.last()) {
            self.watcher.step(&self.view.name, &Step::Checks);
            let statement = run_totals(self.store.database(), self.view, run, &(*first..=*last));
            let answer = patiently(|| self.store.answer_at_length(&statement, "TabSeparated", Pace::AT_LENGTH)).await?;
            let found = String::from_utf8_lossy(&answer.body);
            self.check(&totals, &columns, found.trim_end())?;
        }
        Ok(totals)
    }

    async fn write_group(
        &self,
        days: &BTreeSet<EventDay>,
        counted: &BTreeMap<Partition, OffsetSet>,
        run: RunId,
        columns: &[String],
        totals: &mut Totals,
    ) -> Result<(), RunError> {
        let failed = |why: String| RunError::Compute { days: span(days), why };
        let events = self.pinned.events(days);
        let of_plan = |error: datafusion::error::DataFusionError| failed(reason(&error));
        let mut cells = self.recompute.cells(events, days, counted).await.map_err(of_plan)?;
        let mut block = Block::default();
        while let Some(batch) = cells.try_next().await.map_err(of_plan)? {
            totals.add(&batch, columns);
            let batch = batch_rows(&batch, run).map_err(|error| RunError::Plan(error.to_string()))?;
            let sizes = sizes_of_rows(&batch);
            let mut taken = block.fill(&batch, &sizes, 0);
            // A block takes one row at least, so this ends.
            while taken < sizes.len() {
                self.insert(&block.batches).await?;
                block = Block::default();
                taken = block.fill(&batch, &sizes, taken);
            }
        }
        self.insert(&block.batches).await
    }

    async fn insert(&self, block: &[RecordBatch]) -> Result<(), RunError> {
        let table = tables::batch_table_name(self.view);
        Ok(patiently(|| self.store.insert(&table, block)).await?)
    }

    fn check(&self, totals: &Totals, columns: &[String], found: &str) -> Result<(), RunError> {
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

/// What went wrong in a plan; the archive's own error, which names the file, where it was that.
pub(crate) fn reason(error: &datafusion::error::DataFusionError) -> String {
    match error.find_root() {
        datafusion::error::DataFusionError::External(error) => sentence(&**error),
        root => sentence(root),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array};
    use shared_schemas::handoff::{Offset, TopicId};

    use super::*;

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
