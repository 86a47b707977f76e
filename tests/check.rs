//! `highwater check` as its users run it: what goes to stdout, what to stderr, and the exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The command line, which `cargo build --workspace --all-targets` puts beside the tests.
fn highwater() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("highwater");
    assert!(
        program.exists(),
        "{} is not built: cargo build --workspace --all-targets",
        program.display()
    );
    program
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(highwater())
        .current_dir(folder)
        .env_clear()
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

const DEFINITIONS: &str = r#"
[dataset.d]
event_time = "$kafka_time"
[dataset.d.fields]
a = "int64"
[view.v]
dataset = "d"
grain = "1m"
[view.v.measures]
events = "count()"
total = "sum(a)"
"#;

fn folder(config: &str, definitions: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("definitions")).unwrap();
    fs::write(folder.path().join("highwater.toml"), config).unwrap();
    fs::write(folder.path().join("definitions/d.toml"), definitions).unwrap();
    folder
}

#[test]
fn sound_definitions_are_shown() {
    let folder = folder("", DEFINITIONS);
    let output = run(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    for said in [
        "dataset d\n",
        "view v\n",
        "fingerprint",
        "speed_",
        "batch_",
        "total",
        "decimal(38, 0)?",
    ] {
        assert!(stdout(&output).contains(said), "no {said:?} in {}", stdout(&output));
    }
    let json = run(
        folder.path(),
        &["check", "--output", "json", "--config", "highwater.toml"],
    );
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let view = &report["views"][0];
    assert_eq!(report["mistakes"], serde_json::json!([]));
    assert_eq!(report["datasets"][0]["topic"], "d");
    assert_eq!(view["columns"][0]["name"], "time");
    assert_eq!(view["columns"][2]["exactness"], "exact");
    assert_eq!(view["fingerprint"].as_str().unwrap().len(), 32);
}

#[test]
fn mistakes_of_all_files_are_shown_and_exit_2() {
    let folder = folder("[speed]\nflsh = \"1s\"\n", &DEFINITIONS.replace("sum(a)", "sum(b)"));
    let output = run(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.is_empty());
    assert!(
        stdout(&output).starts_with("highwater.toml:2:1: unknown key `flsh` in [speed]\n"),
        "{}",
        stdout(&output)
    );
    assert!(
        stdout(&output).contains("definitions/d.toml:11:14: "),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).ends_with("2 mistakes\n"));
    let json = run(folder.path(), &["check", "--output", "json"]);
    assert_eq!(json.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["mistakes"][0]["line"], 2);
    assert_eq!(report["mistakes"][0]["instead"], "`flush`");
    assert_eq!(report["mistakes"][1]["file"], "definitions/d.toml");
    assert!(report.get("views").is_none());
}

#[test]
fn a_schedule_that_never_fires_exits_2() {
    let folder = folder("[batch]\nschedule = \"0 0 30 2 *\"\n", DEFINITIONS);
    let sentence = "highwater.toml:2:12: `schedule` can't be used: no day ever meets it";
    let output = run(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).starts_with(sentence), "{}", stdout(&output));
    for command in [&["batch", "schedule"][..], &["batch", "run"]] {
        let output = run(folder.path(), command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(sentence), "{command:?}: {said}");
    }
}

#[test]
fn wrong_use_exits_2_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["chekc"][..],
        &["check", "--colour"],
        &["check", "--output", "xml"],
        &[],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--version"][..], &["--help"], &["check", "--help"]] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["check", "--config", "none.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stdout(&output).contains("none.toml: can't be read"),
        "{}",
        stdout(&output)
    );
}
