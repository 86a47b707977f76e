//! `quantilesDD(0.01, …)`: how many values lie in each of many small ranges, from which every quantile follows within 1 %.
//!
//! Range `k` holds what lies from `γ^k` up to `γ^(k+1)`, with `γ = 1.01/0.99`, and answers for all of it with
//! `1.01·γ^k`, from which neither end is further than 1 %. Negative values have ranges of their own, and so has zero.
//! Adding up counts is free of order, and the rank of a value is exact; so the answer is within 1 % of the value that
//! has that rank, whatever was merged with what.
//!
//! ClickHouse finds `k` by cutting a logarithm off *towards zero*. For values below 1 that is the range above theirs, and
//! its own sketches answer 0.51 for 0.5. Here it is cut off downwards: for values from 1 on the bytes are those that ClickHouse
//! writes, below they are better, and `-Merge` gives what the counts say. ClickHouse also refuses values close to the
//! largest double, which here have their range, and any state whose ranges span more than 65,536: one record with
//! 1e-300 and one with 1e300 in a cell, and no query over it would be answered any more. So what is smaller than 1e-260
//! counts as zero here, and no state spans more than 65,421.
//!
//! Form: `02`, `γ` and an offset of zero as doubles; `01` and the ranges of positive values, `03` and those of negative ones,
//! `04` and the count of zeros. Ranges are `0C` (all in a row: a varint count, the first's `k`, the distance 1, counts) or `04` (a
//! varint count, and for each the distance from the last one and its count), whichever ClickHouse thinks shorter; `k` and
//! distances zigzag varints, counts doubles.

use super::form::{Malformed, Reader, signed, varint};

/// How far a quantile may be from the value that it stands for, relative to that value.
pub const QUANTILE_ERROR: f64 = 0.01;
/// What is smaller counts as zero, so that the ranges of all values span less than ClickHouse can merge.
pub const SMALLEST_VALUE: f64 = 1e-260;
/// Its range.
const LOWEST: i32 = -29_933;
/// ClickHouse's own.
const GAMMA: f64 = f64::from_bits(0x3FF0_52BF_5A81_4AFD);
/// `1 / ln(GAMMA)`.
const RANGES_PER_E: f64 = 49.998_333_288_886_78;
/// Values lie in the ranges -29,933 to 35,487. A range is held as its number plus this, of negative values the
/// negative of that, of zeros 0: so they are in the order of the values.
const MIDDLE: i32 = 40_000;
/// Below so many values it is cheaper to wait than to count them.
const SMALL: usize = 64;
/// `k` of the first range of no ranges, as ClickHouse writes it.
const NOWHERE: i64 = i32::MAX as i64;

const MAPPING: u8 = 0x02;
const POSITIVE: u8 = 0x01;
const NEGATIVE: u8 = 0x03;
const ZEROS: u8 = 0x04;
const IN_A_ROW: u8 = 0x0C;
const APART: u8 = 0x04;

/// Counts of values by range.
#[derive(Debug, Clone, Default)]
pub struct DdSketch {
    /// Which range, how many; ascending.
    counted: Vec<(i32, f64)>,
    /// Ranges of values that came lately.
    fresh: Vec<i32>,
}

/// The natural logarithm of a positive double that is not subnormal. Not the system's, whose last bit depends on the machine: a state is the same
/// wherever it is made. Good to about 1e-13.
#[inline]
fn ln(value: f64) -> f64 {
    // With the bits of 0.707 taken off, mantissas come to lie between 0.707 and 1.414, around 1.
    let shifted = value.to_bits().wrapping_sub(0x3FE6_A09E_667F_3BCD);
    let exponent = shifted.cast_signed() >> 52;
    let mantissa = f64::from_bits(value.to_bits().wrapping_sub((exponent << 52).cast_unsigned()));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    // The series of the area hyperbolic tangent; |s| < 0.172, so the first term left out is below 1e-17.
    let mut series = 1.0 / 19.0;
    for odd in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * z + 1.0 / odd;
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

/// The range of a finite value.
#[inline]
pub(super) fn range(value: f64) -> i32 {
    let size = value.abs();
    // Positive with the middle added: cut off downwards, without a call to `floor`.
    #[expect(clippy::cast_possible_truncation, reason = "cut off on purpose")]
    let range = (ln(size) * RANGES_PER_E + f64::from(MIDDLE)) as i32;
    if size < SMALLEST_VALUE {
        0
    } else if value < 0.0 {
        -range
    } else {
        range
    }
}

/// The value that answers for a range.
fn answer(range: i32) -> f64 {
    let size = (f64::from(range.abs() - MIDDLE) / RANGES_PER_E).exp() * (1.0 + QUANTILE_ERROR);
    match range {
        0 => 0.0,
        ..0 => -size,
        _ => size,
    }
}

impl DdSketch {
    /// Takes a value; passes over what is not finite.
    #[inline]
    pub fn insert(&mut self, value: f64) {
        if value.is_finite() {
            self.insert_range(range(value));
        }
    }

    #[inline]
    pub(super) fn insert_range(&mut self, range: i32) {
        if self.fresh.len() == self.fresh.capacity() {
            self.make_room();
        }
        self.fresh.push(range);
    }

    #[cold]
    fn make_room(&mut self) {
        let capacity = self.fresh.capacity();
        if capacity >= SMALL {
            self.settle();
        }
        // Counting passes over all ranges: let there be as many values each time.
        if capacity < SMALL || capacity < self.counted.len() {
            self.fresh.reserve_exact(capacity.max(8) * 2 - self.fresh.len());
        }
    }

    /// Counts what came lately.
    fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.fresh.sort_unstable();
        let runs = self.fresh.chunk_by(|a, b| a == b);
        let fresh = runs.filter_map(|run| run.first().map(|range| (*range, run.len() as f64)));
        self.counted = if self.counted.is_empty() {
            fresh.collect()
        } else {
            sum(&self.counted, fresh, self.fresh.len())
        };
        self.fresh.clear();
    }

    /// Takes what another state holds, from its bytes.
    ///
    /// # Errors
    /// Bytes that are no state; this one is then as it was.
    pub fn merge(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let read = read(state)?;
        self.settle();
        if self.counted.is_empty() {
            self.counted = read;
        } else if read.len() * 4 < self.counted.len() {
            for (range, count) in read {
                match self.counted.binary_search_by_key(&range, |(range, _)| *range) {
                    Ok(at) => self.counted[at].1 += count,
                    Err(at) => self.counted.insert(at, (range, count)),
                }
            }
        } else {
            let most = read.len();
            self.counted = sum(&self.counted, read.into_iter(), most);
        }
        Ok(())
    }

    /// Its bytes, put behind others.
    pub fn write_to(&mut self, out: &mut Vec<u8>) {
        self.settle();
        let negative = self.counted.partition_point(|(range, _)| *range < 0);
        let zeros = self.counted.get(negative).filter(|(range, _)| *range == 0);
        let positive = negative + usize::from(zeros.is_some());
        out.push(MAPPING);
        out.extend(GAMMA.to_le_bytes());
        out.extend(0_f64.to_le_bytes());
        out.push(POSITIVE);
        write_ranges(&self.counted[positive..], out);
        out.push(NEGATIVE);
        // By size: from zero outwards.
        let negative = self.counted[..negative].iter().rev();
        write_ranges(
            &negative.map(|(range, count)| (-range, *count)).collect::<Vec<_>>(),
            out,
        );
        out.push(ZEROS);
        out.extend(zeros.map_or(0.0, |(_, count)| *count).to_le_bytes());
    }

    /// Its bytes.
    pub fn write(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    /// How many values it has seen.
    pub fn count(&mut self) -> f64 {
        self.settle();
        self.counted.iter().map(|(_, count)| count).sum()
    }

    /// Whether it counts at least as many values in each range.
    pub fn contains(&mut self, less: &mut Self) -> bool {
        self.settle();
        less.settle();
        less.counted.iter().all(|(range, count)| {
            let held = self.counted.binary_search_by_key(range, |(range, _)| *range);
            held.is_ok_and(|at| self.counted[at].1 >= *count)
        })
    }

    /// The quantile at a level of 0 to 1, none of no values: within [`QUANTILE_ERROR`] of the value whose rank, from 0 on, is
    /// `level · (count - 1)` rounded down, or of zero where that is smaller than [`SMALLEST_VALUE`].
    pub fn quantile(&mut self, level: f64) -> Option<f64> {
        let count = self.count();
        if count == 0.0 || !(0.0..=1.0).contains(&level) {
            return None;
        }
        let rank = level * (count - 1.0);
        let mut below = 0.0;
        let found = self.counted.iter().find(|(_, count)| {
            below += count;
            below > rank
        });
        found.or(self.counted.last()).map(|(range, _)| answer(*range))
    }

    /// The bytes it holds on to, besides itself.
    #[inline]
    pub fn heap(&self) -> usize {
        self.counted.capacity() * size_of::<(i32, f64)>() + self.fresh.capacity() * size_of::<i32>()
    }
}

/// Adds counts up; both ascending.
fn sum(left: &[(i32, f64)], right: impl Iterator<Item = (i32, f64)>, most: usize) -> Vec<(i32, f64)> {
    let mut out = Vec::with_capacity(left.len() + most.min(left.len()));
    let mut rest = left.iter().copied().peekable();
    for (range, count) in right {
        while let Some(before) = rest.next_if(|(other, _)| *other < range) {
            out.push(before);
        }
        let same = rest.next_if(|(other, _)| *other == range);
        out.push((range, count + same.map_or(0.0, |(_, count)| count)));
    }
    out.extend(rest);
    out
}

fn write_ranges(ranges: &[(i32, f64)], out: &mut Vec<u8>) {
    let held = ranges.len();
    let k = |(range, _): &(i32, f64)| i64::from(range - MIDDLE);
    let (first, last) = match (ranges.first(), ranges.last()) {
        (Some(first), Some(last)) => (k(first), k(last)),
        _ => (NOWHERE, NOWHERE - 1),
    };
    let span = usize::try_from(last - first + 1).unwrap_or(held);
    out.reserve(32 + held * 10);
    // ClickHouse's estimate: eight bytes for each empty range, against two for each distance.
    if (span - held) * 8 <= held * 2 {
        out.push(IN_A_ROW);
        varint(span as u64, out);
        signed(first, out);
        signed(1, out);
        let mut next = first;
        for range in ranges {
            for _ in next..k(range) {
                out.extend_from_slice(&[0; 8]);
            }
            out.extend_from_slice(&range.1.to_le_bytes());
            next = k(range) + 1;
        }
    } else {
        out.push(APART);
        varint(held as u64, out);
        let mut before = 0;
        for range in ranges {
            signed(k(range) - before, out);
            out.extend_from_slice(&range.1.to_le_bytes());
            before = k(range);
        }
    }
}

/// Ranges and counts, ascending.
fn read(state: &[u8]) -> Result<Vec<(i32, f64)>, Malformed> {
    let mut reader = Reader::new("quantilesDD", state);
    if reader.byte()? != MAPPING {
        return Err(reader.malformed("they begin with another byte"));
    }
    let (gamma, offset) = (reader.double()?, reader.double()?);
    // Where ClickHouse copies a state it computes the last bits of it anew.
    if (gamma - GAMMA).abs() > 1e-12 || offset != 0.0 {
        return Err(reader.malformed("its accuracy is not 0.01"));
    }
    if reader.byte()? != POSITIVE {
        return Err(reader.malformed("no positive values follow"));
    }
    let (mut positive, small) = read_ranges(&mut reader)?;
    if reader.byte()? != NEGATIVE {
        return Err(reader.malformed("no negative values follow"));
    }
    let (mut all, smaller) = read_ranges(&mut reader)?;
    all.reverse();
    for (range, _) in &mut all {
        *range = -*range;
    }
    if reader.byte()? != ZEROS {
        return Err(reader.malformed("no zeros follow"));
    }
    let zeros = reader.double()?;
    counted(&reader, zeros)?;
    let zeros = zeros + small + smaller;
    reader.end()?;
    if zeros > 0.0 {
        all.push((0, zeros));
    }
    if all.is_empty() {
        return Ok(positive);
    }
    all.append(&mut positive);
    Ok(all)
}

/// Ranges of one sign and their counts, by size; and how many values are so small that they count as zero.
fn read_ranges(reader: &mut Reader<'_>) -> Result<(Vec<(i32, f64)>, f64), Malformed> {
    let form = reader.byte()?;
    let held = reader.varint()?;
    let in_a_row = match form {
        IN_A_ROW => true,
        APART => false,
        _ => return Err(reader.malformed("ranges of no known form")),
    };
    let mut k = if in_a_row {
        reader.signed()?.saturating_sub(1)
    } else {
        0
    };
    if in_a_row && reader.signed()? != 1 {
        return Err(reader.malformed("ranges that are not in a row"));
    }
    // A count takes eight bytes, so no more are set aside than there may be.
    let most = usize::try_from(held).unwrap_or(usize::MAX).min(reader.left() / 8);
    let (mut ranges, mut small) = (Vec::with_capacity(most), 0.0);
    let mut before = -i64::from(MIDDLE);
    for _ in 0..held {
        k = k.saturating_add(if in_a_row { 1 } else { reader.signed()? });
        let count = reader.double()?;
        counted(reader, count)?;
        let range = i32::try_from(k).ok().filter(|range| k > before && *range < MIDDLE);
        let Some(range) = range else {
            return Err(reader.malformed("a range that no double is in, or not in order"));
        };
        before = k;
        // Between others ClickHouse may write that there are none.
        if range < LOWEST {
            small += count;
        } else if count > 0.0 {
            ranges.push((range + MIDDLE, count));
        }
    }
    Ok((ranges, small))
}

#[inline]
fn counted(reader: &Reader<'_>, count: f64) -> Result<(), Malformed> {
    if count.is_finite() && count >= 0.0 {
        Ok(())
    } else {
        Err(reader.malformed("a count that is none"))
    }
}
