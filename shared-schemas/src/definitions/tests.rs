//! Definitions against golden files, and against text that nobody would write.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dataset::{EventTime, Field};
use crate::dataset::{FieldSource, FieldType, Format, Mask, TimeUnit, Truncate};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/definitions")
}

/// The files of a golden folder, by name.
fn files(folder: &Path) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    toml_files(folder)
        .unwrap()
        .iter()
        .map(|path| (name(path), std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// Every folder holds definitions and, in `expected.txt`, what is said of them. After a wanted change,
/// `HIGHWATER_BLESS=1 cargo test` writes what is said now; read the difference.
#[test]
fn golden_mistakes() {
    let bless = std::env::var_os("HIGHWATER_BLESS").is_some();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let mut different = Vec::new();
    for folder in &folders {
        let Err(mistakes) = Definitions::parse(files(folder)) else {
            different.push(format!("{}: no mistake is found", folder.display()));
            continue;
        };
        let said = format!("{mistakes}\n");
        let expected = folder.join("expected.txt");
        if bless {
            std::fs::write(&expected, &said).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
            different.push(format!("{}:\n{said}", folder.display()));
        }
    }
    assert!(folders.len() > 15, "the golden folder is gone");
    assert!(different.is_empty(), "{}", different.join("\n"));
}

const CONTRACT: &str = r#"
[dataset.flights]
topic = "flights"
partitions = 4
format = "json"
event_time = "scheduled_departure"
event_id = ["carrier", "flight", "scheduled_departure"]
lateness = "1h"
future = "10m"
dedupe = { window = "10m", memory = "256MiB" }
max_event_size = "1MiB"
chunk = 262144

[dataset.flights.fields]
carrier = "string"
flight = "int64"
scheduled_departure = "timestamp"
ts = { type = "timestamp", unit = "ms" }
country = { type = "string?", from = "geo.country" }
departure_delay = "float64?"
distance = "float64"
price = "decimal(12, 2)?"
tail = "string?"

[dataset.flights.mask]
tail = { hash = "TAIL_KEY" }
"#;

#[test]
fn a_dataset_is_read_as_written() {
    let definitions = Definitions::parse([("a.toml", CONTRACT)]).unwrap();
    let dataset = definitions.dataset("flights").unwrap();
    let names: Vec<&str> = dataset.fields.iter().map(|field| field.name.as_str()).collect();
    let order = [
        "carrier",
        "flight",
        "scheduled_departure",
        "ts",
        "country",
        "departure_delay",
        "distance",
        "price",
        "tail",
    ];
    assert_eq!(names, order);
    assert_eq!(
        (dataset.topic.as_str(), dataset.partitions, dataset.format),
        ("flights", 4, Format::Json)
    );
    assert_eq!(dataset.event_time, EventTime::Field("scheduled_departure".to_owned()));
    assert_eq!(dataset.event_id, ["carrier", "flight", "scheduled_departure"]);
    assert_eq!(
        (
            dataset.lateness.as_secs(),
            dataset.future.as_secs(),
            dataset.dedupe_window.as_secs()
        ),
        (3600, 600, 600)
    );
    assert_eq!(
        (dataset.dedupe_memory, dataset.max_event_size, dataset.chunk),
        (256 << 20, 1 << 20, 262_144)
    );
    let field = |name: &str| dataset.field(name).unwrap();
    assert_eq!(
        field("ts").field_type,
        FieldType::Timestamp {
            unit: Some(TimeUnit::Millisecond)
        }
    );
    assert_eq!(
        field("price").field_type,
        FieldType::Decimal {
            precision: 12,
            scale: 2
        }
    );
    assert_eq!(
        field("country").source,
        FieldSource::Path(vec!["geo".to_owned(), "country".to_owned()])
    );
    assert!(field("country").nullable && !field("distance").nullable);
    assert_eq!(
        field("tail").mask,
        Some(Mask::Hash {
            key: "TAIL_KEY".to_owned()
        })
    );
}

#[test]
fn all_but_event_time_and_fields_has_a_default() {
    let text = "[dataset.d]\nevent_time = \"$kafka_time\"\n[dataset.d.fields]\na = \"string\"\n";
    let definitions = Definitions::parse([("a.toml", text)]).unwrap();
    let field = Field {
        name: "a".to_owned(),
        field_type: FieldType::String,
        nullable: false,
        source: FieldSource::Path(vec!["a".to_owned()]),
        mask: None,
    };
    let expected = Dataset {
        name: "d".to_owned(),
        topic: "d".to_owned(),
        event_time: EventTime::KafkaTime,
        event_id: Vec::new(),
        fields: vec![field],
        ..Definitions::parse([("a.toml", CONTRACT)]).unwrap().datasets.remove(0)
    };
    assert_eq!(definitions.datasets, [expected]);
}

#[test]
fn every_form_of_a_mask_is_read() {
    for (form, mask) in [
        ("\"redact\"", Mask::Redact),
        ("{ redact = true }", Mask::Redact),
        ("\"drop\"", Mask::Drop),
        ("{ drop = true }", Mask::Drop),
        ("{ truncate = 3 }", Mask::Truncate(Truncate::Characters(3))),
        ("{ truncate = \"ip\" }", Mask::Truncate(Truncate::Network)),
        ("{ hash = \"K\" }", Mask::Hash { key: "K".to_owned() }),
    ] {
        let head = "[dataset.d]\nevent_time = \"$kafka_time\"\nfields = { a = \"string?\" }\n";
        let definitions = Definitions::parse([("a.toml", format!("{head}mask = {{ a = {form} }}\n"))]).unwrap();
        assert_eq!(definitions.datasets[0].fields[0].mask, Some(mask));
    }
}

fn paths_of(rules: &str) -> Vec<(Vec<String>, Mask)> {
    let head = "[dataset.d]\nevent_time = \"$kafka_time\"\nfields = { a = \"string?\" }\n[dataset.d.mask]\n";
    let definitions = Definitions::parse([("a.toml", format!("{head}{rules}"))]).unwrap();
    let paths = definitions.datasets[0].privacy.paths.clone();
    paths.into_iter().map(|rule| (rule.path, rule.mask)).collect()
}

#[test]
fn a_mask_may_be_for_a_path_of_undeclared_data() {
    for (key, path) in [
        ("\"user.email\"", &["user", "email"][..]),
        ("\"_extra.user.email\"", &["user", "email"]),
        ("\"_extra.email\"", &["email"]),
        ("\"_extra._extra.x\"", &["_extra", "x"]),
        ("'user\\.name.e\\\\mail'", &["user.name", "e\\mail"]),
        ("'user\\.name'", &["user.name"]),
        ("\"_extra.a\\\\.b\"", &["a.b"]),
        ("\"a b.ü\"", &["a b", "ü"]),
    ] {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            paths_of(&format!("{key} = \"redact\"")),
            [(path, Mask::Redact)],
            "{key}"
        );
    }
    // Sorted, whatever the order of the file: the same rules are the same fingerprint.
    assert_eq!(
        paths_of("\"b.x\" = \"drop\"\n\"_extra.z\" = { truncate = \"day\" }\n\"b.a\" = \"redact\"")
            .iter()
            .map(|(path, _)| path.join("."))
            .collect::<Vec<_>>(),
        ["b.a", "b.x", "z"]
    );
}

#[test]
fn keys_that_are_missing_are_named_with_their_lines() {
    let text = "[dataset.d]\nevent_time = \"$kafka_time\"\nfields = { a = \"string?\", b = \"string\" }\n\
                [dataset.d.mask]\na = { hash = \"A\" }\nb = { hash = \"B\" }\n\"x.y\" = { hash = \"C\" }\n\
                [dataset.open]\nevent_time = \"$kafka_time\"\nfields = { a = \"string?\" }\n\
                [view.v]\ndataset = \"d\"\ngrain = \"1m\"\nmeasures = { n = \"count()\" }\n\
                [view.w]\ndataset = \"open\"\ngrain = \"1m\"\nmeasures = { n = \"count()\" }\n";
    let taken = |keys: &[(&str, &str)]| {
        let keys: HashMap<String, Vec<u8>> = keys
            .iter()
            .map(|(name, key)| ((*name).to_owned(), key.as_bytes().to_vec()))
            .collect();
        let mut definitions = Definitions::parse([("a.toml", text)]).unwrap();
        let missing: String = definitions.take_keys(&keys).iter().map(ToString::to_string).collect();
        let fingerprints: Vec<_> = definitions.views.iter().map(|view| view.fingerprint).collect();
        (missing, fingerprints)
    };
    let (missing, without) = taken(&[("A", "s"), ("B", "")]);
    let said = [
        "a.toml:6:5: field `b` is to be hashed with the key in B, which is empty\n",
        "a.toml:7:9: path `x.y` is to be hashed with the key in C, which is not set\n",
    ];
    assert!(said.iter().all(|said| missing.contains(said)), "{missing}");
    assert!(!missing.contains("a.toml:5"), "{missing}");
    let (missing, whole) = taken(&[("A", "s"), ("B", "t"), ("C", "u")]);
    assert_eq!(missing, "");
    let (_, rotated) = taken(&[("A", "s"), ("B", "t2"), ("C", "u")]);
    let (_, other_path) = taken(&[("A", "s"), ("B", "t"), ("C", "u2")]);
    assert!(whole[0] != without[0] && rotated[0] != whole[0] && whole == other_path);
    assert!(
        whole[1] == without[1] && rotated[1] == whole[1],
        "the other dataset hashes nothing"
    );
}

#[test]
fn a_folder_without_definitions_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let load = || Definitions::load(folder.path()).unwrap_err().to_string();
    assert!(load().contains("the folder has no *.toml file"));
    std::fs::write(folder.path().join(".hidden.toml"), "x").unwrap();
    assert!(load().contains("the folder has no *.toml file"));
    std::fs::write(folder.path().join("bad.toml"), b"a = 1\n\xff").unwrap();
    assert!(load().contains("is not UTF-8 from byte 6 on"));
    std::fs::remove_file(folder.path().join("bad.toml")).unwrap();
    std::fs::write(folder.path().join("good.toml"), CONTRACT).unwrap();
    assert!(Definitions::load(folder.path()).is_ok());
    assert!(
        Definitions::load(&folder.path().join("none"))
            .unwrap_err()
            .to_string()
            .contains("can't be read")
    );
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_example_is_sound() {
    let config = repository().join("deploy/examples/flights/highwater.toml");
    let config = crate::config::Config::load(Some(&config)).unwrap();
    let definitions = Definitions::load(&config.definitions).unwrap();
    let names: Vec<&str> = definitions.views.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(names, ["departures", "destinations"]);
}

#[test]
fn the_documented_definitions_are_sound_and_their_defaults_true() {
    let document = include_str!("../../../docs/configuration.md");
    let example = document
        .split("```toml\n")
        .find(|block| block.starts_with("[dataset."))
        .unwrap();
    let example = example.split("```").next().unwrap();
    let dataset = Definitions::parse([("a.toml", example)]).unwrap().datasets.remove(0);
    // The same with every default of the table written out.
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .take_while(|line| !line.contains("hash"));
    let mut explicit = String::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        if !matches!(cells[2], "the name" | "required" | "none") {
            explicit.push_str(&format!("{} = {}\n", cells[1], cells[2]));
        }
    }
    assert_eq!(explicit.lines().count(), 8, "{explicit}");
    let written_out = example.replacen("[dataset.flights]\n", &format!("[dataset.flights]\n{explicit}"), 1);
    assert_eq!(
        Definitions::parse([("a.toml", written_out)])
            .unwrap()
            .datasets
            .remove(0),
        dataset
    );
}

#[test]
fn a_view_keeps_what_its_dataset_keeps_or_less_and_stays_the_same_view() {
    let parsed = |of_dataset: &str, of_view: &str| {
        let text = format!(
            "[dataset.flights]\nevent_time = \"at\"\n{of_dataset}\n[dataset.flights.fields]\nat = \"timestamp\"\n\
             [view.hourly]\ndataset = \"flights\"\ngrain = \"1h\"\n{of_view}\nmeasures = {{ flights = \"count()\" }}\n"
        );
        Definitions::parse([("a.toml", text)]).unwrap()
    };
    let (long, short) = ("keep = \"400d\"", "keep = \"30d\"");
    let days = |days: u64| Some(Duration::from_secs(days * 86_400));
    for (of_dataset, of_view, wanted) in [
        ("", "", None),
        ("", short, days(30)),
        (long, "", days(400)),
        (long, short, days(30)),
        (long, long, days(400)),
    ] {
        let definitions = parsed(of_dataset, of_view);
        let view = &definitions.views[0];
        assert_eq!(view.keep, wanted, "{of_dataset} {of_view}");
        assert_eq!(view.fingerprint, parsed("", "").views[0].fingerprint);
    }
}

#[test]
fn the_documented_privacy_rules_are_sound() {
    let document = include_str!("../../../docs/privacy.md");
    let example = document.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let dataset = Definitions::parse([("a.toml", example)]).unwrap().datasets.remove(0);
    let paths: Vec<_> = dataset.privacy.paths.iter().map(|rule| rule.path.join("/")).collect();
    assert_eq!(paths, ["labels/app.owner", "token", "user/email"]);
    assert!(dataset.hides() && dataset.key_variables() == ["SIGNUP_KEY"].into());
}

/// Each mistake's place lies within its file.
fn assert_places(files: &[(String, String)], mistakes: &Mistakes) {
    for mistake in mistakes.iter() {
        let text = &files.iter().find(|(name, _)| *name == mistake.file).unwrap().1;
        let place = mistake.place.as_ref().unwrap();
        let line = text
            .split('\n')
            .nth(place.line - 1)
            .unwrap_or_else(|| panic!("no such line: {mistake}"));
        let length = line.chars().count();
        assert!(place.column >= 1 && place.column <= length + 1, "{mistake}");
        assert!(place.column - 1 + place.width <= length + 1, "{mistake}");
    }
}

/// A sound file with a few characters changed.
fn damaged() -> impl Strategy<Value = String> {
    let sources: Vec<String> = std::fs::read_dir(golden())
        .unwrap()
        .flat_map(|folder| files(&folder.unwrap().path()))
        .map(|(_, text)| text)
        .chain([CONTRACT.to_owned()])
        .collect();
    let edits = prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            0..4_usize,
            "[\\PC\n]{0,3}|[\\[\\]{}\"'=.,#\n]",
        ),
        1..4,
    );
    (prop::sample::select(sources), edits).prop_map(|(mut text, edits)| {
        for (at, cut, put) in edits {
            let start = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.floor_char_boundary((start + cut).min(text.len()));
            text.replace_range(start..end.max(start), &put);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "[\\PC\n\t]{0,80}") {
        let files = [("a.toml".to_owned(), text)];
        if let Err(mistakes) = Definitions::parse(files.clone()) {
            assert_places(&files, &mistakes);
        }
    }

    #[test]
    fn damaged_definitions_never_panic(one in damaged(), two in damaged()) {
        let files = [("a.toml".to_owned(), one), ("b.toml".to_owned(), two)];
        if let Err(mistakes) = Definitions::parse(files.clone()) {
            assert_places(&files, &mistakes);
            let _ = mistakes.to_string();
        }
    }
}
