//! What is bounded: places, memory, bodies, and what a client may reach.

use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater_tests::clickhouse::ClickHouse;
use reqwest::StatusCode;

use super::{ENDLESS, post, read, run, until};

#[tokio::test]
async fn queries_run_side_by_side() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    // Longer than it is waited for that all of them run.
    let patient = format!("{url}/?function_sleep_max_microseconds_per_block=60000000");
    let slow = (0..6).map(|_| run(&patient, "SELECT sleepEachRow(0.5) FROM numbers(100)"));
    let running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEach%'";
    tokio::select! {
        ended = futures::future::join_all(slow) => anyhow::bail!("not side by side: {ended:?}"),
        all = until(url, running, "6") => all,
    }
}

#[tokio::test]
async fn who_finds_no_place_is_told_so_and_kills_still_work() -> anyhow::Result<()> {
    let server = ClickHouse::start_with(
        &["--max-queries", "1", "--max-waiting", "1", "--queue-timeout", "2"],
        None,
    )?;
    let url = server.url();
    let kill = async {
        // No place is left to look whether it runs: a kill of nothing tells nothing, and is tried again.
        loop {
            let killed = run(url, "KILL QUERY WHERE query_id = 'long' SYNC").await?;
            if !killed.is_empty() {
                return anyhow::Ok(killed);
            }
        }
    };
    let full = async {
        until_busy(url).await?;
        let began = Instant::now();
        let (first, second) = tokio::join!(post(url, "SELECT 1"), post(url, "SELECT 1"));
        let (first, second) = (first?, second?);
        for answer in [&first, &second] {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
            assert_eq!(answer.header("X-ClickHouse-Exception-Code"), "202");
            assert_eq!(answer.header("Retry-After"), "1");
        }
        assert!(began.elapsed() >= Duration::from_secs(2), "nobody waited");
        anyhow::Ok(kill.await?)
    };
    let long = format!("{url}/?query_id=long");
    let (long, killed) = tokio::join!(post(&long, ENDLESS), full);
    assert!(killed?.starts_with("finished"));
    assert_eq!(long?.header("X-ClickHouse-Exception-Code"), "394");
    assert_eq!(run(url, "SELECT 1").await?, "1");
    Ok(())
}

/// Waits until the only place is taken.
async fn until_busy(url: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let kill = run(url, "KILL QUERY WHERE query_id = 'long' TEST").await?;
        if !kill.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the query never ran");
    }
}

#[tokio::test]
async fn an_id_runs_once_and_is_the_clients() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    let its = format!("{url}/?query_id=it%27s");
    let twice = async {
        until(
            url,
            "SELECT count() FROM system.processes WHERE query_id = 'it''s'",
            "1",
        )
        .await?;
        let twice = post(&its, "SELECT 1").await?;
        assert_eq!(twice.header("X-ClickHouse-Exception-Code"), "216", "{}", twice.text());
        run(url, "KILL QUERY WHERE query_id = 'it\\'s' SYNC").await
    };
    let (ended, killed) = tokio::join!(post(&its, ENDLESS), twice);
    killed?;
    assert_eq!(ended?.header("X-ClickHouse-Exception-Code"), "394");
    Ok(())
}

#[tokio::test]
async fn memory_does_not_grow_with_a_body() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    run(url, "CREATE DATABASE db").await?;
    run(url, "CREATE TABLE db.t (a UInt64, s String) ENGINE = Null").await?;
    let row = [&7_u64.to_le_bytes()[..], b"\x64", &[b'x'; 100]].concat();
    let piece = Bytes::from(row.repeat(10_000));
    let pieces = 400_000_000 / piece.len();
    let rows = 10_000 * pieces;
    // warm: threads, caches
    post(&format!("{url}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary"), row).await?;
    server.forget_peak()?;
    let before = server.memory("VmRSS")?;
    let pieces = (0..pieces).map(move |_| Ok::<_, std::io::Error>(piece.clone()));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let answer = post(&format!("{url}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary&max_insert_block_size=65536&min_insert_block_size_rows=65536"), body).await?;
    assert!(
        answer
            .header("X-ClickHouse-Summary")
            .contains(&format!("\"written_rows\":\"{rows}\"")),
        "{answer:?}"
    );
    let grown = server.memory("VmHWM")?.saturating_sub(before);
    assert!(grown < 200 << 20, "a body of 400 MB took {} MiB", grown >> 20);
    assert_eq!(
        std::fs::read_dir(server.folder().join("spool"))?.count(),
        0,
        "a file was left behind"
    );
    Ok(())
}

#[tokio::test]
async fn bodies_and_time_have_their_bounds() -> anyhow::Result<()> {
    let server = ClickHouse::start_with(&["--max-body", "1", "--max-query-time", "1"], None)?;
    let url = server.url();
    let large = post(
        &format!("{url}/?query=INSERT%20INTO%20FUNCTION%20null('s%20String')%20FORMAT%20LineAsString"),
        "x".repeat(2 << 20),
    )
    .await?;
    assert_eq!(
        (large.status, large.header("X-ClickHouse-Exception-Code")),
        (StatusCode::PAYLOAD_TOO_LARGE, "307")
    );
    assert_eq!(post(url, ENDLESS).await?.header("X-ClickHouse-Exception-Code"), "159");
    let more = post(&format!("{url}/?max_execution_time=100"), "SELECT 1").await?;
    assert_eq!(more.header("X-ClickHouse-Exception-Code"), "452", "{}", more.text());
    Ok(())
}

#[tokio::test]
async fn memory_has_its_bound() -> anyhow::Result<()> {
    let server = ClickHouse::start_with(&["--max-memory", "600"], None)?;
    let url = server.url();
    let large = post(url, "SELECT groupArray(number) FROM numbers(200000000) FORMAT Null").await?;
    assert_eq!(large.header("X-ClickHouse-Exception-Code"), "241", "{}", large.text());
    assert_eq!(run(url, "SELECT 1").await?, "1");
    Ok(())
}

#[tokio::test]
async fn nothing_but_tables_can_be_reached() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    run(url, "CREATE DATABASE db").await?;
    run(
        url,
        "CREATE TABLE db.t (a UInt64) ENGINE = ReplacingMergeTree ORDER BY a",
    )
    .await?;
    for sql in [
        "SELECT * FROM file('/etc/hostname', 'LineAsString')",
        "SELECT file('/etc/hostname')",
        "SELECT * APPLY(file) FROM (SELECT '/etc/hostname')",
        "SELECT * FROM `/etc/hostname`",
        "SELECT * FROM default.`/etc/hostname`",
        "SELECT 1 INTO OUTFILE '/tmp/highwater-must-not-be'",
        "INSERT INTO db.t FROM INFILE '/etc/hostname' FORMAT CSV",
        "SELECT * FROM url('http://127.0.0.1/', 'CSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
        "SELECT * FROM sqlite('/tmp/a.db', 't')",
        "SELECT * FROM deltaLakeLocal('/tmp')",
        "SELECT * FROM executable('x.sh', 'CSV', 'a String')",
        "CREATE TABLE db.f (a String) ENGINE = File(CSV, '/etc/hostname')",
        "CREATE TABLE db.f (a String) ENGINE = URL('http://127.0.0.1/', 'CSV')",
        "CREATE TABLE db.f (a String) ENGINE = Executable('x.sh', 'CSV')",
        "CREATE TABLE db.f (a String) ENGINE `Executable`('x.sh', 'CSV')",
        "CREATE MATERIALIZED VIEW db.f ENGINE = File(CSV, '/tmp/highwater-must-not-be') AS SELECT 1",
        "CREATE TABLE db.f (a UInt64) ENGINE = EmbeddedRocksDB(0, '/tmp/highwater-must-not-be') PRIMARY KEY a",
        "CREATE TABLE db.f (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = 'object_storage', object_storage_type = 'local', path = '/tmp/highwater-must-not-be/')",
        "CREATE DICTIONARY db.d (id UInt64, v String) PRIMARY KEY id SOURCE(EXECUTABLE(command 'id' format 'TSV')) LAYOUT(FLAT()) LIFETIME(0)",
        "CREATE DATABASE d ENGINE = Filesystem('/etc')",
        "ATTACH TABLE db.a FROM '/etc' (a String) ENGINE = Log",
        "BACKUP TABLE db.t TO File('/tmp/highwater-must-not-be')",
        "CREATE USER u",
        "GRANT ALL ON *.* TO default",
        "SYSTEM SHUTDOWN",
    ] {
        let answer = post(url, sql).await?;
        assert!(
            answer.status.is_client_error() || answer.status.is_server_error(),
            "{sql}: {}",
            answer.text()
        );
    }
    assert!(!std::path::Path::new("/tmp/highwater-must-not-be").exists());
    for sql in [
        "ALTER TABLE db.t ADD COLUMN b String",
        "CREATE VIEW db.v AS SELECT name FROM system.tables WHERE engine = database",
        "CREATE MATERIALIZED VIEW db.m ENGINE = SummingMergeTree ORDER BY a AS SELECT a FROM db.t",
        "INSERT INTO db.t VALUES (1, 'x')",
        "OPTIMIZE TABLE db.t FINAL",
        "ALTER TABLE db.t DELETE WHERE a = 7",
        "SYSTEM STOP MERGES db.t",
        "SYSTEM START MERGES db.t",
        "RENAME TABLE db.v TO db.w",
        "TRUNCATE TABLE db.t",
        "DROP TABLE db.m SYNC",
        "SELECT * FROM merge('db', 't')",
        "SELECT * FROM generateRandom('x UInt8') LIMIT 1",
        "DROP DATABASE db SYNC",
    ] {
        run(url, sql).await?;
    }
    Ok(())
}

#[tokio::test]
async fn user_and_password_are_asked_for_where_set() -> anyhow::Result<()> {
    let server = ClickHouse::start_with(&["--user", "ann"], Some("secret"))?;
    let url = server.url();
    let http = reqwest::Client::new();
    let refused = post(url, "SELECT 1").await?;
    assert_eq!(
        (refused.status, refused.header("X-ClickHouse-Exception-Code")),
        (StatusCode::FORBIDDEN, "516")
    );
    assert_eq!(run(&format!("{url}/?user=ann&password=secret"), "SELECT 1").await?, "1");
    let basic = http
        .post(url)
        .basic_auth("ann", Some("secret"))
        .body("SELECT 2")
        .send()
        .await?;
    assert_eq!(read(basic).await?.text(), "2\n");
    let wrong = http
        .post(url)
        .basic_auth("ann", Some("wrong"))
        .body("SELECT 2")
        .send()
        .await?;
    assert_eq!(read(wrong).await?.status, StatusCode::FORBIDDEN);
    let client = server.client().with_user("ann").with_password("secret");
    assert_eq!(client.query("SELECT 3").fetch_one::<u8>().await?, 3);
    Ok(())
}

#[tokio::test]
async fn pages_of_other_sites_are_refused() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let http = reqwest::Client::new();
    for (header, value) in [("Origin", "https://evil.example"), ("Host", "evil.example")] {
        let answer = read(
            http.post(server.url())
                .header(header, value)
                .body("SELECT 1")
                .send()
                .await?,
        )
        .await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{header}");
    }
    Ok(())
}
