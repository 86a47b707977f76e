//! A dataset's mask rules: what is done to values before anything is stored.

use crate::dataset::{EventTime, Field, FieldSource, FieldType, Mask, PathMask, Truncate, Undeclared, written_path};
use crate::mistake::{nearest, slip};
use crate::section::{Entry, Findings, Section};

use super::keys::KeyUse;

/// What a path of undeclared data may begin with, and must where it is a single key.
const OF_EXTRA: &str = "_extra.";
const MASKS: [&str; 4] = ["hash", "redact", "drop", "truncate"];

/// So many hexadecimal digits are a key of 16 bytes, and no word.
const KEY_DIGITS: usize = 32;
/// No variable for a key has a longer name.
const LONGEST_VARIABLE: usize = 64;

const EXAMPLE: &str = "{ hash = \"KEY_VARIABLE\" }, \"redact\", \"drop\" or { truncate = 3 }";

/// What of the dataset the rules have to agree with.
pub(super) struct About<'a> {
    pub(super) event_time: Option<&'a EventTime>,
    pub(super) event_id: &'a [String],
    pub(super) undeclared: Undeclared,
    /// Whether a field that is not there was not declared at all.
    pub(super) fields_sound: bool,
}

/// Reads the rules into the fields. Returns those for undeclared data, sorted, and where keys are named.
pub(super) fn read(
    section: &Section<'_>,
    fields: &mut [Field],
    about: &About<'_>,
    findings: &mut Findings<'_>,
) -> (Vec<PathMask>, Vec<KeyUse>) {
    let mut rules = Rules {
        paths: Vec::new(),
        keys: Vec::new(),
    };
    for entry in section.entries() {
        if let Some(field) = fields.iter_mut().find(|field| field.name == entry.key) {
            rules.of_field(section, &entry, field, about, findings);
        } else if let Some(path) = without_quotes(&entry) {
            let what = format!("the mask is for `{}`, which is no field", entry.key);
            findings.add(&entry.key_span, what, format!("a path in quotes: \"{path}\""));
        } else if is_path(entry.key) {
            rules.of_path(section, &entry, fields, about, findings);
        } else {
            read_mask(section, &entry, findings);
            if about.fields_sound {
                let near = nearest(entry.key, fields.iter().map(|field| field.name.as_str()));
                let field = near.map_or_else(|| "the name of a declared field".to_owned(), |name| format!("`{name}`"));
                findings.add(
                    &entry.key_span,
                    format!("the mask is for `{}`, which is no field", entry.key),
                    format!("{field}; undeclared data is \"{OF_EXTRA}{}\"", entry.key.escape_debug()),
                );
            }
        }
    }
    no_way_around(section, fields, about.event_id, findings);
    rules.paths.sort_by(|left, right| left.path.cmp(&right.path));
    (rules.paths, rules.keys)
}

/// The rules as far as they were read.
struct Rules {
    paths: Vec<PathMask>,
    keys: Vec<KeyUse>,
}

impl Rules {
    fn of_field(
        &mut self,
        section: &Section<'_>,
        entry: &Entry<'_>,
        field: &mut Field,
        about: &About<'_>,
        findings: &mut Findings<'_>,
    ) {
        let mask = read_mask(section, entry, findings);
        if about.event_time == Some(&EventTime::Field(field.name.clone())) {
            let what = format!("`{}` is the event time, which can't be masked", field.name);
            findings.add(&entry.key_span, what, "leave the rule out");
            return;
        }
        let Some(mask) = mask else { return };
        if about.event_id.contains(&field.name) && !matches!(mask, Mask::Hash { .. }) {
            let what = format!(
                "`{}` is part of `event_id`, and this mask makes different events the same",
                field.name
            );
            findings.add(
                &entry.span,
                what,
                format!("{{ hash = \"{}_KEY\" }}", field.name.to_uppercase()),
            );
            return;
        }
        if let Err((what, instead)) = fits(&mask, field) {
            findings.add(&entry.span, what, instead);
            return;
        }
        self.keys.extend(KeyUse::of("field", entry, &mask, findings));
        field.mask = Some(mask);
    }

    /// Any mask fits a path: nobody declared what stands there.
    fn of_path(
        &mut self,
        section: &Section<'_>,
        entry: &Entry<'_>,
        fields: &[Field],
        about: &About<'_>,
        findings: &mut Findings<'_>,
    ) {
        let mask = read_mask(section, entry, findings);
        let path = match read_path(entry.key) {
            Ok(path) => path,
            Err((what, instead)) => {
                findings.add(&entry.key_span, what, instead);
                return;
            }
        };
        let wrong = if about.undeclared == Undeclared::Drop {
            let what = format!("`{}` is not declared, so nothing of it is kept", entry.key);
            Some((what, "leave the rule out, or `extra = \"keep\"`".to_owned()))
        } else {
            self.in_the_way(&path, fields)
                .or_else(|| meant(entry.key, &path, fields))
        };
        if let Some((what, instead)) = wrong {
            findings.add(&entry.key_span, what, instead);
            return;
        }
        let Some(mask) = mask else { return };
        self.keys.extend(KeyUse::of("path", entry, &mask, findings));
        self.paths.push(PathMask { path, mask });
    }

    /// What keeps a rule on that path from ever meeting anything, and what to do instead.
    fn in_the_way(&self, path: &[String], fields: &[Field]) -> Option<(String, String)> {
        let shown = written_path(path);
        for field in fields {
            let FieldSource::Path(declared) = &field.source else {
                continue;
            };
            if declared == path {
                let what = format!("`{shown}` is declared, as the field `{}`", field.name);
                return Some((what, format!("a mask for `{}`", field.name)));
            }
            if path.starts_with(declared) {
                let what = format!(
                    "`{shown}` lies in the field `{}`, which is {}: nothing of it is undeclared",
                    field.name, field.field_type
                );
                return Some((what, format!("a mask for `{}`", field.name)));
            }
        }
        let other = self
            .paths
            .iter()
            .find(|other| path.starts_with(&other.path) || other.path.starts_with(path))?;
        let other = other.written();
        let what = if other == shown {
            format!("there is another mask for `{shown}`")
        } else {
            format!("there is a mask for `{other}`, and one of the two lies in the other")
        };
        Some((what, "one mask".to_owned()))
    }
}

/// The field that was probably meant by a path that leads close by it. With [`OF_EXTRA`] before it, a path means what it says.
fn meant(key: &str, path: &[String], fields: &[Field]) -> Option<(String, String)> {
    if key.starts_with(OF_EXTRA) {
        return None;
    }
    let shown = written_path(path);
    let declared = fields.iter().filter_map(|field| match &field.source {
        FieldSource::Path(declared) if declared.len() == path.len() => Some((written_path(declared), field)),
        _ => None,
    });
    let declared: Vec<(String, &Field)> = declared.collect();
    let near = slip(&shown, declared.iter().map(|(path, _)| path.as_str()))?;
    let (_, field) = declared.iter().find(|(path, _)| path == near)?;
    let what = format!(
        "`{shown}` is undeclared, and all but `{near}`, which is declared as the field `{}`",
        field.name
    );
    let instead = format!(
        "a mask for `{}`; undeclared data is \"{OF_EXTRA}{}\"",
        field.name,
        key.escape_debug()
    );
    Some((what, instead))
}

/// Whether a key can only mean undeclared data: no field has such a name.
fn is_path(key: &str) -> bool {
    key.contains(['.', '\\'])
}

/// `user.email = "redact"` is a table in TOML; the path that was meant.
fn without_quotes(entry: &Entry<'_>) -> Option<String> {
    let mut path = entry.key.to_owned();
    let mut table = entry.value().as_table()?;
    loop {
        let (key, value) = table.iter().next().filter(|_| table.len() == 1)?;
        let key: &str = key.get_ref();
        if MASKS.contains(&key) {
            return (path != entry.key).then_some(path);
        }
        path = format!("{path}.{key}");
        match value.get_ref().as_table() {
            Some(inside) => table = inside,
            None => return Some(path),
        }
    }
}

/// Keys joined by points, [`OF_EXTRA`] before them or not; a backslash takes a point, or a backslash, for part of a key.
fn read_path(key: &str) -> Result<Vec<String>, (String, String)> {
    let shown = key.escape_debug().to_string().replace("\\\\", "\\");
    let mut path = vec![String::new()];
    let mut letters = key.strip_prefix(OF_EXTRA).unwrap_or(key).chars();
    while let Some(letter) = letters.next() {
        let letter = match letter {
            '.' => {
                path.push(String::new());
                continue;
            }
            '\\' => match letters.next() {
                Some(escaped @ ('.' | '\\')) => escaped,
                _ => {
                    let what = format!("a backslash in the path `{shown}` stands before neither a point nor another");
                    return Err((
                        what,
                        "'a\\.b' for the key `a.b`, 'a\\\\b' for the key `a\\b`".to_owned(),
                    ));
                }
            },
            other => other,
        };
        if let Some(name) = path.last_mut() {
            name.push(letter);
        }
    }
    if path.iter().any(String::is_empty) {
        let what = format!("the path `{shown}` has an empty part");
        return Err((what, "keys joined by single points: \"user.email\"".to_owned()));
    }
    Ok(path)
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
    section.only(&MASKS, findings);
    let rules: Vec<Entry<'_>> = section
        .entries()
        .into_iter()
        .filter(|rule| MASKS.contains(&rule.key))
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
            let names_a_variable = starts_well && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !names_a_variable || looks_like_a_key(key) {
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

/// Whether the name of a variable is likelier a key that was pasted there: one written in hexadecimal, or very long.
fn looks_like_a_key(name: &str) -> bool {
    let mut digits = name.split(|letter: char| !letter.is_ascii_hexdigit());
    name.len() > LONGEST_VARIABLE || digits.any(|digits| digits.len() >= KEY_DIGITS)
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

/// A value that is masked in one field must not come in unmasked through another. The record's key is one for the fields of
/// `event_id`: `highwater produce` makes it of them, and so do most producers.
fn no_way_around(section: &Section<'_>, fields: &[Field], event_id: &[String], findings: &mut Findings<'_>) {
    let open_key = fields
        .iter()
        .find(|field| field.mask.is_none() && field.source == FieldSource::Key);
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
        } else if let Some(open) = open_key
            && event_id.contains(&masked.name)
            && let Some(entry) = section.get(&masked.name)
        {
            let what = format!(
                "`{}` is masked, but `{}` is the record's key, which is made of the `event_id`",
                masked.name, open.name
            );
            findings.add(&entry.key_span, what, format!("a mask for `{}` too", open.name));
        }
    }
}
