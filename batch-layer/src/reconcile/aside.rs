//! Batch rows that count events which the archive has no more: a file of it was put aside.
//!
//! Putting a file aside records its offsets as a gap that marks may pass. The rows of its day that were published before stand until the
//! day is computed again, and are the last place where those events count. So more than the archive gives is what is to be expected of
//! them, in so far as the gap has room for it. Fewer, or more than there are offsets in the gap, is as wrong as anywhere.

use std::collections::BTreeMap;

use arrow::row::OwnedRow;
use shared_schemas::view::View;

use super::cause::Cause;
use super::compare::{Cells, Compare, Difference, count, measures};

const ASIDE: &str = "the row counts events that were archived in a file which was put aside";

impl Compare {
    /// Puts it down to a gap where rows of the batch layer hold more than the archive gives and the gaps that people accepted, of so many
    /// offsets, have room for all of it. Of a view without a plain `count()` nobody can tell. `room` is what is left of it.
    pub(crate) fn excuse_gaps(&mut self, view: &View, held: &Cells, predicted: &Cells, room: &mut u64) {
        let Some(plain) = view.plain_count().map(|plain| plain.name).filter(|_| *room > 0) else {
            return;
        };
        let of = |cells: &Cells, cell: &OwnedRow| {
            let at = cells.at(cell);
            at.and_then(|at| cells.state(&plain, at))
                .and_then(count)
                .unwrap_or_default()
        };
        let is_open = |one: &&mut Difference| {
            let of_batch = matches!(one.layer, Some("batch" | "merged"));
            one.cause == Cause::Unexplained && of_batch
        };
        let measures = measures(view);
        // A cell as a whole: a row that lacks something else besides is wrong.
        let mut cells: BTreeMap<OwnedRow, (bool, Vec<&mut Difference>)> = BTreeMap::new();
        for difference in self.different.iter_mut().filter(is_open) {
            let Some(cell) = difference.cell.clone() else { continue };
            let measure = measures.iter().find(|measure| measure.name == difference.measure);
            let row = ((held, held.at(&cell)), (predicted, predicted.at(&cell)));
            let is_more = measure.is_some_and(|measure| measure.is_of_more(row.0, row.1));
            let of_cell = cells.entry(cell).or_insert((true, Vec::new()));
            of_cell.0 &= is_more;
            of_cell.1.push(difference);
        }
        let more = |cell: &OwnedRow| of(held, cell).checked_sub(of(predicted, cell)).filter(|more| *more > 0);
        let all: u64 = cells.keys().filter_map(more).fold(0, u64::saturating_add);
        if all > *room {
            return;
        }
        *room -= all;
        for (cell, (is_more, differences)) in cells {
            if is_more && more(&cell).is_some() {
                for difference in differences {
                    difference.set(Cause::Gap);
                    difference.explained = Some(ASIDE);
                }
            }
        }
    }
}
