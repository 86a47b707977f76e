//! Fault 13: runs that die at any of their statements, and two at once without the lease, as on two machines.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use highwater_batch::{Batch, Outcome, Selection, Step, ViewReport, Watcher};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::platform::Difference;
use highwater_tests::proxy::{Act, Gate, Proxy, Then, inserts_into};
use shared_schemas::store::tables::{PUBLICATIONS, RUNS};
use tokio_util::sync::CancellationToken;

use super::published;
use super::world::{Quiet, World, log};
use crate::faults::trial::{Trial, trials};

const NO_WAIT: &str = "[batch]\ncut_wait = \"0s\"\n";

/// A world whose speed layer has counted all of the log, so that the answer is the same whatever is published.
async fn world(server: &ClickHouse, end: u64) -> anyhow::Result<World> {
    let world = World::new(server, log(end), NO_WAIT).await?;
    for number in [0, 1] {
        world.speed(number, end, &BTreeSet::new()).await?;
    }
    Ok(world)
}

/// What runs on another machine: the same servers and the same archive, by that way.
fn elsewhere(world: &World, proxy: &Proxy) -> anyhow::Result<Batch> {
    let config = world.batch.config.clone();
    let config = config.at("127.0.0.1:9", &proxy.url(), &world.archive_folder());
    Ok(Batch::new(
        config.map_err(anyhow::Error::msg)?,
        world.batch.definitions.clone(),
    )?)
}

async fn run(batch: &Batch, views: &[&str], watcher: &dyn Watcher) -> anyhow::Result<Vec<ViewReport>> {
    let selection = Selection {
        views: views.iter().map(|&view| view.to_owned()).collect(),
        datasets: Vec::new(),
    };
    let views = batch.selected(&selection)?;
    Ok(batch.run(&views, watcher, &CancellationToken::new()).await)
}

async fn is_whole(world: &World, whole: &[String], when: &str) -> anyhow::Result<()> {
    let answer = world.answer().await?;
    ensure!(answer == whole, "{when}: {answer:?} instead of {whole:?}");
    Ok(())
}

/// Lets these statements wait.
fn hold(proxy: &Proxy, which: impl Fn(&str) -> bool + Send + 'static, gate: &Arc<Gate>) {
    let gate = Arc::clone(gate);
    proxy.on(move |statement| which(statement).then(|| Act::Hold(Arc::clone(&gate))));
}

/// Whether a statement reads publications.
fn looks(statement: &str) -> bool {
    statement.contains(&format!("`{PUBLICATIONS}`")) && !statement.contains("INSERT INTO")
}

fn told(trial: &mut Trial, world: &World) {
    trial.told(world.log.len() as u64, Difference::default());
}

/// The views that began anew.
#[derive(Default)]
struct Beaten(Mutex<BTreeSet<String>>);

impl Watcher for Beaten {
    fn step(&self, view: &str, step: &Step) {
        if *step == Step::StartsOver {
            self.0.lock().unwrap().insert(view.to_owned());
        }
    }
}

/// Both have published before either looks whether it has: of each view one wins, and the other says so and begins anew.
#[test]
fn of_two_runs_at_once_one_publishes_and_the_other_says_so() -> anyhow::Result<()> {
    trials("13", "two runs at once without a lease", 4, async |trial| {
        let server = ClickHouse::start()?;
        let world = world(&server, 90).await?;
        let whole = world.truth([90, 90]);
        let proxy = Proxy::of_statements(server.url())?;
        let machines = [elsewhere(&world, &proxy)?, elsewhere(&world, &proxy)?];
        let views = world.batch.definitions.views.len();
        let mut archived = [0, 0];
        for round in 0..trial.times(2, 5) {
            archived = archived.map(|from: u64| from + trial.random.u64(8..17));
            world.archive(archived, 1).await?;
            // Both have read what is published before either begins, and sent theirs before either looks again.
            let [begun, published, looked] = [(); 3].map(|()| Gate::closed());
            hold(&proxy, inserts_into(RUNS), &begun);
            hold(&proxy, inserts_into(PUBLICATIONS), &published);
            let beaten = [Beaten::default(), Beaten::default()];
            let both = async {
                let [one, other] = &machines;
                tokio::try_join!(run(one, &[], &beaten[0]), run(other, &[], &beaten[1]))
            };
            let meanwhile = async {
                begun.until_held(2 * views, 0).await?;
                begun.open(Then::SendOn);
                published.until_held(2 * views, 0).await?;
                hold(&proxy, looks, &looked);
                published.open(Then::SendOn);
                published.until_done(2 * views).await?;
                is_whole(&world, &whole, "before either knows").await?;
                proxy.forget();
                looked.open(Then::SendOn);
                Ok(())
            };
            let ((one, other), ()) = tokio::try_join!(both, meanwhile)?;
            for (at, (one, other)) in one.iter().zip(&other).enumerate() {
                let reports = [one, other];
                let winners = reports.map(|report| report.result == Outcome::Published);
                ensure!(winners[0] != winners[1], "round {round}, view {at}: {reports:?}");
                let loser = usize::from(winners[0]);
                let why = reports[loser].why.as_deref().unwrap_or_default();
                ensure!(
                    reports[loser].result == Outcome::NothingToDo && why.starts_with("no mark moves"),
                    "{reports:?}"
                );
                let said = beaten[loser].0.lock().unwrap().contains(&one.view);
                ensure!(said, "{} was beaten, and did not say so", one.view);
                let newest = world.newest(&one.view).await?;
                let run = reports[1 - loser].run.clone();
                ensure!(
                    run == Some(format!("{:032x}", newest.run.0)),
                    "{newest:?} is not {reports:?}"
                );
            }
            is_whole(&world, &whole, "afterwards").await?;
        }
        told(trial, &world);
        Ok(())
    })
}

/// Ended between any two of its statements, with the one under way lost, done, or done after its end.
#[test]
fn a_run_killed_at_any_statement_leaves_the_old_answer() -> anyhow::Result<()> {
    trials("13", "a run killed at any statement", 2, async |trial| {
        let server = ClickHouse::start()?;
        let all = trial.times(160, 480);
        let world = world(&server, all).await?;
        let whole = world.truth([all, all]);
        let proxy = Proxy::of_statements(server.url())?;
        let behind = Arc::new(elsewhere(&world, &proxy)?);
        let (mut end, mut killed, mut statement) = (0, 0, 0);
        loop {
            end += 8;
            world.archive([end, end], 1).await?;
            // Each of them where there is time, else some.
            statement += if trial.is_long { 1 } else { trial.random.usize(3..8) };
            let gate = Gate::closed();
            let act = if trial.random.bool() {
                Act::Hold(Arc::clone(&gate))
            } else {
                Act::HoldReply(Arc::clone(&gate))
            };
            proxy.forget();
            proxy.once(statement - 1, |_| true, act);
            let running = Arc::clone(&behind);
            let mut task = tokio::spawn(async move { run(&running, &["hourly"], &Quiet).await });
            tokio::select! {
                ended = &mut task => {
                    published(&ended??);
                    break;
                }
                held = gate.until_held(1, 0) => held?,
            }
            task.abort();
            killed += 1;
            gate.open(if trial.random.bool() { Then::Lose } else { Then::SendOn });
            is_whole(&world, &whole, &format!("killed at statement {statement}")).await?;
            if trial.random.bool() {
                for report in world.run(&["hourly"], &Quiet, &CancellationToken::new()).await {
                    let done = matches!(report.result, Outcome::Published | Outcome::NothingToDo);
                    ensure!(done, "after a death at statement {statement}: {report:?}");
                }
                is_whole(&world, &whole, "after the next run").await?;
            }
        }
        println!("killed {killed} times, the last at statement {statement}");
        ensure!(killed > 2, "only {killed} runs were killed");
        is_whole(&world, &whole, "at the end").await?;
        told(trial, &world);
        Ok(())
    })
}
