//! A run's steps on the terminal: a line for each view, while it lasts. Without a terminal they go to the log.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use highwater_batch::{Logs, Step, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a line moves.
const TICK: Duration = Duration::from_millis(100);

/// A line for each view.
pub(in crate::commands) struct Bars {
    /// None where stderr is no terminal.
    lines: Option<MultiProgress>,
    views: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Bars {
    pub(in crate::commands) fn new() -> Self {
        Self {
            lines: std::io::stderr().is_terminal().then(MultiProgress::new),
            views: Mutex::default(),
        }
    }

    /// Takes the lines away.
    pub(in crate::commands) fn finish(&self) {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.values().for_each(ProgressBar::finish_and_clear);
    }
}

impl Watcher for Bars {
    fn step(&self, view: &str, step: &Step) {
        let Some(lines) = &self.lines else {
            return Logs.step(view, step);
        };
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = views.entry(view.to_owned()).or_insert_with(|| {
            let bar = lines.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("{spinner} {prefix:20} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(view.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(step.to_string());
        if matches!(step, Step::Published { .. }) {
            bar.finish();
        }
    }
}
