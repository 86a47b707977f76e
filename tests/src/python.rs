//! The Pythons that `deploy/install` makes, with the packages of `deploy/requirements.txt` and of `deploy/readers.txt`.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// Where the clients' one is.
pub fn python() -> anyhow::Result<PathBuf> {
    python_of("python")
}

/// Where the one of that name is.
pub fn python_of(name: &str) -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let python = cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("highwater")
        .join(name)
        .join("bin/python");
    ensure!(
        python.is_file(),
        "{} is missing: run deploy/install first",
        python.display()
    );
    Ok(python)
}
