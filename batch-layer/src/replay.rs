//! Archived events as records again: what a producer would have sent, but for what was hidden.
//!
//! In each partition in the order of offsets; several partitions are merged by Kafka time. Kafka times may go back within a
//! partition, so what is merged by is the highest so far. Each value is one JSON object, the fields where the definition
//! reads them from; values are what the archive holds, masked by the rules of now, so a record says that it is not to be
//! masked again. Undeclared data comes along only where the dataset hides nothing.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, ident, lit};
use serde_json::{Map, Number, Value};
use shared_schemas::config::Config;
use shared_schemas::dataset::{
    Dataset, EVENT_TIME_COLUMN, EXTRA_COLUMN, Field, FieldSource, FieldType, KAFKA_TIME_COLUMN, OFFSET_COLUMN,
    PARTITION_COLUMN, TimeUnit,
};
use shared_schemas::decode::MASKED_HEADER;
use shared_schemas::view::UTC;

use crate::archive::{Archive, TOPIC_COLUMN};
use crate::sql::{SqlError, answer, session, told};

/// An event as it is sent again.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The JSON object.
    pub value: Vec<u8>,
    /// Where a field of the dataset is the record's key.
    pub key: Option<String>,
    /// Headers, the one about masks among them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its Kafka timestamp when it first came, in milliseconds.
    pub kafka_time: i64,
    /// The partition that it came from.
    pub partition: i32,
}

/// The archived events of a dataset with an event time from the one on and before the other, in order.
///
/// # Errors
/// Nothing is archived yet, or the archive can't be read.
pub async fn events(
    config: &Config,
    dataset: &Dataset,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<SendableRecordBatchStream, SqlError> {
    let memory = config.batch.memory;
    let told = |error| told(&error, memory);
    let Some(archive) = Archive::open(&config.archive, dataset).await? else {
        return Err(SqlError::Nothing {
            dataset: dataset.name.clone(),
            url: config.archive.url.to_string(),
        });
    };
    let session = session(&config.batch)?;
    let table = archive.pin().await?.as_arrived();
    session.register_table("arrived", table).map_err(told)?;
    let chosen = session.table("arrived").await.map_err(told)?;
    let chosen = chosen.filter(between(from, to)).map_err(told)?.into_view();
    session.register_table("chosen", chosen).map_err(told)?;
    let sql = format!(
        "SELECT *, max(\"{KAFKA_TIME_COLUMN}\") OVER (PARTITION BY \"{TOPIC_COLUMN}\", \"{PARTITION_COLUMN}\" \
         ORDER BY \"{OFFSET_COLUMN}\" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS \"_latest\" FROM chosen \
         ORDER BY \"_latest\", \"{TOPIC_COLUMN}\", \"{PARTITION_COLUMN}\", \"{OFFSET_COLUMN}\""
    );
    let frame = session.sql(&sql).await.map_err(told)?;
    answer(&session, frame).await.map_err(told)
}

/// Whether an event's time lies between them. In microseconds, as events have it: SQL's literals are nanoseconds, which end in
/// 2262, and events may be of 2299.
fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Expr {
    let moment = |at: DateTime<Utc>| {
        let micros = Some(at.timestamp_micros());
        lit(ScalarValue::TimestampMicrosecond(micros, Some(UTC.into())))
    };
    let time = || ident(EVENT_TIME_COLUMN);
    time().gt_eq(moment(from)).and(time().lt(moment(to)))
}

/// The records of a batch of [`events`].
///
/// # Errors
/// A sentence, for a column that is not there or of another type; that would be a mistake of ours.
pub fn records(dataset: &Dataset, batch: &RecordBatch) -> Result<Vec<Record>, String> {
    let column = |name: &str| {
        let column = batch.column_by_name(name);
        column.ok_or_else(|| format!("the archive's rows have no column {name}"))
    };
    let fields: Vec<_> = dataset
        .fields
        .iter()
        .map(|field| Ok((field, column(&field.name)?)))
        .collect::<Result<_, String>>()?;
    let extra = batch.column_by_name(EXTRA_COLUMN);
    let times = column(KAFKA_TIME_COLUMN)?;
    let times = times.as_primitive_opt::<TimestampMicrosecondType>();
    let partitions = column(PARTITION_COLUMN)?.as_primitive_opt::<Int32Type>();
    let (times, partitions) = times
        .zip(partitions)
        .ok_or("Highwater's own columns are of another type")?;
    let mut records = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let mut object = extra.map(|extra| undeclared(extra, row)).unwrap_or_default();
        // What was undeclared when the event came may be declared by now, and not fit: then it is null, here too.
        for (field, _) in &fields {
            if let FieldSource::Path(path) = &field.source {
                remove(&mut object, path);
            }
        }
        let mut record = Record {
            value: Vec::new(),
            key: None,
            headers: vec![(MASKED_HEADER.to_owned(), b"true".to_vec())],
            kafka_time: times.value(row).div_euclid(1000),
            partition: partitions.value(row),
        };
        for (field, column) in &fields {
            let Some(value) = value(field, column, row) else {
                continue;
            };
            match &field.source {
                FieldSource::Path(path) => place(&mut object, path, value),
                FieldSource::Key => record.key = Some(text(value)),
                FieldSource::Header(name) => record.headers.push((name.clone(), text(value).into_bytes())),
                FieldSource::KafkaTime | FieldSource::Partition => {}
            }
        }
        record.value = Value::Object(object).to_string().into_bytes();
        records.push(record);
    }
    Ok(records)
}

/// The undeclared data that a row keeps.
fn undeclared(column: &dyn Array, row: usize) -> Map<String, Value> {
    let text = column.as_string_opt::<i32>().filter(|column| column.is_valid(row));
    let object = text.and_then(|column| serde_json::from_str(column.value(row)).ok());
    object.unwrap_or_default()
}

/// Removes what lies where the path leads, with objects that held nothing else. Whether there was something.
fn remove(object: &mut Map<String, Value>, path: &[String]) -> bool {
    let [first, rest @ ..] = path else { return false };
    if rest.is_empty() {
        return object.remove(first).is_some();
    }
    let Some(Value::Object(inner)) = object.get_mut(first) else {
        return false;
    };
    let removed = remove(inner, rest);
    if removed && inner.is_empty() {
        object.remove(first);
    }
    removed
}

/// Puts a value where its path leads. What lies in the way is no object of the record's.
fn place(object: &mut Map<String, Value>, path: &[String], value: Value) {
    let [first, rest @ ..] = path else { return };
    if rest.is_empty() {
        object.insert(first.clone(), value);
        return;
    }
    let inner = object.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        place(inner, rest, value);
    }
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A field's value as the decoder reads it; none for null.
fn value(field: &Field, column: &dyn Array, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    Some(match field.field_type {
        FieldType::String => Value::from(column.as_string_opt::<i32>()?.value(row)),
        FieldType::Bool => Value::from(column.as_boolean_opt()?.value(row)),
        FieldType::Int64 => Value::from(column.as_primitive_opt::<Int64Type>()?.value(row)),
        FieldType::Float64 => Value::Number(Number::from_f64(column.as_primitive_opt::<Float64Type>()?.value(row))?),
        // A number would lose digits on its way through others' parsers.
        FieldType::Decimal { .. } => Value::from(column.as_primitive_opt::<Decimal128Type>()?.value_as_string(row)),
        FieldType::Date => {
            let day = column.as_primitive_opt::<Date32Type>()?.value(row);
            let day = DateTime::UNIX_EPOCH.date_naive() + TimeDelta::days(i64::from(day));
            Value::from(day.to_string())
        }
        FieldType::Timestamp { unit } => {
            let micros = column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row);
            match unit {
                None => {
                    let moment = DateTime::from_timestamp_micros(micros)?;
                    Value::from(moment.to_rfc3339_opts(SecondsFormat::AutoSi, true))
                }
                Some(unit) => number(micros, unit),
            }
        }
    })
}

/// A moment as a number of that unit; with a fraction where it has one.
fn number(micros: i64, unit: TimeUnit) -> Value {
    let in_one = match unit {
        TimeUnit::Second => 1_000_000,
        TimeUnit::Millisecond => 1000,
        TimeUnit::Microsecond => 1,
    };
    if micros % in_one == 0 {
        return Value::from(micros / in_one);
    }
    // No event is before 1970.
    let (whole, part) = (micros / in_one, micros % in_one);
    let digits = if in_one == 1000 { 3 } else { 6 };
    let text = format!("{whole}.{part:0digits$}");
    serde_json::from_str(&text).unwrap_or_else(|_| Value::from(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_numbers_of_their_unit() {
        let text = |micros, unit| number(micros, unit).to_string();
        assert_eq!(text(1_500_000, TimeUnit::Microsecond), "1500000");
        assert_eq!(text(1_500_000, TimeUnit::Millisecond), "1500");
        assert_eq!(text(1_500_000, TimeUnit::Second), "1.5");
        assert_eq!(text(1_357_000_000_000_001, TimeUnit::Second), "1357000000.000001");
        assert_eq!(text(1_000_001, TimeUnit::Millisecond), "1000.001");
    }

    #[test]
    fn paths_lead_into_what_is_there() {
        let mut object: Map<String, Value> = serde_json::from_str(r#"{"geo": {"city": "Bern"}, "x": 1}"#).unwrap();
        place(
            &mut object,
            &["geo".to_owned(), "country".to_owned()],
            Value::from("CH"),
        );
        place(&mut object, &["a".to_owned(), "b".to_owned()], Value::from(1));
        assert_eq!(
            Value::Object(object).to_string(),
            r#"{"a":{"b":1},"geo":{"city":"Bern","country":"CH"},"x":1}"#
        );
    }
}
