//! How fast records are read: 237-byte events of 8 fields, on one core, arrays included.
//!
//! Aims: 2,000,000 events a second without `_extra`, 1,000,000 with it.

#![expect(clippy::expect_used, reason = "a bench ends where something is wrong")]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shared_schemas::dataset::{Dataset, EventTime, Field, FieldSource, FieldType, Format, Mask, Privacy};
use shared_schemas::decode::{Decoder, Options, Record};

/// Records a batch: about what a busy partition brings between two flushes.
const RECORDS: usize = 50_000;

fn field(name: &str, field_type: FieldType, nullable: bool) -> Field {
    let source = FieldSource::Path(vec![name.to_owned()]);
    Field {
        name: name.to_owned(),
        field_type,
        nullable,
        source,
        mask: None,
    }
}

fn flights() -> Dataset {
    Dataset {
        name: "flights".to_owned(),
        topic: "flights".to_owned(),
        partitions: 4,
        format: Format::Json,
        event_time: EventTime::Field("scheduled_departure".to_owned()),
        event_id: Vec::new(),
        lateness: Duration::from_secs(3600),
        future: Duration::from_secs(600),
        dedupe_window: Duration::from_secs(600),
        dedupe_memory: 1 << 28,
        max_event_size: 1 << 20,
        chunk: 1 << 18,
        keep: None,
        privacy: Privacy::default(),
        fields: vec![
            field("carrier", FieldType::String, false),
            field("flight", FieldType::Int64, false),
            field("scheduled_departure", FieldType::Timestamp { unit: None }, false),
            field("origin", FieldType::String, false),
            field("destination", FieldType::String, false),
            field("departure_delay", FieldType::Float64, true),
            field("distance", FieldType::Float64, false),
            field("tail_number", FieldType::String, true),
        ],
    }
}

/// The events, 237 bytes on average.
fn events() -> Vec<String> {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let airports = [
        "ATL", "DFW", "DEN", "ORD", "LAX", "JFK", "LAS", "MCO", "MIA", "CLT", "SEA", "PHX",
    ];
    let places = [
        "Hartsfield-Jackson Atlanta Intl",
        "Dallas Fort Worth International",
        "Denver International",
        "Chicago O'Hare International",
    ];
    let events = (0..RECORDS).map(|_| {
        let airport = |at: u64| airports[usize::try_from(at).unwrap_or(0)];
        let delay = match below(20) {
            0 => "null".to_owned(),
            _ => format!("{}.{}", below(190), below(10)),
        };
        format!(
            r#"{{"carrier":"{}","flight":{},"scheduled_departure":"2024-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z","origin":"{} {}","destination":"{} {}","departure_delay":{delay},"distance":{}.{},"tail_number":"N{:07}"}}"#,
            ["AA", "UA", "DL", "WN"][usize::try_from(below(4)).unwrap_or(0)],
            below(9000) + 1,
            below(12) + 1,
            below(28) + 1,
            below(24),
            below(60),
            below(60),
            below(1000),
            airport(below(12)),
            places[usize::try_from(below(4)).unwrap_or(0)],
            airport(below(12)),
            places[usize::try_from(below(4)).unwrap_or(0)],
            below(2500) + 100,
            below(100),
            below(100_000),
        )
    });
    events.collect()
}

fn run(criterion: &mut Criterion, name: &str, dataset: &Dataset, extra: bool, events: &[String]) {
    let keys = HashMap::from([("KEY".to_owned(), b"secret".to_vec())]);
    let mut decoder = Decoder::new(dataset, Options { extra, keys: &keys }).expect("a decoder");
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                for (offset, event) in (0..).zip(events) {
                    let value = Some(event.as_bytes());
                    let record = Record {
                        partition: 0,
                        offset,
                        timestamp: Some(1_735_689_600_000),
                        key: None,
                        value,
                        headers: &(),
                    };
                    decoder.push(&record).expect("every event is well formed");
                }
                black_box(decoder.finish())
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let events = events();
    let bytes: usize = events.iter().map(String::len).sum();
    assert_eq!(bytes / events.len(), 237, "bytes an event");
    let all = flights();
    run(criterion, "8 fields", &all, false, &events);
    run(criterion, "8 fields, extra, nothing left over", &all, true, &events);

    let mut five = flights();
    five.fields
        .retain(|field| !matches!(field.name.as_str(), "flight" | "destination" | "tail_number"));
    run(criterion, "5 of 8 fields", &five, false, &events);
    run(criterion, "5 of 8 fields, extra with 3", &five, true, &events);

    let mut masked = flights();
    for field in &mut masked.fields {
        if field.name == "tail_number" {
            field.mask = Some(Mask::Hash { key: "KEY".to_owned() });
        }
    }
    run(criterion, "8 fields, one hashed", &masked, false, &events);
}

criterion_group!(benches, decode);
criterion_main!(benches);
