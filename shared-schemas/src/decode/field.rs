//! One declared field: from what a record holds to a value in its column, strictly by the table in `docs/reading-records.md`.

use crate::dataset::{Field, FieldSource, FieldType};

use super::column::Column;
use super::mask::Masking;
use super::outline::Place;
use super::refusal::{Reason, Refusal};
use super::scan::{self, Kind};
use super::{LARGEST_TEXT, Record, number, time};

/// The most bytes by which a mask makes a text longer.
const HASHED: usize = 64;

/// A declared field, ready for reading.
pub(super) struct Input {
    name: String,
    field_type: FieldType,
    nullable: bool,
    source: Source,
    masking: Option<Masking>,
}

/// Where its values come from.
pub(super) enum Source {
    /// The path noted under that number.
    Path(usize),
    Key,
    KafkaTime,
    Partition,
    Header(String),
}

/// What a field reads from.
pub(super) struct Context<'a> {
    pub(super) record: &'a Record<'a>,
    /// The record's value.
    pub(super) text: &'a str,
    pub(super) places: &'a [Place],
    /// The Kafka timestamp in microseconds, or why there is none.
    pub(super) kafka_time: Result<i64, (Reason, &'static str)>,
    /// Whether the record says that it was masked before.
    pub(super) masked: bool,
}

/// Memory kept between records.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) plain: String,
    pub(super) masked: String,
    /// At least the bytes of text that were put into columns, masked or not.
    pub(super) text: usize,
}

/// A value before it is known to fit.
enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(&'a str),
    Object,
    Array,
}

impl Value<'_> {
    fn noun(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::Object => "an object",
            Value::Array => "an array",
        }
    }
}

impl Input {
    pub(super) fn new(field: &Field, source: Source, masking: Option<Masking>) -> Self {
        let Field {
            name,
            field_type,
            nullable,
            ..
        } = field.clone();
        Input {
            name,
            field_type,
            nullable,
            source,
            masking,
        }
    }

    /// Reads the field's value of a record into its column. A refusal leaves the column as it was.
    #[inline]
    pub(super) fn read(
        &self,
        context: &Context<'_>,
        column: &mut Column,
        scratch: &mut Scratch,
    ) -> Result<(), Refusal> {
        let Scratch { plain, masked, text } = scratch;
        let value = match &self.source {
            Source::Path(place) => match context.places[*place] {
                Place::Absent => Value::Null,
                Place::Blocked(_) => return Err(self.blocked(context)),
                Place::At(token) => match token.kind {
                    Kind::Null => Value::Null,
                    Kind::True => Value::Bool(true),
                    Kind::False => Value::Bool(false),
                    Kind::Number => Value::Number(token.raw(context.text)),
                    Kind::Plain => Value::Text(token.inner(context.text)),
                    Kind::Escaped => {
                        plain.clear();
                        scan::unescape(token.inner(context.text), plain);
                        Value::Text(plain)
                    }
                    Kind::Object => Value::Object,
                    Kind::Array => Value::Array,
                },
            },
            Source::Key => self.plain(context.record.key, context)?,
            Source::Header(name) => self.plain(context.record.headers.last(name).flatten(), context)?,
            Source::Partition => {
                self.unless_dropped(column, |column| column.push_int64(i64::from(context.record.partition)));
                return Ok(());
            }
            Source::KafkaTime => {
                let micros = context
                    .kafka_time
                    .map_err(|(reason, why)| Refusal::new(reason, self.sentence(why, context)))?;
                self.moment(micros, column);
                return Ok(());
            }
        };
        if let Value::Text(long) = value {
            *text += long.len() + HASHED;
        }
        self.push(&value, context.masked, column, masked)
            .map_err(|reason| self.refusal(reason, &value, context))
    }

    /// The text of a key or header as the field's type would be written in JSON.
    fn plain<'a>(&self, bytes: Option<&'a [u8]>, context: &Context<'_>) -> Result<Value<'a>, Refusal> {
        let Some(bytes) = bytes else { return Ok(Value::Null) };
        if bytes.len() > LARGEST_TEXT {
            return Err(Refusal::new(
                Reason::TooLarge,
                self.sentence("more than 1 GiB", context),
            ));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Refusal::new(Reason::BadUtf8, self.sentence("not UTF-8", context)))?;
        Ok(match (self.field_type, text) {
            (FieldType::Bool, "true") => Value::Bool(true),
            (FieldType::Bool, "false") => Value::Bool(false),
            (FieldType::Int64 | FieldType::Float64 | FieldType::Timestamp { .. }, text) if scan::is_number(text) => {
                Value::Number(text)
            }
            _ => Value::Text(text),
        })
    }

    #[inline]
    fn push(&self, value: &Value<'_>, masked: bool, column: &mut Column, out: &mut String) -> Result<(), Reason> {
        match (self.field_type, value) {
            (_, Value::Null) if self.nullable => column.push_null(),
            (_, Value::Null) => return Err(Reason::MissingField),
            (FieldType::String, Value::Text(text)) => match &self.masking {
                None => column.push_text(text),
                Some(masking) => match masking.text(text, masked, out) {
                    Some(text) => column.push_text(text),
                    None => column.push_null(),
                },
            },
            (FieldType::Int64, Value::Number(literal)) => {
                let value = number::int64(literal)?;
                self.unless_dropped(column, |column| column.push_int64(value));
            }
            (FieldType::Float64, Value::Number(literal)) => {
                let value = number::float64(literal)?;
                self.unless_dropped(column, |column| column.push_float64(value));
            }
            (FieldType::Bool, Value::Bool(value)) => self.unless_dropped(column, |column| column.push_bool(*value)),
            (FieldType::Decimal { precision, scale }, Value::Number(literal)) => {
                let value = number::decimal(literal, precision, scale)?;
                self.unless_dropped(column, |column| column.push_decimal(value));
            }
            (FieldType::Decimal { precision, scale }, Value::Text(literal)) if scan::is_number(literal) => {
                let value = number::decimal(literal, precision, scale)?;
                self.unless_dropped(column, |column| column.push_decimal(value));
            }
            (FieldType::Timestamp { .. }, Value::Text(text)) => {
                self.moment(time::rfc3339(text).ok_or(Reason::BadTime)?, column);
            }
            (FieldType::Timestamp { unit: Some(unit) }, Value::Number(literal)) => {
                self.moment(time::count(literal, unit).ok_or(Reason::BadTime)?, column);
            }
            (FieldType::Date, Value::Text(text)) => {
                let value = time::date(text).ok_or(Reason::BadTime)?;
                self.unless_dropped(column, |column| column.push_day(value));
            }
            (FieldType::Timestamp { .. } | FieldType::Date, _) => return Err(Reason::BadTime),
            _ => return Err(Reason::WrongType),
        }
        Ok(())
    }

    /// Only text and moments can be masked other than by dropping them.
    #[inline]
    fn unless_dropped(&self, column: &mut Column, push: impl FnOnce(&mut Column)) {
        match self.masking {
            None => push(column),
            Some(_) => column.push_null(),
        }
    }

    fn moment(&self, micros: i64, column: &mut Column) {
        match self
            .masking
            .as_ref()
            .map_or(Some(micros), |masking| masking.moment(micros))
        {
            Some(micros) => column.push_moment(micros),
            None => column.push_null(),
        }
    }

    #[cold]
    fn blocked(&self, context: &Context<'_>) -> Refusal {
        let why = "expected an object on the way to it, found something else";
        Refusal::new(Reason::WrongType, self.sentence(why, context))
    }

    /// Says what was wrong: the kinds of things and where they stand, no value.
    #[cold]
    fn refusal(&self, reason: Reason, value: &Value<'_>, context: &Context<'_>) -> Refusal {
        let why = match (reason, self.field_type) {
            (Reason::MissingField, _) => "may not be null or missing".to_owned(),
            (Reason::Inexact, FieldType::Decimal { scale, .. }) => format!("more than {scale} digits after the point"),
            (Reason::OutOfRange, field_type) => format!("a number beyond the range of {}", noun(field_type)),
            (_, FieldType::Int64) if matches!(value, Value::Number(_)) => {
                "expected int64, found a number with a point or an exponent".to_owned()
            }
            (_, FieldType::Timestamp { unit: None }) => {
                format!(
                    "expected a time as RFC 3339 with an offset or Z in the years 1970 to 2299, found {}",
                    told(value)
                )
            }
            (_, FieldType::Timestamp { unit: Some(_) }) => {
                format!(
                    "expected a time as RFC 3339 with an offset or Z, or as a number, in the years 1970 to 2299, found {}",
                    told(value)
                )
            }
            (_, FieldType::Date) => format!(
                "expected a date as YYYY-MM-DD in the years 1900 to 2299, found {}",
                told(value)
            ),
            (_, field_type) => format!("expected {}, found {}", noun(field_type), value.noun()),
        };
        Refusal::new(reason, self.sentence(&why, context))
    }

    /// "field `x` at byte 17: …"
    fn sentence(&self, why: &str, context: &Context<'_>) -> String {
        let place = match &self.source {
            Source::Path(place) => match context.places[*place] {
                Place::Absent => String::new(),
                Place::Blocked(at) => format!(" at byte {at}"),
                Place::At(token) => format!(" at byte {}", token.start),
            },
            Source::Key => " in the key".to_owned(),
            Source::KafkaTime => " from the Kafka timestamp".to_owned(),
            Source::Partition => " from the partition".to_owned(),
            Source::Header(header) => format!(" in header `{header}`"),
        };
        format!("field `{}`{place}: {why}", self.name)
    }
}

/// What was found where a time was expected: of the right kind, its form is wrong.
fn told(value: &Value<'_>) -> &'static str {
    match value {
        Value::Text(_) => "another text",
        Value::Number(_) => "a number",
        value => value.noun(),
    }
}

fn noun(field_type: FieldType) -> String {
    match field_type {
        FieldType::String => "a string".to_owned(),
        FieldType::Bool => "a boolean".to_owned(),
        FieldType::Int64 => "int64".to_owned(),
        FieldType::Float64 => "float64".to_owned(),
        FieldType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        FieldType::Timestamp { .. } => "a time".to_owned(),
        FieldType::Date => "a date".to_owned(),
    }
}

/// The source of a declared field; `None` if its type can't come from there.
pub(super) fn source(field: &Field, place: impl FnOnce(&[String]) -> usize) -> Option<Source> {
    match (&field.source, field.field_type) {
        (FieldSource::Path(path), _) if path.is_empty() => None,
        (FieldSource::Path(path), _) => Some(Source::Path(place(path))),
        (FieldSource::Key, _) => Some(Source::Key),
        (FieldSource::Header(name), _) => Some(Source::Header(name.clone())),
        (FieldSource::KafkaTime, FieldType::Timestamp { .. }) => Some(Source::KafkaTime),
        (FieldSource::Partition, FieldType::Int64) => Some(Source::Partition),
        (FieldSource::KafkaTime | FieldSource::Partition, _) => None,
    }
}
