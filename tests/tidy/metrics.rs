//! The table of metrics in docs/operations.md names every metric there is, and no other.

use super::Document;
use std::collections::BTreeSet;

const TABLE: &str = "docs/operations.md";

/// Whether a text is the name of a metric of ours, and nothing else.
fn is_metric(text: &str) -> bool {
    let named = text.strip_prefix("highwater_");
    named.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

/// The metrics that the code records: every string that is the name of one.
fn recorded(documents: &[Document]) -> BTreeSet<&str> {
    let sources = documents
        .iter()
        .filter(|document| document.is("rs") && !document.is_test());
    let sources = sources.filter(|document| !document.path.starts_with("tests/"));
    let literals = sources.flat_map(|document| document.text.split('"').skip(1).step_by(2));
    // A quote in a comment or a `'"'` turns the rest of a file inside out: then names stand on the other side.
    let all = documents
        .iter()
        .filter(|document| document.is("rs") && !document.is_test());
    let all = all.filter(|document| !document.path.starts_with("tests/"));
    let others = all.flat_map(|document| document.text.split('"').step_by(2));
    literals.chain(others).filter(|text| is_metric(text)).collect()
}

/// The metrics in the table.
fn listed(documents: &[Document]) -> BTreeSet<&str> {
    let table = documents.iter().find(|document| document.path == TABLE);
    let lines = table.into_iter().flat_map(|document| document.text.lines());
    lines
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| is_metric(name))
        .collect()
}

fn complaints(documents: &[Document]) -> Vec<String> {
    let (recorded, listed) = (recorded(documents), listed(documents));
    let missing = recorded
        .difference(&listed)
        .map(|name| format!("{TABLE} does not list {name}"));
    let gone = listed
        .difference(&recorded)
        .map(|name| format!("{TABLE} lists {name}, which nothing records"));
    missing.chain(gone).collect()
}

#[test]
fn every_metric_is_in_the_table() {
    let documents = super::repository();
    assert!(recorded(&documents).len() > 10, "the metrics are not found");
    super::assert_tidy(&complaints(&documents));
}

#[test]
fn metrics_that_are_missing_or_gone_are_found() {
    let documents = [
        Document::new(
            "speed-layer/src/a.rs",
            "fn f() { counter!(\"highwater_a_total\", \"view\" => v); let s = \"see highwater_b\"; g('\"'); \
             gauge!(\"highwater_c\") }",
        ),
        Document::new("tests/a.rs", "let name = \"highwater_tests\";"),
        Document::new(
            TABLE,
            "| metric |\n|---|\n| `highwater_a_total` |\n| `highwater_d` |\n`highwater_e`\n",
        ),
    ];
    super::assert_complains(
        &complaints(&documents),
        &[
            "docs/operations.md does not list highwater_c",
            "docs/operations.md lists highwater_d, which nothing records",
        ],
    );
}
