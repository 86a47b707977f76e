//! An event's key: the JSON array of the values of its `event_id`.
//!
//! Equal events then lie in one partition, where the speed layer sees that one repeats the other.

use serde_json::Value;
use shared_schemas::dataset::{Dataset, FieldSource};

/// Where the values of the key stand in an event.
pub(in crate::commands) struct Key {
    /// `None`: events of this dataset have no key.
    paths: Option<Vec<Vec<String>>>,
}

impl Key {
    /// The dataset's. None without `event_id`, or where a part of it does not stand in the value.
    pub(in crate::commands) fn of(dataset: &Dataset) -> Self {
        let path = |name: &String| match &dataset.field(name)?.source {
            FieldSource::Path(path) => Some(path.clone()),
            _ => None,
        };
        let paths = dataset.event_id.iter().map(path).collect::<Option<Vec<_>>>();
        Self {
            paths: paths.filter(|paths| !paths.is_empty()),
        }
    }

    /// The line's; none where it is no JSON object or a value is absent or null.
    pub(in crate::commands) fn of_line(&self, line: &[u8]) -> Option<Vec<u8>> {
        let paths = self.paths.as_ref()?;
        let event: Value = serde_json::from_slice(line).ok()?;
        let values = paths.iter().map(|path| {
            let value = path
                .iter()
                .try_fold(&event, |inside, name| inside.as_object()?.get(name));
            value.filter(|value| !value.is_null())
        });
        serde_json::to_vec(&values.collect::<Option<Vec<_>>>()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> Option<String> {
        let path = |path: &[&str]| path.iter().map(|name| (*name).to_owned()).collect();
        let key = Key {
            paths: Some(vec![path(&["carrier"]), path(&["leg", "flight"])]),
        };
        key.of_line(line.as_bytes()).map(|key| String::from_utf8(key).unwrap())
    }

    #[test]
    fn a_key_is_the_array_of_the_events_id() {
        let event = r#"{"leg": {"flight": 7, "x": 1}, "carrier": "A\"\u00e4"}"#;
        assert_eq!(key(event).unwrap(), r#"["A\"ä",7]"#);
        assert_eq!(
            key(r#" {"carrier":"B","leg":{"flight":7},"carrier":"C"} "#).unwrap(),
            r#"["C",7]"#
        );
    }

    #[test]
    fn what_lacks_a_part_has_no_key() {
        let lacking = [
            "",
            "not json",
            "[1]",
            "{\"carrier\": \"A\"}",
            r#"{"carrier": "A", "leg": 7}"#,
            r#"{"carrier": null, "leg": {"flight": 7}}"#,
            r#"{"carrier": "A", "leg": {"flight": 7}} x"#,
        ];
        for line in lacking {
            assert_eq!(key(line), None, "{line}");
        }
        assert_eq!(Key { paths: None }.of_line(b"{}"), None);
    }
}
