//! The configuration: where Kafka, ClickHouse and the archive are, and how much each layer may use.
//!
//! One typed struct, read once and passed by value. Every key is optional; the defaults stand in one shipped file,
//! [`DEFAULTS`], read by the same code as the user's.

mod address;
mod archive_url;
mod reading;
mod schedule;
mod secret;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::{HostPort, HttpUrl};
pub use archive_url::{ArchiveUrl, StoreKind};
pub use schedule::Schedule;
pub use secret::Secret;

use crate::mistake::{Mistake, Mistakes};
use crate::section::TomlFile;

/// Every key with its default, as a commented configuration file.
pub const DEFAULTS: &str = include_str!("config/defaults.toml");

/// The configuration's name where no other is given.
pub const FILE_NAME: &str = "highwater.toml";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file or folder of definitions.
    pub definitions: PathBuf,
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How to reach ClickHouse.
    pub clickhouse: ClickHouseConfig,
    /// The speed layer.
    pub speed: SpeedConfig,
    /// The archive.
    pub archive: ArchiveConfig,
    /// The batch layer.
    pub batch: BatchConfig,
    /// The serving layer.
    pub serve: ServeConfig,
    /// Metrics of each process but `serve`.
    pub metrics: MetricsConfig,
}

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaConfig {
    /// The brokers to begin with; at least one.
    pub brokers: Vec<HostPort>,
    /// What the consumer groups' names begin with.
    pub group: String,
    /// Further librdkafka properties.
    pub properties: BTreeMap<String, Secret>,
}

impl KafkaConfig {
    /// The brokers as librdkafka's `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> String {
        self.brokers
            .iter()
            .map(HostPort::to_string)
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// How to reach ClickHouse.
#[derive(Debug, Clone, PartialEq)]
pub struct ClickHouseConfig {
    /// Its HTTP interface.
    pub url: HttpUrl,
    /// The database of all of Highwater's tables.
    pub database: String,
    /// The user.
    pub user: String,
    /// The user's password, empty for none.
    pub password: Secret,
}

/// The speed layer.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeedConfig {
    /// How often aggregates are written.
    pub flush: Duration,
    /// A partition without records for so long counts as idle.
    pub idle_after: Duration,
    /// Bytes for open cells and batches, over all datasets of a process.
    pub memory: u64,
    /// What this worker is called in the consumer group, where it keeps its partitions over a restart.
    pub instance: Option<String>,
    /// A larger share of refused records than this raises an alarm; above 0, at most 1.
    pub invalid_alarm: f64,
}

/// The archive.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveConfig {
    /// Where it is.
    pub url: ArchiveUrl,
    /// Whether the configuration names it. Where it does not, `up --data DIR` takes `DIR/archive`.
    pub url_is_default: bool,
    /// Options of the object store, by their names; they go before its environment variables.
    pub options: BTreeMap<String, Secret>,
    /// How often files are committed.
    pub commit_every: Duration,
    /// About how many bytes a file has that is made of small ones.
    pub target_file: u64,
    /// When the archiver makes small files into large ones.
    pub optimize: Schedule,
    /// How long files are kept that no newer version names.
    pub keep_removed: Duration,
}

impl ArchiveConfig {
    /// One in a folder; all else is as by default.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let defaults = Config::parse("", FILE_NAME, Path::new(""), &|_| None);
        Self {
            url: ArchiveUrl::Folder(folder.into()),
            url_is_default: false,
            ..defaults.config.archive
        }
    }
}

/// The batch layer.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchConfig {
    /// When `batch schedule` runs.
    pub schedule: Schedule,
    /// How long a run waits for the speed layer at its cuts.
    pub cut_wait: Duration,
    /// Bytes for one run.
    pub memory: u64,
    /// Where a run makes its folder for what exceeds the memory; `None`: in the system's folder for temporary files.
    pub spill: Option<PathBuf>,
    /// So many bytes may be there at once.
    pub spill_limit: u64,
    /// A larger change of a total than this share is not published without being accepted.
    pub max_change: f64,
    /// How many publications can be restored, at least 2.
    pub keep_publications: u32,
    /// Whether each run is followed by a reconciliation.
    pub reconcile: bool,
    /// How long collection waits between raising a floor and deleting what lies below.
    pub gc_wait: Duration,
}

/// The serving layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// Where the query API listens.
    pub listen: SocketAddr,
}

/// Metrics of each process but `serve`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsConfig {
    /// Where they are served.
    pub listen: SocketAddr,
}

/// What a reading of the configuration came to: as much as could be understood, and all that could not.
#[derive(Debug)]
pub struct Reading {
    /// The configuration; a default stands for each value with a mistake.
    pub config: Config,
    /// The mistakes.
    pub mistakes: Mistakes,
}

impl Config {
    /// Reads the configuration from `file`; without one, from [`FILE_NAME`] in the working folder if that exists, else
    /// all is default.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(file: Option<&Path>) -> Result<Self, Mistakes> {
        let Reading { config, mistakes } = Self::read(file);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// As [`Config::load`], but mistakes don't keep one from seeing what else the file says.
    pub fn read(file: Option<&Path>) -> Reading {
        let variables = |name: &str| std::env::var(name).ok();
        let file = match file {
            None if !Path::new(FILE_NAME).exists() => return Self::parse("", FILE_NAME, Path::new(""), &variables),
            None => Path::new(FILE_NAME),
            Some(file) => file,
        };
        let name = file.display().to_string();
        let folder = file.parent().unwrap_or(Path::new(""));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, &name, folder, &variables),
            Err(error) => {
                let Reading { config, mut mistakes } = Self::parse("", &name, folder, &variables);
                let what = format!("can't be read: {error}");
                let instead = Some("name another with `--config FILE`, or leave it out for the defaults".to_owned());
                mistakes.add(Mistake {
                    file: name,
                    place: None,
                    what,
                    instead,
                });
                Reading { config, mistakes }
            }
        }
    }

    /// Reads a configuration from its text. Relative paths are taken from `folder`, environment variables from
    /// `variables`.
    pub fn parse(text: &str, name: &str, folder: &Path, variables: &dyn Fn(&str) -> Option<String>) -> Reading {
        let shipped = TomlFile {
            name: "defaults.toml".to_owned(),
            text: DEFAULTS.to_owned(),
            secretive: true,
        };
        let given = TomlFile {
            name: name.to_owned(),
            text: text.to_owned(),
            secretive: true,
        };
        let base = Self::blank();
        let (mut base, mut mistakes) = reading::read(&shipped, folder, variables, base);
        base.archive.url_is_default = true;
        let (config, more) = reading::read(&given, folder, variables, base);
        mistakes.extend(more);
        mistakes.sort();
        Reading { config, mistakes }
    }

    /// The same with these addresses of Kafka and ClickHouse and this folder of `up`: what a command needs that joins what
    /// `highwater up` has started. Its archive is the folder's, unless the configuration names one.
    ///
    /// # Errors
    /// A sentence, for an address that is none.
    pub fn at(mut self, brokers: &str, clickhouse: &str, data: &Path) -> Result<Self, String> {
        self.kafka.brokers = brokers
            .split(',')
            .map(|broker| HostPort::parse(broker.trim()))
            .collect::<Result<_, _>>()?;
        self.clickhouse.url = HttpUrl::parse(clickhouse)?;
        if self.archive.url_is_default {
            self.archive.url = ArchiveUrl::Folder(data.join("archive"));
        }
        Ok(self)
    }

    /// What the defaults are laid over; no value of it outlives that.
    fn blank() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            definitions: PathBuf::new(),
            kafka: KafkaConfig {
                brokers: Vec::new(),
                group: String::new(),
                properties: BTreeMap::new(),
            },
            clickhouse: ClickHouseConfig {
                url: HttpUrl::local(0),
                database: String::new(),
                user: String::new(),
                password: Secret::default(),
            },
            speed: SpeedConfig {
                flush: Duration::ZERO,
                idle_after: Duration::ZERO,
                memory: 0,
                instance: None,
                invalid_alarm: 1.0,
            },
            archive: ArchiveConfig {
                url: ArchiveUrl::Folder(PathBuf::new()),
                url_is_default: true,
                options: BTreeMap::new(),
                commit_every: Duration::ZERO,
                target_file: 0,
                optimize: Schedule::default(),
                keep_removed: Duration::ZERO,
            },
            batch: BatchConfig {
                schedule: Schedule::default(),
                cut_wait: Duration::ZERO,
                memory: 0,
                spill: None,
                spill_limit: 0,
                max_change: 1.0,
                keep_publications: 0,
                reconcile: false,
                gc_wait: Duration::ZERO,
            },
            serve: ServeConfig { listen: nowhere },
            metrics: MetricsConfig { listen: nowhere },
        }
    }
}

#[cfg(test)]
mod tests;
