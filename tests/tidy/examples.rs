//! Every example configuration loads: the folders of `deploy/examples/`, and the TOML in the documents.

use super::{Document, documents::split};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A program of the workspace: `cargo build --workspace --all-targets` puts it beside the tests.
pub(super) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is not built: run cargo build --workspace --all-targets first",
        path.display()
    );
    path
}

/// What `highwater check` complains about, with nothing of the caller's environment but what finds programs.
fn check(config: &Path) -> Option<String> {
    let output = Command::new(program("highwater"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TAIL_KEY", "a key for the example's hash")
        .args(["check", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (!output.status.success()).then(|| String::from_utf8_lossy(&said).into_owned())
}

/// Complaints about configurations that do not load. A block of TOML in a document is either a `highwater.toml`, or
/// definitions: those have a dataset.
fn complaints(root: &Path, documents: &[Document]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut examine = |place: &str, config: &Path| {
        if let Some(said) = check(config) {
            complaints.push(format!("{place} does not load: {}", said.trim()));
        }
    };
    for document in documents
        .iter()
        .filter(|document| document.path.starts_with("deploy/examples/"))
    {
        if document.path.ends_with("/highwater.toml") {
            examine(&document.path, &root.join(&document.path));
        }
    }
    for document in documents.iter().filter(|document| document.is("md")) {
        for block in split(&document.text).0.into_iter().filter(|block| block.info == "toml") {
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("highwater.toml");
            let definitions = folder.path().join("definitions");
            fs::create_dir(&definitions).unwrap();
            if block.text.contains("[dataset.") {
                fs::write(&config, "definitions = \"definitions\"\n").unwrap();
                fs::write(definitions.join("example.toml"), &block.text).unwrap();
            } else {
                fs::write(&config, &block.text).unwrap();
                fs::write(definitions.join("example.toml"), MINIMAL).unwrap();
            }
            examine(&format!("{}:{}", document.path, block.line), &config);
        }
    }
    complaints
}

const MINIMAL: &str = "[dataset.d]\ntopic = \"d\"\nevent_time = \"$kafka_time\"\n[dataset.d.fields]\na = \"int64\"\n";

#[test]
fn every_example_configuration_loads() {
    let documents = super::repository();
    assert!(
        documents
            .iter()
            .any(|document| document.path == "deploy/examples/flights/highwater.toml")
    );
    super::assert_tidy(&complaints(&super::root(), &documents));
}

#[test]
fn examples_that_do_not_load_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let example = folder.path().join("deploy/examples/broken");
    fs::create_dir_all(&example).unwrap();
    fs::write(example.join("highwater.toml"), "kafkas = 1\n").unwrap();
    let documents = [
        Document::new("deploy/examples/broken/highwater.toml", ""),
        Document::new(
            "a.md",
            "```toml\n[kafka]\nbrokers = \"127.0.0.1:9092\"\n```\n```toml\n[kafka]\nbrokerz = \"\"\n```\n```toml\n[dataset.d]\ntopics = 1\n```\n",
        ),
    ];
    let complaints = complaints(folder.path(), &documents);
    let places: Vec<_> = complaints
        .iter()
        .map(|complaint| complaint.split(' ').next().unwrap())
        .collect();
    assert_eq!(places, ["deploy/examples/broken/highwater.toml", "a.md:5", "a.md:9"]);
}
