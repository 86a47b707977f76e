//! Fields that were declared after a file was written: read from what it keeps of undeclared data.
//!
//! Undeclared data is kept as it came, so a field that is declared today is there in the events of years ago, and a new
//! measure has all its history. It is read by the decoder itself, field by field: a value that would refuse a new record
//! is null here, since the record was accepted long ago. Mask rules are applied by the caller, as to stored columns.

use arrow::array::{Array, ArrayRef, StringArray, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take};
use arrow::error::ArrowError;
use shared_schemas::dataset::{Dataset, EventTime, Field, FieldSource, Privacy};
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::view::ValueType;

/// Of the field's values in `extra`, which is `_extra` of some rows: a column of its type.
///
/// # Errors
/// Arrow's, where the decoder makes another column than it says.
pub(super) fn column(dataset: &Dataset, field: &Field, extra: &StringArray) -> Result<ArrayRef, ArrowError> {
    let data_type = &ValueType::of_field(field.field_type).arrow();
    let nothing = || new_null_array(data_type, extra.len());
    if !matches!(field.source, FieldSource::Path(_)) || extra.null_count() == extra.len() {
        return Ok(nothing());
    }
    let alone = Dataset {
        fields: vec![Field {
            nullable: true,
            mask: None,
            ..field.clone()
        }],
        event_time: EventTime::KafkaTime,
        event_id: Vec::new(),
        max_event_size: usize::MAX,
        privacy: Privacy::default(),
        ..dataset.clone()
    };
    let options = Options {
        extra: false,
        keys: &EnvironmentKeys,
    };
    let Ok(mut decoder) = Decoder::new(&alone, options) else {
        return Ok(nothing());
    };
    let mut next = 0;
    let places = extra.iter().map(|text| {
        let record = Record {
            partition: 0,
            offset: 0,
            timestamp: Some(0),
            key: None,
            value: Some(text?.as_bytes()),
            headers: &(),
        };
        decoder.push(&record).ok()?;
        next += 1;
        Some(next - 1)
    });
    let places: UInt32Array = places.collect();
    let schema = decoder.schema();
    let read = concat_batches(&schema, &decoder.finish())?;
    match read.column_by_name(&field.name) {
        Some(values) if values.data_type() == data_type && !values.is_empty() => take(values.as_ref(), &places, None),
        _ => Ok(nothing()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    use super::*;
    use crate::archive::tests::dataset;

    #[test]
    fn values_are_read_where_there_are_some() {
        let dataset = dataset("seats = \"int64\"\ncity = { type = \"string?\", from = \"geo.city\" }");
        let extra = StringArray::from(vec![
            Some(r#"{"seats":12,"geo":{"city":"Oslo"}}"#),
            None,
            Some(r#"{"seats":"many"}"#),
            Some(r#"{"geo":{"city":"東京","code":7}}"#),
            Some(r#"{"seats":-1}"#),
        ]);
        let field = |name: &str| dataset.field(name).unwrap();
        let seats = column(&dataset, field("seats"), &extra).unwrap();
        let seats: Vec<_> = seats.as_primitive::<Int64Type>().iter().collect();
        assert_eq!(seats, [Some(12), None, None, None, Some(-1)]);
        let cities = column(&dataset, field("city"), &extra).unwrap();
        let cities: Vec<_> = cities.as_string::<i32>().iter().collect();
        assert_eq!(cities, [Some("Oslo"), None, None, Some("東京"), None]);
        let none = StringArray::new_null(3);
        let nothing = column(&dataset, field("city"), &none).unwrap();
        assert_eq!((nothing.len(), nothing.null_count()), (3, 3));
    }
}
