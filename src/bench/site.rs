//! Where it is measured: a Kafka and a ClickHouse of the bench's own, and for each trial a database of its own.
//!
//! Servers and processes are children that end with the bench, however it ends. Without a folder of the user's all data
//! goes with it too.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use local_stack::{Stack, StackOptions};
use serde_json::Value;
use shared_connections::log::Kafka;
use shared_connections::store::Store;
use shared_schemas::config::{Config, Reading};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{ChunkSize, Floor, Mark, Offset};
use shared_schemas::store::quote;
use shared_schemas::store::tables::{create_database, speed_table_name};
use shared_schemas::store::{Merging, Statement};
use tempfile::TempDir;

use super::events::{self, A_SECOND, COUNT, Further};
use super::process::Highwater;
use super::topic::Topic;

/// The views' grain, in seconds.
const MINUTE: u64 = 60;

/// Kafka and ClickHouse, ready.
#[derive(Debug)]
pub(crate) struct Site {
    // Dropped in this order: the servers end before their data goes.
    stack: Stack,
    kafka: Kafka,
    trials: Cell<u32>,
    #[expect(dead_code, reason = "removed when dropped")]
    temporary: Option<TempDir>,
}

impl Site {
    /// In that folder, whose topics are used again; without one, in one that is removed.
    pub(crate) async fn start(data: Option<&Path>) -> anyhow::Result<Self> {
        let (folder, temporary) = match data {
            Some(data) => (data.to_owned(), None),
            None => {
                let temporary = TempDir::with_prefix("highwater-bench-").context("no temporary folder can be made")?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        tracing::info!("starting Kafka and ClickHouse in {}", folder.display());
        let mut options = StackOptions::on_free_ports(folder);
        // Kafka's own default: workers that start together share the partitions from the beginning, and none of them
        // begins with what another one takes over at once.
        let together = ("group.initial.rebalance.delay.ms".to_owned(), "3000".to_owned());
        options.broker.settings.push(together);
        let stack = Stack::start(&options).await?;
        let config = format!(
            "[kafka]\nbrokers = \"{}\"\ngroup = \"bench\"\n",
            stack.addresses().kafka
        );
        let Reading { config, mistakes } = Config::parse(&config, "highwater.toml", stack.folder(), &|_| None);
        ensure!(mistakes.is_empty(), "{mistakes}");
        Ok(Self {
            kafka: Kafka::new(&config.kafka)?,
            stack,
            trials: Cell::new(0),
            temporary,
        })
    }

    /// Kafka, as the platform reaches it.
    pub(crate) fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// The data folder.
    pub(crate) fn folder(&self) -> &Path {
        self.stack.folder()
    }

    /// Kafka's address.
    pub(crate) fn brokers(&self) -> &str {
        &self.stack.addresses().kafka
    }

    /// The process of Kafka and that of ClickHouse, by name.
    pub(crate) fn servers(&self) -> anyhow::Result<[(&'static str, u32); 2]> {
        let kafka = self.stack.kafka().context("Kafka is not our child")?;
        let clickhouse = self.stack.clickhouse().context("ClickHouse is not our child")?;
        Ok([
            ("Kafka", kafka.process().pid()),
            ("ClickHouse", clickhouse.process().pid()),
        ])
    }

    /// Comes when a server ends by itself.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        self.stack.failed().await.into()
    }

    /// Ends the servers in order.
    pub(crate) async fn stop(self) {
        self.stack.stop(std::future::pending()).await;
    }

    /// A database, a consumer group and a configuration of their own, for a topic.
    /// `further`: measures beside the usual ones.
    pub(crate) fn trial(&self, topic: &Topic, further: &[Further]) -> anyhow::Result<Trial> {
        let number = self.trials.get() + 1;
        self.trials.set(number);
        // What an earlier bench in this folder left behind must not be counted to this one.
        let name = format!("bench_{:08x}_{number}", fastrand::u32(..));
        let folder = self.folder().join("bench").join(&name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let config = format!(
            "definitions = \"definitions.toml\"\n[kafka]\nbrokers = \"{}\"\ngroup = \"{name}\"\n[clickhouse]\nurl = \
             \"{}\"\ndatabase = \"{name}\"\n[serve]\nlisten = \"127.0.0.1:0\"\n",
            self.brokers(),
            self.stack.addresses().clickhouse,
        );
        let path = folder.join("highwater.toml");
        let definitions = events::definitions_with(&topic.name, topic.partitions, further);
        for (path, text) in [(&path, config), (&folder.join("definitions.toml"), definitions)] {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let config = Config::load(Some(&path))?;
        let definitions = Definitions::load(&config.definitions)?;
        Ok(Trial {
            store: Store::new(&config.clickhouse),
            definitions,
            topic: topic.clone(),
            path,
            folder,
        })
    }
}

/// One run of the platform over one topic.
#[derive(Debug)]
pub(crate) struct Trial {
    store: Store,
    definitions: Definitions,
    pub(crate) topic: Topic,
    path: PathBuf,
    folder: PathBuf,
}

impl Trial {
    /// Makes the tables before the clock runs.
    pub(crate) async fn begin(&self) -> anyhow::Result<()> {
        self.store
            .execute("create its database", &create_database(self.store.database()))
            .await?;
        Ok(self.store.create_tables(&self.definitions).await?)
    }

    /// Starts a worker of the speed layer.
    pub(crate) fn speed(&self, number: u32) -> anyhow::Result<Highwater> {
        self.highwater("the speed layer", &format!("speed-{number}"), &["speed"])
    }

    /// Starts the query API.
    pub(crate) fn serve(&self) -> anyhow::Result<Highwater> {
        self.highwater("the query API", "serve", &["serve", "--output", "json"])
    }

    fn highwater(&self, name: &'static str, file: &str, arguments: &[&str]) -> anyhow::Result<Highwater> {
        let path = self.path.to_string_lossy();
        let arguments = [arguments, &["--config", &path]].concat();
        Highwater::start(name, file, &self.folder, &arguments)
    }

    /// How many events every view's progress covers: an answer that begins at the first one holds all of them.
    pub(crate) async fn visible(&self) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for view in &self.definitions.views {
            let chunk = ChunkSize::new(view.chunk)?;
            let progress = self.store.progress(view, &Floor::default()).await?;
            let covered = |one: &shared_schemas::handoff::SpeedProgress| one.coverage(Mark(Offset(0)), chunk).covered.0;
            least = least.min(progress.values().map(covered).sum());
        }
        Ok(least)
    }

    /// Rows of a plain statement.
    pub(crate) async fn ask(&self, sql: String) -> anyhow::Result<Vec<Vec<Value>>> {
        let statement = Statement {
            sql,
            parameters: Vec::new(),
            settings: Vec::new(),
        };
        self.rows(&statement).await
    }

    async fn rows(&self, statement: &Statement) -> anyhow::Result<Vec<Vec<Value>>> {
        #[derive(serde::Deserialize)]
        struct Rows {
            data: Vec<Vec<Value>>,
        }
        let answer = self.store.answer(statement, "JSONCompact").await?;
        let rows: Rows = serde_json::from_slice(&answer.body).context("ClickHouse answers no JSON")?;
        Ok(rows.data)
    }

    /// The cells of all views as they are now, of each partition and start.
    pub(crate) async fn cells(&self) -> anyhow::Result<u64> {
        let mut cells = 0;
        for view in &self.definitions.views {
            let table = quote::table(self.store.database(), &speed_table_name(view));
            let rows = self.ask(format!("SELECT count() FROM {table} FINAL")).await?;
            cells += rows.first().and_then(|row| integer(row.first()?)).unwrap_or_default();
        }
        Ok(cells)
    }

    /// How many active parts each table has now.
    pub(crate) async fn parts(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let database = quote::text(self.store.database());
        let sql =
            format!("SELECT table, count() FROM system.parts WHERE active AND database = {database} GROUP BY table");
        let rows = self.ask(sql).await?;
        let table = |row: Vec<Value>| Some((row.first()?.as_str()?.to_owned(), integer(row.get(1)?)?));
        Ok(rows.into_iter().filter_map(table).collect())
    }

    /// Fails unless the merged answer of each view has every event of the first `events` once, minute by minute.
    pub(crate) async fn check_counts(&self, events: u64) -> anyhow::Result<()> {
        let expected = minutes(events);
        let from = self.topic.first;
        let length = i64::try_from(expected.len())? * i64::try_from(MINUTE)?;
        for view in &self.definitions.views {
            let merging = Merging {
                database: self.store.database(),
                view,
                publication: None,
                from,
                to: from + length,
                bucket: Some(Duration::from_secs(MINUTE)),
                dimensions: &[],
                measures: &[COUNT],
            };
            let rows = self.rows(&merging.statement()?).await?;
            // Time first, then the measures.
            let counted: Option<Vec<u64>> = rows.iter().map(|row| integer(row.get(1)?)).collect();
            ensure!(
                counted.as_deref() == Some(&expected[..]),
                "view {} does not count each event once: by minute {counted:?}, and there are {expected:?}",
                view.name
            );
        }
        Ok(())
    }

    /// Lets go of what was counted.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let database = quote::identifier(self.store.database());
        self.store
            .execute("drop its database", &format!("DROP DATABASE {database}"))
            .await?;
        std::fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// How many of the first so many events lie in each minute of event time.
fn minutes(events: u64) -> Vec<u64> {
    let most = A_SECOND * MINUTE;
    (0..events.div_ceil(most))
        .map(|minute| most.min(events - minute * most))
        .collect()
}

/// ClickHouse's integers, quoted or not.
fn integer(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_has_what_is_left() {
        assert_eq!(minutes(7_000_000), [3_000_000, 3_000_000, 1_000_000]);
        assert_eq!(minutes(3_000_000), [3_000_000]);
        assert_eq!(minutes(0), [0; 0]);
    }
}
