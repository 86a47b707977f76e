//! SQL over archives whose definitions changed: answers are those of the events, whatever a file was parted by.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use futures::TryStreamExt;
use shared_schemas::config::Config;
use shared_schemas::dataset::EventTime;

use super::*;
use crate::replay;

/// The answer to a query whose table is `t`: one number.
async fn number(table: Arc<dyn TableProvider>, condition: &str) -> i64 {
    let session = SessionContext::new();
    session.register_table("t", table).unwrap();
    let sql = format!("SELECT count(*) FROM t WHERE {condition}");
    let batches = session.sql(&sql).await.unwrap().collect().await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// A dataset with two times, and an id.
fn with_time(field: &str) -> Dataset {
    let mut dataset = dataset("id = \"int64\"\nuntil = \"timestamp\"");
    dataset.event_time = EventTime::Field(field.to_owned());
    dataset.event_id = vec!["id".to_owned()];
    dataset
}

#[tokio::test]
async fn another_event_time_asks_files_that_were_parted_by_the_first() {
    let (site, before) = (Site::new(), with_time("at"));
    let mut archive = site.archive(&before).await;
    // Each even offset holds an event, the odd one behind it its repeat, which ends a day later.
    let value = |offset: u64| {
        let (id, day) = (offset / 2, 2 + offset % 2);
        format!(r#"{{"id":{id},"at":"2013-11-01T12:00:00Z","until":"2013-11-0{day}T12:00:00Z"}}"#)
    };
    let offsets = range(0, 600);
    archive
        .commit(&Commit {
            ranges: [(partition(0), offsets)].into(),
            batches: decoded(&before, partition(0), offsets, value),
            ..Commit::default()
        })
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    assert_eq!(number(pinned.as_arrived(), "at >= '2013-11-02T00:00:00Z'").await, 0);
    assert_eq!(number(pinned.once(), "at < '2013-11-02T00:00:00Z'").await, 300);

    let after = site.archive(&with_time("until")).await.pin().await.unwrap();
    for (condition, arrived, once) in [
        ("until >= '2013-11-02T00:00:00Z'", 600, 300),
        // The repeats alone: none of them is the event that stays.
        ("until >= '2013-11-03T00:00:00Z'", 300, 0),
        ("until < '2013-11-03T00:00:00Z'", 300, 300),
        ("until < '2013-11-02T00:00:00Z'", 0, 0),
        // By what the file was parted by, which a repeat shares.
        ("_event_time < '2013-11-02T00:00:00Z'", 600, 300),
        ("_date = '2013-11-01'", 600, 300),
    ] {
        assert_eq!(number(after.as_arrived(), condition).await, arrived, "{condition}");
        assert_eq!(number(after.once(), condition).await, once, "{condition}");
    }
}

/// The values that a replay of everything between two years sends.
async fn replayed(site: &Site, dataset: &Dataset, years: [i32; 2]) -> Vec<String> {
    let mut config = Config::parse("", "highwater.toml", Path::new(""), &|_| None).config;
    config.archive = site.config();
    let [from, to] = years.map(|year| format!("{year}-01-01T00:00:00Z").parse::<DateTime<Utc>>().unwrap());
    let batches = replay::events(&config, dataset, from, to).await.unwrap();
    let batches: Vec<_> = batches.try_collect().await.unwrap();
    let records = batches
        .iter()
        .flat_map(|batch| replay::records(dataset, batch).unwrap());
    records.map(|record| String::from_utf8(record.value).unwrap()).collect()
}

#[tokio::test]
async fn what_a_later_declaration_refuses_is_not_sent_again() {
    // An event of 2299 is far ahead of its Kafka timestamp.
    let accepting = |fields: &str| Dataset {
        future: Duration::from_secs(1 << 34),
        ..dataset(fields)
    };
    let (site, before) = (Site::new(), accepting(""));
    let mut archive = site.archive(&before).await;
    let value = |offset: u64| match offset {
        0 => r#"{"at":"2013-11-01T00:00:00Z","seats":"many","geo":{"code":7},"gate":"B1"}"#.to_owned(),
        1 => r#"{"at":"2013-11-01T00:00:01Z","seats":12,"geo":{"code":"NO","city":"Oslo"}}"#.to_owned(),
        _ => r#"{"at":"2299-12-31T23:59:59.999999Z"}"#.to_owned(),
    };
    archive
        .commit(&Commit {
            ranges: [(partition(0), range(0, 3))].into(),
            batches: decoded(&before, partition(0), range(0, 3), value),
            ..Commit::default()
        })
        .await
        .unwrap();
    let after = accepting("seats = \"int64?\"\ncode = { type = \"string?\", from = \"geo.code\" }");
    let sent = replayed(&site, &after, [1970, 2300]).await;
    assert_eq!(
        sent,
        [
            r#"{"at":"2013-11-01T00:00:00Z","gate":"B1"}"#,
            r#"{"at":"2013-11-01T00:00:01Z","geo":{"city":"Oslo","code":"NO"},"seats":12}"#,
            r#"{"at":"2299-12-31T23:59:59.999999Z"}"#,
        ]
    );
    // Whoever reads the topic with the same definition accepts them all.
    let again = decoded(&after, partition(0), range(0, 3), |offset| {
        sent[usize::try_from(offset).unwrap()].clone()
    });
    assert_eq!(again.iter().map(|(_, batch)| batch.num_rows()).sum::<usize>(), 3);
    assert_eq!(replayed(&site, &after, [2263, 9999]).await.len(), 1);
    assert_eq!(replayed(&site, &after, [1970, 2263]).await.len(), 2);
}
