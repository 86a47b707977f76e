//! The oracle: events kept one by one as the design says, and the same plan over them.

mod memory;
mod same;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use proptest::prelude::*;
use shared_schemas::definitions::Definitions;
use shared_schemas::plan::{MergePlan, event_schema};

use super::*;

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
event_id = ["carrier", "flight"]

[dataset.flights.fields]
at = "timestamp"
carrier = "string?"
flight = "int64"
delay = "int64?"

[view.hourly]
dataset = "flights"
grain = "1h"
filter = "flight <> 3"
dimensions = ["carrier", { name = "late", expr = "delay > 15" }]

[view.hourly.measures]
flights = "count()"
delay = "sum(delay)"
worst = "max(delay)"
"#;

const TOPICS: [TopicId; 2] = [TopicId(7), TopicId(u128::MAX - 1)];
/// Offsets of each of the three partitions.
const LOG: u64 = 12;

fn definitions() -> Definitions {
    Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap()
}

#[derive(Debug, Clone)]
struct Event {
    partition: Partition,
    offset: u64,
    kafka_time: i64,
    at: i64,
    carrier: Option<&'static str>,
    flight: i64,
    delay: Option<i64>,
}

/// A log in each of three partitions, one of them of another incarnation, with holes and many repeats.
fn logs() -> impl Strategy<Value = Vec<Event>> {
    let event = (
        0_i64..6,
        // Two days, few moments.
        prop_oneof![
            Just(3_600_000_000_i64),
            Just(5),
            Just(EventDay::MICROS),
            Just(EventDay::MICROS + 4_000_000_000)
        ],
        prop::option::weighted(0.8, prop_oneof![Just("AA"), Just("ZZ")]),
        0_i64..4,
        prop::option::of(0_i64..30),
    );
    prop::collection::vec(prop::option::weighted(0.8, event), 36).prop_map(|events| {
        (0_u64..)
            .zip(events)
            .filter_map(|(place, event)| {
                let (kafka_time, at, carrier, flight, delay) = event?;
                let number = u32::try_from(place / LOG).unwrap();
                let topic = TOPICS[usize::from(number == 2)];
                Some(Event {
                    partition: Partition {
                        topic,
                        number: number % 2,
                    },
                    offset: place % LOG,
                    kafka_time,
                    at,
                    carrier,
                    flight,
                    delay,
                })
            })
            .collect()
    })
}

fn batch(dataset: &Dataset, events: &[Event]) -> RecordBatch {
    let time = |of: fn(&Event) -> i64| -> ArrayRef {
        let times: Vec<_> = events.iter().map(of).collect();
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone(UTC))
    };
    let columns: Vec<ArrayRef> = vec![
        time(|event| event.at),
        Arc::new(events.iter().map(|event| event.carrier).collect::<StringArray>()),
        Arc::new(events.iter().map(|event| Some(event.flight)).collect::<Int64Array>()),
        Arc::new(events.iter().map(|event| event.delay).collect::<Int64Array>()),
        Arc::new(
            events
                .iter()
                .map(|event| Some(event.partition.number.cast_signed()))
                .collect::<Int32Array>(),
        ),
        Arc::new(
            events
                .iter()
                .map(|event| Some(event.offset.cast_signed()))
                .collect::<Int64Array>(),
        ),
        time(|event| event.kafka_time),
        time(|event| event.at),
        Arc::new(
            events
                .iter()
                .map(|event| Some(topic_text(event.partition.topic)))
                .collect::<StringArray>(),
        ),
    ];
    let mut fields = event_schema(dataset).fields().to_vec();
    fields.push(Arc::new(Field::new(TOPIC_COLUMN, DataType::Utf8, false)));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Each event once, by the rule, one by one.
fn kept(events: &[Event], days: &BTreeSet<EventDay>, marks: &BTreeMap<Partition, Mark>) -> Vec<Event> {
    let counted: Vec<_> = events
        .iter()
        .filter(|event| marks.get(&event.partition).is_some_and(|mark| event.offset < mark.0.0))
        .filter(|event| days.contains(&EventDay::of_micros(event.at)))
        .collect();
    let same = |a: &Event, b: &Event| (a.carrier, a.flight, a.at) == (b.carrier, b.flight, b.at);
    let first_in_partition: Vec<_> = counted
        .iter()
        .filter(|event| {
            event.carrier.is_none()
                || !counted.iter().any(|other| {
                    other.partition == event.partition && other.offset < event.offset && same(other, event)
                })
        })
        .collect();
    let order = |event: &Event| (event.kafka_time, event.partition.number, event.partition.topic);
    first_in_partition
        .iter()
        .filter(|event| {
            event.carrier.is_none()
                || !first_in_partition
                    .iter()
                    .any(|other| order(other) < order(event) && same(other, event))
        })
        .map(|event| (**event).clone())
        .collect()
}

fn sorted(cells: &RecordBatch) -> Vec<String> {
    let text = pretty_format_batches(std::slice::from_ref(cells)).unwrap().to_string();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The events as a table, in several pieces in any order, as files are.
fn table(events: &[Event]) -> Arc<MemTable> {
    let archive = batch(&definitions().datasets[0], events);
    let pieces = (0..archive.num_rows()).rev().map(|row| archive.slice(row, 1)).collect();
    Arc::new(MemTable::try_new(archive.schema(), vec![pieces]).unwrap())
}

fn recompute(window: Duration) -> Recompute {
    let definitions = definitions();
    let dataset = Dataset {
        dedupe_window: window,
        ..definitions.datasets[0].clone()
    };
    Recompute::new(&definitions.views[0], &dataset, 64 << 20).unwrap()
}

/// A computation's cells in one batch.
async fn all(recompute: &Recompute, cells: BoxStream<'static, Result<RecordBatch>>) -> RecordBatch {
    let batches: Vec<_> = cells.try_collect().await.unwrap();
    concat_batches(recompute.plan.schema(), &batches).unwrap()
}

async fn computed(events: &[Event], days: &BTreeSet<EventDay>, marks: &BTreeMap<Partition, Mark>) -> RecordBatch {
    let recompute = recompute(Duration::ZERO);
    let cells = recompute.cells(table(events), days, &below(marks)).await.unwrap();
    all(&recompute, cells).await
}

/// What the plan gives for these events, none of which is left out.
async fn plain(events: &[Event]) -> RecordBatch {
    let definitions = definitions();
    let (dataset, view) = (&definitions.datasets[0], &definitions.views[0]);
    let mut events = batch(dataset, events);
    events.remove_column(events.schema().index_of(TOPIC_COLUMN).unwrap());
    CellPlan::new(view, dataset, CellKey::Cell)
        .unwrap()
        .run(vec![events])
        .await
        .unwrap()
}

fn partitions() -> [Partition; 3] {
    [(TOPICS[0], 0), (TOPICS[0], 1), (TOPICS[1], 0)].map(|(topic, number)| Partition { topic, number })
}

fn marks_of(marks: Vec<Option<u64>>) -> BTreeMap<Partition, Mark> {
    let known = partitions().into_iter().zip(marks);
    known
        .filter_map(|(partition, mark)| Some((partition, Mark(Offset(mark?)))))
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the log, its repeats and the marks: the cells are those of the events that the rule keeps.
    #[test]
    fn repeats_go_and_nothing_else(
        events in logs(), marks in prop::collection::vec(prop::option::weighted(0.9, 0..=LOG), 3), both_days in any::<bool>(),
    ) {
        let marks = marks_of(marks);
        let days: BTreeSet<_> = (0..=i32::from(both_days)).map(EventDay).collect();
        let (found, expected) = runtime().block_on(async {
            (computed(&events, &days, &marks).await, plain(&kept(&events, &days, &marks)).await)
        });
        prop_assert_eq!(sorted(&found), sorted(&expected));
    }

    /// What the speed layer knows to be a repeat is one by its rule, written down once more.
    #[test]
    fn known_repeats_are_those_within_the_window(events in logs(), window in 0_i64..6, from in 0..=LOG) {
        let days = BTreeSet::from([EventDay(0), EventDay(1)]);
        let same = |a: &Event, b: &Event| (a.carrier, a.flight, a.at) == (b.carrier, b.flight, b.at);
        let is_known = |event: &Event| event.carrier.is_some() && events.iter().any(|other| {
            (other.partition, other.offset < event.offset) == (event.partition, true)
                && same(other, event)
                && other.kafka_time >= event.kafka_time - window
        });
        let counted: Vec<_> = events.iter().filter(|event| event.offset >= from && !is_known(event)).cloned().collect();
        let offsets = partitions().map(|partition| (partition, OffsetSet::from_iter([OffsetRange { from: Offset(from), to: Offset(LOG) }])));
        let (found, expected) = runtime().block_on(async {
            let recompute = recompute(Duration::from_micros(window.unsigned_abs()));
            let cells = recompute.cells_of_speed(table(&events), &days, &offsets.into()).await.unwrap();
            (all(&recompute, cells).await, plain(&counted).await)
        });
        prop_assert_eq!(sorted(&found), sorted(&expected));
    }

    /// The central invariant, over the real plans: batch below any marks and speed from there on, merged, are batch over
    /// everything, as long as the speed layer can see the repeats.
    #[test]
    fn batch_below_and_speed_above_any_mark_are_the_whole(
        mut events in logs(), marks in prop::collection::vec(prop::option::weighted(0.9, 0..=LOG), 3),
    ) {
        // Repeats in another partition can not be seen.
        for event in &mut events {
            event.flight += 10 * i64::from(event.partition.number) + 100 * i64::from(event.partition.topic == TOPICS[1]);
        }
        let days = BTreeSet::from([EventDay(0), EventDay(1)]);
        let marks = marks_of(marks);
        let above = partitions().map(|partition| {
            let from = marks.get(&partition).copied().unwrap_or_default().0;
            (partition, OffsetSet::from_iter([OffsetRange { from, to: Offset(LOG) }]))
        });
        let everything = partitions().map(|partition| (partition, Mark(Offset(LOG)))).into();
        let (merged, whole) = runtime().block_on(async {
            let recompute = recompute(Duration::from_secs(1));
            let batch = recompute.cells(table(&events), &days, &below(&marks)).await.unwrap();
            let speed = recompute.cells_of_speed(table(&events), &days, &above.into()).await.unwrap();
            let parts = vec![all(&recompute, batch).await, all(&recompute, speed).await];
            let merge = MergePlan::new(&definitions().views[0], CellKey::Cell).unwrap();
            (merge.run(parts).await.unwrap(), computed(&events, &days, &everything).await)
        });
        prop_assert_eq!(sorted(&merged), sorted(&whole));
    }
}

/// More events than fit into its memory, which would be an error if nothing were spilled.
#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_memory_it_spills() {
    let partition = Partition {
        topic: TOPICS[0],
        number: 0,
    };
    let event = |offset: u64| Event {
        partition,
        offset,
        kafka_time: 0,
        at: i64::try_from(offset % 160_000).unwrap(),
        carrier: Some("AA"),
        flight: 1,
        delay: Some(1),
    };
    let events: Vec<_> = (0..240_000).map(event).collect();
    let definitions = definitions();
    let (dataset, view) = (&definitions.datasets[0], &definitions.views[0]);
    let archive = batch(dataset, &events);
    let pieces = (0..archive.num_rows())
        .step_by(1000)
        .map(|row| archive.slice(row, 1000))
        .collect();
    let table = Arc::new(MemTable::try_new(archive.schema(), vec![pieces]).unwrap());
    let recompute = Recompute::new(view, dataset, 12 << 20).unwrap();
    let counted = below(&BTreeMap::from([(partition, Mark(Offset(240_000)))]));
    let stream = recompute
        .cells(table, &BTreeSet::from([EventDay(0)]), &counted)
        .await
        .unwrap();
    let cells: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let cells = concat_batches(recompute.plan.schema(), &cells).unwrap();
    let text = pretty_format_batches(&[cells]).unwrap().to_string();
    assert!(text.contains("| 160000 "), "{text}");
}
