//! PyPI's `clickhouse-connect`, as its users use it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_tests::clickhouse::ClickHouse;

/// The Python that `deploy/install` makes, with the packages of `deploy/requirements.txt`.
fn python() -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let python = cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("highwater/python/bin/python");
    ensure!(
        python.is_file(),
        "{} is missing: run deploy/install first",
        python.display()
    );
    Ok(python)
}

#[test]
fn clickhouse_connect_works() -> anyhow::Result<()> {
    let python = python()?;
    let server = ClickHouse::start_with(&["--user", "ann"], Some("secret"))?;
    let port = server.url().rsplit(':').next().unwrap_or_default().to_owned();
    let output = Command::new(python)
        .args(["-c", include_str!("clickhouse_connect.py")])
        .arg(port)
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success() && said.ends_with("done\n"), "{said}");
    Ok(())
}
