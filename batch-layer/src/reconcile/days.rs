//! Some days compared: gone through cell by cell in the order of keys, and what differs is explained in slices.
//!
//! ```text
//!   store ─▶ sorted ─┐
//!                    ├─▶ beside each other ─▶ equal: counted
//!   archive ▶ sorted ┘                     └▶ different ─▶ a slice of so many ─▶ explained ─▶ counted by cause, the first ones listed
//!                                                              ▲
//!              archive ─▶ what the rules give ─▶ sorted ▶ disk ┤
//!              archive ─▶ what each class gives ▶ sorted ▶ disk ┘
//! ```
//!
//! Each part has its share of the memory, and spills what exceeds it. So what is held does not grow with the number of cells, nor with
//! that of differences; and however many slices there are, what they are explained with is read once.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use futures::StreamExt;
use shared_schemas::config::BatchConfig;
use shared_schemas::handoff::EventDay;
use shared_schemas::store::cells::Among;

use super::calibration::{self, Calibration};
use super::cause::Cause;
use super::compare::{Cells, Compare, Difference, with_layers};
use super::explain::{Compared, Slice};
use super::sorted::{Beside, Side, sorted};
use super::{OfView, computing};
use crate::error::RunError;
use crate::recompute::{Recompute, Room};

/// So many differences are listed at most, unexplained ones first.
const LISTED: usize = 1000;
/// So many windows of a view are read for the values that quantiles stand for: each takes a scan of its day.
const CALIBRATED: usize = 3;
/// A difference takes about so many bytes, with its cell's rows and what explains it.
const OF_A_DIFFERENCE: usize = 2 << 10;
/// A slice has at least so many differences, and at most so many: what is found for them takes more room the more they are.
const SLICE: std::ops::RangeInclusive<usize> = 256..=50_000;

/// The memory, in parts that do not take from each other.
pub(super) struct Rooms {
    /// For what the store holds.
    pub(super) held: Room,
    /// For sorting what explains differences, one after the other.
    pub(super) apart: Room,
    /// For what the archive gives.
    pub(super) exact: Room,
    /// For what the layers' rules give.
    pub(super) predicted: Room,
    /// For what each class of events gives.
    pub(super) classes: Room,
    memory: usize,
}

impl Rooms {
    /// Of the memory that is configured.
    pub(super) fn of(config: &BatchConfig) -> Result<Self, RunError> {
        let all = Room::of(config)?;
        let part = |eighths| {
            let part = all.eighths(eighths);
            part.map_err(|error| RunError::Plan(error.to_string()))
        };
        // The last eighth is for a slice of differences.
        Ok(Self {
            held: part(1)?,
            apart: part(1)?,
            exact: part(2)?,
            predicted: part(1)?,
            classes: part(2)?,
            memory: all.memory(),
        })
    }

    /// So many bytes of cells that wait, of those that differ as of a sample, before they are explained: half of the last eighth each.
    fn bytes(&self) -> usize {
        (self.memory / 16).max(1)
    }

    /// So many differences are held at once.
    pub(super) fn most(&self) -> usize {
        (self.memory / 8 / OF_A_DIFFERENCE).clamp(*SLICE.start(), *SLICE.end())
    }
}

/// What a comparison came to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) compared: u64,
    pub(super) equal: u64,
    pub(super) different: u64,
    pub(super) unexplained: u64,
    /// How many differences each cause has.
    pub(super) causes: BTreeMap<Cause, u64>,
    /// The days of which batch rows are wrong.
    pub(super) mendable: BTreeSet<EventDay>,
    pub(super) calibration: Vec<Calibration>,
    /// The first differences, unexplained ones first.
    pub(super) listed: Vec<Difference>,
}

impl Found {
    /// Counts differences, and keeps the first.
    fn take(&mut self, different: Vec<Difference>) {
        for one in &different {
            self.different += 1;
            self.unexplained += u64::from(one.explained.is_none());
            *self.causes.entry(one.cause).or_default() += 1;
            if one.is_of_batch() {
                self.mendable.insert(one.day());
            }
        }
        self.listed.extend(different);
        self.listed.sort_by_key(|one| one.explained.is_some());
        self.listed.truncate(LISTED);
    }
}

/// What may still be done for a view.
pub(super) struct Left {
    /// So many unexplained differences may be narrowed down, and so many explained ones: these come in any number, before those.
    pub(super) narrowed: [usize; 2],
    /// So many windows may be read.
    windows: usize,
    /// So many events may lie in files that were put aside.
    pub(super) in_gaps: u64,
}

impl Left {
    pub(super) fn new(narrowed: usize, in_gaps: u64) -> Self {
        let windows = CALIBRATED;
        Self {
            narrowed: [narrowed; 2],
            windows,
            in_gaps,
        }
    }
}

/// What the store holds of one window, or of some of its cells.
pub(super) struct Sample {
    window: Option<i64>,
    held: Vec<RecordBatch>,
    cells: usize,
    different: Vec<Difference>,
    bytes: usize,
    /// So many cells at most, and no more of them after so many bytes.
    most: usize,
    most_bytes: usize,
    /// How many cells were gone by, and how many must have before another window is taken: so it is one of the second half.
    gone_by: u64,
    another_at: u64,
}

impl Sample {
    fn new(most: usize, most_bytes: usize) -> Self {
        Self {
            window: None,
            held: Vec::new(),
            cells: 0,
            different: Vec::new(),
            bytes: 0,
            most,
            most_bytes,
            gone_by: 0,
            another_at: 0,
        }
    }

    /// Cells go by, in the order of their windows.
    fn see(&mut self, held: &RecordBatch, different: &[Difference]) -> Result<(), arrow::error::ArrowError> {
        let Some(windows) = held
            .columns()
            .first()
            .and_then(|windows| windows.as_primitive_opt::<TimestampMicrosecondType>())
        else {
            return Ok(());
        };
        let mut from = 0;
        for of_window in windows.values().chunk_by(|one, other| one == other) {
            let Some(window) = of_window.first().copied() else {
                continue;
            };
            let is_new = self.window != Some(window);
            if is_new && self.gone_by >= self.another_at {
                *self = Self {
                    window: Some(window),
                    gone_by: self.gone_by,
                    another_at: (self.gone_by * 2).max(1),
                    ..Self::new(self.most, self.most_bytes)
                };
            }
            if self.window == Some(window) && self.bytes < self.most_bytes {
                let count = of_window.len().min(self.most.saturating_sub(self.cells));
                let rows = (from..from + count).map(|row| row as u64);
                let taken = take_record_batch(held, &UInt64Array::from_iter_values(rows))?;
                self.bytes += taken.get_array_memory_size();
                self.held.push(taken);
                self.cells += count;
                let here = different.iter().filter(|one| one.begins == window);
                self.different.extend(here.take(self.most).cloned());
            }
            self.gone_by += of_window.len() as u64;
            from += of_window.len();
        }
        Ok(())
    }

    /// Which window, and its cells.
    pub(super) fn window(&self) -> Option<(i64, &[RecordBatch])> {
        Some((self.window?, &self.held))
    }

    /// What differs of them.
    pub(super) fn different(&self) -> &[Difference] {
        &self.different
    }
}

impl OfView<'_> {
    /// Compares some days.
    pub(super) async fn compare_days(
        &self,
        of: &Compared<'_>,
        recompute: &Recompute,
        all: &mut Found,
        left: &mut Left,
    ) -> Result<(), RunError> {
        let failed = |error| computing(of.days, &error);
        let arrow_error = |error: arrow::error::ArrowError| RunError::Plan(error.to_string());
        let of_store = with_layers(of.schema);
        // The store's answer is asked for last: it is read from then on, and not kept waiting while the archive's ids are.
        let exact = self.exact(recompute, of).await.map_err(failed)?;
        let held = self.held(&of.rooms.held, of, Among::All).await.map_err(failed)?;
        let mut beside = Beside { held, exact };
        let mut explaining = None;
        let (mut rows, mut waiting) = (Vec::new(), Compare::default());
        let bytes = of.rooms.bytes();
        let values = match left.windows {
            0 => Vec::new(),
            _ => calibration::values(self.view).map_err(|error| RunError::Plan(error.to_string()))?,
        };
        let mut sample = (!values.is_empty()).then(|| Sample::new(of.rooms.most(), bytes));
        let mut waiting_bytes = 0;
        while let Some([held, exact]) = beside.next(of.days).await? {
            let cells = Cells::new(self.view, &of_store, &[held]).map_err(arrow_error)?;
            let exact = Cells::new(self.view, of.schema, &[exact]).map_err(arrow_error)?;
            let mut found = Compare::of(self.view, &cells, &exact);
            all.compared += found.compared;
            all.equal += found.equal;
            let calibrated = calibration::of(self.view, &cells, &exact, &found.different);
            Calibration::add(&mut all.calibration, calibrated);
            if let Some(sample) = &mut sample {
                sample.see(cells.batch(), &found.different).map_err(arrow_error)?;
            }
            if found.different.is_empty() {
                continue;
            }
            let differ = found.different.iter().filter_map(|one| one.cell.as_ref());
            let differ: BTreeSet<_> = differ.collect();
            let differ = cells.only(differ.into_iter()).map_err(arrow_error)?;
            waiting_bytes += differ.get_array_memory_size();
            rows.push(differ);
            waiting.different.append(&mut found.different);
            if waiting.different.len() >= of.rooms.most() || waiting_bytes >= bytes {
                waiting_bytes = 0;
                let slice = self.slice(of, &mut rows, &mut waiting)?;
                // More may follow, and nobody knows of which cells.
                if explaining.is_none() {
                    explaining = Some(Box::pin(self.explaining(of, None)).await?);
                }
                if let Some(with) = &mut explaining {
                    all.take(Box::pin(self.explained(of, with, slice, left)).await?);
                }
            }
        }
        drop(beside);
        if !waiting.different.is_empty() {
            let slice = self.slice(of, &mut rows, &mut waiting)?;
            let mut with = match explaining {
                Some(with) => with,
                None => Box::pin(self.explaining(of, Some(slice.cells()))).await?,
            };
            all.take(Box::pin(self.explained(of, &mut with, slice, left)).await?);
        }
        if let Some(sample) = sample {
            let more = Box::pin(self.calibrate(of, &sample, values)).await?;
            left.windows -= usize::from(!more.is_empty());
            Calibration::add(&mut all.calibration, more);
        }
        Ok(())
    }

    /// What is waiting to be explained.
    fn slice(&self, of: &Compared<'_>, rows: &mut Vec<RecordBatch>, waiting: &mut Compare) -> Result<Slice, RunError> {
        let rows = std::mem::take(rows);
        let held = Cells::new(self.view, &with_layers(of.schema), &rows);
        Ok(Slice {
            held: held.map_err(|error| RunError::Plan(error.to_string()))?,
            found: std::mem::take(waiting),
        })
    }

    async fn explained(
        &self,
        of: &Compared<'_>,
        with: &mut super::explain::Explaining,
        mut slice: Slice,
        left: &mut Left,
    ) -> Result<Vec<Difference>, RunError> {
        self.explain(of, with, &mut slice, left).await?;
        Ok(slice.found.different)
    }

    /// Every event at the compared offsets once, also where the speed layer has a gap.
    async fn exact(&self, recompute: &Recompute, of: &Compared<'_>) -> datafusion::common::Result<Side> {
        // Those too that the speed layer lacks: what is not answered is a difference, and a gap its cause.
        let chunk = self
            .chunk()
            .map_err(|error| datafusion::common::DataFusionError::External(Box::new(error)))?;
        let counted = of.ground.places(chunk).all();
        let events = self.lean_events(of);
        let cells = recompute.cells(events, of.days, &counted).await?;
        let keys = 1 + self.view.dimensions.len();
        let cells = sorted(&of.rooms.exact, of.schema, keys, cells.boxed()).await?;
        Side::new(of.schema, keys, cells)
    }
}
