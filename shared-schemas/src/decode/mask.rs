//! Privacy rules, applied while decoding: what they hide never reaches a column, `_extra` or a refusal's sentence.
//!
//! Masking a masked value changes nothing: truncating, redacting and dropping are idempotent, and a hash is told by its
//! form in a record that says it was masked before. So a record that comes back from the dead letters can be read again,
//! and one that only claims to have been masked still gives away nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::dataset::{KeyCheck, Mask, Truncate};

use super::time;

/// What a redacted text becomes.
pub(super) const REDACTED: &str = "***";

/// Where the keys of `hash` rules come from.
pub trait MaskKeys {
    /// The key that an environment variable of that name holds; `None` if there is none.
    fn key(&self, variable: &str) -> Option<Vec<u8>>;
}

/// The keys in this process's environment.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnvironmentKeys;

impl MaskKeys for EnvironmentKeys {
    fn key(&self, variable: &str) -> Option<Vec<u8>> {
        std::env::var_os(variable).map(std::ffi::OsString::into_encoded_bytes)
    }
}

impl MaskKeys for HashMap<String, Vec<u8>> {
    fn key(&self, variable: &str) -> Option<Vec<u8>> {
        self.get(variable).cloned()
    }
}

/// What the keyed hash of a [`KeyCheck`] is of.
const CHECKED: &[u8] = b"highwater: which key is this?";

impl KeyCheck {
    /// The check of a key; `None` where it is no key.
    pub fn of(key: &[u8]) -> Option<Self> {
        let mut keyed = keyed(key)?;
        keyed.update(CHECKED);
        let mut first = [0; 8];
        first.copy_from_slice(&keyed.finalize().into_bytes()[..8]);
        Some(Self(first))
    }
}

/// A hash keyed with it; an empty key is none, for anyone could undo its hashes by trying.
fn keyed(key: &[u8]) -> Option<Hmac<Sha256>> {
    if key.is_empty() {
        return None;
    }
    Hmac::new_from_slice(key).ok()
}

/// A mask rule, ready for use.
pub(super) enum Masking {
    Hash(Hmac<Sha256>),
    Redact,
    Drop,
    Characters(usize),
    Network,
    /// A timestamp down to a multiple of so many microseconds.
    Floor(i64),
}

/// Why a rule's key can't be used.
#[derive(Clone, Copy)]
pub(super) enum KeyFault {
    Missing,
    Empty,
}

impl Masking {
    pub(super) fn new(mask: &Mask, keys: &dyn MaskKeys) -> Result<Self, KeyFault> {
        Ok(match mask {
            Mask::Hash { key } => {
                let key = keys.key(key).ok_or(KeyFault::Missing)?;
                Masking::Hash(keyed(&key).ok_or(KeyFault::Empty)?)
            }
            Mask::Redact => Masking::Redact,
            Mask::Drop => Masking::Drop,
            Mask::Truncate(Truncate::Characters(count)) => Masking::Characters(usize::from(*count)),
            Mask::Truncate(Truncate::Network) => Masking::Network,
            Mask::Truncate(Truncate::Hour) => Masking::Floor(time::HOUR),
            Mask::Truncate(Truncate::Day) => Masking::Floor(time::DAY),
        })
    }

    /// The masked text, written to `out` where it is a new one. `masked`: the record says that it was masked before.
    pub(super) fn text<'a>(&self, text: &'a str, masked: bool, out: &'a mut String) -> Option<&'a str> {
        out.clear();
        match self {
            Masking::Drop => return None,
            Masking::Hash(_) if masked && is_hash(text) => return Some(text),
            Masking::Hash(keyed) => {
                let mut keyed = keyed.clone();
                keyed.update(text.as_bytes());
                for byte in keyed.finalize().into_bytes() {
                    for half in [byte >> 4, byte & 15] {
                        out.push(char::from(b"0123456789abcdef"[usize::from(half)]));
                    }
                }
            }
            Masking::Characters(count) => {
                let end = text.char_indices().nth(*count).map_or(text.len(), |(at, _)| at);
                return Some(&text[..end]);
            }
            Masking::Network => network(text, out),
            Masking::Redact | Masking::Floor(_) => out.push_str(REDACTED),
        }
        Some(out)
    }

    /// The masked moment; `None` where it is hidden altogether.
    pub(super) fn moment(&self, micros: i64) -> Option<i64> {
        match self {
            Masking::Floor(unit) => Some(micros - micros.rem_euclid(*unit)),
            _ => None,
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The /24 or /48 network of an address, or of such a network. An IPv4 address written as IPv6 counts as IPv4: its /48
/// would be that of the whole internet.
fn network(text: &str, out: &mut String) {
    let address = text
        .strip_suffix("/24")
        .or_else(|| text.strip_suffix("/48"))
        .unwrap_or(text);
    let written = match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, _] = address.octets();
            write!(out, "{a}.{b}.{c}.0/24")
        }
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, ..] = address.segments();
            write!(out, "{}/48", std::net::Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
        Err(_) => out.write_str(REDACTED),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
}
