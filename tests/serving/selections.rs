//! Filters, order, limit and layers on the engine, against a count of the events in plain Rust.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::{Value, json};

use super::world::{Event, NOVEMBER, World};

/// Texts that end a text, an array, a row or a parameter where they are not quoted well.
const ODD: [&str; 8] = [
    "EWR",
    "a,b",
    "it's",
    "back\\slash",
    "tab\there",
    "line\nend",
    "[']",
    "naïve 東京",
];

/// Events of every kind, over three days: some values null, some at the ends of their types.
fn log() -> Vec<Event> {
    let event = |place: u64| {
        let number = i64::try_from(place).unwrap();
        let at = chrono::DateTime::from_timestamp(NOVEMBER + number * 3_977, 0).unwrap();
        let nullable = |value: Value| if place.is_multiple_of(5) { Value::Null } else { value };
        let value = json!({
            "at": at.to_rfc3339(),
            "origin": ODD[usize::try_from(place % 8).unwrap()],
            "carrier": nullable(json!(if place.is_multiple_of(3) { "AA" } else { "ZZ" })),
            "flight": if place.is_multiple_of(7) { i64::MIN + number % 2 } else { i64::MAX - number % 3 },
            "delay": nullable(json!(number - 20)),
            "distance": nullable(json!(number * 3)),
            "fare": nullable(json!(format!("{}.{:02}", number, number % 100))),
        });
        Event {
            partition: u32::try_from(place % 2).unwrap(),
            offset: place / 2,
            value,
        }
    };
    (0..64).map(event).collect()
}

async fn world() -> anyhow::Result<(World, Vec<Event>)> {
    let world = World::start().await?;
    let (view, log) = (world.view("departures"), log());
    for number in 0..2 {
        world.count(view, &log, number, &[0, 8, 11, 16, 24], 32).await?;
    }
    // One mark at a chunk, the other at a cut.
    world.publish(view, &log, None, &[(0, 16), (1, 11)]).await?;
    Ok((world, log))
}

const EVERYTHING: &str = "from=2013-11-01T00:00:00Z&to=2013-11-05T00:00:00Z";

fn encoded(text: &str) -> String {
    reqwest::Url::parse_with_params("http://a", [("x", text)])
        .unwrap()
        .query()
        .unwrap()[2..]
        .to_owned()
}

async fn total(world: &World, query: &str) -> anyhow::Result<u64> {
    let rows = world
        .rows("departures", &format!("{EVERYTHING}&measures=flights&{query}"))
        .await?;
    Ok(rows.first().and_then(|row| row["flights"].as_u64()).unwrap_or_default())
}

/// Whether an event is one of those that a filter names.
type Holds<'a> = &'a dyn Fn(&Value) -> bool;

fn count(log: &[Event], holds: impl Fn(&Value) -> bool) -> u64 {
    u64::try_from(log.iter().filter(|event| holds(&event.value)).count()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_count_what_they_name() -> anyhow::Result<()> {
    let (world, log) = world().await?;
    assert_eq!(total(&world, "layers=merged").await?, 64);
    for origin in ODD {
        let value = origin.replace('\\', "\\\\").replace(',', "\\,");
        let filter = format!("filter[origin]={}", encoded(&value));
        assert_eq!(
            total(&world, &filter).await?,
            count(&log, |event| event["origin"] == origin),
            "{origin}"
        );
    }
    let cases: [(&str, Holds<'_>); 8] = [
        ("filter[carrier]=AA", &|event| event["carrier"] == "AA"),
        ("filter[carrier]=AA,ZZ", &|event| !event["carrier"].is_null()),
        ("filter[carrier]=nobody", &|_| false),
        ("filter[flight]=9223372036854775807,-9223372036854775808", &|event| {
            event["flight"] == i64::MAX || event["flight"] == i64::MIN
        }),
        ("filter[late]=true", &|event| event["delay"].as_i64() > Some(15)),
        ("filter[late]=true,false", &|event| !event["delay"].is_null()),
        ("filter[day]=2013-11-02,1969-12-31", &|event| {
            event["at"].as_str().unwrap().starts_with("2013-11-02")
        }),
        (
            "filter[minute]=2013-11-01T01:06:00Z,2013-11-01T03:12:00%2B01:00",
            &|event| {
                let at = event["at"].as_str().unwrap();
                at.starts_with("2013-11-01T01:06") || at.starts_with("2013-11-01T02:12")
            },
        ),
    ];
    for (filter, holds) in cases {
        assert_eq!(total(&world, filter).await?, count(&log, holds), "{filter}");
    }
    let both = total(&world, "filter[carrier]=AA&filter[late]=true").await?;
    assert_eq!(
        both,
        count(&log, |event| event["carrier"] == "AA"
            && event["delay"].as_i64() > Some(15))
    );
    // What is filtered by need not be grouped by, and may be.
    let query = format!("{EVERYTHING}&measures=flights&dimensions=late&filter[late]=true");
    assert_eq!(world.rows("departures", &query).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_shares_add_up_to_the_answer() -> anyhow::Result<()> {
    let (world, log) = world().await?;
    let of = async |layers: &str| -> anyhow::Result<BTreeMap<String, u64>> {
        let query = format!("{EVERYTHING}&measures=flights&dimensions=origin,carrier&layers={layers}");
        let rows = world.rows("departures", &query).await?;
        Ok(rows
            .iter()
            .map(|row| {
                let key = format!("{} {}", row["origin"], row["carrier"]);
                (key, row["flights"].as_u64().unwrap_or_default())
            })
            .collect())
    };
    let (merged, mut shares, speed) = (of("merged").await?, of("batch").await?, of("speed").await?);
    assert_eq!(shares.values().sum::<u64>(), 27, "below the marks");
    for (cell, flights) in speed {
        *shares.entry(cell).or_default() += flights;
    }
    assert_eq!(shares, merged);
    let mut truth: BTreeMap<String, u64> = BTreeMap::new();
    for event in &log {
        let key = format!("{} {}", event.value["origin"], event.value["carrier"]);
        *truth.entry(key).or_default() += 1;
    }
    assert_eq!(merged, truth);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_in_the_order_asked_for_and_no_more_than_that() -> anyhow::Result<()> {
    let (world, log) = world().await?;
    let mut truth: BTreeMap<Option<String>, (u64, i64)> = BTreeMap::new();
    for event in &log {
        let held = truth
            .entry(event.value["carrier"].as_str().map(str::to_owned))
            .or_default();
        held.0 += 1;
        held.1 += event.value["delay"].as_i64().unwrap_or_default();
    }
    let rows = |query: &str| {
        let query = format!("{EVERYTHING}&dimensions=carrier&measures=flights,delay&{query}");
        let world = &world;
        async move { world.rows("departures", &query).await }
    };
    let carriers = |rows: &[Value]| rows.iter().map(|row| row["carrier"].clone()).collect::<Vec<_>>();
    let mut expected: Vec<_> = truth.iter().collect();
    expected.sort_by_key(|(_, (flights, _))| std::cmp::Reverse(*flights));
    let names: Vec<_> = expected.iter().map(|(name, _)| json!(name)).collect();
    assert_eq!(carriers(&rows("order=-flights").await?), names);
    // Nulls come last, either way: the sum of no delay too.
    assert_eq!(
        carriers(&rows("order=carrier").await?),
        [json!("AA"), json!("ZZ"), Value::Null]
    );
    assert_eq!(
        carriers(&rows("order=-carrier").await?),
        [json!("ZZ"), json!("AA"), Value::Null]
    );
    let by_delay = rows("order=-delay").await?;
    assert_eq!(
        (&by_delay[2]["carrier"], &by_delay[2]["delay"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(by_delay[0]["delay"], truth[&Some("ZZ".to_owned())].1.to_string());

    let two = format!("{EVERYTHING}&dimensions=carrier&measures=flights&order=-flights&limit=2");
    let answer = world.ask("departures", &two).await?;
    assert_eq!((&answer["rows"], &answer["more"]), (&json!(2), &json!(true)));
    assert_eq!(carriers(answer["data"].as_array().context("rows")?), names[..2]);
    let all = world.ask("departures", &two.replace("limit=2", "limit=3")).await?;
    assert_eq!((&all["rows"], all.get("more")), (&json!(3), None));
    // By time, the latest first.
    let query = format!("{EVERYTHING}&grain=1d&measures=flights&order=-time");
    let days: Vec<_> = world
        .rows("departures", &query)
        .await?
        .iter()
        .map(|row| row["time"].clone())
        .collect();
    assert_eq!(
        days,
        ["2013-11-03T00:00:00Z", "2013-11-02T00:00:00Z", "2013-11-01T00:00:00Z"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_measure_is_what_the_events_add_up_to() -> anyhow::Result<()> {
    let (world, log) = world().await?;
    let row = world.rows("departures", EVERYTHING).await?.swap_remove(0);
    let delays: Vec<i64> = log.iter().filter_map(|event| event.value["delay"].as_i64()).collect();
    let late = delays.iter().filter(|delay| **delay > 15).count();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let mean = delays.iter().sum::<i64>() as f64 / delays.len() as f64;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let share = late as f64 / 64.0;
    let distance: f64 = log.iter().filter_map(|event| event.value["distance"].as_f64()).sum();
    let cents: i64 = log
        .iter()
        .filter_map(|event| event.value["fare"].as_str()?.replace('.', "").parse::<i64>().ok())
        .sum();
    assert_eq!(row["flights"], 64);
    assert_eq!(row["delay"], delays.iter().sum::<i64>().to_string());
    assert_eq!(
        row["worst"],
        delays.iter().max().map(ToString::to_string).unwrap_or_default()
    );
    // The test's own reader of JSON may round a double's last digit, so this is read as text.
    let url = format!("{}/api/v1/views/departures/query?{EVERYTHING}", world.serve.api);
    let text = world.http.get(url).send().await?.text().await?;
    assert!(text.contains(&format!("\"mean_delay\":{mean},")), "{mean} in {text}");
    assert_eq!(row["distance"], json!(distance));
    // A measure may have a name that once was the bound's column.
    assert_eq!(row["distance__bound"], json!(delays.len()));
    let fare: String = row["fare"].as_str().context("a decimal is a string")?.to_owned();
    assert_eq!(fare.parse::<f64>()? * 100.0, json!(cents).as_f64().context("cents")?);
    assert_eq!(row["first"], "2013-11-01T00:00:00.000000Z");
    assert_eq!(row["late_flights"], json!(late));
    assert_eq!(row["share_late"], json!(share));
    let apart = |values: BTreeSet<String>| json!(values.len());
    let planes = log.iter().map(|event| event.value["flight"].to_string()).collect();
    assert_eq!(row["planes"], apart(planes));
    let is_late = |event: &&Event| event.value["delay"].as_i64() > Some(15);
    let origins = log
        .iter()
        .filter(is_late)
        .map(|event| event.value["origin"].to_string());
    assert_eq!(row["origins"], apart(origins.collect()));
    let mut sorted = delays;
    sorted.sort_unstable();
    let expected = [sorted[sorted.len() - 1], sorted[0], sorted[(sorted.len() - 1) / 2]];
    let answered: Vec<f64> = serde_json::from_value(row["delay_q"].clone())?;
    for (answered, expected) in answered.iter().zip(expected) {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let expected = expected as f64;
        assert!(
            (answered - expected).abs() <= 0.010_000_1 * expected.abs(),
            "{answered} for {expected}"
        );
    }
    // Events are numbered by time; offset and partition follow it.
    let first = log.iter().find_map(|event| event.value["carrier"].as_str());
    assert_eq!(row["opening"].as_str(), first);
    let last = log.iter().rev().find_map(|event| event.value["fare"].as_str());
    assert_eq!(
        row["closing_fare"].as_str().map(str::parse::<f64>),
        last.map(str::parse::<f64>)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_asks_as_an_address_does() -> anyhow::Result<()> {
    let (world, _) = world().await?;
    let body = json!({
        "from": "2013-11-01T00:00:00Z", "to": "2013-11-05T00:00:00Z", "grain": "day", "dimensions": ["origin", "late"],
        "measures": ["flights", "fare"], "order": ["-flights", "time"], "limit": 7,
        "filters": [{"field": "origin", "op": "in", "value": ODD}, {"field": "late", "op": "eq", "value": false}],
    });
    let url = format!("{}/api/v1/views/departures/query", world.serve.api);
    let response = world.http.post(&url).json(&body).send().await?;
    assert_eq!(response.status(), 200);
    let by_body: Value = response.json().await?;
    let origins: Vec<_> = ODD
        .iter()
        .map(|origin| origin.replace('\\', "\\\\").replace(',', "\\,"))
        .collect();
    let query = format!(
        "{EVERYTHING}&grain=1d&dimensions=origin,late&measures=flights,fare&order=-flights,time&limit=7\
         &filter[late]=false&filter[origin]={}",
        encoded(&origins.join(","))
    );
    let by_address = world.ask("departures", &query).await?;
    assert_eq!(by_body["data"], by_address["data"]);
    assert_eq!((&by_body["rows"], &by_body["more"]), (&json!(7), &json!(true)));
    Ok(())
}
