//! Mask rules on paths of undeclared data: what they make of every kind of value, and that nothing gets past them.

use proptest::prelude::*;

use super::{cell, dataset, decoder, nullable, record};
use crate::dataset::{Dataset, FieldType, Mask, PathMask, Privacy, Truncate, Undeclared};
use crate::decode::{MASKED_HEADER, Record};

/// HMAC-SHA-256 under the key `secret`, as Python's hmac module has it.
const HASH_OF_N123: &str = "de1b6e854a72fa41aad9779d60b08f14d0adbff9fb3c569621eaf12a470cfb4e";
const HASH_OF_12: &str = "f416753299f2f548826f19245f0ea43ec8b7843f51ca7174165099bcce1db715";
const HASH_OF_TRUE: &str = "f1e380f6f390738d3c40662b10c7da1ce1f86594b83cb9e3774e644715335e05";

fn hash() -> Mask {
    Mask::Hash { key: "KEY".to_owned() }
}

fn characters(count: u16) -> Mask {
    Mask::Truncate(Truncate::Characters(count))
}

/// With a field `id`, one at `geo.country`, and these rules.
fn ruled(rules: &[(&str, Mask)]) -> Dataset {
    let rule = |(path, mask): &(&str, Mask)| PathMask {
        path: path.split('.').map(str::to_owned).collect(),
        mask: mask.clone(),
    };
    let fields = vec![
        nullable("id", FieldType::Int64),
        nullable("geo.country", FieldType::String),
    ];
    Dataset {
        privacy: Privacy {
            paths: rules.iter().map(rule).collect(),
            ..Privacy::default()
        },
        ..dataset(fields)
    }
}

fn extra_of(dataset: &Dataset, record: &Record<'_>) -> String {
    let mut decoder = decoder(dataset, true);
    decoder.push(record).unwrap();
    cell(&decoder.finish()[0], "_extra", 0)
}

fn extra(rules: &[(&str, Mask)], text: &str) -> String {
    extra_of(&ruled(rules), &record(text.as_bytes()))
}

#[test]
fn what_each_rule_makes_of_each_kind_of_value() {
    let quoted = |text: &str| format!("\"{text}\"");
    let network = || Mask::Truncate(Truncate::Network);
    let hour = || Mask::Truncate(Truncate::Hour);
    let hidden = || quoted("***");
    for (mask, value, expected) in [
        (hash(), r#""N123""#, quoted(HASH_OF_N123)),
        (hash(), r#""\u004e123""#, quoted(HASH_OF_N123)),
        (hash(), "12", quoted(HASH_OF_12)),
        (hash(), r#""12""#, quoted(HASH_OF_12)),
        (hash(), "true", quoted(HASH_OF_TRUE)),
        (hash(), r#"{"a":"N123"}"#, hidden()),
        (
            hash(),
            r#" [ 12 , [ true,{"a":1}, null ], [] ]"#,
            format!("[\"{HASH_OF_12}\",[\"{HASH_OF_TRUE}\",\"***\",null],[]]"),
        ),
        (Mask::Redact, r#""N123""#, hidden()),
        (Mask::Redact, "12.5e3", hidden()),
        (Mask::Redact, "false", hidden()),
        (Mask::Redact, r#"{"a":{"b":[1]}}"#, hidden()),
        (Mask::Redact, "{}", hidden()),
        (Mask::Redact, r#"["a",1]"#, "[\"***\",\"***\"]".to_owned()),
        (characters(3), r#""h\u00e9llo""#, quoted("hél")),
        (characters(3), r#""\"\\\n\u0001""#, quoted(r#"\"\\\u000a"#)),
        (characters(2), "12345", quoted("**")),
        (characters(9), "true", hidden()),
        (characters(2), r#"{"a":1}"#, quoted("**")),
        (network(), r#""192.0.2.77""#, quoted("192.0.2.0/24")),
        (network(), r#""2001:db8:1:2::3""#, quoted("2001:db8:1::/48")),
        (network(), r#""host""#, hidden()),
        (network(), "3221225985", hidden()),
        (
            hour(),
            r#""2024-06-01T14:31:07.5+02:00""#,
            quoted("2024-06-01T12:00:00Z"),
        ),
        (
            Mask::Truncate(Truncate::Day),
            r#""2024-06-01T14:31:07.5+02:00""#,
            quoted("2024-06-01T00:00:00Z"),
        ),
        (hour(), r#""yesterday""#, hidden()),
        (hour(), "1717243200", hidden()),
    ] {
        let text = format!("{{\"id\":1,\"x\":{value},\"y\": 2 }}");
        assert_eq!(
            extra(&[("x", mask.clone())], &text),
            format!("{{\"x\":{expected},\"y\":2}}"),
            "{mask:?} {value}"
        );
        // Again, as a record that says that it was masked: the same.
        let again = format!("{{\"x\":{expected},\"y\":2}}");
        let headers: &[(&str, Option<&[u8]>)] = &[(MASKED_HEADER, None)];
        let again_record = Record {
            headers: &headers,
            ..record(again.as_bytes())
        };
        assert_eq!(
            extra_of(&ruled(&[("x", mask.clone())]), &again_record),
            again,
            "{mask:?} {value}"
        );
        let none = format!("{{\"x\":null,\"z\":{}}}", value.trim());
        assert_eq!(
            extra(&[("x", mask)], &none),
            none,
            "null hides nothing, and other names are others"
        );
    }
    assert_eq!(extra(&[("x", Mask::Drop)], r#"{"x":[{"x":1}],"id":1}"#), "null");
    assert_eq!(
        extra(&[("x", Mask::Drop)], r#"{"a":1,"x":null,"b":{"x":2}}"#),
        r#"{"a":1,"b":{"x":2}}"#
    );
}

#[test]
fn a_header_alone_does_not_unmask() {
    let headers: &[(&str, Option<&[u8]>)] = &[(MASKED_HEADER, None)];
    let text = r#"{"x":"N123"}"#;
    let claimed = Record {
        headers: &headers,
        ..record(text.as_bytes())
    };
    let expected = format!("{{\"x\":\"{HASH_OF_N123}\"}}");
    assert_eq!(extra_of(&ruled(&[("x", hash())]), &claimed), expected);
}

#[test]
fn paths_lead_through_objects_and_arrays() {
    let rules = [("user.email", Mask::Redact), ("user.at.ip", Mask::Drop)];
    for (text, expected) in [
        (r#"{"user":{"email":"s","n":1}}"#, r#"{"user":{"email":"***","n":1}}"#),
        (
            r#"{"user" : [ {"email" : "s"} , [{"n":[ 1 ],"email":{"a":"s"}}], "x", {} ]}"#,
            r#"{"user":[{"email":"***"},[{"n":[ 1 ],"email":"***"}],"x",{}]}"#,
        ),
        (
            r#"{"user":{"at":{"ip":"s"},"email":["s",["s"]]}}"#,
            r#"{"user":{"at":{},"email":["***",["***"]]}}"#,
        ),
        (
            r#"{"user":{"at":[{"ip":"s","n":1},{"n":2,"ip":"s"}]}}"#,
            r#"{"user":{"at":[{"n":1},{"n":2}]}}"#,
        ),
        // Names are compared unescaped, and every occurrence counts.
        (
            r#"{"us\u0065r":{"\u0065mail":"s"}}"#,
            r#"{"us\u0065r":{"\u0065mail":"***"}}"#,
        ),
        (
            r#"{"user":{"email":"s","email":null}}"#,
            r#"{"user":{"email":"***","email":null}}"#,
        ),
        (
            r#"{"user":{"email":"s"},"user":{"email":"t","n":1}}"#,
            r#"{"user":{"email":"***","n":1}}"#,
        ),
        (
            r#"{"user":[{"at":{"ip":"s"},"at":7}]}"#,
            r#"{"user":[{"at":{},"at":7}]}"#,
        ),
        // Keys are told apart by case, as JSON does; where a path does not lead there is nothing to mask.
        (
            r#"{"User":{"email":"s"},"user":{"Email":"s"}}"#,
            r#"{"User":{"email":"s"},"user":{"Email":"s"}}"#,
        ),
        (r#"{"user":"s","email":"s"}"#, r#"{"user":"s","email":"s"}"#),
        (r#"{"b":{"user":{"email":"s"}}}"#, r#"{"b":{"user":{"email":"s"}}}"#),
    ] {
        assert_eq!(extra(&rules, text), expected, "{text}");
    }
    // Beside declared fields, and on their parent: it hides what else is there, not the field.
    let text = r#"{"geo":{"city":"s","country":"DE","n":1},"id":1}"#;
    assert_eq!(
        extra(&[("geo.city", Mask::Redact)], text),
        r#"{"geo":{"city":"***","n":1}}"#
    );
    assert_eq!(extra(&[("geo", characters(2))], text), r#"{"geo":"**"}"#);
    assert_eq!(extra(&[("geo", Mask::Drop)], text), "null");
    assert_eq!(
        extra(&[("geo", Mask::Redact)], r#"{"geo":{"country":"DE"},"a":1}"#),
        r#"{"a":1}"#
    );
    // A key may have points and anything else in it.
    let mut dotted = ruled(&[("x", Mask::Redact)]);
    dotted.privacy.paths[0].path = vec!["a.b\"".to_owned(), "ü".to_owned()];
    let text = r#"{"a.b\"":{"\u00fc":"s"},"a":{"b":1}}"#;
    assert_eq!(
        extra_of(&dotted, &record(text.as_bytes())),
        r#"{"a.b\"":{"\u00fc":"***"},"a":{"b":1}}"#
    );
}

#[test]
fn a_dataset_may_keep_nothing_undeclared() {
    let mut dropping = ruled(&[]);
    dropping.privacy.undeclared = Undeclared::Drop;
    let text = r#"{"id":1,"x":"s","geo":{"country":"DE","city":"s"}}"#;
    let mut decoder = decoder(&dropping, true);
    decoder.push(&record(text.as_bytes())).unwrap();
    let batch = &decoder.finish()[0];
    assert_eq!(cell(batch, "_extra", 0), "null");
    assert_eq!(
        (cell(batch, "id", 0), cell(batch, "geo.country", 0)),
        ("1".to_owned(), "DE".to_owned())
    );
}

/// A text that must not get out, and no part of anything else.
const SECRET: &str = "qZq7XsecretX7qZq";

/// Any JSON value, with the secret in every text and name below a masked path.
fn value(depth: u32, inside: bool) -> BoxedStrategy<String> {
    let text = if inside {
        format!("\"{SECRET}\"")
    } else {
        "\"x\"".to_owned()
    };
    let leaf = prop_oneof![
        Just(text),
        Just("null".to_owned()),
        Just("1".to_owned()),
        Just("true".to_owned())
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let names: &[&str] = if inside {
        &["a", SECRET]
    } else {
        &["a", "b", "\\u0061", "\\u0062", "c"]
    };
    let member = prop::sample::select(names.to_vec()).prop_flat_map(move |name| {
        // Rules are on `a.b` and `c`, wherever arrays stand between; here all that such names hold is kept secret.
        let inside = inside || matches!(name, "b" | "\\u0062" | "c");
        (Just(name), value(depth - 1, inside)).prop_map(|(name, value)| format!("\"{name}\": {value}"))
    });
    prop_oneof![
        2 => leaf,
        4 => prop::collection::vec(member, 0..4).prop_map(|members| format!("{{ {} }}", members.join(","))),
        2 => prop::collection::vec(value(depth - 1, inside), 0..3).prop_map(|values| format!("[{}]", values.join(" , "))),
    ]
    .boxed()
}

proptest! {
    #[test]
    fn no_secret_gets_out(
        below in prop::collection::vec((prop::sample::select(vec!["a", "\\u0061"]), value(4, false)), 0..3),
        at in prop::collection::vec((prop::sample::select(vec!["c", "\\u0063"]), value(3, true)), 0..3),
        mask in prop::sample::select(vec![hash(), Mask::Redact, Mask::Drop, characters(3), Mask::Truncate(Truncate::Day)]),
    ) {
        let members = below.iter().chain(&at).map(|(name, value)| format!("\"{name}\":{value}"));
        let text = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
        let rules = ["a.b", "a.c", "a.a.b", "a.a.c", "a.a.a.b", "a.a.a.c", "a.a.a.a.b", "a.a.a.a.c", "c"];
        let left = extra(&rules.map(|path| (path, mask.clone())), &text);
        prop_assert!(!left.contains("secret"), "{mask:?}: {text} left {left}");
        if left != "null" {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&left).is_ok(), "{text} left {left}");
        }
    }
}

/// A message of many small values must not become a large one: it takes the archive's room and the decoder's memory.
#[test]
fn many_small_values_do_not_become_long() {
    let many = vec!["1"; 100_000].join(",");
    for (text, rule, expected) in [
        (format!("{{\"x\":[{many}],\"y\":1}}"), "x", r#"{"x":"***","y":1}"#),
        (format!("{{\"x\":{{\"a\":[{many}],\"b\":1}}}}"), "x.a", r#"{"x":"***"}"#),
        (format!("{{\"x\":[[{many}]]}}"), "x", r#"{"x":"***"}"#),
    ] {
        let left = extra(&[(rule, hash())], &text);
        assert_eq!(left, expected);
        let headers: &[(&str, Option<&[u8]>)] = &[(MASKED_HEADER, None)];
        let again = Record {
            headers: &headers,
            ..record(expected.as_bytes())
        };
        assert_eq!(extra_of(&ruled(&[(rule, hash())]), &again), expected);
    }
    // What is not much longer than it was stays a list of hashes.
    for (value, count) in [("1", 60), ("\"fourteen bytes\"", 10_000)] {
        let text = format!("{{\"x\":[{}]}}", vec![value; count].join(","));
        let left: serde_json::Value = serde_json::from_str(&extra(&[("x", hash())], &text)).unwrap();
        assert_eq!(left["x"].as_array().map(Vec::len), Some(count));
    }
}
