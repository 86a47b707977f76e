//! One column of a measure's state: how it is made from events, merged, kept in ClickHouse, and merged there.
//!
//! Plain columns hold counts and values. Others hold what one of ClickHouse's aggregate functions keeps, in that
//! function's own serialized form ([`crate::sketch`] makes it); they travel as Arrow `Binary`.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::functions::expr_fn::coalesce;
use datafusion::functions_aggregate::expr_fn::{max, min, sum};
use datafusion::logical_expr::{Expr, ExprFunctionExt, cast, ident, lit};

use crate::sketch::Malformed;
use crate::view::ValueType;

/// One column of a measure's state.
#[derive(Clone)]
pub struct State {
    /// Added to the measure's name, after two underscores, it makes the column's name.
    pub suffix: &'static str,
    /// Whose rows have it.
    pub held: Held,
    column: Column,
    /// Whether it is null where no value was seen.
    nullable: bool,
    merge: Merge,
    make: Option<Make>,
    merged: Option<Of>,
    settled: Option<Of>,
    read: Option<Read>,
    contains: Option<Contains>,
    /// Whether the measure's result is read off the merged state, not off the function's result.
    whole: bool,
}

/// Makes an aggregate of the argument's values.
type Make = Arc<dyn Fn(Expr) -> Expr + Send + Sync>;
/// Makes an expression of the columns of the same measure.
type Of = Arc<dyn Fn(&Columns<'_>) -> Expr + Send + Sync>;

/// Reads a serialized state.
type Read = Arc<dyn Fn(&[u8]) -> Result<Reading, Malformed> + Send + Sync>;
/// Compares two serialized states.
type Contains = Arc<dyn Fn(&[u8], &[u8]) -> Result<bool, Malformed> + Send + Sync>;

/// Whose rows have a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// Those of both layers.
    Both,
    /// The batch layer's alone: it would cost the speed layer too much.
    Batch,
}

/// What a state column holds.
#[derive(Debug, Clone, PartialEq)]
enum Column {
    /// A count.
    Count,
    /// Values as they are.
    Value(ValueType),
    /// What a function of ClickHouse keeps.
    Function(Function),
}

/// An aggregate function of ClickHouse's whose states are kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Function {
    pub(super) name: &'static str,
    /// Its parameters, in brackets; mostly none, and no brackets.
    pub(super) parameters: String,
    /// The types of its arguments.
    pub(super) of: String,
    /// The serialized form of what it keeps of no values.
    pub(super) empty: Vec<u8>,
}

/// What a serialized state says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The same state in the one form that all equal ones have: ClickHouse writes a set in the order of its hash table.
    pub canonical: Vec<u8>,
    /// Its result, for people.
    pub result: String,
}

/// How two states become one: a commutative monoid each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Merge {
    Sum,
    Min,
    Max,
    /// As the column's function does.
    Own,
}

/// The columns of one measure, by their states' suffixes.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    measure: &'a str,
}

impl<'a> Columns<'a> {
    /// Those of that measure.
    pub fn of(measure: &'a str) -> Self {
        Self { measure }
    }

    /// One of them.
    pub fn state(&self, suffix: &str) -> Expr {
        ident(format!("{}__{suffix}", self.measure))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.suffix, self.clickhouse(), self.held)
    }
}

impl State {
    fn plain(
        suffix: &'static str,
        column: Column,
        merge: Merge,
        make: impl Fn(Expr) -> Expr + Send + Sync + 'static,
    ) -> Self {
        Self {
            suffix,
            held: Held::Both,
            column,
            nullable: false,
            merge,
            make: Some(Arc::new(make)),
            merged: None,
            settled: None,
            read: None,
            contains: None,
            whole: false,
        }
    }

    /// A count that adds up.
    pub(super) fn count(suffix: &'static str, make: impl Fn(Expr) -> Expr + Send + Sync + 'static) -> Self {
        Self::plain(suffix, Column::Count, Merge::Sum, make)
    }

    /// Values that add up.
    pub(super) fn sum(
        suffix: &'static str,
        value: ValueType,
        make: impl Fn(Expr) -> Expr + Send + Sync + 'static,
    ) -> Self {
        Self::plain(suffix, Column::Value(value), Merge::Sum, make)
    }

    /// The least value.
    pub(super) fn least(suffix: &'static str, value: ValueType) -> Self {
        Self::plain(suffix, Column::Value(value), Merge::Min, min).or_null()
    }

    /// The greatest value.
    pub(super) fn greatest(suffix: &'static str, value: ValueType) -> Self {
        Self::plain(suffix, Column::Value(value), Merge::Max, max).or_null()
    }

    /// What a function of ClickHouse keeps: `make` aggregates values to it, `merge` aggregates such states, `read` says what
    /// one holds.
    pub(super) fn function(
        suffix: &'static str,
        function: Function,
        make: impl Fn(Expr) -> Expr + Send + Sync + 'static,
        merge: impl Fn(Expr) -> Expr + Send + Sync + 'static,
        read: impl Fn(&[u8]) -> Result<Reading, Malformed> + Send + Sync + 'static,
    ) -> Self {
        Self {
            merged: Some(Arc::new(move |columns| merge(columns.state(suffix)))),
            read: Some(Arc::new(read)),
            ..Self::plain(suffix, Column::Function(function), Merge::Own, make)
        }
    }

    /// Null where no value was seen.
    pub(super) fn or_null(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// Merged in answers to a state, off which the measure's result is read.
    pub(super) fn kept_whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// With what says whether the first serialized state can be of all values that the second is of, and of more.
    pub(super) fn containing(
        self,
        contains: impl Fn(&[u8], &[u8]) -> Result<bool, Malformed> + Send + Sync + 'static,
    ) -> Self {
        Self {
            contains: Some(Arc::new(contains)),
            ..self
        }
    }

    /// In the batch layer's rows alone.
    pub(super) fn of_batch(self) -> Self {
        Self {
            held: Held::Batch,
            ..self
        }
    }

    /// Merged otherwise than by its own column alone.
    pub(super) fn merged_by(self, merge: impl Fn(&Columns<'_>) -> Expr + Send + Sync + 'static) -> Self {
        Self {
            merged: Some(Arc::new(merge)),
            ..self
        }
    }

    /// Not aggregated at all: read off the measure's aggregated columns.
    pub(super) fn read_off(suffix: &'static str, read: impl Fn(&Columns<'_>) -> Expr + Send + Sync + 'static) -> Self {
        Self {
            suffix,
            held: Held::Both,
            column: Column::Count,
            nullable: false,
            merge: Merge::Sum,
            make: None,
            merged: None,
            settled: Some(Arc::new(read)),
            read: None,
            contains: None,
            whole: false,
        }
    }

    /// The column's name for a measure.
    pub fn column(&self, measure: &str) -> String {
        format!("{measure}__{}", self.suffix)
    }

    /// The column's Arrow type.
    pub fn arrow(&self) -> DataType {
        match &self.column {
            Column::Count => DataType::UInt64,
            Column::Value(value) => value.arrow(),
            Column::Function(_) => DataType::Binary,
        }
    }

    /// Whether the column may be null.
    pub fn is_nullable(&self) -> bool {
        self.nullable
    }

    /// Whether it counts: two such columns add up without any rounding.
    pub fn is_count(&self) -> bool {
        self.column == Column::Count
    }

    /// Whether values of it add up over cells.
    pub fn is_additive(&self) -> bool {
        self.merge == Merge::Sum
    }

    /// Whether adding up in another order may give another value.
    pub fn is_rounded(&self) -> bool {
        self.merge == Merge::Sum && self.column == Column::Value(ValueType::Float64)
    }

    /// Whether it holds what a function of ClickHouse keeps, in that function's form.
    pub fn is_serialized(&self) -> bool {
        matches!(self.column, Column::Function(_))
    }

    /// What a serialized state says; `None` where the column is of another kind.
    ///
    /// # Errors
    /// Bytes that are no such state.
    pub fn read(&self, bytes: &[u8]) -> Option<Result<Reading, Malformed>> {
        self.read.as_ref().map(|read| read(bytes))
    }

    /// Whether a serialized state can be of all values that another is of, and of more; `None` where nobody can say.
    ///
    /// # Errors
    /// Bytes that are no such state.
    pub fn contains(&self, held: &[u8], less: &[u8]) -> Option<Result<bool, Malformed>> {
        self.contains.as_ref().map(|contains| contains(held, less))
    }

    /// Which way more values can move a plain one, where there is only one way.
    pub fn leans(&self) -> Option<Ordering> {
        match self.merge {
            Merge::Min => Some(Ordering::Less),
            Merge::Max => Some(Ordering::Greater),
            Merge::Sum | Merge::Own => None,
        }
    }

    /// The column's ClickHouse type.
    pub fn clickhouse(&self) -> String {
        let plain = match &self.column {
            Column::Count => "UInt64".to_owned(),
            Column::Value(value) => value.clickhouse(),
            Column::Function(function) => function.column_type(),
        };
        if self.nullable {
            format!("Nullable({plain})")
        } else {
            plain
        }
    }

    /// The DataFusion aggregate that makes the state from the argument's values where the condition is true. `None` for one
    /// that is read off others.
    pub fn make(&self, argument: Option<Expr>, condition: Option<Expr>) -> Option<Expr> {
        let value = argument.unwrap_or_else(|| lit(1_i64));
        let aggregate = self.make.as_ref()?(value);
        Some(match condition {
            // `build` refuses only what is no aggregate.
            Some(condition) => aggregate.clone().filter(condition).build().unwrap_or(aggregate),
            None => aggregate,
        })
    }

    /// The DataFusion aggregate that merges a column of states of a measure. `None` for one that is read off others.
    pub fn merge(&self, columns: &Columns<'_>) -> Option<Expr> {
        self.make.as_ref()?;
        let states = columns.state(self.suffix);
        Some(match (&self.merged, self.merge) {
            (Some(merge), _) => merge(columns),
            (None, Merge::Min) => min(states),
            (None, Merge::Max) => max(states),
            (None, Merge::Sum | Merge::Own) => sum(states),
        })
    }

    /// Brings the column of an aggregate to the state's type and nullability.
    pub fn settle(&self, columns: &Columns<'_>) -> Expr {
        let aggregated = match &self.settled {
            Some(read) => read(columns),
            None => columns.state(self.suffix),
        };
        let settled = cast(aggregated, self.arrow());
        if self.nullable {
            settled
        } else {
            coalesce(vec![settled, lit(self.empty())])
        }
    }

    fn empty(&self) -> ScalarValue {
        match &self.column {
            Column::Count => ScalarValue::UInt64(Some(0)),
            Column::Value(_) => ScalarValue::Float64(Some(0.0)),
            Column::Function(function) => ScalarValue::Binary(Some(function.empty.clone())),
        }
    }

    /// ClickHouse SQL for the state of no values, for rows that don't have the column.
    pub fn empty_sql(&self) -> String {
        match &self.column {
            Column::Function(function) => function.empty_sql(),
            _ if self.nullable => format!("CAST(NULL, '{}')", self.clickhouse()),
            _ => format!("CAST(0, '{}')", self.clickhouse()),
        }
    }

    /// ClickHouse SQL that merges a column of states for an answer, given SQL for the column. Of a function's states it gives
    /// the function's result, or a state where the measure's result says more than that.
    pub fn merge_sql(&self, states: &str) -> String {
        self.merging_sql(states, if self.whole { "MergeState" } else { "Merge" })
    }

    /// ClickHouse SQL that merges a column of states to one state. Of a function it comes as hexadecimal digits: in an Arrow
    /// stream the engine (26.5) writes the address of such a state instead of the state.
    pub fn merge_states_sql(&self, states: &str) -> String {
        let merged = self.merging_sql(states, "MergeState");
        if self.is_serialized() {
            format!("hex({merged})")
        } else {
            merged
        }
    }

    fn merging_sql(&self, states: &str, combinator: &str) -> String {
        match (&self.column, self.merge) {
            (Column::Function(Function { name, parameters, .. }), _) => {
                format!("{name}{combinator}{parameters}({states})")
            }
            (_, Merge::Min) => format!("min({states})"),
            (_, Merge::Max) => format!("max({states})"),
            (_, Merge::Sum | Merge::Own) => format!("sum({states})"),
        }
    }
}

impl Function {
    fn column_type(&self) -> String {
        let Self {
            name, parameters, of, ..
        } = self;
        format!("AggregateFunction({name}{parameters}, {of})")
    }

    /// The state of no values. Over no rows at all there is one.
    fn empty_sql(&self) -> String {
        let Self {
            name, parameters, of, ..
        } = self;
        format!("arrayReduce('{name}State{parameters}', CAST([], 'Array({of})'))")
    }
}
