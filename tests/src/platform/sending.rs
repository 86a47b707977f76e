//! What is sent, and what the oracle knows of it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::ensure;
use rdkafka::Message as _;
use rdkafka::producer::{DeliveryFuture, FutureRecord};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Event, Platform, lock};
use crate::stack::PATIENCE;

/// A stream sends so many events, then rests for [`PACE`].
const SENT_AT_ONCE: u64 = 20;
const PACE: Duration = Duration::from_millis(25);
/// So many wait for Kafka at most. On a busy machine more would be given up before their turn comes.
const MOST_WAITING: usize = 5_000;

impl Platform {
    /// Sends events, in order within a partition, and waits until Kafka has them. Repeats of what was sent change nothing
    /// that may be counted.
    pub async fn send(&self, events: impl IntoIterator<Item = Event>) -> anyhow::Result<()> {
        self.send_at(events.into_iter().map(|event| (event, None))).await
    }

    /// The same with the time that Kafka is to keep of each, in milliseconds since 1970; without it, now.
    pub async fn send_at(&self, events: impl IntoIterator<Item = (Event, Option<i64>)>) -> anyhow::Result<()> {
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            self.send_part(events.by_ref().take(MOST_WAITING).collect()).await?;
        }
        Ok(())
    }

    /// All at once, and what Kafka does not take all at once again: one by one each would wait for the one before.
    async fn send_part(&self, mut left: Vec<(Event, Option<i64>)>) -> anyhow::Result<()> {
        lock(&self.sent).extend(left.iter().map(|(event, _)| *event));
        let began = Instant::now();
        while !left.is_empty() {
            let mut waiting = Vec::with_capacity(left.len());
            for (event, time) in left.drain(..) {
                waiting.push((event, self.deliver(event.0, event.json().as_bytes(), time)?));
            }
            for (event, delivery) in waiting {
                match delivery.await? {
                    Ok(delivered) => {
                        let position = (u32::try_from(delivered.partition)?, u64::try_from(delivered.offset)?);
                        lock(&self.positions).entry(event).or_insert(position);
                    }
                    // It may be there all the same; sent again it is a repeat.
                    Err((error, message)) => {
                        ensure!(began.elapsed() < PATIENCE, "Kafka does not take events: {error}");
                        left.push((event, message.timestamp().to_millis()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends that many events that were not sent yet; how many were sent in all.
    pub async fn send_next(&self, count: u64) -> anyhow::Result<u64> {
        let from = self.next.fetch_add(count, Ordering::Relaxed);
        self.send((from..from + count).map(Event)).await?;
        Ok(from + count)
    }

    /// Streams events, some hundreds a second, for as long as that goes on.
    pub async fn while_streaming<T>(&self, doing: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let stop = CancellationToken::new();
        let doing = async {
            let done = doing.await;
            stop.cancel();
            done
        };
        let stream = async {
            while !stop.is_cancelled() {
                self.send_next(SENT_AT_ONCE).await?;
                tokio::time::sleep(PACE).await;
            }
            Ok(())
        };
        // What is under way arrives first, or the oracle would not know of it.
        let (done, ()) = tokio::try_join!(doing, stream)?;
        Ok(done)
    }

    /// All that was sent and may be counted.
    pub fn sent(&self) -> BTreeSet<Event> {
        lock(&self.sent).clone()
    }

    /// Sends bytes that are no event.
    pub async fn send_bad(&self, values: impl IntoIterator<Item = Vec<u8>>) -> anyhow::Result<()> {
        for value in values {
            self.deliver(0, &value, None)?.await?.map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    fn deliver(&self, key: u64, value: &[u8], time: Option<i64>) -> anyhow::Result<DeliveryFuture> {
        // The partition follows from the key alone, so that a repeat meets its first.
        let key = key.to_string();
        let mut record = FutureRecord::to(&self.topic).key(&key).payload(value);
        record.timestamp = time;
        self.producer.send_result(record).map_err(|(error, _)| error.into())
    }
}
