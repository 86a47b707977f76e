//! Layers as processes of their own, as they run in production: to be killed, stopped, continued, and told to end.
//!
//! Each has a folder, a configuration and a log of its own. None outlives its test, however that ends.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use local_stack::process::{Launch, Process, tail};
use nix::sys::signal::Signal;

use crate::alone::limit_files_of;
use crate::platform::{Place, Platform};
use crate::stack::{PATIENCE, program, unique, until};

const POLL: Duration = Duration::from_millis(50);
/// Ten times what a worker allows itself for its last flush, and far less than what anybody waits for it.
const IN_TIME: Duration = Duration::from_secs(50);

/// A running layer.
pub struct Worker {
    process: Process,
    log: PathBuf,
}

impl Worker {
    /// Starts `highwater speed`, reaching the servers as the platform itself does.
    pub fn speed(platform: &Platform) -> anyhow::Result<Self> {
        Self::start(platform, "speed", &platform.place(), &[])
    }

    /// Starts `highwater speed`, reaching the servers from that place.
    pub fn speed_at(platform: &Platform, place: &Place) -> anyhow::Result<Self> {
        Self::start(platform, "speed", place, &[])
    }

    /// Starts `highwater archive`.
    pub fn archive(platform: &Platform) -> anyhow::Result<Self> {
        Self::start(platform, "archive", &platform.place(), &[])
    }

    /// Starts a layer with these environment variables.
    pub fn start(
        platform: &Platform,
        layer: &'static str,
        place: &Place,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        Self::run(platform, layer, place, environment, Command::new(program("highwater")?))
    }

    /// Starts a layer that can't write files beyond so many kilobytes, as if the disk were full, until
    /// [`Worker::unlimited`].
    pub fn limited(platform: &Platform, layer: &'static str, kilobytes: u32) -> anyhow::Result<Self> {
        let mut command = Command::new("bash");
        // A write beyond the limit is an error, and not the end.
        let limit = format!("trap '' XFSZ; ulimit -S -f {kilobytes}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(limit).arg(program("highwater")?);
        Self::run(platform, layer, &platform.place(), &[], command)
    }

    /// Lets it write again.
    pub fn unlimited(&self) -> anyhow::Result<()> {
        limit_files_of(self.pid(), None)
    }

    fn run(
        platform: &Platform,
        layer: &'static str,
        place: &Place,
        environment: &[(&str, String)],
        mut command: Command,
    ) -> anyhow::Result<Self> {
        let folder = platform.folder_of(&unique(layer), place)?;
        let log = folder.join("log");
        command.current_dir(&folder).arg(layer);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let process = Process::start(Launch {
            name: layer,
            command,
            log: log.clone(),
            output: None,
            details: None,
            record: None,
        })?;
        Ok(Self { process, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of what it said.
    pub fn said_last(&self) -> String {
        tail(&self.log)
    }

    /// Waits until it has said that.
    pub async fn until_said(&self, what: &str) -> anyhow::Result<()> {
        until(what, || self.said().contains(what) || self.process.ended().is_some()).await?;
        ensure!(self.said().contains(what), "it ended: {}", tail(&self.log));
        Ok(())
    }

    /// The sum of its metric over all labels, 0 where it has told none.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.metrics(name).await?.into_iter().map(|(_, value)| value).sum())
    }

    /// Its metric: for each set of labels, as they are written, the value. `NaN`, which says that nothing is known, is left out.
    pub async fn metrics(&self, name: &str) -> anyhow::Result<Vec<(String, f64)>> {
        self.until_said("metrics at ").await?;
        let said = self.said();
        let at = said.split("metrics at ").nth(1).context("no address")?;
        let url = at.split_whitespace().next().context("no address")?;
        let text = reqwest::get(url).await?.text().await?;
        let of_metric = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then_some(rest)
        });
        let mut found = Vec::new();
        for line in of_metric {
            let (labels, value) = line.rsplit_once(' ').context("no value")?;
            let value: f64 = value.parse()?;
            if !value.is_nan() {
                found.push((labels.to_owned(), value));
            }
        }
        Ok(found)
    }

    /// Waits until the sum of its metric over all labels is so.
    pub async fn until_metric(&self, name: &str, is: impl Fn(f64) -> bool) -> anyhow::Result<()> {
        self.until_metrics(name, |found| is(found.iter().map(|(_, value)| value).sum()))
            .await
    }

    /// Waits until its metric is so.
    pub async fn until_metrics(&self, name: &str, is: impl Fn(&[(String, f64)]) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let found = self.metrics(name).await?;
            if is(&found) {
                return Ok(());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{name} stays {found:?}: {}",
                tail(&self.log)
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// In how many places, of all its views and partitions, the state is that one.
    pub async fn in_state(&self, state: &str) -> anyhow::Result<usize> {
        let states = self.metrics("highwater_speed_partition_state").await?;
        Ok(count_in_state(&states, state))
    }

    /// How much memory it holds, in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes: u64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes << 10)
    }

    /// The processor time it has used, its threads' together, in hundredths of a second.
    ///
    /// # Errors
    /// It has ended.
    pub fn processor_time(&self) -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // Its name, in parentheses, may hold spaces.
        let fields = stat.rsplit_once(") ").context("no name")?.1;
        let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let (Some(user), Some(system)) = (times.next(), times.next()) else {
            bail!("no times in {stat}");
        };
        Ok(user? + system?)
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.process.ended().is_none()
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(self) {
        self.process.kill().await;
    }

    /// It does nothing from now on, and does not know it.
    pub fn stop(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// It goes on where it was stopped.
    pub fn go_on(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Tells it to end, and waits until it has.
    pub async fn end(self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM);
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        ended.with_context(|| format!("it does not end: {}", tail(&self.log)))
    }

    /// Tells it to end; it must do so with success, by its own deadline and not by somebody's who waits for it. What it said.
    pub async fn end_in_time(self) -> anyhow::Result<String> {
        let (log, began) = (self.log.clone(), Instant::now());
        self.end_well().await?;
        ensure!(
            began.elapsed() < IN_TIME,
            "it took {:?}: {}",
            began.elapsed(),
            tail(&log)
        );
        Ok(std::fs::read_to_string(log)?)
    }

    /// Waits until it ends by itself; what it said.
    pub async fn ended(self) -> anyhow::Result<(ExitStatus, String)> {
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = ended.with_context(|| format!("it does not end: {}", tail(&self.log)))?;
        Ok((status, self.said()))
    }

    /// Tells it to end; it must do so with success.
    pub async fn end_well(self) -> anyhow::Result<()> {
        let log = self.log.clone();
        let status = self.end().await?;
        ensure!(status.success(), "it ended with {status}: {}", tail(&log));
        Ok(())
    }
}

/// In how many places the state is that one, by the metric `highwater_speed_partition_state`.
pub fn count_in_state(states: &[(String, f64)], state: &str) -> usize {
    let label = format!("state=\"{state}\"");
    let of_state = states
        .iter()
        .filter(|(labels, value)| labels.contains(&label) && *value > 0.0);
    of_state.count()
}
