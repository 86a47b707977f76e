//! No layer depends on another: `src → layers → shared-connections → shared-schemas`, and nothing the other way.

use serde_json::Value;
use std::process::Command;

/// Where a package stands; a package may depend on those it names.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    CommandLine,
    Layer,
    Connections,
    Shared,
    Deploy,
    Tests,
}

impl Place {
    fn of(folder: &str) -> Option<Self> {
        Some(match folder {
            "" => Self::CommandLine,
            "shared-schemas" => Self::Shared,
            "shared-connections" => Self::Connections,
            "tests" => Self::Tests,
            folder if folder.starts_with("deploy/") => Self::Deploy,
            folder if folder.ends_with("-layer") => Self::Layer,
            _ => return None,
        })
    }

    fn may_use(self, other: Self) -> bool {
        match self {
            Self::CommandLine => matches!(other, Self::Layer | Self::Connections | Self::Shared | Self::Deploy),
            Self::Layer => matches!(other, Self::Connections | Self::Shared),
            Self::Connections => other == Self::Shared,
            Self::Shared | Self::Deploy => false,
            Self::Tests => true,
        }
    }
}

/// Complaints about what `cargo metadata --no-deps` says: dependencies of every kind, optional ones and those of tests.
fn complaints(metadata: &Value) -> Vec<String> {
    let root = metadata["workspace_root"].as_str().unwrap();
    let below = |path: &str| {
        path.strip_prefix(root)
            .map(|rest| rest.trim_start_matches('/').to_owned())
    };
    let mut complaints = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let manifest = package["manifest_path"].as_str().unwrap();
        let folder = below(manifest.trim_end_matches("Cargo.toml").trim_end_matches('/')).unwrap();
        let Some(place) = Place::of(&folder) else {
            complaints.push(format!(
                "{name} in {folder} is of no known place: add it to tests/tidy/layers.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let Some(path) = dependency["path"].as_str() else {
                continue;
            };
            let other = below(path).and_then(|folder| Place::of(&folder));
            if !other.is_some_and(|other| place.may_use(other)) {
                complaints.push(format!("{name} depends on {}", dependency["name"].as_str().unwrap()));
            }
        }
    }
    complaints
}

/// Complaints about manifests that do not take the workspace's lints.
fn without_lints(manifests: &[(String, toml::Table)]) -> Vec<String> {
    let inherits = |manifest: &toml::Table| Some(manifest.get("lints")?.get("workspace")?.as_bool() == Some(true));
    manifests
        .iter()
        .filter(|(_, manifest)| inherits(manifest) != Some(true))
        .map(|(path, _)| format!("{path} does not say lints.workspace = true"))
        .collect()
}

#[test]
fn no_layer_depends_on_another() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(super::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata["packages"].as_array().unwrap().len() >= 6);
    super::assert_tidy(&complaints(&metadata));
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let manifests: Vec<_> = super::repository()
        .into_iter()
        .filter(|document| document.path.ends_with("Cargo.toml") && !document.path.contains("/fuzz/"))
        .map(|document| (document.path, document.text.parse().unwrap()))
        .collect();
    super::assert_tidy(&without_lints(&manifests));
}

#[test]
fn a_layer_that_depends_on_another_is_found() {
    let package = |name: &str, folder: &str, dependencies: Value| serde_json::json!({"name": name, "manifest_path": format!("/r/{folder}/Cargo.toml").replace("//", "/"), "dependencies": dependencies});
    let on = |name: &str, folder: &str| serde_json::json!({"name": name, "path": format!("/r/{folder}")});
    let metadata = serde_json::json!({"workspace_root": "/r", "packages": [
        package("highwater", "", serde_json::json!([on("speed", "speed-layer"), on("stack", "deploy/local-stack"), {"name": "serde"}])),
        package("speed", "speed-layer", serde_json::json!([on("shared", "shared-schemas"), on("batch", "batch-layer")])),
        package("shared", "shared-schemas", serde_json::json!([on("stack", "deploy/local-stack")])),
        package("stack", "deploy/local-stack", serde_json::json!([on("tests", "tests")])),
        package("tests", "tests", serde_json::json!([on("speed", "speed-layer"), on("shared", "shared-schemas")])),
        package("odd", "elsewhere", serde_json::json!([])),
    ]});
    super::assert_complains(
        &complaints(&metadata),
        &[
            "speed depends on batch",
            "shared depends on stack",
            "stack depends on tests",
            "odd in elsewhere is of no known place: add it to tests/tidy/layers.rs",
        ],
    );
}

#[test]
fn a_crate_without_the_lints_is_found() {
    let manifest = |path: &str, text: &str| (path.to_owned(), text.parse().unwrap());
    super::assert_complains(
        &without_lints(&[
            manifest("a/Cargo.toml", "[lints]\nworkspace = true"),
            manifest("b/Cargo.toml", "[package]\nname = 'b'"),
            manifest("c/Cargo.toml", "[lints.rust]\nunsafe_code = 'allow'"),
        ]),
        &[
            "b/Cargo.toml does not say lints.workspace = true",
            "c/Cargo.toml does not say lints.workspace = true",
        ],
    );
}
