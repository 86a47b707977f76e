//! What there is to ask: the views, and of each its columns and how far its layers have come.

use std::time::Duration;

use serde::Serialize;
use shared_connections::store::{Facts, FreshnessOfPartition, Store, StoreError};
use shared_schemas::definitions::Definitions;
use shared_schemas::measure::Exactness;
use shared_schemas::units::show_duration;
use shared_schemas::view::{ResultColumn, Role, View};

use crate::answer::{AnsweredPublication, rfc3339};
use crate::changed::{Building, Definition};
use crate::freshness::{Freshness, topic};
use crate::query::held_from;

/// How long the list waits to be told which views are building.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// Whether nothing was published of it yet; null where ClickHouse could not be asked.
    building: Option<bool>,
    /// There only where it is building.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
}

/// A view and what is known of it now.
#[derive(Debug, Serialize)]
pub struct ViewPage {
    name: String,
    dataset: String,
    grain: String,
    fingerprint: String,
    /// Nothing was published yet of what is defined: another definition answers, or the speed layer alone.
    building: bool,
    /// There only where it is building.
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
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
    /// The views of the definitions, in their order, as those are that answer. ClickHouse tells which do; where it is away, or not to be
    /// asked, that is not known, and there is a list all the same.
    pub(crate) async fn of(definitions: &Definitions, store: Option<&Store>) -> Self {
        let looked = async { look(definitions, store?).await.ok() };
        let looked: Vec<Option<Option<Building>>> = match tokio::time::timeout(PATIENCE, looked).await {
            Ok(Some(building)) => building.into_iter().map(Some).collect(),
            Ok(None) | Err(_) => vec![None; definitions.views.len()],
        };
        let views = definitions.views.iter().zip(looked);
        Self {
            views: views.map(|(view, building)| Listed::of(view, building)).collect(),
        }
    }
}

async fn look(definitions: &Definitions, store: &Store) -> Result<Vec<Option<Building>>, StoreError> {
    let known = store.known().await?;
    let mut looked = Vec::new();
    for view in &definitions.views {
        looked.push(Building::look(store, view, &known).await?);
    }
    Ok(looked)
}

impl Listed {
    /// A view as it is defined, and whether it is building, where that is known.
    fn of(view: &View, building: Option<Option<Building>>) -> Self {
        let is_building = building.as_ref().map(Option::is_some);
        let building = building.flatten();
        let definition = building.as_ref().map(|building| building.definition().clone());
        let changed = building.and_then(Building::changed);
        let view = changed.as_ref().map_or(view, |changed| &changed.instead.view);
        Self {
            name: view.name.clone(),
            dataset: view.dataset.clone(),
            grain: show_duration(view.grain),
            fingerprint: view.fingerprint.to_string(),
            dimensions: view.dimensions.iter().map(|dimension| dimension.name.clone()).collect(),
            measures: view.measures.iter().map(|measure| measure.name.clone()).collect(),
            building: is_building,
            definition,
        }
    }
}

impl ViewPage {
    /// Of the view that answers, with what was read of it, and what is to be said where it is building, or another one is in whose
    /// place it answers. `now` is in milliseconds since 1970.
    pub(crate) fn of(
        view: &View,
        facts: &Facts,
        freshness: &[FreshnessOfPartition],
        definition: Option<Definition>,
        now: i64,
    ) -> Self {
        Self {
            name: view.name.clone(),
            dataset: view.dataset.clone(),
            grain: show_duration(view.grain),
            fingerprint: view.fingerprint.to_string(),
            building: definition.is_some() || facts.newest().is_none(),
            definition,
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
