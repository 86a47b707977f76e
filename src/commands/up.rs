//! `highwater up`: everything on one machine, until Ctrl-C.
//!
//! Decides nothing itself: the local stack starts and ends the servers, this makes topics and tables in them, tells the
//! addresses and waits. Exit 0 when it was told to end, 1 when something could not start or ended by itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use local_stack::clickhouse::{Access, execute};
use local_stack::{Addresses, Stack, StackOptions};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use shared_schemas::store;

use super::output::Output;
use super::signals::Signals;
use super::topics;

/// Start Kafka and ClickHouse on this machine, make the topics and tables, and wait for Ctrl-C
///
/// A server is started only where its configured address is on loopback and nothing listens there; port 0 picks a free
/// port, the same at the next start if it is still free. When all is ready the addresses are printed and written to
/// DIR/addresses.json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater up\n  \
    highwater up --data /var/lib/highwater\n  \
    highwater up --fresh --config deploy/examples/flights/highwater.toml")]
pub(crate) struct Up {
    /// The folder that keeps everything; made where there is none
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Begin without the data of earlier starts: it is removed
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    output: Output,
}

impl Up {
    /// Runs until a signal, or until a server ends by itself.
    pub(crate) fn run(self, config: Option<&Path>) -> anyhow::Result<ExitCode> {
        let (config, definitions) = super::load(config)?;
        tokio::runtime::Runtime::new()?.block_on(self.until_ended(&config, &definitions))
    }

    async fn until_ended(self, config: &Config, definitions: &Definitions) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen()?;
        let stack = tokio::select! {
            started = self.start(config, definitions) => started?,
            name = signals.next() => {
                tracing::info!("{name}: ended before everything was ready");
                return Ok(ExitCode::SUCCESS);
            }
        };
        let ended = tokio::select! {
            error = stack.failed() => Err(error),
            name = signals.next() => {
                tracing::info!("{name}: stopping, once more to hurry");
                Ok(())
            }
        };
        let hurry = async {
            signals.next().await;
        };
        stack.stop(hurry).await;
        ended?;
        Ok(ExitCode::SUCCESS)
    }

    async fn start(&self, config: &Config, definitions: &Definitions) -> anyhow::Result<Stack> {
        let options = StackOptions {
            folder: self.data.clone(),
            fresh: self.fresh,
            brokers: config.kafka.bootstrap_servers(),
            kafka_properties: topics::properties(config),
            clickhouse_url: config.clickhouse.url.to_string(),
            access: Access {
                user: config.clickhouse.user.clone(),
                password: config.clickhouse.password.reveal().to_owned(),
            },
        };
        tracing::info!("starting in {}", self.data.display());
        let stack = Stack::start(&options).await?;
        let addresses = stack.addresses();
        topics::ensure(&addresses.kafka, config, definitions).await?;
        make_tables(addresses, &options.access, config, definitions).await?;
        stack.publish()?;
        self.print(addresses)?;
        tracing::info!("ready, Ctrl-C ends it");
        Ok(stack)
    }

    fn print(&self, addresses: &Addresses) -> anyhow::Result<()> {
        self.output.print(addresses, |addresses| {
            vec![
                vec!["kafka".to_owned(), addresses.kafka.clone()],
                vec!["clickhouse".to_owned(), addresses.clickhouse.clone()],
            ]
        })
    }
}

/// Every statement leaves alone what is there already.
async fn make_tables(
    addresses: &Addresses,
    access: &Access,
    config: &Config,
    definitions: &Definitions,
) -> anyhow::Result<()> {
    let database = &config.clickhouse.database;
    let tables = store::control_tables()
        .into_iter()
        .chain(definitions.views.iter().flat_map(store::view_tables));
    let statements =
        std::iter::once(store::tables::create_database(database)).chain(tables.map(|table| table.create(database)));
    for statement in statements {
        execute(&addresses.clickhouse, access, &statement).await?;
    }
    Ok(())
}
