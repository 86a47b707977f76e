//! What a view may say, what it may not, and that no expression fails.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::common::DFSchema;
use proptest::prelude::*;

use super::fixture::{Event, batch, compile, dataset, events, every_measure, source};
use super::functions::FUNCTIONS;
use super::{MeasureSource, ValueType, View, ViewMistake, ViewPlace, expression};
use crate::plan::{CellKey, CellPlan, FAILED_COLUMN, event_schema};

fn compiler_value(text: &str) -> Result<expression::Expression, String> {
    let dataset = dataset();
    let schema = DFSchema::try_from(event_schema(&dataset)).unwrap();
    expression::Compiler::new(&dataset, schema)
        .compile(text)
        .map_err(|mistakes| {
            mistakes
                .iter()
                .map(|m| format!("{:?}: {} / {}", m.at, m.what, m.instead.as_deref().unwrap_or("-")))
                .collect::<Vec<_>>()
                .join("; ")
        })
}

/// Evaluates a compiled expression.
fn evaluate(expression: &expression::Expression, events: &RecordBatch) -> arrow::array::ArrayRef {
    let schema = DFSchema::try_from(event_schema(&dataset())).unwrap();
    let dataset = dataset();
    let physical = expression::Compiler::new(&dataset, schema)
        .physical(expression.expr.clone())
        .unwrap();
    physical
        .evaluate(events)
        .unwrap()
        .into_array(events.num_rows())
        .unwrap()
}

fn one_event() -> Event {
    Event {
        at: 1_700_000_000_000_000,
        id: 1,
        origin: "JFK".to_owned(),
        carrier: Some("AA".to_owned()),
        delay: Some(i64::MAX),
        distance: Some(0.0),
        fare: Some(1050),
        cancelled: Some(true),
        day: Some(19_000),
        partition: 0,
        offset: 0,
    }
}

/// Runs a view over one event and gives the value of a UInt64 column of its one cell.
fn count_of(view: &View, event: Event, column: &str) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let plan = CellPlan::new(view, &dataset(), CellKey::Cell).unwrap();
    let cells = runtime.block_on(plan.run(vec![batch(&[event])])).unwrap();
    cells
        .column_by_name(column)
        .unwrap()
        .as_primitive::<UInt64Type>()
        .value(0)
}

#[test]
fn expressions_have_types() {
    let cases = [
        ("delay + 1", ValueType::Int64),
        ("delay / 2", ValueType::Int64),
        ("distance * 2", ValueType::Float64),
        ("upper(origin) || '!'", ValueType::String),
        ("character_length(origin)", ValueType::Int64),
        ("LENGTH(origin)", ValueType::Int64),
        ("date_trunc('week', at)", ValueType::Timestamp),
        ("at + INTERVAL '1 day'", ValueType::Timestamp),
        ("CAST(at AS DATE)", ValueType::Date),
        ("at::date", ValueType::Date),
        ("EXTRACT(hour FROM at)", ValueType::Int64),
        ("date_part('dow', at)", ValueType::Int64),
        ("day - DATE '2020-01-01'", ValueType::Int64),
        (
            "CASE WHEN delay > 60 THEN 'late' WHEN delay IS NULL THEN 'unknown' ELSE 'ok' END",
            ValueType::String,
        ),
        ("coalesce(carrier, 'none')", ValueType::String),
        ("carrier IN ('AA', 'UA') OR carrier LIKE 'D%'", ValueType::Bool),
        ("delay BETWEEN 1 AND 5", ValueType::Bool),
        ("at >= '2024-01-01T00:00:00Z'", ValueType::Bool),
        ("at >= TIMESTAMP '2024-01-01'", ValueType::Bool),
        (
            "fare",
            ValueType::Decimal {
                precision: 10,
                scale: 2,
            },
        ),
        (
            "CAST(distance AS DECIMAL(20, 4))",
            ValueType::Decimal {
                precision: 20,
                scale: 4,
            },
        ),
        ("abs(delay)", ValueType::Int64),
        ("round(distance)", ValueType::Float64),
        ("floor(distance / 100) * 100", ValueType::Float64),
        ("sqrt(distance)", ValueType::Float64),
        ("regexp_like(origin, '^J')", ValueType::Bool),
        ("cancelled IS TRUE", ValueType::Bool),
        ("trim(origin)", ValueType::String),
        ("substr(origin, 1, 2)", ValueType::String),
        ("split_part(origin, 'F', 1)", ValueType::String),
        ("-delay", ValueType::Int64),
        ("nullif(delay, 0)", ValueType::Int64),
    ];
    for (text, value_type) in cases {
        assert_eq!(
            compiler_value(text).map(|compiled| compiled.value_type),
            Ok(value_type),
            "{text}"
        );
    }
}

#[test]
fn mistakes_say_where_and_what_instead() {
    let cases = [
        ("", "Some(0): the expression is empty / -"),
        ("delay + ", "Some(7): expected an expression, found the end / -"),
        ("delay > 1 1", "Some(10): expected end of expression, found: 1 / -"),
        (
            "carier = 'AA'",
            "Some(0): dataset `flights` has no field `carier` / `carrier`",
        ),
        (
            "delay > 0 AND\n  zebra",
            "Some(16): dataset `flights` has no field `zebra` / one of at, id",
        ),
        (
            "carrier = \"AA\"",
            "Some(10): dataset `flights` has no field `AA` / text stands in single quotes: 'AA'",
        ),
        ("lowr(origin)", "Some(0): there is no function lowr() / lower()"),
        (
            "now() > at",
            "Some(0): now() depends on the moment or the machine it runs on",
        ),
        ("current_date", "Some(0): current_date() depends on the moment"),
        ("random() < 0.1", "Some(0): random() depends on the moment"),
        (
            "delay > sum(delay)",
            "Some(8): sum() is an aggregate and cannot stand inside an expression",
        ),
        (
            "delay > (SELECT 1)",
            "a subquery cannot be used here / an expression sees one event only",
        ),
        ("delay IN (SELECT 1)", "a subquery cannot be used here"),
        (
            "lower(origin) OVER ()",
            "Some(0): a window function cannot be used here",
        ),
        (
            "geo.country",
            "Some(0): access to a nested value cannot be used here / declare a field for it",
        ),
        ("delay + origin", "Some(0): "),
        ("NOT delay", ""),
        ("CAST('x' AS BIGINT) = delay", "annot"),
        ("date_trunc('wek', at)", "wek"),
        ("$1", "this kind of literal cannot be used here"),
        ("at - at", "date_part('epoch', …) makes a number of an interval"),
        ("NULL", "this is always null"),
        ("delay > 0; DROP TABLE x", "expected end of expression, found: ;"),
        ("repeat(origin, 1000000)", "there is no function repeat()"),
    ];
    for (text, expected) in cases {
        match compiler_value(text) {
            Err(found) => assert!(found.contains(expected), "{text}: {found}"),
            Ok(compiled) => panic!("{text} compiled to {:?}", compiled.expr),
        }
    }
}

#[test]
fn all_mistakes_of_a_view_come_at_once() {
    let mut source = source(
        Some("delay"),
        &[
            ("d", "distance"),
            ("f", "fare"),
            ("x", "nowhere"),
            ("y", "lowr(origin) = nothing"),
        ],
        &[
            ("a", "sum(origin)"),
            ("b", "median(delay)"),
            ("c", "delay"),
            ("d", "count()"),
            ("e", "count(1, 2)"),
        ],
    );
    source.grain = std::time::Duration::from_secs(7 * 60);
    source.measures.push((
        "g".to_owned(),
        MeasureSource::Aggregate {
            call: "count(*)".to_owned(),
            condition: Some("'yes'".to_owned()),
        },
    ));
    source.measures.push((
        "h".to_owned(),
        MeasureSource::Ratio {
            numerator: "a".to_owned(),
            denominator: "bb".to_owned(),
        },
    ));
    source.measures.push((
        "i".to_owned(),
        MeasureSource::Ratio {
            numerator: "h".to_owned(),
            denominator: "a".to_owned(),
        },
    ));
    let mistakes = View::compile(&source, &dataset()).unwrap_err();
    let mut listed: Vec<_> = mistakes
        .iter()
        .map(|m| format!("{:?} {} / {}", m.place, m.what, m.instead.as_deref().unwrap_or("-")))
        .collect();
    listed.sort();
    let expected = [
        "Condition(\"g\") a condition is true or false, but this is string / a comparison",
        "Dimension(0) a dimension cannot be float64 / a whole number",
        "Dimension(1) a dimension cannot be decimal(10, 2) / a whole number",
        "Dimension(2) dataset `flights` has no field `nowhere` / one of",
        "Dimension(3) dataset `flights` has no field `nothing` / one of",
        "Dimension(3) there is no function lowr() / lower()",
        "Filter a condition is true or false, but this is int64 / a comparison",
        "Grain a grain of 7m does not divide a day / \"",
        "Measure(\"a\") sum() needs a number, but this is string / -",
        "Measure(\"b\") there is no measure median() / quantiles()",
        "Measure(\"c\") a measure is a call of an aggregate / one of count, sum, min, max, avg, distinct, quantiles, first, last, \
         such as \"sum(delay)\"",
        "Measure(\"e\") count() takes at most one argument, not 2 / -",
        "Ratio(\"h\") the view has no measure `bb` / `b`",
        "Ratio(\"i\") `h` is a ratio itself / a ratio of two aggregates",
    ];
    assert_eq!(listed.len(), expected.len(), "{listed:#?}");
    for (found, expected) in listed.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nexpected {expected}");
    }
}

#[test]
fn a_chain_of_thousands_is_a_mistake_and_a_long_list_is_not() {
    let chain = |terms| vec!["id > 1"; terms].join(" AND ");
    assert_eq!(compiler_value(&chain(60)).map(drop), Ok(()));
    let mistake = compiler_value(&chain(5_000)).map(drop).unwrap_err();
    assert!(
        mistake.contains("the expression has 9999 operators, at most 200 are allowed"),
        "{mistake}"
    );
    let values: Vec<_> = (0..5_000).map(|value| format!("-{value}")).collect();
    assert_eq!(
        compiler_value(&format!("id IN ({})", values.join(", "))).map(drop),
        Ok(())
    );
}

#[test]
fn a_ratio_is_of_numbers() {
    let mut source = source(None, &[], &[("n", "count()"), ("first", "min(carrier)")]);
    let ratio = MeasureSource::Ratio {
        numerator: "first".to_owned(),
        denominator: "n".to_owned(),
    };
    source.measures.push(("share".to_owned(), ratio));
    let mistakes = View::compile(&source, &dataset()).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert_eq!(mistakes[0].place, ViewPlace::Ratio("share".to_owned()));
    assert_eq!(mistakes[0].what, "`first` is no number, so it has no ratio");
}

#[test]
fn columns_do_not_collide() {
    let source = source(None, &[("x__count", "origin")], &[("x", "count()"), ("y", "count()")]);
    let mistakes = View::compile(&source, &dataset()).unwrap_err();
    let expected = ViewMistake {
        place: ViewPlace::Measure("x".to_owned()),
        at: None,
        what: "its column `x__count` is also dimension `x__count`'s".to_owned(),
        instead: Some("another name".to_owned()),
    };
    assert_eq!(mistakes, [expected]);
}

#[test]
fn what_fails_is_null_and_counted() {
    let failing = [
        "delay + 1",
        "delay * 2",
        "id / 0",
        "id % (id - 1)",
        "-(0 - delay - 1)  - 1",
        "distance / distance",
        "1 / distance",
        "CAST(origin AS BIGINT)",
        "CAST('1e99' AS DOUBLE) * id * CAST('1e300' AS DOUBLE)",
        "CAST(delay AS INT)",
        "CAST('inf' || '' AS DOUBLE)",
        "fare / (fare - fare)",
        "ln(distance)",
        "make_date(2024, id, 31 + delay)",
        "day + INTERVAL '1000 years'",
        "at + INTERVAL '1000 years'",
        "CAST(origin AS DATE)",
        "CAST(origin AS TIMESTAMP)",
    ];
    for text in failing {
        let view = compile(&source(None, &[], &[("m", &format!("count({text})"))]));
        assert_eq!(count_of(&view, one_event(), "m__count"), 0, "{text}");
        assert!(count_of(&view, one_event(), FAILED_COLUMN) >= 1, "{text}");
    }
    let guarded = [
        "CASE WHEN distance <> 0 THEN 1 / distance ELSE 0 END",
        "CASE distance WHEN 0 THEN 0 ELSE 1 / distance END",
        "distance <> 0 AND 1 / distance > 0",
        "distance = 0 OR 1 / distance > 0",
        "nullif(id, 1)",
        "carrier",
    ];
    for text in guarded {
        let view = compile(&source(None, &[], &[("m", &format!("max({text})"))]));
        assert_eq!(count_of(&view, one_event(), FAILED_COLUMN), 0, "{text}");
    }
}

#[test]
fn an_argument_fails_only_where_its_condition_holds() {
    let mut source = source(None, &[], &[]);
    for (name, condition) in [("yes", "cancelled"), ("no", "NOT cancelled")] {
        let condition = Some(condition.to_owned());
        source.measures.push((
            name.to_owned(),
            MeasureSource::Aggregate {
                call: "sum(id / 0 * 1)".to_owned(),
                condition,
            },
        ));
    }
    // `id / 0` gives null; times 1 it is null of a null, which is no failure of its own.
    assert_eq!(count_of(&compile(&source), one_event(), FAILED_COLUMN), 1);
}

#[test]
fn names_are_taken_as_written() {
    assert!(compiler_value("Delay").is_err());
    assert_eq!(
        compiler_value(" delay/*x*/+  1").unwrap().text,
        compiler_value("delay + 1").unwrap().text
    );
    assert_eq!(compiler_value("UPPER(origin)").unwrap().text, "upper(origin)");
}

#[test]
fn days_that_no_calendar_has_are_null_as_text() {
    let mut event = one_event();
    event.day = Some(-552_110_125);
    let compiled = compiler_value("CAST(day AS VARCHAR)").unwrap();
    assert_eq!(evaluate(&compiled, &batch(&[event, one_event()])).null_count(), 1);
}

#[test]
fn zeros_are_one() {
    let compiled = compiler_value("distance").unwrap();
    let mut event = one_event();
    event.distance = Some(-0.0);
    let value = evaluate(&compiled, &batch(&[event]))
        .as_primitive::<arrow::datatypes::Float64Type>()
        .value(0);
    assert!(value.is_sign_positive());
}

#[test]
fn every_measure_compiles() {
    let view = compile(&every_measure());
    assert_eq!(view.columns().len(), 1 + view.dimensions.len() + view.measures.len());
}

/// Expressions over the fixture's fields, of no particular type.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "id",
            "delay",
            "distance",
            "fare",
            "origin",
            "carrier",
            "cancelled",
            "day",
            "at"
        ])
        .prop_map(str::to_owned),
        prop::sample::select(vec![
            "0",
            "1",
            "-1",
            "9223372036854775807",
            "2.5",
            "1e308",
            "''",
            "'week'",
            "'12'",
            "NULL",
            "true",
            "INTERVAL '1 month'",
            "DATE '2024-02-29'"
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let binary = prop::sample::select(vec!["+", "-", "*", "/", "%", "=", "<", "||", "AND", "OR"]);
        let function = prop::sample::select(FUNCTIONS.iter().map(|f| f.name).collect::<Vec<_>>());
        let to = prop::sample::select(vec!["BIGINT", "INT", "DOUBLE", "VARCHAR", "DECIMAL(10, 2)", "DATE", "TIMESTAMP", "BOOLEAN"]);
        prop_oneof![
            3 => (inner.clone(), binary, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            4 => (function, prop::collection::vec(inner.clone(), 1..4)).prop_map(|(f, args)| format!("{f}({})", args.join(", "))),
            1 => (inner.clone(), to).prop_map(|(a, to)| format!("CAST({a} AS {to})")),
            1 => (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("CASE WHEN {a} THEN {b} ELSE {c} END")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever compiles gives a value of its type or null for every event, and never an error. A row's value does not
    /// depend on its neighbours.
    #[test]
    fn no_expression_fails(texts in prop::collection::vec(expressions(), 8), events in events(1..20)) {
        for text in texts {
            let Ok(compiled) = compiler_value(&text) else { continue };
            let all = evaluate(&compiled, &batch(&events));
            prop_assert_eq!(all.data_type(), &compiled.value_type.arrow());
            prop_assert!(compiled.nullable || all.null_count() == 0);
            if let Some(failures) = &compiled.failures {
                let counted = expression::Expression { expr: failures.clone(), ..compiled.clone() };
                let counts = evaluate(&counted, &batch(&events));
                prop_assert_eq!(counts.null_count(), 0, "{}", text);
                prop_assert!(counts.as_primitive::<Int64Type>().values().iter().all(|&count| count >= 0));
            }
            for (row, event) in events.iter().enumerate() {
                let alone = evaluate(&compiled, &batch(std::slice::from_ref(event)));
                prop_assert_eq!(&alone, &all.slice(row, 1), "{} on row {}", text, row);
            }
        }
    }

    /// A null scale makes DataFusion's `round` of a decimal say another type once a plan is simplified.
    #[test]
    fn a_call_gives_the_type_that_was_planned(events in events(1..4)) {
        for text in ["round(fare, NULL)", "round(fare, CAST(NULL AS INT))", "trunc(fare, NULL)", "left(origin, NULL)"] {
            let Ok(compiled) = compiler_value(text) else { continue };
            let all = evaluate(&compiled, &batch(&events));
            prop_assert_eq!(all.data_type(), &compiled.value_type.arrow(), "{}", text);
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,40}", tokens in prop::collection::vec(
        prop::sample::select(vec!["delay", "(", ")", "'", "\"", "+", "CASE", "WHEN", "IN", "::", "NOT", ",", "count", "1", "ü", "--", "/*", "[", "."]), 0..12)) {
        for text in [text, tokens.join(" ")] {
            let _ = compiler_value(&text);
            let mistakes = View::compile(&source(Some(&text), &[("d", &text)], &[("m", &text)]), &dataset());
            for mistake in mistakes.err().into_iter().flatten() {
                prop_assert!(mistake.at.is_none_or(|at| text.is_char_boundary(at)), "{text}: {mistake:?}");
            }
        }
    }
}
