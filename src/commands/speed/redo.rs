//! `highwater speed redo`: what the store has lost, read again from Kafka.

use std::process::ExitCode;

use highwater_speed::redo::{Asked, Redone};
use serde::Serialize;
use shared_connections::log::Kafka;
use shared_schemas::handoff::Offset;

use crate::commands::output::Output;
use crate::commands::{Place, dataset, used_wrongly};
use crate::connect;

/// Have a view's offsets above its marks read again, where rows of them were lost
///
/// For rows that ClickHouse acknowledged and lost, as `highwater reconcile` finds them. It voids the view's progress; workers, those
/// that run too, see it within a second and read from Kafka again, chunk by chunk. The rows that are still there stay and
/// are answered; until all is read again answers say `partial` where they said that nothing is missing. So this takes back a
/// promise, which nothing else does. What Kafka has no longer is left as it is, and it exits 1: only `highwater batch run
/// --to-end` mends that, from the archive.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater speed redo --view departures --dry-run\n  \
    highwater speed redo --view departures\n  \
    highwater speed redo --view departures --partition 3 --from 1048576\n  \
    highwater speed redo --view departures --partition 0 --partition 1 --output json")]
pub(crate) struct Redo {
    /// The view
    #[arg(long, value_name = "NAME")]
    view: String,
    /// Only this partition of its topic; may be given several times
    #[arg(long, value_name = "N")]
    partition: Vec<u32>,
    /// Only from the chunk on that holds this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// Only say what would be read again
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// A partition, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    partition: u32,
    /// The first offset that is read again, and up to where it had been; null where none is.
    from: Option<u64>,
    to: Option<u64>,
    /// How many starts that is: chunks, marks and cuts.
    starts: usize,
    /// How many starts are to be read again already.
    waiting: usize,
    /// The starts that can't be read again.
    left: Vec<u64>,
    why: Option<String>,
}

impl From<&Redone> for Shown {
    fn from(done: &Redone) -> Self {
        Self {
            partition: done.partition.number,
            from: done.voided.first().map(|(start, _)| start.0.0),
            to: done.voided.iter().map(|(_, next)| next.0).max(),
            starts: done.voided.len(),
            waiting: done.waiting.len(),
            left: done.left.iter().map(|start| start.0.0).collect(),
            why: done.why.clone(),
        }
    }
}

impl Redo {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        let Some(view) = definitions.views.iter().find(|view| view.name == self.view) else {
            let known: Vec<_> = definitions.views.iter().map(|view| view.name.as_str()).collect();
            return Ok(used_wrongly(&format!(
                "there is no view `{}`; there are: {}",
                self.view,
                known.join(", ")
            )));
        };
        let dataset = match dataset(&definitions, &view.dataset) {
            Ok(dataset) => dataset,
            Err(code) => return Ok(code),
        };
        tokio::runtime::Runtime::new()?.block_on(async {
            let store = connect::store(&config, &definitions).await?;
            let kafka = Kafka::new(&config.kafka)?;
            let partitions = kafka.topic(&dataset.topic).await?.partitions;
            if let Some(number) = self.partition.iter().find(|number| **number >= partitions) {
                let topic = &dataset.topic;
                let what = format!(
                    "topic {topic} has no partition {number}: they are 0 to {}",
                    partitions.saturating_sub(1)
                );
                return Ok(used_wrongly(&what));
            }
            let asked = Asked {
                partitions: self.partition.iter().copied().collect(),
                from: Offset(self.from),
                dry_run: self.dry_run,
            };
            let done = highwater_speed::redo(&kafka, &store, dataset, view, &asked).await?;
            let shown: Vec<_> = done.iter().map(Shown::from).collect();
            self.output.print_text(&shown, |shown| text(shown, self.dry_run))?;
            Ok(if shown.iter().all(|one| one.why.is_none()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
    }
}

fn text(shown: &[Shown], dry_run: bool) -> String {
    let mut text = String::new();
    for one in shown {
        let partition = one.partition;
        if let (Some(from), Some(to)) = (one.from, one.to) {
            let verb = if dry_run {
                "would be read again"
            } else {
                "are read again"
            };
            let last = to.saturating_sub(1);
            text += &format!(
                "partition {partition}: offsets {from} to {last} {verb}, starts: {}\n",
                one.starts
            );
        }
        if one.waiting > 0 {
            text += &format!(
                "partition {partition}: are to be read again already, starts: {}; nothing of them is written yet\n",
                one.waiting
            );
        }
        if let Some(why) = &one.why {
            let starts = match (one.left.first(), one.left.last()) {
                (Some(first), Some(last)) => format!(" {} starts, from {first} to {last}:", one.left.len()),
                _ => String::new(),
            };
            text += &format!("partition {partition}: left as it is:{starts} {why}\n");
        } else if one.from.is_none() && one.waiting == 0 {
            text += &format!("partition {partition}: nothing is counted there above the mark\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_read_again_and_what_is_not() {
        let shown = |partition, from: Option<u64>, left: &[u64]| Shown {
            partition,
            from,
            to: from.map(|from| from + 300),
            starts: usize::from(from.is_some()) * 2,
            waiting: usize::from(partition == 3),
            left: left.to_vec(),
            why: (!left.is_empty()).then(|| "Kafka has nothing below offset 300 any more".to_owned()),
        };
        let all = [
            shown(0, Some(512), &[0, 256]),
            shown(1, Some(0), &[]),
            shown(2, None, &[]),
            shown(3, None, &[]),
        ];
        assert_eq!(
            text(&all, false),
            "partition 0: offsets 512 to 811 are read again, starts: 2\n\
             partition 0: left as it is: 2 starts, from 0 to 256: Kafka has nothing below offset 300 any more\n\
             partition 1: offsets 0 to 299 are read again, starts: 2\n\
             partition 2: nothing is counted there above the mark\n\
             partition 3: are to be read again already, starts: 1; nothing of them is written yet\n"
        );
        assert!(text(&all[1..2], true).contains("would be read again"));
    }
}
