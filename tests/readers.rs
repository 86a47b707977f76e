//! Other programs read the archive as it stands: DuckDB with its delta extension, Delta Lake for Python, ClickHouse's engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_batch::archive::Upkeep;
use highwater_tests::clickhouse::library;
use highwater_tests::python::python_of;
use highwater_tests::table::{Table, trip};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

type Figures = BTreeMap<String, String>;

/// What was sent, in figures.
fn sent(parts: &[(u32, std::ops::Range<u64>)], days: u64) -> anyhow::Result<Figures> {
    let (mut sums, mut days_seen, mut dates) = (BTreeMap::<&str, i128>::new(), Vec::new(), Vec::new());
    let (mut offsets, mut fare) = (Vec::new(), 0_i128);
    for (number, range) in parts {
        for offset in range.clone() {
            let event: Value = serde_json::from_str(&trip(*number, offset, days))?;
            let mut add = |name, value: i128| *sums.entry(name).or_default() += value;
            add("events", 1);
            add("n", event["n"].as_i64().context("n")?.into());
            add("fares", i128::from(!event["fare"].is_null()));
            add("paid", i128::from(event["paid"] == true));
            add("unpaid", i128::from(event["paid"] == false));
            add("cities", i128::from(!event["city"].is_null()));
            add("tokyo", i128::from(event["city"] == "東京"));
            #[expect(clippy::cast_possible_truncation, reason = "quarters")]
            add(
                "distance",
                (event["distance"].as_f64().unwrap_or_default() * 4.0) as i128,
            );
            add("partitions", (*number).into());
            // Each has an undeclared `gate`.
            add("extra", 1);
            let at = event["at"].as_str().context("at")?;
            add("seconds", chrono::DateTime::parse_from_rfc3339(at)?.timestamp().into());
            dates.push(at[..10].to_owned());
            days_seen.extend(event["day"].as_str().map(str::to_owned));
            if let Some(text) = event["fare"].as_str() {
                fare += text.replace('.', "").parse::<i128>()?;
            }
            offsets.push(offset);
        }
    }
    let mut figures: Figures = (sums.into_iter())
        .map(|(name, sum)| (name.to_owned(), sum.to_string()))
        .collect();
    let mut set = |name: &str, value: String| figures.insert(name.to_owned(), value);
    set("fare", format!("{}.{:02}", fare / 100, fare % 100));
    set("first_day", days_seen.iter().min().context("no day")?.clone());
    set("last_day", days_seen.iter().max().context("no day")?.clone());
    set("date", dates.iter().max().context("no date")?.clone());
    set("first", offsets.iter().min().context("none")?.to_string());
    set("last", offsets.iter().max().context("none")?.to_string());
    set("topics", "1".to_owned());
    Ok(figures)
}

/// What each reader says.
fn read(table: &Table) -> anyhow::Result<BTreeMap<String, Figures>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers.py");
    let output = Command::new(python_of("readers")?)
        .arg(script)
        .arg(table.folder())
        .arg(library()?)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn other_programs_read_the_same() -> anyhow::Result<()> {
    let mut table = Table::new()?;
    table.days = 5;
    table.fill(0, 0..800, 8).await?;
    table.fill(1, 0..150, 3).await?;
    let expected = sent(&[(0, 0..800), (1, 0..150)], 5)?;
    let answers = read(&table)?;
    assert_eq!(answers.len(), 3);
    for (reader, figures) in answers {
        assert_eq!(figures, expected, "{reader}");
    }

    // After small files were made large ones, with the old ones still there; and beyond a checkpoint.
    let mut archive = table.open().await?;
    let upkeep = Upkeep {
        target_file: 1 << 20,
        keep_removed: Duration::from_secs(3600),
        horizon: None,
        deletes: true,
        dry_run: false,
    };
    let done = archive.optimize(&upkeep, &CancellationToken::new()).await?;
    assert_eq!(done.by.files, 10);
    table.fill(0, 800..850, 50).await?;
    let checkpoint = table.folder().join("_delta_log/_last_checkpoint");
    assert!(checkpoint.is_file(), "no checkpoint to read");
    let expected = sent(&[(0, 0..850), (1, 0..150)], 5)?;
    for (reader, figures) in read(&table)? {
        assert_eq!(figures, expected, "{reader}, after optimizing");
    }
    Ok(())
}
