//! Collection: what is old goes, what is kept can be restored, and no answer moves, whatever is killed on the way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highwater_batch::collect::RowsGone;
use highwater_batch::list::State;
use highwater_batch::{Batch, Collected, list, rollback, show};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::proxy::{Act, Gate, Proxy, Then};
use shared_connections::store::{Origin, Published};
use shared_schemas::handoff::floor::PUBLICATIONS_LISTED;
use shared_schemas::handoff::{Publication, RunId};
use shared_schemas::store::statement::BELOW_FLOOR;
use shared_schemas::store::tables::{PROGRESS, PUBLICATIONS, RUN_REPORTS, RUNS, batch_table_name, speed_table_name};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, log};
use super::{on_engine, published};

/// Both partitions' logs end here, and so does what the speed layer has counted.
const END: u64 = 80;
pub(super) const NO_WAIT: &str = "[batch]\ncut_wait = \"0s\"\nkeep_publications = 2\ngc_wait = \"0s\"\n";

async fn world(server: &ClickHouse, more: &str) -> anyhow::Result<World> {
    let world = World::new(server, log(END), more).await?;
    for number in [0, 1] {
        world.speed(number, END, &BTreeSet::new()).await?;
    }
    Ok(world)
}

/// Archives another chunk of both partitions and publishes it.
pub(super) async fn publish_more(world: &World, chunks: u64) -> anyhow::Result<()> {
    let end = chunks * 8;
    world.archive([end, end], 1).await?;
    published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
    Ok(())
}

pub(super) async fn collect(world: &World) -> anyhow::Result<Collected> {
    let views = [world.view("hourly")];
    let mut reports = world
        .batch
        .collect(&views, true, &Quiet, &CancellationToken::new())
        .await?;
    Ok(reports.remove(0))
}

/// How many rows a table has, those that others replace too.
pub(super) async fn rows(world: &World, table: &str, condition: &str) -> anyhow::Result<u64> {
    let statement = shared_schemas::store::Statement {
        sql: format!(
            "SELECT count() FROM `{}`.`{table}` WHERE {condition}",
            world.batch.store.database()
        ),
        parameters: Vec::new(),
        settings: Vec::new(),
    };
    let answer = world.batch.store.answer(&statement, "TabSeparated").await?;
    Ok(String::from_utf8(answer.body.to_vec())?.trim().parse()?)
}

#[test]
fn what_is_old_goes_and_what_is_kept_can_be_restored() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = world(&server, NO_WAIT).await?;
        let (store, view) = (&world.batch.store, world.view("hourly"));
        for chunks in 1..=5 {
            publish_more(&world, chunks).await?;
        }
        let whole = world.truth([END, END]);
        assert_eq!(world.answer().await?, whole);

        // Publications 4 and 5 are kept: their marks are at offsets 32 and 40.
        let would = world.batch.collectable(&[view]).await.remove(0);
        assert_eq!((would.error.as_deref(), would.floor_before, would.floor), (None, 0, 4));
        let (speed, batch) = (speed_table_name(view), batch_table_name(view));
        let below = rows(&world, &speed, "_start < 32").await?;
        let (speed_before, batch_before) = (rows(&world, &speed, "1").await?, rows(&world, &batch, "1").await?);
        assert_eq!(would.rows.speed, below);
        assert_eq!(would.rows.progress, 8, "four chunks of each partition");
        assert!(would.rows.batch > 0 && would.bytes > 0, "{would:?}");
        assert_eq!(store.raised_floors(view).await?, [], "a dry run writes nothing");

        let did = collect(&world).await?;
        assert_eq!(did.error, None);
        assert_eq!((did.rows, did.runs, did.floor), (would.rows, would.runs, would.floor));
        assert_eq!(rows(&world, &speed, "1").await?, speed_before - below);
        assert_eq!(rows(&world, &speed, "_start < 32").await?, 0);
        assert_eq!(rows(&world, &batch, "1").await?, batch_before - would.rows.batch);
        let of_view = format!("fingerprint = '{}'", view.fingerprint);
        assert_eq!(rows(&world, PROGRESS, &format!("{of_view} AND _start < 32")).await?, 0);
        assert_eq!(world.answer().await?, whole);

        // Runs whose rows are gone are forgotten by the next one, which finds nothing else.
        let runs = rows(&world, RUNS, &of_view).await?;
        let again = collect(&world).await?;
        assert_eq!((again.rows, again.error), (RowsGone::default(), None));
        assert!(rows(&world, RUNS, &of_view).await? < runs);

        // Back to the oldest that is kept, forward again, and no further back.
        assert_eq!(rollback(store, view, None).await?.content, 4);
        assert_eq!(world.answer().await?, whole);
        let refused = rollback(store, view, Some(3)).await.unwrap_err().to_string();
        assert!(
            refused.starts_with("publication 3 of view `hourly` can't be restored: the floor is at publication 4."),
            "{refused}"
        );
        assert_eq!(rollback(store, view, Some(5)).await?.publication, 7);
        assert_eq!(world.answer().await?, whole);
        let let_go = list(store, view)
            .await?
            .iter()
            .filter(|one| one.state == State::LetGo)
            .count();
        assert_eq!(let_go, 3);

        // What a worker from before writes there again is swept the next time.
        world.speed(0, 16, &BTreeSet::new()).await?;
        assert!(rows(&world, &speed, "_start < 32").await? > 0);
        assert_eq!(world.answer().await?, whole);
        let swept = collect(&world).await?;
        assert!(swept.rows.speed > 0 && swept.rows.progress == 2, "{swept:?}");
        assert_eq!(rows(&world, &speed, "_start < 32").await?, 0);
        let floors = store.raised_floors(view).await?;
        assert_eq!(floors.len(), 1, "what a higher floor says too is not kept: {floors:?}");
        Ok(())
    })
}

/// Publications that can't be restored are shown for a while, and then their rows go too, with what their runs told.
#[test]
fn publications_that_nobody_can_need_are_forgotten() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = world(&server, NO_WAIT).await?;
        for chunks in 1..=3 {
            publish_more(&world, chunks).await?;
        }
        let (store, view) = (&world.batch.store, world.view("hourly"));
        let whole = world.truth([END, END]);
        // As many again as are listed: back and forth between what can be restored.
        let listed = u64::try_from(PUBLICATIONS_LISTED)?;
        let mut line: Vec<_> = store.publications(view).await?;
        for _ in 0..listed {
            let newest = line[line.len() - 1].publication.clone();
            let run = RunId(newest.run.0 + 1);
            let back = Publication::rollback(&newest, &line[line.len() - 2].publication, run);
            store.publish(view, &back, &Origin::default()).await?;
            line.push(Published {
                publication: back,
                at: 0,
                origin: Origin::default(),
            });
        }
        // A run goes on from there, until what the first runs published is below the floor.
        for chunks in 4..=6 {
            publish_more(&world, chunks).await?;
        }
        let of_view = format!("fingerprint = '{}'", view.fingerprint);
        let all = listed + 6;
        assert_eq!(rows(&world, PUBLICATIONS, &of_view).await?, all);
        assert_eq!(rows(&world, RUN_REPORTS, &of_view).await?, 6);

        let would = world.batch.collectable(&[view]).await.remove(0);
        assert_eq!(
            (would.error.as_deref(), would.rows.publications),
            (None, 6),
            "{would:?}"
        );
        assert_eq!(
            rows(&world, PUBLICATIONS, &of_view).await?,
            all,
            "a dry run deletes nothing"
        );
        let did = collect(&world).await?;
        assert_eq!((did.error.as_deref(), did.rows), (None, would.rows));
        assert_eq!(rows(&world, PUBLICATIONS, &of_view).await?, listed);
        assert_eq!(world.answer().await?, whole);
        let shown = list(store, view).await?;
        assert_eq!((shown.len(), shown[0].number, shown[99].number), (100, all, 7));

        // Their runs go first, then what these told. The second run's rows of a day are served still: what it told stays.
        let (mut reports, mut tries) = (0, 0);
        while reports < 2 && tries < 3 {
            reports += collect(&world).await?.rows.reports;
            tries += 1;
        }
        assert_eq!((reports, rows(&world, RUN_REPORTS, &of_view).await?), (2, 4));
        assert_eq!(collect(&world).await?.rows, RowsGone::default());

        // Who asks for one is told; what is kept can be restored.
        let refused = rollback(store, view, Some(2)).await.unwrap_err().to_string();
        let wanted = "publication 2 of view `hourly` can't be restored: its row is let go too.";
        assert!(refused.starts_with(wanted), "{refused}");
        let gone = show(store, view, Some(6)).await.unwrap_err().to_string();
        assert_eq!(gone, "publication 6 of view `hourly` is let go: its rows may be gone");
        assert!(
            show(store, view, Some(all))
                .await?
                .is_some_and(|shown| shown.report.is_some())
        );
        assert_eq!(rollback(store, view, None).await?.content, all - 1);
        assert_eq!(world.answer().await?, whole);

        // One that arrives once more is not taken for anything, and swept. And so is all of it after a run.
        store.publish(view, &line[0].publication, &Origin::default()).await?;
        assert_eq!(world.answer().await?, whole);
        world.batch.config.batch.keep_publications = 3;
        let view = world.view("hourly");
        let swept = world.batch.collect_what_is_old(&[view], &Quiet).await.remove(0);
        assert_eq!(
            (swept.error.as_deref(), swept.rows.publications),
            (None, 2),
            "{swept:?}"
        );
        assert_eq!(rows(&world, PUBLICATIONS, &of_view).await?, listed);
        assert_eq!(world.answer().await?, whole);
        Ok(())
    })
}

#[test]
fn a_run_collects_what_an_earlier_one_has_let_go_and_never_waits() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\ncut_wait = \"0s\"\nkeep_publications = 2\ngc_wait = \"1h\"\n";
        let mut world = world(&server, more).await?;
        for chunks in 1..=4 {
            publish_more(&world, chunks).await?;
        }
        let raised = world
            .batch
            .collect_what_is_old(&[world.view("hourly")], &Quiet)
            .await
            .remove(0);
        assert_eq!((raised.floor_before, raised.floor, raised.waits), (0, 3, true));
        assert_eq!(raised.rows.total(), 0, "its floor is an hour too young");
        let refused = rollback(&world.batch.store, world.view("hourly"), Some(2)).await;
        assert!(refused.is_err(), "the floor refuses at once");
        // An hour later.
        world.batch.config.batch.gc_wait = std::time::Duration::ZERO;
        let swept = world
            .batch
            .collect_what_is_old(&[world.view("hourly")], &Quiet)
            .await
            .remove(0);
        assert!(
            swept.rows.batch > 0 && swept.rows.speed > 0 && !swept.waits,
            "{swept:?}"
        );
        assert_eq!(world.answer().await?, world.truth([END, END]));
        Ok(())
    })
}

/// Fault 13: queries in a loop while runs publish, roll back, and collections delete.
#[test]
fn no_query_sees_another_total_across_publications_and_collections() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\ncut_wait = \"0s\"\nkeep_publications = 2\ngc_wait = \"2s\"\n";
        let world = world(&server, more).await?;
        let (store, view) = (&world.batch.store, world.view("hourly"));
        let whole = world.truth([END, END]);
        let (done, asked) = (AtomicBool::new(false), watch::Sender::new(0_u64));
        let changes = async {
            let mut gone = 0;
            for chunks in 1..=8 {
                publish_more(&world, chunks).await?;
                if chunks == 4 || chunks == 6 {
                    rollback(store, view, None).await?;
                    let back = list(store, view).await?[0].number - 1;
                    rollback(store, view, Some(back)).await?;
                }
                if chunks % 2 == 1 {
                    let collected = collect(&world).await?;
                    anyhow::ensure!(collected.error.is_none(), "{collected:?}");
                    gone += collected.rows.total();
                }
                // Between any two changes some are answered, however slow that is.
                asked.subscribe().wait_for(|asked| *asked > 7 * chunks).await?;
            }
            anyhow::Ok(gone)
        };
        let changes = async {
            let gone = changes.await;
            done.store(true, Ordering::Relaxed);
            gone
        };
        let asks = async {
            while !done.load(Ordering::Relaxed) {
                match world.answer().await {
                    Ok(answer) => anyhow::ensure!(answer == whole, "{answer:?} instead of {whole:?}"),
                    // Refused between its facts and its statement: it asks again.
                    Err(error) if error.to_string().contains(BELOW_FLOOR) => {}
                    Err(error) => return Err(error),
                }
                asked.send_modify(|asked| *asked += 1);
            }
            Ok(())
        };
        let (gone, ()) = tokio::try_join!(changes, asks)?;
        let asked = *asked.borrow();
        anyhow::ensure!(
            gone > 60 && asked > 50,
            "{gone} rows gone, {asked} queries: too few to mean anything"
        );
        Ok(())
    })
}

/// Ended between any two of its statements, with the one under way lost, done, or done after its end.
#[test]
fn a_collection_killed_at_any_statement_harms_nothing() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(400), NO_WAIT).await?;
        for number in [0, 1] {
            world.speed(number, 400, &BTreeSet::new()).await?;
        }
        let whole = world.truth([400, 400]);
        let (store, view) = (&world.batch.store, world.view("hourly"));
        let proxy = Proxy::of_statements(server.url())?;
        let config = world.batch.config.clone();
        let config = config.at("127.0.0.1:9", &proxy.url(), &world.archive_folder());
        let config = config.map_err(anyhow::Error::msg)?;
        let behind = Arc::new(Batch::new(config, world.batch.definitions.clone())?);
        let mut chunks = 3;
        for first in 1..=chunks {
            publish_more(&world, first).await?;
        }
        let mut killed = 0;
        for statement in 0.. {
            chunks += 1;
            publish_more(&world, chunks).await?;
            let gate = Gate::closed();
            let held = Arc::clone(&gate);
            let act = if statement % 2 == 0 {
                Act::Hold(held)
            } else {
                Act::HoldReply(held)
            };
            proxy.forget();
            proxy.once(statement, |_| true, act);
            let (collecting, hourly) = (Arc::clone(&behind), view.clone());
            let mut task = tokio::spawn(async move {
                collecting
                    .collect(&[&hourly], true, &Quiet, &CancellationToken::new())
                    .await
                    .map(|_| ())
            });
            tokio::select! {
                ended = &mut task => {
                    ended??;
                    break;
                }
                held = gate.until_held(1, 0) => held?,
            }
            task.abort();
            killed += 1;
            gate.open(if statement % 3 == 0 { Then::Lose } else { Then::SendOn });
            assert_eq!(world.answer().await?, whole, "killed at statement {statement}");
            let kept = list(store, view)
                .await?
                .iter()
                .filter(|one| one.state != State::LetGo)
                .count();
            assert!(kept >= 2, "killed at statement {statement}, {kept} can be restored");
            rollback(store, view, None).await?;
            assert_eq!(
                world.answer().await?,
                whole,
                "killed at statement {statement}, and rolled back"
            );
            rollback(store, view, Some(list(store, view).await?[0].number - 1)).await?;
        }
        anyhow::ensure!(killed > 10, "killed at {killed} statements only");
        let last = collect(&world).await?;
        assert_eq!(last.error, None);
        assert_eq!(world.answer().await?, whole);
        let floor = store.floor(view).await?;
        let lowest = floor.marks.values().map(|mark| mark.0.0).min().unwrap_or_default();
        assert!(lowest > 0);
        assert_eq!(
            rows(&world, &speed_table_name(view), &format!("_start < {lowest}")).await?,
            0
        );
        Ok(())
    })
}
