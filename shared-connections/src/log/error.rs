//! What can go wrong with Kafka, and whether trying again can mend it.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use shared_schemas::decode::DecodeSetupError;

/// Why Kafka did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// librdkafka does not know a property.
    #[error("kafka.properties: librdkafka has no property `{name}`: see its CONFIGURATION.md")]
    NoProperty {
        /// The property.
        name: String,
    },
    /// librdkafka refuses a property's value. It may be a secret and is not shown.
    #[error("kafka.properties: librdkafka refuses the value of `{name}`: see its CONFIGURATION.md")]
    Property {
        /// The property.
        name: String,
    },
    /// The properties don't go together, as in a SASL mechanism that needs a password.
    #[error("kafka.properties: {why}")]
    Properties {
        /// What librdkafka says.
        why: String,
    },
    /// Nothing answers there.
    #[error("Kafka at {brokers} (kafka.brokers) can't be reached to {doing}")]
    Away {
        /// The configured addresses.
        brokers: String,
        /// What it was asked, as in "describe topic flights".
        doing: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// The cluster answers, and has no such topic.
    #[error(
        "Kafka at {brokers} (kafka.brokers) has no topic {topic}: make it with `highwater topics create`, or correct \
         the dataset's `topic`"
    )]
    NoTopic {
        /// The configured addresses.
        brokers: String,
        /// The topic.
        topic: String,
    },
    /// The topic has no such partition.
    #[error("topic {topic} at {brokers} (kafka.brokers) has no partition {partition}")]
    NoPartition {
        /// The configured addresses.
        brokers: String,
        /// The topic.
        topic: String,
        /// The partition's number.
        partition: u32,
    },
    /// It answered with an error.
    #[error("Kafka at {brokers} (kafka.brokers) could not {doing}")]
    Refused {
        /// The configured addresses.
        brokers: String,
        /// What it was asked.
        doing: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// No decoder can be made for the dataset.
    #[error("dataset {dataset} can't be read")]
    Decoder {
        /// The dataset.
        dataset: String,
        /// Why.
        source: DecodeSetupError,
    },
    /// No thread could be started.
    #[error("no thread could be started to read topic {topic}")]
    Thread {
        /// The topic.
        topic: String,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// A reader's thread ended in the middle: a fault in this program.
    #[error("the thread that read topic {topic} panicked")]
    Panicked {
        /// The topic.
        topic: String,
    },
}

impl LogError {
    /// What making a client came to.
    pub(super) fn of_client(source: KafkaError) -> Self {
        use rdkafka::types::RDKafkaConfRes as Fault;
        match source {
            KafkaError::ClientConfig(Fault::RD_KAFKA_CONF_UNKNOWN, _, name, _) => Self::NoProperty { name },
            KafkaError::ClientConfig(_, _, name, _) => Self::Property { name },
            KafkaError::ClientCreation(why) => Self::Properties { why },
            other => Self::Properties { why: other.to_string() },
        }
    }

    /// It answered with an error when it was asked that.
    pub(super) fn refused(brokers: &str, doing: String, source: KafkaError) -> Self {
        Self::Refused {
            brokers: brokers.to_owned(),
            doing,
            source: Box::new(source),
        }
    }

    /// What a question about a topic came to.
    pub(super) fn of_question(
        brokers: &str,
        topic: &str,
        partition: Option<u32>,
        doing: &str,
        source: KafkaError,
    ) -> Self {
        let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
        let doing = || format!("{doing} {topic}");
        let (code, source) = (code(&source), Box::new(source));
        match (code, partition) {
            (Some(Code::UnknownTopic | Code::UnknownTopicOrPartition), None) => Self::NoTopic { brokers, topic },
            (Some(Code::UnknownTopic), Some(_)) => Self::NoTopic { brokers, topic },
            (Some(Code::UnknownPartition | Code::UnknownTopicOrPartition), Some(partition)) => Self::NoPartition {
                brokers,
                topic,
                partition,
            },
            (Some(code), _) if is_away(code) => Self::Away {
                brokers,
                doing: doing(),
                source,
            },
            _ => Self::Refused {
                brokers,
                doing: doing(),
                source,
            },
        }
    }

    /// Whether the same may well succeed later, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Away { .. } => true,
            Self::Refused { source, .. } => code(source).is_some_and(is_passing),
            _ => false,
        }
    }
}

/// The code in an error; `KafkaError` keeps those of administration to itself.
pub(super) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// Whether no broker was reached. A timeout is the same: librdkafka waits for a broker until then.
pub(super) fn is_away(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::Resolve
    )
}

/// Whether it goes away while a cluster elects a leader or learns of a topic.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::CoordinatorNotAvailable
            | Code::OffsetNotAvailable
            | Code::UnknownTopicId
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(partition: Option<u32>, code: Code) -> LogError {
        LogError::of_question("k:9092", "t", partition, "describe topic", KafkaError::AdminOp(code))
    }

    #[test]
    fn an_absent_topic_is_told_from_an_absent_cluster() {
        let none = asked(None, Code::UnknownTopicOrPartition);
        assert!(matches!(none, LogError::NoTopic { .. }) && !none.is_passing());
        assert!(matches!(
            asked(Some(3), Code::UnknownPartition),
            LogError::NoPartition { partition: 3, .. }
        ));
        let away = asked(None, Code::OperationTimedOut);
        assert!(away.is_passing());
        assert!(
            away.to_string()
                .starts_with("Kafka at k:9092 (kafka.brokers) can't be reached to describe topic t")
        );
        assert!(!asked(None, Code::TopicAuthorizationFailed).is_passing());
        assert!(asked(None, Code::LeaderNotAvailable).is_passing());
    }

    #[test]
    fn causes_are_told_once() {
        use crate::sentence;

        let away = asked(None, Code::OperationTimedOut);
        let said = sentence(&away);
        assert_eq!(said.matches("Local: Timed out").count(), 1, "{said}");
    }
}
