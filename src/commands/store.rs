//! ClickHouse at the start of a command.

use std::time::{Duration, Instant};

use anyhow::Context;
use shared_connections::store::Store;
use shared_schemas::definitions::Definitions;

/// How long a ClickHouse that is not there yet is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first pause between two tries; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Waits until ClickHouse is there, and makes the tables that are not.
pub(super) async fn prepare(store: &Store, definitions: &Definitions) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match store.create_tables(definitions).await {
            Err(error) if error.is_passing() && begun.elapsed() + pause < PATIENCE => {
                tracing::warn!("{error}: trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) if error.is_passing() => {
                return Err(error).with_context(|| format!("gave up after {} s", begun.elapsed().as_secs()));
            }
            done => return Ok(done?),
        }
    }
}
