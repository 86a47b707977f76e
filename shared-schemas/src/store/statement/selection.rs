//! Which part of an answer is wanted: some values of dimensions, an order, so many rows, one layer.
//!
//! A filter is a condition on a dimension, and dimensions are columns of the sorting key of both tables. So it never
//! decides which version of a cell wins, only whether the cell is read. Values travel as parameters.

use super::super::quote::{identifier, text};
use super::{Parameters, StatementError, list};
use crate::view::{ValueType, View};

/// Which part of an answer is wanted; by default all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// All of them must hold.
    pub filters: &'a [Filter],
    /// What the rows are in order of, before time and dimensions.
    pub order: &'a [Order],
    /// At most so many rows.
    pub limit: Option<u32>,
    /// Whose rows are read.
    pub layers: Layers,
    /// Leaves out the states that only the batch layer keeps, exact sets, which can take more memory than a statement may
    /// have: results are then read off the others, and where that makes them estimates they say so.
    pub without_sets: bool,
}

/// That a dimension is one of some values. One that is null is none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The dimension.
    pub dimension: String,
    /// The values, of the dimension's type.
    pub values: FilterValues,
}

/// Values of one type that a dimension can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterValues {
    /// Texts.
    String(Vec<String>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Integers.
    Int64(Vec<i64>),
    /// Moments, in microseconds since 1970.
    Timestamp(Vec<i64>),
    /// Days since 1970-01-01.
    Date(Vec<i32>),
}

/// A column that rows are in order of. Nulls come last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// `time`, or a dimension or measure that is asked for.
    pub column: String,
    /// From the highest to the lowest.
    pub descending: bool,
}

/// Whose rows make an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layers {
    /// Batch rows below the marks and speed rows from there on: the answer.
    #[default]
    Merged,
    /// The batch layer's share of it.
    Batch,
    /// The speed layer's share of it.
    Speed,
}

impl FilterValues {
    fn are_of(&self, value_type: ValueType) -> bool {
        matches!(
            (self, value_type),
            (Self::String(_), ValueType::String)
                | (Self::Bool(_), ValueType::Bool)
                | (Self::Int64(_), ValueType::Int64)
                | (Self::Timestamp(_), ValueType::Timestamp)
                | (Self::Date(_), ValueType::Date)
        )
    }

    fn sql(&self, parameters: &mut Parameters) -> String {
        match self {
            Self::String(values) => {
                let quoted = values.iter().map(|value| text(value));
                parameters.add("Array(String)", &list(quoted))
            }
            Self::Bool(values) => parameters.add("Array(Bool)", &list(values)),
            Self::Int64(values) => parameters.add("Array(Int64)", &list(values)),
            Self::Timestamp(values) => {
                let micros = parameters.add("Array(Int64)", &list(values));
                format!("arrayMap(moment -> fromUnixTimestamp64Micro(moment, 'UTC'), {micros})")
            }
            Self::Date(values) => {
                let days = parameters.add("Array(Int32)", &list(values));
                format!("arrayMap(day -> toDate32(day), {days})")
            }
        }
    }
}

impl Selection<'_> {
    /// SQL for each filter.
    pub(super) fn conditions(&self, view: &View, parameters: &mut Parameters) -> Result<Vec<String>, StatementError> {
        let condition = |filter: &Filter| {
            let dimension = view
                .dimensions
                .iter()
                .find(|dimension| dimension.name == filter.dimension);
            let (view, name) = (view.name.clone(), filter.dimension.clone());
            match dimension {
                None => Err(StatementError::Dimension { view, name }),
                Some(dimension) if !filter.values.are_of(dimension.expression.value_type) => {
                    Err(StatementError::Filter { view, name })
                }
                Some(_) => Ok(format!("{} IN {}", identifier(&name), filter.values.sql(parameters))),
            }
        };
        self.filters.iter().map(condition).collect()
    }

    /// What ends the statement: the order, and how many rows at most. The groups end every order, so that equal rows
    /// are always in the same one.
    pub(super) fn tail(
        &self,
        groups: &[String],
        dimensions: &[&str],
        measures: &[&str],
    ) -> Result<String, StatementError> {
        let mut order: Vec<String> = Vec::new();
        for Order { column, descending } in self.order {
            let is_time = column == "time" && groups.first().is_some_and(|group| group == "time");
            let known = is_time || dimensions.contains(&column.as_str()) || measures.contains(&column.as_str());
            if !known {
                return Err(StatementError::Order { name: column.clone() });
            }
            let direction = if *descending { " DESC" } else { "" };
            order.push(format!("{}{direction}", identifier(column)));
        }
        order.extend(groups.iter().cloned());
        let order = if order.is_empty() {
            String::new()
        } else {
            format!(" ORDER BY {}", order.join(", "))
        };
        let limit = self.limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default();
        Ok(order + &limit)
    }
}
