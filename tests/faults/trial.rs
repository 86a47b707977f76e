//! One fault, tried with some seeds, told in one line each: `deploy/faults` makes a table of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::platform::{Difference, Platform};
use highwater_tests::stack::run;

/// `all` for more seeds and longer faults.
const EXTENT: &str = "HIGHWATER_FAULTS";
const SEED: &str = "HIGHWATER_SEED";

/// A try.
pub(crate) struct Trial {
    /// What is random comes from here.
    pub(crate) random: fastrand::Rng,
    /// Whether there is time for more.
    pub(crate) is_long: bool,
    events: u64,
    slowest: Duration,
    difference: Option<Difference>,
}

/// Whether there is time for more seeds and longer forms.
pub(crate) fn is_long() -> bool {
    std::env::var(EXTENT).is_ok_and(|extent| extent == "all")
}

/// The seed that was asked for, or any.
pub(crate) fn seed() -> anyhow::Result<u64> {
    match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED),
        // As numbers that are easily copied.
        Err(_) => Ok(fastrand::u64(..1_000_000_000)),
    }
}

/// Tries it with one seed, or, where there is time, with so many. Prints each and what came of it.
#[expect(clippy::needless_pass_by_value, reason = "callers write the test in place")]
pub(crate) fn trials(
    fault: &str,
    what: &str,
    seeds: u64,
    test: impl AsyncFn(&mut Trial) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_long = is_long();
    let is_asked_for = std::env::var(SEED).is_ok();
    let seeds = if is_long && !is_asked_for { seeds } else { 1 };
    for _ in 0..seeds {
        let seed = seed()?;
        let mut trial = Trial {
            random: fastrand::Rng::with_seed(seed),
            is_long,
            events: 0,
            slowest: Duration::ZERO,
            difference: None,
        };
        let result = run(test(&mut trial));
        let told = match trial.difference {
            Some(Difference { lost, doubled }) => format!("lost {lost}|doubled {doubled}"),
            None => "lost ?|doubled ?".to_owned(),
        };
        let ok = if result.is_ok() { "ok" } else { "FAILED" };
        println!(
            "\nfault|{fault}|{what}|seed {seed}|events {}|{told}|caught up {:.1} s|{ok}",
            trial.events,
            trial.slowest.as_secs_f64()
        );
        result.with_context(|| format!("fault {fault}: {what}; {SEED}={seed}"))?;
    }
    Ok(())
}

impl Trial {
    /// That many, or, where there is time, that many more.
    pub(crate) fn times(&self, few: u64, many: u64) -> u64 {
        if self.is_long { many } else { few }
    }

    /// A random instant within so many milliseconds.
    pub(crate) fn instant(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.random.u64(0..milliseconds))
    }

    /// What an oracle of another kind found: of so many events these were lost and doubled.
    pub(crate) fn told(&mut self, events: u64, difference: Difference) {
        self.events = events;
        self.difference = Some(difference);
    }

    /// What was found of numbers of which each should be there once.
    pub(crate) fn found(&mut self, expected: impl IntoIterator<Item = u64>, found: &[u64]) -> anyhow::Result<()> {
        let mut times: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        expected
            .into_iter()
            .for_each(|number| times.entry(number).or_default().0 += 1);
        found.iter().for_each(|number| times.entry(*number).or_default().1 += 1);
        let sum = |of: fn(&(u64, u64)) -> u64| times.values().map(of).sum::<u64>();
        let difference = Difference {
            lost: sum(|(right, now)| right.saturating_sub(*now)),
            doubled: sum(|(right, now)| now.saturating_sub(*right)),
        };
        self.told(sum(|(right, _)| *right), difference);
        ensure!(difference == Difference::default(), "{difference:?}");
        Ok(())
    }

    /// Waits until the answer is all that was sent.
    pub(crate) async fn whole(&mut self, platform: &Platform) -> anyhow::Result<()> {
        let result = platform.until_whole().await;
        self.events = platform.sent().len() as u64;
        match &result {
            Ok(took) => {
                self.slowest = self.slowest.max(*took);
                self.difference = Some(Difference::default());
            }
            Err(_) => self.difference = platform.difference().await.ok(),
        }
        result.map(drop)
    }
}
