//! What others have written, read again once a second: publications, cuts, progress.

use std::sync::Arc;
use std::time::Duration;

use shared_connections::store::{Facts, Store, StoreError};
use shared_schemas::view::View;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often. `CUT_SETTLES` of the hand-off rests on it.
const EVERY: Duration = Duration::from_secs(1);

/// The facts about each view of a dataset, in the views' order.
pub(crate) type Looked = Arc<Vec<Facts>>;

/// Reads the facts once.
pub(crate) async fn look(store: &Store, views: &[View]) -> Result<Looked, StoreError> {
    Ok(Arc::new(store.facts_of(views).await?))
}

/// Looks until cancelled, beginning with what is known. Beside the worker, so that reading goes on meanwhile.
pub(crate) fn watch(
    store: Store,
    views: Vec<View>,
    first: Looked,
    cancel: CancellationToken,
) -> watch::Receiver<Looked> {
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            match look(&store, &views).await {
                Ok(facts) => {
                    away = false;
                    sender.send_replace(facts);
                }
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(error = %shared_connections::sentence(&error), "cannot look for marks and cuts, going on with the last ones");
                }
                Err(_) => {}
            }
        }
    });
    receiver
}
