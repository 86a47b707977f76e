//! From a topic into its archive, for as long as the program runs: one task for each dataset.
//!
//! ```text
//! Reader ─▶ fresh ─(the topic is still the same one)─▶ confirmed ─▶ dead letters ─▶ commit ─▶ the group's offsets
//!           └─────────────── at most HELD_MOST ──────────────────┘
//! ```
//!
//! Where it begins is what the archive says, never what the group says. While it can't commit it holds what it has, reads
//! no further than [`HELD_MOST`], and tries again; nothing is lost until Kafka itself forgets, which is then a recorded gap.
//! Two archivers of one dataset are in each other's way and do no harm: whoever comes late reads again from the ends.

use std::collections::BTreeMap;
use std::time::Duration;

use shared_connections::log::{Event, Kafka, LogError, Reader, ReaderOptions, Topic};
use shared_connections::sentence;
use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::EnvironmentKeys;
use shared_schemas::handoff::{ChunkSize, Offset, Partition};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::dead_letters::{DeadLetters, LetterError};
use super::error::ArchiveError;
use super::held::{Broken, Held};
use super::metrics::Metrics;
use super::stall::{Stall, Trouble};
use super::table::Archive;

/// Bytes that are read ahead of a commit: what a commit holds at most, give or take a slice. Large enough that files are
/// worth their number in a backlog, small enough that it fits beside everything else.
const HELD_MOST: usize = 128 << 20;

/// How often the topic is looked at: for new partitions, and whether it was made again.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long the last commit may take once the program is to end.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// Archives one dataset.
pub(super) struct Archiver {
    dataset: Dataset,
    kafka: Kafka,
    archive: Archive,
    letters: DeadLetters,
    chunk: ChunkSize,
    commit_every: Duration,
    cancel: CancellationToken,
    /// Read before the topic was last seen to be the same.
    confirmed: Held,
    /// Read since then. If the topic was made again meanwhile, these may be records of the new one.
    fresh: Held,
    stall: Stall,
    metrics: Metrics,
}

/// Why a session with one reader is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The program is to end.
    Cancelled,
    /// Read on from the archive's ends with another reader: partitions are new, or this one can't go on.
    Anew,
    /// The topic is not the one that was read.
    MadeAgain,
    /// Another archiver committed.
    Overtaken,
}

impl Archiver {
    pub(super) fn new(
        config: &Config,
        dataset: &Dataset,
        chunk: ChunkSize,
        kafka: &Kafka,
        archive: Archive,
        cancel: CancellationToken,
    ) -> Result<Self, LetterError> {
        Ok(Self {
            letters: DeadLetters::new(&config.kafka, dataset)?,
            dataset: dataset.clone(),
            chunk,
            kafka: kafka.clone(),
            archive,
            commit_every: config.archive.commit_every,
            cancel,
            confirmed: Held::default(),
            fresh: Held::default(),
            stall: Stall::new(&dataset.name),
            metrics: Metrics::new(&dataset.name),
        })
    }

    /// Runs until it is cancelled.
    pub(super) async fn run(mut self) {
        while let Some(topic) = self.find().await {
            let end = self.session(topic).await;
            tracing::debug!(dataset = self.dataset.name, ?end, "a session is over");
            if end == End::Cancelled {
                break;
            }
        }
    }

    /// The topic as it is, and the archive at its newest version; waits for both. Nothing when cancelled.
    async fn find(&mut self) -> Option<Topic> {
        let cancel = self.cancel.clone();
        loop {
            let found = tokio::select! {
                found = self.try_find() => found,
                () = cancel.cancelled() => return None,
            };
            match found {
                Ok(topic) => {
                    self.stall.over();
                    return Some(topic);
                }
                Err(trouble) => self.pause(&trouble).await?,
            }
        }
    }

    async fn try_find(&mut self) -> Result<Topic, Trouble> {
        let topic = self.kafka.topic(&self.dataset.topic).await?;
        self.archive.refresh().await?;
        Ok(topic)
    }

    /// Says what is wrong and waits; nothing when cancelled.
    async fn pause(&mut self, trouble: &Trouble) -> Option<()> {
        let wait = self.stall.wait(trouble);
        tokio::select! {
            () = sleep(wait) => Some(()),
            () = self.cancel.cancelled() => None,
        }
    }

    /// Reads and commits with one reader. What is held is committed, or known to be void, when it returns.
    async fn session(&mut self, topic: Topic) -> End {
        let options = ReaderOptions {
            dataset: &self.dataset,
            keys: &EnvironmentKeys,
            group: self.kafka.group("archive"),
            extra: true,
            keep_refused: true,
        };
        let mut reader = match Reader::start(&self.kafka, options, &self.cursors(topic)) {
            Ok(reader) => reader,
            Err(error) => {
                let paused = self.pause(&error.into()).await;
                return if paused.is_some() { End::Anew } else { End::Cancelled };
            }
        };
        let mut end = self.read(topic, &mut reader).await;
        if matches!(end, End::Cancelled | End::Anew) {
            // What is held needs no reader.
            if let Err(other) = self.settle(topic, &reader).await {
                end = other;
            }
        }
        if end == End::MadeAgain {
            let lost = std::mem::take(&mut self.fresh);
            if !lost.is_empty() {
                let (dataset, events) = (&self.dataset.name, lost.events);
                tracing::warn!(
                    dataset,
                    "topic {} was made again or deleted: {events} events that were read just then may be of either and \
                     are not archived; those of a new topic are read again",
                    self.dataset.topic
                );
            }
            if let Err(other) = self.settle(topic, &reader).await {
                end = other;
            }
        }
        if end == End::Overtaken {
            tracing::warn!(
                dataset = self.dataset.name,
                "another archiver has committed this dataset: reading again from where the archive stands; run one only"
            );
        }
        // Whatever is left is read again from the archive's ends.
        (self.confirmed, self.fresh) = (Held::default(), Held::default());
        reader.stop().await;
        end
    }

    /// Where each partition is to be read from; those whose log was cut off are not.
    fn cursors(&self, topic: Topic) -> BTreeMap<u32, Offset> {
        let is_cut_off = |number: u32| {
            let partition = Partition {
                topic: topic.id,
                number,
            };
            self.archive.truncated().contains_key(&partition)
        };
        for number in 0..topic.partitions {
            self.metrics.stuck(number, is_cut_off(number));
        }
        (0..topic.partitions)
            .filter(|number| !is_cut_off(*number))
            .map(|number| (number, self.end(topic, number)))
            .collect()
    }

    /// Where a partition's archive ends.
    fn end(&self, topic: Topic, number: u32) -> Offset {
        let partition = Partition {
            topic: topic.id,
            number,
        };
        self.archive.ends().get(&partition).copied().unwrap_or_default()
    }

    /// Reads, and commits now and then, until something else has to be done.
    async fn read(&mut self, topic: Topic, reader: &mut Reader) -> End {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let cancel = self.cancel.clone();
        // When what is held is to be committed; nothing while nothing is held.
        let mut due: Option<Instant> = None;
        loop {
            let held = self.confirmed.bytes + self.fresh.bytes;
            let commit = async move {
                match due {
                    _ if held >= HELD_MOST => {}
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return End::Cancelled,
                () = commit => {
                    if let Err(end) = self.settle(topic, reader).await {
                        return end;
                    }
                    due = None;
                }
                _ = look.tick() => {
                    if let Some(end) = self.look(topic, reader).await {
                        return end;
                    }
                }
                event = reader.next() => match self.take(topic, reader, event).await {
                    Ok(()) => due = due.or_else(|| (!self.fresh.is_empty()).then(|| Instant::now() + self.commit_every)),
                    Err(end) => return end,
                },
            }
        }
    }

    /// One event of the reader.
    async fn take(&mut self, topic: Topic, reader: &Reader, event: Option<Event>) -> Result<(), End> {
        let taken = match event {
            Some(Event::Slice(slice)) => self.fresh.add(topic.id, self.chunk, slice),
            Some(Event::Gap { partition, range }) => {
                tracing::warn!(
                    dataset = self.dataset.name,
                    "Kafka no longer has offsets {} to {} of partition {partition} of topic {}: the archive has a gap there",
                    range.from,
                    range.to,
                    self.dataset.topic
                );
                let number = partition;
                self.fresh.add_gap(
                    Partition {
                        topic: topic.id,
                        number,
                    },
                    self.chunk,
                    range,
                )
            }
            Some(Event::Short {
                is_certain,
                partition,
                cursor,
                end,
            }) => {
                if let Some(end) = self.look(topic, reader).await {
                    return Err(end);
                }
                if !is_certain {
                    self.is_cut_off(partition, cursor).await?;
                }
                return self.cut_off(topic, reader, partition, cursor, end).await;
            }
            None => {
                let trouble = match reader.failure() {
                    Some(failure) => failure.into(),
                    None => return Err(End::Anew),
                };
                return Err(if self.pause(&trouble).await.is_some() {
                    End::Anew
                } else {
                    End::Cancelled
                });
            }
        };
        match taken {
            Ok(()) => Ok(()),
            Err(broken) => Err(self.broken(broken)),
        }
    }

    /// Asks again whether the log ends below what was read.
    async fn is_cut_off(&mut self, number: u32, cursor: Offset) -> Result<(), End> {
        match self.kafka.still_ends_below(&self.dataset.topic, number, cursor).await {
            Ok(true) => {}
            // As far as before after all.
            Ok(false) => return Err(End::Anew),
            Err(error) => {
                let paused = self.pause(&error.into()).await;
                return Err(if paused.is_some() { End::Anew } else { End::Cancelled });
            }
        }
        Ok(())
    }

    /// The log ends below what was read. That is recorded for good: once the log has grown again nobody could tell that
    /// other records have these offsets now.
    async fn cut_off(
        &mut self,
        topic: Topic,
        reader: &Reader,
        number: u32,
        cursor: Offset,
        end: Offset,
    ) -> Result<(), End> {
        tracing::error!(
            dataset = self.dataset.name,
            "partition {number} of topic {} ends at offset {end}, and {cursor} was read before: Kafka has lost records that \
             are archived. It is archived no further; make the topic again to go on",
            self.dataset.topic
        );
        let partition = Partition {
            topic: topic.id,
            number,
        };
        if let Err(broken) = self.fresh.cut_off(partition, end, cursor) {
            return Err(self.broken(broken));
        }
        self.metrics.stuck(number, true);
        self.settle(topic, reader).await
    }

    /// What is held can't be used, and is read again.
    fn broken(&mut self, broken: Broken) -> End {
        let said = sentence(&broken);
        tracing::error!(
            dataset = self.dataset.name,
            "reading again from where the archive stands: {said}"
        );
        (self.confirmed, self.fresh) = (Held::default(), Held::default());
        End::Anew
    }

    /// Looks whether the topic is the same one still; what was read until then is confirmed.
    async fn look(&mut self, topic: Topic, reader: &Reader) -> Option<End> {
        self.show_lag(topic, reader);
        match self.kafka.topic(&self.dataset.topic).await {
            Ok(now) if now.id != topic.id => Some(End::MadeAgain),
            Ok(now) => {
                if let Err(broken) = self.confirm() {
                    return Some(self.broken(broken));
                }
                (now.partitions != topic.partitions).then_some(End::Anew)
            }
            Err(LogError::NoTopic { .. }) => Some(End::MadeAgain),
            // The reader tells when Kafka is away, and the next commit asks again.
            Err(error) => {
                tracing::debug!(%error, "the topic can't be looked at");
                None
            }
        }
    }

    fn confirm(&mut self) -> Result<(), Broken> {
        self.confirmed.append(self.chunk, std::mem::take(&mut self.fresh))
    }

    /// Commits what is held; tries until it succeeds, is cancelled, or can't any more. Once cancelled, it has
    /// [`LAST_COMMIT`] for one try.
    async fn settle(&mut self, topic: Topic, reader: &Reader) -> Result<(), End> {
        loop {
            let late = cancelled_long_ago(self.cancel.clone());
            let tried = tokio::select! {
                tried = self.try_settle(topic, reader) => tried,
                () = late => {
                    tracing::warn!(dataset = self.dataset.name, "the last commit took too long: it is read again next time");
                    return Err(End::Cancelled);
                }
            };
            let trouble = match tried {
                Ok(()) => {
                    self.stall.over();
                    return Ok(());
                }
                Err(Trouble::Archive(ArchiveError::Overtaken { .. })) => return Err(End::Overtaken),
                Err(Trouble::MadeAgain) => return Err(End::MadeAgain),
                Err(Trouble::Broken(broken)) => return Err(self.broken(broken)),
                Err(trouble) => trouble,
            };
            self.show_lag(topic, reader);
            if self.pause(&trouble).await.is_none() {
                return Err(End::Cancelled);
            }
        }
    }

    async fn try_settle(&mut self, topic: Topic, reader: &Reader) -> Result<(), Trouble> {
        if !self.fresh.is_empty() {
            match self.kafka.topic(&self.dataset.topic).await {
                Ok(now) if now.id == topic.id => self.confirm()?,
                Ok(_) | Err(LogError::NoTopic { .. }) => return Err(Trouble::MadeAgain),
                Err(error) => return Err(error.into()),
            }
        }
        if self.confirmed.is_empty() {
            return Ok(());
        }
        self.letters.deliver(&mut self.confirmed.letters).await?;
        let begun = Instant::now();
        self.archive.commit(&self.confirmed.commit).await?;
        self.metrics.commit_seconds.record(begun.elapsed());
        self.metrics.commits.increment(1);
        let committed = std::mem::take(&mut self.confirmed);
        self.metrics.events.increment(committed.events);
        for (reason, count) in &committed.refused {
            self.metrics.refused(*reason, *count);
        }
        let ends = committed.commit.ranges.iter();
        reader.commit(&ends.map(|(partition, range)| (partition.number, range.to)).collect());
        self.show_lag(topic, reader);
        Ok(())
    }

    fn show_lag(&self, topic: Topic, reader: &Reader) {
        for (number, log_end) in reader.log_ends() {
            self.metrics
                .lag(number, log_end.0.saturating_sub(self.end(topic, number).0));
        }
    }
}

/// Once a program that is to end has waited long enough for a last commit.
async fn cancelled_long_ago(cancel: CancellationToken) {
    cancel.cancelled_owned().await;
    sleep(LAST_COMMIT).await;
}
