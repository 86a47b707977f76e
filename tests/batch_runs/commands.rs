//! What is tried as functions elsewhere, as a user has it: by command, on the same real parts, and killed as a process.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use highwater_batch::list::State;
use highwater_batch::{Selection, Step, Watcher, list, reconcile_and_repair, rollback};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::proxy::{Act, Gate, Proxy, Then};
use highwater_tests::stack::{highwater_in, said_in as said};
use serde_json::Value;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::collection::{NO_WAIT, publish_more, rows};
use super::on_engine;
use super::world::{World, log};

pub(super) const QUICK: &str = "commit_every = \"100ms\"\n[batch]\ncut_wait = \"0s\"\n";

/// Some events are published, of others the speed layer alone knows, and all are archived.
async fn world(server: &ClickHouse, more: &str) -> anyhow::Result<World> {
    let world = World::new(server, log(40), more).await?;
    for number in [0, 1] {
        world.speed(number, 37, &BTreeSet::new()).await?;
    }
    world.archive([37, 37], 120).await?;
    Ok(world)
}

/// A row of a day below the marks, changed by hand.
async fn plant(world: &World) -> anyhow::Result<()> {
    let store = &world.batch.store;
    let sql = format!(
        "ALTER TABLE `{}`.`{}` UPDATE flights__count = flights__count + 1 WHERE carrier = 'ZZ' AND \
         _window < '2013-11-01 00:00:00' SETTINGS mutations_sync = 2",
        store.database(),
        batch_table_name(world.view("hourly"))
    );
    Ok(store.execute("change rows", &sql).await?)
}

pub(super) fn of<'v>(told: &'v Value, view: &str) -> &'v Value {
    let all = told.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["view"] == view).unwrap_or(&Value::Null)
}

#[test]
fn reconcile_by_command_finds_a_wrong_row_and_repairs_it() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, QUICK).await?;
        let site = world.site(server.url(), QUICK)?;
        let (code, told, stderr) = said(&site, &["batch", "run"]).await?;
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(of(&told, "hourly")["result"], "published", "{told}");
        let (code, told, stderr) = said(&site, &["reconcile"]).await?;
        assert_eq!(code, Some(0), "{told} {stderr}");
        let whole = world.answer().await?;

        plant(&world).await?;
        let (code, told, _) = said(&site, &["reconcile"]).await?;
        assert_eq!(code, Some(1));
        assert!(of(&told, "hourly")["unexplained"].as_u64() > Some(0), "{told}");
        assert_ne!(world.answer().await?, whole, "without --repair nothing is mended");

        let (code, told, stderr) = said(&site, &["reconcile", "--repair"]).await?;
        assert_eq!(code, Some(0), "{told} {stderr}");
        let hourly = of(&told, "hourly");
        assert_eq!((&hourly["unexplained"], &hourly["different"]), (&0.into(), &0.into()));
        let repaired = &hourly["repaired"];
        assert_eq!(
            (&repaired["result"], &repaired["days"], &repaired["publication"]),
            (&"published".into(), &1.into(), &2.into()),
            "{repaired}"
        );
        for view in ["daily", "kinds"] {
            assert!(of(&told, view)["repaired"].is_null(), "{told}");
            assert!(of(&told, view)["compared"].as_u64() > Some(0), "{told}");
        }
        assert_eq!(world.answer().await?, whole);

        // Nothing is left to repair: nothing is published, and what is kept says what was.
        let (code, told, _) = said(&site, &["reconcile", "--repair"]).await?;
        assert_eq!(code, Some(0));
        assert!(of(&told, "hourly")["repaired"].is_null(), "{told}");
        assert_eq!(world.newest("hourly").await?.number.0, 2);
        let (_, listed, _) = said(&site, &["reconcile", "list"]).await?;
        let reports = listed.as_array().context("a list")?;
        let verdicts = reports.iter().filter(|one| one["view"] == "hourly");
        let verdicts: Vec<_> = verdicts.filter_map(|one| one["verdict"].as_str()).collect();
        assert_eq!(verdicts, ["sound", "sound", "unsound", "sound"], "the newest first");
        Ok(())
    })
}

/// How often each view was gone through.
#[derive(Default)]
struct Counted(Mutex<BTreeMap<String, usize>>);

impl Watcher for Counted {
    fn step(&self, view: &str, step: &Step) {
        if matches!(step, Step::Computes { done: 0, .. }) {
            *self.0.lock().unwrap().entry(view.to_owned()).or_default() += 1;
        }
    }
}

#[test]
fn what_was_not_repaired_is_not_compared_again() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, QUICK).await?;
        let site = world.site(server.url(), QUICK)?;
        let (code, _, stderr) = said(&site, &["batch", "run"]).await?;
        assert_eq!(code, Some(0), "{stderr}");
        plant(&world).await?;
        let views = world.batch.selected(&Selection::default())?;
        let counted = Counted::default();
        let found = reconcile_and_repair(&world.batch, &views, false, &counted, &CancellationToken::new()).await?;
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.view.as_str(), one.repaired.is_some(), one.is_sound()))
            .collect();
        assert_eq!(
            told,
            [("hourly", true, true), ("daily", false, true), ("kinds", false, true)]
        );
        let times = counted.0.lock().unwrap().clone();
        // Once more to compute the wrong day, and once more to compare.
        assert_eq!((times["daily"], times["kinds"]), (1, 1), "{times:?}");
        assert!(times["hourly"] >= 2, "{times:?}");
        Ok(())
    })
}

#[test]
fn a_run_by_command_reconciles_and_tells_of_a_wrong_row() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = format!("{QUICK}reconcile = true\n");
        let world = world(&server, &more).await?;
        let site = world.site(server.url(), &more)?;
        let verdict = async || {
            let (_, listed, _) = said(&site, &["reconcile", "list"]).await?;
            anyhow::Ok(of(&listed, "hourly")["verdict"].clone())
        };
        let (code, told, stderr) = said(&site, &["batch", "run"]).await?;
        assert_eq!(
            (code, &of(&told, "hourly")["result"]),
            (Some(0), &"published".into()),
            "{stderr}"
        );
        assert_eq!(verdict().await?, "sound", "{stderr}");

        plant(&world).await?;
        let (code, told, stderr) = said(&site, &["batch", "run"]).await?;
        assert_eq!(
            (code, &of(&told, "hourly")["result"]),
            (Some(0), &"nothing_to_do".into()),
            "{stderr}"
        );
        assert!(stderr.contains("reconciled, and something is wrong"), "{stderr}");
        assert_eq!(
            verdict().await?,
            "unsound",
            "what the run did stands, and somebody is told"
        );
        assert_eq!(world.newest("hourly").await?.number.0, 1);
        Ok(())
    })
}

/// Killed with `kill -9` at statements that chance chooses, with the one under way lost, done, or done after its end.
#[test]
fn a_collection_that_is_killed_as_a_process_harms_nothing() -> anyhow::Result<()> {
    const SEED: &str = "HIGHWATER_SEED";
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    on_engine(|server| async move { killed(&server, seed).await.with_context(|| format!("{SEED}={seed}")) })
}

async fn killed(server: &ClickHouse, seed: u64) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::new(server, log(160), NO_WAIT).await?;
    for number in [0, 1] {
        world.speed(number, 160, &BTreeSet::new()).await?;
    }
    let whole = world.truth([160, 160]);
    let (store, view) = (&world.batch.store, world.view("hourly"));
    let proxy = Proxy::of_statements(server.url())?;
    let site = world.site(&proxy.url(), NO_WAIT)?;
    let gc = ["batch", "gc", "--view", "hourly"];
    // Those that make sure of tables are no part of it.
    let is_of_it = |statement: &str| !statement.contains("CREATE ") && !statement.contains("system.");
    let mut chunks = 3;
    for first in 1..=chunks {
        publish_more(&world, first).await?;
    }
    let statements = Arc::new(Mutex::new(0_usize));
    let counting = Arc::clone(&statements);
    proxy.on(move |statement| {
        *counting.lock().unwrap() += usize::from(is_of_it(statement));
        None
    });
    let (code, told, stderr) = said(&site, &gc).await?;
    ensure!(code == Some(0), "{told} {stderr}");
    let statements = *statements.lock().unwrap();
    ensure!(
        statements > 10,
        "only {statements} statements: too few to mean anything"
    );

    let mut killed = 0;
    for _ in 0..8 {
        chunks += 1;
        publish_more(&world, chunks).await?;
        let gate = Gate::closed();
        let held = Arc::clone(&gate);
        let act = if random.bool() {
            Act::Hold(held)
        } else {
            Act::HoldReply(held)
        };
        let at = random.usize(..statements);
        proxy.forget();
        proxy.once(at, is_of_it, act);
        let mut process = highwater_in(&site, &gc)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        tokio::select! {
            ended = process.wait() => ensure!(ended?.success(), "it failed by itself"),
            held = gate.until_held(1, 0) => {
                held?;
                process.start_kill()?;
                process.wait().await?;
                killed += 1;
            }
        }
        gate.open(if random.bool() { Then::Lose } else { Then::SendOn });
        ensure!(
            world.answer().await? == whole,
            "killed at statement {at}, and the answer moved"
        );
        let kept = list(store, view).await?;
        let kept = kept.iter().filter(|one| one.state != State::LetGo).count();
        ensure!(kept >= 2, "killed at statement {at}, {kept} can be restored");
        rollback(store, view, None).await?;
        ensure!(
            world.answer().await? == whole,
            "killed at statement {at}, and rolled back"
        );
        rollback(store, view, Some(list(store, view).await?[0].number - 1)).await?;
    }
    ensure!(killed >= 4, "killed {killed} times only");

    // Nobody holds the lease any more, and the next one goes on.
    proxy.forget();
    let (code, told, stderr) = said(&site, &gc).await?;
    ensure!(code == Some(0) && told[0]["error"].is_null(), "{told} {stderr}");
    ensure!(world.answer().await? == whole);
    let floor = store.floor(view).await?;
    let lowest = floor.marks.values().map(|mark| mark.0.0).min().unwrap_or_default();
    let below = rows(&world, &speed_table_name(view), &format!("_start < {lowest}")).await?;
    ensure!(lowest > 0 && below == 0, "{below} rows are left below {lowest}");
    Ok(())
}
