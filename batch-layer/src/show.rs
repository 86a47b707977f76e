//! One publication, with what the run came to that made it.

use serde::Serialize;
use shared_connections::store::{Store, StoreError};
use shared_schemas::handoff::RunId;
use shared_schemas::view::View;

use crate::list::{Listed, State, is_forgotten, list};
use crate::retry::patiently;

/// A publication and its run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The publication.
    #[serde(flatten)]
    pub listed: Listed,
    /// What the run told that computed its content, as `batch run --output json` does; none where it was killed before it could.
    pub report: Option<serde_json::Value>,
}

/// Why a publication can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is none of that number.
    #[error("view `{view}` has no publication {number}: `highwater batch list --view {view}` shows those that it has")]
    Unknown {
        /// The view.
        view: String,
        /// The number.
        number: u64,
    },
    /// Its rows may be gone.
    #[error("publication {number} of view `{view}` is let go: its rows may be gone")]
    LetGo {
        /// The view.
        view: String,
        /// The number.
        number: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store answers is not understood.
    #[error("what the store answers is not understood: {0}")]
    Answer(String),
}

impl LookError {
    /// That number is not among those that are left.
    pub(crate) fn missing(view: &View, number: u64, left: impl Iterator<Item = u64>) -> Self {
        let view = view.name.clone();
        if is_forgotten(number, left) {
            Self::LetGo { view, number }
        } else {
            Self::Unknown { view, number }
        }
    }
}

/// The publication of that number, or the one that answers; `None` where the view has none.
///
/// # Errors
/// A number that no publication has; the store's.
pub async fn show(store: &Store, view: &View, number: Option<u64>) -> Result<Option<Shown>, LookError> {
    let all = list(store, view).await?;
    let of_number = |number: u64| {
        let found = all
            .iter()
            .find(|one| one.number == number && one.state != State::Beaten);
        found.ok_or_else(|| LookError::missing(view, number, all.iter().map(|one| one.number)))
    };
    let listed = match number {
        Some(number) => of_number(number)?,
        None => match all.iter().find(|one| one.state == State::Newest) {
            Some(newest) => newest,
            None => return Ok(None),
        },
    };
    let made_by = of_number(listed.content).unwrap_or(listed);
    let run = u128::from_str_radix(&made_by.run, 16).ok().map(RunId);
    let mut reports = patiently(|| store.reports(view)).await?;
    let report = run.and_then(|run| reports.remove(&run));
    Ok(Some(Shown {
        listed: listed.clone(),
        report: report.and_then(|report| serde_json::from_str(&report).ok()),
    }))
}
