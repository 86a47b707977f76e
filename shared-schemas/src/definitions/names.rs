//! Which names may be given.

use crate::section::{Findings, Span};

/// Columns that every answer has.
const RESERVED: [&str; 5] = ["time", "layer", "exact", "estimates", "coverage"];

/// The longest name, in bytes: it becomes a column and, escaped, a file of the store.
const LONGEST: usize = 64;

/// Notes what is wrong with the name of a dataset, view, field, dimension or measure.
pub(super) fn check(kind: &str, name: &str, span: &Span, findings: &mut Findings<'_>) -> bool {
    let before = findings.count();
    if name.starts_with('_') {
        let what = format!("the {kind} `{name}` begins with `_`, as only Highwater's own columns do");
        findings.add(span, what, suggestion(name));
    } else if !is_identifier(name) {
        let what = format!("the {kind} `{}` has no proper name", name.escape_debug());
        let suggestion = suggestion(name);
        let rule = "a letter, then letters, digits and `_`, all ASCII";
        findings.add(
            span,
            what,
            if suggestion.is_empty() {
                rule.to_owned()
            } else {
                format!("{suggestion}: {rule}")
            },
        );
    } else if name.len() > LONGEST {
        findings.add(
            span,
            format!("the {kind} `{name}` has a name of {} letters", name.len()),
            format!("at most {LONGEST}"),
        );
    }
    findings.count() == before
}

/// As [`check`], for a dimension or a measure: both become columns of answers.
pub(super) fn check_column(kind: &str, name: &str, span: &Span, findings: &mut Findings<'_>) -> bool {
    if RESERVED.contains(&name) {
        let what = format!("no {kind} can be called `{name}`: every answer has a column of that name");
        let instead = if kind == "dimension" {
            "{ name = \"ANOTHER\", expr = \"…\" }".to_owned()
        } else {
            "another name".to_owned()
        };
        findings.add(span, what, instead);
        return false;
    }
    check(kind, name, span, findings)
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The nearest proper name, quoted; empty if there is none.
fn suggestion(name: &str) -> String {
    let proper: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let proper = proper
        .trim_start_matches(|c: char| !c.is_ascii_alphabetic())
        .trim_end_matches('_');
    if proper.is_empty() {
        String::new()
    } else {
        format!("`{proper}`")
    }
}
