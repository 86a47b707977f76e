//! One Kafka broker: KRaft, a single node that is its own controller, in a JVM child process.
//!
//! The broker runs with `DIR/kafka` as its working folder and relative paths, so that no path of the user's has to pass
//! through Java's properties or a C locale. The data folder is formatted once and moved into place by a rename: a
//! format that was cut short leaves nothing that looks formatted.
//!
//! Ready means: the port's listening socket is our child's own, and it answers a metadata request.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::StackError;
use crate::address::Loopback;
use crate::folder::Folder;
use crate::process::{Launch, Process};
use crate::{fetch, sockets};
use classes::Classes;
use java::Java;

mod classes;
pub mod client;
mod java;
mod settings;

/// For messages.
pub(crate) const NAME: &str = "Kafka";
/// Longest start that is waited for; 1.5 to 3 s are usual, more where a log must be recovered or the machine is busy.
const START: Duration = Duration::from_secs(90);
/// Formatting is one short JVM run.
const FORMAT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(25);
/// Starts again when another process took a free port between choosing it and the broker's bind.
const TRIES: usize = 3;

/// What a broker is to have beside the usual: tests lead clients through proxies, and shorten what they wait for.
#[derive(Debug, Clone, Default)]
pub struct BrokerOptions {
    /// Names of further listeners, in capitals, each with the address that its clients are told instead of its own.
    pub listeners: Vec<(String, String)>,
    /// Further settings. They replace ours of the same name.
    pub settings: Vec<(String, String)>,
}

/// A further listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name, in capitals.
    pub name: String,
    /// Where it listens.
    pub address: Loopback,
    /// Where it says that it listens.
    pub advertised: String,
}

/// A broker that runs as our child.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    address: Loopback,
    listeners: Vec<Listener>,
}

impl Kafka {
    /// Starts a broker on the folder's data and waits until it answers. Port 0 takes the last start's port, or any.
    /// Ports of further listeners are free ones, others at each start.
    pub async fn start(folder: &Folder, wanted: Loopback, options: &BrokerOptions) -> Result<Self, StackError> {
        let java = java::find().await?;
        let classes = Classes::of(fetch::kafka_jars().await?, &java, wanted).await;
        Self::start_with(folder, wanted, options, &java, &classes).await
    }

    async fn start_with(
        folder: &Folder,
        wanted: Loopback,
        options: &BrokerOptions,
        java: &Java,
        classes: &Classes,
    ) -> Result<Self, StackError> {
        let home = folder.inside("kafka")?;
        for attempt in 1.. {
            let (broker, controller) = ports(folder, wanted)?;
            let listeners = further_listeners(wanted, options, &[broker, controller])?;
            settings::write(&home, broker, controller, &listeners, &options.settings)?;
            let kafka = Self::launch(folder, &home, java, classes, (broker, controller), listeners).await;
            match kafka {
                Err(StackError::Died { last, .. }) if last.contains("Address already in use") && attempt < TRIES => {
                    tracing::debug!(%broker, %controller, "the ports were taken meanwhile, trying others");
                    folder.remember(|remembered| remembered.kafka_controller = None)?;
                }
                started => return started,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn launch(
        folder: &Folder,
        home: &Path,
        java: &Java,
        classes: &Classes,
        (broker, controller): (Loopback, Loopback),
        listeners: Vec<Listener>,
    ) -> Result<Self, StackError> {
        let console = home.join("console.log");
        let _ = fs::remove_file(&console);
        if !home.join(settings::DATA).join("meta.properties").exists() {
            format(home, java, classes, &console).await?;
        }
        let mut command = java.command(home);
        classes.give_and_keep(&mut command);
        command.args(["-Xmx512m", "-Xms64m", "-Dlog4j2.configurationFile=log4j2.properties"]);
        command.args(["kafka.Kafka", settings::FILE]);
        let record = Some(folder.record("kafka")?);
        let details = Some(home.join("server.log"));
        let process = Process::start(Launch {
            name: NAME,
            command,
            log: console,
            output: None,
            details,
            record,
        })?;
        let kafka = Self {
            process,
            address: broker,
            listeners,
        };
        kafka.ready().await?;
        folder.remember(|remembered| {
            remembered.kafka = Some(broker.port());
            remembered.kafka_controller = Some(controller.port());
        })?;
        Ok(kafka)
    }

    async fn ready(&self) -> Result<(), StackError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.ended() {
                return Err(self.process.died(status));
            }
            if sockets::listens(self.process.pid(), self.address) && client::answers(&self.brokers(), &[]).await.is_ok()
            {
                return Ok(());
            }
            if started.elapsed() > START {
                return Err(self.process.not_ready(started.elapsed()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its address, as clients want it.
    pub fn brokers(&self) -> String {
        self.address.to_string()
    }

    /// The further listeners, in the order of [`BrokerOptions::listeners`].
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The process it runs in.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Gives the process up, to be ended.
    pub fn into_process(self) -> Process {
        self.process
    }
}

/// Free ports for broker and controller: the last start's where they are still free.
fn ports(folder: &Folder, wanted: Loopback) -> Result<(Loopback, Loopback), StackError> {
    let any = wanted.with_port(0);
    let remembered = folder.remembered();
    let failed = StackError::file("bind", Path::new("a port on loopback"));
    let taken = || StackError::Busy {
        address: wanted.to_string(),
        owner: "another process".to_owned(),
        expected: NAME,
        setting: crate::address::BROKERS,
    };
    let pick = || -> std::io::Result<Option<(Loopback, Loopback)>> {
        let Some(broker) = wanted.free(remembered.kafka)? else {
            return Ok(None);
        };
        loop {
            match any.free(remembered.kafka_controller.filter(|port| *port != broker.port()))? {
                Some(controller) if controller != broker => return Ok(Some((broker, controller))),
                _ => {}
            }
        }
    };
    pick().map_err(failed)?.ok_or_else(taken)
}

/// A free port for each further listener.
fn further_listeners(
    wanted: Loopback,
    options: &BrokerOptions,
    taken: &[Loopback],
) -> Result<Vec<Listener>, StackError> {
    let mut listeners: Vec<Listener> = Vec::with_capacity(options.listeners.len());
    for (name, advertised) in &options.listeners {
        let address = loop {
            let free = wanted.with_port(0).free(None);
            let free = free.map_err(StackError::file("bind", Path::new("a port on loopback")))?;
            match free {
                Some(free) if !taken.contains(&free) && listeners.iter().all(|other| other.address != free) => {
                    break free;
                }
                _ => {}
            }
        };
        listeners.push(Listener {
            name: name.clone(),
            address,
            advertised: advertised.clone(),
        });
    }
    Ok(listeners)
}

/// Makes the data folder, with a cluster id of its own, that every later start finds.
async fn format(home: &Path, java: &Java, classes: &Classes, log: &Path) -> Result<(), StackError> {
    let (fresh, data) = (home.join(settings::FORMATTING), home.join(settings::DATA));
    for half_done in [&fresh, &data] {
        if half_done.exists() {
            fs::remove_dir_all(half_done).map_err(StackError::file("remove", half_done))?;
        }
    }
    let mut command = java.command(home);
    classes.give(&mut command);
    command.args(["kafka.tools.StorageTool", "format", "--config", settings::FORMAT_FILE]);
    command.args(["--cluster-id", &settings::new_cluster_id()?]);
    let name = "formatting Kafka's data folder";
    let launch = Launch {
        name,
        command,
        log: log.to_owned(),
        output: None,
        details: None,
        record: None,
    };
    let process = Process::start(launch)?;
    match tokio::time::timeout(FORMAT, process.wait()).await {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(process.died(status)),
        Err(_) => return Err(process.not_ready(FORMAT)),
    }
    fs::rename(&fresh, &data).map_err(StackError::file("rename", &fresh))
}
