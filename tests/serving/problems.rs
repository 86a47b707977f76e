//! What callers are told when there is no answer, and that the server stays whole through it.

use anyhow::{Context, ensure};
use highwater_tests::stack::{PATIENCE, signal, until};
use serde_json::{Value, json};

use super::world::{DEFINITIONS, World, highwater, site};

const QUERY: &str = "/api/v1/views/departures/query";

/// Every problem is a document with its status, an id that the header repeats, and what is wrong.
async fn problem(response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status().as_u16();
    let header = |name: &str| -> anyhow::Result<String> {
        let value = response.headers().get(name).with_context(|| format!("no {name}"))?;
        Ok(value.to_str()?.to_owned())
    };
    ensure!(header("content-type")? == "application/problem+json", "{status}");
    let id = header("x-request-id")?;
    let document: Value = response.json().await?;
    ensure!(
        document["status"] == status && document["request_id"] == id,
        "{document}"
    );
    let code = document["code"].as_str().context("a code")?;
    ensure!(
        document["type"] == format!("urn:highwater:problem:{code}"),
        "{document}"
    );
    for text in ["title", "detail"] {
        ensure!(
            document[text].as_str().is_some_and(|text| !text.is_empty()),
            "{document}"
        );
    }
    for error in document["errors"].as_array().context("errors")? {
        for text in ["parameter", "code", "detail", "mend"] {
            ensure!(error[text].as_str().is_some_and(|text| !text.is_empty()), "{document}");
        }
    }
    Ok(document)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_told_with_the_mend() -> anyhow::Result<()> {
    let world = World::start().await?;
    let url = |path: &str| format!("{}{path}", world.serve.api);
    let get = |path: &str| world.http.get(url(path)).send();
    for (query, status, code, parameter, mend) in [
        (
            "grain=7m",
            422,
            "impossible_query",
            "grain",
            "a whole multiple of the view's own, 1h, such as 1h or 1d",
        ),
        ("tz=Asia/Tokyo", 422, "impossible_query", "tz", "UTC"),
        (
            "foo=1",
            400,
            "invalid_query",
            "foo",
            "one of from, to, grain, tz, measures, dimensions, filter, order, limit, layers",
        ),
        (
            "limit=50001",
            400,
            "invalid_query",
            "limit",
            "a whole number from 1 to 50000",
        ),
        (
            "filter[x]=1",
            400,
            "invalid_query",
            "filter[x]",
            "one of origin, carrier, flight, late, day, minute",
        ),
    ] {
        let document = problem(get(&format!("{QUERY}?{query}")).await?).await?;
        assert_eq!((&document["status"], &document["code"]), (&json!(status), &json!(code)));
        let error = &document["errors"][0];
        assert_eq!((&error["parameter"], &error["mend"]), (&json!(parameter), &json!(mend)));
    }
    // One that is malformed makes it 400, and all are told.
    let document = problem(get(&format!("{QUERY}?grain=7m&foo=1")).await?).await?;
    assert_eq!(
        (&document["status"], document["errors"].as_array().map(Vec::len)),
        (&json!(400), Some(2))
    );

    let document = problem(get("/api/v1/views/arrivals/query?foo=1").await?).await?;
    assert_eq!(
        (&document["status"], &document["code"]),
        (&json!(404), &json!("unknown_view"))
    );
    assert_eq!(document["errors"][0]["mend"], "one of departures, tracked, limited");
    let document = problem(get("/api/v1/views/arrivals").await?).await?;
    assert_eq!(document["code"], "unknown_view");
    assert_eq!(problem(get("/api/v2/views").await?).await?["code"], "no_such_path");
    assert_eq!(
        problem(get("/api/v1/views?x=1").await?).await?["errors"][0]["parameter"],
        "x"
    );
    let deleted = world.http.delete(url(QUERY)).send().await?;
    assert_eq!(deleted.headers()["allow"], "GET,HEAD,POST");
    assert_eq!(problem(deleted).await?["code"], "method_not_allowed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_query_is_refused() -> anyhow::Result<()> {
    let world = World::start().await?;
    let post = |query: &str, content_type: &str, body: String| {
        let request = world.http.post(format!("{}{QUERY}{query}", world.serve.api));
        request.header("content-type", content_type).body(body).send()
    };
    let json_type = "application/json; charset=utf-8";
    for (query, content_type, body, status, code) in [
        (
            "",
            "application/x-www-form-urlencoded",
            "{}".to_owned(),
            415,
            "not_json",
        ),
        ("", json_type, "{".to_owned(), 400, "invalid_query"),
        ("", json_type, "[]".to_owned(), 400, "invalid_query"),
        ("", json_type, "\u{fffd}".to_owned(), 400, "invalid_query"),
        ("", json_type, r#"{"grane": "1h"}"#.to_owned(), 400, "invalid_query"),
        ("?grain=1h", json_type, "{}".to_owned(), 400, "invalid_query"),
        (
            "",
            json_type,
            format!(r#"{{"x": "{}"}}"#, "x".repeat(300 << 10)),
            413,
            "body_too_large",
        ),
    ] {
        let document = problem(post(query, content_type, body).await?).await?;
        assert_eq!(
            (&document["status"], &document["code"]),
            (&json!(status), &json!(code)),
            "{document}"
        );
    }
    let answered = post("", json_type, "{}".to_owned()).await?;
    assert_eq!(answered.status(), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_callers_id_or_a_new_one() -> anyhow::Result<()> {
    let world = World::start().await?;
    let id_of = async |id: &str| -> anyhow::Result<String> {
        let request = world.http.get(format!("{}/healthz", world.serve.api));
        let response = request.header("x-request-id", id).send().await?;
        Ok(response.headers()["x-request-id"].to_str()?.to_owned())
    };
    assert_eq!(id_of("abc-123").await?, "abc-123");
    for other in ["", "with space", &"x".repeat(129)] {
        assert_eq!(id_of(other).await?.len(), 36, "a new one for {other:?}");
    }
    assert_ne!(id_of("").await?, id_of("").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_told_and_one_that_is_back_is_used() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    assert_eq!(
        world.get("/readyz").await?,
        (200, json!({"status": "ready", "degraded": [], "batch": null}))
    );
    world.ask("departures", "").await?;
    world.clickhouse.kill()?;
    for path in ["/readyz", QUERY, "/api/v1/views/departures"] {
        let response = world.http.get(format!("{}{path}", world.serve.api)).send().await?;
        assert_eq!(response.headers()["retry-after"], "5", "{path}");
        let document = problem(response).await?;
        assert_eq!(
            (&document["status"], &document["code"]),
            (&json!(503), &json!("store_down")),
            "{path}"
        );
        let detail = document["detail"].as_str().context("a detail")?;
        assert!(
            detail.contains(&world.proxy.url()) && detail.contains("clickhouse.url"),
            "{detail}"
        );
    }
    assert_eq!(world.get("/healthz").await?, (200, json!({"status": "ok"})));
    // Which are building is not known then.
    let (status, list) = world.get("/api/v1/views").await?;
    assert_eq!((status, &list["views"][0]["building"]), (200, &json!(null)));
    assert_eq!(world.get(&format!("{QUERY}?foo=1")).await?.0, 400);
    world.clickhouse.start_again()?;
    world.proxy.lead_to(world.clickhouse.url())?;
    assert_eq!(world.get("/readyz").await?.0, 200);
    world.ask("departures", "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_its_query() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.ask("departures", "").await?;
    let held = world.hold();
    let asked = world.http.get(format!("{}{QUERY}", world.serve.api)).send();
    let asked = tokio::spawn(asked);
    held.until_held(1, 0).await?;
    asked.abort();
    held.until_held(1, 1).await?;
    // The others are answered as before.
    world.proxy.forget();
    world.ask("departures", "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_queries_as_can_be_answered_at_once_and_the_rest_is_told() -> anyhow::Result<()> {
    let world = World::start().await?;
    let gate = world.hold();
    let ask = || world.http.get(format!("{}{QUERY}", world.serve.api)).send();
    let held: Vec<_> = (0..64).map(|_| tokio::spawn(ask())).collect();
    // Each has its place before its statement is sent.
    gate.until_held(64, 0).await?;
    let response = ask().await?;
    assert_eq!(response.headers()["retry-after"], "1");
    let document = problem(response).await?;
    assert_eq!(
        (&document["status"], &document["code"]),
        (&json!(503), &json!("overloaded"))
    );
    held.iter().for_each(tokio::task::JoinHandle::abort);
    gate.until_held(64, 64).await?;
    world.proxy.forget();
    world.ask("departures", "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_requests_and_views() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.ask("departures", "").await?;
    world.get("/api/v1/views/nothing").await?;
    let text = world.http.get(format!("{}/metrics", world.serve.api)).send().await?;
    assert!(text.headers()["content-type"].to_str()?.starts_with("text/plain"));
    let text = text.text().await?;
    for line in [
        "highwater_http_requests_total{route=\"/api/v1/views/{view}/query\",method=\"GET\",status=\"200\"} 1",
        "highwater_http_requests_total{route=\"/api/v1/views/{view}\",method=\"GET\",status=\"404\"} 1",
        "highwater_http_request_seconds_count{route=\"/api/v1/views/{view}/query\"} 1",
        "highwater_query_seconds_count{view=\"departures\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    // Written by the loop that looks at the views.
    let looked = || async {
        let text = world.http.get(format!("{}/metrics", world.serve.api)).send().await?;
        anyhow::Ok(text.text().await?)
    };
    let gauge = "highwater_publication_number{view=\"tracked\"} 0";
    highwater_tests::clickhouse::until(looked, |text| text.contains(gauge)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_it_waits_and_says_for_what() -> anyhow::Result<()> {
    // Nothing listens on port 1.
    let (site, _) = site("http://127.0.0.1:1", DEFINITIONS)?;
    let log = site.path().join("log");
    let mut serve = tokio::process::Command::from(highwater(&site, &["serve"])?)
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true)
        .spawn()?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it names the address and the setting", || {
        said().contains("ClickHouse at http://127.0.0.1:1 (clickhouse.url) can't be reached")
    })
    .await?;
    signal(serve.id().context("it has ended")?, "TERM")?;
    let status = tokio::time::timeout(PATIENCE, serve.wait()).await??;
    assert!(status.success(), "{}", said());
    Ok(())
}
