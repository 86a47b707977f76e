//! Batch runs on a real archive and the real engine: what is published, and what becomes of it when others interfere.

mod causes;
mod checks;
mod choosing;
mod collection;
mod commands;
mod ended;
mod excuses;
mod gaps;
mod many_cells;
mod reconciliation;
mod retention;
mod rivals;
mod timetable;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use highwater_batch::list::State;
use highwater_batch::{Outcome, Step, ViewReport, Watcher, list, rollback};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::stack::PATIENCE;
use shared_connections::store::Origin;
use shared_schemas::handoff::{Floor, Mark, Offset, Publication, PublicationNumber, RunId, Start};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use world::{Event, Quiet, World, files, log, partition};

fn published(reports: &[ViewReport]) -> Vec<(Option<u64>, usize, u64)> {
    for report in reports {
        assert_eq!(report.result, Outcome::Published, "{report:?}");
    }
    reports
        .iter()
        .map(|report| (report.publication, report.days, report.rows))
        .collect()
}

/// Runs on a runtime with threads of its own: DataFusion's tasks need them.
fn on_engine<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce(ClickHouse) -> F) -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(test(server))
}

#[test]
fn runs_make_the_answer_exact_day_by_day() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(40);
        // Repeats: in the same partition, in the other one, and of an event whose id is not whole.
        let again = |events: &[Event], offset: u64, partition: u32, at: u64| {
            let first = events
                .iter()
                .find(|event| event.partition == 0 && event.offset == offset)
                .cloned();
            Event {
                partition,
                offset: at,
                ..first.unwrap()
            }
        };
        let repeats = [
            again(&events, 3, 0, 26),
            again(&events, 4, 1, 33),
            again(&events, 2, 0, 19),
        ];
        events.retain(|event| {
            !repeats
                .iter()
                .any(|repeat| (repeat.partition, repeat.offset) == (event.partition, event.offset))
        });
        events.extend(repeats);
        let world = World::new(&server, events, "").await?;
        let cancel = CancellationToken::new();

        let reports = world.run(&[], &Quiet, &cancel).await;
        assert!(
            reports.iter().all(|report| report.result == Outcome::NothingToDo),
            "{reports:?}"
        );
        assert_eq!(reports[0].why.as_deref(), Some("nothing is archived yet"));

        world.archive([19, 9], 1).await?;
        let first = world.run(&[], &Quiet, &cancel).await;
        published(&first);
        assert_eq!(first[0].publication, Some(1));
        let marks: Vec<_> = first[0]
            .marks
            .iter()
            .map(|moved| (moved.partition, moved.from, moved.to))
            .collect();
        assert_eq!(
            marks,
            [(0, 0, 16), (1, 0, 8)],
            "chunk boundaries at or below the archive's ends"
        );
        assert_eq!(world.answer().await?, world.truth([16, 8]));

        let nothing = world.run(&[], &Quiet, &cancel).await;
        assert!(
            nothing.iter().all(|report| report.result == Outcome::NothingToDo),
            "{nothing:?}"
        );

        world.archive([40, 40], 1).await?;
        let second = world.run(&[], &Quiet, &cancel).await;
        published(&second);
        assert_eq!(second[0].publication, Some(2));
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        let newest = world.newest("hourly").await?;
        assert_eq!(
            newest.marks,
            BTreeMap::from([0, 1].map(|number| (partition(number), Mark(Offset(40)))))
        );
        Ok(())
    })
}

#[test]
fn a_run_to_the_end_leaves_nothing_above_its_marks() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        world.archive([19, 5], 1).await?;
        world.batch.to_end = true;
        let cancel = CancellationToken::new();
        published(&world.run(&[], &Quiet, &cancel).await);
        let newest = world.newest("hourly").await?;
        assert_eq!(newest.mark(partition(0)), Mark(Offset(19)));
        assert_eq!(newest.mark(partition(1)), Mark(Offset(5)));
        assert_eq!(world.answer().await?, world.truth([19, 5]));
        let again = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(again[0].why.as_deref(), Some("no mark moves: nothing more is archived"));
        Ok(())
    })
}

#[test]
fn clean_days_keep_their_run() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut events = log(24);
        // The second chunks hold events of one day only.
        for event in events.iter_mut().filter(|event| event.offset >= 16) {
            event.at = 7200;
        }
        let world = World::new(&server, events, "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        world.run(&["hourly"], &Quiet, &cancel).await;
        let first = world.newest("hourly").await?;
        world.archive([24, 24], 1).await?;
        let reports = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(reports[0].days, 1, "{reports:?}");
        assert_eq!(
            (&reports[0].first_day, &reports[0].last_day),
            (&Some("2013-10-31".to_owned()), &Some("2013-10-31".to_owned()))
        );
        let second = world.newest("hourly").await?;
        let (dirty, clean): (Vec<_>, Vec<_>) = second.days.iter().partition(|(_, run)| **run == second.run);
        assert_eq!(dirty.len(), 1);
        assert!(
            !clean.is_empty() && clean.iter().all(|(_, run)| **run == first.run),
            "{second:?}"
        );
        assert_eq!(world.answer().await?, world.truth([24, 24]));
        Ok(())
    })
}

/// Is told when a run comes to wait for its cuts, and calls for whoever answers them.
#[derive(Default)]
struct AtTheCut {
    waits: Notify,
    steps: Mutex<Vec<Step>>,
}

impl Watcher for AtTheCut {
    fn step(&self, _: &str, step: &Step) {
        self.steps.lock().unwrap().push(step.clone());
        if matches!(step, Step::Waits { .. }) {
            self.waits.notify_one();
        }
    }
}

#[test]
fn a_cut_is_published_when_the_speed_layer_has_caught_up() -> anyhow::Result<()> {
    on_engine(|server| async move {
        // Records two minutes apart: a chunk boundary would leave more than a minute of them.
        let world = World::new(&server, log(40), "[batch]\ncut_wait = \"60s\"\n").await?;
        let cancel = CancellationToken::new();
        world.archive([21, 11], 120).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 38, &uncut).await?;
        world.speed(1, 30, &uncut).await?;
        let at_the_cut = AtTheCut::default();
        let worker = async {
            at_the_cut.waits.notified().await;
            let facts = world.batch.store.facts(world.view("hourly")).await?;
            for number in [0, 1] {
                let cuts = facts.wanted_cuts(partition(number));
                assert_eq!(cuts, BTreeSet::from([Start(Offset([21, 11][number as usize]))]));
                world.speed(number, [38, 30][number as usize], &cuts).await?;
            }
            anyhow::Ok(())
        };
        let (reports, worked) = tokio::join!(world.run(&["hourly"], &at_the_cut, &cancel), worker);
        worked?;
        published(&reports);
        assert_eq!(reports[0].fell_back, 0);
        let compared = reports[0].checks.iter().find(|check| check.name == "speed");
        let compared = compared.map(|check| check.says.as_str()).unwrap_or_default();
        assert!(
            compared.starts_with("the speed layer counted the same on all")
                && compared.ends_with("8 offsets in chunks that it has not counted whole, or that a mark divides"),
            "{compared}"
        );
        let newest = world.newest("hourly").await?;
        let marks = [(partition(0), Mark(Offset(21))), (partition(1), Mark(Offset(11)))];
        assert_eq!(newest.marks, BTreeMap::from(marks));
        assert_eq!(
            world.answer().await?,
            world.truth([38, 30]),
            "batch below the cuts, speed from there on"
        );
        let facts = world.batch.store.facts(world.view("hourly")).await?;
        assert!(
            facts.cuts.iter().all(|cut| !cut.withdrawn),
            "a published cut is a mark: {:?}",
            facts.cuts
        );
        Ok(())
    })
}

#[test]
fn a_run_falls_back_where_the_speed_layer_does_not_come() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "[batch]\ncut_wait = \"1s\"\n").await?;
        let cancel = CancellationToken::new();
        world.archive([21, 11], 120).await?;
        let uncut = BTreeSet::new();
        world.speed(0, 38, &uncut).await?;
        world.speed(1, 30, &uncut).await?;
        let at_the_cut = AtTheCut::default();
        let reports = world.run(&["hourly"], &at_the_cut, &cancel).await;
        published(&reports);
        assert_eq!(reports[0].fell_back, 2);
        let newest = world.newest("hourly").await?;
        let marks = [(partition(0), Mark(Offset(16))), (partition(1), Mark(Offset(8)))];
        assert_eq!(newest.marks, BTreeMap::from(marks));
        assert_eq!(world.answer().await?, world.truth([38, 30]));
        let runs: BTreeSet<_> = at_the_cut
            .steps
            .lock()
            .unwrap()
            .iter()
            .filter_map(|step| {
                if let Step::Chosen { run, .. } = step {
                    Some(*run)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(runs.len(), 2, "the second computation has an id of its own");
        assert!(newest.days.values().all(|run| *run == newest.run));
        let facts = world.batch.store.facts(world.view("hourly")).await?;
        assert!(
            facts.cuts.len() == 2 && facts.cuts.iter().all(|cut| cut.withdrawn),
            "{:?}",
            facts.cuts
        );
        Ok(())
    })
}

#[test]
fn a_cancelled_run_withdraws_its_cuts_and_publishes_nothing() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([21, 11], 120).await?;
        let at_the_cut = AtTheCut::default();
        let stop = async {
            at_the_cut.waits.notified().await;
            cancel.cancel();
        };
        let (reports, ()) = tokio::join!(world.run(&["hourly"], &at_the_cut, &cancel), stop);
        assert_eq!(reports[0].result, Outcome::Failed);
        assert_eq!(reports[0].why.as_deref(), Some("cancelled: nothing was published"));
        let facts = world.batch.store.facts(world.view("hourly")).await?;
        assert!(facts.publications.is_empty());
        assert!(
            facts.cuts.len() == 2 && facts.cuts.iter().all(|cut| cut.withdrawn),
            "{:?}",
            facts.cuts
        );
        // The next one goes on as if nothing had been.
        let reports = world.run(&["hourly"], &Quiet, &CancellationToken::new()).await;
        published(&reports);
        assert_eq!(world.answer().await?, world.truth([21, 11]));
        Ok(())
    })
}

#[test]
fn a_run_that_finds_another_publication_begins_anew() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([21, 11], 120).await?;
        let at_the_cut = AtTheCut::default();
        let rival = async {
            at_the_cut.waits.notified().await;
            let marks = BTreeMap::from([(partition(0), Mark(Offset(0)))]);
            let publication = Publication::of_run(None, RunId(5), marks, &BTreeMap::new(), &BTreeSet::new());
            let view = world.view("hourly");
            world.batch.store.publish(view, &publication, &Origin::default()).await
        };
        let (reports, rival) = tokio::join!(world.run(&["hourly"], &at_the_cut, &cancel), rival);
        rival?;
        published(&reports);
        assert!(at_the_cut.steps.lock().unwrap().contains(&Step::StartsOver));
        let newest = world.newest("hourly").await?;
        assert_eq!(
            (newest.number, newest.parent),
            (PublicationNumber(2), Some((PublicationNumber(1), RunId(5))))
        );
        assert_eq!(world.answer().await?, world.truth([21, 11]));
        Ok(())
    })
}

#[test]
fn a_damaged_file_stops_its_view_and_is_named() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        world.archive([16, 16], 1).await?;
        published(&world.run(&[], &Quiet, &cancel).await);
        let before = world.answer().await?;
        let old = files(&world.archive_folder());
        world.archive([40, 40], 1).await?;
        let parquet = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
        let damaged = files(&world.archive_folder())
            .into_iter()
            .find(|path| parquet(path) && !old.contains(path))
            .unwrap();
        let bytes = std::fs::read(&damaged)?;
        std::fs::write(&damaged, &bytes[..bytes.len() / 2])?;
        let reports = world.run(&[], &Quiet, &cancel).await;
        let name = damaged.file_name().unwrap().to_str().unwrap();
        for report in &reports {
            assert_eq!(report.result, Outcome::Failed);
            assert!(report.why.as_ref().unwrap().contains(name), "{report:?}");
        }
        assert_eq!(world.answer().await?, before, "the old publication stands");
        std::fs::write(&damaged, &bytes)?;
        published(&world.run(&[], &Quiet, &cancel).await);
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        Ok(())
    })
}

#[test]
fn a_rollback_brings_back_and_forward_again() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        let (store, view) = (&world.batch.store, world.view("hourly"));
        let nothing = rollback(store, view, None).await.unwrap_err().to_string();
        assert_eq!(nothing, "view `hourly` has no publication");
        for ends in [[8, 8], [16, 8], [40, 40]] {
            world.archive(ends, 1).await?;
            published(&world.run(&["hourly"], &Quiet, &cancel).await);
        }
        let back = rollback(store, view, None).await?;
        assert_eq!(
            (back.published, back.publication, back.content, back.before),
            (true, 4, 2, 3)
        );
        assert_eq!(world.answer().await?, world.truth([16, 8]));
        let back = rollback(store, view, None).await?;
        assert_eq!(
            (back.publication, back.content, back.content_before),
            (5, 1, 2),
            "one step further"
        );
        assert_eq!(world.answer().await?, world.truth([8, 8]));
        let first = rollback(store, view, None).await.unwrap_err().to_string();
        assert_eq!(first, "view `hourly` has no publication before 1, which answers");

        let forward = rollback(store, view, Some(3)).await?;
        assert_eq!((forward.publication, forward.content), (6, 3));
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        assert!(!rollback(store, view, Some(3)).await?.published, "it answers already");

        let states: Vec<_> = list(store, view)
            .await?
            .iter()
            .map(|one| (one.number, one.content, one.state))
            .collect();
        let expected = [
            (6, 3, State::Newest),
            (5, 1, State::Succeeded),
            (4, 2, State::Succeeded),
            (3, 3, State::Succeeded),
            (2, 2, State::Succeeded),
            (1, 1, State::Succeeded),
        ];
        assert_eq!(states, expected);

        store
            .raise_floor(
                view,
                &Floor {
                    number: PublicationNumber(2),
                    ..Floor::default()
                },
            )
            .await?;
        let refused = rollback(store, view, Some(1)).await.unwrap_err().to_string();
        assert!(
            refused.starts_with("publication 1 of view `hourly` can't be restored: the floor is at publication 2."),
            "{refused}"
        );
        let refused = rollback(store, view, Some(5)).await.unwrap_err().to_string();
        assert!(
            refused.contains("can't be restored"),
            "its content is let go: {refused}"
        );
        let unknown = rollback(store, view, Some(9)).await.unwrap_err().to_string();
        assert!(unknown.starts_with("view `hourly` has no publication 9:"), "{unknown}");
        // A run builds on what answers.
        world.archive([40, 48], 1).await?;
        let reports = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(published(&reports)[0].0, Some(7));
        Ok(())
    })
}

#[test]
fn scheduled_runs_publish_by_themselves_until_cancelled() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let world = World::new(&server, log(40), "[batch]\nschedule = \"* * * * * *\"\n").await?;
        let cancel = CancellationToken::new();
        world.archive([8, 8], 1).await?;
        let at_the_end = Published(Semaphore::new(0));
        let more = async {
            // All three views.
            at_the_end.0.acquire_many(3).await?.forget();
            world.archive([40, 40], 1).await?;
            at_the_end.0.acquire_many(3).await?.forget();
            cancel.cancel();
            anyhow::Ok(())
        };
        let both = async { tokio::join!(more, world.batch.schedule(&at_the_end, &cancel)) };
        let (more, ()) = tokio::time::timeout(PATIENCE, both).await?;
        more?;
        assert_eq!(world.newest("hourly").await?.number, PublicationNumber(2));
        assert_eq!(world.answer().await?, world.truth([40, 40]));
        Ok(())
    })
}

/// Is told of each publication: a permit for each.
struct Published(Semaphore);

impl Watcher for Published {
    fn step(&self, _: &str, step: &Step) {
        if matches!(step, Step::Published { .. }) {
            self.0.add_permits(1);
        }
    }
}
