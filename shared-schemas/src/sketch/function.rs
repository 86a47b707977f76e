//! The aggregate functions, as DataFusion knows them.

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, Expr, GroupsAccumulator, Signature, Volatility,
};

use super::aggregate::{Groups, Whole};
use super::dd::DdSketch;
use super::distinct::ExactSet;
use super::extreme::{Extreme, Rule, Side};
use super::identity::WIDE;
use super::uniq::Uniq;
use crate::view::ValueType;

/// What a state is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sample of the hashes of values.
    Uniq,
    /// All values, or a hash of 128 bits of each.
    UniqExact {
        /// How many there may be.
        limit: u64,
        /// Whether they are hashes. In a plan that makes states the column says so as well.
        wide: bool,
    },
    /// Counts of values by range.
    QuantilesDd,
    /// The first or the last value.
    Extreme {
        /// Which of them.
        side: Side,
        /// Of what type they are. In a plan that makes states the column says so as well.
        value_type: Option<ValueType>,
    },
}

/// What a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Values.
    Make,
    /// States.
    Merge,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    name: String,
    kind: Kind,
    act: Act,
    signature: Signature,
}

/// Calls a function.
pub(super) fn call(kind: Kind, act: Act, arguments: Vec<Expr>) -> Expr {
    // Columns of a plan are told apart by name: whatever makes another state is in it.
    let of = match kind {
        Kind::Uniq => "uniq".to_owned(),
        Kind::UniqExact { limit, .. } => format!("uniq_exact_{limit}"),
        Kind::QuantilesDd => "quantiles_dd".to_owned(),
        Kind::Extreme { side: Side::First, .. } => "first".to_owned(),
        Kind::Extreme { side: Side::Last, .. } => "last".to_owned(),
    };
    let name = match act {
        Act::Make => format!("state_of_{of}"),
        Act::Merge => format!("merge_{of}"),
    };
    // Nothing is cast: an argument of another type is refused.
    let signature = Signature::any(arguments.len(), Volatility::Immutable);
    AggregateUDF::from(Function {
        name,
        kind,
        act,
        signature,
    })
    .call(arguments)
}

/// The states of all groups, for arguments of these types.
fn groups(kind: Kind, act: Act, argument: Option<&DataType>) -> Result<Box<dyn GroupsAccumulator + Sync>> {
    Ok(match kind {
        Kind::Uniq => Box::new(Groups::<Uniq>::new((), act)),
        Kind::QuantilesDd => Box::new(Groups::<DdSketch>::new((), act)),
        Kind::UniqExact { limit, wide } => {
            if wide || argument == Some(&WIDE) {
                Box::new(Groups::<ExactSet<u128>>::new(limit, act))
            } else {
                Box::new(Groups::<ExactSet<u64>>::new(limit, act))
            }
        }
        Kind::Extreme { side, value_type } => {
            let value_type = value_type.or_else(|| argument.and_then(ValueType::of_arrow));
            match value_type {
                Some(value_type) => Box::new(Groups::<Extreme>::new(Rule { side, value_type }, act)),
                None => return internal_err!("first or last of values of no known type"),
            }
        }
    })
}

/// States by group, outside of a plan: what a grouping does with one of these functions, for those who measure it.
pub struct ByGroup(Box<dyn GroupsAccumulator + Sync>);

impl ByGroup {
    /// No groups yet.
    ///
    /// # Errors
    /// A kind that lacks the type of its values.
    pub fn new(kind: Kind, act: Act) -> Result<Self> {
        groups(kind, act, None).map(Self)
    }

    /// Takes a batch: of each row the group is told, below the number of groups.
    ///
    /// # Errors
    /// Columns of other types, or what is no state.
    pub fn take(&mut self, columns: &[ArrayRef], group_of: &[usize], groups: usize) -> Result<()> {
        self.0.update_batch(columns, group_of, None, groups)
    }

    /// The states of all groups, which are none then.
    ///
    /// # Errors
    /// More than 2 GiB of states.
    pub fn states(&mut self) -> Result<ArrayRef> {
        self.0.evaluate(EmitTo::All)
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        self.0.size()
    }
}

impl std::fmt::Debug for ByGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByGroup").field("bytes", &self.bytes()).finish()
    }
}

impl Function {
    fn groups(&self, arguments: &[FieldRef]) -> Result<Box<dyn GroupsAccumulator + Sync>> {
        groups(self.kind, self.act, arguments.first().map(|field| field.data_type()))
    }

    fn accepts(&self, arguments: &[DataType]) -> bool {
        match (self.act, self.kind, arguments) {
            (Act::Merge, _, [states]) => *states == DataType::Binary,
            (Act::Make, Kind::Uniq | Kind::UniqExact { .. }, [identity]) => {
                *identity == DataType::UInt64 || *identity == WIDE
            }
            (Act::Make, Kind::QuantilesDd, [value]) => *value == DataType::Float64,
            (Act::Make, Kind::Extreme { .. }, [value, time, offset, partition]) => {
                ValueType::of_arrow(value).is_some_and(|value_type| value_type.arrow() == *value)
                    && matches!(time, DataType::Timestamp(TimeUnit::Microsecond, _))
                    && *offset == DataType::Int64
                    && *partition == DataType::Int32
            }
            _ => false,
        }
    }
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if self.accepts(arguments) {
            Ok(DataType::Binary)
        } else {
            plan_err!("{} cannot work on {arguments:?}", self.name)
        }
    }

    /// Only a set with too many values is null.
    fn is_nullable(&self) -> bool {
        matches!(self.kind, Kind::UniqExact { .. })
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Whole(self.groups(args.expr_fields)?)))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(self.groups(args.expr_fields)?)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}
