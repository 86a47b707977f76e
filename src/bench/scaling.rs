//! Events a second as partitions and workers go up. Nothing should fall.

use tokio_util::sync::CancellationToken;

use super::figure::Figure;
use super::passage::pass;
use super::site::Site;
use super::topic::Topic;

/// Partitions and workers of each point.
pub(crate) const POINTS: [(u32, u32); 6] = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 2)];
/// Those of them that show that each kind of point is measured.
pub(crate) const ENDS: [(u32, u32); 3] = [(1, 1), (16, 1), (8, 2)];
/// Two runs of the same differ by so much; less is no fall.
const NOISE: f64 = 0.05;

/// Each of these points over a topic of so many events. All points have their turn before one has its next, so that an hour in
/// which the machine is slower slows all of them; of each the fastest passage counts, for what else happens only ever slows one.
pub(crate) async fn figures(
    site: &Site,
    points: &[(u32, u32)],
    events: u64,
    passages: usize,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Figure>> {
    let mut topics = Vec::with_capacity(points.len());
    for (partitions, _) in points {
        topics.push(Topic::filled(site, *partitions, events, cancel).await?.0);
    }
    let mut rates = vec![Vec::with_capacity(passages); points.len()];
    for passage in 1..=passages {
        for (((_, workers), topic), rates) in points.iter().zip(&topics).zip(&mut rates) {
            rates.push(pass(site, topic, *workers, &[]).await?.rate);
        }
        tracing::info!(
            "passage {passage} of {passages} through {} topics is done",
            points.len()
        );
    }
    let mut figures = Vec::new();
    let mut best: Option<f64> = None;
    for ((partitions, workers), rates) in points.iter().zip(rates) {
        let rate = rates.iter().copied().fold(0.0, f64::max);
        let name = format!(
            "events/s with {} and {}",
            many(*partitions, "partition"),
            many(*workers, "worker")
        );
        tracing::info!("{name}: {rate:.0}, of {rates:.0?}");
        figures.push(match best {
            None => Figure::plain(name, rate, "events/s"),
            Some(best) => Figure::at_least(name, rate, "events/s", best * (1.0 - NOISE)),
        });
        best = Some(best.unwrap_or_default().max(rate));
    }
    Ok(figures)
}

fn many(count: u32, what: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {what}{ending}")
}
