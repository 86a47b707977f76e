//! A dataset's mask rules: what is done to values before anything is stored.

use crate::dataset::{EventTime, Field, FieldSource, FieldType, Mask, Truncate};
use crate::mistake::nearest;
use crate::section::{Entry, Findings, Section};

const EXAMPLE: &str = "{ hash = \"KEY_VARIABLE\" }, \"redact\", \"drop\" or { truncate = 3 }";

/// Reads the rules into the fields. `fields_sound`: a field that is not there was not declared at all.
pub(super) fn read(
    section: &Section<'_>,
    fields: &mut [Field],
    fields_sound: bool,
    event_time: Option<&EventTime>,
    event_id: &[String],
    findings: &mut Findings<'_>,
) {
    for entry in section.entries() {
        let mask = read_mask(section, &entry, findings);
        let Some(field) = fields.iter_mut().find(|field| field.name == entry.key) else {
            if fields_sound {
                let near = nearest(entry.key, fields.iter().map(|field| field.name.as_str()));
                let instead =
                    near.map_or_else(|| "the name of a declared field".to_owned(), |name| format!("`{name}`"));
                findings.add(
                    &entry.key_span,
                    format!("the mask is for `{}`, which is no field", entry.key),
                    instead,
                );
            }
            continue;
        };
        if event_time == Some(&EventTime::Field(field.name.clone())) {
            let what = format!("`{}` is the event time, which can't be masked", field.name);
            findings.add(&entry.key_span, what, "leave the rule out");
            continue;
        }
        let Some(mask) = mask else { continue };
        if event_id.contains(&field.name) && !matches!(mask, Mask::Hash { .. }) {
            let what = format!(
                "`{}` is part of `event_id`, and this mask makes different events the same",
                field.name
            );
            findings.add(
                &entry.span,
                what,
                format!("{{ hash = \"{}_KEY\" }}", field.name.to_uppercase()),
            );
            continue;
        }
        if let Err((what, instead)) = fits(&mask, field) {
            findings.add(&entry.span, what, instead);
            continue;
        }
        field.mask = Some(mask);
    }
    no_way_around(section, fields, findings);
}

fn read_mask(masks: &Section<'_>, entry: &Entry<'_>, findings: &mut Findings<'_>) -> Option<Mask> {
    if let Some(word) = entry.as_str() {
        return match word {
            "redact" => Some(Mask::Redact),
            "drop" => Some(Mask::Drop),
            "hash" => {
                findings.add(
                    &entry.span,
                    "`hash` needs the environment variable of its key",
                    "{ hash = \"KEY_VARIABLE\" }",
                );
                None
            }
            "truncate" => {
                findings.add(
                    &entry.span,
                    "`truncate` needs how far",
                    "{ truncate = 3 | \"ip\" | \"hour\" | \"day\" }",
                );
                None
            }
            other => {
                findings.add(
                    &entry.span,
                    format!("there is no mask `{}`", other.escape_debug()),
                    EXAMPLE,
                );
                None
            }
        };
    }
    if entry.value().as_table().is_none() {
        entry.wrong_type("a mask", EXAMPLE, findings);
        return None;
    }
    let section = entry.section(&format!("{}.{}", masks.name, entry.key), findings)?;
    section.only(&["hash", "redact", "drop", "truncate"], findings);
    let rules: Vec<Entry<'_>> = section
        .entries()
        .into_iter()
        .filter(|rule| ["hash", "redact", "drop", "truncate"].contains(&rule.key))
        .collect();
    match &rules[..] {
        [rule] => read_rule(rule, findings),
        // An unknown key was named already.
        [] if !section.entries().is_empty() => None,
        _ => {
            findings.add(
                &entry.span,
                format!("`{}` has {} masks, not one", entry.key, rules.len()),
                EXAMPLE,
            );
            None
        }
    }
}

fn read_rule(rule: &Entry<'_>, findings: &mut Findings<'_>) -> Option<Mask> {
    match rule.key {
        "hash" => {
            let key = rule.string("{ hash = \"KEY_VARIABLE\" }", findings)?;
            let starts_well = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !starts_well || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                // It may be the key itself: don't repeat it.
                let what = "`hash` takes the name of the environment variable that holds the key, not the key";
                findings.add_secret(&rule.span, what, "{ hash = \"KEY_VARIABLE\" }");
                return None;
            }
            Some(Mask::Hash { key: key.to_owned() })
        }
        "truncate" => read_truncate(rule, findings).map(Mask::Truncate),
        word => {
            if rule.value().as_bool() != Some(true) {
                findings.add(
                    &rule.span,
                    format!("`{word}` takes nothing but `true`"),
                    format!("\"{word}\""),
                );
                return None;
            }
            Some(if word == "redact" { Mask::Redact } else { Mask::Drop })
        }
    }
}

fn read_truncate(rule: &Entry<'_>, findings: &mut Findings<'_>) -> Option<Truncate> {
    let example = "a number of characters, \"ip\", \"hour\" or \"day\"";
    match rule.as_str() {
        Some("ip") => Some(Truncate::Network),
        Some("hour") => Some(Truncate::Hour),
        Some("day") => Some(Truncate::Day),
        Some(other) => {
            findings.add(
                &rule.span,
                format!("`truncate` can't cut to `{}`", other.escape_debug()),
                example,
            );
            None
        }
        None => {
            let characters = rule.integer(1..=u64::from(u16::MAX), example, findings)?;
            u16::try_from(characters).ok().map(Truncate::Characters)
        }
    }
}

/// Whether a mask can be carried out on a field; else what is wrong and what to write instead.
fn fits(mask: &Mask, field: &Field) -> Result<(), (String, String)> {
    let name = &field.name;
    let is = field.field_type;
    let text = || format!("`{name}` is {is}, and only strings can be");
    let drop_instead = "\"drop\", with a type that ends with `?`";
    match mask {
        Mask::Hash { .. } if field.field_type != FieldType::String => {
            Err((format!("{} hashed", text()), drop_instead.to_owned()))
        }
        Mask::Redact if field.field_type != FieldType::String => {
            Err((format!("{} redacted", text()), drop_instead.to_owned()))
        }
        Mask::Drop if !field.nullable => Err((
            format!("`{name}` can't be dropped, for it is never null"),
            format!("`{name} = \"{is}?\"` among the fields"),
        )),
        Mask::Truncate(Truncate::Characters(_) | Truncate::Network) if field.field_type != FieldType::String => {
            let instead = if matches!(field.field_type, FieldType::Timestamp { .. }) {
                "{ truncate = \"hour\" } or { truncate = \"day\" }"
            } else {
                drop_instead
            };
            Err((format!("{} cut like that", text()), instead.to_owned()))
        }
        Mask::Truncate(Truncate::Hour | Truncate::Day) if !matches!(field.field_type, FieldType::Timestamp { .. }) => {
            Err((
                format!("`{name}` is {is}, and only timestamps can be cut to the hour or day"),
                EXAMPLE.to_owned(),
            ))
        }
        _ => Ok(()),
    }
}

/// A value that is masked in one field must not come in unmasked through another.
fn no_way_around(section: &Section<'_>, fields: &[Field], findings: &mut Findings<'_>) {
    for masked in fields.iter().filter(|field| field.mask.is_some()) {
        let same_value = |field: &&Field| field.mask.is_none() && field.source == masked.source;
        if let Some(open) = fields.iter().find(same_value)
            && !matches!(masked.source, FieldSource::KafkaTime | FieldSource::Partition)
            && let Some(entry) = section.get(&masked.name)
        {
            let what = format!(
                "`{}` is masked, but `{}` holds the same value as it is",
                masked.name, open.name
            );
            findings.add(&entry.key_span, what, format!("a mask for `{}` too", open.name));
        }
    }
}
