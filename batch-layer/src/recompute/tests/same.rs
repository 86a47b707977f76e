//! However many threads and however little memory: the same rows, from one reading of the events.

use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{AsArray, Decimal128Array, Float64Array};
use arrow::datatypes::Float64Type;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::logical_expr::TableType;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::join_all;
use shared_schemas::plan::WINDOW_COLUMN;

use super::super::feed::{Told, Wanted, feed};
use super::super::room::Room;
use super::*;
use crate::repeats::Rule;
use crate::spill::Spill;

const SALES: &str = r#"
[dataset.sales]
topic = "sales"
event_time = "at"
event_id = ["id"]

[dataset.sales.fields]
at = "timestamp"
id = "string"
shop = "string"
items = "int64?"
paid = "decimal(12,2)?"
weight = "float64?"

[view.shops]
dataset = "sales"
grain = "1h"
filter = "items <> 3"
dimensions = ["shop"]

[view.shops.measures]
sales = "count()"
paid = "sum(paid)"
least = "min(paid)"
mean = "avg(items)"
buyers = "distinct(id)"
weights = "quantiles(weight, [0.5, 0.9])"
first = "first(items)"
last = "last(shop)"

[view.weights]
dataset = "sales"
grain = "1d"

[view.weights.measures]
weight = "sum(weight)"
most = "max(weight)"

[view.each]
dataset = "sales"
grain = "1m"
dimensions = ["id", "shop"]

[view.each.measures]
sales = "count()"

[view.none]
dataset = "sales"
grain = "1h"
filter = "shop IS NULL"

[view.none.measures]
sales = "count()"

[view.some]
dataset = "sales"
grain = "1h"
filter = "shop IS NOT NULL"
dimensions = ["shop"]

[view.some.measures]
sales = { measure = "count()", where = "id IS NOT NULL" }
others = { measure = "count()", where = "shop <> 'shop 7'" }
"#;

const EVENTS: u64 = 30_000;

/// Every seventh sale is told again, in the other partition or in its own.
fn sales(dataset: &Dataset) -> Vec<RecordBatch> {
    let pieces = (0..EVENTS).step_by(1000).map(|from| {
        let numbers: Vec<u64> = (from..from + 1000).collect();
        let of = |number: &u64| if number % 7 == 6 { number / 3 } else { *number };
        let mixed = |number: &u64| of(number).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let small = |number: &u64, below: u64| i64::try_from(mixed(number) % below).unwrap();
        let at = |number: &u64| i64::try_from(of(number)).unwrap() * 5_000_000;
        let times = |of: &dyn Fn(&u64) -> i64| -> ArrayRef {
            let times: Vec<_> = numbers.iter().map(of).collect();
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone(UTC))
        };
        let paid: Decimal128Array = numbers
            .iter()
            .map(|number| Some(i128::from(small(number, 99_999))))
            .collect();
        let weight: Float64Array = numbers
            .iter()
            .map(|number| (number % 5 != 0).then(|| f64::from(i32::try_from(small(number, 1000)).unwrap()) * 0.1))
            .collect();
        let partition = |number: &u64| i32::try_from(number % 2).unwrap();
        let columns: Vec<ArrayRef> = vec![
            times(&at),
            Arc::new(StringArray::from_iter_values(
                numbers.iter().map(|number| format!("sale-{:040}", of(number))),
            )),
            Arc::new(StringArray::from_iter_values(
                numbers.iter().map(|number| format!("shop {}", mixed(number) % 37)),
            )),
            Arc::new(
                numbers
                    .iter()
                    .map(|number| Some(small(number, 9)))
                    .collect::<Int64Array>(),
            ),
            Arc::new(paid.with_precision_and_scale(12, 2).unwrap()),
            Arc::new(weight),
            Arc::new(Int32Array::from_iter_values(numbers.iter().map(partition))),
            Arc::new(Int64Array::from_iter_values(
                numbers.iter().map(|number| number.cast_signed()),
            )),
            times(&|number| i64::try_from(number % 1000).unwrap()),
            times(&at),
            Arc::new(StringArray::from(vec![topic_text(TOPICS[0]); numbers.len()])),
        ];
        let mut fields = event_schema(dataset).fields().to_vec();
        fields.push(Arc::new(Field::new(TOPIC_COLUMN, DataType::Utf8, false)));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    });
    pieces.collect()
}

/// In the types in which the archive gives them to computations.
fn lean(batch: &RecordBatch) -> RecordBatch {
    let topic = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let to = match field.data_type() {
            DataType::Utf8 if field.name() == TOPIC_COLUMN => &topic,
            DataType::Utf8 => &DataType::Utf8View,
            same => same,
        };
        (
            field.name().clone(),
            arrow::compute::cast(column, to).unwrap(),
            field.is_nullable(),
        )
    });
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Vec<_>>()).unwrap()
}

/// A table that counts how often it is read.
#[derive(Debug)]
struct Counting {
    table: MemTable,
    scans: AtomicUsize,
}

#[async_trait]
impl TableProvider for Counting {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.table.scan(state, projection, filters, limit).await
    }
}

/// The rows of each view as sorted text; doubles that are added up apart.
struct Rows {
    exact: Vec<Vec<String>>,
    rounded: Vec<f64>,
    spilled: u64,
    scans: usize,
    repeats: u64,
    once: u64,
    passed: Vec<Option<u64>>,
}

/// Of these views, or of all.
async fn rows(memory: usize, cores: usize, only: Option<&str>) -> Rows {
    let definitions = Definitions::parse([("sales.toml", SALES)]).unwrap();
    let dataset = &definitions.datasets[0];
    let batches = sales(dataset);
    let batches: Vec<_> = if cores.is_multiple_of(2) || memory < 1 << 30 {
        batches.iter().map(lean).collect()
    } else {
        batches
    };
    let parts: Vec<Vec<RecordBatch>> = (0..4)
        .map(|part| batches.iter().skip(part).step_by(4).cloned().collect())
        .collect();
    let events = Arc::new(Counting {
        table: MemTable::try_new(batches[0].schema(), parts).unwrap(),
        scans: AtomicUsize::new(0),
    });
    let counted = below(
        &[0, 1]
            .map(|number| {
                (
                    Partition {
                        topic: TOPICS[0],
                        number,
                    },
                    Mark(Offset(EVENTS - 10)),
                )
            })
            .into(),
    );
    let views = definitions
        .views
        .iter()
        .filter(|view| only.is_none_or(|only| view.name == only));
    let plans: Vec<_> = views
        .map(|view| CellPlan::new(view, dataset, CellKey::Cell).unwrap())
        .collect();
    let room = Room::with_cores(memory, cores, Arc::new(Spill::new(None).unwrap())).unwrap();
    let told = Arc::new(Told::default());
    let wanted = Wanted {
        dataset,
        events: Arc::clone(&events) as Arc<dyn TableProvider>,
        days: &BTreeSet::from([EventDay(0), EventDay(1)]),
        rule: Rule::AllButOne,
        counted: &counted,
        since: &BTreeSet::from([(
            Partition {
                topic: TOPICS[0],
                number: 1,
            },
            Offset(10_000),
        )]),
    };
    let streams = feed(&room, &plans.iter().collect::<Vec<_>>(), &wanted, &told)
        .await
        .unwrap();
    let cells = join_all(streams.into_iter().map(|cells| cells.try_collect::<Vec<RecordBatch>>())).await;
    let mut rounded = Vec::new();
    let mut exact = Vec::new();
    for (plan, cells) in plans.iter().zip(cells) {
        let mut cells = concat_batches(plan.schema(), &cells.unwrap()).unwrap();
        let sums: Vec<_> = cells
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        for name in sums
            .iter()
            .filter(|name| name.starts_with("weight__sum") || name.starts_with("weight__magnitude"))
        {
            let at = cells.schema().index_of(name).unwrap();
            rounded.extend(cells.remove_column(at).as_primitive::<Float64Type>().values());
        }
        assert!(cells.column_by_name(WINDOW_COLUMN).is_some());
        exact.push(sorted(&cells));
    }
    // Cells come in any order.
    rounded.sort_by(f64::total_cmp);
    assert_eq!(told.read(), 29_990);
    assert_eq!(
        told.since(
            Partition {
                topic: TOPICS[0],
                number: 1
            },
            Offset(10_000)
        ),
        (EVENTS - 10 - 10_000) / 2
    );
    Rows {
        passed: told.passed(),
        once: told.read() - told.repeats(),
        exact,
        rounded,
        spilled: told.spilled().0,
        scans: events.scans.load(Ordering::Relaxed),
        repeats: told.repeats(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_same_on_any_number_of_threads_and_in_any_memory() {
    let one = rows(1 << 30, 1, None).await;
    assert!(one.repeats > 1000 && one.spilled == 0, "{}", one.repeats);
    assert_eq!(one.exact[1].len(), 4 + 1 + 1, "a frame, names, and the one day");
    let [shops, weights, each, none, some] = one.passed[..] else {
        panic!("{:?}", one.passed)
    };
    assert!(shops < Some(one.once) && shops > Some(0), "{shops:?}");
    assert_eq!((weights, each), (None, None));
    // What always holds may be left out of the plan: then all pass.
    assert_eq!((none, some.unwrap_or(one.once)), (Some(0), one.once));
    for (memory, cores) in [(1 << 30, 2), (1 << 30, 8), (6 << 20, 1)] {
        let other = rows(memory, cores, None).await;
        assert_eq!(one.exact, other.exact, "{memory} bytes, {cores} cores");
        assert_eq!(one.repeats, other.repeats);
        assert_eq!(other.spilled > 0, memory == 6 << 20, "{} bytes spilled", other.spilled);
        for (one, other) in one.rounded.iter().zip(&other.rounded) {
            assert!((one - other).abs() <= 1e-9 * one.abs(), "{one} {other}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_read_once_for_all_views() {
    // Two for the ids and the events themselves; planning asks the table for nothing.
    assert_eq!(rows(1 << 30, 2, None).await.scans, 2);
}

/// Also where what a filter says of a field is known before any event is read, and nothing else reads that field.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_alone_is_the_same_as_beside_others() {
    let all = rows(1 << 30, 2, None).await;
    for (at, view) in [(0, "shops"), (2, "each"), (3, "none"), (4, "some")] {
        for cores in [1, 2] {
            let alone = rows(1 << 30, cores, Some(view)).await;
            assert_eq!(alone.exact[0], all.exact[at], "{view}");
            assert_eq!(alone.passed[0], all.passed[at], "{view}");
        }
    }
}
