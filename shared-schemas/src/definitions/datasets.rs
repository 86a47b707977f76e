//! `[dataset.NAME]`: one Kafka topic and how to read it.

use std::time::Duration;

use crate::dataset::{Dataset, EventTime, Field, FieldType, Format, Privacy, Undeclared};
use crate::mistake::nearest;
use crate::section::{Entry, Findings, Section, Span};

use super::keys::KeyUse;
use super::{fields, keep, masks};

const KEYS: [&str; 14] = [
    "topic",
    "partitions",
    "format",
    "event_time",
    "event_id",
    "lateness",
    "future",
    "dedupe",
    "max_event_size",
    "chunk",
    "keep",
    "extra",
    "fields",
    "mask",
];

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(3_660 * 86_400);
const MIB: u64 = 1 << 20;

/// The longest topic: Kafka's limit, less the name of its dead letters.
const TOPIC_LENGTH: usize = 249 - ".dead-letters".len();

/// A dataset as far as it could be read.
#[derive(Debug)]
pub(super) struct DatasetReading {
    /// The dataset; a default stands for what is wrong or missing.
    pub(super) dataset: Dataset,
    /// Whether the fields are what the author meant: only then can expressions be judged.
    pub(super) fields_sound: bool,
    /// Where it names keys of `hash` rules.
    pub(super) keys: Vec<KeyUse>,
    /// The file that it stands in, by index.
    pub(super) file: usize,
    /// The key that names it.
    pub(super) span: Span,
}

pub(super) fn read(
    file: usize,
    section: &Section<'_>,
    name: &Entry<'_>,
    findings: &mut Findings<'_>,
) -> DatasetReading {
    section.only(&KEYS, findings);
    let (mut fields, fields_sound) = read_fields(section, findings);
    let event_time = read_event_time(section, &fields, fields_sound, findings);
    let event_id = read_event_id(section, &fields, fields_sound, findings);
    let undeclared = read_undeclared(section, findings);
    let (mut paths, mut keys) = (Vec::new(), Vec::new());
    if let Some(rules) = section.section("mask", findings) {
        let about = masks::About {
            event_time: event_time.as_ref(),
            event_id: &event_id,
            undeclared,
            fields_sound,
        };
        (paths, keys) = masks::read(&rules, &mut fields, &about, findings);
    }
    read_format(section, findings);
    let (dedupe_window, dedupe_memory) = read_dedupe(section, findings);
    let max_event_size = size(section, "max_event_size", 1..=512 * MIB, MIB, "\"1MiB\"", findings);
    let dataset = Dataset {
        name: name.key.to_owned(),
        topic: read_topic(section, name, findings),
        partitions: read_partitions(section, findings),
        format: Format::Json,
        event_time: event_time.unwrap_or(EventTime::KafkaTime),
        event_id,
        lateness: duration(section, "lateness", Duration::from_secs(3600), "\"1h\"", findings),
        future: duration(section, "future", Duration::from_secs(600), "\"10m\"", findings),
        dedupe_window,
        dedupe_memory,
        max_event_size: usize::try_from(max_event_size).unwrap_or(usize::MAX),
        chunk: read_chunk(section, findings),
        keep: keep::read(section, findings),
        privacy: Privacy {
            undeclared,
            paths,
            ..Privacy::default()
        },
        fields,
    };
    DatasetReading {
        dataset,
        keys,
        fields_sound,
        file,
        span: name.key_span.clone(),
    }
}

fn read_fields(section: &Section<'_>, findings: &mut Findings<'_>) -> (Vec<Field>, bool) {
    let example = format!("[{}.fields]", section.name);
    if section.required("fields", &example, findings).is_none() {
        return (Vec::new(), false);
    }
    match section.section("fields", findings) {
        Some(declared) => fields::read(&declared, findings),
        None => (Vec::new(), false),
    }
}

fn read_topic(section: &Section<'_>, name: &Entry<'_>, findings: &mut Findings<'_>) -> String {
    let example = "ASCII letters, digits, `.`, `_` and `-`";
    let Some(entry) = section.get("topic") else {
        return name.key.to_owned();
    };
    let Some(topic) = entry.string(example, findings) else {
        return name.key.to_owned();
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let shown = topic.escape_debug();
    if topic.is_empty() || topic == "." || topic == ".." || !topic.chars().all(legal) {
        findings.add(&entry.span, format!("Kafka has no topics called `{shown}`"), example);
    } else if topic.len() > TOPIC_LENGTH {
        let what = format!("the topic's name has {} letters", topic.len());
        findings.add(
            &entry.span,
            what,
            format!("at most {TOPIC_LENGTH}: its dead letters have a longer one"),
        );
    }
    topic.to_owned()
}

fn read_partitions(section: &Section<'_>, findings: &mut Findings<'_>) -> u16 {
    let entry = section.get("partitions");
    let partitions = entry.and_then(|entry| entry.integer(1..=u64::from(u16::MAX), "a number like 4", findings));
    partitions
        .and_then(|partitions| u16::try_from(partitions).ok())
        .unwrap_or(4)
}

fn read_format(section: &Section<'_>, findings: &mut Findings<'_>) {
    let Some(entry) = section.get("format") else { return };
    match entry.string("\"json\"", findings) {
        None | Some("json") => {}
        Some(later @ ("avro" | "protobuf" | "debezium")) => {
            findings.add(
                &entry.span,
                format!("`{later}` can't be read yet, only `json`"),
                "\"json\"",
            );
        }
        Some(other) => {
            findings.add(
                &entry.span,
                format!("there is no format `{}`", other.escape_debug()),
                "\"json\"",
            );
        }
    }
}

fn read_undeclared(section: &Section<'_>, findings: &mut Findings<'_>) -> Undeclared {
    let example = "\"keep\" or \"drop\"";
    let Some(entry) = section.get("extra") else {
        return Undeclared::Keep;
    };
    match entry.string(example, findings) {
        None | Some("keep") => Undeclared::Keep,
        Some("drop") => Undeclared::Drop,
        Some(other) => {
            let what = format!("undeclared data can't be treated as `{}`", other.escape_debug());
            findings.add(&entry.span, what, example);
            Undeclared::Keep
        }
    }
}

fn read_event_time(
    section: &Section<'_>,
    fields: &[Field],
    fields_sound: bool,
    findings: &mut Findings<'_>,
) -> Option<EventTime> {
    let example = "a timestamp field, or \"$kafka_time\"";
    let timestamp = fields
        .iter()
        .find(|field| matches!(field.field_type, FieldType::Timestamp { .. }) && !field.nullable);
    let suggestion = timestamp.map_or_else(|| "$kafka_time".to_owned(), |field| field.name.clone());
    let entry = section.required("event_time", &format!("event_time = \"{suggestion}\""), findings)?;
    let name = entry.string(example, findings)?;
    if name == "$kafka_time" {
        return Some(EventTime::KafkaTime);
    }
    match fields.iter().find(|field| field.name == name) {
        None if !fields_sound => {}
        None => {
            let known = fields.iter().map(|field| field.name.as_str()).chain(["$kafka_time"]);
            let instead = nearest(name, known).map_or_else(|| example.to_owned(), |near| format!("\"{near}\""));
            findings.add(
                &entry.span,
                format!("the event time `{}` is no field", name.escape_debug()),
                instead,
            );
            return None;
        }
        Some(field) if !matches!(field.field_type, FieldType::Timestamp { .. }) => {
            let what = format!("the event time `{name}` is {}, not a timestamp", field.field_type);
            findings.add(&entry.span, what, example);
            return None;
        }
        Some(field) if field.nullable => {
            let what = format!("the event time `{name}` may be null");
            findings.add(
                &entry.span,
                what,
                format!("`{name} = \"timestamp\"` among the fields, without `?`"),
            );
            return None;
        }
        Some(_) => {}
    }
    Some(EventTime::Field(name.to_owned()))
}

fn read_event_id(
    section: &Section<'_>,
    fields: &[Field],
    fields_sound: bool,
    findings: &mut Findings<'_>,
) -> Vec<String> {
    let Some(entry) = section.get("event_id") else {
        return Vec::new();
    };
    let example = entry
        .as_str()
        .map_or_else(|| "[\"FIELD\"]".to_owned(), |name| format!("[\"{name}\"]"));
    let Some(elements) = entry.list(&example, findings) else {
        return Vec::new();
    };
    if elements.is_empty() {
        findings.add(
            &entry.span,
            "`event_id` names no field",
            "leave it out where nothing is a repeat",
        );
    }
    let mut names: Vec<String> = Vec::new();
    for element in elements {
        let Some(name) = element.string("the name of a field", findings) else {
            continue;
        };
        if names.iter().any(|known| known == name) {
            findings.add(&element.span, format!("`event_id` names `{name}` twice"), "once");
        } else if fields_sound && !fields.iter().any(|field| field.name == name) {
            let near = nearest(name, fields.iter().map(|field| field.name.as_str()));
            let instead = near.map_or_else(
                || "the name of a declared field".to_owned(),
                |near| format!("\"{near}\""),
            );
            findings.add(
                &element.span,
                format!("`event_id` names `{}`, which is no field", name.escape_debug()),
                instead,
            );
        }
        names.push(name.to_owned());
    }
    names
}

fn read_dedupe(section: &Section<'_>, findings: &mut Findings<'_>) -> (Duration, u64) {
    let mut window = Duration::from_secs(600);
    let mut memory = 256 * MIB;
    if let Some(entry) = section.get("dedupe")
        && entry.value().as_table().is_none()
    {
        entry.wrong_type("a table", "{ window = \"10m\", memory = \"256MiB\" }", findings);
    } else if let Some(dedupe) = section.section("dedupe", findings) {
        dedupe.only(&["window", "memory"], findings);
        if let Some(entry) = dedupe.get("window") {
            let bounds = Duration::from_millis(1)..=30 * DAY;
            window = entry.duration_within(bounds, "\"10m\"", findings).unwrap_or(window);
        }
        memory = size(&dedupe, "memory", MIB..=(1 << 44), memory, "\"256MiB\"", findings);
    }
    (window, memory)
}

fn read_chunk(section: &Section<'_>, findings: &mut Findings<'_>) -> u64 {
    const DEFAULT: u64 = 262_144;
    let Some(entry) = section.get("chunk") else {
        return DEFAULT;
    };
    let Some(chunk) = entry.integer(1..=1 << 40, "262144", findings) else {
        return DEFAULT;
    };
    if !chunk.is_power_of_two() {
        let above = chunk.next_power_of_two();
        let nearest = if above - chunk <= chunk - above / 2 {
            above
        } else {
            above / 2
        };
        findings.add(
            &entry.span,
            format!("`chunk` is {chunk}, which is no power of two"),
            nearest.to_string(),
        );
    }
    chunk
}

fn duration(
    section: &Section<'_>,
    key: &str,
    default: Duration,
    example: &str,
    findings: &mut Findings<'_>,
) -> Duration {
    let entry = section.get(key);
    entry
        .and_then(|entry| entry.duration_within(Duration::ZERO..=LONGEST, example, findings))
        .unwrap_or(default)
}

fn size(
    section: &Section<'_>,
    key: &str,
    bounds: std::ops::RangeInclusive<u64>,
    default: u64,
    example: &str,
    findings: &mut Findings<'_>,
) -> u64 {
    section
        .get(key)
        .and_then(|entry| entry.size_within(bounds, example, findings))
        .unwrap_or(default)
}
