//! The commands. Each is a struct of its arguments with a `run`; what several need stands here.

mod batch;
mod check;
mod output;
mod reconcile;
mod signals;
mod store;
mod topics;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared_schemas::config::{Config, Reading};
use shared_schemas::definitions::Definitions;
use shared_schemas::mistake::Mistakes;

use crate::logging::LogFormat;

/// Lambda-architecture analytics: exact below the mark, live above it
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "`highwater COMMAND --help` shows examples."
)]
pub(crate) struct Arguments {
    /// The configuration; without it highwater.toml in the working folder, or the defaults
    #[arg(short, long, global = true, value_name = "FILE", env = "HIGHWATER_CONFIG")]
    config: Option<PathBuf>,

    /// How logs are written to stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Batch(batch::Batch),
    Check(check::Check),
    Reconcile(reconcile::Reconcile),
    Topics(topics::Topics),
    Up(up::Up),
}

impl Arguments {
    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.config.as_deref();
        match self.command {
            Command::Batch(batch) => batch.run(config),
            Command::Check(check) => check.run(config),
            Command::Reconcile(reconcile) => reconcile.run(config),
            Command::Topics(topics) => topics.run(config),
            Command::Up(up) => up.run(config),
        }
    }
}

/// Reads the configuration and the definitions. A mistake in the one keeps none in the other from being found.
fn load(config: Option<&Path>) -> Result<(Config, Definitions), Mistakes> {
    let Reading { config, mut mistakes } = Config::read(config);
    // Where they are may be what the mistake is about.
    if !mistakes.is_empty() && !config.definitions.exists() {
        return Err(mistakes);
    }
    match Definitions::load(&config.definitions) {
        Ok(definitions) if mistakes.is_empty() => Ok((config, definitions)),
        Ok(_) => Err(mistakes),
        Err(more) => {
            mistakes.extend(more);
            Err(mistakes)
        }
    }
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
            if command.has_subcommands() {
                command
                    .get_subcommands()
                    .filter(|command| command.get_name() != "help")
                    .for_each(visit);
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                let example = format!("highwater {}", command.get_name());
                assert!(help.starts_with("Examples:"), "{} has no examples", command.get_name());
                assert!(help.contains("highwater "), "{example} is no example");
            }
        }
        visit(&Arguments::command());
    }

    #[test]
    fn global_arguments_may_stand_behind_the_command() {
        let arguments =
            Arguments::try_parse_from(["highwater", "check", "-c", "a.toml", "--log-format", "json"]).unwrap();
        assert_eq!(arguments.config, Some(PathBuf::from("a.toml")));
        assert_eq!(arguments.log_format, LogFormat::Json);
    }
}
