//! Cells beside cells: equal, different and why.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, DynComparator, Float64Array, PrimitiveArray, RecordBatch, UInt64Array,
    make_comparator,
};
use arrow::compute::{SortOptions, cast, concat_batches, take_record_batch};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float64Type, Schema, SchemaRef, TimestampMicrosecondType, UInt8Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::row::OwnedRow;
use arrow::util::display::array_value_to_string;
use serde::Serialize;
use shared_schemas::measure::{Held, Reading, State};
use shared_schemas::plan::WINDOW_COLUMN;
use shared_schemas::sketch::uniq_bound;
use shared_schemas::store::cells::LAYERS_COLUMN;
use shared_schemas::view::{MeasureForm, View};

use super::cause::{Cause, Contribution};
use super::place::{EventShown, Place};
use super::sorted::key_converter;

/// A measure of a cell that is not what the archive gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The view.
    pub view: String,
    /// The start of the cell's window.
    pub window: String,
    /// The value of each dimension; null where it has none.
    pub dimensions: BTreeMap<String, Option<String>>,
    /// The measure.
    pub measure: String,
    /// Its state in the store: `sum=12 count=3`; null where there is no such cell.
    pub held: Option<String>,
    /// Its state by the archive, likewise.
    pub exact: Option<String>,
    /// Which layers' rows the cell is made of: `batch`, `speed` or `merged`; null where there are none.
    pub layer: Option<&'static str>,
    /// Why it is so in words; null where nothing explains it.
    pub explained: Option<&'static str>,
    /// Why it is so.
    pub cause: Cause,
    /// What may make it, of which nothing is proved: it is unexplained all the same. Null where nothing else speaks for it, and where it
    /// is explained.
    pub unproved: Option<&'static str>,
    /// What the events of each cause contribute to it.
    pub contributions: Vec<Contribution>,
    /// The smallest place that it was narrowed down to; empty where that was not done, of the first few differences only.
    pub place: Vec<Place>,
    /// Archived events in that place, a few.
    pub events: Vec<EventShown>,
    /// How many archived events there are in that place.
    pub events_in_place: usize,
    /// Where its window begins, in microseconds since 1970.
    #[serde(skip)]
    pub(crate) begins: i64,
    /// Its cell.
    #[serde(skip)]
    pub(crate) cell: Option<OwnedRow>,
}

/// What the column of layers says of a cell of batch rows alone.
const OF_BATCH: u8 = 1;

/// A repeat that a window or a partition hides from the speed layer.
pub(crate) const REPEATS: &str = "repeats that the speed layer could not know, which the next batch run drops";

/// Cells by their key, as rows of one batch.
pub(crate) struct Cells {
    batch: RecordBatch,
    rows: BTreeMap<OwnedRow, usize>,
}

impl Cells {
    /// Cells of one view, each once.
    pub(crate) fn new(view: &View, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Self, ArrowError> {
        let batch = match batches.first() {
            Some(first) => concat_batches(first.schema_ref(), batches)?,
            None => RecordBatch::new_empty(SchemaRef::clone(schema)),
        };
        let keys: Vec<ArrayRef> = batch.columns().iter().take(key_columns(view)).cloned().collect();
        let converted = key_converter(&batch.schema(), keys.len())?.convert_columns(&keys)?;
        let rows = converted
            .iter()
            .enumerate()
            .map(|(at, row)| (row.owned(), at))
            .collect();
        Ok(Self { batch, rows })
    }

    /// Cells as the store sends them, a batch of them: the columns brought to the plan's types.
    pub(crate) fn read(view: &View, schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let states: Vec<_> = view.states().collect();
        let column = |field: &FieldRef| {
            let column = batch
                .column_by_name(field.name())
                .ok_or_else(|| ArrowError::SchemaError(format!("the store sent no column `{}`", field.name())))?;
            match states.iter().find(|held| held.name == *field.name()) {
                Some(held) if held.state.is_serialized() => canonical(&held.state, column),
                _ => cast(column, field.data_type()),
            }
        };
        let columns = schema.fields().iter().map(column).collect::<Result<_, _>>()?;
        RecordBatch::try_new(Arc::clone(schema), columns)
    }

    /// Copies of the rows of some cells.
    pub(crate) fn only<'k>(&self, cells: impl Iterator<Item = &'k OwnedRow>) -> Result<RecordBatch, ArrowError> {
        let rows = cells.filter_map(|cell| self.at(cell)).map(|at| at as u64);
        take_record_batch(&self.batch, &UInt64Array::from_iter_values(rows))
    }

    /// The row of a cell.
    pub(crate) fn at(&self, key: &OwnedRow) -> Option<usize> {
        self.rows.get(key).copied()
    }

    /// The keys of all cells, with their rows.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&OwnedRow, usize)> {
        self.rows.iter().map(|(key, at)| (key, *at))
    }

    /// The rows, as they came.
    pub(crate) fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    pub(crate) fn state(&self, name: &str, at: usize) -> Option<(&ArrayRef, usize)> {
        self.batch.column_by_name(name).map(|column| (column, at))
    }

    fn layer(&self, at: usize) -> Option<&'static str> {
        let layers = self
            .batch
            .column_by_name(LAYERS_COLUMN)?
            .as_primitive_opt::<UInt8Type>()?;
        Some(match layers.value(at) {
            OF_BATCH => "batch",
            2 => "speed",
            _ => "merged",
        })
    }
}

/// The columns of cells as the store sends them: of which layers' rows they are too.
pub(crate) fn with_layers(schema: &SchemaRef) -> SchemaRef {
    let layers = Field::new(LAYERS_COLUMN, DataType::UInt8, false).into();
    let all: Vec<FieldRef> = schema.fields().iter().cloned().chain([layers]).collect();
    SchemaRef::new(Schema::new(all))
}

/// States that came as hexadecimal digits, each in the form that all equal ones have.
pub(crate) fn canonical(state: &State, digits: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let digits = cast(digits, &DataType::Utf8)?;
    let states: Vec<_> = digits
        .as_string::<i32>()
        .iter()
        .map(|digits| Ok(sent(state, digits.unwrap_or_default())?.canonical))
        .collect::<Result<_, ArrowError>>()?;
    Ok(Arc::new(states.iter().map(Some).collect::<BinaryArray>()))
}

/// A state that came as hexadecimal digits. Its result is empty where nobody can read it.
pub(crate) fn sent(state: &State, digits: &str) -> Result<Reading, ArrowError> {
    let broken = |why: &dyn std::fmt::Display| ArrowError::ParseError(format!("the store sent a broken state: {why}"));
    let bytes = bytes(digits).ok_or_else(|| broken(&"it is not made of hexadecimal digits"))?;
    match state.read(&bytes) {
        Some(reading) => reading.map_err(|error| broken(&error)),
        None => Ok(Reading {
            canonical: bytes,
            result: String::new(),
        }),
    }
}

/// The bytes that hexadecimal digits stand for.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
    };
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty())
}

fn key_columns(view: &View) -> usize {
    1 + view.dimensions.len()
}

/// A measure with the state columns that it rests on; a ratio's are those of its two.
pub(crate) struct Compared<'a> {
    pub(crate) name: &'a str,
    /// For each aggregate its states.
    pub(crate) states: Vec<Vec<(String, State)>>,
}

pub(crate) fn measures(view: &View) -> Vec<Compared<'_>> {
    let states = |index: usize| {
        view.measures.get(index).and_then(|measure| match &measure.form {
            MeasureForm::Aggregate(aggregate) => Some(
                aggregate
                    .states()
                    .into_iter()
                    .map(|state| (state.column(&measure.name), state))
                    .collect(),
            ),
            MeasureForm::Ratio { .. } => None,
        })
    };
    let compared = view.measures.iter().enumerate().map(|(index, measure)| Compared {
        name: &measure.name,
        states: match measure.form {
            MeasureForm::Aggregate(_) => states(index).into_iter().collect(),
            MeasureForm::Ratio { numerator, denominator } => {
                [numerator, denominator].into_iter().filter_map(states).collect()
            }
        },
    });
    compared.collect()
}

/// What came of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Compare {
    pub(crate) compared: u64,
    pub(crate) equal: u64,
    pub(crate) different: Vec<Difference>,
}

impl Compare {
    /// Compares what the store holds with what the archive gives, measure by measure.
    pub(crate) fn of(view: &View, held: &Cells, exact: &Cells) -> Self {
        let mut found = Self::default();
        let measures = measures(view);
        let matched: Vec<_> = measures
            .iter()
            .map(|measure| (measure, measure.matched(held, exact)))
            .collect();
        each_cell(held, exact, |cell, held_at, exact_at| {
            for (measure, matched) in &matched {
                found.compared += 1;
                if held_at
                    .zip(exact_at)
                    .is_some_and(|(held, exact)| matched.is_equal(held, exact))
                {
                    found.equal += 1;
                } else {
                    found
                        .different
                        .push(difference(view, measure, cell, (held, held_at), (exact, exact_at)));
                }
            }
        });
        found
    }

    /// Finds what explains differences: where the store holds what the speed layer's own rule gives.
    pub(crate) fn explain(&mut self, view: &View, held: &Cells, predicted: &Cells) {
        let measures = measures(view);
        for difference in &mut self.different {
            let Some(cell) = &difference.cell else { continue };
            let Some(measure) = measures.iter().find(|measure| measure.name == difference.measure) else {
                continue;
            };
            let (held_at, predicted_at) = (held.at(cell), predicted.at(cell));
            // All of its events may lie where the speed layer has a gap: then no row is what the rules give, too.
            let in_neither = held_at.is_none() && predicted_at.is_none();
            // Sets are not predicted; where they count, no speed row does, so no repeat is in them.
            let all_batch = held_at.and_then(|at| held.layer(at)) == Some("batch");
            let by_rule =
                || !(all_batch && measure.keeps_sets()) && measure.is_equal(held, held_at, predicted, predicted_at);
            difference.explained = (in_neither || by_rule()).then_some(REPEATS);
        }
    }
}

/// Calls for each key that either has, with its rows.
fn each_cell(a: &Cells, b: &Cells, mut call: impl FnMut(&OwnedRow, Option<usize>, Option<usize>)) {
    for (key, at) in &a.rows {
        call(key, Some(*at), b.rows.get(key).copied());
    }
    for (key, at) in b.rows.iter().filter(|(key, _)| !a.rows.contains_key(*key)) {
        call(key, None, Some(*at));
    }
}

impl Compared<'_> {
    /// Whether it has states that only the batch layer keeps.
    fn keeps_sets(&self) -> bool {
        self.states.iter().flatten().any(|(_, state)| state.held == Held::Batch)
    }

    pub(crate) fn is_equal(&self, a: &Cells, a_at: Option<usize>, b: &Cells, b_at: Option<usize>) -> bool {
        let rows = a_at.zip(b_at);
        rows.is_some_and(|(a_at, b_at)| self.matched(a, b).is_equal(a_at, b_at))
    }

    /// Its columns on both sides.
    fn matched<'c>(&self, a: &'c Cells, b: &'c Cells) -> Matched<'c> {
        let layers = a.batch.column_by_name(LAYERS_COLUMN);
        Matched {
            layers: layers.and_then(|layers| layers.as_primitive_opt::<UInt8Type>()),
            aggregates: self
                .states
                .iter()
                .map(|states| MatchedStates::of(states, a, b))
                .collect(),
        }
    }

    /// Its states for people.
    pub(crate) fn shown(&self, cells: &Cells, at: usize) -> String {
        let states = self.states.iter().flatten().filter_map(|(name, state)| {
            let (column, at) = cells.state(name, at)?;
            Some(format!(
                "{name}={}",
                shown(state, column, at).as_deref().unwrap_or("null")
            ))
        });
        states.collect::<Vec<_>>().join(" ")
    }

    /// The states that rows of both layers have.
    pub(crate) fn of_both(&self) -> impl Iterator<Item = &(String, State)> {
        self.states
            .iter()
            .flatten()
            .filter(|(_, state)| state.held == Held::Both)
    }

    /// Whether one row can be of the other's events, with values that so many keys have renamed: values where there were some, and as
    /// many different ones, or fewer where one was there under several keys.
    pub(crate) fn is_renamed(&self, held: Row<'_>, other: Row<'_>, keys: usize) -> bool {
        let (Some(held_at), Some(other_at)) = (held.1, other.1) else {
            return false;
        };
        self.of_both().all(|(name, state)| {
            let (Some((a, a_at)), Some((b, b_at))) = (held.0.state(name, held_at), other.0.state(name, other_at))
            else {
                return false;
            };
            if state.is_count() {
                return same(a, a_at, b, b_at);
            }
            let (Some(a_bytes), Some(b_bytes)) = (a.as_binary_opt::<i32>(), b.as_binary_opt::<i32>()) else {
                return a.is_null(a_at) == b.is_null(b_at);
            };
            let number = |bytes: &[u8]| match state.read(bytes) {
                Some(Ok(reading)) => reading.result.parse::<u64>().ok(),
                _ => None,
            };
            match number(a_bytes.value(a_at)).zip(number(b_bytes.value(b_at))) {
                Some((renamed, there)) => may_be_renamed(renamed, there, keys),
                // Not of a number of values.
                None => true,
            }
        })
    }
}

/// Whether an estimate of so many can be of the values that another is of under so many keys; either may be off by its bound, thrice
/// since what it states holds in most cases.
#[expect(clippy::cast_precision_loss, reason = "a bound")]
fn may_be_renamed(renamed: u64, there: u64, keys: usize) -> bool {
    let (renamed, there) = (renamed as f64, there as f64);
    let off = 3.0 * (uniq_bound(renamed) + uniq_bound(there));
    renamed <= there * (1.0 + off) && renamed * (1.0 + off) * keys as f64 >= there
}

/// Cells, and the row of one of them, if it is there.
pub(crate) type Row<'a> = (&'a Cells, Option<usize>);

pub(crate) fn count((column, at): (&ArrayRef, usize)) -> Option<u64> {
    column.as_primitive_opt::<UInt64Type>().map(|counts| counts.value(at))
}

/// How far sums of doubles may lie apart: twice `n · ε · Σ |x|`, each side's bound. `None` where nothing is rounded.
fn tolerance(states: &[(String, State)], exact: &Cells, at: usize) -> Option<f64> {
    Bound::of(states, exact)?.at(at)
}

/// What the bound of sums of doubles is made of.
struct Bound<'c> {
    magnitudes: &'c ArrayRef,
    counts: &'c PrimitiveArray<UInt64Type>,
}

impl<'c> Bound<'c> {
    fn of(states: &[(String, State)], exact: &'c Cells) -> Option<Self> {
        states.iter().find(|(_, state)| state.is_rounded())?;
        let of = |suffix: &str| {
            let (name, _) = states.iter().find(|(_, state)| state.suffix == suffix)?;
            exact.batch.column_by_name(name)
        };
        Some(Self {
            magnitudes: of("magnitude")?,
            counts: of("count")?.as_primitive_opt()?,
        })
    }

    fn at(&self, at: usize) -> Option<f64> {
        let magnitude = float(self.magnitudes, at)?;
        #[expect(clippy::cast_precision_loss, reason = "a bound")]
        let count = self.counts.value(at) as f64;
        Some(2.0 * count * f64::EPSILON * magnitude)
    }
}

/// A measure's columns on two sides, looked up once for all cells.
struct Matched<'c> {
    layers: Option<&'c PrimitiveArray<UInt8Type>>,
    aggregates: Vec<MatchedStates<'c>>,
}

/// The columns of an aggregate's states.
struct MatchedStates<'c> {
    bound: Option<Bound<'c>>,
    states: Vec<MatchedState<'c>>,
}

struct MatchedState<'c> {
    /// What speed rows don't have is whole in batch rows alone, and predicted for none.
    is_of_batch: bool,
    is_rounded: bool,
    columns: [Option<&'c ArrayRef>; 2],
    /// None where they can't be equal.
    compare: Option<DynComparator>,
}

impl<'c> MatchedStates<'c> {
    fn of(states: &[(String, State)], a: &'c Cells, b: &'c Cells) -> Self {
        let matched = |(name, state): &(String, State)| {
            let columns = [a, b].map(|cells| cells.batch.column_by_name(name));
            let compare = match columns {
                [Some(a), Some(b)] if a.data_type() == b.data_type() => {
                    make_comparator(a.as_ref(), b.as_ref(), SortOptions::default()).ok()
                }
                _ => None,
            };
            MatchedState {
                is_of_batch: state.held == Held::Batch,
                is_rounded: state.is_rounded(),
                columns,
                compare,
            }
        };
        Self {
            bound: Bound::of(states, b),
            states: states.iter().map(matched).collect(),
        }
    }
}

impl Matched<'_> {
    fn is_equal(&self, a_at: usize, b_at: usize) -> bool {
        let is_batch = || self.layers.is_some_and(|layers| layers.value(a_at) == OF_BATCH);
        self.aggregates.iter().all(|aggregate| {
            let tolerance = aggregate.bound.as_ref().and_then(|bound| bound.at(b_at));
            aggregate.states.iter().all(|state| match (state.columns, tolerance) {
                ([_, None], _) if state.is_of_batch => true,
                _ if state.is_of_batch && !is_batch() => true,
                ([Some(a), Some(b)], Some(tolerance)) if state.is_rounded => {
                    close(float(a, a_at), float(b, b_at), tolerance)
                }
                _ => state
                    .compare
                    .as_ref()
                    .is_some_and(|compare| compare(a_at, b_at).is_eq()),
            })
        })
    }
}

/// How far sums of doubles lie apart, and how far they may.
pub(crate) fn rounded_apart(
    states: &[(String, State)],
    (held, at): (&Cells, usize),
    (exact, exact_at): (&Cells, usize),
) -> Option<(f64, f64)> {
    let bound = tolerance(states, exact, exact_at)?;
    let (name, _) = states
        .iter()
        .find(|(_, state)| state.is_rounded() && state.suffix == "sum")?;
    let of = |cells: &Cells, at| cells.state(name, at).and_then(|(column, at)| float(column, at));
    let off = (of(held, at)? - of(exact, exact_at)?).abs();
    off.is_finite().then_some((off, bound))
}

pub(crate) fn float(column: &ArrayRef, at: usize) -> Option<f64> {
    let column: &Float64Array = column.as_primitive_opt::<Float64Type>()?;
    column.is_valid(at).then(|| column.value(at))
}

fn close(a: Option<f64>, b: Option<f64>, tolerance: f64) -> bool {
    match (a, b) {
        (Some(a), Some(b)) if a.is_finite() && b.is_finite() => (a - b).abs() <= tolerance,
        // A sum beyond all doubles has no value, in whatever order it came to that.
        (Some(a), Some(b)) => !a.is_finite() && !b.is_finite(),
        (None, None) => true,
        _ => false,
    }
}

pub(crate) fn same(a: &ArrayRef, a_at: usize, b: &ArrayRef, b_at: usize) -> bool {
    a.data_type() == b.data_type() && a.slice(a_at, 1).as_ref() == b.slice(b_at, 1).as_ref()
}

fn text(column: &ArrayRef, at: usize) -> Option<String> {
    column
        .is_valid(at)
        .then(|| array_value_to_string(column, at).unwrap_or_default())
}

/// A state for people: of a serialized one the result, and how many bytes it is made of, which may tell two apart.
fn shown(state: &State, column: &ArrayRef, at: usize) -> Option<String> {
    let bytes = column.as_binary_opt::<i32>().map(|states| states.value(at));
    match bytes.and_then(|bytes| Some((state.read(bytes)?, bytes.len()))) {
        Some((Ok(reading), bytes)) => Some(format!("{} ({bytes} bytes)", reading.result)),
        Some((Err(error), _)) => Some(error.to_string()),
        None => text(column, at),
    }
}

fn key(
    view: &View,
    (a, a_at): (&Cells, Option<usize>),
    (b, b_at): (&Cells, Option<usize>),
) -> (String, BTreeMap<String, Option<String>>) {
    let Some((cells, at)) = a_at.map(|at| (a, at)).or(b_at.map(|at| (b, at))) else {
        return Default::default();
    };
    let value = |name: &str| cells.state(name, at).and_then(|(column, at)| text(column, at));
    let dimensions = view
        .dimensions
        .iter()
        .map(|dimension| (dimension.name.clone(), value(&dimension.name)));
    (value(WINDOW_COLUMN).unwrap_or_default(), dimensions.collect())
}

/// Where a row's window begins.
fn begins((cells, at): Row<'_>) -> Option<i64> {
    let (windows, at) = cells.state(WINDOW_COLUMN, at?)?;
    let windows = windows.as_primitive_opt::<TimestampMicrosecondType>()?;
    Some(windows.value(at))
}

fn difference(
    view: &View,
    measure: &Compared<'_>,
    cell: &OwnedRow,
    held: (&Cells, Option<usize>),
    exact: (&Cells, Option<usize>),
) -> Difference {
    let (window, dimensions) = key(view, held, exact);
    let all = |(cells, at): (&Cells, Option<usize>)| at.map(|at| measure.shown(cells, at));
    Difference {
        view: view.name.clone(),
        window,
        dimensions,
        measure: measure.name.to_owned(),
        held: all(held),
        exact: all(exact),
        layer: held.1.and_then(|at| held.0.layer(at)),
        explained: None,
        cause: Cause::Unexplained,
        unproved: None,
        contributions: Vec::new(),
        place: Vec::new(),
        events: Vec::new(),
        events_in_place: 0,
        begins: begins(held).or(begins(exact)).unwrap_or_default(),
        cell: Some(cell.clone()),
    }
}
