//! What the tests of the query API drive: `highwater serve` itself, on an engine of its own, with rows that the product's
//! own plans make from events.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::proxy::{Act, Gate, Proxy};
use highwater_tests::stack::{program, signal, until};
use serde_json::{Value, json};
use shared_connections::store::{FreshnessOfPartition, Ledger, Origin, PartitionState, ProgressRow, Store};
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    EventDay, Mark, Offset, Partition, Publication, PublicationNumber, Redo, RunId, Start, TopicId,
};
use shared_schemas::plan::{CellKey, CellPlan, START_COLUMN};
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use shared_schemas::store::{batch_rows, speed_rows};
use shared_schemas::view::View;
use tempfile::TempDir;

/// `departures` is over events without an id, `tracked` over the same with one.
pub(super) const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
partitions = 2
event_time = "at"
chunk = 8

[dataset.flights.fields]
at = "timestamp"
origin = "string"
carrier = "string?"
flight = "int64"
delay = "int64?"
distance = "float64?"
fare = "decimal(10, 2)?"

[view.departures]
dataset = "flights"
grain = "1h"
dimensions = [
    "origin", "carrier", "flight",
    { name = "late", expr = "delay > 15" },
    { name = "day", expr = "CAST(at AS DATE)" },
    { name = "minute", expr = "date_trunc('minute', at)" },
]

[view.departures.measures]
flights = "count()"
delay = "sum(delay)"
worst = "max(delay)"
mean_delay = "avg(delay)"
distance = "sum(distance)"
distance__bound = "count(distance)"
fare = "sum(fare)"
first = "min(at)"
late_flights = { measure = "count()", where = "delay > 15" }
share_late = { ratio = ["late_flights", "flights"] }
planes = "distinct(flight)"
origins = { measure = "distinct(origin)", where = "delay > 15" }
flights_a_plane = { ratio = ["flights", "planes"] }
delay_q = "quantiles(delay, [1, 0, 0.5])"
opening = "first(carrier)"
closing_fare = "last(fare)"

[dataset.tickets]
topic = "tickets"
partitions = 2
event_time = "at"
event_id = ["flight"]
chunk = 8

[dataset.tickets.fields]
at = "timestamp"
origin = "string"
flight = "int64"

[view.tracked]
dataset = "tickets"
grain = "1h"
dimensions = ["origin"]

[view.tracked.measures]
flights = "count()"

[view.limited]
dataset = "flights"
grain = "1h"
dimensions = ["origin"]
distinct_limit = 5

[view.limited.measures]
planes = "distinct(flight)"
"#;

/// What a merging statement has that no other has.
const MERGING: &str = "_below_floor";

pub(super) const TOPIC: TopicId = TopicId(u128::MAX - 6);

/// 2013-11-01T00:00:00Z.
pub(super) const NOVEMBER: i64 = 1_383_264_000;

pub(super) fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

/// One event: where it is in the log, and what it says.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) value: Value,
}

/// An event at a minute after 2013-11-01T00:00:00Z.
pub(super) fn event(partition: u32, offset: u64, minute: i64, origin: &str) -> Event {
    let at = chrono::DateTime::from_timestamp(NOVEMBER + minute * 60, 0).unwrap();
    let value = json!({"at": at.to_rfc3339(), "origin": origin, "flight": offset});
    Event {
        partition,
        offset,
        value,
    }
}

/// A running `highwater serve`. Dropping it kills it.
pub(super) struct Serve {
    child: Child,
    pub(super) api: String,
}

/// Everything.
pub(super) struct World {
    pub(super) clickhouse: ClickHouse,
    pub(super) proxy: Proxy,
    pub(super) store: Store,
    pub(super) definitions: Definitions,
    pub(super) http: reqwest::Client,
    pub(super) serve: Serve,
    _site: TempDir,
}

/// A folder with a configuration and definitions.
pub(super) fn site(clickhouse: &str, definitions: &str) -> anyhow::Result<(TempDir, Config)> {
    let site = TempDir::with_prefix("highwater-test-")?;
    let text = format!("[clickhouse]\nurl = \"{clickhouse}\"\n\n[serve]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(site.path().join("highwater.toml"), &text)?;
    let folder = site.path().join("definitions");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("flights.toml"), definitions)?;
    let config = Config::parse(&text, "highwater.toml", site.path(), &|_| None).config;
    Ok((site, config))
}

/// `highwater` with these arguments, in that folder.
pub(super) fn highwater(site: &TempDir, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(program("highwater")?);
    command
        .current_dir(site.path())
        .args(arguments)
        .env_remove("HIGHWATER_LOG")
        .stdin(Stdio::null());
    Ok(command)
}

impl Serve {
    /// Starts it and waits for its address.
    fn start(site: &TempDir) -> anyhow::Result<Self> {
        let mut child = highwater(site, &["serve"])?.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let mut serve = Self {
            child,
            api: String::new(),
        };
        serve.api = line
            .split_whitespace()
            .nth(1)
            .with_context(|| format!("`highwater serve` said {line:?}"))?
            .to_owned();
        Ok(serve)
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        signal(self.child.id(), "TERM")?;
        let mut status = None;
        until("`highwater serve` ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .await?;
        status.context("it has ended")
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Takes merging statements from now on and answers none.
    pub(super) fn hold(&self) -> Arc<Gate> {
        let gate = Gate::closed();
        let held = Arc::clone(&gate);
        self.proxy
            .on(move |statement| statement.contains(MERGING).then(|| Act::Hold(Arc::clone(&held))));
        gate
    }

    pub(super) async fn start() -> anyhow::Result<Self> {
        Self::with(DEFINITIONS).await
    }

    /// With other definitions.
    pub(super) async fn with(definitions: &str) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::start()?;
        let proxy = Proxy::of_statements(clickhouse.url())?;
        let (site, config) = site(&proxy.url(), definitions)?;
        let definitions = Definitions::load(&site.path().join("definitions"))?;
        let serve = Serve::start(&site)?;
        Ok(Self {
            clickhouse,
            store: Store::new(&config.clickhouse),
            proxy,
            definitions,
            http: reqwest::Client::new(),
            serve,
            _site: site,
        })
    }

    pub(super) fn view(&self, name: &str) -> &View {
        self.definitions.view(name).expect("a view of the definitions")
    }

    fn dataset(&self, view: &View) -> &Dataset {
        self.definitions
            .dataset(&view.dataset)
            .expect("a dataset of the definitions")
    }

    /// The events as decoded.
    fn decoded(&self, view: &View, events: &[&Event]) -> anyhow::Result<Vec<RecordBatch>> {
        let options = Options {
            extra: false,
            keys: &EnvironmentKeys,
        };
        let mut decoder = Decoder::new(self.dataset(view), options)?;
        for event in events {
            let value = serde_json::to_vec(&event.value)?;
            let record = Record {
                partition: event.partition.cast_signed(),
                offset: event.offset.cast_signed(),
                timestamp: Some((NOVEMBER + 86_400 * 30) * 1_000),
                key: None,
                value: Some(&value),
                headers: &(),
            };
            decoder
                .push(&record)
                .map_err(|refusal| anyhow::anyhow!("{} is refused: {refusal:?}", event.value))?;
        }
        Ok(decoder.finish())
    }

    /// The speed layer's rows of these starts of a partition, up to `next`, and its progress.
    pub(super) async fn count(
        &self,
        view: &View,
        log: &[Event],
        number: u32,
        starts: &[u64],
        next: u64,
    ) -> anyhow::Result<()> {
        let chunk = self.dataset(view).chunk;
        let end = |start: u64| (start - start % chunk + chunk).min(next);
        let plan = CellPlan::new(view, self.dataset(view), CellKey::Start)?;
        let mut batches = Vec::new();
        for start in starts {
            let counted = |event: &&Event| event.partition == number && (*start..end(*start)).contains(&event.offset);
            let events: Vec<_> = log.iter().filter(counted).collect();
            for batch in self.decoded(view, &events)? {
                batches.push(with_start(&batch, *start)?);
            }
        }
        let cells = plan.run(batches).await?;
        let versions = |_: Partition, start: Start| Some(Offset(end(start.0.0)));
        let rows = speed_rows(&cells, TOPIC, &versions)?;
        self.store.insert(&speed_table_name(view), &[rows]).await?;
        let progress = |start: &u64| ProgressRow {
            fingerprint: view.fingerprint,
            partition: partition(number),
            start: Start(Offset(*start)),
            redo: Redo::default(),
            ledger: Ledger {
                next: Offset(end(*start)),
                ..Ledger::default()
            },
        };
        let rows: Vec<_> = starts.iter().map(progress).collect();
        Ok(self.store.record_progress(&rows).await?)
    }

    /// A batch run over the whole log below these marks.
    pub(super) async fn publish(
        &self,
        view: &View,
        log: &[Event],
        parent: Option<&Publication>,
        marks: &[(u32, u64)],
    ) -> anyhow::Result<Publication> {
        let marks: BTreeMap<_, _> = marks
            .iter()
            .map(|(number, mark)| (partition(*number), Mark(Offset(*mark))))
            .collect();
        let below = |event: &&Event| marks[&partition(event.partition)].0 > Offset(event.offset);
        let events: Vec<_> = log.iter().filter(below).collect();
        let days: BTreeSet<_> = events.iter().map(|event| day(event)).collect::<anyhow::Result<_>>()?;
        let run = RunId(parent.map_or(77, |parent| parent.run.0 + 1));
        let number = parent.map_or(PublicationNumber(0), |parent| parent.number);
        self.store.record_run(view, run, number).await?;
        let plan = CellPlan::new(view, self.dataset(view), CellKey::Cell)?;
        let cells = plan.run(self.decoded(view, &events)?).await?;
        let rows = batch_rows(&cells, run)?;
        self.store.insert(&batch_table_name(view), &[rows]).await?;
        let publication = Publication::of_run(parent, run, marks, &BTreeMap::new(), &days);
        let last_day = |partition: &Partition| {
            let of_partition = events.iter().filter(|event| event.partition == partition.number);
            of_partition.filter_map(|event| day(event).ok()).max()
        };
        let origin = Origin {
            rules: Fingerprint::of_rules(self.dataset(view)),
            archive_version: 17,
            last_days: publication
                .marks
                .keys()
                .filter_map(|partition| Some((*partition, last_day(partition)?)))
                .collect(),
        };
        self.store.publish(view, &publication, &origin).await?;
        Ok(publication)
    }

    /// What a live worker says of a partition that it has read to its end.
    pub(super) async fn say(&self, view: &View, number: u32, next: u64, watermark: i64) -> anyhow::Result<()> {
        let row = FreshnessOfPartition {
            partition: partition(number),
            next: Offset(next),
            log_end: Offset(next),
            watermark: Some(watermark * 1_000_000),
            kafka_time: Some(chrono::Utc::now().timestamp_millis()),
            state: PartitionState::Live,
            reason: String::new(),
            seen: chrono::Utc::now().timestamp_millis(),
        };
        Ok(self.store.record_freshness(&[(view.fingerprint, row)]).await?)
    }

    /// Asks; the status and the JSON.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let response = self.http.get(format!("{}{path}", self.serve.api)).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let json = serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?;
        Ok((status, json))
    }

    /// Asks a view; the answer.
    pub(super) async fn ask(&self, view: &str, query: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.get(&format!("/api/v1/views/{view}/query?{query}")).await?;
        ensure!(status == 200, "{query}: {status} {answer}");
        Ok(answer)
    }

    /// Asks a view; the rows.
    pub(super) async fn rows(&self, view: &str, query: &str) -> anyhow::Result<Vec<Value>> {
        let mut answer = self.ask(view, query).await?;
        let rows = answer["data"].take();
        rows.as_array().cloned().context("the answer has rows")
    }
}

fn with_start(batch: &RecordBatch, start: u64) -> anyhow::Result<RecordBatch> {
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(START_COLUMN, DataType::UInt64, false)));
    let starts: ArrayRef = Arc::new(UInt64Array::from(vec![start; batch.num_rows()]));
    let columns = batch.columns().iter().cloned().chain([starts]).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The day of an event's time.
fn day(event: &Event) -> anyhow::Result<EventDay> {
    let at = event.value["at"].as_str().context("an event has a time")?;
    let seconds = chrono::DateTime::parse_from_rfc3339(at)?.timestamp();
    Ok(EventDay(i32::try_from(seconds.div_euclid(86_400))?))
}
