//! The laws of the table: each kind's states merge like a commutative monoid, and give what a plain model gives.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Float64Type, Int64Type, UInt64Type};
use proptest::prelude::*;

use super::{KINDS, Takes};
use crate::plan::{CellKey, CellPlan, MergePlan};
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
        ],
    );
    source.grain = std::time::Duration::from_secs(86_400);
    compile(&source)
}

struct Plans {
    cells: CellPlan,
    merge: MergePlan,
}

impl Plans {
    fn new() -> Self {
        let view = states_view();
        Self {
            cells: CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap(),
            merge: MergePlan::new(&view, CellKey::Cell).unwrap(),
        }
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
        let cells = Plans::new().cells(&events);
        prop_assert_eq!(cells.num_rows(), 1);
        let count = |name| column(&cells, name).as_primitive::<UInt64Type>().value(0);
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
            let states = kind.states(argument);
            let names: Vec<_> = states.iter().map(|state| state.column("m")).collect();
            let result = kind.result_sql(argument, &names);
            assert!(!result.is_empty(), "{} of {argument:?}", kind.name);
            assert!(
                states
                    .iter()
                    .all(|state| names.iter().filter(|name| **name == state.column("m")).count() == 1)
            );
        }
    }
    let refused = KINDS
        .iter()
        .filter(|kind| kind.accepts(ValueType::String).is_err())
        .map(|kind| kind.name);
    assert_eq!(refused.collect::<Vec<_>>(), ["sum", "avg"]);
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
