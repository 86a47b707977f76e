//! From a TOML file to the configuration, over defaults.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono_tz::Tz;
use toml::de::DeValue;

use super::{ArchiveUrl, Config, HostPort, HttpUrl, Schedule, Secret, variables};
use crate::mistake::{Mistakes, nearest};
use crate::section::{Entry, Findings, Section, TomlFile};
use crate::units;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Properties that Highwater sets itself, and why they can't be chosen.
const OWN_PROPERTIES: [(&str, &str); 9] = [
    ("auto.offset.reset", "positions come from ClickHouse and the archive"),
    ("bootstrap.servers", "it is `brokers` in [kafka]"),
    ("enable.auto.commit", "positions come from ClickHouse and the archive"),
    (
        "enable.auto.offset.store",
        "positions come from ClickHouse and the archive",
    ),
    ("enable.partition.eof", "no decision rests on an end of partition"),
    ("group.id", "it comes from `group` in [kafka]"),
    ("group.instance.id", "it comes from `instance` in [speed]"),
    ("isolation.level", "only committed records are read"),
    ("metadata.broker.list", "it is `brokers` in [kafka]"),
];

/// Reads a file over `base`.
pub(super) fn read(
    file: &TomlFile,
    folder: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    base: Config,
) -> (Config, Mistakes) {
    let (mut table, mut findings) = file.parse();
    variables::expand(&mut table, environment, &mut findings);
    let whole = Section::whole(&table);
    let mut reader = Reader { folder, findings };
    let config = reader.config(&whole, base);
    (config, reader.findings.into_mistakes())
}

struct Reader<'a> {
    folder: &'a Path,
    findings: Findings<'a>,
}

impl Reader<'_> {
    fn config(&mut self, whole: &Section<'_>, mut config: Config) -> Config {
        let sections = [
            "definitions",
            "kafka",
            "clickhouse",
            "speed",
            "archive",
            "batch",
            "serve",
            "metrics",
        ];
        whole.only(&sections, &mut self.findings);
        if let Some(path) = self.text(whole, "definitions", "definitions = \"definitions\"") {
            config.definitions = self.folder.join(path);
        }
        self.kafka(whole, &mut config);
        self.clickhouse(whole, &mut config);
        self.speed(whole, &mut config);
        self.archive(whole, &mut config);
        self.batch(whole, &mut config);
        config.archive.optimize = config.archive.optimize.in_time_zone(config.batch.schedule.time_zone());
        for (name, listen) in [
            ("serve", &mut config.serve.listen),
            ("metrics", &mut config.metrics.listen),
        ] {
            let Some(section) = self.section(whole, name, &["listen"]) else {
                continue;
            };
            self.parsed(
                &section,
                "listen",
                "an address like `\"127.0.0.1:8080\"`",
                listen,
                |text| text.parse().map_err(|_| "it is no IP address with a port".to_owned()),
            );
        }
        config
    }

    fn kafka(&mut self, whole: &Section<'_>, config: &mut Config) {
        let Some(section) = self.section(whole, "kafka", &["brokers", "group", "properties"]) else {
            return;
        };
        let kafka = &mut config.kafka;
        let example = "`\"127.0.0.1:9092\"`, several separated by commas";
        self.parsed(&section, "brokers", example, &mut kafka.brokers, |text| {
            text.split(',').map(|broker| HostPort::parse(broker.trim())).collect()
        });
        self.name(&section, "group", &mut kafka.group, "._-");
        if let Some(properties) = section.section("properties", &mut self.findings) {
            let mut read = BTreeMap::new();
            self.properties("", &properties, &mut read);
            kafka.properties.extend(read);
        }
    }

    /// Reads properties; `sasl.username = "x"` without quotes makes tables in TOML, and means the same.
    fn properties(&mut self, prefix: &str, section: &Section<'_>, properties: &mut BTreeMap<String, Secret>) {
        for entry in section.entries() {
            let key = format!("{prefix}{}", entry.key);
            if let Some((_, why)) = OWN_PROPERTIES.iter().find(|(own, _)| *own == key) {
                let what = format!("the property `{key}` can't be set: {why}");
                self.findings.add(&entry.key_span, what, "leave it out");
                continue;
            }
            let is_inline = self.findings.text()[entry.span.clone()].starts_with('{');
            match entry.value() {
                DeValue::Table(_) if !is_inline => {
                    if let Some(inner) = entry.section(&format!("{}.{}", section.name, entry.key), &mut self.findings) {
                        self.properties(&format!("{key}."), &inner, properties);
                    }
                }
                DeValue::Integer(number) => {
                    properties.insert(key, Secret::new(number.to_string()));
                }
                DeValue::Boolean(flag) => {
                    properties.insert(key, Secret::new(flag.to_string()));
                }
                _ => {
                    if let Some(secret) = self.secret(&entry) {
                        properties.insert(key, secret);
                    }
                }
            }
        }
    }

    fn clickhouse(&mut self, whole: &Section<'_>, config: &mut Config) {
        let keys = ["url", "database", "user", "password"];
        let Some(section) = self.section(whole, "clickhouse", &keys) else {
            return;
        };
        let clickhouse = &mut config.clickhouse;
        let example = "the address of its HTTP interface, like `\"http://127.0.0.1:8123\"`";
        self.parsed(&section, "url", example, &mut clickhouse.url, HttpUrl::parse);
        self.name(&section, "database", &mut clickhouse.database, "_");
        if let Some(user) = self.text(&section, "user", "user = \"default\"") {
            clickhouse.user = user;
        }
        if let Some(password) = section.get("password")
            && let Some(secret) = self.secret(&password)
        {
            clickhouse.password = secret;
        }
    }

    fn speed(&mut self, whole: &Section<'_>, config: &mut Config) {
        let keys = ["flush", "idle_after", "memory", "instance", "invalid_alarm"];
        let Some(section) = self.section(whole, "speed", &keys) else {
            return;
        };
        let speed = &mut config.speed;
        let millisecond = Duration::from_millis(1);
        self.duration(
            &section,
            "flush",
            &mut speed.flush,
            (10 * millisecond, MINUTE),
            "\"250ms\"",
        );
        self.duration(
            &section,
            "idle_after",
            &mut speed.idle_after,
            (millisecond, 24 * HOUR),
            "\"30s\"",
        );
        self.memory(&section, &mut speed.memory, MIB, "\"512MiB\"");
        self.parsed(
            &section,
            "instance",
            "instance = \"worker-1\"",
            &mut speed.instance,
            instance,
        );
        let example = "a share in percent, like `\"1%\"`";
        self.parsed(
            &section,
            "invalid_alarm",
            example,
            &mut speed.invalid_alarm,
            units::share,
        );
    }

    fn archive(&mut self, whole: &Section<'_>, config: &mut Config) {
        let keys = [
            "url",
            "options",
            "commit_every",
            "target_file",
            "optimize",
            "keep_removed",
        ];
        let Some(section) = self.section(whole, "archive", &keys) else {
            return;
        };
        let archive = &mut config.archive;
        let example =
            "`\"file:data/archive\"`, `\"s3://bucket/path\"`, `\"gs://bucket/path\"` or `\"az://container/path\"`";
        let folder = self.folder;
        archive.url_is_default &= section.get("url").is_none();
        self.parsed(&section, "url", example, &mut archive.url, |text| {
            ArchiveUrl::parse(text, folder)
        });
        let bounds = (Duration::from_millis(100), HOUR);
        self.duration(&section, "commit_every", &mut archive.commit_every, bounds, "\"10s\"");
        if let Some(options) = section.section("options", &mut self.findings) {
            for entry in options.entries() {
                let secret = match entry.value() {
                    DeValue::Integer(number) => Some(Secret::new(number.to_string())),
                    DeValue::Boolean(flag) => Some(Secret::new(flag.to_string())),
                    _ => self.secret(&entry),
                };
                let name = entry.key.to_ascii_lowercase();
                archive.options.extend(secret.map(|secret| (name, secret)));
            }
        }
        if let Some(entry) = section.get("target_file")
            && let Some(size) = entry.size_within(MIB..=8 << 30, "\"128MiB\"", &mut self.findings)
        {
            archive.target_file = size;
        }
        let example = "`\"minute hour day month weekday\"`, like `\"30 3 * * *\"`, or `\"never\"`";
        self.parsed(
            &section,
            "optimize",
            example,
            &mut archive.optimize,
            |text| match text {
                "never" => Ok(Schedule::default()),
                text => Schedule::parse(text, Tz::UTC),
            },
        );
        let bounds = (HOUR, 3650 * 24 * HOUR);
        self.duration(&section, "keep_removed", &mut archive.keep_removed, bounds, "\"7d\"");
    }

    fn batch(&mut self, whole: &Section<'_>, config: &mut Config) {
        let keys = [
            "schedule",
            "time_zone",
            "cut_wait",
            "memory",
            "spill",
            "spill_limit",
            "max_change",
            "keep_publications",
            "reconcile",
            "gc_wait",
        ];
        let Some(section) = self.section(whole, "batch", &keys) else {
            return;
        };
        let batch = &mut config.batch;
        let mut zone = batch.schedule.time_zone();
        let example = "a name like `\"UTC\"` or `\"Europe/Berlin\"`";
        self.parsed(&section, "time_zone", example, &mut zone, |text| {
            text.parse::<Tz>().map_err(
                |_| match nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())) {
                    Some(name) => format!("there is no time zone of that name, but `{name}`"),
                    None => "there is no time zone of that name".to_owned(),
                },
            )
        });
        let example = "`\"minute hour day month weekday\"`, like `\"0 2 * * *\"` for every night at two";
        let mut schedule = batch.schedule.in_time_zone(zone);
        self.parsed(&section, "schedule", example, &mut schedule, |text| {
            Schedule::parse(text, zone)
        });
        batch.schedule = schedule;
        self.duration(
            &section,
            "cut_wait",
            &mut batch.cut_wait,
            (Duration::ZERO, HOUR),
            "\"60s\"",
        );
        self.memory(&section, &mut batch.memory, 16 * MIB, "\"2GiB\"");
        let folder = self.folder;
        let example = "a folder, like `\"/var/tmp/highwater\"`";
        self.parsed(&section, "spill", example, &mut batch.spill, |text| {
            Ok((!text.is_empty()).then(|| folder.join(text)))
        });
        if let Some(entry) = section.get("spill_limit")
            && let Some(limit) = entry.size_within(16 * MIB..=1024 * TIB, "\"100GiB\"", &mut self.findings)
        {
            batch.spill_limit = limit;
        }
        let example = "a share in percent, like `\"50%\"`";
        self.parsed(&section, "max_change", example, &mut batch.max_change, units::share);
        let bounds = (Duration::ZERO, 24 * HOUR);
        self.duration(&section, "gc_wait", &mut batch.gc_wait, bounds, "\"10m\"");
        if let Some(entry) = section.get("keep_publications")
            && let Some(keep) = entry.integer(2..=10_000, "7", &mut self.findings)
        {
            batch.keep_publications = u32::try_from(keep).unwrap_or(u32::MAX);
        }
        if let Some(entry) = section.get("reconcile") {
            match entry.value() {
                DeValue::Boolean(reconcile) => batch.reconcile = *reconcile,
                _ => entry.wrong_type("true or false", "false", &mut self.findings),
            }
        }
    }

    fn section<'t>(&mut self, whole: &Section<'t>, name: &str, keys: &[&str]) -> Option<Section<'t>> {
        let section = whole.section(name, &mut self.findings)?;
        section.only(keys, &mut self.findings);
        Some(section)
    }

    /// A string that is not empty.
    fn text(&mut self, section: &Section<'_>, key: &str, example: &str) -> Option<String> {
        let entry = section.get(key)?;
        let text = entry.string(example, &mut self.findings)?;
        if text.trim().is_empty() {
            self.findings.add(&entry.span, format!("`{key}` is empty"), example);
            return None;
        }
        Some(text.to_owned())
    }

    /// A name of ASCII letters, digits and what `besides` holds.
    fn name(&mut self, section: &Section<'_>, key: &str, target: &mut String, besides: &str) {
        let Some(text) = self.text(section, key, &format!("{key} = \"highwater\"")) else {
            return;
        };
        match text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !besides.contains(*c))
        {
            Some(illegal) => {
                let span = section.get(key).map_or(section.span.clone(), |entry| entry.span);
                let signs: Vec<String> = besides.chars().map(|c| format!("`{c}`")).collect();
                let instead = format!("ASCII letters, digits and {}", signs.join(", "));
                self.findings
                    .add(&span, format!("`{key}` contains `{}`", illegal.escape_debug()), instead);
            }
            None => *target = text,
        }
    }

    fn parsed<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        example: &str,
        target: &mut T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) {
        let Some(entry) = section.get(key) else { return };
        let Some(text) = entry.string(example, &mut self.findings) else {
            return;
        };
        match parse(text) {
            Ok(value) => *target = value,
            Err(why) => self
                .findings
                .add(&entry.span, format!("`{key}` can't be used: {why}"), example),
        }
    }

    fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        target: &mut Duration,
        (least, most): (Duration, Duration),
        example: &str,
    ) {
        if let Some(entry) = section.get(key)
            && let Some(duration) = entry.duration_within(least..=most, example, &mut self.findings)
        {
            *target = duration;
        }
    }

    fn memory(&mut self, section: &Section<'_>, target: &mut u64, least: u64, example: &str) {
        if let Some(entry) = section.get("memory")
            && let Some(memory) = entry.size_within(least..=16 * TIB, example, &mut self.findings)
        {
            *target = memory;
        }
    }

    /// A string, or `{ file = "…" }`: the file's text without its last line break.
    fn secret(&mut self, entry: &Entry<'_>) -> Option<Secret> {
        let example = "\"${NAME}\", or { file = \"…\" }";
        if !matches!(entry.value(), DeValue::Table(_)) {
            return entry.string(example, &mut self.findings).map(Secret::new);
        }
        let section = entry.section(entry.key, &mut self.findings)?;
        section.only(&["file"], &mut self.findings);
        let file = section.required("file", "file = \"…\"", &mut self.findings)?;
        let path = self.folder.join(file.string(example, &mut self.findings)?);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Some(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
            }
            Err(error) => {
                let what = format!("the file {} of `{}` can't be read: {error}", path.display(), entry.key);
                self.findings
                    .add(&file.span, what, "a text file that this user may read");
                None
            }
        }
    }
}

/// A name as Kafka takes it; none where it is empty.
fn instance(text: &str) -> Result<Option<String>, String> {
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
        Some(illegal) => Err(format!(
            "it contains `{}`, besides ASCII letters, digits, `.`, `_` and `-`",
            illegal.escape_debug()
        )),
        None if text.len() > 100 => Err("it is longer than 100 characters".to_owned()),
        None => Ok(Some(text.to_owned()).filter(|text| !text.is_empty())),
    }
}
