//! Definitions as they are kept beside what was computed by them: enough to answer from a view that no file defines any more.
//!
//! A view's rows outlive its definition: it is changed, and what was published by the old one answers until there is a
//! publication of the new one. What is kept is what the author wrote, so it is read by what reads files. A key is
//! nowhere in it, only the name of its variable; in place of the keys stands the hash of the rules, which has been made with them.
//! So what is read is compared with the fingerprint that it was kept under, and is nothing where it does not fit.
//!
//! A build that computes otherwise makes another fingerprint of the same definition. So the plan version is kept too: what an earlier
//! build published goes on answering under the fingerprint that it made, as long as this one can read its rows.

use std::ops::RangeInclusive;

use super::Definitions;
use crate::dataset::Dataset;
use crate::fingerprint::{Fingerprint, OLDEST_PLAN_ANSWERED, PLAN_VERSION};
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
    /// The plan version that the fingerprint was made with.
    pub plan: u32,
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
    /// By which plan version it was computed.
    pub plan: u32,
}

/// Why a definition that is kept is nothing to this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is written in another form.
    #[error("its definition was kept by a later version of Highwater")]
    Form,
    /// Rows of its plan version are not understood.
    #[error(
        "it was computed by plan version {plan}, and this version of Highwater reads {}",
        versions(readable)
    )]
    Plan {
        /// Its plan version.
        plan: u32,
        /// Those that are.
        readable: (u32, u32),
    },
    /// The text means something else than its fingerprint.
    #[error("its definition as it is kept does not fit its fingerprint")]
    Unfit,
}

fn versions((oldest, newest): &(u32, u32)) -> String {
    if oldest == newest {
        format!("version {newest}")
    } else {
        format!("versions {oldest} to {newest}")
    }
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
                plan: PLAN_VERSION,
                text: format!("{}\n{}", datasets.get(&view.dataset)?, views.get(&view.name)?),
            })
        };
        self.views.iter().filter_map(keep).collect()
    }
}

impl KeptDefinition {
    /// The view.
    ///
    /// # Errors
    /// Why this build does not read it as the one that it was kept as.
    pub fn read(&self) -> Result<KeptView, Unreadable> {
        self.read_by(OLDEST_PLAN_ANSWERED..=PLAN_VERSION)
    }

    /// The dataset as it was, if this build reads its rules as they were kept; with the keys of another definition of it, which must be those that
    /// it had.
    pub fn dataset_with_keys_of(&self, now: &Dataset) -> Option<Dataset> {
        if self.form != KEPT_FORM {
            return None;
        }
        let read = Definitions::parse([("definition", self.text.as_str())]).ok()?;
        let mut dataset = read.dataset(&self.dataset)?.clone();
        dataset.privacy.key_checks.clone_from(&now.privacy.key_checks);
        (Fingerprint::of_event_rules(&dataset) == self.rules).then_some(dataset)
    }

    fn read_by(&self, plans: RangeInclusive<u32>) -> Result<KeptView, Unreadable> {
        if self.form != KEPT_FORM {
            return Err(Unreadable::Form);
        }
        if !plans.contains(&self.plan) {
            let (plan, readable) = (self.plan, plans.into_inner());
            return Err(Unreadable::Plan { plan, readable });
        }
        self.fitting().ok_or(Unreadable::Unfit)
    }

    fn fitting(&self) -> Option<KeptView> {
        let read = Definitions::parse([("definition", self.text.as_str())]).ok()?;
        let dataset = read.dataset(&self.dataset)?;
        let view = read.view(&self.view).filter(|view| view.dataset == self.dataset)?;
        let fingerprint = Fingerprint::of_view_by(view, self.rules, self.plan);
        (fingerprint == self.fingerprint).then(|| KeptView {
            view: View {
                fingerprint,
                ..view.clone()
            },
            has_event_id: !dataset.event_id.is_empty(),
            plan: self.plan,
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
    fn the_rules_are_read_where_they_are_those_that_were_kept() {
        let definitions = with_key(TEXT);
        let kept = definitions.to_keep().remove(0);
        let now = &definitions.datasets[0];
        let read = kept.dataset_with_keys_of(now).unwrap();
        assert_eq!(format!("{read:?}"), format!("{now:?}"));
        let mut other_key = now.clone();
        other_key
            .privacy
            .key_checks
            .values_mut()
            .for_each(|check| check.0 = [7; 8]);
        let later = KeptDefinition {
            form: KEPT_FORM + 1,
            ..kept.clone()
        };
        let other_text = KeptDefinition {
            text: kept.text.replace("1h", "2h"),
            ..kept.clone()
        };
        assert!(kept.dataset_with_keys_of(&other_key).is_none());
        assert!(later.dataset_with_keys_of(now).is_none() && other_text.dataset_with_keys_of(now).is_none());
    }

    #[test]
    fn every_view_of_the_examples_can_be_kept() {
        let text = include_str!("../../../deploy/examples/flights/definitions/flights.toml");
        let definitions = Definitions::parse([("flights.toml", text)]).unwrap();
        let kept = definitions.to_keep();
        assert!(kept.len() > 1 && kept.len() == definitions.views.len());
        for kept in kept {
            assert!(kept.read().is_ok(), "{}", kept.text);
        }
    }

    #[test]
    fn what_does_not_fit_its_fingerprint_is_nothing() {
        let definitions = with_key(TEXT);
        let kept = definitions.to_keep().remove(0);
        assert!(kept.read().is_ok());
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
            assert!(wrong.read().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_an_earlier_plan_computed_is_read_as_long_as_its_rows_are() {
        let definitions = with_key(TEXT);
        let now = definitions.to_keep().remove(0);
        // As a build before would have kept it, under the fingerprint that it made.
        let plan = PLAN_VERSION - 1;
        let rules = Fingerprint::of_event_rules(&definitions.datasets[0]);
        let before = KeptDefinition {
            fingerprint: Fingerprint::of_view_by(&definitions.views[0], rules, plan),
            plan,
            ..now.clone()
        };
        assert_ne!(before.fingerprint, now.fingerprint);
        let read = before.read_by(plan..=PLAN_VERSION).unwrap();
        assert_eq!((read.view.fingerprint, read.plan), (before.fingerprint, plan));
        let why = before.read_by(PLAN_VERSION..=PLAN_VERSION).unwrap_err();
        assert_eq!(
            why.to_string(),
            format!(
                "it was computed by plan version {plan}, and this version of Highwater reads version {PLAN_VERSION}"
            )
        );
        let later = KeptDefinition {
            plan: PLAN_VERSION + 1,
            ..now.clone()
        };
        assert!(matches!(later.read(), Err(Unreadable::Plan { .. })));
        let other = KeptDefinition { plan, ..now };
        assert_eq!(other.read_by(plan..=PLAN_VERSION).unwrap_err(), Unreadable::Unfit);
    }
}
