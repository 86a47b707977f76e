//! One ClickHouse: a real `clickhouse server` where one is installed, else the embedded engine's server.
//!
//! Both speak ClickHouse's HTTP interface, so nothing behind this module knows which one runs. Their files on disk are
//! not interchangeable by promise, so a data folder stays with the kind that made it.
//!
//! Ready means: the port's listening socket is our child's own, and `/ping` answers `Ok.`

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::StackError;
use crate::address::{CLICKHOUSE_URL, Loopback};
use crate::folder::Folder;
use crate::process::{Launch, Process};
use crate::sockets;

mod program;
mod settings;

pub use program::EMBEDDED_VARIABLE;
use program::Program;

/// For messages.
pub(crate) const NAME: &str = "ClickHouse";
/// Longest start that is waited for: below 1 s is usual, more where many parts are loaded or the machine is busy.
const START: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// How long `/ping` may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a statement may take; they make tables.
const STATEMENT: Duration = Duration::from_secs(60);
/// Starts again when another process took a free port between choosing it and the server's bind.
const TRIES: usize = 3;

/// Who may use the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// The user.
    pub user: String,
    /// Its password; empty for none.
    pub password: String,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            user: "default".to_owned(),
            password: String::new(),
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A server that runs as our child.
#[derive(Debug)]
pub struct ClickHouse {
    process: Process,
    address: Loopback,
}

impl ClickHouse {
    /// Starts a server on the folder's data and waits until it answers. Port 0 takes the last start's port, or any.
    pub async fn start(folder: &Folder, wanted: Loopback, access: &Access) -> Result<Self, StackError> {
        let program = program::find(folder.remembered().engine.as_deref(), folder.path()).await?;
        folder.remember(|remembered| remembered.engine = Some(program.kind().to_owned()))?;
        for attempt in 1.. {
            let address = wanted
                .free(folder.remembered().clickhouse)
                .map_err(StackError::file("bind", Path::new("a port on loopback")))?
                .ok_or_else(|| StackError::Busy {
                    address: wanted.to_string(),
                    owner: "another process".to_owned(),
                    expected: NAME,
                    setting: CLICKHOUSE_URL,
                })?;
            match Self::launch(folder, &program, address, access).await {
                Err(StackError::Died { last, .. })
                    if last.to_ascii_lowercase().contains("address already in use") && attempt < TRIES =>
                {
                    tracing::debug!(%address, "the port was taken meanwhile, trying another");
                    folder.remember(|remembered| remembered.clickhouse = None)?;
                }
                started => return started,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn launch(
        folder: &Folder,
        program: &Program,
        address: Loopback,
        access: &Access,
    ) -> Result<Self, StackError> {
        let home = folder.inside("clickhouse")?;
        let console = home.join("console.log");
        let _ = fs::remove_file(&console);
        let (command, details) = match program {
            Program::Server { .. } => {
                settings::write(&home, address, access)?;
                (program.server_command(&home), Some(home.join("server-errors.log")))
            }
            Program::Embedded { .. } => (program.embedded_command(&home, address, access), None),
        };
        let record = Some(folder.record("clickhouse")?);
        let process = Process::start(Launch {
            name: NAME,
            command,
            log: console,
            output: None,
            details,
            record,
        })?;
        let clickhouse = Self { process, address };
        clickhouse.ready().await?;
        folder.remember(|remembered| remembered.clickhouse = Some(address.port()))?;
        Ok(clickhouse)
    }

    async fn ready(&self) -> Result<(), StackError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.ended() {
                return Err(self.process.died(status));
            }
            if sockets::listens(self.process.pid(), self.address) && answers(&self.url()).await.is_ok() {
                return Ok(());
            }
            if started.elapsed() > START {
                return Err(self.process.not_ready(started.elapsed()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its address, as clients want it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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

/// Does a ClickHouse answer there? Says why not.
pub async fn answers(url: &str) -> Result<(), String> {
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        let response = client.get(format!("{}/ping", url.trim_end_matches('/'))).send().await?;
        let status = response.status();
        Ok::<_, reqwest::Error>((status, response.text().await?))
    };
    match ask.await {
        Ok((status, text)) if status.is_success() && text.trim_end() == "Ok." => Ok(()),
        Ok((status, _)) => Err(format!("/ping answers {status} and not \"Ok.\"")),
        Err(error) => Err(innermost(&error)),
    }
}

/// Runs one statement that returns nothing.
pub async fn execute(url: &str, access: &Access, statement: &str) -> Result<(), StackError> {
    let failed = |why: String| StackError::ClickHouse {
        statement: statement.to_owned(),
        why,
    };
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(STATEMENT).build()?;
        let mut request = client
            .post(url)
            .header("X-ClickHouse-User", &access.user)
            .body(statement.to_owned());
        if !access.password.is_empty() {
            request = request.header("X-ClickHouse-Key", &access.password);
        }
        let response = request.send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.text().await?))
    };
    match ask.await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((_, text)) => Err(failed(text.trim().to_owned())),
        Err(error) => Err(failed(innermost(&error))),
    }
}

/// The last cause of an error: `Connection refused`, not the five layers around it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
