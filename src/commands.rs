//! The commands. Each is a struct of its arguments with a `run`; what several need stands here.

mod archive;
mod batch;
mod bench;
mod check;
mod datasets;
mod dead_letters;
mod output;
mod produce;
mod reconcile;
mod replay;
mod serve;
mod speed;
mod sql;
mod status;
mod topics;
mod up;
mod views;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use local_stack::Addresses;
use shared_schemas::config::{Config, Reading};
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::EnvironmentKeys;
use shared_schemas::definitions::Definitions;
use shared_schemas::mistake::Mistakes;

use crate::USED_WRONGLY;
use crate::logging::LogFormat;

/// Lambda-architecture analytics: exact below the mark, live above it
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "`highwater COMMAND --help` shows examples."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,

    /// How logs are written to stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

/// What the command is about.
#[derive(Debug, Clone, clap::Args)]
struct Place {
    /// The configuration; without it highwater.toml in the working folder, or the defaults
    #[arg(short, long, global = true, value_name = "FILE", env = "HIGHWATER_CONFIG")]
    config: Option<PathBuf>,

    /// The folder of `highwater up`: where it keeps everything, and where other commands find its addresses
    #[arg(long, global = true, value_name = "DIR", env = "HIGHWATER_DATA")]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Archive(archive::Archive),
    Batch(batch::Batch),
    Bench(bench::Bench),
    Check(check::Check),
    Datasets(datasets::Datasets),
    DeadLetters(dead_letters::DeadLetters),
    Produce(produce::Produce),
    Reconcile(reconcile::Reconcile),
    Replay(replay::Replay),
    Serve(serve::Serve),
    Speed(speed::Speed),
    Sql(sql::Sql),
    Status(status::Status),
    Topics(topics::Topics),
    Up(up::Up),
    Views(views::Views),
}

impl Arguments {
    /// Whether the speed layer runs in this process.
    pub(crate) fn has_the_speed_layer(&self) -> bool {
        match &self.command {
            Command::Speed(speed) => speed.runs_the_layer(),
            Command::Up(_) => true,
            _ => false,
        }
    }

    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Archive(archive) => archive.run(&self.place),
            Command::Batch(batch) => batch.run(&self.place),
            Command::Bench(bench) => bench.run(&self.place),
            Command::Check(check) => check.run(&self.place),
            Command::Datasets(datasets) => datasets.run(&self.place),
            Command::DeadLetters(letters) => letters.run(&self.place),
            Command::Produce(produce) => produce.run(&self.place),
            Command::Reconcile(reconcile) => reconcile.run(&self.place),
            Command::Replay(replay) => replay.run(&self.place),
            Command::Serve(serve) => serve.run(&self.place),
            Command::Speed(speed) => speed.run(&self.place),
            Command::Sql(sql) => sql.run(&self.place),
            Command::Status(status) => status.run(&self.place),
            Command::Topics(topics) => topics.run(&self.place),
            Command::Up(up) => up.run(&self.place),
            Command::Views(views) => views.run(&self.place),
        }
    }
}

/// What a command that removes something says without `--yes`.
const WOULD_GO: &str = "this would go, for good: add --yes to remove it\n";

/// Does something with what the store and the archive hold, once the store's tables are there.
fn on_store(
    place: &Place,
    work: impl AsyncFnOnce(&highwater_batch::Batch) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let (config, definitions) = place.join_with_keys()?;
    let batch = highwater_batch::Batch::new(config, definitions)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        crate::connect::tables(&batch.store, &batch.definitions).await?;
        work(&batch).await
    })
}

/// The folder of `up` where none is named.
const DATA: &str = "data";

impl Place {
    /// Reads the configuration and the definitions, and says which keys of mask rules are missing. A mistake in the one
    /// keeps none in the other from being found.
    fn read(&self) -> Result<(Config, Definitions, Mistakes), Mistakes> {
        let Reading { config, mut mistakes } = Config::read(self.config.as_deref());
        // Where they are may be what the mistake is about.
        if !mistakes.is_empty() && !config.definitions.exists() {
            return Err(mistakes);
        }
        match Definitions::load(&config.definitions) {
            Ok(mut definitions) if mistakes.is_empty() => {
                let missing = definitions.take_keys(&EnvironmentKeys);
                Ok((config, definitions, missing))
            }
            Ok(_) => Err(mistakes),
            Err(more) => {
                mistakes.extend(more);
                Err(mistakes)
            }
        }
    }

    /// As [`Place::read`], for a process that neither reads records nor knows views by their fingerprints.
    fn load(&self) -> Result<(Config, Definitions), Mistakes> {
        let (config, definitions, _) = self.read()?;
        Ok((config, definitions))
    }

    /// As [`Place::read`], for all others: the keys of mask rules must be there, or values would be masked otherwise, and
    /// views be looked for where they are not.
    fn load_with_keys(&self) -> Result<(Config, Definitions), Mistakes> {
        let (config, definitions, missing) = self.read()?;
        if missing.is_empty() {
            Ok((config, definitions))
        } else {
            Err(missing)
        }
    }

    /// As [`Place::load`], with the addresses of the `highwater up` that is to be joined: the one on `--data`, or the one
    /// on the usual folder where the configuration leaves a port to it.
    fn join(&self) -> anyhow::Result<(Config, Definitions)> {
        self.joined(self.load()?)
    }

    /// As [`Place::join`], where the keys of mask rules must be there.
    fn join_with_keys(&self) -> anyhow::Result<(Config, Definitions)> {
        self.joined(self.load_with_keys()?)
    }

    fn joined(&self, (config, definitions): (Config, Definitions)) -> anyhow::Result<(Config, Definitions)> {
        let picks = config.kafka.brokers.iter().any(|broker| broker.port == 0) || config.clickhouse.url.port() == 0;
        let data = match &self.data {
            Some(data) => data.as_path(),
            None if picks => Path::new(DATA),
            None => return Ok((config, definitions)),
        };
        let addresses = Addresses::read(data).with_context(|| {
            format!(
                "no `highwater up` is ready on {}: start one with --data {0}, or name the folder of one with --data DIR",
                data.display()
            )
        })?;
        let config = config
            .at(&addresses.kafka, &addresses.clickhouse, data)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("the addresses in {} can't be used", data.display()))?;
        Ok((config, definitions))
    }
}

/// The dataset of that name; where there is none, that is said, and the command was used wrongly.
fn dataset<'a>(definitions: &'a Definitions, name: &str) -> Result<&'a Dataset, ExitCode> {
    let known = definitions.datasets.iter();
    if let Some(dataset) = known.clone().find(|dataset| dataset.name == name) {
        return Ok(dataset);
    }
    let known: Vec<_> = known.map(|dataset| dataset.name.as_str()).collect();
    let known = if known.is_empty() {
        "the definitions have none".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Err(used_wrongly(&format!("there is no dataset `{name}`; {known}")))
}

/// Says what is wrong with the arguments.
fn used_wrongly(what: &str) -> ExitCode {
    // Nothing is left to do where even this can't be written.
    let _ = writeln!(std::io::stderr().lock(), "highwater: {what}");
    ExitCode::from(USED_WRONGLY)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn visit(command: &clap::Command) {
            let subcommands = command.get_subcommands();
            for command in subcommands.filter(|command| command.get_name() != "help") {
                let name = command.get_name();
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.starts_with("Examples:"), "{name} has no examples");
                let is_of_it = |line: &str| line.trim_start().starts_with("highwater ") && line.contains(name);
                assert!(
                    help.lines().any(is_of_it),
                    "{name} has examples of something else: {help}"
                );
                visit(command);
            }
        }
        visit(&Arguments::command());
    }

    #[test]
    fn global_arguments_may_stand_behind_the_command() {
        let arguments =
            Arguments::try_parse_from(["highwater", "check", "-c", "a.toml", "--log-format", "json"]).unwrap();
        assert_eq!(arguments.place.config, Some(PathBuf::from("a.toml")));
        assert_eq!(arguments.log_format, LogFormat::Json);
    }
}
