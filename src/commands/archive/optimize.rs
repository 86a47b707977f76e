//! `highwater archive optimize`: small files made into large ones, and files deleted that nobody names.

use std::process::ExitCode;

use highwater_batch::archive::{Files, Optimized, tidy};
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use tokio_util::sync::CancellationToken;

use crate::commands::output::{Output, columns};
use crate::commands::{Place, dataset};
use crate::signals::Signals;

/// Make a day's small files into files of about `archive.target_file`, and delete files that nobody needs
///
/// Event days go before that which the dataset no longer keeps (`keep` in its definition). All other
/// rows stay as they are; archivers and batch runs go on beside it. Files of days that went, files that were replaced, and those of commits that
/// never came to be, are deleted after `archive.keep_removed`, unless somebody reads on who began before. A file that can't be read is named
/// and stays; then it exits 1.
///
/// Days go and files are deleted only where a second clock agrees with this machine's: ClickHouse's, or where that can't be asked an object
/// store's. Where none does, it says why what is due stays, and exits 1. The archiver does all this by itself, whenever
/// `archive.optimize` says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater archive optimize --dry-run\n  \
    highwater archive optimize flights\n  \
    highwater archive optimize --output json")]
pub(crate) struct Optimize {
    /// Only this dataset; all where none is named
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

impl Optimize {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let datasets: Vec<&Dataset> = match &self.dataset {
            None => definitions.datasets.iter().collect(),
            Some(name) => match dataset(&definitions, name) {
                Ok(dataset) => vec![dataset],
                Err(code) => return Ok(code),
            },
        };
        tokio::runtime::Runtime::new()?.block_on(async {
            let cancel = CancellationToken::new();
            let mut signals = Signals::listen()?;
            let mut optimizing = Box::pin(self.optimize(&config, &datasets, &cancel));
            tokio::select! {
                done = &mut optimizing => return done,
                _ = signals.next() => cancel.cancel(),
            }
            // It ends after the file that it is at.
            optimizing.await
        })
    }

    async fn optimize(
        &self,
        config: &Config,
        datasets: &[&Dataset],
        cancel: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let mut all = Vec::new();
        for dataset in datasets {
            all.push(tidy(config, dataset, self.dry_run, cancel).await?);
        }
        self.output.print_text(&all, |all| text(all))?;
        let is_whole = all.iter().all(|one| one.damaged.is_empty() && one.doubt.is_none());
        Ok(if is_whole && !cancel.is_cancelled() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn text(all: &[Optimized]) -> String {
    let head = ["dataset", "files", "let go", "replaced", "by", "deleted"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for one in all {
        let counts = [one.before, one.let_go, one.replaced, one.by, one.deleted].map(told);
        rows.push(std::iter::once(one.dataset.clone()).chain(counts).collect());
    }
    let mut text = columns(&rows);
    for one in all {
        if let Some(horizon) = &one.horizon {
            text.push_str(&format!("{}: events before {horizon} are not kept\n", one.dataset));
        }
        for said in one.doubt.iter().chain(&one.in_need).chain(&one.damaged) {
            text.push_str(&format!("{}: {said}\n", one.dataset));
        }
    }
    text
}

fn told(files: Files) -> String {
    if files.files == 0 {
        return "0".to_owned();
    }
    let bytes = files.bytes;
    let size = match bytes {
        0..=0xFFFF => format!("{bytes} B"),
        0x1_0000..=0x3FF_FFFF => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    };
    format!("{} ({size})", files.files)
}
