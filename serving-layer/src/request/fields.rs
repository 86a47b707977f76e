//! The fields of a query as they came: from an address, or from a JSON object. Both become the same texts.

use axum::http::Uri;
use serde_json::{Map, Value};

use super::shown;
use crate::problem::Fault;

/// What a query may have, for messages.
const KNOWN: &str = "from, to, grain, tz, measures, dimensions, filter, order, limit, layers";

/// The fields of a query, none of them checked against a view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    pub(super) times: Times,
    pub(super) measures: Option<Vec<String>>,
    pub(super) dimensions: Option<Vec<String>>,
    pub(super) filters: Vec<FilterField>,
    pub(super) order: Option<Vec<String>>,
    pub(super) limit: Option<String>,
    pub(super) layers: Option<String>,
    /// What could not be read at all.
    pub(super) faults: Vec<Fault>,
}

/// The fields that make the range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) grain: Option<String>,
    pub(super) tz: Option<String>,
}

/// A filter as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterField {
    /// Its name in messages.
    pub(super) parameter: String,
    pub(super) dimension: String,
    pub(super) values: Vec<String>,
}

impl Fields {
    /// The fields of an address.
    pub fn of_address(uri: &Uri) -> Self {
        let mut fields = Self::default();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let filtered = name.strip_prefix("filter[").and_then(|rest| rest.strip_suffix(']'));
            if let Some(dimension) = filtered {
                fields.filters.push(FilterField {
                    parameter: name.to_string(),
                    dimension: dimension.to_owned(),
                    values: split(&value),
                });
            } else if let Some(place) = fields.text(&name) {
                let twice = place.is_some();
                *place = Some(value.into_owned());
                fields.note_twice(twice, &name);
            } else if let Some(place) = fields.list(&name) {
                let twice = place.is_some();
                *place = Some(split(&value).into_iter().filter(|part| !part.is_empty()).collect());
                fields.note_twice(twice, &name);
            } else {
                fields.note_unknown(&name);
            }
        }
        fields
    }

    /// The fields of a JSON object.
    pub fn of_body(object: Map<String, Value>) -> Self {
        let mut fields = Self::default();
        for (name, value) in object {
            // As good as absent.
            if value.is_null() {
                continue;
            }
            if name == "filters" {
                fields.take_filters(value);
            } else if let Some(place) = fields.text(&name) {
                match text(&value) {
                    Some(text) => *place = Some(text),
                    None => fields.note_form(&name, "a string or a number"),
                }
            } else if let Some(place) = fields.list(&name) {
                match texts(&value) {
                    Some(texts) => *place = Some(texts),
                    None => fields.note_form(&name, "a list of strings"),
                }
            } else {
                fields.note_unknown(&name);
            }
        }
        fields
    }

    fn text(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "from" => &mut self.times.from,
            "to" => &mut self.times.to,
            "grain" => &mut self.times.grain,
            "tz" => &mut self.times.tz,
            "limit" => &mut self.limit,
            "layers" => &mut self.layers,
            _ => return None,
        })
    }

    fn list(&mut self, name: &str) -> Option<&mut Option<Vec<String>>> {
        Some(match name {
            "measures" => &mut self.measures,
            "dimensions" => &mut self.dimensions,
            "order" => &mut self.order,
            _ => return None,
        })
    }

    fn take_filters(&mut self, value: Value) {
        let form = "a list of {\"field\": …, \"op\": \"in\", \"value\": […]}";
        let Value::Array(filters) = value else {
            return self.note_form("filters", form);
        };
        for (index, filter) in filters.into_iter().enumerate() {
            let parameter = format!("filters[{index}]");
            let Value::Object(mut filter) = filter else {
                self.note_form(&parameter, form);
                continue;
            };
            let (field, op, value) = (filter.remove("field"), filter.remove("op"), filter.remove("value"));
            if let Some(unknown) = filter.keys().next() {
                let name = format!("{parameter}.{unknown}");
                let detail = format!("there is no field `{}` in a filter", shown(unknown));
                self.faults.push(Fault::malformed(
                    &name,
                    "unknown_parameter",
                    detail,
                    "field, op and value",
                ));
                continue;
            }
            let values = match (op.as_ref().map(Value::as_str), &value) {
                (None | Some(Some("in")), Some(Value::Array(values))) => values.iter().map(text).collect(),
                (None | Some(Some("in" | "eq")), Some(value)) => text(value).map(|value| vec![value]),
                (None | Some(Some("in" | "eq")), None) => None,
                _ => {
                    let mend = "in, with a list of values, or eq, with one";
                    let name = format!("{parameter}.op");
                    let detail = "there is no such comparison";
                    self.faults
                        .push(Fault::malformed(&name, "malformed_value", detail, mend));
                    continue;
                }
            };
            match (field, values) {
                (Some(Value::String(dimension)), Some(values)) => self.filters.push(FilterField {
                    parameter,
                    dimension,
                    values,
                }),
                (Some(Value::String(_)), None) => {
                    self.note_form(&format!("{parameter}.value"), "a value, or a list of values for `in`");
                }
                _ => self.note_form(&format!("{parameter}.field"), "the name of a dimension"),
            }
        }
    }

    fn note_twice(&mut self, twice: bool, name: &str) {
        if twice {
            let detail = "it is given twice";
            self.faults
                .push(Fault::malformed(name, "repeated_parameter", detail, "give it once"));
        }
    }

    fn note_form(&mut self, name: &str, form: &str) {
        let detail = "it has another form than this field takes";
        self.faults
            .push(Fault::malformed(name, "malformed_value", detail, form));
    }

    fn note_unknown(&mut self, name: &str) {
        let detail = format!("there is no parameter `{}`", shown(name));
        let mend = format!("one of {KNOWN}");
        self.faults
            .push(Fault::malformed(&shown(name), "unknown_parameter", detail, mend));
    }
}

/// A scalar as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A list of strings, or one string that lists them as an address does.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(split(text).into_iter().filter(|part| !part.is_empty()).collect()),
        Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Splits at commas; `\,` is a comma and `\\` a backslash.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = letter == '\\' && matches!(letters.peek(), Some(',' | '\\'));
        match (letter, parts.last_mut()) {
            (',', _) => parts.push(String::new()),
            (_, Some(part)) if escaped => part.extend(letters.next()),
            (letter, Some(part)) => part.push(letter),
            (_, None) => {}
        }
    }
    parts
}
