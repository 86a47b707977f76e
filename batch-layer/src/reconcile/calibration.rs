//! How often stated bounds held: of estimates beside exact sets, and of sums of doubles beside sums in another order.
//!
//! An answer that is no exact number says how far off it may be. Reconciliation has the truth of each cell, so it can tell
//! how often that was so. A bound of 95 % that holds in fewer cells than that, over many cells, is a mistake of ours.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use serde::Serialize;
use shared_schemas::measure::State;
use shared_schemas::sketch::uniq_bound;
use shared_schemas::view::View;

use super::cause::Cause;
use super::compare::{Cells, measures, rounded_apart};

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

/// How what is held lies to what the archive gives. Only of cells that both have.
pub(crate) fn of(view: &View, held: &Cells, exact: &Cells) -> Vec<Calibration> {
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
