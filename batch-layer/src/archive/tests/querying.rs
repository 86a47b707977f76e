//! SQL over archives whose definitions changed: answers are those of the events, whatever a file was parted by.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use shared_schemas::dataset::EventTime;

use super::*;

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
        let (id, day) = (offset / 2, 21 + offset % 2);
        format!(r#"{{"id":{id},"at":"2013-11-20T12:00:00Z","until":"2013-11-{day}T12:00:00Z"}}"#)
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
    assert_eq!(number(pinned.as_arrived(), "at >= '2013-11-21T00:00:00Z'").await, 0);
    assert_eq!(number(pinned.once(), "at < '2013-11-21T00:00:00Z'").await, 300);

    let after = site.archive(&with_time("until")).await.pin().await.unwrap();
    for (condition, arrived, once) in [
        ("until >= '2013-11-21T00:00:00Z'", 600, 300),
        // The repeats alone: none of them is the event that stays.
        ("until >= '2013-11-22T00:00:00Z'", 300, 0),
        ("until < '2013-11-22T00:00:00Z'", 300, 300),
        ("until < '2013-11-21T00:00:00Z'", 0, 0),
        // By what the file was parted by, which a repeat shares.
        ("_event_time < '2013-11-21T00:00:00Z'", 600, 300),
        ("_date = '2013-11-20'", 600, 300),
    ] {
        assert_eq!(number(after.as_arrived(), condition).await, arrived, "{condition}");
        assert_eq!(number(after.once(), condition).await, once, "{condition}");
    }
}
