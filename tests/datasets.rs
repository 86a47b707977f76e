//! `highwater datasets` as a user has it: what no definition names can be seen, and taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use highwater_batch::archive::Archive;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::stack::{PATIENCE, program};
use highwater_tests::table::{Table, partition};
use serde_json::Value;
use shared_connections::store::{Ledger, Origin, ProgressRow, Store};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, Publication, Redo, RunId, Start};

const VIEW: &str = "[view.rides]\ndataset = \"trips\"\ngrain = \"1h\"\n[view.rides.measures]\nrides = \"count()\"\n";
const OTHERS: &str = "[dataset.flights]\nevent_time = \"at\"\n[dataset.flights.fields]\nat = \"timestamp\"\n\
                      [view.hourly]\ndataset = \"flights\"\ngrain = \"1h\"\n[view.hourly.measures]\nflights = \"count()\"\n";

async fn highwater(home: &Path, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
    let mut command = tokio::process::Command::new(program("highwater")?);
    command
        .current_dir(home)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

async fn datasets(home: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let arguments = [&["datasets"], arguments, &["--output", "json"]].concat();
    let (code, stdout, stderr) = highwater(home, &arguments).await?;
    anyhow::ensure!(code == Some(0), "{arguments:?}: {code:?} {stderr}");
    Ok(serde_json::from_str(&stdout)?)
}

#[test]
fn a_dataset_that_no_definition_names_can_be_removed_and_comes_back_as_new() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let table = Table::new()?;
        table.fill(0, 0..60, 2).await?;
        table.fill(1, 0..40, 1).await?;
        let home = table.site(&format!(
            "[kafka]\nbrokers = \"127.0.0.1:9\"\n[clickhouse]\nurl = \"{}\"\n",
            server.url()
        ))?;
        let folder = home.join("definitions");
        std::fs::write(folder.join("rides.toml"), VIEW)?;
        std::fs::write(folder.join("others.toml"), OTHERS)?;
        let config = Config::load(Some(&home.join("highwater.toml"))).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
        let definitions = Definitions::load(&config.definitions).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
        let store = Store::new(&config.clickhouse);
        store.create_tables(&definitions).await?;
        let (rides, hourly) = (definitions.view("rides").unwrap(), definitions.view("hourly").unwrap());
        for (view, number) in [(rides, 0), (hourly, 7)] {
            let mut of = partition(number);
            of.topic.0 += u128::from(number);
            let ledger = Ledger {
                next: Offset(8),
                read: 8,
                aggregated: 8,
                ..Ledger::default()
            };
            let progress = ProgressRow {
                fingerprint: view.fingerprint,
                partition: of,
                start: Start(Offset(0)),
                redo: Redo::default(),
                ledger,
            };
            store.record_progress(&[progress]).await?;
            let marks = BTreeMap::from([(of, Default::default())]);
            let publication = Publication::of_run(None, RunId(1), marks, &BTreeMap::new(), &BTreeSet::new());
            store.publish(view, &publication, &Origin::default()).await?;
        }
        let listed = datasets(&home, &["list"]).await?;
        let names = |listed: &Value| {
            let rows = listed.as_array().unwrap().iter();
            rows.map(|row| (row["dataset"].clone(), row["defined"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&listed),
            [("flights".into(), true.into()), ("trips".into(), true.into())]
        );
        assert_eq!(
            (&listed[1]["events"], &listed[1]["views"][0]),
            (&100.into(), &"rides".into())
        );
        let (code, _, stderr) = highwater(&home, &["datasets", "remove", "trips", "--yes"]).await?;
        assert_eq!(code, Some(2));
        assert!(stderr.starts_with("highwater: dataset `trips` is defined:"), "{stderr}");

        // Nobody names it any more.
        let trips = std::fs::read_to_string(folder.join("trips.toml"))?;
        std::fs::remove_file(folder.join("trips.toml"))?;
        std::fs::remove_file(folder.join("rides.toml"))?;
        std::fs::write(table.folder().join("notes.txt"), "not ours")?;
        std::fs::create_dir_all(home.join("data/archive/pictures"))?;
        std::fs::write(home.join("data/archive/pictures/cat.png"), "no archive")?;
        let listed = datasets(&home, &["list"]).await?;
        assert_eq!(
            names(&listed),
            [("flights".into(), true.into()), ("trips".into(), false.into())]
        );
        let would = datasets(&home, &["remove", "trips"]).await?;
        assert_eq!(would, listed[1]);
        assert_eq!((&would["events"], &would["publications"]), (&100.into(), &1.into()));
        assert_eq!(would["views"], serde_json::json!([rides.fingerprint.to_string()]));
        assert!(
            would["files"].as_u64() > Some(3) && would["bytes"].as_u64() > Some(0),
            "{would}"
        );
        let (code, stdout, _) = highwater(&home, &["datasets", "remove", "trips"]).await?;
        assert_eq!(code, Some(0));
        assert!(
            stdout.contains("the topic and its dead letters stay in Kafka"),
            "{stdout}"
        );
        assert!(stdout.ends_with("add --yes to remove it\n"), "{stdout}");
        assert_eq!(datasets(&home, &["list"]).await?, listed, "nothing goes without --yes");
        for unknown in ["pictures", "nope", "../data"] {
            let (code, _, stderr) = highwater(&home, &["datasets", "remove", unknown, "--yes"]).await?;
            assert_eq!(code, Some(2));
            assert!(stderr.contains("nothing is archived of a dataset"), "{stderr}");
        }

        let removed = datasets(&home, &["remove", "trips", "--yes"]).await?;
        assert_eq!((&removed["removed"], &removed["events"]), (&true.into(), &100.into()));
        assert_eq!(
            names(&datasets(&home, &["list"]).await?),
            [("flights".into(), true.into())]
        );
        assert_eq!(table.files().unwrap_or_default(), Vec::<std::path::PathBuf>::new());
        assert!(table.folder().join("notes.txt").is_file(), "what is not ours stays");
        assert!(home.join("data/archive/pictures/cat.png").is_file());
        assert!(store.publications(rides).await?.is_empty());
        assert_eq!(store.publications(hourly).await?.len(), 1, "nobody else lost anything");
        assert_eq!(store.ledgers(hourly).await?.len(), 1);
        let held = store.held_views().await?;
        assert!(!held.contains_key(&rides.fingerprint.to_string()), "{held:?}");

        // Its definition comes back: nothing is archived.
        std::fs::write(folder.join("trips.toml"), trips)?;
        std::fs::write(folder.join("rides.toml"), VIEW)?;
        assert!(Archive::open(&table.config, &table.dataset).await?.is_none());
        let (code, stdout, stderr) = highwater(&home, &["batch", "run", "--view", "rides", "--output", "json"]).await?;
        assert_eq!(code, Some(0), "{stderr}");
        let reports: Value = serde_json::from_str(&stdout)?;
        assert_eq!(reports[0]["why"], "nothing is archived yet");
        anyhow::Ok(())
    })
}
