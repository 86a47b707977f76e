//! A state for each group: what DataFusion drives.
//!
//! One way to make and to merge them for all kinds. What a grouping passes on between its steps, spills to disk and
//! gives in the end is the same: the state's bytes.

use std::fmt::Debug;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray};
use arrow::buffer::NullBuffer;
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{Float64Type, UInt64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_datafusion_err};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

use super::columns::{binary, states, typed};
use super::dd::{self, DdSketch};
use super::distinct::{ExactSet, Identity};
use super::form::Malformed;
use super::function::Act;
use super::uniq::Uniq;

/// The state of a group.
pub(super) trait State: Sized + Debug + Send + Sync + 'static {
    /// What all states of a column have in common.
    type Rule: Debug + Send + Sync + 'static;
    /// The state of no values.
    fn none(rule: &Self::Rule) -> Self;
    /// Takes the values of a batch, each into its group's state; where `kept` is null, a row is passed over. Returns by how
    /// much that changed what the states hold on to, as [`scatter`] does.
    fn take(
        rule: &Self::Rule,
        groups: &mut [Self],
        columns: &[ArrayRef],
        group_of: &[usize],
        kept: Option<&NullBuffer>,
    ) -> Result<usize>;
    /// Takes what another state holds.
    fn join(&mut self, rule: &Self::Rule, state: Option<&[u8]>) -> Result<(), Malformed>;
    /// Writes it; `false` where it is null.
    fn emit(&mut self, rule: &Self::Rule, out: &mut Vec<u8>) -> bool;
    /// The bytes it holds on to, besides itself.
    fn heap(&self) -> usize;
}

/// Calls with group and row for each row that is kept.
#[inline]
pub(super) fn rows(group_of: &[usize], kept: Option<&NullBuffer>, mut call: impl FnMut(usize, usize)) {
    match kept {
        None => {
            for (row, group) in group_of.iter().enumerate() {
                call(*group, row);
            }
        }
        Some(kept) => {
            for row in kept.valid_indices() {
                call(group_of[row], row);
            }
        }
    }
}

/// Calls with state and row for each row that is kept. Returns by how much that changed what the states hold on to, in bytes
/// modulo 2^64.
#[inline]
pub(super) fn scatter<S: State>(
    groups: &mut [S],
    group_of: &[usize],
    kept: Option<&NullBuffer>,
    mut call: impl FnMut(&mut S, usize),
) -> usize {
    let mut change = 0_usize;
    rows(group_of, kept, |group, row| {
        let state = &mut groups[group];
        let before = state.heap();
        call(state, row);
        change = change.wrapping_add(state.heap()).wrapping_sub(before);
    });
    change
}

impl State for Uniq {
    type Rule = ();

    fn none((): &()) -> Self {
        Self::default()
    }

    fn take(
        (): &(),
        groups: &mut [Self],
        columns: &[ArrayRef],
        group_of: &[usize],
        kept: Option<&NullBuffer>,
    ) -> Result<usize> {
        Ok(match identities(columns)? {
            Identities::Narrow(values) => {
                let values = values.values();
                scatter(groups, group_of, kept, |state, row| state.insert(values[row]))
            }
            Identities::Wide(values) => scatter(groups, group_of, kept, |state, row| {
                #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
                state.insert(wide(values, row) as u64);
            }),
        })
    }

    fn join(&mut self, (): &(), state: Option<&[u8]>) -> Result<(), Malformed> {
        state.map_or(Ok(()), |state| self.merge(state))
    }

    fn emit(&mut self, (): &(), out: &mut Vec<u8>) -> bool {
        self.write_to(out);
        true
    }

    fn heap(&self) -> usize {
        Uniq::heap(self)
    }
}

/// Identities as a set takes them.
trait Read: Identity {
    fn read(identities: &Identities<'_>, row: usize) -> Self;
}

impl Read for u64 {
    #[inline]
    fn read(identities: &Identities<'_>, row: usize) -> Self {
        match identities {
            Identities::Narrow(values) => values.value(row),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "never: the function knows the column's type"
            )]
            Identities::Wide(values) => wide(values, row) as u64,
        }
    }
}

impl Read for u128 {
    #[inline]
    fn read(identities: &Identities<'_>, row: usize) -> Self {
        match identities {
            Identities::Narrow(values) => Self::from(values.value(row)),
            Identities::Wide(values) => wide(values, row),
        }
    }
}

impl<T: Read> State for ExactSet<T> {
    /// The limit.
    type Rule = u64;

    fn none(limit: &u64) -> Self {
        Self::within(*limit)
    }

    fn take(
        _: &u64,
        groups: &mut [Self],
        columns: &[ArrayRef],
        group_of: &[usize],
        kept: Option<&NullBuffer>,
    ) -> Result<usize> {
        let identities = identities(columns)?;
        Ok(scatter(groups, group_of, kept, |state, row| {
            state.insert(<T as Read>::read(&identities, row));
        }))
    }

    fn join(&mut self, _: &u64, state: Option<&[u8]>) -> Result<(), Malformed> {
        match state {
            Some(state) => self.merge(state),
            None => {
                self.let_go();
                Ok(())
            }
        }
    }

    fn emit(&mut self, _: &u64, out: &mut Vec<u8>) -> bool {
        self.write_to(out)
    }

    fn heap(&self) -> usize {
        ExactSet::heap(self)
    }
}

impl State for DdSketch {
    type Rule = ();

    fn none((): &()) -> Self {
        Self::default()
    }

    fn take(
        (): &(),
        groups: &mut [Self],
        columns: &[ArrayRef],
        group_of: &[usize],
        kept: Option<&NullBuffer>,
    ) -> Result<usize> {
        let [values] = columns else {
            return Err(exec_datafusion_err!("quantiles take one column"));
        };
        let values = typed::<Float64Type>(values)?;
        // All logarithms at once: in a loop of their own they overlap.
        let ranges: Vec<i32> = values.values().iter().map(|value| dd::range(*value)).collect();
        Ok(scatter(groups, group_of, kept, |state, row| {
            if values.value(row).is_finite() {
                state.insert_range(ranges[row]);
            }
        }))
    }

    fn join(&mut self, (): &(), state: Option<&[u8]>) -> Result<(), Malformed> {
        state.map_or(Ok(()), |state| self.merge(state))
    }

    fn emit(&mut self, (): &(), out: &mut Vec<u8>) -> bool {
        self.write_to(out);
        true
    }

    fn heap(&self) -> usize {
        DdSketch::heap(self)
    }
}

/// A column of identities.
enum Identities<'a> {
    Narrow(&'a arrow::array::UInt64Array),
    Wide(&'a FixedSizeBinaryArray),
}

fn identities(columns: &[ArrayRef]) -> Result<Identities<'_>> {
    let [column] = columns else {
        return Err(exec_datafusion_err!("a set takes one column"));
    };
    Ok(match column.as_fixed_size_binary_opt() {
        Some(wide) => Identities::Wide(wide),
        None => Identities::Narrow(typed::<UInt64Type>(column)?),
    })
}

#[inline]
fn wide(values: &FixedSizeBinaryArray, row: usize) -> u128 {
    values.value(row).try_into().map_or(0, u128::from_le_bytes)
}

/// The states of all groups.
#[derive(Debug)]
pub(super) struct Groups<S: State> {
    rule: S::Rule,
    act: Act,
    states: Vec<S>,
    /// What they hold on to besides themselves.
    heap: usize,
}

impl<S: State> Groups<S> {
    pub(super) fn new(rule: S::Rule, act: Act) -> Self {
        Self {
            rule,
            act,
            states: Vec::new(),
            heap: 0,
        }
    }

    fn grow(&mut self, groups: usize) {
        let rule = &self.rule;
        self.states.resize_with(groups, || S::none(rule));
    }

    fn join(&mut self, column: &ArrayRef, group_of: &[usize], kept: Option<&NullBuffer>) -> Result<()> {
        self.heap = self
            .heap
            .wrapping_add(join(&self.rule, &mut self.states, column, group_of, kept)?);
        Ok(())
    }

    fn emit(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let mut states = emit_to.take_needed(&mut self.states);
        let heap: usize = states.iter().map(S::heap).sum();
        self.heap = self.heap.saturating_sub(heap);
        let rule = &self.rule;
        binary(&mut states, |state, out| state.emit(rule, out))
    }
}

/// Takes the states of a batch, each into its group's.
fn join<S: State>(
    rule: &S::Rule,
    groups: &mut [S],
    column: &ArrayRef,
    group_of: &[usize],
    kept: Option<&NullBuffer>,
) -> Result<usize> {
    let states = states(column)?;
    let mut result = Ok(());
    let change = scatter(groups, group_of, kept, |held, row| {
        if result.is_ok() {
            result = held.join(rule, states.is_valid(row).then(|| states.value(row)));
        }
    });
    match result {
        Ok(()) => Ok(change),
        Err(malformed) => Err(DataFusionError::External(Box::new(malformed))),
    }
}

/// Where the filter is true.
fn passing(filter: Option<&BooleanArray>) -> Option<NullBuffer> {
    filter.map(|filter| {
        NullBuffer::new(match filter.null_count() {
            0 => filter.values().clone(),
            _ => prep_null_mask_filter(filter).values().clone(),
        })
    })
}

impl<S: State> GroupsAccumulator for Groups<S> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        let kept = passing(opt_filter);
        match (self.act, values) {
            (Act::Merge, [column]) => self.join(column, group_indices, kept.as_ref()),
            (Act::Merge, _) => Err(exec_datafusion_err!("states are merged from one column")),
            (Act::Make, [value, ..]) => {
                let kept = NullBuffer::union(kept.as_ref(), value.logical_nulls().as_ref());
                let change = S::take(&self.rule, &mut self.states, values, group_indices, kept.as_ref())?;
                self.heap = self.heap.wrapping_add(change);
                Ok(())
            }
            (Act::Make, []) => Err(exec_datafusion_err!("a state is made of a column")),
        }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.emit(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit_to)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.grow(total_num_groups);
        match values {
            [column] => self.join(column, group_indices, None),
            _ => Err(exec_datafusion_err!("states are merged from one column")),
        }
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        // Each row a group of its own.
        let count = values.first().map_or(0, |column| column.len());
        let mut states: Vec<S> = (0..count).map(|_| S::none(&self.rule)).collect();
        let group_of: Vec<usize> = (0..count).collect();
        let kept = passing(opt_filter);
        match (self.act, values) {
            (Act::Make, [value, ..]) => {
                let kept = NullBuffer::union(kept.as_ref(), value.logical_nulls().as_ref());
                S::take(&self.rule, &mut states, values, &group_of, kept.as_ref())?;
            }
            (Act::Merge, [column]) => {
                join(&self.rule, &mut states, column, &group_of, kept.as_ref())?;
            }
            _ => return Err(exec_datafusion_err!("a state is made of a column")),
        }
        Ok(vec![binary(&mut states, |state, out| state.emit(&self.rule, out))?])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.states.capacity() * size_of::<S>() + self.heap
    }
}

/// One state for all rows, where nothing is grouped by.
pub(super) struct Whole(pub(super) Box<dyn GroupsAccumulator + Sync>);

impl Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Whole").field(&self.0.size()).finish()
    }
}

impl Whole {
    fn groups(&mut self, values: &[ArrayRef]) -> (Vec<usize>, &mut dyn GroupsAccumulator) {
        let rows = values.first().map_or(0, |column| column.len());
        (vec![0; rows], self.0.as_mut())
    }
}

impl Accumulator for Whole {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (group_of, groups) = self.groups(values);
        groups.update_batch(values, &group_of, None, 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        // Also where no row came there is one group.
        self.0.merge_batch(&[binary::<()>(&mut [], |(), _| true)?], &[], 1)?;
        ScalarValue::try_from_array(&self.0.evaluate(EmitTo::All)?, 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (group_of, groups) = self.groups(states);
        groups.merge_batch(states, &group_of, 1)
    }
}
