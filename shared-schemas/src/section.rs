//! Reading TOML by hand, so that all mistakes of a file are found and none hides another.
//!
//! Serde stops at the first mistake. Here a [`Section`] is a table being read and an [`Entry`] one of its keys; each
//! getter notes what is wrong in the [`Findings`] and goes on without a value. Of a file whose syntax is broken only
//! what stands there is judged: what seems to be missing may be in the part that could not be read.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{Mistake, Mistakes, Place, nearest, without_value};
use crate::units;

/// A range of bytes in a file.
pub(crate) type Span = Range<usize>;

/// A TOML file's name and text.
#[derive(Debug, Clone)]
pub(crate) struct TomlFile {
    /// The name shown with mistakes.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
    /// Whether values in it may be secrets, which no mistake may show.
    pub(crate) secretive: bool,
}

/// What is wrong in one file, as far as it was read.
#[derive(Debug)]
pub(crate) struct Findings<'f> {
    file: &'f TomlFile,
    /// Lines with a mistake of syntax; nothing else is said of them.
    broken_lines: Vec<usize>,
    /// Values about which nothing more is to be said.
    settled: Vec<Span>,
    mistakes: Mistakes,
}

impl TomlFile {
    /// Parses the file as far as it can be; what can't is noted in the findings.
    pub(crate) fn parse(&self) -> (DeTable<'_>, Findings<'_>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut findings = Findings {
            file: self,
            broken_lines: Vec::new(),
            settled: Vec::new(),
            mistakes: Mistakes::default(),
        };
        let mut broken_lines = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let line = findings.place(&span).line;
            // One slip of the pen makes the parser stumble several times.
            if !broken_lines.contains(&line) {
                let what = format!("this is not TOML: {}", error.message());
                findings.add(&span, what, syntax_hint(error.message()));
                broken_lines.push(line);
            }
        }
        findings.broken_lines = broken_lines;
        (table.into_inner(), findings)
    }
}

/// What to write instead of the commonest mistakes of syntax; the parser's own words are for those who know it.
fn syntax_hint(message: &str) -> &'static str {
    let unquoted = [
        "invalid boolean",
        "invalid integer",
        "invalid float",
        "invalid datetime",
        "string values must",
    ];
    if message.contains("duplicate key") {
        "each key once"
    } else if unquoted.iter().any(|begin| message.starts_with(begin)) {
        // What was written may be a secret: it is not repeated.
        "a string stands in quotes"
    } else {
        ""
    }
}

impl Findings<'_> {
    /// Notes a mistake; `instead` may be empty where nothing better is known.
    pub(crate) fn add(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        let place = self.place(span);
        if self.broken_lines.contains(&place.line) || self.settled.contains(span) {
            return;
        }
        let instead = Some(instead.into()).filter(|text| !text.is_empty());
        self.mistakes.add(Mistake {
            file: self.file.name.clone(),
            place: Some(place),
            what: what.into(),
            instead,
        });
    }

    /// As [`Findings::add`], about a line whose value must not be shown.
    pub(crate) fn add_secret(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        let before = self.count();
        self.add(span, what, instead);
        if self.count() > before {
            self.mistakes.hide_last_value();
        }
    }

    /// Notes that something is missing, or refers to nothing, unless it may stand in a part that could not be read.
    pub(crate) fn add_missing(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        if self.is_whole() {
            self.add(span, what, instead);
        }
    }

    /// Says no more about that value.
    pub(crate) fn settle(&mut self, span: Span) {
        self.settled.push(span);
    }

    /// Whether the file's syntax is sound.
    pub(crate) fn is_whole(&self) -> bool {
        self.broken_lines.is_empty()
    }

    /// Where a range stands in the file.
    pub(crate) fn place(&self, span: &Span) -> Place {
        let mut place = Place::of(&self.file.text, span);
        if self.file.secretive {
            place.source = without_secret(place.source);
        }
        place
    }

    /// The file's name.
    pub(crate) fn file_name(&self) -> &str {
        &self.file.name
    }

    /// The file's text.
    pub(crate) fn text(&self) -> &str {
        &self.file.text
    }

    /// How many mistakes there are so far.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.iter().count()
    }

    /// The mistakes.
    pub(crate) fn into_mistakes(self) -> Mistakes {
        self.mistakes
    }
}

/// A line to show, cut where the value may be a secret: a mistake must not carry one into a log.
fn without_secret(line: String) -> String {
    let lower = line.to_lowercase();
    let user_in_url = lower.find("://").is_some_and(|at| lower[at..].contains('@'));
    if user_in_url || SECRETIVE.iter().any(|word| lower.contains(word)) {
        without_value(&line)
    } else {
        line
    }
}

/// Words that a key of a secret contains.
const SECRETIVE: [&str; 7] = ["pass", "pasw", "pwd", "secret", "token", "credential", ".pem"];

/// A table being read.
#[derive(Debug, Clone)]
pub(crate) struct Section<'t> {
    /// Its name as in a header: `dataset.flights`; empty for the whole file.
    pub(crate) name: String,
    /// The key that names it.
    pub(crate) span: Span,
    table: &'t DeTable<'t>,
}

/// One key of a table, or one element of an array, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'t> {
    /// The key; an array's elements have their array's.
    pub(crate) key: &'t str,
    /// Where the key stands.
    pub(crate) key_span: Span,
    /// Where the value stands.
    pub(crate) span: Span,
    value: &'t DeValue<'t>,
}

impl<'t> Section<'t> {
    /// The whole file.
    pub(crate) fn whole(table: &'t DeTable<'t>) -> Self {
        Self {
            name: String::new(),
            span: 0..0,
            table,
        }
    }

    /// Refuses all keys but these.
    pub(crate) fn only(&self, known: &[&str], findings: &mut Findings<'_>) {
        for entry in self.entries() {
            if !known.contains(&entry.key) {
                let instead = match nearest(entry.key, known.iter().copied()) {
                    Some(name) => format!("`{name}`"),
                    None if known.len() == 1 => quoted(known),
                    None => format!("one of {}", quoted(known)),
                };
                if self.name.is_empty() {
                    // The header that it belongs to may be the one that could not be read.
                    findings.add_missing(&entry.key_span, format!("unknown key `{}`", entry.key), instead);
                } else {
                    let what = format!("unknown key `{}` in [{}]", entry.key, self.name);
                    findings.add(&entry.key_span, what, instead);
                }
            }
        }
    }

    /// The entry of that key.
    pub(crate) fn get(&self, key: &str) -> Option<Entry<'t>> {
        let (key, value) = self.table.get_key_value(key)?;
        Some(Entry {
            key: key.get_ref(),
            key_span: key.span(),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// The entry of that key, which must be there.
    pub(crate) fn required(&self, key: &str, example: &str, findings: &mut Findings<'_>) -> Option<Entry<'t>> {
        let entry = self.get(key);
        if entry.is_none() {
            findings.add_missing(
                &self.span,
                format!("[{}] has no `{key}`", self.name),
                format!("add `{example}`"),
            );
        }
        entry
    }

    /// The table of that key; absent is as good as empty.
    pub(crate) fn section(&self, key: &str, findings: &mut Findings<'_>) -> Option<Self> {
        let entry = self.get(key)?;
        let name = if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        };
        entry.section(&name, findings)
    }

    /// All entries in the order of the file.
    pub(crate) fn entries(&self) -> Vec<Entry<'t>> {
        let mut entries: Vec<Entry<'t>> = self
            .table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref(),
                key_span: key.span(),
                span: value.span(),
                value: value.get_ref(),
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_span.start);
        entries
    }
}

impl<'t> Entry<'t> {
    /// Notes that the value is of the wrong type.
    pub(crate) fn wrong_type(&self, expected: &str, example: &str, findings: &mut Findings<'_>) {
        let what = format!("`{}` is {}, not {expected}", self.key, type_name(self.value));
        findings.add(&self.span, what, example);
    }

    /// The value as it is.
    pub(crate) fn value(&self) -> &'t DeValue<'t> {
        self.value
    }

    /// The value's text, if it is text.
    pub(crate) fn as_str(&self) -> Option<&'t str> {
        self.value.as_str()
    }

    /// A string.
    pub(crate) fn string(&self, example: &str, findings: &mut Findings<'_>) -> Option<&'t str> {
        let text = self.as_str();
        if text.is_none() {
            self.wrong_type("a string", example, findings);
        }
        text
    }

    /// A whole number within bounds.
    pub(crate) fn integer(
        &self,
        bounds: RangeInclusive<u64>,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<u64> {
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("a whole number", example, findings);
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number
            .and_then(|number| u64::try_from(number).ok())
            .filter(|number| bounds.contains(number));
        if number.is_none() {
            let what = format!(
                "`{}` is {integer}, not within {} to {}",
                self.key,
                bounds.start(),
                bounds.end()
            );
            findings.add(&self.span, what, example);
        }
        number
    }

    /// A length of time with its unit.
    pub(crate) fn duration(&self, example: &str, findings: &mut Findings<'_>) -> Option<Duration> {
        self.with_unit("length of time", example, units::duration, findings)
    }

    /// A length of time within bounds.
    pub(crate) fn duration_within(
        &self,
        bounds: RangeInclusive<Duration>,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Duration> {
        let duration = self.duration(example, findings)?;
        let (least, most) = (
            units::show_duration(*bounds.start()),
            units::show_duration(*bounds.end()),
        );
        self.within(bounds.contains(&duration), &least, &most, example, findings)
            .then_some(duration)
    }

    /// A number of bytes within bounds.
    pub(crate) fn size_within(
        &self,
        bounds: RangeInclusive<u64>,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<u64> {
        let size = self.size(example, findings)?;
        let (least, most) = (units::show_size(*bounds.start()), units::show_size(*bounds.end()));
        self.within(bounds.contains(&size), &least, &most, example, findings)
            .then_some(size)
    }

    fn within(&self, is: bool, least: &str, most: &str, example: &str, findings: &mut Findings<'_>) -> bool {
        if !is {
            let given = self.as_str().unwrap_or_default();
            findings.add(
                &self.span,
                format!("`{}` is {given}, not within {least} to {most}", self.key),
                example,
            );
        }
        is
    }

    /// A number of bytes with its unit.
    pub(crate) fn size(&self, example: &str, findings: &mut Findings<'_>) -> Option<u64> {
        self.with_unit("size", example, units::size, findings)
    }

    fn with_unit<T>(
        &self,
        kind: &str,
        example: &str,
        parse: fn(&str) -> Result<T, String>,
        findings: &mut Findings<'_>,
    ) -> Option<T> {
        let Some(text) = self.as_str() else {
            if matches!(self.value, DeValue::Integer(_) | DeValue::Float(_)) {
                findings.add(
                    &self.span,
                    format!("`{}` is a number without a unit", self.key),
                    example,
                );
            } else {
                self.wrong_type(&format!("a {kind} with its unit"), example, findings);
            }
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                findings.add(&self.span, format!("`{}` is no {kind}: {why}", self.key), example);
                None
            }
        }
    }

    /// The elements of an array.
    pub(crate) fn list(&self, example: &str, findings: &mut Findings<'_>) -> Option<Vec<Self>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type("a list", example, findings);
            return None;
        };
        let element = |value: &'t Spanned<DeValue<'t>>| Self {
            key: self.key,
            key_span: self.key_span.clone(),
            span: value.span(),
            value: value.get_ref(),
        };
        Some(array.iter().map(element).collect())
    }

    /// The value as a table named `name`.
    pub(crate) fn section(&self, name: &str, findings: &mut Findings<'_>) -> Option<Section<'t>> {
        let Some(table) = self.value.as_table() else {
            self.wrong_type("a table", &format!("[{name}]"), findings);
            return None;
        };
        Some(Section {
            name: name.to_owned(),
            span: self.key_span.clone(),
            table,
        })
    }

    /// Where in the file the word stands that begins at a byte of the string that the value holds.
    pub(crate) fn span_within(&self, at: usize, findings: &Findings<'_>) -> Span {
        let raw = &findings.text()[self.span.clone()];
        let start = self.span.start + byte_in_literal(raw, at);
        let rest = &findings.text()[start..self.span.end];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let sign = rest.chars().next().map_or(0, char::len_utf8);
        start..start + word.max(sign)
    }
}

/// Where in a TOML string literal, quotes included, the byte `at` of its value stands.
fn byte_in_literal(raw: &str, at: usize) -> usize {
    let quote = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| raw.starts_with(quote))
        .unwrap_or_default();
    let mut here = quote.len();
    if quote.len() == 3 {
        here += if raw[here..].starts_with("\r\n") {
            2
        } else {
            usize::from(raw[here..].starts_with('\n'))
        };
    }
    let escapes = quote.starts_with('"');
    let end = raw.len().saturating_sub(quote.len()).max(here.min(raw.len()));
    let mut value_bytes = 0;
    while here < end {
        let rest = &raw[here..end];
        let (written, meant) = match rest.strip_prefix('\\').filter(|_| escapes) {
            Some(escaped) => escape(escaped),
            None => rest.chars().next().map_or((1, 1), |c| (c.len_utf8(), c.len_utf8())),
        };
        if value_bytes >= at && meant > 0 {
            break;
        }
        here += written;
        value_bytes += meant;
    }
    raw.floor_char_boundary(here.min(end))
}

/// How many bytes an escape takes, its backslash included, and how many its meaning has.
fn escape(after_backslash: &str) -> (usize, usize) {
    let digits = match after_backslash.chars().next() {
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some(c) if c.is_whitespace() => {
            return (1 + after_backslash.len() - after_backslash.trim_start().len(), 0);
        }
        _ => return (2, 1),
    };
    let code = after_backslash
        .get(1..1 + digits)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    (2 + digits, code.and_then(char::from_u32).map_or(1, char::len_utf8))
}

/// A value's type in words.
fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a bool",
        DeValue::Datetime(_) => "a TOML time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Names for a message: `` `a`, `b` ``.
pub(crate) fn quoted<'n, N: AsRef<str> + 'n>(names: impl IntoIterator<Item = &'n N>) -> String {
    names
        .into_iter()
        .map(|name| format!("`{}`", name.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_value_is_found_in_its_literal() {
        assert_eq!(byte_in_literal(r#""a + b""#, 4), 5);
        assert_eq!(byte_in_literal(r#""a \"b\" c""#, 6), 9);
        assert_eq!(byte_in_literal(r#""\u00e9 x""#, 3), 8);
        assert_eq!(byte_in_literal("'''\na\nb'''", 2), 6);
        assert_eq!(byte_in_literal("\"\"\"a \\\n   b\"\"\"", 2), 10);
        assert_eq!(byte_in_literal("''", 5), 1);
    }

    #[test]
    fn a_line_that_may_hold_a_secret_is_cut() {
        assert_eq!(without_secret("user = 1".into()), "user = 1");
        assert_eq!(
            without_secret("\"sasl.password\" = \"x\"".into()),
            "\"sasl.password\" = …"
        );
    }
}
