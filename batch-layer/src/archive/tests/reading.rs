//! What readers get: exact columns, chosen days, fields that come and go, and the name of a file that is damaged.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::TimestampMicrosecondType;
use deltalake::DeltaTableBuilder;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::EventDay;
use shared_schemas::plan;
use url::Url;

use super::super::ArchiveError;
use super::super::files::{date, date_text};
use super::*;

#[tokio::test]
async fn readers_get_the_plans_columns() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&commit(&dataset, partition(1), range(0, 9)))
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    let second = date("2013-11-02").unwrap();
    let table = pinned.events(&[second].into());
    let (schema, wanted) = (table.schema(), plan::event_schema(&dataset));
    assert_eq!(schema.fields()[..wanted.fields().len()], wanted.fields()[..]);
    assert_eq!(schema.field(wanted.fields().len()).name(), TOPIC_COLUMN);

    let session = SessionContext::new();
    let events = session.read_table(table).unwrap();
    let batches = events.clone().collect().await.unwrap();
    assert!(batches.iter().all(|batch| batch.schema() == schema));
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    // A projection, and one of no column.
    let some = events
        .clone()
        .select_columns(&["delay", "_partition"])
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(some[0].num_columns(), 2);
    assert_eq!(events.count().await.unwrap(), 3);
    // No files at all.
    let none = session.read_table(pinned.events(&BTreeSet::new())).unwrap();
    assert_eq!(none.count().await.unwrap(), 0);
}

#[tokio::test]
async fn the_log_says_by_which_rules_offsets_were_read() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    for offsets in [range(0, 4), range(4, 9)] {
        archive.commit(&commit(&dataset, partition(1), offsets)).await.unwrap();
    }
    let mut changed = dataset.clone();
    changed.future *= 2;
    let mut archive = site.archive(&changed).await;
    archive
        .commit(&commit(&changed, partition(1), range(9, 12)))
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    let rules = [&dataset, &changed].map(|dataset| Fingerprint::of_rules(dataset).to_string());
    let expected = [(&rules[0], range(0, 9)), (&rules[1], range(9, 12))];
    let expected = expected.map(|(rules, range)| ((partition(1), rules.as_str()), range));
    assert_eq!(pinned.rules(), expected.into());
}

/// Any reader of Delta Lake sees the table, with Highwater's other columns.
#[tokio::test]
async fn delta_readers_see_all_columns() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&commit(&dataset, partition(1), range(0, 9)))
        .await
        .unwrap();
    let url = Url::from_directory_path(site.table()).unwrap();
    let table = DeltaTableBuilder::from_url(url).unwrap().load().await.unwrap();
    let session = SessionContext::new();
    session
        .register_table("flights", table.table_provider().await.unwrap())
        .unwrap();
    let sql = "SELECT cast(_date AS varchar) AS day, count(*) AS events, min(_offset) AS low, \
               cast(min(_schema) AS varchar) AS rules, cast(min(_extra) AS varchar) AS extra, \
               cast(min(_topic) AS varchar) AS topic, min(_partition) AS number, sum(price) AS price \
               FROM flights GROUP BY 1 ORDER BY 1";
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    let text = |name: &str| -> Vec<String> {
        let column =
            arrow::compute::cast(batch.column_by_name(name).unwrap(), &arrow::datatypes::DataType::Utf8).unwrap();
        column
            .as_any()
            .downcast_ref::<StringArray>()
            .unwrap()
            .iter()
            .map(|text| text.unwrap().to_owned())
            .collect()
    };
    assert_eq!(text("day"), ["2013-11-01", "2013-11-02", "2013-11-03"]);
    assert_eq!(text("events"), ["3", "3", "3"]);
    assert_eq!(text("low"), ["0", "1", "2"]);
    assert_eq!(text("rules"), vec![Fingerprint::of_rules(&dataset).to_string(); 3]);
    assert_eq!(
        text("extra"),
        [r#"{"gate":"B0"}"#, r#"{"gate":"B1"}"#, r#"{"gate":"B2"}"#]
    );
    assert_eq!(text("topic"), vec![format!("{:032x}", TOPIC.0); 3]);
    assert_eq!(text("number"), ["1", "1", "1"]);
    assert_eq!(text("price"), ["3.75", "3.75", "3.75"]);
}

#[tokio::test]
async fn kafka_times_are_of_the_events_from_an_offset_on() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&commit(&dataset, partition(0), range(0, 10)))
        .await
        .unwrap();
    archive
        .commit(&commit(&dataset, partition(0), range(10, 14)))
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    for from in 0..14 {
        let times = pinned.kafka_times(partition(0), Offset(from)).await.unwrap();
        assert_eq!(times, Some((kafka_time(from), kafka_time(13))), "from {from}");
    }
    assert_eq!(pinned.kafka_times(partition(0), Offset(14)).await.unwrap(), None);
    assert_eq!(pinned.kafka_times(partition(1), Offset(0)).await.unwrap(), None);
}

#[tokio::test]
async fn a_new_field_is_read_from_the_undeclared_data_of_older_files() {
    let (site, before) = (Site::new(), flights());
    let mut archive = site.archive(&before).await;
    archive
        .commit(&commit(&before, partition(0), range(0, 3)))
        .await
        .unwrap();

    // One field more, and one less.
    let after = dataset("origin = \"string\"\ndelay = \"float64?\"\ngate = \"string?\"");
    let mut archive = site.archive(&after).await;
    let known = |offsets: std::ops::Range<u64>| offsets.map(|at| Some(format!("B{at}"))).collect::<Vec<_>>();
    assert_eq!(gates(&archive.pin().await.unwrap()).await, known(0..3));
    archive
        .commit(&commit(&after, partition(0), range(3, 5)))
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    assert_eq!(gates(&pinned).await, known(0..5));

    // The old rules' archiver may still be there; a mask rule reaches its files, and what it dropped is null.
    let mut old = site.archive(&before).await;
    old.commit(&commit(&before, partition(0), range(5, 6))).await.unwrap();
    let archive = site.archive(&after).await;
    assert_eq!(gates(&archive.pin().await.unwrap()).await, known(0..6));
    let masked = dataset("origin = \"string\"\ngate = \"string?\"\n[dataset.flights.mask]\ngate = \"redact\"");
    let archive = site.archive(&masked).await;
    let hidden = vec![Some("***".to_owned()); 6];
    assert_eq!(gates(&archive.pin().await.unwrap()).await, hidden);
    let dropping = flights();
    let dropping = shared_schemas::dataset::Dataset {
        privacy: shared_schemas::dataset::Privacy {
            undeclared: shared_schemas::dataset::Undeclared::Drop,
            ..dropping.privacy.clone()
        },
        ..dropping
    };
    let mut old = site.archive(&dropping).await;
    old.commit(&commit(&dropping, partition(0), range(6, 7))).await.unwrap();
    let archive = site.archive(&after).await;
    let expected = [known(0..6), vec![None]].concat();
    assert_eq!(gates(&archive.pin().await.unwrap()).await, expected);
}

async fn gates(pinned: &Pinned) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for batch in rows(pinned).await.unwrap() {
        let offsets = batch
            .column_by_name("_offset")
            .unwrap()
            .as_primitive::<Int64Type>()
            .clone();
        let gates = batch.column_by_name("gate").unwrap().as_string::<i32>().clone();
        found.extend(
            offsets
                .values()
                .iter()
                .copied()
                .zip(gates.iter().map(|gate| gate.map(ToOwned::to_owned)))
                .collect::<Vec<_>>(),
        );
    }
    found.sort_unstable();
    found.into_iter().map(|(_, gate)| gate).collect()
}

/// What was archived before a field had its rule reads as what was archived since.
#[tokio::test]
async fn a_new_mask_reaches_what_is_archived() {
    let fields =
        "origin = \"string\"\nname = \"string?\"\nhome = \"string?\"\nnote = \"int64?\"\nborn = \"timestamp?\"";
    // A variable that is there wherever tests run.
    let rules = "[dataset.flights.mask]\norigin = { hash = \"PATH\" }\nname = \"redact\"\nhome = { truncate = \"ip\" }\n\
                 note = \"drop\"\nborn = { truncate = \"day\" }";
    let (site, before) = (Site::new(), dataset(fields));
    let person = |_: u64| {
        r#"{"at":"2013-11-01T12:00:00Z","origin":"JFK","name":"Ada","home":"192.0.2.77","note":7,"born":"1985-05-05T05:05:05Z"}"#
            .to_owned()
    };
    let of = |dataset: &shared_schemas::dataset::Dataset, offsets| Commit {
        ranges: [(partition(0), offsets)].into(),
        batches: decoded(dataset, partition(0), offsets, person),
        ..Commit::default()
    };
    let mut archive = site.archive(&before).await;
    archive.commit(&of(&before, range(0, 2))).await.unwrap();
    let after = dataset(&format!("{fields}\n{rules}"));
    let mut archive = site.archive(&after).await;
    archive.commit(&of(&after, range(2, 4))).await.unwrap();

    let batches = rows(&archive.pin().await.unwrap()).await.unwrap();
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    let texts = |name: &str| -> Vec<String> {
        let column = batch.column_by_name(name).unwrap();
        let texts = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
        texts
            .as_string::<i32>()
            .iter()
            .map(|text| text.unwrap_or("null").to_owned())
            .collect()
    };
    assert_eq!(batch.num_rows(), 4);
    let origins = texts("origin");
    assert!(
        origins.iter().all(|origin| origin.len() == 64 && *origin == origins[0]),
        "{origins:?}"
    );
    for (name, expected) in [("name", "***"), ("home", "192.0.2.0/24"), ("note", "null")] {
        assert_eq!(texts(name), vec![expected; 4], "{name}");
    }

    let born = batch
        .column_by_name("born")
        .unwrap()
        .as_primitive::<TimestampMicrosecondType>();
    // The beginning of that day.
    assert!(born.iter().all(|born| born == Some(484_099_200_000_000)), "{born:?}");

    // Without a rule's key nothing is read.
    let keyless = dataset(&format!(
        "{fields}\n[dataset.flights.mask]\norigin = {{ hash = \"HIGHWATER_NO_SUCH_KEY\" }}"
    ));
    let error = rows(&site.archive(&keyless).await.pin().await.unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("HIGHWATER_NO_SUCH_KEY"), "{error}");
}

#[tokio::test]
async fn another_type_is_refused() {
    let (site, before) = (Site::new(), flights());
    site.archive(&before).await;
    let after = dataset("origin = \"string\"\ndelay = \"int64?\"");
    let error = Archive::open_or_create(&site.config(), &after).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "field `delay` is archived as double and now declared as long: give the new one another name, or the dataset"
    );
}

#[tokio::test]
async fn a_required_field_that_a_file_lacks_is_said() {
    let (site, before) = (Site::new(), flights());
    let mut archive = site.archive(&before).await;
    archive
        .commit(&commit(&before, partition(0), range(0, 1)))
        .await
        .unwrap();
    // What undeclared data tells of each event may be asked for.
    let told = dataset("origin = \"string\"\ngate = \"string\"");
    assert_eq!(gates(&site.archive(&told).await.pin().await.unwrap()).await.len(), 1);
    let after = dataset("origin = \"string\"\nrunway = \"string\"");
    let error = broken(&site.archive(&after).await.pin().await.unwrap()).await;
    let said = error.to_string();
    assert!(matches!(error, ArchiveError::NeverNull { .. }), "{said}");
    assert!(
        said.contains("_date=2013-11-01") && said.contains("field `runway`"),
        "{said}"
    );
}

#[tokio::test]
async fn a_field_that_was_null_and_is_declared_never_null_is_no_damage() {
    let (site, before) = (Site::new(), dataset("origin = \"string?\""));
    let mut archive = site.archive(&before).await;
    archive
        .commit(&Commit {
            ranges: [(partition(0), range(0, 3))].into(),
            batches: decoded(&before, partition(0), range(0, 3), |_| {
                r#"{"at":"2013-11-01T00:00:00Z"}"#.to_owned()
            }),
            ..Commit::default()
        })
        .await
        .unwrap();
    let after = dataset("origin = \"string\"");
    let error = broken(&site.archive(&after).await.pin().await.unwrap()).await;
    let said = error.to_string();
    assert!(matches!(error, ArchiveError::NeverNull { .. }), "{said}");
    assert!(
        said.contains("field `origin`") && said.contains("declare it with `?`"),
        "{said}"
    );
}

/// A link to itself can be neither read nor looked at, and is there: as with a store that does not answer.
#[tokio::test]
async fn what_the_store_does_not_give_is_not_told_as_damage() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&commit(&dataset, partition(0), range(0, 30)))
        .await
        .unwrap();
    let pinned = archive.pin().await.unwrap();
    let file = &site.files()[0];
    std::fs::remove_file(file).unwrap();
    std::os::unix::fs::symlink(file, file).unwrap();
    let error = broken(&pinned).await;
    assert!(matches!(error, ArchiveError::Away { .. }), "{error}");
    assert!(error.to_string().contains("can't be read now"), "{error}");
}

/// The error of reading everything.
async fn broken(pinned: &Pinned) -> ArchiveError {
    let error = rows(pinned).await.unwrap_err();
    let datafusion::error::DataFusionError::External(inner) = error else {
        panic!("{error}");
    };
    *inner.downcast::<ArchiveError>().unwrap()
}

/// All that the error about a damaged file says, sources included.
async fn failure(pinned: &Pinned) -> String {
    let archive = broken(pinned).await;
    assert!(matches!(archive, ArchiveError::File { .. }), "{archive}");
    format!("{archive}: {}", std::error::Error::source(&archive).unwrap())
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    for damage in ["cut short", "gone", "emptied", "overwritten", "another"] {
        let (site, dataset) = (Site::new(), flights());
        let mut archive = site.archive(&dataset).await;
        archive
            .commit(&commit(&dataset, partition(0), range(0, 300)))
            .await
            .unwrap();
        archive
            .commit(&commit(&dataset, partition(0), range(300, 304)))
            .await
            .unwrap();
        let pinned = archive.pin().await.unwrap();
        let files = site.files();
        let file = &files[0];
        let bytes = std::fs::read(file).unwrap();
        match damage {
            "cut short" => std::fs::write(file, &bytes[..bytes.len() - 9]).unwrap(),
            "gone" => std::fs::remove_file(file).unwrap(),
            "emptied" => std::fs::write(file, vec![0; bytes.len()]).unwrap(),
            "overwritten" => {
                let mut bytes = bytes;
                bytes[4..200].fill(0xff);
                std::fs::write(file, bytes).unwrap();
            }
            _ => drop(std::fs::copy(&files[1], file).unwrap()),
        }
        let said = failure(&pinned).await;
        let name = file.strip_prefix(site.table()).unwrap().display().to_string();
        assert!(said.contains(&name), "{damage}: {said}");
        // Other days are not touched by it.
        let session = SessionContext::new();
        let other = pinned.events(&[date("2013-11-02").unwrap()].into());
        assert_eq!(
            session.read_table(Arc::clone(&other)).unwrap().count().await.unwrap(),
            101,
            "{damage}"
        );
    }
}

#[test]
fn days_are_read_as_written() {
    for day in [0, 1, 15_000, 16_010, 120_000] {
        assert_eq!(date(&date_text(EventDay(day))), Some(EventDay(day)));
    }
    assert_eq!(date_text(EventDay::of_micros(1_383_350_399_999_999)), "2013-11-01");
    assert_eq!(date_text(EventDay::of_micros(1_383_350_400_000_000)), "2013-11-02");
    assert_eq!(date("yesterday"), None);
}
