//! ClickHouse's tokens, as far as a statement must be understood to be passed on.
//!
//! The rules follow the engine's own lexer (strings with `\` and doubled quotes, nested `/* */`, `--`, `//`, `# ` and
//! `#!` comments, `$tag$` here documents): what is a string here must be a string there, or a forbidden clause could hide in
//! one. Where the two might disagree (typographic quotes) the token is an error, and the statement is refused.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A keyword or a plain identifier.
    Word,
    /// An identifier in back ticks or double quotes.
    Quoted,
    /// A string or a here document.
    Text,
    /// A number.
    Number,
    /// `(`, `[` or `{`.
    Open,
    /// `)`, `]` or `}`.
    Close,
    /// `;`
    Semicolon,
    /// Any other sign.
    Sign,
    /// A string, quoted identifier or comment that does not end.
    Unfinished,
    /// What this lexer does not follow the engine in.
    Unknown,
}

/// A token and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The tokens of a text without white space and comments. After [`Kind::Unfinished`] and [`Kind::Unknown`] there are none.
#[derive(Clone, Debug)]
pub(crate) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    before: Before,
    ended: bool,
}

/// What came before, as far as it decides where a number ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Dot,
    Operand,
    Other,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Lexer {
            text,
            at: 0,
            before: Before::Other,
            ended: false,
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.at += 1;
        }
    }

    /// Skips to the end of a comment of one line.
    fn skip_line(&mut self) {
        self.skip_while(|b| b != b'\n');
    }

    /// Skips a comment, which may contain others. False if it does not end.
    fn skip_comment(&mut self) -> bool {
        let mut depth = 0;
        while self.at + 1 < self.text.len() {
            match &self.text[self.at..self.at + 2] {
                b"/*" => {
                    depth += 1;
                    self.at += 2;
                }
                b"*/" => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return true;
                    }
                }
                _ => self.at += 1,
            }
        }
        self.at = self.text.len();
        false
    }

    /// Skips what is in quotes, from the opening one on. False if it does not end.
    fn skip_quoted(&mut self, quote: u8) -> bool {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == b'\\' {
                if self.peek(0).is_none() {
                    return false;
                }
                self.at += 1;
            } else if byte == quote {
                if self.peek(0) == Some(quote) {
                    self.at += 1;
                } else {
                    return true;
                }
            }
        }
        false
    }

    /// At a `$`: the end of a here document that begins here.
    fn here_document(&self) -> Option<usize> {
        let rest = &self.text[self.at..];
        let name = 1 + rest.get(1..)?.iter().position(|&b| b == b'$')? + 1;
        let (tag, body) = rest.split_at(name);
        let end = body.windows(tag.len()).position(|window| window == tag)?;
        Some(self.at + name + end + tag.len())
    }

    fn quoted(&mut self, quote: u8, kind: Kind) -> Kind {
        if self.skip_quoted(quote) {
            kind
        } else {
            Kind::Unfinished
        }
    }

    /// Skips white space and comments. `Some` if a comment does not end.
    fn skip_blank(&mut self) -> Option<Kind> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c), _) => self.at += 1,
                (Some(b'-'), Some(b'-')) | (Some(b'/'), Some(b'/')) | (Some(b'#'), Some(b' ' | b'!')) => {
                    self.skip_line();
                }
                (Some(b'/'), Some(b'*')) => {
                    if !self.skip_comment() {
                        return Some(Kind::Unfinished);
                    }
                }
                _ => return None,
            }
        }
    }

    fn token(&mut self, first: u8) -> Kind {
        match first {
            b'\'' => self.quoted(b'\'', Kind::Text),
            b'`' | b'"' => self.quoted(first, Kind::Quoted),
            b'x' | b'X' | b'b' | b'B' if self.peek(1) == Some(b'\'') => {
                self.at += 1;
                self.quoted(b'\'', Kind::Text)
            }
            b'$' => match self.here_document() {
                Some(end) => {
                    self.at = end;
                    Kind::Text
                }
                None => self.word(),
            },
            b'0'..=b'9' => {
                self.number();
                Kind::Number
            }
            b'.' => self.dot(),
            b if b.is_ascii_alphanumeric() || b == b'_' => self.word(),
            b'(' | b'[' | b'{' => self.sign(Kind::Open),
            b')' | b']' | b'}' => self.sign(Kind::Close),
            b';' => self.sign(Kind::Semicolon),
            b if b.is_ascii() => self.sign(Kind::Sign),
            // Beyond ASCII, outside of quotes: white space of a text processor passes, quotes of one do not.
            _ => match &self.text[self.at..self.text.len().min(self.at + 3)] {
                [0xC2, 0xA0, ..] => {
                    self.at += 2;
                    Kind::Sign
                }
                [0xE2, 0x80, 0x80..=0x8F] | [0xE3, 0x80, 0x80] | [0xEF, 0xBB, 0xBF] | [0xE2, 0x88, 0x92] => {
                    self.at += 3;
                    Kind::Sign
                }
                _ => self.sign(Kind::Unknown),
            },
        }
    }

    fn sign(&mut self, kind: Kind) -> Kind {
        self.at += 1;
        kind
    }

    fn word(&mut self) -> Kind {
        self.at += 1;
        self.skip_while(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$');
        Kind::Word
    }

    fn skip_digits(&mut self, hex: bool) {
        self.skip_while(|b| b == b'_' || if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() });
    }

    /// A number, or an identifier that begins with a digit. Only where it ends matters: `1e--x` is `1e-`, `-`, `x`,
    /// but in `0x1e--x` and after a dot a comment begins.
    fn number(&mut self) {
        let hex = self.peek(0) == Some(b'0')
            && matches!(self.peek(1), Some(b'x' | b'X'))
            && self.peek(2).is_some_and(|b| b.is_ascii_hexdigit());
        let binary = self.peek(0) == Some(b'0')
            && matches!(self.peek(1), Some(b'b' | b'B'))
            && matches!(self.peek(2), Some(b'0' | b'1'));
        if hex || binary {
            self.at += 2;
        }
        self.skip_digits(hex);
        if self.before != Before::Dot {
            if self.peek(0) == Some(b'.') {
                self.at += 1;
                self.skip_digits(hex);
            }
            self.exponent(hex);
        }
        self.skip_while(|b| b.is_ascii_alphanumeric() || b == b'_');
    }

    fn exponent(&mut self, hex: bool) {
        let marks: &[u8] = if hex { b"pP" } else { b"eE" };
        if self.peek(1).is_some() && self.peek(0).is_some_and(|b| marks.contains(&b)) {
            self.at += 1;
            if self.peek(1).is_some() && matches!(self.peek(0), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.skip_digits(false);
        }
    }

    /// A dot: of a qualified name or a tuple's element, or the start of a number.
    fn dot(&mut self) -> Kind {
        let digit = self.peek(1).is_some_and(|b| b.is_ascii_digit());
        if self.at > 0 && (!digit || self.before == Before::Operand) {
            return self.sign(Kind::Sign);
        }
        self.at += 1;
        self.skip_digits(false);
        self.exponent(false);
        Kind::Number
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.ended {
            return None;
        }
        let before = self.at;
        let blank = self.skip_blank();
        let start = if blank.is_some() { before } else { self.at };
        let kind = match (blank, self.peek(0)) {
            (Some(kind), _) => kind,
            (None, None) => return None,
            (None, Some(first)) => self.token(first),
        };
        self.ended = matches!(kind, Kind::Unfinished | Kind::Unknown);
        self.before = match (kind, self.text[start]) {
            (Kind::Word | Kind::Quoted | Kind::Number, _) | (Kind::Close, b')' | b']') => Before::Operand,
            (Kind::Sign, b'.') => Before::Dot,
            _ => Before::Other,
        };
        Some(Token {
            kind,
            start,
            end: self.at,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds(text: &str) -> Vec<(Kind, &str)> {
        // An unknown character is a token of its first byte only.
        let word = |t: &Token| text.get(t.start..t.end).unwrap_or_default();
        Lexer::new(text.as_bytes()).map(|t| (t.kind, word(&t))).collect()
    }

    #[test]
    fn strings_end_where_the_engine_ends_them() {
        assert_eq!(kinds(r"'a\'b''c'"), [(Kind::Text, r"'a\'b''c'")]);
        assert_eq!(
            kinds("`a``b` \"c\"\"d\""),
            [(Kind::Quoted, "`a``b`"), (Kind::Quoted, "\"c\"\"d\"")]
        );
        assert_eq!(
            kinds("$x$ it's $x$ y"),
            [(Kind::Text, "$x$ it's $x$"), (Kind::Word, "y")]
        );
        assert_eq!(kinds("$$'$$"), [(Kind::Text, "$$'$$")]);
        assert_eq!(kinds("x'41' X''"), [(Kind::Text, "x'41'"), (Kind::Text, "X''")]);
        assert_eq!(kinds("'a"), [(Kind::Unfinished, "'a")]);
        assert_eq!(kinds(r"'a\"), [(Kind::Unfinished, r"'a\")]);
    }

    #[test]
    fn comments_are_skipped() {
        let words = |text| {
            kinds(text)
                .into_iter()
                .map(|(_, word)| word.to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(words("a -- b\nc // d\ne # f\n#! g\nh"), "a c e h");
        assert_eq!(words("a /* b /* c */ d */ e"), "a e");
        assert_eq!(
            kinds("a /* b /* c */"),
            [(Kind::Word, "a"), (Kind::Unfinished, " /* b /* c */")]
        );
        assert_eq!(words("1-1 a--b"), "1 - 1 a");
        assert_eq!(words("1e--b"), "1e- - b");
        assert_eq!(words("0x1e--b"), "0x1e");
        assert_eq!(words("a.1e--b"), "a . 1e");
        assert_eq!(words("(.5e-3, t.1.2)"), "( .5e-3 , t . 1 . 2 )");
    }

    #[test]
    fn typographic_quotes_are_not_guessed_at() {
        assert_eq!(kinds("a \u{2018}'\u{2019} b").last().map(|t| t.0), Some(Kind::Unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_end(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut at = 0;
            for token in Lexer::new(&text) {
                prop_assert!(token.start >= at && token.end > token.start && token.end <= text.len());
                at = token.end;
            }
        }
    }
}
