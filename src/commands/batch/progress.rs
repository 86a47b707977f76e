//! A run's steps while it lasts: on a terminal a bar for each view, with days, events, rate and time left; elsewhere a line every few
//! seconds at most.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highwater_batch::{Logs, Step, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(100);
/// Without a terminal, how often a view's progress is told at most.
const TELLS: Duration = Duration::from_secs(5);
const SPINS: &str = "{spinner} {prefix:20} {msg}";
const MOVES: &str = "{spinner} {prefix:20} {bar:24} {human_pos} of {human_len} events, {per_sec}, {eta} left  {msg}";

/// A bar for each view.
pub(in crate::commands) struct Bars {
    /// None where stderr is no terminal.
    lines: Option<MultiProgress>,
    views: Mutex<BTreeMap<String, Line>>,
}

/// What is shown of one view.
struct Line {
    bar: Option<ProgressBar>,
    /// Whether the bar shows how far it has come.
    moves: bool,
    told: Option<Instant>,
}

impl Bars {
    pub(in crate::commands) fn new() -> Self {
        Self {
            lines: std::io::stderr().is_terminal().then(MultiProgress::new),
            views: Mutex::default(),
        }
    }

    /// Takes the bars away.
    pub(in crate::commands) fn finish(&self) {
        let views = self.views();
        views
            .values()
            .filter_map(|line| line.bar.as_ref())
            .for_each(ProgressBar::finish_and_clear);
    }

    fn views(&self) -> MutexGuard<'_, BTreeMap<String, Line>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, view: &str) -> Line {
        let bar = self.lines.as_ref().map(|lines| {
            let bar = lines.add(ProgressBar::new_spinner());
            bar.set_style(style(SPINS));
            bar.set_prefix(view.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Line {
            bar,
            moves: false,
            told: None,
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Line {
    fn show(&mut self, bar: &ProgressBar, step: &Step) {
        let moves = matches!(step, Step::Computes { .. });
        if moves != self.moves {
            self.moves = moves;
            bar.set_style(style(if moves { MOVES } else { SPINS }));
            bar.reset_eta();
        }
        match step {
            Step::Computes {
                done,
                days,
                rows,
                events,
                of,
                ..
            } => {
                bar.set_length(*of);
                bar.set_position(*events);
                bar.set_message(format!("{done} of {days} days, {rows} cells"));
            }
            _ => bar.set_message(step.to_string()),
        }
        if matches!(step, Step::Published { .. }) {
            bar.finish();
        }
    }
}

impl Watcher for Bars {
    fn step(&self, view: &str, step: &Step) {
        let mut views = self.views();
        let line = views.entry(view.to_owned()).or_insert_with(|| self.line(view));
        if let Some(bar) = line.bar.clone() {
            return line.show(&bar, step);
        }
        if !matches!(step, Step::Computes { .. } | Step::Waits { .. }) {
            return Logs.step(view, step);
        }
        let now = Instant::now();
        if line.told.is_none_or(|told| now.duration_since(told) >= TELLS) {
            line.told = Some(now);
            tracing::info!(view, "batch run: {step}");
        }
    }
}
