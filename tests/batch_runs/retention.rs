//! Retention: event days that a view no longer keeps go from both layers, and nobody answers them from the moment that is said.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use highwater_batch::archive::{Archive, Optimized, Upkeep};
use highwater_batch::{DayRange, Outcome, Scope, Selection, Today, diff, reconcile};
use highwater_tests::stack::{PATIENCE, highwater_in as highwater};
use serde_json::Value;
use shared_schemas::handoff::{EventDay, Offset};
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::collection::{collect, rows};
use super::commands::of;
use super::world::{Quiet, World, log};
use super::{on_engine, published};
use crate::faults::clock::Clock;

/// 2013-11-01: the log has events of two days, in two months.
const SECOND_DAY: i32 = 16_010;

/// So long that the second of the two days is the first that is kept, now and for some minutes to come.
async fn keeps_second_day() -> anyhow::Result<Duration> {
    const DAY: i64 = 86_400;
    let now = chrono::Utc::now().timestamp();
    let left = DAY - now.rem_euclid(DAY);
    let now = if left < 120 {
        // sleeps: today would end in the middle of the test
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs() + 1)).await;
        now + left
    } else {
        now
    };
    let days = now.div_euclid(DAY) - i64::from(SECOND_DAY) + 1;
    Ok(Duration::from_secs(u64::try_from(days * DAY)?))
}

#[test]
fn days_before_the_horizon_go_from_both_layers() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\ncut_wait = \"0s\"\ngc_wait = \"0s\"\n";
        let mut world = World::new(&server, log(80), more).await?;
        for number in [0, 1] {
            world.speed(number, 80, &BTreeSet::new()).await?;
        }
        world.archive([40, 40], 1).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let whole = world.answer().await?;
        assert_eq!(whole, world.truth([80, 80]));
        assert_eq!(
            collect(&world).await?.horizon,
            None,
            "nothing is let go that nobody asked for"
        );

        // So long that the second of the two days is the first that is kept.
        let keep = keeps_second_day().await?;
        let views = &mut world.batch.definitions.views;
        views.iter_mut().find(|view| view.name == "hourly").unwrap().keep = Some(keep);
        let view = world.view("hourly").clone();
        let (speed, batch) = (speed_table_name(&view), batch_table_name(&view));
        let before = (rows(&world, &speed, "1").await?, rows(&world, &batch, "1").await?);
        let old = (
            rows(
                &world,
                &speed,
                "_window < toDateTime64('2013-11-01 00:00:00', 0, 'UTC')",
            )
            .await?,
            rows(&world, &batch, "_day < toDate32('2013-11-01')").await?,
        );
        assert!(old.0 > 0 && old.1 > 0 && old.0 < before.0 && old.1 < before.1);
        let would = world.batch.collectable(&[&view]).await.remove(0);
        assert_eq!((would.rows.speed, would.rows.batch), old);
        assert_eq!(
            world.batch.store.horizon(&view).await?,
            None,
            "a dry run writes nothing"
        );

        let did = collect(&world).await?;
        assert_eq!(
            (did.error.as_deref(), did.horizon.as_deref()),
            (None, Some("2013-11-01"))
        );
        assert_eq!((did.rows.speed, did.rows.batch), old);
        assert_eq!(rows(&world, &speed, "1").await?, before.0 - old.0);
        assert_eq!(rows(&world, &batch, "1").await?, before.1 - old.1);
        let kept: Vec<_> = whole
            .iter()
            .filter(|line| line.as_str() >= "2013-11-01")
            .cloned()
            .collect();
        assert!(!kept.is_empty() && kept.len() < whole.len());
        assert_eq!(world.answer().await?, kept);
        assert_eq!(world.batch.store.horizon(&view).await?, Some(EventDay(SECOND_DAY)));

        // Of the day that went the first publication has rows, as its row says, and the second will not: nothing of it differs.
        world.batch.scope = Scope::Full;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        world.batch.scope = Scope::Dirty;
        let found = diff(&world.batch.store, &view, 1, 2).await?;
        assert_eq!(
            (found.held_from.as_deref(), found.let_go_days),
            (Some("2013-11-01"), 1),
            "{found:?}"
        );
        assert_eq!((found.same_days, found.equal_days), (0, 1), "{found:?}");
        assert!(found.days.is_empty() && found.cells.is_empty(), "{found:?}");
        let site = world.site(server.url(), more)?;
        let told = highwater(&site, &["batch", "diff", "1", "2", "--view", "hourly"])?
            .output()
            .await?;
        let told = String::from_utf8(told.stdout)?;
        assert!(
            told.contains("\n  event days before 2013-11-01 are let go and not compared: 1\n")
                && told.lines().count() == 2,
            "{told}"
        );

        // A run after it computes no day before; reconciliation misses none.
        world.archive([80, 80], 1).await?;
        let reports = world.run(&["hourly"], &Quiet, &CancellationToken::new()).await;
        published(&reports);
        assert_eq!(reports[0].first_day.as_deref(), Some("2013-11-01"));
        assert_eq!(world.answer().await?, kept);
        let selected = world.batch.selected(&Selection {
            views: vec!["hourly".to_owned()],
            datasets: Vec::new(),
        })?;
        let reconciled = reconcile(&world.batch, &selected, &Quiet, &CancellationToken::new()).await;
        assert_eq!(reconciled[0].unexplained, 0, "{:?}", reconciled[0]);
        assert_eq!(collect(&world).await?.error, None);
        assert_eq!(world.answer().await?, kept);
        Ok(())
    })
}

async fn optimize(world: &World, keep_removed: Duration, dry_run: bool) -> anyhow::Result<Optimized> {
    let config = &world.batch.config.archive;
    let mut archive = Archive::open_or_create(config, world.dataset()).await?;
    let today = Today::ask(&world.batch.store).await;
    let upkeep = Upkeep {
        keep_removed,
        ..Upkeep::of(config, world.dataset(), &today, dry_run)
    };
    Ok(archive.optimize(&upkeep, &CancellationToken::new()).await?)
}

/// Days that a dataset no longer keeps go from its archive; runs and reconciliation miss none of them, whoever lets go first.
#[test]
fn days_that_a_dataset_no_longer_keeps_go_from_the_archive_too() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\ncut_wait = \"0s\"\ngc_wait = \"0s\"\n";
        let mut world = World::new(&server, log(80), more).await?;
        for number in [0, 1] {
            world.speed(number, 80, &BTreeSet::new()).await?;
        }
        world.archive([40, 40], 1).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let whole = world.answer().await?;
        let for_long = Duration::from_secs(7 * 86_400);
        assert_eq!(
            optimize(&world, for_long, false).await?.let_go.files,
            0,
            "nobody asked for it"
        );

        let keep = keeps_second_day().await?;
        world.batch.definitions.datasets[0].keep = Some(keep);
        for view in &mut world.batch.definitions.views {
            view.keep = Some(keep);
        }
        let archive = Archive::open_or_create(&world.batch.config.archive, world.dataset()).await?;
        let before = archive.pin().await?;
        let would = optimize(&world, for_long, true).await?;
        assert!(would.let_go.files > 0 && would.let_go.bytes > 0, "{would:?}");
        assert_eq!(
            archive.pin().await?.version,
            before.version,
            "a dry run changes nothing"
        );
        let did = optimize(&world, for_long, false).await?;
        assert_eq!((did.let_go, did.horizon.as_deref()), (would.let_go, Some("2013-11-01")));
        let after = archive.pin().await?;
        assert_eq!((&after.ends, after.horizon), (&before.ends, Some(EventDay(SECOND_DAY))));
        assert!(after.ranges().iter().all(|range| range.day >= EventDay(SECOND_DAY)));
        assert_eq!(world.answer().await?, whole, "nobody has told the view yet");

        // A run finds it: it calls nothing vanished, computes nothing of it, and from then on nobody answers it. Late events of
        // the day before are archived meanwhile.
        world.archive([80, 80], 1).await?;
        let reports = world.run(&["hourly"], &Quiet, &CancellationToken::new()).await;
        published(&reports);
        assert_eq!(reports[0].first_day.as_deref(), Some("2013-11-01"));
        let read = reports[0].checks.iter().find(|check| check.name == "events").unwrap();
        assert!(read.holds && read.says.starts_with("all "), "{read:?}");
        let kept: Vec<_> = whole
            .iter()
            .filter(|line| line.as_str() >= "2013-11-01")
            .cloned()
            .collect();
        assert!(!kept.is_empty() && kept.len() < whole.len());
        assert_eq!(world.answer().await?, kept);
        let newest = world.newest("hourly").await?;
        assert!(newest.days.keys().all(|day| *day >= EventDay(SECOND_DAY)), "{newest:?}");
        assert_eq!(
            world.batch.store.horizon(world.view("hourly")).await?,
            Some(EventDay(SECOND_DAY))
        );

        // A view that is published for the first time, without what went.
        let first = world.run(&["daily"], &Quiet, &CancellationToken::new()).await;
        published(&first);
        assert_eq!((first[0].days, first[0].first_day.as_deref()), (1, Some("2013-11-01")));
        assert_eq!(
            world.batch.store.horizon(world.view("daily")).await?,
            Some(EventDay(SECOND_DAY))
        );

        let all = world.batch.selected(&Selection {
            views: vec!["hourly".to_owned(), "daily".to_owned()],
            datasets: Vec::new(),
        })?;
        for reconciled in reconcile(&world.batch, &all, &Quiet, &CancellationToken::new()).await {
            assert!(reconciled.compared > 0 && reconciled.different == 0, "{reconciled:?}");
            assert_eq!(
                (reconciled.unexplained, reconciled.ledgers.unexplained),
                (0, 0),
                "{reconciled:?}"
            );
        }

        // The rows go from both layers, the late events from the archive, and in time their files.
        let collected = collect(&world).await?;
        assert!(collected.rows.speed > 0 && collected.rows.batch > 0, "{collected:?}");
        assert!(optimize(&world, for_long, false).await?.let_go.files > 0);
        // sleeps: a file is old once its time has passed
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(optimize(&world, Duration::ZERO, false).await?.deleted.files > 0);
        let left = super::world::files(&world.archive_folder());
        let of_events = |day: &str| {
            left.iter()
                .any(|path| path.to_string_lossy().contains(&format!("_date={day}")))
        };
        assert_eq!((of_events("2013-10-31"), of_events("2013-11-01")), (false, true));
        let pinned = archive.pin().await?;
        assert_eq!(
            pinned.ends.values().copied().collect::<Vec<_>>(),
            [Offset(80), Offset(80)]
        );

        // All over again, and the days that went, which nobody can compute.
        world.batch.scope = Scope::Full;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        assert_eq!(world.answer().await?, kept);
        world.batch.scope = Scope::Days(vec![DayRange::from(EventDay(SECOND_DAY - 1))]);
        let gone = world.run(&["hourly"], &Quiet, &CancellationToken::new()).await;
        assert_eq!(gone[0].result, Outcome::NothingToDo, "{:?}", gone[0]);
        assert_eq!(world.answer().await?, kept);
        Ok(())
    })
}

/// Its exit code, what it said as JSON, and what to the log.
async fn by_clock(clock: &Clock, site: &Path, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value, String)> {
    let arguments = [arguments, &["--output", "json"]].concat();
    let mut command = highwater(site, &arguments)?;
    let output = command.envs(clock.environment()).output();
    let output = tokio::time::timeout(PATIENCE, output).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = serde_json::from_slice(&output.stdout);
    Ok((output.status.code(), told.with_context(|| said.clone())?, said))
}

/// A machine whose clock is years ahead runs batch runs, collections and the archive's upkeep: no day is let go, and they say why.
/// Once it is right they go on.
#[test]
fn a_clock_that_is_years_ahead_lets_nothing_go() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "keep_removed = \"1h\"\n[batch]\ncut_wait = \"0s\"\ngc_wait = \"0s\"\n";
        let world = World::new(&server, log(80), more).await?;
        for number in [0, 1] {
            world.speed(number, 80, &BTreeSet::new()).await?;
        }
        world.archive([40, 40], 1).await?;
        let site = world.site(server.url(), more)?;
        // All is kept for another year.
        let today = i32::try_from(chrono::Utc::now().timestamp().div_euclid(86_400))?;
        let file = site.join("definitions/flights.toml");
        let keep = format!("[dataset.flights]\nkeep = \"{}d\"", today - SECOND_DAY + 365);
        std::fs::write(
            &file,
            std::fs::read_to_string(&file)?.replacen("[dataset.flights]", &keep, 1),
        )?;

        let clock = Clock::new(&site)?;
        clock.set(3 * 365 * 86_400)?;
        let apart = "no further event day is let go: this machine's clock says ";
        let (code, told, said) = by_clock(&clock, &site, &["batch", "run", "--view", "hourly"]).await?;
        assert_eq!(
            (code, &of(&told, "hourly")["result"]),
            (Some(0), &"published".into()),
            "{said}"
        );
        assert!(said.contains(apart), "{said}");
        let whole = world.answer().await?;
        assert_eq!(whole, world.truth([80, 80]));

        let gc = ["batch", "gc", "--view", "hourly"];
        for arguments in [&[&gc[..], &["--dry-run"]].concat()[..], &gc] {
            let (code, told, said) = by_clock(&clock, &site, arguments).await?;
            let told = of(&told, "hourly");
            let doubt = told["doubt"].as_str().unwrap_or_default();
            assert!(
                doubt.starts_with(apart) && doubt.ends_with("; set the wrong one right"),
                "{told} {said}"
            );
            assert_eq!((code, &told["horizon"]), (Some(1), &Value::Null), "{told} {said}");
            assert_eq!((&told["rows"]["batch"], &told["rows"]["speed"]), (&0.into(), &0.into()));
        }
        assert_eq!(world.batch.store.horizon(world.view("hourly")).await?, None);
        assert_eq!(world.answer().await?, whole);

        // A file that an archiver is writing, and has not named yet.
        let mut written = super::world::files(&world.archive_folder()).into_iter();
        let one = written.find(|path| path.extension().is_some_and(|end| end == "parquet"));
        let one = one.context("no file of events")?;
        let unnamed = one.with_file_name("unnamed.zstd.parquet");
        std::fs::copy(&one, &unnamed)?;
        let optimize = ["archive", "optimize"];
        let (code, told, said) = by_clock(&clock, &site, &optimize).await?;
        assert_eq!((code, &told[0]["horizon"]), (Some(1), &Value::Null), "{told} {said}");
        assert!(
            told[0]["doubt"].as_str().unwrap_or_default().starts_with(apart),
            "{told}"
        );
        assert_eq!(
            (&told[0]["let_go"]["files"], &told[0]["deleted"]["files"]),
            (&0.into(), &0.into())
        );
        assert!(unnamed.is_file(), "{told}");

        // Without ClickHouse there is nobody to say that the day is right, whether it is or not.
        let two_hours = Duration::from_secs(7_200);
        std::fs::File::options()
            .write(true)
            .open(&unnamed)?
            .set_modified(std::time::SystemTime::now() - two_hours)?;
        world.site("http://127.0.0.1:9", more)?;
        std::fs::write(
            &file,
            std::fs::read_to_string(&file)?.replacen("[dataset.flights]", &keep, 1),
        )?;
        for ahead in [3 * 365 * 86_400, 0] {
            clock.set(ahead)?;
            let (code, told, said) = by_clock(&clock, &site, &optimize).await?;
            let doubt = told[0]["doubt"].as_str().unwrap_or_default();
            assert!(
                doubt.starts_with("no event day is let go and no file deleted before a second clock says"),
                "{told} {said}"
            );
            assert_eq!((code, &told[0]["horizon"]), (Some(1), &Value::Null), "{told} {said}");
            assert_eq!(told[0]["deleted"]["files"], 0, "{told}");
            assert!(told[0]["waiting"]["files"].as_u64() > Some(0), "{told}");
            assert!(unnamed.is_file(), "{told}");
        }

        world.site(server.url(), more)?;
        std::fs::write(
            &file,
            std::fs::read_to_string(&file)?.replacen("[dataset.flights]", &keep, 1),
        )?;
        let (code, told, said) = by_clock(&clock, &site, &gc).await?;
        let told = of(&told, "hourly");
        assert_eq!((code, &told["doubt"]), (Some(0), &Value::Null), "{told} {said}");
        assert!(told["horizon"].is_string(), "{told}");
        let (code, told, said) = by_clock(&clock, &site, &optimize).await?;
        assert_eq!((code, &told[0]["doubt"]), (Some(0), &Value::Null), "{told} {said}");
        assert!(told[0]["horizon"].is_string(), "{told}");
        // What was never named, and is old enough.
        assert!(!unnamed.exists(), "{told}");
        assert_eq!(world.answer().await?, whole);
        Ok(())
    })
}
