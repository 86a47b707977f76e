//! Where a difference is: narrowed down to the rows and the offsets that make it, with the archived events there.
//!
//! A difference is found by cell, which is the smallest window and the smallest value of each dimension. What is left is to
//! find the rows: a cell's answer is made of batch rows and of the speed layer's row for each partition and start. The archive
//! gives what each of them should hold, so each is compared alone. Within a row the offsets are halved: a row that stands as of
//! an earlier offset holds just the events below it. In a small cell it is also tried which one event is lacking or twice in it.
//!
//! All of it is bounded: so many differences, so many events of a cell, so many tries, so many events shown.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, UInt8Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::OwnedRow;
use datafusion::common::Result;
use serde::Serialize;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, Partition, Start, TopicId};
use shared_schemas::measure::Held;
use shared_schemas::store::cells::PLACE_COLUMNS;
use shared_schemas::view::View;

use super::classes::{Class, Classes, EventCell, rows_of};
use super::compare::{Cells, Compared, Difference, canonical, measures};
use crate::recompute::topic_text;

/// So many events of a cell are looked at: of a larger cell only the rows are found.
pub(crate) const MOST_EVENTS: usize = 10_000;
/// In a cell of at most so many events it is tried which one of them is lacking, or twice in it.
const TRIED_ONE_BY_ONE: usize = 48;
/// So many events are shown of a difference.
pub(crate) const SHOWN: usize = 20;

/// A place that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Whose row it is: `batch` or `speed`.
    pub layer: &'static str,
    /// The batch run, 32 hexadecimal digits.
    pub run: Option<String>,
    /// The topic's incarnation, 32 hexadecimal digits; null where the events are of several partitions.
    pub topic: Option<String>,
    /// Kafka's partition number.
    pub partition: Option<u32>,
    /// From which offset on the row counts.
    pub start: Option<u64>,
    /// Up to which it says that it counts; null where there is no row.
    pub next: Option<u64>,
    /// What the row holds; null where there is none.
    pub held: Option<String>,
    /// What it should hold; null where it should not be.
    pub expected: Option<String>,
    /// The offsets that make the difference: from, and up to; null where there are no events.
    pub offsets: Option<(u64, u64)>,
    /// What is the matter with the events there, where that was found out.
    pub finding: Option<&'static str>,
}

/// An archived event, as it is archived: masked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventShown {
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// What the layers make of it: `kept`, `beyond_window`, `across_partitions`, `known`, `gap`, `dropped`.
    pub counted: &'static str,
    /// Kafka's timestamp.
    pub kafka_time: String,
    /// Its own time.
    pub event_time: String,
    /// Its declared fields.
    pub values: BTreeMap<String, Option<String>>,
}

impl Class {
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Beyond => "beyond_window",
            Self::Across => "across_partitions",
            Self::Known => "known",
            Self::Gap => "gap",
            Self::Dropped => "dropped",
        }
    }
}

const STALE: &str = "the row stands as of an earlier offset: these events are not in it";
const LACKING: &str = "this event is not in it";
const TWICE: &str = "this event is in it twice";

/// A row of the store that a cell's answer is made of.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    run: Option<String>,
    /// None of batch rows, which are of all partitions.
    partition: Option<Partition>,
    start: u64,
    next: u64,
    key: OwnedRow,
    cell: RecordBatch,
}

/// Reads the rows as the store sends them, a batch of them, of wanted cells.
pub(crate) fn parts(
    view: &View,
    classes: &Classes,
    batch: &RecordBatch,
    wanted: &BTreeSet<OwnedRow>,
) -> Result<Vec<Part>, ArrowError> {
    let states: Vec<_> = view.states().filter(|held| held.state.held == Held::Both).collect();
    let lacking = || ArrowError::SchemaError("the store sent other columns than it was asked for".to_owned());
    let external = |error| ArrowError::ExternalError(Box::new(error));
    // The keys first: of most rows nothing else is looked at.
    let keys = 1 + view.dimensions.len();
    let fields = classes.schema().fields().iter().take(keys).enumerate();
    let of_key = fields.map(|(at, field)| {
        let sent = batch.columns().get(at + PLACE_COLUMNS.len()).ok_or_else(lacking)?;
        Ok((field.name(), cast(sent, field.data_type())?, field.is_nullable()))
    });
    let of_key = of_key.collect::<Result<Vec<_>, ArrowError>>()?;
    let of_key = RecordBatch::try_from_iter_with_nullable(of_key)?;
    let rows = rows_of(&of_key, keys).map_err(external)?;
    let meant: Vec<u64> = (0..)
        .zip(&rows)
        .filter(|(_, key)| wanted.contains(*key))
        .map(|(at, _)| at)
        .collect();
    if meant.is_empty() {
        return Ok(Vec::new());
    }
    let batch = take_record_batch(batch, &UInt64Array::from(meant))?;
    let column = |at: usize, to: &DataType| cast(batch.columns().get(at).ok_or_else(lacking)?, to);
    let layers = column(0, &DataType::UInt8)?;
    let runs = column(1, &DataType::Utf8)?;
    let topics = column(2, &DataType::Utf8)?;
    let [partitions, starts, nexts] = [
        column(3, &DataType::UInt64)?,
        column(4, &DataType::UInt64)?,
        column(5, &DataType::UInt64)?,
    ];
    let fields = classes.schema().fields().iter().enumerate();
    let columns = fields.map(|(at, field)| {
        let sent = batch.columns().get(at + PLACE_COLUMNS.len()).ok_or_else(lacking)?;
        match states.iter().find(|held| held.name == *field.name()) {
            Some(held) if held.state.is_serialized() => canonical(&held.state, sent),
            _ => cast(sent, field.data_type()),
        }
    });
    let cells = RecordBatch::try_new(classes.schema().clone(), columns.collect::<Result<_, _>>()?)?;
    let number = |column: &arrow::array::ArrayRef, row: usize| column.as_primitive::<UInt64Type>().value(row);
    let text = |column: &arrow::array::ArrayRef, row: usize| {
        let column: &StringArray = column.as_string();
        column.value(row).parse::<u128>().ok()
    };
    let keys = rows_of(&cells, keys).map_err(external)?;
    let part = |(row, key)| {
        let of_batch = layers.as_primitive::<UInt8Type>().value(row) == 1;
        Part {
            run: text(&runs, row).filter(|_| of_batch).map(|run| format!("{run:032x}")),
            partition: text(&topics, row).map(|topic| Partition {
                topic: TopicId(topic),
                number: u32::try_from(number(&partitions, row)).unwrap_or_default(),
            }),
            start: number(&starts, row),
            next: number(&nexts, row),
            key,
            cell: cells.slice(row, 1),
        }
    };
    Ok(keys.into_iter().enumerate().map(part).collect())
}

/// Finds the places of differences of one window.
pub(crate) struct Narrow<'a> {
    pub(crate) view: &'a View,
    pub(crate) classes: &'a Classes,
    pub(crate) chunk: ChunkSize,
    pub(crate) marks: &'a BTreeMap<Partition, Mark>,
    pub(crate) parts: &'a [Part],
    pub(crate) events: &'a [EventCell],
}

/// Events of a row, in their order.
type Events<'e> = Vec<&'e EventCell>;

/// A row that a cell is made of, if it is there; the events that it should hold; and the partition and start of the speed layer's.
type Row<'e> = (Option<&'e Part>, Events<'e>, Option<(Partition, Start)>);

impl Narrow<'_> {
    /// The places that make a difference, and the events to show.
    pub(crate) async fn down(&self, difference: &Difference) -> Result<(Vec<Place>, Vec<EventCell>)> {
        let measures = measures(self.view);
        let measure = measures.iter().find(|measure| measure.name == difference.measure);
        let (Some(measure), Some(key)) = (measure, &difference.cell) else {
            return Ok(Default::default());
        };
        let keys = 1 + self.view.dimensions.len();
        let mut of_cell = Vec::new();
        for event in self.events {
            if rows_of(&event.cell, keys)?.first() == Some(key) {
                of_cell.push(event);
            }
        }
        let mut places = Vec::new();
        let mut shown = Vec::new();
        for (part, events, start) in self.rows(key, &of_cell) {
            let expected = self.cells(&events).await?;
            let held = self.held(part)?;
            if measure.is_equal(&held, at(&held, key), &expected, at(&expected, key)) {
                continue;
            }
            let (range, finding) = self.halve(measure, key, &held, &events).await?;
            let place = self.place(measure, part, start, (&held, key), &expected, &range, finding);
            places.push(place);
            shown.extend(range.into_iter().cloned());
        }
        if places.is_empty() {
            // The rows are as the rules make them: what differs are events that count otherwise.
            let odd = of_cell
                .iter()
                .filter(|event| !matches!(event.class, Class::Kept | Class::Dropped));
            shown = odd.map(|event| (*event).clone()).collect();
        }
        Ok((places, shown))
    }

    /// The rows that the cell is made of, or should be: each with its events, and where it counts from.
    fn rows<'e>(&'e self, key: &OwnedRow, events: &[&'e EventCell]) -> Vec<Row<'e>> {
        let mark = |partition: Partition| self.marks.get(&partition).map(|mark| mark.0);
        let counted = || events.iter().copied().filter(|event| event.class.is_counted());
        let is_batch = |event: &EventCell| Offset(event.offset) < mark(event.partition).unwrap_or_default();
        let start_of = |event: &EventCell| {
            let begin = self.chunk.first(Offset(event.offset)).0;
            Start(begin.max(mark(event.partition).unwrap_or_default()))
        };
        let mut rows = Vec::new();
        let parts = || self.parts.iter().filter(|part| part.key == *key);
        let batch: Events<'e> = counted().filter(|event| is_batch(event)).collect();
        let of_batch: Vec<_> = parts().filter(|part| part.run.is_some()).collect();
        if !batch.is_empty() || !of_batch.is_empty() {
            rows.push((of_batch.first().copied(), batch, None));
        }
        // There is to be one at most.
        rows.extend(of_batch.iter().skip(1).map(|part| (Some(*part), Vec::new(), None)));
        let mut starts: BTreeMap<(Partition, Start), (Option<&'e Part>, Events<'e>)> = BTreeMap::new();
        for part in parts().filter(|part| part.run.is_none()) {
            if let Some(partition) = part.partition {
                starts.entry((partition, Start(Offset(part.start)))).or_default().0 = Some(part);
            }
        }
        for event in counted().filter(|event| !is_batch(event)) {
            starts
                .entry((event.partition, start_of(event)))
                .or_default()
                .1
                .push(event);
        }
        rows.extend(
            starts
                .into_iter()
                .map(|(start, (part, events))| (part, events, Some(start))),
        );
        rows
    }

    async fn cells(&self, events: &[&EventCell]) -> Result<Cells> {
        let cells = events.iter().map(|event| event.cell.clone()).collect();
        let merged = self.classes.merged(cells).await?;
        Ok(Cells::new(self.view, self.classes.schema(), &[merged])?)
    }

    fn held(&self, part: Option<&Part>) -> Result<Cells> {
        let cells: Vec<_> = part.iter().map(|part| part.cell.clone()).collect();
        Ok(Cells::new(self.view, self.classes.schema(), &cells)?)
    }

    /// The fewest events that make the difference between a row and its events.
    async fn halve<'e>(
        &self,
        measure: &Compared<'_>,
        key: &OwnedRow,
        held: &Cells,
        events: &Events<'e>,
    ) -> Result<(Events<'e>, Option<&'static str>)> {
        let Some(held_at) = at(held, key) else {
            return Ok((events.clone(), None));
        };
        let holds = async |of: &[&EventCell]| {
            let cells = self.cells(of).await?;
            Ok::<_, datafusion::common::DataFusionError>(measure.is_equal(held, Some(held_at), &cells, at(&cells, key)))
        };
        // As many events as the row counts, by halves.
        if let Some(wanted) = total(held, held_at) {
            let (mut low, mut high) = (0, events.len());
            while low < high {
                let middle = usize::midpoint(low, high);
                let cells = self.cells(&events[..middle]).await?;
                let count = at(&cells, key).and_then(|row| total(&cells, row)).unwrap_or_default();
                if count < wanted {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if low < events.len() && holds(&events[..low]).await? {
                return Ok((events[low..].to_vec(), Some(STALE)));
            }
        }
        if events.len() <= TRIED_ONE_BY_ONE {
            for (index, event) in events.iter().enumerate() {
                let mut others = events.clone();
                others.remove(index);
                if holds(&others).await? {
                    return Ok((vec![*event], Some(LACKING)));
                }
                let mut more = events.clone();
                more.push(*event);
                if holds(&more).await? {
                    return Ok((vec![*event], Some(TWICE)));
                }
            }
        }
        Ok((events.clone(), None))
    }

    #[expect(clippy::too_many_arguments, reason = "a place is told in one go")]
    fn place(
        &self,
        measure: &Compared<'_>,
        part: Option<&Part>,
        start: Option<(Partition, Start)>,
        (held, key): (&Cells, &OwnedRow),
        expected: &Cells,
        range: &[&EventCell],
        finding: Option<&'static str>,
    ) -> Place {
        let of_one = range
            .iter()
            .all(|event| Some(event.partition) == range.first().map(|first| first.partition));
        let offsets = range.first().zip(range.last()).filter(|_| of_one);
        let of_range = range.first().filter(|_| of_one).map(|event| event.partition);
        let partition = start.map(|(partition, _)| partition).or(of_range);
        Place {
            layer: if start.is_some() { "speed" } else { "batch" },
            run: part.and_then(|part| part.run.clone()),
            topic: partition.map(|partition| topic_text(partition.topic)),
            partition: partition.map(|partition| partition.number),
            start: start.map(|(_, start)| start.0.0),
            next: start.and(part).map(|part| part.next),
            held: at(held, key).map(|row| measure.shown(held, row)),
            expected: at(expected, key).map(|row| measure.shown(expected, row)),
            offsets: offsets.map(|(first, last)| (first.offset, last.offset + 1)),
            finding,
        }
    }
}

fn at(cells: &Cells, key: &OwnedRow) -> Option<usize> {
    cells.at(key)
}

/// What all counts of a row come to; `None` where it has none.
fn total(cells: &Cells, row: usize) -> Option<u64> {
    let schema = cells.batch().schema();
    let counts = schema.fields().iter().filter(|field| field.name().ends_with("__count"));
    let counts = counts.filter_map(|field| {
        let column = cells.batch().column_by_name(field.name())?;
        column.as_primitive_opt::<UInt64Type>().map(|column| column.value(row))
    });
    counts.reduce(u64::saturating_add)
}

/// Events with their values, from the archive's rows of just these.
pub(crate) fn shown(rows: &[RecordBatch], events: &[EventCell], fields: &[String]) -> Vec<EventShown> {
    use shared_schemas::dataset::{EVENT_TIME_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
    use shared_schemas::store::tables::TOPIC_COLUMN;
    let text = |batch: &RecordBatch, name: &str, row: usize| {
        let column = batch.column_by_name(name).filter(|column| column.is_valid(row))?;
        arrow::util::display::array_value_to_string(column, row).ok()
    };
    let mut found = BTreeMap::new();
    for batch in rows {
        for row in 0..batch.num_rows() {
            let number = |name| {
                text(batch, name, row)
                    .and_then(|text| text.parse::<u64>().ok())
                    .unwrap_or_default()
            };
            let topic = text(batch, TOPIC_COLUMN, row).unwrap_or_default();
            let place = (topic, number(PARTITION_COLUMN), number(OFFSET_COLUMN));
            found.insert(place, (batch, row));
        }
    }
    let of_event = |event: &EventCell| {
        let topic = topic_text(event.partition.topic);
        let (batch, row) = found.get(&(topic.clone(), u64::from(event.partition.number), event.offset))?;
        let values = fields.iter().map(|field| (field.clone(), text(batch, field, *row)));
        Some(EventShown {
            topic,
            partition: event.partition.number,
            offset: event.offset,
            counted: event.class.says(),
            kafka_time: text(batch, KAFKA_TIME_COLUMN, *row).unwrap_or_default(),
            event_time: text(batch, EVENT_TIME_COLUMN, *row).unwrap_or_default(),
            values: values.collect(),
        })
    };
    events.iter().filter_map(of_event).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMicrosecondArray, UInt64Array};
    use shared_schemas::definitions::Definitions;

    use super::super::compare::Compare;
    use super::*;
    use crate::recompute::Room;
    use crate::spill::Spill;

    const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
chunk = 8
fields = { at = "timestamp" }

[view.hourly]
dataset = "flights"
grain = "1h"
[view.hourly.measures]
flights = "count()"
"#;

    /// A topic that was made again has the same partitions and offsets; its rows and events are others.
    #[tokio::test]
    async fn rows_of_a_topic_that_was_made_again_are_its_own() {
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
        let (view, dataset) = (&definitions.views[0], &definitions.datasets[0]);
        let room = Room::with_cores(64 << 20, 1, Arc::new(Spill::new(None).unwrap())).unwrap();
        let classes = Classes::new(view, dataset, &room).unwrap();
        let counting = |count: u64| {
            let window: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC"));
            let [failed, count]: [ArrayRef; 2] =
                [0, count].map(|number| Arc::new(UInt64Array::from(vec![number])) as _);
            RecordBatch::try_new(classes.schema().clone(), vec![window, failed, count]).unwrap()
        };
        let key = rows_of(&counting(1), 1).unwrap().remove(0);
        let [old, new] = [3, 4].map(|topic| Partition {
            topic: TopicId(topic),
            number: 0,
        });
        // The old one is below its mark up to 8; nothing of the new one is.
        let marks = BTreeMap::from([(old, Mark(Offset(8))), (new, Mark::default())]);
        let part = |partition, start, count| Part {
            run: None,
            partition: Some(partition),
            start,
            next: start + 8,
            key: key.clone(),
            cell: counting(count),
        };
        let parts = [part(old, 8, 2), part(new, 8, 9), part(new, 0, 1)];
        let event = |partition, offset| EventCell {
            partition,
            offset,
            class: Class::Kept,
            cell: counting(1),
        };
        let events =
            [(old, 1), (old, 9), (old, 10), (new, 1), (new, 9)].map(|(partition, offset)| event(partition, offset));
        let narrow = Narrow {
            view,
            classes: &classes,
            chunk: ChunkSize::new(8).unwrap(),
            marks: &marks,
            parts: &parts,
            events: &events,
        };
        let mut different = Compare::of(
            view,
            &narrow.held(Some(&parts[1])).unwrap(),
            &narrow.held(None).unwrap(),
        )
        .different;
        let (places, shown) = narrow.down(&different.remove(0)).await.unwrap();
        // A batch row is lacking, and one row of the new incarnation is wrong.
        let found: Vec<_> = places
            .iter()
            .map(|place| (place.layer, place.topic.clone(), place.start, place.held.clone()))
            .collect();
        let (of_old, of_new) = (topic_text(old.topic), topic_text(new.topic));
        assert_eq!(
            found,
            [
                ("batch", Some(of_old), None, None),
                ("speed", Some(of_new), Some(8), Some("flights__count=9".to_owned()))
            ]
        );
        let at: Vec<_> = shown.iter().map(|event| (event.partition, event.offset)).collect();
        assert_eq!(at, [(old, 1), (new, 9)]);
    }
}
