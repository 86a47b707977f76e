//! What tells values apart, in so many bits: what sets are made of.
//!
//! A value that fits into 64 bits stands for itself, so a set of them is a set of values; others stand by a hash of 128
//! bits, of which two would have to be alike by chance among some 10^19. The same hash on every machine and for ever: it is
//! stored.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, UInt64Array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use xxhash_rust::xxh3::xxh3_128;

use super::columns::typed;
use crate::view::ValueType;

/// The Arrow type of hashes, little-endian.
pub(super) const WIDE: DataType = DataType::FixedSizeBinary(16);

/// Whether values of that type stand by a hash, `FixedSizeBinary(16)`; else by themselves, `UInt64`.
pub fn identity_is_wide(value_type: ValueType) -> bool {
    match value_type {
        ValueType::Int64 | ValueType::Date | ValueType::Bool | ValueType::Timestamp => false,
        ValueType::String | ValueType::Float64 | ValueType::Decimal { .. } => true,
    }
}

/// What tells values of that type apart; null stays null. Integers are taken as two's complement, days and microseconds
/// since 1970 too, a truth value as 0 or 1.
pub fn identity(value: Expr, value_type: ValueType) -> Expr {
    let function = Identity {
        value_type,
        signature: Signature::any(1, Volatility::Immutable),
    };
    ScalarUDF::new_from_impl(function).call(vec![value])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    value_type: ValueType,
    signature: Signature,
}

impl ScalarUDFImpl for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if arguments != [self.value_type.arrow()] {
            return internal_err!("identity of {} was called with {arguments:?}", self.value_type);
        }
        Ok(if identity_is_wide(self.value_type) {
            WIDE
        } else {
            DataType::UInt64
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [value] = args.args.as_slice() else {
            return internal_err!("identity was called with {} arguments", args.args.len());
        };
        Ok(ColumnarValue::Array(identities(&value.to_array(rows)?)?))
    }
}

/// The identities of a column.
///
/// # Errors
/// A column of a type that no value has.
pub fn identities(values: &ArrayRef) -> Result<ArrayRef> {
    Ok(match values.data_type() {
        DataType::Int64 => {
            let values = typed::<Int64Type>(values)?;
            Arc::new(values.unary::<_, arrow::datatypes::UInt64Type>(i64::cast_unsigned))
        }
        DataType::Timestamp(..) => {
            let values = typed::<TimestampMicrosecondType>(values)?;
            Arc::new(values.unary::<_, arrow::datatypes::UInt64Type>(i64::cast_unsigned))
        }
        DataType::Date32 => {
            let values = typed::<Date32Type>(values)?;
            Arc::new(values.unary::<_, arrow::datatypes::UInt64Type>(|day| i64::from(day).cast_unsigned()))
        }
        DataType::Boolean => {
            let bools = values.as_boolean();
            let bits = bools.values().iter().map(u64::from).collect::<Vec<_>>();
            Arc::new(UInt64Array::new(bits.into(), bools.nulls().cloned()))
        }
        DataType::Utf8 => {
            let strings = values.as_string::<i32>();
            // A null takes no text, so its hash costs little and is never looked at.
            hashes(values, |row| xxh3_128(strings.value(row).as_bytes()))?
        }
        DataType::Float64 => {
            let doubles = typed::<Float64Type>(values)?;
            hashes(values, |row| xxh3_128(&canonical(doubles.value(row)).to_le_bytes()))?
        }
        DataType::Decimal128(..) => {
            let decimals = typed::<Decimal128Type>(values)?;
            hashes(values, |row| xxh3_128(&decimals.value(row).to_le_bytes()))?
        }
        other => return internal_err!("values of type {other} have no identity"),
    })
}

fn hashes(values: &ArrayRef, hash: impl Fn(usize) -> u128) -> Result<ArrayRef> {
    let mut hashes = vec![0; values.len() * 16];
    for (row, place) in hashes.chunks_exact_mut(16).enumerate() {
        place.copy_from_slice(&hash(row).to_le_bytes());
    }
    let hashes = FixedSizeBinaryArray::try_new(16, Buffer::from_vec(hashes), values.nulls().cloned())?;
    Ok(Arc::new(hashes))
}

/// One zero and one NaN.
fn canonical(value: f64) -> f64 {
    if value.is_nan() {
        f64::NAN
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}
