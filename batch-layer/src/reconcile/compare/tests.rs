//! What a filter that was cut short explains, and what it does not: on cells made of events by hand.

use arrow::array::{Int64Array, TimestampMicrosecondArray, UInt8Array, UInt64Array};
use shared_schemas::definitions::Definitions;
use shared_schemas::sketch::{DdSketch, Uniq};

use super::*;

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
event_id = ["tail"]
fields = { at = "timestamp", tail = "int64", delay = "int64" }

[view.counted]
dataset = "flights"
grain = "1h"
[view.counted.measures]
flights = "count()"
total = "sum(delay)"

[view.sketched]
dataset = "flights"
grain = "1h"
[view.sketched.measures]
total = "sum(delay)"
worst = "max(delay)"
planes = "distinct(tail)"
delays = "quantiles(delay, [0.5])"
"#;

const BATCH: u8 = 1;
const SPEED: u8 = 2;

/// The one cell of these events, by tail and delay.
fn cells(view: &View, layer: u8, events: &[(i64, i64)]) -> Cells {
    let window: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]));
    let mut columns = vec![(WINDOW_COLUMN.to_owned(), window)];
    let delays = || events.iter().map(|(_, delay)| *delay);
    for column in view.states() {
        let values: ArrayRef = match column.name.as_str() {
            "flights__count" => Arc::new(UInt64Array::from(vec![events.len() as u64])),
            "total__sum" => Arc::new(Int64Array::from(vec![delays().sum::<i64>()])),
            "worst__max" => Arc::new(Int64Array::from(vec![delays().max()])),
            "planes__sketch" => {
                let mut sketch = Uniq::default();
                events.iter().for_each(|(tail, _)| sketch.insert(tail.cast_unsigned()));
                Arc::new(BinaryArray::from_iter_values([sketch.write()]))
            }
            "delays__sketch" => {
                let mut sketch = DdSketch::default();
                delays().for_each(|delay| sketch.insert(f64::from(i32::try_from(delay).unwrap())));
                Arc::new(BinaryArray::from_iter_values([sketch.write()]))
            }
            _ => continue,
        };
        columns.push((column.name.clone(), cast(&values, &column.state.arrow()).unwrap()));
    }
    columns.push((LAYERS_COLUMN.to_owned(), Arc::new(UInt8Array::from(vec![layer]))));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    Cells::new(view, &batch.schema(), std::slice::from_ref(&batch)).unwrap()
}

/// Which measures differ, and which of them a filter that was cut short explains.
fn explained(view: &str, layer: u8, held: &[(i64, i64)]) -> Vec<(String, bool)> {
    let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
    let view = definitions.views.iter().find(|known| known.name == view).unwrap();
    let (held, exact) = (cells(view, layer, held), cells(view, layer, &EVENTS));
    let mut found = Compare::of(view, &held, &exact);
    found.explain(view, &held, &exact, false);
    assert!(found.different.iter().all(|difference| difference.explained.is_none()));
    found.explain(view, &held, &exact, true);
    let differences = found.different.into_iter();
    let of_one = |difference: Difference| (difference.measure, difference.explained == Some(CUT_SHORT));
    differences.map(of_one).collect()
}

const EVENTS: [(i64, i64); 2] = [(1, 5), (2, 7)];
/// One of them twice.
const REPEATED: [(i64, i64); 3] = [(1, 5), (2, 7), (2, 7)];

fn named(found: &[(&str, bool)]) -> Vec<(String, bool)> {
    found
        .iter()
        .map(|(name, explained)| ((*name).to_owned(), *explained))
        .collect()
}

#[test]
fn repeats_explain_what_more_events_can_make() {
    assert_eq!(
        explained("counted", SPEED, &REPEATED),
        named(&[("flights", true), ("total", true)])
    );
    // Without a count nothing says that a sum is of more.
    assert_eq!(
        explained("sketched", SPEED, &REPEATED),
        named(&[("total", false), ("delays", true)])
    );
    // A repeat need not have the values of its event.
    let other = [(1, 5), (2, 7), (3, 9)];
    let all = [("total", false), ("worst", true), ("planes", true), ("delays", true)];
    assert_eq!(explained("sketched", SPEED, &other), named(&all));
}

#[test]
fn repeats_explain_nothing_that_is_missing_or_wrong() {
    let none = [("total", false), ("worst", false), ("planes", false), ("delays", false)];
    assert_eq!(explained("sketched", SPEED, &EVENTS[..1]), named(&none));
    // As many values, but others.
    assert_eq!(explained("sketched", SPEED, &[(1, 5), (3, 6)]), named(&none));
    assert_eq!(
        explained("counted", SPEED, &[(1, 5), (2, 8)]),
        named(&[("total", false)])
    );
}

#[test]
fn repeats_explain_nothing_in_batch_rows() {
    assert_eq!(
        explained("counted", BATCH, &REPEATED),
        named(&[("flights", false), ("total", false)])
    );
    let other = [(1, 5), (2, 7), (3, 9)];
    assert!(
        explained("sketched", BATCH, &other)
            .iter()
            .all(|(_, explained)| !explained)
    );
}
