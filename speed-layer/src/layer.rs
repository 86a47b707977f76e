//! All datasets that have views, each with a worker of its own.

use std::collections::HashMap;
use std::sync::Arc;

use shared_connections::log::Kafka;
use shared_connections::store::Store;
use shared_schemas::config::SpeedConfig;
use shared_schemas::decode::{Decoder, EnvironmentKeys, Options};
use shared_schemas::definitions::Definitions;
use shared_schemas::view::View;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::SpeedError;
use crate::worker::{self, Setup};

/// Runs the speed layer until cancelled. Kafka or ClickHouse going away ends nothing: workers wait for them.
///
/// # Errors
/// A dataset that can't be read as defined (a key of a mask rule is not set), told before anything starts; a worker
/// that broke down.
pub async fn run(
    config: &SpeedConfig,
    definitions: &Definitions,
    kafka: &Kafka,
    store: &Store,
    cancel: CancellationToken,
) -> Result<(), SpeedError> {
    let mut workers = JoinSet::new();
    let mut datasets = HashMap::new();
    let mut setups = Vec::new();
    for dataset in &definitions.datasets {
        let options = Options {
            extra: false,
            keys: &EnvironmentKeys,
        };
        Decoder::new(dataset, options).map_err(|source| SpeedError::Decode {
            dataset: dataset.name.clone(),
            source,
        })?;
        let of_dataset = definitions.views.iter().filter(|view| view.dataset == dataset.name);
        let mut views: Vec<View> = Vec::new();
        for view in of_dataset {
            // Two names for one definition share their rows: they are counted once.
            if views.iter().all(|other| other.fingerprint != view.fingerprint) {
                views.push(view.clone());
            }
        }
        if !views.is_empty() {
            setups.push(Setup {
                dataset: Arc::new(dataset.clone()),
                views,
                kafka: kafka.clone(),
                store: store.clone(),
                speed: config.clone(),
                cancel: cancel.child_token(),
            });
        }
    }
    let datasets_read = u64::try_from(setups.len()).unwrap_or(1).max(1);
    for setup in &mut setups {
        setup.speed.memory /= datasets_read;
    }
    let handle = tokio::runtime::Handle::current();
    for setup in setups {
        let handle = handle.clone();
        // A thread of its own: aggregating takes the processor for longer than tasks beside it should wait.
        let dataset = setup.dataset.name.clone();
        let worker = workers.spawn_blocking(move || handle.block_on(worker::keep(setup)));
        datasets.insert(worker.id(), dataset);
    }
    let mut result = Ok(());
    while let Some(ended) = workers.join_next().await {
        let error = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(broken) => SpeedError::Broken {
                dataset: datasets.remove(&broken.id()).unwrap_or_default(),
            },
        };
        cancel.cancel();
        result = result.and(Err(error));
    }
    result
}
