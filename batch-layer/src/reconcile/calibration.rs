//! How often stated bounds held: of estimates beside exact sets, and of sums of doubles beside sums in another order.
//!
//! Only cells count that hold what the archive gives: how far a row is off that was changed by hand says nothing of bounds. Quantiles
//! are compared with the values themselves, read from the archive for the cells of a few windows.
//!
//! An answer that is no exact number says how far off it may be. Reconciliation has the truth of each cell, so it can tell
//! how often that was so. A bound of 95 % that holds in fewer cells than that, over many cells, is a mistake of ours.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::OwnedRow;
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, cast, lit, when};
use serde::Serialize;
use shared_schemas::measure::State;
use shared_schemas::sketch::{QUANTILE_ERROR, SMALLEST_VALUE, uniq_bound};
use shared_schemas::view::{Aggregate, MeasureForm, View};

use super::cause::Cause;
use super::classes::rows_of;
use super::compare::{Cells, Difference, measures, rounded_apart};

/// How a measure's answers lie to their stated bounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// The measure.
    pub measure: String,
    /// `estimate` of a sketch, or `rounding` of a sum of doubles.
    pub of: Cause,
    /// In which share of cases the bound is stated to hold.
    pub stated: f64,
    /// How many cells were looked at.
    pub cells: u64,
    /// How many of them are off at all.
    pub off: u64,
    /// How many lie within the bound.
    pub within: u64,
    /// The largest error, as a part of its bound.
    pub worst: f64,
}

/// In which share of cases the bound of `distinct` is stated to hold.
const CONFIDENCE: f64 = 0.95;

impl Calibration {
    fn note(&mut self, off: f64, bound: f64) {
        self.cells += 1;
        self.off += u64::from(off > 0.0);
        self.within += u64::from(off <= bound);
        if bound > 0.0 {
            self.worst = self.worst.max(off / bound);
        }
    }

    /// How many cells are off, and no more than they may be.
    pub(crate) fn excused(&self) -> u64 {
        let beyond = self.cells.saturating_sub(self.within);
        self.off.saturating_sub(beyond)
    }

    /// Of more cells.
    pub(crate) fn add(all: &mut Vec<Self>, more: Vec<Self>) {
        for one in more {
            match all
                .iter_mut()
                .find(|known| known.measure == one.measure && known.of == one.of)
            {
                Some(known) => {
                    known.cells += one.cells;
                    known.off += one.off;
                    known.within += one.within;
                    known.worst = known.worst.max(one.worst);
                }
                None => all.push(one),
            }
        }
    }
}

/// How what is held lies to what the archive gives. Only of measures that are equal, of cells that both have.
pub(crate) fn of(view: &View, held: &Cells, exact: &Cells, different: &[Difference]) -> Vec<Calibration> {
    let different = unequal(different);
    let mut found: BTreeMap<(&str, Cause), Calibration> = BTreeMap::new();
    let all = measures(view);
    let mut note = |measure: &str, of, off, bound| {
        let Some(measure) = all.iter().find(|known| known.name == measure) else {
            return;
        };
        let one = found.entry((measure.name, of)).or_insert_with(|| Calibration {
            measure: measure.name.to_owned(),
            of,
            stated: if of == Cause::Estimate { CONFIDENCE } else { 1.0 },
            cells: 0,
            off: 0,
            within: 0,
            worst: 0.0,
        });
        one.note(off, bound);
    };
    for (key, at) in held.keys() {
        let Some(exact_at) = exact.at(key) else {
            continue;
        };
        for measure in &all {
            // A ratio's are those of its two.
            let [states] = &measure.states[..] else {
                continue;
            };
            if different.contains(&(key, measure.name)) {
                continue;
            }
            if let Some((estimate, truth)) = counts(states, (held, at), (exact, exact_at)) {
                note(
                    measure.name,
                    Cause::Estimate,
                    (estimate - truth).abs(),
                    uniq_bound(estimate) * truth,
                );
            }
            if let Some((off, bound)) = rounded_apart(states, (held, at), (exact, exact_at)) {
                note(measure.name, Cause::Rounding, off, bound);
            }
        }
    }
    found.into_values().collect()
}

/// The estimate of a held sketch, and how many there are.
#[expect(clippy::cast_precision_loss, reason = "a bound")]
fn counts(
    states: &[(String, State)],
    (held, at): (&Cells, usize),
    (exact, exact_at): (&Cells, usize),
) -> Option<(f64, f64)> {
    let of = |cells: &Cells, at: usize, suffix: &str| {
        let (name, state) = states.iter().find(|(_, state)| state.suffix == suffix)?;
        let (column, at) = cells.state(name, at)?;
        let bytes = column.as_binary_opt::<i32>()?.value(at);
        state.read(bytes)?.ok()?.result.parse::<u64>().ok()
    };
    let beyond = states.iter().find(|(_, state)| state.suffix == "beyond")?;
    let (beyond, row) = exact.state(&beyond.0, exact_at)?;
    // A set that was let go says nothing.
    (beyond.as_primitive_opt::<UInt64Type>()?.value(row) == 0).then_some(())?;
    Some((of(held, at, "sketch")? as f64, of(exact, exact_at, "exact")? as f64))
}

/// Which measures of which cells differ.
fn unequal(different: &[Difference]) -> BTreeSet<(&OwnedRow, &str)> {
    let cells = different
        .iter()
        .filter_map(|one| one.cell.as_ref().map(|cell| (cell, one)));
    cells.map(|(cell, one)| (cell, one.measure.as_str())).collect()
}

/// The measures of a view that answer with levels.
fn levelled(view: &View) -> impl Iterator<Item = (&str, &Aggregate)> {
    view.measures.iter().filter_map(|measure| match &measure.form {
        MeasureForm::Aggregate(aggregate) if !aggregate.call.levels.is_empty() => {
            Some((measure.name.as_str(), aggregate))
        }
        _ => None,
    })
}

/// The values that each of a view's measures with levels is of.
pub(crate) fn values(view: &View) -> Result<Vec<Expr>> {
    let value = |(_, aggregate): (_, &Aggregate)| {
        let argument = aggregate.argument.as_ref()?;
        let value = cast(argument.expr.clone(), DataType::Float64);
        Some(match &aggregate.condition {
            Some(condition) => when(condition.expr.clone(), value).otherwise(lit(f64::NAN)),
            None => Ok(value),
        })
    };
    levelled(view).filter_map(value).collect()
}

/// How quantiles lie to the values that they stand for. After the columns of the key each event has a column of [`values`].
pub(crate) fn of_quantiles(
    view: &View,
    held: &Cells,
    different: &[Difference],
    events: &[RecordBatch],
) -> Result<Vec<Calibration>> {
    let keys = 1 + view.dimensions.len();
    let different = unequal(different);
    let mut all = Vec::new();
    for (index, (measure, aggregate)) in levelled(view).enumerate() {
        let mut of_cells: BTreeMap<OwnedRow, Vec<f64>> = BTreeMap::new();
        for batch in events {
            let lacking = || ArrowError::SchemaError("events without the values of a measure".to_owned());
            let values = batch
                .columns()
                .get(keys + index)
                .and_then(|column| column.as_primitive_opt::<Float64Type>());
            let values = values.ok_or_else(lacking)?;
            for (row, key) in rows_of(batch, keys)?.into_iter().enumerate() {
                if held.at(&key).is_none() {
                    continue;
                }
                let of_cell = of_cells.entry(key).or_default();
                of_cell.extend(Some(values.value(row)).filter(|value| values.is_valid(row) && value.is_finite()));
            }
        }
        let mut found = Calibration {
            measure: measure.to_owned(),
            of: Cause::Estimate,
            stated: 1.0,
            cells: 0,
            off: 0,
            within: 0,
            worst: 0.0,
        };
        for (cell, mut values) in of_cells {
            let (Some(at), false) = (held.at(&cell), different.contains(&(&cell, measure))) else {
                continue;
            };
            values.sort_by(f64::total_cmp);
            if let Some((off, bound)) = furthest(aggregate, measure, (held, at), &values) {
                found.note(off, bound);
            }
        }
        all.push(found);
    }
    all.retain(|one| one.cells > 0);
    Ok(all)
}

/// Of all levels the answer that lies furthest from the value it stands for, as a part of its bound: how far, and the bound.
fn furthest(aggregate: &Aggregate, measure: &str, (held, at): (&Cells, usize), sorted: &[f64]) -> Option<(f64, f64)> {
    let states = aggregate.states();
    let state = states.first()?;
    let (column, at) = held.state(&state.column(measure), at)?;
    let reading = state.read(column.as_binary_opt::<i32>()?.value(at))?.ok()?;
    let answers = reading
        .result
        .trim_matches(['[', ']'])
        .split(", ")
        .map(|answer| answer.parse::<f64>().ok());
    let answers: Vec<f64> = answers.collect::<Option<_>>()?;
    let of_level = |(level, answer): (&f64, f64)| {
        let truth = value_at(sorted, *level)?;
        // What is smaller counts as zero; and the answer is computed in doubles.
        let bound = (QUANTILE_ERROR * truth.abs()).max(SMALLEST_VALUE) * (1.0 + 1e-9);
        Some(((answer - truth).abs(), bound))
    };
    let all: Option<Vec<(f64, f64)>> = aggregate.call.levels.iter().zip(answers).map(of_level).collect();
    all?.into_iter()
        .max_by(|(a, of_a), (b, of_b)| (a / of_a).total_cmp(&(b / of_b)))
}

/// The value whose rank, from 0 on, is `level · (count - 1)` rounded down.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank"
)]
fn value_at(sorted: &[f64], level: f64) -> Option<f64> {
    let rank = level * sorted.len().checked_sub(1)? as f64;
    sorted.get(rank as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_its_bound_is_not_excused() {
        let mut one = Calibration {
            measure: "planes".to_owned(),
            of: Cause::Estimate,
            stated: CONFIDENCE,
            cells: 0,
            off: 0,
            within: 0,
            worst: 0.0,
        };
        for (off, bound) in [(0.0, 1.0), (0.5, 1.0), (7.0, 1.0), (0.0, 0.0)] {
            one.note(off, bound);
        }
        assert_eq!((one.cells, one.off, one.within, one.excused()), (4, 2, 3, 1));
    }

    #[test]
    fn a_level_stands_for_one_value() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        let at = |level| value_at(&sorted, level);
        assert_eq!([at(0.0), at(0.5), at(0.99), at(1.0)], [1.0, 2.0, 3.0, 4.0].map(Some));
        assert_eq!(value_at(&[], 0.5), None);
    }
}
