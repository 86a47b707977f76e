//! A view and facts about it, for this crate's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use shared_connections::store::{Facts, FreshnessOfPartition, Origin, PartitionState, Published};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{EventDay, Mark, Offset, Partition, Publication, RunId, SpeedProgress, Start, TopicId};
use shared_schemas::view::View;

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
chunk = 8

[dataset.flights.fields]
at = "timestamp"
origin = "string"
flight = "int64"
landed = "timestamp?"
fare = "decimal(10, 2)?"
delay = "int64?"
distance = "float64?"

[view.departures]
dataset = "flights"
grain = "5m"
dimensions = [
    "origin", "flight",
    { name = "late", expr = "delay > 15" },
    { name = "landed", expr = "landed" },
    { name = "day", expr = "CAST(at AS DATE)" },
]

[view.departures.measures]
flights = "count()"
delay = "sum(delay)"
fare = "sum(fare)"
distance = "avg(distance)"
share = { ratio = ["late_flights", "flights"] }
late_flights = { measure = "count()", where = "delay > 15" }
planes = "distinct(flight)"
delay_q = "quantiles(delay, [0.5, 0.95])"
"#;

/// A view with dimensions of every type and measures of every form, over chunks of 8 offsets.
pub(crate) fn view() -> &'static View {
    static VIEW: LazyLock<View> = LazyLock::new(|| {
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
        definitions.views[0].clone()
    });
    &VIEW
}

pub(crate) const TOPIC: TopicId = TopicId(7);

pub(crate) fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

/// Facts with a publication of these marks and days, and progress of these starts.
pub(crate) fn facts(marks: &[(u32, u64)], days: &[i32], progress: &[(u32, u64, u64)]) -> Facts {
    let mut facts = Facts::default();
    if !marks.is_empty() {
        let marks: BTreeMap<_, _> = marks
            .iter()
            .map(|(number, mark)| (partition(*number), Mark(Offset(*mark))))
            .collect();
        let days: BTreeSet<_> = days.iter().map(|day| EventDay(*day)).collect();
        let last = days.last().copied();
        let below = marks.iter().filter(|(_, mark)| mark.0 > Offset::default());
        let last_days = below.filter_map(|(partition, _)| Some((*partition, last?))).collect();
        facts.publications.push(Published {
            publication: Publication::of_run(None, RunId(3), marks, &BTreeMap::new(), &days),
            at: 1_000,
            origin: Origin {
                archive_version: 17,
                // Each partition has events of every day.
                last_days,
                ..Origin::default()
            },
        });
    }
    for (number, start, next) in progress {
        let held: &mut SpeedProgress = facts.progress.entry(partition(*number)).or_default();
        held.record(Start(Offset(*start)), Offset(*next));
    }
    facts
}

/// What a worker said at the moment 1,000,000 ms.
pub(crate) fn fresh(
    number: u32,
    next: u64,
    log_end: u64,
    state: PartitionState,
    watermark: Option<i64>,
) -> FreshnessOfPartition {
    FreshnessOfPartition {
        partition: partition(number),
        next: Offset(next),
        log_end: Offset(log_end),
        watermark,
        kafka_time: Some(999_000),
        state,
        reason: if state == PartitionState::Stuck {
            "Kafka is away".to_owned()
        } else {
            String::new()
        },
        seen: 1_000_000,
    }
}
