//! Brings an older publication's content back: as a new publication, so that everybody sees the same.
//!
//! Nothing is computed and nothing deleted, so the way forward again is the same command with the higher number. Speed
//! workers read again what then lies above the marks.

use serde::Serialize;
use shared_connections::store::{Origin, Published, Store, StoreError};
use shared_schemas::handoff::{Publication, PublicationNumber, RunId, newest};
use shared_schemas::view::View;
use uuid::Uuid;

use crate::error::RunError;
use crate::list::{is_forgotten, of_number};
use crate::publish::{Line, Sent, line, send};
use crate::report::MarkMoved;

/// How often it is tried while others publish first.
const TRIES: u32 = 5;

/// Why nothing was brought back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The view has no publication that may answer.
    #[error("view `{view}` has no publication")]
    Nothing {
        /// The view.
        view: String,
    },
    /// What answers is the first.
    #[error("view `{view}` has no publication before {number}, which answers")]
    First {
        /// The view.
        view: String,
        /// The content that answers.
        number: u64,
    },
    /// There is none of that number.
    #[error("view `{view}` has no publication {number}: `highwater batch list --view {view}` shows those that it has")]
    Unknown {
        /// The view.
        view: String,
        /// The number asked for.
        number: u64,
    },
    /// Its rows may be gone.
    #[error(
        "publication {number} of view `{view}` can't be restored: {why}. Below the floor rows are let go; \
         batch.keep_publications says how many publications are kept"
    )]
    BelowFloor {
        /// The view.
        view: String,
        /// The number asked for.
        number: u64,
        /// How it lies below the floor.
        why: String,
    },
    /// Others published first, or it is not known what happened.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolledBack {
    /// The view.
    pub view: String,
    /// Whether anything was published; not where that content answers already.
    pub published: bool,
    /// The publication that answers now.
    pub publication: u64,
    /// Whose content it carries.
    pub content: u64,
    /// The publication that answered before.
    pub before: u64,
    /// And whose content it carried.
    pub content_before: u64,
    /// Each partition's mark before and after.
    pub marks: Vec<MarkMoved>,
}

/// Restores publication `to`; without a number, the one before what answers: again and again, step by step back.
///
/// # Errors
/// There is none such, it lies below the floor, or the store's.
pub async fn rollback(store: &Store, view: &View, to: Option<u64>) -> Result<RolledBack, RollbackError> {
    for _ in 0..TRIES {
        let Line { published, all, floor } = line(store, view).await?;
        let nothing = || RollbackError::Nothing {
            view: view.name.clone(),
        };
        let newest = newest(&all, &floor).ok_or_else(nothing)?;
        let target = target(view, newest, to, &all)?;
        if !floor.admits(target) {
            let why = if target.content < floor.number {
                format!("the floor is at publication {}", floor.number.0)
            } else {
                "the floor lies above its marks".to_owned()
            };
            return Err(RollbackError::BelowFloor {
                view: view.name.clone(),
                number: target.number.0,
                why,
            });
        }
        if target.content == newest.content {
            return Ok(done(view, newest, newest, false));
        }
        let row = Publication::rollback(newest, target, RunId(Uuid::now_v7().as_u128()));
        match send(store, view, &row, &origin(target, &published)).await? {
            Sent::Published => return Ok(done(view, newest, &row, true)),
            Sent::Beaten => {}
        }
    }
    Err(RunError::Beaten { tries: TRIES }.into())
}

fn target<'a>(
    view: &View,
    newest: &Publication,
    to: Option<u64>,
    all: &'a [Publication],
) -> Result<&'a Publication, RollbackError> {
    let unknown = |number| {
        let view = view.name.clone();
        if is_forgotten(number, all.iter().map(|one| one.number.0)) {
            let why = "its row is let go too".to_owned();
            return RollbackError::BelowFloor { view, number, why };
        }
        RollbackError::Unknown { view, number }
    };
    if let Some(number) = to {
        return of_number(PublicationNumber(number), all).ok_or_else(|| unknown(number));
    }
    let first = || RollbackError::First {
        view: view.name.clone(),
        number: newest.content.0,
    };
    // What answers may itself be a rollback: one step back is the parent of the run whose content it carries.
    let content = of_number(newest.content, all).ok_or_else(|| unknown(newest.content.0))?;
    let (number, run) = content.parent.ok_or_else(first)?;
    all.iter()
        .find(|publication| publication.key() == (number, run))
        .ok_or_else(|| unknown(number.0))
}

/// What the content was computed from.
fn origin(target: &Publication, published: &[Published]) -> Origin {
    let row = published
        .iter()
        .find(|published| published.publication.key() == target.key());
    row.map(|row| row.origin.clone()).unwrap_or_default()
}

fn done(view: &View, before: &Publication, now: &Publication, published: bool) -> RolledBack {
    let partitions: std::collections::BTreeSet<_> = before.marks.keys().chain(now.marks.keys()).copied().collect();
    let moved = partitions
        .into_iter()
        .map(|partition| MarkMoved::new(partition, before.mark(partition).0.0, now.mark(partition).0.0));
    RolledBack {
        view: view.name.clone(),
        published,
        publication: now.number.0,
        content: now.content.0,
        before: before.number.0,
        content_before: before.content.0,
        marks: moved.collect(),
    }
}
