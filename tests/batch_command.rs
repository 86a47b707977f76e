//! `highwater batch` as a user has it.

use std::path::Path;

use highwater_batch::Lease;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::stack::Site;

/// A site on a server of its own; nothing is archived.
fn site(server: &ClickHouse) -> anyhow::Result<Site> {
    Site::with_addresses("127.0.0.1:9", server.url())
}

fn lease(site: &Site) -> std::path::PathBuf {
    site.path().join(Path::new("data/archive/batch.lock"))
}

#[test]
fn a_second_run_names_the_first_or_waits_for_it() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let site = site(&server)?;
        let first = Lease::take(&lease(&site), "batch run")?;
        let (code, stdout, stderr) = site.run(&["batch", "run"]).await?;
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        let named = format!("another is under way: {}", first.holder());
        assert!(stderr.contains(&named), "{stderr}");
        let (code, _, stderr) = site.run(&["batch", "rollback", "--view", "departures"]).await?;
        assert_eq!(code, Some(1));
        assert!(stderr.contains(&named), "{stderr}");

        let waits = site.run(&["batch", "run", "--wait", "--output", "json"]);
        let ends = async {
            // It waits as soon as it has said so; whether it is still waiting when the lease is given up does not matter.
            drop(first);
        };
        let (waited, ()) = tokio::join!(waits, ends);
        let (code, stdout, stderr) = waited?;
        assert_eq!(code, Some(0), "{stderr}");
        let reports: serde_json::Value = serde_json::from_str(&stdout)?;
        assert_eq!(reports[0]["view"], "departures");
        assert_eq!(reports[0]["result"], "nothing_to_do");
        assert_eq!(reports[0]["why"], "nothing is archived yet");
        anyhow::Ok(())
    })
}

#[test]
fn names_that_are_not_there_are_used_wrongly() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let site = site(&server)?;
        let (code, _, stderr) = site.run(&["batch", "run", "--view", "arrivals"]).await?;
        assert_eq!(
            (code, stderr.trim()),
            (Some(2), "highwater: there is no view `arrivals`: there is departures")
        );
        let (code, _, stderr) = site.run(&["batch", "run", "--dataset", "x"]).await?;
        assert_eq!(
            (code, stderr.trim()),
            (Some(2), "highwater: there is no dataset `x`: there is flights")
        );
        let (code, _, stderr) = site.run(&["batch", "rollback", "--view", "departures"]).await?;
        assert_eq!(
            (code, stderr.trim()),
            (Some(1), "highwater: view `departures` has no publication")
        );
        for look in ["list", "show"] {
            let (code, stdout, _) = site.run(&["batch", look, "--output", "json"]).await?;
            assert_eq!((code, stdout.trim()), (Some(0), "[]"));
        }
        let diff = ["batch", "diff", "1", "2", "--view", "departures"];
        let (code, _, stderr) = site.run(&diff).await?;
        assert_eq!(code, Some(1));
        assert!(stderr.contains("view `departures` has no publication 1"), "{stderr}");
        let backwards = ["batch", "run", "--days", "2013-02-01..2013-01-31"];
        let (code, _, stderr) = site.run(&backwards).await?;
        assert_eq!(code, Some(2));
        assert!(
            stderr.contains("ends before it starts: write the earlier day first"),
            "{stderr}"
        );
        let (code, stdout, stderr) = site.run(&["batch", "run", "--dry-run", "--output", "json"]).await?;
        assert_eq!(code, Some(0), "{stderr}");
        let planned: serde_json::Value = serde_json::from_str(&stdout)?;
        assert_eq!(
            (&planned[0]["computes"], &planned[0]["why"]),
            (&false.into(), &"nothing is archived yet".into())
        );
        anyhow::Ok(())
    })
}

#[test]
fn reports_of_reconciliation_are_listed_and_shown() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let site = site(&server)?;
        let (code, stdout, _) = site.run(&["reconcile", "list", "--output", "json"]).await?;
        assert_eq!((code, stdout.trim()), (Some(0), "[]"));
        let (code, _, stderr) = site.run(&["reconcile"]).await?;
        assert_eq!(code, Some(1), "nothing could be compared: {stderr}");
        let (code, stdout, stderr) = site.run(&["reconcile", "list", "--output", "json"]).await?;
        assert_eq!(code, Some(0), "{stderr}");
        let listed: serde_json::Value = serde_json::from_str(&stdout)?;
        assert_eq!(
            (&listed[0]["view"], &listed[0]["verdict"]),
            (&"departures".into(), &"unsound".into())
        );
        let id = listed[0]["id"].as_str().unwrap_or_default();
        let (code, stdout, _) = site.run(&["reconcile", "show", &id[..18]]).await?;
        assert_eq!(code, Some(0));
        assert!(stdout.contains("# departures: nothing was compared"), "{stdout}");
        let (_, stdout, _) = site.run(&["reconcile", "show", id, "--output", "json"]).await?;
        let shown: serde_json::Value = serde_json::from_str(&stdout)?;
        assert_eq!(shown[0]["why"], "nothing is archived yet");
        let (code, _, stderr) = site.run(&["reconcile", "show", "nope"]).await?;
        assert_eq!(
            (code, stderr.trim()),
            (
                Some(1),
                "highwater: there is no report `nope`: `highwater reconcile list` shows those that are kept"
            )
        );
        let (code, _, _) = site.run(&["reconcile", "--wait"]).await?;
        assert_eq!(code, Some(2), "--wait is for --repair");
        anyhow::Ok(())
    })
}
