//! A table written as TOML again: what it says, without comments and line breaks, in the order of the file.

use std::fmt::Write;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Section;
use crate::fingerprint::quoted;

impl Section<'_> {
    /// Its header, and a line for each of its keys; tables below it stand in braces.
    pub(crate) fn written(&self) -> String {
        let mut text = format!("[{}]\n", self.name);
        for (key, value) in ordered(self.table) {
            push_entry(key, value, &mut text);
            text.push('\n');
        }
        text
    }
}

type Pair<'t> = (&'t str, &'t DeValue<'t>);

/// The entries in the order of the file.
fn ordered<'t>(table: &'t DeTable<'t>) -> Vec<Pair<'t>> {
    let mut entries: Vec<(&Spanned<DeString<'t>>, &Spanned<DeValue<'t>>)> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let pair = |(key, value): (&'t Spanned<DeString<'t>>, &'t Spanned<DeValue<'t>>)| {
        let key: &'t str = key.get_ref();
        (key, value.get_ref())
    };
    entries.into_iter().map(pair).collect()
}

fn push_entry(key: &str, value: &DeValue<'_>, text: &mut String) {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if !key.is_empty() && key.chars().all(is_bare) {
        text.push_str(key);
    } else {
        text.push_str(&quoted(key));
    }
    text.push_str(" = ");
    push_value(value, text);
}

fn push_value(value: &DeValue<'_>, text: &mut String) {
    // Writing to a string does not fail.
    let _ = match value {
        DeValue::String(value) => write!(text, "{}", quoted(value)),
        DeValue::Integer(value) => write!(text, "{value}"),
        DeValue::Float(value) => write!(text, "{value}"),
        DeValue::Boolean(value) => write!(text, "{value}"),
        DeValue::Datetime(value) => write!(text, "{value}"),
        DeValue::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                push_value(value.get_ref(), text);
            }
            text.push(']');
            Ok(())
        }
        DeValue::Table(table) => {
            text.push('{');
            for (index, (key, value)) in ordered(table).into_iter().enumerate() {
                text.push_str(if index == 0 { " " } else { ", " });
                push_entry(key, value, text);
            }
            text.push_str(" }");
            Ok(())
        }
    };
}
