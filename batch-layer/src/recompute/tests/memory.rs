//! Days that are much larger than the memory to compute them in: the run ends, within it.
//!
//! Sorting whole events to find repeats did not: a batch of 8,192 such events needs 22 MB to be sorted, and the share of one of two
//! sorts was 4. The first sort had spilled 310 MB of 50 MB of events by then.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use shared_schemas::plan::FAILED_COLUMN;

use super::*;

const WIDE: &str = r#"
[dataset.people]
topic = "people"
event_time = "at"
event_id = ["id"]

[dataset.people.fields]
at = "timestamp"
id = "string"
a = "string"
b = "string"
c = "string"

[view.people]
dataset = "people"
grain = "1h"
dimensions = ["a", "b", "c", "id"]

[view.people.measures]
people = "count()"

[view.hours]
dataset = "people"
grain = "1h"

[view.hours.measures]
people = "count()"
last = "max(a)"
"#;

/// So many events of about 1 KB, a tenth of them repeats.
fn wide(dataset: &Dataset, events: u64) -> Arc<MemTable> {
    const PIECE: u64 = 500;
    let piece = |from: u64| {
        let numbers: Vec<u64> = (from..(from + PIECE).min(events)).collect();
        let id = |number: &u64| if number % 10 == 9 { number - 7 } else { *number };
        let time = |of: &dyn Fn(&u64) -> i64| -> ArrayRef {
            let times: Vec<_> = numbers.iter().map(of).collect();
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone(UTC))
        };
        let text = |field: char| -> ArrayRef {
            let text = |number: &u64| format!("{field}-{:0>330}", id(number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            Arc::new(StringArray::from_iter_values(numbers.iter().map(text)))
        };
        let columns: Vec<ArrayRef> = vec![
            time(&|number| i64::try_from(id(number)).unwrap()),
            text('i'),
            text('a'),
            text('b'),
            text('c'),
            Arc::new(Int32Array::from(vec![0; numbers.len()])),
            Arc::new(Int64Array::from_iter_values(
                numbers.iter().map(|number| number.cast_signed()),
            )),
            time(&|number| i64::try_from(*number).unwrap()),
            time(&|number| i64::try_from(id(number)).unwrap()),
            Arc::new(StringArray::from(vec![topic_text(TOPICS[0]); numbers.len()])),
        ];
        let mut fields = event_schema(dataset).fields().to_vec();
        fields.push(Arc::new(Field::new(TOPIC_COLUMN, DataType::Utf8, false)));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    };
    let pieces: Vec<_> = (0..events)
        .step_by(usize::try_from(PIECE).unwrap())
        .map(piece)
        .collect();
    Arc::new(MemTable::try_new(pieces[0].schema(), vec![pieces]).unwrap())
}

/// As many groups as events, each a KB, in less memory than they need.
#[tokio::test(flavor = "multi_thread")]
async fn wide_events_are_counted_in_little_memory() {
    const EVENTS: u64 = 50_000;
    let definitions = Definitions::parse([("people.toml", WIDE)]).unwrap();
    let dataset = &definitions.datasets[0];
    let table = wide(dataset, EVENTS);
    let partition = Partition {
        topic: TOPICS[0],
        number: 0,
    };
    let counted = below(&BTreeMap::from([(partition, Mark(Offset(EVENTS)))]));
    for view in &definitions.views {
        let recompute = Recompute::new(view, dataset, 32 << 20).unwrap();
        let days = BTreeSet::from([EventDay(0)]);
        let table: Arc<MemTable> = Arc::clone(&table);
        let cells = recompute.cells(table, &days, &counted).await.unwrap();
        let cells: Vec<_> = cells.try_collect().await.unwrap();
        let rows: usize = cells.iter().map(RecordBatch::num_rows).sum();
        let people = |cells: &RecordBatch| -> u64 {
            let (_, at) = cells
                .schema()
                .fields()
                .find("people__count")
                .map(|(at, field)| (field.clone(), at))
                .unwrap();
            cells.column(at).as_primitive::<UInt64Type>().values().iter().sum()
        };
        assert_eq!(cells.iter().map(people).sum::<u64>(), EVENTS * 9 / 10);
        assert!(view.name == "hours" || rows as u64 == EVENTS * 9 / 10);
        assert!(cells[0].column_by_name(FAILED_COLUMN).is_some());
    }
}
