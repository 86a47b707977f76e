//! `uniq`: about how many different values, from a sample of their hashes.
//!
//! Of each value the low 32 bits of `intHash64` are looked at. All are kept while there are at most 65,536; then only those
//! whose last bit is zero, then the last two, and so on. So what is kept is a function of the set of hashes: of how many
//! zeros are asked for, as few as keep it at 65,536. Form: a byte that says how many zeros, a varint count, the hashes as
//! `u32`, here ascending.
//!
//! How far the result is off, see [`uniq_bound_sql`].

use super::form::{Malformed, Reader, varint};
use super::sorted::Sorted;

/// How many hashes are kept at most.
pub const KEPT_AT_MOST: usize = 1 << 16;
/// At most so many zeros can be asked for: 2^16 hashes have that many.
const MOST_SKIPPED: u8 = 16;
/// How many hashes there are.
const HASHES: f64 = (1_u64 << 32) as f64;

/// A sample of the hashes of values.
#[derive(Debug, Clone, Default)]
pub struct Uniq {
    hashes: Sorted<u32>,
    /// How many of the last bits must be zero.
    skip: u8,
    /// Those bits.
    mask: u32,
}

/// ClickHouse's `intHash64`.
#[inline]
fn int_hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

impl Uniq {
    /// Takes a value.
    #[inline]
    pub fn insert(&mut self, value: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        let hash = int_hash(value) as u32;
        if hash & self.mask != 0 {
            return;
        }
        if self.hashes.is_full() {
            self.hashes.make_room();
            self.thin();
        }
        self.hashes.push(hash);
    }

    /// Asks for as many zeros as are needed.
    fn thin(&mut self) {
        while self.hashes.most() > KEPT_AT_MOST && self.hashes.numbers().len() > KEPT_AT_MOST {
            self.skip_to(self.skip + 1);
        }
    }

    fn skip_to(&mut self, skip: u8) {
        self.skip = skip;
        self.mask = (1 << skip) - 1;
        let mask = self.mask;
        self.hashes.retain(|hash| hash & mask == 0);
    }

    /// Takes what another state holds, from its bytes.
    ///
    /// # Errors
    /// Bytes that are no state; this one is then as it was.
    pub fn merge(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new("uniq", state);
        let skip = reader.byte()?;
        if skip > MOST_SKIPPED {
            return Err(reader.malformed("it asks for too many zeros"));
        }
        let count = reader.varint()?;
        if count > KEPT_AT_MOST as u64 {
            return Err(reader.malformed("it holds too many hashes"));
        }
        let hashes = reader.elements(count, 4)?;
        if skip > self.skip {
            self.skip_to(skip);
        }
        let mask = self.mask;
        self.hashes.extend(hashes, |hash| hash & mask == 0);
        self.thin();
        Ok(())
    }

    /// Its bytes, put behind others.
    pub fn write_to(&mut self, out: &mut Vec<u8>) {
        self.hashes.settle();
        self.thin();
        out.push(self.skip);
        varint(self.hashes.most() as u64, out);
        self.hashes.write(out);
    }

    /// Its bytes.
    pub fn write(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    /// About how many different values it has seen: what ClickHouse's `uniqMerge` says, to the last digit.
    pub fn count(&mut self) -> u64 {
        self.hashes.settle();
        self.thin();
        let kept = self.hashes.most() as u64;
        if self.skip == 0 {
            return kept;
        }
        // The digits that sampling loses are filled from a hash of the count, so that no power of two shines through.
        let filled = (kept << self.skip) + (u64::from(crc32c(kept)) & ((1 << self.skip) - 1));
        let seen = filled.min((1 << 32) - 1);
        // So many different values are expected to have that many different hashes of 32 bits.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 2^32 · ln 2^32"
        )]
        let corrected = (HASHES * (HASHES.ln() - (HASHES - seen as f64).ln())).round() as u64;
        corrected
    }

    /// The bytes it holds on to, besides itself.
    #[inline]
    pub fn heap(&self) -> usize {
        self.hashes.heap()
    }
}

/// ClickHouse's `intHashCRC32`: CRC-32C of eight bytes, begun with all ones and not inverted at the end.
fn crc32c(value: u64) -> u32 {
    value.to_le_bytes().iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

/// ClickHouse SQL for the relative error that the result of `uniq` stays within in 95 of 100 cases, given SQL for that
/// result.
///
/// Up to 65,536 all hashes are kept, and only those are missing that collide in 32 bits: of `n` values about `n²/2^33`,
/// Poisson. Of 20,000 values none is missing in 95 of 100 cases, of 65,536 two at most: so two, and for fewer than 20,000
/// values what two are of those.
///
/// Above, the result is the number of kept hashes times a power of two. Each hash is kept with the same chance `p`, so of `n`
/// the number scatters by `sqrt(n·p·(1-p))`, which relative to `n·p` is less than `1/sqrt(kept)`: 95 of 100 lie within 1.96
/// of that. How many are kept follows from the result: halve it until at most 65,536 are left. Near a power of two it may be
/// half as many, by chance and because the result corrects for collisions; halving down to 64,000 errs on the safe side.
/// Above 10^8 that correction is no longer small: the fewest possible are assumed, and how the correction magnifies what they
/// are off by. Of `n = x·2^32` values `2^32·(1 - exp(-x))` different hashes are expected; that number being off by a part makes
/// `n` be off by `(exp(x) - 1) / x` times that part.
pub fn uniq_bound_sql(result: &str) -> String {
    format!(
        "multiIf({result} <= 64000, 2 / greatest({result}, 20000), \
         {result} <= 100000000, 1.96 / sqrt({result} / exp2(ceil(log2({result} / 64000)))), \
         0.011 * (exp({result} / 4294967296) - 1) / ({result} / 4294967296))"
    )
}

/// The same bound, as a part of the truth, of an estimate of so many.
pub fn uniq_bound(result: f64) -> f64 {
    if result <= 64_000.0 {
        2.0 / result.max(20_000.0)
    } else if result <= 100_000_000.0 {
        1.96 / (result / (result / 64_000.0).log2().ceil().exp2()).sqrt()
    } else {
        let share = result / 4_294_967_296.0;
        0.011 * share.exp_m1() / share
    }
}
