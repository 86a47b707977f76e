//! A view that was changed: what was published before answers until there is a publication of the new definition.

use anyhow::Context;
use serde_json::{Value, json};
use shared_schemas::definitions::Definitions;
use shared_schemas::view::View;

use super::world::{DEFINITIONS, NOVEMBER, World};
use super::{LATER, log};

const HOURS: &str = "from=2013-11-01T00:00:00Z&to=2013-11-01T04:00:00Z&grain=2h&dimensions=origin";

/// The definitions as they were: another measure, a coarser grain, no minute, and events that have an identity.
fn before() -> anyhow::Result<Definitions> {
    let text = DEFINITIONS
        .replacen("chunk = 8", "event_id = [\"flight\"]\nchunk = 8", 1)
        .replacen("grain = \"1h\"", "grain = \"2h\"", 1)
        .replacen("worst = \"max(delay)\"", "earliest = \"min(at)\"", 1);
    Definitions::parse([("flights.toml", text)]).map_err(|wrong| anyhow::anyhow!("{wrong}"))
}

async fn with_an_old_publication() -> anyhow::Result<(World, View)> {
    let world = World::start().await?;
    let before = before()?;
    world.store.create_tables(&before).await?;
    let old = before.view("departures").context("the view")?.clone();
    assert_ne!(old.fingerprint, world.view("departures").fingerprint);
    world.count(&old, &log(), 0, &[0, 8], 13).await?;
    world.count(&old, &log(), 1, &[0, 8], 11).await?;
    world.publish(&old, &log(), None, &[(0, 8), (1, 8)]).await?;
    world.say(&old, 0, 13, LATER).await?;
    world.say(&old, 1, 11, LATER).await?;
    Ok((world, old))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_definition_answers_until_the_first_publication_of_the_new_one() -> anyhow::Result<()> {
    let (world, old) = with_an_old_publication().await?;
    let new = world.view("departures").clone();
    // The new one's rows are there in part: they answer nothing yet.
    world.count(&new, &log(), 0, &[0], 4).await?;
    world.say(&new, 0, 4, NOVEMBER).await?;

    let answer = world
        .ask("departures", &format!("{HOURS}&measures=flights,earliest"))
        .await?;
    let definition = json!({
        "state": "building", "building": new.fingerprint.to_string(), "answered_by": old.fingerprint.to_string(),
        "counted": {"offsets_read": 4, "offsets": 4},
        "detail": "view `departures` was changed: its old definition answers until a batch run publishes the new one; the \
                   speed layer has counted 100 % of the log for it",
    });
    assert_eq!(answer["definition"], definition);
    assert_eq!(answer["publication"]["marks"], json!({"0": 8, "1": 8}));
    let row = |row: &Value| ["flights", "earliest", "layer", "exact"].map(|name| row[name].clone());
    let rows: Vec<_> = answer["data"].as_array().context("rows")?.iter().map(row).collect();
    let (midnight, two) = ("2013-11-01T00:00:00.000000Z", "2013-11-01T02:00:00.000000Z");
    // With the identity that the dataset had then, only what is all batch is exact.
    let expected = [
        [json!(6), json!(midnight), json!("batch"), json!(true)],
        [json!(10), json!(midnight), json!("merged"), json!(false)],
        [json!(6), json!(two), json!("merged"), json!(false)],
    ];
    assert_eq!(rows, expected, "{answer:#}");
    // POST goes the same way.
    let url = format!("{}/api/v1/views/departures/query", world.serve.api);
    let body = json!({"from": "2013-11-01T00:00:00Z", "to": "2013-11-01T04:00:00Z", "measures": ["earliest"]});
    let posted: Value = world.http.post(&url).json(&body).send().await?.json().await?;
    assert_eq!(posted["data"][0]["earliest"], midnight);
    assert_eq!(posted["definition"], definition);

    // What only the new one has is a conflict that passes; what neither has is an error, and says of whom.
    for query in ["measures=worst", "measures=flights&grain=1h"] {
        let (status, problem) = world.get(&format!("/api/v1/views/departures/query?{query}")).await?;
        assert_eq!((status, &problem["code"]), (409, &json!("view_building")), "{problem}");
        let detail = problem["detail"].as_str().context("a detail")?;
        assert!(
            detail.starts_with("view `departures` was changed: its old definition answers"),
            "{detail}"
        );
    }
    let (status, problem) = world.get("/api/v1/views/departures/query?measures=worst,wrost").await?;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_query")));
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(2), "{problem}");

    // The list and the page are of what can be asked now.
    let (_, list) = world.get("/api/v1/views").await?;
    let listed = &list["views"][0];
    assert_eq!(
        (&listed["fingerprint"], &listed["grain"], &listed["building"]),
        (&json!(old.fingerprint.to_string()), &json!("2h"), &json!(true))
    );
    assert_eq!(listed["definition"], definition);
    assert!(
        listed["measures"]
            .as_array()
            .context("measures")?
            .contains(&json!("earliest"))
    );
    let (_, page) = world.get("/api/v1/views/departures").await?;
    assert_eq!((&page["building"], &page["definition"]), (&json!(true), &definition));
    assert_eq!(page["publication"]["marks"], json!({"0": 8, "1": 8}));
    assert_eq!(page["freshness"]["speed"]["partitions"]["1"]["next"], 11);

    // The first publication of the new one: it answers, at once.
    world.publish(&new, &log(), None, &[(0, 13), (1, 11)]).await?;
    let answer = world
        .ask("departures", &format!("{HOURS}&measures=flights,worst"))
        .await?;
    assert_eq!(answer.get("definition"), None);
    assert_eq!(answer["publication"]["marks"], json!({"0": 13, "1": 11}));
    assert_eq!(answer["data"][0]["flights"], 6);
    let (status, problem) = world.get("/api/v1/views/departures/query?measures=earliest").await?;
    assert_eq!(
        (status, &problem["errors"][0]["code"]),
        (400, &json!("unknown_measure"))
    );
    let (_, page) = world.get("/api/v1/views/departures").await?;
    assert_eq!((&page["building"], page.get("definition")), (&json!(false), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_cannot_be_read_is_as_if_there_were_none() -> anyhow::Result<()> {
    let (world, old) = with_an_old_publication().await?;
    let new = world.view("departures").clone();
    world.count(&new, &log(), 0, &[0], 4).await?;
    assert_eq!(
        world.ask("departures", HOURS).await?["publication"]["archive_version"],
        17
    );
    let table = format!("`{}`.definitions", world.store.database());
    let changes = [
        "form = 99",
        // As of a build that computed otherwise, in a way that this one does not read any more.
        "form = 1, plan = 0",
        "plan = 1, definition = 'no TOML'",
        "definition = replaceAll(definition, 'min(at)', 'max(at)')",
        "rules = 'none'",
    ];
    for change in changes {
        let of_old = format!("fingerprint = '{}' AND view = 'departures'", old.fingerprint);
        let sql = format!("ALTER TABLE {table} UPDATE {change} WHERE {of_old} SETTINGS mutations_sync = 2");
        world.store.execute("change what is kept", &sql).await?;
        let answer = world
            .ask("departures", &format!("{HOURS}&measures=flights,worst"))
            .await?;
        assert_eq!(
            (&answer["publication"], answer.get("definition")),
            (&Value::Null, None),
            "{change}"
        );
        assert_eq!(answer["data"][0]["flights"], 4, "{change}");
        let (_, page) = world.get("/api/v1/views/departures").await?;
        assert_eq!(page["definition"]["answered_by"], Value::Null, "{change}");
        world.store.create_tables(&before()?).await?;
        let mended = world.ask("departures", HOURS).await?;
        assert_eq!(
            mended["definition"]["answered_by"],
            old.fingerprint.to_string(),
            "{change}"
        );
    }
    Ok(())
}
