//! What other keys can change of a view's cells, and what they cannot.
//!
//! A key of a `hash` rule changes the hashed values alone: not which events there are, not their times, not any other field, and a
//! value that is null stays so. What a view makes of other fields is therefore the same under any key. Where a dimension is made of
//! hashed values the cells are others, but the same events are in them, so what they come to over all values of such dimensions is the same.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::logical_expr::Expr;
use shared_schemas::dataset::{Dataset, Mask};
use shared_schemas::view::{Aggregate, Expression, MeasureForm, View};

/// What other keys can change of a view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Which events count: by the filter, or since an id is hashed.
    pub(crate) events: bool,
    /// Each dimension.
    pub(crate) dimensions: Vec<bool>,
    /// Each measure.
    pub(crate) measures: BTreeMap<String, Touch>,
}

/// How far a key reaches a measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    /// Not at all.
    Not,
    /// Its values are others, one for one.
    Renamed,
    /// In its values.
    Values,
}

impl Reach {
    /// What the keys of a dataset's `hash` rules can change of a view over it.
    pub(crate) fn of_keys(view: &View, dataset: &Dataset) -> Self {
        let hashed = |mask: &Option<Mask>| matches!(mask, Some(Mask::Hash { .. }));
        let fields = dataset.fields.iter().filter(|field| hashed(&field.mask));
        let names: BTreeSet<&str> = fields.map(|field| field.name.as_str()).collect();
        let reads = |expr: &Expr| {
            expr.column_refs()
                .iter()
                .any(|column| names.contains(column.name.as_str()))
        };
        let of_expression = |expression: &Expression| reads(&expression.expr);
        let of_aggregate = |aggregate: &Aggregate| {
            let of_condition = aggregate.condition.as_ref().is_some_and(of_expression);
            // How many values are not null no key changes.
            let counts = aggregate.states().iter().all(shared_schemas::measure::State::is_count);
            match aggregate.argument.as_ref().filter(|value| of_expression(value)) {
                _ if of_condition => Touch::Values,
                None => Touch::Not,
                Some(value) if !is_plain(&value.expr) => Touch::Values,
                Some(_) if counts => Touch::Not,
                Some(_) => Touch::Renamed,
            }
        };
        let of_index = |index: &usize| match view.measures.get(*index).map(|measure| &measure.form) {
            Some(MeasureForm::Aggregate(aggregate)) => of_aggregate(aggregate),
            _ => Touch::Values,
        };
        let measures = view.measures.iter().map(|measure| {
            let touch = match &measure.form {
                MeasureForm::Aggregate(aggregate) => of_aggregate(aggregate),
                MeasureForm::Ratio { numerator, denominator } => of_index(numerator).max(of_index(denominator)),
            };
            (measure.name.clone(), touch)
        });
        Self {
            events: view.filter.as_ref().is_some_and(of_expression)
                || dataset.event_id.iter().any(|field| names.contains(field.as_str())),
            dimensions: view
                .dimensions
                .iter()
                .map(|dimension| of_expression(&dimension.expression))
                .collect(),
            measures: measures.collect(),
        }
    }

    /// Whether cells are others under another key.
    pub(crate) fn is_of_cells(&self) -> bool {
        self.dimensions.contains(&true)
    }

    /// How far it reaches a measure.
    pub(crate) fn of(&self, measure: &str) -> Touch {
        self.measures.get(measure).copied().unwrap_or(Touch::Not)
    }
}

/// Whether an expression is a field as it is.
fn is_plain(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Cast(cast) => is_plain(&cast.expr),
        Expr::Alias(alias) => is_plain(&alias.expr),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::definitions::Definitions;

    use super::*;

    const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
fields = { at = "timestamp", id = "int64", tail = "string?", origin = "string" }
mask = { tail = { hash = "TAIL_KEY" } }

[view.plain]
dataset = "flights"
grain = "1h"
dimensions = ["origin"]
[view.plain.measures]
n = "count()"
total = "sum(id)"
tails = "count(tail)"
planes = "distinct(tail)"
some = { measure = "count()", where = "tail > 'm'" }
share = { ratio = ["some", "n"] }

[view.by_tail]
dataset = "flights"
grain = "1h"
dimensions = [{ name = "of", expr = "substr(tail, 1, 1)" }, "origin"]
[view.by_tail.measures]
n = "count()"

[view.filtered]
dataset = "flights"
grain = "1h"
filter = "tail <> 'x'"
[view.filtered.measures]
n = "count()"
"#;

    #[test]
    fn a_key_reaches_what_is_made_of_hashes() {
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
        let reach = |name| Reach::of_keys(definitions.view(name).unwrap(), &definitions.datasets[0]);
        let plain = reach("plain");
        let touched = |how| {
            let of = plain.measures.iter().filter(move |(_, touch)| **touch == how);
            of.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(
            touched(Touch::Not),
            ["n", "tails", "total"],
            "a null stays one under any key"
        );
        assert_eq!(
            (touched(Touch::Renamed), touched(Touch::Values)),
            (vec!["planes"], vec!["share", "some"])
        );
        assert!(!plain.events && !plain.is_of_cells());
        assert_eq!(reach("by_tail").dimensions, [true, false]);
        assert!(reach("filtered").events);
        let plain = definitions.view("plain").unwrap().plain_count().unwrap();
        assert_eq!((plain.measure, &plain.name[..]), ("n", "n__count"));
    }
}
