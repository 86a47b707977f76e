//! `highwater batch`: runs, their schedule, what they published, and going back.

mod collected;
pub(super) mod progress;
mod tables;

use std::process::ExitCode;

use highwater_batch::{
    DayRange, Logs, LookError, Outcome, Scope, Selection, Unknown, Watcher, WhichRun, diff, list, rollback, show,
    show_run,
};
use shared_schemas::view::View;
use tokio_util::sync::CancellationToken;

use self::progress::Bars;
use super::Place;
use super::output::Output;
use crate::signals::Signals;
use crate::{USED_WRONGLY, connect, metrics};

/// Exact results: computed from the archive, published, rolled back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater batch run --to-end\n  \
    highwater batch list\n  \
    highwater batch rollback --view departures\n  \
    highwater batch schedule")]
pub(crate) struct Batch {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Compute exact results of what is archived, and publish them
    ///
    /// Each view's marks move to the archive's last full chunk, or to its end where that is worth a cut. Event days that
    /// have events between the old marks and the new ones are computed; all others stay. Where no mark moves nothing is
    /// published. One run at a time: a second one exits 1 and names the first. Ctrl-C ends it, and what was published
    /// before stands.
    #[command(after_help = "Examples:\n  \
        highwater batch run\n  \
        highwater batch run --dry-run\n  \
        highwater batch run --to-end\n  \
        highwater batch run --days 2013-01-01..2013-01-31\n  \
        highwater batch run --view departures --wait\n  \
        highwater batch run --dataset flights --output json")]
    Run {
        /// Only this view; may be given several times
        #[arg(long, value_name = "NAME")]
        view: Vec<String>,
        /// Only views of this dataset; may be given several times
        #[arg(long, value_name = "NAME")]
        dataset: Vec<String>,
        /// Up to the archive's end, also where that is less than a minute of events beyond the last full chunk
        #[arg(long)]
        to_end: bool,
        /// Compute these event days again, at the published marks, which stay: one day, or the first and the last
        #[arg(long, value_name = "A..B", conflicts_with_all = ["full", "to_end"])]
        days: Option<DayRange>,
        /// Compute all event days below the marks, not only those that got events
        #[arg(long)]
        full: bool,
        /// Only say what would be computed, and why
        #[arg(long)]
        dry_run: bool,
        /// Publish also where totals change by more than batch.max_change
        #[arg(long)]
        accept: bool,
        /// Wait while another run is under way, instead of failing
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Show what was published, the newest first
    #[command(after_help = "Examples:\n  \
        highwater batch list\n  \
        highwater batch list --view departures --output json")]
    List {
        /// Only this view; may be given several times
        #[arg(long, value_name = "NAME")]
        view: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show one publication, or one run: marks, days, what was read, how long it took, what was checked, and why it failed
    #[command(after_help = "Examples:\n  \
        highwater batch show\n  \
        highwater batch show 3 --view departures\n  \
        highwater batch show --last\n  \
        highwater batch show --run 0192f0c1 --output json")]
    Show {
        /// Its number; the one that answers if none is given
        #[arg(value_name = "NUMBER")]
        number: Option<u64>,
        /// The run whose id begins so, published or not
        #[arg(long, value_name = "ID", conflicts_with_all = ["number", "last"])]
        run: Option<String>,
        /// The run that was begun last, published or not
        #[arg(long, conflicts_with = "number")]
        last: bool,
        /// Only this view; may be given several times
        #[arg(long, value_name = "NAME")]
        view: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// What changed from one publication of a view to another: by day, and the first cells
    #[command(after_help = "Examples:\n  \
        highwater batch diff 3 4 --view departures\n  \
        highwater batch diff 3 4 --view departures --output json")]
    Diff {
        /// The number of the first
        #[arg(value_name = "A")]
        from: u64,
        /// The number of the second
        #[arg(value_name = "B")]
        to: u64,
        /// The view
        #[arg(long, value_name = "NAME")]
        view: String,
        #[command(flatten)]
        output: Output,
    },
    /// Bring an older publication back, or a later one again
    ///
    /// Nothing is computed or deleted: a new publication carries the older one's content. Without `--to` it is the one
    /// before what answers, so that each further rollback goes one step further back; forward again is a rollback to the
    /// higher number. Events that then lie above the marks are counted by the speed layer, as far as Kafka still has
    /// them. A publication below the floor is refused: its rows may be gone.
    #[command(after_help = "Examples:\n  \
        highwater batch rollback --view departures\n  \
        highwater batch rollback --view departures --to 3\n  \
        highwater batch rollback --view departures --wait --output json")]
    Rollback {
        /// The view
        #[arg(long, value_name = "NAME")]
        view: String,
        /// The number of the publication to bring back
        #[arg(long, value_name = "NUMBER")]
        to: Option<u64>,
        /// Wait while a run is under way, instead of failing
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Let go what is older than the publications that are kept
    ///
    /// Raises the floor, so that the newest `batch.keep_publications` of each view stay restorable; waits `batch.gc_wait`,
    /// so that no query is left that may read below it; then deletes what lies below: rows of runs that nobody can reach,
    /// rows and progress of the speed layer below all kept marks, publications that are not among the newest hundred. Batch runs do the same without waiting: each deletes what
    /// lies below floors that are old enough. Killed at any time it does no harm, and the next one goes on.
    #[command(after_help = "Examples:\n  \
        highwater batch gc --dry-run\n  \
        highwater batch gc\n  \
        highwater batch gc --view departures --output json")]
    Gc {
        /// Only this view; may be given several times
        #[arg(long, value_name = "NAME")]
        view: Vec<String>,
        /// Say what would go, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Wait while a run is under way, instead of failing
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Run whenever `batch.schedule` says so, until Ctrl-C
    ///
    /// Runs never overlap: a start that comes during one is left out. A start that was missed since the last publication is
    /// caught up with at once, and views that failed are tried again after a minute, then two, up to an hour. What each came
    /// to is in the log and the metrics.
    #[command(after_help = "Examples:\n  \
        highwater batch schedule\n  \
        highwater batch schedule --log-format json")]
    Schedule,
}

impl Batch {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        let mut batch = highwater_batch::Batch::new(config, definitions)?;
        if let Command::Run {
            to_end,
            days,
            full,
            accept,
            ..
        } = &self.command
        {
            batch.to_end = *to_end;
            batch.accept = *accept;
            batch.scope = match days {
                Some(days) => Scope::Days(vec![*days]),
                None if *full => Scope::Full,
                None => Scope::Dirty,
            };
        }
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut signals = Signals::listen()?;
            let cancel = CancellationToken::new();
            let mut work = Box::pin(self.command.run(&batch, &cancel));
            let name = tokio::select! {
                done = &mut work => return done,
                name = signals.next() => name,
            };
            tracing::info!("{name}: stopping, once more to hurry");
            cancel.cancel();
            tokio::select! {
                done = &mut work => done,
                name = signals.next() => anyhow::bail!("{name} again: ended in a hurry"),
            }
        })
    }
}

impl Command {
    async fn run(self, batch: &highwater_batch::Batch, cancel: &CancellationToken) -> anyhow::Result<ExitCode> {
        let views = match self.views(batch) {
            Ok(views) => views,
            Err(unknown) => return Ok(used_wrongly(&unknown)),
        };
        let prepared = cancel
            .run_until_cancelled(connect::tables(&batch.store, &batch.definitions))
            .await;
        match prepared {
            Some(prepared) => prepared?,
            None => anyhow::bail!("ended before ClickHouse was there"),
        }
        let store = &batch.store;
        match self {
            Self::Run {
                dry_run: true, output, ..
            } => {
                let mut planned = Vec::new();
                for of_view in batch.plan(&views).await {
                    planned.push(of_view.map_err(anyhow::Error::msg)?);
                }
                output.print_text(&planned, |planned| tables::planned(planned))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Run { wait, output, .. } => {
                let bars = Bars::new();
                let lease = batch.lease("batch run", wait, &bars, cancel).await?;
                let reports = batch.run(&views, &bars, cancel).await;
                let collected: Vec<_> = views.iter().map(|(view, _)| *view).collect();
                // What this comes to is in the log: the run has done what it was asked for.
                cancel
                    .run_until_cancelled(batch.collect_what_is_old(&collected, &bars))
                    .await;
                drop(lease);
                if batch.config.batch.reconcile && !cancel.is_cancelled() {
                    highwater_batch::reconcile::after_run(batch, &views, &bars, cancel).await;
                }
                bars.finish();
                output.print(&reports, |reports| tables::reports(reports))?;
                let failed = reports.iter().any(|report| report.result == Outcome::Failed);
                Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
            Self::List { output, .. } => {
                let mut listed = Vec::new();
                for (view, _) in &views {
                    listed.extend(list(store, view).await?);
                }
                output.print(&listed, |listed| tables::publications(listed))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Show { run, last, output, .. } if last || run.is_some() => {
                let which = run.clone().map_or(WhichRun::Last, WhichRun::Named);
                let mut shown = Vec::new();
                for (view, _) in &views {
                    shown.extend(show_run(store, view, &which).await?);
                }
                if let (true, Some(run)) = (shown.is_empty(), run) {
                    return Err(LookError::NoRun(run).into());
                }
                output.print_text(&shown, |shown| tables::shown_runs(shown))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Show { number, output, .. } => {
                let mut shown = Vec::new();
                for (view, _) in &views {
                    shown.extend(show(store, view, number).await?);
                }
                output.print_text(&shown, |shown| tables::shown(shown))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Diff { from, to, output, .. } => {
                let (view, _) = views.first().ok_or_else(|| anyhow::anyhow!("no view"))?;
                output.print_text(&diff(store, view, from, to).await?, tables::differences)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Rollback { to, wait, output, .. } => {
                let bars = Bars::new();
                let lease = batch.lease("batch rollback", wait, &bars, cancel).await?;
                bars.finish();
                let view: &View = views
                    .first()
                    .map(|(view, _)| *view)
                    .ok_or_else(|| anyhow::anyhow!("no view"))?;
                let done = rollback(store, view, to).await?;
                drop(lease);
                output.print_text(&done, tables::rolled_back)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Gc {
                dry_run, wait, output, ..
            } => {
                let views: Vec<_> = views.iter().map(|(view, _)| *view).collect();
                let bars = Bars::new();
                let collected = if dry_run {
                    batch.collectable(&views).await
                } else {
                    batch.collect(&views, wait, &bars, cancel).await?
                };
                bars.finish();
                output.print(&collected, |collected| collected::table(collected))?;
                let waits = collected.iter().any(|report| report.waits);
                if waits {
                    tracing::warn!(
                        "ended before anything was deleted: the floors stand, and the next collection goes on"
                    );
                }
                let is_whole = |report: &highwater_batch::Collected| report.error.is_none() && report.doubt.is_none();
                let failed = waits || !collected.iter().all(is_whole);
                Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
            Self::Schedule => {
                let (told, _) = metrics::serve(batch.config.metrics.listen).await?;
                tracing::info!("metrics at {told}");
                let watcher: &dyn Watcher = &Logs;
                batch.schedule(watcher, cancel).await;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    /// The views that it is about.
    fn views<'a>(
        &self,
        batch: &'a highwater_batch::Batch,
    ) -> Result<Vec<(&'a View, &'a shared_schemas::dataset::Dataset)>, Unknown> {
        let mut selection = Selection::default();
        match self {
            Self::Run { view, dataset, .. } => {
                selection.views.clone_from(view);
                selection.datasets.clone_from(dataset);
            }
            Self::List { view, .. } | Self::Show { view, .. } | Self::Gc { view, .. } => {
                selection.views.clone_from(view)
            }
            Self::Rollback { view, .. } | Self::Diff { view, .. } => selection.views.push(view.clone()),
            Self::Schedule => {}
        }
        batch.selected(&selection)
    }
}

/// Says which names there are.
pub(super) fn used_wrongly(unknown: &Unknown) -> ExitCode {
    use std::io::Write;
    // Nothing is left to do where even this can't be written.
    let _ = writeln!(std::io::stderr().lock(), "highwater: {unknown}");
    ExitCode::from(USED_WRONGLY)
}
