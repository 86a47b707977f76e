//! Fault 12: files of the archive that are damaged, cut short or gone: named, never answered from, put aside on a person's word.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use highwater_batch::Outcome;
use highwater_batch::archive::Archive;
use highwater_tests::platform::{Platform, events};
use highwater_tests::stack::program;
use highwater_tests::table::{Table, offsets, partition, texts};
use serde_json::Value;
use shared_schemas::config::ArchiveUrl;
use shared_schemas::handoff::Offset;

use crate::faults::trial::trials;

/// Something happens to a file's bytes; what it was, for messages.
fn damage(path: &Path, random: &mut fastrand::Rng) -> anyhow::Result<String> {
    let mut bytes = std::fs::read(path)?;
    let what = match random.u8(..8) {
        0 => {
            std::fs::remove_file(path)?;
            return Ok("removed".to_owned());
        }
        1 => {
            bytes.truncate(random.usize(..bytes.len()));
            format!("cut to {} bytes", bytes.len())
        }
        2 => {
            let from = random.usize(..bytes.len());
            let to = (from + random.usize(1..200)).min(bytes.len());
            bytes[from..to].fill(0);
            format!("zeros from {from} to {to}")
        }
        _ => {
            let at = random.usize(..bytes.len());
            let bit = random.u8(..8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
    };
    std::fs::write(path, bytes)?;
    Ok(what)
}

/// Whatever becomes of a file's bytes, reading says which file it is, or gives the rows that were written.
#[test]
fn damage_is_named_or_changes_nothing() -> anyhow::Result<()> {
    trials("12", "files damaged, cut short, gone", 5, async |trial| {
        let table = Table::new()?;
        table.fill(0, 0..900, 2).await?;
        let pinned = table.pin().await?;
        let rows = texts(&pinned).await?;
        let files = table.files()?;
        let mut harmless = 0;
        for _ in 0..400 {
            let path = &files[trial.random.usize(..files.len())];
            let whole = std::fs::read(path)?;
            let what = damage(path, &mut trial.random)?;
            match texts(&pinned).await {
                Ok(read) => {
                    ensure!(read == rows, "{what}: other rows, and no word");
                    harmless += 1;
                }
                Err(error) => {
                    let name = path.file_name().context("no name")?.to_string_lossy();
                    let said = format!("{error:#}");
                    ensure!(said.contains(&*name), "{what}: it does not name {name}: {said}");
                }
            }
            std::fs::write(path, whole)?;
        }
        println!("{harmless} of 400 did no harm");
        ensure!(harmless < 200, "hardly anything is found");
        trial.found(0..900, &offsets(&pinned).await?[&0])
    })
}

/// The command tells what it would do, does it, and everything goes on without the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_put_aside_by_command() -> anyhow::Result<()> {
    let table = Table::new()?;
    table.fill(0, 0..90, 3).await?;
    let home = table.site("")?;
    let files = table.files()?;
    let file = &files[0];
    let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
    let bytes = std::fs::read(file)?;
    std::fs::write(file, &bytes[..bytes.len() / 2])?;
    let highwater = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, String, String)> {
        let mut command = Command::new(program("highwater")?);
        let output = command.current_dir(&home).args(arguments).output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    // Optimizing names it, and leaves its day alone.
    let (code, said, _) = highwater(&["archive", "optimize"])?;
    assert_eq!(code, Some(1));
    assert!(said.contains(&name), "{said}");

    let (code, said, _) = highwater(&["archive", "quarantine", "trips", "nothing.parquet", "--yes"])?;
    assert_eq!((code, said.as_str()), (Some(2), ""));
    let (code, said, _) = highwater(&["archive", "quarantine", "trips", &name])?;
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing was done: with --yes"), "{said}");
    // By its path from here, too; and no file that is whole.
    let path = file.strip_prefix(&home)?.display().to_string();
    let (code, again, _) = highwater(&["archive", "quarantine", "trips", &path])?;
    assert_eq!((code, again), (Some(1), said));
    let healthy = files[1].strip_prefix(&home)?.display().to_string();
    let (code, said, errors) = highwater(&["archive", "quarantine", "trips", &healthy, "--yes"])?;
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(
        errors.contains("can be read as a whole") && errors.contains("--force"),
        "{errors}"
    );
    let version = table.pin().await?.version;
    let (code, said, errors) = highwater(&["archive", "quarantine", "trips", &name, "--yes", "-o", "json"])?;
    assert_eq!(code, Some(0), "{errors}");
    let done: Value = serde_json::from_str(&said)?;
    assert_eq!(done["events"], 10);
    let moved = done["moved_to"].as_str().context("not moved")?;
    assert!(moved.starts_with("_quarantine/"), "{moved}");
    assert!(table.folder().join(moved).is_file());
    assert!(!file.exists());

    let pinned = table.pin().await?;
    assert_eq!(pinned.version, version + 1);
    assert_eq!(pinned.ends[&partition(0)], Offset(90));
    // Its day is the first, so it held every third offset of its commit.
    let lost: Vec<u64> = (0..30).step_by(3).collect();
    let gap: Vec<u64> = (0..90)
        .filter(|at| pinned.gaps[&partition(0)].contains(Offset(*at)))
        .collect();
    assert_eq!(gap, lost);
    assert_eq!(pinned.accepted, pinned.gaps);
    let left: Vec<u64> = (0..90).filter(|at| !lost.contains(at)).collect();
    assert_eq!(offsets(&pinned).await?[&0], left);
    // The archiver and the optimizer go on.
    table.fill(0, 90..120, 1).await?;
    let (code, said, _) = highwater(&["archive", "optimize", "trips"])?;
    assert_eq!(code, Some(0), "{said}");
    let pinned = table.pin().await?;
    assert_eq!(offsets(&pinned).await?[&0].len(), 110);
    let aside = table.folder().join(moved);
    assert!(aside.is_file(), "what was put aside is kept");

    // It comes back once a good copy lies there, and only then; and once.
    let back = [
        "archive",
        "quarantine",
        "trips",
        "--restore",
        moved,
        "--yes",
        "-o",
        "json",
    ];
    let (code, _, errors) = highwater(&back)?;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains(&name), "{errors}");
    std::fs::write(&aside, bytes)?;
    let (code, said, _) = highwater(&["archive", "quarantine", "trips", "--restore", &name])?;
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing was done: with --yes"), "{said}");
    let (code, said, errors) = highwater(&back)?;
    assert_eq!(code, Some(0), "{errors}");
    let done: Value = serde_json::from_str(&said)?;
    assert_eq!((&done["events"], &done["day"]), (&10.into(), &"2013-11-01".into()));
    assert!(!aside.exists());
    let pinned = table.pin().await?;
    assert_eq!(offsets(&pinned).await?[&0], (0..120).collect::<Vec<_>>());
    assert!(pinned.gaps.is_empty() && pinned.accepted.is_empty(), "{pinned:?}");
    let (code, _, errors) = highwater(&back)?;
    assert_eq!(code, Some(2), "{errors}");
    table.fill(0, 120..130, 1).await?;
    let (code, said, _) = highwater(&["archive", "optimize", "trips"])?;
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}

/// A run that meets a damaged file names it and does not publish; the old publication stands, a view that does not need the
/// file goes on; once the file is put aside, runs go on and answers say so.
#[test]
fn a_run_does_not_publish_from_a_damaged_file() -> anyhow::Result<()> {
    trials("12", "a run that meets a damaged file", 3, async |trial| {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        platform.send(events(0..1200)).await?;
        platform.until_archived().await?;
        for report in platform.batch(&["daily"]).await? {
            ensure!(report.result == Outcome::Published, "{report:?}");
        }
        platform.until_whole().await?;
        let before = platform.answer("merged").await?;

        // A file of a day that the first view has, and the second one has not.
        let ArchiveUrl::Folder(folder) = &platform.config.archive.url else {
            anyhow::bail!("it is in a folder");
        };
        let day = folder.join("events/_date=2013-01-10");
        let mut found = vec![day];
        let file = loop {
            let path = found.pop().context("no file of that day")?;
            if path.is_file() {
                break path;
            }
            for entry in std::fs::read_dir(path)? {
                found.push(entry?.path());
            }
        };
        let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
        let mut bytes = std::fs::read(&file)?;
        // Of columns that each view reads, too.
        let zeroed = trial.random.bool();
        if zeroed {
            let to = bytes.len() / 2;
            bytes[8..to].fill(0);
        } else {
            bytes.truncate(trial.random.usize(..bytes.len()));
        }
        std::fs::write(&file, bytes)?;

        // Further events, of other days.
        platform.send(events(2400..3600)).await?;
        platform.until_archived().await?;
        for report in platform.batch(&[]).await? {
            if report.view == "daily" {
                ensure!(report.result == Outcome::Published, "{report:?}");
                continue;
            }
            ensure!(report.result == Outcome::Failed, "{report:?}");
            let why = report.why.unwrap_or_default();
            ensure!(why.contains(&name), "it does not name the file: {why}");
        }
        // Nothing of it is answered: the speed layer has all.
        trial.whole(&platform).await?;
        let after = platform.answer("merged").await?;
        ensure!(
            before.iter().all(|(cell, value)| after.get(cell) == Some(value)),
            "an answer changed"
        );

        let dataset = &platform.definitions.datasets[0];
        let archive = Archive::open(&platform.config.archive, dataset).await?;
        let done = archive.context("no archive")?.quarantine(&name, false, true).await?;
        ensure!(done.events > 0, "{done:?}");
        for report in platform.batch(&["hourly"]).await? {
            ensure!(report.result == Outcome::Published, "{report:?}");
        }
        let path = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2013-05-01T00:00:00Z&measures=events";
        let answer = platform.ask(path).await?;
        let row = &answer["data"][0];
        ensure!(row["coverage"] == "gap", "{answer}");
        let events = row["events"].as_u64().context("no count")?;
        ensure!(
            events < 2400 && events + done.events >= 2400,
            "{events} of 2400, {done:?}"
        );
        platform.stop_all().await
    })
}
