//! One publication, or one run, with what the run came to.
//!
//! A run that failed made no publication: it is found by its id, or as the last that was begun.

use chrono::{DateTime, SecondsFormat};
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
    /// No view has such a run.
    #[error(
        "there is no run `{0}`: its id, or how it begins, stands in what `batch run` tells and in `highwater status --output json`"
    )]
    NoRun(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store answers is not understood.
    #[error("what the store answers is not understood: {0}")]
    Answer(String),
}

/// Which run of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichRun {
    /// The one that was begun last.
    Last,
    /// The one whose id begins so.
    Named(String),
}

/// A run, whether it published or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownRun {
    /// The view.
    pub view: String,
    /// Its id, 32 hexadecimal digits.
    pub run: String,
    /// When it was begun, RFC 3339; none where only what it told is left.
    pub begun_at: Option<String>,
    /// The number of what it published, as far as that is not let go.
    pub publication: Option<u64>,
    /// What it told, as `batch run --output json` does; none where it is under way or was killed.
    pub report: Option<serde_json::Value>,
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
    let report = match run {
        Some(run) => patiently(|| store.report(view, run)).await?,
        None => None,
    };
    Ok(Some(Shown {
        listed: listed.clone(),
        report: report.and_then(|report| serde_json::from_str(&report).ok()),
    }))
}

/// A run of a view; `None` where it has none, or none of that name.
///
/// # Errors
/// The store's.
pub async fn show_run(store: &Store, view: &View, which: &WhichRun) -> Result<Option<ShownRun>, LookError> {
    let begun = patiently(|| store.runs(view)).await?;
    let named = |run: &RunId| format!("{:032x}", run.0);
    let found = match which {
        WhichRun::Last => begun.first().map(|run| run.id),
        WhichRun::Named(start) => {
            let told = patiently(|| store.reported_runs(view)).await?;
            let start = start.to_ascii_lowercase();
            let mut all = begun.iter().map(|run| run.id).chain(told);
            all.find(|run| !start.is_empty() && named(run).starts_with(&start))
        }
    };
    let Some(run) = found else {
        return Ok(None);
    };
    let report = patiently(|| store.report(view, run)).await?;
    let published = patiently(|| store.publications(view)).await?;
    let publication = published.iter().map(|one| &one.publication).find(|one| one.run == run);
    let at = begun.iter().find(|one| one.id == run).map(|one| one.begun);
    let at = at.and_then(DateTime::from_timestamp_millis);
    Ok(Some(ShownRun {
        view: view.name.clone(),
        run: named(&run),
        begun_at: at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        publication: publication.map(|publication| publication.number.0),
        report: report.and_then(|report| serde_json::from_str(&report).ok()),
    }))
}
