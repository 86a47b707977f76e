//! Whether too many records are refused: an alarm for people, and never a reason to treat a record otherwise.
//!
//! The share is that of the records read at the log's head within the last five minutes by this process's clock; a worker that
//! begins anew starts counting anew. Few records say nothing, so fewer than [`ENOUGH`] raise no alarm. It goes on until the
//! share has fallen to half of what is set, so that a share close to it does not come and go.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::lanes::Read;
use crate::starts::Fate;
use crate::worker::precise;

/// What is looked back at.
const WINDOW: Duration = Duration::from_secs(300);
/// It slides in steps of this.
const STEP: Duration = Duration::from_secs(10);
/// With fewer records than this there is no alarm.
const ENOUGH: u64 = 100;

/// Records read and refused, and whether there is an alarm.
#[derive(Debug)]
pub(crate) struct Alarm {
    dataset: String,
    /// A larger share than this raises it.
    limit: f64,
    /// Since when, and how many were read and refused in that step; the oldest first.
    steps: VecDeque<(Instant, u64, u64)>,
    is_raised: bool,
}

impl Alarm {
    pub(crate) fn new(dataset: &str, limit: f64) -> Self {
        Self {
            dataset: dataset.to_owned(),
            limit,
            steps: VecDeque::new(),
            is_raised: false,
        }
    }

    /// Counts what was read.
    pub(crate) fn take(&mut self, read: &Read) {
        let fates = &read.records.fates;
        let refused = fates
            .iter()
            .filter(|(_, fate)| matches!(fate, Fate::Refused(_)))
            .count();
        self.count(Instant::now(), fates.len() as u64, refused as u64);
    }

    /// Says it in metrics; begin and end in the log.
    pub(crate) fn tell(&mut self) {
        let was_raised = self.is_raised;
        let share = self.look(Instant::now());
        let dataset = || ("dataset", self.dataset.clone());
        metrics::gauge!("highwater_speed_invalid_share", &[dataset()]).set(share.unwrap_or(f64::NAN));
        metrics::gauge!("highwater_speed_invalid_alarm", &[dataset()]).set(if self.is_raised { 1.0 } else { 0.0 });
        if self.is_raised && !was_raised {
            tracing::warn!(
                "dataset {}: {:.1} % of the records read in the last {} minutes were refused, more than the {:.1} % of \
                 speed.invalid_alarm: see `highwater dead-letters list {0}`",
                self.dataset,
                share.unwrap_or_default() * 100.0,
                WINDOW.as_secs() / 60,
                self.limit * 100.0,
            );
        } else if was_raised && !self.is_raised {
            tracing::warn!("dataset {}: the share of refused records is small again", self.dataset);
        }
    }

    fn count(&mut self, now: Instant, read: u64, refused: u64) {
        match self.steps.back_mut() {
            Some((since, all, bad)) if now.duration_since(*since) < STEP => {
                *all += read;
                *bad += refused;
            }
            _ => {
                self.forget(now);
                self.steps.push_back((now, read, refused));
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        while self
            .steps
            .front()
            .is_some_and(|(since, ..)| now.duration_since(*since) >= WINDOW)
        {
            self.steps.pop_front();
        }
    }

    /// The share now, where anything was read; raises or ends the alarm.
    fn look(&mut self, now: Instant) -> Option<f64> {
        self.forget(now);
        let (read, refused) = self
            .steps
            .iter()
            .fold((0, 0), |(read, refused), (_, all, bad)| (read + all, refused + bad));
        let share = (read > 0).then(|| precise(refused) / precise(read));
        let limit = if self.is_raised { self.limit / 2.0 } else { self.limit };
        self.is_raised = read >= ENOUGH && share.is_some_and(|share| share > limit);
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_above_the_limit_and_ends_at_half() {
        let mut alarm = Alarm::new("d", 0.1);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!((alarm.look(began), alarm.is_raised), (None, false));
        alarm.count(at(0), 99, 99);
        assert_eq!(
            (alarm.look(at(0)), alarm.is_raised),
            (Some(1.0), false),
            "too few to tell"
        );
        alarm.count(at(1), 891, 0);
        assert_eq!((alarm.look(at(1)), alarm.is_raised), (Some(0.1), false), "not above it");
        alarm.count(at(11), 10, 10);
        assert_eq!((alarm.look(at(11)), alarm.is_raised), (Some(0.109), true));
        alarm.count(at(20), 1_000, 0);
        assert_eq!(
            (alarm.look(at(20)), alarm.is_raised),
            (Some(0.0545), true),
            "not at half of it"
        );
        alarm.count(at(30), 180, 0);
        assert_eq!((alarm.look(at(30)), alarm.is_raised), (Some(0.05), false));
    }

    #[test]
    fn what_is_past_is_forgotten() {
        let mut alarm = Alarm::new("d", 0.01);
        let began = Instant::now();
        for second in 0..3_000 {
            alarm.count(began + Duration::from_secs(second), 1_000, 500);
        }
        assert!(alarm.steps.len() <= 31, "{}", alarm.steps.len());
        let end = began + Duration::from_secs(3_000);
        assert_eq!((alarm.look(end), alarm.is_raised), (Some(0.5), true));
        assert_eq!((alarm.look(end + WINDOW), alarm.is_raised), (None, false));
    }
}
