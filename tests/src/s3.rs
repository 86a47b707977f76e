//! An S3 server of a test's own: versitygw over a new folder, on a port of its own, ended with the test.
//!
//! A bucket is a folder below it, so a test can look at objects, change and remove them behind the server's back.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use local_stack::process::{Launch, Process};
use shared_schemas::config::{ArchiveConfig, ArchiveUrl, Secret, StoreKind};
use tempfile::TempDir;

use crate::stack::{keep_port, until};

/// The one bucket.
pub const BUCKET: &str = "highwater";
const KEY: &str = "a-test";
const SECRET: &str = "a-secret-of-a-test";

/// A running server.
pub struct S3 {
    address: String,
    folder: TempDir,
    _process: Process,
}

/// The server's program, which `deploy/install` builds.
fn program() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local-s3/fetch-versitygw");
    let output = Command::new(&script).output().context("cannot run fetch-versitygw")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim());
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

impl S3 {
    /// Starts one with an empty bucket.
    pub async fn start() -> anyhow::Result<Self> {
        let program = program()?;
        let folder = TempDir::with_prefix("highwater-test-")?;
        std::fs::create_dir_all(folder.path().join("objects").join(BUCKET))?;
        // Until the server has bound it too.
        let port = keep_port(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = port.local_addr()?.to_string();
        let mut command = Command::new(program);
        command
            .args(["--port", &address, "posix"])
            .arg(folder.path().join("objects"));
        command
            .env("ROOT_ACCESS_KEY", KEY)
            .env("ROOT_SECRET_KEY", SECRET)
            .current_dir(folder.path());
        let process = Process::start(Launch {
            name: "versitygw",
            command,
            log: folder.path().join("log"),
            output: None,
            details: None,
            record: None,
        })?;
        let listens = || std::net::TcpStream::connect(&address).is_ok() || process.ended().is_some();
        until("versitygw listens", listens).await?;
        drop(port);
        ensure!(process.ended().is_none(), "versitygw ended");
        Ok(Self {
            address,
            folder,
            _process: process,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket's folder.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join("objects").join(BUCKET)
    }

    /// The environment variables with which a program reaches it at that URL.
    pub fn environment(url: &str) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT", url.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }

    /// Lets an archive be in the bucket, reached at that URL: the server's own, or a proxy's.
    pub fn hold(config: &mut ArchiveConfig, url: &str) {
        config.url = ArchiveUrl::Store {
            kind: StoreKind::S3,
            bucket: BUCKET.to_owned(),
            path: "archive".to_owned(),
        };
        let of = Self::environment(url);
        let options = of
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), Secret::new(value)));
        config.options = options.collect();
    }
}
