//! What a query may say, and every way to say it wrong.

use proptest::prelude::*;
use serde_json::{Value, json};
use shared_schemas::store::FilterValues;

use super::*;
use crate::fixture::view;

/// 2013-11-01T00:00:00Z.
const NOVEMBER: i64 = 1_383_264_000;
const NOW: i64 = (NOVEMBER + 7) * 1_000;

fn fields(address: &str) -> Fields {
    Fields::of_address(&format!("/q?{address}").parse().unwrap())
}

fn read(address: &str) -> Result<Query, Vec<Fault>> {
    Query::check(fields(address), view(), NOW)
}

fn read_body(body: &Value) -> Result<Query, Vec<Fault>> {
    let Value::Object(object) = body.clone() else {
        panic!("{body} is no object")
    };
    Query::check(Fields::of_body(object), view(), NOW)
}

#[test]
fn nothing_said_is_all_measures_of_the_last_day() {
    let query = read("").unwrap();
    assert_eq!(query, read_body(&json!({})).unwrap());
    // Rounded outward to five minutes.
    assert_eq!((query.range.from, query.range.to), (NOVEMBER - 86_400, NOVEMBER + 300));
    assert_eq!((query.range.grain, query.range.now), (None, NOW));
    assert_eq!(
        query.measures,
        [
            "flights",
            "delay",
            "fare",
            "distance",
            "share",
            "late_flights",
            "planes",
            "delay_q"
        ]
    );
    assert!(query.dimensions.is_empty() && query.filters.is_empty() && query.order.is_empty());
    assert_eq!((query.limit, query.layers), (1_000, Layers::Merged));
}

#[test]
fn moments_have_three_forms() {
    for from in [
        "2013-11-01T00:00:00Z",
        "2013-11-01T01:00:00%2B01:00",
        "1383264000",
        "1383264000000",
    ] {
        assert_eq!(
            read(&format!("from={from}&to=1383264001")).unwrap().range.from,
            NOVEMBER,
            "{from}"
        );
    }
    let query = read("from=2013-11-01T00:04:59.999999Z&to=2013-11-01T00:05:00.000001Z").unwrap();
    assert_eq!((query.range.from, query.range.to), (NOVEMBER, NOVEMBER + 600));
    assert_eq!(read("to=0").unwrap_err()[0].code, "empty_range");
    assert_eq!(read("to=300").unwrap().range.from, 0);
}

#[test]
fn grains_are_multiples_of_the_views() {
    for (grain, seconds) in [
        ("5m", 300),
        ("1h", 3_600),
        ("hour", 3_600),
        ("1d", 86_400),
        ("day", 86_400),
        ("1h30m", 5_400),
    ] {
        let query = read(&format!("grain={grain}")).unwrap();
        assert_eq!(query.range.grain, Some(Duration::from_secs(seconds)), "{grain}");
    }
}

#[test]
fn the_same_query_by_address_and_by_body() {
    let address = "from=1383264000&to=2013-11-02T00:00:00Z&grain=1h&tz=UTC&dimensions=origin,late&measures=flights,delay\
                   &filter[origin]=EWR,J\\,FK\\\\,&filter[flight]=-7,8&filter[late]=true&filter[day]=2013-11-01,1969-12-31\
                   &filter[landed]=2013-11-01T00:00:01.5Z&order=-flights,time,origin&limit=50000&layers=speed";
    let body = json!({
        "from": NOVEMBER, "to": "2013-11-02T00:00:00Z", "grain": "1h", "tz": "UTC", "dimensions": ["origin", "late"],
        "measures": "flights,delay", "limit": 50_000, "layers": "speed", "order": ["-flights", "time", "origin"],
        "filters": [
            {"field": "origin", "op": "in", "value": ["EWR", "J,FK\\", ""]}, {"field": "flight", "value": [-7, "8"]},
            {"field": "late", "op": "eq", "value": true}, {"field": "day", "value": ["2013-11-01", "1969-12-31"]},
            {"field": "landed", "op": "eq", "value": "2013-11-01T00:00:01.5Z"},
        ],
    });
    let query = read(&address.replace('\\', "%5C")).unwrap();
    assert_eq!(query, read_body(&body).unwrap());
    let values: Vec<_> = query.filters.into_iter().map(|filter| filter.values).collect();
    assert_eq!(
        values,
        [
            FilterValues::String(vec!["EWR".to_owned(), "J,FK\\".to_owned(), String::new()]),
            FilterValues::Int64(vec![-7, 8]),
            FilterValues::Bool(vec![true]),
            FilterValues::Date(vec![16_010, -1]),
            FilterValues::Timestamp(vec![NOVEMBER * 1_000_000 + 1_500_000]),
        ]
    );
    let order: Vec<_> = query
        .order
        .iter()
        .map(|order| (order.column.as_str(), order.descending))
        .collect();
    assert_eq!(order, [("flights", true), ("time", false), ("origin", false)]);
    assert_eq!((query.limit, query.layers), (50_000, Layers::Speed));
}

/// Each malformed query with its one fault: the parameter, the code, whether it is well formed and still impossible.
#[test]
fn every_fault_names_its_parameter_and_the_mend() {
    let cases = [
        ("foo=1", "foo", "unknown_parameter", false),
        ("filter=x", "filter", "unknown_parameter", false),
        ("from=1&from=2", "from", "repeated_parameter", false),
        (
            "measures=flights&measures=delay",
            "measures",
            "repeated_parameter",
            false,
        ),
        ("from=yesterday", "from", "malformed_value", false),
        ("from=2013-11-01", "from", "malformed_value", false),
        ("from=2013-11-01T00:00:00", "from", "malformed_value", false),
        ("from=-1", "from", "malformed_value", false),
        ("to=99999999999999999999", "to", "malformed_value", false),
        ("to=2300-01-01T00:00:01Z", "to", "malformed_value", false),
        ("from=20&to=20", "from", "empty_range", true),
        ("tz=Europe/Berlin", "tz", "unsupported_tz", true),
        ("tz=Mars", "tz", "malformed_value", false),
        ("grain=", "grain", "malformed_value", false),
        ("grain=5", "grain", "malformed_value", false),
        ("grain=0s", "grain", "malformed_value", false),
        ("grain=999999d", "grain", "malformed_value", false),
        ("grain=7m", "grain", "grain_not_multiple", true),
        ("grain=300500ms", "grain", "grain_not_multiple", true),
        ("grain=month", "grain", "unsupported_grain", true),
        ("measures=", "measures", "malformed_value", false),
        ("measures=flights,x", "measures", "unknown_measure", false),
        ("measures=flights,flights", "measures", "malformed_value", false),
        ("dimensions=flights", "dimensions", "unknown_dimension", false),
        ("filter[tail]=x", "filter[tail]", "unknown_dimension", false),
        ("filter[flight]=1,x", "filter[flight]", "malformed_value", false),
        (
            "filter[flight]=9223372036854775808",
            "filter[flight]",
            "malformed_value",
            false,
        ),
        ("filter[late]=1", "filter[late]", "malformed_value", false),
        ("filter[day]=2013-02-30", "filter[day]", "malformed_value", false),
        ("filter[landed]=0", "filter[landed]", "malformed_value", false),
        (
            "filter[origin]=a&filter[origin]=b",
            "filter[origin]",
            "repeated_parameter",
            false,
        ),
        ("order=x", "order", "unknown_field", false),
        ("order=time", "order", "not_selected", true),
        ("order=origin", "order", "not_selected", true),
        ("order=-flights,flights", "order", "malformed_value", false),
        ("order=-delay_q", "order", "not_orderable", false),
        ("limit=0", "limit", "malformed_value", false),
        ("limit=ten", "limit", "malformed_value", false),
        ("limit=50001", "limit", "limit_too_high", false),
        ("layers=both", "layers", "malformed_value", false),
    ];
    for (address, parameter, code, impossible) in cases {
        let faults = read(address).unwrap_err();
        let [fault] = faults.as_slice() else {
            panic!("{address}: {faults:?}")
        };
        assert_eq!(
            (fault.parameter.as_str(), fault.code, fault.impossible),
            (parameter, code, impossible),
            "{address}"
        );
        assert!(!fault.mend.is_empty() && !fault.detail.is_empty(), "{address}");
    }
}

#[test]
fn every_fault_of_a_body_too() {
    let cases = [
        (json!({"filter": []}), "filter", "unknown_parameter"),
        (json!({"from": []}), "from", "malformed_value"),
        (json!({"measures": [1]}), "measures", "malformed_value"),
        (json!({"filters": {}}), "filters", "malformed_value"),
        (json!({"filters": ["x"]}), "filters[0]", "malformed_value"),
        (
            json!({"filters": [{"field": "origin"}]}),
            "filters[0].value",
            "malformed_value",
        ),
        (
            json!({"filters": [{"value": 1}]}),
            "filters[0].field",
            "malformed_value",
        ),
        (
            json!({"filters": [{"field": "origin", "op": "in", "value": "x"}]}),
            "",
            "",
        ),
        (
            json!({"filters": [{"field": "origin", "op": "eq", "value": ["x"]}]}),
            "filters[0].value",
            "malformed_value",
        ),
        (
            json!({"filters": [{"field": "origin", "op": "like", "value": "x"}]}),
            "filters[0].op",
            "malformed_value",
        ),
        (
            json!({"filters": [{"field": "origin", "is": "x"}]}),
            "filters[0].is",
            "unknown_parameter",
        ),
        (
            json!({"filters": [{"field": "tail", "value": "x"}]}),
            "filters[0]",
            "unknown_dimension",
        ),
        (json!({"limit": 1.5}), "limit", "malformed_value"),
    ];
    for (body, parameter, code) in cases {
        match read_body(&body) {
            Ok(_) => assert!(code.is_empty(), "{body}"),
            Err(faults) => assert_eq!(
                (faults[0].parameter.as_str(), faults[0].code),
                (parameter, code),
                "{body}"
            ),
        }
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let faults =
        read("foo=1&from=x&to=y&grain=7m&measures=a&dimensions=b&filter[c]=1&order=d&limit=0&layers=e").unwrap_err();
    let parameters: Vec<_> = faults.iter().map(|fault| fault.parameter.as_str()).collect();
    assert_eq!(
        parameters,
        [
            "foo",
            "from",
            "to",
            "grain",
            "dimensions",
            "measures",
            "filter[c]",
            "order",
            "limit",
            "layers"
        ]
    );
}

#[test]
fn an_offset_whose_plus_was_not_escaped_is_told() {
    let fault = &read("from=2013-11-01T00:00:00+02:00").unwrap_err()[0];
    assert!(fault.mend.starts_with("`%2B` for the `+`"), "{}", fault.mend);
}

#[test]
fn a_thousand_values_and_no_more() {
    let values = |count: usize| format!("filter[flight]={}", vec!["1"; count].join(","));
    assert!(read(&values(1_000)).is_ok());
    assert_eq!(read(&values(1_001)).unwrap_err()[0].code, "too_many_values");
}

#[test]
fn a_long_text_is_not_repeated_at_length() {
    let fault = &read(&format!("from={}", "x".repeat(5_000))).unwrap_err()[0];
    assert!(fault.detail.len() < 200, "{}", fault.detail);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(name in "[a-z\\[\\]]{0,12}", value in "\\PC{0,24}", number in any::<i64>()) {
        let encoded: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
        for name in [name.as_str(), "from", "grain", "measures", "filter[flight]", "filter[day]", "order", "limit"] {
            let name: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
            let _ = read(&format!("{name}={encoded}"));
            let _ = read(&format!("{name}={number}"));
        }
        let _ = read_body(&json!({"from": value, "to": number, "limit": number, "filters": [{"field": value, "value": number}]}));
    }

    /// What is used holds what was asked for, ends at the view's grain, and is no longer than it must be.
    #[test]
    fn ranges_are_rounded_outward(from in 0_i64..9_000_000_000_000, length in 1_i64..9_000_000_000) {
        let to = from + length;
        let query = Query::check(
            Fields::of_body(json!({"from": millis(from), "to": millis(to)}).as_object().unwrap().clone()), view(), NOW);
        let range = query.unwrap().range;
        prop_assert!(range.from * 1_000 <= from && to <= range.to * 1_000);
        prop_assert!(range.from % 300 == 0 && range.to % 300 == 0);
        prop_assert!(from - range.from * 1_000 < 300_000 && range.to * 1_000 - to < 300_000);
    }

    /// Any values can be written so that they are read as they are.
    #[test]
    fn values_are_split_as_they_were_joined(values in prop::collection::vec("[a,\\\\ü\\[ ]{0,6}", 1..5)) {
        let joined: Vec<_> = values.iter().map(|value| value.replace('\\', "\\\\").replace(',', "\\,")).collect();
        let encoded: String = form_urlencoded::byte_serialize(joined.join(",").as_bytes()).collect();
        let query = read(&format!("filter[origin]={encoded}")).unwrap();
        prop_assert_eq!(&query.filters[0].values, &FilterValues::String(values));
    }
}

/// Milliseconds as RFC 3339: small numbers would be read as seconds.
fn millis(millis: i64) -> String {
    chrono::DateTime::from_timestamp_millis(millis).unwrap().to_rfc3339()
}
