//! What a run would do, and why: decided here for the run itself, and told by `batch run --dry-run`.

use std::collections::BTreeSet;

use serde::Serialize;
use shared_connections::sentence;
use shared_connections::store::Facts;
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::{ArchivedRange, ChunkSize, EventDay};
use shared_schemas::view::View;

use crate::archive::{Archive, Pinned};
use crate::error::RunError;
use crate::marks::{Marks, choose};
use crate::report::{MarkMoved, day_text};
use crate::retry::patiently;
use crate::run::Batch;
use crate::scope::Scope;

/// What a run of one view would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The view.
    pub view: String,
    /// Its dataset.
    pub dataset: String,
    /// Whether it would compute anything.
    pub computes: bool,
    /// Why it would, or would not.
    pub why: String,
    /// The number of the publication that answers now.
    pub publication: Option<u64>,
    /// The archive's newest version.
    pub archive_version: Option<u64>,
    /// Each partition's mark, now and then.
    pub marks: Vec<MarkMoved>,
    /// How many of the new marks need the speed layer to catch up first.
    pub cuts: usize,
    /// The event days that it would compute, as in 2013-01-31.
    pub days: Vec<String>,
    /// How many events are archived of them.
    pub events: u64,
}

/// What a run of one view goes for.
pub(crate) struct Choice {
    pub(crate) facts: Facts,
    pub(crate) pinned: Pinned,
    pub(crate) ranges: Vec<ArchivedRange>,
    pub(crate) marks: Marks,
    pub(crate) days: BTreeSet<EventDay>,
    /// The first event day that the view can hold: its own, or the archive's.
    pub(crate) horizon: Option<EventDay>,
}

impl Choice {
    /// Marks and days, from facts that were read before the archive was pinned.
    pub(crate) async fn of(batch: &Batch, dataset: &Dataset, facts: Facts, pinned: Pinned) -> Result<Self, RunError> {
        let chunk = ChunkSize::new(dataset.chunk).map_err(|error| RunError::Plan(error.to_string()))?;
        let mut marks = choose(&pinned, &facts, chunk, batch.to_end).await?;
        if matches!(batch.scope, Scope::Days(_)) {
            marks.stay();
        }
        let ranges = pinned.ranges();
        let horizon = facts.horizon.max(pinned.horizon);
        let parent = facts.newest().map(|newest| &newest.publication);
        Ok(Self {
            days: batch.scope.days(&marks, &ranges, parent, horizon),
            horizon,
            facts,
            pinned,
            ranges,
            marks,
        })
    }

    /// Why there is nothing to do, if there is nothing.
    pub(crate) fn nothing(&self, batch: &Batch, dataset: &Dataset) -> Option<String> {
        match &batch.scope {
            Scope::Dirty => (!self.marks.move_on()).then(|| no_mark_moves(&self.marks, dataset, batch.to_end)),
            Scope::Days(_) if self.facts.newest().is_none() => Some(
                "nothing is published yet, and chosen days are computed at the published marks: run it without `--days`"
                    .to_owned(),
            ),
            Scope::Days(_) if self.days.is_empty() => {
                Some("the archive has no events of these days below the published marks".to_owned())
            }
            Scope::Full if self.days.is_empty() => Some(no_mark_moves(&self.marks, dataset, batch.to_end)),
            Scope::Days(_) | Scope::Full => None,
        }
    }

    fn why(&self, batch: &Batch) -> String {
        let (days, published) = (self.days.len(), self.facts.newest().is_some());
        match &batch.scope {
            Scope::Dirty if !published => {
                format!("the view's first publication: all {days} event days below its marks")
            }
            Scope::Dirty => format!("{days} event days have events between the old marks and the new ones"),
            Scope::Days(_) => format!("{days} event days were asked for; the marks stay"),
            Scope::Full => format!("all {days} event days below the marks were asked for"),
        }
    }
}

fn no_mark_moves(marks: &Marks, dataset: &Dataset, to_end: bool) -> String {
    if let Some(held) = marks.held_back(&dataset.name) {
        format!("no mark moves: {held}")
    } else if to_end {
        "no mark moves: nothing more is archived".to_owned()
    } else if marks.parent.is_empty() {
        format!(
            "the archive holds no full chunk of {} offsets yet, and less than a minute of events: `batch run --to-end` \
             publishes what there is",
            dataset.chunk
        )
    } else {
        "no mark moves: the archive has no further chunk, and less than a minute of events above the marks: `batch run \
         --to-end` publishes these too"
            .to_owned()
    }
}

impl Batch {
    /// What a run of these views would do now. Nothing is written; a run that comes later may find more.
    pub async fn plan(&self, views: &[(&View, &Dataset)]) -> Vec<Result<Planned, String>> {
        let mut planned = Vec::with_capacity(views.len());
        for (view, dataset) in views {
            let of_view = self.plan_view(view, dataset).await;
            planned.push(of_view.map_err(|error| format!("{}: {}", view.name, sentence(&error))));
        }
        planned
    }

    async fn plan_view(&self, view: &View, dataset: &Dataset) -> Result<Planned, RunError> {
        let nothing = |why: &str| Planned {
            view: view.name.clone(),
            dataset: dataset.name.clone(),
            computes: false,
            why: why.to_owned(),
            publication: None,
            archive_version: None,
            marks: Vec::new(),
            cuts: 0,
            days: Vec::new(),
            events: 0,
        };
        let Some(archive) = Archive::open(&self.config.archive, dataset).await? else {
            return Ok(nothing("nothing is archived yet"));
        };
        let facts = patiently(|| self.store.facts(view)).await?;
        let choice = Choice::of(self, dataset, facts, archive.pin().await?).await?;
        let why_not = choice.nothing(self, dataset);
        let Choice {
            marks, days, pinned, ..
        } = &choice;
        let before = |partition| marks.parent.get(partition).copied().unwrap_or_default();
        let moved = marks
            .all()
            .iter()
            .map(|(partition, mark)| MarkMoved::new(*partition, before(partition).0.0, mark.0.0))
            .collect();
        let computes = why_not.is_none();
        Ok(Planned {
            computes,
            publication: choice.facts.newest().map(|newest| newest.publication.number.0),
            archive_version: Some(pinned.version),
            marks: moved,
            cuts: marks.cuts().len(),
            days: days.iter().filter(|_| computes).map(|day| day_text(*day)).collect(),
            events: if computes { pinned.rows_of(days) } else { 0 },
            why: why_not.unwrap_or_else(|| {
                let held = marks.held_back(&dataset.name).map(|held| format!("; {held}"));
                choice.why(self) + &held.unwrap_or_default()
            }),
            ..nothing("")
        })
    }
}
