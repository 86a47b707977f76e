//! Every request in `docs/api.md` is sent, on the definitions that it speaks of.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::world::World;

const DOCUMENT: &str = include_str!("../../docs/api.md");
const DEFINITIONS: &str = include_str!("../../deploy/examples/flights/definitions/flights.toml");

/// The inside of each fence that is marked `http`: `METHOD path`, perhaps ` → status code`, then a body if there is one.
fn requests() -> Vec<(&'static str, &'static str, Option<&'static str>, &'static str)> {
    let blocks = DOCUMENT
        .split("```http\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let mut requests = Vec::new();
    for block in blocks {
        let (lines, body) = block.split_once("\n\n").unwrap_or((block, ""));
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (request, expected) = match line.split_once(" → ") {
                Some((request, expected)) => (request, Some(expected)),
                None => (line, None),
            };
            if let Some((method, path)) = request.split_once(' ') {
                requests.push((method, path, expected, body));
            }
        }
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_the_document_is_answered_as_it_says() -> anyhow::Result<()> {
    let world = World::with(DEFINITIONS).await?;
    let requests = requests();
    ensure!(requests.len() > 10, "there are no requests in the document");
    for (method, path, expected, body) in requests {
        let url = format!("{}{path}", world.serve.api);
        let request = match method {
            "GET" => world.http.get(url),
            "POST" => world
                .http
                .post(url)
                .header("content-type", "application/json")
                .body(body),
            other => anyhow::bail!("{path}: {other}"),
        };
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        match expected {
            None => ensure!(status == 200, "{path}: {status} {text}"),
            Some(expected) => {
                let problem: Value = serde_json::from_str(&text)?;
                let code = problem["errors"][0]["code"].as_str().or(problem["code"].as_str());
                let found = format!("{status} {}", code.context("a code")?);
                ensure!(found == expected, "{path}: {found}, not {expected}");
            }
        }
    }
    Ok(())
}
