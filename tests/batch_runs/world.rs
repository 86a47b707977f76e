//! What the tests of batch runs drive: an archive of random events, a speed layer that counts them, and an oracle.
//!
//! The oracle knows the events alone. Archive, store, runs and the merging statement are the product's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use arrow::array::{ArrayRef, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use highwater_batch::archive::{Archive, Commit};
use highwater_batch::{Batch, Selection, Step, ViewReport, Watcher};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::stack::unique;
use shared_connections::log::{Outcome, ReadRecord};
use shared_connections::store::{Ledger, ProgressRow};
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Reason, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, Offset, OffsetRange, Partition, Publication, Redo, Start, TopicId};
use shared_schemas::plan::{CellKey, CellPlan, START_COLUMN};
use shared_schemas::store::tables::speed_table_name;
use shared_schemas::store::{Merging, speed_rows};
use shared_schemas::view::View;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(super) const TOPIC: TopicId = TopicId(u128::MAX - 11);
/// 2013-10-31T20:00:00Z: the events lie in two months.
const FIRST_SECOND: i64 = 1_383_249_600;

pub(super) const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
partitions = 2
event_time = "at"
event_id = ["carrier", "flight"]
chunk = 8

[dataset.flights.fields]
at = "timestamp"
carrier = "string?"
flight = "int64"
delay = "int64?"
distance = "float64?"
fare = "decimal(10,2)?"
day = "date?"

[view.hourly]
dataset = "flights"
grain = "1h"
dimensions = ["carrier"]

[view.hourly.measures]
flights = "count()"
delay = "sum(delay)"
worst = "max(delay)"

[view.daily]
dataset = "flights"
grain = "1d"

[view.daily.measures]
flights = "count()"
mean = "avg(delay)"

[view.kinds]
dataset = "flights"
grain = "1h"
filter = "flight <> 40"
dimensions = ["day", { name = "late", expr = "delay > 15" }, "flight"]

[view.kinds.measures]
flights = "count()"
distance = "sum(distance)"
shortest = "min(distance)"
mean_distance = "avg(distance)"
fare = "sum(fare)"
mean_fare = "avg(fare)"
dearest = "max(fare)"
first = "min(at)"
last_day = "max(day)"
last_carrier = "max(carrier)"
any_late = "max(delay > 20)"
delayed = { measure = "count()", where = "delay > 15" }
share_delayed = { ratio = ["delayed", "flights"] }
carriers = "distinct(carrier)"
fares = { measure = "distinct(fare)", where = "delay > 5" }
delay_q = "quantiles(distance, [0.5, 0.95])"
opening = "first(carrier)"
closing = "last(fare)"
"#;

/// An event of the log.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) partition: u32,
    pub(super) offset: u64,
    /// Seconds after the first.
    pub(super) at: i64,
    pub(super) carrier: Option<&'static str>,
    pub(super) flight: i64,
    pub(super) delay: Option<i64>,
}

impl Event {
    fn json(&self) -> String {
        let at = chrono::DateTime::from_timestamp(FIRST_SECOND + self.at, 0).unwrap_or_default();
        serde_json::json!({
            "at": at.to_rfc3339(), "carrier": self.carrier, "flight": self.flight, "delay": self.delay,
            // No double holds these, so sums in another order differ.
            "distance": self.delay.map(|delay| f64::from(i32::try_from(delay).unwrap_or_default()) * 0.1),
            "fare": self.delay.map(|delay| format!("{delay}.{:02}", self.flight % 100)),
            "day": (self.flight % 5 != 0).then(|| at.format("%Y-%m-%d").to_string()),
        })
        .to_string()
    }

    fn window(&self, grain: i64) -> i64 {
        let at = FIRST_SECOND + self.at;
        at - at.rem_euclid(grain)
    }
}

pub(super) fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

/// A log of so many offsets in each of two partitions, with holes; later events of other days now and then.
pub(super) fn log(offsets: u64) -> Vec<Event> {
    let event = |partition: u32, offset: u64| Event {
        partition,
        offset,
        at: i64::try_from(offset * 1300 % 90_000).unwrap(),
        carrier: [Some("AA"), Some("ZZ"), None][usize::try_from(offset % 3).unwrap()],
        flight: i64::try_from(offset * 2 + u64::from(partition)).unwrap(),
        delay: (!offset.is_multiple_of(4)).then(|| i64::try_from(offset).unwrap()),
    };
    (0..2_u32)
        .flat_map(|partition| (0..offsets).map(move |offset| event(partition, offset)))
        .filter(|event| event.offset % 7 != 5)
        .collect()
}

/// One site: a store, an archive, a log.
pub(super) struct World {
    pub(super) batch: Batch,
    pub(super) log: Vec<Event>,
    folder: TempDir,
}

impl World {
    /// The log is not archived yet. `more` goes into the configuration.
    pub(super) async fn new(server: &ClickHouse, log: Vec<Event>, more: &str) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("highwater-test-")?;
        // Nothing listens there: a run asks Kafka only where a log begins, and does without.
        let text = format!(
            "[kafka]\nbrokers = \"127.0.0.1:9\"\n[clickhouse]\nurl = \"{}\"\ndatabase = \"{}\"\n\
             [archive]\nurl = \"file:archive\"\n{more}",
            server.url(),
            unique("batch"),
        );
        let reading = Config::parse(&text, "highwater.toml", folder.path(), &|_| None);
        anyhow::ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)])?;
        let batch = Batch::new(reading.config, definitions)?;
        batch.store.create_tables(&batch.definitions).await?;
        Ok(Self { batch, log, folder })
    }

    /// A folder in which `highwater` finds the same store at that address, the same archive and definitions.
    pub(super) fn site(&self, url: &str, more: &str) -> anyhow::Result<PathBuf> {
        let home = self.folder.path();
        std::fs::create_dir_all(home.join("definitions"))?;
        std::fs::write(home.join("definitions/flights.toml"), DEFINITIONS)?;
        let text = format!(
            "[kafka]\nbrokers = \"127.0.0.1:9\"\n[clickhouse]\nurl = \"{url}\"\ndatabase = \"{}\"\n\
             [archive]\nurl = \"file:archive\"\n{more}",
            self.batch.store.database(),
        );
        std::fs::write(home.join("highwater.toml"), text)?;
        Ok(home.to_owned())
    }

    pub(super) fn dataset(&self) -> &Dataset {
        &self.batch.definitions.datasets[0]
    }

    pub(super) fn view(&self, name: &str) -> &View {
        self.batch.definitions.view(name).unwrap()
    }

    fn chunk(&self) -> ChunkSize {
        ChunkSize::new(self.dataset().chunk).unwrap()
    }

    pub(super) fn archive_folder(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    fn decoded(&self, number: u32, range: OffsetRange, seconds_apart: i64) -> anyhow::Result<Vec<RecordBatch>> {
        let options = Options {
            extra: true,
            keys: &EnvironmentKeys,
        };
        let mut decoder = Decoder::new(self.dataset(), options)?;
        for event in self.events(number, range) {
            let value = event.json();
            decoder.push(&Record {
                partition: i32::try_from(number)?,
                offset: i64::try_from(event.offset)?,
                timestamp: Some((FIRST_SECOND + 100_000 + i64::try_from(event.offset)? * seconds_apart) * 1000),
                key: None,
                value: Some(value.as_bytes()),
                headers: &(),
            })?;
        }
        Ok(decoder.finish())
    }

    fn events(&self, number: u32, range: OffsetRange) -> impl Iterator<Item = &Event> {
        let within = move |event: &&Event| {
            event.partition == number && event.offset >= range.from.0 && event.offset < range.to.0
        };
        self.log.iter().filter(within)
    }

    /// Archives both partitions up to these offsets; records are so many seconds apart by Kafka's clock.
    pub(super) async fn archive(&self, ends: [u64; 2], seconds_apart: i64) -> anyhow::Result<()> {
        self.archived(ends, seconds_apart, &[]).await
    }

    /// The same, of a log that has records besides, at these places, that are refused.
    pub(super) async fn archive_refusing(&self, ends: [u64; 2], refused: &[(u32, u64)]) -> anyhow::Result<()> {
        self.archived(ends, 120, refused).await
    }

    async fn archived(&self, ends: [u64; 2], seconds_apart: i64, refused: &[(u32, u64)]) -> anyhow::Result<()> {
        let mut archive = Archive::open_or_create(&self.batch.config.archive, self.dataset()).await?;
        let mut commit = Commit::default();
        for (number, end) in (0..).zip(ends) {
            let from = archive.ends().get(&partition(number)).copied().unwrap_or_default();
            let range = OffsetRange { from, to: Offset(end) };
            commit.ranges.insert(partition(number), range);
            let record = |offset: u64, outcome| ReadRecord {
                offset: Offset(offset),
                kafka_time: None,
                outcome,
            };
            let refused = refused
                .iter()
                .filter(|(one, at)| *one == number && *at >= from.0 && *at < end);
            let refused = refused.map(|(_, at)| record(*at, Outcome::Refused(Reason::Empty)));
            let accepted = self.events(number, range);
            let accepted = accepted.map(|event| record(event.offset, Outcome::Accepted));
            let mut records: Vec<_> = accepted.chain(refused).collect();
            records.sort_unstable_by_key(|record| record.offset);
            commit.accounts.add(partition(number), self.chunk(), range, &records);
            let batches = self.decoded(number, range, seconds_apart)?;
            commit
                .batches
                .extend(batches.into_iter().map(|batch| (partition(number), batch)));
        }
        archive.commit(&commit).await?;
        Ok(())
    }

    /// What a speed worker writes that has read a partition up to `next`: the rows and progress of each chunk and cut.
    pub(super) async fn speed(&self, number: u32, next: u64, cuts: &BTreeSet<Start>) -> anyhow::Result<()> {
        let chunks = (0..next).step_by(8).map(|at| Start(Offset(at)));
        let starts: BTreeSet<Start> = chunks
            .chain(cuts.iter().copied().filter(|cut| cut.0.0 < next))
            .collect();
        for view in &self.batch.definitions.views {
            let plan = CellPlan::new(view, self.dataset(), CellKey::Start)?;
            let upto = |start: Start| Offset(next).min(self.chunk().end(start.0));
            let mut input = Vec::new();
            for start in &starts {
                let range = OffsetRange {
                    from: start.0,
                    to: upto(*start),
                };
                for batch in self.decoded(number, range, 1)? {
                    input.push(with_start(&batch, start.0.0, plan_columns(self.dataset()))?);
                }
            }
            let cells = plan.run(input).await?;
            let rows = speed_rows(&cells, TOPIC, &|_: Partition, start: Start| Some(upto(start)))?;
            self.batch.store.insert(&speed_table_name(view), &[rows]).await?;
            let progress: Vec<_> = starts
                .iter()
                .map(|start| ProgressRow {
                    fingerprint: view.fingerprint,
                    partition: partition(number),
                    start: *start,
                    redo: Redo::default(),
                    ledger: self.ledger(view, number, *start, upto(*start)),
                })
                .collect();
            self.batch.store.record_progress(&progress).await?;
        }
        Ok(())
    }

    fn ledger(&self, view: &View, number: u32, start: Start, next: Offset) -> Ledger {
        let range = OffsetRange {
            from: start.0,
            to: next,
        };
        let read = self.events(number, range).count() as u64;
        // The one filter of these views.
        let filtered = self
            .events(number, range)
            .filter(|event| view.filter.is_some() && event.flight == 40)
            .count() as u64;
        Ledger {
            next,
            rules: Fingerprint::of_rules(self.dataset()).to_string(),
            read,
            holes: next.0 - start.0.0 - read,
            aggregated: read - filtered,
            filtered,
            ..Ledger::default()
        }
    }

    /// Runs these views, all if none is named.
    pub(super) async fn run(
        &self,
        views: &[&str],
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
    ) -> Vec<ViewReport> {
        let selection = Selection {
            views: views.iter().map(|&view| view.to_owned()).collect(),
            datasets: Vec::new(),
        };
        let views = self.batch.selected(&selection).unwrap();
        self.batch.run(&views, watcher, cancel).await
    }

    pub(super) async fn newest(&self, view: &str) -> anyhow::Result<Publication> {
        let facts = self.batch.store.facts(self.view(view)).await?;
        Ok(facts.newest().context("nothing is published")?.publication.clone())
    }

    /// What readers see of the view `hourly`: window, carrier, flights, delay, worst.
    pub(super) async fn answer(&self) -> anyhow::Result<Vec<String>> {
        let view = self.view("hourly");
        let facts = self.batch.store.facts(view).await?;
        let merging = Merging {
            database: self.batch.store.database(),
            view,
            publication: facts.newest().map(|newest| &newest.publication),
            from: 0,
            to: 1 << 34,
            bucket: Some(Duration::from_secs(3600)),
            dimensions: &["carrier"],
            measures: &["flights", "delay", "worst"],
        };
        let answer = self.batch.store.answer(&merging.statement()?, "TabSeparated").await?;
        let line = |line: &str| line.split('\t').take(5).collect::<Vec<_>>().join("\t");
        let mut lines: Vec<_> = String::from_utf8(answer.body.to_vec())?.lines().map(line).collect();
        lines.sort();
        Ok(lines)
    }

    /// What the events below these offsets come to, each once.
    pub(super) fn truth(&self, ends: [u64; 2]) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut cells: BTreeMap<(i64, Option<&str>), Vec<&Event>> = BTreeMap::new();
        for event in self
            .log
            .iter()
            .filter(|event| event.offset < ends[event.partition as usize])
        {
            if event.carrier.is_none() || seen.insert((event.carrier, event.flight, event.at)) {
                cells
                    .entry((event.window(3600), event.carrier))
                    .or_default()
                    .push(event);
            }
        }
        let line = |((window, carrier), events): (&(i64, Option<&str>), &Vec<&Event>)| {
            let time = chrono::DateTime::from_timestamp(*window, 0).unwrap_or_default();
            let delays: Vec<_> = events.iter().filter_map(|event| event.delay).collect();
            let or_null = |value: Option<i64>| value.map_or_else(|| "\\N".to_owned(), |value| value.to_string());
            [
                time.format("%Y-%m-%d %H:%M:%S").to_string(),
                carrier.unwrap_or("\\N").to_owned(),
                events.len().to_string(),
                or_null((!delays.is_empty()).then(|| delays.iter().sum())),
                or_null(delays.iter().max().copied()),
            ]
            .join("\t")
        };
        let mut lines: Vec<_> = cells.iter().map(line).collect();
        lines.sort();
        lines
    }
}

fn plan_columns(dataset: &Dataset) -> usize {
    shared_schemas::plan::event_schema(dataset).fields().len()
}

/// A decoded batch as the plan wants it: without what only the archive keeps, and with a start.
fn with_start(batch: &RecordBatch, start: u64, columns: usize) -> anyhow::Result<RecordBatch> {
    let kept: Vec<_> = (0..columns).collect();
    let batch = batch.project(&kept)?;
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Field::new(START_COLUMN, DataType::UInt64, false).into());
    let mut arrays = batch.columns().to_vec();
    let starts: ArrayRef = std::sync::Arc::new(UInt64Array::from(vec![start; batch.num_rows()]));
    arrays.push(starts);
    Ok(RecordBatch::try_new(std::sync::Arc::new(Schema::new(fields)), arrays)?)
}

/// Watches without a word.
pub(super) struct Quiet;

impl Watcher for Quiet {
    fn step(&self, _: &str, _: &Step) {}
}

/// All files below a folder.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
