//! `embedded-clickhouse` as its clients use it: the `clickhouse` crate, `clickhouse-connect`, and plain HTTP.

mod faults;
mod http;
mod limits;
mod python;
mod rust_client;

use std::time::Duration;

use anyhow::Context;
use reqwest::{Response, StatusCode};

/// No query here takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// A response that was read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn read(response: Response) -> anyhow::Result<Answer> {
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer {
        status,
        headers,
        body: response.bytes().await?.to_vec(),
    })
}

/// Posts a body to an address below the server's.
async fn post(url: &str, body: impl Into<reqwest::Body>) -> anyhow::Result<Answer> {
    read(
        reqwest::Client::new()
            .post(url)
            .timeout(LONGEST)
            .body(body)
            .send()
            .await?,
    )
    .await
}

/// Runs a statement that must succeed, and returns its text.
async fn run(url: &str, sql: &str) -> anyhow::Result<String> {
    let answer = post(url, sql.to_owned()).await?;
    anyhow::ensure!(answer.status == StatusCode::OK, "{sql}: {}", answer.text());
    Ok(answer.text().trim_end().to_owned())
}

/// Waits until a query answers this.
async fn until(url: &str, sql: &str, expected: &str) -> anyhow::Result<()> {
    let answered = highwater_tests::clickhouse::until(|| run(url, sql), |answer| answer == expected).await;
    answered.map(drop).with_context(|| format!("{sql}: not {expected}"))
}

/// A query that runs until it is ended, and gives no rows by then.
const ENDLESS: &str = "SELECT count() FROM numbers(1000000000000) WHERE number % 7 = 3 SETTINGS max_threads = 1";
