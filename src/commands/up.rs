//! `highwater up`: everything on one machine, until Ctrl-C.
//!
//! Decides nothing itself: the local stack starts and ends the servers, the layers are the ones that run alone elsewhere.
//! Exit 0 when it was told to end, 1 when something could not start or ended by itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use local_stack::clickhouse::Access;
use local_stack::kafka::BrokerOptions;
use local_stack::{Addresses, Stack, StackOptions};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;

use super::output::Output;
use super::{DATA, Place, topics};
use crate::layers::Layers;
use crate::signals::Signals;

/// Start Kafka, ClickHouse and all layers on this machine, with batch runs on their schedule, and wait for Ctrl-C
///
/// A server is started only where its configured address is on loopback and nothing listens there; port 0 picks a free
/// port, the same at the next start if it is still free. When all is ready the addresses are printed and written to
/// DIR/addresses.json, where other commands find them with --data DIR.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater up\n  \
    highwater up --data /var/lib/highwater\n  \
    highwater up --fresh --config deploy/examples/flights/highwater.toml")]
pub(crate) struct Up {
    /// Begin without the data of earlier starts: it is removed
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    output: Output,
}

/// What runs, in the order in which it ends.
struct Running {
    layers: Layers,
    stack: Stack,
}

impl Up {
    /// Runs until a signal, or until something ends by itself.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.load_with_keys()?;
        let data = place.data.clone().unwrap_or_else(|| PathBuf::from(DATA));
        tokio::runtime::Runtime::new()?.block_on(self.until_ended(&data, config, &definitions))
    }

    async fn until_ended(self, data: &Path, config: Config, definitions: &Definitions) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen()?;
        let Running { mut layers, stack } = tokio::select! {
            started = self.start(data, config, definitions) => started?,
            name = signals.next() => {
                tracing::info!("{name}: ended before everything was ready");
                return Ok(ExitCode::SUCCESS);
            }
        };
        let ended = tokio::select! {
            error = stack.failed() => Err(error.into()),
            error = layers.failed() => Err(error),
            name = signals.next() => {
                tracing::info!("{name}: stopping, once more to hurry");
                Ok(())
            }
        };
        let in_order = async {
            // Layers first: what they still write needs the servers.
            layers.stop().await;
        };
        let hurried = tokio::select! {
            () = in_order => false,
            _ = signals.next() => true,
        };
        let hurry = async {
            if !hurried {
                signals.next().await;
            }
        };
        stack.stop(hurry).await;
        ended.map(|()| ExitCode::SUCCESS)
    }

    async fn start(&self, data: &Path, config: Config, definitions: &Definitions) -> anyhow::Result<Running> {
        let options = StackOptions {
            folder: data.to_owned(),
            fresh: self.fresh,
            brokers: config.kafka.bootstrap_servers(),
            kafka_properties: topics::properties(&config),
            broker: BrokerOptions::default(),
            clickhouse_url: config.clickhouse.url.to_string(),
            access: Access {
                user: config.clickhouse.user.clone(),
                password: config.clickhouse.password.reveal().to_owned(),
            },
        };
        tracing::info!("starting in {}", data.display());
        let stack = Stack::start(&options).await?;
        let servers = stack.addresses();
        let mut config = config
            .at(&servers.kafka, &servers.clickhouse, stack.folder())
            .map_err(anyhow::Error::msg)?;
        // One that was killed takes its partitions up again at once, not when Kafka takes it for dead.
        config
            .speed
            .instance
            .get_or_insert_with(|| instance(&host(), stack.folder()));
        topics::ensure(&servers.kafka, &config, definitions).await?;
        let layers = Layers::start(&config, definitions).await?;
        let addresses = Addresses {
            api: layers.api.clone(),
            metrics: layers.metrics.clone(),
            ..servers.clone()
        };
        stack.publish(&addresses)?;
        self.print(&addresses)?;
        tracing::info!("ready, Ctrl-C ends it");
        Ok(Running { layers, stack })
    }

    fn print(&self, addresses: &Addresses) -> anyhow::Result<()> {
        self.output.print(addresses, |addresses| {
            let row = |name: &str, address: &String| vec![name.to_owned(), address.clone()];
            let servers = [row("kafka", &addresses.kafka), row("clickhouse", &addresses.clickhouse)];
            let api = addresses.api.iter().map(|api| row("api", api));
            let metrics = addresses.metrics.values().map(|address| row("metrics", address));
            servers.into_iter().chain(api).chain(metrics).collect()
        })
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// A name that an `up` on this folder has and no other.
fn instance(host: &str, folder: &Path) -> String {
    let name = format!("up.{}{}", host.trim(), folder.display());
    let legal = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '.' });
    let legal: String = legal.collect();
    // Kafka's names are bounded, and the ends of paths differ.
    legal[legal.len().saturating_sub(100)..].to_owned()
}
