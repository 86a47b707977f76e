//! What the engine refuses: sorted by what it asks for, and found by halving where single rows are at fault.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use highwater_tests::stack::{shared, unique};
use shared_connections::store::{ErrorKind, Fault, Store, StoreError};
use shared_schemas::config::Config;

/// A row of that number is refused.
fn is_bad(number: i64) -> bool {
    number % 1_000 == 7
}

/// A database of its own with a table that refuses some rows.
async fn store() -> anyhow::Result<Store> {
    let store = at(&unique("refusals"), "default").await?;
    let database = store.database().to_owned();
    store
        .execute("make a database", &format!("CREATE DATABASE {database}"))
        .await?;
    let table = format!(
        "CREATE TABLE {database}.t (n Int64, s String, CONSTRAINT good CHECK n % 1000 != 7) \
         ENGINE = ReplacingMergeTree ORDER BY n"
    );
    store.execute("make a table", &table).await?;
    Ok(store)
}

/// The shared server, as that user.
async fn at(database: &str, user: &str) -> anyhow::Result<Store> {
    let url = &shared().await?.addresses().clickhouse;
    let text = format!("[clickhouse]\nurl = \"{url}\"\ndatabase = \"{database}\"\nuser = \"{user}\"\n");
    let reading = Config::parse(&text, "test.toml", Path::new(""), &|_| None);
    anyhow::ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
    Ok(Store::new(&reading.config.clickhouse))
}

fn rows(numbers: impl Iterator<Item = i64>) -> anyhow::Result<RecordBatch> {
    let numbers: Vec<_> = numbers.collect();
    let texts: Vec<_> = numbers.iter().map(|number| format!("s{number}")).collect();
    let columns: [(&str, ArrayRef); 2] = [
        ("n", Arc::new(Int64Array::from(numbers))),
        ("s", Arc::new(StringArray::from(texts))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// How many different rows the table has, and how many of them are bad.
async fn held(store: &Store) -> anyhow::Result<String> {
    let statement = shared_schemas::store::Statement {
        sql: format!(
            "SELECT count(), countIf(n % 1000 = 7) FROM {}.t FINAL",
            store.database()
        ),
        parameters: Vec::new(),
        settings: Vec::new(),
    };
    let answer = store.answer(&statement, "CSV").await?;
    Ok(String::from_utf8(answer.body.to_vec())?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_rows_are_found_and_all_others_are_written() -> anyhow::Result<()> {
    let store = store().await?;
    let whole = rows((0..5_000).filter(|number| !is_bad(*number)))?;
    assert!(store.insert_isolating("t", &whole).await?.is_empty());
    assert_eq!(held(&store).await?, "4995,0");
    assert_eq!(store.active_parts("t").await?, 1, "nothing was halved");

    let numbers: Vec<_> = (10_000..15_000).chain([20_007]).collect();
    let refused = store.insert_isolating("t", &rows(numbers.iter().copied())?).await?;
    assert_eq!(held(&store).await?, "9990,0");
    let found: Vec<_> = refused.iter().map(|row| numbers[row.row]).collect();
    assert_eq!(found, [10_007, 11_007, 12_007, 13_007, 14_007, 20_007]);
    assert_eq!(refused[0].key, "n=10007, s=s10007");
    assert!(
        matches!(&refused[0].why, StoreError::Refused { code: 469, .. }),
        "{:?}",
        refused[0].why
    );

    // Sent again after a lost reply, it says the same and adds nothing.
    let again = store.insert_isolating("t", &rows(numbers.iter().copied())?).await?;
    assert_eq!(again.len(), refused.len());
    assert_eq!(held(&store).await?, "9990,0");
    assert!(
        store
            .insert_isolating("t", &rows(std::iter::empty())?)
            .await?
            .is_empty()
    );
    Ok(())
}

/// Events may be of any month, and tables are partitioned by month: the engine's own limit is 100 in one insert (code 252,
/// which else means too many parts, and is tried again for ever).
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_more_than_a_hundred_months_are_written_at_once() -> anyhow::Result<()> {
    let store = store().await?;
    let table = format!(
        "CREATE TABLE {}.months (n Int64, s String) ENGINE = ReplacingMergeTree ORDER BY n PARTITION BY n",
        store.database()
    );
    store.execute("make a table", &table).await?;
    assert!(store.insert_isolating("months", &rows(0..250)?).await?.is_empty());
    assert_eq!(store.active_parts("months").await?, 1, "one in each partition");
    let plain = format!(
        "INSERT INTO {}.months SELECT number, '' FROM numbers(250)",
        store.database()
    );
    store.execute("write as many in SQL", &plain).await?;
    assert_eq!(
        store.active_parts("months").await?,
        2,
        "the setting is each statement's"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_many_rows_are_refused_the_table_is_at_fault() -> anyhow::Result<()> {
    let store = store().await?;
    let bad = rows((0..40).map(|number| number * 1_000 + 7))?;
    let error = store.insert_isolating("t", &bad).await.unwrap_err();
    assert!(matches!(&error, StoreError::ManyRefused { refused: 9, .. }), "{error}");
    assert!(error.to_string().contains("the first one n=7, s=s7: "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Fatal(Fault::Schema));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_sorted_by_what_it_asks_for() -> anyhow::Result<()> {
    let store = store().await?;
    let batch = rows(0..3)?;
    let database = store.database().to_owned();
    let alter = async |change: &str| {
        store
            .execute("alter", &format!("ALTER TABLE {database}.t {change}"))
            .await
    };
    let insert = async |store: &Store| store.insert_isolating("t", &batch).await.map(drop).unwrap_err();
    let is_schema = |error: &StoreError| error.kind() == ErrorKind::Fatal(Fault::Schema) && error.remedy().is_some();

    alter("DROP COLUMN s").await?;
    let error = insert(&store).await;
    assert!(is_schema(&error), "a column that is gone: {error}");
    // Another type: the engine says of each row that it can't read it.
    alter("ADD COLUMN s Date").await?;
    let error = insert(&store).await;
    assert!(is_schema(&error), "another type: {error}");
    alter("DROP COLUMN s").await?;
    alter("ADD COLUMN s Array(Int64)").await?;
    let error = insert(&store).await;
    assert!(is_schema(&error), "a type that nothing casts to: {error}");
    store.execute("drop it", &format!("DROP TABLE {database}.t")).await?;
    let error = insert(&store).await;
    assert!(is_schema(&error), "a table that is gone: {error}");
    assert_eq!(store.active_parts("t").await?, 0);
    let error = insert(&at("no_such_database", "default").await?).await;
    assert!(is_schema(&error), "no database: {error}");
    let error = insert(&at(&database, "nobody").await?).await;
    assert_eq!(error.kind(), ErrorKind::Fatal(Fault::Access), "{error}");
    assert!(error.remedy().is_some_and(|what| what.contains("clickhouse.user")));
    Ok(())
}
