//! Ends that nobody asked for: of clients, of the server, of its parent.

use std::process::{Command, Stdio};

use anyhow::Context;
use highwater_tests::clickhouse::{ClickHouse, library, program, settled};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::watch;

use super::{ENDLESS, post, run, until};

const RUNNING: &str = "SELECT count() FROM system.processes WHERE query_id = 'left'";

#[tokio::test]
async fn a_client_that_goes_away_ends_its_query() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    let rows = "SELECT number, repeat('x', 100) FROM numbers(1000000000000)";
    // rows, then silence: the client is only missed by looking
    let silent =
        "SELECT number FROM numbers(1000000000000) WHERE number * 3 % 1000000000000 < 900000 SETTINGS max_threads = 1";
    let insert = "INSERT INTO FUNCTION null('a UInt64') SELECT number FROM numbers(1000000000000)";
    for sql in [ENDLESS, rows, silent, insert] {
        let request = reqwest::Client::new()
            .post(format!("{url}/?query_id=left"))
            .body(sql)
            .send();
        let request = tokio::spawn(async move {
            let mut response = request.await?;
            response.chunk().await?;
            // the response stays, and nobody reads it
            std::future::pending::<()>().await;
            drop(response);
            anyhow::Ok(())
        });
        until(url, RUNNING, "1").await?;
        request.abort();
        // By itself none of them would come to its end.
        until(url, RUNNING, "0").await.context(sql)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_stalls_is_waited_for_and_memory_stays() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    run(url, "SELECT 1").await?;
    let before = server.memory("VmRSS")?;
    let sql = "SELECT number, repeat('x', 100) FROM numbers(100000000) SETTINGS max_threads = 1";
    let mut response = reqwest::Client::new()
        .post(format!("{url}/?query_id=left"))
        .body(sql)
        .send()
        .await?;
    response.chunk().await?;
    // It has filled all that lies between, and waits: its counters stand still.
    let progress = "SELECT read_rows FROM system.processes WHERE query_id = 'left'";
    settled(|| run(url, progress)).await?;
    let grown = server.memory("VmRSS")?.saturating_sub(before);
    assert!(grown < 150 << 20, "a stalled client costs {} MiB", grown >> 20);
    drop(response);
    until(url, RUNNING, "0").await
}

#[tokio::test]
async fn kill_9_loses_no_row_that_was_acknowledged() -> anyhow::Result<()> {
    const ROWS: u64 = 20_000;
    let mut server = ClickHouse::start()?;
    run(server.url(), "CREATE DATABASE db").await?;
    run(
        server.url(),
        "CREATE TABLE db.t (batch UInt64, a UInt64) ENGINE = MergeTree ORDER BY (batch, a)",
    )
    .await?;
    let (mut batch, mut acknowledged) = (0_u64, Vec::new());
    for round in 0..4_u64 {
        let insert = format!("{}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary", server.url());
        let (acknowledge, mut enough) = watch::channel(0);
        let inserts = async {
            loop {
                let body: Vec<u8> = (0..ROWS).flat_map(|a| [batch, a]).flat_map(u64::to_le_bytes).collect();
                batch += 1;
                match post(&insert, body).await {
                    Ok(answer) if answer.status.is_success() => acknowledged.push(batch - 1),
                    _ => break,
                }
                acknowledge.send_modify(|count| *count += 1);
            }
        };
        // while the one after is on its way
        let kill = async {
            enough.wait_for(|count| *count > 2 * round).await?;
            server.kill()
        };
        let ((), killed) = tokio::join!(inserts, kill);
        killed?;
        server.start_again()?;
        let url = server.url();
        // Each batch is one block, so it is there as a whole or not at all; what was acknowledged is there.
        let parts = format!("SELECT countIf(n != {ROWS}) FROM (SELECT count() AS n FROM db.t GROUP BY batch)");
        assert_eq!(run(url, &parts).await?, "0");
        let list = acknowledged.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let there = run(
            url,
            &format!("SELECT uniqExact(batch) FROM db.t WHERE batch IN ({list})"),
        )
        .await?;
        assert_eq!(there, acknowledged.len().to_string());
    }
    assert!(
        acknowledged.len() >= 16,
        "too few inserts to mean anything: {}",
        acknowledged.len()
    );
    Ok(())
}

#[tokio::test]
async fn a_second_server_on_a_folder_is_refused() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let output = ClickHouse::command(server.folder())?.stderr(Stdio::piped()).output()?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is in use by another embedded-clickhouse"), "{said}");
    assert!(said.contains(&server.pid().to_string()), "{said}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_is_one_sentence() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let port = server.url().rsplit(':').next().unwrap_or_default().to_owned();
    for (arguments, expected) in [
        (
            ["--listen", &format!("127.0.0.1:{port}")],
            "cannot listen on 127.0.0.1:",
        ),
        (
            ["--listen", "0.0.0.0:0"],
            "can be reached from other machines: set --user and CLICKHOUSE_PASSWORD",
        ),
        (
            ["--library", "/nosuch/libchdb.so"],
            "run deploy/embedded-clickhouse/fetch-libchdb",
        ),
        (["--library", "/etc/hostname"], "cannot load libchdb from /etc/hostname"),
    ] {
        let folder = tempfile::tempdir()?;
        let output = Command::new(program()?)
            .arg("--data")
            .arg(folder.path())
            .args(arguments)
            .env_remove("CLICKHOUSE_PASSWORD")
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(expected) && said.trim_end().lines().count() == 1,
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_cleanly_whatever_runs() -> anyhow::Result<()> {
    let mut server = ClickHouse::start_with(&["--grace", "1"], None)?;
    let url = server.url().to_owned();
    run(&url, "CREATE DATABASE db").await?;
    run(&format!("{url}/?session_id=s"), "SELECT 1").await?;
    let long = tokio::spawn({
        let url = format!("{url}/?query_id=left");
        async move { post(&url, ENDLESS).await }
    });
    until(&url, RUNNING, "1").await?;
    let stopped = tokio::task::spawn_blocking(move || {
        let status = server.stop()?;
        anyhow::Ok((status, server))
    });
    let (status, mut server) = stopped.await??;
    assert_eq!(status.code(), Some(0));
    assert_eq!(long.await??.header("X-ClickHouse-Exception-Code"), "394");
    server.start_again()?;
    assert_eq!(run(server.url(), "SHOW DATABASES LIKE 'db'").await?, "db");
    Ok(())
}

#[tokio::test]
async fn it_does_not_outlive_its_parent() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    // A shell is the parent. It is killed, so it cannot end its child.
    let script = "\"$0\" --data \"$1\" --library \"$2\" --listen 127.0.0.1:0 --die-with-parent & wait";
    let mut parent = tokio::process::Command::new("sh")
        .args(["-c", script])
        .arg(program()?)
        .arg(folder.path())
        .arg(library()?)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = parent.stdout.take() {
        BufReader::new(out).read_line(&mut line).await?;
    }
    assert_eq!(run(line.trim(), "SELECT 1").await?, "1");
    parent.kill().await?;
    // its lock is free when it is gone
    let locked = || async {
        let lock = std::fs::File::open(folder.path().join("lock"))?;
        Ok(lock.try_lock().is_err().to_string())
    };
    highwater_tests::clickhouse::until(locked, |locked| locked == "false").await?;
    Ok(())
}
