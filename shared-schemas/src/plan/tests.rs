//! The plan's law: all events at once, or parts of them merged, in any order, give the same cells.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{TimestampMicrosecondType, UInt64Type};
use proptest::prelude::*;

use super::{CellKey, CellPlan, FAILED_COLUMN, Filtered, MergePlan, START_COLUMN, WINDOW_COLUMN, key_fields, of_start};
use crate::view::fixture::{Event, batch, batch_with_starts, compile, dataset, events, every_measure, source};
use crate::view::{MeasureSource, View};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// In the order of the key.
fn sorted(view: &View, key: CellKey, cells: &RecordBatch) -> RecordBatch {
    let columns: Vec<_> = key_fields(view, key)
        .iter()
        .map(|field| SortColumn {
            values: cells.column_by_name(field.name()).unwrap().clone(),
            options: None,
        })
        .collect();
    take_record_batch(cells, &lexsort_to_indices(&columns, None).unwrap()).unwrap()
}

/// The columns that are exact in any order; sums of doubles have their own law in `measure`.
fn exact(cells: &RecordBatch) -> RecordBatch {
    let kept: Vec<_> = cells
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| !field.name().contains("distance__"))
        .map(|(index, _)| index)
        .collect();
    cells.project(&kept).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn parts_merge_to_the_whole(events in events(0..60), parts in prop::collection::vec(0_usize..4, 60)) {
        let view = compile(&every_measure());
        for (key, to_batch) in [(CellKey::Cell, batch as fn(&[Event]) -> RecordBatch), (CellKey::Start, batch_with_starts)] {
            let plan = CellPlan::new(&view, &dataset(), key).unwrap();
            let merge = MergePlan::new(&view, key).unwrap();
            let split: Vec<Vec<Event>> = (0..4)
                .map(|part| events.iter().zip(&parts).filter(|(_, of)| **of == part).map(|(event, _)| event.clone()).collect())
                .collect();
            let (whole, merged, batches) = runtime().block_on(async {
                let whole = plan.run(vec![to_batch(&events)]).await.unwrap();
                let mut cells = Vec::new();
                for part in &split {
                    cells.push(plan.run(vec![to_batch(part)]).await.unwrap());
                }
                // The same events in several batches of one run.
                let batches = plan.run(split.iter().map(|part| to_batch(part)).collect()).await.unwrap();
                (whole, merge.run(cells).await.unwrap(), batches)
            });
            let whole = exact(&sorted(&view, key, &whole));
            prop_assert_eq!(&whole, &exact(&sorted(&view, key, &merged)));
            prop_assert_eq!(&whole, &exact(&sorted(&view, key, &batches)));
        }
    }

    /// It makes no difference whether cells are grouped by their start, or made of one start's events.
    #[test]
    fn cells_of_one_start_need_not_be_grouped_by_it(events in events(0..60)) {
        let view = compile(&every_measure());
        let plan = CellPlan::new(&view, &dataset(), CellKey::Start).unwrap();
        let of_one = CellPlan::new(&view, &dataset(), CellKey::OneStart).unwrap();
        let mut starts: BTreeMap<(i32, u64), Vec<Event>> = BTreeMap::new();
        for event in &events {
            let start = event.offset.cast_unsigned() / 8 * 8;
            starts.entry((event.partition, start)).or_default().push(event.clone());
        }
        let (grouped, made) = runtime().block_on(async {
            let mut made = Vec::new();
            for ((partition, start), events) in &starts {
                let cells = of_one.run(vec![batch(events)]).await.unwrap();
                made.push(of_start(&cells, plan.schema(), *partition, *start).unwrap());
            }
            (plan.run(vec![batch_with_starts(&events)]).await.unwrap(), concat_batches(plan.schema(), &made).unwrap())
        });
        prop_assert_eq!(sorted(&view, CellKey::Start, &grouped), sorted(&view, CellKey::Start, &made));
    }

    /// Windows, filter, keys and counts against a plain model.
    #[test]
    fn cells_are_what_they_say(events in events(0..60)) {
        let view = compile(&every_measure());
        let plan = CellPlan::new(&view, &dataset(), CellKey::Start).unwrap();
        let cells = runtime().block_on(plan.run(vec![batch_with_starts(&events)])).unwrap();
        let mut expected: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        for event in events.iter().filter(|event| event.id != 7) {
            let start = event.offset.cast_unsigned() / 8 * 8;
            *expected.entry((event.at / 3_600_000_000 * 3_600_000_000, start)).or_default() += 1;
        }
        let windows = cells.column_by_name(WINDOW_COLUMN).unwrap().as_primitive::<TimestampMicrosecondType>();
        let starts = cells.column_by_name(START_COLUMN).unwrap().as_primitive::<UInt64Type>();
        let counts = cells.column_by_name("events__count").unwrap().as_primitive::<UInt64Type>();
        let mut found: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        for row in 0..cells.num_rows() {
            *found.entry((windows.value(row), starts.value(row))).or_default() += counts.value(row);
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn cells_have_the_columns_of_the_tables() {
    let view = compile(&every_measure());
    let plan = CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap();
    let cells = runtime().block_on(plan.run(vec![])).unwrap();
    let names: Vec<_> = cells
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    assert_eq!(names[..5], [WINDOW_COLUMN, "carrier", "late", "on", FAILED_COLUMN]);
    assert_eq!(names.len(), 5 + view.states().count());
    for column in view.states() {
        let schema = cells.schema();
        let field = schema.field_with_name(&column.name).unwrap();
        assert_eq!(
            (field.data_type(), field.is_nullable()),
            (&column.state.arrow(), column.state.is_nullable()),
            "{}",
            column.name
        );
    }
}

/// What a set in each of its cells would cost the speed layer, it does not pay.
#[test]
fn exact_sets_are_the_batch_layers_alone() {
    let view = compile(&every_measure());
    for key in [CellKey::Start, CellKey::OneStart] {
        let plan = CellPlan::new(&view, &dataset(), key).unwrap();
        let merge = MergePlan::new(&view, key).unwrap();
        for schema in [plan.schema(), merge.schema()] {
            assert!(schema.column_with_name("carriers__sketch").is_some());
            for of_batch in ["carriers__exact", "carriers__beyond"] {
                assert!(schema.column_with_name(of_batch).is_none(), "{key:?} {of_batch}");
            }
        }
    }
    let plan = CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap();
    assert!(plan.schema().column_with_name("carriers__exact").is_some());
}

/// An event of few values.
fn plain_event(at: i64) -> Event {
    Event {
        at,
        id: 0,
        origin: String::new(),
        carrier: None,
        delay: None,
        distance: None,
        fare: None,
        cancelled: None,
        day: None,
        partition: 0,
        offset: 0,
    }
}

#[test]
fn windows_begin_at_or_before_their_events() {
    let view = compile(&every_measure());
    let plan = CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap();
    // Before 1970 only a Kafka timestamp could be, and the decoder refuses it; the arithmetic holds all the same.
    for (at, window) in [
        (0, 0),
        (3_599_999_999, 0),
        (3_600_000_000, 3_600_000_000),
        (-1, -3_600_000_000),
    ] {
        let cells = runtime().block_on(plan.run(vec![batch(&[plain_event(at)])])).unwrap();
        let windows = cells
            .column_by_name(WINDOW_COLUMN)
            .unwrap()
            .as_primitive::<TimestampMicrosecondType>();
        assert_eq!(windows.value(0), window, "{at}");
    }
}

/// DataFusion shares what several measures have in common, a condition too; what it makes of that must still fit its plan.
#[test]
fn measures_may_share_a_condition() {
    for condition in ["delay > 15", "(delay > 15) IS TRUE", "(delay > 15) IS NOT TRUE"] {
        let mut source = source(None, &[("late", condition)], &[("n", "count()")]);
        for (name, call) in [
            ("far", "sum(distance - 20)"),
            ("most", "max(distance)"),
            ("far_q", "quantiles(distance, [0.5])"),
        ] {
            let measure = MeasureSource::Aggregate {
                call: call.to_owned(),
                condition: Some(condition.to_owned()),
            };
            source.measures.push((name.to_owned(), measure));
        }
        let plan = CellPlan::new(&compile(&source), &dataset(), CellKey::Cell).unwrap();
        let late = Event {
            delay: Some(16),
            distance: Some(25.0),
            ..plain_event(0)
        };
        let cells = runtime()
            .block_on(plan.run(vec![batch(&[late, plain_event(0)])]))
            .unwrap();
        assert_eq!(cells.num_rows(), 2, "{condition}");
    }
}

/// A filter that fails keeps its event out of every cell; how often is counted aside.
#[test]
fn failed_filters_are_counted_aside() {
    let event = |id| Event { id, ..plain_event(0) };
    let events = vec![batch(&[event(0), event(1), event(2)]), batch(&[event(0)])];
    for (filter, passed, failed, cells) in [
        ("10 / id > 4", 2, 2, 1),
        ("id > 1", 1, 0, 1),
        ("id <> 0 AND 10 / id > 100", 0, 0, 0),
    ] {
        let view = compile(&source(Some(filter), &[], &[("n", "count()")]));
        let plan = CellPlan::new(&view, &dataset(), CellKey::Cell).unwrap();
        assert_eq!(
            runtime().block_on(plan.filtered(events.clone())).unwrap(),
            Filtered { passed, failed },
            "{filter}"
        );
        assert_eq!(
            runtime().block_on(plan.run(events.clone())).unwrap().num_rows(),
            cells,
            "{filter}"
        );
    }
}
