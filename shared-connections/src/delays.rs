//! Delays between tries of what is tried until it succeeds.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that grow from `shortest` to `longest`, without end. With jitter, and another one in each process, so that many
/// don't come back to a server at the same moment.
pub fn delays(shortest: Duration, longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(RandomState::new().build_hasher().finish())
        .build()
}
