//! What a computation spills to disk is masked, like the archive that it reads, and gone when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use highwater_batch::archive::{Archive, Commit};
use highwater_batch::recompute::{Recompute, Room, below};
use highwater_batch::spill::Spill;
use serde_json::json;
use shared_schemas::config::ArchiveConfig;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{EventDay, Mark, Offset, OffsetRange, Partition, TopicId};

use super::planted::{OPEN, SECRET};
use super::search::{Written, anywhere, files, leaks};

/// No rule of it needs a key of the environment, which this process shares with other tests.
pub(crate) const DEFINITIONS: &str = r#"
[dataset.people]
event_time = "at"
event_id = ["number"]

[dataset.people.fields]
at = "timestamp"
number = "int64"
name = "string"
phone = "string"
note = "string?"
city = "string"

[dataset.people.mask]
name = "redact"
phone = { truncate = 4 }
note = "drop"

[view.people]
dataset = "people"
grain = "1m"
dimensions = ["city", "name", "phone", "note", "number"]

[view.people.measures]
people = "count()"
"#;

pub(crate) const PEOPLE: i64 = 100_000;
const PARTITION: Partition = Partition {
    topic: TopicId(11),
    number: 0,
};

/// Archives people, each with a secret in every field that has a rule, a tenth of them twice.
pub(crate) async fn archived(definitions: &Definitions, folder: &Path) -> anyhow::Result<Archive> {
    let dataset = &definitions.datasets[0];
    let options = Options {
        extra: true,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options)?;
    for offset in 0..PEOPLE {
        let number = if offset % 10 == 9 { offset - 5 } else { offset };
        let person = json!({
            "at": "2013-01-01T00:30:00Z", "number": number, "name": format!("{SECRET}-name-{number}"),
            "phone": format!("0170{SECRET}{number}"), "note": format!("{SECRET}-note"), "city": format!("{OPEN}-{number:0>80}"),
        });
        let read = decoder.push(&Record {
            partition: 0,
            offset,
            timestamp: Some(1_357_002_000_000 + offset),
            key: None,
            value: Some(person.to_string().as_bytes()),
            headers: &(),
        });
        anyhow::ensure!(read.is_ok(), "a person is refused: {read:?}");
    }
    let config = ArchiveConfig::in_folder(folder);
    let mut archive = Archive::open_or_create(&config, dataset).await?;
    let range = OffsetRange {
        from: Offset(0),
        to: Offset(PEOPLE.unsigned_abs()),
    };
    let commit = Commit {
        ranges: BTreeMap::from([(PARTITION, range)]),
        batches: decoder.finish().into_iter().map(|batch| (PARTITION, batch)).collect(),
        ..Commit::default()
    };
    archive.commit(&commit).await?;
    Ok(archive)
}

/// Keeps every file that ever is below a folder, by a second name, until that is done. It blocks: on a thread of its own nobody
/// who computes holds it up.
fn keep(from: &Path, to: &Path, done: &AtomicBool) {
    let mut kept = BTreeSet::new();
    while !done.load(Ordering::Relaxed) {
        for file in files(from).unwrap_or_default() {
            let name = file.to_string_lossy().replace('/', "_");
            if !kept.contains(&name) && std::fs::hard_link(&file, to.join(&name)).is_ok() {
                kept.insert(name);
            }
        }
        // Files come and go at any time; a spill file lives far longer than this.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Computes the day's cells in so little memory that most goes to disk, and counts them.
pub(crate) async fn computed(archive: &Archive, definitions: &Definitions, spill: &Path) -> anyhow::Result<usize> {
    let pinned = archive.pin().await?;
    let days = BTreeSet::from([EventDay(15_706)]);
    let room = Room::new(3 << 20, Arc::new(Spill::new(Some(spill))?))?;
    let recompute = Recompute::within(&room, &definitions.views[0], &definitions.datasets[0])?;
    let counted = below(&BTreeMap::from([(PARTITION, Mark(Offset(PEOPLE.unsigned_abs())))]));
    let cells = recompute.cells(pinned.events(&days), &days, &counted).await?;
    let cells: Vec<_> = cells.try_collect().await?;
    Ok(cells.iter().map(arrow::array::RecordBatch::num_rows).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spilled_is_masked_and_goes() -> anyhow::Result<()> {
    let site = tempfile::TempDir::with_prefix("highwater-test-")?;
    let definitions = Definitions::parse([("people.toml", DEFINITIONS)])?;
    let archive = archived(&definitions, &site.path().join("archive")).await?;
    let (spill, kept) = (site.path().join("spill"), site.path().join("kept"));
    std::fs::create_dir_all(&spill)?;
    std::fs::create_dir(&kept)?;
    let done = Arc::new(AtomicBool::new(false));
    let keeping = {
        let (spill, kept, done) = (spill.clone(), kept.clone(), Arc::clone(&done));
        std::thread::spawn(move || keep(&spill, &kept, &done))
    };
    let rows = computed(&archive, &definitions, &spill).await;
    done.store(true, Ordering::Relaxed);
    keeping
        .join()
        .map_err(|_| anyhow::anyhow!("who keeps files has panicked"))?;
    let rows = rows?;
    assert_eq!(rows, usize::try_from(PEOPLE)? * 9 / 10);
    assert!(files(&spill)?.is_empty(), "spill files stay");
    let mut written = Written::new();
    for file in files(&kept)? {
        written.push((file.display().to_string(), std::fs::read(&file)?));
    }
    let named = |part: &str| {
        written
            .iter()
            .any(|(name, bytes)| name.contains(part) && !bytes.is_empty())
    };
    assert!(named("ids-"), "ids are spilled: {} files", written.len());
    assert!(
        anywhere(&written, OPEN),
        "cells are spilled, and what is open is found in them"
    );
    let found = leaks(&written);
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}
