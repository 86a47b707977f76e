//! Highwater's command line: arguments in, one layer's entry point called.
//!
//! Data goes to stdout, logs and what went wrong to stderr. Exit 0: done; 1: failed; 2: used wrongly, which a mistake in
//! the definitions or the configuration is too.

mod bench;
mod commands;
mod connect;
mod layers;
mod logging;
mod memory;
mod metrics;
mod signals;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use shared_schemas::mistake::Mistakes;

use commands::Arguments;

/// Used wrongly: the arguments, the configuration or the definitions need mending.
const USED_WRONGLY: u8 = 2;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => {
            let is_mistake = told.use_stderr();
            // Nothing is left to do where even this can't be written.
            let _ = told.print();
            return if is_mistake {
                ExitCode::from(USED_WRONGLY)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    logging::start(arguments.log_format);
    if arguments.has_the_speed_layer() {
        memory::give_back();
    }
    arguments.run().unwrap_or_else(|error| {
        let mut stderr = std::io::stderr().lock();
        if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
            let _ = writeln!(stderr, "{mistakes}");
            return ExitCode::from(USED_WRONGLY);
        }
        // Whoever reads our output has seen enough: `highwater check | head`.
        let is_pipe = |cause: &std::io::Error| cause.kind() == ErrorKind::BrokenPipe;
        if error.downcast_ref().is_some_and(is_pipe) {
            return ExitCode::SUCCESS;
        }
        let _ = writeln!(stderr, "highwater: {error:#}");
        ExitCode::FAILURE
    })
}
