//! Freshness: how long after it was produced an event is in the API's answer.
//!
//! A producer sends events evenly, and writes down how many it has sent when. Meanwhile a client asks the API for the
//! count of all of them. An event was visible when the first answer came whose count reaches it: so the query's own time
//! and the pause between two queries are counted in, to Highwater's disadvantage.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::events::{COUNT, ROUTES};
use super::figure::{Figure, number};
use super::passage::Workers;
use super::site::{Site, Trial};
use super::topic::{Sender, Topic};

/// Events a second.
pub(crate) const RATE: u64 = 50_000;
/// The producer sends what is due so often.
const STEP: Duration = Duration::from_millis(1);
/// From one query to the next.
const ASK: Duration = Duration::from_millis(25);
/// Left out of the percentiles: partitions are shared out, connections are made, the first plans are compiled.
const WARM_UP: Duration = Duration::from_secs(8);
/// How long the last events may take.
const STUCK: Duration = Duration::from_secs(120);
/// A producer that is after freshness.
const PROMPT: [(&str, &str); 1] = [("linger.ms", "1")];
const PARTITIONS: u32 = 8;

/// What was sent when: a count, and the moment at which the last of them was handed to librdkafka.
type Sent = Arc<Mutex<Vec<(u64, Instant)>>>;

/// Produces for so long, and measures.
pub(crate) async fn figures(site: &Site, length: Duration, cancel: &CancellationToken) -> anyhow::Result<Vec<Figure>> {
    let mut topic = Topic::create(site, PARTITIONS, chrono::Utc::now().timestamp(), &[]).await?;
    let trial = site.trial(&topic, &[])?;
    trial.begin().await?;
    let workers = Workers::start(&trial, 1).await?;
    let serve = trial.serve()?;
    let api = serve.until_said(api_address).await?;
    let url = query(&trial, &api, length);
    let http = reqwest::Client::builder().no_proxy().build()?;

    let sent = Sent::default();
    let sender = Sender::new(site, &topic, &PROMPT, cancel)?;
    let length = length + WARM_UP;
    topic.events = u64::try_from(length.as_millis())? * RATE / 1000;
    let (log, events) = (Arc::clone(&sent), topic.events);
    let began = Instant::now();
    let sending = tokio::task::spawn_blocking(move || send(sender, events, &log));

    let (mut seen, mut asked): (Vec<(u64, Instant)>, Vec<Duration>) = Default::default();
    let (mut visible, mut grew) = (0, Instant::now());
    let mut asks = tokio::time::interval(ASK);
    asks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while visible < topic.events {
        asks.tick().await;
        let asking = Instant::now();
        let now = count(&http, &url).await?;
        let at = Instant::now();
        asked.push(at - asking);
        if now > visible {
            (visible, grew) = (now, at);
            seen.push((now, at));
        }
        workers.check()?;
        serve.check()?;
        ensure!(
            grew.elapsed() < STUCK,
            "{visible} of {} events are visible, and no more come",
            topic.events
        );
    }
    sending.await??;
    let sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    let took = sent.last().map_or(Duration::ZERO, |(_, last)| *last - began);
    serve.stop().await?;
    let flush = workers.mean("highwater_speed_flush_seconds").await?;
    workers.stop().await?;
    trial.check_counts(topic.events).await?;
    trial.end().await?;

    let warm = began + WARM_UP;
    let mut lags = lags(&sent, &seen, warm);
    ensure!(
        !lags.is_empty(),
        "nothing was produced after the first {} s",
        WARM_UP.as_secs()
    );
    lags.sort_unstable();
    asked.sort_unstable();
    let what = "freshness, produced to visible in the API";
    Ok(vec![
        Figure::plain(
            "freshness: events produced a second",
            number(topic.events) / took.as_secs_f64().max(f64::EPSILON),
            "events/s",
        ),
        Figure::at_most(format!("{what}, p50"), percentile(&lags, 50), "ms", 300.0),
        Figure::at_most(format!("{what}, p99"), percentile(&lags, 99), "ms", 500.0),
        Figure::plain(format!("{what}, highest"), percentile(&lags, 100), "ms"),
        Figure::plain("of it a flush, on average", flush * 1000.0, "ms"),
        Figure::plain("of it the query itself, p50", percentile(&asked, 50), "ms"),
        Figure::plain("of it the query itself, p99", percentile(&asked, 99), "ms"),
    ])
}

/// In milliseconds, of sorted times, one at least.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)].as_secs_f64() * 1000.0
}

/// As `highwater serve --output json` tells it.
fn api_address(said: &str) -> Option<String> {
    let ready: Value = serde_json::from_str(said).ok()?;
    Some(ready["api"].as_str()?.to_owned())
}

/// The count of all events, in one bucket.
fn query(trial: &Trial, api: &str, length: Duration) -> String {
    let from = trial.topic.first;
    let to = from.saturating_add_unsigned(length.as_secs() + 600);
    format!("{api}/api/v1/views/{ROUTES}/query?from={from}&to={to}&measures={COUNT}")
}

async fn count(http: &reqwest::Client, url: &str) -> anyhow::Result<u64> {
    let answer = http.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let text = async { answer?.text().await }
        .await
        .context("the query API does not answer")?;
    let answer: Value = serde_json::from_str(&text).context("the query API answers no JSON")?;
    Ok(answer["data"][0][COUNT].as_u64().unwrap_or_default())
}

/// Sends evenly; what is late is caught up with.
fn send(mut sender: Sender, events: u64, sent: &Sent) -> anyhow::Result<()> {
    let (began, mut next) = (Instant::now(), 0);
    while next < events {
        let due = u64::try_from(began.elapsed().as_micros())? * RATE / 1_000_000;
        let due = due.min(events);
        while next < due {
            sender.send(next)?;
            next += 1;
        }
        sent.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((next, Instant::now()));
        sender.look()?;
        std::thread::park_timeout(STEP);
    }
    sender.finish()
}

/// For each step of the producer how long it took until an answer reached its count. Each step has about as many events,
/// so percentiles of steps are those of events.
fn lags(sent: &[(u64, Instant)], seen: &[(u64, Instant)], from: Instant) -> Vec<Duration> {
    let mut seen = seen.iter().peekable();
    let mut lags = Vec::new();
    for (count, at) in sent {
        while seen.peek().is_some_and(|(visible, _)| visible < count) {
            seen.next();
        }
        if let Some((_, seen)) = seen.peek()
            && *at >= from
        {
            lags.push(seen.saturating_duration_since(*at));
        }
    }
    lags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_visible_with_the_first_answer_that_reaches_it() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let sent = [(10, at(0)), (20, at(1)), (30, at(2)), (40, at(3))];
        let seen = [(9, at(100)), (20, at(200)), (40, at(300))];
        let lags = lags(&sent, &seen, at(1));
        assert_eq!(lags, [199, 298, 297].map(Duration::from_millis));
    }
}
