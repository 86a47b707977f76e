//! PyPI's `clickhouse-connect`, as its users install it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_tests::clickhouse::ClickHouse;

const VERSION: &str = "1.12.0";

/// A Python with clickhouse-connect, made once in the user's cache folder.
fn python() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("highwater");
    let folder = cache.join(format!("clickhouse-connect-{VERSION}"));
    let python = folder.join("bin/python");
    if folder.join("complete").is_file() {
        return Ok(python);
    }
    // A folder of its own until it is whole would not do: a venv knows its path. One at a time instead.
    std::fs::create_dir_all(&cache)?;
    let lock = std::fs::File::create(cache.join("clickhouse-connect.lock"))?;
    lock.lock()?;
    if !folder.join("complete").is_file() {
        let run = |command: &mut Command| {
            let output = command
                .output()
                .context("cannot run python3: install python 3.9 or newer with venv")?;
            ensure!(
                output.status.success(),
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            &format!("clickhouse-connect=={VERSION}"),
        ]))?;
        std::fs::write(folder.join("complete"), "")?;
    }
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
