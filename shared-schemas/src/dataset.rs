//! A dataset: one Kafka topic and the rules by which every layer reads it.
//!
//! These are the checked forms. They are made from TOML by [`crate::definitions`], which refuses anything
//! that the decoder, the plan or the archive could not carry out; nothing here is checked a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Name of the column that holds a record's partition, `Int32`.
pub const PARTITION_COLUMN: &str = "_partition";
/// Name of the column that holds a record's offset, `Int64`.
pub const OFFSET_COLUMN: &str = "_offset";
/// Name of the column that holds a record's Kafka timestamp, `Timestamp(Microsecond, "UTC")`.
pub const KAFKA_TIME_COLUMN: &str = "_kafka_time";
/// Name of the column that holds the event's time, `Timestamp(Microsecond, "UTC")`, wherever the dataset takes it from.
pub const EVENT_TIME_COLUMN: &str = "_event_time";
/// Name of the column that holds the undeclared fields as one JSON object, `Utf8`, null where there are none.
pub const EXTRA_COLUMN: &str = "_extra";

/// One Kafka topic and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The name by which views refer to it; not part of the fingerprint.
    pub name: String,
    /// The Kafka topic.
    pub topic: String,
    /// How many partitions `up` and `topics create` give the topic.
    pub partitions: u16,
    /// How a message's value is written.
    pub format: Format,
    /// Where an event's time comes from.
    pub event_time: EventTime,
    /// The fields that, with the event time, identify an event; empty: nothing is a repeat.
    pub event_id: Vec<String>,
    /// How far behind the greatest event time an event counts as late. Late events are accepted all the same.
    pub lateness: Duration,
    /// An event further ahead of its Kafka timestamp than this is refused.
    pub future: Duration,
    /// How far back, by Kafka timestamp, the speed layer looks for repeats.
    pub dedupe_window: Duration,
    /// The memory, in bytes, that the speed layer may spend on looking for repeats.
    pub dedupe_memory: u64,
    /// The largest value, in bytes, that is read.
    pub max_event_size: usize,
    /// Offsets per chunk; a power of two.
    pub chunk: u64,
    /// For how long its events are archived, and its views' results held, by event time: whole days; `None`: for ever. Not part of
    /// the fingerprint.
    pub keep: Option<Duration>,
    /// The declared fields, in the order of the definition; also the column order of decoded batches.
    pub fields: Vec<Field>,
    /// What is hidden of a record beyond its declared fields, and what is known of the keys of `hash` rules.
    pub privacy: Privacy,
}

impl Dataset {
    /// The declared field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The mask rules of all fields and paths.
    pub fn masks(&self) -> impl Iterator<Item = &Mask> {
        let of_fields = self.fields.iter().filter_map(|field| field.mask.as_ref());
        of_fields.chain(self.privacy.paths.iter().map(|rule| &rule.mask))
    }

    /// Whether some of what its records hold must not be stored: then no record is, as it came.
    pub fn hides(&self) -> bool {
        self.privacy.undeclared == Undeclared::Drop || self.masks().next().is_some()
    }

    /// Whether each record that these earlier rules accepted is an event by those of this dataset as well, and the same one: with the same time and
    /// the same value in each field. It is not said of rules that may come to the same in another way.
    pub fn takes_all_of(&self, earlier: &Self) -> bool {
        let is_taken = |field: &Field| {
            let before = earlier.field(&field.name);
            before.is_some_and(|before| {
                let as_nullable = Field {
                    nullable: field.nullable,
                    ..before.clone()
                };
                as_nullable == *field && (field.nullable || !before.nullable)
            })
        };
        let hashes = self
            .fields
            .iter()
            .filter_map(|field| field.mask.as_ref()?.key_variable());
        let mut keys = hashes.map(|variable| [self, earlier].map(|of| of.privacy.key_checks.get(variable)));
        (&self.topic, self.format, &self.event_time) == (&earlier.topic, earlier.format, &earlier.event_time)
            && self.future >= earlier.future
            && self.max_event_size >= earlier.max_event_size
            && self.fields.iter().all(is_taken)
            && keys.all(|[now, before]| now.is_some() && now == before)
    }

    /// The environment variables that hold the keys of its `hash` rules.
    pub fn key_variables(&self) -> BTreeSet<&str> {
        self.masks().filter_map(Mask::key_variable).collect()
    }
}

/// What is hidden of a record beyond its declared fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privacy {
    /// Whether undeclared data is kept.
    pub undeclared: Undeclared,
    /// Mask rules on paths of undeclared data, sorted by path; none leads to a declared field or below another's.
    pub paths: Vec<PathMask>,
    /// By environment variable, a check of the key that it holds; without those that were not looked at.
    pub key_checks: BTreeMap<String, KeyCheck>,
}

/// What becomes of a record's undeclared data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Undeclared {
    /// It goes to [`EXTRA_COLUMN`].
    #[default]
    Keep,
    /// Nothing of it is stored.
    Drop,
}

/// A mask rule on a path of undeclared data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathMask {
    /// The object keys that lead there; arrays on the way are looked into.
    pub path: Vec<String>,
    /// What is done to what stands there.
    pub mask: Mask,
}

impl PathMask {
    /// The path as definitions write it.
    pub fn written(&self) -> String {
        written_path(&self.path)
    }
}

/// Keys joined by points; a point or a backslash that is part of a key has a backslash before it.
pub(crate) fn written_path(path: &[String]) -> String {
    let key = |key: &String| key.replace('\\', "\\\\").replace('.', "\\.");
    path.iter().map(key).collect::<Vec<_>>().join(".")
}

/// Tells one key from another and gives neither away: a keyed hash of a fixed text, cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyCheck(pub [u8; 8]);

/// How a message's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One JSON object a message.
    Json,
}

/// Where an event's time comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EventTime {
    /// A declared timestamp field that is never null.
    Field(String),
    /// The record's Kafka timestamp.
    KafkaTime,
}

/// One declared field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// Its name, and its column's.
    pub name: String,
    /// Its type.
    pub field_type: FieldType,
    /// Whether it may be null or absent.
    pub nullable: bool,
    /// Where in the record it stands.
    pub source: FieldSource,
    /// What is done to its value before anything is stored.
    pub mask: Option<Mask>,
}

/// A field's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// UTF-8 text; Arrow `Utf8`.
    String,
    /// Arrow `Boolean`.
    Bool,
    /// Arrow `Int64`.
    Int64,
    /// Finite IEEE 754 double; Arrow `Float64`.
    Float64,
    /// Arrow `Decimal128(precision, scale)`, precision at most 28.
    Decimal {
        /// All digits, 1 to 28.
        precision: u8,
        /// Digits after the point, at most the precision.
        scale: u8,
    },
    /// A moment in UTC; Arrow `Timestamp(Microsecond, "UTC")`.
    Timestamp {
        /// The unit of a JSON number; `None`: RFC 3339 text only.
        unit: Option<TimeUnit>,
    },
    /// A calendar day; Arrow `Date32`.
    Date,
}

/// The unit of a timestamp written as a JSON number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeUnit {
    /// Seconds since 1970.
    Second,
    /// Milliseconds since 1970.
    Millisecond,
    /// Microseconds since 1970.
    Microsecond,
}

/// Where in a record a field stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FieldSource {
    /// A path of object keys in the value: `geo.country` is `["geo", "country"]`.
    Path(Vec<String>),
    /// The record's key, as text.
    Key,
    /// The record's Kafka timestamp.
    KafkaTime,
    /// The record's partition.
    Partition,
    /// The last header of that name, as text.
    Header(String),
}

/// What is done to a value before anything is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Hexadecimal HMAC-SHA-256 of the value's text; the key is in that environment variable. Strings only.
    Hash {
        /// The environment variable that holds the key.
        key: String,
    },
    /// The text `***`. Strings only.
    Redact,
    /// Null. Nullable fields only.
    Drop,
    /// A coarser value.
    Truncate(Truncate),
}

impl Mask {
    /// The environment variable that holds the key, of a `hash` rule.
    pub fn key_variable(&self) -> Option<&str> {
        match self {
            Self::Hash { key } => Some(key),
            _ => None,
        }
    }
}

/// How far a value is made coarser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Truncate {
    /// The first so many characters of a string.
    Characters(u16),
    /// A string's IP address to its /24 (IPv4) or /48 (IPv6) network; text that is no address becomes `***`.
    Network,
    /// A timestamp to its hour in UTC.
    Hour,
    /// A timestamp to its day in UTC.
    Day,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions::Definitions;

    const TEXT: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
future = "10m"
max_event_size = "1MiB"
[dataset.flights.fields]
at = { type = "timestamp", unit = "ms" }
n = "int64"
tail = "string?"
[dataset.flights.mask]
tail = { hash = "TAIL_KEY" }
"#;

    fn dataset(changes: &[(&str, &str)]) -> Dataset {
        let text = changes.iter().fold(TEXT.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let mut dataset = Definitions::parse([("flights.toml", text)]).unwrap().datasets.remove(0);
        dataset
            .privacy
            .key_checks
            .insert("TAIL_KEY".to_owned(), KeyCheck([1; 8]));
        dataset
    }

    #[test]
    fn rules_that_take_all_of_others_are_told_from_such_as_may_not() {
        let before = dataset(&[]);
        assert!(before.takes_all_of(&before));
        for wider in [
            ("10m", "1h"),
            ("1MiB", "2MiB"),
            ("n = \"int64\"", "n = \"int64?\""),
            ("n = \"int64\"", ""),
            (
                "future",
                "chunk = 1024\nevent_id = [\"n\"]\ndedupe.window = \"1h\"\nfuture",
            ),
        ] {
            assert!(dataset(&[wider]).takes_all_of(&before), "{wider:?}");
        }
        for other in [
            ("10m", "5m"),
            ("1MiB", "1KiB"),
            ("string?", "string"),
            ("n = \"int64\"", "n = \"float64\""),
            ("n = \"int64\"", "n = { type = \"int64\", from = \"m\" }"),
            ("n = \"int64\"", "n = \"int64\"\nmore = \"int64?\""),
            ("unit = \"ms\"", "unit = \"s\""),
            ("event_time = \"at\"", "event_time = \"$kafka_time\""),
            ("{ hash = \"TAIL_KEY\" }", "\"redact\""),
            ("topic = \"flights\"", "topic = \"trains\""),
        ] {
            assert!(!dataset(&[other]).takes_all_of(&before), "{other:?}");
        }
        let mut other_key = before.clone();
        other_key
            .privacy
            .key_checks
            .values_mut()
            .for_each(|check| check.0 = [2; 8]);
        assert!(!other_key.takes_all_of(&before) && !before.takes_all_of(&other_key));
        other_key.privacy.key_checks.clear();
        assert!(!other_key.takes_all_of(&other_key), "nobody knows with which key");
    }
}
