//! A disk that is full while events are archived, or while a batch run spills: told, nothing half done, and on it goes once there
//! is room.

use highwater_batch::archive::Archive;
use highwater_tests::alone::{is_elsewhere, limit_files};
use highwater_tests::platform::{Platform, cells, events};
use highwater_tests::stack::{run, until};
use highwater_tests::table::offsets;
use highwater_tests::workers::Worker;
use shared_schemas::definitions::Definitions;

use crate::privacy::spilled::{DEFINITIONS, PEOPLE, archived, computed};

#[test]
fn an_archiver_goes_on_when_there_is_room_again() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        let archiver = Worker::limited(&platform, "archive", 48)?;
        platform.send(events(0..100)).await?;
        platform.until_archived().await?;
        let dataset = &platform.definitions.datasets[0];
        let pin = async || {
            anyhow::Ok(
                Archive::open(&platform.config.archive, dataset)
                    .await?
                    .unwrap()
                    .pin()
                    .await?,
            )
        };
        let before = pin().await?;

        // So many days at once that neither their entry nor some of their files fit.
        platform.send(events(100..9_000)).await?;
        archiver.until_said("File too large").await?;
        let stalled = pin().await?;
        let held: usize = offsets(&stalled).await?.values().map(Vec::len).sum();
        let ends: u64 = stalled.ends.values().map(|end| end.0).sum();
        assert_eq!(held as u64, ends, "all below the ends, and none beyond");
        assert!(stalled.version >= before.version);
        assert!(archiver.runs(), "{}", archiver.said());

        archiver.unlimited()?;
        platform.until_archived().await?;
        let whole = pin().await?;
        let held: usize = offsets(&whole).await?.values().map(Vec::len).sum();
        assert_eq!(held, 9_000);
        platform.publish().await?;
        platform.until_whole().await?;
        assert_eq!(platform.answer("merged").await?, cells(&platform.sent()));
        archiver.end_well().await?;
        platform.stop_all().await
    })
}

#[test]
fn a_run_that_has_no_room_to_spill_fails_and_leaves_nothing() -> anyhow::Result<()> {
    if is_elsewhere(
        module_path!(),
        "a_run_that_has_no_room_to_spill_fails_and_leaves_nothing",
    )? {
        return Ok(());
    }
    run(async {
        let site = tempfile::TempDir::with_prefix("highwater-test-")?;
        let definitions = Definitions::parse([("people.toml", DEFINITIONS)])?;
        let archive = archived(&definitions, &site.path().join("archive")).await?;
        let spill = site.path().join("spill");
        std::fs::create_dir(&spill)?;
        let all = usize::try_from(PEOPLE)? * 9 / 10;
        let left = || anyhow::Ok(std::fs::read_dir(&spill)?.count());
        // The first limit is met by what is kept of ids, the second by cells.
        for limit in [4 << 10, 16 << 10] {
            limit_files(Some(limit))?;
            let result = computed(&archive, &definitions, &spill).await;
            limit_files(None)?;
            let error = result.err().map(|error| format!("{error:#}"));
            let error = error.unwrap_or_default();
            assert!(error.contains("File too large"), "with {limit} bytes: {error:?}");
            // Tasks of the plan may end after it.
            until("spilled files are gone", || left().is_ok_and(|left| left == 0)).await?;
        }
        assert_eq!(computed(&archive, &definitions, &spill).await?, all);
        Ok(())
    })
}
