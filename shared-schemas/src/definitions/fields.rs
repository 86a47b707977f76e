//! A dataset's fields: their types, and where in a record they stand.

use std::fmt;

use crate::dataset::{Field, FieldSource, FieldType, TimeUnit};
use crate::mistake::nearest;
use crate::section::{Entry, Findings, Section};

use super::names;

const TYPES: [&str; 7] = [
    "string",
    "bool",
    "int64",
    "float64",
    "decimal(p,s)",
    "timestamp",
    "date",
];

/// What other systems call our types.
const OTHER_NAMES: [(&str, &str); 19] = [
    ("bigint", "int64"),
    ("boolean", "bool"),
    ("datetime", "timestamp"),
    ("decimal", "decimal(18,2)"),
    ("double", "float64"),
    ("float", "float64"),
    ("float32", "float64"),
    ("int", "int64"),
    ("int32", "int64"),
    ("integer", "int64"),
    ("long", "int64"),
    ("number", "float64"),
    ("numeric", "decimal(18,2)"),
    ("str", "string"),
    ("text", "string"),
    ("time", "timestamp"),
    ("uint64", "int64"),
    ("utf8", "string"),
    ("varchar", "string"),
];

/// The most digits a decimal has: sums of so many fit 38.
const DECIMAL_DIGITS: u8 = 28;

/// Reads the fields in the order of the definition, and says whether all are sound.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings<'_>) -> (Vec<Field>, bool) {
    let entries = section.entries();
    if entries.is_empty() {
        let what = format!("[{}] declares no field", section.name);
        findings.add_missing(
            &section.span,
            what,
            "name at least the event time: `NAME = \"timestamp\"`",
        );
    }
    let before = findings.count();
    let mut fields: Vec<Field> = Vec::new();
    for entry in entries {
        names::check("field", entry.key, &entry.key_span, findings);
        fields.extend(read_field(section, &entry, findings));
    }
    let sound = findings.count() == before && findings.is_whole();
    (fields, sound)
}

fn read_field(fields: &Section<'_>, entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<Field> {
    let example = "a type like \"string\", or { type = \"string\", from = \"a.b\" }";
    let plain = |field_type, nullable, source| Field {
        name: entry.key.to_owned(),
        field_type,
        nullable,
        source,
        mask: None,
    };
    if entry.as_str().is_some() {
        let (field_type, nullable) = read_type(entry, findings)?;
        return Some(plain(
            field_type,
            nullable,
            FieldSource::Path(vec![entry.key.to_owned()]),
        ));
    }
    if entry.value().as_table().is_none() {
        entry.wrong_type("a type", example, findings);
        return None;
    }
    let section = entry.section(&format!("{}.{}", fields.name, entry.key), findings)?;
    section.only(&["type", "unit", "from"], findings);
    let unit = section.get("unit");
    let unit = unit.map(|unit| (read_unit(&unit, findings), unit));
    let from = section.get("from");
    let source = match &from {
        None => Some(FieldSource::Path(vec![entry.key.to_owned()])),
        Some(from) => read_source(from, findings),
    };
    let (mut field_type, nullable) = read_type(&section.required("type", "type = \"string\"", findings)?, findings)?;
    if let Some((unit, entry)) = unit {
        if let FieldType::Timestamp { .. } = field_type {
            field_type = FieldType::Timestamp { unit };
        } else {
            let what = format!("`unit` is for timestamps, not for {field_type}");
            findings.add(&entry.key_span, what, "leave it out, or `type = \"timestamp\"`");
        }
    }
    let source = source?;
    if let Some(from) = &from {
        source_fits(&source, field_type, from, findings);
    }
    Some(plain(field_type, nullable, source))
}

fn read_type(entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<(FieldType, bool)> {
    let written = entry.string("a type like \"string\"", findings)?;
    let name = written.trim();
    let (name, nullable) = name
        .strip_suffix('?')
        .map_or((name, false), |name| (name.trim_end(), true));
    let field_type = match name {
        "string" => FieldType::String,
        "bool" => FieldType::Bool,
        "int64" => FieldType::Int64,
        "float64" => FieldType::Float64,
        "timestamp" => FieldType::Timestamp { unit: None },
        "date" => FieldType::Date,
        _ => {
            let arguments = name.strip_prefix("decimal").map(str::trim_start);
            if let Some(arguments) = arguments.filter(|arguments| arguments.starts_with('(')) {
                return read_decimal(arguments, entry, findings).map(|decimal| (decimal, nullable));
            }
            let optional = if nullable { "?" } else { "" };
            let lower = name.to_lowercase();
            let meant = OTHER_NAMES
                .iter()
                .find(|(other, _)| *other == lower)
                .map(|(_, ours)| *ours);
            let instead = match meant.or_else(|| nearest(name, TYPES)) {
                Some(ours) => format!("\"{ours}{optional}\""),
                None => format!("one of {}", TYPES.map(|name| format!("\"{name}\"")).join(", ")),
            };
            findings.add(
                &entry.span,
                format!("there is no type `{}`", name.escape_debug()),
                instead,
            );
            return None;
        }
    };
    Some((field_type, nullable))
}

fn read_decimal(arguments: &str, entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<FieldType> {
    let inner = arguments.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let numbers = inner
        .and_then(|inner| inner.split_once(','))
        .map(|(p, s)| (p.trim().parse::<u8>(), s.trim().parse::<u8>()));
    let (what, instead) = match numbers {
        Some((Ok(precision), Ok(scale))) => {
            if !(1..=DECIMAL_DIGITS).contains(&precision) {
                let scale = scale.min(DECIMAL_DIGITS);
                let instead = format!("1 to {DECIMAL_DIGITS} digits, like \"decimal({DECIMAL_DIGITS},{scale})\"");
                (format!("a decimal can't have {precision} digits"), instead)
            } else if scale > precision {
                let what = format!("{scale} digits after the point are more than the {precision} of all");
                (what, format!("\"decimal({},{scale})\"", scale.min(DECIMAL_DIGITS)))
            } else {
                return Some(FieldType::Decimal { precision, scale });
            }
        }
        _ => {
            let what = "a decimal is written with its digits and those after the point".to_owned();
            (what, "\"decimal(18,2)\"".to_owned())
        }
    };
    findings.add(&entry.span, what, instead);
    None
}

fn read_unit(entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<TimeUnit> {
    match entry.string("\"ms\"", findings)? {
        "s" => Some(TimeUnit::Second),
        "ms" => Some(TimeUnit::Millisecond),
        "us" => Some(TimeUnit::Microsecond),
        other => {
            let what = format!("there is no unit `{}`", other.escape_debug());
            findings.add(&entry.span, what, "\"s\", \"ms\" or \"us\"");
            None
        }
    }
}

fn read_source(entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<FieldSource> {
    let text = entry.string("a path like \"geo.country\", or \"$key\"", findings)?;
    let sources = ["$key", "$kafka_time", "$partition", "$header.NAME"];
    match text {
        "$key" => return Some(FieldSource::Key),
        "$kafka_time" => return Some(FieldSource::KafkaTime),
        "$partition" => return Some(FieldSource::Partition),
        _ => {}
    }
    if let Some(name) = text.strip_prefix("$header") {
        return match name.strip_prefix('.').filter(|name| !name.is_empty()) {
            Some(name) => Some(FieldSource::Header(name.to_owned())),
            None => {
                findings.add(&entry.span, format!("`{text}` names no header"), "\"$header.NAME\"");
                None
            }
        };
    }
    if text.starts_with('$') {
        let near = nearest(text, sources).map(|near| format!("\"{near}\""));
        let instead = near.unwrap_or_else(|| format!("one of {}", sources.join(", ")));
        findings.add(
            &entry.span,
            format!("a record has no `{}`", text.escape_debug()),
            instead,
        );
        return None;
    }
    let path: Vec<String> = text.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        let what = format!("the path `{text}` has an empty part");
        findings.add(&entry.span, what, "keys joined by single dots: \"geo.country\"");
        return None;
    }
    Some(FieldSource::Path(path))
}

/// What is not JSON has one type.
fn source_fits(source: &FieldSource, field_type: FieldType, from: &Entry<'_>, findings: &mut Findings<'_>) {
    let (what, wanted) = match source {
        FieldSource::Path(_) => return,
        FieldSource::Key => ("a record's key is text", FieldType::String),
        FieldSource::Header(_) => ("a header is text", FieldType::String),
        FieldSource::KafkaTime => ("a Kafka timestamp is a timestamp", FieldType::Timestamp { unit: None }),
        FieldSource::Partition => ("a partition is a whole number", FieldType::Int64),
    };
    if matches!(
        (field_type, wanted),
        (FieldType::Timestamp { unit: Some(_) }, FieldType::Timestamp { .. })
    ) {
        findings.add(
            &from.span,
            "a Kafka timestamp has no unit to choose",
            "leave `unit` out",
        );
    } else if field_type != wanted {
        let instead = format!("`type = \"{wanted}\"`");
        findings.add(&from.span, format!("{what}, not {field_type}"), instead);
    }
}

impl fmt::Display for FieldType {
    /// As definitions write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("string"),
            Self::Bool => f.write_str("bool"),
            Self::Int64 => f.write_str("int64"),
            Self::Float64 => f.write_str("float64"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            Self::Timestamp { .. } => f.write_str("timestamp"),
            Self::Date => f.write_str("date"),
        }
    }
}
