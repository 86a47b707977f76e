//! The topics that datasets need: made where they are missing, checked where they are there.
//!
//! A topic that is there is never changed: another number of partitions or a cleanup by key is said, with what to do.
//! Compacted topics are refused because Kafka takes records out of them that were delivered already.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::time::Instant;

use crate::StackError;
use crate::kafka::client::{Quiet, config};

/// How long the cluster may take for one request.
const PATIENCE: Duration = Duration::from_secs(30);
const METADATA: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(25);
/// Kafka's own default for `max.message.bytes`.
const DEFAULT_MAX_MESSAGE: usize = 1_048_588;
/// What a record's key, headers and framing may add to its value.
const AROUND_VALUE: usize = 64 * 1024;
/// One archiver writes them, in no order that anybody needs.
const DEAD_LETTER_PARTITIONS: u32 = 1;

/// One topic that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it gets; none where any number will do for one that is there.
    pub partitions: Partitions,
    /// The largest value it must carry, in bytes.
    pub max_value: usize,
}

/// What is asked of a topic's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitions {
    /// This many, also of a topic that is there already.
    Exactly(u32),
    /// This many when it is made, any number when it is there.
    Initially(u32),
}

impl Topic {
    /// The topics of one dataset: its own, and the one for its dead letters.
    pub fn of_dataset(topic: &str, partitions: u32, max_event_size: usize) -> [Self; 2] {
        [
            Self {
                name: topic.to_owned(),
                partitions: Partitions::Exactly(partitions),
                max_value: max_event_size,
            },
            Self {
                name: format!("{topic}.dead-letters"),
                partitions: Partitions::Initially(DEAD_LETTER_PARTITIONS),
                max_value: max_event_size,
            },
        ]
    }
}

/// What became of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there and was made.
    Created,
    /// It was there, as it should be.
    There,
}

/// Makes what is missing, checks what is there; returns one outcome for each topic, in order. The first topic that is
/// not as it should be ends it; topics made until then stay.
pub async fn ensure(
    brokers: &str,
    properties: &[(String, String)],
    topics: &[Topic],
) -> Result<Vec<Outcome>, StackError> {
    let failed = |doing: &str| {
        let doing = format!("{doing} at {brokers}");
        move |source| StackError::Kafka { doing, source }
    };
    let admin: AdminClient<Quiet> = config(brokers, properties)
        .create_with_context(Quiet)
        .map_err(failed("be asked"))?;
    let mut outcomes = Vec::with_capacity(topics.len());
    for topic in topics {
        let outcome = match create(&admin, topic)
            .await
            .map_err(failed(&format!("create topic {}", topic.name)))?
        {
            Outcome::There => {
                check_cleanup(&admin, topic)
                    .await
                    .map_err(failed(&format!("describe topic {}", topic.name)))?
                    .map_or(Ok(()), |why| Err(wrong(topic, why)))?;
                Outcome::There
            }
            created => created,
        };
        outcomes.push(outcome);
    }
    let (admin, wanted, told) = (admin, topics.to_vec(), brokers.to_owned());
    let look = move || wait_for_leaders(&admin, &wanted, &told);
    tokio::task::spawn_blocking(look)
        .await
        .map_err(|_| failed("be asked")(KafkaError::Canceled))??;
    Ok(outcomes)
}

fn wrong(topic: &Topic, why: String) -> StackError {
    StackError::Topic {
        topic: topic.name.clone(),
        why,
    }
}

async fn create(admin: &AdminClient<Quiet>, topic: &Topic) -> Result<Outcome, KafkaError> {
    let (Partitions::Exactly(partitions) | Partitions::Initially(partitions)) = topic.partitions;
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    let largest = (topic.max_value.saturating_add(AROUND_VALUE))
        .max(DEFAULT_MAX_MESSAGE)
        .to_string();
    // -1: as many copies as the cluster makes of topics by default.
    let new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(-1)).set("max.message.bytes", &largest);
    let options = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    match admin.create_topics([&new], &options).await?.into_iter().next() {
        Some(Ok(_)) => Ok(Outcome::Created),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(Outcome::There),
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
        None => Err(KafkaError::AdminOp(RDKafkaErrorCode::Unknown)),
    }
}

/// Why the topic's cleanup policy won't do, if so.
async fn check_cleanup(admin: &AdminClient<Quiet>, topic: &Topic) -> Result<Option<String>, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(&topic.name)], &options)
        .await?;
    let resource = match described.into_iter().next() {
        Some(Ok(resource)) => resource,
        Some(Err(code)) => return Err(KafkaError::AdminOp(code)),
        None => return Err(KafkaError::AdminOp(RDKafkaErrorCode::Unknown)),
    };
    let policy = resource
        .get("cleanup.policy")
        .and_then(|entry| entry.value.clone())
        .unwrap_or_default();
    Ok(policy.split(',').any(|one| one.trim() == "compact").then(|| {
        format!(
            "is compacted (cleanup.policy = {policy}): records that were counted would vanish from it; set \
             cleanup.policy to delete, or name another topic"
        )
    }))
}

/// Waits until every partition of every topic has a leader, so that whoever writes next can; compares the partitions.
fn wait_for_leaders(admin: &AdminClient<Quiet>, topics: &[Topic], brokers: &str) -> Result<(), StackError> {
    let started = Instant::now();
    for topic in topics {
        loop {
            let doing = || format!("describe topic {} at {brokers}", topic.name);
            let metadata = admin
                .inner()
                .fetch_metadata(Some(&topic.name), METADATA)
                .map_err(|source| StackError::Kafka { doing: doing(), source })?;
            let partitions = metadata
                .topics()
                .first()
                .map(|found| found.partitions())
                .unwrap_or_default();
            if !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0) {
                compare(topic, partitions.len())?;
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err(wrong(
                    topic,
                    "has partitions without a leader: see the brokers' logs".to_owned(),
                ));
            }
            std::thread::park_timeout(POLL);
        }
    }
    Ok(())
}

fn compare(topic: &Topic, found: usize) -> Result<(), StackError> {
    match topic.partitions {
        Partitions::Exactly(wanted) if usize::try_from(wanted) != Ok(found) => Err(wrong(
            topic,
            format!(
                "has {found} partitions and its dataset says {wanted}: write partitions = {found} in the dataset, or \
                 change the topic"
            ),
        )),
        _ => Ok(()),
    }
}
