//! Why a record was refused: a reason with a stable name, and a sentence for a person.
//!
//! The sentence names the field, what was expected, what was found and where, never a value: it travels in a header
//! of the dead letter and into logs, where no mask rule reaches any more.

use std::fmt;

/// Why a record was refused. The names are a contract: dead letters and metrics carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Larger than the dataset's `max_event_size`.
    TooLarge,
    /// No value, or null.
    Empty,
    /// The value, or a key or header that a field reads, is not UTF-8.
    BadUtf8,
    /// The value is not exactly one JSON text.
    NotJson,
    /// The value is JSON, but no object.
    NotObject,
    /// A field that may not be null is null or absent.
    MissingField,
    /// A value of another type than the field's.
    WrongType,
    /// A number too large for the field's type.
    OutOfRange,
    /// More digits after the point than the decimal keeps.
    Inexact,
    /// Not a timestamp or date as the field wants it.
    BadTime,
    /// The event time is too far ahead of the record's Kafka timestamp.
    FutureTime,
}

impl Reason {
    /// Every reason, in the order in which a record is checked for them.
    pub const ALL: [Reason; 11] = [
        Reason::TooLarge,
        Reason::Empty,
        Reason::BadUtf8,
        Reason::NotJson,
        Reason::NotObject,
        Reason::MissingField,
        Reason::WrongType,
        Reason::OutOfRange,
        Reason::Inexact,
        Reason::BadTime,
        Reason::FutureTime,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::TooLarge => "too_large",
            Reason::Empty => "empty",
            Reason::BadUtf8 => "bad_utf8",
            Reason::NotJson => "not_json",
            Reason::NotObject => "not_object",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::OutOfRange => "out_of_range",
            Reason::Inexact => "inexact",
            Reason::BadTime => "bad_time",
            Reason::FutureTime => "future_time",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A record that was refused: it left no row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// The reason, for counting.
    pub reason: Reason,
    /// A sentence with field and position, for a person; it holds no value of the record.
    pub detail: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Refusal { reason, detail }
    }
}
