//! A batch run: pin the archive, choose marks, compute what is dirty, publish.
//!
//! For each view, in the order that the model of the hand-off checked:
//! 1. read the facts, pin the archive's newest version, choose marks; nothing moves: nothing to do
//! 2. say that the run was begun, ask for its cuts, durably, so that the speed layer works on them meanwhile
//! 3. compute the dirty days below the marks under a fresh run id, write the rows, count them
//! 4. wait for the cuts; where they are not ready in time, withdraw them and do 3 again up to the chunk boundaries
//! 5. publish, read back; whoever finds another publication in its place withdraws its cuts and begins anew
//!
//! Views wait for their cuts side by side. Those of a dataset that compute from the same events do so together; apart from
//! that one group computes after the other, each with all the memory. A view that fails keeps its old publication, and the
//! others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use shared_connections::log::{Kafka, LogError};
use shared_connections::sentence;
use shared_connections::store::{Cut, Facts, Origin, Store, StoreError};
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    ArchivedRange, ChunkSize, EventDay, Mark, Partition, Publication, PublicationNumber, RunId,
};
use shared_schemas::view::View;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::archive::{Archive, Pinned};
use crate::checks::Checked;
use crate::error::RunError;
use crate::lease::{Lease, LeaseError};
use crate::marks::Marks;
use crate::planned::Choice;
use crate::progress::{Step, Watcher};
use crate::publish::{Place, Sent, Waited, send};
use crate::recompute::below;
use crate::report::{MarkMoved, Outcome, ViewReport, day_text};
use crate::retry::patiently;
use crate::scope::Scope;
use crate::together::{Request, Seat, Together, Turn};

/// How often a view begins anew when others publish first.
const TRIES: u32 = 5;

/// All that runs, rollbacks and reconciliation need.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The configuration.
    pub config: Config,
    /// The definitions.
    pub definitions: Definitions,
    /// ClickHouse.
    pub store: Store,
    /// Kafka: asked only where a log begins.
    pub kafka: Kafka,
    /// Whether marks go to the archive's end, also where that leaves less than a minute of events above a chunk's
    /// boundary. It costs a cut: some seconds for the speed layer to read again.
    pub to_end: bool,
    /// Which event days are computed.
    pub scope: Scope,
    /// Whether totals may change by more than `batch.max_change`.
    pub accept: bool,
}

/// Names that no definition has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{name}`: {known}")]
pub struct Unknown {
    /// A view or a dataset.
    pub what: &'static str,
    /// The name that was given.
    pub name: String,
    /// Those that exist, in words.
    pub known: String,
}

/// Which views.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only these views; empty for all.
    pub views: Vec<String>,
    /// Only views of these datasets; empty for all.
    pub datasets: Vec<String>,
}

impl Batch {
    /// Nothing is reached yet.
    ///
    /// # Errors
    /// A Kafka property that librdkafka refuses.
    pub fn new(config: Config, definitions: Definitions) -> Result<Self, LogError> {
        let store = Store::new(&config.clickhouse);
        let kafka = Kafka::new(&config.kafka)?;
        Ok(Self {
            config,
            definitions,
            store,
            kafka,
            to_end: false,
            scope: Scope::default(),
            accept: false,
        })
    }

    /// The selected views with their datasets.
    ///
    /// # Errors
    /// [`Unknown`] names.
    pub fn selected(&self, selection: &Selection) -> Result<Vec<(&View, &Dataset)>, Unknown> {
        let definitions = &self.definitions;
        let names = || definitions.views.iter().map(|view| view.name.as_str());
        known("view", &selection.views, names())?;
        known(
            "dataset",
            &selection.datasets,
            definitions.datasets.iter().map(|dataset| dataset.name.as_str()),
        )?;
        let wanted = |of: &[String], name: &String| of.is_empty() || of.contains(name);
        let views = definitions
            .views
            .iter()
            .filter(|view| wanted(&selection.views, &view.name) && wanted(&selection.datasets, &view.dataset));
        Ok(views
            .filter_map(|view| Some((view, definitions.dataset(&view.dataset)?)))
            .collect())
    }

    /// Takes the lease, or waits for it.
    ///
    /// # Errors
    /// Another one has it, the file can't be locked, or told to end.
    pub async fn lease(
        &self,
        doing: &str,
        wait: bool,
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
    ) -> Result<Lease, LeaseError> {
        let path = Lease::path(&self.config.archive);
        if wait {
            let waits = |holder: &str| {
                let holder = holder.to_owned();
                watcher.step("", &Step::WaitsForLease { holder });
            };
            Lease::wait(&path, doing, cancel, waits).await
        } else {
            Lease::take(&path, doing)
        }
    }

    /// Runs these views; a report for each, in their order. To be called with the lease. Cancelled, it withdraws its cuts
    /// and ends; what it has published stays.
    pub async fn run(
        &self,
        views: &[(&View, &Dataset)],
        watcher: &dyn Watcher,
        cancel: &CancellationToken,
    ) -> Vec<ViewReport> {
        let turn = Turn::new();
        let mut datasets: Vec<Together<'_>> = Vec::new();
        for (_, dataset) in views {
            if !datasets.iter().any(|other| other.dataset().name == dataset.name) {
                datasets.push(Together::new(self, dataset, watcher, &turn));
            }
        }
        // The facts of all before any archive is pinned: what a publication rests on was archived before. And pinned once for
        // all views, so that they can compute from the same events.
        let facts = views.iter().map(|(view, _)| patiently(move || self.store.facts(view)));
        let facts = cancel.run_until_cancelled(join_all(facts)).await;
        let mut pins = BTreeMap::new();
        for together in &datasets {
            pins.insert(together.dataset().name.as_str(), self.pin(together.dataset()).await);
        }
        let facts = facts.map_or_else(
            || views.iter().map(|_| None).collect(),
            |all| all.into_iter().map(Some).collect::<Vec<_>>(),
        );
        let runs = views.iter().zip(facts).filter_map(|((view, dataset), facts)| {
            let together = datasets
                .iter()
                .find(|together| together.dataset().name == dataset.name)?;
            let first = facts.zip(pins.get(dataset.name.as_str()).cloned().flatten());
            let of_view = OfView {
                batch: self,
                view,
                dataset,
                seat: together.seat(),
                first: Mutex::new(first),
                watcher,
                cancel,
            };
            Some(Box::pin(async move { of_view.report().await }))
        });
        let runs: Vec<_> = runs.collect();
        let computing = join_all(datasets.iter().map(|together| Box::pin(together.compute())));
        let (reports, _) = tokio::join!(join_all(runs), cancel.run_until_cancelled(computing));
        reports
    }

    /// The archive's newest version; `None` where there is none, or it can't be read: then each view says so for itself.
    async fn pin(&self, dataset: &Dataset) -> Option<Pinned> {
        let archive = Archive::open(&self.config.archive, dataset).await.ok()??;
        archive.pin().await.ok()
    }
}

fn known<'a>(what: &'static str, given: &[String], names: impl Iterator<Item = &'a str>) -> Result<(), Unknown> {
    let names: Vec<_> = names.map(str::to_owned).collect();
    match given.iter().find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Unknown {
            what,
            name: name.clone(),
            known: if names.is_empty() {
                "none is defined".to_owned()
            } else {
                format!("there is {}", names.join(", "))
            },
        }),
    }
}

/// A run of one view.
struct OfView<'a> {
    batch: &'a Batch,
    view: &'a View,
    dataset: &'a Dataset,
    seat: Seat<'a>,
    /// For the first try: facts, and an archive that was pinned after they were read.
    first: Mutex<Option<(Result<Facts, StoreError>, Pinned)>>,
    watcher: &'a dyn Watcher,
    cancel: &'a CancellationToken,
}

/// What one try came to.
enum Tried {
    Done,
    StartOver,
}

impl OfView<'_> {
    async fn report(&self) -> ViewReport {
        let began = Instant::now();
        let mut report = ViewReport {
            view: self.view.name.clone(),
            dataset: self.dataset.name.clone(),
            ..ViewReport::default()
        };
        if let Err(error) = self.tries(&mut report).await {
            report.result = Outcome::Failed;
            report.why = Some(sentence(&error));
        }
        report.seconds = began.elapsed().as_secs_f64();
        crate::report::record(&report);
        self.keep(&mut report).await;
        report
    }

    /// Keeps the report for people, as well as it can be done.
    async fn keep(&self, report: &mut ViewReport) {
        let of_report = |report: &ViewReport| u128::from_str_radix(report.run.as_deref()?, 16).ok().map(RunId);
        let kept = async {
            let run = match of_report(report) {
                Some(run) => run,
                // It failed before it had an id: it is looked for among the runs all the same.
                None if report.result == Outcome::Failed && !self.cancel.is_cancelled() => {
                    let facts = self.batch.store.facts(self.view).await?;
                    let newest = facts.newest().map(|newest| newest.publication.number);
                    let id = RunId(Uuid::now_v7().as_u128());
                    self.batch
                        .store
                        .record_run(self.view, id, newest.unwrap_or_default())
                        .await?;
                    report.run = Some(format!("{:032x}", id.0));
                    id
                }
                None => return Ok(()),
            };
            match serde_json::to_string(report) {
                Ok(text) => self.batch.store.record_report(self.view, run, text).await,
                Err(_) => Ok(()),
            }
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, view = self.view.name, "what the run came to could not be kept for `batch show`");
        }
    }

    async fn tries(&self, report: &mut ViewReport) -> Result<(), RunError> {
        let Some(archive) = Archive::open(&self.batch.config.archive, self.dataset).await? else {
            report.why = Some("nothing is archived yet".to_owned());
            return Ok(());
        };
        for _ in 0..TRIES {
            match self.attempt(&archive, report).await? {
                Tried::Done => return Ok(()),
                Tried::StartOver => self.watcher.step(&self.view.name, &Step::StartsOver),
            }
        }
        Err(RunError::Beaten { tries: TRIES })
    }

    async fn attempt(&self, archive: &Archive, report: &mut ViewReport) -> Result<Tried, RunError> {
        let store = &self.batch.store;
        let chunk = ChunkSize::new(self.dataset.chunk).map_err(|error| RunError::Plan(error.to_string()))?;
        let began = Instant::now();
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let prepared = async {
            // The facts first: what a publication rests on was archived before.
            let (facts, pinned) = match first {
                Some((facts, pinned)) => (facts?, pinned),
                None => (patiently(|| store.facts(self.view)).await?, archive.pin().await?),
            };
            Choice::of(self.batch, self.dataset, facts, pinned).await
        };
        let choice = self.or_cancelled(prepared).await?;
        report.archive_version = Some(choice.pinned.version);
        report.stages.choosing = began.elapsed().as_secs_f64();
        report.held = choice.marks.held_for_good(&self.dataset.name);
        if let Some(why) = choice.nothing(self.batch, self.dataset) {
            if let Some(held) = &report.held {
                return Err(RunError::Held(held.clone()));
            }
            report.why = Some(why);
            return Ok(Tried::Done);
        }
        if let Some(day) = choice.horizon.filter(|_| choice.horizon > choice.facts.horizon) {
            // What is archived no longer can't be computed: nobody is to take what is left of those days for all of it.
            self.watcher.step(&self.view.name, &Step::RaisesHorizon { day });
            self.or_cancelled(async { Ok(patiently(|| store.raise_horizon(self.view, day)).await?) })
                .await?;
        }
        let parent = choice.facts.newest().map(|newest| newest.publication.clone());
        let mut attempt = Attempt {
            run: self,
            archive,
            place: Place {
                store,
                kafka: &self.batch.kafka,
                view: self.view,
                dataset: self.dataset,
                chunk,
                watcher: self.watcher,
            },
            parent,
            horizon: choice.horizon,
            ranges: choice.ranges,
            pinned: choice.pinned,
            marks: choice.marks,
            asked: Vec::new(),
            report,
        };
        let tried = attempt.carry_out().await;
        let keep = match &tried {
            Ok(Tried::Done) => attempt.report.result == Outcome::Published,
            Ok(Tried::StartOver) => false,
            // It may have arrived: then its cuts are marks.
            Err(error) => matches!(error, RunError::Unsure { .. }),
        };
        if !keep {
            attempt.withdraw(|_| true).await;
        }
        tried
    }

    /// Does it unless told to end. Not for what must not be left half done.
    async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T, RunError>>) -> Result<T, RunError> {
        self.cancel
            .run_until_cancelled(work)
            .await
            .unwrap_or(Err(RunError::Cancelled))
    }
}

/// Of each partition the last event day with an event below the mark.
pub(crate) fn last_days(
    marks: &BTreeMap<Partition, Mark>,
    archived: &[ArchivedRange],
) -> BTreeMap<Partition, EventDay> {
    let mut last: BTreeMap<Partition, EventDay> = BTreeMap::new();
    for range in archived {
        if marks.get(&range.partition).is_some_and(|mark| range.first < mark.0) {
            let day = last.entry(range.partition).or_insert(range.day);
            *day = range.day.max(*day);
        }
    }
    last
}

/// One try, from the marks chosen to the publication.
struct Attempt<'a, 'b> {
    run: &'a OfView<'a>,
    archive: &'a Archive,
    place: Place<'a>,
    parent: Option<Publication>,
    /// The first event day that the view holds.
    horizon: Option<EventDay>,
    pinned: Pinned,
    ranges: Vec<ArchivedRange>,
    marks: Marks,
    /// The cuts asked for and not withdrawn.
    asked: Vec<Cut>,
    report: &'b mut ViewReport,
}

impl Attempt<'_, '_> {
    async fn carry_out(&mut self) -> Result<Tried, RunError> {
        let run = self.run;
        let mut id = run.or_cancelled(self.begin()).await?;
        run.or_cancelled(self.ask_for_cuts(id)).await?;
        let asked = Instant::now();
        loop {
            let marks = self.marks.all();
            let scope = &run.batch.scope;
            let dirty = scope.days(&self.marks, &self.ranges, self.parent.as_ref(), self.horizon);
            let publication = self.publication(id, marks, &dirty).kept_from(self.horizon);
            let step = Step::Chosen {
                archive_version: self.pinned.version,
                days: dirty.len(),
                cuts: self.marks.cuts().len(),
                run: id,
            };
            run.watcher.step(&run.view.name, &step);
            let request = Request {
                view: run.view.clone(),
                pinned: self.pinned.clone(),
                days: dirty.clone(),
                counted: below(&publication.marks),
                old: self.marks.parent.clone(),
                run: id,
            };
            let written = run.or_cancelled(run.seat.compute(request)).await?;
            self.report.computed(&written);
            let began = Instant::now();
            let checked = Checked {
                store: &run.batch.store,
                view: run.view,
                dataset: run.dataset,
                seat: &run.seat,
                archive: self.archive,
                pinned: &self.pinned,
                parent: self.parent.as_ref(),
                publication: &publication,
                days: &dirty,
                left_out: self.horizon.is_some()
                    && scope.days(&self.marks, &self.ranges, self.parent.as_ref(), None).len() > dirty.len(),
                written: &written,
                max_change: run.batch.config.batch.max_change,
                accept: run.batch.accept,
            };
            self.report.checks = run.or_cancelled(checked.checks()).await?;
            self.report.stages.checking = began.elapsed().as_secs_f64();
            if let Some(failed) = self.report.checks.iter().find(|check| !check.holds) {
                return Err(RunError::Suspect(failed.says.clone()));
            }
            let began = Instant::now();
            let waited = async {
                let cut_wait = run.batch.config.batch.cut_wait;
                Ok(self
                    .place
                    .wait(&publication, self.marks.cuts(), asked, cut_wait)
                    .await?)
            };
            let waited = run.or_cancelled(waited).await?;
            self.report.stages.waiting += began.elapsed().as_secs_f64();
            match waited {
                Waited::Publish => {
                    let began = Instant::now();
                    let origin = Origin {
                        rules: Fingerprint::of_rules(run.dataset),
                        archive_version: self.pinned.version,
                        last_days: last_days(&publication.marks, &self.ranges),
                    };
                    let sent = send(&run.batch.store, run.view, &publication, &origin).await?;
                    if matches!(sent, Sent::Beaten) {
                        return Ok(Tried::StartOver);
                    }
                    self.report.stages.publishing = began.elapsed().as_secs_f64();
                    self.published(&publication, &dirty);
                    return Ok(Tried::Done);
                }
                Waited::StartOver => return Ok(Tried::StartOver),
                Waited::FallBack(behind) => {
                    run.watcher
                        .step(&run.view.name, &Step::FallsBack { cuts: behind.len() });
                    self.withdraw(|cut| behind.contains(&cut.partition)).await;
                    self.marks.fall_back(&behind);
                    self.report.fell_back += behind.len();
                    if run.batch.scope == Scope::Dirty && !self.marks.move_on() {
                        self.report.why = Some(
                            "the speed layer was not ready at the cuts in time, and there is no further chunk boundary"
                                .to_owned(),
                        );
                        return Ok(Tried::Done);
                    }
                    // A late insert of the first try must not change the second one's rows.
                    id = run.or_cancelled(self.begin()).await?;
                }
            }
        }
    }

    /// What would be published. Where every day is computed again, what the parent lacked and the archive has by now is
    /// lacking no more.
    fn publication(&self, id: RunId, marks: BTreeMap<Partition, Mark>, days: &BTreeSet<EventDay>) -> Publication {
        let mut parent = self.parent.clone();
        if self.run.batch.scope == Scope::Full {
            parent.iter_mut().for_each(|parent| parent.gaps.clear());
        }
        Publication::of_run(parent.as_ref(), id, marks, &self.pinned.gaps, days)
    }

    /// Says that a run was begun; its fresh id.
    async fn begin(&mut self) -> Result<RunId, RunError> {
        let id = RunId(Uuid::now_v7().as_u128());
        self.report.run = Some(format!("{:032x}", id.0));
        let parent = self
            .parent
            .as_ref()
            .map_or(PublicationNumber::default(), |parent| parent.number);
        patiently(|| self.place.store.record_run(self.place.view, id, parent)).await?;
        Ok(id)
    }

    async fn ask_for_cuts(&mut self, run: RunId) -> Result<(), RunError> {
        let cut = |(partition, mark): (&Partition, &Mark)| Cut {
            partition: *partition,
            start: mark.start(),
            run,
            withdrawn: false,
        };
        // Noted before they are sent: what may have arrived must be withdrawn.
        self.asked = self.marks.cuts().iter().map(cut).collect();
        Ok(patiently(|| self.place.store.record_cuts(self.place.view, &self.asked)).await?)
    }

    /// Withdraws cuts, as well as it can be done: a cut that stays costs the speed layer a little work, until a mark
    /// passes it.
    async fn withdraw(&mut self, which: impl Fn(&Cut) -> bool) {
        let gone: Vec<_> = self
            .asked
            .iter()
            .filter(|cut| which(cut))
            .map(|cut| Cut {
                withdrawn: true,
                ..*cut
            })
            .collect();
        self.asked.retain(|cut| !which(cut));
        if gone.is_empty() {
            return;
        }
        if let Err(error) = patiently(|| self.place.store.record_cuts(self.place.view, &gone)).await {
            tracing::warn!(%error, view = self.place.view.name, "cuts could not be withdrawn: the speed layer keeps rows for them");
        }
    }

    fn published(&mut self, publication: &Publication, days: &BTreeSet<EventDay>) {
        let number = publication.number;
        self.place
            .watcher
            .step(&self.place.view.name, &Step::Published { number });
        let before = |partition| self.marks.parent.get(partition).copied().unwrap_or_default();
        let moved = publication.marks.iter();
        let moved = moved.map(|(partition, mark)| MarkMoved::new(*partition, before(partition).0.0, mark.0.0));
        let report = &mut *self.report;
        report.result = Outcome::Published;
        report.publication = Some(number.0);
        report.marks = moved.collect();
        report.days = days.len();
        report.first_day = days.first().map(|day| day_text(*day));
        report.last_day = days.last().map(|day| day_text(*day));
    }
}
