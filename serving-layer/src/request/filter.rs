//! Filters: the values of a dimension, read as its type.

use std::collections::BTreeSet;

use chrono::{DateTime, NaiveDate};
use shared_schemas::store::{Filter, FilterValues};
use shared_schemas::view::{ValueType, View};

use super::fields::FilterField;
use super::shown;
use crate::problem::Fault;

/// As many values as all filters of a query may have together: each is compared with each cell.
const MOST_VALUES: usize = 1_000;

/// Filters of dimensions that the view has, each once, with values of their types.
pub(super) fn check(given: Vec<FilterField>, view: &View, faults: &mut Vec<Fault>) -> Vec<Filter> {
    let values: usize = given.iter().map(|field| field.values.len()).sum();
    if values > MOST_VALUES {
        faults.push(Fault::malformed(
            "filter",
            "too_many_values",
            format!("the filters have {values} values"),
            format!("at most {MOST_VALUES}"),
        ));
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut filters = Vec::new();
    for field in given {
        let Some(dimension) = view.dimensions.iter().find(|known| known.name == field.dimension) else {
            faults.push(unknown(&field, view));
            continue;
        };
        if !seen.insert(field.dimension.clone()) {
            let detail = format!("there are two filters of `{}`", field.dimension);
            let mend = "one filter with all its values, separated by commas";
            faults.push(Fault::malformed(&field.parameter, "repeated_parameter", detail, mend));
            continue;
        }
        let value_type = dimension.expression.value_type;
        match read(&field.values, value_type) {
            Ok(values) => filters.push(Filter {
                dimension: field.dimension,
                values,
            }),
            Err(wrong) => {
                let detail = format!("`{}` is no {value_type}", shown(wrong));
                let fault = Fault::malformed(&field.parameter, "malformed_value", detail, form(value_type));
                faults.push(fault);
            }
        }
    }
    filters
}

fn unknown(field: &FilterField, view: &View) -> Fault {
    let known: Vec<_> = view
        .dimensions
        .iter()
        .map(|dimension| dimension.name.as_str())
        .collect();
    let mend = if known.is_empty() {
        "leave it out: the view has no dimension".to_owned()
    } else {
        format!("one of {}", known.join(", "))
    };
    let detail = format!("the view has no dimension `{}`", shown(&field.dimension));
    Fault::malformed(&field.parameter, "unknown_dimension", detail, mend)
}

/// The values as that type, or the first that is none.
fn read(values: &[String], value_type: ValueType) -> Result<FilterValues, &str> {
    fn all<T>(values: &[String], read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, &str> {
        values.iter().map(|value| read(value).ok_or(value.as_str())).collect()
    }
    Ok(match value_type {
        ValueType::Bool => FilterValues::Bool(all(values, |value| value.parse().ok())?),
        ValueType::Int64 => FilterValues::Int64(all(values, |value| value.parse().ok())?),
        ValueType::Timestamp => FilterValues::Timestamp(all(values, |value| {
            let moment = DateTime::parse_from_rfc3339(value).ok()?;
            Some(moment.timestamp_micros())
        })?),
        ValueType::Date => FilterValues::Date(all(values, |value| {
            let day = NaiveDate::parse_from_str(value, "%Y-%m-%d").ok()?;
            i32::try_from(day.signed_duration_since(NaiveDate::default()).num_days()).ok()
        })?),
        // A dimension is neither of the last two.
        ValueType::String | ValueType::Float64 | ValueType::Decimal { .. } => FilterValues::String(values.to_vec()),
    })
}

/// How a value of that type is written.
fn form(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::Bool => "true or false",
        ValueType::Int64 => "a whole number of 64 bits",
        ValueType::Timestamp => "RFC 3339, as in 2013-11-01T00:00:00Z",
        ValueType::Date => "a day as in 2013-11-01",
        ValueType::String | ValueType::Float64 | ValueType::Decimal { .. } => "a text",
    }
}
