//! What the hashes of rules mean: written wherever rules come into use, so that later ones can be compared with them.
//!
//! Ledgers, commits of the archive and publications carry the hash of all rules of a dataset. Two hashes that differ do not
//! say whether an answer can: a rule on undeclared data changes none, another key of a mask changes masked values alone. So
//! beside each hash stand two further ones, of the rules that views can see, and of those without keys. No rule itself is
//! written, and a key of random bytes cannot be told from them.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use shared_schemas::dataset::Dataset;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::store::tables::RULES;

use super::client::Store;
use super::error::StoreError;

/// What is known of the rules that stand behind hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesKnown(BTreeMap<String, (String, String)>);

/// How two sets of rules differ, as far as an answer can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesDiffer {
    /// By the keys that values are hashed with.
    ByKeys,
    /// Otherwise.
    Otherwise,
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct RulesRow {
    rules: String,
    events: String,
    unkeyed: String,
}

impl RulesKnown {
    /// With the rules of a dataset.
    pub fn with(mut self, dataset: &Dataset) -> Self {
        let row = row(dataset);
        self.0.insert(row.rules, (row.events, row.unkeyed));
        self
    }

    /// The hash of those of these rules that views can see.
    pub fn events(&self, rules: &str) -> Option<Fingerprint> {
        Fingerprint::read(&self.0.get(rules)?.0)
    }

    /// How these rules differ, by their hashes; `None` where no answer can tell them apart. Hashes that nothing is known of differ.
    pub fn differ(&self, a: &str, b: &str) -> Option<RulesDiffer> {
        if a == b {
            return None;
        }
        match self.0.get(a).zip(self.0.get(b)) {
            Some(((a, _), (b, _))) if a == b => None,
            Some(((_, a), (_, b))) if a == b => Some(RulesDiffer::ByKeys),
            _ => Some(RulesDiffer::Otherwise),
        }
    }
}

fn row(dataset: &Dataset) -> RulesRow {
    RulesRow {
        rules: Fingerprint::of_rules(dataset).to_string(),
        events: Fingerprint::of_event_rules(dataset).to_string(),
        unkeyed: Fingerprint::of_event_rules_without_keys(dataset).to_string(),
    }
}

impl Store {
    /// Writes what the rules of these datasets are. Safe to do again.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn record_rules(&self, datasets: &[Dataset]) -> Result<(), StoreError> {
        let rows: Vec<_> = datasets.iter().map(row).collect();
        self.record(RULES, &rows).await
    }

    /// What is known of rules.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn rules(&self) -> Result<RulesKnown, StoreError> {
        let sql = format!("SELECT rules, events, unkeyed FROM {} FINAL", self.table(RULES));
        let rows = self.rows::<RulesRow>("tell which rules there were", &sql, &[]).await?;
        let known = rows.into_iter().map(|row| (row.rules, (row.events, row.unkeyed)));
        Ok(RulesKnown(known.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(more: &str) -> Dataset {
        let text = format!(
            "[dataset.flights]\ntopic = \"flights\"\nevent_time = \"at\"\n{more}\n[dataset.flights.fields]\nat = \"timestamp\"\n\
             flight = \"int64\"\n"
        );
        let definitions = shared_schemas::definitions::Definitions::parse([("flights.toml", text.as_str())]);
        definitions.map(|mut found| found.datasets.remove(0)).unwrap()
    }

    #[test]
    fn only_rules_that_an_answer_can_tell_differ() {
        let (plain, dropping, later) = (dataset(""), dataset("extra = \"drop\""), dataset("future = \"1h\""));
        let known = [&plain, &dropping, &later]
            .into_iter()
            .fold(RulesKnown::default(), RulesKnown::with);
        let differ = |a: &Dataset, b: &Dataset| known.differ(&row(a).rules, &row(b).rules);
        assert_ne!(row(&plain).rules, row(&dropping).rules);
        assert_eq!(differ(&plain, &dropping), None);
        assert_eq!(differ(&plain, &later), Some(RulesDiffer::Otherwise));
        assert_eq!(known.differ("old", &row(&plain).rules), Some(RulesDiffer::Otherwise));
        let keyed = RulesKnown(BTreeMap::from([
            ("a".to_owned(), ("1".to_owned(), "same".to_owned())),
            ("b".to_owned(), ("2".to_owned(), "same".to_owned())),
        ]));
        assert_eq!(keyed.differ("a", "b"), Some(RulesDiffer::ByKeys));
    }
}
