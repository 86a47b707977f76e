//! Known bytes of each form, written down from ClickHouse 26.5, and what is no state.
//!
//! They stay as they are for ever: tables hold them.

use super::{DdSketch, ExactSet, Extreme, KEPT_AT_MOST, Malformed, Moment, QUANTILE_ERROR, SMALLEST_VALUE, Side, Uniq};
use super::{empty_first, empty_quantiles_dd, empty_uniq, empty_uniq_exact, uniq_bound_sql};
use crate::view::ValueType;

fn hex(bytes: &[u8]) -> String {
    hex::encode_upper(bytes)
}

fn uniq(values: impl IntoIterator<Item = u64>) -> Uniq {
    let mut state = Uniq::default();
    values.into_iter().for_each(|value| state.insert(value));
    state
}

fn quantiles(values: impl IntoIterator<Item = f64>) -> DdSketch {
    let mut state = DdSketch::default();
    values.into_iter().for_each(|value| state.insert(value));
    state
}

#[test]
fn uniq_is_written_as_the_engine_writes_it() {
    // The hash of 0 is 0.
    assert_eq!(hex(&uniq([0]).write()), "000100000000");
    assert_eq!(hex(&uniq([1, 0, 1]).write()), "0002000000002CCBC234");
    assert_eq!(hex(&empty_uniq()), "0000");
}

#[test]
fn exact_sets_are_written_as_the_engine_writes_them() {
    let mut narrow = ExactSet::<u64>::default();
    [7, 1 << 40, 7].into_iter().for_each(|value| narrow.insert(value));
    assert_eq!(hex(&narrow.write()), "0207000000000000000000000000010000");
    let mut wide = ExactSet::<u128>::default();
    wide.insert(5);
    assert_eq!(hex(&wide.write()), "0105000000000000000000000000000000");
    assert_eq!(hex(&empty_uniq_exact()), "00");
}

#[test]
fn quantiles_are_written_as_the_engine_writes_them() {
    const NONE: &str = "0C00FEFFFFFF0F02";
    let head = "02FD4A815ABF52F03F0000000000000000";
    let zeros = "040000000000000000";
    assert_eq!(hex(&empty_quantiles_dd()), format!("{head}01{NONE}03{NONE}{zeros}"));
    assert_eq!(
        hex(&quantiles([1.0]).write()),
        format!("{head}010C010002000000000000F03F03{NONE}{zeros}")
    );
    // 1e-308 is a zero to the engine too.
    assert_eq!(
        quantiles([1e-308, 1.7e308, f64::NAN, f64::INFINITY]).write(),
        quantiles([0.0, 1.7e308]).write()
    );
    // The engine: `quantilesDDState(0.01, 0.5)(toFloat64(1.7e308))`.
    assert_eq!(
        hex(&quantiles([1.7e308]).write()),
        format!("{head}010C01BAAA0402000000000000F03F03{NONE}{zeros}")
    );
    assert_eq!(
        hex(&quantiles([0.0, -0.0]).write()),
        format!("{head}01{NONE}03{NONE}040000000000000040")
    );
}

#[test]
fn the_first_of_each_type_is_written_as_the_engine_writes_it() {
    let moment = Moment {
        time: 1,
        offset: 2,
        partition: 3,
    };
    let behind = "010100000000000000020000000000000003000000";
    let decimal = |precision| ValueType::Decimal { precision, scale: 2 };
    for (value_type, value, form) in [
        (ValueType::String, b"abc".to_vec(), "0400000061626300"),
        (ValueType::String, vec![], "0100000000"),
        (ValueType::Int64, 7_i64.to_le_bytes().to_vec(), "010700000000000000"),
        (ValueType::Float64, 1_f64.to_le_bytes().to_vec(), "01000000000000F03F"),
        (ValueType::Bool, vec![1], "0101"),
        (decimal(9), vec![150, 0, 0, 0], "0196000000"),
        (decimal(18), 150_i64.to_le_bytes().to_vec(), "019600000000000000"),
        (
            decimal(28),
            150_i128.to_le_bytes().to_vec(),
            "0196000000000000000000000000000000",
        ),
        (ValueType::Date, 18_262_i32.to_le_bytes().to_vec(), "0156470000"),
        (
            ValueType::Timestamp,
            1_577_836_800_000_000_i64.to_le_bytes().to_vec(),
            "010040FAC1089B0500",
        ),
    ] {
        let mut state = Extreme::default();
        state.insert(Side::First, moment, &value);
        assert_eq!(hex(&state.write(value_type)), format!("{form}{behind}"), "{value_type}");
    }
    assert_eq!(hex(&empty_first(ValueType::String)), "FFFFFFFF00");
    assert_eq!(hex(&empty_first(ValueType::Int64)), "0000");
}

#[test]
fn what_is_no_state_is_refused() {
    let mut state = uniq([1, 2, 3]);
    for bytes in [
        "",
        "00",
        "1100",
        "00810004",
        "000200000000",
        "00FFFFFFFFFFFFFFFFFFFFFF01",
    ] {
        assert!(state.merge(&hex::decode(bytes).unwrap()).is_err(), "{bytes}");
    }
    assert_eq!(state.count(), 3);
    let mut set = ExactSet::<u64>::default();
    for bytes in ["", "01", "02000000000000000000", "FFFFFFFFFFFFFFFFFF01"] {
        assert!(set.merge(&hex::decode(bytes).unwrap()).is_err(), "{bytes}");
    }
    let good = quantiles([-3.0, 0.0, 2.0, 1e9]).write();
    let mut sketch = DdSketch::default();
    for length in 0..good.len() {
        assert!(sketch.merge(&good[..length]).is_err(), "{length}");
    }
    assert_eq!(sketch.merge(&good), Ok(()));
    for (at, byte) in [(0, 3), (6, 0), (17, 2), (18, 7), (20, 0x80)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert!(sketch.merge(&bad).is_err(), "{at}");
    }
    assert!((sketch.count() - 4.0).abs() < f64::EPSILON);
    let mut first = Extreme::default();
    for bytes in ["", "00", "0001", "01", "0200", "0007000000000000000100"] {
        let refused = first.merge(Side::First, ValueType::Int64, &hex::decode(bytes).unwrap());
        assert!(refused.is_err(), "{bytes}");
    }
    let refused: Malformed = first
        .merge(Side::First, ValueType::String, &[0xFE, 0xFF, 0xFF, 0xFF, 0])
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "these bytes are not a state of argMin or argMax: a length below zero"
    );
}

/// As `quantilesDD` counts ranks; `values` ascending.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "few values"
)]
fn truth(values: &[f64], level: f64) -> f64 {
    values[(level * (values.len() - 1) as f64) as usize]
}

#[test]
fn quantiles_are_within_one_percent() {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Any double, some of one size, few of each sign, integers, small ones.
    let kinds: [fn(u64) -> f64; 6] = [
        f64::from_bits,
        |bits| (bits >> 11) as f64 / (1_u64 << 53) as f64,
        |bits| (bits % 2001) as f64 - 1000.0,
        |bits| if bits % 3 == 0 { 0.0 } else { -((bits % 7) as f64) },
        |bits| f64::from_bits(bits >> 12),
        |bits| f64::MAX / (1.0 + (bits % 1000) as f64 / 1e5),
    ];
    for (kind, make) in kinds.iter().enumerate() {
        for size in [1, 2, 3, 10, 100, 5_000] {
            let mut values: Vec<f64> = std::iter::repeat_with(&mut next)
                .map(make)
                .filter(|value| value.is_finite())
                .take(size)
                .collect();
            let mut state = quantiles(values.iter().copied());
            values.sort_by(f64::total_cmp);
            for level in [0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0] {
                let (found, expected) = (state.quantile(level).unwrap(), truth(&values, level));
                let allowed = (QUANTILE_ERROR + 1e-12) * expected.abs() + SMALLEST_VALUE;
                assert!(
                    (found - expected).abs() <= allowed,
                    "kind {kind}, {size} values, level {level}: {found} for {expected}"
                );
            }
        }
    }
    assert_eq!(DdSketch::default().quantile(0.5), None);
    // What the engine may hold and merge: it refuses more than 65,536.
    let span = super::dd::range(f64::MAX) - super::dd::range(SMALLEST_VALUE) + 1;
    assert_eq!(span, 65_421);
}

/// The same as [`uniq_bound_sql`], which the engine evaluates.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn bound(result: u64) -> f64 {
    let result = result as f64;
    if result <= 64_000.0 {
        2.0 / result.max(20_000.0)
    } else if result <= 1e8 {
        1.96 / (result / (result / 64_000.0).log2().ceil().exp2()).sqrt()
    } else {
        let full = result / 4_294_967_296.0;
        0.011 * (full.exp() - 1.0) / full
    }
}

#[test]
fn the_bound_of_uniq_grows_as_hashes_run_out() {
    assert!(uniq_bound_sql("n").ends_with("0.011 * (exp(n / 4294967296) - 1) / (n / 4294967296))"));
    // So many different hashes are seen of so many values; what one more part of them makes of the result.
    let hashes = 4_294_967_296.0_f64;
    let seen = |values: f64| hashes * (1.0 - (-values / hashes).exp());
    let result = |seen: f64| hashes * (hashes.ln() - (hashes - seen).ln());
    for values in [100_000_001_u64, 1_000_000_000, 4_000_000_000, 10_000_000_000] {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let truth = values as f64;
        let off = result(seen(truth) * (1.0 + 1e-5)) / truth - 1.0;
        let magnified = bound(values) / 0.011;
        assert!(
            (off / 1e-5 / magnified - 1.0).abs() < 1e-3,
            "{values}: {off} {magnified}"
        );
    }
    // As the page says.
    assert!(bound(100_000_000) < 0.0111 && (0.012..0.0125).contains(&bound(1_000_000_000)));
    assert!((0.018..0.0185).contains(&bound(4_000_000_000)));
}

#[test]
fn the_bound_of_uniq_holds_in_95_of_100_cases() {
    assert!(uniq_bound_sql("n").contains("1.96 / sqrt(n / exp2(ceil(log2(n / 64000))))"));
    let (mut of_large, mut within) = (0, 0);
    for (size, sets) in [
        (1_000, 100),
        (15_000, 100),
        (40_000, 100),
        (65_000, 60),
        (66_000, 60),
        (90_000, 60),
        (131_000, 60),
        (132_000, 60),
        (200_000, 40),
        (400_000, 20),
    ] {
        let mut held = 0;
        for set in 0..sets {
            // Numbers in a row, as ids often are: it is the hash that must scatter them.
            let mut state = uniq((0..size).map(|value| value + (set << 32) + size * 7));
            let count = state.count();
            held += u64::from(count.abs_diff(size) as f64 <= bound(count) * size as f64);
        }
        // By chance as few as this once in some thousand.
        let least = 0.95 - 3.2 * (0.95 * 0.05 / sets as f64).sqrt();
        assert!(held as f64 / sets as f64 >= least, "{held} of {sets} at {size}");
        if size > KEPT_AT_MOST as u64 {
            of_large += sets;
            within += held;
        }
    }
    println!("the bound holds in {within} of {of_large} sets of more than {KEPT_AT_MOST} values");
    assert!(within as f64 / of_large as f64 >= 0.92, "{within} of {of_large}");
}
