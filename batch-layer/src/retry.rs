//! Asks the store again while its trouble passes by itself.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use shared_connections::store::StoreError;

/// Pauses from 0.1 s to 5 s, half a minute in all. A run that outlasts more than that would better be begun again.
fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(10)
}

/// How often the store may be too slow: each time takes a minute or more, and what stands still once may well again.
const TOO_SLOW: usize = 3;

/// Does what may be done again, until it succeeds or fails for good.
pub(crate) async fn patiently<T, F>(ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut slow = 0;
    ask.retry(pauses())
        .when(|error: &StoreError| {
            slow += usize::from(matches!(error, StoreError::Slow { .. }));
            error.is_passing() && slow < TOO_SLOW
        })
        .notify(|error, pause| tracing::debug!(%error, ?pause, "asking the store again"))
        .await
}
