//! A batch run: pin the archive, choose marks, compute what is dirty, publish.
//!
//! For each view, in the order that the model of the hand-off checked:
//! 1. read the facts, pin the archive's newest version, choose marks; nothing moves: nothing to do
//! 2. say that the run was begun, ask for its cuts, durably, so that the speed layer works on them meanwhile
//! 3. compute the dirty days below the marks under a fresh run id, write the rows, count them
//! 4. wait for the cuts; where they are not ready in time, withdraw them and do 3 again up to the chunk boundaries
//! 5. publish, read back; whoever finds another publication in its place withdraws its cuts and begins anew
//!
//! Views wait for their cuts side by side and compute one after the other, each with all the memory. A view that fails
//! keeps its old publication, and the others go on.

use std::collections::BTreeMap;

use futures::future::join_all;
use shared_connections::log::{Kafka, LogError};
use shared_connections::sentence;
use shared_connections::store::{Cut, Origin, Store};
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{
    ArchivedRange, ChunkSize, EventDay, Mark, Partition, Publication, PublicationNumber, RunId, dirty_days,
};
use shared_schemas::view::View;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::archive::{Archive, ArchiveError, Pinned};
use crate::error::RunError;
use crate::lease::{Lease, LeaseError};
use crate::marks::{Marks, choose};
use crate::progress::{Step, Watcher};
use crate::publish::{Place, Sent, Waited, send};
use crate::recompute::{Recompute, below};
use crate::report::{MarkMoved, Outcome, ViewReport, day_text};
use crate::retry::patiently;
use crate::write::Work;

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
        // One at a time computes.
        let turn = Semaphore::new(1);
        let runs = views.iter().map(|(view, dataset)| {
            let of_view = OfView {
                batch: self,
                view,
                dataset,
                turn: &turn,
                watcher,
                cancel,
            };
            Box::pin(async move { of_view.report().await })
        });
        join_all(runs).await
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
    turn: &'a Semaphore,
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
            result: Outcome::NothingToDo,
            why: None,
            publication: None,
            run: None,
            archive_version: None,
            marks: Vec::new(),
            days: 0,
            first_day: None,
            last_day: None,
            rows: 0,
            fell_back: 0,
            seconds: 0.0,
        };
        if let Err(error) = self.tries(&mut report).await {
            report.result = Outcome::Failed;
            report.why = Some(sentence(&error));
        }
        report.seconds = began.elapsed().as_secs_f64();
        crate::report::record(&report);
        report
    }

    async fn tries(&self, report: &mut ViewReport) -> Result<(), RunError> {
        let Some(archive) = self.archive().await? else {
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

    async fn archive(&self) -> Result<Option<Archive>, ArchiveError> {
        Archive::open(&self.batch.config.archive, self.dataset).await
    }

    async fn attempt(&self, archive: &Archive, report: &mut ViewReport) -> Result<Tried, RunError> {
        let store = &self.batch.store;
        let chunk = ChunkSize::new(self.dataset.chunk).map_err(|error| RunError::Plan(error.to_string()))?;
        let prepared = async {
            // The facts first: what a publication rests on was archived before.
            let facts = patiently(|| store.facts(self.view)).await?;
            let pinned = archive.pin().await?;
            let marks = choose(&pinned, &facts, chunk, self.batch.to_end).await?;
            Ok::<_, RunError>((facts, pinned, marks))
        };
        let (facts, pinned, marks) = self.or_cancelled(prepared).await?;
        let parent = facts.newest().map(|newest| newest.publication.clone());
        report.archive_version = Some(pinned.version);
        if !marks.move_on() {
            report.why = Some(nothing_to_do(&marks, self.dataset, self.batch.to_end));
            return Ok(Tried::Done);
        }
        let mut attempt = Attempt {
            run: self,
            place: Place {
                store,
                kafka: &self.batch.kafka,
                view: self.view,
                dataset: self.dataset,
                chunk,
                watcher: self.watcher,
            },
            parent,
            ranges: pinned.ranges(),
            pinned,
            marks,
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

fn nothing_to_do(marks: &Marks, dataset: &Dataset, to_end: bool) -> String {
    if to_end {
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
    place: Place<'a>,
    parent: Option<Publication>,
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
        let recompute = Recompute::new(run.view, run.dataset, run.batch.config.batch.memory)
            .map_err(|error| RunError::Plan(error.to_string()))?;
        loop {
            let marks = self.marks.all();
            let dirty = dirty_days(&self.marks.parent, &marks, self.ranges.iter().copied());
            let publication = Publication::of_run(self.parent.as_ref(), id, marks, &self.pinned.gaps, &dirty);
            let step = Step::Chosen {
                archive_version: self.pinned.version,
                days: dirty.len(),
                cuts: self.marks.cuts().len(),
                run: id,
            };
            run.watcher.step(&run.view.name, &step);
            let work = Work {
                store: &run.batch.store,
                view: run.view,
                recompute: &recompute,
                pinned: &self.pinned,
                ranges: &self.ranges,
                watcher: run.watcher,
            };
            let written = async {
                // Never closed: it is ours for as long as all views run.
                let _turn = run.turn.acquire().await;
                work.write(&dirty, &below(&publication.marks), id).await
            };
            let totals = run.or_cancelled(written).await?;
            let waited = async {
                let cut_wait = run.batch.config.batch.cut_wait;
                Ok(self
                    .place
                    .wait(&publication, self.marks.cuts(), asked, cut_wait)
                    .await?)
            };
            match run.or_cancelled(waited).await? {
                Waited::Publish => {
                    let origin = Origin {
                        rules: Fingerprint::of_rules(run.dataset),
                        archive_version: self.pinned.version,
                        last_days: last_days(&publication.marks, &self.ranges),
                    };
                    let sent = send(&run.batch.store, run.view, &publication, &origin).await?;
                    if matches!(sent, Sent::Beaten) {
                        return Ok(Tried::StartOver);
                    }
                    self.published(&publication, &dirty.iter().copied().collect::<Vec<_>>(), totals.rows);
                    return Ok(Tried::Done);
                }
                Waited::StartOver => return Ok(Tried::StartOver),
                Waited::FallBack(behind) => {
                    run.watcher
                        .step(&run.view.name, &Step::FallsBack { cuts: behind.len() });
                    self.withdraw(|cut| behind.contains(&cut.partition)).await;
                    self.marks.fall_back(&behind);
                    self.report.fell_back += behind.len();
                    if !self.marks.move_on() {
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

    /// Says that a run was begun; its fresh id.
    async fn begin(&self) -> Result<RunId, RunError> {
        let id = RunId(Uuid::now_v7().as_u128());
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

    fn published(&mut self, publication: &Publication, days: &[EventDay], rows: u64) {
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
        report.run = Some(format!("{:032x}", publication.run.0));
        report.marks = moved.collect();
        report.days = days.len();
        report.first_day = days.first().map(|day| day_text(*day));
        report.last_day = days.last().map(|day| day_text(*day));
        report.rows = rows;
    }
}
