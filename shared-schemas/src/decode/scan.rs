//! Strict JSON, one pass, no tree: finds where values begin and end and refuses what RFC 8259 refuses.
//!
//! Why not a library. `sonic-rs` does not look into the values that nobody asked for: there it takes `"\uZZZZ"` for a
//! string, its iterator ignores what follows the object, and a megabyte of `[` overflows its stack. `serde_json` is strict
//! but for half surrogate pairs in skipped values; it needs a second pass for nested paths, and finding eight values
//! took it 300 ns where this, looking up their names too, takes 250 (`sonic-rs`: 370). What every layer's agreement
//! hangs on is best read in one place, so the grammar stands here, in safe code, without recursion, with `serde_json` as
//! its oracle in the tests.
//!
//! The input is UTF-8 already. Beyond the grammar two things are refused: an escape that is half a surrogate pair (it is
//! no character, so no column could hold it) and nesting deeper than [`MAX_DEPTH`].

/// How deep objects and arrays may nest, the outermost object included.
pub(super) const MAX_DEPTH: u32 = 128;

/// Where and why a text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

/// What sort of value stands somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    True,
    False,
    Number,
    /// A string without escapes: its text is the bytes between the quotes.
    Plain,
    /// A string with escapes.
    Escaped,
    Object,
    Array,
}

/// A value's place in the text, a string's quotes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Kind {
    /// For a sentence.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::True | Kind::False => "a boolean",
            Kind::Number => "a number",
            Kind::Plain | Kind::Escaped => "a string",
            Kind::Object => "an object",
            Kind::Array => "an array",
        }
    }
}

impl Token {
    /// The value as it is written.
    pub(super) fn raw(self, text: &str) -> &str {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// What stands between a string's quotes.
    pub(super) fn inner(self, text: &str) -> &str {
        text.get(self.start + 1..self.end - 1).unwrap_or_default()
    }
}

/// Reads a text from left to right.
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        Scanner { bytes, at: 0 }
    }

    /// From that byte on.
    pub(super) fn at_byte(text: &'a str, at: usize) -> Self {
        let bytes = text.as_bytes();
        Scanner { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(super) fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        let what = if self.at >= self.bytes.len() {
            "it ends too early"
        } else {
            what
        };
        Err(Fault { what, at: self.at })
    }

    /// Skips white space.
    #[inline]
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Steps over `byte` if it is next.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    /// Steps over `bytes` if they are next.
    #[inline]
    pub(super) fn take_all(&mut self, bytes: &[u8]) -> bool {
        let next = self.bytes[self.at..].starts_with(bytes);
        self.at += if next { bytes.len() } else { 0 };
        next
    }

    /// Only white space may be left.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        self.space();
        match self.peek() {
            None => Ok(()),
            Some(_) => self.fault("something follows the value"),
        }
    }

    /// A member's name and colon; returns the name's token. Stops at the value.
    #[inline]
    pub(super) fn name(&mut self) -> Result<Token, Fault> {
        if self.peek() != Some(b'"') {
            return self.fault("expected a name in double quotes");
        }
        let token = self.string()?;
        self.space();
        if !self.take(b':') {
            return self.fault("expected a colon");
        }
        self.space();
        Ok(token)
    }

    /// Any value, at nesting `depth` (how many objects and arrays are open around it).
    #[inline]
    pub(super) fn value(&mut self, depth: u32) -> Result<Token, Fault> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Kind::Number
            }
            Some(b'{') => {
                self.container(depth)?;
                Kind::Object
            }
            Some(b'[') => {
                self.container(depth)?;
                Kind::Array
            }
            Some(b't') => self.literal(b"true", Kind::True)?,
            Some(b'f') => self.literal(b"false", Kind::False)?,
            Some(b'n') => self.literal(b"null", Kind::Null)?,
            _ => return self.fault("expected a value"),
        };
        let end = self.at;
        Ok(Token { kind, start, end })
    }

    fn literal(&mut self, word: &'static [u8], kind: Kind) -> Result<Kind, Fault> {
        if self.take_all(word) {
            return Ok(kind);
        }
        Err(Fault {
            what: "expected a value",
            at: self.at,
        })
    }

    /// Checks that opening one more object or array inside `depth` others is allowed.
    pub(super) fn open(&self, depth: u32) -> Result<(), Fault> {
        if depth < MAX_DEPTH {
            return Ok(());
        }
        Err(Fault {
            what: "objects and arrays nest deeper than 128",
            at: self.at,
        })
    }

    /// An object or array, with a bit per open level instead of recursion: 1 is an object.
    fn container(&mut self, depth: u32) -> Result<(), Fault> {
        let mut objects = 0_u128;
        let mut levels = 0;
        loop {
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    self.open(depth + levels)?;
                    self.at += 1;
                    self.space();
                    let object = opening == b'{';
                    if !self.take(if object { b'}' } else { b']' }) {
                        objects = objects << 1 | u128::from(object);
                        levels += 1;
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => {
                    self.literal(b"true", Kind::True)?;
                }
                Some(b'f') => {
                    self.literal(b"false", Kind::False)?;
                }
                Some(b'n') => {
                    self.literal(b"null", Kind::Null)?;
                }
                _ => return self.fault("expected a value"),
            }
            // A value is complete: it may be the last of several levels.
            loop {
                if levels == 0 {
                    return Ok(());
                }
                self.space();
                let object = objects & 1 == 1;
                if self.take(b',') {
                    self.space();
                    if object {
                        self.name()?;
                    }
                    break;
                }
                if !self.take(if object { b'}' } else { b']' }) {
                    return self.fault(if object {
                        "expected a comma or }"
                    } else {
                        "expected a comma or ]"
                    });
                }
                objects >>= 1;
                levels -= 1;
            }
        }
    }

    /// A string; the next byte is its opening quote.
    #[inline]
    fn string(&mut self) -> Result<Token, Fault> {
        let start = self.at;
        self.at += 1;
        let mut kind = Kind::Plain;
        loop {
            self.at += ordinary(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    let end = self.at;
                    return Ok(Token { kind, start, end });
                }
                Some(b'\\') => {
                    kind = Kind::Escaped;
                    self.escape()?;
                }
                _ => return self.fault("a control character stands unescaped in a string"),
            }
        }
    }

    /// One escape, or the two of a surrogate pair.
    #[cold]
    fn escape(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.unit()? {
                0xD800..=0xDBFF => {
                    if self.peek() == Some(b'\\') && self.bytes.get(self.at + 1) == Some(&b'u') {
                        self.at += 1;
                        if let 0xDC00..=0xDFFF = self.unit()? {
                            return Ok(());
                        }
                    }
                    Err(Fault {
                        what: "an escape is half a surrogate pair",
                        at: start,
                    })
                }
                0xDC00..=0xDFFF => Err(Fault {
                    what: "an escape is half a surrogate pair",
                    at: start,
                }),
                _ => Ok(()),
            },
            _ => self.fault("expected an escape that JSON knows"),
        }
    }

    /// The `uXXXX` of an escape.
    fn unit(&mut self) -> Result<u32, Fault> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            match self.peek().and_then(|byte| char::from(byte).to_digit(16)) {
                Some(digit) => unit = unit << 4 | digit,
                None => return self.fault("expected four hexadecimal digits"),
            }
            self.at += 1;
        }
        Ok(unit)
    }

    /// A number; the next byte is a digit or a minus.
    #[inline]
    fn number(&mut self) -> Result<(), Fault> {
        self.take(b'-');
        let leading_zero = self.peek() == Some(b'0');
        let digits = self.digits()?;
        if leading_zero && digits > 1 {
            return Err(Fault {
                what: "a number begins with a needless zero",
                at: self.at - digits,
            });
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    #[inline]
    fn digits(&mut self) -> Result<usize, Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return self.fault("expected a digit");
        }
        Ok(self.at - start)
    }
}

/// How many bytes come before the first quote, backslash or control character: eight at a time.
///
/// Each test sets the top bit of the bytes it is looking for. A borrow may set it falsely in a byte above one that is
/// rightly set, never below: the lowest is right, and only that is used.
#[inline]
fn ordinary(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        let special = (word.wrapping_sub(ONES * 0x20) & !word)
            | (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash);
        let special = special & TOPS;
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    words.len() * 8 + plain.unwrap_or(rest.len())
}

/// Appends the text of a string that the scanner has passed; `inner` is what stands between its quotes.
pub(super) fn unescape(inner: &str, out: &mut String) {
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest.as_bytes()[at..];
        let (character, length) = match escape.get(1) {
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'u') => match (unit_at(escape, 2), unit_at(escape, 8)) {
                (Some(high @ 0xD800..=0xDBFF), Some(low)) => {
                    let code = 0x1_0000 + ((high - 0xD800) << 10 | (low.wrapping_sub(0xDC00) & 0x3FF));
                    (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                (Some(unit), _) => (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
                (None, _) => (char::REPLACEMENT_CHARACTER, 2),
            },
            Some(&byte) => (char::from(byte), 2),
            None => (char::REPLACEMENT_CHARACTER, 1),
        };
        out.push(character);
        rest = rest.get(at + length..).unwrap_or_default();
    }
    out.push_str(rest);
}

fn unit_at(escape: &[u8], at: usize) -> Option<u32> {
    let digits = escape.get(at..at + 4)?;
    digits
        .iter()
        .try_fold(0, |unit, &byte| Some(unit << 4 | char::from(byte).to_digit(16)?))
}

/// Whether the whole text is one JSON number.
pub(super) fn is_number(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    matches!(scanner.peek(), Some(b'-' | b'0'..=b'9')) && scanner.number().is_ok() && scanner.at == text.len()
}
