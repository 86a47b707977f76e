//! Total functions: what SQL's operators and functions become, so that no expression can fail.
//!
//! Where the plain one would fail on a row (division by zero, an overflow, a double that is no number), the total one
//! gives null for that row and goes on. DataFusion evaluates a batch at a time and one bad row fails all of it; so a
//! failed batch is halved until the rows that fail stand alone. Division by zero, the frequent case, is masked beforehand.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, new_null_array};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::kernels::numeric;
use arrow::compute::{binary, cast, concat, nullif, unary};
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, lit,
};

/// The first moment that ClickHouse's `DateTime64` and `Date32` can hold, 1900-01-01, in µs.
const FIRST_MICROS: i64 = FIRST_DAY as i64 * MICROS_PER_DAY;
/// The first one that they cannot hold any more, 2300-01-01.
const END_MICROS: i64 = END_DAY as i64 * MICROS_PER_DAY;
const FIRST_DAY: i32 = -25_567;
const END_DAY: i32 = 120_530;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// What a total function does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Act {
    /// `+ - * / %`.
    Arithmetic(Operator),
    /// The unary minus.
    Negate,
    /// A cast. Arrow's safe cast gives null for most that does not fit, but not for days that no calendar has.
    Cast(DataType),
    /// A DataFusion function, and the type of its values as planned. Asked again it may say another one: a literal that a plan's
    /// simplification makes null changes what `round` gives.
    Call(Arc<ScalarUDF>, DataType),
    /// Null for what a table cannot hold: a double that is not finite, a time before 1900 or after 2299. Also makes
    /// -0.0 one with 0.0, so that `min` and `max` don't depend on order.
    Storable,
    /// The start of the window of a time: the greatest multiple of the length (µs) that is not after it.
    Window,
    /// The absolute value of a double.
    Magnitude,
}

/// A function that never fails on a row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Total {
    name: String,
    act: Act,
    signature: Signature,
}

fn total(name: impl Into<String>, act: Act) -> Arc<ScalarUDF> {
    // The arguments were coerced for the plain function already: nothing may be cast once more.
    let signature = Signature::variadic_any(Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Total {
        name: name.into(),
        act,
        signature,
    }))
}

/// `left op right`, null where it fails. `None` for operators that cannot fail.
pub(super) fn arithmetic(left: Expr, op: Operator, right: Expr) -> Option<Expr> {
    let name = match op {
        Operator::Plus => "total_add",
        Operator::Minus => "total_subtract",
        Operator::Multiply => "total_multiply",
        Operator::Divide => "total_divide",
        Operator::Modulo => "total_remainder",
        _ => return None,
    };
    Some(total(name, Act::Arithmetic(op)).call(vec![left, right]))
}

/// `-value`, null where it fails.
pub(super) fn negate(value: Expr) -> Expr {
    total("total_negate", Act::Negate).call(vec![value])
}

/// `CAST(value AS to)`, null where it fails.
pub(super) fn cast_to(value: Expr, to: DataType) -> Expr {
    total("total_cast", Act::Cast(to)).call(vec![value])
}

/// A call of a DataFusion function that gives values of that type, null where it fails.
pub(super) fn call(function: &Arc<ScalarUDF>, returns: DataType, arguments: Vec<Expr>) -> Expr {
    let act = Act::Call(Arc::clone(function), returns);
    total(format!("total_{}", function.name()), act).call(arguments)
}

/// The value, or null where no table can hold it.
pub(super) fn storable(value: Expr) -> Expr {
    total("storable", Act::Storable).call(vec![value])
}

/// The start of the window that holds a time; the length is in microseconds.
pub(crate) fn window_start(time: Expr, length: i64) -> Expr {
    total("window_start", Act::Window).call(vec![time, lit(length)])
}

/// The absolute value of a double.
pub(crate) fn magnitude(value: Expr) -> Expr {
    total("magnitude", Act::Magnitude).call(vec![value])
}

/// Whether a function of this module gives null although none of its arguments is null.
pub(super) fn can_give_null(function: &ScalarUDF) -> bool {
    let implementation: &dyn std::any::Any = function.inner().as_ref();
    implementation
        .downcast_ref::<Total>()
        .is_some_and(|total| !matches!(total.act, Act::Window | Act::Magnitude))
}

impl ScalarUDFImpl for Total {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match (&self.act, arguments) {
            (Act::Arithmetic(op), [left, right]) => BinaryTypeCoercer::new(left, op, right).get_result_type(),
            (Act::Cast(to) | Act::Call(_, to), _) => Ok(to.clone()),
            (Act::Negate | Act::Storable | Act::Window | Act::Magnitude, [first, ..]) => Ok(first.clone()),
            _ => internal_err!("{} was called with {} arguments", self.name, arguments.len()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<arrow::datatypes::FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let kept = matches!(self.act, Act::Window | Act::Magnitude)
            && args.arg_fields.iter().all(|field| !field.is_nullable());
        Ok(Arc::new(arrow::datatypes::Field::new(
            &self.name,
            self.return_type(&types)?,
            !kept,
        )))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let batch = Batch {
            total: self,
            fields: &args.arg_fields,
            returns: &args.return_field,
            config: &args.config_options,
        };
        let values = match (&self.act, args.args.as_slice()) {
            (Act::Arithmetic(Operator::Divide | Operator::Modulo), [left, right]) => {
                vec![left.clone(), without_zeros(right)?]
            }
            _ => args.args,
        };
        let result = batch.halve(&values, rows)?;
        if constant {
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?))
        } else {
            Ok(ColumnarValue::Array(result))
        }
    }
}

/// One evaluation over many rows.
struct Batch<'a> {
    total: &'a Total,
    fields: &'a [arrow::datatypes::FieldRef],
    returns: &'a arrow::datatypes::FieldRef,
    config: &'a Arc<ConfigOptions>,
}

impl Batch<'_> {
    /// Evaluates all rows at once, or by halves where that fails, down to single rows that become null.
    fn halve(&self, values: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
        match self.evaluate(values, rows) {
            Ok(result) => Ok(result),
            Err(_) if rows == 1 => Ok(new_null_array(self.returns.data_type(), 1)),
            Err(error) if rows == 0 => Err(error),
            Err(_) => {
                let half = rows / 2;
                let first = self.halve(&slice(values, 0, half), half)?;
                let second = self.halve(&slice(values, half, rows - half), rows - half)?;
                Ok(concat(&[&first, &second])?)
            }
        }
    }

    fn evaluate(&self, values: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
        let result = match (&self.total.act, values) {
            (Act::Arithmetic(op), [left, right]) => arithmetic_kernel(*op, left, right, rows)?,
            (Act::Cast(to), [value]) => cast(&value.to_array(rows)?, to)?,
            (Act::Negate, [value]) => numeric::neg(&value.to_array(rows)?)?,
            (Act::Call(function, _), _) => function
                .invoke_with_args(ScalarFunctionArgs {
                    args: values.to_vec(),
                    arg_fields: self.fields.to_vec(),
                    number_rows: rows,
                    return_field: Arc::clone(self.returns),
                    config_options: Arc::clone(self.config),
                })?
                .into_array(rows)?,
            (Act::Storable, [value]) => return storable_kernel(&value.to_array(rows)?),
            (Act::Window, [time, ColumnarValue::Scalar(ScalarValue::Int64(Some(length)))]) => {
                return window_kernel(&time.to_array(rows)?, *length);
            }
            (Act::Magnitude, [value]) => {
                let value = value.to_array(rows)?;
                let floats: Float64Array = unary(value.as_primitive::<Float64Type>(), f64::abs);
                return Ok(Arc::new(floats));
            }
            _ => return internal_err!("{} was called with {} arguments", self.total.name, values.len()),
        };
        let result = if result.data_type() == self.returns.data_type() {
            result
        } else {
            cast(&result, self.returns.data_type())?
        };
        finite(result)
    }
}

fn slice(values: &[ColumnarValue], from: usize, rows: usize) -> Vec<ColumnarValue> {
    values
        .iter()
        .map(|value| match value {
            ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(from, rows)),
            ColumnarValue::Scalar(_) => value.clone(),
        })
        .collect()
}

fn arithmetic_kernel(op: Operator, left: &ColumnarValue, right: &ColumnarValue, rows: usize) -> Result<ArrayRef> {
    let kernel = match op {
        Operator::Plus => numeric::add,
        // SQL's difference of two days is a number of days; Arrow's is a duration.
        Operator::Minus if left.data_type() == DataType::Date32 && right.data_type() == DataType::Date32 => {
            let (left, right) = (left.to_array(rows)?, right.to_array(rows)?);
            let days = binary::<_, _, _, Int64Type>(
                left.as_primitive::<Date32Type>(),
                right.as_primitive::<Date32Type>(),
                |left, right| i64::from(left) - i64::from(right),
            )?;
            return Ok(Arc::new(days));
        }
        Operator::Minus => numeric::sub,
        Operator::Multiply => numeric::mul,
        Operator::Divide => numeric::div,
        _ => numeric::rem,
    };
    Ok(match (left, right) {
        (ColumnarValue::Array(left), ColumnarValue::Scalar(right)) => kernel(left, &right.to_scalar()?)?,
        (ColumnarValue::Scalar(left), ColumnarValue::Array(right)) => kernel(&left.to_scalar()?, right)?,
        (left, right) => kernel(&left.to_array(rows)?, &right.to_array(rows)?)?,
    })
}

/// A divisor with its zeros made null.
fn without_zeros(divisor: &ColumnarValue) -> Result<ColumnarValue> {
    let array = divisor.to_array(1)?;
    let Ok(zero) = ScalarValue::new_zero(array.data_type()) else {
        return Ok(divisor.clone());
    };
    let zeros = eq(&array, &zero.to_scalar()?)?;
    let array = nullif(&array, &zeros)?;
    Ok(match divisor {
        ColumnarValue::Array(_) => ColumnarValue::Array(array),
        ColumnarValue::Scalar(_) => ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?),
    })
}

/// Null for doubles that are not finite; other types as they are.
fn finite(values: ArrayRef) -> Result<ArrayRef> {
    let Some(floats) = values.as_primitive_opt::<Float64Type>() else {
        return Ok(values);
    };
    if floats.values().iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    let bad = BooleanArray::from_unary(floats, |value| !value.is_finite());
    Ok(nullif(&values, &bad)?)
}

fn storable_kernel(values: &ArrayRef) -> Result<ArrayRef> {
    match values.data_type() {
        DataType::Float64 => {
            let floats: Float64Array = unary(values.as_primitive::<Float64Type>(), |value| value + 0.0);
            finite(Arc::new(floats))
        }
        DataType::Date32 => {
            let bad = BooleanArray::from_unary(values.as_primitive::<Date32Type>(), |day| {
                !(FIRST_DAY..END_DAY).contains(&day)
            });
            Ok(nullif(values, &bad)?)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let bad = BooleanArray::from_unary(values.as_primitive::<TimestampMicrosecondType>(), |time| {
                !(FIRST_MICROS..END_MICROS).contains(&time)
            });
            Ok(nullif(values, &bad)?)
        }
        _ => Ok(Arc::clone(values)),
    }
}

fn window_kernel(times: &ArrayRef, length: i64) -> Result<ArrayRef> {
    if length <= 0 {
        return internal_err!("a window of {length} µs");
    }
    let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else {
        return Err(DataFusionError::Internal(format!(
            "a window over {}",
            times.data_type()
        )));
    };
    // Saturating: only a time within one window of the end of i64 would notice, some 290,000 years from here.
    let starts = times.unary::<_, TimestampMicrosecondType>(|time| time.saturating_sub(time.rem_euclid(length)));
    Ok(Arc::new(starts.with_data_type(times.data_type().clone())))
}
