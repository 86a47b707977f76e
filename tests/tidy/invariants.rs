//! Every invariant in ARCHITECTURE.md names the test that holds it, as `path/of/file.rs::name_of_test`.

use super::{
    Document,
    documents::{spans, split},
};

/// The list items under `## Invariants`, each in one line, with the number of its first.
fn invariants(text: &str) -> Vec<(usize, String)> {
    let mut items: Vec<(usize, String)> = Vec::new();
    let section = split(text)
        .1
        .into_iter()
        .skip_while(|(_, line)| *line != "## Invariants")
        .skip(1);
    for (number, line) in section.take_while(|(_, line)| !line.starts_with("## ")) {
        if let Some(item) = line.strip_prefix("- ") {
            items.push((number, item.to_owned()));
        } else if line.starts_with("  ")
            && let Some((_, item)) = items.last_mut()
        {
            item.push(' ');
            item.push_str(line.trim());
        }
    }
    items
}

/// Whether a Rust file has a test of that name: a function, with an attribute ending in `test` right before it.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(number, line)| {
        let function = line
            .split_once("fn ")
            .is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', '<'])));
        let before = lines[..number]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        function
            && before
                .into_iter()
                .any(|line| line.starts_with("#[") && (line.contains("test]") || line.contains("test(")))
    })
}

/// Complaints about invariants that name no test, or one that is not there.
fn complaints(documents: &[Document]) -> Vec<String> {
    let find = |path: &str| documents.iter().find(|document| document.path == path);
    let Some(architecture) = find("ARCHITECTURE.md") else {
        return vec!["there is no ARCHITECTURE.md".to_owned()];
    };
    let items = invariants(&architecture.text);
    if items.is_empty() {
        return vec!["ARCHITECTURE.md has no list under ## Invariants".to_owned()];
    }
    let mut complaints = Vec::new();
    for (line, item) in items {
        let place = format!("ARCHITECTURE.md:{line}");
        let tests: Vec<_> = spans(&item)
            .0
            .into_iter()
            .filter_map(|span| span.split_once(".rs::"))
            .collect();
        if tests.is_empty() {
            complaints.push(format!("{place}: the invariant names no test"));
        }
        for (path, name) in tests {
            if !find(&format!("{path}.rs")).is_some_and(|document| has_test(&document.text, name)) {
                complaints.push(format!("{place}: there is no test {path}.rs::{name}"));
            }
        }
    }
    complaints
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    super::assert_tidy(&complaints(&super::repository()));
}

#[test]
fn invariants_without_a_test_are_found() {
    let architecture = "# A\n- `a.rs::no`\n## Invariants\nText.\n- Held. `a.rs::holds`\n- Held, over\n  two lines: `a.rs::law`\n\
                        - Named only.\n- `a.rs::gone` `b.rs::holds`\n- No attribute: `a.rs::helper`\n## Next\n- Not one.\n";
    let tests = "#[tokio::test(flavor = \"x\")]\n/// What.\nasync fn holds() {}\nproptest! {\n    #[test]\n    fn law(x in 0..9) {}\n}\nfn helper() {}\n";
    let documents = [
        Document::new("ARCHITECTURE.md", architecture),
        Document::new("a.rs", tests),
    ];
    super::assert_complains(
        &complaints(&documents),
        &[
            "ARCHITECTURE.md:8: the invariant names no test",
            "ARCHITECTURE.md:9: there is no test a.rs::gone",
            "ARCHITECTURE.md:9: there is no test b.rs::holds",
            "ARCHITECTURE.md:10: there is no test a.rs::helper",
        ],
    );
    super::assert_complains(&complaints(&[]), &["there is no ARCHITECTURE.md"]);
    super::assert_complains(
        &complaints(&[Document::new("ARCHITECTURE.md", "# A\n")]),
        &["ARCHITECTURE.md has no list under ## Invariants"],
    );
}
