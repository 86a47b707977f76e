//! `kill -9` of whole processes, at random instants.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Cells, Event, VIEWS, cells, total};
use highwater_tests::stack::{PATIENCE, Site, run};
use local_stack::Addresses;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;

use crate::faults::trial::{is_long, seed};

/// How often `up` is killed: where there is little time, and where there is more.
const KILLS: [u64; 2] = [5, 10];
const SENT_AT_ONCE: u64 = 20;

/// Seeds the instants, and prints the seed: `HIGHWATER_SEED` repeats a run as far as instants can be repeated.
fn seeded() -> anyhow::Result<fastrand::Rng> {
    let seed = seed()?;
    eprintln!("HIGHWATER_SEED={seed}");
    Ok(fastrand::Rng::with_seed(seed))
}

fn site() -> anyhow::Result<Site> {
    let site = Site::new()?;
    // Runs are the test's own: by default one comes at night.
    let config = "[kafka]\nbrokers = \"127.0.0.1:0\"\n[clickhouse]\nurl = \"http://127.0.0.1:0\"\n\
                  [archive]\ncommit_every = \"300ms\"\n[batch]\nschedule = \"0 0 1 1 *\"\n\
                  [serve]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(site.path().join("highwater.toml"), config)?;
    let definitions = site.path().join("definitions");
    std::fs::remove_dir_all(&definitions)?;
    std::fs::create_dir(&definitions)?;
    std::fs::write(definitions.join("views.toml"), VIEWS.replace("TOPIC", "events"))?;
    Ok(site)
}

async fn answer(http: &reqwest::Client, addresses: &Addresses) -> anyhow::Result<Cells> {
    let api = addresses.api.as_ref().context("no API")?;
    let url = format!(
        "{api}/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&grain=1h&dimensions=kind\
         &measures=events,value&limit=50000"
    );
    let answer: Value = http.get(url).send().await?.error_for_status()?.json().await?;
    let mut cells = Cells::new();
    for row in answer["data"].as_array().context("no rows")? {
        let key = [&row["time"], &row["kind"]].map(|value| value.as_str().unwrap_or_default().to_owned());
        let [time, kind] = key;
        let value = row["value"].as_str().map_or(Ok(0), str::parse)?;
        cells.insert((time, kind), (row["events"].as_u64().context("no count")?, value));
    }
    Ok(cells)
}

async fn until_whole(addresses: &Addresses, expected: &Cells) -> anyhow::Result<()> {
    let http = reqwest::Client::new();
    let began = tokio::time::Instant::now();
    loop {
        let now = answer(&http, addresses).await?;
        if now == *expected {
            return Ok(());
        }
        let differ: BTreeMap<_, _> = expected
            .iter()
            .filter(|(cell, value)| now.get(*cell) != Some(*value))
            .collect();
        ensure!(
            began.elapsed() < PATIENCE,
            "{:?} of {:?}; {} cells differ, such as {:?}",
            total(&now),
            total(expected),
            differ.len(),
            differ.iter().next()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends one event after another, twice where Kafka did not acknowledge it, until told to end. Returns how many.
async fn stream(brokers: &str, done: &AtomicBool) -> anyhow::Result<u64> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.timeout.ms", "5000")
        .set("reconnect.backoff.max.ms", "500")
        .set("linger.ms", "2")
        .create()?;
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        let sends = (number..number + SENT_AT_ONCE).map(async |number| {
            let (key, value) = (number.to_string(), Event(number).json());
            loop {
                let record = FutureRecord::to("events").key(&key).payload(&value);
                // What was not acknowledged may be there all the same; sent again it is a repeat.
                if producer.send(record, Duration::from_secs(60)).await.is_ok() {
                    return;
                }
            }
        });
        futures::future::join_all(sends).await;
        number += SENT_AT_ONCE;
        // sleeps: a pace
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(number)
}

/// Everything is killed some times in the middle of a stream, sometimes while a batch runs. Kafka keeps what it
/// acknowledged; in the end every event counts once.
#[test]
fn an_up_that_is_killed_again_and_again_loses_and_doubles_nothing() -> anyhow::Result<()> {
    run(async {
        let mut random = seeded()?;
        let site = site()?;
        let mut up = site.up().await?;
        let addresses = Addresses::read(&site.data())?;
        let done = AtomicBool::new(false);
        let kills = async {
            for kill in 0..KILLS[usize::from(is_long())] {
                // sleeps: a random instant
                tokio::time::sleep(Duration::from_millis(random.u64(0..2500))).await;
                let run = if kill % 3 == 2 {
                    let mut run = site.highwater(&["batch", "run"])?;
                    Some(
                        run.stdout(std::process::Stdio::null())
                            .stderr(std::process::Stdio::null())
                            .spawn()?,
                    )
                } else {
                    None
                };
                if run.is_some() {
                    // sleeps: a random instant
                    tokio::time::sleep(Duration::from_millis(random.u64(0..2000))).await;
                }
                up.signal("KILL")?;
                up.ended().await?;
                if let Some(mut run) = run {
                    run.kill()?;
                    run.wait()?;
                }
                up = site.up().await?;
            }
            done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let (killed, sent) = tokio::join!(kills, stream(&addresses.kafka, &done));
        killed?;
        let sent = sent?;
        ensure!(sent > 500, "only {sent} events were sent: too few to mean anything");
        let expected = cells(&(0..sent).map(Event).collect::<Vec<_>>());
        let addresses = Addresses::read(&site.data())?;
        until_whole(&addresses, &expected).await?;
        let (code, _, said) = site.run(&["batch", "run"]).await?;
        ensure!(code == Some(0), "{said}");
        until_whole(&addresses, &expected).await?;
        up.stop().await
    })
}

/// A run that is killed half-way publishes nothing: the old answer stands, and the next run is not in its way.
#[test]
fn a_batch_run_that_is_killed_leaves_the_old_answer() -> anyhow::Result<()> {
    run(async {
        let mut random = seeded()?;
        let site = site()?;
        let up = site.up().await?;
        let addresses = Addresses::read(&site.data())?;
        let done = AtomicBool::new(false);
        let stop = async {
            // sleeps: as long as it is to stream
            tokio::time::sleep(Duration::from_secs(3)).await;
            done.store(true, Ordering::Relaxed);
        };
        let (sent, ()) = tokio::join!(stream(&addresses.kafka, &done), stop);
        let expected = cells(&(0..sent?).map(Event).collect::<Vec<_>>());
        until_whole(&addresses, &expected).await?;
        for _ in 0..4 {
            let mut run = site.highwater(&["batch", "run"])?;
            run.stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            let mut run = run.spawn()?;
            // sleeps: a random instant
            tokio::time::sleep(Duration::from_millis(random.u64(50..3000))).await;
            run.kill()?;
            run.wait()?;
            until_whole(&addresses, &expected).await?;
        }
        let (code, _, said) = site.run(&["batch", "run"]).await?;
        ensure!(code == Some(0), "{said}");
        until_whole(&addresses, &expected).await?;
        up.stop().await
    })
}
