//! Arrow columns in and out.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, PrimitiveArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use datafusion::common::{Result, exec_datafusion_err};

/// The column, of that type.
pub(super) fn typed<T: ArrowPrimitiveType>(column: &ArrayRef) -> Result<&PrimitiveArray<T>> {
    let found = column.data_type();
    column
        .as_primitive_opt::<T>()
        .ok_or_else(|| exec_datafusion_err!("a state is made of {}, but this is {found}", T::DATA_TYPE))
}

/// The column of states.
pub(super) fn states(column: &ArrayRef) -> Result<&BinaryArray> {
    let found = column.data_type();
    column
        .as_binary_opt::<i32>()
        .ok_or_else(|| exec_datafusion_err!("states are Binary, but this is {found}"))
}

/// Where a state ends, as Arrow counts.
fn end(bytes: usize) -> Result<i32> {
    i32::try_from(bytes).map_err(|_| {
        exec_datafusion_err!(
            "the states of a measure are more than 2 GiB together: group by less, or give the view a lower \
             `distinct_limit` if it has a distinct()"
        )
    })
}

/// States one after another; `write` says whether there is one.
pub(super) fn binary<S>(states: &mut [S], mut write: impl FnMut(&mut S, &mut Vec<u8>) -> bool) -> Result<ArrayRef> {
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(states.len() + 1);
    let mut there = Vec::with_capacity(states.len());
    ends.push(0);
    for state in states {
        there.push(write(state, &mut bytes));
        ends.push(end(bytes.len())?);
    }
    let nulls = NullBuffer::from(there);
    let nulls = (nulls.null_count() > 0).then_some(nulls);
    let array = BinaryArray::try_new(OffsetBuffer::new(ends.into()), Buffer::from_vec(bytes), nulls)?;
    Ok(Arc::new(array))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_bytes_are_refused_with_what_to_change() {
        assert_eq!(end(0x7FFF_FFFF).unwrap(), i32::MAX);
        let refused = end(0x8000_0000).unwrap_err().to_string();
        assert!(refused.contains("a lower `distinct_limit`"), "{refused}");
    }
}
