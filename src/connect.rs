//! Kafka and ClickHouse as a process finds them at its start: asked again for half a minute, then it gives up.
//!
//! Once it runs, a layer waits for them without end.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use shared_connections::log::Kafka;
use shared_connections::store::Store;
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;

/// How long a server may stay away at the start.
const PATIENCE: Duration = Duration::from_secs(30);

fn tries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(3))
        .with_total_delay(Some(PATIENCE))
        .without_max_times()
        .with_jitter()
}

/// ClickHouse, answering, with all tables.
pub(crate) async fn store(config: &Config, definitions: &Definitions) -> anyhow::Result<Store> {
    let store = Store::new(&config.clickhouse);
    tables(&store, definitions).await?;
    Ok(store)
}

/// Both, ClickHouse first.
pub(crate) async fn both(config: &Config, definitions: &Definitions) -> anyhow::Result<(Store, Kafka)> {
    Ok((store(config, definitions).await?, kafka(config, definitions).await?))
}

/// Waits until that ClickHouse is there, and makes the tables that are not.
pub(crate) async fn tables(store: &Store, definitions: &Definitions) -> anyhow::Result<()> {
    let mut told = false;
    (async || store.create_tables(definitions).await)
        .retry(tries())
        .when(|error| error.is_passing())
        .notify(|error, _| tell(&mut told, error))
        .await
        .map_err(|error| {
            let gave_up = error.is_passing();
            let error = anyhow::Error::new(error);
            if gave_up {
                error.context(format!("gave up after {} s", PATIENCE.as_secs()))
            } else {
                error
            }
        })
}

/// Kafka, answering, with all topics.
pub(crate) async fn kafka(config: &Config, definitions: &Definitions) -> anyhow::Result<Kafka> {
    let kafka = Kafka::new(&config.kafka)?;
    for dataset in &definitions.datasets {
        kafka.topic_within(&dataset.topic, PATIENCE).await?;
    }
    Ok(kafka)
}

fn tell(told: &mut bool, error: &dyn std::fmt::Display) {
    if !std::mem::replace(told, true) {
        tracing::warn!("{error}; trying for {} s", PATIENCE.as_secs());
    }
}
