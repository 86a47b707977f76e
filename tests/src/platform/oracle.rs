//! What the merged answer may be: never more than was sent, never less than the layers promised, in the end all of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use shared_connections::log::Kafka;
use shared_connections::store::Facts;
use shared_schemas::handoff::{ChunkSize, Mark, Offset, Partition, TopicId};
use tokio::time::Instant;

use super::{Cells, POLL, Platform, cells, lock, total};
use crate::stack::PATIENCE;

/// Between two looks of the watch, at least; with many events twice as long as a look takes, or it would take a processor.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How an answer differs from what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference {
    /// Events that are missing.
    pub lost: u64,
    /// Events that count twice, or were never sent.
    pub doubled: u64,
}

impl Difference {
    /// Of an answer. Cells of as many events as there should be that hold others lost one and doubled one at least.
    pub fn of(expected: &Cells, answer: &Cells) -> Self {
        let mut difference = Self::default();
        let all: std::collections::BTreeSet<_> = expected.keys().chain(answer.keys()).collect();
        for cell in all {
            let [(right, sum), (now, sum_now)] =
                [expected, answer].map(|cells| cells.get(cell).copied().unwrap_or_default());
            difference.lost += right.saturating_sub(now);
            difference.doubled += now.saturating_sub(right);
            if right == now && sum != sum_now {
                difference.lost += 1;
                difference.doubled += 1;
            }
        }
        difference
    }
}

/// What the layers promise of each partition: everything below this offset is counted, under that mark.
type Promise = BTreeMap<u32, (Mark, Offset)>;

impl Platform {
    /// Waits until the merged answer is all that was sent, cell by cell, and the view `daily` adds up to it too. It never
    /// is more on the way. How long it took.
    pub async fn until_whole(&self) -> anyhow::Result<Duration> {
        let expected = cells(&self.sent());
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let now = self.answer("merged").await?;
            if now == expected && self.daily().await? == total(&expected) {
                return Ok(began.elapsed());
            }
            let difference = Difference::of(&expected, &now);
            never_more(&expected, &now)?;
            if began.elapsed() > PATIENCE {
                bail!(
                    "{:?} of {:?}, {difference:?}, as {}{}",
                    total(&now),
                    total(&expected),
                    most_wrong(&expected, &now),
                    self.said()
                );
            }
            // A third of the time at most goes into asking: who is to catch up needs the processor too.
            tokio::time::sleep(POLL.max(2 * asked.elapsed())).await;
        }
    }

    /// How the answer differs now from what was sent.
    pub async fn difference(&self) -> anyhow::Result<Difference> {
        Ok(Difference::of(&cells(&self.sent()), &self.answer("merged").await?))
    }

    /// How many events the view `daily` counts, and the sum of their values.
    async fn daily(&self) -> anyhow::Result<(u64, i64)> {
        let path = "/api/v1/views/daily/query?from=2012-12-01T00:00:00Z&to=2020-01-01T00:00:00Z&measures=events,value";
        let answer = self.ask(path).await?;
        let row = &answer["data"][0];
        let value = row["value"].as_str().map_or(Ok(0), str::parse)?;
        Ok((row["events"].as_u64().unwrap_or_default(), value))
    }

    /// Does that while the merged answer is watched: it never has more than was sent, never less than was promised, and
    /// what is promised never goes back. A store that gives no answer is waited for.
    pub async fn watched<T>(&self, doing: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            done = doing => done,
            broken = self.watch() => match broken? {},
        }
    }

    async fn watch(&self) -> anyhow::Result<Infallible> {
        let kafka = Kafka::new(&self.config.kafka)?;
        // Kafka may be what is away.
        let topic = loop {
            if let Ok(topic) = kafka.topic(&self.topic).await {
                break topic.id;
            }
        };
        let mut before: Option<Promise> = None;
        let mut looked = Duration::ZERO;
        loop {
            tokio::time::sleep(LOOK_AGAIN.max(3 * looked)).await;
            let began = Instant::now();
            let Ok(promise) = self.promise(topic).await else {
                continue;
            };
            for (number, (mark, open)) in &promise {
                let earlier = before.as_ref().and_then(|before| before.get(number));
                ensure!(
                    earlier.is_none_or(|(mark_then, open_then)| mark != mark_then || open >= open_then),
                    "partition {number}: {open:?} is promised, {earlier:?} was"
                );
            }
            let answer = self.answer("merged").await;
            // A publication between the two may have taken the place of what was promised.
            let (Ok(answer), Ok(after)) = (answer, self.promise(topic).await) else {
                before = Some(promise);
                continue;
            };
            never_more(&cells(&self.sent()), &answer)?;
            never_less(&self.promised(&promise, &after), &answer)?;
            before = Some(after);
            looked = began.elapsed();
        }
    }

    async fn promise(&self, topic: TopicId) -> anyhow::Result<Promise> {
        let view = self.definitions.views.iter().find(|view| view.name == "hourly");
        let facts: Facts = self.store().facts(view.context("no view hourly")?).await?;
        let chunk = ChunkSize::new(self.definitions.datasets[0].chunk)?;
        let of = |number: u16| {
            let number = u32::from(number);
            let partition = Partition { topic, number };
            let mark = facts.mark(partition);
            (number, (mark, facts.progress(partition).coverage(mark, chunk).covered))
        };
        Ok((0..self.definitions.datasets[0].partitions).map(of).collect())
    }

    /// What must be counted where both promises hold.
    fn promised(&self, one: &Promise, other: &Promise) -> Cells {
        let below = |(number, offset): &(u32, u64)| {
            [one, other]
                .iter()
                .all(|promise| promise.get(number).is_some_and(|(_, open)| *offset < open.0))
        };
        let positions = lock(&self.positions);
        let promised = positions.iter().filter(|(_, position)| below(position));
        cells(promised.map(|(event, _)| event))
    }
}

/// A cell of an answer that is wrong, with what it is and what it should be.
fn most_wrong(expected: &Cells, answer: &Cells) -> String {
    let all = expected.keys().chain(answer.keys());
    let wrong = all.map(|cell| (cell, answer.get(cell), expected.get(cell)));
    let wrong = wrong.into_iter().find(|(_, now, right)| now != right);
    format!("{wrong:?}")
}

fn never_more(sent: &Cells, answer: &Cells) -> anyhow::Result<()> {
    for (cell, (events, _)) in answer {
        let most = sent.get(cell).map_or(0, |(events, _)| *events);
        ensure!(*events <= most, "{cell:?} has {events} events, {most} were sent");
    }
    Ok(())
}

fn never_less(promised: &Cells, answer: &Cells) -> anyhow::Result<()> {
    for (cell, (events, _)) in promised {
        let now = answer.get(cell).map_or(0, |(events, _)| *events);
        ensure!(now >= *events, "{cell:?} has {now} events, {events} were promised");
    }
    Ok(())
}
