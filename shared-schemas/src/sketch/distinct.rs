//! `uniqExact`: which different values, all of them, up to a limit.
//!
//! Form: a varint count, then the values as little-endian `UInt64`, or `UInt128` for hashes; here ascending.
//! A set beyond its limit is let go at once and for good: nothing brings it back, so it too is a function of the values.

use super::form::{Malformed, Reader, varint};
use super::sorted::{Number, Sorted};

/// What tells values apart: as wide as a value, or as a hash.
pub trait Identity: Number {}
impl Identity for u64 {}
impl Identity for u128 {}

/// A set of identities.
#[derive(Debug, Clone)]
pub struct ExactSet<T> {
    identities: Sorted<T>,
    /// How many there may be; more were if there is none.
    limit: Option<u64>,
}

/// Without a limit.
impl<T> Default for ExactSet<T> {
    fn default() -> Self {
        Self::within(u64::MAX)
    }
}

impl<T> ExactSet<T> {
    /// Nothing yet, and at most so many.
    pub fn within(limit: u64) -> Self {
        Self {
            identities: Sorted::default(),
            limit: Some(limit),
        }
    }
}

impl<T: Identity> ExactSet<T> {
    /// Takes an identity.
    #[inline]
    pub fn insert(&mut self, identity: T) {
        if self.identities.is_full() {
            if self.limit.is_none() {
                return;
            }
            self.identities.make_room();
            self.check();
            if self.limit.is_none() {
                return;
            }
        }
        self.identities.push(identity);
    }

    /// Lets go of all where there are too many.
    fn check(&mut self) {
        let Some(limit) = self.limit else {
            return;
        };
        if self.identities.most() as u64 > limit && self.identities.numbers().len() as u64 > limit {
            self.let_go();
        }
    }

    /// As if there had been more than the limit.
    pub fn let_go(&mut self) {
        self.limit = None;
        // Without capacity it is always full, so `insert` looks at the limit first.
        self.identities = Sorted::default();
    }

    /// Takes what another state holds, from its bytes.
    ///
    /// # Errors
    /// Bytes that are no state; this one is then as it was.
    pub fn merge(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new("uniqExact", state);
        let count = reader.varint()?;
        let identities = reader.elements(count, T::WIDTH)?;
        if self.limit.is_some() {
            self.identities.extend(identities, |_| true);
            self.check();
        }
        Ok(())
    }

    /// Its bytes, put behind others; `false` and nothing where there were more than the limit.
    pub fn write_to(&mut self, out: &mut Vec<u8>) -> bool {
        self.check();
        if self.limit.is_none() {
            return false;
        }
        varint(self.identities.numbers().len() as u64, out);
        self.identities.write(out);
        true
    }

    /// Its bytes; none where there were more than the limit.
    pub fn write(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    /// How many different values there were, unless more than the limit.
    pub fn count(&mut self) -> Option<u64> {
        self.check();
        self.limit.map(|_| self.identities.numbers().len() as u64)
    }

    /// The bytes it holds on to, besides itself.
    #[inline]
    pub fn heap(&self) -> usize {
        self.identities.heap()
    }
}
