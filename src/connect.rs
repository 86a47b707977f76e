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
    let mut told = false;
    (async || store.create_tables(definitions).await)
        .retry(tries())
        .when(|error| error.is_passing())
        .notify(|error, _| tell(&mut told, error))
        .await?;
    Ok(store)
}

/// Kafka, answering, with all topics.
pub(crate) async fn kafka(config: &Config, definitions: &Definitions) -> anyhow::Result<Kafka> {
    let kafka = Kafka::new(&config.kafka)?;
    let mut told = false;
    for dataset in &definitions.datasets {
        (async || kafka.topic(&dataset.topic).await)
            .retry(tries())
            .when(|error| error.is_passing())
            .notify(|error, _| tell(&mut told, error))
            .await?;
    }
    Ok(kafka)
}

fn tell(told: &mut bool, error: &dyn std::fmt::Display) {
    if !std::mem::replace(told, true) {
        tracing::warn!("{error}; trying for {} s", PATIENCE.as_secs());
    }
}
