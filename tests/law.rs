//! The law that the platform rests on, over the real decoder, plans, dedupe and hand-off: for any log and any mark,
//! `batch(all) == merge(batch(below the mark), speed(from the mark))`.
//!
//! The speed layer's stages run as its worker runs them, slice by slice and flush by flush, with cuts and with a reader
//! that begins anywhere; what it would have written is kept as ClickHouse keeps it, the highest version of each row. Only
//! Kafka and ClickHouse are not here: `end_to_end.rs` has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use arrow::array::{AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, UInt64Type};
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use highwater_batch::recompute::{Recompute, below, topic_text};
use highwater_speed::aggregate::Aggregate;
use highwater_speed::dedupe::{Budget, Filter, Identities, Judgement};
use highwater_speed::starts::{Fate, Records, Starts, Wanted};
use proptest::prelude::*;
use shared_schemas::dataset::{Dataset, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{ChunkSize, EventDay, Mark, Offset, Partition, SpeedProgress, Start, TopicId, counts};
use shared_schemas::plan::{CellKey, MergePlan, START_COLUMN, event_schema};
use shared_schemas::store::tables::TOPIC_COLUMN;
use shared_schemas::view::View;

use crate::faults::trial::is_long;

const TOPIC: TopicId = TopicId(42);
const CHUNK: u64 = 8;
/// 2024-01-31T22:00:00Z: the events lie around the end of a month.
const FIRST: i64 = 1_706_738_400;

const DEFINITIONS: &str = r#"
[dataset.flights]
event_time = "at"
event_id = ["flight"]
dedupe = { window = "10m" }
chunk = 8

[dataset.flights.fields]
at = { type = "timestamp", unit = "s" }
flight = "int64"
carrier = "string?"
delay = "int64?"
distance = "float64?"
price = "decimal(12,2)?"

[view.hourly]
dataset = "flights"
grain = "1h"
filter = "delay is null or delay < 90"
dimensions = ["carrier", { name = "long", expr = "distance > 20" }]

[view.hourly.measures]
flights = "count()"
timed = "count(delay)"
delay = "sum(delay)"
worst = "max(delay)"
least = "min(price)"
mean = "avg(delay)"
distance = "sum(distance)"
paid = { measure = "sum(price)", where = "delay > 15" }
share = { ratio = ["timed", "flights"] }
planes = "distinct(flight)"
prices = { measure = "distinct(price)", where = "delay > 15" }
carriers = "distinct(carrier)"
spread = "quantiles(delay, [0.5, 0.95])"
far = { measure = "quantiles(distance - 20, [0, 1])", where = "delay > 15" }
opening = "first(flight)"
opening_price = "first(price)"
closing = { measure = "last(distance)", where = "delay > 15" }
"#;

/// One record of a partition's log.
#[derive(Debug, Clone)]
struct Entry {
    offset: u64,
    /// In ms.
    kafka_time: i64,
    value: String,
}

/// How a partition is read: where the reader begins, where slices end, where flushes fall, which cuts are wanted.
#[derive(Debug, Clone)]
struct Reading {
    begin: u64,
    slices: Vec<bool>,
    flushes: Vec<bool>,
    cuts: BTreeSet<u64>,
}

fn entries(partition: u32) -> impl Strategy<Value = Vec<Entry>> {
    let fields = (
        -1_i64..30 * 3600,
        prop::option::of("[A-C]"),
        prop::option::of(0_i64..120),
        prop::option::of(0_u8..40),
        prop::option::of(0_i64..100_000),
    );
    let record = prop_oneof![
        12 => fields.prop_map(Some),
        1 => Just(None),
    ];
    // Each step: a hole or none, how long since the last one, whether it repeats an earlier one.
    let step = (
        prop_oneof![6 => Just(1_u64), 1 => 2_u64..12],
        0_i64..20_000,
        record,
        prop::option::weighted(0.25, 0_usize..40),
    );
    prop::collection::vec(step, 0..40).prop_map(move |steps| {
        let mut log: Vec<Entry> = Vec::new();
        let mut offset = 0;
        let mut kafka_time = FIRST * 1000;
        for (forward, later, record, repeats) in steps {
            offset += forward;
            kafka_time += later;
            let earlier = repeats.filter(|_| !log.is_empty()).map(|back| &log[back % log.len()]);
            // Only what lies within the window of ten minutes is a repeat that the speed layer can know.
            let earlier = earlier.filter(|earlier| kafka_time - earlier.kafka_time <= 600_000);
            let value = match (earlier, record) {
                (Some(earlier), _) => earlier.value.clone(),
                (None, None) => "no event".to_owned(),
                (None, Some((at, carrier, delay, distance, price))) => serde_json::json!({
                    "at": FIRST + at - 20 * 3600, "flight": u64::from(partition) * 1_000_000 + offset,
                    "carrier": carrier, "delay": delay, "distance": distance,
                    "price": price.map(|cents| format!("{}.{:02}", cents / 100, cents % 100)),
                })
                .to_string(),
            };
            log.push(Entry {
                offset: offset - 1,
                kafka_time,
                value,
            });
        }
        log
    })
}

fn reading() -> impl Strategy<Value = Reading> {
    (
        0_u64..60,
        prop::collection::vec(any::<bool>(), 40),
        prop::collection::vec(any::<bool>(), 40),
        prop::collection::btree_set(0_u64..70, 0..3),
    )
        .prop_map(|(begin, slices, flushes, cuts)| Reading {
            begin,
            slices,
            flushes,
            cuts,
        })
}

/// The accepted events, and what became of each record.
type Decoded = (Vec<RecordBatch>, Vec<(Offset, Fate)>);

fn decode(dataset: &Dataset, partition: u32, log: &[Entry]) -> anyhow::Result<Decoded> {
    let options = Options {
        extra: false,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options)?;
    let mut fates = Vec::new();
    for entry in log {
        let pushed = decoder.push(&Record {
            partition: partition.try_into()?,
            offset: entry.offset.try_into()?,
            timestamp: Some(entry.kafka_time),
            key: None,
            value: Some(entry.value.as_bytes()),
            headers: &(),
        });
        let fate = match pushed {
            Ok(()) => Fate::Accepted(Judgement::First),
            Err(refusal) => Fate::Refused(refusal.reason),
        };
        fates.push((Offset(entry.offset), fate));
    }
    Ok((decoder.finish(), fates))
}

/// The speed layer on one partition; the rows that it would have written last, of each start.
async fn speed(
    dataset: &Dataset,
    view: &View,
    partition: u32,
    log: &[Entry],
    mark: u64,
    how: &Reading,
) -> anyhow::Result<Vec<RecordBatch>> {
    let chunk = ChunkSize::new(CHUNK)?;
    let wanted = Wanted {
        mark: Mark(Offset(mark)),
        cuts: how.cuts.iter().map(|cut| Start(Offset(*cut))).collect(),
        progress: SpeedProgress::default(),
    };
    let identities = Identities::new(dataset, &event_schema(dataset))?.context("the dataset has an event_id")?;
    // Warmed over all that came before.
    let mut filter = Filter::new(dataset, &Budget::new(u64::MAX), i64::MIN);
    let mut starts = Starts::new(chunk);
    let mut aggregate = Aggregate::new(view, dataset)?;
    let begin = how.begin.min(mark);
    let mut cursor = begin;
    let mut written = Vec::new();
    let mut slice = Vec::new();
    for (place, entry) in log.iter().enumerate() {
        slice.push(entry.clone());
        let last = place + 1 == log.len();
        if !(last || how.slices[place % how.slices.len()]) {
            continue;
        }
        let (mut batches, mut fates) = decode(dataset, partition, &std::mem::take(&mut slice))?;
        let mut accepted = fates.iter_mut().filter(|(_, fate)| matches!(fate, Fate::Accepted(_)));
        for batch in &mut batches {
            let mut keep = Vec::new();
            for judgement in filter.judge_all(&identities.of(batch)?) {
                keep.push(judgement != Judgement::Repeat);
                accepted.next().context("a row without a record")?.1 = Fate::Accepted(judgement);
            }
            *batch = filter_record_batch(batch, &BooleanArray::from(keep))?;
        }
        let next = entry.offset + 1;
        if next > begin {
            fates.retain(|(offset, _)| offset.0 >= cursor);
            let records = Records {
                from: Offset(cursor),
                next: Offset(next),
                fates,
            };
            for (start, range) in starts.take(&records, &wanted, "rules") {
                aggregate.add(partition, start, range, &batches)?;
            }
            cursor = next;
        }
        if last || how.flushes[place % how.flushes.len()] {
            aggregate.fold().await?;
            written.extend(aggregate.touched()?);
        }
    }
    for (start, kept) in starts.kept() {
        anyhow::ensure!(
            kept.ledger.read + kept.ledger.holes == kept.ledger.next.0 - start.0.0,
            "{start:?} {kept:?}"
        );
    }
    Ok(written)
}

/// Of rows that were written, ascending by version, the last one of each cell, of the starts that count.
fn as_the_store_keeps(written: &[RecordBatch], view: &View, mark: Mark) -> anyhow::Result<Vec<RecordBatch>> {
    let Some(first) = written.first() else {
        return Ok(vec![]);
    };
    let all = concat_batches(first.schema_ref(), written)?;
    let chunk = ChunkSize::new(CHUNK)?;
    let key = 1 + view.dimensions.len();
    let starts = all
        .column_by_name(START_COLUMN)
        .context("no start")?
        .as_primitive::<UInt64Type>();
    let partitions = all
        .column_by_name(PARTITION_COLUMN)
        .context("no partition")?
        .as_primitive::<Int32Type>();
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for row in 0..all.num_rows() {
        if !counts(mark, Start(Offset(starts.value(row))), chunk) {
            continue;
        }
        let cell = pretty_format_batches(&[all.slice(row, 1).project(&(0..key).collect::<Vec<_>>())?])?.to_string();
        last.insert(format!("{cell} {} {}", partitions.value(row), starts.value(row)), row);
    }
    let kept: BTreeSet<usize> = last.into_values().collect();
    let keep: BooleanArray = (0..all.num_rows()).map(|row| Some(kept.contains(&row))).collect();
    let all = filter_record_batch(&all, &keep)?;
    let names: Vec<usize> = (0..all.num_columns())
        .filter(|column| ![PARTITION_COLUMN, START_COLUMN].contains(&all.schema_ref().field(*column).name().as_str()))
        .collect();
    Ok(vec![all.project(&names)?])
}

fn archive(dataset: &Dataset, batches: Vec<RecordBatch>) -> anyhow::Result<Arc<MemTable>> {
    let mut fields = event_schema(dataset).fields.to_vec();
    fields.push(Arc::new(Field::new(TOPIC_COLUMN, DataType::Utf8, false)));
    let schema = Arc::new(Schema::new(fields));
    let with_topic = |batch: RecordBatch| {
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(StringArray::from(vec![topic_text(TOPIC); batch.num_rows()])));
        RecordBatch::try_new(Arc::clone(&schema), columns)
    };
    let batches = batches.into_iter().map(with_topic).collect::<Result<_, _>>()?;
    Ok(Arc::new(MemTable::try_new(schema, vec![batches])?))
}

fn show(cells: &RecordBatch) -> anyhow::Result<Vec<String>> {
    let text = pretty_format_batches(std::slice::from_ref(cells))?.to_string();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

async fn check(logs: &[Vec<Entry>], marks: &[u64], how: &[Reading]) -> anyhow::Result<()> {
    let definitions =
        Definitions::parse([("flights.toml", DEFINITIONS)]).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    let (dataset, view) = (&definitions.datasets[0], &definitions.views[0]);
    let partition = |number: usize| Partition {
        topic: TOPIC,
        number: u32::try_from(number).unwrap_or_default(),
    };
    let mut events = Vec::new();
    for (number, log) in (0..).zip(logs) {
        events.extend(decode(dataset, number, log)?.0);
    }
    let events = archive(dataset, events)?;
    let days: BTreeSet<EventDay> = (19_700..19_800).map(EventDay).collect();
    let recompute = Recompute::new(view, dataset, 1 << 30)?;
    let batch = async |marks: &BTreeMap<Partition, Mark>| -> anyhow::Result<Vec<RecordBatch>> {
        let stream = recompute.cells(events.clone(), &days, &below(marks)).await?;
        Ok(stream.try_collect().await?)
    };
    let everything = (0..logs.len())
        .map(|number| (partition(number), Mark(Offset(u64::MAX >> 1))))
        .collect();
    let at: BTreeMap<_, _> = marks
        .iter()
        .enumerate()
        .map(|(number, mark)| (partition(number), Mark(Offset(*mark))))
        .collect();
    let mut parts = batch(&at).await?;
    for (number, log) in logs.iter().enumerate() {
        let written = speed(dataset, view, u32::try_from(number)?, log, marks[number], &how[number]).await?;
        parts.extend(as_the_store_keeps(&written, view, Mark(Offset(marks[number])))?);
    }
    // The states that both layers have.
    let merge = MergePlan::new(view, CellKey::OneStart)?;
    let of_both = |cells: Vec<RecordBatch>| -> anyhow::Result<Vec<RecordBatch>> {
        let names = merge.schema().fields().iter().map(|field| field.name().as_str());
        let names: Vec<_> = names.collect();
        let project = |cells: RecordBatch| {
            let columns: Result<Vec<_>, _> = names.iter().map(|name| cells.schema().index_of(name)).collect();
            cells.project(&columns?)
        };
        Ok(cells.into_iter().map(project).collect::<Result<_, _>>()?)
    };
    let merged = merge.run(of_both(parts)?).await?;
    let whole = merge.run(of_both(batch(&everything).await?)?).await?;
    anyhow::ensure!(
        show(&merged)? == show(&whole)?,
        "merged:\n{}\nwhole:\n{}",
        pretty_format_batches(&[merged])?,
        pretty_format_batches(&[whole])?
    );
    Ok(())
}

/// Each case makes a dozen plans, which take long without optimization. `make faults` takes more of them.
fn cases() -> u32 {
    if is_long() { 400 } else { 32 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn batch_of_all_is_batch_below_the_mark_merged_with_speed_from_it(
        first in entries(0), second in entries(1), marks in prop::collection::vec(0_u64..70, 2), how in prop::collection::vec(reading(), 2),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let checked = runtime.block_on(check(&[first, second], &marks, &how));
        prop_assert!(checked.is_ok(), "{:#}", checked.unwrap_err());
    }
}

/// The columns that the law reads are the ones that events have.
#[test]
fn the_law_is_about_offsets() {
    let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
    assert!(
        event_schema(&definitions.datasets[0])
            .column_with_name(OFFSET_COLUMN)
            .is_some()
    );
    assert_eq!(definitions.datasets[0].chunk, CHUNK);
}
