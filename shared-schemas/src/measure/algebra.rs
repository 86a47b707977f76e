//! The table itself, and what an entry of it says.

use super::state::State;
use super::{counts, distinct, ends, extremes, quantiles, sums};
use crate::mistake::nearest;
use crate::view::ValueType;

/// One kind of measure.
#[derive(Debug)]
pub struct Kind {
    /// The name by which definitions call it.
    pub name: &'static str,
    /// What others call it, for messages.
    pub also: &'static [&'static str],
    /// Which arguments it takes.
    pub takes: Takes,
    /// What values it can work on.
    pub(super) accepts: fn(ValueType) -> bool,
    /// The same in words, for messages.
    pub accepts_what: &'static str,
    /// Whether it adds values up, so that they must not have too many digits.
    pub(super) adds_up: bool,
    /// Whether it keeps sets of values, which a limit bounds: [`Call::limit`].
    pub keeps_sets: bool,
    /// Its state columns.
    pub(super) states: fn(&Call) -> Vec<State>,
    pub(super) result_type: fn(&Call) -> ResultType,
    /// ClickHouse SQL for its result.
    pub(super) result: fn(&Call, &Merged<'_>) -> String,
    pub(super) exactness: fn(&Call) -> Exactness,
    /// ClickHouse SQL for the largest possible error of a rounded result.
    pub(super) bound: fn(&Call, &Merged<'_>) -> Option<String>,
    /// How an estimated result is bounded.
    pub(super) estimate: fn(&Call, &Merged<'_>) -> Option<Estimate>,
}

/// Every kind.
pub static KINDS: &[Kind] = &[
    counts::COUNT,
    sums::SUM,
    extremes::MIN,
    extremes::MAX,
    sums::AVG,
    distinct::DISTINCT,
    quantiles::QUANTILES,
    ends::FIRST,
    ends::LAST,
];

/// What a kind is called with: all that its states and its result depend on besides events.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Call {
    /// The type of the argument's values; `None` without an argument.
    pub argument: Option<ValueType>,
    /// Which quantiles, in the order of the definition.
    pub levels: Vec<f64>,
    /// How many values a set may hold; `None` for kinds that keep none.
    pub limit: Option<u64>,
}

/// Which arguments a kind takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// One or none.
    AtMostOne,
    /// Exactly one.
    One,
    /// One, and a list of quantiles.
    OneAndLevels,
}

/// The type of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultType {
    /// A number of events or values, never null.
    Count,
    /// A value, null where no value was seen.
    Value(ValueType),
    /// A list of float64, one for each level; null where no value was seen.
    Levels,
}

/// How close a result is to the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exactness {
    /// Not rounded anywhere.
    Exact,
    /// Rounded: the error is at most `n · ε · Σ |x|`.
    Rounded,
    /// Exact where all rows are the batch layer's, else an estimate.
    ExactInBatch,
    /// Always an estimate.
    Estimated,
}

/// SQL for the merged states of a measure, in the order of its columns, and for what they were merged from.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'a> {
    /// For each state the SQL that stands for it.
    pub states: &'a [String],
    /// SQL that is true where all rows were the batch layer's. States that only that layer keeps are whole there, and
    /// nowhere else.
    pub all_batch: &'a str,
}

/// How far an estimated result may be off.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// ClickHouse SQL for the largest relative error, null where the result is exact.
    pub error: String,
    /// In which share of cases it holds.
    pub confidence: f64,
}

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The kind that somebody may have meant by a name that none has.
pub fn meant(name: &str) -> Option<&'static Kind> {
    let also = |kind: &&Kind| kind.also.contains(&name);
    let near = || kind(nearest(name, KINDS.iter().map(|kind| kind.name))?);
    KINDS.iter().find(also).or_else(near)
}

/// The names of all kinds, for messages.
pub fn kind_names() -> String {
    KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

impl Call {
    /// A call with one argument of that type, and nothing else.
    pub fn of(argument: ValueType) -> Self {
        Self {
            argument: Some(argument),
            ..Self::default()
        }
    }

    pub(super) fn is_of_float(&self) -> bool {
        self.argument == Some(ValueType::Float64)
    }

    /// The argument's type, for kinds that always have one.
    pub(super) fn value(&self) -> ValueType {
        self.argument.unwrap_or(ValueType::Int64)
    }
}

impl Kind {
    /// What most kinds are: of one value of any type, with an exact result. Entries say what is theirs.
    pub(super) const PLAIN: Self = Self {
        name: "",
        also: &[],
        takes: Takes::One,
        accepts: |_| true,
        accepts_what: "any value",
        adds_up: false,
        keeps_sets: false,
        states: |_| vec![],
        result_type: |call| ResultType::Value(call.value()),
        result: |_, merged| merged.states.join(""),
        exactness: |_| Exactness::Exact,
        bound: |_, _| None,
        estimate: |_, _| None,
    };

    /// Whether it can work on values of that type, or the reason why not.
    pub fn accepts(&self, argument: ValueType) -> Result<(), String> {
        if !(self.accepts)(argument) {
            return Err(format!(
                "{}() needs {}, but this is {argument}",
                self.name, self.accepts_what
            ));
        }
        match argument {
            ValueType::Decimal { precision, scale } if precision > 28 && self.adds_up => Err(format!(
                "this is decimal({precision}, {scale}), and at most 28 digits can be added up without overflow: \
                 write CAST(… AS DECIMAL(28, {}))",
                scale.min(28)
            )),
            _ => Ok(()),
        }
    }

    /// Its state columns.
    pub fn states(&self, call: &Call) -> Vec<State> {
        (self.states)(call)
    }

    /// The type of its result.
    pub fn result_type(&self, call: &Call) -> ResultType {
        (self.result_type)(call)
    }

    /// How close its result is to the truth.
    pub fn exactness(&self, call: &Call) -> Exactness {
        (self.exactness)(call)
    }

    /// ClickHouse SQL for the result.
    pub fn result_sql(&self, call: &Call, merged: &Merged<'_>) -> String {
        (self.result)(call, merged)
    }

    /// ClickHouse SQL for the largest possible error of the result, where it is rounded.
    pub fn bound_sql(&self, call: &Call, merged: &Merged<'_>) -> Option<String> {
        (self.bound)(call, merged)
    }

    /// How far the result may be off, where it can be an estimate.
    pub fn estimate(&self, call: &Call, merged: &Merged<'_>) -> Option<Estimate> {
        (self.estimate)(call, merged)
    }
}
