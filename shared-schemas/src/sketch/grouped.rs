//! The aggregates in plans of DataFusion: grouped and not, filtered, with nulls, in one step and in several, against the
//! plain states.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{Int64Type, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, ExprFunctionExt, ident, lit};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use xxhash_rust::xxh3::xxh3_128;

use super::{Act, ByGroup, DdSketch, ExactSet, Extreme, Kind, Moment, Side, Uniq};
use crate::view::ValueType;

/// An event.
#[derive(Debug, Clone)]
struct Event {
    group: i64,
    number: Option<i64>,
    double: Option<f64>,
    text: Option<String>,
    moment: Moment,
    counts: Option<bool>,
}

const EVENTS: u64 = 6_000;
const LIMIT: u64 = 120;

fn events() -> Vec<Event> {
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(0x5851_F42D_4C95_7F2D)
            .wrapping_add(0x1405_7B7E_F767_814F);
        (random >> 33) % below
    };
    (0..EVENTS)
        .map(|at| {
            // Some groups are rare, one gets everything that no other does.
            let group = i64::try_from(next(40) * next(3)).unwrap();
            let number = i64::try_from(next(300)).unwrap() - 150;
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let double = (next(4_000) as f64 - 1_000.0) / 3.0;
            Event {
                group,
                number: (next(9) > 0).then_some(number),
                double: (next(9) > 0).then_some(if next(50) == 0 { f64::NAN } else { double }),
                text: (next(9) > 0).then(|| format!("text {}", next(200))),
                moment: Moment {
                    time: i64::try_from(next(500)).unwrap(),
                    offset: at / 3,
                    partition: u32::try_from(at % 3).unwrap(),
                },
                counts: [Some(true), Some(true), Some(false), None][usize::try_from(next(4)).unwrap()],
            }
        })
        .collect()
}

fn batch(events: &[Event]) -> RecordBatch {
    let column = |get: fn(&Event) -> i64| events.iter().map(get).collect::<Int64Array>();
    let times = events.iter().map(|event| event.moment.time);
    let partitions = events.iter().map(|event| event.moment.partition.cast_signed());
    let columns: [(&str, ArrayRef); 8] = [
        ("group", Arc::new(column(|event| event.group))),
        (
            "number",
            Arc::new(events.iter().map(|event| event.number).collect::<Int64Array>()),
        ),
        (
            "double",
            Arc::new(events.iter().map(|event| event.double).collect::<Float64Array>()),
        ),
        (
            "text",
            Arc::new(events.iter().map(|event| event.text.clone()).collect::<StringArray>()),
        ),
        (
            "time",
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        ),
        ("offset", Arc::new(column(|event| event.moment.offset.cast_signed()))),
        ("partition", Arc::new(Int32Array::from_iter_values(partitions))),
        (
            "counts",
            Arc::new(events.iter().map(|event| event.counts).collect::<BooleanArray>()),
        ),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// What is made, each also where `counts` is true.
fn made() -> Vec<(&'static str, Expr)> {
    let moment = || [ident("time"), ident("offset"), ident("partition")];
    let [time, offset, partition] = moment();
    let first = super::first(ident("text"), time, offset, partition);
    let [time, offset, partition] = moment();
    let last = super::last(ident("number"), time, offset, partition);
    let number = super::identity(ident("number"), ValueType::Int64);
    let text = super::identity(ident("text"), ValueType::String);
    vec![
        ("uniq", super::uniq(number.clone())),
        ("uniq_wide", super::uniq(text.clone())),
        ("exact", super::uniq_exact(number, LIMIT)),
        ("exact_wide", super::uniq_exact(text, 1_000)),
        ("quantiles", super::quantiles_dd(ident("double"))),
        ("first", first),
        ("last", last),
    ]
}

fn merged(name: &str) -> Expr {
    let states = ident(name);
    match name.trim_end_matches("_if") {
        "uniq" | "uniq_wide" => super::merge_uniq(states),
        "exact" => super::merge_uniq_exact(states, LIMIT, false),
        "exact_wide" => super::merge_uniq_exact(states, 1_000, true),
        "quantiles" => super::merge_quantiles_dd(states),
        "first" => super::merge_first(states, ValueType::String),
        _ => super::merge_last(states, ValueType::Int64),
    }
}

/// The same by the plain states; none where there are too many.
fn expected(name: &str, events: &[&Event]) -> Option<Vec<u8>> {
    let wide = |text: &String| xxh3_128(text.as_bytes());
    let mut bytes = Vec::new();
    match name {
        "uniq" | "uniq_wide" => {
            let mut state = Uniq::default();
            for event in events {
                let value = match name {
                    "uniq" => event.number.map(i64::cast_unsigned),
                    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
                    _ => event.text.as_ref().map(|text| wide(text) as u64),
                };
                value.into_iter().for_each(|value| state.insert(value));
            }
            state.write_to(&mut bytes);
        }
        "exact" => {
            let mut state = ExactSet::within(LIMIT);
            let numbers = events.iter().filter_map(|event| event.number);
            numbers.for_each(|number| state.insert(number.cast_unsigned()));
            return state.write_to(&mut bytes).then_some(bytes);
        }
        "exact_wide" => {
            let mut state = ExactSet::within(1_000);
            let texts = events.iter().filter_map(|event| event.text.as_ref());
            texts.for_each(|text| state.insert(wide(text)));
            return state.write_to(&mut bytes).then_some(bytes);
        }
        "quantiles" => {
            let mut state = DdSketch::default();
            let doubles = events.iter().filter_map(|event| event.double);
            doubles.for_each(|double| state.insert(double));
            state.write_to(&mut bytes);
        }
        _ => {
            let mut state = Extreme::default();
            for event in events {
                let (side, value) = match name {
                    "first" => (Side::First, event.text.clone().map(String::into_bytes)),
                    _ => (Side::Last, event.number.map(|number| number.to_le_bytes().to_vec())),
                };
                if let Some(value) = value {
                    state.insert(side, event.moment, &value);
                }
            }
            let text = name == "first";
            state.write_to(if text { ValueType::String } else { ValueType::Int64 }, &mut bytes);
        }
    }
    Some(bytes)
}

/// The states by group, or of all as group 0.
async fn states(frame: DataFrame) -> BTreeMap<(i64, String), Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for batch in frame.collect().await.unwrap() {
        let groups = batch
            .column_by_name("group")
            .map(|groups| groups.as_primitive::<Int64Type>().clone());
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let Some(states) = column.as_binary_opt::<i32>() else {
                continue;
            };
            for row in 0..states.len() {
                let group = groups.as_ref().map_or(0, |groups| groups.value(row));
                let state = states.is_valid(row).then(|| states.value(row).to_vec());
                assert!(found.insert((group, field.name().clone()), state).is_none());
            }
        }
    }
    found
}

fn settings() -> Vec<SessionConfig> {
    let plain = || SessionConfig::new().with_target_partitions(1);
    let several = || SessionConfig::new().with_target_partitions(3).with_batch_size(100);
    vec![
        plain(),
        several(),
        // The first of two steps gives up grouping: each row becomes a state of its own.
        several()
            .set_u64("datafusion.execution.skip_partial_aggregation_probe_rows_threshold", 1)
            .set_str(
                "datafusion.execution.skip_partial_aggregation_probe_ratio_threshold",
                "0.0",
            ),
    ]
}

async fn compare(events: &[Event], grouped: bool, settings: SessionConfig) {
    let parts: Vec<Vec<RecordBatch>> = events
        .chunks(2_500)
        .map(|part| part.chunks(700).map(batch).collect())
        .collect();
    let schema: Arc<Schema> = batch(&events[..0]).schema();
    let session = SessionContext::new_with_config(settings);
    let table = MemTable::try_new(schema, if parts.is_empty() { vec![vec![]] } else { parts }).unwrap();
    let events_frame = session.read_table(Arc::new(table)).unwrap();
    let filtered = made().into_iter().map(|(name, made)| {
        let counts = ident("counts");
        (format!("{name}_if"), made.filter(counts).build().unwrap())
    });
    let named = made()
        .into_iter()
        .map(|(name, made)| (name.to_owned(), made))
        .chain(filtered);
    let (names, aggregates): (Vec<_>, Vec<_>) = named.map(|(name, made)| (name.clone(), made.alias(name))).unzip();
    let group = || if grouped { vec![ident("group")] } else { vec![] };
    let made = events_frame.clone().aggregate(group(), aggregates.clone()).unwrap();
    let found = states(made.clone()).await;

    let mut truth = BTreeMap::new();
    let mut groups: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    if !grouped {
        groups.insert(0, vec![]);
    }
    for event in events {
        groups
            .entry(if grouped { event.group } else { 0 })
            .or_default()
            .push(event);
    }
    for (group, events) in &groups {
        let counting: Vec<&Event> = events
            .iter()
            .copied()
            .filter(|event| event.counts == Some(true))
            .collect();
        for name in &names {
            let state = match name.strip_suffix("_if") {
                Some(name) => expected(name, &counting),
                None => expected(name, events),
            };
            truth.insert((*group, name.clone()), state);
        }
    }
    assert_eq!(found, truth, "made, grouped: {grouped}");
    assert!(
        events.is_empty() || !grouped || truth.values().any(Option::is_none),
        "no set beyond its limit"
    );

    // States of small parts, merged.
    let mut key = group();
    key.push((ident("offset") % lit(7)).alias("part"));
    let parts = events_frame.aggregate(key, aggregates).unwrap();
    let merging = names.iter().map(|name| merged(name).alias(name)).collect();
    let found = states(parts.aggregate(group(), merging).unwrap()).await;
    assert_eq!(found, truth, "merged, grouped: {grouped}");
}

#[test]
fn plans_make_and_merge_the_plain_states() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let events = events();
    for (at, settings) in settings().into_iter().enumerate() {
        for grouped in [true, false] {
            println!("settings {at}, grouped: {grouped}");
            runtime.block_on(compare(&events, grouped, settings.clone()));
            runtime.block_on(compare(&[], grouped, settings.clone()));
        }
    }
}

#[test]
fn identities_tell_values_apart() {
    use super::identities as of;
    use arrow::array::{Date32Array, Decimal128Array};
    let narrow: [(ArrayRef, Vec<Option<u64>>); 4] = [
        (
            Arc::new(Int64Array::from(vec![Some(-1), None, Some(5)])),
            vec![Some(u64::MAX), None, Some(5)],
        ),
        (
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            vec![Some(1), None, Some(0)],
        ),
        (
            Arc::new(Date32Array::from(vec![-2, 3])),
            vec![Some(u64::MAX - 1), Some(3)],
        ),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![-7, 9])),
            vec![Some(u64::MAX - 6), Some(9)],
        ),
    ];
    for (values, identities) in narrow {
        let found = of(&values).unwrap();
        let found = found.as_primitive::<arrow::datatypes::UInt64Type>();
        assert_eq!(found.iter().collect::<Vec<_>>(), identities);
    }
    let wide: [(ArrayRef, &[u8]); 3] = [
        (Arc::new(StringArray::from(vec!["é", ""])), "é".as_bytes()),
        (Arc::new(Decimal128Array::from(vec![-5, 0])), &(-5_i128).to_le_bytes()),
        (Arc::new(Float64Array::from(vec![-0.0, 1.0])), &0_f64.to_le_bytes()),
    ];
    for (values, bytes) in wide {
        let found = of(&values).unwrap();
        let found = found.as_fixed_size_binary();
        assert_eq!(found.value(0), xxh3_128(bytes).to_le_bytes());
        assert_ne!(found.value(0), found.value(1));
    }
    let nans: ArrayRef = Arc::new(Float64Array::from(vec![
        f64::NAN,
        -f64::NAN,
        f64::from_bits(0x7FF8_0000_0000_0001),
    ]));
    let nans = of(&nans).unwrap();
    let nans = nans.as_fixed_size_binary();
    assert!(nans.value(0) == nans.value(1) && nans.value(1) == nans.value(2));
}

/// With less memory than the states take, a grouping writes them to disk and reads them again: it has to be told how much
/// they take, and what it reads has to be what it wrote.
#[test]
fn states_beyond_the_memory_are_spilled() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let spilled = |limit: usize| {
        let memory = RuntimeEnvBuilder::new()
            .with_memory_limit(limit, 1.0)
            .build_arc()
            .unwrap();
        let settings = SessionConfig::new().with_target_partitions(1).with_batch_size(100);
        let session = SessionContext::new_with_config_rt(settings, memory);
        // 2,000 groups of 100 values: 4 bytes each, and as much again for what is not sorted yet.
        let numbers = (0..200_000_i64).collect::<Int64Array>();
        let groups = (0..200_000_i64).map(|at| at % 2_000).collect::<Int64Array>();
        let columns: [(&str, ArrayRef); 2] = [("group", Arc::new(groups)), ("number", Arc::new(numbers))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let made = super::uniq(super::identity(ident("number"), ValueType::Int64)).alias("uniq");
        let frame = session
            .read_batch(batch)
            .unwrap()
            .aggregate(vec![ident("group")], vec![made])
            .unwrap();
        runtime.block_on(async {
            let plan = frame.create_physical_plan().await.unwrap();
            let batches = collect(Arc::clone(&plan), session.task_ctx()).await.unwrap();
            let mut found = BTreeMap::new();
            for batch in batches {
                let states = batch.column(1).as_binary::<i32>();
                for (row, group) in batch.column(0).as_primitive::<Int64Type>().values().iter().enumerate() {
                    assert!(found.insert(*group, states.value(row).to_vec()).is_none());
                }
            }
            (found, spills(&plan))
        })
    };
    let (in_memory, none) = spilled(1 << 30);
    let (from_disk, some) = spilled(600_000);
    assert_eq!((none, some > 0), (0, true), "spilled {some} times");
    assert_eq!(in_memory.len(), 2_000);
    assert!(in_memory == from_disk, "other states");
}

fn spills(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let here = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
    here + plan.children().into_iter().map(spills).sum::<usize>()
}

#[test]
fn what_states_take_is_told() {
    let kinds = [
        (Kind::Uniq, 4),
        (
            Kind::UniqExact {
                limit: 1_000_000,
                wide: false,
            },
            8,
        ),
        (Kind::UniqExact { limit: 10, wide: false }, 0),
    ];
    for (kind, width) in kinds {
        let mut groups = ByGroup::new(kind, Act::Make).unwrap();
        let empty = groups.bytes();
        for batch in 0..50_u64 {
            let values: ArrayRef = Arc::new((batch * 1_000..batch * 1_000 + 1_000).collect::<UInt64Array>());
            groups
                .take(&[values], &(0..1_000).map(|row| row % 7).collect::<Vec<_>>(), 7)
                .unwrap();
        }
        let most = 50_000 * width * 4 + 4_096;
        assert!(
            (50_000 * width..=most).contains(&groups.bytes()),
            "{kind:?}: {} bytes",
            groups.bytes()
        );
        groups.states().unwrap();
        assert_eq!(groups.bytes(), empty, "{kind:?}: nothing is held any more");
    }
}
