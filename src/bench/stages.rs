//! What each stage does alone on one core, without Kafka and ClickHouse.

use std::time::{Duration, Instant};

use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;

use super::events::{self, Events};
use super::figure::{Figure, number};

/// Events a round: about what one flush takes.
const EVENTS: u64 = 65_536;
/// 2024-01-01T00:00:00Z.
const SINCE: i64 = 1_704_067_200;

/// All figures; each stage works about that long. Blocks, and takes a core.
pub(crate) fn figures(each: Duration) -> anyhow::Result<Vec<Figure>> {
    Ok(vec![decode(each)?])
}

fn decode(each: Duration) -> anyhow::Result<Figure> {
    let definitions = Definitions::parse([("flights.toml", events::definitions("flights", 8))])?;
    let options = Options {
        extra: false,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(&definitions.datasets[0], options)?;
    let mut events = Events::since(SINCE);
    let values: Vec<Vec<u8>> = (0..EVENTS).map(|number| events.event(number).to_vec()).collect();
    let (began, mut decoded) = (Instant::now(), 0);
    while began.elapsed() < each {
        for (offset, value) in (0..).zip(&values) {
            let record = Record {
                partition: 0,
                offset,
                timestamp: Some(SINCE * 1000),
                key: None,
                value: Some(value),
                headers: &(),
            };
            decoder
                .push(&record)
                .map_err(|refusal| anyhow::anyhow!("an event of the bench is refused: {refusal}"))?;
        }
        decoded += EVENTS;
        std::hint::black_box(decoder.finish());
    }
    let rate = number(decoded) / began.elapsed().as_secs_f64();
    Ok(Figure::at_least(
        "decode alone, per core",
        rate,
        "events/s",
        2_000_000.0,
    ))
}
