//! A day of very many groups in little memory: that it ends, and what it takes.
//!
//! Groups and the ids of events are each several times what the memory holds, so both go to disk.

use std::time::Instant;

use anyhow::{Context, ensure};
use highwater_batch::measured::recomputed;
use shared_schemas::definitions::Definitions;
use tempfile::TempDir;

use super::{MEMORY, PARTITIONS, REPEATS, archived};
use crate::bench::events::{self, COUNT};
use crate::bench::figure::{Figure, number};
use crate::bench::process::highest_resident;

const VIEW: &str = r#"
[view.tails]
dataset = "flights"
grain = "1d"
dimensions = ["tail_number"]

[view.tails.measures]
"#;

/// Over so many events: a group for each of ten million tail numbers, or for each event, if there are fewer.
pub(crate) async fn figures(events: u64) -> anyhow::Result<Vec<Figure>> {
    let folder = TempDir::with_prefix("highwater-bench-").context("no temporary folder can be made")?;
    let all = events::definitions("flights", PARTITIONS);
    let (dataset, _) = all.split_once("[view.").context("the bench's definitions have views")?;
    let text = format!("{dataset}{VIEW}{COUNT} = \"count()\"\ndelay = \"avg(departure_delay)\"\n");
    let definitions = Definitions::parse([("flights.toml", text)])?;
    let dataset = &definitions.datasets[0];
    tracing::info!("archiving {events} events");
    let (pinned, _) = archived(&folder.path().join("archive"), dataset, 0, events).await?;
    let days = pinned.ranges().iter().map(|range| range.day).collect();
    tracing::info!("computing");
    std::fs::write("/proc/self/clear_refs", "5").context("the kernel does not forget what memory was highest")?;
    let began = Instant::now();
    let spill = folder.path().join("spill");
    let count = format!("{COUNT}__count");
    let came = recomputed((MEMORY, &spill), dataset, &definitions.views, &pinned, &days, &count).await?;
    let seconds = began.elapsed().as_secs_f64();
    let peak = highest_resident(std::process::id())?;
    let once = events - events / REPEATS;
    ensure!(came.counted == once, "{} of {once} events are counted", came.counted);
    ensure!(
        came.repeats == events - once,
        "{} of {} repeats are found",
        came.repeats,
        events - once
    );
    Ok(vec![
        Figure::plain("groups", number(came.cells), ""),
        Figure::plain("with exact dedupe, in 2 GiB", number(events) / seconds, "events/s"),
        Figure::plain("memory, highest", number(peak) / 1e6, "MB"),
        Figure::plain("spilled", number(came.spilled) / 1e6, "MB"),
    ])
}
