//! The query API as callers have it: `highwater serve` on the real engine, asked over HTTP.

mod changed;
mod documents;
mod estimates;
mod problems;
mod selections;
mod world;

use anyhow::Context;
use serde_json::{Value, json};
use shared_schemas::handoff::{Floor, Offset, OffsetRange, PublicationNumber, Start};

use world::{Event, NOVEMBER, World, event, partition};

/// Two partitions, four hours; the last event of each lies two days later and so closes those hours.
fn log() -> Vec<Event> {
    let mut log: Vec<_> = (0..12)
        .map(|offset| event(0, offset, i64::try_from(offset * 20).unwrap(), "EWR"))
        .chain((0..10).map(|offset| event(1, offset, i64::try_from(offset * 10).unwrap(), "JFK")))
        .collect();
    log.push(event(0, 12, 2 * 24 * 60, "EWR"));
    log.push(event(1, 10, 2 * 24 * 60, "EWR"));
    log
}

const LATER: i64 = NOVEMBER + 2 * 86_400;

async fn with_both_layers(view: &str) -> anyhow::Result<World> {
    let world = World::start().await?;
    let (of, log) = (world.view(view), log());
    world.count(of, &log, 0, &[0, 8], 13).await?;
    world.count(of, &log, 1, &[0, 8], 11).await?;
    world.publish(of, &log, None, &[(0, 8), (1, 8)]).await?;
    world.say(of, 0, 13, LATER).await?;
    world.say(of, 1, 11, LATER).await?;
    Ok(world)
}

/// Takes out a value that differs each time, after a look at its form.
fn take(answer: &mut Value, pointer: &str, is: impl Fn(&Value) -> bool) {
    let value = answer.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    assert!(is(value), "{pointer} is {value}");
    *value = json!("…");
}

fn is_moment(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.ends_with('Z') && chrono::DateTime::parse_from_rfc3339(text).is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_the_shape_of_the_convention() -> anyhow::Result<()> {
    let world = with_both_layers("departures").await?;
    let query = "from=2013-11-01T00:00:00Z&to=2013-11-01T04:00:00Z&grain=2h&dimensions=origin&measures=flights,first";
    let url = format!("{}/api/v1/views/departures/query?{query}", world.serve.api);
    let text = world.http.get(&url).send().await?.text().await?;
    let mut answer: Value = serde_json::from_str(&text)?;
    take(&mut answer, "/range/now", is_moment);
    take(&mut answer, "/publication/published_at", is_moment);
    take(&mut answer, "/freshness/batch/up_to", is_moment);
    take(&mut answer, "/freshness/speed/up_to", is_moment);
    take(&mut answer, "/freshness/speed/lag_seconds", Value::is_f64);
    take(&mut answer, "/statistics/elapsed", Value::is_f64);
    take(&mut answer, "/statistics/rows_read", Value::is_u64);
    take(&mut answer, "/statistics/bytes_read", Value::is_u64);
    let row = |time: &str, origin: &str, flights: u64, first: &str, layer: &str| {
        json!({
            "time": time, "origin": origin, "flights": flights, "first": first,
            "layer": layer, "exact": true, "estimates": {}, "coverage": "complete",
        })
    };
    let expected = json!({
        "meta": [
            {"name": "time", "type": "DateTime64(6)"}, {"name": "origin", "type": "String"},
            {"name": "flights", "type": "UInt64"}, {"name": "first", "type": "Nullable(DateTime64(6))"},
        ],
        "data": [
            row("2013-11-01T00:00:00Z", "EWR", 6, "2013-11-01T00:00:00.000000Z", "batch"),
            row("2013-11-01T00:00:00Z", "JFK", 10, "2013-11-01T00:00:00.000000Z", "merged"),
            row("2013-11-01T02:00:00Z", "EWR", 6, "2013-11-01T02:00:00.000000Z", "merged"),
        ],
        "rows": 3,
        "range": {"from": "2013-11-01T00:00:00Z", "to": "2013-11-01T04:00:00Z", "grain": "2h", "tz": "UTC", "now": "…"},
        "publication": {
            "id": "1-0000000000000000000000000000004d", "published_at": "…", "marks": {"0": 8, "1": 8},
            "archive_version": 17,
        },
        "freshness": {
            "batch": {"up_to": "…"},
            "speed": {
                "up_to": "…", "lag_events": 0, "lag_seconds": "…", "watermark": "2013-11-03T00:00:00.000000Z",
                "partitions": {
                    "0": {"state": "live", "next": 13, "watermark": "2013-11-03T00:00:00.000000Z", "gap_offsets": 0},
                    "1": {"state": "live", "next": 11, "watermark": "2013-11-03T00:00:00.000000Z", "gap_offsets": 0},
                },
            },
        },
        "statistics": {"elapsed": "…", "rows_read": "…", "bytes_read": "…"},
    });
    assert_eq!(answer, expected, "{answer:#}");
    // People read it too: the columns come in the order of `meta`, and then how the row was made.
    assert!(
        text.contains(r#"{"time":"2013-11-01T00:00:00Z","origin":"EWR","flights":6,"first":"2013-11-01T00:00:00.000000Z","layer":"batch","exact":true,"estimates":{},"coverage":"complete"}"#),
        "{text}"
    );
    Ok(())
}

/// Layer, exactness, coverage and its reason, of each row.
fn made(rows: &[Value]) -> Vec<String> {
    let made = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {}",
            text("layer"),
            row["exact"],
            text("coverage"),
            text("coverage_reason")
        )
    };
    rows.iter().map(made).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bucket_says_what_it_holds() -> anyhow::Result<()> {
    let mut world = with_both_layers("tracked").await?;
    let hours = "from=2013-11-01T00:00:00Z&to=2013-11-01T04:00:00Z&grain=2h&dimensions=origin";
    // With an event id, the speed layer may have counted a repeat.
    assert_eq!(
        made(&world.rows("tracked", hours).await?),
        [
            "batch true complete -",
            "merged false complete -",
            "merged false complete -"
        ]
    );
    // A range that cuts a bucket, and the bucket that nobody has counted beyond.
    let cut = "from=2013-11-01T01:00:00Z&to=2013-11-03T01:00:00Z&grain=1d";
    assert_eq!(
        made(&world.rows("tracked", cut).await?),
        ["merged false partial range", "speed false partial range"]
    );
    let open = "from=2013-11-01T00:00:00Z&to=2013-11-04T00:00:00Z&grain=1d";
    assert_eq!(
        made(&world.rows("tracked", open).await?),
        ["merged false complete -", "speed false partial open"]
    );
    let one_side = format!("{hours}&layers=batch");
    assert_eq!(
        made(&world.rows("tracked", &one_side).await?),
        [
            "batch false partial layers",
            "batch false partial layers",
            "batch false partial layers"
        ]
    );
    let view = world.view("tracked").clone();
    // A later chunk is counted while the one before it is not complete.
    world.count(&view, &[event(1, 16, 5, "JFK")], 1, &[16], 17).await?;
    assert_eq!(
        made(&world.rows("tracked", hours).await?)[0],
        "batch false partial behind"
    );
    // Offsets that the worker did not find.
    let lost = OffsetRange {
        from: Offset(11),
        to: Offset(16),
    };
    world
        .store
        .record_gaps(&[(view.fingerprint, partition(1), Start(Offset(8)), lost)])
        .await?;
    let answer = world.ask("tracked", hours).await?;
    assert_eq!(answer["gaps"], json!({"1": [[11, 16]]}));
    assert_eq!(
        made(answer["data"].as_array().context("rows")?)[0],
        "batch false gap lost"
    );
    // The next run takes them in; the last day it holds is not over yet.
    let newest = world.store.facts(&view).await?.newest().cloned().context("published")?;
    let log: Vec<_> = log().into_iter().chain([event(1, 16, 5, "JFK")]).collect();
    let second = world
        .publish(&view, &log, Some(&newest.publication), &[(0, 13), (1, 17)])
        .await?;
    let answer = world.ask("tracked", open).await?;
    assert_eq!(answer["publication"]["id"], format!("2-{:032x}", second.run.0));
    assert_eq!(
        made(answer["data"].as_array().context("rows")?),
        ["batch true complete -", "batch false partial open"]
    );
    assert_eq!(answer["data"][0]["flights"], 23);
    // The first one is let go: nobody needs it.
    let floor = Floor {
        number: PublicationNumber(2),
        marks: second.marks.clone(),
    };
    world.store.raise_floor(&view, &floor).await?;
    assert_eq!(world.rows("tracked", open).await?.len(), 2);
    // A floor above all of them: it rises again while each answer is made, as far as a reader can tell.
    let above = Floor {
        number: PublicationNumber(3),
        ..floor
    };
    world.store.raise_floor(&view, &above).await?;
    let (status, problem) = world.get("/api/v1/views/tracked/query").await?;
    assert_eq!((status, &problem["code"]), (503, &json!("publication_gone")));
    assert!(world.serve.stop().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_publication_all_is_the_speed_layers() -> anyhow::Result<()> {
    let world = World::start().await?;
    let view = world.view("departures");
    let page = world.get("/api/v1/views/departures").await?.1;
    assert_eq!((&page["building"], &page["publication"]), (&json!(true), &Value::Null));
    assert_eq!(
        page["freshness"],
        json!({"batch": {"up_to": null},
               "speed": {"up_to": null, "lag_events": null, "lag_seconds": null, "watermark": null, "partitions": {}}})
    );
    world.count(view, &log(), 0, &[0, 8], 13).await?;
    world.count(view, &log(), 1, &[0], 3).await?;
    let everything = "from=2013-11-01T00:00:00Z&to=2013-11-04T00:00:00Z&measures=flights";
    let answer = world.ask("departures", everything).await?;
    assert_eq!(answer["publication"], Value::Null);
    assert_eq!(answer["data"][0]["flights"], 16);
    assert_eq!(
        made(answer["data"].as_array().context("rows")?),
        ["speed false partial open"]
    );
    let nothing = format!("{everything}&layers=batch");
    assert_eq!(world.rows("departures", &nothing).await?, Vec::<Value>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn views_say_what_there_is_to_ask() -> anyhow::Result<()> {
    let world = with_both_layers("departures").await?;
    let (status, list) = world.get("/api/v1/views").await?;
    assert_eq!(status, 200);
    let tracked = world.view("tracked").fingerprint.to_string();
    assert_eq!(
        list["views"][1],
        json!({"name": "tracked", "dataset": "tickets", "grain": "1h", "fingerprint": tracked,
               "dimensions": ["origin"], "measures": ["flights"], "building": true,
               "definition": {
                   "state": "building", "building": tracked, "answered_by": null, "counted": null,
                   "detail": "view `tracked` is new: speed rows alone answer until a batch run publishes it; no speed layer \
                              counts it yet"}})
    );
    assert_eq!(
        (&list["views"][0]["building"], list["views"][0].get("definition")),
        (&json!(false), None)
    );
    let (status, page) = world.get("/api/v1/views/departures").await?;
    assert_eq!((status, &page["building"]), (200, &json!(false)));
    assert_eq!(page["publication"]["marks"], json!({"0": 8, "1": 8}));
    assert_eq!(page["freshness"]["speed"]["partitions"]["0"]["state"], "live");
    let fields = page["fields"].as_array().context("fields")?;
    assert_eq!(
        fields[0],
        json!({"name": "time", "role": "time", "type": "timestamp", "expression": "start of each 3600 s"})
    );
    assert_eq!(
        fields[2],
        json!({"name": "carrier", "role": "dimension", "type": "string?", "expression": "carrier"})
    );
    assert_eq!(
        fields[8],
        json!({"name": "delay", "role": "measure", "type": "decimal(38, 0)?", "expression": "sum(delay)",
               "exactness": "exact"})
    );
    Ok(())
}
