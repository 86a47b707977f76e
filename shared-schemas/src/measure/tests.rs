//! The laws of the table: each kind's states merge like a commutative monoid, and give what a plain model gives.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Float64Type, Int64Type, UInt64Type};
use proptest::prelude::*;
use std::collections::BTreeSet;

use super::{Call, KINDS, Merged, Takes};
use crate::plan::{CellKey, CellPlan, MergePlan};
use crate::sketch::SMALLEST_VALUE;
use crate::view::fixture::{Event, batch, compile, dataset, events, source};
use crate::view::{ValueType, View};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// One cell for all events, without dimensions: only states.
fn states_view() -> View {
    let mut source = source(
        None,
        &[],
        &[
            ("events", "count()"),
            ("delays", "count(delay)"),
            ("delay", "sum(delay)"),
            ("distance", "sum(distance)"),
            ("fare", "avg(fare)"),
            ("least", "min(delay)"),
            ("most", "max(distance)"),
            ("carrier", "min(carrier)"),
            ("carriers", "distinct(carrier)"),
            ("delays_apart", "distinct(delay)"),
            ("far", "quantiles(distance, [0, 0.5, 1])"),
            ("opening", "first(carrier)"),
            ("closing", "last(delay)"),
        ],
    );
    source.distinct_limit = Some(LIMIT);
    source.grain = std::time::Duration::from_secs(86_400);
    compile(&source)
}

/// So few that sets are let go of.
const LIMIT: u64 = 5;

struct Plans {
    view: View,
    cells: CellPlan,
    merge: MergePlan,
}

impl Plans {
    fn new() -> Self {
        let view = states_view();
        Self {
            cells: CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap(),
            merge: MergePlan::new(&view, CellKey::Cell).unwrap(),
            view,
        }
    }

    /// What a serialized state of the only cell says.
    fn result(&self, cells: &RecordBatch, name: &str) -> String {
        let of_name = self.view.states().find(|held| held.name == name).unwrap();
        let reading = of_name.state.read(column(cells, name).as_binary::<i32>().value(0));
        reading.unwrap().unwrap().result
    }

    fn cells(&self, events: &[Event]) -> RecordBatch {
        runtime().block_on(self.cells.run(vec![batch(events)])).unwrap()
    }

    fn merge(&self, cells: &[&RecordBatch]) -> RecordBatch {
        runtime()
            .block_on(self.merge.run(cells.iter().map(|&cells| cells.clone()).collect()))
            .unwrap()
    }
}

fn column<'a>(cells: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    cells.column_by_name(name).unwrap()
}

/// Equal, but for sums of doubles, which may be apart by what rounding allows.
fn assert_same(a: &RecordBatch, b: &RecordBatch) {
    assert_eq!(a.schema(), b.schema());
    assert_eq!(a.num_rows(), b.num_rows());
    for (field, (a_column, b_column)) in a.schema().fields().iter().zip(a.columns().iter().zip(b.columns())) {
        match field.name().as_str() {
            "distance__sum" | "distance__magnitude" => {
                for row in 0..a.num_rows() {
                    let value =
                        |cells: &RecordBatch, name| column(cells, name).as_primitive::<Float64Type>().value(row);
                    let count = column(a, "distance__count").as_primitive::<UInt64Type>().value(row);
                    #[expect(clippy::cast_precision_loss, reason = "few events")]
                    let bound = count as f64 * f64::EPSILON * value(a, "distance__magnitude");
                    let (a, b) = (value(a, field.name()), value(b, field.name()));
                    assert!(
                        a == b || !a.is_finite() || (a - b).abs() <= bound,
                        "{a} and {b}, bound {bound}"
                    );
                }
            }
            name => assert_eq!(a_column, b_column, "{name}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn states_are_a_commutative_monoid(a in events(0..12), b in events(0..12), c in events(0..12)) {
        let plans = Plans::new();
        let (a, b, c) = (plans.cells(&a), plans.cells(&b), plans.cells(&c));
        assert_same(&plans.merge(&[&a, &b]), &plans.merge(&[&b, &a]));
        assert_same(&plans.merge(&[&plans.merge(&[&a, &b]), &c]), &plans.merge(&[&a, &plans.merge(&[&b, &c])]));
        // No event is no cell: the unit.
        let unit = plans.cells(&[]);
        prop_assert_eq!(unit.num_rows(), 0);
        assert_same(&plans.merge(&[&a, &unit]), &plans.merge(&[&a]));
        assert_same(&plans.merge(&[&a]), &a);
    }

    /// What each state holds, said a second time in plain Rust.
    #[test]
    fn states_are_what_they_say(events in events(1..40)) {
        let plans = Plans::new();
        let cells = plans.cells(&events);
        prop_assert_eq!(cells.num_rows(), 1);
        let count = |name: &str| column(&cells, name).as_primitive::<UInt64Type>().value(0);
        let delays: Vec<_> = events.iter().filter_map(|event| event.delay).collect();
        prop_assert_eq!(count("events__count"), events.len() as u64);
        prop_assert_eq!(count("delays__count"), delays.len() as u64);
        let sum = column(&cells, "delay__sum").as_primitive::<Decimal128Type>();
        let expected = (!delays.is_empty()).then(|| delays.iter().map(|&delay| i128::from(delay)).sum::<i128>());
        prop_assert_eq!(sum.is_valid(0).then(|| sum.value(0)), expected);
        let least = column(&cells, "least__min").as_primitive::<Int64Type>();
        prop_assert_eq!(least.is_valid(0).then(|| least.value(0)), delays.iter().min().copied());
        let fares: Vec<_> = events.iter().filter_map(|event| event.fare).collect();
        let fare = column(&cells, "fare__sum").as_primitive::<Decimal128Type>();
        prop_assert_eq!(fare.is_valid(0).then(|| fare.value(0)), (!fares.is_empty()).then(|| fares.iter().sum()));
        prop_assert_eq!(count("fare__count"), fares.len() as u64);
        let distances: Vec<_> = events.iter().filter_map(|event| event.distance).collect();
        let most = column(&cells, "most__max").as_primitive::<Float64Type>();
        prop_assert_eq!(most.is_valid(0).then(|| most.value(0)), distances.iter().copied().reduce(f64::max));
        let carrier = column(&cells, "carrier__min").as_string::<i32>();
        let expected = events.iter().filter_map(|event| event.carrier.as_deref()).min();
        prop_assert_eq!(carrier.is_valid(0).then(|| carrier.value(0)), expected);
        for (name, apart) in [
            ("carriers", events.iter().filter_map(|event| event.carrier.as_deref()).collect::<BTreeSet<_>>().len()),
            ("delays_apart", delays.iter().collect::<BTreeSet<_>>().len()),
        ] {
            prop_assert_eq!(plans.result(&cells, &format!("{name}__sketch")), apart.to_string());
            let beyond = apart as u64 > LIMIT;
            prop_assert_eq!(count(&format!("{name}__beyond")), u64::from(beyond));
            let held = if beyond { 0 } else { apart };
            prop_assert_eq!(plans.result(&cells, &format!("{name}__exact")), held.to_string());
        }
        let mut ordered: Vec<&Event> = events.iter().collect();
        ordered.sort_by_key(|event| (event.at, event.offset, event.partition));
        let opening = ordered.iter().find_map(|event| Some(format!("{} at offset {}", event.carrier.as_deref()?, event.offset)));
        prop_assert_eq!(plans.result(&cells, "opening__first"), opening.unwrap_or("none".to_owned()));
        let closing = ordered.iter().rev().find_map(|event| Some(format!("{} at offset {}", event.delay?, event.offset)));
        prop_assert_eq!(plans.result(&cells, "closing__last"), closing.unwrap_or("none".to_owned()));
        // What is smaller counts as zero.
        let sketched = |value: &f64| if value.abs() < SMALLEST_VALUE { 0.0 } else { *value };
        let mut distances: Vec<f64> = distances.iter().map(sketched).collect();
        distances.sort_by(f64::total_cmp);
        let far = plans.result(&cells, "far__sketch");
        if let (Some(least), Some(most)) = (distances.first(), distances.last()) {
            let far: Vec<f64> = far.trim_matches(['[', ']']).split(", ").map(|level| level.parse().unwrap()).collect();
            let within = |found: f64, value: f64| (found - value).abs() <= 0.010_000_1 * value.abs();
            prop_assert!(within(far[0], *least) && within(far[2], *most), "{far:?} of {distances:?}");
            prop_assert!(within(far[1], distances[(distances.len() - 1) / 2]), "{far:?} of {distances:?}");
        } else {
            prop_assert_eq!(far, "none");
        }
    }
}

/// Sums of the largest values there can be.
#[test]
fn sums_do_not_overflow() {
    let event = Event {
        at: 0,
        id: 0,
        origin: String::new(),
        carrier: None,
        delay: Some(i64::MAX),
        distance: None,
        fare: None,
        cancelled: None,
        day: None,
        partition: 0,
        offset: 0,
    };
    let plans = Plans::new();
    let cells = plans.cells(&vec![event; 1000]);
    let sum = column(&plans.merge(&[&cells, &cells]), "delay__sum")
        .as_primitive::<Decimal128Type>()
        .value(0);
    assert_eq!(sum, 2000 * i128::from(i64::MAX));
}

#[test]
fn the_table_is_whole() {
    let types = [
        ValueType::String,
        ValueType::Bool,
        ValueType::Int64,
        ValueType::Float64,
        ValueType::Decimal {
            precision: 28,
            scale: 4,
        },
        ValueType::Timestamp,
        ValueType::Date,
    ];
    for kind in KINDS {
        let arguments = types
            .into_iter()
            .map(Some)
            .chain((kind.takes == Takes::AtMostOne).then_some(None));
        for argument in arguments.filter(|argument| argument.is_none_or(|argument| kind.accepts(argument).is_ok())) {
            let levels = if kind.takes == Takes::OneAndLevels {
                vec![0.5, 1.0]
            } else {
                vec![]
            };
            let call = Call {
                argument,
                levels,
                limit: kind.keeps_sets.then_some(9),
            };
            let states = kind.states(&call);
            let names: Vec<_> = states.iter().map(|state| state.column("m")).collect();
            let merged = Merged {
                states: &names,
                all_batch: "all_batch",
            };
            let result = kind.result_sql(&call, &merged);
            assert!(!result.is_empty(), "{} of {argument:?}", kind.name);
            for state in &states {
                assert_eq!(names.iter().filter(|name| **name == state.column("m")).count(), 1);
                assert!(
                    !state.is_serialized() || state.clickhouse().starts_with("AggregateFunction("),
                    "{state:?}"
                );
            }
        }
    }
    let refused = KINDS
        .iter()
        .filter(|kind| kind.accepts(ValueType::String).is_err())
        .map(|kind| kind.name);
    assert_eq!(refused.collect::<Vec<_>>(), ["sum", "avg", "quantiles"]);
    let wide = ValueType::Decimal {
        precision: 29,
        scale: 29,
    };
    assert!(
        super::kind("sum")
            .unwrap()
            .accepts(wide)
            .unwrap_err()
            .contains("CAST(… AS DECIMAL(28, 28))")
    );
    assert!(super::kind("max").unwrap().accepts(wide).is_ok());
}
