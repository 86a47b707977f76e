//! Children end when told, when dropped, and when the thread that keeps them is gone; strangers are left alone.

use std::process::Command;
use std::time::Duration;

use super::*;

fn shell(script: &str, folder: &Path) -> Launch {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    Launch {
        name: "shell",
        command,
        log: folder.join("log"),
        output: None,
        details: None,
        record: Some(folder.join("pid.json")),
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let wait = async {
        while !condition() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_child_that_is_asked_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let child = Process::start(shell(script, folder.path())).unwrap();
    let log = folder.path().join("log");
    until("the trap is set", || tail(&log).contains("ready")).await;
    assert!(record::Record::of("shell", child.pid()).unwrap().runs());
    assert!(child.stop(Duration::from_secs(60)).await);
    assert!(tail(&log).ends_with("bye"));
    assert!(!folder.path().join("pid.json").exists());
}

#[tokio::test]
async fn a_child_that_does_not_listen_is_killed_with_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; sleep 1000 & echo $!; while :; do sleep 0.01; done";
    let child = Process::start(shell(script, folder.path())).unwrap();
    let log = folder.path().join("log");
    until("its child runs", || !tail(&log).is_empty()).await;
    let grandchild = record::Record::of("sleep", tail(&log).trim().parse().unwrap()).unwrap();
    assert!(!child.stop(Duration::from_millis(50)).await);
    until("its child is gone too", || !grandchild.runs()).await;
}

#[tokio::test]
async fn dropping_kills() {
    let folder = tempfile::tempdir().unwrap();
    let child = Process::start(shell("sleep 1000", folder.path())).unwrap();
    let record = record::Record::of("shell", child.pid()).unwrap();
    drop(child);
    assert!(!record.runs());
}

#[tokio::test]
async fn an_early_end_is_told_with_the_end_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let child = Process::start(shell("echo one; echo two >&2; exit 3", folder.path())).unwrap();
    let status = child.wait().await;
    assert_eq!(status.code(), Some(3));
    let message = child.died(status).to_string();
    assert!(
        message.starts_with("shell ended by itself (exit status: 3); the end of its log "),
        "{message}"
    );
    assert!(message.ends_with("one\ntwo"), "{message}");
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut launch = shell("", folder.path());
    launch.command = Command::new("/no/such/program");
    let error = Process::start(launch).unwrap_err();
    assert_eq!(error.to_string(), "cannot start shell (/no/such/program)");
}

#[tokio::test]
async fn a_leftover_is_ended_and_a_stranger_with_its_number_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid.json");
    let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();

    let truth = record::Record::of("sleep", child.id()).unwrap();
    let stranger = record::Record {
        started: truth.started + 1,
        ..truth.clone()
    };
    let other_boot = record::Record {
        boot: "another".to_owned(),
        ..truth.clone()
    };
    for not_it in [stranger, other_boot] {
        std::fs::write(&path, serde_json::to_vec(&not_it).unwrap()).unwrap();
        assert_eq!(record::end_leftover(&path).await.unwrap(), None);
        assert!(truth.runs());
        assert!(!path.exists());
    }

    record::write(&path, "sleep", child.id()).unwrap();
    assert_eq!(record::end_leftover(&path).await.unwrap(), Some(truth.clone()));
    assert!(!truth.runs());
    child.wait().unwrap();

    std::fs::write(&path, "not a record").unwrap();
    assert_eq!(record::end_leftover(&path).await.unwrap(), None);
    assert!(!path.exists());
}
