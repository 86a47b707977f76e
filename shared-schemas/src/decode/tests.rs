//! Tests of reading records, and what they share: small datasets, and a record's outcome as one line of text.

use std::collections::HashMap;
use std::time::Duration;

use arrow::array::{Array as _, RecordBatch, TimestampMicrosecondArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};

use crate as schemas;
use crate::dataset::{Dataset, EventTime, Field, FieldSource, FieldType, Format, Mask, Privacy};

use super::{Decoder, Options, Reason, Record};

/// The body of the fuzz target; it names this crate `schemas`.
mod anything;
mod batches;
mod extra;
mod laws;
mod masks;
mod oracle;
mod records;
mod table;
mod undeclared;

/// 2024-06-01T12:00:00Z in milliseconds.
pub(super) const NOON: i64 = 1_717_243_200_000;

/// A field of that name, from the path of that name split at points.
pub(super) fn field(name: &str, field_type: FieldType) -> Field {
    let path = name.split('.').map(str::to_owned).collect();
    Field {
        name: name.to_owned(),
        field_type,
        nullable: false,
        source: FieldSource::Path(path),
        mask: None,
    }
}

pub(super) fn nullable(name: &str, field_type: FieldType) -> Field {
    Field {
        nullable: true,
        ..field(name, field_type)
    }
}

pub(super) fn from(name: &str, field_type: FieldType, source: FieldSource) -> Field {
    Field {
        source,
        ..nullable(name, field_type)
    }
}

pub(super) fn masked(name: &str, field_type: FieldType, mask: Mask) -> Field {
    Field {
        mask: Some(mask),
        ..nullable(name, field_type)
    }
}

pub(super) fn dataset(fields: Vec<Field>) -> Dataset {
    Dataset {
        name: "events".to_owned(),
        topic: "events".to_owned(),
        partitions: 1,
        format: Format::Json,
        event_time: EventTime::KafkaTime,
        event_id: Vec::new(),
        lateness: Duration::from_secs(3600),
        future: Duration::from_secs(600),
        dedupe_window: Duration::from_secs(600),
        dedupe_memory: 1 << 28,
        max_event_size: 1 << 20,
        chunk: 1 << 18,
        keep: None,
        privacy: Privacy::default(),
        fields,
    }
}

pub(super) fn decoder(dataset: &Dataset, extra: bool) -> Decoder {
    let keys = HashMap::from([("KEY".to_owned(), b"secret".to_vec())]);
    Decoder::new(dataset, Options { extra, keys: &keys }).unwrap()
}

pub(super) fn record(value: &[u8]) -> Record<'_> {
    Record {
        partition: 3,
        offset: 42,
        timestamp: Some(NOON),
        key: None,
        value: Some(value),
        headers: &(),
    }
}

/// A cell as text; `null` for null.
pub(super) fn cell(batch: &RecordBatch, column: &str, row: usize) -> String {
    let column = batch.column_by_name(column).unwrap();
    if column.is_null(row) {
        return "null".to_owned();
    }
    if let Some(moments) = column.as_any().downcast_ref::<TimestampMicrosecondArray>() {
        let moment = DateTime::from_timestamp_micros(moments.value(row)).unwrap();
        return moment.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    }
    let options = FormatOptions::default();
    ArrayFormatter::try_new(column, &options)
        .unwrap()
        .value(row)
        .to_string()
}

/// What becomes of a record: the named column's value, or the reason.
pub(super) fn outcome(decoder: &mut Decoder, record: &Record<'_>, column: &str) -> Result<String, Reason> {
    decoder.push(record).map_err(|refusal| refusal.reason)?;
    let batches = decoder.finish();
    assert_eq!((batches.len(), batches[0].num_rows()), (1, 1));
    Ok(cell(&batches[0], column, 0))
}

/// What becomes of a message in a dataset of these fields.
pub(super) fn read(fields: Vec<Field>, value: &str, column: &str) -> Result<String, Reason> {
    outcome(&mut decoder(&dataset(fields), true), &record(value.as_bytes()), column)
}

/// The sentence with which a message is refused.
pub(super) fn detail(fields: Vec<Field>, value: &[u8]) -> String {
    decoder(&dataset(fields), true)
        .push(&record(value))
        .unwrap_err()
        .to_string()
}
