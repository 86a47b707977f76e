//! From rows to Parquet files: one for each event day and partition of a commit.
//!
//! A file is written in memory and put as a whole, so a reader never sees half of one; how much that is at most is the
//! archiver's bound on a commit. Rows stay where they are until their file is written, and are then copied a few at a time: however many
//! days a commit holds, it takes no second copy of itself. Its name holds its first offset for people and a random part, so that a second try never
//! writes over what a first one, believed lost, has committed.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use deltalake::kernel::Add;
use object_store::path::Path;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde_json::{Value, json};
use shared_schemas::dataset::{EVENT_TIME_COLUMN, EXTRA_COLUMN, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{EventDay, Offset, Partition};
use uuid::Uuid;

use super::columns::{DATE_COLUMN, SCHEMA_COLUMN, TOPIC_COLUMN};
use super::standing::topic_text;
use super::sums::FileWriter;

/// A good half of the size of uncompressed files, at a speed far above the decoder's.
const ZSTD_LEVEL: i32 = 1;

/// Once so many rows of several batches are together they are copied and written; a batch adds a slice of the reader's at most.
const GATHERED: usize = 1024;

/// Where a file belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home {
    pub(super) partition: Partition,
    pub(super) day: EventDay,
}

/// What the log says of a file's rows.
#[derive(Debug, Default)]
pub(super) struct Summary {
    rows: usize,
    /// The lowest and the highest value of each column that is told of.
    spans: BTreeMap<&'static str, (i64, i64)>,
    /// The fingerprint of the rules by which the rows were read.
    rules: Option<String>,
}

/// The rows of one file.
pub(super) struct Rows {
    home: Home,
    rules: Fingerprint,
    /// In the order of offsets.
    parts: Vec<Part>,
}

/// Rows of a batch that go into one file.
struct Part {
    of: Arc<Parted>,
    /// The whole batch, or a stretch of its `order`.
    rows: Range<usize>,
}

/// A batch as the decoder made it, with all the files that its rows go into.
struct Parted {
    batch: RecordBatch,
    /// Its rows by day, those of a day as they stand; nothing where it is of one day.
    order: Option<Vec<u32>>,
}

/// A file that is ready to be put.
pub(super) struct Encoded {
    pub(super) path: Path,
    pub(super) bytes: Vec<u8>,
    pub(super) add: Add,
}

/// Parts accepted events by partition and day.
///
/// # Errors
/// Arrow's, where a batch lacks a column or has it with another type.
pub(super) fn arrange<'a>(
    batches: impl IntoIterator<Item = &'a (Partition, RecordBatch)>,
    schema: &SchemaRef,
    rules: Fingerprint,
) -> Result<Vec<Rows>, ArrowError> {
    let mut files: BTreeMap<(Partition, EventDay), Vec<Part>> = BTreeMap::new();
    for (partition, batch) in batches.into_iter().filter(|(_, batch)| batch.num_rows() > 0) {
        // What it lacks is told before any file is written.
        stored(&batch.slice(0, 0), schema, rules)?;
        let (order, days) = by_day(batch)?;
        let of = Arc::new(Parted {
            batch: batch.clone(),
            order,
        });
        for (day, rows) in days {
            let of = Arc::clone(&of);
            files.entry((*partition, day)).or_default().push(Part { of, rows });
        }
    }
    let rows = files.into_iter().map(|((partition, day), parts)| Rows {
        home: Home { partition, day },
        rules,
        parts,
    });
    Ok(rows.collect())
}

/// The lowest and the highest of a batch's offsets.
pub(super) fn offsets(batch: &RecordBatch) -> Option<(Offset, Offset)> {
    let (first, last) = span(batch, OFFSET_COLUMN)?;
    Some((Offset(u64::try_from(first).ok()?), Offset(u64::try_from(last).ok()?)))
}

/// The decoder's rows as they are stored.
fn stored(batch: &RecordBatch, schema: &SchemaRef, rules: Fingerprint) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        SCHEMA_COLUMN => {
            let text = rules.to_string();
            let texts = StringArray::from_iter_values(std::iter::repeat_n(text, batch.num_rows()));
            Ok(Arc::new(texts) as ArrayRef)
        }
        EXTRA_COLUMN if batch.column_by_name(EXTRA_COLUMN).is_none() => {
            Ok(new_null_array(field.data_type(), batch.num_rows()))
        }
        name => {
            let column = batch.column_by_name(name);
            column
                .cloned()
                .ok_or_else(|| ArrowError::SchemaError(format!("the batch has no column {name}")))
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

/// A batch's rows by day, and which of them each day's are; without an order those that there are, of one day.
type ByDay = (Option<Vec<u32>>, Vec<(EventDay, Range<usize>)>);

fn by_day(batch: &RecordBatch) -> Result<ByDay, ArrowError> {
    let times = micros(batch, EVENT_TIME_COLUMN)?;
    let days: Vec<EventDay> = times.iter().map(|micros| EventDay::of_micros(*micros)).collect();
    let Some(first) = days.first().copied() else {
        return Ok((None, Vec::new()));
    };
    if days.iter().all(|day| *day == first) {
        return Ok((None, vec![(first, 0..days.len())]));
    }
    let mut order: Vec<(EventDay, u32)> = days.into_iter().zip(0..).collect();
    // By day, then as they stand: the second of each pair tells.
    order.sort_unstable();
    let mut parts = Vec::new();
    let mut from = 0;
    for same in order.chunk_by(|(a, _), (b, _)| a == b) {
        parts.push((same[0].0, from..from + same.len()));
        from += same.len();
    }
    Ok((Some(order.into_iter().map(|(_, row)| row).collect()), parts))
}

/// Rows of several batches, to be copied into one.
#[derive(Default)]
struct Gathered<'a> {
    batches: Vec<&'a RecordBatch>,
    /// Of each row its batch, and its place there.
    rows: Vec<(usize, usize)>,
}

impl<'a> Gathered<'a> {
    /// Whether rows of that batch may come with these.
    fn has_room(&self, batch: &RecordBatch) -> bool {
        let alike = self.batches.last().is_none_or(|last| last.schema() == batch.schema());
        alike && self.rows.len() < GATHERED
    }

    fn add(&mut self, batch: &'a RecordBatch, rows: &[u32]) {
        let number = self.batches.len();
        self.batches.push(batch);
        self.rows.extend(rows.iter().map(|row| (number, *row as usize)));
    }

    /// The rows, where there are any; then there are none.
    fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let gathered = std::mem::take(self);
        if gathered.rows.is_empty() {
            return Ok(None);
        }
        interleave_record_batch(&gathered.batches, &gathered.rows).map(Some)
    }
}

impl Rows {
    /// Writes the file in memory. Takes processor time, and no other.
    ///
    /// # Errors
    /// Parquet's.
    pub(super) fn encode(&self, schema: &SchemaRef) -> Result<Encoded, ParquetError> {
        let mut writer = FileWriter::new(schema, properties()?)?;
        let mut summary = Summary::default();
        let mut bytes = Vec::new();
        let mut write = |rows: &RecordBatch| -> Result<(), ParquetError> {
            let rows = stored(rows, schema, self.rules)?;
            summary.add(&rows);
            bytes.append(&mut writer.write(&rows)?);
            Ok(())
        };
        let mut gathered = Gathered::default();
        for Part { of, rows } in &self.parts {
            if (of.order.is_none() || !gathered.has_room(&of.batch))
                && let Some(rows) = gathered.take()?
            {
                write(&rows)?;
            }
            match &of.order {
                Some(order) => gathered.add(&of.batch, order.get(rows.clone()).unwrap_or_default()),
                None => write(&of.batch)?,
            }
        }
        if let Some(rows) = gathered.take()? {
            write(&rows)?;
        }
        bytes.append(&mut writer.finish()?);
        let path = self.home.new_file(summary.first());
        Ok(Encoded {
            path: Path::from(path.as_str()),
            add: self.home.add(path, bytes.len(), &summary, true),
            bytes,
        })
    }
}

/// How files are written.
pub(super) fn properties() -> Result<WriterProperties, ParquetError> {
    let all = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_created_by("highwater".to_owned());
    // Numbers that mostly rise: as differences they are shorter than a compressor makes them, and read several times as fast.
    let rising = [OFFSET_COLUMN, KAFKA_TIME_COLUMN, EVENT_TIME_COLUMN].map(ColumnPath::from);
    let properties = rising.into_iter().fold(all, |properties, column| {
        properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column.clone(), Encoding::DELTA_BINARY_PACKED)
            .set_column_compression(column, Compression::UNCOMPRESSED)
    });
    Ok(properties.build())
}

impl Home {
    /// A name that no other file has, also not one of another try.
    pub(super) fn new_file(&self, first: Offset) -> String {
        let (date, topic) = (date_text(self.day), topic_text(self.partition.topic));
        format!(
            "{DATE_COLUMN}={date}/{TOPIC_COLUMN}={topic}/{PARTITION_COLUMN}={}/{:020}-{}.zstd.parquet",
            self.partition.number,
            first.0,
            Uuid::new_v4().simple()
        )
    }

    /// What its place says of a file.
    pub(super) fn values(&self) -> HashMap<String, Option<String>> {
        let values = [
            (DATE_COLUMN, date_text(self.day)),
            (TOPIC_COLUMN, topic_text(self.partition.topic)),
            (PARTITION_COLUMN, self.partition.number.to_string()),
        ];
        HashMap::from(values.map(|(name, value)| (name.to_owned(), Some(value))))
    }

    /// The action that puts a file into the table.
    pub(super) fn add(&self, path: String, bytes: usize, summary: &Summary, data_change: bool) -> Add {
        Add {
            path,
            partition_values: self.values(),
            size: i64::try_from(bytes).unwrap_or(i64::MAX),
            modification_time: now(),
            data_change,
            stats: Some(summary.statistics()),
            tags: None,
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        }
    }
}

/// Now, in milliseconds, for what the log tells people.
pub(super) fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

impl Summary {
    /// Adds rows that follow.
    pub(super) fn add(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows();
        for column in [OFFSET_COLUMN, KAFKA_TIME_COLUMN, EVENT_TIME_COLUMN] {
            let Some((low, high)) = span(batch, column) else {
                continue;
            };
            let held = self.spans.entry(column).or_insert((low, high));
            *held = (held.0.min(low), held.1.max(high));
        }
        // One file is of one set of rules.
        if self.rules.is_none() {
            let texts = batch.column_by_name(SCHEMA_COLUMN);
            let texts = texts.and_then(|texts| texts.as_string_opt::<i32>());
            self.rules = texts
                .and_then(|texts| texts.iter().next().flatten())
                .map(ToOwned::to_owned);
        }
    }

    /// The lowest offset.
    fn first(&self) -> Offset {
        let first = self.spans.get(OFFSET_COLUMN).map(|(first, _)| *first);
        Offset(first.and_then(|first| u64::try_from(first).ok()).unwrap_or_default())
    }

    /// Delta's statistics, of the columns that Highwater itself asks for.
    fn statistics(&self) -> String {
        let (mut lowest, mut highest, mut nulls) = (json!({}), json!({}), json!({}));
        for (column, (low, high)) in &self.spans {
            let value = |of: i64| {
                if *column == OFFSET_COLUMN {
                    json!(of)
                } else {
                    moment_text(of)
                }
            };
            lowest[*column] = value(*low);
            highest[*column] = value(*high);
            nulls[*column] = json!(0);
        }
        if let Some(rules) = &self.rules {
            for bounds in [&mut lowest, &mut highest] {
                bounds[SCHEMA_COLUMN] = json!(rules);
            }
            nulls[SCHEMA_COLUMN] = json!(0);
        }
        json!({"numRecords": self.rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls}).to_string()
    }
}

fn span(batch: &RecordBatch, column: &str) -> Option<(i64, i64)> {
    let values = micros(batch, column).ok()?;
    Some((values.iter().copied().min()?, values.iter().copied().max()?))
}

/// A column of 64-bit numbers or moments, none of which is null.
fn micros<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a [i64], ArrowError> {
    let array = batch.column_by_name(column).filter(|array| array.null_count() == 0);
    let numbers = array.and_then(|array| {
        array
            .as_primitive_opt::<Int64Type>()
            .map(|array| array.values().as_ref())
    });
    let moments = || {
        array?
            .as_primitive_opt::<TimestampMicrosecondType>()
            .map(|array| array.values().as_ref())
    };
    numbers
        .or_else(moments)
        .ok_or_else(|| ArrowError::SchemaError(format!("the batch has no whole column {column}")))
}

fn moment_text(micros: i64) -> Value {
    DateTime::from_timestamp_micros(micros).map_or(Value::Null, |moment| {
        json!(moment.to_rfc3339_opts(SecondsFormat::Micros, true))
    })
}

fn epoch() -> NaiveDate {
    DateTime::UNIX_EPOCH.date_naive()
}

/// A day as `2013-11-01`.
pub(super) fn date_text(day: EventDay) -> String {
    let date = epoch().checked_add_signed(chrono::Duration::days(day.0.into()));
    date.unwrap_or(NaiveDate::MAX).format("%Y-%m-%d").to_string()
}

/// A day from that text.
pub(super) fn date(text: &str) -> Option<EventDay> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from(date.signed_duration_since(epoch()).num_days())
        .ok()
        .map(EventDay)
}

#[cfg(test)]
mod tests {
    use object_store::PutPayload;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::super::columns::file_schema;
    use super::super::tests::{decoded, flights, partition, range};
    use super::*;

    /// Rows of so many days are parted by day, and none is copied before its file is written.
    #[test]
    fn days_share_their_batches() {
        let dataset = flights();
        let days = 400;
        let event = |offset: u64| {
            let day = DateTime::from_timestamp(i64::try_from(offset % days).unwrap() * 86_400, 0).unwrap();
            format!(r#"{{"at":"{}","origin":"JFK","delay":{offset}.5}}"#, day.to_rfc3339())
        };
        let of = [range(0, 3000), range(3000, 3001), range(3001, 5000)];
        let batches: Vec<_> = of
            .into_iter()
            .flat_map(|range| decoded(&dataset, partition(0), range, event))
            .collect();
        let (schema, rules) = (file_schema(&dataset), Fingerprint::of_rules(&dataset));
        let files = arrange(&batches, &schema, rules).unwrap();
        assert_eq!(files.len(), 400);
        let mut offsets: Vec<i64> = Vec::new();
        for file in &files {
            for part in &file.parts {
                let (_, whole) = batches.iter().find(|(_, batch)| shares(batch, &part.of.batch)).unwrap();
                let rows = part.of.order.as_ref().map_or(part.rows.len(), Vec::len);
                assert_eq!(rows, whole.num_rows());
            }
            let encoded = file.encode(&schema).unwrap();
            let bytes: <PutPayload as IntoIterator>::Item = encoded.bytes.into();
            let reader = ParquetRecordBatchReader::try_new(bytes, 100);
            let mut last = -1;
            for batch in reader.unwrap() {
                let batch = batch.unwrap();
                let found = batch.column_by_name(OFFSET_COLUMN).unwrap();
                let found = found.as_primitive::<Int64Type>();
                for offset in found.values() {
                    assert!(*offset > last, "in their order");
                    assert_eq!(*offset % 400, i64::from(file.home.day.0));
                    last = *offset;
                }
                offsets.extend(found.values());
            }
        }
        offsets.sort_unstable();
        assert_eq!(offsets, (0..5000).collect::<Vec<_>>());
    }

    fn shares(one: &RecordBatch, other: &RecordBatch) -> bool {
        one.columns()
            .iter()
            .zip(other.columns())
            .all(|(one, other)| Arc::ptr_eq(one, other))
    }
}
