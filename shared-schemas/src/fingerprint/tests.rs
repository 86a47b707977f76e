//! The persisted form, pinned for ever, and what must and must not change it.

use std::time::Duration;

use super::{Fingerprint, rules_text, view_text};
use crate::dataset::{Dataset, EventTime, KeyCheck, Mask, PathMask, Truncate, Undeclared};
use crate::view::fixture::{compile, dataset, every_measure, source};
use crate::view::{MeasureSource, View, ViewSource};

fn golden_view() -> ViewSource {
    let mut source = source(
        Some("origin<>'a \"b\"\n'"),
        &[("carrier", "carrier"), ("long", "distance>2000")],
        &[("flights", "count()"), ("delay", "avg( delay )")],
    );
    source.measures.push((
        "late".to_owned(),
        MeasureSource::Aggregate {
            call: "COUNT(*)".to_owned(),
            condition: Some("delay > 15".to_owned()),
        },
    ));
    source.measures.push((
        "share".to_owned(),
        MeasureSource::Ratio {
            numerator: "late".to_owned(),
            denominator: "flights".to_owned(),
        },
    ));
    source
}

fn masked() -> Dataset {
    let mut dataset = dataset();
    dataset.fields[3].mask = Some(Mask::Hash { key: "KEY".to_owned() });
    dataset.fields[2].mask = Some(Mask::Truncate(Truncate::Characters(2)));
    dataset
}

/// If this fails, every table that exists would be orphaned: raise a version instead, and keep the old text.
#[test]
fn texts_are_pinned() {
    let rules = "\
highwater rules 1
decoder 1
topic \"flights\"
format json
event_time \"at\"
event_id \"id\"
dedupe 600000000000 ns
future 600000000000 ns
max_event_size 1048576
chunk 8
field \"at\" timestamp from \"at\"
field \"id\" int64 from \"id\"
field \"origin\" string from \"origin\"
mask \"origin\" truncate 2
field \"carrier\" string? from \"carrier\"
mask \"carrier\" hash \"KEY\"
field \"delay\" int64? from \"delay\"
field \"distance\" float64? from \"distance\"
field \"fare\" decimal(10,2)? from \"fare\"
field \"cancelled\" bool? from \"cancelled\"
field \"day\" date? from \"day\"
";
    assert_eq!(rules_text(&masked()), rules);
    let view = compile(&golden_view());
    let text = format!(
        "\
highwater view 1
plan 1
rules {}
grain 3600 s
filter \"origin <> 'a \\\"b\\\"\\u000a'\"
dimension \"carrier\" string? \"carrier\"
dimension \"long\" bool? \"distance > 2000\"
measure \"flights\" count
measure \"delay\" avg
of int64 \"delay\"
measure \"late\" count
where \"delay > 15\"
ratio \"share\" 2 0
",
        Fingerprint::of_rules(&dataset())
    );
    assert_eq!(view_text(&view, &dataset()), text);
    assert_eq!(
        Fingerprint::of_rules(&masked()).to_string(),
        "92c7b95828e1ffce1b1ab4cbcd63d3bd"
    );
    assert_eq!(view.fingerprint.to_string(), "f0adfb50cca41b5a1fa4476d1f4a17d6");
}

fn fingerprint(change: impl FnOnce(&mut ViewSource, &mut Dataset)) -> Fingerprint {
    let (mut source, mut dataset) = (every_measure(), dataset());
    change(&mut source, &mut dataset);
    View::compile(&source, &dataset).unwrap().fingerprint
}

/// Asks for other quantiles of the delay.
fn requantile(view: &mut ViewSource, call: &str) {
    let measure = view.measures.iter_mut().find(|(name, _)| name == "delay_q").unwrap();
    measure.1 = MeasureSource::Aggregate {
        call: call.to_owned(),
        condition: None,
    };
}

/// What is said of quantiles and sets is part of the text where there are some, and nowhere else.
#[test]
fn levels_and_limits_are_pinned() {
    let calls = [
        ("carriers", "distinct(carrier)"),
        ("delay", "quantiles( delay,[ 0.5,.95, 1 ] )"),
    ];
    let mut of_sets = source(None, &[], &calls);
    of_sets.distinct_limit = Some(7);
    let text = view_text(&compile(&of_sets), &dataset());
    let expected = "\
measure \"carriers\" distinct
of string \"carrier\"
limit 7
measure \"delay\" quantiles
of int64 \"delay\"
at [0.5, 0.95, 1.0]
";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn what_changes_no_answer_changes_no_fingerprint() {
    let same = fingerprint(|_, _| {});
    let unchanged: [fn(&mut ViewSource, &mut Dataset); 7] = [
        |view, _| view.name = "another".to_owned(),
        |_, dataset| dataset.name = "another".to_owned(),
        |_, dataset| dataset.partitions = 9,
        |_, dataset| dataset.lateness = Duration::from_secs(1),
        |_, dataset| dataset.dedupe_memory = 1,
        |view, _| view.filter = Some(" id<>7 -- all but 7".to_owned()),
        |view, _| requantile(view, "quantiles(delay, [.50, 0.0, 1e0])"),
    ];
    for (number, change) in unchanged.into_iter().enumerate() {
        assert_eq!(fingerprint(change), same, "change {number}");
    }
}

#[test]
fn what_changes_an_answer_changes_the_fingerprint() {
    let changes: [fn(&mut ViewSource, &mut Dataset); 18] = [
        |_, _| {},
        |view, _| view.grain = Duration::from_secs(60),
        |view, _| view.filter = None,
        |view, _| view.filter = Some("id <> 8".to_owned()),
        |view, _| view.dimensions.swap(0, 1),
        |view, _| view.dimensions[0].name = "airline".to_owned(),
        |view, _| view.measures.swap(0, 1),
        |view, _| view.measures[1].0 = "n".to_owned(),
        |view, _| view.distinct_limit = Some(4),
        |view, _| requantile(view, "quantiles(delay, [0.5, 1, 0])"),
        |_, dataset| dataset.topic = "other".to_owned(),
        |_, dataset| dataset.chunk = 16,
        |_, dataset| dataset.event_id.clear(),
        |_, dataset| dataset.event_time = EventTime::KafkaTime,
        |_, dataset| dataset.dedupe_window = Duration::from_secs(1),
        |_, dataset| dataset.future = Duration::from_secs(1),
        |_, dataset| dataset.max_event_size = 7,
        |_, dataset| dataset.fields[3].mask = Some(Mask::Redact),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (number, change) in changes.into_iter().enumerate() {
        assert!(seen.insert(fingerprint(change)), "change {number}");
    }
}

/// A dataset as its definition has it, with what is known of its keys.
fn with_key(key: &[u8]) -> Dataset {
    let mut dataset = masked();
    let check = KeyCheck::of(key).unwrap();
    dataset.privacy.key_checks = [("KEY".to_owned(), check), ("OTHER".to_owned(), check)].into();
    dataset
}

#[test]
fn a_key_leaves_a_check_where_something_is_hashed_with_it() {
    // HMAC-SHA-256 of the fixed text under the key `secret`, as Python's hmac module has it; never to change.
    let line = "key \"KEY\" d951c79ab1b83fd2\n";
    assert_eq!(
        rules_text(&with_key(b"secret")),
        format!("{}{line}", rules_text(&masked()))
    );
    assert!(!rules_text(&with_key(b"secret")).contains("secret"));

    let rules = |key: &[u8]| Fingerprint::of_rules(&with_key(key));
    assert_eq!(rules(b"secret"), rules(b"secret"));
    assert_ne!(
        rules(b"secret"),
        rules(b"Secret"),
        "a rotated key is another definition"
    );
    assert_ne!(rules(b"secret"), Fingerprint::of_rules(&masked()));
    let view = |dataset: &Dataset| View::compile(&golden_view(), dataset).unwrap().fingerprint;
    assert_ne!(view(&with_key(b"secret")), view(&with_key(b"Secret")));

    // A dataset that hashes nothing is as it was.
    let mut unhashed = dataset();
    unhashed.privacy.key_checks = with_key(b"secret").privacy.key_checks;
    assert_eq!(rules_text(&unhashed), rules_text(&dataset()));
    assert_eq!(KeyCheck::of(b""), None);
}

#[test]
fn rules_for_undeclared_data_are_rules_and_change_no_view() {
    let rule = |path: &[&str], mask| PathMask {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
        mask,
    };
    let mut dropping = with_key(b"secret");
    dropping.privacy.undeclared = Undeclared::Drop;
    let mut other = with_key(b"secret");
    other.privacy.paths = vec![
        rule(
            &["a.b", "c"],
            Mask::Hash {
                key: "OTHER".to_owned(),
            },
        ),
        rule(&["d"], Mask::Drop),
    ];
    let same = rules_text(&with_key(b"secret"));
    assert_eq!(rules_text(&dropping), format!("{same}extra drop\n"));
    let lines = "mask extra \"a.b\".\"c\" hash \"OTHER\"\nmask extra \"d\" drop\nkey \"OTHER\" d951c79ab1b83fd2\n";
    assert_eq!(rules_text(&other), format!("{same}{lines}"));
    let view = |dataset: &Dataset| View::compile(&golden_view(), dataset).unwrap().fingerprint;
    assert_eq!(view(&dropping), view(&with_key(b"secret")));
    assert_eq!(view(&other), view(&with_key(b"secret")));
}
