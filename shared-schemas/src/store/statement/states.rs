//! The state columns that a question's measures rest on, and the results read off them.

use super::super::quote::identifier;
use crate::measure::State;
use crate::plan::{FAILED_COLUMN, WINDOW_COLUMN};
use crate::view::{Aggregate, Measure, MeasureForm, View};

/// What the column is called that holds how far a measure's rounded result may be off. No measure's name begins so.
pub fn bound_column(measure: &str) -> String {
    format!("_bound_{measure}")
}

/// The state columns that some measures need, each under a name of its own once merged.
pub(super) struct States(Vec<(String, State)>);

impl States {
    pub(super) fn of(view: &View, measures: &[&Measure]) -> Self {
        let mut needed: Vec<(String, State)> = Vec::new();
        for measure in measures {
            for (name, aggregate) in aggregates(view, measure) {
                for state in aggregate.states() {
                    let column = state.column(name);
                    if needed.iter().all(|(held, _)| *held != column) {
                        needed.push((column, state));
                    }
                }
            }
        }
        Self(needed)
    }

    /// What both parts select.
    pub(super) fn columns(&self, keys: &[String]) -> String {
        [identifier(WINDOW_COLUMN), identifier(FAILED_COLUMN)]
            .into_iter()
            .chain(keys.iter().cloned())
            .chain(self.0.iter().map(|(column, _)| identifier(column)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(super) fn merged(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .enumerate()
            .map(|(index, (column, state))| format!("{} AS _s{index}", state.merge_sql(&identifier(column))))
    }

    /// SQL for each merged state of an aggregate.
    fn names(&self, measure: &str, aggregate: &Aggregate) -> Vec<String> {
        let place = |column: String| self.0.iter().position(|(held, _)| *held == column).unwrap_or_default();
        aggregate
            .states()
            .iter()
            .map(|state| format!("_s{}", place(state.column(measure))))
            .collect()
    }

    fn result(&self, measure: &str, aggregate: &Aggregate) -> String {
        aggregate
            .kind
            .result_sql(aggregate.argument_type(), &self.names(measure, aggregate))
    }

    /// The columns of a measure's result.
    pub(super) fn results(&self, view: &View, measure: &Measure) -> Vec<String> {
        match &measure.form {
            MeasureForm::Aggregate(aggregate) => {
                let result = format!(
                    "{} AS {}",
                    self.result(&measure.name, aggregate),
                    identifier(&measure.name)
                );
                let bound = aggregate
                    .kind
                    .bound_sql(aggregate.argument_type(), &self.names(&measure.name, aggregate))
                    .map(|bound| format!("{bound} AS {}", identifier(&bound_column(&measure.name))));
                std::iter::once(result).chain(bound).collect()
            }
            MeasureForm::Ratio { .. } => {
                let parts: Vec<_> = aggregates(view, measure)
                    .map(|(name, aggregate)| format!("toFloat64({})", self.result(name, aggregate)))
                    .collect();
                let [numerator, denominator] = parts.as_slice() else {
                    return vec![];
                };
                vec![format!(
                    "{numerator} / nullIf({denominator}, 0) AS {}",
                    identifier(&measure.name)
                )]
            }
        }
    }
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
