//! What a run computes is what was asked for, said before and shown afterwards.

use anyhow::Context;
use highwater_batch::diff::Changed;
use highwater_batch::{Outcome, Planned, Scope, ViewReport, diff, list, show};
use shared_schemas::handoff::{EventDay, Mark, Offset, RunId};
use shared_schemas::store::compared::cells_of_day;
use shared_schemas::store::tables::batch_table_name;
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use super::world::{Quiet, World, log, partition};
use super::{on_engine, published};

async fn plan(world: &World, view: &str) -> anyhow::Result<Planned> {
    let view: &View = world.view(view);
    let planned = world.batch.plan(&[(view, world.dataset())]).await;
    let planned = planned.into_iter().next().expect("one view");
    planned.map_err(anyhow::Error::msg)
}

fn marks(planned: &Planned) -> Vec<(u64, u64)> {
    planned.marks.iter().map(|moved| (moved.from, moved.to)).collect()
}

#[test]
fn what_a_run_would_do_it_does() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(40), "").await?;
        let cancel = CancellationToken::new();
        assert_eq!(plan(&world, "hourly").await?.why, "nothing is archived yet");
        world.archive([16, 16], 1).await?;
        let first = plan(&world, "hourly").await?;
        assert!(first.computes && first.why.contains("first publication"), "{first:?}");
        assert_eq!((marks(&first), first.publication), (vec![(0, 16), (0, 16)], None));
        assert_eq!(first.days, ["2013-10-31", "2013-11-01"]);
        let reports = world.run(&[], &Quiet, &cancel).await;
        published(&reports);
        for report in &reports {
            assert_eq!(
                (report.together, report.read),
                (3, first.events),
                "from one reading: {report:?}"
            );
            assert_eq!(report.days, first.days.len());
            assert!(
                report.checks.iter().all(|check| check.holds) && report.checks.len() == 3,
                "{report:?}"
            );
        }
        let kinds = &reports[2];
        assert!(kinds.counted <= kinds.read - kinds.repeats, "{kinds:?}");
        let idle = plan(&world, "hourly").await?;
        assert!(!idle.computes && idle.days.is_empty(), "{idle:?}");

        // Chosen days are computed at the published marks, whatever is archived above them.
        world.archive([24, 24], 1).await?;
        world.batch.scope = Scope::Days(vec!["2013-11-01".parse().map_err(anyhow::Error::msg)?]);
        let chosen = plan(&world, "hourly").await?;
        assert_eq!(
            (marks(&chosen), &chosen.days[..]),
            (vec![(16, 16), (16, 16)], &["2013-11-01".to_owned()][..])
        );
        let again = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(published(&again)[0].0, Some(2));
        let newest = world.newest("hourly").await?;
        assert_eq!(newest.mark(partition(0)), Mark(Offset(16)));
        assert_eq!(newest.days.values().filter(|run| **run == newest.run).count(), 1);
        assert_eq!(world.answer().await?, world.truth([16, 16]));
        assert_eq!(
            again[0].checks.len(),
            5,
            "compared with the publication before: {again:?}"
        );

        world.batch.scope = Scope::Days(vec!["2014-01-01..2014-01-02".parse().map_err(anyhow::Error::msg)?]);
        let none = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(none[0].result, Outcome::NothingToDo, "{none:?}");

        // And then all there is.
        world.batch.scope = Scope::Full;
        let full = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(published(&full)[0].0, Some(3));
        let newest = world.newest("hourly").await?;
        assert!(newest.days.values().all(|run| *run == newest.run), "{newest:?}");
        assert_eq!(world.answer().await?, world.truth([24, 24]));
        let once_more = world.run(&["hourly"], &Quiet, &cancel).await;
        assert_eq!(published(&once_more)[0].0, Some(4), "also where no mark moves");
        looked_back(&world, &full[0]).await
    })
}

/// Publication 2 has the marks 16, publication 3 has 24, and 4 is the same again.
async fn looked_back(world: &World, third: &ViewReport) -> anyhow::Result<()> {
    let (store, view) = (&world.batch.store, world.view("hourly"));
    let shown = show(store, view, Some(3)).await?.expect("it is there");
    assert_eq!(shown.listed.number, 3);
    let report = shown.report.expect("its run told");
    assert_eq!(report, serde_json::to_value(third)?);
    assert_eq!(show(store, view, None).await?.map(|shown| shown.listed.number), Some(4));
    let unknown = show(store, view, Some(9)).await.unwrap_err().to_string();
    assert!(unknown.contains("has no publication 9"), "{unknown}");

    let same = diff(store, view, 3, 4).await?;
    assert_eq!((same.same_days, same.equal_days), (0, 2), "computed again: {same:?}");
    assert!(same.days.is_empty() && same.cells.is_empty(), "{same:?}");
    let other = diff(store, view, 2, 3).await?;
    assert!(!other.days.is_empty() && !other.cells.is_empty(), "{other:?}");
    let flights = other.days.iter().flat_map(|day| &day.columns);
    let flights: Vec<_> = flights.filter(|column| column.column == "flights__count").collect();
    let total = |of: fn(&Changed) -> &Option<String>| -> u64 {
        flights
            .iter()
            .filter_map(|column| of(column).as_ref()?.parse::<u64>().ok())
            .sum()
    };
    assert!(total(|column| &column.to) > total(|column| &column.from), "{other:?}");
    let cell = &other.cells[0];
    assert!(
        cell.cell.contains_key("_window") && cell.cell.contains_key("carrier"),
        "{cell:?}"
    );
    assert!(cell.columns.iter().any(|column| column.from != column.to), "{cell:?}");
    Ok(())
}

/// The cells of a view with sets and sketches, compared in the order of their keys, nulls among them: what the oracle here finds in the
/// rows of both runs, in that order, and no more than is shown.
#[test]
fn a_diff_of_sets_finds_the_first_cells_that_differ() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(160), "[batch]\ncut_wait = \"0s\"\n").await?;
        let cancel = CancellationToken::new();
        world.archive([80, 80], 1).await?;
        published(&world.run(&["kinds"], &Quiet, &cancel).await);
        world.batch.scope = Scope::Full;
        published(&world.run(&["kinds"], &Quiet, &cancel).await);
        let second = world.newest("kinds").await?;
        world.archive([160, 160], 1).await?;
        published(&world.run(&["kinds"], &Quiet, &cancel).await);
        let (store, view) = (&world.batch.store, world.view("kinds"));

        let same = diff(store, view, 1, 2).await?;
        assert_eq!((same.same_days, same.equal_days, same.cells), (0, 2, Vec::new()));
        let more = diff(store, view, 2, 3).await?;
        assert_eq!(more.cells.len(), 20);
        let back = diff(store, view, 3, 2).await?;
        for (one, other) in more.cells.iter().zip(&back.cells) {
            assert_eq!(one.cell, other.cell);
            for (there, again) in one.columns.iter().zip(&other.columns) {
                assert_eq!((&there.from, &there.to), (&again.to, &again.from));
            }
        }

        // Each event is a cell of its own: those of publication 3 alone are what differs.
        let newest = world.newest("kinds").await?;
        let (first, run) = newest.days.iter().next().context("no day")?;
        let other = &second.days[first];
        let key = |cell: &std::collections::BTreeMap<String, String>| {
            ["_window", "day", "late", "flight"].map(|name| cell[name].clone())
        };
        let held = |number: u64| async move {
            let publications = list(store, view).await?;
            let one = publications
                .iter()
                .find(|one| one.number == number)
                .context("it is listed")?;
            let run = u128::from_str_radix(&one.run, 16)?;
            let statement = cells_of_day(store.database(), view, *first, RunId(run), None);
            let lines = store.answer(&statement, "JSONCompactEachRow").await?.body;
            let lines = String::from_utf8(lines.to_vec())?;
            let keys = lines
                .lines()
                .map(|line| Ok(serde_json::from_str::<Vec<serde_json::Value>>(line)?[0].to_string()));
            keys.collect::<anyhow::Result<Vec<_>>>()
        };
        let (before, after) = (held(2).await?, held(3).await?);
        assert!(
            before.len() < after.len() && after.iter().any(|key| key.contains("null")),
            "{after:?}"
        );
        let expected = after.iter().filter(|key| !before.contains(key));
        let expected: Vec<_> = expected.take(20).cloned().collect();
        let found = more
            .cells
            .iter()
            .map(|cell| serde_json::json!(key(&cell.cell)).to_string());
        assert_eq!(found.collect::<Vec<_>>(), expected);
        let column = |name: &str| more.cells[0].columns.iter().find(|column| column.column == name);
        let fares = column("fares__sketch").or_else(|| column("carriers__sketch"));
        assert!(
            fares.is_some_and(|column| column.from.is_none() && column.to.is_some()),
            "{more:?}"
        );

        // The server reads on as it is read: it sorts nothing.
        let mut plan = cells_of_day(store.database(), view, *first, *run, Some(*other));
        plan.sql = format!("EXPLAIN actions = 1 {}", plan.sql);
        let plan = String::from_utf8(store.answer(&plan, "TabSeparatedRaw").await?.body.to_vec())?;
        assert!(
            plan.contains("ReadType: InOrder") && plan.contains("Prefix sort description"),
            "{plan}"
        );
        Ok(())
    })
}

/// How many lines of a day either side of two runs is sent for a comparison.
async fn sent(world: &World, view: &View, day: EventDay, runs: [RunId; 2]) -> anyhow::Result<[usize; 2]> {
    let store = &world.batch.store;
    let mut sent = [0; 2];
    for (sent, (run, beside)) in sent.iter_mut().zip([(runs[0], runs[1]), (runs[1], runs[0])]) {
        let statement = cells_of_day(store.database(), view, day, run, Some(beside));
        let lines = store.answer(&statement, "JSONCompactEachRow").await?.body;
        *sent = lines.iter().filter(|byte| **byte == b'\n').count();
    }
    Ok(sent)
}

/// Of two runs' cells the server sends those that are not equal byte by byte, whatever differs: nothing where nothing does. What is
/// only written otherwise is sent, and does not differ.
#[test]
fn a_diff_is_sent_what_may_differ() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let mut world = World::new(&server, log(160), "[batch]\ncut_wait = \"0s\"\n").await?;
        let cancel = CancellationToken::new();
        world.archive([160, 160], 1).await?;
        published(&world.run(&["kinds"], &Quiet, &cancel).await);
        let before = world.newest("kinds").await?;
        world.batch.scope = Scope::Full;
        published(&world.run(&["kinds"], &Quiet, &cancel).await);
        let (store, view) = (&world.batch.store, world.view("kinds"));
        let newest = world.newest("kinds").await?;
        for (day, run) in &newest.days {
            assert_eq!(sent(&world, view, *day, [before.days[day], *run]).await?, [0, 0]);
        }

        let (day, run) = newest.days.iter().next().context("no day")?;
        let (day, runs) = (*day, [before.days[day], *run]);
        let table = format!("`{}`.`{}`", store.database(), batch_table_name(view));
        let flights = cells_of_day(store.database(), view, day, runs[0], None);
        let flights = String::from_utf8(store.answer(&flights, "JSONCompactEachRow").await?.body.to_vec())?;
        let flights = flights
            .lines()
            .map(|line| Ok(serde_json::from_str::<Vec<serde_json::Value>>(line)?[1][3].to_string()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut flights = flights.into_iter();
        let change = async |run: usize, set: &str, flight: &str| {
            let sql = format!(
                "ALTER TABLE {table} {set} WHERE _run = toUInt128('{}') AND flight = {flight} SETTINGS mutations_sync = 2",
                runs[run].0
            );
            store.execute("change a row", &sql).await
        };
        let mut differing = 0;
        for (measure, set) in [
            ("flights", "UPDATE flights__count = flights__count + 1"),
            // The totals of the day are as before.
            ("flights", "UPDATE flights__count = flights__count - 1"),
            ("shortest", "UPDATE shortest__min = ifNull(shortest__min, 0) + 1"),
            (
                "carriers",
                "UPDATE carriers__sketch = arrayReduce('uniqState', [toUInt64(9)])",
            ),
            (
                "carriers",
                "UPDATE carriers__exact = arrayReduce('uniqExactState', [toUInt128(9)])",
            ),
            (
                "delay_q",
                "UPDATE delay_q__sketch = arrayReduce('quantilesDDState(0.01, 0.5, 0.95)', [7.5])",
            ),
            ("", "DELETE"),
        ] {
            let flight = flights.next().context("a row for each change")?;
            change(1, set, &flight).await?;
            differing += 1;
            let found = diff(store, view, 1, 2).await?;
            assert_eq!(found.cells.len(), differing, "{set}: {found:?}");
            let cell = found.cells.iter().find(|cell| cell.cell["flight"] == flight);
            let cell = cell.with_context(|| format!("{set} is not found: {found:?}"))?;
            let column = cell.columns.iter().find(|column| column.column.starts_with(measure));
            assert!(column.is_some_and(|column| column.from != column.to), "{set}: {cell:?}");
            let [from, to] = sent(&world, view, day, runs).await?;
            assert!(
                from >= differing && from < differing + 3 && to < differing + 3,
                "{from} {to}"
            );
        }

        // One that only the second has, with a null in its key.
        let flight = flights.next().context("a row")?;
        let sql = format!(
            "INSERT INTO {table} SELECT * REPLACE(NULL AS day, NULL AS late) FROM {table} FINAL WHERE _run = \
             toUInt128('{}') AND flight = {flight}",
            runs[1].0
        );
        store.execute("add a row", &sql).await?;
        let found = diff(store, view, 1, 2).await?;
        assert_eq!(found.cells.len(), differing + 1, "{found:?}");
        let added = found.cells.iter().find(|cell| cell.cell["flight"] == flight);
        assert_eq!(added.map(|cell| cell.cell["late"].as_str()), Some("null"), "{found:?}");

        // The same sets, put together in another order.
        let flight = flights.next().context("a row")?;
        for (run, order) in [(0, "values"), (1, "arrayReverse(values)")] {
            let values = "arrayMap(value -> toUInt128(value * 7919), range(1, 3000))";
            let order = order.replace("values", values);
            let set = format!("UPDATE carriers__exact = arrayReduce('uniqExactState', {order})");
            change(run, &set, &flight).await?;
        }
        assert_eq!(diff(store, view, 1, 2).await?.cells, found.cells);
        Ok(())
    })
}
