//! The configuration's defaults, its forms and its secrets.

use proptest::prelude::*;

use super::*;
use crate::section::Section;

fn none(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Config {
    let reading = Config::parse(text, FILE_NAME, Path::new("/etc/highwater"), &none);
    assert!(reading.mistakes.is_empty(), "{}", reading.mistakes);
    reading.config
}

fn mistakes(text: &str) -> Vec<String> {
    let reading = Config::parse(text, FILE_NAME, Path::new("/etc/highwater"), &none);
    reading.mistakes.iter().map(|mistake| mistake.what.clone()).collect()
}

#[test]
fn the_shipped_defaults_set_every_key() {
    let config = parse("");
    assert_eq!(config.definitions, Path::new("/etc/highwater/definitions"));
    assert_eq!(config.kafka.bootstrap_servers(), "127.0.0.1:9092");
    assert_eq!(config.clickhouse.url.to_string(), "http://127.0.0.1:8123");
    assert_eq!(config.speed.flush, Duration::from_millis(250));
    assert_eq!(config.archive.url.to_string(), "file:/etc/highwater/data/archive");
    assert!(config.archive.url_is_default);
    assert_eq!(config.batch.keep_publications, 7);
    assert_eq!(config.metrics.listen.port(), 0);
    // None is left as it was before the defaults were read.
    let file = TomlFile {
        name: String::new(),
        text: DEFAULTS.to_owned(),
        secretive: false,
    };
    let (table, mut findings) = file.parse();
    let set: usize = Section::whole(&table)
        .entries()
        .iter()
        .map(|entry| match entry.value().as_table() {
            Some(_) => entry.section("", &mut findings).unwrap().entries().len(),
            None => 1,
        })
        .sum();
    assert!((config.speed.invalid_alarm - 0.01).abs() < f64::EPSILON);
    assert_eq!(set, 31, "a key without a default, or a new one: mend this count");
}

#[test]
fn the_defaults_written_out_are_the_defaults() {
    let mut written = parse(DEFAULTS);
    assert!(!written.archive.url_is_default);
    written.archive.url_is_default = true;
    assert_eq!(written, parse(""));
}

#[test]
fn what_is_given_goes_over_the_defaults() {
    let config = parse(
        r#"
        definitions = "/srv/definitions"
        [kafka]
        brokers = "a:1, b:2"
        properties = { "security.protocol" = "ssl", queued.min.messages = 1000 }
        [clickhouse]
        url = "https://db:8443/x/"
        [archive]
        url = "s3://bucket/events"
        options = { aws_endpoint = "http://127.0.0.1:9000", AWS_ALLOW_HTTP = true }
        optimize = "0 4 * * 0"
        [batch]
        time_zone = "Europe/Berlin"
        "#,
    );
    assert_eq!(config.definitions, Path::new("/srv/definitions"));
    assert_eq!(config.kafka.bootstrap_servers(), "a:1,b:2");
    assert_eq!(config.kafka.group, "highwater");
    assert_eq!(config.kafka.properties["security.protocol"].reveal(), "ssl");
    assert_eq!(config.kafka.properties["queued.min.messages"].reveal(), "1000");
    assert!(!config.archive.url_is_default);
    assert_eq!(config.archive.options["aws_endpoint"].reveal(), "http://127.0.0.1:9000");
    assert_eq!(config.archive.options["aws_allow_http"].reveal(), "true");
    let optimized = config
        .archive
        .optimize
        .after("2026-01-01T00:00:00Z".parse().unwrap())
        .unwrap();
    assert_eq!(optimized.to_rfc3339(), "2026-01-04T03:00:00+00:00");
    assert_eq!(config.batch.schedule.expression(), "0 2 * * *");
    let start = config
        .batch
        .schedule
        .after("2026-01-01T00:00:00Z".parse().unwrap())
        .unwrap();
    assert_eq!(start.to_rfc3339(), "2026-01-01T01:00:00+00:00");
}

#[test]
fn secrets_come_from_files_and_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    let text = r#"
        clickhouse.password = { file = "password" }
        kafka.properties."sasl.password" = "hunter3"
        kafka.properties.sasl.oauthbearer.assertion.private.key.file = "key.pem"
    "#;
    let config = Config::parse(text, FILE_NAME, folder.path(), &none).config;
    assert_eq!(config.clickhouse.password.reveal(), "hunter2");
    assert_eq!(config.kafka.properties["sasl.password"].reveal(), "hunter3");
    assert_eq!(
        config.kafka.properties["sasl.oauthbearer.assertion.private.key.file"].reveal(),
        "key.pem"
    );
    assert!(!format!("{config:?}").contains("hunter"));
}

#[test]
fn no_mistake_shows_a_secret() {
    for text in [
        "[clickhouse]\npasswort = \"hunter2\"",
        "[clickhouse]\npassword = hunter2",
        "[clickhouse]\npassword = [\"hunter2\"]",
        "[clickhouse]\npassword = \"hunter2${NONE}\"",
        "[clickhouse]\nurl = \"http://u:hunter2@a:1\"",
    ] {
        let reading = Config::parse(text, FILE_NAME, Path::new(""), &none);
        assert!(!reading.mistakes.is_empty(), "{text}");
        assert!(
            !reading.mistakes.to_string().contains("hunter2"),
            "{}",
            reading.mistakes
        );
    }
}

#[test]
fn all_mistakes_are_found_at_once() {
    assert_eq!(
        mistakes(
            "[speed]\nflush = 250\nidle = \"1s\"\ninvalid_alarm = \"0%\"\n[batch]\nschedule = \"* *\"\nkeep_publications = 1\n[sped]\n"
        ),
        [
            "`flush` is a number without a unit",
            "unknown key `idle` in [speed]",
            "`invalid_alarm` can't be used: it is not above 0% and up to 100%",
            "`schedule` can't be used: it has 2 fields",
            "`keep_publications` is 1, not within 2 to 10000",
            "unknown key `sped`",
        ]
    );
}

#[test]
fn an_unset_variable_is_one_mistake() {
    assert_eq!(
        mistakes("[serve]\nlisten = \"${LISTEN}\""),
        ["the environment variable `LISTEN` is not set"]
    );
}

#[test]
fn a_file_that_is_not_there_is_a_mistake() {
    let reading = Config::read(Some(Path::new("/no/such/highwater.toml")));
    assert_eq!(reading.mistakes.iter().count(), 1);
}

/// The examples of the documents and of `deploy/` are loaded by a test across crates; that they are the defaults is seen
/// here.
#[test]
fn the_documented_defaults_are_the_defaults() {
    let document = include_str!("../../../docs/configuration.md");
    assert!(
        document.contains(&format!("```toml\n{DEFAULTS}```\n")),
        "copy config/defaults.toml into docs/configuration.md"
    );
}

fn golden() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

/// As with definitions: `HIGHWATER_BLESS=1 cargo test` writes what is said now.
#[test]
fn golden_mistakes() {
    let mut different = Vec::new();
    for folder in golden() {
        let text = std::fs::read_to_string(folder.join(FILE_NAME)).unwrap();
        let reading = Config::parse(&text, FILE_NAME, Path::new(""), &none);
        assert!(!reading.mistakes.is_empty(), "{} has no mistake", folder.display());
        let said = format!("{}\n", reading.mistakes);
        let expected = folder.join("expected.txt");
        if std::env::var_os("HIGHWATER_BLESS").is_some() {
            std::fs::write(&expected, &said).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
            different.push(format!("{}:\n{said}", folder.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// A golden file or the defaults, with a few characters changed.
fn damaged() -> impl Strategy<Value = String> {
    let texts: Vec<String> = golden()
        .iter()
        .map(|folder| std::fs::read_to_string(folder.join(FILE_NAME)).unwrap())
        .chain([DEFAULTS.to_owned()])
        .collect();
    let edits = prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            0..4_usize,
            "[\\PC\n]{0,3}|[\\[\\]{}\"'=.,#$:\n]",
        ),
        1..4,
    );
    (prop::sample::select(texts), edits).prop_map(|(mut text, edits)| {
        for (at, cut, put) in edits {
            let start = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.floor_char_boundary((start + cut).min(text.len()));
            text.replace_range(start..end.max(start), &put);
        }
        text
    })
}

proptest! {
    #[test]
    fn damaged_configurations_never_panic(text in damaged()) {
        let reading = Config::parse(&text, FILE_NAME, Path::new(""), &none);
        for mistake in reading.mistakes.iter() {
            let place = mistake.place.as_ref().unwrap();
            let line = text.split('\n').nth(place.line - 1);
            prop_assert!(line.is_some_and(|line| place.column <= line.chars().count() + 1), "{}", mistake);
        }
    }
}
