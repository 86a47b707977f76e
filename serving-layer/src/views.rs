//! What there is to ask: the views, and of each its columns and how far its layers have come.

use serde::Serialize;
use shared_connections::store::{Facts, FreshnessOfPartition};
use shared_schemas::definitions::Definitions;
use shared_schemas::measure::Exactness;
use shared_schemas::units::show_duration;
use shared_schemas::view::{ResultColumn, Role, View};

use crate::answer::{AnsweredPublication, rfc3339};
use crate::freshness::{Freshness, topic};
use crate::query::held_from;

/// All views.
#[derive(Debug, Serialize)]
pub struct Views {
    views: Vec<Listed>,
}

/// A view in the list.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    dataset: String,
    grain: String,
    fingerprint: String,
    dimensions: Vec<String>,
    measures: Vec<String>,
}

/// A view and what is known of it now.
#[derive(Debug, Serialize)]
pub struct ViewPage {
    name: String,
    dataset: String,
    grain: String,
    fingerprint: String,
    /// Nothing was published yet: all is the speed layer's.
    building: bool,
    /// The first moment that the view still holds; null where it holds all.
    held_from: Option<String>,
    fields: Vec<Field>,
    publication: Option<AnsweredPublication>,
    freshness: Freshness,
}

/// A column of a view's answers.
#[derive(Debug, Serialize)]
struct Field {
    name: String,
    role: &'static str,
    r#type: String,
    expression: String,
    /// Measures only: `exact`, `rounded` for float64, `exact_in_batch` where speed rows make it an estimate, `estimated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    exactness: Option<&'static str>,
}

impl Views {
    /// The views of the definitions, in their order.
    pub fn of(definitions: &Definitions) -> Self {
        let listed = |view: &View| Listed {
            name: view.name.clone(),
            dataset: view.dataset.clone(),
            grain: show_duration(view.grain),
            fingerprint: view.fingerprint.to_string(),
            dimensions: view.dimensions.iter().map(|dimension| dimension.name.clone()).collect(),
            measures: view.measures.iter().map(|measure| measure.name.clone()).collect(),
        };
        Self {
            views: definitions.views.iter().map(listed).collect(),
        }
    }
}

impl ViewPage {
    /// Of a view, with what was read of it. `now` is in milliseconds since 1970.
    pub fn of(view: &View, facts: &Facts, freshness: &[FreshnessOfPartition], now: i64) -> Self {
        Self {
            name: view.name.clone(),
            dataset: view.dataset.clone(),
            grain: show_duration(view.grain),
            fingerprint: view.fingerprint.to_string(),
            building: facts.newest().is_none(),
            held_from: held_from(facts).and_then(rfc3339),
            fields: view.columns().into_iter().map(field).collect(),
            publication: facts
                .newest()
                .map(|newest| AnsweredPublication::of(newest, topic(freshness))),
            freshness: Freshness::of(view, facts, freshness, now),
        }
    }
}

fn field(column: ResultColumn) -> Field {
    Field {
        name: column.name,
        role: match column.role {
            Role::Time => "time",
            Role::Dimension => "dimension",
            Role::Measure => "measure",
        },
        r#type: column.type_name,
        expression: column.expression,
        exactness: column.exactness.map(|exactness| match exactness {
            Exactness::Exact => "exact",
            Exactness::Rounded => "rounded",
            Exactness::ExactInBatch => "exact_in_batch",
            Exactness::Estimated => "estimated",
        }),
    }
}
