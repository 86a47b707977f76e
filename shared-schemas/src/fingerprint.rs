//! Fingerprints: the identity of what a view computes, and of the rules by which a dataset is read.
//!
//! Rows, progress, marks and publications are kept under a view's fingerprint, so it must never change by itself: it
//! hashes a text of our own, written from parsed and checked values, not any library's debug output. The text begins
//! with a version. Old texts and hashes are pinned by tests; changing them orphans every table there is.
//!
//! The names of the view and of the dataset are left out, and so is what does not change an answer: the number of
//! partitions, what counts as late, the memory for repeats; of a view's, rules for undeclared data too.
//!
//! Of a key that hashes are made with a check is part of the text, where the key is known: another key makes other
//! values, so a view that went on with it would mix the two.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use crate::dataset::{
    Dataset, EventTime, Field, FieldSource, FieldType, Format, Mask, PathMask, TimeUnit, Truncate, Undeclared,
};
use crate::view::{MeasureForm, ValueType, View};

/// Which rules the decoder follows. Raised when it begins to accept, refuse or read any record differently.
pub const DECODER_VERSION: u32 = crate::decode::VERSION;

/// Which rules expressions, windows and states follow. Raised when any of them gives another result than before.
pub const PLAN_VERSION: u32 = 1;

/// The oldest plan version whose rows the merging statement still reads as they were meant, so that what was published by it answers
/// until the views are computed anew. Raised to [`PLAN_VERSION`] where that is raised for states in another form.
pub const OLDEST_PLAN_ANSWERED: u32 = 1;

/// A hash of 128 bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// Of the rules by which a dataset's records become events.
    pub fn of_rules(dataset: &Dataset) -> Self {
        Self::of_text(&rules_text(dataset))
    }

    /// Of those rules that a view can see: without those on undeclared data.
    pub fn of_event_rules(dataset: &Dataset) -> Self {
        Self::of_text(&event_rules_text(dataset))
    }

    /// The same whatever keys values are hashed with.
    pub fn of_event_rules_without_keys(dataset: &Dataset) -> Self {
        let text = event_rules_text(dataset);
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with("key ")).collect();
        Self::of_text(&kept.join("\n"))
    }

    /// Of all that a view computes.
    pub fn of_view(view: &View, dataset: &Dataset) -> Self {
        Self::of_text(&view_text(view, dataset))
    }

    /// The same from the fingerprint of the rules that the view can see, where it is known and their keys are not; as a build of that
    /// plan version writes it.
    pub fn of_view_by(view: &View, event_rules: Self, plan: u32) -> Self {
        Self::of_text(&view_text_by(view, event_rules, plan))
    }

    /// From its text, as it is written.
    pub fn read(text: &str) -> Option<Self> {
        let is_written = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_written
            .then(|| u128::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }

    fn of_text(text: &str) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        Self(u128::from_be_bytes(first))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The canonical text of a dataset's rules: one rule a line, names and texts as JSON strings.
pub fn rules_text(dataset: &Dataset) -> String {
    let mut text = Text(event_rules_text(dataset));
    if dataset.privacy.undeclared == Undeclared::Drop {
        text.line(format_args!("extra drop"));
    }
    for PathMask { path, mask } in &dataset.privacy.paths {
        text.line(format_args!("mask extra {} {}", path_text(path), mask_text(mask)));
    }
    text.keys(dataset, dataset.privacy.paths.iter().map(|rule| &rule.mask));
    text.0
}

/// The rules but for those on undeclared data, which no view can see.
fn event_rules_text(dataset: &Dataset) -> String {
    let mut text = Text::new("highwater rules 1");
    text.line(format_args!("decoder {DECODER_VERSION}"));
    text.line(format_args!("topic {}", quoted(&dataset.topic)));
    text.line(match dataset.format {
        Format::Json => format_args!("format json"),
    });
    match &dataset.event_time {
        EventTime::Field(field) => text.line(format_args!("event_time {}", quoted(field))),
        EventTime::KafkaTime => text.line(format_args!("event_time $kafka_time")),
    }
    for field in &dataset.event_id {
        text.line(format_args!("event_id {}", quoted(field)));
    }
    text.line(format_args!("dedupe {} ns", dataset.dedupe_window.as_nanos()));
    text.line(format_args!("future {} ns", dataset.future.as_nanos()));
    text.line(format_args!("max_event_size {}", dataset.max_event_size));
    text.line(format_args!("chunk {}", dataset.chunk));
    for field in &dataset.fields {
        let null = if field.nullable { "?" } else { "" };
        let of_type = field_type(field.field_type);
        text.line(format_args!(
            "field {} {of_type}{null} from {}",
            quoted(&field.name),
            source(&field.source)
        ));
        if let Some(mask) = &field.mask {
            text.line(format_args!("mask {} {}", quoted(&field.name), mask_text(mask)));
        }
    }
    text.keys(
        dataset,
        dataset.fields.iter().filter_map(|field: &Field| field.mask.as_ref()),
    );
    text.0
}

/// The canonical text of a view.
pub fn view_text(view: &View, dataset: &Dataset) -> String {
    view_text_by(view, Fingerprint::of_event_rules(dataset), PLAN_VERSION)
}

fn view_text_by(view: &View, rules: Fingerprint, plan: u32) -> String {
    let mut text = Text::new("highwater view 1");
    text.line(format_args!("plan {plan}"));
    text.line(format_args!("rules {rules}"));
    text.line(format_args!("grain {} s", view.grain.as_secs()));
    if let Some(filter) = &view.filter {
        text.line(format_args!("filter {}", quoted(&filter.text)));
    }
    for dimension in &view.dimensions {
        let expression = &dimension.expression;
        let null = if expression.nullable { "?" } else { "" };
        let of_type = value_type(expression.value_type);
        text.line(format_args!(
            "dimension {} {of_type}{null} {}",
            quoted(&dimension.name),
            quoted(&expression.text)
        ));
    }
    for measure in &view.measures {
        match &measure.form {
            MeasureForm::Aggregate(aggregate) => {
                text.line(format_args!(
                    "measure {} {}",
                    quoted(&measure.name),
                    aggregate.kind.name
                ));
                if let Some(argument) = &aggregate.argument {
                    text.line(format_args!(
                        "of {} {}",
                        value_type(argument.value_type),
                        quoted(&argument.text)
                    ));
                }
                if !aggregate.call.levels.is_empty() {
                    text.line(format_args!("at {:?}", aggregate.call.levels));
                }
                if let Some(limit) = aggregate.call.limit {
                    text.line(format_args!("limit {limit}"));
                }
                if let Some(condition) = &aggregate.condition {
                    text.line(format_args!("where {}", quoted(&condition.text)));
                }
            }
            MeasureForm::Ratio { numerator, denominator } => {
                text.line(format_args!(
                    "ratio {} {numerator} {denominator}",
                    quoted(&measure.name)
                ));
            }
        }
    }
    text.0
}

struct Text(String);

impl Text {
    fn new(first: &str) -> Self {
        Self(format!("{first}\n"))
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{line}");
    }

    /// Which keys these masks hash with, as far as that is known.
    fn keys<'m>(&mut self, dataset: &Dataset, masks: impl Iterator<Item = &'m Mask>) {
        let variables: BTreeSet<_> = masks.filter_map(Mask::key_variable).collect();
        for variable in variables {
            if let Some(check) = dataset.privacy.key_checks.get(variable) {
                self.line(format_args!("key {} {}", quoted(variable), hex::encode(check.0)));
            }
        }
    }
}

/// A text in double quotes, a string of TOML too, with `"`, `\` and control characters escaped, so that it ends where it ends.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn field_type(field: FieldType) -> String {
    let unit = match field {
        FieldType::Timestamp {
            unit: Some(TimeUnit::Second),
        } => " in s",
        FieldType::Timestamp {
            unit: Some(TimeUnit::Millisecond),
        } => " in ms",
        FieldType::Timestamp {
            unit: Some(TimeUnit::Microsecond),
        } => " in us",
        _ => "",
    };
    format!("{}{unit}", value_type(ValueType::of_field(field)))
}

fn value_type(value: ValueType) -> String {
    match value {
        ValueType::String => "string".to_owned(),
        ValueType::Bool => "bool".to_owned(),
        ValueType::Int64 => "int64".to_owned(),
        ValueType::Float64 => "float64".to_owned(),
        ValueType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        ValueType::Timestamp => "timestamp".to_owned(),
        ValueType::Date => "date".to_owned(),
    }
}

fn source(source: &FieldSource) -> String {
    match source {
        FieldSource::Path(path) => path_text(path),
        FieldSource::Key => "$key".to_owned(),
        FieldSource::KafkaTime => "$kafka_time".to_owned(),
        FieldSource::Partition => "$partition".to_owned(),
        FieldSource::Header(name) => format!("$header {}", quoted(name)),
    }
}

fn path_text(path: &[String]) -> String {
    path.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(".")
}

/// The variable's name stands for the key, and a check of it where it is known: the key itself must not leave a trace.
fn mask_text(mask: &Mask) -> String {
    match mask {
        Mask::Hash { key } => format!("hash {}", quoted(key)),
        Mask::Redact => "redact".to_owned(),
        Mask::Drop => "drop".to_owned(),
        Mask::Truncate(Truncate::Characters(characters)) => format!("truncate {characters}"),
        Mask::Truncate(Truncate::Network) => "truncate network".to_owned(),
        Mask::Truncate(Truncate::Hour) => "truncate hour".to_owned(),
        Mask::Truncate(Truncate::Day) => "truncate day".to_owned(),
    }
}
