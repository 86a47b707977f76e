//! PyPI's `clickhouse-connect`, as its users use it.

use std::process::Command;

use anyhow::ensure;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::python::python;

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
