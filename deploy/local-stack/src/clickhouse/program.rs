//! Which program serves ClickHouse here.
//!
//! In this order: the file that `HIGHWATER_EMBEDDED_CLICKHOUSE` names; `clickhouse` or `clickhouse-server` on PATH if new
//! enough; `embedded-clickhouse` beside the running program, then on PATH. Data that one kind made stays with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StackError;
use crate::address::Loopback;
use crate::fetch;

use super::Access;

/// Names the embedded server's program, and makes that the one to use.
pub const EMBEDDED_VARIABLE: &str = "HIGHWATER_EMBEDDED_CLICKHOUSE";
/// The embedded server reads its password here: arguments are for everybody to see.
const PASSWORD_VARIABLE: &str = "CLICKHOUSE_PASSWORD";
/// Names a libchdb.so of the user's own; the embedded server reads it too.
const LIBRARY_VARIABLE: &str = "HIGHWATER_LIBCHDB";
const EMBEDDED: &str = "embedded-clickhouse";
const SERVER: &str = "server";
/// The oldest real server that is used.
const OLDEST: u32 = 25;

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Program {
    /// A real server; `clickhouse` wants the word `server` first.
    Server { file: PathBuf, subcommand: bool },
    /// The embedded engine's server, and the engine.
    Embedded { file: PathBuf, library: PathBuf },
}

impl Program {
    /// What the data folder remembers of it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Server { .. } => SERVER,
            Self::Embedded { .. } => EMBEDDED,
        }
    }

    pub(super) fn server_command(&self, home: &Path) -> Command {
        let (Self::Server { file, .. } | Self::Embedded { file, .. }) = self;
        let mut command = Command::new(file);
        if let Self::Server { subcommand: true, .. } = self {
            command.arg("server");
        }
        // Without a watchdog: it would be the child, and the server a grandchild that outlives it.
        command
            .current_dir(home)
            .env("CLICKHOUSE_WATCHDOG_ENABLE", "0")
            .arg("--config-file=config.xml");
        command
    }

    pub(super) fn embedded_command(&self, home: &Path, address: Loopback, access: &Access) -> Command {
        let (Self::Server { file, .. } | Self::Embedded { file, .. }) = self;
        let mut command = Command::new(file);
        command
            .arg("--data")
            .arg(home.join("data"))
            .arg("--listen")
            .arg(address.to_string());
        if let Self::Embedded { library, .. } = self {
            command.arg("--library").arg(library);
        }
        command.arg("--die-with-parent").arg("--user").arg(&access.user);
        // Also where there is none: one that the user's shell exports must not count.
        command.env(PASSWORD_VARIABLE, &access.password);
        command
    }
}

/// Finds the program. `made_by` is the kind that made the data in `folder`, if there is any.
pub(super) async fn find(made_by: Option<&str>, folder: &Path) -> Result<Program, StackError> {
    let named = std::env::var_os(EMBEDDED_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    if let Some(file) = &named
        && !file.is_file()
    {
        return Err(StackError::Program(format!(
            "{EMBEDDED_VARIABLE} names {}, which is no file",
            file.display()
        )));
    }
    let real = if named.is_some() || made_by == Some(EMBEDDED) {
        Found::default()
    } else {
        real_server().await
    };
    if let Some(program) = real.program {
        return Ok(program);
    }
    if made_by == Some(SERVER) {
        return Err(StackError::Program(format!(
            "a clickhouse server made the data in {}, and {}: install ClickHouse {OLDEST} or newer, or drop the data \
             with --fresh",
            folder.display(),
            if named.is_some() {
                "the embedded one is asked for".to_owned()
            } else {
                real.why_not
            }
        )));
    }
    match named.or_else(embedded_program) {
        Some(file) => Ok(Program::Embedded {
            file,
            library: library().await?,
        }),
        None => Err(StackError::Program(format!(
            "{}, and {EMBEDDED} is neither beside this program nor on PATH: install ClickHouse {OLDEST} or newer, or build \
             the embedded one (cargo build --workspace) and put it beside highwater",
            real.why_not
        ))),
    }
}

async fn library() -> Result<PathBuf, StackError> {
    match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
        Some(library) => Ok(PathBuf::from(library)),
        None => fetch::libchdb().await,
    }
}

#[derive(Debug, Default)]
struct Found {
    program: Option<Program>,
    why_not: String,
}

async fn real_server() -> Found {
    let mut why_not = "no clickhouse is on PATH".to_owned();
    for (name, subcommand) in [("clickhouse", true), ("clickhouse-server", false)] {
        let Some(file) = on_path(name) else { continue };
        let mut command = tokio::process::Command::new(&file);
        if subcommand {
            command.arg("server");
        }
        let said = match command.arg("--version").kill_on_drop(true).output().await {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => error.to_string(),
        };
        match major(&said) {
            Some(version) if version >= OLDEST => {
                return Found {
                    program: Some(Program::Server { file, subcommand }),
                    why_not,
                };
            }
            Some(version) => why_not = format!("{} is of version {version}, too old", file.display()),
            None => why_not = format!("{} does not tell its version", file.display()),
        }
        tracing::info!("{why_not}: not used");
    }
    Found { program: None, why_not }
}

/// `ClickHouse server version 25.8.1.5101 (official build).` is 25.
fn major(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("version ")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn embedded_program() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.to_owned();
    // Test programs are one folder further down than the programs they test.
    let beside = [folder.join(EMBEDDED), folder.parent()?.join(EMBEDDED)];
    let tests = folder.file_name().is_some_and(|name| name == "deps");
    beside
        .into_iter()
        .take(if tests { 2 } else { 1 })
        .find(|file| file.is_file())
        .or_else(|| on_path(EMBEDDED))
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            major("ClickHouse server version 25.8.1.5101 (official build).\n"),
            Some(25)
        );
        assert_eq!(major("ClickHouse client version 18.16.1."), Some(18));
        assert_eq!(major("usage: clickhouse"), None);
    }

    #[test]
    fn a_password_is_no_argument() {
        let program = Program::Embedded {
            file: "/x".into(),
            library: "/y".into(),
        };
        let access = Access {
            user: "ann".to_owned(),
            password: "secret".to_owned(),
        };
        let command = program.embedded_command(Path::new("/d"), Loopback::of("127.0.0.1", 1).unwrap(), &access);
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(
            arguments,
            [
                "--data",
                "/d/data",
                "--listen",
                "127.0.0.1:1",
                "--library",
                "/y",
                "--die-with-parent",
                "--user",
                "ann"
            ]
        );
        assert!(!format!("{access:?}").contains("secret"));
    }
}
