//! The keys of `hash` rules: where definitions name them, and whether they are there.
//!
//! A key is no part of a definition, but what it makes of values is. So a check of each key goes into the fingerprints: a
//! view must not go on counting under another key what it has counted under this one.

use crate::dataset::{KeyCheck, Mask};
use crate::decode::MaskKeys;
use crate::fingerprint::Fingerprint;
use crate::mistake::{Mistake, Mistakes, Place};
use crate::section::{Entry, Findings};

use super::Definitions;

/// A place where a key is named.
#[derive(Debug, Clone)]
pub(super) struct KeyUse {
    /// What is hashed, as in "field `tail`".
    what: String,
    variable: String,
    file: String,
    place: Place,
}

impl KeyUse {
    /// Of the rule for a field or a path, if it is one that hashes.
    pub(super) fn of(kind: &str, entry: &Entry<'_>, mask: &Mask, findings: &Findings<'_>) -> Option<Self> {
        Some(Self {
            what: format!("{kind} `{}`", entry.key.escape_debug()),
            variable: mask.key_variable()?.to_owned(),
            file: findings.file_name().to_owned(),
            place: findings.place(&entry.span),
        })
    }
}

impl Definitions {
    /// Notes which keys the hashes are made with, in every fingerprint that depends on them, and returns which are missing.
    /// A fingerprint whose keys are not all there is none that any layer uses.
    pub fn take_keys(&mut self, keys: &dyn MaskKeys) -> Mistakes {
        let mut missing = Mistakes::default();
        for used in &self.keys {
            let fault = match keys.key(&used.variable) {
                None => "not set",
                Some(key) if key.is_empty() => "empty",
                Some(_) => continue,
            };
            let KeyUse { what, variable, .. } = used;
            missing.add(Mistake {
                file: used.file.clone(),
                place: Some(used.place.clone()),
                what: format!("{what} is to be hashed with the key in {variable}, which is {fault}"),
                instead: Some(format!(
                    "{variable} set to a secret, in the environment of every process"
                )),
            });
        }
        missing.sort();
        for dataset in &mut self.datasets {
            let checks = dataset.key_variables().into_iter().filter_map(|variable| {
                let check = KeyCheck::of(&keys.key(variable)?)?;
                Some((variable.to_owned(), check))
            });
            dataset.privacy.key_checks = checks.collect();
        }
        for view in &mut self.views {
            if let Some(dataset) = self.datasets.iter().find(|dataset| dataset.name == view.dataset) {
                view.fingerprint = Fingerprint::of_view(view, dataset);
            }
        }
        missing
    }
}
