//! Rows of the store as JSON, from bodies made by hand. Whole answers are tested on the engine.

use super::*;
use crate::fixture::{facts, fresh, view};
use crate::request::Fields;
use shared_connections::store::PartitionState::Live;
use shared_schemas::handoff::ChunkSize;
use shared_schemas::store::Layers;

const NOW: i64 = 1_001_000;

fn query(address: &str) -> Query {
    let uri = format!("/?{address}").parse().unwrap();
    Query::check(Fields::of_address(&uri), view(), NOW).unwrap()
}

fn answer(address: &str, has_event_id: bool, body: &str) -> Result<Value, Unreadable> {
    let facts = facts(&[(0, 8)], &[0], &[(0, 8, 12)]);
    let freshness = [fresh(0, 12, 12, Live, Some(600_000_000))];
    let chunk = ChunkSize::new(8).unwrap();
    let coverage = Coverage::of(&facts, &freshness, chunk, Layers::Merged, NOW);
    let query = query(address);
    let asked = Asked {
        view: view(),
        has_event_id,
        instead: None,
    };
    let answer = Answer::of(asked, &query, body.as_bytes(), &coverage, &facts, &freshness)?;
    Ok(serde_json::to_value(answer).unwrap())
}

const BODY: &str = r#"{
    "meta": [{"name": "time"}, {"name": "flight"}, {"name": "late"}, {"name": "flights"}, {"name": "delay"},
             {"name": "_bound_distance"}, {"name": "distance"}, {"name": "layer"}, {"name": "_failed"}],
    "data": [["1970-01-01T00:00:00Z", "9007199254740993", true, "18446744073709551615", "-12", "0.5", "0.30000000000000004", "batch", "0"],
             ["1970-01-01T00:05:00Z", "1", null, "0", null, null, null, "merged", "0"],
             ["1970-01-01T00:10:00Z", "1", false, "1", "1", "1", "inf", "speed", "0"]],
    "statistics": {"elapsed": 0.25, "rows_read": 5, "bytes_read": 70}
}"#;
const ADDRESS: &str =
    "from=0&to=900&grain=5m&dimensions=flight,late&measures=flights,delay,distance&order=-flights&limit=3";

#[test]
fn numbers_keep_every_digit_and_the_form_of_their_column() {
    let answer = answer(ADDRESS, false, BODY).unwrap();
    let first = &answer["data"][0];
    assert_eq!(first["flight"], "9007199254740993");
    assert_eq!(first["flights"], serde_json::json!(u64::MAX));
    assert_eq!(
        (&first["delay"], &first["late"]),
        (&Value::from("-12"), &Value::from(true))
    );
    assert_eq!(first["distance"].to_string(), "0.30000000000000004");
    let second = &answer["data"][1];
    assert_eq!(
        (&second["delay"], &second["distance"], &second["late"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(answer["data"][2]["distance"], Value::Null);
    assert_eq!(answer["rows"], 3);
    assert_eq!(answer.get("more"), None);
    assert_eq!(answer["statistics"]["rows_read"], 5);
    let types: Vec<_> = answer["meta"]
        .as_array()
        .unwrap()
        .iter()
        .map(|meta| meta["type"].clone())
        .collect();
    assert_eq!(
        types,
        [
            "DateTime64(6)",
            "Int64",
            "Nullable(Bool)",
            "UInt64",
            "Nullable(Decimal(38, 0))",
            "Nullable(Float64)"
        ]
    );
}

#[test]
fn a_bucket_is_exact_where_it_is_complete_and_no_repeat_can_have_been_missed() {
    let exact = |has_event_id| {
        let answer = answer(ADDRESS, has_event_id, BODY).unwrap();
        let of = |row: &Value| (row["layer"].clone(), row["exact"].clone(), row["coverage"].clone());
        answer["data"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let row = |layer: &str, exact: bool, coverage: &str| (layer.into(), exact.into(), coverage.into());
    assert_eq!(
        exact(false),
        [
            row("batch", true, "complete"),
            row("merged", true, "complete"),
            row("speed", false, "partial")
        ]
    );
    assert_eq!(
        exact(true),
        [
            row("batch", true, "complete"),
            row("merged", false, "complete"),
            row("speed", false, "partial")
        ]
    );
}

#[test]
fn one_row_more_than_the_limit_says_that_there_are_more() {
    let answer = answer(&ADDRESS.replace("limit=3", "limit=2"), false, BODY).unwrap();
    assert_eq!(
        (&answer["rows"], &answer["more"]),
        (&Value::from(2), &Value::from(true))
    );
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
}

#[test]
fn without_a_grain_there_is_one_bucket_and_no_time() {
    let body = r#"{"meta": [{"name": "flights"}, {"name": "layer"}], "data": [["3", "speed"]]}"#;
    let answer = answer("from=0&to=600&measures=flights", false, body).unwrap();
    assert_eq!(
        answer["data"][0].to_string(),
        r#"{"coverage":"complete","estimates":{},"exact":true,"flights":3,"layer":"speed"}"#
    );
    assert_eq!(answer["range"]["grain"], Value::Null);
}

#[test]
fn estimates_are_named_with_how_far_they_may_be_off() {
    let body = r#"{
        "meta": [{"name": "planes"}, {"name": "_error_planes"}, {"name": "_confidence_planes"},
                 {"name": "delay_q"}, {"name": "_error_delay_q"}, {"name": "_confidence_delay_q"}, {"name": "layer"}],
        "data": [["3", "0.01", "0.95", ["-1.5", null], "0.01", "1", "speed"],
                 ["3", null, "0.95", [null, null], null, "1", "batch"]]}"#;
    let answer = answer("from=0&to=600&measures=delay_q,planes", false, body).unwrap();
    assert_eq!(
        answer["data"][0].to_string(),
        r#"{"coverage":"complete","delay_q":[-1.5,null],"estimates":{"delay_q":{"confidence":1.0,"error":0.01},"planes":{"confidence":0.95,"error":0.01}},"exact":false,"layer":"speed","planes":3}"#
    );
    assert_eq!(
        answer["data"][1].to_string(),
        r#"{"coverage":"complete","delay_q":[null,null],"estimates":{},"exact":true,"layer":"batch","planes":3}"#
    );
    assert_eq!(answer["meta"][0]["type"], "Array(Nullable(Float64))");
}

#[test]
fn rows_of_another_form_are_told_from_numbers() {
    let wrong = |body: &str| {
        answer("from=0&to=600&measures=flights", false, body)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(wrong("{"), "the rows of an answer are no JSON");
    assert_eq!(
        wrong(r#"{"meta": [{"name": "layer"}], "data": []}"#),
        "the rows of an answer lack the column `flights`"
    );
    assert_eq!(
        wrong(r#"{"meta": [{"name": "flights"}, {"name": "layer"}], "data": [["-3", "speed"]]}"#),
        r#"the value "-3" is none of column `flights`"#
    );
}
