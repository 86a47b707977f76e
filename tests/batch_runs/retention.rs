//! Retention: event days that a view no longer keeps go from both layers, and nobody answers them from the moment that is said.

use std::collections::BTreeSet;

use highwater_batch::{Selection, reconcile};
use shared_schemas::handoff::EventDay;
use shared_schemas::store::tables::{batch_table_name, speed_table_name};
use tokio_util::sync::CancellationToken;

use super::collection::{collect, rows};
use super::world::{Quiet, World, log};
use super::{on_engine, published};

/// 2013-11-01: the log has events of two days, in two months.
const SECOND_DAY: i32 = 16_010;

#[test]
fn days_before_the_horizon_go_from_both_layers() -> anyhow::Result<()> {
    on_engine(|server| async move {
        let more = "[batch]\ncut_wait = \"0s\"\ngc_wait = \"0s\"\n";
        let mut world = World::new(&server, log(80), more).await?;
        for number in [0, 1] {
            world.speed(number, 80, &BTreeSet::new()).await?;
        }
        world.archive([40, 40], 1).await?;
        published(&world.run(&["hourly"], &Quiet, &CancellationToken::new()).await);
        let whole = world.answer().await?;
        assert_eq!(whole, world.truth([80, 80]));
        assert_eq!(
            collect(&world).await?.horizon,
            None,
            "nothing is let go that nobody asked for"
        );

        // So long that the second of the two days is the first that is kept.
        let today = i32::try_from(chrono::Utc::now().timestamp().div_euclid(86_400))?;
        let days = u64::try_from(today - SECOND_DAY + 1)?;
        let keep = std::time::Duration::from_secs(days * 86_400);
        let views = &mut world.batch.definitions.views;
        views.iter_mut().find(|view| view.name == "hourly").unwrap().keep = Some(keep);
        let view = world.view("hourly").clone();
        let (speed, batch) = (speed_table_name(&view), batch_table_name(&view));
        let before = (rows(&world, &speed, "1").await?, rows(&world, &batch, "1").await?);
        let old = (
            rows(
                &world,
                &speed,
                "_window < toDateTime64('2013-11-01 00:00:00', 0, 'UTC')",
            )
            .await?,
            rows(&world, &batch, "_day < toDate32('2013-11-01')").await?,
        );
        assert!(old.0 > 0 && old.1 > 0 && old.0 < before.0 && old.1 < before.1);
        let would = world.batch.collectable(&[&view]).await.remove(0);
        assert_eq!((would.rows.speed, would.rows.batch), old);
        assert_eq!(
            world.batch.store.horizon(&view).await?,
            None,
            "a dry run writes nothing"
        );

        let did = collect(&world).await?;
        assert_eq!(
            (did.error.as_deref(), did.horizon.as_deref()),
            (None, Some("2013-11-01"))
        );
        assert_eq!((did.rows.speed, did.rows.batch), old);
        assert_eq!(rows(&world, &speed, "1").await?, before.0 - old.0);
        assert_eq!(rows(&world, &batch, "1").await?, before.1 - old.1);
        let kept: Vec<_> = whole
            .iter()
            .filter(|line| line.as_str() >= "2013-11-01")
            .cloned()
            .collect();
        assert!(!kept.is_empty() && kept.len() < whole.len());
        assert_eq!(world.answer().await?, kept);
        assert_eq!(world.batch.store.horizon(&view).await?, Some(EventDay(SECOND_DAY)));

        // A run after it computes no day before; reconciliation misses none.
        world.archive([80, 80], 1).await?;
        let reports = world.run(&["hourly"], &Quiet, &CancellationToken::new()).await;
        published(&reports);
        assert_eq!(reports[0].first_day.as_deref(), Some("2013-11-01"));
        assert_eq!(world.answer().await?, kept);
        let selected = world.batch.selected(&Selection {
            views: vec!["hourly".to_owned()],
            datasets: Vec::new(),
        })?;
        let reconciled = reconcile(&world.batch, &selected, &Quiet, &CancellationToken::new()).await;
        assert_eq!(reconciled[0].unexplained, 0, "{:?}", reconciled[0]);
        assert_eq!(collect(&world).await?.error, None);
        assert_eq!(world.answer().await?, kept);
        Ok(())
    })
}
