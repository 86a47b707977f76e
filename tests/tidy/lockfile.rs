//! One version of each crate whose second copy would split the world, and everything from one registry.

use std::collections::BTreeMap;

/// A name, and the names that begin with it and a `-`, may be there once each.
const FAMILIES: [&str; 9] = [
    "arrow",
    "axum",
    "datafusion",
    "deltalake",
    "object_store",
    "parquet",
    "prost",
    "rdkafka",
    "tonic",
];
/// This name alone: its relatives (`rustls-pki-types` …) have versions of their own.
const SINGLE: [&str; 1] = ["rustls"];

fn is_single(name: &str) -> bool {
    let of = |family: &str| {
        name.strip_prefix(family)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    SINGLE.contains(&name) || FAMILIES.into_iter().any(of)
}

/// Complaints about a `Cargo.lock`.
fn complaints(lockfile: &toml::Table) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut complaints = Vec::new();
    for package in lockfile["package"].as_array().unwrap() {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        if is_single(name) {
            versions.entry(name).or_default().push(version);
        }
        if let Some(source) = package.get("source").and_then(|source| source.as_str())
            && source != "registry+https://github.com/rust-lang/crates.io-index"
        {
            complaints.push(format!("{name} {version} comes from {source}, not from crates.io"));
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    complaints.extend(
        versions
            .iter()
            .map(|(name, versions)| format!("{name} is there as {}", versions.join(" and "))),
    );
    complaints
}

#[test]
fn one_version_of_each_crate_that_batches_and_messages_pass_through() {
    let lockfile = super::repository()
        .into_iter()
        .find(|document| document.path == "Cargo.lock")
        .unwrap();
    super::assert_tidy(&complaints(&lockfile.text.parse().unwrap()));
}

#[test]
fn a_second_arrow_and_a_foreign_source_are_found() {
    let lockfile = r#"
        [[package]]
        name = "arrow-array"
        version = "59.3.2"
        [[package]]
        name = "arrow-array"
        version = "60.0.0"
        [[package]]
        name = "rustls"
        version = "0.23.1"
        [[package]]
        name = "rustls-pki-types"
        version = "1.0.0"
        [[package]]
        name = "rustls-pki-types"
        version = "2.0.0"
        [[package]]
        name = "mine"
        version = "1.0.0"
        source = "git+https://example.org/mine"
    "#;
    super::assert_complains(
        &complaints(&lockfile.parse().unwrap()),
        &[
            "mine 1.0.0 comes from git+https://example.org/mine, not from crates.io",
            "arrow-array is there as 59.3.2 and 60.0.0",
        ],
    );
}
