//! What holds for any bytes at all; the body of a property test and of the fuzz target `read_record`.

use std::collections::HashMap;
use std::time::Duration;

use super::schemas::dataset::{
    Dataset, EventTime, Field, FieldSource, FieldType, Format, Mask, PathMask, Privacy, TimeUnit, Truncate,
};
use super::schemas::decode::{Decoder, Options, Reason, Record};

/// A dataset with every type, source and mask.
fn everything() -> Dataset {
    let from = |name: &str, field_type, source| Field {
        name: name.to_owned(),
        field_type,
        nullable: true,
        source,
        mask: None,
    };
    let path = |name: &str, field_type| from(name, field_type, FieldSource::Path(vec![name.to_owned()]));
    let nested = |name: &str, field_type| {
        from(
            name,
            field_type,
            FieldSource::Path(vec!["o".to_owned(), name.to_owned()]),
        )
    };
    let millis = FieldType::Timestamp {
        unit: Some(TimeUnit::Millisecond),
    };
    let rule = |path: &[&str], mask| PathMask {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
        mask,
    };
    let mut fields = vec![
        path("s", FieldType::String),
        path("i", FieldType::Int64),
        path("f", FieldType::Float64),
        path(
            "d",
            FieldType::Decimal {
                precision: 28,
                scale: 9,
            },
        ),
        path("b", FieldType::Bool),
        path("t", millis),
        path("y", FieldType::Date),
        nested("s2", FieldType::String),
        nested("i2", FieldType::Int64),
        Field {
            mask: Some(Mask::Hash { key: "KEY".to_owned() }),
            ..path("h", FieldType::String)
        },
        Field {
            mask: Some(Mask::Truncate(Truncate::Network)),
            ..path("n", FieldType::String)
        },
        Field {
            mask: Some(Mask::Truncate(Truncate::Characters(2))),
            ..path("c", FieldType::String)
        },
        Field {
            mask: Some(Mask::Truncate(Truncate::Hour)),
            ..path("u", millis)
        },
        from("k", FieldType::String, FieldSource::Key),
        from("kd", FieldType::Decimal { precision: 5, scale: 2 }, FieldSource::Key),
    ];
    fields[13].mask = Some(Mask::Redact);
    Dataset {
        name: "anything".to_owned(),
        topic: "anything".to_owned(),
        partitions: 1,
        format: Format::Json,
        event_time: EventTime::KafkaTime,
        event_id: Vec::new(),
        lateness: Duration::ZERO,
        future: Duration::ZERO,
        dedupe_window: Duration::ZERO,
        dedupe_memory: 0,
        max_event_size: 1 << 16,
        chunk: 1 << 18,
        keep: None,
        privacy: Privacy {
            paths: vec![
                rule(&["a"], Mask::Truncate(Truncate::Characters(1))),
                rule(&["m", "a"], Mask::Hash { key: "KEY".to_owned() }),
                rule(&["m", "b"], Mask::Drop),
                rule(&["o", "z"], Mask::Redact),
            ],
            ..Privacy::default()
        },
        fields,
    }
}

/// Reads the bytes as a record and checks what must hold whatever they are.
pub(crate) fn check(data: &[u8]) {
    let keys = HashMap::from([("KEY".to_owned(), b"secret".to_vec())]);
    let dataset = everything();
    let key = data.get(..3).filter(|key| key[0] == b'1');
    let record = Record {
        partition: 0,
        offset: 7,
        timestamp: Some(0),
        key,
        value: Some(data),
        headers: &(),
    };
    let mut verdicts = Vec::new();
    for extra in [false, true] {
        let mut decoder = Decoder::new(&dataset, Options { extra, keys: &keys }).expect("a decoder");
        let verdict = decoder.push(&record);
        let batches = decoder.finish();
        let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
        assert_eq!(rows, usize::from(verdict.is_ok()), "one row or one refusal");
        assert!(batches.iter().all(|batch| batch.schema() == decoder.schema()));
        assert_eq!(decoder.push(&record), verdict, "the same again");
        verdicts.push(verdict);
    }
    assert_eq!(
        verdicts[0], verdicts[1],
        "what is kept of a record does not decide on it"
    );

    // Another strict reader agrees on what is JSON, but for what it can't tell: depth, and numbers no double can hold.
    let Err(reason) = verdicts[0].as_ref().map_err(|refusal| refusal.reason) else {
        let value: Result<serde_json::Value, _> = serde_json::from_slice(data);
        assert!(value.map_or_else(
            |error| error.to_string().starts_with("number out of range"),
            |value| value.is_object()
        ));
        return;
    };
    match (reason, serde_json::from_slice::<serde_json::Value>(data)) {
        (Reason::TooLarge, _) => assert!(data.len() > dataset.max_event_size),
        (Reason::Empty, Ok(value)) => assert!(value.is_null()),
        (Reason::Empty, Err(_)) => assert!(data.is_empty()),
        (Reason::BadUtf8, _) => assert!(std::str::from_utf8(data).is_err() || key.is_some()),
        (Reason::NotObject, Ok(value)) => assert!(!value.is_object() && !value.is_null()),
        (Reason::NotJson, Ok(value)) => panic!("refused as not JSON: {value}"),
        (Reason::NotJson, Err(_)) => {}
        (_, Ok(value)) => assert!(value.is_object()),
        (_, Err(error)) => {
            let error = error.to_string();
            assert!(
                error.starts_with("number out of range") || error.starts_with("recursion limit"),
                "{error}"
            );
        }
    }
}
