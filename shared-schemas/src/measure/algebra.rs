//! The table itself, and what its entries can do.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::functions::expr_fn::coalesce;
use datafusion::functions_aggregate::expr_fn::{count, max, min, sum};
use datafusion::logical_expr::{Expr, ExprFunctionExt, cast, lit};

use crate::view::{ValueType, magnitude};

/// One kind of measure.
#[derive(Debug)]
pub struct Kind {
    /// The name by which definitions call it.
    pub name: &'static str,
    /// Which arguments it takes.
    pub takes: Takes,
    /// What values it can work on.
    accepts: fn(ValueType) -> bool,
    /// The same in words, for messages.
    pub accepts_what: &'static str,
    states: fn(Option<ValueType>) -> Vec<State>,
    result_type: fn(Option<ValueType>) -> ResultType,
    result: fn(Option<ValueType>, &[String]) -> String,
}

/// How many arguments a kind takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// One or none.
    AtMostOne,
    /// Exactly one.
    One,
}

/// The type of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultType {
    /// A number of events, never null.
    Count,
    /// A value, null where no value was seen.
    Value(ValueType),
}

/// How close a result is to the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exactness {
    /// Not rounded anywhere.
    Exact,
    /// Rounded: the error is at most `n · ε · Σ |x|`.
    Rounded,
}

/// One column of a measure's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Added to the measure's name, after two underscores, it makes the column's name.
    pub suffix: &'static str,
    /// What the column holds.
    pub state_type: StateType,
    /// Whether it is null where no value was seen.
    pub nullable: bool,
    /// How two states become one.
    pub merge: Merge,
    make: Make,
}

/// What a state column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateType {
    /// A count.
    Count,
    /// Values as they are.
    Value(ValueType),
}

/// How two states become one: a commutative monoid each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Merge {
    /// By adding them up.
    Sum,
    /// By taking the least.
    Min,
    /// By taking the greatest.
    Max,
}

/// How a state is made from events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    Count,
    Sum,
    Magnitude,
    Min,
    Max,
}

/// Every kind.
pub static KINDS: &[Kind] = &[
    Kind {
        name: "count",
        takes: Takes::AtMostOne,
        accepts: |_| true,
        accepts_what: "any value",
        states: |_| vec![COUNT],
        result_type: |_| ResultType::Count,
        result: |_, states| states.join(""),
    },
    Kind {
        name: "sum",
        takes: Takes::One,
        accepts: ValueType::is_number,
        accepts_what: "a number",
        states: sum_states,
        result_type: |argument| ResultType::Value(sum_type(argument)),
        result: |argument, states| match states {
            [sum, _, count] if is_float(argument) => format!("if({count} = 0 OR NOT isFinite({sum}), NULL, {sum})"),
            _ => states.join(""),
        },
    },
    Kind {
        name: "min",
        takes: Takes::One,
        accepts: |_| true,
        accepts_what: "any value",
        states: |argument| vec![extreme("min", argument, Make::Min, Merge::Min)],
        result_type: |argument| ResultType::Value(argument.unwrap_or(ValueType::Int64)),
        result: |_, states| states.join(""),
    },
    Kind {
        name: "max",
        takes: Takes::One,
        accepts: |_| true,
        accepts_what: "any value",
        states: |argument| vec![extreme("max", argument, Make::Max, Merge::Max)],
        result_type: |argument| ResultType::Value(argument.unwrap_or(ValueType::Int64)),
        result: |_, states| states.join(""),
    },
    Kind {
        name: "avg",
        takes: Takes::One,
        accepts: ValueType::is_number,
        accepts_what: "a number",
        states: |argument| {
            let mut states = sum_states(argument);
            if !is_float(argument) {
                states.push(COUNT);
            }
            states
        },
        result_type: |_| ResultType::Value(ValueType::Float64),
        result: |argument, states| match states {
            [sum, _, count] if is_float(argument) => {
                format!("if({count} = 0 OR NOT isFinite({sum}), NULL, {sum} / {count})")
            }
            [sum, count] => format!("if({count} = 0, NULL, toFloat64({sum}) / {count})"),
            _ => String::new(),
        },
    },
];

const COUNT: State = State {
    suffix: "count",
    state_type: StateType::Count,
    nullable: false,
    merge: Merge::Sum,
    make: Make::Count,
};

fn is_float(argument: Option<ValueType>) -> bool {
    argument == Some(ValueType::Float64)
}

/// A sum that cannot overflow: 38 digits, of which a value may have 28.
fn sum_type(argument: Option<ValueType>) -> ValueType {
    match argument {
        Some(ValueType::Float64) => ValueType::Float64,
        Some(ValueType::Decimal { scale, .. }) => ValueType::Decimal { precision: 38, scale },
        _ => ValueType::Decimal {
            precision: 38,
            scale: 0,
        },
    }
}

fn sum_states(argument: Option<ValueType>) -> Vec<State> {
    let float = is_float(argument);
    let sum = State {
        suffix: "sum",
        state_type: StateType::Value(sum_type(argument)),
        nullable: !float,
        merge: Merge::Sum,
        make: Make::Sum,
    };
    if float {
        let magnitude = State {
            suffix: "magnitude",
            make: Make::Magnitude,
            ..sum
        };
        vec![sum, magnitude, COUNT]
    } else {
        vec![sum]
    }
}

fn extreme(suffix: &'static str, argument: Option<ValueType>, make: Make, merge: Merge) -> State {
    let value = argument.unwrap_or(ValueType::Int64);
    State {
        suffix,
        state_type: StateType::Value(value),
        nullable: true,
        merge,
        make,
    }
}

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The names of all kinds, for messages.
pub fn kind_names() -> String {
    KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

impl Kind {
    /// Whether it can work on values of that type, or the reason why not.
    pub fn accepts(&self, argument: ValueType) -> Result<(), String> {
        if !(self.accepts)(argument) {
            return Err(format!(
                "{}() needs {}, but this is {argument}",
                self.name, self.accepts_what
            ));
        }
        match argument {
            ValueType::Decimal { precision, scale } if precision > 28 && self.adds_up() => Err(format!(
                "this is decimal({precision}, {scale}), and at most 28 digits can be added up without overflow: \
                 write CAST(… AS DECIMAL(28, {}))",
                scale.min(28)
            )),
            _ => Ok(()),
        }
    }

    fn adds_up(&self) -> bool {
        matches!(self.name, "sum" | "avg")
    }

    /// Its state columns for an argument of that type.
    pub fn states(&self, argument: Option<ValueType>) -> Vec<State> {
        (self.states)(argument)
    }

    /// The type of its result.
    pub fn result_type(&self, argument: Option<ValueType>) -> ResultType {
        (self.result_type)(argument)
    }

    /// How close its result is to the truth.
    pub fn exactness(&self, argument: Option<ValueType>) -> Exactness {
        if self.adds_up() && is_float(argument) || self.name == "avg" {
            Exactness::Rounded
        } else {
            Exactness::Exact
        }
    }

    /// ClickHouse SQL for the result, given SQL for each merged state.
    pub fn result_sql(&self, argument: Option<ValueType>, states: &[String]) -> String {
        (self.result)(argument, states)
    }

    /// ClickHouse SQL for the largest possible error of the result, where it is rounded.
    pub fn bound_sql(&self, argument: Option<ValueType>, states: &[String]) -> Option<String> {
        // ε is 2^-52. Each of n additions rounds by at most half of it, in any order and in any pieces.
        match (self.name, states) {
            ("sum", [_, magnitude, count]) if is_float(argument) => Some(format!(
                "if({count} = 0, NULL, {count} * 2.220446049250313e-16 * {magnitude})"
            )),
            ("avg", [_, magnitude, count]) if is_float(argument) => Some(format!(
                "if({count} = 0, NULL, ({count} + 1) * 2.220446049250313e-16 * {magnitude} / {count})"
            )),
            _ => None,
        }
    }
}

impl State {
    /// The column's name for a measure.
    pub fn column(&self, measure: &str) -> String {
        format!("{measure}__{}", self.suffix)
    }

    /// The column's Arrow type.
    pub fn arrow(&self) -> DataType {
        self.state_type.arrow()
    }

    /// The column's ClickHouse type.
    pub fn clickhouse(&self) -> String {
        let plain = match self.state_type {
            StateType::Count => "UInt64".to_owned(),
            StateType::Value(value) => value.clickhouse(),
        };
        if self.nullable {
            format!("Nullable({plain})")
        } else {
            plain
        }
    }

    /// The DataFusion aggregate that makes the state from the argument's values where the condition is true.
    pub fn make(&self, argument: Option<Expr>, condition: Option<Expr>) -> Expr {
        let value = argument.unwrap_or_else(|| lit(1_i64));
        let aggregate = match self.make {
            Make::Count => count(value),
            Make::Sum => sum(cast(value, self.arrow())),
            Make::Magnitude => sum(magnitude(value)),
            Make::Min => min(value),
            Make::Max => max(value),
        };
        match condition {
            // `build` refuses only what is no aggregate.
            Some(condition) => aggregate.clone().filter(condition).build().unwrap_or(aggregate),
            None => aggregate,
        }
    }

    /// The DataFusion aggregate that merges a column of states.
    pub fn merge(&self, states: Expr) -> Expr {
        match self.merge {
            Merge::Sum => sum(states),
            Merge::Min => min(states),
            Merge::Max => max(states),
        }
    }

    /// Brings the column of an aggregate to the state's type and nullability.
    pub fn settle(&self, aggregated: Expr) -> Expr {
        let settled = cast(aggregated, self.arrow());
        if self.nullable {
            settled
        } else {
            coalesce(vec![settled, lit(self.state_type.zero())])
        }
    }

    /// ClickHouse SQL that merges a column of states, given SQL for the column.
    pub fn merge_sql(&self, states: &str) -> String {
        match self.merge {
            Merge::Sum => format!("sum({states})"),
            Merge::Min => format!("min({states})"),
            Merge::Max => format!("max({states})"),
        }
    }
}

impl StateType {
    fn arrow(self) -> DataType {
        match self {
            Self::Count => DataType::UInt64,
            Self::Value(value) => value.arrow(),
        }
    }

    fn zero(self) -> ScalarValue {
        match self {
            Self::Count => ScalarValue::UInt64(Some(0)),
            Self::Value(_) => ScalarValue::Float64(Some(0.0)),
        }
    }
}
