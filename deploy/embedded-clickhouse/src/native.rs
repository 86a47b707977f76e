//! The `Native` format for clients that name a version of ClickHouse's protocol (`client_protocol_version`): clickhouse-go,
//! and with it Grafana's plugin, reads no other.
//!
//! The embedded engine writes the oldest form only. The newer one differs by a header before each block (`01 00 02 FF FF FF
//! FF 00`: not an overflow, no bucket) and, from version 54454 on, a byte after each column's type (`00`: usual
//! serialisation). To put that byte where it belongs the length of each column's data must be known, so types are read here.
//! States of aggregate functions, and types whose form depends on their values, have no length that can be told from outside:
//! they are refused, with a word on what to do.

use std::io;

/// From this version on blocks have a header.
const WITH_HEADER: u64 = 1;
/// From this version on a column says how it is serialised.
const WITH_SERIALIZATION: u64 = 54454;
const HEADER: [u8; 8] = [1, 0, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0];
/// Types in types in types, at most.
const DEPTH: usize = 32;

/// Why a block cannot be rewritten now.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// More bytes are needed.
    More,
    /// It cannot be rewritten at all.
    Never(String),
}

/// Rewrites blocks as they come.
#[derive(Debug)]
pub(crate) struct Native {
    version: u64,
    waiting: Vec<u8>,
}

impl Native {
    /// For a client of this version of the protocol.
    pub(crate) fn new(version: u64) -> Self {
        Native {
            version,
            waiting: Vec::new(),
        }
    }

    /// Takes a piece of the engine's output and gives the blocks that are whole.
    pub(crate) fn take(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        if self.version < WITH_HEADER {
            return Ok(piece.to_vec());
        }
        self.waiting.extend_from_slice(piece);
        let mut out = Vec::with_capacity(self.waiting.len() + 64);
        let mut at = 0;
        while at < self.waiting.len() {
            let whole = out.len();
            match rewrite(&self.waiting[at..], self.version, &mut out) {
                Ok(length) => at += length,
                Err(Stop::More) => {
                    out.truncate(whole);
                    break;
                }
                Err(Stop::Never(reason)) => return Err(io::Error::new(io::ErrorKind::Unsupported, reason)),
            }
        }
        self.waiting.drain(..at);
        Ok(out)
    }

    /// Is nothing left over?
    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Rewrites one block and returns how long it was.
fn rewrite(block: &[u8], version: u64, out: &mut Vec<u8>) -> Result<usize, Stop> {
    let mut from = Cursor { bytes: block, at: 0 };
    let columns = from.number()?;
    let rows = from.number()?;
    out.extend_from_slice(&HEADER);
    out.extend_from_slice(&block[..from.at]);
    for _ in 0..columns {
        let start = from.at;
        from.text()?;
        let kind = from.text()?;
        out.extend_from_slice(&block[start..from.at]);
        if version >= WITH_SERIALIZATION {
            out.push(0);
        }
        let start = from.at;
        if rows > 0 {
            from.skip_prefix(kind, DEPTH)?;
            from.skip_data(kind, rows, DEPTH)?;
        }
        out.extend_from_slice(&block[start..from.at]);
    }
    Ok(from.at)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A type's name and what it has in brackets.
fn split(kind: &str) -> (&str, &str) {
    match kind.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')').unwrap_or(rest)),
        None => (kind, ""),
    }
}

/// The parts of a list, which may have brackets and quotes in them.
fn parts(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut quote, mut start, mut escaped) = (Vec::new(), 0_usize, None, 0, false);
    for (at, c) in list.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(list[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// The type of a tuple's element, which may have a name before it.
fn element(part: &str) -> &str {
    let rest = match part.chars().next() {
        Some(quote @ ('`' | '"')) => part[1..].split_once(quote).map(|(_, rest)| rest.trim_start()),
        _ => {
            // `Decimal(3, 1)` has no name, `a Decimal(3, 1)` has one
            let word = part.find([' ', '(']).unwrap_or(part.len());
            (part[word..].starts_with(' ')).then(|| part[word..].trim_start())
        }
    };
    rest.unwrap_or(part)
}

/// The types within a type whose data follows on each other.
fn elements<'a>(name: &str, inside: &'a str) -> Option<Vec<&'a str>> {
    match name {
        "Tuple" | "Nested" => Some(parts(inside).into_iter().map(element).collect()),
        "Map" => Some(parts(inside)),
        "Point" => Some(vec!["Float64", "Float64"]),
        _ => None,
    }
}

/// Types that are another type under a name.
fn meaning<'a>(name: &str, inside: &'a str) -> Option<&'a str> {
    match name {
        "Ring" | "LineString" => Some("Array(Point)"),
        "Polygon" | "MultiLineString" => Some("Array(Array(Point))"),
        "MultiPolygon" => Some("Array(Array(Array(Point)))"),
        "SimpleAggregateFunction" => inside.split_once(',').map(|(_, kind)| kind.trim()),
        _ => None,
    }
}

/// The bytes of a value, for types that have a fixed number of them.
fn width(name: &str, inside: &str) -> Option<usize> {
    Some(match name {
        "UInt8" | "Int8" | "Bool" | "Enum8" | "Nothing" => 1,
        "UInt16" | "Int16" | "Date" | "Enum16" | "BFloat16" => 2,
        "UInt32" | "Int32" | "Float32" | "Date32" | "DateTime" | "Time" | "IPv4" | "Decimal32" => 4,
        "UInt64" | "Int64" | "Float64" | "DateTime64" | "Time64" | "Decimal64" => 8,
        "UInt128" | "Int128" | "UUID" | "IPv6" | "Decimal128" => 16,
        "UInt256" | "Int256" | "Decimal256" => 32,
        "FixedString" => inside.parse().ok()?,
        "Decimal" => match inside.split(',').next()?.trim().parse().ok()? {
            0..=9_u32 => 4,
            10..=18 => 8,
            19..=38 => 16,
            _ => 32,
        },
        name if name.starts_with("Interval") => 8,
        _ => return None,
    })
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, count: u64) -> Result<&'a [u8], Stop> {
        let count = usize::try_from(count).map_err(|_| Stop::More)?;
        let end = self.at.checked_add(count).ok_or(Stop::More)?;
        let skipped = self.bytes.get(self.at..end).ok_or(Stop::More)?;
        self.at = end;
        Ok(skipped)
    }

    fn number(&mut self) -> Result<u64, Stop> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.skip(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Stop::Never("the engine's output is no Native format".into()))
    }

    fn fixed(&mut self) -> Result<u64, Stop> {
        let bytes = self.skip(8)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn text(&mut self) -> Result<&'a str, Stop> {
        let length = self.number()?;
        std::str::from_utf8(self.skip(length)?).map_err(|e| Stop::Never(format!("a name is not UTF-8: {e}")))
    }

    /// What comes once, before all data of a column.
    fn skip_prefix(&mut self, kind: &str, depth: usize) -> Result<(), Stop> {
        let depth = depth.checked_sub(1).ok_or_else(|| unknown(kind))?;
        let (name, inside) = split(kind);
        match name {
            "LowCardinality" => self.skip(8).map(drop),
            "Array" | "Nullable" => self.skip_prefix(inside, depth),
            _ => {
                for part in elements(name, inside).unwrap_or_default() {
                    self.skip_prefix(part, depth)?;
                }
                Ok(())
            }
        }
    }

    fn skip_data(&mut self, kind: &str, rows: u64, depth: usize) -> Result<(), Stop> {
        let depth = depth.checked_sub(1).ok_or_else(|| unknown(kind))?;
        let (name, inside) = split(kind);
        if let Some(width) = width(name, inside) {
            return self.skip(rows.checked_mul(width as u64).ok_or(Stop::More)?).map(drop);
        }
        if let Some(meaning) = meaning(name, inside) {
            return self.skip_data(meaning, rows, depth);
        }
        match name {
            "String" => {
                for _ in 0..rows {
                    let length = self.number()?;
                    self.skip(length)?;
                }
                Ok(())
            }
            "Nullable" => {
                self.skip(rows)?;
                self.skip_data(inside, rows, depth)
            }
            "Array" => {
                let values = self.skip_offsets(rows)?;
                self.skip_data(inside, values, depth)
            }
            "Map" | "Nested" => {
                let values = self.skip_offsets(rows)?;
                self.skip_elements(name, inside, values, depth)
            }
            "LowCardinality" => self.skip_dictionary(inside, rows, depth),
            "Tuple" if inside.is_empty() => self.skip(rows).map(drop),
            "Tuple" | "Point" => self.skip_elements(name, inside, rows, depth),
            _ => Err(unknown(kind)),
        }
    }

    fn skip_elements(&mut self, name: &str, inside: &str, rows: u64, depth: usize) -> Result<(), Stop> {
        for part in elements(name, inside).unwrap_or_default() {
            if rows > 0 {
                self.skip_data(part, rows, depth)?;
            }
        }
        Ok(())
    }

    /// Skips the ends of arrays and returns how many values they have together.
    fn skip_offsets(&mut self, rows: u64) -> Result<u64, Stop> {
        self.skip((rows.saturating_sub(1)).checked_mul(8).ok_or(Stop::More)?)?;
        if rows == 0 { Ok(0) } else { self.fixed() }
    }

    /// A dictionary of values and numbers into it, in as many parts as the engine likes.
    fn skip_dictionary(&mut self, inside: &str, rows: u64, depth: usize) -> Result<(), Stop> {
        const MORE_KEYS: u64 = 1 << 9;
        let values = split(inside);
        let values = if values.0 == "Nullable" { values.1 } else { inside };
        let mut left = rows;
        while left > 0 {
            let flags = self.fixed()?;
            if flags & MORE_KEYS != 0 {
                let keys = self.fixed()?;
                self.skip_data(values, keys, depth)?;
            }
            let count = self.fixed()?;
            let width = 1_u64 << (flags & 3);
            self.skip(count.checked_mul(width).ok_or(Stop::More)?)?;
            left = left
                .checked_sub(count)
                .filter(|_| count > 0)
                .ok_or_else(|| unknown(inside))?;
        }
        Ok(())
    }
}

fn unknown(kind: &str) -> Stop {
    Stop::Never(format!(
        "a column of type {kind} cannot be sent in the Native format of this client: select toString() or finalizeAggregation() \
         of it"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).expect("short");
        [&[length], text.as_bytes()].concat()
    }

    /// A block of two rows with one column, and what a client of a newer protocol is to get.
    fn block(kind: &str, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let begin = [vec![1, 2], text("x"), text(kind)].concat();
        ([&begin, data].concat(), [&HEADER[..], &begin, &[0], data].concat())
    }

    fn samples() -> Vec<(Vec<u8>, Vec<u8>)> {
        let u64s = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        vec![
            block("UInt8", &[1, 2]),
            block("DateTime64(3, 'Etc/UTC')", &[7; 16]),
            block("Decimal(20, 3)", &[7; 32]),
            block("Enum8('a(,' = 1)", &[1, 1]),
            block("String", &[0, 3, b'a', b'b', b'c']),
            block("Nullable(UInt16)", &[0, 1, 5, 5, 0, 0]),
            block("Array(String)", &[u64s(&[0, 2]), vec![1, b'a', 0]].concat()),
            block(
                "Array(Array(UInt8))",
                &[u64s(&[1, 2]), u64s(&[2, 3]), vec![1, 2, 3]].concat(),
            ),
            block("Map(String, UInt8)", &[u64s(&[1, 1]), vec![1, b'k', 9]].concat()),
            block(
                "Tuple(a UInt8, `b c` Tuple(Decimal(3, 1), FixedString(2)))",
                &[&[1, 2][..], &[0; 8], b"abcd"].concat(),
            ),
            block(
                "LowCardinality(Nullable(String))",
                &[u64s(&[1, 0x600, 2]), vec![0, 1, b'a'], u64s(&[2]), vec![0, 1]].concat(),
            ),
            block("SimpleAggregateFunction(sum, Float64)", &[7; 16]),
        ]
    }

    proptest! {
        #[test]
        fn blocks_are_rewritten_however_they_are_cut(order in Just(samples()).prop_shuffle(), size in 1_usize..70) {
            let (old, new): (Vec<_>, Vec<_>) = order.into_iter().unzip();
            let mut native = Native::new(54460);
            let mut got = Vec::new();
            for piece in old.concat().chunks(size) {
                got.extend(native.take(piece).expect("rewritten"));
            }
            prop_assert!(native.is_done());
            prop_assert_eq!(got, new.concat());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Native::new(54460).take(&bytes);
        }
    }

    #[test]
    fn what_has_no_length_is_refused() {
        let (old, _) = block("AggregateFunction(uniq, UInt64)", &[0, 0, 0, 0]);
        let error = Native::new(54460).take(&old).expect_err("refused");
        assert!(error.to_string().contains("AggregateFunction(uniq, UInt64)"), "{error}");
        assert_eq!(Native::new(0).take(&old).expect("as it is"), old);
    }
}
