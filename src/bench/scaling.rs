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

/// Each of these points over a topic of so many events, and so many passages through it, of which the one in the middle counts: one
/// alone may meet a compilation of Kafka's or a merge of ClickHouse's.
pub(crate) async fn figures(
    site: &Site,
    points: &[(u32, u32)],
    events: u64,
    passages: usize,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut best: Option<f64> = None;
    for &(partitions, workers) in points {
        let (topic, _) = Topic::filled(site, partitions, events, cancel).await?;
        let mut rates = Vec::with_capacity(passages);
        for _ in 0..passages {
            rates.push(pass(site, &topic, workers, &[]).await?.rate);
        }
        rates.sort_unstable_by(f64::total_cmp);
        let rate = rates.get(passages / 2).copied().unwrap_or_default();
        let name = format!(
            "events/s with {} and {}",
            many(partitions, "partition"),
            many(workers, "worker")
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
