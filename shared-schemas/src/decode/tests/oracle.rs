//! The scanner and the literals against readers that others wrote: `serde_json` for JSON, `i128` and text for decimals.

use proptest::prelude::*;
use serde_json::Value;

use super::{dataset, decoder, field, nullable, outcome, read, record};
use crate::dataset::FieldType;
use crate::decode::Reason;
use crate::decode::scan::{Scanner, unescape};

/// Random JSON, written with random white space and escapes.
fn json() -> impl Strategy<Value = String> {
    let space = "[ \t\r\n]{0,2}";
    let string = prop_oneof![
        "[ -~]{0,20}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\\PC{0,20}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\\PC{0,6}".prop_map(|text| {
            let units = text.encode_utf16().map(|unit| format!("\\u{unit:04X}"));
            format!("\"{}\"", units.collect::<String>())
        }),
        Just(r#""\"\\\/\b\f\n\r\t""#.to_owned()),
    ];
    let number = "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][-+]?[0-9]{1,2})?";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        number,
        string.clone(),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        let member = (string.clone(), space, space, inner.clone())
            .prop_map(|(name, before, after, value)| format!("{name}{before}:{after}{value}"));
        let list = |items: BoxedStrategy<Vec<String>>, open: &'static str, close: &'static str| {
            (items, space, space).prop_map(move |(items, before, after)| {
                format!(
                    "{open}{before}{}{after}{close}",
                    items.join(&format!("{after},{before}"))
                )
            })
        };
        prop_oneof![
            list(prop::collection::vec(inner, 0..6).boxed(), "[", "]"),
            list(prop::collection::vec(member, 0..6).boxed(), "{", "}"),
        ]
    })
}

/// The scanner's verdict on a whole text.
fn accepts(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    scanner.space();
    scanner.value(0).and_then(|_| scanner.end()).is_ok()
}

/// Whether `serde_json` takes it; a number that is only too large is JSON all the same.
fn oracle(text: &str) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(_) => true,
        Err(error) => {
            error.to_string().starts_with("number out of range")
                && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
        }
    }
}

proptest! {
    #[test]
    fn json_is_what_serde_json_takes(text in json(), at in any::<prop::sample::Index>(), with in any::<char>(), cut in any::<bool>()) {
        prop_assert!(oracle(&text) && accepts(&text), "{text}");
        let mut characters: Vec<char> = text.chars().collect();
        let at = at.index(characters.len());
        if cut {
            characters.remove(at);
        } else {
            characters[at] = with;
        }
        let changed: String = characters.into_iter().collect();
        prop_assert_eq!(accepts(&changed), oracle(&changed), "{}", changed);
    }

    #[test]
    fn strings_mean_what_serde_json_says(text in "(\\PC|\\\\[nrtbf/\"\\\\]|\\\\u00[0-9a-f]{2}|\\\\uD8[0-9A-F]{2}\\\\uDC[0-9A-F]{2}){0,12}") {
        let quoted = format!("\"{}\"", text.replace('"', "\\\"").replace("\\\\\"", "\\\""));
        if let Ok(expected) = serde_json::from_str::<String>(&quoted) {
            let mut unescaped = String::new();
            unescape(&quoted[1..quoted.len() - 1], &mut unescaped);
            prop_assert_eq!(&unescaped, &expected);
            prop_assert_eq!(read(vec![field("x", FieldType::String)], &format!("{{\"x\":{quoted}}}"), "x"), Ok(expected));
        }
    }

    #[test]
    fn numbers_mean_what_serde_json_says(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?") {
        let message = format!("{{\"x\":{text}}}");
        let value: Result<Value, _> = serde_json::from_str(&message);
        let int = read(vec![field("x", FieldType::Int64)], &message, "x");
        match text.parse::<i128>() {
            Ok(integer) => prop_assert_eq!(int, i64::try_from(integer).map(|i| i.to_string()).map_err(|_| Reason::OutOfRange)),
            Err(_) => prop_assert_eq!(int, Err(Reason::WrongType)),
        }
        let float = read(vec![field("x", FieldType::Float64)], &message, "x");
        match value.ok().and_then(|value| value["x"].as_f64()) {
            // serde_json's own floats may be off by one in the last place without its `float_roundtrip`.
            Some(number) => {
                let read: f64 = float.unwrap().parse().unwrap();
                prop_assert!((read - number).abs() <= read.abs() * 1e-15, "{} is {}, not {}", text, read, number);
                prop_assert_eq!(read, text.parse::<f64>().unwrap());
            }
            None => prop_assert_eq!(float, Err(Reason::OutOfRange)),
        }
    }

    /// A decimal moved about by an exponent and padded with zeros is the same decimal.
    #[test]
    fn decimals_are_exact(
        units in -99_999_999_i128..=99_999_999,
        scale in 0_u8..=6,
        shift in -12_i32..=12,
        zeros in 0_usize..40,
    ) {
        let precision = 8;
        // The value is units * 10^-3, written with an exponent of `shift`.
        let digits = format!("{:020}", units.unsigned_abs());
        let point = i32::try_from(digits.len()).unwrap() - 3 - shift;
        let (whole, fraction) = if point <= 0 {
            ("0".to_owned(), format!("{}{digits}", "0".repeat(usize::try_from(-point).unwrap())))
        } else {
            let padded = format!("{digits:0<40}");
            let point = usize::try_from(point).unwrap();
            (padded[..point].to_owned(), padded[point..].to_owned())
        };
        let whole = whole.trim_start_matches('0');
        let sign = if units < 0 { "-" } else { "" };
        let text = format!("{sign}{}.{fraction}{}0e{shift}", if whole.is_empty() { "0" } else { whole }, "0".repeat(zeros));

        let ten = 10_i128;
        let expected = if units.abs() >= ten.pow(u32::from(precision - scale)) * 1000 {
            Err(Reason::OutOfRange)
        } else if units * ten.pow(u32::from(scale)) % 1000 != 0 {
            Err(Reason::Inexact)
        } else {
            Ok(units * ten.pow(u32::from(scale)) / 1000)
        };
        prop_assert_eq!(crate::decode::number::decimal(&text, precision, scale), expected, "{} in decimal(8,{})", text, scale);
    }

    /// What is left over is what `serde_json` has in the object but for the declared fields, byte for byte.
    #[test]
    fn extra_is_the_rest_of_the_object(values in prop::collection::vec(("[a-e]|x", json()), 0..8)) {
        let members: Vec<String> = values.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        let text = format!("{{{}}}", members.join(","));
        let mut expected: std::collections::BTreeMap<&str, &str> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let declared = expected.remove("x").is_some_and(|value| value != "null");
        let mut decoder = decoder(&dataset(vec![nullable("x", FieldType::String)]), true);
        let extra = outcome(&mut decoder, &record(text.as_bytes()), "_extra");
        match extra {
            Err(reason) => prop_assert!(declared && reason == Reason::WrongType),
            Ok(extra) if extra == "null" => prop_assert!(expected.is_empty()),
            Ok(extra) => {
                let raw: std::collections::BTreeMap<String, &serde_json::value::RawValue> = serde_json::from_str(&extra).unwrap();
                let raw: std::collections::BTreeMap<&str, &str> = raw.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
                prop_assert_eq!(raw, expected);
            }
        }
    }
}
