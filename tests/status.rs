//! `highwater status` as its users run it: while everything runs, before anything was read, and with a server away.

use anyhow::Context;
use highwater_tests::stack::{PATIENCE, Site, shared, unique};
use serde_json::Value;
use tokio::time::Instant;

/// Runs are the test's own: by default one comes at night.
const CONFIG: &str = "[archive]\ncommit_every = \"200ms\"\n[batch]\nschedule = \"0 0 1 1 *\"\n";

/// A site whose dataset has that topic, in small chunks.
fn site(brokers: &str, clickhouse: &str, topic: &str) -> anyhow::Result<Site> {
    let site = Site::with_addresses(brokers, clickhouse)?;
    let file = site.path().join("highwater.toml");
    let config = std::fs::read_to_string(&file)?;
    let database = format!("database = \"{}\"\n", unique("status"));
    std::fs::write(&file, config + &database + CONFIG)?;
    let file = site.path().join("definitions/flights.toml");
    let definitions = std::fs::read_to_string(&file)?;
    let named = format!("topic = \"{topic}\"\nchunk = 64");
    std::fs::write(&file, definitions.replace("topic = \"flights\"", &named))?;
    Ok(site)
}

/// What it reports, and its exit code.
async fn status(site: &Site, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let arguments = [&["status", "--output", "json"], arguments].concat();
    let (code, stdout, stderr) = site.run(&arguments).await?;
    let report = serde_json::from_str(&stdout).with_context(|| format!("{stdout}\n{stderr}"))?;
    Ok((code, report))
}

/// The sum of a number over the partitions of the only dataset.
fn sum(report: &Value, path: &str) -> Option<u64> {
    let partitions = report["datasets"][0]["partitions"].as_array()?;
    partitions
        .iter()
        .map(|partition| partition.pointer(path)?.as_u64())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_platform_is_told_on_one_screen() -> anyhow::Result<()> {
    let site = site("127.0.0.1:0", "http://127.0.0.1:0", "flights")?;
    let mut up = site.start(&["up"])?;
    let addresses = up.ready().await?;
    let (code, report) = status(&site, &[]).await?;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(sum(&report, "/log_end"), Some(0));
    assert_eq!(report["datasets"][0]["dead_letters"]["letters"], 0);
    assert!(report["views"][0]["publication"].is_null() && report["views"][0]["last_run"].is_null());
    assert!(report["batch"]["next"].is_string());

    let good = (0..300).map(|n| {
        format!(
            "{{\"at\": \"2013-11-0{}T10:00:00Z\", \"origin\": \"EWR\"}}\n",
            n % 3 + 1
        )
    });
    let bad = "no json\nnor this\n{\"at\": \"2013-11-01T10:00:00Z\"}\n";
    std::fs::write(site.path().join("events.ndjson"), good.collect::<String>() + bad)?;
    let produce = ["produce", "flights", "events.ndjson", "--data", "data"];
    assert_eq!(site.run(&produce).await?.0, Some(0));

    let began = Instant::now();
    let report = loop {
        let (code, report) = status(&site, &["--data", "data"]).await?;
        let lags = ["/speed/lag_events", "/archive/lag_events"].map(|path| sum(&report, path));
        let whole = lags == [Some(0), Some(0)] && sum(&report, "/archive/next") == Some(303);
        if code == Some(0) && whole && sum(&report, "/speed/next") == Some(303) {
            break report;
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "never all is read:\n{report:#}");
    };
    assert_eq!(sum(&report, "/log_end"), Some(303));
    let letters = &report["datasets"][0]["dead_letters"];
    let reasons = serde_json::json!({"missing_field": 1, "not_json": 2});
    assert_eq!((&letters["by_reason"], &letters["letters"]), (&reasons, &3.into()));
    assert_eq!(report["warnings"], serde_json::json!([]));

    let (code, stdout, stderr) = site
        .run(&["batch", "run", "--data", "data", "--output", "json"])
        .await?;
    assert_eq!(code, Some(0), "{stderr}");
    let run: Value = serde_json::from_str(&stdout)?;
    let (_, report) = status(&site, &[]).await?;
    let view = &report["views"][0];
    assert_eq!(view["publication"]["number"], 1);
    assert_eq!(view["publication"]["days"], 3);
    assert_eq!(
        (&view["last_run"]["result"], &view["last_run"]["publication"]),
        (&"published".into(), &1.into())
    );
    assert_eq!(view["last_run"]["run"], run[0]["run"]);
    let marks = |rows: &Value, of: &str| -> Option<u64> { rows.as_array()?.iter().map(|row| row[of].as_u64()).sum() };
    assert_eq!(marks(&view["marks"], "mark"), marks(&run[0]["marks"], "to"));
    assert_eq!(marks(&view["marks"], "covered"), Some(303));
    assert!(report["batch"]["running"].is_null(), "{report:#}");
    let (code, screen, _) = site.run(&["status"]).await?;
    assert_eq!(code, Some(0), "{screen}");
    for part in [
        "dead letters  3: missing_field 1, not_json 2\n",
        "view departures",
        ", published 1\n",
    ] {
        assert!(screen.contains(part), "{part} is not in\n{screen}");
    }

    other_rules_are_told(&site).await?;
    kafka_may_be_away(&site, &addresses.clickhouse).await?;
    up.stop().await
}

/// The definitions change, and what is archived was read before that.
async fn other_rules_are_told(site: &Site) -> anyhow::Result<()> {
    let file = site.path().join("definitions/flights.toml");
    let definitions = std::fs::read_to_string(&file)?;
    let before = status(site, &[]).await?.1["views"][0].take();
    assert_eq!(
        (&before["answered_by"], &before["counted"]),
        (&Value::Null, &Value::Null)
    );
    std::fs::write(&file, definitions.replace("chunk = 64", "chunk = 64\nfuture = \"1h\""))?;
    let (code, report) = status(site, &[]).await?;
    assert_eq!(code, Some(0));
    assert!(report["views"][0]["publication"].is_null(), "it is another view");
    assert_eq!(report["views"][0]["answered_by"], before["fingerprint"]);
    assert_eq!(report["datasets"][0]["partitions"][0]["speed"]["state"], "nothing_yet");
    let warnings = report["warnings"].as_array().context("no warnings")?;
    let told = warnings
        .iter()
        .filter_map(Value::as_str)
        .filter(|warning| warning.contains("under rules"));
    assert!(told.count() >= 1, "{report:#}");
    Ok(std::fs::write(&file, definitions)?)
}

/// Kafka does not answer; the store and the archive are told all the same.
async fn kafka_may_be_away(site: &Site, clickhouse: &str) -> anyhow::Result<()> {
    let config = std::fs::read_to_string(site.path().join("highwater.toml"))?;
    let config = config
        .replace("127.0.0.1:0\"\n\n", "127.0.0.1:1\"\n\n")
        .replace("http://127.0.0.1:0", clickhouse)
        .replace("[archive]\n", "[archive]\nurl = \"file:data/archive\"\n");
    std::fs::write(site.path().join("away.toml"), config)?;
    let (code, report) = status(site, &["--config", "away.toml"]).await?;
    assert_eq!((code, &report["kafka"]["answers"]), (Some(1), &false.into()));
    let problems = report["problems"].as_array().context("no problems")?;
    assert_eq!(problems.len(), 1, "{report:#}");
    let said = problems[0].as_str().unwrap_or_default();
    assert!(
        said.starts_with("Kafka at 127.0.0.1:1 (kafka.brokers) can't be reached"),
        "{said}"
    );
    assert_eq!(sum(&report, "/speed/next"), Some(303));
    assert_eq!(sum(&report, "/archive/next"), Some(303));
    assert_eq!(report["views"][0]["publication"]["number"], 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn before_anything_was_read_that_is_told() -> anyhow::Result<()> {
    let servers = shared().await?.addresses();
    let topic = unique("status");
    let site = site(&servers.kafka, &servers.clickhouse, &topic)?;

    // Not even the topic is there: that must be mended, and it says how.
    let (code, report) = status(&site, &[]).await?;
    assert_eq!(code, Some(1));
    let said = report["problems"][0].as_str().unwrap_or_default();
    assert!(said.contains("highwater topics create"), "{report:#}");
    assert!(
        report["views"][0]["known"] == true,
        "no table is no failure: {report:#}"
    );

    assert_eq!(site.run(&["topics", "create"]).await?.0, Some(0));
    let (code, screen, stderr) = site.run(&["status"]).await?;
    assert_eq!((code, &*stderr), (Some(0), ""), "{screen}");
    for part in [
        "nothing in the topic and nothing read yet, 2 partitions\n",
        "dead letters  none\n",
        "publication  none yet: the speed layer answers alone\n",
    ] {
        assert!(screen.contains(part), "{part} is not in\n{screen}");
    }

    // ClickHouse is away; Kafka is told all the same.
    let file = site.path().join("highwater.toml");
    let config = std::fs::read_to_string(&file)?.replace(&servers.clickhouse, "http://127.0.0.1:1");
    std::fs::write(&file, config)?;
    let (code, report) = status(&site, &[]).await?;
    assert_eq!((code, &report["clickhouse"]["answers"]), (Some(1), &false.into()));
    let problems = serde_json::json!(["ClickHouse at http://127.0.0.1:1 (clickhouse.url) can't be reached"]);
    assert_eq!(report["problems"], problems);
    assert_eq!(sum(&report, "/log_end"), Some(0));
    assert_eq!(report["datasets"][0]["partitions"][0]["speed"]["state"], "unknown");
    Ok(())
}
