//! Batches: their schema, their order, and what is left when nothing or very much came.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, TimeUnit};

use super::{cell, dataset, decoder, field, nullable, record};
use crate::dataset::{EventTime, FieldType};
use crate::decode::Record;

#[test]
fn the_schema_is_the_fields_then_the_record() {
    let mut events = dataset(vec![
        field("at", FieldType::Timestamp { unit: None }),
        nullable("text", FieldType::String),
        field(
            "price",
            FieldType::Decimal {
                precision: 10,
                scale: 2,
            },
        ),
        field("day", FieldType::Date),
        field("yes", FieldType::Bool),
        field("ratio", FieldType::Float64),
        field("count", FieldType::Int64),
    ]);
    events.event_time = EventTime::Field("at".to_owned());
    let moment = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let expected = [
        ("at", moment(), false),
        ("text", DataType::Utf8, true),
        ("price", DataType::Decimal128(10, 2), false),
        ("day", DataType::Date32, false),
        ("yes", DataType::Boolean, false),
        ("ratio", DataType::Float64, false),
        ("count", DataType::Int64, false),
        ("_partition", DataType::Int32, false),
        ("_offset", DataType::Int64, false),
        ("_kafka_time", moment(), false),
        ("_event_time", moment(), false),
        ("_extra", DataType::Utf8, true),
    ];
    for extra in [false, true] {
        let mut decoder = decoder(&events, extra);
        let text =
            br#"{"at":"2024-06-01T11:00:00Z","price":1,"day":"2024-06-01","yes":true,"ratio":0.5,"count":1,"more":1}"#;
        decoder.push(&record(text)).unwrap();
        let batch = &decoder.finish()[0];
        assert_eq!(batch.schema(), decoder.schema());
        if !extra {
            assert_eq!(
                *batch.schema(),
                crate::plan::event_schema(&events),
                "the very columns that plans read"
            );
        }
        let schema = batch.schema();
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| (field.name().as_str(), field.data_type().clone(), field.is_nullable()))
            .collect();
        assert_eq!(fields, expected[..if extra { 12 } else { 11 }]);
        assert_eq!(cell(batch, "_event_time", 0), "2024-06-01T11:00:00Z");
        assert_eq!(cell(batch, "_kafka_time", 0), "2024-06-01T12:00:00Z");
    }
}

#[test]
fn no_rows_no_batch() {
    let mut decoder = decoder(&dataset(vec![nullable("x", FieldType::Int64)]), false);
    assert!(decoder.finish().is_empty());
    decoder.push(&record(b"[]")).unwrap_err();
    assert_eq!(decoder.rows(), 0);
    assert!(decoder.finish().is_empty());
    decoder.push(&record(b"{}")).unwrap();
    assert_eq!((decoder.rows(), decoder.finish().len(), decoder.rows()), (1, 1, 0));
}

/// Texts end up in several batches long before a column's 32-bit offsets could overflow; here with a smaller limit.
#[test]
fn much_text_becomes_several_batches() {
    let mut decoder = decoder(&dataset(vec![field("x", FieldType::String)]), true);
    decoder.seal_at = 1000;
    for offset in 0..100 {
        let text = format!("{{\"x\":\"{offset:040}\",\"more\":\"{offset:040}\"}}");
        decoder
            .push(&Record {
                offset,
                ..record(text.as_bytes())
            })
            .unwrap();
        decoder.push(&record(b"{\"x\":1}")).unwrap_err();
    }
    assert_eq!(decoder.rows(), 100);
    let batches = decoder.finish();
    assert!(batches.len() > 5, "{} batches", batches.len());
    let offsets = |batch: &RecordBatch| {
        (0..batch.num_rows())
            .map(|row| cell(batch, "_offset", row))
            .collect::<Vec<_>>()
    };
    let offsets: Vec<String> = batches.iter().flat_map(offsets).collect();
    assert_eq!(offsets, (0..100).map(|offset| offset.to_string()).collect::<Vec<_>>());
}
