//! `highwater bench`: how fast this is, on this machine.

use std::process::ExitCode;
use std::time::Duration;

use super::Place;
use super::output::Output;
use crate::bench::scaling::{ENDS, POINTS};
use crate::bench::speed::{self, Part, Settings};
use crate::bench::{Figure, batch, measures, stages};
use crate::signals::Signals;

/// Measure how fast Highwater is on this machine
///
/// Figures are compared with the aims in docs/performance.md. A missed aim is no failure: it exits 0. Wrong counts are: it
/// exits 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater bench stages\n  \
    highwater bench speed --quick\n  \
    highwater bench batch --output json")]
pub(crate) struct Bench {
    #[command(subcommand)]
    bench: Name,
}

#[derive(Debug, clap::Subcommand)]
enum Name {
    /// The speed layer as a whole, on a Kafka and a ClickHouse of the bench's own
    ///
    /// Starts both on free ports, fills topics, and measures with processes as they run elsewhere; all of it ends with the
    /// bench. Takes some minutes, both processors, and some GB of disk. With --data DIR the filled topics stay there and
    /// are used again; without, everything is in a temporary folder that is removed.
    #[command(after_help = "Examples:\n  \
        highwater bench speed\n  \
        highwater bench speed --data /tmp/bench --minutes 10 --output json\n  \
        highwater bench speed --only throughput,freshness --events 5000000\n  \
        highwater bench speed --quick")]
    Speed {
        /// Measure only these
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        only: Vec<Part>,
        /// Events of the filled topic
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        events: Option<u64>,
        /// How long a worker is kept at full speed for its memory
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
        /// A tenth of the events, seconds instead of minutes: to see that it works, not how fast
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Each stage of the speed layer alone, on one core, without Kafka and ClickHouse
    #[command(after_help = "Examples:\n  \
        highwater bench stages\n  \
        highwater bench stages --output json")]
    Stages {
        #[command(flatten)]
        output: Output,
    },
    /// The batch layer's computation, beside plain DataFusion, DuckDB and the ClickHouse engine over the same files
    ///
    /// Archives events in a temporary folder that is removed, and computes two views of them. DuckDB comes from PyPI into a folder of
    /// the cache, once; an engine that can't be had is left out. Takes some minutes, both processors, and some GB of disk.
    #[command(after_help = "Examples:\n  \
        highwater bench batch\n  \
        highwater bench batch --events 1000000 --output json\n  \
        highwater bench batch --large")]
    Batch {
        /// How many events [default: 20000000, with --large 50000000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..))]
        events: Option<u64>,
        /// Only a day of ten million groups in 2 GiB: that it ends, and what it takes
        #[arg(long)]
        large: bool,
        #[command(flatten)]
        output: Output,
    },
    /// What the states of distinct, quantiles, first and last cost, on one core, without Kafka and ClickHouse
    #[command(after_help = "Examples:\n  \
        highwater bench measures\n  \
        highwater bench measures --output json")]
    Measures {
        /// Fractions of a second each: to see that it works, not how fast
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// What is measured.
enum Task {
    Stages,
    Measures(Duration),
    Batch(u64),
    Large(u64),
    Speed(Settings),
}

/// Events of the filled topic.
const EVENTS: u64 = 20_000_000;
/// Events of a day of very many groups.
const LARGE: u64 = 50_000_000;
/// Those of each point with more partitions or workers are a part of them.
const PART: u64 = 2;
/// How often each of these is measured.
const PASSAGES: usize = 5;
/// How long threads that were told to end may take.
const ENDING: Duration = Duration::from_secs(2);
/// How long each stage works.
const STAGE: Duration = Duration::from_secs(3);
/// How long each measure is worked on.
const MEASURE: Duration = Duration::from_secs(1);
/// How long events are produced for freshness.
const FRESHNESS: Duration = Duration::from_secs(30);
/// Each of these when it is to be quick.
const QUICK: Duration = Duration::from_secs(3);
const QUICK_STAGE: Duration = Duration::from_millis(200);

impl Bench {
    /// Runs until all is measured, or until a signal.
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        if cfg!(debug_assertions) {
            tracing::warn!("this is a debug build: its figures say nothing, build with --release");
        }
        let runtime = tokio::runtime::Runtime::new()?;
        let (measured, output) = self.bench.measure(place);
        let figures = runtime.block_on(async {
            let mut signals = Signals::listen()?;
            tokio::select! {
                figures = measured => figures,
                name = signals.next() => anyhow::bail!("{name}: not everything was measured"),
            }
        });
        // A stage that is being measured goes on to its end otherwise.
        runtime.shutdown_timeout(ENDING);
        print(output, &figures?)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Name {
    fn measure(self, place: &Place) -> (impl Future<Output = anyhow::Result<Vec<Figure>>>, Output) {
        let (task, output) = match self {
            Self::Stages { output } => (Task::Stages, output),
            Self::Batch { events, large, output } => match large {
                true => (Task::Large(events.unwrap_or(LARGE)), output),
                false => (Task::Batch(events.unwrap_or(EVENTS)), output),
            },
            Self::Measures { quick, output } => (Task::Measures(if quick { QUICK_STAGE } else { MEASURE }), output),
            Self::Speed {
                only,
                events,
                minutes,
                quick,
                output,
            } => {
                let events = events.unwrap_or(if quick { EVENTS / 10 } else { EVENTS });
                let usual = |usual: Duration| if quick { QUICK } else { usual };
                let all = || <Part as clap::ValueEnum>::value_variants().to_vec();
                let settings = Settings {
                    data: place.data.clone(),
                    parts: if only.is_empty() { all() } else { only },
                    events,
                    each: (events / PART).max(1),
                    passages: if quick { 1 } else { PASSAGES },
                    points: if quick { &ENDS } else { &POINTS },
                    stage: if quick { QUICK_STAGE } else { STAGE },
                    freshness: usual(FRESHNESS),
                    memory: usual(Duration::from_secs(60 * minutes)),
                };
                (Task::Speed(settings), output)
            }
        };
        let measured = async move {
            match task {
                Task::Speed(settings) => Box::pin(speed::figures(&settings)).await,
                Task::Batch(events) => Box::pin(batch::figures(events)).await,
                Task::Large(events) => Box::pin(batch::large::figures(events)).await,
                Task::Stages => tokio::task::spawn_blocking(|| stages::figures(STAGE)).await?,
                Task::Measures(each) => tokio::task::spawn_blocking(move || measures::figures(each)).await?,
            }
        };
        (measured, output)
    }
}

fn print(output: Output, figures: &[Figure]) -> anyhow::Result<()> {
    let head = ["figure", "value", "unit", "aim", ""].map(str::to_owned).to_vec();
    output.print(figures, |figures| {
        std::iter::once(head).chain(figures.iter().map(Figure::row)).collect()
    })
}
