//! The `clickhouse` crate, as Highwater's layers use it.

use clickhouse::{Compression, Row};
use highwater_tests::clickhouse::ClickHouse;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Row, Serialize, Deserialize)]
struct Reading {
    id: u64,
    name: String,
    value: Option<f64>,
}

fn readings(count: u64) -> impl Iterator<Item = Reading> {
    (0..count).map(|id| Reading {
        id,
        name: format!("it's \\ {id}\n\0"),
        value: (id % 3 != 0).then_some(id as f64 / 7.0),
    })
}

async fn table(client: &clickhouse::Client) -> anyhow::Result<()> {
    client.query("CREATE DATABASE IF NOT EXISTS db").execute().await?;
    let create = "CREATE TABLE db.t (id UInt64, name String, value Nullable(Float64)) ENGINE = MergeTree ORDER BY id";
    Ok(client.query(create).execute().await?)
}

#[tokio::test]
async fn rows_come_back_as_they_went() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    table(&server.client()).await?;
    for compression in [Compression::Lz4, Compression::None] {
        let client = server.client().with_database("db").with_compression(compression);
        client.query("TRUNCATE TABLE t").execute().await?;
        let mut insert = client.insert::<Reading>("t").await?;
        for reading in readings(20_000) {
            insert.write(&reading).await?;
        }
        insert.end().await?;
        let rows = client
            .query("SELECT ?fields FROM t ORDER BY id")
            .fetch_all::<Reading>()
            .await?;
        assert!(rows.into_iter().eq(readings(20_000)), "{compression:?}");
    }
    Ok(())
}

#[tokio::test]
async fn parameters_and_settings_reach_the_query_and_no_other() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let client = server.client();
    let hostile = "a'b\\c`\n{x:String}; DROP";
    let sql = "SELECT concat({x:String}, {n:UInt8}::String)";
    let both = client
        .query(sql)
        .param("x", hostile)
        .param("n", 7_u8)
        .fetch_one::<String>()
        .await?;
    assert_eq!(both, format!("{hostile}7"));
    let setting = "SELECT toString(getSetting('max_threads'))";
    let with = client
        .query(setting)
        .with_setting("max_threads", "3")
        .fetch_one::<String>()
        .await?;
    let without = client.query(setting).fetch_one::<String>().await?;
    assert_eq!(with, "3");
    assert_ne!(without, "3");
    let named = client
        .query("SELECT getSetting('log_comment')")
        .with_setting("log_comment", "it's")
        .fetch_one::<String>();
    assert_eq!(named.await?, "it's");
    Ok(())
}

#[tokio::test]
async fn errors_arrive_as_clickhouse_sends_them() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let client = server.client();
    let error = client
        .query("SELECT * FROM system.nosuch")
        .fetch_all::<u8>()
        .await
        .expect_err("no such table");
    assert!(error.to_string().contains("Code: 60. DB::Exception:"), "{error}");
    // after rows have been sent: the cursor must not end as if all were well
    for compression in [Compression::Lz4, Compression::None] {
        let client = server.client().with_compression(compression);
        let sql =
            "SELECT throwIf(number = 3000000, 'too far') AS x, number FROM numbers(4000000) SETTINGS max_threads = 1";
        let mut cursor = client.query(sql).fetch::<(u8, u64)>()?;
        let mut rows = 0_u64;
        let error = loop {
            match cursor.next().await {
                Ok(Some(_)) => rows += 1,
                Ok(None) => panic!("the result ended after {rows} rows"),
                Err(error) => break error,
            }
        };
        assert!(rows > 0 && rows < 4_000_000, "{rows}");
        assert!(error.to_string().contains("too far"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn an_insert_that_is_dropped_inserts_nothing() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    table(&server.client()).await?;
    let client = server.client().with_database("db");
    let mut insert = client.insert::<Reading>("t").await?;
    for reading in readings(50_000) {
        insert.write(&reading).await?;
    }
    drop(insert);
    // what comes after it is there, what it had sent is not
    let mut insert = client.insert::<Reading>("t").await?;
    insert
        .write(&Reading {
            id: 1,
            name: String::new(),
            value: None,
        })
        .await?;
    insert.end().await?;
    assert_eq!(client.query("SELECT count() FROM db.t").fetch_one::<u64>().await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_large_result_streams() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let client = server.client().with_compression(Compression::None);
    client.query("SELECT 1").fetch_one::<u8>().await?;
    server.forget_peak()?;
    let before = server.memory("VmRSS")?;
    let sql = "SELECT number, repeat('x', 100) AS s FROM numbers(3000000) SETTINGS max_threads = 1";
    let mut cursor = client.query(sql).fetch::<(u64, String)>()?;
    let (mut rows, mut sum) = (0_u64, 0_u64);
    while let Some((number, _)) = cursor.next().await? {
        rows += 1;
        sum += number;
    }
    assert_eq!((rows, sum), (3_000_000, 2_999_999 * 3_000_000 / 2));
    let grown = server.memory("VmHWM")?.saturating_sub(before);
    assert!(grown < 150 << 20, "a result of 330 MB took {} MiB", grown >> 20);
    Ok(())
}
