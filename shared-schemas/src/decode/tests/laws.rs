//! Laws of reading: no bytes panic, a refused record leaves no trace, and every record is a row or a refusal.

use arrow::compute::concat_batches;
use proptest::prelude::*;

use super::{anything, dataset, decoder, field, from, nullable, record};
use crate::dataset::{Dataset, EventTime, Field, FieldSource, FieldType, TimeUnit};
use crate::decode::{Reason, Record};

fn events() -> Dataset {
    let millis = FieldType::Timestamp {
        unit: Some(TimeUnit::Millisecond),
    };
    let fields: Vec<Field> = vec![
        nullable("s", FieldType::String),
        field("i", FieldType::Int64),
        nullable("o.b", FieldType::Bool),
        nullable("o.f", FieldType::Float64),
        field("t", millis),
        nullable("d", FieldType::Decimal { precision: 6, scale: 2 }),
        from("k", FieldType::String, FieldSource::Key),
        nullable("y", FieldType::Date),
    ];
    Dataset {
        event_time: EventTime::Field("t".to_owned()),
        ..dataset(fields)
    }
}

/// A message that is right, or wrong in one of the ways that a message can be.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let right = |values: (i64, String, bool, i32)| {
        let (integer, text, flag, cents) = values;
        let text = serde_json::to_string(&text).unwrap();
        let day = integer.rem_euclid(28) + 1;
        format!(
            r#"{{"s":{text},"i":{integer},"o":{{"b":{flag},"f":{integer}.5,"more":[{flag}]}},"t":1717243200000,"d":{cents}.25,"rest":{text},"y":"2024-02-{day:02}"}}"#
        )
    };
    let right = (any::<i64>(), ".{0,12}", any::<bool>(), -9999..9999)
        .prop_map(right)
        .boxed();
    let wrong = |from: &'static str, to: &'static str| {
        right
            .clone()
            .prop_map(move |message| message.replacen(from, to, 1).into_bytes())
    };
    prop_oneof![
        8 => right.clone().prop_map(String::into_bytes),
        1 => (right.clone(), any::<prop::sample::Index>()).prop_map(|(message, at)| message.as_bytes()[..at.index(message.len())].to_vec()),
        1 => (right.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(message, at, byte)| {
            let mut bytes = message.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(b"null".to_vec()),
        1 => right.clone().prop_map(|message| format!("[{message}]").into_bytes()),
        1 => wrong("\"i\":", "\"j\":"),
        1 => wrong("\"i\":", "\"i\":0."),
        1 => wrong("\"o\":{", "\"o\":[{"),
        1 => wrong("1717243200000", "1917243200000"),
        1 => wrong("1717243200000", "-1"),
        1 => wrong(".25", ".255"),
        1 => wrong("\"d\":", "\"d\":12345"),
        1 => wrong("2024-02-", "2024-13-"),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        anything::check(&data);
    }

    #[test]
    fn anything_like_json_is_read_or_refused(text in "[ ,:{}\\[\\]\"\\\\truefalsnd0-9.eE+su-]{0,40}") {
        anything::check(text.as_bytes());
        anything::check(format!("{{{text}}}").as_bytes());
        anything::check(format!("{{\"s\":\"{text}\",\"o\":{{\"x\":{text}}}}}").as_bytes());
    }

    #[test]
    fn a_refused_record_leaves_no_trace(messages in prop::collection::vec(message(), 0..30), extra in any::<bool>()) {
        let events = events();
        let mut all = decoder(&events, extra);
        let mut one = decoder(&events, extra);
        let mut good = decoder(&events, extra);
        let (mut alone, mut refusals) = (Vec::new(), 0);
        for (offset, message) in (0..).zip(&messages) {
            let record = Record { offset, key: Some(b"key"), ..record(message) };
            let verdict = all.push(&record);
            prop_assert_eq!(&one.push(&record), &verdict, "a record is judged by itself");
            alone.extend(one.finish());
            match verdict {
                Ok(()) => prop_assert_eq!(good.push(&record), Ok(())),
                Err(_) => refusals += 1,
            }
        }
        prop_assert_eq!(all.rows() + refusals, messages.len(), "rows and refusals are all there is");
        let batches = all.finish();
        prop_assert_eq!(&batches, &good.finish(), "with and without the bad ones");
        let alone = concat_batches(&all.schema(), &alone).unwrap();
        prop_assert_eq!(concat_batches(&all.schema(), &batches).unwrap(), alone, "together and one by one");
    }
}

/// The generator above makes what it promises: most messages are right, and nearly every reason occurs.
#[test]
fn the_messages_are_of_every_sort() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut decoder = decoder(&events(), true);
    let mut reasons = std::collections::BTreeMap::new();
    for _ in 0..3000 {
        let message = message().new_tree(&mut runner).unwrap().current();
        let verdict = decoder.push(&record(&message)).map_err(|refusal| refusal.reason);
        *reasons.entry(verdict.err()).or_insert(0) += 1;
    }
    assert!(reasons[&None] > 1000, "{reasons:?}");
    for reason in Reason::ALL {
        let expected = !matches!(reason, Reason::TooLarge);
        assert_eq!(reasons.contains_key(&Some(reason)), expected, "{reason} in {reasons:?}");
    }
}
