//! From a Kafka record to a row of an Arrow batch, or to a reason why not: the one reader of all layers.
//!
//! Speed layer and archiver read the same bytes with this same code, so they accept, refuse, mask and bucket every event
//! alike. The outcome depends on the record and the dataset's rules alone, never on a clock, on other records or on where
//! batches end. `docs/reading-records.md` has the rules; the reasons are checked in the order of [`Reason::ALL`], fields
//! in the order of their definition.
//!
//! ```text
//! value ─ size, UTF-8 ─► scan + outline ─ places ─► field by field: literal, mask ─► columns ─ finish ─► RecordBatch
//!                        (one strict pass)          (definition order)               (cut back on refusal)
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};

use crate::dataset::{
    Dataset, EVENT_TIME_COLUMN, EXTRA_COLUMN, EventTime, Field, FieldType, KAFKA_TIME_COLUMN, Mask, OFFSET_COLUMN,
    PARTITION_COLUMN, Truncate, Undeclared,
};

mod column;
mod extra;
mod field;
mod mask;
mod number;
mod outline;
mod refusal;
mod scan;
mod stored;
mod time;
mod undeclared;

#[cfg(test)]
mod tests;

pub use mask::{EnvironmentKeys, MaskKeys};
pub use refusal::{Reason, Refusal};
pub use stored::StoredMasks;

use column::{Column, Values};
use field::{Context, Input, Scratch};
use mask::{KeyFault, Masking};
use outline::{Found, Outline};
use undeclared::Rules;

/// The version of the rules by which records are read, part of every fingerprint: a change in what is accepted, or in
/// what it becomes, is another version.
pub const VERSION: u32 = 1;

/// A record with this header was masked before it was sent again.
pub const MASKED_HEADER: &str = "highwater-masked";

/// No text above this is read, whatever `max_event_size` says: a batch's columns hold at most 2 GiB of text.
const LARGEST_TEXT: usize = 1 << 30;

/// One Kafka record.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its Kafka timestamp, in milliseconds since 1970 as Kafka keeps it; `None` where it has none.
    pub timestamp: Option<i64>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers; `&()` where there are none.
    pub headers: &'a dyn Headers,
}

/// A record's headers. They are asked for only where a dataset reads one or hashes a field.
pub trait Headers {
    /// The last header of that name: `None` if there is none, `Some(None)` if it has no value.
    fn last(&self, name: &str) -> Option<Option<&[u8]>>;
}

impl Headers for () {
    fn last(&self, _: &str) -> Option<Option<&[u8]>> {
        None
    }
}

impl Headers for &[(&str, Option<&[u8]>)] {
    fn last(&self, name: &str) -> Option<Option<&[u8]>> {
        self.iter().rfind(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// What a decoder is asked for beyond the dataset's fields.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Whether to keep undeclared fields in `_extra`.
    pub extra: bool,
    /// The keys for `hash` rules.
    pub keys: &'a dyn MaskKeys,
}

/// Why there can be no decoder for a dataset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeSetupError {
    /// A `hash` rule's key is not there.
    #[error("field `{field}` is to be hashed with the key in {variable}, which is not set: set it to a secret")]
    MissingKey {
        /// The field with the rule.
        field: String,
        /// The environment variable.
        variable: String,
    },
    /// A `hash` rule's key is empty, so anyone could undo the hash by trying.
    #[error("field `{field}` is to be hashed with the key in {variable}, which is empty: set it to a secret")]
    EmptyKey {
        /// The field with the rule.
        field: String,
        /// The environment variable.
        variable: String,
    },
    /// The field's type can't come from its source.
    #[error("field `{field}` can't be read from there: $kafka_time gives a timestamp, $partition an int64")]
    Source {
        /// The field.
        field: String,
    },
    /// The field's type can't be masked so.
    #[error(
        "field `{field}` can't be masked so: hash, redact and truncation to characters or a network want a string, \
             truncation to hour or day a timestamp, drop a field that may be null"
    )]
    Mask {
        /// The field.
        field: String,
    },
    /// The event time is no such field as it must be.
    #[error("the event time `{field}` must be a declared timestamp that is never null and not masked")]
    EventTime {
        /// The field.
        field: String,
    },
}

/// Reads the records of one dataset into batches.
pub struct Decoder {
    schema: SchemaRef,
    max_event_size: usize,
    future: i64,
    extra: bool,
    /// Whether undeclared data is put there.
    keeps_extra: bool,
    /// What is masked of it.
    rules: Rules,
    /// Whether a record's claim to have been masked before matters.
    hashes: bool,
    inputs: Vec<Input>,
    /// The event time's field; `None`: the Kafka timestamp.
    event_time: Option<usize>,
    outline: Outline,
    found: Found,
    scratch: Scratch,
    extra_text: String,
    /// The declared fields' columns.
    columns: Vec<Column>,
    partition: Column,
    offset: Column,
    kafka_time: Column,
    extra_column: Column,
    rows: usize,
    /// With so many bytes of text the batch is closed.
    seal_at: usize,
    sealed: Vec<RecordBatch>,
}

impl Decoder {
    /// A decoder for the dataset's records.
    pub fn new(dataset: &Dataset, options: Options<'_>) -> Result<Self, DecodeSetupError> {
        let mut outline = Outline::new();
        let mut inputs = Vec::with_capacity(dataset.fields.len());
        for field in &dataset.fields {
            let masking = match &field.mask {
                Some(mask) => Some(masking(field, mask, options.keys)?),
                None => None,
            };
            let source = field::source(field, |path| outline.place(path)).ok_or_else(|| DecodeSetupError::Source {
                field: field.name.clone(),
            })?;
            inputs.push(Input::new(field, source, masking));
        }
        let rules = Rules::new(&dataset.privacy.paths, options.keys);
        let rules = rules.map_err(|(rule, fault)| no_key(rule.written(), &rule.mask, fault))?;
        let event_time = match &dataset.event_time {
            EventTime::KafkaTime => None,
            EventTime::Field(name) => {
                let index = dataset.fields.iter().position(|field| {
                    let timestamp = matches!(field.field_type, FieldType::Timestamp { .. });
                    field.name == *name && timestamp && !field.nullable && field.mask.is_none()
                });
                Some(index.ok_or_else(|| DecodeSetupError::EventTime { field: name.clone() })?)
            }
        };
        Ok(Decoder {
            schema: schema(dataset, options.extra),
            max_event_size: dataset.max_event_size.min(LARGEST_TEXT),
            future: i64::try_from(dataset.future.as_micros()).unwrap_or(i64::MAX),
            extra: options.extra,
            keeps_extra: options.extra && dataset.privacy.undeclared == Undeclared::Keep,
            rules,
            hashes: !dataset.key_variables().is_empty(),
            columns: dataset
                .fields
                .iter()
                .map(|field| Column::of(field.field_type, field.nullable))
                .collect(),
            inputs,
            event_time,
            outline,
            found: Found::default(),
            scratch: Scratch::default(),
            extra_text: String::new(),
            partition: Column::new(Values::Int32(Vec::new()), false),
            offset: Column::of(FieldType::Int64, false),
            kafka_time: Column::of(FieldType::Timestamp { unit: None }, false),
            extra_column: Column::of(FieldType::String, true),
            rows: 0,
            seal_at: LARGEST_TEXT - 1,
            sealed: Vec::new(),
        })
    }

    /// The schema of the batches: the declared fields in the order of their definition, then [`PARTITION_COLUMN`],
    /// [`OFFSET_COLUMN`], [`KAFKA_TIME_COLUMN`], [`EVENT_TIME_COLUMN`] and, when asked for, [`EXTRA_COLUMN`].
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// How many rows are waiting for [`Decoder::finish`].
    pub fn rows(&self) -> usize {
        self.sealed.iter().map(RecordBatch::num_rows).sum::<usize>() + self.rows
    }

    /// Reads a record: one more row, or a refusal and nothing else.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), Refusal> {
        if self.scratch.text >= self.seal_at {
            self.seal();
        }
        let read = self.read(record);
        match read {
            Ok(()) => self.rows += 1,
            Err(_) => self.cut_back(),
        }
        read
    }

    /// All rows since the last time, in the order in which their records came: one batch, none without rows, more if
    /// the texts would be too much for one.
    pub fn finish(&mut self) -> Vec<RecordBatch> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }

    fn read(&mut self, record: &Record<'_>) -> Result<(), Refusal> {
        let value = record.value.unwrap_or_default();
        if value.len() > self.max_event_size {
            let detail = format!(
                "the value has {} bytes, the dataset takes {}",
                value.len(),
                self.max_event_size
            );
            return Err(Refusal::new(Reason::TooLarge, detail));
        }
        if value.is_empty() {
            return Err(Refusal::new(Reason::Empty, "there is no value"));
        }
        let text = std::str::from_utf8(value).map_err(|error| {
            Refusal::new(
                Reason::BadUtf8,
                format!("the value is not UTF-8 at byte {}", error.valid_up_to()),
            )
        })?;
        self.outline.walk(text, &mut self.found, self.keeps_extra)?;

        let kafka_time = kafka_time(record.timestamp);
        let masked = self.hashes && record.headers.last(MASKED_HEADER).is_some();
        let context = Context {
            record,
            text,
            places: &self.found.places,
            kafka_time,
            masked,
        };
        for (input, column) in self.inputs.iter().zip(&mut self.columns) {
            input.read(&context, column, &mut self.scratch)?;
        }

        let kafka_time = kafka_time.map_err(|(reason, why)| Refusal::new(reason, format!("the record: {why}")))?;
        let event_time = self.event_time.and_then(|index| self.columns[index].last_moment());
        if event_time.is_some_and(|event_time| event_time.saturating_sub(kafka_time) > self.future) {
            let detail = "the event time is further ahead of the Kafka timestamp than the dataset's `future` allows";
            return Err(Refusal::new(Reason::FutureTime, detail));
        }
        self.partition.push_int32(record.partition);
        self.offset.push_int64(record.offset);
        self.kafka_time.push_moment(kafka_time);
        if self.extra {
            self.extra_text.clear();
            let rules = self.rules.root();
            let left = self.keeps_extra && extra::write(&self.found, text, rules, masked, &mut self.extra_text);
            // Hashes can be so much longer than what they hide that no column takes them.
            if left && self.extra_text.len() <= LARGEST_TEXT {
                self.scratch.text += self.extra_text.len();
                self.extra_column.push_text(&self.extra_text);
            } else {
                self.extra_column.push_null();
            }
        }
        Ok(())
    }

    /// Forgets what a refused record left behind. The columns that follow the declared ones are filled last, together.
    #[cold]
    fn cut_back(&mut self) {
        for column in &mut self.columns {
            column.truncate(self.rows);
        }
    }

    /// Closes the batch that is being filled.
    fn seal(&mut self) {
        if self.rows == 0 {
            return;
        }
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        let kafka_time = self.kafka_time.finish();
        let event_time = Arc::clone(self.event_time.map_or(&kafka_time, |index| &arrays[index]));
        arrays.extend([self.partition.finish(), self.offset.finish(), kafka_time, event_time]);
        if self.extra {
            arrays.push(self.extra_column.finish());
        }
        #[expect(
            clippy::expect_used,
            reason = "the columns were made for this schema and are filled together"
        )]
        let batch = RecordBatch::try_new(self.schema(), arrays).expect("columns fit the schema");
        self.sealed.push(batch);
        self.rows = 0;
        self.scratch.text = 0;
    }
}

fn masking(field: &Field, mask: &Mask, keys: &dyn MaskKeys) -> Result<Masking, DecodeSetupError> {
    let name = || field.name.clone();
    let fits = match mask {
        Mask::Drop => field.nullable,
        Mask::Hash { .. } | Mask::Redact | Mask::Truncate(Truncate::Characters(_) | Truncate::Network) => {
            field.field_type == FieldType::String
        }
        Mask::Truncate(Truncate::Hour | Truncate::Day) => matches!(field.field_type, FieldType::Timestamp { .. }),
    };
    if !fits {
        return Err(DecodeSetupError::Mask { field: name() });
    }
    Masking::new(mask, keys).map_err(|fault| no_key(name(), mask, fault))
}

fn no_key(field: String, mask: &Mask, fault: KeyFault) -> DecodeSetupError {
    let variable = if let Mask::Hash { key } = mask {
        key.clone()
    } else {
        String::new()
    };
    match fault {
        KeyFault::Missing => DecodeSetupError::MissingKey { field, variable },
        KeyFault::Empty => DecodeSetupError::EmptyKey { field, variable },
    }
}

/// The Kafka timestamp in microseconds.
fn kafka_time(timestamp: Option<i64>) -> Result<i64, (Reason, &'static str)> {
    let Some(millis) = timestamp else {
        return Err((Reason::MissingField, "it has no Kafka timestamp"));
    };
    let micros = millis.checked_mul(1000).and_then(time::moment);
    micros.ok_or((Reason::BadTime, "its Kafka timestamp is not in the years 1970 to 2299"))
}

fn schema(dataset: &Dataset, extra: bool) -> SchemaRef {
    let declared = dataset.fields.iter();
    let declared =
        declared.map(|field| ArrowField::new(&field.name, column::arrow_type(field.field_type), field.nullable));
    let mut fields: Vec<ArrowField> = declared.collect();
    fields.extend([
        ArrowField::new(PARTITION_COLUMN, DataType::Int32, false),
        ArrowField::new(OFFSET_COLUMN, DataType::Int64, false),
        ArrowField::new(KAFKA_TIME_COLUMN, column::moment_type(), false),
        ArrowField::new(EVENT_TIME_COLUMN, column::moment_type(), false),
    ]);
    if extra {
        fields.push(ArrowField::new(EXTRA_COLUMN, DataType::Utf8, true));
    }
    Arc::new(Schema::new(fields))
}
