//! Reading TOML by hand, so that all mistakes of a file are found and none hides another.
//!
//! Serde stops at the first mistake. Here a [`Section`] is a table being read and an [`Entry`] one of its keys; each
//! getter notes what is wrong in the [`Findings`] and goes on without a value. Of a file whose syntax is broken only
//! what stands there is judged: what seems to be missing may be in the part that could not be read.

mod findings;
mod literal;
mod written;

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use findings::{Findings, TomlFile};

use crate::mistake::nearest;
use crate::units;
use literal::byte_in_literal;

/// A range of bytes in a file.
pub(crate) type Span = Range<usize>;

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
