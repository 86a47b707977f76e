//! The SQL as it is sent, pinned; and that it asks for nothing that a view does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::tables::{batch_table, control_tables, speed_table};
use super::{Filter, FilterValues, Layers, Merging, Order, STATEMENT_LIMIT, Selection, StatementError, bound_column};
use crate::handoff::floor::COLLECT_WAITS;
use crate::handoff::{EventDay, Mark, Offset, Partition, Publication, RunId, TopicId};
use crate::view::fixture::{compile, source};
use crate::view::{MeasureSource, View};

fn view() -> View {
    let mut view = compile(&source(
        None,
        &[("carrier", "carrier"), ("origin", "origin")],
        &[
            ("flights", "count()"),
            ("delay", "avg(delay)"),
            ("distance", "sum(distance)"),
            ("first", "min(at)"),
        ],
    ));
    // The names of tables depend on it; that it is stable is pinned elsewhere.
    view.fingerprint = crate::fingerprint::Fingerprint(0xAB);
    view
}

#[test]
fn a_views_tables_are_pinned() {
    let speed = "\
CREATE TABLE IF NOT EXISTS `db`.`speed_000000000000000000000000000000ab`
(
    `_window` DateTime64(0, 'UTC'),
    `carrier` Nullable(String),
    `origin` String,
    `_topic` UInt128,
    `_partition` UInt32,
    `_start` UInt64,
    `_next` UInt64,
    `_failed` UInt64,
    `flights__count` UInt64,
    `delay__sum` Nullable(Decimal(38, 0)),
    `delay__count` UInt64,
    `distance__sum` Float64,
    `distance__magnitude` Float64,
    `distance__count` UInt64,
    `first__min` Nullable(DateTime64(6, 'UTC'))
)
ENGINE = ReplacingMergeTree(`_next`)
PARTITION BY toYYYYMM(`_window`)
ORDER BY (`_window`, `carrier`, `origin`, `_topic`, `_partition`, `_start`)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, allow_nullable_key = 1";
    assert_eq!(speed_table(&view()).create("db"), speed);
    let batch = batch_table(&view());
    assert_eq!(batch.engine, "ReplacingMergeTree");
    assert_eq!(batch.order_by, ["_day", "_run", "_window", "carrier", "origin"]);
}

#[test]
fn every_key_is_made_of_columns() {
    for table in control_tables()
        .iter()
        .chain(&[speed_table(&view()), batch_table(&view())])
    {
        let columns: BTreeSet<_> = table.columns.iter().map(|(name, _)| name).collect();
        assert_eq!(columns.len(), table.columns.len(), "{}", table.name);
        assert!(
            table.order_by.iter().all(|column| columns.contains(column)),
            "{}",
            table.name
        );
    }
    let marks = control_tables()
        .iter()
        .find(|table| table.name == "floors")
        .unwrap()
        .columns[2]
        .clone();
    assert_eq!(marks, ("marks".to_owned(), super::tables::MARKS_TYPE.to_owned()));
}

fn publication() -> Publication {
    let partition = |topic, number| Partition {
        topic: TopicId(topic),
        number,
    };
    let marks = [(partition(1, 0), 8), (partition(1, 1), 11), (partition(2, 0), 0)];
    Publication::of_run(
        None,
        RunId(77),
        marks
            .into_iter()
            .map(|(partition, mark)| (partition, Mark(Offset(mark))))
            .collect::<BTreeMap<_, _>>(),
        &BTreeMap::new(),
        &BTreeSet::from([EventDay(10), EventDay(11), EventDay(20)]),
    )
}

fn question<'a>(view: &'a View, publication: Option<&'a Publication>) -> Merging<'a> {
    Merging {
        database: "db",
        view,
        publication,
        from: 10 * 86_400,
        to: 12 * 86_400,
        bucket: Some(Duration::from_secs(7200)),
        dimensions: &["carrier"],
        measures: &["flights", "delay"],
    }
}

#[test]
fn no_statement_outlives_what_it_may_read() {
    let view = view();
    let question = Merging {
        database: "db",
        view: &view,
        publication: None,
        from: 0,
        to: 86_400,
        bucket: None,
        dimensions: &[],
        measures: &["flights"],
    };
    let settings = question.statement().unwrap().settings;
    let seconds = STATEMENT_LIMIT.as_secs().to_string();
    assert!(
        settings.contains(&("max_execution_time", seconds.as_str())),
        "{settings:?}"
    );
    assert!(settings.contains(&("timeout_overflow_mode", "throw")));
    assert!(STATEMENT_LIMIT * 2 < COLLECT_WAITS);
}

#[test]
fn a_statement_is_pinned() {
    let (view, publication) = (view(), publication());
    let statement = question(&view, Some(&publication)).statement().unwrap();
    let parameters: Vec<_> = statement
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let expected = [
        "p0=864000",
        "p1=1036800",
        "p2=77",
        "p3=[10,11]",
        "p4=1",
        "p5=[0,1]",
        "p6=[8,11]",
        "p7=2",
        "p8=[0]",
        "p9=[0]",
        "p10=000000000000000000000000000000ab",
        "p11=1",
        "p12=[(1,0,8),(1,1,11),(2,0,0)]",
    ];
    assert_eq!(parameters, expected);
    let mark = "multiIf(`_topic` = {p4:UInt128}, transform(`_partition`, {p5:Array(UInt32)}, {p6:Array(UInt64)}, \
                toUInt64(0)), `_topic` = {p7:UInt128}, transform(`_partition`, {p8:Array(UInt32)}, \
                {p9:Array(UInt64)}, toUInt64(0)), toUInt64(0))";
    let range = "`_window` >= toDateTime64({p0:Int64}, 0, 'UTC') AND `_window` < toDateTime64({p1:Int64}, 0, 'UTC')";
    let columns = "`_window`, `_failed`, `carrier`, `flights__count`, `delay__sum`, `delay__count`";
    let parts = [
        format!(
            "SELECT {columns}, 0 AS _layer FROM `db`.`batch_000000000000000000000000000000ab` FINAL WHERE {range} AND \
             ((`_run` = {{p2:UInt128}} AND `_day` IN arrayMap(day -> toDate32(day), {{p3:Array(Int32)}})))"
        ),
        format!(
            "SELECT {columns}, 1 AS _layer FROM `db`.`speed_000000000000000000000000000000ab` FINAL WHERE {range} AND \
             (`_start` = {mark} OR (`_start` >= {mark} AND `_start` % 8 = 0))"
        ),
        "SELECT time, `carrier`, _s0 AS `flights`, if(_s2 = 0, NULL, toFloat64(_s1) / _s2) AS `delay`, ".to_owned(),
        ") GROUP BY time, `carrier`\n) ORDER BY time, `carrier`".replace(") GROUP", "WHERE _below_floor = 0 GROUP"),
    ];
    for part in parts {
        assert!(statement.sql.contains(&part), "{}\nlacks\n{part}", statement.sql);
    }
}

fn view_of_sketches() -> View {
    let mut source = source(
        None,
        &[],
        &[
            ("flights", "count()"),
            ("planes", "distinct(carrier)"),
            ("delay_q", "quantiles(delay, [0.5, 1])"),
            ("opening", "first(carrier)"),
        ],
    );
    source.measures.push((
        "share".to_owned(),
        MeasureSource::Ratio {
            numerator: "planes".to_owned(),
            denominator: "flights".to_owned(),
        },
    ));
    let mut view = compile(&source);
    view.fingerprint = crate::fingerprint::Fingerprint(0xAB);
    view
}

#[test]
fn columns_of_sketches_are_pinned() {
    let view = view_of_sketches();
    let of_both = [
        ("planes__sketch", "AggregateFunction(uniq, UInt64)"),
        (
            "delay_q__sketch",
            "AggregateFunction(quantilesDD(0.01, 0.5, 1.0), Float64)",
        ),
        (
            "opening__first",
            "AggregateFunction(argMin, String, Tuple(Int64, UInt64, UInt32))",
        ),
    ];
    let of_batch = [
        ("planes__exact", "AggregateFunction(uniqExact, UInt128)"),
        ("planes__beyond", "UInt64"),
    ];
    let has = |table: &super::Table, (name, of_type): (&str, &str)| {
        table.columns.contains(&(name.to_owned(), of_type.to_owned()))
    };
    for column in of_both {
        assert!(
            has(&speed_table(&view), column) && has(&batch_table(&view), column),
            "{column:?}"
        );
    }
    for column in of_batch {
        assert!(
            !has(&speed_table(&view), column) && has(&batch_table(&view), column),
            "{column:?}"
        );
    }
}

#[test]
fn a_statement_over_sketches_is_pinned() {
    let (view, publication) = (view_of_sketches(), publication());
    let statement = Merging {
        dimensions: &[],
        measures: &["share", "planes", "delay_q", "opening"],
        ..question(&view, Some(&publication))
    };
    let sql = statement.statement().unwrap().sql;
    for part in [
        // Speed rows have no sets.
        "`planes__sketch`, arrayReduce('uniqExactState', CAST([], 'Array(UInt128)')) AS `planes__exact`, \
         CAST(0, 'UInt64') AS `planes__beyond`",
        "uniqMerge(`planes__sketch`) AS _s0, uniqExactMerge(`planes__exact`) AS _s1, sum(`planes__beyond`) AS _s2",
        "quantilesDDMerge(0.01, 0.5, 1.0)(`delay_q__sketch`) AS _s4",
        "argMinMergeState(`opening__first`) AS _s5",
        "if(_last_layer = 0 AND _s2 = 0, _s1, _s0) AS `planes`",
        "AS `_error_planes`, 0.95 AS `_confidence_planes`",
        "AS `_error_share`, round(1 - if(isNull(if((_last_layer = 0 AND _s2 = 0) OR _s0 = 0, NULL,",
        "arrayMap(level -> if(isFinite(level), level, NULL), _s4) AS `delay_q`",
        "if(hex(_s5) = 'FFFFFFFF00', NULL, finalizeAggregation(_s5)) AS `opening`",
    ] {
        assert!(sql.contains(part), "{sql}\nlacks\n{part}");
    }
}

#[test]
fn sketches_answer_without_sets() {
    let (view, publication) = (view_of_sketches(), publication());
    let of = |measures, without_sets| {
        let question = Merging {
            dimensions: &[],
            measures,
            ..question(&view, Some(&publication))
        };
        let selection = Selection {
            without_sets,
            ..Selection::default()
        };
        question.selecting(&selection).unwrap().sql
    };
    let sql = of(&["share", "planes"], true);
    assert!(
        !sql.contains("uniqExact") && !sql.contains("__exact") && !sql.contains("__beyond"),
        "{sql}"
    );
    for part in [
        "uniqMerge(`planes__sketch`) AS _s0",
        "if(0 AND toUInt64(0) = 0, toUInt64(0), _s0) AS `planes`",
        "if((0 AND toUInt64(0) = 0) OR _s0 = 0, NULL, ",
        // Whose rows they are is said as ever.
        "multiIf(_last_layer = 0, 'batch'",
    ] {
        assert!(sql.contains(part), "{sql}\nlacks\n{part}");
    }
    // Where there are no sets, nothing else is asked.
    assert_eq!(of(&["delay_q", "opening"], true), of(&["delay_q", "opening"], false));
}

#[test]
fn without_a_publication_all_is_speeds() {
    let view = view();
    let sql = question(&view, None).statement().unwrap().sql;
    assert!(!sql.contains("batch_"));
    assert!(sql.contains("(`_start` = 0 OR (`_start` >= 0 AND `_start` % 8 = 0))"));
}

#[test]
fn a_question_must_fit_the_view() {
    let view = view();
    let plain = question(&view, None);
    let error = |question: Merging<'_>| question.statement().unwrap_err().to_string();
    assert_eq!(
        error(Merging {
            dimensions: &["tail"],
            ..plain
        }),
        "view `hourly` has no dimension `tail`"
    );
    assert_eq!(
        error(Merging {
            measures: &["tails"],
            ..plain
        }),
        "view `hourly` has no measure `tails`"
    );
    let odd = Merging {
        bucket: Some(Duration::from_secs(5400)),
        ..plain
    }
    .statement();
    assert!(matches!(odd, Err(StatementError::Bucket { .. })));
}

#[test]
fn a_selection_is_pinned() {
    let mut view = compile(&source(
        None,
        &[
            ("carrier", "carrier"),
            ("late", "delay > 15"),
            ("tail", "delay"),
            ("landed", "at"),
            ("day", "CAST(at AS DATE)"),
        ],
        &[("flights", "count()"), ("distance", "sum(distance)")],
    ));
    view.fingerprint = crate::fingerprint::Fingerprint(0xAB);
    let publication = publication();
    let filter = |dimension: &str, values| Filter {
        dimension: dimension.to_owned(),
        values,
    };
    let filters = [
        filter(
            "carrier",
            FilterValues::String(vec!["it's".to_owned(), "\\".to_owned()]),
        ),
        filter("late", FilterValues::Bool(vec![true, false])),
        filter("tail", FilterValues::Int64(vec![i64::MIN])),
        filter("landed", FilterValues::Timestamp(vec![1_500_000])),
        filter("day", FilterValues::Date(vec![-1])),
    ];
    let order = [("distance", true), ("time", false)].map(|(column, descending)| Order {
        column: column.to_owned(),
        descending,
    });
    let selection = Selection {
        filters: &filters,
        order: &order,
        limit: Some(7),
        ..Selection::default()
    };
    let question = Merging {
        measures: &["flights", "distance"],
        ..question(&view, Some(&publication))
    };
    let statement = question.selecting(&selection).unwrap();
    let values: Vec<_> = statement.parameters[2..7]
        .iter()
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(
        values,
        [
            r"['it\'s','\\']",
            "[true,false]",
            "[-9223372036854775808]",
            "[1500000]",
            "[-1]"
        ]
    );
    let conditions = "`carrier` IN {p2:Array(String)} AND `late` IN {p3:Array(Bool)} AND `tail` IN {p4:Array(Int64)} AND \
                      `landed` IN arrayMap(moment -> fromUnixTimestamp64Micro(moment, 'UTC'), {p5:Array(Int64)}) AND \
                      `day` IN arrayMap(day -> toDate32(day), {p6:Array(Int32)}) AND (";
    // Of both layers' rows alike, before either's own conditions.
    assert_eq!(statement.sql.matches(conditions).count(), 2, "{}", statement.sql);
    assert!(
        statement
            .sql
            .ends_with(") ORDER BY `distance` DESC, `time`, time, `carrier` LIMIT 7"),
        "{}",
        statement.sql
    );
    assert!(statement.sql.contains(&format!("AS `{}`", bound_column("distance"))));

    let sql = |layers| {
        question
            .selecting(&Selection {
                layers,
                ..selection.clone()
            })
            .unwrap()
            .sql
    };
    assert!(sql(Layers::Batch).contains("batch_") && !sql(Layers::Batch).contains("speed_"));
    assert!(sql(Layers::Speed).contains("speed_") && !sql(Layers::Speed).contains("batch_"));
    assert!(sql(Layers::Speed).contains("`_start` >="));
}

#[test]
fn the_batch_share_of_nothing_is_nothing() {
    let view = view();
    let selection = Selection {
        layers: Layers::Batch,
        ..Selection::default()
    };
    let sql = question(&view, None).selecting(&selection).unwrap().sql;
    assert!(
        sql.contains("`_window` < toDateTime64({p1:Int64}, 0, 'UTC') AND 0\n"),
        "{sql}"
    );
}

#[test]
fn a_selection_must_fit_the_question() {
    let view = view();
    let error = |selection: Selection<'_>| question(&view, None).selecting(&selection).unwrap_err().to_string();
    let filters = |dimension: &str| {
        [Filter {
            dimension: dimension.to_owned(),
            values: FilterValues::Int64(vec![1]),
        }]
    };
    let (tail, carrier) = (filters("tail"), filters("carrier"));
    let filtered = |filters| Selection {
        filters,
        ..Selection::default()
    };
    assert_eq!(error(filtered(&tail)), "view `hourly` has no dimension `tail`");
    assert_eq!(
        error(filtered(&carrier)),
        "the filter's values are of another type than dimension `carrier` of view `hourly`"
    );
    // `origin` is a dimension of the view, and not of the answer.
    let order = [Order {
        column: "origin".to_owned(),
        descending: false,
    }];
    let ordered = Selection {
        order: &order,
        ..Selection::default()
    };
    assert_eq!(error(ordered), "an answer without `origin` cannot be in its order");
}
