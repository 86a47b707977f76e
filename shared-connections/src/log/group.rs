//! Membership in a consumer group: which partitions of a topic a process is to read.
//!
//! The group spreads work, nothing more: where reading begins, and what counts, follows from what is recorded with the
//! data, so two members that both hold a partition for a while do no harm. The member's own consumer therefore fetches
//! nothing. Readers read by manual assignment, and the member commits for them, since Kafka takes commits to a group with
//! members from members only.
//!
//! By default the group's protocol is `classic`, with the cooperative assignor and a session of 10 s. Kafka's newer one,
//! `consumer`, leaves the session's length to the broker, 45 s by default: for so long nobody would read the partitions of
//! a worker that was killed, and a killed static member could not come back. Whoever prefers it sets `group.protocol` in
//! `kafka.properties`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset as KafkaOffset, TopicPartitionList};
use shared_schemas::handoff::Offset;
use tokio::sync::watch;

use super::error::{LogError, code, is_away};
use super::kafka::{Kafka, Listener};
use super::reader::{ENDING, LOOK_AGAIN, lock, positions};
use crate::{delays, sentence};

/// How long one poll waits; the thread then looks whether it is to leave.
const POLL: Duration = Duration::from_millis(100);
/// A layer that has not spoken for so long has come to a stand: its partitions are better read by somebody else. The
/// member stops polling then, and leaves the group `max.poll.interval.ms` later.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How long until a member that was thrown out for good joins again, growing.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Where a topic gets further partitions, a group's leader finds out after so long.
const NEWS: (&str, &str) = ("topic.metadata.refresh.interval.ms", "5000");

/// What a member of the classic protocol is unless the user's properties say otherwise. A killed worker's partitions go
/// to others after the session's length.
const CLASSIC: [(&str, &str); 2] = [
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("session.timeout.ms", "10000"),
];

/// The partitions that the group gave to this member; `None` before it first did.
pub type Assigned = Option<BTreeSet<u32>>;

/// A member of a group. Dropping it leaves the group, soon.
pub struct Membership {
    assigned: watch::Receiver<Assigned>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// The thread leaves the group when this is dropped.
    stays: SyncSender<()>,
}

struct Shared {
    /// When the layer last spoke.
    alive: Mutex<Instant>,
    /// What is to be committed.
    commit: Mutex<Option<BTreeMap<u32, Offset>>>,
}

/// The thread's state.
struct Joining {
    kafka: Kafka,
    config: ClientConfig,
    topic: String,
    assigned: Arc<watch::Sender<Assigned>>,
    shared: Arc<Shared>,
    left: Receiver<()>,
}

impl Membership {
    /// Joins the group of that name for one topic. `instance` makes it a static member: one that is back within the
    /// session's length has its partitions as before. Returns at once: Kafka need not be there.
    ///
    /// # Errors
    /// Properties that don't go together, or a thread that can't be started.
    pub fn join(kafka: &Kafka, group: String, topic: &str, instance: Option<&str>) -> Result<Self, LogError> {
        let (sender, assigned) = watch::channel(None);
        let (stays, left) = sync_channel(0);
        let shared = Arc::new(Shared {
            alive: Mutex::new(Instant::now()),
            commit: Mutex::default(),
        });
        let joining = Joining {
            kafka: kafka.clone(),
            config: config(kafka.member_config(group), instance),
            topic: topic.to_owned(),
            assigned: Arc::new(sender),
            shared: Arc::clone(&shared),
            left,
        };
        // Made here rather than by the thread: properties that don't go together can't be mended by waiting.
        let first = joining.member()?;
        let thread = std::thread::Builder::new()
            .name("kafka member".to_owned())
            .spawn(move || joining.run(first))
            .map_err(|source| LogError::Thread {
                topic: topic.to_owned(),
                source: Arc::new(source),
            })?;
        Ok(Self {
            assigned,
            shared,
            thread,
            stays,
        })
    }

    /// The partitions that are this member's, and whenever they change. Where it lost touch with the group it keeps
    /// those it had until it is given others: reading on does no harm, and most often it gets the same again.
    pub fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.clone()
    }

    /// Says that the layer is alive. To be said every few seconds.
    pub fn is_alive(&self) {
        *lock(&self.shared.alive) = Instant::now();
    }

    /// Tells the group how far its layer has come, so that lag can be watched; nothing else rests on it. Returns at once.
    pub fn commit(&self, cursors: BTreeMap<u32, Offset>) {
        *lock(&self.shared.commit) = Some(cursors);
    }

    /// Leaves the group, after what is to be committed. Waits until it has left, two seconds at most.
    pub async fn leave(self) {
        drop(self.stays);
        let began = Instant::now();
        while !self.thread.is_finished() && began.elapsed() < ENDING {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// A member's properties.
fn config(mut config: ClientConfig, instance: Option<&str>) -> ClientConfig {
    let protocol = config.get("group.protocol");
    let of_protocol = if protocol.is_none_or(|protocol| protocol == "classic") {
        &CLASSIC[..]
    } else {
        &[]
    };
    for (name, value) in of_protocol.iter().copied().chain([NEWS]) {
        if config.get(name).is_none() {
            config.set(name, value);
        }
    }
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    config
}

impl Joining {
    fn member(&self) -> Result<BaseConsumer<Member>, LogError> {
        let member = Member {
            topic: self.topic.clone(),
            own: Mutex::default(),
            failed: Mutex::default(),
            assigned: Arc::clone(&self.assigned),
        };
        let consumer: BaseConsumer<Member> = self.config.create_with_context(member).map_err(LogError::of_client)?;
        Ok(consumer)
    }

    /// Takes part with this member, and with another one when the group will have no more of it.
    fn run(self, first: BaseConsumer<Member>) {
        let mut pauses = delays(SHORTEST, LONGEST);
        let mut member = Ok(first);
        loop {
            let began = Instant::now();
            let Err(error) = member.and_then(|member| self.take_part(&member)) else {
                return;
            };
            tracing::error!(
                "{}; joining again. Another worker with the same speed.instance would bring this about",
                sentence(&error)
            );
            if began.elapsed() > LONGEST {
                pauses = delays(SHORTEST, LONGEST);
            }
            if self.is_to_leave_within(pauses.next().unwrap_or(LONGEST)) {
                return;
            }
            member = self.member();
        }
    }

    /// Takes part in the group until told to end; an error where the group will have no more of this member.
    fn take_part(&self, consumer: &BaseConsumer<Member>) -> Result<(), LogError> {
        consumer
            .subscribe(&[&self.topic])
            .map_err(|source| self.failed(source))?;
        let mut complaint = None;
        let stands_still = || lock(&self.shared.alive).elapsed() > STANDSTILL;
        while !self.is_to_leave_within(if stands_still() { POLL } else { Duration::ZERO }) {
            if stands_still() {
                continue;
            }
            self.commit_now(consumer);
            if let Some(error) = lock(&consumer.context().failed).take() {
                return Err(self.failed(error));
            }
            match consumer.poll(POLL) {
                // It fetches nothing.
                None | Some(Ok(_)) => {}
                Some(Err(error)) => {
                    if let Some((code, why)) = consumer.client().fatal_error() {
                        tracing::debug!(?code, why, "librdkafka");
                        return Err(self.failed(KafkaError::MessageConsumptionFatal(code)));
                    }
                    // Whoever reads tells of a Kafka that is away.
                    if !code(&error).is_some_and(is_away) {
                        let said = sentence(&self.failed(error));
                        if complaint.as_ref() != Some(&said) {
                            tracing::warn!("{said}; trying again");
                            complaint = Some(said);
                        }
                    }
                }
            }
        }
        self.commit_now(consumer);
        Ok(())
    }

    fn commit_now(&self, consumer: &BaseConsumer<Member>) {
        let Some(cursors) = lock(&self.shared.commit).take() else {
            return;
        };
        let own = lock(&consumer.context().own).clone();
        let held = cursors.into_iter().filter(|(number, _)| own.contains(number)).collect();
        let committed = positions(&self.topic, &held).and_then(|positions| {
            if held.is_empty() {
                return Ok(());
            }
            consumer.commit(&positions, CommitMode::Async)
        });
        if let Err(error) = committed {
            tracing::debug!(%error, topic = self.topic, "a commit for lag monitoring failed");
        }
    }

    /// Waits so long at most; whether the layer wants to leave the group.
    fn is_to_leave_within(&self, pause: Duration) -> bool {
        self.left.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
    }

    fn failed(&self, source: KafkaError) -> LogError {
        let doing = format!("share the partitions of topic {} in its consumer group", self.topic);
        LogError::refused(self.kafka.brokers(), doing, source)
    }
}

/// What librdkafka calls when the group gives or takes partitions.
struct Member {
    topic: String,
    /// What the group says is this member's.
    own: Mutex<BTreeSet<u32>>,
    assigned: Arc<watch::Sender<Assigned>>,
    /// Why it could not take part in a rebalance: the group believes what is not so.
    failed: Mutex<Option<KafkaError>>,
}

impl Member {
    fn numbers(&self, partitions: &TopicPartitionList) -> BTreeSet<u32> {
        let elements = partitions.elements();
        let of_topic = elements.iter().filter(|element| element.topic() == self.topic);
        of_topic
            .filter_map(|element| u32::try_from(element.partition()).ok())
            .collect()
    }

    fn publish(&self, own: &BTreeSet<u32>) {
        self.assigned.send_if_modified(|assigned| {
            let is_news = assigned.as_ref() != Some(own);
            *assigned = Some(own.clone());
            is_news
        });
    }

    fn given(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> KafkaResult<()> {
        // Nothing is fetched, so no committed offset is asked for either.
        partitions.set_all_offsets(KafkaOffset::End)?;
        let mut own = lock(&self.own);
        if let RebalanceProtocol::Cooperative = consumer.rebalance_protocol() {
            consumer.incremental_assign(partitions)?;
        } else {
            consumer.assign(partitions)?;
            own.clear();
        }
        own.extend(self.numbers(partitions));
        self.publish(&own);
        consumer.pause(partitions)
    }

    fn taken(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let lost = consumer.assignment_lost();
        let mut own = lock(&self.own);
        let done = if let RebalanceProtocol::Cooperative = consumer.rebalance_protocol() {
            consumer.incremental_unassign(partitions)
        } else {
            consumer.unassign()
        };
        for number in self.numbers(partitions) {
            own.remove(&number);
        }
        if !lost {
            self.publish(&own);
        }
        done
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Listener.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        Listener.error(error, reason);
    }
}

impl ConsumerContext for Member {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let done = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.given(consumer, partitions),
            _ => self.taken(consumer, partitions),
        };
        if let Err(error) = done {
            lock(&self.failed).get_or_insert(error);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, partitions: &TopicPartitionList) {
        Listener.commit_callback(result, partitions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_of_the_group_stands() {
        let with = |properties: &[(&str, &str)]| {
            let mut config = ClientConfig::new();
            for (name, value) in properties {
                config.set(*name, *value);
            }
            config
        };
        let classic = config(with(&[("session.timeout.ms", "6000")]), Some("a-flights"));
        assert_eq!(classic.get("session.timeout.ms"), Some("6000"));
        assert_eq!(classic.get("partition.assignment.strategy"), Some("cooperative-sticky"));
        assert_eq!(classic.get("group.instance.id"), Some("a-flights"));
        // librdkafka refuses these two with the newer protocol.
        let newer = config(with(&[("group.protocol", "consumer")]), None);
        assert_eq!(newer.get("session.timeout.ms"), None);
        assert_eq!(newer.get("partition.assignment.strategy"), None);
    }
}
