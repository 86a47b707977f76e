//! Sights made up by hand, and what is reported and shown of them.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::DateTime;
use shared_connections::log::DeadLetters;
use shared_connections::store::{Facts, FreshnessOfPartition, Ledger, Origin, PartitionState, Published, Run};
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    EventDay, Mark, Offset, OffsetRange, OffsetSet, Partition, Publication, RunId, SpeedProgress, Start, TopicId,
};

use super::super::look::{ArchiveSight, KafkaSight, StoreSight, TopicSight, ViewSight};
use super::super::screen;
use super::*;

const NOW: i64 = 1_800_000_000_000;
const TOPIC: TopicId = TopicId(7);
const EARLIER: TopicId = TopicId(6);

const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "landings"
partitions = 2
event_time = "at"
chunk = 64
[dataset.flights.fields]
at = "timestamp"
[view.hourly]
dataset = "flights"
grain = "1h"
measures = { flights = "count()" }
[view.daily]
dataset = "flights"
grain = "1d"
measures = { flights = "count()" }
"#;

fn definitions() -> Definitions {
    Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap()
}

fn report(sight: &Sight) -> Report {
    let text = "[archive]\nurl = \"file:/data/archive\"\n";
    let config = Config::parse(text, "highwater.toml", Path::new(""), &|_| None).config;
    Report::of(&config, &definitions(), sight)
}

fn rules() -> String {
    Fingerprint::of_rules(&definitions().datasets[0]).to_string()
}

fn partition(number: u32) -> Partition {
    Partition { topic: TOPIC, number }
}

fn range(from: u64, to: u64) -> OffsetRange {
    OffsetRange {
        from: Offset(from),
        to: Offset(to),
    }
}

fn row(number: u32, next: u64, state: PartitionState) -> FreshnessOfPartition {
    FreshnessOfPartition {
        partition: partition(number),
        next: Offset(next),
        log_end: Offset(100),
        watermark: Some(1_383_300_000_000_000),
        kafka_time: Some(NOW - 90_000),
        state,
        reason: String::new(),
        seen: NOW - 500,
    }
}

fn ledger(number: u32, start: u64, next: u64, rules: &str) -> (Partition, Start, Ledger) {
    let ledger = Ledger {
        next: Offset(next),
        rules: rules.to_owned(),
        read: next - start,
        aggregated: next - start,
        ..Ledger::default()
    };
    (partition(number), Start(Offset(start)), ledger)
}

/// Two partitions of 100 and 40 offsets, read by both views; a publication up to the first chunk of partition 0.
fn whole() -> Sight {
    let publication = Publication {
        days: BTreeMap::from([(EventDay(15_000), RunId(1))]),
        ..Publication::of_run(
            None,
            RunId(1),
            BTreeMap::from([(partition(0), Mark(Offset(64)))]),
            &BTreeMap::new(),
            &std::collections::BTreeSet::new(),
        )
    };
    let mut facts = Facts {
        publications: vec![Published {
            publication,
            at: NOW - 7_500_000,
            origin: Origin {
                rules: Fingerprint::of_rules(&definitions().datasets[0]),
                archive_version: 17,
                ..Origin::default()
            },
        }],
        ..Facts::default()
    };
    for (number, start, next) in [(0, 0, 64), (0, 64, 100), (1, 0, 40)] {
        let held: &mut SpeedProgress = facts.progress.entry(partition(number)).or_default();
        held.record(Start(Offset(start)), Offset(next));
    }
    let view = ViewSight {
        facts,
        freshness: vec![row(0, 100, PartitionState::Live), row(1, 40, PartitionState::Idle)],
        ledgers: vec![
            ledger(0, 0, 64, &rules()),
            ledger(0, 64, 100, &rules()),
            ledger(1, 0, 40, &rules()),
        ],
        runs: vec![Run {
            id: RunId(1),
            parent: Default::default(),
            begun: NOW - 7_560_000,
        }],
        last_report: None,
        answered_by: None,
    };
    let building = ViewSight {
        freshness: vec![row(0, 90, PartitionState::Behind), row(1, 40, PartitionState::Idle)],
        answered_by: Some(Fingerprint(7)),
        ..ViewSight::default()
    };
    let reasons = BTreeMap::from([("not_json".to_owned(), 3), ("empty".to_owned(), 1)]);
    let letters = DeadLetters {
        counts: BTreeMap::from([("flights".to_owned(), reasons)]),
        replayed: BTreeMap::from([("flights".to_owned(), 2)]),
        unread: 0,
    };
    let archive = ArchiveSight {
        version: 18,
        ends: BTreeMap::from([(partition(0), Offset(80)), (partition(1), Offset(40))]),
        latest: BTreeMap::from([(partition(0), NOW - 12_000), (partition(1), NOW - 12_000)]),
        rules: BTreeMap::from([((partition(0), rules()), range(0, 80))]),
        ..ArchiveSight::default()
    };
    let topic = TopicSight {
        id: TOPIC,
        logs: BTreeMap::from([(0, range(0, 100)), (1, range(0, 40))]),
    };
    Sight {
        at: DateTime::from_timestamp_millis(NOW).unwrap(),
        kafka: KafkaSight {
            away: None,
            topics: BTreeMap::from([("landings".to_owned(), Ok(topic))]),
            letters: BTreeMap::from([("landings".to_owned(), Ok(letters))]),
        },
        store: StoreSight {
            away: None,
            views: BTreeMap::from([("hourly".to_owned(), Ok(view)), ("daily".to_owned(), Ok(building))]),
        },
        archives: BTreeMap::from([("flights".to_owned(), Ok(Some(archive)))]),
        running: None,
    }
}

fn view<'a>(sight: &'a mut Sight, name: &str) -> &'a mut ViewSight {
    sight.store.views.get_mut(name).unwrap().as_mut().unwrap()
}

#[test]
fn one_screen_tells_all() {
    let expected = "\
kafka       127.0.0.1:9092
clickhouse  http://127.0.0.1:8123
archive     file:/data/archive
batch       next run 2027-01-16T02:00:00Z, in 18 h 0 min (0 2 * * *, UTC)

dataset flights (topic landings)
  partition  log end  speed   lag  fresh  watermark             archive   lag  fresh
  0          100      behind  10   1 min  2013-11-01T10:00:00Z  behind    20   12 s
  1          40       idle    0    now    2013-11-01T10:00:00Z  complete  0    now
  dead letters  4: empty 1, not_json 3; 2 of them sent again

view hourly (dataset flights)
  publication  1, 2 h 5 min ago, 1 event day, archive version 17
  last run     begun 2 h 6 min ago, published 1
  partition  mark  speed up to  read above the mark
  0          64    100          aggregated 36, read 36
  1          0     40           aggregated 40, read 40

view daily (dataset flights)
  publication  none yet: its old definition answers, 0 % counted
  last run     none yet
";
    assert_eq!(screen::text(&report(&whole())), expected);
}

#[test]
fn the_view_that_is_furthest_behind_counts() {
    let mut sight = whole();
    let speed = |sight: &Sight| {
        let report = report(sight);
        let speed = &report.datasets[0].partitions[0].speed.layer;
        (speed.state, speed.next, speed.lag_events, speed.lag_seconds)
    };
    assert_eq!(speed(&sight), (State::Behind, Some(90), Some(10), Some(90.0)));
    // Nobody reads for the second view any more, then nobody ever did.
    view(&mut sight, "daily").freshness[0].seen = NOW - 11_000;
    assert_eq!(speed(&sight).0, State::Stuck);
    view(&mut sight, "daily").freshness.clear();
    assert_eq!(
        speed(&sight),
        (State::NothingYet, Some(100), Some(0), Some(0.0)),
        "of the one that reads"
    );
    sight.store.views.insert("daily".to_owned(), Err("broken".to_owned()));
    assert_eq!(speed(&sight).0, State::Unknown);
    assert_eq!(report(&sight).problems, ["broken"]);
}

#[test]
fn a_topic_made_again_begins_anew() {
    let mut sight = whole();
    let topic = TopicSight {
        id: EARLIER,
        logs: BTreeMap::from([(0, range(0, 5))]),
    };
    sight.kafka.topics.insert("landings".to_owned(), Ok(topic));
    let told = report(&sight);
    let partitions = &told.datasets[0].partitions;
    assert_eq!(partitions.len(), 1);
    assert_eq!(partitions[0].speed.layer.state, State::NothingYet);
    assert_eq!(partitions[0].speed.layer.lag_events, Some(5));
    assert_eq!(partitions[0].archive.lag_events, Some(5));
    assert_eq!(
        told.warnings,
        ["dataset flights: the archive also holds 2 partitions of an earlier topic of that name"]
    );
}

#[test]
fn what_is_away_is_named_and_the_rest_is_told() {
    let mut sight = whole();
    sight.kafka = KafkaSight {
        away: Some("no Kafka".to_owned()),
        ..KafkaSight::default()
    };
    let told = report(&sight);
    assert!(!told.kafka.answers && told.clickhouse.answers);
    assert_eq!(told.problems, ["no Kafka"]);
    let first = &told.datasets[0].partitions[0];
    assert_eq!(
        (first.log_end, first.archive.lag_events),
        (Some(100), Some(20)),
        "as the workers said"
    );
    assert!(told.datasets[0].dead_letters.is_none());

    sight.store = StoreSight {
        away: Some("no ClickHouse".to_owned()),
        ..StoreSight::default()
    };
    let told = report(&sight);
    assert_eq!(told.problems, ["no Kafka", "no ClickHouse"]);
    let first = &told.datasets[0].partitions[0];
    assert_eq!(
        (first.speed.layer.state, first.archive.next),
        (State::Unknown, Some(80))
    );
    assert!(screen::text(&told).contains("view hourly (dataset flights)\n  nothing is known of it\n"));
}

#[test]
fn nothing_yet_is_told_as_such() {
    let mut sight = whole();
    sight.archives.insert("flights".to_owned(), Ok(None));
    for name in ["hourly", "daily"] {
        *view(&mut sight, name) = ViewSight::default();
    }
    let topic = TopicSight {
        id: TOPIC,
        logs: BTreeMap::from([(0, range(0, 0)), (1, range(0, 0))]),
    };
    sight.kafka.topics.insert("landings".to_owned(), Ok(topic));
    sight
        .kafka
        .letters
        .insert("landings".to_owned(), Ok(DeadLetters::default()));
    let told = report(&sight);
    assert_eq!((told.problems.len(), told.warnings.len()), (0, 0));
    let text = screen::text(&told);
    let expected = "dataset flights (topic landings)\n  nothing in the topic and nothing read yet, 2 partitions\n  \
                    dead letters  none\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_needs_attention_is_said() {
    let mut sight = whole();
    let hourly = view(&mut sight, "hourly");
    hourly.ledgers[0].2.rules = "0123456789abcdef".to_owned();
    hourly.ledgers[1].2.invalid.insert("not_json".to_owned(), 2);
    // Below the mark a run knows better.
    (
        hourly.ledgers[0].2.unsure,
        hourly.ledgers[1].2.unsure,
        hourly.ledgers[2].2.unsure,
    ) = (9, 3, 4);
    hourly.freshness[0].state = PartitionState::Behind;
    hourly.freshness[0].reason = "it waits for its turn".to_owned();
    hourly.facts.publications[0].origin.rules = Fingerprint(0x0123_4567_89ab_cdef << 64);
    hourly.freshness[1].state = PartitionState::Stuck;
    hourly.freshness[1].reason = "Kafka is away".to_owned();
    let lost = hourly.facts.progress.get_mut(&partition(1)).unwrap();
    lost.record_gap(Start(Offset(0)), range(0, 3));
    let archive = sight
        .archives
        .get_mut("flights")
        .unwrap()
        .as_mut()
        .unwrap()
        .as_mut()
        .unwrap();
    archive.gaps = BTreeMap::from([(partition(1), OffsetSet::from_iter([range(0, 3), range(7, 8)]))]);
    archive.truncated = BTreeMap::from([(partition(0), range(70, 80))]);
    let old = (partition(0), "fedcba9876543210".to_owned());
    archive.rules.insert(old, range(3, 10));
    if let Some(Ok(letters)) = sight.kafka.letters.get_mut("landings") {
        letters.unread = 5;
    }
    let now = &rules()[..8];
    let said = report(&sight).warnings.join("\n").replace(now, "NOW");
    let expected = "\
dataset flights: the archive holds partition 0, offsets 3 to 9, under rules fedcba98, and the definitions have NOW
dataset flights: the archive lacks offsets 0 to 2 and 1 range more of partition 1: Kafka no longer had them
dataset flights: the archive goes no further on partition 0: its log ended at offset 70 after it was archived up to 80; \
                    make the topic again to go on
view hourly: the speed layer is behind on partition 0 (a worker spoke of it just now): it waits for its turn
view hourly: the speed layer is stuck on partition 1 (a worker spoke of it just now): Kafka is away
view hourly: the speed layer read partition 0, offsets 0 to 63, under rules 01234567, and the definitions have NOW
view hourly: publication 1 was computed under rules 01234567, and the definitions have NOW
view hourly: the speed layer lacks offsets 0 to 2 of partition 1: Kafka no longer had them
dataset flights: 1.4 % of the records that view hourly counts above its marks were refused, more than \
                    speed.invalid_alarm: see `highwater dead-letters list flights`
dataset flights: 7 records that view hourly counts above its marks may be repeats, since not the whole `dedupe.window` was \
                    remembered: `dedupe.memory` is too small for it, or the log began later; the next batch run knows
dataset flights: not all dead letters are counted, 5 offsets of topic landings.dead-letters were not looked at";
    assert_eq!(said, expected);
}

#[test]
fn a_run_is_under_way_while_its_lease_is_held() {
    let mut sight = whole();
    view(&mut sight, "hourly").runs[0].id = RunId(2);
    let result = |sight: &Sight| {
        let told = report(sight);
        let hourly = told.views.iter().find(|view| view.view == "hourly").unwrap();
        hourly.last_run.as_ref().unwrap().result
    };
    assert_eq!(result(&sight), RunResult::NotPublished);
    let begun = |millis| DateTime::from_timestamp_millis(millis).unwrap().to_rfc3339();
    let holder = |begun| highwater_batch::lease::Holder {
        doing: "batch run".to_owned(),
        pid: 1,
        host: "here".to_owned(),
        begun,
        id: "2".to_owned(),
    };
    sight.running = Some(holder(begun(NOW - 7_561_000)));
    assert_eq!(result(&sight), RunResult::UnderWay);
    sight.running = Some(holder(begun(NOW - 1_000)));
    assert_eq!(result(&sight), RunResult::NotPublished, "that is another one");

    let told = |sight: &Sight| screen::text(&report(sight));
    assert!(told(&sight).contains("did not publish, and told nothing\n"));
    view(&mut sight, "hourly").last_report = Some(highwater_batch::ViewReport {
        why: Some("a file is damaged".to_owned()),
        ..Default::default()
    });
    assert!(told(&sight).contains("did not publish: a file is damaged\n"));
}
