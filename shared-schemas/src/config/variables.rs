//! Environment variables in strings: `${NAME}` and `${NAME:-default}`.
//!
//! They are put in after parsing, so that a value can never change the file's structure.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::section::{Findings, Span};

/// Replaces the variables in all strings of a table. A string that can't be completed is noted, and settled.
pub(super) fn expand(table: &mut DeTable<'_>, variables: &dyn Fn(&str) -> Option<String>, findings: &mut Findings<'_>) {
    for (_, value) in table.iter_mut() {
        expand_value(value, variables, findings);
    }
}

fn expand_value(
    value: &mut Spanned<DeValue<'_>>,
    variables: &dyn Fn(&str) -> Option<String>,
    findings: &mut Findings<'_>,
) {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => match expanded(text, variables) {
            Ok(new) => *text = new.into(),
            Err((what, instead)) => note(&span, what, &instead, findings),
        },
        DeValue::Array(array) => {
            for element in array.iter_mut() {
                expand_value(element, variables, findings);
            }
        }
        DeValue::Table(table) => expand(table, variables, findings),
        _ => {}
    }
}

fn note(span: &Span, what: String, instead: &str, findings: &mut Findings<'_>) {
    findings.add(span, what, instead);
    findings.settle(span.clone());
}

/// The text with its variables put in, or what is wrong and what to write instead.
fn expanded(text: &str, variables: &dyn Fn(&str) -> Option<String>) -> Result<String, (String, String)> {
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            done.push_str(before);
            done.push_str("${");
            rest = &from[2..];
            continue;
        }
        done.push_str(before);
        let end = from.find('}').ok_or_else(|| {
            (
                "`${` is not closed".to_owned(),
                "close it with `}`, or write `$${` for a plain `${`".to_owned(),
            )
        })?;
        let inside = &from[2..end];
        let (name, default) = inside
            .split_once(":-")
            .map_or((inside, None), |(name, rest)| (name, Some(rest)));
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let instead = "`${NAME}` or `${NAME:-default}`; `$${` for a plain `${`".to_owned();
            return Err((format!("`{name}` is no name of an environment variable"), instead));
        }
        match (variables(name), default) {
            (Some(value), None) => done.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => done.push_str(&value),
            (_, Some(default)) => done.push_str(default),
            (None, None) => {
                let instead = format!("set it, or give a default: `${{{name}:-…}}`");
                return Err((format!("the environment variable `{name}` is not set"), instead));
            }
        }
        rest = &from[end + 1..];
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_put_in() {
        let expanded = |text| expanded(text, &variables).map_err(|(what, _)| what);
        assert_eq!(expanded("http://${HOST}:${PORT:-8123}/").unwrap(), "http://db:8123/");
        assert_eq!(expanded("${EMPTY}|${EMPTY:-x}|${NONE:-}").unwrap(), "|x|");
        assert_eq!(expanded("${NESTED}").unwrap(), "${HOST}");
        assert_eq!(expanded("$${HOST} $HOST 5$").unwrap(), "${HOST} $HOST 5$");
        assert_eq!(
            expanded("${NONE}").unwrap_err(),
            "the environment variable `NONE` is not set"
        );
        assert_eq!(expanded("${HOST").unwrap_err(), "`${` is not closed");
        assert_eq!(
            expanded("${A B}").unwrap_err(),
            "`A B` is no name of an environment variable"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[a-zA-Z$\\{\\}:λ-]{0,16}") {
            let _ = expanded(&text, &variables);
        }
    }
}
