//! Whether a value lies between two others: all that it should be of, and that with some events counted once more.
//!
//! Where a filter was cut short, some of the repeats that it should have dropped are counted, nobody knows which. They are
//! archived, so it is known what each of them would add. A count tells how many there are; a sum then lies between that of so many of the
//! smallest contributions and that of so many of the largest, and where there are few choices it must be what one of them adds up to.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, make_comparator};
use arrow::compute::SortOptions;
use arrow::datatypes::{Decimal128Type, Int64Type, UInt64Type};
use shared_schemas::measure::{Held, State};

use super::compare::{Compared, Row, count, float, same};

/// Of at most so many events every choice is tried.
const TRIED: usize = 12;
/// And of more, where there are at most so many choices: where few of them are chosen, or few left out.
const CHOICES: usize = 1 << TRIED;

impl Compared<'_> {
    /// Whether what is held can be of `least` and of some of the events that these cells are of, one each. `most` is of all of them
    /// and of `least`; `chosen` is how many of them there are, where that is known.
    pub(crate) fn lies_between(
        &self,
        held: Row<'_>,
        least: Row<'_>,
        most: Row<'_>,
        events: &[RecordBatch],
        chosen: Option<u64>,
    ) -> bool {
        let own = self.of_both().find(|(_, state)| state.is_count());
        self.of_both().all(|(name, state)| {
            let (Some(held_state), Some(most_state)) = (state_of(held, name), state_of(most, name)) else {
                return false;
            };
            let least_state = state_of(least, name);
            if state.is_additive() {
                // Of a sum its own count says how many values there are; of a count nothing but the cell's can.
                let counting = own.filter(|_| !state.is_count()).map(|(name, _)| name);
                let of_own = counting.and_then(|name| {
                    let [held, least] =
                        [held, least].map(|row| state_of(row, name).and_then(count).unwrap_or_default());
                    held.checked_sub(least)
                });
                if counting.is_some() && of_own.is_none() {
                    return false;
                }
                let counts = |event: &&RecordBatch| {
                    counting
                        .is_none_or(|name| event.column_by_name(name).and_then(|column| count((column, 0))) > Some(0))
                };
                let values = events
                    .iter()
                    .filter(counts)
                    .map(|event| event.column_by_name(name).map(|column| (column, 0)));
                return adds_up(state, held_state, least_state, most_state, values, of_own.or(chosen));
            }
            let is_more = least_state.is_none_or(|least| is_of_more(state, held_state, least));
            is_more && is_of_more(state, most_state, held_state)
        })
    }
}

impl Compared<'_> {
    /// Whether what is held can be of all events that the other is of, and of more: counts are no lower, and what does not add up lies no
    /// nearer. Of sums nothing can be said.
    pub(crate) fn is_of_more(&self, held: Row<'_>, less: Row<'_>) -> bool {
        self.of_both().all(|(name, state)| {
            let Some(held) = state_of(held, name) else { return false };
            match state_of(less, name) {
                Some(less) if state.is_count() => count(held) >= count(less),
                Some(less) if !state.is_additive() => is_of_more(state, held, less),
                _ => true,
            }
        })
    }

    /// Whether what is held can be of all events that `least` is of, and of so many more at most, of which nothing is known. A sum is
    /// what it is where its own count says that no value is added.
    pub(crate) fn may_have_more(&self, held: Row<'_>, least: Row<'_>, more: Option<u64>) -> bool {
        self.states.iter().all(|of_aggregate| {
            let of_both = || of_aggregate.iter().filter(|(_, state)| state.held == Held::Both);
            let own = of_both().find(|(_, state)| state.is_count());
            let own = own.map(|(name, _)| {
                let [held, least] = [held, least].map(|row| state_of(row, name).and_then(count).unwrap_or_default());
                held.checked_sub(least)
            });
            match own {
                Some(None) => return false,
                Some(Some(values)) if more.is_some_and(|more| values > more) => return false,
                Some(Some(0)) if held.1.is_some() && least.1.is_some() => {
                    let alone = Compared {
                        name: self.name,
                        states: vec![of_aggregate.clone()],
                    };
                    return alone.is_equal(held.0, held.1, least.0, least.1);
                }
                _ => {}
            }
            of_both().all(|(name, state)| match (state_of(held, name), state_of(least, name)) {
                (Some(held), Some(least)) if !state.is_additive() => tells_more(state, held, least).unwrap_or(true),
                // The row is gone, and events were in it.
                (None, Some(_)) => false,
                _ => true,
            })
        })
    }
}

type At<'a> = (&'a ArrayRef, usize);

fn state_of<'a>((cells, at): Row<'a>, name: &str) -> Option<At<'a>> {
    cells.state(name, at?)
}

/// Whether a sum is that of the least and of some of these values.
fn adds_up<'a>(
    state: &State,
    held: At<'_>,
    least: Option<At<'_>>,
    most: At<'_>,
    values: impl Iterator<Item = Option<At<'a>>>,
    chosen: Option<u64>,
) -> bool {
    if state.is_rounded() {
        let of = |at: At<'_>| float(at.0, at.1);
        let Some(held) = of(held) else { return false };
        let least = least.and_then(of).unwrap_or_default();
        let values: Vec<f64> = values.map(|value| value.and_then(of).unwrap_or_default()).collect();
        let size = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
        #[expect(clippy::cast_precision_loss, reason = "a bound")]
        let slack = 4.0 * (values.len() + 2) as f64 * f64::EPSILON * (size(&values) + least.abs() + held.abs());
        // What it is a sum of is not known; in the worst case of as much again, as far as the largest sum tells.
        let slack = slack + of(most).map_or(0.0, |most| 64.0 * f64::EPSILON * most.abs());
        return can_be_of(&values, chosen, held - least, slack);
    }
    // A sum of no values is null; one that is less than it should be of is none.
    let Some(held) = whole(held) else {
        return least.and_then(whole).is_none() && chosen.unwrap_or_default() == 0;
    };
    let least = least.and_then(whole).unwrap_or_default();
    let values: Vec<i128> = values.map(|value| value.and_then(whole).unwrap_or_default()).collect();
    held.checked_sub(least)
        .is_some_and(|more| can_be_of(&values, chosen, more, 0))
}

/// A whole number, whatever it is kept in.
fn whole((column, at): At<'_>) -> Option<i128> {
    if column.is_null(at) {
        return None;
    }
    let decimal = column
        .as_primitive_opt::<Decimal128Type>()
        .map(|column| column.value(at));
    let signed = || {
        column
            .as_primitive_opt::<Int64Type>()
            .map(|column| i128::from(column.value(at)))
    };
    let unsigned = || {
        column
            .as_primitive_opt::<UInt64Type>()
            .map(|column| i128::from(column.value(at)))
    };
    decimal.or_else(signed).or_else(unsigned)
}

/// Whether so many of these values can add up to that, give or take; any number of them, if it is not known.
pub(crate) fn can_be_of<N: Amount>(values: &[N], chosen: Option<u64>, wanted: N, slack: N) -> bool {
    let near = |sum: N| sum.less(slack) <= wanted && wanted <= sum.plus(slack);
    let chosen = match chosen.map(usize::try_from) {
        Some(Ok(chosen)) if chosen <= values.len() => Some(chosen),
        Some(_) => return false,
        None => None,
    };
    if values.len() <= TRIED {
        return (0..1_usize << values.len()).any(|choice| {
            let is_in = |at: &usize| choice >> at & 1 == 1;
            let of = (0..values.len()).filter(is_in).filter_map(|at| values.get(at).copied());
            chosen.is_none_or(|chosen| chosen == choice.count_ones() as usize) && near(of.fold(N::default(), N::plus))
        });
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    let sum = |values: &[N]| values.iter().copied().fold(N::default(), N::plus);
    let (lowest, highest) = match chosen {
        Some(chosen) => (sum(&sorted[..chosen]), sum(&sorted[sorted.len() - chosen..])),
        None => {
            let negative = sorted.partition_point(|value| *value < N::default());
            (sum(&sorted[..negative]), sum(&sorted[negative..]))
        }
    };
    if wanted < lowest.less(slack) || wanted > highest.plus(slack) {
        return false;
    }
    let Some(chosen) = chosen else { return true };
    let (few, is_left_out) = match values.len() - chosen {
        left_out if left_out < chosen => (left_out, true),
        _ => (chosen, false),
    };
    if choices(values.len(), few) > CHOICES {
        return true;
    }
    let all = sum(values);
    any_sum(values, few, N::default(), &|of_few| {
        near(if is_left_out { all.less(of_few) } else { of_few })
    })
}

/// In how many ways so many can be chosen of all; more than [`CHOICES`] is not counted on.
fn choices(of: usize, chosen: usize) -> usize {
    let mut count = 1_usize;
    for at in 0..chosen {
        count = count.saturating_mul(of - at) / (at + 1);
        if count > CHOICES {
            break;
        }
    }
    count
}

/// Whether the sum of so many of these values, and what there is already, is one of those.
fn any_sum<N: Amount>(values: &[N], chosen: usize, sum: N, is_one: &impl Fn(N) -> bool) -> bool {
    let Some(more) = chosen.checked_sub(1) else {
        return is_one(sum);
    };
    let firsts = values.iter().enumerate().take(values.len().saturating_sub(more));
    firsts
        .into_iter()
        .any(|(at, first)| any_sum(&values[at + 1..], more, sum.plus(*first), is_one))
}

/// What adds up.
pub(crate) trait Amount: Copy + Default + PartialOrd {
    fn plus(self, other: Self) -> Self;
    fn less(self, other: Self) -> Self;
}

impl Amount for i128 {
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }

    fn less(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

impl Amount for f64 {
    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn less(self, other: Self) -> Self {
        self - other
    }
}

/// Whether a state that does not add up can be of all values that another is of, and of more; not where nobody can tell.
fn is_of_more(state: &State, held: At<'_>, less: At<'_>) -> bool {
    tells_more(state, held, less).unwrap_or(false)
}

/// The same; none where nobody can tell.
fn tells_more(state: &State, (held, at): At<'_>, (less, less_at): At<'_>) -> Option<bool> {
    if same(held, at, less, less_at) {
        return Some(true);
    }
    if state.is_serialized() {
        let bytes = |column: &ArrayRef, at| column.as_binary_opt::<i32>().map(|states| states.value(at).to_vec());
        let (held, less) = bytes(held, at).zip(bytes(less, less_at))?;
        return Some(matches!(state.contains(&held, &less)?, Ok(true)));
    }
    let way = state.leans()?;
    // Any value is further than none.
    if less.is_null(less_at) {
        return Some(true);
    }
    if held.is_null(at) {
        return Some(false);
    }
    let compare = make_comparator(held.as_ref(), less.as_ref(), SortOptions::default());
    Some(compare.is_ok_and(|compare| compare(at, less_at) == way))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is chosen is never taken for damage; and of few values nothing else is taken for a choice.
        #[test]
        fn a_choice_is_one(values in prop::collection::vec(-9_i128..10, 0..20), choice in any::<u32>(), off in -400_i128..400) {
            let chosen: Vec<i128> =
                values.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 1).map(|(_, value)| *value).collect();
            let sum: i128 = chosen.iter().sum();
            prop_assert!(can_be_of(&values, Some(chosen.len() as u64), sum, 0));
            prop_assert!(can_be_of(&values, None, sum, 0));
            let magnitudes: i128 = values.iter().map(|value| value.abs()).sum();
            if off.abs() > magnitudes {
                prop_assert!(!can_be_of(&values, None, off, 0));
            }
            prop_assert!(!can_be_of(&values, Some(values.len() as u64 + 1), sum, 0));
        }
    }

    #[test]
    fn a_sum_is_bounded_by_what_there_is() {
        assert!(can_be_of(&[5, 7], Some(1), 7, 0) && !can_be_of(&[5, 7], Some(1), 6, 0));
        assert!(!can_be_of(&[5, 7], Some(1), 12, 0) && can_be_of(&[5, 7], Some(2), 12, 0));
        let many: Vec<i128> = (0..100).collect();
        assert!(can_be_of(&many, Some(2), 197, 0) && !can_be_of(&many, Some(2), 198, 0));
        // All of them, or all but one, is no matter of bounds.
        let even: Vec<i128> = many.iter().map(|value| value * 2).collect();
        assert!(can_be_of(&even, Some(100), 9900, 0) && !can_be_of(&even, Some(100), 9899, 0));
        assert!(can_be_of(&even, Some(99), 9900 - 14, 0) && !can_be_of(&even, Some(99), 9900 - 15, 0));
        assert!(can_be_of(&even, Some(1), 14, 0) && !can_be_of(&even, Some(1), 15, 0));
        assert!(can_be_of(&even, Some(50), 4901, 0), "too many choices: within bounds");
        assert!(!can_be_of(&many, None, -1, 0) && can_be_of(&many, None, 4950, 0) && !can_be_of(&many, None, 4951, 0));
        assert!(can_be_of(&[0.1, 0.2], Some(2), 0.3, 1e-9) && !can_be_of(&[0.1, 0.2], Some(2), 0.4, 1e-9));
    }
}
