//! A query as it came, checked against its view: every fault of it at once, or a [`Query`] that can be answered.
//!
//! GET and POST are read into the same [`Fields`], so there is one place that checks. Nothing here asks the store.

mod fields;
mod filter;
mod grain;
mod moment;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use fields::{Fields, FilterField};
use shared_schemas::measure::ResultType;
use shared_schemas::store::{Filter, Layers, Order};
use shared_schemas::view::{MeasureForm, View};

use crate::problem::Fault;

/// How many rows an answer has at most where the query does not say.
pub const LIMIT: u32 = 1_000;
/// The most rows that can be asked for.
pub const HIGHEST_LIMIT: u32 = 50_000;

const MICROS: i64 = 1_000_000;
/// How long before its end a range begins that has no beginning.
const DEFAULT_RANGE: i64 = 86_400 * MICROS;

/// A query that its view can answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// From when to when, in buckets of what length.
    pub range: Range,
    /// The dimensions to group by.
    pub dimensions: Vec<String>,
    /// The measures to answer.
    pub measures: Vec<String>,
    /// All of them must hold.
    pub filters: Vec<Filter>,
    /// What the rows are in order of.
    pub order: Vec<Order>,
    /// How many rows at most.
    pub limit: u32,
    /// Whose rows are read.
    pub layers: Layers,
}

/// The range of a query, as resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first moment, in seconds since 1970: a multiple of the view's grain.
    pub from: i64,
    /// The end, exclusive, likewise.
    pub to: i64,
    /// The length of a bucket; `None`: one bucket for all.
    pub grain: Option<Duration>,
    /// The request's one "now", in milliseconds since 1970.
    pub now: i64,
}

impl Query {
    /// Checks the fields of a query against its view. `now` is in milliseconds since 1970.
    ///
    /// # Errors
    /// Every fault of it.
    pub fn check(fields: Fields, view: &View, now: i64) -> Result<Self, Vec<Fault>> {
        let mut faults = fields.faults;
        let range = range(&fields.times, view, now, &mut faults);
        let dimensions = names(
            fields.dimensions,
            "dimensions",
            "dimension",
            &mut view.dimensions.iter().map(|dimension| dimension.name.as_str()),
            &mut faults,
        );
        let measures = names(
            fields.measures,
            "measures",
            "measure",
            &mut view.measures.iter().map(|measure| measure.name.as_str()),
            &mut faults,
        );
        let measures = measures.unwrap_or_else(|| view.measures.iter().map(|measure| measure.name.clone()).collect());
        let dimensions = dimensions.unwrap_or_default();
        let filters = filter::check(fields.filters, view, &mut faults);
        let has_time = fields.times.grain.is_some();
        let order = order(
            fields.order.unwrap_or_default(),
            has_time,
            &dimensions,
            &measures,
            view,
            &mut faults,
        );
        let limit = fields
            .limit
            .map_or(LIMIT, |limit| self::limit(&limit, &mut faults).unwrap_or(LIMIT));
        let layers = match fields.layers.as_deref() {
            None | Some("merged") => Layers::Merged,
            Some("batch") => Layers::Batch,
            Some("speed") => Layers::Speed,
            Some(other) => {
                faults.push(Fault::malformed(
                    "layers",
                    "malformed_value",
                    format!("`{other}` is no layer"),
                    "merged, batch or speed",
                ));
                Layers::Merged
            }
        };
        match range {
            Some(range) if faults.is_empty() => Ok(Self {
                range,
                dimensions,
                measures,
                filters,
                order,
                limit,
                layers,
            }),
            _ => Err(faults),
        }
    }
}

/// The range, rounded outward to the view's grain.
fn range(times: &fields::Times, view: &View, now: i64, faults: &mut Vec<Fault>) -> Option<Range> {
    let before = faults.len();
    moment::check_zone(times.tz.as_deref(), faults);
    let mut moment = |name: &str, given: &Option<String>| {
        given.as_deref().and_then(|given| {
            moment::read(given)
                .map_err(|why| faults.push(moment::fault(name, given, why)))
                .ok()
        })
    };
    let (from, to) = (moment("from", &times.from), moment("to", &times.to));
    let grain = times
        .grain
        .as_deref()
        .and_then(|given| grain::read(given, view).map_err(|fault| faults.push(fault)).ok());
    if faults.len() > before {
        return None;
    }
    let to = to.unwrap_or(now.saturating_mul(1_000));
    let from = from.unwrap_or((to - DEFAULT_RANGE).max(0));
    if from >= to {
        let begins = if times.from.is_some() { "from" } else { "to" };
        faults.push(Fault::impossible(
            begins,
            "empty_range",
            "the range ends before it begins",
            "a `from` that lies before `to`, which is now where it is not given",
        ));
        return None;
    }
    let step = i64::try_from(view.grain.as_secs()).unwrap_or(i64::MAX).max(1);
    let from = from.div_euclid(MICROS).div_euclid(step) * step;
    let to = (to + MICROS - 1).div_euclid(MICROS);
    let to = (to + step - 1).div_euclid(step) * step;
    Some(Range { from, to, grain, now })
}

/// Names of columns that the view has, each once.
fn names(
    given: Option<Vec<String>>,
    parameter: &str,
    kind: &str,
    known: &mut dyn Iterator<Item = &str>,
    faults: &mut Vec<Fault>,
) -> Option<Vec<String>> {
    let given = given?;
    let known: Vec<_> = known.collect();
    let mend = if known.is_empty() {
        format!("leave it out: the view has no {kind}")
    } else {
        format!("some of {}, separated by commas", known.join(", "))
    };
    let mut taken: Vec<String> = Vec::new();
    if given.is_empty() {
        let detail = format!("no {kind} is named");
        faults.push(Fault::malformed(parameter, "malformed_value", detail, mend.as_str()));
    }
    for name in given {
        if !known.contains(&name.as_str()) {
            let code = if kind == "measure" {
                "unknown_measure"
            } else {
                "unknown_dimension"
            };
            let detail = format!("the view has no {kind} `{name}`");
            faults.push(Fault::malformed(parameter, code, detail, mend.as_str()));
        } else if taken.contains(&name) {
            let detail = format!("`{name}` is named twice");
            faults.push(Fault::malformed(parameter, "malformed_value", detail, "each name once"));
        } else {
            taken.push(name);
        }
    }
    Some(taken)
}

/// What the rows are in order of: columns of this very answer.
fn order(
    given: Vec<String>,
    has_time: bool,
    dimensions: &[String],
    measures: &[String],
    view: &View,
    faults: &mut Vec<Fault>,
) -> Vec<Order> {
    let mut order: Vec<Order> = Vec::new();
    for text in given {
        let (column, descending) = match text.strip_prefix('-') {
            Some(column) => (column, true),
            None => (text.as_str(), false),
        };
        let in_answer = (has_time && column == "time")
            || dimensions.iter().any(|name| name == column)
            || measures.iter().any(|name| name == column);
        if !in_answer {
            let of_view = view.columns().iter().any(|known| known.name == column);
            faults.push(if !of_view {
                let detail = format!("there is no column `{column}`");
                let mend = "time, dimensions and measures that the query asks for; `-` before one for descending";
                Fault::malformed("order", "unknown_field", detail, mend)
            } else if column == "time" {
                Fault::impossible(
                    "order",
                    "not_selected",
                    "without a grain there is no time",
                    "add `grain`",
                )
            } else {
                let detail = format!("the query does not ask for `{column}`");
                Fault::impossible(
                    "order",
                    "not_selected",
                    detail,
                    "add it to `measures` or `dimensions`, or order by another",
                )
            });
        } else if is_list(view, column) {
            let detail = format!("`{column}` is a list of quantiles, which has no order");
            let mend = "a column that is one value";
            faults.push(Fault::malformed("order", "not_orderable", detail, mend));
        } else if order.iter().any(|other| other.column == column) {
            let detail = format!("`{column}` is named twice");
            faults.push(Fault::malformed("order", "malformed_value", detail, "each name once"));
        } else {
            order.push(Order {
                column: column.to_owned(),
                descending,
            });
        }
    }
    order
}

/// Whether a measure's result is a list.
fn is_list(view: &View, column: &str) -> bool {
    view.measures.iter().any(|measure| {
        let of_levels = match &measure.form {
            MeasureForm::Aggregate(aggregate) => aggregate.result_type() == ResultType::Levels,
            MeasureForm::Ratio { .. } => false,
        };
        measure.name == column && of_levels
    })
}

fn limit(given: &str, faults: &mut Vec<Fault>) -> Option<u32> {
    let mend = format!("a whole number from 1 to {HIGHEST_LIMIT}");
    let fault = match given.parse::<u64>() {
        Ok(limit) if limit > u64::from(HIGHEST_LIMIT) => Fault::malformed(
            "limit",
            "limit_too_high",
            format!("no answer has more than {HIGHEST_LIMIT} rows"),
            mend,
        ),
        Ok(limit) if limit > 0 => return u32::try_from(limit).ok(),
        _ => Fault::malformed(
            "limit",
            "malformed_value",
            format!("`{}` is no number of rows", shown(given)),
            mend,
        ),
    };
    faults.push(fault);
    None
}

/// A caller's text as it is repeated to the caller: not at any length.
fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let mut shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
