//! Classes beside their definition, one event at a time; with little memory too.

use arrow::array::{ArrayRef, AsArray, Int32Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::datasource::MemTable;
use proptest::prelude::*;
use shared_schemas::dataset::{EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::TopicId;
use shared_schemas::store::tables::TOPIC_COLUMN;

use super::*;
use crate::recompute::topic_text;
use crate::spill::Spill;

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
event_id = ["tail"]
dedupe = { window = "5s" }
fields = { at = "timestamp", tail = "int64?" }
"#;

const SECOND: i64 = 1_000_000;
/// Two incarnations of a topic, with two partitions each.
const PARTITIONS: [(u128, u32); 4] = [(7, 0), (7, 1), (3, 0), (3, 1)];

#[derive(Debug, Clone)]
struct Event {
    place: usize,
    offset: u64,
    tail: Option<i64>,
    at: i64,
    kafka: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Whose {
    Batch,
    Speed,
    Gap,
    Nobody,
}

/// Of a partition its mark, its end, and a gap between them.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    mark: u64,
    gap: (u64, u64),
    end: u64,
}

impl Bounds {
    fn whose(self, offset: u64) -> Whose {
        match offset {
            below if below < self.mark => Whose::Batch,
            beyond if beyond >= self.end => Whose::Nobody,
            lost if lost >= self.gap.0 && lost < self.gap.1 => Whose::Gap,
            _ => Whose::Speed,
        }
    }
}

fn partition(place: usize) -> Partition {
    let (topic, number) = PARTITIONS[place];
    Partition {
        topic: TopicId(topic),
        number,
    }
}

/// Of these events those that the batch layer's rule keeps.
fn kept(events: &[Event], among: &dyn Fn(usize) -> bool) -> BTreeSet<usize> {
    let is_kept = |at: &usize| {
        let event = &events[*at];
        let same = |other: &usize| is_same(event, &events[*other]) && among(*other);
        let is_first = |at: &usize| {
            let event = &events[*at];
            !(0..events.len()).any(|other| {
                among(other)
                    && is_same(event, &events[other])
                    && events[other].place == event.place
                    && events[other].offset < event.offset
            })
        };
        let order = |event: &Event| (event.kafka, partition(event.place).number, partition(event.place).topic);
        let others = (0..events.len()).filter(same).filter(is_first);
        is_first(at) && others.into_iter().all(|other| order(&events[other]) >= order(event))
    };
    let all = (0..events.len()).filter(|at| among(*at));
    all.filter(|at| events[*at].tail.is_none() || is_kept(at)).collect()
}

fn is_same(one: &Event, other: &Event) -> bool {
    one.tail.is_some() && (one.tail, one.at) == (other.tail, other.at)
}

/// The definition.
fn expected(events: &[Event], bounds: &[Bounds]) -> Vec<Option<Class>> {
    let whose: Vec<_> = events
        .iter()
        .map(|event| bounds[event.place].whose(event.offset))
        .collect();
    let before = |at: usize| {
        let event = events[at].clone();
        let is_before =
            move |other: &&Event| is_same(&event, other) && other.place == event.place && other.offset < event.offset;
        events.iter().filter(is_before)
    };
    let is_known = |at: usize| before(at).any(|other| other.kafka >= events[at].kafka - 5 * SECOND);
    let of_batch = kept(events, &|at| whose[at] == Whose::Batch);
    let counted = |at: usize| of_batch.contains(&at) || (whose[at] == Whose::Speed && !is_known(at));
    let once = kept(events, &counted);
    let in_gaps = kept(events, &|at| whose[at] == Whose::Gap);
    let class = |at: usize| {
        Some(match whose[at] {
            Whose::Nobody => return None,
            Whose::Gap => {
                let has_copy = (0..events.len()).any(|other| counted(other) && is_same(&events[at], &events[other]));
                match in_gaps.contains(&at) && !has_copy {
                    true => Class::Gap,
                    false => Class::Dropped,
                }
            }
            _ if once.contains(&at) => Class::Kept,
            _ if counted(at) && before(at).next().is_some() => Class::Beyond,
            _ if counted(at) => Class::Across,
            Whose::Speed => Class::Known,
            Whose::Batch => Class::Dropped,
        })
    };
    (0..events.len()).map(class).collect()
}

fn table(events: &[Event]) -> RecordBatch {
    let times = |of: fn(&Event) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(events.iter().map(of)).with_timezone("UTC"))
    };
    let topics = events.iter().map(|event| topic_text(partition(event.place).topic));
    let numbers = events.iter().map(|event| partition(event.place).number.cast_signed());
    let offsets = events.iter().map(|event| event.offset.cast_signed());
    let columns: [(&str, ArrayRef, bool); 6] = [
        (TOPIC_COLUMN, Arc::new(StringArray::from_iter_values(topics)), false),
        (PARTITION_COLUMN, Arc::new(Int32Array::from_iter_values(numbers)), false),
        (OFFSET_COLUMN, Arc::new(Int64Array::from_iter_values(offsets)), false),
        (KAFKA_TIME_COLUMN, times(|event| event.kafka), false),
        (EVENT_TIME_COLUMN, times(|event| event.at), false),
        (
            "tail",
            Arc::new(events.iter().map(|event| event.tail).collect::<Int64Array>()),
            true,
        ),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

type Said = BTreeMap<(String, i32, i64), i64>;

/// What is said of each event that is anywhere.
async fn said(events: &[Event], bounds: &[Bounds], memory: usize) -> Said {
    let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
    let room = Room::with_cores(memory, 2, Arc::new(Spill::new(None).unwrap())).unwrap();
    let of = |whose: Whose| {
        let of_place = |(place, bounds): (usize, &Bounds)| {
            let offsets = (0..40).filter(|offset| bounds.whose(*offset) == whose);
            let offsets = offsets.map(|offset| OffsetRange {
                from: Offset(offset),
                to: Offset(offset + 1),
            });
            (partition(place), offsets.collect::<OffsetSet>())
        };
        bounds.iter().enumerate().map(of_place).collect()
    };
    let places = Places {
        batch: of(Whose::Batch),
        speed: of(Whose::Speed),
        gaps: of(Whose::Gap),
    };
    let batch = table(events);
    // In several files, as they were archived.
    let pieces = (0..batch.num_rows())
        .step_by(9)
        .map(|at| batch.slice(at, 9.min(batch.num_rows() - at)));
    let mut files = vec![Vec::new(), Vec::new()];
    pieces.enumerate().for_each(|(at, piece)| files[at % 2].push(piece));
    let provider: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(batch.schema(), files).unwrap());
    let days = BTreeSet::from([EventDay(0)]);
    let dataset = &definitions.datasets[0];
    let classified = Classified::find(&room, &provider, dataset, &days, places, None)
        .await
        .unwrap();
    let classified = Arc::new(classified);
    let columns = [TOPIC_COLUMN, CLASS, OFFSET_COLUMN, PARTITION_COLUMN];
    let plan = LogicalPlanBuilder::scan("events", provider_as_source(classified.table(provider)), None).unwrap();
    let plan = plan.project(columns.map(ident)).unwrap().build().unwrap();
    let frame = room.session().execute_logical_plan(plan).await.unwrap();
    let mut said = Said::new();
    for batch in frame.collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let number = |at: usize| batch.column(at).as_primitive::<Int64Type>().value(row);
            let topic = batch.column(0).as_string::<i32>().value(row).to_owned();
            let key = (topic, batch.column(3).as_primitive::<Int32Type>().value(row), number(2));
            assert_eq!(said.insert(key, number(1)), None);
        }
    }
    said
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_event_is_of_the_class_that_its_rules_give(
        drawn in prop::collection::vec((0_usize..4, prop::option::weighted(0.9, 0_i64..5), 0_i64..2, 0_i64..20), 0..90),
        bounds in prop::collection::vec((0_u64..14, 0_u64..14, 0_u64..6, 0_u64..14), 4),
    ) {
        let mut nexts = [0; 4];
        let event = |(place, tail, at, kafka): (usize, Option<i64>, i64, i64)| {
            nexts[place] += 1;
            Event { place, offset: nexts[place] - 1, tail, at, kafka: kafka * SECOND }
        };
        let events: Vec<_> = drawn.into_iter().map(event).collect();
        let bounds: Vec<_> = bounds
            .into_iter()
            .map(|(mark, after, length, more)| {
                let gap = (mark + after / 3, mark + after / 3 + length);
                Bounds { mark, gap, end: gap.1 + more }
            })
            .collect();
        let expected = expected(&events, &bounds);
        let key = |event: &Event| {
            let Partition { topic, number } = partition(event.place);
            (topic_text(topic), number.cast_signed(), event.offset.cast_signed())
        };
        let expected: Said = events
            .iter()
            .zip(expected)
            .filter_map(|(event, class)| Some((key(event), class? as i64)))
            .collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        for memory in [64 << 20, 4 << 10] {
            let said = runtime.block_on(said(&events, &bounds, memory));
            prop_assert_eq!(&said, &expected);
        }
    }
}
