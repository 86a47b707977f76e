//! Mask rules on columns that were stored before: what was archived while a field had no rule is hidden as soon as it has one.
//!
//! A stored value is treated as that of a record which says that it was masked before: the rules change nothing of what
//! they made themselves, and a hash stays a hash, also one of an older key. So readers of the archive may apply the rules
//! to every row, and need not know under which ones it was written.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, new_null_array};
use arrow::datatypes::TimestampMicrosecondType;

use crate::dataset::{Dataset, Field};

use super::mask::{MaskKeys, Masking};
use super::{DecodeSetupError, masking};

/// The mask rules of a dataset's fields, for columns of values that were read before.
pub struct StoredMasks {
    columns: HashMap<String, Masking>,
}

impl fmt::Debug for StoredMasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.columns.keys()).finish()
    }
}

impl StoredMasks {
    /// The rules of the dataset's fields.
    ///
    /// # Errors
    /// A key that is not there, or a rule that does not fit its field.
    pub fn new(dataset: &Dataset, keys: &dyn MaskKeys) -> Result<Self, DecodeSetupError> {
        let of_field = |field: &Field| {
            let mask = field.mask.as_ref()?;
            Some(masking(field, mask, keys).map(|masking| (field.name.clone(), masking)))
        };
        let columns = dataset.fields.iter().filter_map(of_field).collect::<Result<_, _>>()?;
        Ok(Self { columns })
    }

    /// The field's column, masked. A column that its rule can't read is hidden as a whole.
    pub fn apply(&self, field: &str, column: &ArrayRef) -> ArrayRef {
        let Some(masking) = self.columns.get(field) else {
            return Arc::clone(column);
        };
        let hidden = || new_null_array(column.data_type(), column.len());
        if matches!(masking, Masking::Drop) {
            return hidden();
        }
        if let Some(texts) = column.as_string_opt::<i32>() {
            let mut masked = StringBuilder::with_capacity(texts.len(), 0);
            let mut scratch = String::new();
            for text in texts {
                match text {
                    Some(text) => masked.append_option(masking.text(text, true, &mut scratch)),
                    None => masked.append_null(),
                }
            }
            return Arc::new(masked.finish());
        }
        let Some(moments) = column.as_primitive_opt::<TimestampMicrosecondType>() else {
            return hidden();
        };
        let masked = moments.unary_opt::<_, TimestampMicrosecondType>(|micros| masking.moment(micros));
        Arc::new(masked.with_data_type(column.data_type().clone()))
    }
}
