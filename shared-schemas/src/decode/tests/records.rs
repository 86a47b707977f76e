//! The record as a whole: empty, too large, no JSON; where fields come from; which reason comes first.

use super::{cell, dataset, decoder, detail, field, from, nullable, outcome, read, record};
use crate::dataset::{EventTime, Field, FieldSource, FieldType, TimeUnit};
use crate::decode::{DecodeSetupError, Decoder, EnvironmentKeys, Options, Reason, Record};

const RFC3339: FieldType = FieldType::Timestamp { unit: None };

fn any() -> Vec<Field> {
    vec![nullable("x", FieldType::Int64)]
}

#[test]
fn a_record_is_one_object() {
    use Reason::{Empty, NotJson, NotObject};
    for (text, expected) in [
        ("{}", Ok("null")),
        (" \t\r\n{ \"x\" : 1 } \n", Ok("1")),
        ("null", Err(Empty)),
        (" null ", Err(Empty)),
        ("null null", Err(NotJson)),
        ("", Err(Empty)),
        (" ", Err(NotJson)),
        ("\u{feff}{}", Err(NotJson)),
        ("[]", Err(NotObject)),
        ("1", Err(NotObject)),
        ("true", Err(NotObject)),
        ("\"{}\"", Err(NotObject)),
        ("{} {}", Err(NotJson)),
        ("{}\n{}", Err(NotJson)),
        ("{},", Err(NotJson)),
        ("{}\0", Err(NotJson)),
        ("[] x", Err(NotJson)),
        ("{", Err(NotJson)),
        ("{\"x\"}", Err(NotJson)),
        ("{\"x\":}", Err(NotJson)),
        ("{\"x\":1,}", Err(NotJson)),
        ("{,\"x\":1}", Err(NotJson)),
        ("{\"x\":1 \"y\":2}", Err(NotJson)),
        ("{x:1}", Err(NotJson)),
        ("{\"x\":1}}", Err(NotJson)),
        ("{\"x\":1]", Err(NotJson)),
        ("{\"y\":[1,2}", Err(NotJson)),
        ("{\"y\":[1,]}", Err(NotJson)),
        ("{\"y\":{\"z\":}}", Err(NotJson)),
        ("{\"y\":[nul]}", Err(NotJson)),
        ("{\"y\":/*no*/1}", Err(NotJson)),
        ("{\"\\ud800\":1}", Err(NotJson)),
    ] {
        assert_eq!(read(any(), text, "x"), expected.map(str::to_owned), "{text:?}");
    }
}

#[test]
fn bytes_that_are_no_text() {
    let mut decoder = decoder(&dataset(any()), false);
    let outcome = |decoder: &mut Decoder, value: &[u8]| decoder.push(&record(value)).unwrap_err().reason;
    assert_eq!(outcome(&mut decoder, b"{\"x\":1,\"y\":\"\xff\"}"), Reason::BadUtf8);
    assert_eq!(outcome(&mut decoder, b"\xed\xa0\x80"), Reason::BadUtf8);
    assert_eq!(
        outcome(&mut decoder, b"{\xc0\x80"),
        Reason::BadUtf8,
        "not UTF-8 comes before not JSON"
    );
    let tombstone = Record {
        value: None,
        ..record(b"")
    };
    assert_eq!(decoder.push(&tombstone).unwrap_err().reason, Reason::Empty);
}

#[test]
fn a_record_may_be_as_large_as_the_dataset_says() {
    let mut small = dataset(any());
    small.max_event_size = 10;
    let mut decoder = decoder(&small, false);
    assert_eq!(
        outcome(&mut decoder, &record(b"{\"x\":1234}"), "x"),
        Ok("1234".to_owned())
    );
    assert_eq!(
        outcome(&mut decoder, &record(b"{\"x\":12345}"), "x"),
        Err(Reason::TooLarge)
    );
    assert_eq!(
        outcome(
            &mut decoder,
            &record(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            "x"
        ),
        Err(Reason::TooLarge)
    );
}

#[test]
fn nesting_is_bounded_and_needs_no_stack() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(
        read(any(), &format!("{{\"x\":1,\"y\":{}}}", nested(127)), "x"),
        Ok("1".to_owned())
    );
    assert_eq!(
        read(any(), &format!("{{\"x\":1,\"y\":{}}}", nested(128)), "x"),
        Err(Reason::NotJson)
    );
    assert_eq!(read(any(), &nested(128), "x"), Err(Reason::NotObject));
    assert_eq!(read(any(), &"[".repeat(1 << 20), "x"), Err(Reason::NotJson));
    assert_eq!(read(any(), &"{\"y\":".repeat(200_000), "x"), Err(Reason::NotJson));
    let deep = vec![nullable(&vec!["a"; 128].join("."), FieldType::Int64)];
    let column = deep[0].name.clone();
    let objects = |levels: usize| format!("{}7{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    assert_eq!(read(deep.clone(), &objects(128), &column), Ok("7".to_owned()));
    assert_eq!(read(deep, &objects(129), &column), Err(Reason::NotJson));
}

#[test]
fn absent_is_null_and_the_last_of_a_name_counts() {
    for (text, expected) in [
        (r#"{}"#, Err(Reason::MissingField)),
        (r#"{"x":null}"#, Err(Reason::MissingField)),
        (r#"{"x":1,"x":2}"#, Ok("2")),
        (r#"{"x":1,"\u0078":2}"#, Ok("2")),
        (r#"{"x":"no","x":2}"#, Ok("2")),
        (r#"{"x":1,"x":null}"#, Err(Reason::MissingField)),
        (r#"{"x":1,"x":"no"}"#, Err(Reason::WrongType)),
        (r#"{"X":1}"#, Err(Reason::MissingField)),
    ] {
        assert_eq!(
            read(vec![field("x", FieldType::Int64)], text, "x"),
            expected.map(str::to_owned),
            "{text}"
        );
    }
}

#[test]
fn nested_paths() {
    let fields = || vec![nullable("geo.country", FieldType::String)];
    for (text, expected) in [
        (r#"{"geo":{"country":"DE"}}"#, Ok("DE")),
        (r#"{"geo":{"country":null}}"#, Ok("null")),
        (r#"{"geo":{}}"#, Ok("null")),
        (r#"{"geo":null}"#, Ok("null")),
        (r#"{}"#, Ok("null")),
        (r#"{"geo.country":"DE"}"#, Ok("null")),
        (r#"{"geo":"DE"}"#, Err(Reason::WrongType)),
        (r#"{"geo":[{"country":"DE"}]}"#, Err(Reason::WrongType)),
        (r#"{"geo":{"country":"DE"},"geo":{"city":"B"}}"#, Ok("null")),
        (r#"{"geo":{"country":"DE"},"geo":null}"#, Ok("null")),
        (r#"{"geo":{"country":"DE"},"geo":7}"#, Err(Reason::WrongType)),
        (r#"{"geo":7,"geo":{"country":"DE"}}"#, Ok("DE")),
        (r#"{"geo":{"country":"DE","country":"FR"}}"#, Ok("FR")),
    ] {
        assert_eq!(
            read(fields(), text, "geo.country"),
            expected.map(str::to_owned),
            "{text}"
        );
    }
    let both = || {
        vec![
            nullable("a.b", FieldType::Int64),
            nullable("a.b.c", FieldType::Int64),
            nullable("a.d", FieldType::Int64),
        ]
    };
    assert_eq!(
        read(both(), r#"{"a":{"b":1,"d":2}}"#, "a.d"),
        Err(Reason::WrongType),
        "b is no object"
    );
    assert_eq!(
        read(both(), r#"{"a":{"b":{"c":3},"d":2}}"#, "a.d"),
        Err(Reason::WrongType),
        "b is no number"
    );
    assert_eq!(read(both(), r#"{"a":{"b":null,"d":2}}"#, "a.d"), Ok("2".to_owned()));
}

#[test]
fn two_fields_from_one_place() {
    let path = FieldSource::Path(vec!["x".to_owned()]);
    let fields = vec![
        from("a", FieldType::Float64, path.clone()),
        from("b", FieldType::Decimal { precision: 9, scale: 3 }, path),
    ];
    assert_eq!(read(fields.clone(), r#"{"x":1.5}"#, "a"), Ok("1.5".to_owned()));
    assert_eq!(read(fields, r#"{"x":1.5}"#, "b"), Ok("1.500".to_owned()));
}

#[test]
fn from_key_and_headers() {
    use Reason::{BadTime, BadUtf8, Inexact, OutOfRange, WrongType};
    let decimal = FieldType::Decimal { precision: 4, scale: 1 };
    let millis = FieldType::Timestamp {
        unit: Some(TimeUnit::Millisecond),
    };
    type Row = (FieldType, Option<&'static [u8]>, Result<&'static str, Reason>);
    let rows: &[Row] = &[
        (FieldType::String, None, Ok("null")),
        (FieldType::String, Some(b""), Ok("")),
        (FieldType::String, Some(b"null"), Ok("null")),
        (FieldType::String, Some("\"é".as_bytes()), Ok("\"é")),
        (FieldType::String, Some(b"\xff"), Err(BadUtf8)),
        (FieldType::Int64, None, Ok("null")),
        (FieldType::Int64, Some(b"12"), Ok("12")),
        (FieldType::Int64, Some(b""), Err(WrongType)),
        (FieldType::Int64, Some(b" 12"), Err(WrongType)),
        (FieldType::Int64, Some(b"012"), Err(WrongType)),
        (FieldType::Int64, Some(b"\"12\""), Err(WrongType)),
        (FieldType::Int64, Some(b"1.0"), Err(WrongType)),
        (FieldType::Int64, Some(b"null"), Err(WrongType)),
        (FieldType::Int64, Some(b"9223372036854775808"), Err(OutOfRange)),
        (FieldType::Float64, Some(b"1e3"), Ok("1000.0")),
        (FieldType::Float64, Some(b"1e999"), Err(OutOfRange)),
        (FieldType::Bool, Some(b"true"), Ok("true")),
        (FieldType::Bool, Some(b"1"), Err(WrongType)),
        (decimal, Some(b"1.5"), Ok("1.5")),
        (decimal, Some(b"1.55"), Err(Inexact)),
        (RFC3339, Some(b"2024-06-01T12:00:00Z"), Ok("2024-06-01T12:00:00Z")),
        (RFC3339, Some(b"1717243200000"), Err(BadTime)),
        (millis, Some(b"1717243200000"), Ok("2024-06-01T12:00:00Z")),
        (millis, Some(b"2024-06-01T12:00:00Z"), Ok("2024-06-01T12:00:00Z")),
        (FieldType::Date, Some(b"2024-06-01"), Ok("2024-06-01")),
    ];
    for (field_type, text, expected) in rows {
        let expected = expected.map(str::to_owned);
        let fields = vec![from("x", *field_type, FieldSource::Key)];
        let keyed = Record {
            key: *text,
            ..record(b"{}")
        };
        assert_eq!(
            outcome(&mut decoder(&dataset(fields), false), &keyed, "x"),
            expected,
            "{field_type:?} from key {text:?}"
        );

        let fields = vec![from("x", *field_type, FieldSource::Header("h".to_owned()))];
        let headers = [("h", Some(&b"earlier"[..])), ("h", *text), ("H", Some(&b"other"[..]))];
        let with_headers = Record {
            headers: &headers.as_slice(),
            ..record(b"{}")
        };
        let outcome = outcome(&mut decoder(&dataset(fields), false), &with_headers, "x");
        assert_eq!(outcome, expected, "{field_type:?} from header {text:?}");
    }
}

#[test]
fn from_the_record_itself() {
    let fields = vec![
        from("at", RFC3339, FieldSource::KafkaTime),
        from("part", FieldType::Int64, FieldSource::Partition),
    ];
    let mut decoder = decoder(&dataset(fields), false);
    decoder.push(&record(b"{\"at\":1,\"part\":\"x\"}")).unwrap();
    let batch = &decoder.finish()[0];
    assert_eq!(cell(batch, "at", 0), "2024-06-01T12:00:00Z");
    assert_eq!(cell(batch, "part", 0), "3");
    assert_eq!(
        (cell(batch, "_partition", 0), cell(batch, "_offset", 0)),
        ("3".to_owned(), "42".to_owned())
    );
    assert_eq!(cell(batch, "_kafka_time", 0), "2024-06-01T12:00:00Z");
    assert_eq!(cell(batch, "_event_time", 0), "2024-06-01T12:00:00Z");
}

#[test]
fn no_event_without_a_kafka_timestamp() {
    let mut decoder = decoder(&dataset(any()), false);
    let mut at = |timestamp| {
        outcome(
            &mut decoder,
            &Record {
                timestamp,
                ..record(b"{}")
            },
            "_kafka_time",
        )
    };
    assert_eq!(at(None), Err(Reason::MissingField));
    assert_eq!(at(Some(-1)), Err(Reason::BadTime));
    assert_eq!(at(Some(i64::MAX)), Err(Reason::BadTime));
    assert_eq!(at(Some(0)), Ok("1970-01-01T00:00:00Z".to_owned()));
    assert_eq!(at(Some(10_413_791_999_999)), Ok("2299-12-31T23:59:59.999Z".to_owned()));
    assert_eq!(at(Some(10_413_792_000_000)), Err(Reason::BadTime));
}

#[test]
fn the_future_is_measured_from_the_kafka_timestamp() {
    let mut events = dataset(vec![field("at", RFC3339)]);
    events.event_time = EventTime::Field("at".to_owned());
    let mut decoder = decoder(&events, false);
    let mut at = |text: &str| {
        outcome(
            &mut decoder,
            &record(format!("{{\"at\":\"{text}\"}}").as_bytes()),
            "_event_time",
        )
    };
    assert_eq!(
        at("2024-06-01T12:10:00Z"),
        Ok("2024-06-01T12:10:00Z".to_owned()),
        "ten minutes ahead is not more than ten"
    );
    assert_eq!(at("2024-06-01T12:10:00.000001Z"), Err(Reason::FutureTime));
    assert_eq!(
        at("1970-01-01T00:00:00Z"),
        Ok("1970-01-01T00:00:00Z".to_owned()),
        "late is not refused"
    );
}

#[test]
fn the_first_reason_is_told() {
    let fields = || vec![field("a", FieldType::Int64), field("b", FieldType::Bool)];
    assert_eq!(
        read(fields(), r#"{"b":"x","a":"y","#, "a"),
        Err(Reason::NotJson),
        "JSON before fields"
    );
    assert_eq!(read(fields(), r#"{"b":"x","a":1e999999}"#, "a"), Err(Reason::WrongType));
    assert_eq!(
        read(fields(), r#"{"b":"x"}"#, "a"),
        Err(Reason::MissingField),
        "definition order, not the message's"
    );
    assert_eq!(
        detail(fields(), br#"{"b":"x","a":"y"}"#),
        "wrong_type: field `a` at byte 13: expected int64, found a string"
    );
}

#[test]
fn sentences_name_field_and_position() {
    let decimal = FieldType::Decimal { precision: 5, scale: 2 };
    for (field_type, text, expected) in [
        (
            FieldType::Int64,
            "{",
            "not_json: the value is not JSON: it ends too early at byte 1",
        ),
        (
            FieldType::Int64,
            "[1]",
            "not_object: the value is an array, not an object",
        ),
        (
            FieldType::Int64,
            "{}",
            "missing_field: field `a.b`: may not be null or missing",
        ),
        (
            FieldType::Int64,
            r#"{"a":{"b":null}}"#,
            "missing_field: field `a.b` at byte 10: may not be null or missing",
        ),
        (
            FieldType::Int64,
            r#"{"a":{"b":1.0}}"#,
            "wrong_type: field `a.b` at byte 10: expected int64, found a number with a point or an exponent",
        ),
        (
            FieldType::Int64,
            r#"{"a":[]}"#,
            "wrong_type: field `a.b` at byte 5: expected an object on the way to it, found something else",
        ),
        (
            decimal,
            r#"{"a":{"b":1000}}"#,
            "out_of_range: field `a.b` at byte 10: a number beyond the range of decimal(5,2)",
        ),
        (
            decimal,
            r#"{"a":{"b":0.001}}"#,
            "inexact: field `a.b` at byte 10: more than 2 digits after the point",
        ),
        (
            FieldType::Date,
            r#"{"a":{"b":"1"}}"#,
            "bad_time: field `a.b` at byte 10: expected a date as YYYY-MM-DD in the years 1900 to 2299, found another text",
        ),
        (
            RFC3339,
            r#"{"a":{"b":1}}"#,
            "bad_time: field `a.b` at byte 10: expected a time as RFC 3339 with an offset or Z in the years 1970 to 2299, found a number",
        ),
    ] {
        assert_eq!(detail(vec![field("a.b", field_type)], text.as_bytes()), expected);
    }
}

#[test]
fn datasets_that_cannot_be_read_are_refused() {
    let new = |fields: Vec<Field>, event_time: EventTime| {
        let dataset = crate::dataset::Dataset {
            event_time,
            ..dataset(fields)
        };
        Decoder::new(
            &dataset,
            Options {
                extra: false,
                keys: &EnvironmentKeys,
            },
        )
        .err()
    };
    let at = || "at".to_owned();
    let wrong = Some(DecodeSetupError::EventTime { field: at() });
    assert_eq!(new(vec![field("at", RFC3339)], EventTime::Field(at())), None);
    assert_eq!(new(vec![nullable("at", RFC3339)], EventTime::Field(at())), wrong);
    assert_eq!(new(vec![field("at", FieldType::Int64)], EventTime::Field(at())), wrong);
    assert_eq!(new(Vec::new(), EventTime::Field(at())), wrong);
    let source = Some(DecodeSetupError::Source { field: at() });
    assert_eq!(
        new(
            vec![from("at", FieldType::Int64, FieldSource::KafkaTime)],
            EventTime::KafkaTime
        ),
        source
    );
    assert_eq!(
        new(
            vec![from("at", FieldType::String, FieldSource::Partition)],
            EventTime::KafkaTime
        ),
        source
    );
    assert_eq!(
        new(
            vec![from("at", FieldType::String, FieldSource::Path(Vec::new()))],
            EventTime::KafkaTime
        ),
        source
    );
}
