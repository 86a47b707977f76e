//! A view: a grouped aggregate over a dataset, checked and compiled.
//!
//! [`View::compile`] is the only way to make one, and it reports every mistake at once. What comes out is plain data:
//! expressions that cannot fail, and for each measure its entry in the table of [`crate::measure`]. [`crate::plan`]
//! makes it a DataFusion plan, [`crate::store`] its tables, [`crate::fingerprint`] its identity.

mod compile;
mod expression;
#[cfg(test)]
pub(crate) mod fixture;
mod functions;
mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod total;
mod value;

use std::time::Duration;

use datafusion::logical_expr::Expr;

pub use expression::Expression;
pub(crate) use expression::{add, session};
pub use source::{DISTINCT_LIMIT, DimensionSource, MeasureSource, ViewMistake, ViewPlace, ViewSource};
pub(crate) use total::{magnitude, window_start};
pub use value::{UTC, ValueType};

use crate::fingerprint::Fingerprint;
use crate::measure::{Call, Columns, Exactness, Kind, ResultType, State};

/// A checked view.
#[derive(Debug, Clone)]
pub struct View {
    /// The name that queries use.
    pub name: String,
    /// The dataset's name.
    pub dataset: String,
    /// The base window's length: whole seconds that divide a day.
    pub grain: Duration,
    /// Only events for which it is true are counted.
    pub filter: Option<Expression>,
    /// What to group by besides time.
    pub dimensions: Vec<Dimension>,
    /// The measures, in the order of the definition.
    pub measures: Vec<Measure>,
    /// For how long results are held, in whole days; none: for ever. It is not part of what the view computes.
    pub keep: Option<Duration>,
    /// The dataset's offsets per chunk.
    pub chunk: u64,
    /// What it computes, as a hash. Rows, progress, marks and publications belong to it.
    pub fingerprint: Fingerprint,
}

/// One thing to group by.
#[derive(Debug, Clone)]
pub struct Dimension {
    /// Its name, and its column's.
    pub name: String,
    /// What it is.
    pub expression: Expression,
}

/// One measure.
#[derive(Debug, Clone)]
pub struct Measure {
    /// Its name.
    pub name: String,
    /// How it comes about.
    pub form: MeasureForm,
}

/// How a measure comes about.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a view has a handful, made once")]
pub enum MeasureForm {
    /// An aggregate over the view's events.
    Aggregate(Aggregate),
    /// One measure divided by another; both are aggregates of the same view, given by index.
    Ratio {
        /// The one above the line.
        numerator: usize,
        /// The one below the line.
        denominator: usize,
    },
}

/// An aggregate over events.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// Its entry in the table of measures.
    pub kind: &'static Kind,
    /// What it is called with.
    pub call: Call,
    /// What it aggregates.
    pub argument: Option<Expression>,
    /// Only events for which this is true count.
    pub condition: Option<Expression>,
}

impl Aggregate {
    /// Its state columns.
    pub fn states(&self) -> Vec<State> {
        self.kind.states(&self.call)
    }

    /// The type of its result.
    pub fn result_type(&self) -> ResultType {
        self.kind.result_type(&self.call)
    }

    /// How often its expressions fail on an event; the argument's count only where the condition holds.
    pub(crate) fn failures(&self) -> Option<Expr> {
        let argument = self.argument.as_ref().and_then(|argument| argument.failures.clone());
        match &self.condition {
            None => argument,
            Some(condition) => expression::add(
                condition.failures.clone(),
                expression::guarded(condition.expr.clone(), argument),
            ),
        }
    }

    /// The call and its condition, as parsed.
    pub fn text(&self) -> String {
        let argument = self.argument.as_ref().map_or("", |argument| argument.text.as_str());
        let levels = match self.call.levels.as_slice() {
            [] => String::new(),
            levels => format!(", {levels:?}"),
        };
        let call = format!("{}({argument}{levels})", self.kind.name);
        match &self.condition {
            Some(condition) => format!("{call} where {}", condition.text),
            None => call,
        }
    }
}

/// One column of a view's answers, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultColumn {
    /// Its name.
    pub name: String,
    /// What it is to the view.
    pub role: Role,
    /// Its type as definitions write it, with `?` where it may be null; a count is `uint64`.
    pub type_name: String,
    /// The expression or call that it comes from.
    pub expression: String,
    /// How close to the truth; measures only.
    pub exactness: Option<Exactness>,
}

/// What a column is to its view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The bucket's start.
    Time,
    /// Something grouped by.
    Dimension,
    /// Something measured.
    Measure,
}

impl View {
    /// The columns that an answer has: `time`, the dimensions, the measures.
    pub fn columns(&self) -> Vec<ResultColumn> {
        let optional = |type_name: String, nullable: bool| if nullable { format!("{type_name}?") } else { type_name };
        let time = ResultColumn {
            name: "time".to_owned(),
            role: Role::Time,
            type_name: ValueType::Timestamp.to_string(),
            expression: format!("start of each {} s", self.grain.as_secs()),
            exactness: None,
        };
        let dimensions = self.dimensions.iter().map(|dimension| ResultColumn {
            name: dimension.name.clone(),
            role: Role::Dimension,
            type_name: optional(
                dimension.expression.value_type.to_string(),
                dimension.expression.nullable,
            ),
            expression: dimension.expression.text.clone(),
            exactness: None,
        });
        let measures = self.measures.iter().map(|measure| {
            let (type_name, expression, exactness) = match &measure.form {
                MeasureForm::Aggregate(aggregate) => {
                    let type_name = match aggregate.result_type() {
                        ResultType::Count => "uint64".to_owned(),
                        ResultType::Value(value) => optional(value.to_string(), true),
                        ResultType::Levels => "list(float64?)".to_owned(),
                    };
                    let exactness = aggregate.kind.exactness(&aggregate.call);
                    (type_name, aggregate.text(), exactness)
                }
                MeasureForm::Ratio { numerator, denominator } => {
                    let name = |index: usize| self.measures.get(index).map_or("", |measure| measure.name.as_str());
                    let text = format!("{} / {}", name(*numerator), name(*denominator));
                    ("float64?".to_owned(), text, Exactness::Rounded)
                }
            };
            ResultColumn {
                name: measure.name.clone(),
                role: Role::Measure,
                type_name,
                expression,
                exactness: Some(exactness),
            }
        });
        std::iter::once(time).chain(dimensions).chain(measures).collect()
    }

    /// The state columns of all measures.
    pub fn states(&self) -> impl Iterator<Item = StateColumn<'_>> {
        self.measures.iter().flat_map(|measure| match &measure.form {
            MeasureForm::Aggregate(aggregate) => aggregate
                .states()
                .into_iter()
                .map(|state| StateColumn {
                    name: state.column(&measure.name),
                    measure: &measure.name,
                    state,
                    aggregate,
                })
                .collect::<Vec<_>>(),
            MeasureForm::Ratio { .. } => vec![],
        })
    }

    /// The state of the view's plain `count()`, if it has one: it counts every event that the filter lets pass.
    pub fn plain_count(&self) -> Option<StateColumn<'_>> {
        self.states().find(|column| {
            let aggregate = column.aggregate;
            column.state.is_count() && aggregate.argument.is_none() && aggregate.condition.is_none()
        })
    }
}

/// A state column of a view.
#[derive(Debug, Clone)]
pub struct StateColumn<'a> {
    /// The column's name.
    pub name: String,
    /// The measure whose state it is.
    pub measure: &'a str,
    /// What it holds.
    pub state: State,
    /// The measure's aggregate.
    pub aggregate: &'a Aggregate,
}

impl<'a> StateColumn<'a> {
    /// All columns of its measure.
    pub fn siblings(&self) -> Columns<'a> {
        Columns::of(self.measure)
    }
}
