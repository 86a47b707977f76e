//! The whole platform, on real Kafka and the real engine: what the merged answer is while things happen and go wrong.
//!
//! The oracle knows what was sent, nothing of the layers. Where instants are random their seed is printed.

mod killed;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use highwater_batch::Outcome;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::platform::{Platform, cells, events, total};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use shared_schemas::definitions::Definitions;

use highwater_tests::platform::VIEWS;
use highwater_tests::stack::{PATIENCE, run};

/// How many dead letters of each reason the topic has.
pub(crate) fn letters(platform: &Platform) -> anyhow::Result<BTreeMap<String, u64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", platform.config.kafka.bootstrap_servers())
        .set("group.id", "letters")
        .set("auto.offset.reset", "earliest")
        .create()?;
    let topic = format!("{}.dead-letters", platform.topic);
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning)?;
    consumer.assign(&list)?;
    let (_, end) = consumer.fetch_watermarks(&topic, 0, PATIENCE)?;
    let mut reasons = BTreeMap::new();
    let mut read = 0;
    while read < end {
        let Some(message) = consumer.poll(PATIENCE) else {
            anyhow::bail!("{read} of {end} letters could be read");
        };
        // Others than records are news of brokers, which librdkafka deals with.
        let Ok(message) = message else { continue };
        read = message.offset() + 1;
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        let reason = headers.filter(|header| header.key == "highwater-reason").last();
        let reason = reason.and_then(|header| header.value).unwrap_or_default();
        *reasons.entry(String::from_utf8_lossy(reason).into_owned()).or_default() += 1;
    }
    Ok(reasons)
}

/// The moments of the demo: live, exact below the marks, with late events, repeats and bad ones, and while a run goes on.
#[test]
fn the_merged_answer_is_what_was_sent_at_every_moment() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;

        platform.send(events(0..1500)).await?;
        platform.until_whole().await?;
        assert_eq!(total(&platform.answer("batch").await?), (0, 0));
        assert_eq!(platform.answer("speed").await?, cells(&platform.sent()));

        platform.until_archived().await?;
        let published = platform.publish().await?;
        assert!(
            published
                .iter()
                .all(|report| report.publication == Some(1) && report.days > 0)
        );
        assert_eq!(platform.answer("merged").await?, cells(&platform.sent()));
        let batch = total(&platform.answer("batch").await?).0;
        let chunked = published[0].marks.iter().map(|mark| mark.to).sum::<u64>();
        assert!(
            batch > 0 && batch == chunked,
            "{batch} events below marks of {chunked} offsets"
        );

        // Late events lie below the published days; repeats of events below and above the marks; none of them counts.
        platform.send(events(2000..2600)).await?;
        platform.send(events(1500..1600)).await?;
        platform.send(events(0..1500).step_by(9)).await?;
        let bad: [&[u8]; 7] = [
            b"not json",
            b"[1]",
            br#"{"at": "soon", "n": 1, "kind": "a"}"#,
            br#"{"at": 1357000000, "n": 1}"#,
            br#"{"at": 10000000000, "n": 1, "kind": "a"}"#,
            b"\xff\xfe",
            b"",
        ];
        platform.send_bad(bad.map(<[u8]>::to_vec)).await?;
        platform.send_bad([vec![b'x'; 5000]]).await?;
        platform.until_whole().await?;
        // There has to be something to publish.
        platform.until_archived().await?;

        // A run goes on while more comes; the answer is never more than was sent.
        let before = total(&platform.answer("merged").await?).0;
        let (published, sent) = tokio::join!(platform.publish(), platform.send(events(3000..4000)));
        sent?;
        let published = published?;
        assert!(total(&platform.answer("merged").await?).0 >= before);
        assert!(published.iter().all(|report| report.publication == Some(2)));
        platform.until_whole().await?;

        platform.until_archived().await?;
        let expected = [
            ("bad_time", 1),
            ("bad_utf8", 1),
            ("empty", 1),
            ("future_time", 1),
            ("missing_field", 1),
            ("not_json", 1),
            ("not_object", 1),
            ("too_large", 1),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(reason, count)| (reason.to_owned(), count)).into();
        assert_eq!(letters(&platform)?, expected);
        platform.stop_all().await
    })
}

/// A query in a loop while runs publish, roll back and go forward again: nothing is seen twice, or not at all.
#[test]
fn the_answer_never_moves_while_publications_change() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        let store = platform.store();
        let asked = AtomicU64::new(0);
        for round in 0..3 {
            platform.send(events(round * 700..round * 700 + 700)).await?;
            platform.until_whole().await?;
            platform.until_archived().await?;
            let expected = cells(&platform.sent());
            let done = AtomicBool::new(false);
            let changes = async {
                let changed = async {
                    platform.publish().await?;
                    if round > 0 {
                        // Workers fill what lies above the older marks again; what is missing meanwhile is told.
                        let view = &platform.definitions.views[0];
                        let newest = store
                            .facts(view)
                            .await?
                            .newest()
                            .map(|newest| newest.publication.number);
                        let newest = newest.unwrap_or_default();
                        highwater_batch::rollback(&store, view, None).await?;
                        platform.until_whole().await?;
                        highwater_batch::rollback(&store, view, Some(newest.0)).await?;
                    }
                    anyhow::Ok(())
                };
                let changed = changed.await;
                done.store(true, Ordering::Relaxed);
                changed
            };
            let asks = async {
                while !done.load(Ordering::Relaxed) {
                    let path = "/api/v1/views/hourly/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z\
                                &measures=events,value";
                    let answer = platform.ask(path).await?;
                    let row = &answer["data"][0];
                    let now = (row["events"].as_u64(), row["value"].as_str().map(str::to_owned));
                    let (events, value) = total(&expected);
                    let whole = now == (Some(events), Some(value.to_string()));
                    // After a rollback the speed layer reads again: an answer that lacks something must say so.
                    let says_so = row["coverage"] == "partial" && row["coverage_reason"] != "open";
                    let less = now.0.unwrap_or_default() <= events;
                    anyhow::ensure!(
                        whole || (round > 0 && says_so && less),
                        "{row} instead of {events}, {value}"
                    );
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            };
            let (changed, asked_all) = tokio::join!(changes, asks);
            changed?;
            asked_all?;
            platform.until_whole().await?;
        }
        assert!(
            asked.load(Ordering::Relaxed) > 6,
            "the loops asked too seldom to mean anything"
        );
        platform.stop_all().await
    })
}

/// A day without the speed layer, then a run, then the speed layer again; and a view that is new.
#[test]
fn a_speed_layer_that_was_away_goes_on_from_the_mark() -> anyhow::Result<()> {
    run(async {
        let mut platform = Platform::new(None).await?;
        platform.start().await?;
        platform.send(events(0..900)).await?;
        platform.until_whole().await?;
        platform.stop("speed").await?;

        platform.send(events(900..2500)).await?;
        platform.until_archived().await?;
        let reports = platform.publish().await?;
        assert!(
            reports.iter().all(|report| report.fell_back == 0),
            "a dead speed layer makes nobody wait: {reports:?}"
        );
        let batch = total(&platform.answer("batch").await?).0;
        assert!(batch > 900, "the run published {batch} events without the speed layer");

        platform.send(events(2500..2700)).await?;
        platform.start_speed()?;
        platform.until_whole().await?;

        // A view that is new is read from the log's beginning, by a reader of its own; the others go on.
        let more = "\n[view.kinds]\ndataset = \"events\"\ngrain = \"1d\"\ndimensions = [\"kind\"]\n\
                    [view.kinds.measures]\nevents = \"count()\"\n";
        let definitions = Definitions::parse([("views.toml", VIEWS.replace("TOPIC", &platform.topic) + more)]);
        platform.definitions = definitions.map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        platform.store().create_tables(&platform.definitions).await?;
        platform.stop("speed").await?;
        platform.stop("serving").await?;
        platform.start_speed()?;
        platform.start_serving().await?;
        platform.send(events(2700..2800)).await?;
        platform.until_whole().await?;
        let whole = async || -> anyhow::Result<bool> {
            let path = "/api/v1/views/kinds/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&measures=events";
            let answer = platform.ask(path).await?;
            Ok(answer["data"][0]["events"].as_u64() == Some(platform.sent().len() as u64))
        };
        let began = tokio::time::Instant::now();
        while !whole().await? {
            anyhow::ensure!(began.elapsed() < PATIENCE, "the new view never has all events");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let reports = platform.batch(&["kinds"]).await?;
        assert_eq!(reports[0].result, Outcome::Published);
        assert!(whole().await?);
        platform.stop_all().await
    })
}

/// ClickHouse is killed and comes back while events stream: the layers wait for it.
#[test]
fn a_store_that_was_killed_comes_back_to_the_same_answer() -> anyhow::Result<()> {
    run(async {
        let mut clickhouse = ClickHouse::start()?;
        let mut platform = Platform::new(Some(clickhouse.url())).await?;
        platform.start().await?;
        platform.send(events(0..400)).await?;
        platform.until_whole().await?;
        for round in 1..4 {
            platform.send(events(round * 400..round * 400 + 200)).await?;
            clickhouse.kill()?;
            assert!(platform.answer("merged").await.is_err(), "nothing can answer");
            platform.send(events(round * 400 + 200..round * 400 + 400)).await?;
            clickhouse.start_again_there()?;
            platform.until_whole().await?;
        }
        platform.until_archived().await?;
        platform.publish().await?;
        platform.until_whole().await?;
        platform.stop_all().await
    })
}
