//! The types that expressions may give, each with its Arrow and its ClickHouse form.
//!
//! SQL knows many more (`Int32`, `Utf8View`, `Timestamp(ns)` …). A compiled expression is always cast to one of
//! these, so that tables, states and fingerprints don't depend on what a function happens to return.

use std::fmt;

use arrow::datatypes::{DataType, TimeUnit};

use crate::dataset::FieldType;

/// What an expression gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// UTF-8 text.
    String,
    /// A truth value.
    Bool,
    /// A 64-bit signed integer.
    Int64,
    /// A finite double.
    Float64,
    /// A decimal number.
    Decimal {
        /// All digits, 1 to 38.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// A moment in UTC, in microseconds.
    Timestamp,
    /// A calendar day.
    Date,
}

/// The time zone of every timestamp.
pub const UTC: &str = "UTC";

impl ValueType {
    /// The type of a declared field's values.
    pub fn of_field(field: FieldType) -> Self {
        match field {
            FieldType::String => Self::String,
            FieldType::Bool => Self::Bool,
            FieldType::Int64 => Self::Int64,
            FieldType::Float64 => Self::Float64,
            FieldType::Decimal { precision, scale } => Self::Decimal { precision, scale },
            FieldType::Timestamp { .. } => Self::Timestamp,
            FieldType::Date => Self::Date,
        }
    }

    /// The type that values of an Arrow type become, if any does.
    pub fn of_arrow(arrow: &DataType) -> Option<Self> {
        Some(match arrow {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::String,
            DataType::Boolean => Self::Bool,
            integer if integer.is_integer() => Self::Int64,
            float if float.is_floating() => Self::Float64,
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => Self::Decimal {
                precision: *precision,
                scale: u8::try_from(*scale).ok()?,
            },
            DataType::Timestamp(..) => Self::Timestamp,
            DataType::Date32 | DataType::Date64 => Self::Date,
            _ => return None,
        })
    }

    /// The Arrow type of its columns.
    pub fn arrow(self) -> DataType {
        match self {
            Self::String => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(precision, scale.cast_signed()),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Self::Date => DataType::Date32,
        }
    }

    /// The ClickHouse type of its columns, without nulls.
    pub fn clickhouse(self) -> String {
        match self {
            Self::String => "String".to_owned(),
            Self::Bool => "Bool".to_owned(),
            Self::Int64 => "Int64".to_owned(),
            Self::Float64 => "Float64".to_owned(),
            Self::Decimal { precision, scale } => format!("Decimal({precision}, {scale})"),
            Self::Timestamp => "DateTime64(6, 'UTC')".to_owned(),
            Self::Date => "Date32".to_owned(),
        }
    }

    /// Whether values can be added up.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Int64 | Self::Float64 | Self::Decimal { .. })
    }
}

/// As written in a definition.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("string"),
            Self::Bool => f.write_str("bool"),
            Self::Int64 => f.write_str("int64"),
            Self::Float64 => f.write_str("float64"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision}, {scale})"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Date => f.write_str("date"),
        }
    }
}
