//! `highwater sql` as a user has it, on an archive of a few days with repeats.

use anyhow::{Context, ensure};
use highwater_batch::archive::{Archive, Commit};
use highwater_tests::stack::Site;
use serde_json::{Value, json};
use shared_schemas::config::Config;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, OffsetRange, Partition, TopicId};

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
partitions = 2
event_time = "at"
event_id = ["flight"]
chunk = 8

[dataset.flights.fields]
at = "timestamp"
flight = "int64"
origin = "string"
fare = "decimal(10,2)?"

[dataset.quiet]
event_time = "$kafka_time"

[dataset.quiet.fields]
n = "int64"

[view.departures]
dataset = "flights"
grain = "1h"

[view.departures.measures]
flights = "count()"
"#;

const PARTITION: Partition = Partition {
    topic: TopicId(7),
    number: 0,
};

async fn site() -> anyhow::Result<Site> {
    site_at("127.0.0.1:9").await
}

/// Three days of ten events; each third one comes again.
pub(crate) async fn site_at(brokers: &str) -> anyhow::Result<Site> {
    let site = Site::with_addresses(brokers, "http://127.0.0.1:9")?;
    std::fs::write(site.path().join("definitions/flights.toml"), DEFINITIONS)?;
    let config = Config::load(Some(&site.path().join("highwater.toml"))).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
    let definitions = Definitions::load(&config.definitions).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
    let dataset = definitions.dataset("flights").context("it is not defined")?;
    let mut archive = Archive::open_or_create(&config.archive, dataset).await?;
    let options = Options {
        extra: true,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options)?;
    let mut offset = 0;
    for flight in 0..30 {
        let event = json!({
            "at": format!("2013-01-{:02}T{:02}:30:00Z", 1 + flight / 10, flight % 10), "flight": flight,
            "origin": (["EWR", "JFK"][flight % 2]), "fare": format!("{flight}.50"), "gate": flight,
        });
        for _ in 0..if flight % 3 == 0 { 2 } else { 1 } {
            decoder.push(&Record {
                partition: 0,
                offset,
                timestamp: Some(1_357_300_000_000 + offset),
                key: None,
                value: Some(event.to_string().as_bytes()),
                headers: &(),
            })?;
            offset += 1;
        }
    }
    let mut commit = Commit::default();
    let range = OffsetRange {
        from: Offset(0),
        to: Offset(u64::try_from(offset)?),
    };
    commit.ranges.insert(PARTITION, range);
    commit
        .batches
        .extend(decoder.finish().into_iter().map(|batch| (PARTITION, batch)));
    archive.commit(&commit).await?;
    Ok(site)
}

async fn rows(site: &Site, query: &str) -> anyhow::Result<Value> {
    let (code, stdout, stderr) = site.run(&["sql", query, "--output", "json"]).await?;
    ensure!(code == Some(0), "{query}: {code:?} {stderr}");
    Ok(serde_json::from_str(&stdout)?)
}

/// How many files a query reads.
async fn files(site: &Site, query: &str) -> anyhow::Result<String> {
    let plan = rows(site, &format!("EXPLAIN {query}")).await?.to_string();
    let (_, after) = plan
        .split_once("ArchiveScan: files=")
        .ok_or_else(|| anyhow::anyhow!("{plan}"))?;
    Ok(after.split(',').next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_dataset_is_a_table_of_its_events_once_and_one_as_they_arrived() -> anyhow::Result<()> {
    let site = site().await?;
    let both = rows(
        &site,
        "SELECT (SELECT count(*) FROM flights) AS once, (SELECT count(*) FROM flights_raw) AS arrived",
    );
    assert_eq!(both.await?, json!([{"once": 30, "arrived": 40}]));
    let day = "SELECT origin, count(*) AS flights, sum(fare) AS fares FROM flights WHERE _date = '2013-01-02' \
               GROUP BY origin ORDER BY origin";
    let found = rows(&site, day).await?;
    let fares = |row: usize| found[row]["fares"].to_string().replace('"', "");
    assert_eq!((&found[0]["origin"], &found[0]["flights"]), (&json!("EWR"), &json!(5)));
    assert_eq!((fares(0), fares(1)), ("72.5".to_owned(), "77.5".to_owned()));
    let arrived = rows(&site, "SELECT _extra FROM flights_raw WHERE _offset = 3").await?;
    assert_eq!(arrived, json!([{"_extra": "{\"gate\":2}"}]));
    let tables = rows(
        &site,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
    )
    .await?;
    assert_eq!(
        tables,
        json!([{"table_name": "flights"}, {"table_name": "flights_raw"}]),
        "the archived ones"
    );
    Ok(())
}

/// Each round of a recursive query reads the table again.
#[tokio::test]
async fn a_recursive_query_reads_events_once_in_each_round() -> anyhow::Result<()> {
    let site = site().await?;
    for (table, condition, last) in [
        ("flights", "true", 29),
        ("flights", "f._date = '2013-01-01'", 9),
        ("flights", "f.origin <> 'LGA' AND f.at < '2013-01-03T00:00:00Z'", 19),
        ("flights_raw", "true", 29),
    ] {
        let sql = format!(
            "WITH RECURSIVE chain AS (SELECT 0 AS flight, 1 AS rows UNION ALL SELECT f.flight, before.rows FROM \
             (SELECT flight, max(rows) AS rows FROM chain GROUP BY flight) before JOIN {table} f \
             ON f.flight = before.flight + 1 WHERE {condition}) \
             SELECT max(flight) AS last, count(*) AS rows, count(DISTINCT flight) AS flights FROM chain"
        );
        let repeats = if table == "flights" { 0 } else { 9 };
        let expected = json!([{"last": last, "rows": last + 1 + repeats, "flights": last + 1}]);
        assert_eq!(rows(&site, &sql).await?, expected, "{sql}");
    }
    Ok(())
}

#[tokio::test]
async fn only_files_that_can_hold_what_is_asked_for_are_read() -> anyhow::Result<()> {
    let site = site().await?;
    for table in ["flights", "flights_raw"] {
        let of = |condition: &str| format!("SELECT count(*) FROM {table} WHERE {condition}");
        for (condition, expected) in [
            ("true", "3"),
            ("_date = '2013-01-02'", "1"),
            ("_date BETWEEN '2013-01-02' AND '2013-01-09'", "2"),
            ("at >= '2013-01-03T00:00:00Z'", "1"),
            (
                "at >= TIMESTAMP '2013-01-01T23:59:59Z' AND _event_time < TIMESTAMP '2013-01-03T00:00:00Z'",
                "2",
            ),
            ("origin = 'EWR'", "3"),
        ] {
            assert_eq!(files(&site, &of(condition)).await?, expected, "{table}: {condition}");
        }
    }
    assert_eq!(
        files(&site, "SELECT count(*) FROM flights_raw WHERE _offset < 3").await?,
        "1"
    );
    // Of an event and its repeat, which has a higher offset, the first one stays: whatever is asked of offsets.
    let odd = rows(&site, "SELECT count(*) AS n FROM flights WHERE _offset IN (1, 5)").await?;
    assert_eq!(odd, json!([{"n": 0}]), "offsets 1 and 5 hold repeats");
    Ok(())
}

#[tokio::test]
async fn answers_are_tables_csv_json_or_parquet_and_a_cut_is_told() -> anyhow::Result<()> {
    let site = site().await?;
    let query = "SELECT flight, origin FROM flights ORDER BY flight";
    let (code, table, stderr) = site.run(&["sql", query, "--limit", "2"]).await?;
    assert_eq!(code, Some(0));
    assert_eq!(
        table.lines().filter(|line| line.starts_with("| ")).count(),
        3,
        "{table}"
    );
    assert_eq!(
        stderr.trim(),
        "highwater: these are the first 2 rows, there are more: --limit N takes more"
    );
    let (_, csv, stderr) = site.run(&["sql", query, "--output", "csv"]).await?;
    assert_eq!(csv.lines().next(), Some("flight,origin"));
    assert_eq!((csv.lines().count(), stderr.as_str()), (31, ""));
    let none = rows(&site, "SELECT flight FROM flights WHERE flight < 0").await?;
    assert_eq!(none, json!([]));
    let (code, _, stderr) = site.run(&["sql", query, "--output", "parquet"]).await?;
    assert_eq!(code, Some(2), "{stderr}");
    let file = ["sql", query, "--output", "parquet", "--file", "flights.parquet"];
    assert_eq!(site.run(&file).await?.0, Some(0));
    let bytes = std::fs::read(site.path().join("flights.parquet"))?;
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    Ok(())
}

#[tokio::test]
async fn whatever_is_no_query_is_refused_in_a_sentence() -> anyhow::Result<()> {
    let site = site().await?;
    for (query, code, said) in [
        (
            "DROP TABLE flights",
            2,
            "the archive can only be read: DropTable is refused",
        ),
        (
            "CREATE TABLE x AS SELECT 1",
            2,
            "the archive can only be read: CreateMemoryTable is refused",
        ),
        (
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            2,
            "the archive can only be read: CreateExternalTable is refused",
        ),
        (
            "INSERT INTO flights SELECT * FROM flights",
            2,
            "the archive can only be read:",
        ),
        (
            "COPY flights TO 'x.csv'",
            2,
            "the archive can only be read: COPY is refused",
        ),
        (
            "SET datafusion.execution.batch_size = 1",
            2,
            "the archive can only be read: SetVariable is refused",
        ),
        (
            "SELECT * FROM arrivals",
            2,
            "there is no table `arrivals`: there is flights, flights_raw, quiet, quiet_raw",
        ),
        (
            "SELECT nothing FROM flights",
            2,
            "the query can't be answered: No field named nothing",
        ),
        ("SELEC 1", 2, "the query can't be answered:"),
        ("SELECT 1; SELECT 2", 2, "the query can't be answered:"),
        (
            "SELECT * FROM quiet",
            1,
            "nothing of dataset `quiet` is archived yet at file:",
        ),
        ("SELECT * FROM '/etc/passwd'", 2, "the"),
    ] {
        let (exit, stdout, stderr) = site.run(&["sql", query]).await?;
        assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{query}: {stderr}");
        assert!(stderr.starts_with(&format!("highwater: {said}")), "{query}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{query}: {stderr}");
    }
    Ok(())
}
