//! A view that is building: who answers for it meanwhile, and what is said of that.
//!
//! A changed view is another fingerprint, and has no history before its first publication. Until then the definition answers that
//! was published last under its name, as any view does; so a dashboard shows on Tuesday what it showed on Monday, and the
//! answer says by which definition. Nothing is remembered here: who is published is asked for each query, so the new
//! one answers from its publication on.

use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use shared_connections::store::{Counted, Facts, FreshnessOfPartition, Known, Store, StoreError};
use shared_schemas::definitions::KeptView;
use shared_schemas::fingerprint::PLAN_VERSION;
use shared_schemas::handoff::{Answering, EventDay};
use shared_schemas::view::View;

use crate::problem::{Fault, Problem};
use crate::query;

/// By which definition a view is answered that has no publication yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Definition {
    state: &'static str,
    /// The fingerprint that has no publication yet.
    building: String,
    /// The one that answers; null where nothing was ever published, so that the speed layer's rows of the new one do.
    answered_by: Option<String>,
    /// How far the building one has come; null where no worker speaks of it.
    counted: Option<Counted>,
    /// The same in words.
    detail: String,
}

/// Another definition answers.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The one that does.
    pub instead: KeptView,
    /// How long the view keeps, as it is defined now.
    keep: Option<Duration>,
    /// What to say of it.
    pub definition: Definition,
}

/// What there is to say of a view without a publication.
#[derive(Debug, Clone)]
pub(crate) enum Building {
    /// Nothing was ever published under its name.
    New(Definition),
    /// Another answers.
    Changed(Box<Changed>),
}

impl Definition {
    fn of(view: &View, answered_by: Option<&KeptView>, counted: Option<Counted>) -> Self {
        let far = counted.map_or_else(
            || "no speed layer counts it yet".to_owned(),
            |counted| format!("the speed layer has counted {} % of the log for it", counted.percent()),
        );
        let name = &view.name;
        let detail = match answered_by {
            Some(kept) if kept.plan != PLAN_VERSION => format!(
                "view `{name}` is computed in another way since Highwater was updated: what was published before answers until a \
                 batch run publishes it anew; {far}"
            ),
            Some(_) => format!(
                "view `{name}` was changed: its old definition answers until a batch run publishes the new one; {far}"
            ),
            None => format!("view `{name}` is new: speed rows alone answer until a batch run publishes it; {far}"),
        };
        Self {
            state: "building",
            building: view.fingerprint.to_string(),
            answered_by: answered_by.map(|kept| kept.view.fingerprint.to_string()),
            counted,
            detail,
        }
    }

    /// The same in words.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl Changed {
    /// The first event day that may still be answered, on that moment in milliseconds since 1970. Nobody collects what no file defines
    /// any more, so its own horizon stands still.
    fn horizon(&self, now: i64) -> Option<EventDay> {
        let keep = self.keep.into_iter().chain(self.instead.view.keep).min()?;
        Some(EventDay::of_micros(now.saturating_mul(1000)).first_kept(keep))
    }

    /// Of the facts of the one that answers, leaves out the days before that.
    pub(crate) fn raise_horizon(&self, facts: &mut Facts, now: i64) {
        facts.horizon = facts.horizon.max(self.horizon(now));
    }

    /// Why a query has no answer from the old definition. `fits_new` says whether the new one could answer it.
    pub(crate) fn problem(&self, faults: Vec<Fault>, fits_new: bool) -> Problem {
        let problem = Problem::of_faults(faults);
        let detail = format!("{}; of the old one: {}", self.definition.detail, problem.detail);
        if fits_new {
            let title = "The view is building";
            Problem {
                errors: problem.errors,
                ..Problem::new(StatusCode::CONFLICT, "view_building", title, detail)
            }
        } else {
            Problem { detail, ..problem }
        }
    }
}

impl Building {
    /// Of a view of which nothing is published, as `who` answers for it; `None` where it is published. The facts are with gaps.
    pub(crate) fn of(
        who: Answering<Box<KeptView>>,
        view: &View,
        facts: &Facts,
        freshness: &[FreshnessOfPartition],
    ) -> Option<Self> {
        let definition = |by| Definition::of(view, by, Counted::of(view, facts, freshness));
        match who {
            Answering::Itself => None,
            Answering::ItselfUnpublished => Some(Self::New(definition(None))),
            Answering::Another(instead) => Some(Self::Changed(Box::new(Changed {
                definition: definition(Some(&instead)),
                instead: *instead,
                keep: view.keep,
            }))),
        }
    }

    /// The same, asking who answers.
    pub(crate) async fn ask(
        store: &Store,
        view: &View,
        facts: &Facts,
        freshness: &[FreshnessOfPartition],
    ) -> Result<Option<Self>, StoreError> {
        if facts.newest().is_some() {
            return Ok(None);
        }
        Ok(Self::of(store.answering(view).await?, view, facts, freshness))
    }

    /// The same from what is known of all views.
    pub(crate) async fn look(store: &Store, view: &View, known: &Known) -> Result<Option<Self>, StoreError> {
        let who = known.answering(view);
        if matches!(who, Answering::Itself) {
            return Ok(None);
        }
        let (facts, freshness) = query::facts(store, view).await?;
        Ok(Self::of(who, view, &facts, &freshness))
    }

    /// What to say of it.
    pub(crate) fn definition(&self) -> &Definition {
        match self {
            Self::New(definition) => definition,
            Self::Changed(changed) => &changed.definition,
        }
    }

    /// Where another one answers.
    pub(crate) fn changed(self) -> Option<Changed> {
        match self {
            Self::New(_) => None,
            Self::Changed(changed) => Some(*changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{facts, fresh, view};
    use shared_connections::store::PartitionState;

    fn changed() -> Changed {
        let old = View {
            fingerprint: shared_schemas::fingerprint::Fingerprint(7),
            ..view().clone()
        };
        let instead = Box::new(KeptView {
            view: old,
            has_event_id: true,
            plan: PLAN_VERSION,
        });
        let freshness = [fresh(0, 12, 16, PartitionState::Behind, None)];
        let facts = facts(&[], &[], &[(0, 0, 8), (0, 8, 12)]);
        let building = Building::of(Answering::Another(instead), view(), &facts, &freshness).unwrap();
        building.changed().unwrap()
    }

    #[test]
    fn what_is_said_of_a_changed_view() {
        let definition = changed().definition;
        assert_eq!(
            serde_json::to_value(&definition).unwrap(),
            serde_json::json!({
                "state": "building", "building": view().fingerprint.to_string(),
                "answered_by": "00000000000000000000000000000007",
                "counted": {"offsets_read": 12, "offsets": 16},
                "detail": "view `departures` was changed: its old definition answers until a batch run publishes the new one; \
                           the speed layer has counted 75 % of the log for it",
            })
        );
        let mut earlier = changed();
        earlier.instead.plan -= 1;
        assert!(
            Definition::of(view(), Some(&earlier.instead), None)
                .detail()
                .starts_with(
                    "view `departures` is computed in another way since Highwater was updated: what was published"
                )
        );
        let new = Building::of(Answering::ItselfUnpublished, view(), &facts(&[], &[], &[]), &[]).unwrap();
        assert_eq!(
            new.definition().detail(),
            "view `departures` is new: speed rows alone answer until a batch run publishes it; no speed layer counts it \
             yet"
        );
        assert!(new.changed().is_none());
        assert!(Building::of(Answering::Itself, view(), &facts(&[], &[], &[]), &[]).is_none());
    }

    #[test]
    fn days_go_on_being_let_go_of() {
        let mut changed = changed();
        let day = |days: u64| Some(Duration::from_secs(days * 86_400));
        let mut first = |own, olds| {
            changed.keep = own;
            changed.instead.view.keep = olds;
            changed.horizon(20 * 86_400_000 + 5)
        };
        assert_eq!(first(None, None), None);
        assert_eq!(first(None, day(3)), Some(EventDay(18)));
        // Whichever of the two keeps less.
        assert_eq!(first(day(2), day(3)), Some(EventDay(19)));
        assert_eq!(first(day(4), day(3)), Some(EventDay(18)));
    }

    #[test]
    fn what_only_the_new_definition_has_is_a_conflict() {
        let fault = || {
            Fault::malformed(
                "measures",
                "unknown_measure",
                "the view has no measure `x`",
                "some of flights",
            )
        };
        let problem = changed().problem(vec![fault()], true);
        assert_eq!((problem.status.as_u16(), problem.code), (409, "view_building"));
        assert!(
            problem
                .detail
                .ends_with("; of the old one: measures: the view has no measure `x`"),
            "{}",
            problem.detail
        );
        assert_eq!(problem.errors, [fault()]);
        let neither = changed().problem(vec![fault()], false);
        assert_eq!((neither.status.as_u16(), neither.code), (400, "invalid_query"));
        assert!(
            neither.detail.starts_with("view `departures` was changed"),
            "{}",
            neither.detail
        );
    }
}
