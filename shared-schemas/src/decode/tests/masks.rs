//! Mask rules: what they make of a value, and that nothing unmasked gets out anywhere.

use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::{cell, dataset, decoder, field, from, masked, nullable, outcome, read, record};
use crate::dataset::{Field, FieldSource, FieldType, Mask, Truncate};
use crate::decode::{DecodeSetupError, Decoder, MASKED_HEADER, Options, Reason, Record, StoredMasks};

const RFC3339: FieldType = FieldType::Timestamp { unit: None };
/// HMAC-SHA-256 of `N123` under the key `secret`, as Python's hmac module has it.
const HASH: &str = "de1b6e854a72fa41aad9779d60b08f14d0adbff9fb3c569621eaf12a470cfb4e";

fn hash() -> Mask {
    Mask::Hash { key: "KEY".to_owned() }
}

fn one(mask: Mask, field_type: FieldType, value: &str) -> Result<String, Reason> {
    read(vec![masked("x", field_type, mask)], &format!("{{\"x\":{value}}}"), "x")
}

#[test]
fn what_each_rule_makes_of_a_value() {
    let characters = |count| Mask::Truncate(Truncate::Characters(count));
    let network = || Mask::Truncate(Truncate::Network);
    for (mask, value, expected) in [
        (hash(), r#""N123""#, HASH),
        (hash(), r#""\u004e123""#, HASH),
        (Mask::Redact, r#""N123""#, "***"),
        (Mask::Redact, r#""""#, "***"),
        (Mask::Drop, r#""N123""#, "null"),
        (characters(3), r#""héllo""#, "hél"),
        (characters(3), r#""hé""#, "hé"),
        (characters(0), r#""hé""#, ""),
        (network(), r#""192.0.2.77""#, "192.0.2.0/24"),
        (network(), r#""192.0.2.0/24""#, "192.0.2.0/24"),
        (network(), r#""::ffff:192.0.2.77""#, "192.0.2.0/24"),
        (network(), r#""2001:db8:1:2::3""#, "2001:db8:1::/48"),
        (network(), r#""2001:db8:1::/48""#, "2001:db8:1::/48"),
        (network(), r#""fe80::1%eth0""#, "***"),
        (network(), r#""192.0.2.77:80""#, "***"),
        (network(), r#""host""#, "***"),
        (network(), r#""***""#, "***"),
    ] {
        assert_eq!(
            one(mask.clone(), FieldType::String, value),
            Ok(expected.to_owned()),
            "{mask:?} {value}"
        );
        assert_eq!(
            one(mask, FieldType::String, "null"),
            Ok("null".to_owned()),
            "null hides nothing"
        );
    }
    let hour = Mask::Truncate(Truncate::Hour);
    let day = Mask::Truncate(Truncate::Day);
    let at = r#""2024-06-01T14:31:07.5+02:00""#;
    assert_eq!(one(hour, RFC3339, at), Ok("2024-06-01T12:00:00Z".to_owned()));
    assert_eq!(one(day.clone(), RFC3339, at), Ok("2024-06-01T00:00:00Z".to_owned()));
    let fields = vec![Field {
        mask: Some(day),
        ..from("x", RFC3339, FieldSource::KafkaTime)
    }];
    assert_eq!(read(fields, "{}", "x"), Ok("2024-06-01T00:00:00Z".to_owned()));
    for (field_type, value) in [
        (FieldType::Bool, "true"),
        (FieldType::Int64, "1"),
        (FieldType::Float64, "1"),
        (FieldType::Decimal { precision: 3, scale: 1 }, "1"),
        (FieldType::Decimal { precision: 3, scale: 1 }, "\"1\""),
        (RFC3339, at),
        (FieldType::Date, "\"2024-06-01\""),
    ] {
        assert_eq!(
            one(Mask::Drop, field_type, value),
            Ok("null".to_owned()),
            "{field_type:?}"
        );
    }
    let fields = vec![Field {
        mask: Some(Mask::Drop),
        ..from("x", FieldType::Int64, FieldSource::Partition)
    }];
    assert_eq!(read(fields, "{}", "x"), Ok("null".to_owned()));
}

#[test]
fn a_value_is_checked_before_it_is_masked() {
    assert_eq!(one(Mask::Drop, FieldType::Int64, "\"1\""), Err(Reason::WrongType));
    assert_eq!(one(Mask::Redact, FieldType::String, "1"), Err(Reason::WrongType));
    assert_eq!(
        one(Mask::Truncate(Truncate::Day), RFC3339, "\"yesterday\""),
        Err(Reason::BadTime)
    );
}

#[test]
fn a_masked_record_is_not_masked_twice() {
    let mask = |mask| {
        vec![Field {
            mask: Some(mask),
            ..field("x", FieldType::String)
        }]
    };
    let marked: &[(&str, Option<&[u8]>)] = &[(MASKED_HEADER, None)];
    let again = |fields, value: &str| {
        let text = format!("{{\"x\":\"{value}\"}}");
        let record = Record {
            headers: &marked,
            ..record(text.as_bytes())
        };
        outcome(&mut decoder(&dataset(fields), false), &record, "x").unwrap()
    };
    assert_eq!(again(mask(hash()), HASH), HASH);
    assert_eq!(again(mask(hash()), "N123"), HASH, "a header alone does not unmask");
    assert_eq!(again(mask(Mask::Redact), "N123"), "***");
    assert_eq!(
        again(mask(Mask::Truncate(Truncate::Network)), "192.0.2.0/24"),
        "192.0.2.0/24"
    );
    let unmarked = one(hash(), FieldType::String, &format!("\"{HASH}\"")).unwrap();
    assert_ne!(unmarked, HASH, "without the header it is a value like any other");
}

#[test]
fn a_rule_without_its_key_is_a_mistake() {
    let new = |fields: Vec<Field>, keys: &[(&str, &str)]| {
        let keys: HashMap<String, Vec<u8>> = keys
            .iter()
            .map(|(name, key)| ((*name).to_owned(), key.as_bytes().to_vec()))
            .collect();
        Decoder::new(
            &dataset(fields),
            Options {
                extra: false,
                keys: &keys,
            },
        )
        .err()
    };
    let (x, key) = (|| "x".to_owned(), || "KEY".to_owned());
    let hashed = || vec![masked("x", FieldType::String, hash())];
    assert_eq!(new(hashed(), &[("KEY", "s")]), None);
    assert_eq!(
        new(hashed(), &[("key", "s")]),
        Some(DecodeSetupError::MissingKey {
            field: x(),
            variable: key()
        })
    );
    assert_eq!(
        new(hashed(), &[("KEY", "")]),
        Some(DecodeSetupError::EmptyKey {
            field: x(),
            variable: key()
        })
    );
    let wrong = Some(DecodeSetupError::Mask { field: x() });
    assert_eq!(new(vec![masked("x", FieldType::Int64, hash())], &[("KEY", "s")]), wrong);
    assert_eq!(
        new(vec![masked("x", FieldType::Date, Mask::Truncate(Truncate::Day))], &[]),
        wrong
    );
    assert_eq!(
        new(
            vec![masked("x", FieldType::String, Mask::Truncate(Truncate::Hour))],
            &[]
        ),
        wrong
    );
    assert_eq!(
        new(
            vec![Field {
                mask: Some(Mask::Drop),
                ..field("x", FieldType::String)
            }],
            &[]
        ),
        wrong
    );
    let message = new(hashed(), &[]).unwrap().to_string();
    assert_eq!(
        message,
        "field `x` is to be hashed with the key in KEY, which is not set: set it to a secret"
    );
}

/// What was read without a rule, or with it, is the same once the rule is applied to its column.
#[test]
fn stored_values_are_masked_as_those_of_records() {
    let at = "\"2024-06-01T14:31:07.5Z\"";
    for (mask, field_type, value) in [
        (hash(), FieldType::String, "\"N123\""),
        (Mask::Redact, FieldType::String, "\"N123\""),
        (Mask::Drop, FieldType::String, "\"N123\""),
        (Mask::Truncate(Truncate::Characters(2)), FieldType::String, "\"héllo\""),
        (Mask::Truncate(Truncate::Network), FieldType::String, "\"192.0.2.77\""),
        (Mask::Truncate(Truncate::Hour), RFC3339, at),
        (Mask::Truncate(Truncate::Day), RFC3339, at),
        (Mask::Drop, RFC3339, at),
        (Mask::Drop, FieldType::Int64, "12"),
        (Mask::Drop, FieldType::Date, "\"2024-06-01\""),
    ] {
        let ruled = dataset(vec![masked("x", field_type, mask.clone())]);
        let free = dataset(vec![nullable("x", field_type)]);
        let keys = HashMap::from([("KEY".to_owned(), b"secret".to_vec())]);
        let masks = StoredMasks::new(&ruled, &keys).unwrap();
        let column = |dataset: &crate::dataset::Dataset| {
            let mut decoder = decoder(dataset, false);
            for value in [value, "null", value] {
                let text = format!("{{\"x\":{value}}}");
                decoder.push(&record(text.as_bytes())).unwrap();
            }
            decoder.finish()[0].column_by_name("x").unwrap().slice(1, 2)
        };
        let expected = column(&ruled);
        assert_ne!(&expected, &column(&free), "{mask:?} {value}");
        assert_eq!(&masks.apply("x", &column(&free)), &expected, "{mask:?} {value}");
        assert_eq!(&masks.apply("x", &expected), &expected, "again: {mask:?} {value}");
        assert_eq!(&masks.apply("y", &column(&free)), &column(&free), "another field");
    }
    let none: HashMap<String, Vec<u8>> = HashMap::new();
    assert!(StoredMasks::new(&dataset(vec![masked("x", FieldType::String, hash())]), &none).is_err());
}

/// A text that must not get out, and no part of anything else.
const SECRET: &str = "qZq7XsecretX7qZq";

fn guarded() -> Vec<Field> {
    let at = |name: &str, path: &str, mask| Field {
        source: FieldSource::Path(path.split('.').map(str::to_owned).collect()),
        ..masked(name, FieldType::String, mask)
    };
    vec![
        nullable("id", FieldType::Int64),
        at("tail", "tail", hash()),
        at("name", "who.name", Mask::Redact),
        at("mail", "who.mail", Mask::Drop),
        at("ip", "who.at.ip", Mask::Truncate(Truncate::Network)),
        Field {
            source: FieldSource::Key,
            ..masked("key", FieldType::String, hash())
        },
        Field {
            source: FieldSource::Header("user".to_owned()),
            ..masked("user", FieldType::String, Mask::Redact)
        },
        nullable("count", FieldType::Int64),
    ]
}

/// A JSON value with the secret in it, but no object.
fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just(format!("\"{SECRET}\"")),
        1 => Just(format!("\" {SECRET}\\n\"")),
        1 => Just(format!("[\"{SECRET}\"]")),
        1 => Just("null".to_owned()),
    ]
}

/// The same, or an object with the secret in it: where a masked field should be, no member is undeclared.
fn secret_or_object() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => secret(),
        1 => Just(format!("{{\"x\":\"{SECRET}\"}}")),
        1 => Just(format!("{{\"{SECRET}\":1}}")),
    ]
}

/// An object whose members at declared, masked paths hold the secret; names come again, escaped, in any order.
fn object(names: &'static [&'static str], depth: u32) -> BoxedStrategy<String> {
    let member = prop::sample::select(names).prop_flat_map(move |name| {
        let value = match (name, depth) {
            ("tail" | "t\\u0061il" | "name" | "mail" | "ip", _) => secret_or_object().boxed(),
            ("who" | "w\\u0068o", 0) => prop_oneof![
                5 => object(&["name", "mail", "at", "rest", "at"], 1),
                1 => secret(),
            ]
            .boxed(),
            ("at", 1) => prop_oneof![5 => object(&["ip", "rest"], 2), 1 => secret()].boxed(),
            _ => prop_oneof![
                Just("1".to_owned()),
                Just("null".to_owned()),
                Just("\"x\"".to_owned()),
                Just("[{}]".to_owned())
            ]
            .boxed(),
        };
        value.prop_map(move |value| format!("\"{name}\":{value}"))
    });
    prop::collection::vec(member, 0..7)
        .prop_map(|members| format!("{{{}}}", members.join(",")))
        .boxed()
}

proptest! {
    #[test]
    fn no_secret_gets_out(
        text in object(&["tail", "t\\u0061il", "who", "w\\u0068o", "id", "count", "rest"], 0),
        broken in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        keyed in any::<bool>(),
    ) {
        let end = broken.map_or(text.len(), |at| at.index(text.len()));
        let headers: &[(&str, Option<&[u8]>)] = &[("user", Some(SECRET.as_bytes())), (MASKED_HEADER, None)];
        let record = Record {
            key: keyed.then_some(SECRET.as_bytes()),
            headers: if keyed { &headers } else { &() },
            ..record(&text.as_bytes()[..end])
        };
        let mut decoder = decoder(&dataset(guarded()), true);
        let mut seen = String::new();
        match decoder.push(&record) {
            Err(refusal) => write!(seen, "{refusal}").unwrap(),
            Ok(()) => {
                let batch = &decoder.finish()[0];
                for column in batch.schema().fields() {
                    writeln!(seen, "{}", cell(batch, column.name(), 0)).unwrap();
                }
            }
        }
        prop_assert!(!seen.contains("secret"), "{text} gave {seen}");
    }
}

/// The property above means something only if such records are accepted, with the secret's masks in place.
#[test]
fn secrets_are_accepted_and_masked() {
    let text = format!(
        r#"{{"tail":"{SECRET}","who":{{"name":"{SECRET}","mail":"{SECRET}","at":{{"ip":"{SECRET}","rest":1}}}}}}"#
    );
    let mut decoder = decoder(&dataset(guarded()), true);
    decoder.push(&record(text.as_bytes())).unwrap();
    let batch = &decoder.finish()[0];
    assert_eq!(cell(batch, "tail", 0).len(), 64);
    assert_eq!(
        (cell(batch, "name", 0), cell(batch, "mail", 0)),
        ("***".to_owned(), "null".to_owned())
    );
    assert_eq!(cell(batch, "ip", 0), "***");
    assert_eq!(cell(batch, "_extra", 0), r#"{"who":{"at":{"rest":1}}}"#);
}
