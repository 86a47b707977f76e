//! What answers say of values that are not exact: which they are, how far they may be off, and in which layer's rows.

use anyhow::Context;
use serde_json::{Value, json};

use super::{log, made, with_both_layers};

const HOURS: &str = "from=2013-11-01T00:00:00Z&to=2013-11-01T04:00:00Z&grain=2h&dimensions=origin";

fn column(rows: &[Value], name: &str) -> Vec<Value> {
    rows.iter().map(|row| row[name].clone()).collect()
}

/// The first bucket is all the batch layer's, the others have rows of both.
#[tokio::test(flavor = "multi_thread")]
async fn distinct_is_exact_in_batch_and_bounded_elsewhere() -> anyhow::Result<()> {
    let world = with_both_layers("departures").await?;
    let rows = world
        .rows("departures", &format!("{HOURS}&measures=flights,planes"))
        .await?;
    // Each event is a flight of its own; in one partition and another they have the same numbers.
    assert_eq!(column(&rows, "planes"), [6, 10, 6].map(Value::from));
    assert_eq!(
        made(&rows),
        [
            "batch true complete -",
            "merged false complete -",
            "merged false complete -"
        ]
    );
    assert_eq!(rows[0]["estimates"], json!({}));
    for row in &rows[1..] {
        let estimate = &row["estimates"]["planes"];
        assert_eq!(estimate["confidence"], 0.95, "{row}");
        let error = estimate["error"].as_f64().context("an error")?;
        assert!((0.0..0.1).contains(&error), "{row}");
    }
    // What is not asked for makes nothing an estimate.
    let rows = world.rows("departures", &format!("{HOURS}&measures=flights")).await?;
    assert!(
        rows.iter()
            .all(|row| row["exact"] == true && row["estimates"] == json!({}))
    );
    // One side of it.
    let rows = world
        .rows("departures", &format!("{HOURS}&measures=planes&layers=batch"))
        .await?;
    assert!(rows.iter().all(|row| row["estimates"] == json!({})), "{rows:?}");
    let rows = world
        .rows("departures", &format!("{HOURS}&measures=planes&layers=speed"))
        .await?;
    assert!(
        rows.iter().all(|row| row["estimates"]["planes"]["error"].is_f64()),
        "{rows:?}"
    );
    assert_eq!(column(&rows, "planes"), [2, 4].map(Value::from));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ratio_has_the_error_of_its_parts() -> anyhow::Result<()> {
    let world = with_both_layers("departures").await?;
    let rows = world
        .rows("departures", &format!("{HOURS}&measures=flights_a_plane,planes"))
        .await?;
    assert_eq!(column(&rows, "flights_a_plane"), [1.0, 1.0, 1.0].map(Value::from));
    assert_eq!((&rows[0]["estimates"], &rows[0]["exact"]), (&json!({}), &json!(true)));
    for row in &rows[1..] {
        let error = |name: &str| row["estimates"][name]["error"].as_f64().context("an error");
        let below = error("planes")?;
        assert!(
            (error("flights_a_plane")? - below / (1.0 - below)).abs() < 1e-9,
            "{row}"
        );
        assert_eq!(row["estimates"]["flights_a_plane"]["confidence"], 0.95);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_beyond_the_limit_is_an_estimate_in_every_layer() -> anyhow::Result<()> {
    let world = with_both_layers("limited").await?;
    let rows = world.rows("limited", HOURS).await?;
    // Three an hour of EWR, six of JFK, which is one more than a set may hold.
    assert_eq!(column(&rows, "planes"), [6, 10, 6].map(Value::from));
    let rows = world.rows("limited", &format!("{HOURS}&layers=batch")).await?;
    let estimated: Vec<_> = rows.iter().map(|row| row["estimates"]["planes"].is_object()).collect();
    assert_eq!(estimated, [false, true, false], "{rows:?}");
    assert_eq!(rows[1]["planes"], 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quantiles_are_lists_within_one_percent() -> anyhow::Result<()> {
    let world = with_both_layers("departures").await?;
    // No event of this log has a delay.
    let answer = world
        .ask("departures", &format!("{HOURS}&measures=delay_q,opening,closing_fare"))
        .await?;
    let types: Vec<_> = answer["meta"].as_array().context("meta")?[2..]
        .iter()
        .map(|meta| meta["type"].clone())
        .collect();
    assert_eq!(
        types,
        [
            "Array(Nullable(Float64))",
            "Nullable(String)",
            "Nullable(Decimal(10, 2))"
        ]
    );
    for row in answer["data"].as_array().context("rows")? {
        assert_eq!(row["delay_q"], json!([null, null, null]));
        assert_eq!((&row["opening"], &row["closing_fare"]), (&Value::Null, &Value::Null));
        assert_eq!((&row["estimates"], &row["exact"]), (&json!({}), &json!(true)), "{row}");
    }
    let mut delayed = log();
    delayed
        .iter_mut()
        .for_each(|event| event.value["delay"] = json!(event.offset * 100));
    let view = world.view("departures").clone();
    world.count(&view, &delayed, 0, &[0, 8], 13).await?;
    let whole = "from=2013-11-01T00:00:00Z&to=2013-11-04T00:00:00Z&measures=delay_q&layers=speed";
    let rows = world.rows("departures", whole).await?;
    let found: Vec<f64> = serde_json::from_value(rows[0]["delay_q"].clone())?;
    for (found, expected) in found.iter().zip([1_200.0, 800.0, 1_000.0]) {
        assert!(
            (found - expected).abs() <= 0.010_000_1 * expected,
            "{found} for {expected}"
        );
    }
    assert_eq!(
        rows[0]["estimates"],
        json!({"delay_q": {"error": 0.01, "confidence": 1.0}})
    );
    let (status, problem) = world.get("/api/v1/views/departures/query?order=delay_q").await?;
    assert_eq!(status, 400);
    assert_eq!(problem["errors"][0]["code"], "not_orderable", "{problem}");
    Ok(())
}
