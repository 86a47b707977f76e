//! Holds what the repository claims about itself: in the end only what a test enforces stays true.
//!
//! Each check is a function from plain inputs to a list of complaints. So it runs on the repository, and beside that is
//! shown to complain about made-up inputs: a check that cannot fail holds nothing.

mod documents;
mod examples;
mod invariants;
mod layers;
mod lockfile;
mod metrics;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A text file of the repository: its path from the root, with `/`, and what is in it.
struct Document {
    path: String,
    text: String,
}

impl Document {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|found| found == extension)
    }

    /// Its name without folder and extension.
    fn stem(&self) -> &str {
        Path::new(&self.path)
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default()
    }

    /// Whether it is for tests only: a module of the integration binary, or a `tests.rs` or `tests/` beside what it tests.
    fn is_test(&self) -> bool {
        (self.path.starts_with("tests/") && !self.path.starts_with("tests/src/"))
            || self.stem() == "tests"
            || self
                .path
                .split('/')
                .rev()
                .skip(1)
                .any(|folder| folder == "tests" && !self.path.starts_with("tests/"))
    }
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every text file of the repository, in order of path; nothing that was built or fetched.
fn repository() -> Vec<Document> {
    let root = root();
    let mut folders = vec![root.clone()];
    let mut documents = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let built = ["target", "data", ".git", "node_modules"].contains(&relative.as_str());
            // A build folder set by CARGO_TARGET_DIR tells itself.
            if path.is_dir() && !built && !path.join("CACHEDIR.TAG").exists() {
                folders.push(path);
            } else if path.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                documents.push(Document { path: relative, text });
            }
        }
    }
    documents.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(
        documents.iter().any(|document| document.path == "Cargo.toml"),
        "{} is not the repository",
        root.display()
    );
    documents
}

/// Fails with every complaint, each on a line of its own.
#[track_caller]
fn assert_tidy(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "the repository is not tidy:\n  {}\n",
        complaints.join("\n  ")
    );
}

/// Fails unless the made-up inputs gave exactly these complaints.
#[track_caller]
fn assert_complains(complaints: &[String], expected: &[&str]) {
    assert_eq!(complaints, expected);
}
