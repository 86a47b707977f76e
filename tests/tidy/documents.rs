//! What the Markdown files name exists: links, headings, paths, `make` targets and `highwater` commands.

use super::Document;
use std::{collections::BTreeSet, path::Path, process::Command};

/// The inside of a ``` fence.
pub(super) struct Block {
    /// What stands after the opening fence.
    pub(super) info: String,
    pub(super) text: String,
    /// The line of the opening fence, from 1.
    pub(super) line: usize,
}

/// Splits Markdown into its fenced blocks and its other lines, each with its number.
pub(super) fn split(text: &str) -> (Vec<Block>, Vec<(usize, &str)>) {
    let (mut blocks, mut prose) = (Vec::new(), Vec::new());
    let mut open: Option<Block> = None;
    for (line, content) in (1..).zip(text.lines()) {
        let fence = content.trim_start().strip_prefix("```");
        match (open.take(), fence) {
            (Some(block), Some(_)) => blocks.push(block),
            (Some(mut block), None) => {
                block.text.push_str(content);
                block.text.push('\n');
                open = Some(block);
            }
            (None, Some(info)) => {
                open = Some(Block {
                    info: info.trim().to_owned(),
                    text: String::new(),
                    line,
                })
            }
            (None, None) => prose.push((line, content)),
        }
    }
    (blocks, prose)
}

/// Splits a line of prose into what stands in backticks and the rest.
pub(super) fn spans(line: &str) -> (Vec<&str>, String) {
    let parts: Vec<_> = line.split('`').collect();
    let code = parts.iter().skip(1).step_by(2).copied().collect();
    (code, parts.iter().step_by(2).copied().collect::<Vec<_>>().join(" "))
}

/// The address GitHub gives a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Every path in the repository, folders too.
fn paths(documents: &[Document]) -> BTreeSet<String> {
    let ancestors = |path: &str| {
        Path::new(path)
            .ancestors()
            .map(|p| p.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    documents
        .iter()
        .flat_map(|document| ancestors(&document.path))
        .collect()
}

/// Where a relative link leads, from the root; none if it leaves the repository.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<_> = from.split('/').collect();
    parts.pop();
    for part in link.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.join("/"))
}

/// Complaints about links and paths of every Markdown file that lead nowhere.
fn dead_ends(documents: &[Document]) -> Vec<String> {
    let paths = paths(documents);
    let mut complaints = Vec::new();
    for document in documents.iter().filter(|document| document.is("md")) {
        for (number, line) in split(&document.text).1 {
            let place = format!("{}:{number}", document.path);
            let (code, prose) = spans(line);
            for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = if file.is_empty() {
                    Some(document.path.clone())
                } else {
                    resolve(&document.path, file)
                };
                let Some(target) = target.filter(|target| paths.contains(target)) else {
                    complaints.push(format!("{place}: the link {link} leads nowhere"));
                    continue;
                };
                let text = documents
                    .iter()
                    .find(|other| other.path == target)
                    .map_or("", |other| &other.text);
                let headings = split(text).1.into_iter().filter(|(_, line)| line.starts_with('#'));
                if !heading.is_empty() && !headings.map(|(_, line)| anchor(line)).any(|found| found == heading) {
                    complaints.push(format!("{place}: {target} has no heading for {link}"));
                }
            }
            for path in code.iter().map(|path| path.split("::").next().unwrap_or(path)) {
                let first = path.split('/').next().unwrap_or_default();
                let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
                let here = path.contains('/') && paths.contains(first) && !first.is_empty() && plain;
                if here && !paths.contains(path.trim_end_matches('/')) {
                    complaints.push(format!("{place}: there is no {path}"));
                }
            }
        }
    }
    complaints
}

/// Complaints about blocks that say which file they are a part of, and are none.
fn misquoted(documents: &[Document]) -> Vec<String> {
    let mut complaints = Vec::new();
    for document in documents.iter().filter(|document| document.is("md")) {
        for block in split(&document.text).0 {
            let Some(("rust", path)) = block.info.split_once(' ') else {
                continue;
            };
            let quoted = documents.iter().find(|other| other.path == path);
            if !quoted.is_some_and(|quoted| quoted.text.contains(&block.text)) {
                complaints.push(format!("{}:{}: {path} does not say this", document.path, block.line));
            }
        }
    }
    complaints
}

/// The command lines in a Markdown file: lines of blocks, and backticked spans.
fn commands(text: &str) -> Vec<(usize, String)> {
    let (blocks, prose) = split(text);
    let mut found = Vec::new();
    for block in blocks
        .iter()
        .filter(|block| ["", "sh", "bash", "console", "text"].contains(&block.info.as_str()))
    {
        found.extend(((block.line + 1)..).zip(block.text.lines().map(str::to_owned)));
    }
    for (line, content) in prose {
        found.extend(spans(content).0.into_iter().map(|span| (line, span.to_owned())));
    }
    found
        .iter()
        .map(|(line, text)| (*line, text.trim().trim_start_matches("$ ").to_owned()))
        .collect()
}

/// Complaints about `make` targets and `highwater` commands that are not there. `help` gives what a command says of
/// itself, or none if there is no such command.
fn unknown_commands(documents: &[Document], help: &mut dyn FnMut(&[&str]) -> Option<String>) -> Vec<String> {
    let makefile = documents
        .iter()
        .find(|document| document.path == "Makefile")
        .map_or("", |document| &document.text);
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    let mut complaints = Vec::new();
    for document in documents.iter().filter(|document| document.is("md")) {
        for (line, command) in commands(&document.text) {
            let place = format!("{}:{line}", document.path);
            let words: Vec<_> = command
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let program = words.first().and_then(|word| word.rsplit('/').next());
            if program == Some("make")
                && let Some(target) = words[1..]
                    .iter()
                    .find(|word| !word.starts_with('-') && !word.contains('='))
                && !targets.contains(target)
            {
                complaints.push(format!("{place}: the Makefile has no target {target}"));
            }
            if program != Some("highwater") {
                continue;
            }
            let name: Vec<_> = words[1..].iter().copied().take_while(|word| is_name(word)).collect();
            // What follows the command may be a value (`produce flights FILE`): take the longest name there is.
            let Some(text) = (0..=name.len())
                .rev()
                .find_map(|length| Some((length, help(&name[..length])?)))
            else {
                complaints.push(format!("{place}: highwater does not answer --help"));
                continue;
            };
            let (known, text) = text;
            if known == 0 && !name.is_empty() {
                complaints.push(format!("{place}: highwater has no command {}", name[0]));
            }
            let options = words
                .iter()
                .filter(|word| word.starts_with("--"))
                .map(|word| word.split('=').next().unwrap());
            for option in options.filter(|option| option.len() > 2 && !text.contains(*option)) {
                complaints.push(format!(
                    "{place}: highwater {} has no option {option}",
                    name[..known].join(" ")
                ));
            }
        }
    }
    complaints
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

#[test]
fn links_and_paths_in_the_documents_lead_somewhere() {
    super::assert_tidy(&dead_ends(&super::repository()));
}

#[test]
fn code_in_the_documents_is_the_code() {
    super::assert_tidy(&misquoted(&super::repository()));
}

#[test]
fn code_that_is_not_the_code_is_found() {
    let documents = [
        Document::new("src/a.rs", "fn a() {\n    1\n}\n"),
        Document::new(
            "a.md",
            "```rust src/a.rs\n    1\n```\n```rust\nfn b() {}\n```\n```rust src/a.rs\n    2\n```\n",
        ),
    ];
    assert_eq!(misquoted(&documents), ["a.md:7: src/a.rs does not say this"]);
}

#[test]
fn commands_in_the_documents_exist() {
    let mut known = std::collections::BTreeMap::new();
    let mut help = |name: &[&str]| {
        let name: Vec<_> = name.iter().map(|&word| word.to_owned()).collect();
        let ask = || {
            let output = Command::new(super::examples::program("highwater"))
                .args(&name)
                .arg("--help")
                .output()
                .unwrap();
            output
                .status
                .success()
                .then(|| String::from_utf8(output.stdout).unwrap())
        };
        known.entry(name.clone()).or_insert_with(ask).clone()
    };
    super::assert_tidy(&unknown_commands(&super::repository(), &mut help));
}

#[test]
fn dead_links_and_paths_are_found() {
    let documents = [
        Document::new("src/main.rs", ""),
        Document::new(
            "docs/a.md",
            "# One `two`: three!\nSee [b](../b.md#x), [c](c.md) and [d](../../d.md).",
        ),
        Document::new(
            "b.md",
            "# X\n[a](docs/a.md#one-two-three) [web](https://example.org/x) [y](#y) `[z](z.md)`\n\
             `src/main.rs::f` `src/gone.rs` `src/` `docs/*.md`\n```\n[w](w.md)\n```\n",
        ),
    ];
    super::assert_complains(
        &dead_ends(&documents),
        &[
            "docs/a.md:2: the link c.md leads nowhere",
            "docs/a.md:2: the link ../../d.md leads nowhere",
            "b.md:2: b.md has no heading for #y",
            "b.md:3: there is no src/gone.rs",
        ],
    );
}

#[test]
fn commands_that_do_not_exist_are_found() {
    let documents = [
        Document::new("Makefile", "test: check\n\t@x\n"),
        Document::new(
            "a.md",
            "`make test` `make coffee` `make -j2 test` `highwater produce flights FILE --rate 5`\n\
             `highwater check` `highwater fly --high`\n```sh\n$ highwater check --fast # --slow\n./x/highwater\n```\n",
        ),
    ];
    let mut help = |name: &[&str]| match name {
        [] => Some("--help".to_owned()),
        ["check"] => Some("--config".to_owned()),
        ["produce"] => Some("--rate".to_owned()),
        _ => None,
    };
    super::assert_complains(
        &unknown_commands(&documents, &mut help),
        &[
            "a.md:4: highwater check has no option --fast",
            "a.md:1: the Makefile has no target coffee",
            "a.md:2: highwater has no command fly",
            "a.md:2: highwater  has no option --high",
        ],
    );
}
