//! A topic's passage through the speed layer: from Kafka until every event is visible in ClickHouse.
//!
//! Timed is from the moment at which a worker reads its first events to the one at which all are visible. So starting a
//! process and joining the group are left out, which is told apart. "Visible" is what an answer promises to hold: progress
//! of every view, over all partitions. In the end the merged answers are compared with what was sent, minute by minute; a
//! bench of wrong counts fails.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use super::events::Further;
use super::figure::{Figure, number};
use super::process::{Highwater, Metrics, highest_resident, processor_time, resident};
use super::site::{Site, Trial};
use super::topic::Topic;

/// How often it is looked at what is read and what is visible: at the beginning and near the end, where the time counts, and
/// between, where looking would only take processor time.
const LOOK_CLOSELY: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(250);
/// How often at what it costs.
const WEIGH: Duration = Duration::from_secs(1);
/// How long nothing new may become visible.
const STUCK: Duration = Duration::from_secs(120);
const MEBI: f64 = 1_048_576.0;

/// What a passage came to.
#[derive(Debug)]
pub(crate) struct Passage {
    /// Events a second.
    pub(crate) rate: f64,
    /// From the start of the processes to the first visible event.
    starting: Duration,
    /// Processor time meanwhile, and events that it was for.
    processor: BTreeMap<&'static str, Duration>,
    events: u64,
    took: Duration,
    pub(crate) weights: Weights,
    rows: f64,
    cells: u64,
}

/// What a worker holds, and its tables, looked at again and again.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Bytes resident, of all workers, with when.
    pub(crate) resident: Vec<(Instant, u64)>,
    /// The most that a worker ever had resident.
    highest: u64,
    open_bytes: f64,
    open_cells: f64,
    parts: BTreeMap<String, u64>,
}

/// Running workers, and where their metrics are.
pub(crate) struct Workers {
    processes: Vec<(Highwater, String)>,
    http: reqwest::Client,
}

impl Workers {
    /// Starts so many.
    pub(crate) async fn start(trial: &Trial, count: u32) -> anyhow::Result<Self> {
        let workers: Vec<_> = (1..=count)
            .map(|number| trial.speed(number))
            .collect::<Result<_, _>>()?;
        let mut processes = Vec::with_capacity(workers.len());
        for worker in workers {
            let metrics = worker.until_said(metrics_address).await?;
            processes.push((worker, metrics));
        }
        Ok(Self {
            processes,
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(|(worker, _)| worker.pid())
    }

    /// That all of them still run.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.processes.iter().try_for_each(|(worker, _)| worker.check())
    }

    /// A metric, summed over workers and labels.
    async fn metrics(&self) -> anyhow::Result<Vec<Metrics>> {
        let mut all = Vec::with_capacity(self.processes.len());
        for (_, url) in &self.processes {
            all.push(Metrics::read(&self.http, url).await?);
        }
        Ok(all)
    }

    /// Whether any of them has read events.
    async fn have_read(&self) -> anyhow::Result<bool> {
        let read = |one: &Metrics| one.sum("highwater_speed_events_total") > 0.0;
        Ok(self.metrics().await?.iter().any(read))
    }

    /// The mean of a histogram of theirs.
    pub(crate) async fn mean(&self, name: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics().await?;
        let sum = |of: &str| metrics.iter().map(|one| one.sum(&format!("{name}_{of}"))).sum::<f64>();
        Ok(sum("sum") / sum("count").max(1.0))
    }

    /// Ends them in order.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        for (worker, _) in self.processes {
            worker.stop().await?;
        }
        Ok(())
    }
}

/// As `highwater speed` tells it in its log.
fn metrics_address(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("metrics at ")?;
    let (address, _) = rest.split_once('\n')?;
    Some(address.trim().to_owned())
}

impl Weights {
    /// Looks once.
    pub(crate) async fn weigh(&mut self, trial: &Trial, workers: &Workers) -> anyhow::Result<()> {
        let mut sum = 0;
        for pid in workers.pids() {
            sum += resident(pid)?;
            self.highest = self.highest.max(highest_resident(pid)?);
        }
        self.resident.push((Instant::now(), sum));
        let metrics = workers.metrics().await?;
        let sum = |name: &str| metrics.iter().map(|one| one.sum(name)).sum::<f64>();
        self.open_bytes = self.open_bytes.max(sum("highwater_speed_open_bytes"));
        self.open_cells = self.open_cells.max(sum("highwater_speed_open_cells"));
        for (table, parts) in trial.parts().await? {
            let most = self.parts.entry(table).or_default();
            *most = parts.max(*most);
        }
        Ok(())
    }

    /// The most that a worker had resident, in MB.
    pub(crate) fn highest(&self) -> f64 {
        number(self.highest) / 1e6
    }

    /// What the open cells took, and the tables' parts.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let most = |begins: &str| {
            let tables = self.parts.iter().filter(|(table, _)| table.starts_with(begins));
            number(tables.map(|(_, parts)| *parts).max().unwrap_or_default())
        };
        vec![
            Figure::plain("open cells, most at once", self.open_cells, "cells"),
            Figure::plain("memory of the open cells, most at once", self.open_bytes / MEBI, "MiB"),
            Figure::plain("active parts of a view's table, most at once", most("speed_"), "parts"),
            Figure::plain(
                "active parts of the progress table, most at once",
                most("progress"),
                "parts",
            ),
        ]
    }
}

/// Lets the workers count the whole topic.
/// `further`: measures beside the usual ones.
pub(crate) async fn pass(site: &Site, topic: &Topic, workers: u32, further: &[Further]) -> anyhow::Result<Passage> {
    let trial = site.trial(topic, further)?;
    trial.begin().await?;
    let started = Instant::now();
    let workers = Workers::start(&trial, workers).await?;
    // As of the last look that found nothing read: the time is rather too long than too short.
    let (mut began, mut before) = (started, processors(site, workers.pids())?);
    loop {
        let looked = (Instant::now(), processors(site, workers.pids())?);
        if workers.have_read().await? {
            break;
        }
        (began, before) = looked;
        workers.check()?;
        ensure!(started.elapsed() < STUCK, "no worker reads anything");
        tokio::time::sleep(LOOK_CLOSELY).await;
    }
    let (mut weights, mut weighed) = (Weights::default(), None);
    let (mut starting, mut visible, mut grew) = (None, 0, began);
    while visible < topic.events {
        let closely = visible == 0 || visible >= topic.events / 10 * 9;
        tokio::time::sleep(if closely { LOOK_CLOSELY } else { LOOK }).await;
        let now = trial.visible().await?;
        let at = Instant::now();
        if now > visible {
            (visible, grew) = (now, at);
            starting.get_or_insert(at - started);
        }
        workers.check()?;
        ensure!(
            grew.elapsed() < STUCK,
            "{visible} of {} events are visible, and no more come",
            topic.events
        );
        if weighed.is_none_or(|last: Instant| last.elapsed() >= WEIGH) {
            weighed = Some(at);
            weights.weigh(&trial, &workers).await?;
        }
    }
    ensure!(
        visible == topic.events,
        "{visible} events are visible, and there are {}",
        topic.events
    );
    let took = grew - began;
    let processor = processors(site, workers.pids())?
        .into_iter()
        .map(|(name, now)| {
            let before = before.get(name).copied().unwrap_or_default();
            (name, now.saturating_sub(before))
        })
        .collect();
    weights.weigh(&trial, &workers).await?;
    let metrics = workers.metrics().await?;
    let rows = metrics.iter().map(|one| one.sum("highwater_speed_rows_total")).sum();
    workers.stop().await?;
    trial.check_counts(topic.events).await?;
    let cells = trial.cells().await?;
    trial.end().await?;
    Ok(Passage {
        rate: number(topic.events) / took.as_secs_f64().max(f64::EPSILON),
        starting: starting.unwrap_or_default(),
        processor,
        events: topic.events,
        took,
        weights,
        rows,
        cells,
    })
}

/// The processor time of each so far.
fn processors(site: &Site, workers: impl IntoIterator<Item = u32>) -> anyhow::Result<BTreeMap<&'static str, Duration>> {
    let mut times = BTreeMap::new();
    let of_workers = workers.into_iter().map(|pid| ("speed layer", pid));
    let bench = [("this bench", std::process::id())];
    for (name, pid) in of_workers.chain(site.servers()?).chain(bench) {
        *times.entry(name).or_default() += processor_time(pid)?;
    }
    Ok(times)
}

impl Passage {
    /// All but the rate.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let mut figures = vec![Figure::plain(
            "from a worker's start to the first visible event",
            self.starting.as_secs_f64(),
            "s",
        )];
        for (name, time) in &self.processor {
            let seconds = time.as_secs_f64();
            let each = seconds / (number(self.events) / 1e6);
            figures.push(Figure::plain(
                format!("processor time of {name}, per million events"),
                each,
                "s",
            ));
        }
        let engine = self.processor.get("ClickHouse").copied().unwrap_or_default();
        figures.push(Figure::plain(
            "ClickHouse's share of the machine's processors",
            100.0 * engine.as_secs_f64() / (self.took.as_secs_f64() * processors_here()).max(f64::EPSILON),
            "%",
        ));
        figures.push(Figure::plain(
            "rows written for each cell",
            self.rows / number(self.cells.max(1)),
            "rows",
        ));
        figures.extend(self.weights.figures());
        figures
    }
}

fn processors_here() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| number(count.get() as u64))
}
