//! The type table: every type times every JSON form, pinned as a golden table, and the contract's own rows by hand.

use std::fmt::Write as _;

use super::{field, read};
use crate::dataset::{FieldType, TimeUnit};
use crate::decode::Reason;

const DECIMAL: FieldType = FieldType::Decimal { precision: 5, scale: 2 };
const RFC3339: FieldType = FieldType::Timestamp { unit: None };
const SECONDS: FieldType = FieldType::Timestamp {
    unit: Some(TimeUnit::Second),
};
const MILLIS: FieldType = FieldType::Timestamp {
    unit: Some(TimeUnit::Millisecond),
};
const MICROS: FieldType = FieldType::Timestamp {
    unit: Some(TimeUnit::Microsecond),
};

const TYPES: [(&str, FieldType); 10] = [
    ("string", FieldType::String),
    ("bool", FieldType::Bool),
    ("int64", FieldType::Int64),
    ("float64", FieldType::Float64),
    ("decimal(5,2)", DECIMAL),
    ("timestamp", RFC3339),
    ("in s", SECONDS),
    ("in ms", MILLIS),
    ("in us", MICROS),
    ("date", FieldType::Date),
];

/// Every form a JSON value can take, and the edges of each type.
const FORMS: &[&str] = &[
    "null",
    "true",
    "false",
    "True",
    "{}",
    r#"{"a":1}"#,
    "[]",
    "[1]",
    "0",
    "-0",
    "1",
    "-1",
    "+1",
    "01",
    "1.",
    ".5",
    "1.0",
    "1.5",
    "-1.5",
    "1e0",
    "1e3",
    "1E+3",
    "150e-2",
    "1e",
    "0x10",
    "1_000",
    "999.99",
    "999.990",
    "999.995",
    "1000",
    "1000.001",
    "0.001",
    "1e-3",
    "0e999999999999",
    "1e999",
    "-1e999",
    "1e-999",
    "1e99999999999999999999",
    "1e-99999999999999999999",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1717243200",
    "1717243200.1234567",
    "1.7172432001e9",
    "1717243200000",
    "1717243200000000",
    "10413791999.999999",
    "10413792000",
    "NaN",
    "Infinity",
    r#""""#,
    r#""text""#,
    r#""true""#,
    r#""null""#,
    r#""12""#,
    r#"" 12""#,
    r#""012""#,
    r#""1.50""#,
    r#""1.505""#,
    r#""1000""#,
    r#""NaN""#,
    r#""1e2""#,
    r#""1717243200000""#,
    r#""2024-06-01""#,
    r#""2024-6-1""#,
    r#""2024-02-29""#,
    r#""2023-02-29""#,
    r#""2024-13-01""#,
    r#""1900-02-28""#,
    r#""1899-12-31""#,
    r#""2299-12-31""#,
    r#""2300-01-01""#,
    r#""20240601""#,
    r#""2024-06-01T12:00:00Z""#,
    r#""2024-06-01t12:00:00z""#,
    r#""2024-06-01 12:00:00Z""#,
    r#""2024-06-01T12:00:00""#,
    r#""2024-06-01T12:00Z""#,
    r#""2024-06-01T12:00:00+02:00""#,
    r#""2024-06-01T12:00:00-00:30""#,
    r#""2024-06-01T12:00:00+0200""#,
    r#""2024-06-01T12:00:00+24:00""#,
    r#""2024-06-01T12:00:00.1Z""#,
    r#""2024-06-01T12:00:00.123456Z""#,
    r#""2024-06-01T12:00:00.1234569Z""#,
    r#""2024-06-01T12:00:00.Z""#,
    r#""2024-06-01T12:00:00,5Z""#,
    r#""2024-06-01T24:00:00Z""#,
    r#""2024-06-01T12:60:00Z""#,
    r#""2024-06-01T12:00:60Z""#,
    r#""2016-12-31T23:59:60Z""#,
    r#""2017-01-01T01:59:60.5+02:00""#,
    r#""2016-12-31T23:59:61Z""#,
    r#""1970-01-01T00:00:00Z""#,
    r#""1970-01-01T00:00:00+00:01""#,
    r#""1969-12-31T23:59:59.999999Z""#,
    r#""2299-12-31T23:59:59.999999Z""#,
    r#""2300-01-01T00:00:00Z""#,
    r#""2299-12-31T23:59:60Z""#,
    r#""2024-06-01T12:00:00Z ""#,
    r#""a\"\\\/\b\f\n\r\tb""#,
    r#""\u00e9\uD83D\uDE00""#,
    r#""\u0000""#,
    r#""\ud800""#,
    r#""\udc00\ud800""#,
    r#""\ud800\u0041""#,
    r#""\u12g4""#,
    r#""\x""#,
    "\"a\tb\"",
    r#"'single'"#,
    r#""open"#,
    "",
];

#[test]
fn every_type_times_every_form() {
    let mut table = String::new();
    for form in FORMS {
        writeln!(table, "{}", form.escape_debug()).unwrap();
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, field_type) in TYPES {
            let outcome = match read(vec![field("x", field_type)], &format!(r#"{{"x":{form}}}"#), "x") {
                Ok(value) => format!("= {}", value.escape_debug()),
                Err(reason) => reason.to_string(),
            };
            match groups.iter_mut().find(|(known, _)| *known == outcome) {
                Some((_, names)) => names.push(name),
                None => groups.push((outcome, vec![name])),
            }
        }
        for (outcome, names) in groups {
            let names = if names.len() == TYPES.len() {
                "all".to_owned()
            } else {
                names.join(", ")
            };
            writeln!(table, "    {outcome:<28} {names}").unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

/// The rows of the contract, one by one: these may not change.
#[test]
fn the_contract_row_by_row() {
    use Reason::{BadTime, Inexact, MissingField, NotJson, OutOfRange, WrongType};
    let rows: &[(FieldType, &str, Result<&str, Reason>)] = &[
        (FieldType::String, r#""a""#, Ok("a")),
        (FieldType::String, "1", Err(WrongType)),
        (FieldType::String, "true", Err(WrongType)),
        (FieldType::String, "{}", Err(WrongType)),
        (FieldType::Bool, "true", Ok("true")),
        (FieldType::Bool, "false", Ok("false")),
        (FieldType::Bool, "1", Err(WrongType)),
        (FieldType::Bool, r#""true""#, Err(WrongType)),
        (FieldType::Int64, "9223372036854775807", Ok("9223372036854775807")),
        (FieldType::Int64, "-9223372036854775808", Ok("-9223372036854775808")),
        (FieldType::Int64, "-0", Ok("0")),
        (FieldType::Int64, "1.5", Err(WrongType)),
        (FieldType::Int64, "1.0", Err(WrongType)),
        (FieldType::Int64, "1e3", Err(WrongType)),
        (FieldType::Int64, r#""12""#, Err(WrongType)),
        (FieldType::Int64, "9223372036854775808", Err(OutOfRange)),
        (FieldType::Float64, "1", Ok("1.0")),
        (FieldType::Float64, "0.1", Ok("0.1")),
        (FieldType::Float64, "1e308", Ok("1e308")),
        (FieldType::Float64, r#""NaN""#, Err(WrongType)),
        (FieldType::Float64, r#""1.5""#, Err(WrongType)),
        (FieldType::Float64, "1e999", Err(OutOfRange)),
        (FieldType::Float64, "NaN", Err(NotJson)),
        (DECIMAL, "1.5", Ok("1.50")),
        (DECIMAL, "1.500", Ok("1.50")),
        (DECIMAL, r#""1.50""#, Ok("1.50")),
        (DECIMAL, "-0.01", Ok("-0.01")),
        (DECIMAL, "1.505", Err(Inexact)),
        (DECIMAL, "1000", Err(OutOfRange)),
        (DECIMAL, r#""a""#, Err(WrongType)),
        (DECIMAL, "true", Err(WrongType)),
        (
            RFC3339,
            r#""2024-06-01T14:00:00.1234567+02:00""#,
            Ok("2024-06-01T12:00:00.123456Z"),
        ),
        (RFC3339, r#""2024-06-01T12:00:00Z""#, Ok("2024-06-01T12:00:00Z")),
        (RFC3339, r#""2024-06-01T12:00:00""#, Err(BadTime)),
        (RFC3339, r#""2024-06-01""#, Err(BadTime)),
        (RFC3339, r#""1969-12-31T23:59:59Z""#, Err(BadTime)),
        (RFC3339, r#""2300-01-01T00:00:00Z""#, Err(BadTime)),
        (RFC3339, "1717243200000", Err(BadTime)),
        (SECONDS, "1717243200", Ok("2024-06-01T12:00:00Z")),
        (MILLIS, "1717243200001", Ok("2024-06-01T12:00:00.001Z")),
        (MICROS, "1717243200000001", Ok("2024-06-01T12:00:00.000001Z")),
        (MILLIS, r#""2024-06-01T12:00:00Z""#, Ok("2024-06-01T12:00:00Z")),
        (FieldType::Date, r#""2024-02-29""#, Ok("2024-02-29")),
        (FieldType::Date, r#""2023-02-29""#, Err(BadTime)),
        (FieldType::Date, "20240229", Err(BadTime)),
        (FieldType::Date, "null", Err(MissingField)),
    ];
    for (field_type, form, expected) in rows {
        let outcome = read(vec![field("x", *field_type)], &format!(r#"{{"x":{form}}}"#), "x");
        assert_eq!(outcome, expected.map(str::to_owned), "{field_type:?} from {form}");
    }
}

/// Days agree with a calendar that others wrote, over every day that is accepted.
#[test]
fn every_day_agrees_with_chrono() {
    let epoch = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
    let first = chrono::NaiveDate::from_ymd_opt(1899, 12, 1).unwrap();
    for date in first
        .iter_days()
        .take_while(|date| date.to_string().as_str() < "2300-02-01")
    {
        let days = i32::try_from((date - epoch).num_days()).unwrap();
        let expected = Some(days).filter(|_| ("1900-01-01".."2300-01-01").contains(&date.to_string().as_str()));
        assert_eq!(crate::decode::time::date(&date.to_string()), expected, "{date}");
    }
}
