//! The Python that `deploy/install` makes, with the packages of `deploy/requirements.txt`.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// Where it is.
pub fn python() -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let python = cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("highwater/python/bin/python");
    ensure!(
        python.is_file(),
        "{} is missing: run deploy/install first",
        python.display()
    );
    Ok(python)
}
