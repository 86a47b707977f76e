//! A reader, as its layer sees it: events in order, where the logs end, and what is wrong.
//!
//! It reads with a manual assignment, not with a subscription: which offset comes next is decided by the progress that
//! lives with the data, never by a group. Which partitions it reads may change while it reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::{Decoder, MaskKeys, Options};
use shared_schemas::handoff::Offset;
use tokio::sync::mpsc;

use super::error::LogError;
use super::kafka::{Kafka, Listener, Topic, kafka_partition};
use super::open::OpenSlice;
use super::slice::Event;
use super::worker::Worker;

/// What the thread has gathered waits for the layer while that is busy, so many times. With more it would hold more memory and
/// gain nothing; with less the thread would stand still whenever the layer is busy with what came before.
const WAITING: usize = 2;
/// How long a reader, or a member of a group, may take to end.
pub(super) const ENDING: Duration = Duration::from_secs(2);
/// Whether it has ended is looked at so often.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How a dataset is read.
pub struct ReaderOptions<'a> {
    /// The dataset, and so the topic.
    pub dataset: &'a Dataset,
    /// The keys for `hash` rules.
    pub keys: &'a dyn MaskKeys,
    /// The consumer group to commit to.
    pub group: String,
    /// Whether to keep undeclared fields in `_extra`.
    pub extra: bool,
    /// Whether to hand over refused records with their bytes.
    pub keep_refused: bool,
}

/// Reads partitions of one topic forward. Dropping it ends its threads, soon.
pub struct Reader {
    events: mpsc::Receiver<Vec<Found>>,
    /// What came out of the channel and was not handed over yet.
    came: VecDeque<Found>,
    /// Which reading of each partition is wanted. What an earlier one left behind is passed over.
    generations: BTreeMap<u32, u64>,
    /// Partitions that are not read for a while: what they left behind is passed over, too.
    resting: BTreeSet<u32>,
    /// The last one given.
    generation: u64,
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Listener>>,
    topic: String,
    thread: JoinHandle<()>,
    changes: Sender<Change>,
}

/// An event, and which reading of its partition it belongs to.
pub(super) struct Found {
    pub(super) generation: u64,
    pub(super) event: Event,
}

/// A change of what is read.
pub(super) enum Change {
    /// These partitions too.
    Add(Vec<OpenSlice>),
    /// These no longer.
    Remove(BTreeSet<u32>),
}

/// What the threads tell beside the events.
pub(super) struct Shared {
    /// The partitions that are to be read.
    partitions: Mutex<BTreeSet<u32>>,
    /// The topic when last looked.
    topic: Mutex<Option<Topic>>,
    /// Where each log ended then.
    ends: Mutex<BTreeMap<u32, Offset>>,
    /// Why Kafka gives no answer.
    away: Mutex<Option<String>>,
    /// What the last fetch came to, where no record came since.
    complaint: Mutex<Option<String>>,
    failure: Mutex<Option<LogError>>,
    /// The topic is not the one that was there at the start.
    pub(super) made_again: AtomicBool,
}

impl Reader {
    /// Begins to read each partition from its cursor. Returns at once: Kafka need not be there.
    ///
    /// # Errors
    /// A dataset that can't be decoded ([`LogError::Decoder`]), or a client or thread that can't be made.
    pub fn start(kafka: &Kafka, options: ReaderOptions<'_>, cursors: &BTreeMap<u32, Offset>) -> Result<Self, LogError> {
        let topic = options.dataset.topic.clone();
        let slices = options.open(cursors, 0)?;
        let consumer = Arc::new(kafka.consumer(options.group)?);
        let (sender, events) = mpsc::channel(WAITING);
        let (changes, changed) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            partitions: Mutex::new(cursors.keys().copied().collect()),
            topic: Mutex::default(),
            ends: Mutex::default(),
            away: Mutex::default(),
            complaint: Mutex::default(),
            failure: Mutex::default(),
            made_again: AtomicBool::new(false),
        });
        let worker = Worker::new(
            kafka,
            topic.clone(),
            slices.into_iter().map(|slice| (slice.partition(), slice)).collect(),
            Arc::clone(&consumer),
            sender,
            changed,
            Arc::clone(&shared),
        );
        let thread = worker.spawn()?;
        Ok(Self {
            events,
            came: VecDeque::new(),
            generations: cursors.keys().map(|number| (*number, 0)).collect(),
            resting: BTreeSet::new(),
            generation: 0,
            shared,
            consumer,
            topic,
            thread,
            changes,
        })
    }

    /// Reads further partitions, each from its cursor, or one that it reads already from another cursor. The options are
    /// those of the start.
    ///
    /// # Errors
    /// As [`Reader::start`].
    pub fn add(&mut self, options: &ReaderOptions<'_>, cursors: &BTreeMap<u32, Offset>) -> Result<(), LogError> {
        self.generation += 1;
        let slices = options.open(cursors, self.generation)?;
        self.generations
            .extend(cursors.keys().map(|number| (*number, self.generation)));
        self.resting.retain(|number| !cursors.contains_key(number));
        lock(&self.shared.partitions).extend(cursors.keys());
        // One that has ended reads nothing, and `failure` says why.
        let _ = self.changes.send(Change::Add(slices));
        Ok(())
    }

    /// Reads these partitions no further until they are added again: no slice and no gap of theirs comes until then. Where
    /// their logs end is asked meanwhile.
    pub fn rest(&mut self, partitions: &BTreeSet<u32>) {
        self.resting.extend(partitions);
        let _ = self.changes.send(Change::Remove(partitions.clone()));
    }

    /// Reads these partitions no longer: no event of theirs comes any more.
    pub fn remove(&mut self, partitions: &BTreeSet<u32>) {
        self.generations.retain(|number, _| !partitions.contains(number));
        self.resting.retain(|number| !partitions.contains(number));
        lock(&self.shared.partitions).retain(|number| !partitions.contains(number));
        lock(&self.shared.ends).retain(|number, _| !partitions.contains(number));
        let _ = self.changes.send(Change::Remove(partitions.clone()));
    }

    /// The next event; waits for it. Nothing is lost if the wait is given up. `None` only after the reader ended: it was
    /// told to, or [`Reader::failure`] says why.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let Some(Found { generation, event }) = self.came.pop_front() else {
                self.came = self.events.recv().await?.into();
                continue;
            };
            let partition = event.partition();
            // That a log was cut off may be told only once; what else rests is found again.
            let is_once = matches!(event, Event::Short { is_certain: true, .. });
            let is_passed_over = self.resting.contains(&partition) && !is_once;
            if !is_passed_over && self.generations.get(&partition) == Some(&generation) {
                return Some(event);
            }
        }
    }

    /// What ended the reader, if it ended by itself.
    pub fn failure(&self) -> Option<LogError> {
        lock(&self.shared.failure).clone()
    }

    /// Tells the group how far its layer has come, so that lag can be watched; nothing else rests on it. Returns at once.
    pub fn commit(&self, cursors: &BTreeMap<u32, Offset>) {
        let committed =
            positions(&self.topic, cursors).and_then(|positions| self.consumer.commit(&positions, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(%error, topic = self.topic, "a commit for lag monitoring failed");
        }
    }

    /// Where each partition's log ended when last looked, which is about every second: the last stable offset. Empty until
    /// Kafka first answered.
    pub fn log_ends(&self) -> BTreeMap<u32, Offset> {
        lock(&self.shared.ends).clone()
    }

    /// The topic of that name when last looked, which is about every second; `None` until Kafka first answered.
    pub fn topic(&self) -> Option<Topic> {
        *lock(&self.shared.topic)
    }

    /// What is wrong, in a sentence, while Kafka is away or refuses to be read; `None` when it is back.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.away)
            .clone()
            .or_else(|| lock(&self.shared.complaint).clone())
    }

    /// Ends it, and waits until it has let go of Kafka. Events that were not taken are dropped.
    pub async fn stop(mut self) {
        self.events.close();
        while self.events.try_recv().is_ok() {}
        drop(self.consumer);
        // A panic of the thread was told by `failure`. One that waits for a Kafka that is away is left to itself: it holds
        // nothing that anybody needs.
        let began = Instant::now();
        while !self.thread.is_finished() && began.elapsed() < ENDING {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl ReaderOptions<'_> {
    fn open(&self, cursors: &BTreeMap<u32, Offset>, generation: u64) -> Result<Vec<OpenSlice>, LogError> {
        let Self {
            dataset, keys, extra, ..
        } = *self;
        let open = |(partition, cursor): (&u32, &Offset)| {
            let decoder = Decoder::new(dataset, Options { extra, keys }).map_err(|source| LogError::Decoder {
                dataset: dataset.name.clone(),
                source,
            })?;
            Ok(OpenSlice::new(
                *partition,
                generation,
                *cursor,
                decoder,
                self.keep_refused,
            ))
        };
        cursors.iter().map(open).collect()
    }
}

impl Shared {
    pub(super) fn partitions(&self) -> BTreeSet<u32> {
        lock(&self.partitions).clone()
    }

    pub(super) fn looked(&self, mut ends: BTreeMap<u32, Offset>) {
        let partitions = self.partitions();
        ends.retain(|number, _| partitions.contains(number));
        lock(&self.ends).extend(ends);
    }

    pub(super) fn saw(&self, topic: Topic) {
        *lock(&self.topic) = Some(topic);
    }

    /// Kafka gave no answer. Whether that is news.
    pub(super) fn away(&self, why: String) -> bool {
        lock(&self.away).replace(why).is_none()
    }

    /// Kafka answered. Whether that is news.
    pub(super) fn back(&self) -> bool {
        lock(&self.away).take().is_some()
    }

    /// A fetch failed. Whether that is news.
    pub(super) fn complain(&self, why: &str) -> bool {
        let mut complaint = lock(&self.complaint);
        let news = complaint.as_deref() != Some(why);
        *complaint = Some(why.to_owned());
        news
    }

    /// A record came.
    pub(super) fn content(&self) {
        lock(&self.complaint).take();
    }

    pub(super) fn fail(&self, failure: LogError) {
        lock(&self.failure).get_or_insert(failure);
    }

    pub(super) fn is_made_again(&self) -> bool {
        self.made_again.load(Ordering::Acquire)
    }
}

/// What is behind the locks is whole at every moment, so a panic elsewhere leaves nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cursors as librdkafka takes them.
pub(super) fn positions(
    topic: &str,
    cursors: &BTreeMap<u32, Offset>,
) -> Result<TopicPartitionList, rdkafka::error::KafkaError> {
    let mut positions = TopicPartitionList::with_capacity(cursors.len());
    for (partition, cursor) in cursors {
        let offset = KafkaOffset::Offset(i64::try_from(cursor.0).unwrap_or(i64::MAX));
        positions.add_partition_offset(topic, kafka_partition(*partition), offset)?;
    }
    Ok(positions)
}
