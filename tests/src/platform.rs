//! The whole platform in a test's own process: the layers themselves, on real servers, with a topic, a database and an
//! archive of their own; a producer; and an oracle that knows only what was sent.

mod oracle;
mod place;
mod sending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_batch::{Batch, Logs, Outcome, Selection, ViewReport};
use local_stack::topics::{self, Topic};
use metrics_exporter_prometheus::PrometheusBuilder;
use rdkafka::ClientConfig;
use rdkafka::producer::FutureProducer;
use serde_json::Value;
use shared_connections::log::Kafka;
use shared_connections::store::Store;
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::stack::{PATIENCE, program, shared, unique};

pub use oracle::Difference;
pub use place::Place;
use place::config_text;

const POLL: Duration = Duration::from_millis(50);
/// Times come again after so many events: a long stream has no more cells than a page of the API.
const TIMES: u64 = 4000;
/// 2013-01-01T00:00:00Z: the first event's time.
const FIRST: i64 = 1_356_998_400;

/// Two views over one dataset; `small` chunks, so that marks move.
pub const VIEWS: &str = r#"
[dataset.events]
topic = "TOPIC"
partitions = 2
event_time = "at"
event_id = ["n"]
chunk = 256
max_event_size = "4KiB"
dedupe = { window = "1h" }

[dataset.events.fields]
at = { type = "timestamp", unit = "s" }
n = "int64"
kind = "string"
value = "int64?"

[view.hourly]
dataset = "events"
grain = "1h"
dimensions = ["kind"]

[view.hourly.measures]
events = "count()"
value = "sum(value)"
highest = "max(value)"

[view.daily]
dataset = "events"
grain = "1d"

[view.daily.measures]
events = "count()"
value = "sum(value)"
"#;

/// An event: all of it follows from its number, so a total says which were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event(pub u64);

impl Event {
    /// Its time in seconds: about half an hour apart, some of them days late.
    pub fn at(self) -> i64 {
        let late = if self.0 % 17 == 3 { 4 * 86_400 } else { 0 };
        FIRST + i64::try_from(self.0 % TIMES).unwrap_or_default() * 1_801 - late
    }

    /// One of three.
    pub fn kind(self) -> &'static str {
        ["a", "b", "c"][usize::try_from(self.0 % 3).unwrap_or_default()]
    }

    /// Null now and then.
    pub fn value(self) -> Option<i64> {
        (!self.0.is_multiple_of(5)).then(|| i64::try_from(self.0 * self.0 % 100_003).unwrap_or_default())
    }

    /// As it is sent.
    pub fn json(self) -> String {
        serde_json::json!({"at": self.at(), "n": self.0, "kind": self.kind(), "value": self.value()}).to_string()
    }
}

/// The events of these numbers.
pub fn events(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Event> {
    numbers.map(Event)
}

/// For each hour and kind: how many events, and the sum of their values.
pub type Cells = BTreeMap<(String, String), (u64, i64)>;

/// What the view `hourly` must answer.
pub fn cells<'a>(events: impl IntoIterator<Item = &'a Event>) -> Cells {
    // Times are written once for each cell: this is done again and again while events stream.
    let mut cells = BTreeMap::<(i64, &str), (u64, i64)>::new();
    for event in events {
        let hour = event.at() - event.at().rem_euclid(3600);
        let cell = cells.entry((hour, event.kind())).or_default();
        cell.0 += 1;
        cell.1 += event.value().unwrap_or_default();
    }
    let as_answered = |((hour, kind), cell): ((i64, &str), (u64, i64))| {
        let time = chrono::DateTime::from_timestamp(hour, 0).unwrap_or_default();
        let time = time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        ((time, kind.to_owned()), cell)
    };
    cells.into_iter().map(as_answered).collect()
}

/// How many events, and the sum of their values.
pub fn total(cells: &Cells) -> (u64, i64) {
    cells
        .values()
        .fold((0, 0), |all, cell| (all.0 + cell.0, all.1 + cell.1))
}

/// Where an event was first in the log: its partition and offset.
type Position = (u32, u64);

/// The layers, as many as run.
pub struct Platform {
    /// The configuration of all layers.
    pub config: Config,
    /// The definitions.
    pub definitions: Definitions,
    sent: Mutex<BTreeSet<Event>>,
    positions: Mutex<BTreeMap<Event, Position>>,
    /// The number of the next event that is streamed.
    next: AtomicU64,
    /// Where the topic is.
    pub topic: String,
    layers: BTreeMap<&'static str, (CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    api: Option<String>,
    http: reqwest::Client,
    producer: FutureProducer,
    folder: TempDir,
}

impl Platform {
    /// On the shared Kafka, and on the ClickHouse at that address, or the shared one. Nothing runs yet.
    pub async fn new(clickhouse: Option<&str>) -> anyhow::Result<Self> {
        let servers = shared().await?.addresses();
        Self::on(&servers.kafka, clickhouse.unwrap_or(&servers.clickhouse)).await
    }

    /// On that Kafka and that ClickHouse. Nothing runs yet.
    pub async fn on(brokers: &str, clickhouse: &str) -> anyhow::Result<Self> {
        let topic = unique("events");
        topics::ensure(brokers, &[], &Topic::of_dataset(&topic, 2, 4096)).await?;
        Self::of_topic(topic, brokers, clickhouse).await
    }

    /// The same for a topic that is there.
    pub async fn of_topic(topic: String, brokers: &str, clickhouse: &str) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("highwater-test-")?;
        let place = Place {
            brokers: brokers.to_owned(),
            clickhouse: clickhouse.to_owned(),
            group: unique("group"),
            speed: "flush = \"50ms\"".to_owned(),
            more: String::new(),
            views: VIEWS.to_owned(),
        };
        let text = config_text(&place, &unique("platform"), "file:archive");
        let reading = Config::parse(&text, "highwater.toml", folder.path(), &|_| None);
        ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
        let definitions = Definitions::parse([("views.toml", VIEWS.replace("TOPIC", &topic))])
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        let config = reading.config;
        Store::new(&config.clickhouse).create_tables(&definitions).await?;
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            // What a retry doubles is a repeat that the layers know. An idempotent producer was seen to get no event through
            // for minutes after a broker was killed.
            .set("acks", "all")
            .set("linger.ms", "2")
            .set("reconnect.backoff.max.ms", "500")
            // Long: what is given up is sent again, and where it was only late, tests that count records find one too many.
            .set("message.timeout.ms", "30000")
            .create()?;
        Ok(Self {
            config,
            definitions,
            sent: Mutex::default(),
            positions: Mutex::default(),
            next: AtomicU64::new(0),
            topic,
            layers: BTreeMap::new(),
            api: None,
            http: reqwest::Client::new(),
            producer,
            folder,
        })
    }

    /// Another one on the same servers, topic, database and archive, with these definitions, made where they need tables.
    /// Nothing of it runs yet, and it knows of what was sent until now.
    pub async fn beside(&self, definitions: Definitions) -> anyhow::Result<Self> {
        self.store().create_tables(&definitions).await?;
        Ok(Self {
            config: self.config.clone(),
            definitions,
            sent: Mutex::new(self.sent()),
            positions: Mutex::new(lock(&self.positions).clone()),
            next: AtomicU64::new(self.next.load(Ordering::Relaxed)),
            topic: self.topic.clone(),
            layers: BTreeMap::new(),
            api: None,
            http: self.http.clone(),
            producer: self.producer.clone(),
            folder: TempDir::with_prefix("highwater-test-")?,
        })
    }

    /// Where an event was first in the log: its partition and offset.
    pub fn position(&self, event: Event) -> Option<(u32, u64)> {
        lock(&self.positions).get(&event).copied()
    }

    /// Runs `highwater` to its end: its exit code, what it said on stdout, what on stderr.
    pub async fn highwater(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
        let mut command = tokio::process::Command::new(program("highwater")?);
        command
            .current_dir(self.folder_of("command", &self.place())?)
            .args(arguments);
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    /// The store.
    pub fn store(&self) -> Store {
        Store::new(&self.config.clickhouse)
    }

    /// Starts the speed layer.
    pub fn start_speed(&mut self) -> anyhow::Result<()> {
        self.start_speed_as("speed")
    }

    /// Starts a speed layer under that name, beside those that run.
    pub fn start_speed_as(&mut self, name: &'static str) -> anyhow::Result<()> {
        let (kafka, store, cancel) = (Kafka::new(&self.config.kafka)?, self.store(), CancellationToken::new());
        let (config, definitions, ends) = (self.config.clone(), self.definitions.clone(), cancel.clone());
        let run = async move { Ok(highwater_speed::run(&config.speed, &definitions, &kafka, &store, ends).await?) };
        self.layers.insert(name, (cancel, tokio::spawn(run)));
        Ok(())
    }

    /// Starts the archiver.
    pub fn start_archive(&mut self) -> anyhow::Result<()> {
        let (kafka, cancel) = (Kafka::new(&self.config.kafka)?, CancellationToken::new());
        let (config, definitions, ends) = (self.config.clone(), self.definitions.clone(), cancel.clone());
        let run = async move { Ok(highwater_batch::archive::serve(&config, &definitions, &kafka, ends).await?) };
        self.layers.insert("archive", (cancel, tokio::spawn(run)));
        Ok(())
    }

    /// Starts the query API.
    pub async fn start_serving(&mut self) -> anyhow::Result<()> {
        let cancel = CancellationToken::new();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let definitions = Arc::new(self.definitions.clone());
        let bound =
            highwater_serving::serve(&self.config.serve, definitions, self.store(), metrics, cancel.clone()).await?;
        self.api = Some(format!("http://{}", bound.address()));
        let run = async move { Ok(bound.run().await?) };
        self.layers.insert("serving", (cancel, tokio::spawn(run)));
        Ok(())
    }

    /// Starts all three.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.start_archive()?;
        self.start_speed()?;
        self.start_serving().await
    }

    /// Stops a layer in order.
    pub async fn stop(&mut self, layer: &str) -> anyhow::Result<()> {
        let (cancel, run) = self.layers.remove(layer).context("it does not run")?;
        cancel.cancel();
        tokio::time::timeout(PATIENCE, run).await??
    }

    /// Stops all layers that run.
    pub async fn stop_all(mut self) -> anyhow::Result<()> {
        while let Some(layer) = self.layers.keys().next().copied() {
            self.stop(layer).await?;
        }
        Ok(())
    }

    /// What one of the API's paths answers.
    pub async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let api = self.api.as_ref().context("the API does not run")?;
        let response = self.http.get(format!("{api}{path}")).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The cells of the view `hourly` as `merged`, `batch` or `speed` has them.
    pub async fn answer(&self, layers: &str) -> anyhow::Result<Cells> {
        let path = format!(
            "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&grain=1h&dimensions=kind\
             &measures=events,value&limit=50000&layers={layers}"
        );
        let answer = self.ask(&path).await?;
        let text = |row: &Value, name: &str| row[name].as_str().map(str::to_owned).context("no text");
        let mut cells = Cells::new();
        for row in answer["data"].as_array().context("no rows")? {
            let events = row["events"].as_u64().context("no count")?;
            let value = row["value"].as_str().map_or(Ok(0), str::parse)?;
            let cell = cells.insert((text(row, "time")?, text(row, "kind")?), (events, value));
            ensure!(cell.is_none(), "a cell came twice: {row}");
        }
        Ok(cells)
    }

    /// Waits until the archive holds all records of the topic.
    pub async fn until_archived(&self) -> anyhow::Result<()> {
        let kafka = Kafka::new(&self.config.kafka)?;
        let dataset = &self.definitions.datasets[0];
        let topic = kafka.topic(&self.topic).await?;
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let archive = highwater_batch::archive::Archive::open(&self.config.archive, dataset).await?;
            let mut whole = archive.is_some();
            for number in 0..topic.partitions {
                let partition = shared_schemas::handoff::Partition {
                    topic: topic.id,
                    number,
                };
                let end = kafka.bounds(&self.topic, number).await?.to;
                let archived = archive
                    .as_ref()
                    .and_then(|archive| archive.ends().get(&partition).copied());
                whole &= archived.unwrap_or_default() >= end;
            }
            if whole {
                return Ok(());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "the archive never has all records{}",
                self.said()
            );
            tokio::time::sleep(POLL.max(asked.elapsed())).await;
        }
    }

    /// Runs a batch for these views, all if none is named.
    pub async fn batch(&self, views: &[&str]) -> anyhow::Result<Vec<ViewReport>> {
        self.run_batch(views, false).await
    }

    /// Runs a batch up to the archive's end, which must publish each view.
    pub async fn publish_to_end(&self) -> anyhow::Result<Vec<ViewReport>> {
        published(self.run_batch(&[], true).await?)
    }

    async fn run_batch(&self, views: &[&str], to_end: bool) -> anyhow::Result<Vec<ViewReport>> {
        let mut batch = Batch::new(self.config.clone(), self.definitions.clone())?;
        batch.to_end = to_end;
        let selection = Selection {
            views: views.iter().map(|&view| view.to_owned()).collect(),
            datasets: Vec::new(),
        };
        let views = batch.selected(&selection)?;
        let cancel = CancellationToken::new();
        let _lease = batch.lease("a test's run", true, &Logs, &cancel).await?;
        Ok(batch.run(&views, &Logs, &cancel).await)
    }

    /// Runs a batch that must publish each view, or find that there is too little to publish.
    pub async fn publish_if_any(&self) -> anyhow::Result<()> {
        for report in self.batch(&[]).await? {
            let done = matches!(report.result, Outcome::Published | Outcome::NothingToDo);
            ensure!(done, "{report:?}");
        }
        Ok(())
    }

    /// Runs a batch that must publish both views.
    pub async fn publish(&self) -> anyhow::Result<Vec<ViewReport>> {
        published(self.batch(&[]).await?)
    }
}

fn published(reports: Vec<ViewReport>) -> anyhow::Result<Vec<ViewReport>> {
    for report in &reports {
        ensure!(report.result == Outcome::Published, "{report:?}");
    }
    Ok(reports)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
