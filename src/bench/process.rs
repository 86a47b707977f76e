//! The platform's processes as a user starts them, and what they take of the machine, from `/proc`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use local_stack::process::{Launch, Process};
use tokio::time::Instant;

/// How long a process may take until it serves.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to end.
const ENDING: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// What `/proc/PID/stat` counts processor time in: Linux fixes it for user space, whatever the kernel's own tick.
const TICKS_A_SECOND: u32 = 100;

/// A `highwater` that runs as our child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Highwater {
    process: Process,
    log: PathBuf,
    output: PathBuf,
}

impl Highwater {
    /// Starts this same program with these arguments; what it says goes to files of that name in the folder.
    pub(crate) fn start(name: &'static str, file: &str, folder: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("where this program is, is not known")?;
        let mut command = Command::new(program);
        // The folder of another `up` is not meant.
        command.current_dir(folder).args(arguments).env_remove("HIGHWATER_DATA");
        let (log, output) = (folder.join(format!("{file}.log")), folder.join(format!("{file}.out")));
        let process = Process::start(Launch {
            name,
            command,
            log: log.clone(),
            output: Some(output.clone()),
            details: None,
            record: None,
        })?;
        Ok(Self { process, log, output })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until `found` finds what it looks for in what the process wrote to stdout, then to stderr.
    pub(crate) async fn until_said<T>(&self, found: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            for file in [&self.output, &self.log] {
                if let Some(found) = std::fs::read_to_string(file).ok().as_deref().and_then(&found) {
                    return Ok(found);
                }
            }
            self.check()?;
            if began.elapsed() > READY {
                bail!(self.process.not_ready(READY));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// That it still runs.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => Err(self.process.died(status).into()),
        }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.check()?;
        let name = self.process.name();
        ensure!(
            self.process.stop(ENDING).await,
            "{name} did not end within {} s",
            ENDING.as_secs()
        );
        Ok(())
    }
}

/// The processor time that a process has taken, with all its threads.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let unknown = || format!("{path} is not as expected");
    // The name, in brackets, may hold anything. Behind it: state, then numbers; user and system time are the 12th and 13th.
    let (_, fields) = stat.rsplit_once(')').with_context(unknown)?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = times.next().zip(times.next()).with_context(unknown)?;
    Ok(Duration::from_secs(1) * (user? + system?) / TICKS_A_SECOND)
}

/// The bytes of a process that are in memory now.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmRSS:")
}

/// The most bytes of it that ever were.
pub(crate) fn highest_resident(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{path} has no {name}"))? * 1024)
}

/// A process's metrics, as it tells them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// Asks for them.
    pub(crate) async fn read(http: &reqwest::Client, url: &str) -> anyhow::Result<Self> {
        let answer = http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let text = async { answer?.text().await }.await;
        Ok(Self(text.with_context(|| format!("{url} tells no metrics"))?))
    }

    /// The sum of a metric over all its labels; 0 where it is not told yet.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of_name = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labels) => labels.rsplit_once("} ")?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.trim().parse::<f64>().ok()
        };
        self.0.lines().filter_map(of_name).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels() {
        let metrics = Metrics(
            "# TYPE events_a counter\nevents_a{view=\"x} y\"} 2\nevents_a{view=\"z\"} 3.5\nevents_ab 7\n\
             events_b 1\n"
                .to_owned(),
        );
        let sums = ["events_a", "events_ab", "events_b", "events_c"].map(|name| metrics.sum(name));
        assert!(
            sums.iter()
                .zip([5.5, 7.0, 1.0, 0.0])
                .all(|(sum, expected)| (sum - expected).abs() < 1e-9),
            "{sums:?}"
        );
    }

    #[test]
    fn this_process_takes_memory() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 1 << 20);
        assert!(highest_resident(pid).unwrap() >= resident(pid).unwrap() / 2);
        processor_time(pid).unwrap();
    }
}
