//! A small dataset, a view of it, and events of a log with holes, for tests of the hand-off.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field as ArrowField, Schema};
use shared_schemas::dataset::{Dataset, EventTime, Field, FieldSource, FieldType, Format, Privacy};
use shared_schemas::plan::{START_COLUMN, event_schema};
use shared_schemas::view::{DimensionSource, MeasureSource, UTC, View, ViewSource};

/// The first moment of the events, in seconds: 2024-01-31T22:00:00Z. Their windows lie in two months.
pub const FIRST_SECOND: i64 = 1_706_738_400;

/// One event of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Flight {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its time, in seconds after [`FIRST_SECOND`].
    pub at: i64,
    /// A dimension.
    pub carrier: Option<String>,
    /// A whole number.
    pub delay: Option<i64>,
    /// A whole number too, so that sums of doubles are exact.
    pub distance: Option<i32>,
}

/// The dataset: chunks of 8 offsets.
pub fn dataset() -> Dataset {
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
        partitions: 2,
        format: Format::Json,
        event_time: EventTime::Field("at".to_owned()),
        event_id: vec![],
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
            field("carrier", FieldType::String, true),
            field("delay", FieldType::Int64, true),
            field("distance", FieldType::Float64, true),
        ],
    }
}

/// A view by hour, carrier and lateness, with a measure of each merge.
pub fn view() -> anyhow::Result<View> {
    let call = |name: &str, call: &str| {
        (
            name.to_owned(),
            MeasureSource::Aggregate {
                call: call.to_owned(),
                condition: None,
            },
        )
    };
    let dimension = |name: &str, expr: &str| DimensionSource {
        name: name.to_owned(),
        expr: expr.to_owned(),
    };
    let source = ViewSource {
        name: "hourly".to_owned(),
        dataset: "flights".to_owned(),
        grain: Duration::from_secs(3600),
        filter: None,
        dimensions: vec![dimension("carrier", "carrier"), dimension("late", "delay > 15")],
        measures: vec![
            call("flights", "count()"),
            call("delay", "sum(delay)"),
            call("distance", "sum(distance)"),
            call("first", "min(at)"),
            call("worst", "max(delay)"),
            call("mean", "avg(delay)"),
            call("delays", "distinct(delay)"),
            call("carriers", "distinct(carrier)"),
            call("spread", "quantiles(delay, [0.5, 0.95])"),
            call("opening", "first(delay)"),
            call("closing", "last(distance)"),
        ],
        distinct_limit: None,
    };
    View::compile(&source, &dataset()).map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))
}

/// The events as decoded, with the start that each is to count for.
pub fn batch(events: &[(Flight, u64)]) -> anyhow::Result<RecordBatch> {
    let time = || -> ArrayRef {
        let times: Vec<_> = events
            .iter()
            .map(|(event, _)| (FIRST_SECOND + event.at) * 1_000_000)
            .collect();
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone(UTC))
    };
    let columns: Vec<ArrayRef> = vec![
        time(),
        Arc::new(
            events
                .iter()
                .map(|(event, _)| event.carrier.as_deref())
                .collect::<StringArray>(),
        ),
        Arc::new(events.iter().map(|(event, _)| event.delay).collect::<Int64Array>()),
        Arc::new(
            events
                .iter()
                .map(|(event, _)| event.distance.map(f64::from))
                .collect::<Float64Array>(),
        ),
        Arc::new(
            events
                .iter()
                .map(|(event, _)| Some(event.partition.cast_signed()))
                .collect::<Int32Array>(),
        ),
        Arc::new(
            events
                .iter()
                .map(|(event, _)| Some(event.offset.cast_signed()))
                .collect::<Int64Array>(),
        ),
        time(),
        time(),
        Arc::new(events.iter().map(|(_, start)| Some(*start)).collect::<UInt64Array>()),
    ];
    let mut fields = event_schema(&dataset()).fields().to_vec();
    fields.push(Arc::new(ArrowField::new(START_COLUMN, DataType::UInt64, false)));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
