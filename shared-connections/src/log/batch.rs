//! Messages from librdkafka many at a time: the one safe way in this crate to `rd_kafka_consume_batch_queue`.
//!
//! `rdkafka` hands over one message at a time, and makes an event, a reference count and two looks at the clock for each.
//! Here a batch is taken with one call, read where librdkafka holds it, and given back as a whole.
//!
//! Only for consumers whose partitions are assigned by hand. What a group would have to say (a rebalance) comes as an event
//! that this call does not deliver; librdkafka would drop the partitions by itself. Errors of partitions come as messages
//! that hold an error; other errors go to the client's context, and fatal ones stay to be asked for.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{IsError, KafkaError};

use super::headers::{Held, bytes};
use super::kafka::Listener;

/// The most messages that one call takes.
pub(super) const MOST: usize = 2_048;

/// The queue of a consumer.
pub(super) struct Queue {
    /// Outlives the queue: fields are dropped in this order, after `drop` below.
    consumer: Arc<BaseConsumer<Listener>>,
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// Room for a batch.
    taken: Vec<*mut sys::rd_kafka_message_t>,
}

/// Messages that were taken; they are given back when this is dropped.
pub(super) struct Batch<'a> {
    taken: &'a [*mut sys::rd_kafka_message_t],
}

/// One message of a batch, without an error.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    raw: NonNull<sys::rd_kafka_message_t>,
    batch: PhantomData<&'a Batch<'a>>,
}

impl Queue {
    /// The consumer's queue; an error where it has none, which is so without a group id.
    pub(super) fn of(consumer: &Arc<BaseConsumer<Listener>>) -> Result<Self, KafkaError> {
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the client is alive. The queue is a reference of our own, given back in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        let none = || KafkaError::ClientCreation("the consumer has no queue".to_owned());
        Ok(Self {
            consumer: Arc::clone(consumer),
            queue: NonNull::new(queue).ok_or_else(none)?,
            taken: vec![ptr::null_mut(); MOST],
        })
    }

    /// Takes what is there, `most` messages at most. Waits for so many, no longer than `wait`: a first message is best
    /// waited for alone.
    pub(super) fn take(&mut self, most: usize, wait: Duration) -> Batch<'_> {
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let room = &mut self.taken[..most.clamp(1, MOST)];
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the queue is alive, and the room is as large as is said. What is put there is ours until it is destroyed,
        // once, when the batch is dropped; the queue can't be used or dropped before.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), wait, room.as_mut_ptr(), room.len()) };
        // Negative where nothing could be taken.
        let count = usize::try_from(count).unwrap_or_default().min(room.len());
        Batch { taken: &room[..count] }
    }

    /// Why librdkafka will never deliver anything again, if it is so.
    pub(super) fn fatal(&self) -> Option<KafkaError> {
        let (code, why) = self.consumer.client().fatal_error()?;
        tracing::debug!(?code, why, "librdkafka");
        Some(KafkaError::MessageConsumptionFatal(code))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the reference is ours, and is given back once; the client is alive, `consumer` holds it.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

impl<'a> Batch<'a> {
    /// The messages, and errors that came in place of one with the partition they are about, in their order.
    pub(super) fn messages(&'a self) -> impl Iterator<Item = Result<Message<'a>, (i32, KafkaError)>> {
        self.taken.iter().filter_map(|raw| NonNull::new(*raw)).map(|raw| {
            let message = Message {
                raw,
                batch: PhantomData,
            };
            let error = message.read().err;
            if error.is_error() {
                Err((message.partition(), KafkaError::MessageConsumption(error.into())))
            } else {
                Ok(message)
            }
        })
    }

    /// How many came, errors too.
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// Whether nothing came.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for raw in self.taken {
            #[expect(unsafe_code, reason = "a call into librdkafka")]
            // SAFETY: the message was taken by us and is destroyed here only; nothing borrows the batch any more.
            unsafe {
                sys::rd_kafka_message_destroy(*raw);
            }
        }
    }
}

impl<'a> Message<'a> {
    fn read(&self) -> &'a sys::rd_kafka_message_t {
        #[expect(unsafe_code, reason = "reads librdkafka's memory")]
        // SAFETY: the message lives, unchanged, until the batch is dropped, which `'a` ends before.
        unsafe {
            self.raw.as_ref()
        }
    }

    pub(super) fn partition(&self) -> i32 {
        self.read().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.read().offset
    }

    /// Its Kafka timestamp in milliseconds since 1970.
    pub(super) fn timestamp(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the message is alive, and `kind` is written only.
        let timestamp = unsafe { sys::rd_kafka_message_timestamp(self.raw.as_ptr(), &raw mut kind) };
        let known = kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        (known && timestamp != -1).then_some(timestamp)
    }

    pub(super) fn key(&self) -> Option<&'a [u8]> {
        let message = self.read();
        #[expect(unsafe_code, reason = "reads librdkafka's memory")]
        // SAFETY: a key is null or has that length, and lives as long as its message: longer than `'a`.
        unsafe {
            bytes(message.key, message.key_len)
        }
    }

    pub(super) fn payload(&self) -> Option<&'a [u8]> {
        let message = self.read();
        #[expect(unsafe_code, reason = "reads librdkafka's memory")]
        // SAFETY: a value is null or has that length, and lives as long as its message: longer than `'a`.
        unsafe {
            bytes(message.payload, message.len)
        }
    }

    /// The bytes of key and value.
    pub(super) fn size(&self) -> usize {
        let message = self.read();
        message.key_len + message.len
    }
}

impl Held for Message<'_> {
    fn message(&self) -> *mut sys::rd_kafka_message_t {
        self.raw.as_ptr()
    }
}
