//! What a filter that was cut short and other keys explain, and what they do not: on cells made of events by hand.

use std::collections::BTreeSet;

use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray, UInt8Array, UInt64Array};
use futures::StreamExt;
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::plan::{CellKey, FAILED_COLUMN, MergePlan};
use shared_schemas::sketch::{DdSketch, Uniq};

use super::super::apart::{Judge, Kind, Known, Piece, Totals, in_total};
use super::super::laid::{Laid, merged};
use super::super::reach::Reach;
use super::*;
use crate::spill::Spill;

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
event_id = ["tail"]
fields = { at = "timestamp", tail = "int64", delay = "int64", plane = "string?" }
mask = { plane = { hash = "PLANE_KEY" } }

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

[view.hashed]
dataset = "flights"
grain = "1h"
[view.hashed.measures]
flights = "count()"
total = "sum(delay)"
planes = "distinct(plane)"

[view.by_tail]
dataset = "flights"
grain = "1h"
dimensions = [{ name = "of", expr = "coalesce(plane, 'none')" }]
[view.by_tail.measures]
flights = "count()"
"#;

const SPEED: u8 = 2;

/// The one cell of these events, by tail and delay.
fn cells(view: &View, layer: u8, events: &[(i64, i64)]) -> Cells {
    let window: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC"));
    let failed: ArrayRef = Arc::new(UInt64Array::from(vec![0]));
    let mut columns = vec![(WINDOW_COLUMN.to_owned(), window), (FAILED_COLUMN.to_owned(), failed)];
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

fn definitions() -> Definitions {
    Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap()
}

/// Nothing is there.
fn nothing(view: &View) -> Cells {
    let one = cells(view, SPEED, &[]);
    Cells::new(view, &one.batch().schema(), &[]).unwrap()
}

/// A piece of cells of one kind, beside one in which nothing is.
fn judge<'a>(view: &'a View, dataset: &Dataset, piece: Piece) -> Judge<'a> {
    let rest = Piece {
        kind: None,
        held: nothing(view),
        predicted: nothing(view),
        present: None,
        totals: None,
        known: None,
        most: 0,
    };
    Judge {
        view,
        reach: Reach::of_keys(view, dataset),
        rules: 1,
        pieces: vec![rest, piece],
    }
}

/// Which measures of the first view's cell differ, and the cause of each.
async fn causes(view: &str, kind: Option<Kind>, held: &[(i64, i64)], known: &[(i64, i64)]) -> Vec<(String, Cause)> {
    let definitions = definitions();
    let view = definitions.view(view).unwrap();
    let merge = MergePlan::new(view, CellKey::OneStart).unwrap();
    let events: Vec<_> = known
        .iter()
        .map(|event| {
            let cell = cells(view, SPEED, &[*event]);
            cell.batch()
                .project(&(0..merge.schema().fields().len()).collect::<Vec<_>>())
                .unwrap()
        })
        .collect();
    let piece = Piece {
        kind,
        held: cells(view, SPEED, held),
        predicted: cells(view, SPEED, &EVENTS),
        present: None,
        totals: None,
        most: 0,
        known: Some(
            Known::of(view, &merge, &cells(view, SPEED, &EVENTS), events)
                .await
                .unwrap(),
        ),
    };
    let mut found = Compare::of(view, &piece.held, &piece.predicted);
    judge(view, &definitions.datasets[0], piece).judge(&mut found.different);
    let differences = found.different.into_iter();
    differences.map(|one| (one.measure, one.cause)).collect()
}

const EVENTS: [(i64, i64); 2] = [(1, 5), (2, 7)];

fn named(found: &[(&str, bool)], cause: Cause) -> Vec<(String, Cause)> {
    found
        .iter()
        .map(|(name, explained)| ((*name).to_owned(), if *explained { cause } else { Cause::Unexplained }))
        .collect()
}

#[tokio::test]
async fn repeats_explain_what_their_events_add() {
    let cut_short = async |view, held: &[_], known: &[_]| causes(view, Some(Kind::CutShort), held, known).await;
    let repeats = |found: &[_]| named(found, Cause::RepeatBeyondWindow);
    let twice = [(1, 5), (2, 7), (2, 7)];
    assert_eq!(
        cut_short("counted", &twice, &EVENTS).await,
        repeats(&[("flights", true), ("total", true)])
    );
    assert_eq!(
        cut_short("sketched", &twice, &EVENTS).await,
        repeats(&[("total", true), ("delays", true)])
    );
    // As many as one more, and a sum that no repeat gives; one too many; or with a value that no repeat has.
    assert_eq!(
        cut_short("counted", &[(1, 5), (2, 7), (2, 8)], &EVENTS).await,
        repeats(&[("flights", true), ("total", false)])
    );
    assert_eq!(
        cut_short("counted", &[(1, 5), (2, 7), (2, 7)], &[(1, 5)]).await,
        repeats(&[("flights", true), ("total", false)])
    );
    assert_eq!(
        cut_short("counted", &twice, &[]).await,
        repeats(&[("flights", false), ("total", false)])
    );
    let worse = [(1, 5), (2, 7), (3, 9)];
    assert_eq!(
        cut_short("sketched", &worse, &EVENTS).await,
        repeats(&[("total", false), ("worst", false), ("planes", false), ("delays", false)])
    );
}

#[tokio::test]
async fn nothing_is_explained_where_rows_may_not_differ() {
    let twice = [(1, 5), (2, 7), (2, 7)];
    for view in ["counted", "sketched"] {
        let found = causes(view, None, &twice, &EVENTS).await;
        assert!(
            found.len() > 1 && found.iter().all(|(_, cause)| *cause == Cause::Unexplained),
            "{found:?}"
        );
        // Less than there should be.
        let found = causes(view, Some(Kind::CutShort), &EVENTS[..1], &EVENTS).await;
        assert!(
            found.len() > 1 && found.iter().all(|(_, cause)| *cause == Cause::Unexplained),
            "{found:?}"
        );
    }
}

/// Another key changes what is made of hashes, and nothing else: a row that was changed by hand stays unexplained.
#[tokio::test]
async fn another_key_excuses_what_it_can_change() {
    let other_tails = [(11, 5), (12, 7)];
    let keys = async |view, held: &[_]| causes(view, Some(Kind::Keys), held, &[]).await;
    let changed = |found: &[_]| named(found, Cause::DefinitionChanged);
    assert_eq!(keys("hashed", &other_tails).await, changed(&[("planes", true)]));
    // More events than there were: the count is wrong, and so nothing is said for the hashes.
    assert_eq!(
        keys("hashed", &[(11, 5), (12, 7), (13, 0)]).await,
        changed(&[("flights", false), ("planes", false)])
    );
    assert_eq!(keys("hashed", &[(1, 5), (2, 8)]).await, changed(&[("total", false)]));
    // More different hashes than values that were hashed; fewer there may not be, with one key.
    assert_eq!(keys("hashed", &[(11, 5), (11, 7)]).await, changed(&[("planes", false)]));
}

/// What differs of a cell with events of other rules: whether that is proved, may be right, or neither.
async fn by_rules(
    view: &str,
    held: &[(i64, i64)],
    of_now: &[(i64, i64)],
    others: &[(i64, i64)],
    most: u64,
) -> Vec<(String, &'static str)> {
    let definitions = definitions();
    let view = definitions.view(view).unwrap();
    let merge = MergePlan::new(view, CellKey::OneStart).unwrap();
    let some = |events: &[(i64, i64)]| match events {
        [] => nothing(view),
        _ => cells(view, SPEED, events),
    };
    let plain: Vec<_> = (0..merge.schema().fields().len()).collect();
    let one = |event: &(i64, i64)| cells(view, SPEED, &[*event]).batch().project(&plain).unwrap();
    let known = Known::of(view, &merge, &some(of_now), others.iter().map(one).collect()).await;
    let piece = Piece {
        kind: Some(Kind::Rules),
        held: some(held),
        predicted: some(&[of_now, others].concat()),
        present: Some(some(of_now)),
        totals: None,
        known: Some(known.unwrap()),
        most,
    };
    let mut found = Compare::of(view, &piece.held, &piece.predicted);
    judge(view, &definitions.datasets[0], piece).judge(&mut found.different);
    let said = |one: &Difference| match (one.cause, one.unproved) {
        (Cause::DefinitionChanged, None) => "proved",
        (Cause::Unexplained, Some(_)) => "unproved",
        (Cause::Unexplained, None) => "no",
        other => panic!("{other:?}"),
    };
    let contributed =
        |one: &Difference| one.contributions.len() == usize::from(said(one) != "no" && view.name == "counted");
    assert!(found.different.iter().all(contributed));
    found
        .different
        .iter()
        .map(|one| (one.measure.clone(), said(one)))
        .collect()
}

/// What the archive read under the rules of now is exact; of other rules rows may hold some of what is archived; and of what is not archived
/// there is but a count.
#[tokio::test]
async fn other_rules_excuse_what_was_read_under_them() {
    let counted = async |held: &[_], of_now: &[_], others: &[_], most| {
        let found = by_rules("counted", held, of_now, others, most).await;
        let said: Vec<_> = found.iter().map(|(measure, said)| (measure.as_str(), *said)).collect();
        match said[..] {
            [("flights", flights), ("total", total)] => [flights, total],
            [("total", total)] => ["equal", total],
            _ => panic!("{said:?}"),
        }
    };
    // None of the others, or some of them.
    assert_eq!(counted(&[(1, 5)], &[(1, 5)], &[(2, 7)], 0).await, ["proved", "proved"]);
    assert_eq!(counted(&[], &[], &[(2, 8)], 0).await, ["proved", "proved"]);
    let others = [(2, 7), (3, 4), (4, 9)];
    assert_eq!(
        counted(&[(1, 5), (3, 4)], &[(1, 5)], &others, 0).await,
        ["proved", "proved"]
    );
    // Another value than is archived, of one of them or of all.
    assert_eq!(
        counted(&[(1, 5), (3, 6)], &[(1, 5)], &others, 0).await,
        ["proved", "unproved"]
    );
    assert_eq!(
        counted(&[(1, 5), (2, 8)], &[(1, 5)], &[(2, 7)], 1).await,
        ["equal", "unproved"]
    );
    // One more than is archived; a row of nothing else.
    let more = [(1, 5), (2, 7), (3, 9)];
    assert_eq!(counted(&more, &[(1, 5)], &[(2, 7)], 1).await, ["proved", "unproved"]);
    assert_eq!(counted(&[(2, 8)], &[], &[], 1).await, ["proved", "unproved"]);
    // More than there can be; fewer than there must be; none of the others, and another sum.
    assert_eq!(counted(&more, &[(1, 5)], &[(2, 7)], 0).await, ["no", "no"]);
    assert_eq!(counted(&[], &[(1, 5)], &[(2, 7)], 1).await, ["no", "no"]);
    let of_now = [(1, 5), (2, 7)];
    assert_eq!(
        counted(&[(1, 5), (2, 8)], &of_now, &[(3, 4)], 1).await,
        ["proved", "no"]
    );
    // Without a plain count: what must be in it is, and what more there is nobody knows.
    let found = by_rules("sketched", &[(1, 5), (2, 7), (4, 9)], &of_now, &[(3, 1)], 1).await;
    assert!(
        found.len() > 2 && found.iter().all(|(_, said)| *said == "unproved"),
        "{found:?}"
    );
    let found = by_rules("sketched", &[(1, 5), (2, 7), (3, 1)], &of_now, &[(3, 1), (4, 2)], 1).await;
    assert!(
        !found.is_empty() && found.iter().all(|(_, said)| *said == "proved"),
        "{found:?}"
    );
    let found = by_rules("sketched", &[(1, 5), (3, 1)], &of_now, &[(3, 1)], 1).await;
    let wrong: Vec<_> = found
        .iter()
        .filter(|(_, said)| *said == "no")
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        wrong,
        ["worst", "planes", "delays"],
        "what must be in it is not: {found:?}"
    );
}

/// Where keys change the dimensions, cells are others; over all values of them it is as many events.
#[tokio::test]
async fn another_key_of_a_dimension_moves_events_and_loses_none() {
    let definitions = definitions();
    let view = definitions.view("by_tail").unwrap();
    let merge = MergePlan::new(view, CellKey::OneStart).unwrap();
    let of = |groups: &[(&str, u64)]| {
        let tails: ArrayRef = Arc::new(StringArray::from_iter_values(groups.iter().map(|(tail, _)| *tail)));
        let windows: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0; groups.len()]).with_timezone("UTC"));
        let counts: ArrayRef = Arc::new(UInt64Array::from_iter_values(groups.iter().map(|(_, count)| *count)));
        let failed: ArrayRef = Arc::new(UInt64Array::from(vec![0; groups.len()]));
        let batch = RecordBatch::try_new(merge.schema().clone(), vec![windows, tails, failed, counts]).unwrap();
        Cells::new(view, merge.schema(), &[batch]).unwrap()
    };
    // So many that no narrowing would have come to the last.
    let names: Vec<String> = (0..80).map(|at| format!("{at:03}")).collect();
    let (old, new) = names.split_at(40);
    let counted = |names: &[String], odd: u64| {
        let groups: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), 3 + odd * u64::from(name == "050")))
            .collect();
        of(&groups)
    };
    for (odd, cause) in [(0, Cause::DefinitionChanged), (1000, Cause::Unexplained)] {
        let (held, predicted) = (counted(new, odd), counted(old, 0));
        let mut found = Compare::of(view, &held, &predicted);
        assert_eq!(found.different.len(), 80);
        let differ: BTreeSet<_> = found.different.iter().filter_map(|one| one.cell.clone()).collect();
        let spill = Spill::new(None).unwrap();
        let total = async |cells: &Cells| {
            // In pieces, as they come.
            let rows = 0..cells.batch().num_rows();
            let pieces: Vec<_> = rows.map(|row| Ok(cells.batch().slice(row, 1))).collect();
            let cells = in_total(&merge, &[true], futures::stream::iter(pieces).boxed());
            let cells = merged(merge.clone(), 2, cells, 1000);
            Laid::of_sorted(&spill, merge.schema(), 2, cells).await.unwrap()
        };
        let mut sides = [total(&held).await, total(&predicted).await];
        let totals = Totals::of(view, &merge, &[true], &differ, &mut sides).unwrap();
        let piece = Piece {
            kind: Some(Kind::Keys),
            held,
            predicted,
            present: None,
            totals: Some(totals),
            known: None,
            most: 0,
        };
        judge(view, &definitions.datasets[0], piece).judge(&mut found.different);
        assert!(
            found
                .different
                .iter()
                .all(|one| one.cause == cause && one.place.is_empty()),
            "{odd}"
        );
    }
}
