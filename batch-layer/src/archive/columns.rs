//! The columns of the archive, and how they grow.
//!
//! Highwater's own columns come first: Delta keeps statistics of the first 32 columns only. Declared fields follow in the
//! order in which they were first declared. All of them may be null in the archive, whatever the definition says, since
//! files that are older than a field lack it.
//!
//! A field that is new in the definition is added by the next commit. A field that is gone stays, and new files lack it.
//! A field with another type than before is refused ([`ArchiveError::FieldChanged`]): its old values would be read as
//! something else, and nothing that arrived may be thrown away.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use deltalake::kernel::{DataType as DeltaType, PrimitiveType, StructField, StructType};
use shared_schemas::dataset::{
    Dataset, EVENT_TIME_COLUMN, EXTRA_COLUMN, FieldType, KAFKA_TIME_COLUMN, OFFSET_COLUMN, PARTITION_COLUMN,
};
use shared_schemas::plan;

use super::error::ArchiveError;

/// Name of the column that holds the event's day in UTC; each file holds one.
pub const DATE_COLUMN: &str = "_date";
/// Name of the column that holds the topic's incarnation, 32 hexadecimal digits; each file holds one.
pub const TOPIC_COLUMN: &str = "_topic";
/// Name of the column that holds the fingerprint of the rules by which the record was read.
pub const SCHEMA_COLUMN: &str = "_schema";

/// The columns that are told by a file's place, in the order of its folders.
pub(super) const PLACES: [&str; 3] = [DATE_COLUMN, TOPIC_COLUMN, PARTITION_COLUMN];

/// The columns inside the files that a dataset's archiver writes now.
pub(super) fn file_schema(dataset: &Dataset) -> SchemaRef {
    let events = plan::event_schema(dataset);
    let own = [OFFSET_COLUMN, KAFKA_TIME_COLUMN, EVENT_TIME_COLUMN].map(|name| {
        let time = || {
            events
                .field_with_name(KAFKA_TIME_COLUMN)
                .map(|field| field.data_type().clone())
        };
        let data_type = if name == OFFSET_COLUMN {
            DataType::Int64
        } else {
            time().unwrap_or(DataType::Null)
        };
        Field::new(name, data_type, false)
    });
    let texts = [
        Field::new(SCHEMA_COLUMN, DataType::Utf8, false),
        Field::new(EXTRA_COLUMN, DataType::Utf8, true),
    ];
    let declared =
        (events.fields.iter().zip(&dataset.fields)).map(|(field, _)| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(
        own.into_iter().chain(texts).chain(declared).collect::<Vec<_>>(),
    ))
}

/// The columns that readers get: those of a view's plan, and the topic's incarnation.
pub(super) fn read_schema(dataset: &Dataset) -> SchemaRef {
    let events = plan::event_schema(dataset);
    let topic = Arc::new(Field::new(TOPIC_COLUMN, DataType::Utf8, false));
    Arc::new(Schema::new(
        events.fields.iter().cloned().chain([topic]).collect::<Vec<_>>(),
    ))
}

/// The same in types that are read without a copy of each text: a topic is told once a batch, and texts stay in the file's pages,
/// but for those that a rule masks.
pub(super) fn lean(schema: &Schema, dataset: &Dataset) -> SchemaRef {
    let masked = |name: &str| dataset.field(name).is_some_and(|field| field.mask.is_some());
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 if field.name() == TOPIC_COLUMN => {
            let name = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
            Arc::new(field.as_ref().clone().with_data_type(name))
        }
        DataType::Utf8 if !masked(field.name()) => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// The columns of a new table.
pub(super) fn table_fields(dataset: &Dataset) -> Vec<StructField> {
    let own = [
        StructField::nullable(OFFSET_COLUMN, DeltaType::LONG),
        StructField::nullable(KAFKA_TIME_COLUMN, DeltaType::TIMESTAMP),
        StructField::nullable(EVENT_TIME_COLUMN, DeltaType::TIMESTAMP),
        StructField::nullable(DATE_COLUMN, DeltaType::DATE),
        StructField::nullable(TOPIC_COLUMN, DeltaType::STRING),
        StructField::nullable(PARTITION_COLUMN, DeltaType::INTEGER),
        StructField::nullable(SCHEMA_COLUMN, DeltaType::STRING),
        StructField::nullable(EXTRA_COLUMN, DeltaType::STRING),
    ];
    let declared = dataset
        .fields
        .iter()
        .map(|field| StructField::nullable(&field.name, delta_type(field.field_type)));
    own.into_iter().chain(declared).collect()
}

/// The table's columns once this dataset's fields are among them; nothing where they are.
///
/// # Errors
/// A field that is archived with another type.
pub(super) fn grown(table: &StructType, dataset: &Dataset) -> Result<Option<Vec<StructField>>, ArchiveError> {
    let mut new = Vec::new();
    for field in table_fields(dataset) {
        match table.field(field.name()) {
            None => new.push(field),
            Some(there) if there.data_type() == field.data_type() => {}
            Some(there) => {
                return Err(ArchiveError::FieldChanged {
                    field: field.name().clone(),
                    archived: there.data_type().to_string(),
                    declared: field.data_type().to_string(),
                });
            }
        }
    }
    if new.is_empty() {
        return Ok(None);
    }
    Ok(Some(table.fields().cloned().chain(new).collect()))
}

fn delta_type(field_type: FieldType) -> DeltaType {
    match field_type {
        FieldType::String => DeltaType::STRING,
        FieldType::Bool => DeltaType::BOOLEAN,
        FieldType::Int64 => DeltaType::LONG,
        FieldType::Float64 => DeltaType::DOUBLE,
        FieldType::Decimal { precision, scale } => {
            // A checked dataset's decimals have 1 to 28 digits, which every decimal type can have.
            PrimitiveType::decimal(precision, scale).map_or(DeltaType::STRING, DeltaType::Primitive)
        }
        FieldType::Timestamp { .. } => DeltaType::TIMESTAMP,
        FieldType::Date => DeltaType::DATE,
    }
}
