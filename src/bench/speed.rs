//! `highwater bench speed`: the speed layer as a whole, on real Kafka and real ClickHouse, in one run.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::events::APART;
use super::figure::Figure;
use super::passage::pass;
use super::site::Site;
use super::topic::Topic;
use super::{bare, freshness, memory, scaling, stages};

/// Partitions of the topic that the main figure is measured on.
const PARTITIONS: u32 = 8;
/// What a distinct and quantiles beside the counts should leave of the rate, in percent.
const LEFT: f64 = 60.0;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// From Kafka to visible in ClickHouse, beside a consumer that throws messages away
    Throughput,
    /// Each stage alone
    Stages,
    /// From produced to visible in the API
    Freshness,
    /// Memory of a worker at full speed
    Memory,
    /// With more partitions and workers
    Scaling,
    /// With a distinct and quantiles beside the counts
    Measures,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// A folder that stays; none for one that goes.
    pub(crate) data: Option<PathBuf>,
    /// What to measure.
    pub(crate) parts: Vec<Part>,
    /// Events of the main topic.
    pub(crate) events: u64,
    /// Events of each point of [`Part::Scaling`].
    pub(crate) each: u64,
    /// Passages through each point's topic.
    pub(crate) passages: usize,
    /// Partitions and workers of each point of scaling.
    pub(crate) points: &'static [(u32, u32)],
    /// How long each stage works.
    pub(crate) stage: Duration,
    /// How long events are produced for [`Part::Freshness`].
    pub(crate) freshness: Duration,
    /// How long a worker is kept at full speed for [`Part::Memory`].
    pub(crate) memory: Duration,
}

/// Measures. What it starts ends with it, also when it is dropped.
pub(crate) async fn figures(settings: &Settings) -> anyhow::Result<Vec<Figure>> {
    let cancel = CancellationToken::new();
    // Threads that fill topics look at it: they end also where this is no longer waited for.
    let _cancelled = cancel.clone().drop_guard();
    let mut figures = Vec::new();
    // Before the servers run, which would take their part of the processors.
    if settings.parts.contains(&Part::Stages) {
        tracing::info!("measuring each stage alone");
        let each = settings.stage;
        figures.extend(tokio::task::spawn_blocking(move || stages::figures(each)).await??);
    }
    if settings.parts.iter().any(|part| *part != Part::Stages) {
        let site = Site::start(settings.data.as_deref()).await?;
        let measured = tokio::select! {
            measured = with_servers(&site, settings, &cancel) => measured,
            error = site.failed() => Err(error),
        };
        site.stop().await;
        figures.extend(measured?);
    }
    Ok(figures)
}

async fn with_servers(site: &Site, settings: &Settings, cancel: &CancellationToken) -> anyhow::Result<Vec<Figure>> {
    let wants = |part| settings.parts.contains(&part);
    let mut figures = Vec::new();
    if wants(Part::Throughput) {
        figures.extend(Box::pin(throughput(site, settings.events, cancel)).await?);
    }
    if wants(Part::Freshness) {
        tracing::info!("measuring freshness at {} events/s", freshness::RATE);
        figures.extend(Box::pin(freshness::figures(site, settings.freshness, cancel)).await?);
    }
    if wants(Part::Memory) {
        figures.extend(Box::pin(memory::figures(site, settings.memory, cancel)).await?);
    }
    if wants(Part::Scaling) {
        figures.extend(
            Box::pin(scaling::figures(
                site,
                settings.points,
                settings.each,
                settings.passages,
                cancel,
            ))
            .await?,
        );
    }
    if wants(Part::Measures) {
        figures.extend(Box::pin(further_measures(site, settings.events, cancel)).await?);
    }
    Ok(figures)
}

/// The same topic with and without a distinct and quantiles.
async fn further_measures(site: &Site, events: u64, cancel: &CancellationToken) -> anyhow::Result<[Figure; 4]> {
    let (topic, _) = Topic::filled(site, PARTITIONS, events, cancel).await?;
    tracing::info!("counting the topic, then with a distinct and quantiles beside the counts");
    let without = pass(site, &topic, 1, &[]).await?;
    let with = pass(site, &topic, 1, &APART).await?;
    tracing::info!("{:.0} events/s, then {:.0}", without.rate, with.rate);
    let memory = with.weights.highest();
    Ok([
        Figure::plain("events/s with counts, a mean and a maximum", without.rate, "events/s"),
        Figure::plain("events/s with a distinct and quantiles beside", with.rate, "events/s"),
        Figure::at_least(
            "its ratio to the rate without",
            100.0 * with.rate / without.rate,
            "%",
            LEFT,
        ),
        Figure::plain("resident memory of the worker meanwhile", memory, "MB"),
    ])
}

async fn throughput(site: &Site, events: u64, cancel: &CancellationToken) -> anyhow::Result<Vec<Figure>> {
    let (topic, filled) = Topic::filled(site, PARTITIONS, events, cancel).await?;
    tracing::info!("reading the topic with a bare consumer");
    let bare = bare::rate(site, &topic, cancel).await?;
    tracing::info!("{bare:.0} events/s; now through the speed layer");
    let passage = pass(site, &topic, 1, &[]).await?;
    tracing::info!("{:.0} events/s", passage.rate);
    let mut figures: Vec<Figure> = filled
        .map(|rate| Figure::plain("filling the topic", rate, "events/s"))
        .into_iter()
        .collect();
    figures.extend([
        Figure::plain("bare consumer, messages thrown away", bare, "events/s"),
        Figure::at_least(
            "Kafka to visible in ClickHouse, whole box",
            passage.rate,
            "events/s",
            800_000.0,
        ),
        Figure::plain("its ratio to the bare consumer", 100.0 * passage.rate / bare, "%"),
        Figure::at_most(
            "resident memory of the worker while it counts the topic",
            passage.weights.highest(),
            "MB",
            500.0,
        ),
    ]);
    figures.extend(passage.figures());
    Ok(figures)
}
