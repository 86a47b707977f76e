//! What the archive lacks: days whose last file went, and gaps that no file ever held, until a person has decided.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use highwater_batch::archive::{Archive, ArchiveError, Commit};
use highwater_batch::{Clock, Outcome, Scope, ViewReport};
use highwater_tests::stack::PATIENCE;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use shared_connections::store::{FreshnessOfPartition, PartitionState, Timetable};
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetRange};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, files, log, partition};
use super::{on_engine, published};

fn why(reports: &[ViewReport], result: Outcome) -> String {
    for report in reports {
        assert_eq!(report.result, result, "{report:?}");
    }
    reports[0].why.clone().unwrap_or_default()
}

/// The lines of an answer that are of a day.
fn of_day(lines: Vec<String>, day: &str) -> Vec<String> {
    lines.into_iter().filter(|line| line.starts_with(day)).collect()
}

#[test]
fn a_day_whose_last_file_went_is_published_empty_and_comes_back() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        published(&world.run(&[], &Quiet, &cancel).await);
        let (first, second) = ("2013-10-31", "2013-11-01");
        assert!(!of_day(world.answer().await?, second).is_empty());

        let archive = Archive::open(&world.batch.config.archive, world.dataset()).await?;
        let mut archive = archive.context("no archive")?;
        let parquet: Vec<_> = files(&world.archive_folder())
            .into_iter()
            .filter(|path| path.to_string_lossy().contains(&format!("_date={second}")))
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        assert_eq!(parquet.len(), 2, "one of each partition");
        for name in &parquet {
            let refused = archive.quarantine(name, false, true).await;
            assert!(matches!(refused, Err(ArchiveError::Whole { .. })), "{refused:?}");
            archive.quarantine(name, true, true).await?;
        }

        world.batch.scope = Scope::Days(vec![second.parse().map_err(anyhow::Error::msg)?]);
        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(said.contains(second) && said.contains("--accept"), "{said}");
        assert!(!of_day(world.answer().await?, second).is_empty(), "the old one stands");
        world.batch.accept = true;
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(of_day(world.answer().await?, second), Vec::<String>::new());
        let truth = world.truth([16, 16]);
        assert_eq!(of_day(world.answer().await?, first), of_day(truth.clone(), first));
        assert!(!world.newest("hourly").await?.gaps.is_empty(), "answers say `gap`");

        // All days, the empty one among them.
        world.batch.scope = Scope::Full;
        world.batch.accept = false;
        let full = world.run(&[], &Quiet, &cancel).await;
        assert_eq!(published(&full)[0].1, 2, "{full:?}");

        for name in &parquet {
            archive.restore(name, true).await?;
        }
        world.batch.scope = Scope::Days(vec![second.parse().map_err(anyhow::Error::msg)?]);
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(world.answer().await?, truth);
        assert!(
            !world.newest("hourly").await?.gaps.is_empty(),
            "of the others nobody looked"
        );
        world.batch.scope = Scope::Full;
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(world.answer().await?, truth);
        assert!(
            world.newest("hourly").await?.gaps.is_empty(),
            "nothing is lacking any more"
        );
        Ok(())
    })
}

/// The archiver came too late for some offsets of partition 0: the archive that lacks them, and which.
async fn with_gap(world: &World) -> anyhow::Result<(Archive, OffsetRange)> {
    let mut archive = Archive::open_or_create(&world.batch.config.archive, world.dataset()).await?;
    let gap = OffsetRange {
        from: Offset(8),
        to: Offset(12),
    };
    let mut commit = Commit::default();
    commit.ranges.insert(partition(0), gap);
    commit.gaps.insert(partition(0), [gap].into_iter().collect());
    commit.accounts.add_gap(partition(0), ChunkSize::new(8)?, gap);
    archive.commit(&commit).await?;
    Ok((archive, gap))
}

/// The archiver came too late for some offsets of a partition, which the speed layer has counted.
#[test]
fn a_gap_that_no_file_held_is_named_until_it_is_accepted() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([8, 16], 1).await?;
        published(&world.run(&[], &Quiet, &cancel).await);
        let (mut archive, gap) = with_gap(&world).await?;
        world.archive([24, 16], 1).await?;

        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::NothingToDo);
        assert!(
            said.contains("lacks offsets 8..12") && said.contains("has not come there"),
            "{said}"
        );
        for number in 0..2 {
            world.speed(number, 24, &BTreeSet::new()).await?;
        }
        let said = why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(
            said.contains("`highwater archive accept-gap flights 0 8..12`"),
            "{said}"
        );
        let planned = world.batch.plan(&[(world.view("hourly"), world.dataset())]).await;
        let planned = planned[0].as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        assert!(!planned.computes && planned.why.contains("8..12"), "{planned:?}");

        // Another partition goes on, and it is told all the same.
        world.archive([24, 24], 1).await?;
        let held = world.run(&[], &Quiet, &cancel).await;
        published(&held);
        assert!(
            held[0].held.as_deref().is_some_and(|held| held.contains("8..12")),
            "{held:?}"
        );
        assert_eq!(world.newest("hourly").await?.mark(partition(0)), Mark(Offset(8)));

        for wrong in [(7, 12), (8, 13), (30, 31)] {
            let range = OffsetRange {
                from: Offset(wrong.0),
                to: Offset(wrong.1),
            };
            let refused = archive.accept_gap(0, range, true).await;
            assert!(matches!(refused, Err(ArchiveError::NotLacking { .. })), "{refused:?}");
        }
        assert!(!archive.accept_gap(0, gap, false).await?.done);
        why(&world.run(&[], &Quiet, &cancel).await, Outcome::Failed);
        assert!(archive.accept_gap(0, gap, true).await?.done);
        let passed = world.run(&[], &Quiet, &cancel).await;
        published(&passed);
        assert_eq!(passed[0].held, None);
        let newest = world.newest("hourly").await?;
        assert_eq!(newest.mark(partition(0)), Mark(Offset(24)));
        assert_eq!(newest.gaps[&partition(0)].ranges(), [gap], "answers say so");
        Ok(())
    })
}

/// A clock that is waited for as far as it may go, and stands there.
struct Until {
    now: Arc<Mutex<DateTime<Utc>>>,
    may_go: watch::Receiver<DateTime<Utc>>,
}

impl Clock for Until {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (now, mut may_go) = (Arc::clone(&self.now), self.may_go.clone());
        async move {
            let then = *now.lock().unwrap() + time;
            // Whoever moves it has gone: the test is over.
            if may_go.wait_for(|end| *end >= then).await.is_err() {
                std::future::pending::<()>().await;
            }
            *now.lock().unwrap() = then;
        }
        .boxed()
    }
}

async fn ask(api: &str, path: &str) -> anyhow::Result<Value> {
    let response = reqwest::get(format!("{api}{path}")).await?;
    ensure!(response.status().is_success(), "{path}: {}", response.text().await?);
    Ok(response.json().await?)
}

/// Asks `/readyz` until what it complains of is so.
async fn until_degraded(api: &str, is_so: impl Fn(&[Value]) -> bool) -> anyhow::Result<Vec<Value>> {
    let began = tokio::time::Instant::now();
    loop {
        let ready = ask(api, "/readyz").await?;
        let degraded = ready["degraded"].as_array().cloned().context("a list")?;
        if is_so(&degraded) {
            return Ok(degraded);
        }
        ensure!(began.elapsed() < PATIENCE, "{ready}");
        // sleeps: the API looks again every few seconds
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a schedule says of a mark that a gap holds is named by the query API until it is accepted; meanwhile answers are whole, since
/// the speed layer has what the archive lacks, and from then on they say `gap`.
#[test]
fn a_mark_that_a_gap_holds_is_told_over_http() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\nschedule = \"0 2 * * *\"\ncut_wait = \"0s\"\n[serve]\nlisten = \"127.0.0.1:0\"\n";
        let world = World::new(&server, log(24), more).await?;
        let (store, view) = (&world.batch.store, world.view("hourly"));
        world.archive([8, 16], 1).await?;
        published(&world.run(&[], &Quiet, &CancellationToken::new()).await);
        for number in 0..2 {
            world.speed(number, 24, &BTreeSet::new()).await?;
        }
        let said = |number| FreshnessOfPartition {
            partition: partition(number),
            next: Offset(24),
            log_end: Offset(24),
            watermark: None,
            kafka_time: None,
            state: PartitionState::Idle,
            reason: String::new(),
            seen: 0,
        };
        store
            .record_freshness(&[0, 1].map(|number| (view.fingerprint, said(number))))
            .await?;
        let (mut archive, gap) = with_gap(&world).await?;
        world.archive([24, 24], 1).await?;

        let cancel = CancellationToken::new();
        let serving = highwater_serving::serve(
            &world.batch.config.serve,
            Arc::new(world.batch.definitions.clone()),
            store.clone(),
            PrometheusBuilder::new().build_recorder().handle(),
            cancel.clone(),
        )
        .await?;
        let api = format!("http://{}", serving.address());
        let serving = tokio::spawn(serving.run());

        // Ten seconds before a start, some days ahead, so that no moment of the timetable has passed.
        let day = (Utc::now() + TimeDelta::days(3)).date_naive();
        let start = day.and_hms_opt(2, 0, 0).context("a moment")?.and_utc();
        let before = Timetable {
            next: start.timestamp(),
            ..Timetable::default()
        };
        store.record_timetable(&before).await?;
        let (go, may_go) = watch::channel(start + TimeDelta::seconds(10));
        let clock = Until {
            now: Arc::new(Mutex::new(start - TimeDelta::seconds(10))),
            may_go,
        };
        let asking = async {
            let names = |degraded: &[Value]| {
                degraded
                    .iter()
                    .any(|one| one.to_string().contains("scheduled batch runs failed"))
            };
            let degraded = until_degraded(&api, names).await?;
            let told = degraded
                .iter()
                .filter_map(Value::as_str)
                .find(|one| one.starts_with("scheduled batch runs failed"));
            let told = told.context("it is named")?;
            for part in [
                "scheduled batch runs failed 1 times, for hourly (",
                "partition 0",
                "8..12",
                "`highwater archive accept-gap flights 0 8..12`",
                "the next is at ",
            ] {
                ensure!(told.contains(part), "{told}");
            }
            let batch = ask(&api, "/readyz").await?["batch"].take();
            let next = batch["next_run"].as_str().context("no next run")?;
            ensure!(told.contains(&format!("the next is at {next}")), "{told} {batch}");
            assert_eq!(batch["last_success"], json!(null), "none has ended well");
            let all = "/api/v1/views/hourly/query?from=2013-10-31T00:00:00Z&to=2013-11-03T00:00:00Z&measures=flights";
            let answer = ask(&api, all).await?;
            let events = world.log.iter().filter(|event| event.offset < 24).count();
            assert_eq!(answer["data"][0]["flights"], events, "{answer:#}");
            assert_eq!(answer["publication"]["marks"], json!({"0": 8, "1": 24}));
            assert_ne!(answer["data"][0]["coverage"], "gap", "{answer:#}");
            assert_eq!(answer.get("gaps").unwrap_or(&json!({})), &json!({}));
            assert_eq!(
                answer["freshness"]["speed"]["partitions"]["0"]["gap_offsets"], 0,
                "{answer:#}"
            );

            // A person says that they are lost: the next try publishes, and nothing is to be complained of.
            ensure!(archive.accept_gap(0, gap, true).await?.done, "it was not accepted");
            go.send(start + TimeDelta::minutes(5))?;
            until_degraded(&api, |degraded| !names(degraded)).await?;
            let answer = ask(&api, all).await?;
            let archived = world
                .log
                .iter()
                .filter(|event| event.partition != 0 || !(8..12).contains(&event.offset));
            assert_eq!(answer["data"][0]["flights"], archived.count(), "{answer:#}");
            assert_eq!(answer["publication"]["marks"], json!({"0": 24, "1": 24}));
            let bucket = &answer["data"][0];
            assert_eq!(
                (&bucket["coverage"], &bucket["coverage_reason"]),
                (&json!("gap"), &json!("lost"))
            );
            assert_eq!(answer["gaps"], json!({"0": [[8, 12]]}), "{answer:#}");
            anyhow::Ok(())
        };
        let ends = CancellationToken::new();
        tokio::select! {
            () = world.batch.schedule_by(&clock, &Quiet, &ends) => anyhow::bail!("the schedule ended"),
            asked = asking => asked?,
        }
        cancel.cancel();
        serving.await??;
        Ok(())
    })
}
