//! The batch layer's computation beside others: plain DataFusion, DuckDB and the ClickHouse engine over the same files.
//!
//! Events are those of the speed layer's bench, in 8 partitions, one in a hundred a repeat of an event of another partition. They are
//! archived by the archive itself, which is measured too. What comes out of each computation is checked: every event
//! once, or as often as it was sent where repeats are left in.

pub(crate) mod large;
mod others;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use highwater_batch::archive::{Archive, Commit, Pinned};
use highwater_batch::error::RunError;
use highwater_batch::measured::{Came, plain, recomputed};
use shared_schemas::config::ArchiveConfig;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options, Record};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{EventDay, Offset, OffsetRange, Partition, TopicId};
use tempfile::TempDir;

use super::events::{self, COUNT, Events};
use super::figure::{Figure, number};
use super::process::{highest_resident, processor_time};

use others::{Engine, Others};

const PARTITIONS: u32 = 8;
/// Offsets of a partition in one commit.
const A_COMMIT: u64 = 65_536;
/// Event time of the first event: 2024-01-01T00:00:00Z.
const SINCE: i64 = 1_704_067_200;
const SECONDS_PER_DAY: i64 = 86_400;
/// One event of so many is a repeat, of the one so far before it.
const REPEATS: u64 = 100;
const BEFORE: u64 = 51;
/// What the run has, as by default.
const MEMORY: u64 = 2 << 30;
/// Days that are archived beside the one that is computed.
const HISTORIES: [u64; 3] = [1, 10, 100];
/// Each of these days has so large a part of the events.
const PART: u64 = 200;
/// How often each computation is measured; the fastest counts.
const TURNS: usize = 3;

const AIM_PLAIN: f64 = 1.2;
const AIM_EXACT: f64 = 2.0;
const AIM_ARCHIVE: f64 = 500_000.0;

/// All figures, over so many events.
pub(crate) async fn figures(events: u64) -> anyhow::Result<Vec<Figure>> {
    let folder = TempDir::with_prefix("highwater-bench-").context("no temporary folder can be made")?;
    let others = Others::prepare().await;
    let definitions = |id: &str| {
        let text = events::definitions("flights", PARTITIONS).replace("event_id = [\"flight\", \"tail_number\"]", id);
        Definitions::parse([("flights.toml", text)])
    };
    let exact = definitions("event_id = [\"flight\", \"tail_number\"]")?;
    let without = definitions("")?;
    let mut figures = Vec::new();
    tracing::info!("archiving {events} events");
    let (pinned, written) = archived(&folder.path().join("archive"), &exact.datasets[0], 0, events).await?;
    figures.push(Figure::at_least(
        "archive writing, per core",
        number(events) / written.as_secs_f64(),
        "events/s",
        AIM_ARCHIVE,
    ));
    let table = folder.path().join("archive/flights");
    figures.push(Figure::plain(
        "archived, for an event",
        number(size(&table)?) / number(events),
        "bytes",
    ));

    let distinct = events - events / REPEATS;
    let spill = folder.path().join("spill");
    let room = (MEMORY, spill.as_path());
    let days = pinned.ranges().iter().map(|range| range.day).collect();
    let count = format!("{COUNT}__count");
    let mut tell = |name: &str, seconds: f64, peak: Option<u64>| {
        figures.push(Figure::plain(name.to_owned(), number(events) / seconds, "events/s"));
        figures.extend(peak.map(|peak| Figure::plain(format!("{name}: memory, highest"), number(peak) / 1e6, "MB")));
    };

    let files = files_of(&table)?;
    let folder_of_files = files.to_string_lossy().into_owned();
    let statements = [
        grouped("events", "date_trunc('minute', scheduled_departure)", 0),
        grouped("events", "date_trunc('minute', scheduled_departure)", 1),
    ];
    let (plain_seconds, peak) = fastest(2 * events, || plain(&folder_of_files, &statements, "flights")).await?;
    tell(
        "plain DataFusion, both views one after the other",
        plain_seconds,
        Some(peak),
    );

    let (of_all, dataset) = (&without.views, &without.datasets[0]);
    let (ours, peak) = fastest(2 * events, || recomputed(room, dataset, of_all, &pinned, &days, &count)).await?;
    tell("recompute without dedupe, both views at once", ours, Some(peak));
    let (views, dataset) = (&exact.views, &exact.datasets[0]);
    let (deduped, peak) = fastest(2 * distinct, || {
        recomputed(room, dataset, views, &pinned, &days, &count)
    })
    .await?;
    tell("recompute with exact dedupe", deduped, Some(peak));

    let mut clickhouse = None;
    for (engine, name) in [(Engine::DuckDb, "DuckDB"), (Engine::ClickHouse, "ClickHouse engine")] {
        for dedupe in [false, true] {
            let expected = if dedupe { 2 * distinct } else { 2 * events };
            let what = if dedupe { "dedupe and group" } else { "group" };
            match others.run(engine, &files, dedupe).await {
                Ok(came) => {
                    ensure!(
                        came.counted == expected,
                        "{name} counts {} of {expected} events",
                        came.counted
                    );
                    tell(&format!("{name}, {what}"), came.seconds, Some(came.peak));
                    if engine == Engine::ClickHouse && dedupe {
                        clickhouse = Some(came.seconds);
                    }
                }
                Err(error) => tracing::warn!("{name} is not measured: {error:#}"),
            }
        }
    }
    figures.push(Figure::at_most(
        "time without dedupe, in that of plain DataFusion",
        ours / plain_seconds,
        "times",
        AIM_PLAIN,
    ));
    figures.push(Figure::at_most(
        "time with exact dedupe, in that of plain DataFusion without",
        deduped / plain_seconds,
        "times",
        AIM_EXACT,
    ));
    figures.extend(clickhouse.map(|other| {
        Figure::at_most(
            "time with exact dedupe, in that of the ClickHouse engine",
            deduped / other,
            "times",
            1.0,
        )
    }));

    for history in HISTORIES {
        let (seconds, _) = one_dirty_day(folder.path(), &exact, history, (events / PART).max(1)).await?;
        figures.push(Figure::plain(
            format!("one dirty day with {history} archived"),
            seconds,
            "s",
        ));
    }
    Ok(figures)
}

/// The fastest of some turns in seconds, and the most memory of this process in any; fails where not so many events are counted.
async fn fastest<F>(expected: u64, mut turn: impl FnMut() -> F) -> anyhow::Result<(f64, u64)>
where
    F: Future<Output = Result<Came, RunError>>,
{
    let (mut least, mut peak) = (f64::INFINITY, 0);
    for _ in 0..TURNS {
        // What was highest before is forgotten.
        std::fs::write("/proc/self/clear_refs", "5").context("the kernel does not forget what memory was highest")?;
        let began = Instant::now();
        let came = turn().await?;
        least = least.min(began.elapsed().as_secs_f64());
        peak = peak.max(highest_resident(std::process::id())?);
        ensure!(
            came.counted == expected,
            "{} of {expected} events are counted",
            came.counted
        );
    }
    Ok((least, peak))
}

/// Archives events, from a day on; the archive, and the processor time of the commits.
async fn archived(folder: &Path, dataset: &Dataset, day: i64, events: u64) -> anyhow::Result<(Pinned, Duration)> {
    let config = ArchiveConfig::in_folder(folder);
    let mut archive = Archive::open_or_create(&config, dataset).await?;
    let partition = |number: u32| Partition {
        topic: TopicId(1),
        number,
    };
    let ends = archive.ends().clone();
    let before = |number: u32| ends.get(&partition(number)).map_or(0, |end| end.0);
    let each = events.div_ceil(u64::from(PARTITIONS));
    let mut worked = Duration::ZERO;
    let mut from = 0;
    while from < each {
        let to = (from + A_COMMIT).min(each);
        let mut commit = Commit::default();
        for number in 0..PARTITIONS {
            let of = |at: u64| at * u64::from(PARTITIONS) + u64::from(number);
            let before = before(number);
            let last = (from..to).take_while(|at| of(*at) < events).count() as u64;
            if last == 0 {
                continue;
            }
            let batches = decoded(
                dataset,
                number,
                day,
                (from..from + last).map(|at| (before + at, of(at))),
            )?;
            let range = OffsetRange {
                from: Offset(before + from),
                to: Offset(before + from + last),
            };
            commit.ranges.insert(partition(number), range);
            commit
                .batches
                .extend(batches.into_iter().map(|batch| (partition(number), batch)));
        }
        let began = processor_time(std::process::id())?;
        archive.commit(&commit).await?;
        worked += processor_time(std::process::id())?.saturating_sub(began);
        from = to;
    }
    Ok((archive.pin().await?, worked))
}

/// Events as the archiver has them decoded: offset and number of each.
fn decoded(
    dataset: &Dataset,
    partition: u32,
    day: i64,
    events: impl Iterator<Item = (u64, u64)>,
) -> anyhow::Result<Vec<arrow::array::RecordBatch>> {
    let options = Options {
        extra: true,
        keys: &EnvironmentKeys,
    };
    let mut decoder = Decoder::new(dataset, options)?;
    let since = SINCE + day * SECONDS_PER_DAY;
    let mut text = Events::since(since);
    for (offset, number) in events {
        let sent = if number % REPEATS == REPEATS - 1 {
            number - BEFORE
        } else {
            number
        };
        let record = Record {
            partition: i32::try_from(partition)?,
            offset: i64::try_from(offset)?,
            timestamp: Some(since * 1000 + i64::try_from(number * 1000 / events::A_SECOND)?),
            key: None,
            value: Some(text.event(sent)),
            headers: &(),
        };
        let read = decoder.push(&record);
        read.map_err(|refusal| anyhow::anyhow!("an event of the bench is refused: {refusal}"))?;
    }
    Ok(decoder.finish())
}

/// How long one day takes that is computed beside others that are not: opening the archive, finding the day, computing it.
async fn one_dirty_day(folder: &Path, definitions: &Definitions, days: u64, each: u64) -> anyhow::Result<(f64, Came)> {
    let dataset = &definitions.datasets[0];
    let place = folder.join(format!("days-{days}"));
    for day in 0..days {
        archived(&place, dataset, i64::try_from(day)?, each).await?;
    }
    let spill = folder.join("spill");
    let began = Instant::now();
    let config = ArchiveConfig::in_folder(place);
    let archive = Archive::open(&config, dataset).await?.context("nothing is archived")?;
    let pinned = archive.pin().await?;
    let last: Option<EventDay> = pinned.ranges().iter().map(|range| range.day).max();
    let of: BTreeSet<_> = last.into_iter().collect();
    let came = recomputed(
        (MEMORY, &spill),
        dataset,
        &definitions.views,
        &pinned,
        &of,
        &format!("{COUNT}__count"),
    )
    .await?;
    let expected = 2 * (each - each / REPEATS);
    ensure!(
        came.counted == expected,
        "{} of {expected} events are counted",
        came.counted
    );
    Ok((began.elapsed().as_secs_f64(), came))
}

/// The SQL of a view: 0 and 1. Made for engines that agree on all but the time.
fn grouped(from: &str, minute: &str, view: usize) -> String {
    let (keys, measure) = [
        (
            "carrier, origin",
            "sum(departure_delay) AS delay, count(departure_delay) AS known",
        ),
        ("destination", "max(distance) AS longest"),
    ][view];
    format!("SELECT {minute} AS minute, {keys}, count(*) AS flights, {measure} FROM {from} GROUP BY {minute}, {keys}")
}

/// The bytes of all files below a folder.
fn size(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() {
            size(&entry.path())?
        } else {
            kind.len()
        };
    }
    Ok(bytes)
}

/// The folder that holds the one day's files.
fn files_of(table: &Path) -> anyhow::Result<std::path::PathBuf> {
    let mut entries = std::fs::read_dir(table)?.filter_map(Result::ok);
    let day = entries.find(|entry| entry.file_name().to_string_lossy().starts_with("_date="));
    Ok(day.context("no day is archived")?.path())
}
