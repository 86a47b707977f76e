//! `_extra`: what is left over, as it came.

use super::{field, nullable, read};
use crate::dataset::{Field, FieldType};
use crate::decode::Reason;

fn fields() -> Vec<Field> {
    vec![
        field("id", FieldType::Int64),
        nullable("geo.country", FieldType::String),
        nullable("geo.at.lat", FieldType::Float64),
    ]
}

#[test]
fn values_and_names_stay_as_they_came() {
    for (text, expected) in [
        (r#"{"id":1}"#, "null"),
        (
            r#"{"id":1,"b":1.10,"a":12345678901234567890123,"c":1E5}"#,
            r#"{"b":1.10,"a":12345678901234567890123,"c":1E5}"#,
        ),
        (r#"{ "b" : [ 1, {"x" : 2} ] , "id" : 1 }"#, r#"{"b":[ 1, {"x" : 2} ]}"#),
        (r#"{"\u0062":"\u00e9","id":1}"#, r#"{"\u0062":"\u00e9"}"#),
        (r#"{"b":null,"id":1}"#, r#"{"b":null}"#),
        (r#"{"":0,"id":1}"#, r#"{"":0}"#),
        // Repeated names: the last counts and stands where it stood.
        (r#"{"b":1,"id":1,"c":2,"b":3}"#, r#"{"c":2,"b":3}"#),
        (r#"{"b":1,"\u0062":2,"id":1}"#, r#"{"\u0062":2}"#),
        (r#"{"id":1,"id":2,"i\u0064":3}"#, "null"),
        // Parents of declared paths keep the rest of what they hold.
        (r#"{"id":1,"geo":{"country":"DE"}}"#, "null"),
        (r#"{"id":1,"geo":{}}"#, "null"),
        (r#"{"id":1,"geo":null}"#, "null"),
        (
            r#"{"id":1,"geo":{"city":"B","country":"DE"}}"#,
            r#"{"geo":{"city":"B"}}"#,
        ),
        (
            r#"{"id":1,"geo":{"at":{"lat":1,"lon":2.0}},"b":3}"#,
            r#"{"geo":{"at":{"lon":2.0}},"b":3}"#,
        ),
        (r#"{"id":1,"b":0,"geo":{"at":{"lat":1}},"c":3}"#, r#"{"b":0,"c":3}"#),
        (
            r#"{"geo":{"city":"A"},"id":1,"geo":{"country":"DE"},"b":1}"#,
            r#"{"b":1}"#,
        ),
        (
            r#"{"geo":{"city":"A"},"id":1,"b":1,"geo":{"x":2}}"#,
            r#"{"b":1,"geo":{"x":2}}"#,
        ),
        (r#"{"geo":{"city":"A"},"id":1,"geo":null}"#, "null"),
        (
            r#"{"geo":{"at":{"z":1},"at":{"y":2},"x":3},"id":1}"#,
            r#"{"geo":{"at":{"y":2},"x":3}}"#,
        ),
        (r#"{"country":"DE","id":1}"#, r#"{"country":"DE"}"#),
        (
            r#"{"b":{"geo":{"country":"DE"}},"id":1}"#,
            r#"{"b":{"geo":{"country":"DE"}}}"#,
        ),
    ] {
        assert_eq!(read(fields(), text, "_extra"), Ok(expected.to_owned()), "{text}");
    }
    assert_eq!(
        read(fields(), r#"{"id":1,"b":{"\ud800":1}}"#, "_extra"),
        Err(Reason::NotJson)
    );
}

#[test]
fn many_names_are_told_apart_as_few_are() {
    let members = |count: usize| {
        (0..count)
            .map(|n| format!("\"k{n}\":{n},\"k{}\":0,", n / 2))
            .collect::<String>()
    };
    for count in [3, 8, 9, 40] {
        let extra = read(fields(), &format!("{{{}\"id\":1}}", members(count)), "_extra").unwrap();
        let oracle: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&format!("{{{}\"id\":1}}", members(count))).unwrap();
        let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&extra).unwrap();
        assert_eq!(read.len() + 1, oracle.len());
        assert!(read.iter().all(|(name, value)| oracle[name] == *value), "{extra}");
        assert_eq!(extra.matches(':').count(), read.len(), "no name twice: {extra}");
    }
}

/// A quarter of a million repeats of one name, and of one parent, in a megabyte: still no more work than reading it.
#[test]
fn repeats_cost_no_more_than_their_bytes() {
    let names = format!("{{{}\"id\":1}}", "\"b\":1,".repeat(170_000));
    assert_eq!(read(fields(), &names, "_extra"), Ok(r#"{"b":1}"#.to_owned()));
    let parents = format!("{{{}\"id\":1}}", "\"geo\":{},\"b\":1,".repeat(60_000));
    assert_eq!(read(fields(), &parents, "_extra"), Ok(r#"{"b":1}"#.to_owned()));
}
