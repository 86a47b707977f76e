//! Merging is free of order, for every kind: whatever is split, shuffled and merged in whatever tree gives the bytes of all
//! values at once, and nothing merged with anything is that.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{DdSketch, ExactSet, Extreme, Moment, Side, Uniq};
use crate::view::ValueType;

/// A kind of state, as the laws see it.
trait Law {
    type Value: Clone;
    fn of(values: &[Self::Value]) -> Vec<u8>;
    fn merged(states: &[Vec<u8>]) -> Vec<u8>;
}

struct OfUniq;
impl Law for OfUniq {
    type Value = u64;
    fn of(values: &[u64]) -> Vec<u8> {
        let mut state = Uniq::default();
        values.iter().for_each(|value| state.insert(*value));
        state.write()
    }
    fn merged(states: &[Vec<u8>]) -> Vec<u8> {
        let mut state = Uniq::default();
        states.iter().for_each(|bytes| state.merge(bytes).unwrap());
        state.write()
    }
}

const LIMIT: u64 = 150;

struct OfSet;
impl Law for OfSet {
    type Value = u64;
    fn of(values: &[u64]) -> Vec<u8> {
        let mut state = ExactSet::<u128>::within(LIMIT);
        values.iter().for_each(|value| state.insert(u128::from(*value) << 60));
        state.write()
    }
    fn merged(states: &[Vec<u8>]) -> Vec<u8> {
        let mut state = ExactSet::<u128>::within(LIMIT);
        for bytes in states {
            // Nothing written: there were too many.
            if bytes.is_empty() {
                state.let_go();
            } else {
                state.merge(bytes).unwrap();
            }
        }
        state.write()
    }
}

struct OfQuantiles;
impl Law for OfQuantiles {
    type Value = f64;
    fn of(values: &[f64]) -> Vec<u8> {
        let mut state = DdSketch::default();
        values.iter().for_each(|value| state.insert(*value));
        state.write()
    }
    fn merged(states: &[Vec<u8>]) -> Vec<u8> {
        let mut state = DdSketch::default();
        states.iter().for_each(|bytes| state.merge(bytes).unwrap());
        state.write()
    }
}

struct OfLast;
impl Law for OfLast {
    type Value = (i64, u64, u32);
    fn of(values: &[Self::Value]) -> Vec<u8> {
        let mut state = Extreme::default();
        for (time, offset, partition) in values.iter().copied() {
            let moment = Moment {
                time,
                offset,
                partition,
            };
            state.insert(Side::Last, moment, format!("{time} {offset} {partition}").as_bytes());
        }
        state.write(ValueType::String)
    }
    fn merged(states: &[Vec<u8>]) -> Vec<u8> {
        let mut state = Extreme::default();
        for bytes in states {
            state.merge(Side::Last, ValueType::String, bytes).unwrap();
        }
        state.write(ValueType::String)
    }
}

/// Each value goes to one of the parts; the parts are merged in pairs picked by `picks` until one is left.
fn holds<L: Law>(values: &[L::Value], parts: &[usize], picks: &[usize]) -> Result<(), TestCaseError> {
    let all = L::of(values);
    let mut split = vec![Vec::new(); 7];
    for (value, part) in values.iter().zip(parts.iter().cycle()) {
        split[*part].push(value.clone());
    }
    let nothing = L::of(&[]);
    let mut states: Vec<_> = split.iter().map(|part| L::of(part)).collect();
    for pick in picks.iter().cycle() {
        if states.len() == 1 {
            break;
        }
        let one = states.swap_remove(pick % states.len());
        let other = states.swap_remove((pick / 7) % states.len());
        let merged = L::merged(&[one.clone(), other.clone()]);
        prop_assert_eq!(&merged, &L::merged(&[other, one]), "order does not matter");
        states.push(merged);
    }
    prop_assert_eq!(&states[0], &all, "all at once or in parts");
    prop_assert_eq!(&L::merged(&[all.clone(), nothing.clone()]), &all, "nothing behind it");
    prop_assert_eq!(&L::merged(&[nothing, all.clone()]), &all, "nothing before it");
    let reversed: Vec<_> = values.iter().rev().cloned().collect();
    prop_assert_eq!(&L::of(&reversed), &all, "in another order");
    Ok(())
}

fn doubles() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        -100.0..100.0,
        (-20_i32..20).prop_map(f64::from),
        Just(f64::INFINITY)
    ]
}

proptest! {
    #[test]
    fn uniq_is_free_of_order(
        values in vec(prop_oneof![any::<u64>(), 0..200_u64], 0..600), parts in vec(0..7_usize, 1..99), picks in vec(any::<usize>(), 1..9),
    ) {
        holds::<OfUniq>(&values, &parts, &picks)?;
    }

    #[test]
    fn exact_sets_are_free_of_order(
        values in vec(prop_oneof![any::<u64>(), 0..200_u64], 0..400), parts in vec(0..7_usize, 1..99), picks in vec(any::<usize>(), 1..9),
    ) {
        holds::<OfSet>(&values, &parts, &picks)?;
    }

    #[test]
    fn quantiles_are_free_of_order(
        values in vec(doubles(), 0..400), parts in vec(0..7_usize, 1..99), picks in vec(any::<usize>(), 1..9),
    ) {
        holds::<OfQuantiles>(&values, &parts, &picks)?;
    }

    #[test]
    fn the_last_is_free_of_order(
        values in vec((-3..3_i64, 0..3_u64, 0..3_u32), 0..60), parts in vec(0..7_usize, 1..99), picks in vec(any::<usize>(), 1..9),
    ) {
        holds::<OfLast>(&values, &parts, &picks)?;
    }

    /// Whatever bytes: an error or a state, never a panic.
    #[test]
    fn reading_never_panics(mut bytes in vec(any::<u8>(), 0..80), head in 0..4_usize) {
        let heads: [&[u8]; 4] = [&[], &[0, 2], &[2, 0xFD, 0x4A, 0x81, 0x5A, 0xBF, 0x52, 0xF0, 0x3F, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1]];
        bytes.splice(0..0, heads[head].iter().copied());
        let _ = Uniq::default().merge(&bytes);
        let _ = ExactSet::<u64>::default().merge(&bytes);
        let _ = ExactSet::<u128>::default().merge(&bytes);
        let mut sketch = DdSketch::default();
        if sketch.merge(&bytes).is_ok() {
            prop_assert_eq!(OfQuantiles::merged(&[sketch.clone().write()]), sketch.write());
        }
        for value_type in [ValueType::String, ValueType::Bool, ValueType::Decimal { precision: 28, scale: 2 }] {
            let _ = Extreme::default().merge(Side::First, value_type, &bytes);
        }
    }
}

/// Where hashes begin to be left out, and again.
#[test]
fn large_samples_are_free_of_order() {
    for size in [65_536_u64, 65_537, 140_000, 700_000] {
        let values: Vec<u64> = (0..size)
            .map(|value| value.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .collect();
        let all = OfUniq::of(&values);
        let parts: Vec<_> = values.chunks(90_001).map(OfUniq::of).collect();
        assert_eq!(OfUniq::merged(&parts), all, "{size} in parts");
        let small: Vec<_> = values[..1_000]
            .chunks(3)
            .map(OfUniq::of)
            .chain([all.clone()])
            .rev()
            .collect();
        assert_eq!(OfUniq::merged(&small), all, "{size} and small ones again");
        let reversed: Vec<u64> = values.iter().rev().chain(&values).copied().collect();
        assert_eq!(OfUniq::of(&reversed), all, "{size} in another order, twice");
    }
}
