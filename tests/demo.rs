//! The demo's data: what its own checks say, and that the decoder takes every event that is meant well and refuses the
//! others for the reason that the demo announces.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_tests::python::python;
use serde::Deserialize;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;

/// The Kafka timestamp of every record here, in milliseconds: 2026-01-01.
const SENT: i64 = 1_767_225_600_000;
const STREAMS: [&str; 3] = ["january-october", "november", "december"];

/// What `plan.json` says about the events that must be refused.
#[derive(Deserialize)]
struct Plan {
    bad: Vec<Bad>,
}

#[derive(Deserialize)]
struct Bad {
    reason: String,
    /// Its bytes, each as the character of that number.
    line: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/flights")
}

/// Runs the example's Python with these arguments; what it said on stdout.
fn run(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(python()?)
        .current_dir(folder())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "python {}:\n{said}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn the_flights_are_what_the_demo_says_of_them() -> anyhow::Result<()> {
    run(&["-m", "unittest", "test_flights"])?;
    Ok(())
}

#[test]
fn the_decoder_refuses_the_twenty_bad_events_and_no_other() -> anyhow::Result<()> {
    let streams = PathBuf::from(run(&["convert.py"])?.trim());
    let plan: Plan = serde_json::from_slice(&std::fs::read(streams.join("plan.json"))?)?;
    let definitions = Definitions::load(&folder().join("definitions"))?;
    let dataset = definitions.datasets.first().context("there is no dataset")?;
    let options = Options {
        extra: true,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options)?;
    let mut accepted = 0;
    let mut refused = Vec::new();
    for stream in STREAMS {
        let bytes = std::fs::read(streams.join(format!("{stream}.ndjson")))?;
        let lines = bytes.strip_suffix(b"\n").context("the last line has no end")?;
        for (offset, line) in (0..).zip(lines.split(|byte| *byte == b'\n')) {
            let record = Record {
                partition: 0,
                offset,
                timestamp: Some(SENT),
                key: None,
                value: Some(line),
                headers: &(),
            };
            match decoder.push(&record) {
                Ok(()) => accepted += 1,
                Err(refusal) => refused.push((refusal.reason.name().to_owned(), line.to_vec())),
            }
        }
        decoder.finish();
    }
    let mut announced = Vec::new();
    for bad in plan.bad {
        let line: Result<Vec<u8>, _> = bad.line.chars().map(u8::try_from).collect();
        announced.push((bad.reason, line?));
    }
    announced.sort();
    refused.sort();
    ensure!(refused.len() == 20, "{} refused", refused.len());
    ensure!(refused == announced, "refused: {refused:?}\nannounced: {announced:?}");
    ensure!(accepted == 336_776 + 2_000, "{accepted} accepted");
    Ok(())
}
