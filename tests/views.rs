//! `highwater views` as a user has it: what no definition names can be seen, and taken away.

use std::collections::{BTreeMap, BTreeSet};

use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::stack::Site;
use serde_json::Value;
use shared_connections::store::{Origin, Store};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Publication, RunId};

fn load(site: &Site) -> anyhow::Result<(Store, Definitions)> {
    let config = Config::load(Some(&site.path().join("highwater.toml"))).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
    let definitions = Definitions::load(&config.definitions).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
    Ok((Store::new(&config.clickhouse), definitions))
}

async fn views(site: &Site, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let arguments = [&["views"], arguments, &["--output", "json"]].concat();
    let (code, stdout, stderr) = site.run(&arguments).await?;
    anyhow::ensure!(code == Some(0), "{arguments:?}: {code:?} {stderr}");
    Ok(serde_json::from_str(&stdout)?)
}

#[test]
fn a_view_that_no_definition_names_can_be_removed_and_comes_back_as_new() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let site = Site::with_addresses("127.0.0.1:9", server.url())?;
        let (store, definitions) = load(&site)?;
        store.create_tables(&definitions).await?;
        let old = &definitions.views[0];
        let publication = Publication::of_run(None, RunId(1), BTreeMap::new(), &BTreeMap::new(), &BTreeSet::new());
        store.publish(old, &publication, &Origin::default()).await?;

        // The view is changed: the old one has no name any more.
        let file = site.path().join("definitions/flights.toml");
        let first = std::fs::read_to_string(&file)?;
        std::fs::write(&file, first.replace("grain = \"1h\"", "grain = \"1d\""))?;
        let listed = views(&site, &["list"]).await?;
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert_eq!(
            (&listed[0]["view"], &listed[1]["view"]),
            (&"departures".into(), &Value::Null)
        );
        assert_eq!(listed[1]["fingerprint"], old.fingerprint.to_string());
        assert_eq!(
            (&listed[1]["publications"], &listed[0]["publications"]),
            (&1.into(), &0.into())
        );
        assert_eq!(
            (&listed[0]["state"], &listed[1]["state"], &listed[1]["answers"]),
            (
                &"building".into(),
                &"answers".into(),
                &serde_json::json!(["departures"])
            )
        );

        // As it was published by a build whose rows this one does not read: told in the list, and in the log of whatever starts.
        let plan = async |plan: u32| {
            let of_old = format!("fingerprint = '{}' SETTINGS mutations_sync = 2", old.fingerprint);
            let table = format!("`{}`.definitions", store.database());
            let sql = format!("ALTER TABLE {table} UPDATE plan = {plan} WHERE {of_old}");
            store.execute("change what is kept", &sql).await
        };
        plan(0).await?;
        let why = "it was computed by plan version 0, and this version of Highwater reads version 1";
        let earlier = views(&site, &["list"]).await?;
        assert_eq!(
            (&earlier[1]["state"], &earlier[1]["unreadable"]),
            (&"unused".into(), &format!("can't answer for departures: {why}").into())
        );
        let (_, _, stderr) = site.run(&["batch", "list"]).await?;
        assert!(
            stderr.contains(&format!("can't answer for it, and it has no publication yet: {why}; `highwater batch run --view departures` computes it anew")),
            "{stderr}"
        );
        plan(1).await?;
        assert_eq!(views(&site, &["list"]).await?[1]["state"], "answers");

        let (code, _, stderr) = site.run(&["views", "remove", "departures", "--yes"]).await?;
        assert_eq!(code, Some(2));
        assert!(
            stderr.starts_with("highwater: view `departures` is defined:"),
            "{stderr}"
        );

        // It answers until the new one is published, and is not offered before.
        let fingerprint = old.fingerprint.to_string();
        let (code, stdout, stderr) = site.run(&["views", "remove", "--unused", "--yes"]).await?;
        assert_eq!((code, &*stdout), (Some(0), "no view is unused: nothing to remove\n"));
        let kept = format!(
            "{fingerprint} is kept: it answers for departures until the first publication of the new definition\n"
        );
        assert_eq!(stderr, kept);
        let changed =
            Definitions::load(&site.path().join("definitions")).map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
        store
            .publish(&changed.views[0], &publication, &Origin::default())
            .await?;
        let listed = views(&site, &["list"]).await?;
        assert_eq!(
            (&listed[0]["state"], &listed[1]["state"], listed[1].get("answers")),
            (&"published".into(), &"unused".into(), None)
        );
        let would = views(&site, &["remove", "--unused"]).await?;
        assert_eq!((would.len(), &would[0]["fingerprint"]), (1, &listed[1]["fingerprint"]));
        assert_eq!(views(&site, &["list"]).await?, listed, "nothing goes without --yes");
        let removed = views(&site, &["remove", &fingerprint, "--yes"]).await?;
        assert_eq!(removed[0]["removed"], true);
        let left = views(&site, &["list"]).await?;
        assert_eq!((left.len(), &left[0]), (1, &listed[0]));
        assert_eq!(
            views(&site, &["remove", "--unused", "--yes"]).await?,
            Vec::<Value>::new()
        );

        // Its definition comes back: as a view that was never published, for which the one answers that was.
        std::fs::write(&file, first)?;
        store.create_tables(&definitions).await?;
        assert!(store.facts(old).await?.publications.is_empty());
        let listed = views(&site, &["list"]).await?;
        assert_eq!(
            (&listed[0]["fingerprint"], &listed[1]["fingerprint"]),
            (&fingerprint.into(), &changed.views[0].fingerprint.to_string().into())
        );
        assert_eq!(
            (&listed[0]["state"], &listed[1]["state"]),
            (&"building".into(), &"answers".into())
        );
        // Named, it goes all the same.
        let answering = changed.views[0].fingerprint.to_string();
        let removed = views(&site, &["remove", &answering, "--yes"]).await?;
        assert_eq!(removed[0]["removed"], true);
        assert_eq!(views(&site, &["list"]).await?.len(), 1);
        anyhow::Ok(())
    })
}
