//! Definitions as they are kept beside what was computed by them: enough to answer from a view that no file defines any more.
//!
//! A view's rows outlive its definition: it is changed, and what was published by the old one answers until there is a
//! publication of the new one. What is kept is what the author wrote, so it is read by what reads files. A key is
//! nowhere in it, only the name of its variable; in place of the keys stands the hash of the rules, which has been made with them.
//! So what is read is compared with the fingerprint that it was kept under, and is nothing where it does not fit: kept by a
//! later build, or read by one that computes otherwise.

use super::Definitions;
use crate::fingerprint::Fingerprint;
use crate::view::View;

/// How kept definitions are written. Raised when a build of before could not read one, or would read it otherwise.
pub const KEPT_FORM: u32 = 1;

/// What a fingerprint means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDefinition {
    /// The view's.
    pub fingerprint: Fingerprint,
    /// The dataset's name.
    pub dataset: String,
    /// The view's name.
    pub view: String,
    /// How `text` is to be read.
    pub form: u32,
    /// The fingerprint of those rules of the dataset that the view can see.
    pub rules: Fingerprint,
    /// The dataset and the view, as TOML.
    pub text: String,
}

/// A view as it was defined once.
#[derive(Debug, Clone)]
pub struct KeptView {
    /// The view.
    pub view: View,
    /// Whether its dataset says which events are repeats.
    pub has_event_id: bool,
}

impl Definitions {
    /// What the fingerprint of each view means.
    pub fn to_keep(&self) -> Vec<KeptDefinition> {
        let keep = |view: &View| {
            let dataset = self.dataset(&view.dataset)?;
            let [datasets, views] = &self.written;
            Some(KeptDefinition {
                fingerprint: view.fingerprint,
                dataset: view.dataset.clone(),
                view: view.name.clone(),
                form: KEPT_FORM,
                rules: Fingerprint::of_event_rules(dataset),
                text: format!("{}\n{}", datasets.get(&view.dataset)?, views.get(&view.name)?),
            })
        };
        self.views.iter().filter_map(keep).collect()
    }
}

impl KeptDefinition {
    /// The view; `None` where this build does not read it as the one that it was kept as.
    pub fn read(&self) -> Option<KeptView> {
        if self.form != KEPT_FORM {
            return None;
        }
        let read = Definitions::parse([("definition", self.text.as_str())]).ok()?;
        let dataset = read.dataset(&self.dataset)?;
        let view = read.view(&self.view).filter(|view| view.dataset == self.dataset)?;
        (Fingerprint::of_view_by(view, self.rules) == self.fingerprint).then(|| KeptView {
            view: View {
                fingerprint: self.fingerprint,
                ..view.clone()
            },
            has_event_id: !dataset.event_id.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const TEXT: &str = r#"
[dataset.flights]   # a comment
topic = "flights"
event_time = "at"
event_id = ["n"]
dedupe.window = "1h"
chunk = 1_024

[view.hourly]
dataset = "flights"
grain = "1h"
filter = "origin <> 'a \" \\ \t b' AND n > 10"
dimensions = ["origin", { name = "late", expr = '''n > 15''' }]

[dataset.flights.fields]
at = { type = "timestamp", unit = "s" }
n = "int64"
origin = { type = "string?", from = "geo.origin" }

[dataset.flights.mask]
origin = { hash = "ORIGIN_KEY" }

[view.hourly.measures]
flights = "count()"
late_flights = { measure = "count()", where = "n > 15" }
share = { ratio = ["late_flights", "flights"] }
n_q = "quantiles(n, [0.5, 0.95])"
origins = "distinct(origin)"
"#;

    fn with_key(text: &str) -> Definitions {
        let mut definitions = Definitions::parse([("flights.toml", text)]).unwrap();
        let keys = HashMap::from([("ORIGIN_KEY".to_owned(), b"a secret key".to_vec())]);
        assert!(definitions.take_keys(&keys).is_empty());
        definitions
    }

    #[test]
    fn what_is_kept_is_the_view_again_and_holds_no_key() {
        let definitions = with_key(TEXT);
        let kept = definitions.to_keep().remove(0);
        let view = &definitions.views[0];
        let read = kept.read().unwrap();
        assert_eq!(read.view.fingerprint, view.fingerprint);
        assert_eq!(format!("{:?}", read.view), format!("{view:?}"));
        assert!(read.has_event_id);
        assert!(
            kept.text.contains("ORIGIN_KEY") && !kept.text.contains("secret"),
            "{}",
            kept.text
        );
        assert!(!kept.text.contains("comment"), "{}", kept.text);
        assert_eq!(
            kept.text.lines().next(),
            Some("[dataset.flights]"),
            "the dataset comes first"
        );
    }

    #[test]
    fn every_view_of_the_examples_can_be_kept() {
        let text = include_str!("../../../deploy/examples/flights/definitions/flights.toml");
        let definitions = Definitions::parse([("flights.toml", text)]).unwrap();
        let kept = definitions.to_keep();
        assert!(kept.len() > 1 && kept.len() == definitions.views.len());
        for kept in kept {
            assert!(kept.read().is_some(), "{}", kept.text);
        }
    }

    #[test]
    fn what_does_not_fit_its_fingerprint_is_nothing() {
        let definitions = with_key(TEXT);
        let kept = definitions.to_keep().remove(0);
        assert!(kept.read().is_some());
        let later = KeptDefinition {
            form: KEPT_FORM + 1,
            ..kept.clone()
        };
        let other_rules = KeptDefinition {
            rules: Fingerprint(7),
            ..kept.clone()
        };
        let other_name = KeptDefinition {
            view: "daily".to_owned(),
            ..kept.clone()
        };
        let texts = ["", "no TOML", "[view.hourly]\n", &kept.text.replace("n > 15", "n > 16")];
        let other_texts = texts.map(|text| KeptDefinition {
            text: text.to_owned(),
            ..kept.clone()
        });
        for wrong in [later, other_rules, other_name].iter().chain(&other_texts) {
            assert!(wrong.read().is_none(), "{wrong:?}");
        }
    }
}
