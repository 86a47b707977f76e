//! An answer: the rows as JSON, each with how it was made, and what it was made from.
//!
//! ClickHouse writes numbers in quotes here, and they are read by column: a count is a JSON number, an int64 or a decimal
//! a string, whatever its value. So no reader's rounding changes one, and none changes its type from row to row.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use shared_connections::store::{Facts, FreshnessOfPartition, Published};
use shared_schemas::handoff::{Partition, TopicId};
use shared_schemas::measure::ResultType;
use shared_schemas::store::{confidence_column, error_column};
use shared_schemas::units::show_duration;
use shared_schemas::view::{Measure, MeasureForm, ValueType, View};

use crate::changed::Definition;
use crate::coverage::{Coverage, Extent, Reason};
use crate::freshness::{Freshness, partition_name, topic};
use crate::query::Asked;
use crate::request::{Query, Range};

/// An answer to a query.
#[derive(Debug, Serialize)]
pub struct Answer {
    meta: Vec<Meta>,
    data: Vec<Row>,
    rows: usize,
    /// There only where it is true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    range: AnsweredRange,
    /// There only where another definition answers than the one that is building.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    publication: Option<AnsweredPublication>,
    freshness: Freshness,
    /// There only where there are some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    gaps: BTreeMap<String, Vec<[u64; 2]>>,
    statistics: Statistics,
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Meta {
    name: String,
    r#type: String,
}

/// The range, as resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct AnsweredRange {
    from: Option<String>,
    to: Option<String>,
    grain: Option<String>,
    tz: &'static str,
    now: Option<String>,
    /// The first moment that the view still holds; there only where it does not hold all.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_from: Option<String>,
}

/// The publication that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnsweredPublication {
    id: String,
    published_at: Option<String>,
    marks: BTreeMap<String, u64>,
    archive_version: u64,
}

/// What the answer cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Statistics {
    elapsed: f64,
    rows_read: u64,
    bytes_read: u64,
}

/// One row: its values by column, then how it was made.
#[derive(Debug)]
struct Row {
    values: Vec<(String, Value)>,
    layer: String,
    exact: bool,
    estimates: Vec<(String, Estimate)>,
    coverage: Extent,
    reason: Option<Reason>,
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.values {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("layer", &self.layer)?;
        map.serialize_entry("exact", &self.exact)?;
        map.serialize_entry("estimates", &Estimates(&self.estimates))?;
        map.serialize_entry("coverage", &self.coverage)?;
        if let Some(reason) = self.reason {
            map.serialize_entry("coverage_reason", &reason)?;
        }
        map.end()
    }
}

/// How far a value may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Estimate {
    /// As a part of the truth.
    error: f64,
    /// In which share of cases it is no further off.
    confidence: f64,
}

/// The estimates of a row, by measure, in the order of its columns.
struct Estimates<'a>(&'a [(String, Estimate)]);

impl Serialize for Estimates<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, estimate)| (name, estimate)))
    }
}

/// The store's rows are not as the statement asks for.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// They are no JSON.
    #[error("the rows of an answer are no JSON")]
    Json(#[from] serde_json::Error),
    /// A column is not there.
    #[error("the rows of an answer lack the column `{0}`")]
    Column(String),
    /// A value is not of its column's type.
    #[error("the value {value} is none of column `{column}`")]
    Value {
        /// The column.
        column: String,
        /// The value.
        value: Value,
    },
}

/// What ClickHouse answers in the format `JSONCompact`.
#[derive(Debug, Deserialize)]
struct Compact {
    meta: Vec<Named>,
    data: Vec<Vec<Value>>,
    #[serde(default)]
    statistics: Statistics,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// What the values of a column are in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A string, as it comes: texts, moments, days, and numbers that a reader might round.
    Text,
    /// A number without a fraction.
    Count,
    /// A number.
    Float,
    /// A truth value.
    Bool,
    /// A list of numbers.
    Floats,
}

/// A column of the answer: its name, its type, its form.
type Column = (String, String, Form);

impl Answer {
    /// The answer to a query, from the store's rows and what is known of them.
    ///
    /// # Errors
    /// The rows are not as the statement asks for.
    pub(crate) fn of(
        asked: Asked<'_>,
        query: &Query,
        body: &[u8],
        coverage: &Coverage,
        facts: &Facts,
        freshness: &[FreshnessOfPartition],
    ) -> Result<Self, Unreadable> {
        let definition = asked.definition();
        let Asked { view, has_event_id, .. } = asked;
        let mut compact: Compact = serde_json::from_slice(body)?;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = compact.data.len() > limit;
        compact.data.truncate(limit);
        let columns = columns(view, query);
        let place = |name: &str| {
            let place = compact.meta.iter().position(|column| column.name == name);
            place.ok_or_else(|| Unreadable::Column(name.to_owned()))
        };
        let places: Vec<usize> = columns.iter().map(|(name, ..)| place(name)).collect::<Result<_, _>>()?;
        let layer_place = place("layer")?;
        // Only measures that can be estimates have these columns.
        let estimated: Vec<(&String, usize, usize)> = query
            .measures
            .iter()
            .filter_map(|name| {
                Some((
                    name,
                    place(&error_column(name)).ok()?,
                    place(&confidence_column(name)).ok()?,
                ))
            })
            .collect();
        let row = |mut cells: Vec<Value>| {
            let values = places
                .iter()
                .zip(&columns)
                .map(|(place, (name, _, form))| {
                    let cell = cells.get_mut(*place).map(Value::take).unwrap_or_default();
                    Ok((name.clone(), form.read(name, cell)?))
                })
                .collect::<Result<Vec<_>, Unreadable>>()?;
            let layer = cells
                .get(layer_place)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let (start, end) = bucket(&query.range, &values)?;
            let (extent, reason) = coverage.bucket(&query.range, start, end);
            let mut estimates = Vec::new();
            for (name, error, confidence) in &estimated {
                let mut number = |place: usize, column: String| {
                    let cell = cells.get_mut(place).map(Value::take).unwrap_or_default();
                    Ok::<_, Unreadable>(Form::Float.read(&column, cell)?.as_f64())
                };
                let error = number(*error, error_column(name))?;
                let confidence = number(*confidence, confidence_column(name))?;
                if let (Some(error), Some(confidence)) = (error, confidence) {
                    estimates.push(((*name).clone(), Estimate { error, confidence }));
                }
            }
            // Besides estimates, what the speed layer could not know to be a repeat is the one source of inexact values. A
            // result in float64 counts as exact: it is as near as its additions can bring it, in either layer.
            let exact = extent == Extent::Complete && (!has_event_id || layer == "batch") && estimates.is_empty();
            Ok(Row {
                values,
                layer,
                exact,
                estimates,
                coverage: extent,
                reason,
            })
        };
        let data: Vec<Row> = compact.data.into_iter().map(row).collect::<Result<_, Unreadable>>()?;
        let topic = topic(freshness);
        let gaps = coverage.gaps.iter().map(|(partition, gaps)| {
            let ranges = gaps.ranges().iter().map(|range| [range.from.0, range.to.0]);
            (partition_name(*partition, topic), ranges.collect())
        });
        Ok(Self {
            meta: columns
                .iter()
                .map(|(name, r#type, _)| Meta {
                    name: name.clone(),
                    r#type: r#type.clone(),
                })
                .collect(),
            rows: data.len(),
            data,
            more,
            range: AnsweredRange {
                from: rfc3339(query.range.from),
                to: rfc3339(query.range.to),
                grain: query.range.grain.map(show_duration),
                tz: "UTC",
                now: rfc3339_millis(query.range.now),
                held_from: coverage.held_from.and_then(rfc3339),
            },
            definition: definition.cloned(),
            publication: facts.newest().map(|newest| AnsweredPublication::of(newest, topic)),
            freshness: Freshness::of(view, facts, freshness, query.range.now),
            gaps: gaps.collect(),
            statistics: compact.statistics,
        })
    }
}

impl AnsweredPublication {
    /// For people and programs.
    pub(crate) fn of(published: &Published, topic: Option<TopicId>) -> Self {
        let publication = &published.publication;
        let mark = |(partition, mark): (&Partition, &shared_schemas::handoff::Mark)| {
            (partition_name(*partition, topic), mark.0.0)
        };
        Self {
            id: format!("{}-{:032x}", publication.number.0, publication.run.0),
            published_at: rfc3339_millis(published.at),
            marks: publication.marks.iter().map(mark).collect(),
            archive_version: published.origin.archive_version,
        }
    }
}

impl Form {
    fn of(value_type: ValueType) -> Self {
        match value_type {
            ValueType::Bool => Self::Bool,
            ValueType::Float64 => Self::Float,
            ValueType::String
            | ValueType::Int64
            | ValueType::Decimal { .. }
            | ValueType::Timestamp
            | ValueType::Date => Self::Text,
        }
    }

    /// A cell as its column wants it. Null is null in every column.
    fn read(self, column: &str, cell: Value) -> Result<Value, Unreadable> {
        let read = match (self, &cell) {
            (_, Value::Null) => Some(Value::Null),
            (Self::Text, Value::String(_)) | (Self::Bool, Value::Bool(_)) => return Ok(cell),
            (Self::Count, Value::String(digits)) => digits.parse::<u64>().ok().map(Value::from),
            // What is not finite has no form in JSON.
            (Self::Float, Value::String(digits)) => digits.parse::<f64>().ok().map(Value::from),
            (Self::Floats, Value::Array(cells)) => {
                let read = cells.iter().map(|cell| Self::Float.read(column, cell.clone()));
                read.collect::<Result<_, _>>().ok().map(Value::Array)
            }
            _ => None,
        };
        read.ok_or_else(|| Unreadable::Value {
            column: column.to_owned(),
            value: cell,
        })
    }
}

/// The columns of an answer, before how each row was made.
fn columns(view: &View, query: &Query) -> Vec<Column> {
    let time = query
        .range
        .grain
        .map(|_| ("time".to_owned(), "DateTime64(6)".to_owned(), Form::Text));
    let dimensions = query.dimensions.iter().filter_map(|name| {
        let dimension = view.dimensions.iter().find(|dimension| dimension.name == *name)?;
        let value = dimension.expression.value_type;
        Some((
            name.clone(),
            type_name(value, dimension.expression.nullable),
            Form::of(value),
        ))
    });
    let measures = query.measures.iter().filter_map(|name| {
        let measure = view.measures.iter().find(|measure| measure.name == *name)?;
        let (type_name, form) = result(measure);
        Some((name.clone(), type_name, form))
    });
    time.into_iter().chain(dimensions).chain(measures).collect()
}

fn result(measure: &Measure) -> (String, Form) {
    let of_value = |value| (type_name(value, true), Form::of(value));
    match &measure.form {
        MeasureForm::Ratio { .. } => of_value(ValueType::Float64),
        MeasureForm::Aggregate(aggregate) => match aggregate.result_type() {
            ResultType::Count => ("UInt64".to_owned(), Form::Count),
            ResultType::Value(value) => of_value(value),
            ResultType::Levels => ("Array(Nullable(Float64))".to_owned(), Form::Floats),
        },
    }
}

fn type_name(value: ValueType, nullable: bool) -> String {
    let plain = match value {
        ValueType::Timestamp => "DateTime64(6)".to_owned(),
        other => other.clickhouse(),
    };
    if nullable { format!("Nullable({plain})") } else { plain }
}

/// From when to when a row's bucket is, in seconds since 1970.
fn bucket(range: &Range, values: &[(String, Value)]) -> Result<(i64, i64), Unreadable> {
    let Some(grain) = range.grain else {
        return Ok((range.from, range.to));
    };
    let (name, time) = values.first().ok_or_else(|| Unreadable::Column("time".to_owned()))?;
    let moment = time.as_str().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
    let start = moment
        .ok_or_else(|| Unreadable::Value {
            column: name.clone(),
            value: time.clone(),
        })?
        .timestamp();
    Ok((
        start,
        start.saturating_add(i64::try_from(grain.as_secs()).unwrap_or(i64::MAX)),
    ))
}

/// A moment given in seconds since 1970.
pub(crate) fn rfc3339(seconds: i64) -> Option<String> {
    let moment: DateTime<Utc> = DateTime::from_timestamp(seconds, 0)?;
    Some(moment.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// A moment given in milliseconds since 1970.
pub(crate) fn rfc3339_millis(millis: i64) -> Option<String> {
    let moment: DateTime<Utc> = DateTime::from_timestamp_millis(millis)?;
    Some(moment.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A moment given in microseconds since 1970.
pub(crate) fn rfc3339_micros(micros: i64) -> Option<String> {
    let moment: DateTime<Utc> = DateTime::from_timestamp_micros(micros)?;
    Some(moment.to_rfc3339_opts(SecondsFormat::Micros, true))
}

#[cfg(test)]
mod tests;
