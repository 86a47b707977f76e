//! Reading and writing the pieces of ClickHouse's binary forms.
//!
//! What is read may come from anywhere, so nothing is believed: not a length, not a count. Reading ends with
//! [`Malformed`], never with a panic or an allocation that the bytes at hand don't pay for.

use thiserror::Error;

/// Bytes that are not a state of that kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("these bytes are not a state of {kind}: {what}")]
pub struct Malformed {
    /// The kind of state, by ClickHouse's name.
    pub kind: &'static str,
    /// What is wrong with them.
    pub what: &'static str,
}

/// Bytes being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    kind: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(kind: &'static str, bytes: &'a [u8]) -> Self {
        Self { kind, rest: bytes }
    }

    pub(super) fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { kind: self.kind, what }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.malformed("they end too early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.malformed("they end too early"))?;
        self.rest = rest;
        Ok(*array)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn double(&mut self) -> Result<f64, Malformed> {
        self.array().map(f64::from_le_bytes)
    }

    /// LEB128.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        if let [byte @ ..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number is too long"))
    }

    /// Zigzag, then LEB128.
    #[inline]
    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// What is left: so many elements of that width and nothing more.
    pub(super) fn elements(&mut self, count: u64, width: usize) -> Result<&'a [u8], Malformed> {
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
        match bytes {
            Some(bytes) if bytes == self.rest.len() => self.bytes(bytes),
            _ => Err(self.malformed("their count and their length differ")),
        }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed("something follows them"))
        }
    }
}

/// LEB128.
pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.push(low);
}

/// Zigzag, then LEB128.
pub(super) fn signed(value: i64, out: &mut Vec<u8>) {
    varint(((value << 1) ^ (value >> 63)).cast_unsigned(), out);
}
