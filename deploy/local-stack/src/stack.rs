//! Kafka and ClickHouse together: started where they are missing, used where they are there, ended in order.
//!
//! What is decided for each of the two:
//!
//! | configured address | something listens there | then |
//! |---|---|---|
//! | not on loopback, or several brokers | - | used, if it answers |
//! | loopback, a port | no | started |
//! | loopback, a port | yes, and answers as it should | used |
//! | loopback, a port | yes, something else | refused, with the name of who listens |
//! | loopback, port 0 | - | started, on the last start's port if that is free |
//!
//! A server of ours that ends by itself ends the stack: starting it again in silence would hide the reason, and the next
//! `up` finds all data in its place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::StackError;
use crate::address::{self, BROKERS, CLICKHOUSE_URL, Loopback, Place};
use crate::clickhouse::{self, Access, ClickHouse};
use crate::folder::{ADDRESSES, Folder};
use crate::kafka::{self, BrokerOptions, Kafka, client};
use crate::process::{Process, record};
use crate::sockets;

/// How long each server may take to end in order.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to start, and where.
#[derive(Clone)]
pub struct StackOptions {
    /// The data folder.
    pub folder: PathBuf,
    /// Begin without the data of earlier starts.
    pub fresh: bool,
    /// `kafka.brokers`.
    pub brokers: String,
    /// `kafka.properties`, for the questions asked of a cluster that is used as it is.
    pub kafka_properties: Vec<(String, String)>,
    /// What a broker that is started is to have beside the usual.
    pub broker: BrokerOptions,
    /// `clickhouse.url`.
    pub clickhouse_url: String,
    /// `clickhouse.user` and `clickhouse.password`.
    pub access: Access,
}

impl StackOptions {
    /// Both servers on free ports of 127.0.0.1, no password.
    pub fn on_free_ports(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            fresh: false,
            brokers: "127.0.0.1:0".to_owned(),
            kafka_properties: Vec::new(),
            broker: BrokerOptions::default(),
            clickhouse_url: "http://127.0.0.1:0".to_owned(),
            access: Access::default(),
        }
    }
}

impl fmt::Debug for StackOptions {
    /// Without Kafka's properties: they may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackOptions")
            .field("folder", &self.folder)
            .field("fresh", &self.fresh)
            .field("brokers", &self.brokers)
            .field("broker", &self.broker)
            .field("clickhouse_url", &self.clickhouse_url)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// Where everything is; the file `addresses.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Kafka's brokers, as clients want them.
    pub kafka: String,
    /// ClickHouse's URL.
    pub clickhouse: String,
    /// The query API's URL, once something serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// Where processes tell their metrics, by layer.
    #[serde(default)]
    pub metrics: BTreeMap<String, String>,
}

impl Addresses {
    /// The addresses that an `up` on this folder has written, while it runs.
    pub fn read(folder: &std::path::Path) -> Result<Self, StackError> {
        let path = folder.join(ADDRESSES);
        let text = std::fs::read(&path).map_err(StackError::file("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| StackError::file("read", &path)(error.into()))
    }
}

/// Both servers, ready. Dropping it kills what it started.
#[derive(Debug)]
pub struct Stack {
    // In this order when dropped: the lock on the folder goes last, after the servers.
    clickhouse: Option<ClickHouse>,
    kafka: Option<Kafka>,
    addresses: Addresses,
    folder: Folder,
}

impl Stack {
    /// Takes the folder, ends what a killed start left behind, starts what is missing and waits until both answer.
    pub async fn start(options: &StackOptions) -> Result<Self, StackError> {
        let (brokers, url) = (
            address::brokers(&options.brokers)?,
            address::clickhouse(&options.clickhouse_url)?,
        );
        let folder = Folder::take(&options.folder)?;
        for name in ["clickhouse", "kafka"] {
            record::end_leftover(&folder.record(name)?).await?;
        }
        if options.fresh {
            folder.clear()?;
        }
        folder.check_layout()?;
        folder.remember(|_| {})?;

        let kafka = async {
            match kafka_wanted(&brokers, options).await? {
                Some(here) => Ok(Some(Kafka::start(&folder, here, &options.broker).await?)),
                None => Ok::<_, StackError>(None),
            }
        };
        let clickhouse = async {
            match clickhouse_wanted(&url, options).await? {
                Some(here) => Ok(Some(ClickHouse::start(&folder, here, &options.access).await?)),
                None => Ok::<_, StackError>(None),
            }
        };
        let (kafka, clickhouse) = tokio::try_join!(kafka, clickhouse)?;
        let addresses = Addresses {
            kafka: kafka.as_ref().map_or_else(|| options.brokers.clone(), Kafka::brokers),
            clickhouse: clickhouse
                .as_ref()
                .map_or_else(|| options.clickhouse_url.clone(), ClickHouse::url),
            api: None,
            metrics: BTreeMap::new(),
        };
        Ok(Self {
            clickhouse,
            kafka,
            addresses,
            folder,
        })
    }

    /// Where the servers are.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The data folder, from the root.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Writes `addresses.json`, with what else serves here: from now on scripts may come.
    pub fn publish(&self, addresses: &Addresses) -> Result<(), StackError> {
        let text = serde_json::to_vec_pretty(addresses)
            .map_err(|error| StackError::file("write", self.folder.path())(error.into()))?;
        self.folder.publish_addresses(&text)
    }

    /// The broker, if it runs as our child.
    pub fn kafka(&self) -> Option<&Kafka> {
        self.kafka.as_ref()
    }

    /// ClickHouse, if it runs as our child.
    pub fn clickhouse(&self) -> Option<&ClickHouse> {
        self.clickhouse.as_ref()
    }

    /// Waits until one of our servers ends by itself; for ever where none does.
    pub async fn failed(&self) -> StackError {
        let ended = async |process: Option<&Process>| match process {
            Some(process) => process.died(process.wait().await),
            None => std::future::pending().await,
        };
        tokio::select! {
            error = ended(self.kafka().map(Kafka::process)) => error,
            error = ended(self.clickhouse().map(ClickHouse::process)) => error,
        }
    }

    /// Ends our servers in order, both at once; when `hurry` comes first, kills them. The folder is free afterwards.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        if let Err(error) = self.folder.forget_addresses() {
            tracing::warn!(%error, "the addresses stay behind");
        }
        let processes = [
            self.clickhouse.take().map(ClickHouse::into_process),
            self.kafka.take().map(Kafka::into_process),
        ];
        let [clickhouse, kafka] = processes.map(|process| async {
            if let Some(process) = process {
                let name = process.name();
                if process.stop(PATIENCE).await {
                    tracing::info!("{name} has ended");
                } else {
                    tracing::warn!("{name} did not end within {} s and was killed", PATIENCE.as_secs());
                }
            }
        });
        tokio::select! {
            _ = async { tokio::join!(clickhouse, kafka) } => {}
            () = hurry => tracing::warn!("killing what still runs"),
        }
    }
}

/// Where a broker is to be started, if it is.
async fn kafka_wanted(place: &Place, options: &StackOptions) -> Result<Option<Loopback>, StackError> {
    match *place {
        Place::Here(here) if here.port() == 0 || !here.is_listened_to() => Ok(Some(here)),
        Place::Here(here) => match client::answers(&options.brokers, &options.kafka_properties).await {
            Ok(_) => {
                tracing::info!("using the Kafka that runs at {here}");
                Ok(None)
            }
            Err(_) => Err(busy(here, kafka::NAME, BROKERS)),
        },
        Place::Elsewhere => match client::answers(&options.brokers, &options.kafka_properties).await {
            Ok(_) => Ok(None),
            Err(error) => Err(StackError::NoAnswer {
                expected: kafka::NAME,
                address: options.brokers.clone(),
                why: error.to_string(),
                setting: BROKERS,
            }),
        },
    }
}

/// Where ClickHouse is to be started, if it is.
async fn clickhouse_wanted(place: &Place, options: &StackOptions) -> Result<Option<Loopback>, StackError> {
    match *place {
        Place::Here(here) if here.port() == 0 || !here.is_listened_to() => Ok(Some(here)),
        Place::Here(here) => match clickhouse::answers(&options.clickhouse_url).await {
            Ok(()) => {
                tracing::info!("using the ClickHouse that runs at {here}");
                Ok(None)
            }
            Err(_) => Err(busy(here, clickhouse::NAME, CLICKHOUSE_URL)),
        },
        Place::Elsewhere => match clickhouse::answers(&options.clickhouse_url).await {
            Ok(()) => Ok(None),
            Err(why) => Err(StackError::NoAnswer {
                expected: clickhouse::NAME,
                address: options.clickhouse_url.clone(),
                why,
                setting: CLICKHOUSE_URL,
            }),
        },
    }
}

fn busy(here: Loopback, expected: &'static str, setting: &'static str) -> StackError {
    let owner = match sockets::listener(here.port()) {
        Some(pid) => format!(
            "pid {pid} ({})",
            sockets::name(pid).unwrap_or_else(|| "of unknown name".to_owned())
        ),
        None => "another process".to_owned(),
    };
    StackError::Busy {
        address: here.to_string(),
        owner,
        expected,
        setting,
    }
}
