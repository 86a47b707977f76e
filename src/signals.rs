//! The signals that end the program.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that end the program.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they do not end the program by themselves.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one; its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
            _ = self.hangup.recv() => "the terminal was closed",
        }
    }

    /// Runs a layer on a runtime of its own, until a signal. See [`Signals::end`].
    pub(crate) fn run_until_told(
        work: impl AsyncFnOnce(&CancellationToken) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut signals = Self::listen()?;
            let cancel = CancellationToken::new();
            signals.end(work(&cancel), &cancel).await
        })
    }

    /// Works until it is done, or until a signal: then the work is told to end, and a second signal ends it at once.
    async fn end(
        &mut self,
        work: impl Future<Output = anyhow::Result<()>>,
        cancel: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let mut work = std::pin::pin!(work);
        let name = tokio::select! {
            done = &mut work => return done.map(|()| ExitCode::SUCCESS),
            name = self.next() => name,
        };
        tracing::info!("{name}: stopping, once more to hurry");
        cancel.cancel();
        tokio::select! {
            done = &mut work => done?,
            _ = self.next() => tracing::warn!("ended before all was written; it is read again at the next start"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
