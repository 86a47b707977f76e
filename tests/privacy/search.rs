//! Looks for what must not be there, in everything that was written.

use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use highwater_tests::stack::PATIENCE;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::planted::{KEYS, SECRETS};

/// Everything that was found, by where it was.
pub(super) type Written = Vec<(String, Vec<u8>)>;

/// Where anything is that must not be.
pub(super) fn leaks(written: &Written) -> Vec<String> {
    let secrets = SECRETS.iter().chain(KEYS.iter().map(|(_, key)| key));
    let found = secrets.flat_map(|secret| {
        let places = written.iter().filter(move |(_, bytes)| holds(bytes, secret));
        places.map(move |(place, _)| format!("{secret} in {place}"))
    });
    found.collect()
}

/// Whether any of it holds the text.
pub(super) fn anywhere(written: &Written, text: &str) -> bool {
    written.iter().any(|(_, bytes)| holds(bytes, text))
}

fn holds(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}

/// All files below the folder, as they are. Kafka's indexes are left out: they hold offsets and times, and are allocated
/// large.
pub(super) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        // Servers remove files while they are listed.
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else if path.is_file() && !path.extension().is_some_and(|end| end == "index" || end == "timeindex") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Each Parquet file's rows as text, beside its raw bytes: pages are compressed.
pub(super) async fn parquet(file: &Path) -> anyhow::Result<Vec<String>> {
    let context = SessionContext::new();
    let table = context
        .read_parquet(file.to_string_lossy().as_ref(), ParquetReadOptions::default())
        .await?;
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in table.collect().await? {
        let schema = batch.schema();
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let cells = schema.fields().iter().zip(&columns);
            let cells = cells.map(|(field, column)| format!("{}={}", field.name(), column.value(row)));
            rows.push(cells.collect::<Vec<_>>().join("\u{1}"));
        }
    }
    Ok(rows)
}

/// Every column of every table of the store, its logs of queries too where it keeps any.
pub(super) async fn store(url: &str) -> anyhow::Result<Written> {
    let ask = async |sql: String| -> anyhow::Result<Vec<u8>> {
        let response = reqwest::Client::new().post(url).body(sql.clone()).send().await?;
        let response = response.error_for_status().with_context(|| sql)?;
        Ok(response.bytes().await?.to_vec())
    };
    let tables = "SELECT concat(database, '.', name) FROM system.tables WHERE lower(database) <> 'information_schema' \
                  AND (database <> 'system' OR name LIKE '%\\_log' OR name IN ('errors', 'processes', 'warnings')) FORMAT TSV";
    let tables = String::from_utf8(ask(tables.to_owned()).await?)?;
    let mut written = Written::new();
    for table in tables.lines() {
        written.push((
            format!("table {table}"),
            ask(format!("SELECT * FROM {table} FORMAT JSONEachRow")).await?,
        ));
    }
    Ok(written)
}

/// Everything that a topic's partition 0 holds.
pub(super) async fn topic(brokers: &str, topic: &str) -> anyhow::Result<Written> {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("group.id", "privacy")
        .set("enable.partition.eof", "true");
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.create()?;
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&topic, 0, Offset::Beginning)?;
        consumer.assign(&all)?;
        let mut written = Written::new();
        loop {
            match consumer.poll(PATIENCE).context("the topic has no end")? {
                Err(KafkaError::PartitionEOF(_)) => return Ok(written),
                Err(error) => return Err(error.into()),
                Ok(message) => {
                    let mut bytes = [message.key(), message.payload()]
                        .map(Option::unwrap_or_default)
                        .join(&b'\n');
                    for header in message.headers().into_iter().flat_map(Headers::iter) {
                        bytes.extend_from_slice(format!("\n{}=", header.key).as_bytes());
                        bytes.extend_from_slice(header.value.unwrap_or_default());
                    }
                    written.push((format!("{topic}/0/{}", message.offset()), bytes));
                }
            }
        }
    })
    .await?
}
