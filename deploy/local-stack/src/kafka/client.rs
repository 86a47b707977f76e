//! Asking a Kafka cluster: does it answer at all, and the client that the questions go through.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

/// How long one metadata request may take.
const ANSWER: Duration = Duration::from_secs(3);

/// Says what librdkafka says at debug level only: that a broker is not there *yet* is no news while one starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}

/// A client's configuration: the brokers, then the properties, as the user gave them.
pub fn config(brokers: &str, properties: &[(String, String)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for (key, value) in properties {
        config.set(key, value);
    }
    config
}

/// Does a Kafka broker answer there? Says how many brokers the cluster has.
pub async fn answers(brokers: &str, properties: &[(String, String)]) -> Result<usize, KafkaError> {
    let config = config(brokers, properties);
    let ask = move || {
        let producer: BaseProducer<Quiet> = config.create_with_context(Quiet)?;
        Ok(producer.client().fetch_metadata(None, ANSWER)?.brokers().len())
    };
    // The request blocks its thread.
    tokio::task::spawn_blocking(ask)
        .await
        .unwrap_or(Err(KafkaError::Canceled))
}
