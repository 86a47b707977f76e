//! A dataset, a view and events for the tests of this crate.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field as ArrowField, Schema};
use proptest::prelude::*;

use super::{DimensionSource, MeasureSource, UTC, View, ViewSource};
use crate::dataset::{Dataset, EventTime, Field, FieldSource, FieldType, Format, Privacy};
use crate::plan::{START_COLUMN, event_schema};

/// A field of each type; all but `at`, `id` and `origin` may be null.
pub(crate) fn dataset() -> Dataset {
    let field = |name: &str, field_type, nullable| Field {
        name: name.to_owned(),
        field_type,
        nullable,
        source: FieldSource::Path(vec![name.to_owned()]),
        mask: None,
    };
    Dataset {
        name: "flights".to_owned(),
        topic: "flights".to_owned(),
        partitions: 4,
        format: Format::Json,
        event_time: EventTime::Field("at".to_owned()),
        event_id: vec!["id".to_owned()],
        lateness: Duration::from_secs(3600),
        future: Duration::from_secs(600),
        dedupe_window: Duration::from_secs(600),
        dedupe_memory: 1 << 28,
        max_event_size: 1 << 20,
        chunk: 8,
        keep: None,
        privacy: Privacy::default(),
        fields: vec![
            field("at", FieldType::Timestamp { unit: None }, false),
            field("id", FieldType::Int64, false),
            field("origin", FieldType::String, false),
            field("carrier", FieldType::String, true),
            field("delay", FieldType::Int64, true),
            field("distance", FieldType::Float64, true),
            field(
                "fare",
                FieldType::Decimal {
                    precision: 10,
                    scale: 2,
                },
                true,
            ),
            field("cancelled", FieldType::Bool, true),
            field("day", FieldType::Date, true),
        ],
    }
}

/// One event's values, in the order of the fields, and its offset.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) at: i64,
    pub(crate) id: i64,
    pub(crate) origin: String,
    pub(crate) carrier: Option<String>,
    pub(crate) delay: Option<i64>,
    pub(crate) distance: Option<f64>,
    pub(crate) fare: Option<i128>,
    pub(crate) cancelled: Option<bool>,
    pub(crate) day: Option<i32>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// Few windows and dimension values, so that cells are shared; numbers up to the ends of their types.
pub(crate) fn events(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Event>> {
    let delay =
        prop_oneof![4 => -100_i64..100, 1 => Just(0_i64), 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX)];
    let distance = prop_oneof![
        4 => (-1000_i32..1000).prop_map(f64::from),
        1 => any::<f64>().prop_filter("finite", |value| value.is_finite()),
        1 => Just(0.0), 1 => Just(-0.0), 1 => Just(f64::MAX)
    ];
    let fare = prop_oneof![4 => -100_000_i128..100_000, 1 => Just(0_i128), 1 => Just(9_999_999_999_i128)];
    let strange = prop_oneof![6 => 18_000_i32..18_400, 1 => any::<i32>()];
    let event = (
        0_i64..4 * 3_600_000_000,
        0_i64..8,
        prop_oneof![Just("JFK"), Just("LAX"), Just("")],
        prop::option::of(prop_oneof![Just("AA"), Just("ZZ"), Just("Ü \u{1F6EB}")]),
        prop::option::weighted(0.8, delay),
        prop::option::weighted(0.8, distance),
        prop::option::weighted(0.8, fare),
        prop::option::of(any::<bool>()),
        prop::option::of(strange),
        0_i32..3,
    );
    prop::collection::vec(event, count).prop_map(|events| {
        (0..)
            .zip(events)
            .map(
                |(offset, (at, id, origin, carrier, delay, distance, fare, cancelled, day, partition))| Event {
                    at,
                    id,
                    origin: origin.to_owned(),
                    carrier: carrier.map(str::to_owned),
                    delay,
                    distance,
                    fare,
                    cancelled,
                    day,
                    partition,
                    offset,
                },
            )
            .collect()
    })
}

/// Events as a batch, in the schema of the decoder.
pub(crate) fn batch(events: &[Event]) -> RecordBatch {
    let time = |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone(UTC)) };
    let ats: Vec<_> = events.iter().map(|event| event.at).collect();
    let fares = events.iter().map(|event| event.fare).collect::<Decimal128Array>();
    let columns: Vec<ArrayRef> = vec![
        time(ats.clone()),
        Arc::new(events.iter().map(|event| Some(event.id)).collect::<Int64Array>()),
        Arc::new(
            events
                .iter()
                .map(|event| Some(event.origin.as_str()))
                .collect::<StringArray>(),
        ),
        Arc::new(
            events
                .iter()
                .map(|event| event.carrier.as_deref())
                .collect::<StringArray>(),
        ),
        Arc::new(events.iter().map(|event| event.delay).collect::<Int64Array>()),
        Arc::new(events.iter().map(|event| event.distance).collect::<Float64Array>()),
        Arc::new(fares.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(events.iter().map(|event| event.cancelled).collect::<BooleanArray>()),
        Arc::new(events.iter().map(|event| event.day).collect::<Date32Array>()),
        Arc::new(events.iter().map(|event| event.partition).collect::<Int32Array>()),
        Arc::new(events.iter().map(|event| event.offset).collect::<Int64Array>()),
        time(ats.clone()),
        time(ats),
    ];
    RecordBatch::try_new(Arc::new(event_schema(&dataset())), columns).unwrap()
}

/// The same with the start of each event's chunk.
pub(crate) fn batch_with_starts(events: &[Event]) -> RecordBatch {
    let plain = batch(events);
    let chunk = dataset().chunk.cast_signed();
    let starts = events
        .iter()
        .map(|event| (event.offset / chunk * chunk).cast_unsigned());
    let mut fields = plain.schema().fields().to_vec();
    fields.push(Arc::new(ArrowField::new(START_COLUMN, DataType::UInt64, false)));
    let mut columns = plain.columns().to_vec();
    columns.push(Arc::new(starts.collect::<UInt64Array>()));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// A view's source with an hour's grain.
pub(crate) fn source(filter: Option<&str>, dimensions: &[(&str, &str)], measures: &[(&str, &str)]) -> ViewSource {
    ViewSource {
        name: "hourly".to_owned(),
        dataset: "flights".to_owned(),
        grain: Duration::from_secs(3600),
        filter: filter.map(str::to_owned),
        dimensions: dimensions
            .iter()
            .map(|(name, expr)| DimensionSource {
                name: (*name).to_owned(),
                expr: (*expr).to_owned(),
            })
            .collect(),
        measures: measures
            .iter()
            .map(|(name, call)| {
                (
                    (*name).to_owned(),
                    MeasureSource::Aggregate {
                        call: (*call).to_owned(),
                        condition: None,
                    },
                )
            })
            .collect(),
        distinct_limit: None,
    }
}

/// Every kind of measure over every type that it takes.
pub(crate) fn every_measure() -> ViewSource {
    let mut source = source(
        Some("id <> 7"),
        &[("carrier", "carrier"), ("late", "delay > 15"), ("on", "day")],
        &[
            ("events", "count()"),
            ("delays", "count(delay)"),
            ("delay", "sum(delay)"),
            ("distance", "sum(distance)"),
            ("fare", "sum(fare)"),
            ("first", "min(at)"),
            ("last", "max(at)"),
            ("least_delay", "min(delay)"),
            ("most_delay", "max(delay)"),
            ("shortest", "min(distance)"),
            ("cheapest", "min(fare)"),
            ("dearest", "max(fare)"),
            ("first_carrier", "min(carrier)"),
            ("last_carrier", "max(carrier)"),
            ("first_day", "min(day)"),
            ("any_cancelled", "max(cancelled)"),
            ("mean_delay", "avg(delay)"),
            ("mean_distance", "avg(distance)"),
            ("mean_fare", "avg(fare)"),
            ("speed", "sum(id / (delay - delay % 2))"),
            ("carriers", "distinct(carrier)"),
            ("delays_apart", "distinct(delay)"),
            ("distances_apart", "distinct(distance)"),
            ("fares_apart", "distinct(fare)"),
            ("moments_apart", "distinct(at)"),
            ("days_apart", "distinct(day)"),
            ("truths_apart", "distinct(cancelled)"),
            ("delay_q", "quantiles(delay, [0.5, 0, 1])"),
            ("far_q", "quantiles(distance, [0.95])"),
            ("fare_q", "quantiles(fare, [0.25, 0.75])"),
            ("opening", "first(carrier)"),
            ("opening_fare", "first(fare)"),
            ("opening_day", "first(day)"),
            ("closing_delay", "last(delay)"),
            ("closing_far", "last(distance)"),
            ("closing_at", "last(at)"),
            ("closing_cancelled", "last(cancelled)"),
        ],
    );
    source.measures.push((
        "cancelled".to_owned(),
        MeasureSource::Aggregate {
            call: "count()".to_owned(),
            condition: Some("cancelled".to_owned()),
        },
    ));
    source.measures.push((
        "cancelled_carriers".to_owned(),
        MeasureSource::Aggregate {
            call: "distinct(carrier)".to_owned(),
            condition: Some("cancelled".to_owned()),
        },
    ));
    source.measures.push((
        "share_of_carriers".to_owned(),
        MeasureSource::Ratio {
            numerator: "cancelled_carriers".to_owned(),
            denominator: "carriers".to_owned(),
        },
    ));
    source.measures.push((
        "share_cancelled".to_owned(),
        MeasureSource::Ratio {
            numerator: "cancelled".to_owned(),
            denominator: "events".to_owned(),
        },
    ));
    // Some sets of a few events are larger.
    source.distinct_limit = Some(3);
    source
}

/// Compiles what must compile.
pub(crate) fn compile(source: &ViewSource) -> View {
    View::compile(source, &dataset()).unwrap()
}
