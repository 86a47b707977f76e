//! The state columns that a question's measures rest on, and the results read off them.

use super::super::quote::identifier;
use crate::measure::{Estimate, Held, Merged, State};
use crate::plan::{FAILED_COLUMN, WINDOW_COLUMN};
use crate::view::{Aggregate, Measure, MeasureForm, View};

/// SQL that is true where all rows of a bucket are the batch layer's.
const ALL_BATCH: &str = "_last_layer = 0";
/// In its place where the states that only that layer keeps are left out: no result then rests on them.
const NONE_ALL_BATCH: &str = "0";
/// In the place of a state that is left out. Only a result that rests on it would show it.
const LEFT_OUT: &str = "toUInt64(0)";

/// What the column is called that holds how far a measure's rounded result may be off. No measure's name begins so.
pub fn bound_column(measure: &str) -> String {
    format!("_bound_{measure}")
}

/// What the column is called that holds how far a measure's estimated result may be off, as a part of the truth; null where
/// the result is no estimate.
pub fn error_column(measure: &str) -> String {
    format!("_error_{measure}")
}

/// What the column is called that holds in which share of cases an estimated result is as near as that.
pub fn confidence_column(measure: &str) -> String {
    format!("_confidence_{measure}")
}

/// The state columns that some measures need, each under a name of its own once merged.
pub(super) struct States {
    needed: Vec<(String, State)>,
    all_batch: &'static str,
}

impl States {
    pub(super) fn of(view: &View, measures: &[&Measure], without_sets: bool) -> Self {
        let mut needed: Vec<(String, State)> = Vec::new();
        for measure in measures {
            for (name, aggregate) in aggregates(view, measure) {
                for state in aggregate.states() {
                    let column = state.column(name);
                    let left_out = without_sets && state.held == Held::Batch;
                    if !left_out && needed.iter().all(|(held, _)| *held != column) {
                        needed.push((column, state));
                    }
                }
            }
        }
        let all_batch = if without_sets { NONE_ALL_BATCH } else { ALL_BATCH };
        Self { needed, all_batch }
    }

    /// What is selected from batch rows.
    pub(super) fn columns_of_batch(&self, keys: &[String]) -> String {
        self.columns(keys, |column, _| identifier(column))
    }

    /// What is selected from speed rows: the same columns, with the state of no values where those rows have none.
    pub(super) fn columns_of_speed(&self, keys: &[String]) -> String {
        self.columns(keys, |column, state| match state.held {
            Held::Both => identifier(column),
            Held::Batch => format!("{} AS {}", state.empty_sql(), identifier(column)),
        })
    }

    fn columns(&self, keys: &[String], of_state: impl Fn(&str, &State) -> String) -> String {
        [identifier(WINDOW_COLUMN), identifier(FAILED_COLUMN)]
            .into_iter()
            .chain(keys.iter().cloned())
            .chain(self.needed.iter().map(|(column, state)| of_state(column, state)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(super) fn merged(&self) -> impl Iterator<Item = String> {
        self.needed
            .iter()
            .enumerate()
            .map(|(index, (column, state))| format!("{} AS _s{index}", state.merge_sql(&identifier(column))))
    }

    /// SQL for each merged state of an aggregate.
    fn names(&self, measure: &str, aggregate: &Aggregate) -> Vec<String> {
        let place = |column: String| self.needed.iter().position(|(held, _)| *held == column);
        aggregate
            .states()
            .iter()
            .map(|state| place(state.column(measure)).map_or_else(|| LEFT_OUT.to_owned(), |at| format!("_s{at}")))
            .collect()
    }

    fn all<'a>(&self, states: &'a [String]) -> Merged<'a> {
        Merged {
            states,
            all_batch: self.all_batch,
        }
    }

    fn result(&self, measure: &str, aggregate: &Aggregate) -> String {
        let states = self.names(measure, aggregate);
        aggregate.kind.result_sql(&aggregate.call, &self.all(&states))
    }

    fn estimate(&self, measure: &str, aggregate: &Aggregate) -> Option<Estimate> {
        let states = self.names(measure, aggregate);
        aggregate.kind.estimate(&aggregate.call, &self.all(&states))
    }

    /// The columns of a measure's result.
    pub(super) fn results(&self, view: &View, measure: &Measure) -> Vec<String> {
        let name = &measure.name;
        let (result, bound, estimate) = match &measure.form {
            MeasureForm::Aggregate(aggregate) => {
                let states = self.names(name, aggregate);
                let bound = aggregate.kind.bound_sql(&aggregate.call, &self.all(&states));
                let estimate = self
                    .estimate(name, aggregate)
                    .map(|Estimate { error, confidence }| (error, format!("{confidence:?}")));
                (self.result(name, aggregate), bound, estimate)
            }
            MeasureForm::Ratio { .. } => {
                let parts: Vec<_> = aggregates(view, measure).collect();
                let [numerator, denominator] = parts[..] else {
                    return vec![];
                };
                let number = |(name, aggregate)| format!("toFloat64({})", self.result(name, aggregate));
                let estimate = |(name, aggregate)| self.estimate(name, aggregate);
                let quotient = format!("{} / nullIf({}, 0)", number(numerator), number(denominator));
                (quotient, None, of_quotient(estimate(numerator), estimate(denominator)))
            }
        };
        let mut columns = vec![format!("{result} AS {}", identifier(name))];
        columns.extend(bound.map(|bound| format!("{bound} AS {}", identifier(&bound_column(name)))));
        if let Some((error, confidence)) = estimate {
            columns.push(format!("{error} AS {}", identifier(&error_column(name))));
            columns.push(format!("{confidence} AS {}", identifier(&confidence_column(name))));
        }
        columns
    }
}

/// SQL for the error and the confidence of a quotient, where either part can be an estimate. A numerator that is off by a part
/// `a` of the truth and a denominator by `b` make a quotient that is off by `(1 + a) / (1 - b) - 1` at most; it is so unless one of them
/// is further off than it says.
fn of_quotient(numerator: Option<Estimate>, denominator: Option<Estimate>) -> Option<(String, String)> {
    if numerator.is_none() && denominator.is_none() {
        return None;
    }
    let none = || Estimate {
        error: "NULL".to_owned(),
        confidence: 1.0,
    };
    let (above, below) = (numerator.unwrap_or_else(none), denominator.unwrap_or_else(none));
    let (a, b) = (&above.error, &below.error);
    let error =
        format!("if(isNull({a}) AND isNull({b}), NULL, (ifNull({a}, 0) + ifNull({b}, 0)) / (1 - ifNull({b}, 0)))");
    let doubt = |Estimate { error, confidence }: &Estimate| format!("if(isNull({error}), 0, 1 - {confidence:?})");
    let confidence = format!("round(1 - {} - {}, 6)", doubt(&above), doubt(&below));
    Some((error, confidence))
}

/// The aggregates that a measure rests on: itself, or a ratio's two.
fn aggregates<'a>(view: &'a View, measure: &'a Measure) -> impl Iterator<Item = (&'a str, &'a Aggregate)> {
    let measures: Vec<&Measure> = match measure.form {
        MeasureForm::Aggregate(_) => vec![measure],
        MeasureForm::Ratio { numerator, denominator } => [numerator, denominator]
            .iter()
            .filter_map(|&index| view.measures.get(index))
            .collect(),
    };
    measures.into_iter().filter_map(|measure| match &measure.form {
        MeasureForm::Aggregate(aggregate) => Some((measure.name.as_str(), aggregate)),
        MeasureForm::Ratio { .. } => None,
    })
}
