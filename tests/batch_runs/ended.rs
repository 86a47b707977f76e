//! Runs, and the schedule of runs, as processes that end early: killed at each stage of a run, or told to end.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use chrono::{TimeDelta, Utc};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::proxy::{Act, Gate, Proxy, Then, inserts_into};
use highwater_tests::stack::{PATIENCE, highwater_in, said_in, signal};
use shared_connections::store::Timetable;
use shared_schemas::store::tables::{CUTS, PUBLICATIONS, RUN_REPORTS, RUNS, batch_table_name, speed_table_name};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

use super::commands::{QUICK, of};
use super::on_engine;
use super::world::{World, log};

const RUN: [&str; 4] = ["batch", "run", "--view", "hourly"];

/// What becomes of the statement at which a run is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives after the run's death.
    Late,
    /// It was done before.
    Done,
}

/// A stage of a run.
struct Stage {
    name: &'static str,
    /// Which statement is the first of it.
    is_first: Box<dyn Fn(&str) -> bool + Send>,
    fate: Fate,
    /// Whether the new publication answers all the same.
    answers: bool,
}

fn inserts(table: &str) -> Box<dyn Fn(&str) -> bool + Send> {
    Box::new(inserts_into(table))
}

fn stages(world: &World) -> Vec<Stage> {
    let view = world.view("hourly");
    let reads = |table: String| {
        // Those that make sure of tables are no part of a run.
        let others = ["INSERT ", "CREATE ", "system."];
        move |statement: &str| {
            statement.contains(&format!("`{table}`")) && !others.iter().any(|other| statement.contains(other))
        }
    };
    let rows = batch_table_name(view);
    let sent = AtomicBool::new(false);
    let (is_sent, reads_back) = (inserts_into(PUBLICATIONS), reads(PUBLICATIONS.to_owned()));
    let reads_back = move |statement: &str| {
        sent.fetch_or(is_sent(statement), Ordering::Relaxed);
        sent.load(Ordering::Relaxed) && reads_back(statement)
    };
    let stage = |name, is_first: Box<dyn Fn(&str) -> bool + Send>, fate, answers| Stage {
        name,
        is_first,
        fate,
        answers,
    };
    vec![
        stage("begun", inserts(RUNS), Fate::Done, false),
        stage("cuts asked for", inserts(CUTS), Fate::Done, false),
        stage("rows lost", inserts(&rows), Fate::Lost, false),
        stage("rows late", inserts(&rows), Fate::Late, false),
        stage("counted", Box::new(reads(rows)), Fate::Done, false),
        stage("checked", Box::new(reads(speed_table_name(view))), Fate::Done, false),
        stage("publication lost", inserts(PUBLICATIONS), Fate::Lost, false),
        stage("publication late", inserts(PUBLICATIONS), Fate::Late, true),
        stage("read back", Box::new(reads_back), Fate::Lost, true),
        stage("told", inserts(RUN_REPORTS), Fate::Lost, true),
    ]
}

#[test]
fn a_run_killed_at_any_stage_leaves_the_old_answer_or_the_whole_new_one() -> anyhow::Result<()> {
    on_engine(|server| async move { killed(&server).await })
}

async fn killed(server: &ClickHouse) -> anyhow::Result<()> {
    let world = World::new(server, log(160), QUICK).await?;
    for number in [0, 1] {
        world.speed(number, 160, &BTreeSet::new()).await?;
    }
    let whole = world.truth([160, 160]);
    let proxy = Proxy::of_statements(server.url())?;
    let site = world.site(&proxy.url(), QUICK)?;
    world.archive([8, 8], 1).await?;
    let (code, told, stderr) = said_in(&site, &RUN).await?;
    ensure!(code == Some(0), "{told} {stderr}");
    let mut end = 8;
    for Stage {
        name,
        is_first,
        fate,
        answers,
    } in stages(&world)
    {
        let before = world.newest("hourly").await?.number.0;
        // Records that are minutes apart are worth a cut.
        let cuts = name == "cuts asked for";
        let (upto, apart) = if cuts { (end + 11, 120) } else { (end + 8, 1) };
        world.archive([upto, upto], apart).await?;
        end += 8;
        let gate = Gate::closed();
        let act = match fate {
            Fate::Lost | Fate::Late => Act::Hold(gate.clone()),
            Fate::Done => Act::HoldReply(gate.clone()),
        };
        proxy.once(0, is_first, act);
        let mut run = highwater_in(&site, &RUN)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        tokio::select! {
            ended = run.wait() => anyhow::bail!("{name}: never came there, {}", ended?),
            held = gate.until_held(1, 0) => held?,
        }
        run.start_kill()?;
        run.wait().await?;
        match fate {
            Fate::Late => {
                gate.open(Then::SendOn);
                gate.until_done(1).await?;
            }
            Fate::Lost | Fate::Done => gate.open(Then::Lose),
        }
        proxy.forget();
        let newest = world.newest("hourly").await?.number.0;
        ensure!(newest == before + u64::from(answers), "{name}: {newest} after {before}");
        ensure!(world.answer().await? == whole, "{name}: the answer moved");
        let facts = world.batch.store.facts(world.view("hourly")).await?;
        ensure!(
            !cuts || facts.cuts.iter().any(|cut| !cut.withdrawn),
            "{name}: {:?}",
            facts.cuts
        );

        let (code, told, stderr) = said_in(&site, &RUN).await?;
        let result = if answers { "nothing_to_do" } else { "published" };
        ensure!(
            code == Some(0) && of(&told, "hourly")["result"] == result,
            "{name}: {told} {stderr}"
        );
        let newest = world.newest("hourly").await?;
        ensure!(newest.number.0 == before + 1, "{name}: {newest:?}");
        ensure!(newest.marks.values().all(|mark| mark.0.0 == end), "{name}: {newest:?}");
        ensure!(world.answer().await? == whole, "{name}: the next run moved the answer");
    }
    Ok(())
}

/// `highwater batch schedule`, and what it says.
struct Scheduled {
    process: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Scheduled {
    fn start(site: &std::path::Path) -> anyhow::Result<Self> {
        let mut process = highwater_in(site, &["batch", "schedule"])?
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = process.stderr.take().context("no stderr")?;
        let lines = BufReader::new(stderr).lines();
        Ok(Self { process, lines })
    }

    /// What stands behind these words in the next line that has them.
    async fn says(&mut self, words: &str) -> anyhow::Result<String> {
        let found = async {
            while let Some(line) = self.lines.next_line().await? {
                if let Some((_, rest)) = line.split_once(words) {
                    return Ok(rest.trim().to_owned());
                }
            }
            anyhow::bail!("it ended without saying {words:?}")
        };
        tokio::time::timeout(PATIENCE, found).await?
    }

    /// Tells it to end; its exit code.
    async fn end(mut self) -> anyhow::Result<Option<i32>> {
        signal(self.process.id().context("it has ended")?, "TERM")?;
        // Its last words have to go somewhere.
        let ended = async {
            while self.lines.next_line().await?.is_some() {}
            anyhow::Ok(self.process.wait().await?.code())
        };
        tokio::time::timeout(PATIENCE, ended).await?
    }
}

/// Between runs, and in the middle of one; what was left by then the next one does at once.
#[test]
fn a_schedule_that_is_told_to_end_ends_cleanly() -> anyhow::Result<()> {
    on_engine(|server| async move {
        // Half a day away: no start comes while this goes on.
        let hour = (Utc::now() + TimeDelta::hours(12)).format("%-H");
        let more = &format!("[batch]\nschedule = \"0 {hour} * * *\"\ncut_wait = \"0s\"\n");
        let world = World::new(&server, log(40), more).await?;
        let store = &world.batch.store;
        let proxy = Proxy::of_statements(server.url())?;
        let site = world.site(&proxy.url(), more)?;
        let missed = Timetable {
            next: Utc::now().timestamp() - 3600,
            ..Timetable::default()
        };
        let timetable = async || store.timetable().await?.context("nothing is told");

        // A start was missed: a run at once, and then it waits.
        world.archive([8, 8], 1).await?;
        store.record_timetable(&missed).await?;
        let mut first = Scheduled::start(&site)?;
        let address = first.says("metrics at ").await?;
        first.says("next batch run at ").await?;
        first.says("next batch run at ").await?;
        let metrics = reqwest::get(&address).await?.text().await?;
        let value = |name: &str| -> Option<f64> {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        assert_eq!(
            value(r#"highwater_batch_runs_total{view="hourly",result="published"}"#),
            Some(1.0),
            "{metrics}"
        );
        assert_eq!(
            value(r#"highwater_batch_mark{view="hourly",partition="0"}"#),
            Some(8.0),
            "{metrics}"
        );
        assert_eq!(value("highwater_batch_schedule_failures"), Some(0.0), "{metrics}");
        assert_eq!(
            value(r#"highwater_batch_run_seconds_count{view="hourly"}"#),
            Some(1.0),
            "{metrics}"
        );
        let (next, success) = (
            value("highwater_batch_schedule_next_timestamp").context("no next run")?,
            value("highwater_batch_schedule_success_timestamp").context("no success")?,
        );
        let published = value(r#"highwater_batch_published_timestamp{view="hourly"}"#).context("nothing published")?;
        assert!(published <= success && success < next, "{metrics}");
        assert_eq!(first.end().await?, Some(0), "between runs");
        let told = timetable().await?;
        assert!(
            told.ended && told.next > missed.next && told.succeeded.is_some(),
            "{told:?}"
        );
        assert_eq!(world.newest("hourly").await?.number.0, 1);

        // In the middle of a run: it is given up, and nothing is published.
        world.archive([16, 16], 1).await?;
        store.record_timetable(&missed).await?;
        let gate = Gate::closed();
        let rows = inserts_into(&batch_table_name(world.view("hourly")));
        proxy.once(0, rows, Act::Hold(gate.clone()));
        let second = Scheduled::start(&site)?;
        gate.until_held(1, 0).await?;
        assert_eq!(second.end().await?, Some(0), "in the middle of a run");
        gate.open(Then::SendOn);
        let told = timetable().await?;
        assert!(
            told.ended && told.failures == 0,
            "to be told to end is no failure: {told:?}"
        );
        assert_eq!(world.newest("hourly").await?.number.0, 1);
        assert_eq!(world.answer().await?, world.truth([8, 8]));

        let mut third = Scheduled::start(&site)?;
        third.says("a start was missed").await?;
        third.says("next batch run at ").await?;
        assert_eq!(world.newest("hourly").await?.number.0, 2);
        assert_eq!(world.answer().await?, world.truth([16, 16]));
        assert_eq!(third.end().await?, Some(0));
        Ok(())
    })
}
