//! Rust files that say what they are, stay short and have a name of their own; tests that run and do not sleep.

use super::Document;

const LONGEST: usize = 600;
/// Names that say nothing: what such a module holds belongs elsewhere.
const NAMELESS: [&str; 9] = [
    "common",
    "helper",
    "helpers",
    "misc",
    "types",
    "util",
    "utilities",
    "utils",
    "v2",
];
// Put together here, so that this file does not find itself.
const IGNORE: &str = concat!("#[", "ignore");
const SLEEP: &str = concat!("time::", "sleep(");
const SLEEP_THREAD: &str = concat!("thread::", "sleep(");

const INSTEAD: &str = "poll a condition in a loop, or say why on the line before, as in `// sleeps: …`";

/// Whether the sleep on that line is the pause of a loop that polls, or has its reason on the line before.
fn may_sleep(text: &str, number: usize) -> bool {
    let lines: Vec<_> = text.lines().take(number).collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut inside = depth(lines[number - 1]);
    for line in lines.iter().rev().skip(1).filter(|line| !line.trim().is_empty()) {
        let code = line.trim_start();
        if depth(line) >= inside {
            if code.starts_with("// sleeps: ") && std::ptr::eq(*line, lines[number - 2]) {
                return true;
            }
            continue;
        }
        inside = depth(line);
        if code.starts_with("loop") || code.starts_with("while ") || code.contains("= loop {") {
            return true;
        }
        if code.contains("fn ") {
            return false;
        }
    }
    false
}

/// Complaints about one Rust file.
fn complaints(file: &Document) -> Vec<String> {
    let path = &file.path;
    let mut complaints = Vec::new();
    if !file.text.starts_with("//!") {
        complaints.push(format!("{path} does not open with //!"));
    }
    let lines = file.text.lines().count();
    if lines > LONGEST {
        complaints.push(format!("{path} has {lines} lines, at most {LONGEST}"));
    }
    if file.stem() == "mod" {
        complaints.push(format!("{path}: name it after its folder, beside it"));
    }
    let folders = path.split('/').rev().skip(1);
    for name in folders.chain([file.stem()]).filter(|name| NAMELESS.contains(name)) {
        complaints.push(format!("{path}: {name} says nothing"));
    }
    for (number, line) in (1..).zip(file.text.lines().map(str::trim_start)) {
        if line.starts_with("//") {
            continue;
        }
        let module = line
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("mod ");
        if let Some(name) = module.and_then(|rest| rest.strip_suffix(" {"))
            && NAMELESS.contains(&name)
        {
            complaints.push(format!("{path}:{number}: module {name} says nothing"));
        }
        if line.contains(IGNORE) {
            complaints.push(format!("{path}:{number}: a test that never runs"));
        }
        let sleeps = line.contains(SLEEP) || line.contains(SLEEP_THREAD);
        if sleeps && file.is_test() && !may_sleep(&file.text, number) {
            complaints.push(format!("{path}:{number}: a test sleeps: {INSTEAD}"));
        }
    }
    complaints
}

#[test]
fn every_file_says_what_it_is_stays_short_and_has_a_name() {
    let complaints: Vec<_> = super::repository()
        .iter()
        .filter(|document| document.is("rs"))
        .flat_map(complaints)
        .collect();
    super::assert_tidy(&complaints);
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    let complaints: Vec<_> = super::repository()
        .iter()
        .filter(|document| document.text.starts_with("#!/"))
        .filter(|document| {
            super::root()
                .join(&document.path)
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o111
                == 0
        })
        .map(|document| format!("{} begins like a script and is not executable", document.path))
        .collect();
    super::assert_tidy(&complaints);
}

#[test]
fn each_fault_of_a_file_is_found() {
    let find = |path: &str, text: &str| complaints(&Document::new(path, text));
    super::assert_complains(&find("a/b.rs", "//! What it is.\nfn f() { pause() }\n"), &[]);
    super::assert_complains(&find("a/b.rs", "use x;\n"), &["a/b.rs does not open with //!"]);
    super::assert_complains(
        &find("a/b.rs", &"//!\n".repeat(601)),
        &["a/b.rs has 601 lines, at most 600"],
    );
    super::assert_complains(
        &find("a/mod.rs", "//!"),
        &["a/mod.rs: name it after its folder, beside it"],
    );
    super::assert_complains(&find("a/util/b.rs", "//!"), &["a/util/b.rs: util says nothing"]);
    super::assert_complains(&find("a/types.rs", "//!"), &["a/types.rs: types says nothing"]);
    super::assert_complains(
        &find("a/b.rs", "//!\npub mod v2 {"),
        &["a/b.rs:2: module v2 says nothing"],
    );
    super::assert_complains(
        &find("a/b.rs", &format!("//!\n    {IGNORE}]\n// {IGNORE}]")),
        &["a/b.rs:2: a test that never runs"],
    );
    for path in ["tests/a.rs", "tests/a/b.rs", "layer/src/a/tests.rs", "layer/tests/a.rs"] {
        super::assert_complains(
            &find(path, &format!("//!\nfn a() {{\n    tokio::{SLEEP}wait).await;\n}}\n")),
            &[&format!("{path}:3: a test sleeps: {INSTEAD}")],
        );
    }
    for allowed in [
        format!("//!\nfn until() {{\n    while !condition() {{\n        tokio::{SLEEP}pause).await;\n    }}\n}}\n"),
        format!("//!\nfn a() {{\n    // sleeps: the kill comes at any instant\n    std::{SLEEP_THREAD}wait);\n}}\n"),
    ] {
        super::assert_complains(&find("tests/a.rs", &allowed), &[]);
    }
    let after_the_loop =
        format!("//!\nfn a() {{\n    loop {{\n        b();\n    }}\n    tokio::{SLEEP}wait).await;\n}}\n");
    super::assert_complains(
        &find("tests/a.rs", &after_the_loop),
        &[&format!("tests/a.rs:6: a test sleeps: {INSTEAD}")],
    );
    super::assert_complains(&find("tests/src/a.rs", &format!("//!\ntokio::{SLEEP}pause)")), &[]);
}
