//! Several workers on one dataset: they share its partitions through the consumer group, and count everything once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Platform, cells, events};
use highwater_tests::stack::{PATIENCE, shared, unique};
use local_stack::topics::{self, Topic};
use shared_connections::log::group::Assigned;
use shared_connections::log::{Kafka, Membership};
use shared_schemas::config::Config;
use shared_schemas::handoff::Offset;
use tokio::sync::watch;

const PARTITIONS: u32 = 4;

fn kafka(brokers: &str, group: &str, properties: &str) -> anyhow::Result<Kafka> {
    let text = format!("[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n[kafka.properties]\n{properties}");
    let reading = Config::parse(&text, "highwater.toml", std::path::Path::new(""), &|_| None);
    ensure!(reading.mistakes.is_empty(), "{}", reading.mistakes);
    Ok(Kafka::new(&reading.config.kafka)?)
}

/// Waits until what a member holds is as it should be.
async fn until_held(
    assigned: &mut watch::Receiver<Assigned>,
    holds: impl Fn(&BTreeSet<u32>) -> bool,
) -> anyhow::Result<BTreeSet<u32>> {
    let held = assigned.wait_for(|assigned| assigned.as_ref().is_some_and(&holds));
    let held = tokio::time::timeout(PATIENCE, held).await.context("never held")??;
    Ok(held.clone().unwrap_or_default())
}

async fn share_and_hand_over(properties: &str) -> anyhow::Result<()> {
    let brokers = shared().await?.addresses().kafka.clone();
    let topic = unique("shared");
    topics::ensure(&brokers, &[], &Topic::of_dataset(&topic, PARTITIONS, 4096)).await?;
    let kafka = kafka(&brokers, &unique("group"), properties)?;
    let join = || Membership::join(&kafka, kafka.group("speed"), &topic, None);
    let all: BTreeSet<u32> = (0..PARTITIONS).collect();

    let first = join()?;
    let mut of_first = first.assigned();
    until_held(&mut of_first, |held| *held == all).await?;
    let second = join()?;
    let mut of_second = second.assigned();
    let (held, others) = (
        until_held(&mut of_first, |held| held.len() == 2).await?,
        until_held(&mut of_second, |held| held.len() == 2).await?,
    );
    ensure!(held.is_disjoint(&others), "{held:?} and {others:?}");

    // A member commits what it holds; nobody can for others.
    let cursors: BTreeMap<u32, Offset> = all.iter().map(|number| (*number, Offset(0))).collect();
    first.commit(cursors);
    first.leave().await;
    until_held(&mut of_second, |held| *held == all).await?;
    second.leave().await;
    Ok(())
}

#[tokio::test]
async fn members_share_partitions_and_hand_them_over() -> anyhow::Result<()> {
    share_and_hand_over("").await
}

#[tokio::test]
async fn members_of_the_newer_protocol_do_too() -> anyhow::Result<()> {
    share_and_hand_over("\"group.protocol\" = \"consumer\"\n").await
}

/// A rolling restart: a member with a name is back before its session ends, and nobody notices.
#[tokio::test]
async fn a_member_with_a_name_keeps_its_partitions_over_a_restart() -> anyhow::Result<()> {
    let brokers = shared().await?.addresses().kafka.clone();
    let topic = unique("shared");
    topics::ensure(&brokers, &[], &Topic::of_dataset(&topic, PARTITIONS, 4096)).await?;
    let kafka = kafka(&brokers, &unique("group"), "\"session.timeout.ms\" = \"60000\"\n")?;
    let join = |name| Membership::join(&kafka, kafka.group("speed"), &topic, Some(name));
    let (stays, goes) = (join("a")?, join("b")?);
    let (mut of_stays, mut of_goes) = (stays.assigned(), goes.assigned());
    let held = until_held(&mut of_stays, |held| held.len() == 2).await?;
    let before = until_held(&mut of_goes, |held| held.len() == 2).await?;
    of_stays.mark_unchanged();
    goes.leave().await;
    let back = join("b")?;
    let after = until_held(&mut back.assigned(), |held| !held.is_empty()).await?;
    ensure!(before == after, "{before:?}, then {after:?}");
    ensure!(
        !of_stays.has_changed()?,
        "the other one held {held:?}, and was disturbed"
    );
    back.leave().await;
    stays.leave().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_count_everything_once() -> anyhow::Result<()> {
    let mut platform = Platform::new(None).await?;
    platform.start_archive()?;
    platform.start_serving().await?;
    platform.start_speed_as("first")?;
    platform.send(events(0..400)).await?;
    platform.until_whole().await?;
    platform.start_speed_as("second")?;
    platform.send(events(400..1_000)).await?;
    platform.until_whole().await?;
    platform.until_archived().await?;
    platform.publish().await?;
    platform.stop("first").await?;
    platform.send(events(1_000..1_600)).await?;
    platform.until_whole().await?;
    platform.start_speed_as("third")?;
    platform.start_speed_as("fourth")?;
    // Repeats, while the partitions move.
    platform.send(events(900..1_800)).await?;
    platform.until_whole().await?;
    ensure!(
        platform.answer("merged").await? == cells(&platform.sent()),
        "it went back"
    );
    platform.stop_all().await
}

/// Two that share nothing: each reads every partition, for as long as both run.
#[tokio::test(flavor = "multi_thread")]
async fn rivals_on_every_partition_count_everything_once() -> anyhow::Result<()> {
    let mut platform = Platform::new(None).await?;
    platform.start_archive()?;
    platform.start_serving().await?;
    platform.start_speed_as("first")?;
    platform.config.kafka.group = unique("rival");
    platform.start_speed_as("second")?;
    for hundred in 0..20 {
        platform.send(events(hundred * 100..hundred * 100 + 100)).await?;
        if hundred % 7 == 6 {
            platform.until_whole().await?;
            platform.until_archived().await?;
            platform.publish().await?;
        }
    }
    platform.until_whole().await?;
    tokio::time::timeout(Duration::from_secs(60), platform.stop_all()).await?
}
