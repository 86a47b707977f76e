//! Waits for the speed layer at the cuts, publishes, and reads back.
//!
//! Whether a publication may go out, and how it stands afterwards, is `shared_schemas::handoff`'s to say; here is what
//! happens around that. A run that does not know whether its row arrived sends the same row again, and keeps its cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared_connections::log::Kafka;
use shared_connections::store::{Facts, Origin, Published, Store, StoreError};
use shared_schemas::dataset::Dataset;
use shared_schemas::handoff::marks::CUT_SETTLES;
use shared_schemas::handoff::{
    ChunkSize, CutState, Floor, Mark, Offset, Partition, Publication, Standing, Verdict, cut_state, may_publish, newest,
};
use shared_schemas::view::View;
use tokio::time::Instant;

use crate::error::RunError;
use crate::progress::{Step, Watcher};
use crate::retry::patiently;

/// How often a run looks whether its cuts are ready. Workers look for cuts every second.
const LOOKS: Duration = Duration::from_millis(250);
/// How often the same row is sent again while it is not known whether it arrived, with [`PAUSE`] in between.
const SENDS: u32 = 8;
const PAUSE: Duration = Duration::from_secs(2);

/// One view, and where its facts are.
pub(crate) struct Place<'a> {
    pub(crate) store: &'a Store,
    pub(crate) kafka: &'a Kafka,
    pub(crate) view: &'a View,
    pub(crate) dataset: &'a Dataset,
    pub(crate) chunk: ChunkSize,
    pub(crate) watcher: &'a dyn Watcher,
}

/// What became of a publication that was computed.
#[derive(Debug)]
pub(crate) enum Waited {
    /// It may go out.
    Publish,
    /// These cuts are not ready and will not be in time.
    FallBack(BTreeSet<Partition>),
    /// It was made on what no longer answers.
    StartOver,
}

/// What became of a publication that was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It answers, or lives on in what was built on it.
    Published,
    /// Another one answers.
    Beaten,
}

impl Place<'_> {
    /// Waits until the publication may go out, or never may. The cuts among its marks were asked for at `asked`.
    ///
    /// # Errors
    /// The store's, when it has been away for too long.
    pub(crate) async fn wait(
        &self,
        publication: &Publication,
        cuts: &BTreeMap<Partition, Mark>,
        asked: Instant,
        cut_wait: Duration,
    ) -> Result<Waited, StoreError> {
        let began = Instant::now();
        loop {
            let facts = patiently(|| self.store.facts(self.view)).await?;
            let mut states = BTreeMap::new();
            for (partition, mark) in cuts {
                states.insert(
                    *partition,
                    self.state(&facts, *partition, *mark, asked.elapsed()).await?,
                );
            }
            let parent = facts.newest().map(|newest| &newest.publication);
            let waited = began.elapsed() >= cut_wait;
            match may_publish(publication, parent, &facts.floor, self.chunk, &states, waited) {
                Verdict::Publish => return Ok(Waited::Publish),
                Verdict::StartOver => return Ok(Waited::StartOver),
                Verdict::FallBack => {
                    let behind = states.iter().filter(|(_, state)| **state != CutState::Ready);
                    return Ok(Waited::FallBack(behind.map(|(partition, _)| *partition).collect()));
                }
                Verdict::Wait => {
                    let behind = states.values().filter(|state| **state != CutState::Ready).count();
                    let left = cut_wait.saturating_sub(began.elapsed());
                    self.watcher.step(&self.view.name, &Step::Waits { cuts: behind, left });
                }
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    /// The state of one cut. What is dear to know is asked only where it could decide.
    async fn state(
        &self,
        facts: &Facts,
        partition: Partition,
        mark: Mark,
        asked_for: Duration,
    ) -> Result<CutState, StoreError> {
        if asked_for < CUT_SETTLES {
            return Ok(CutState::Waiting);
        }
        let progress = facts.progress(partition);
        let from = facts.floor.mark(partition).start();
        let highest = if progress.highest_next().is_some_and(|next| next > mark.0) {
            None
        } else {
            patiently(|| self.store.highest_version(self.view, partition, from)).await?
        };
        let state = |log_start| cut_state(mark, asked_for, &progress, highest, log_start, self.chunk);
        match state(Offset::default()) {
            CutState::Waiting => Ok(state(self.log_start(partition).await)),
            state => Ok(state),
        }
    }

    /// The first offset that the log still has: none of a topic that was made again; 0 where Kafka does not say, since
    /// then nothing is known to be lost.
    async fn log_start(&self, partition: Partition) -> Offset {
        let name = &self.dataset.topic;
        let start = async {
            let topic = self.kafka.topic(name).await?;
            if topic.id != partition.topic {
                return Ok(Offset(u64::MAX));
            }
            self.kafka
                .bounds(name, partition.number)
                .await
                .map(|bounds| bounds.from)
        };
        start.await.unwrap_or_else(|error: shared_connections::log::LogError| {
            tracing::debug!(%error, "where the log begins is not known");
            Offset::default()
        })
    }
}

/// Sends a publication until it is known what became of it. Not to be cancelled on the way: it would not be known.
///
/// # Errors
/// [`RunError::Unsure`] if it can't be found out; the cuts then stay.
pub(crate) async fn send(
    store: &Store,
    view: &View,
    publication: &Publication,
    origin: &Origin,
) -> Result<Sent, RunError> {
    let unsure = |source| RunError::Unsure {
        number: publication.number,
        source,
    };
    let mut sends = 0;
    loop {
        sends += 1;
        let sent = store.publish(view, publication, origin).await;
        let Line { all, floor, .. } = line(store, view).await.map_err(unsure)?;
        match Standing::of(publication, &all, &floor) {
            Standing::Newest | Standing::Succeeded => return Ok(Sent::Published),
            Standing::Beaten => {}
        }
        let Err(error) = sent else {
            return Ok(Sent::Beaten);
        };
        // It may arrive all the same. While what it was made on still answers, the same row is sent again.
        let arrived = all.iter().any(|other| other.key() == publication.key());
        let on_newest = newest(&all, &floor).map(Publication::key) == publication.parent && floor.admits(publication);
        if arrived || !on_newest {
            return Ok(Sent::Beaten);
        }
        if sends == SENDS || !error.is_passing() {
            return Err(unsure(error));
        }
        tracing::debug!(%error, "sending the publication again");
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a view has published, and the floor.
pub(crate) struct Line {
    /// As they stand in the store, ascending.
    pub(crate) published: Vec<Published>,
    /// The publications among it, in the same order.
    pub(crate) all: Vec<Publication>,
    pub(crate) floor: Floor,
}

/// Reads them.
pub(crate) async fn line(store: &Store, view: &View) -> Result<Line, StoreError> {
    let floor = patiently(|| store.floor(view)).await?;
    let published = patiently(|| store.publications(view)).await?;
    let all = published.iter().map(|one| one.publication.clone()).collect();
    Ok(Line { published, all, floor })
}
