//! A topic's id, which only librdkafka's C interface tells.
//!
//! Kafka numbers each incarnation of a topic with a UUID. Nothing else tells a topic that was deleted and made again from
//! the one before: the name is the same, and so may the offsets be.

use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use shared_schemas::handoff::TopicId;

use super::kafka::Topic;

/// Something of librdkafka's that is freed when this is dropped.
struct Owned<T> {
    raw: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// `raw` must be null, or what `free` takes, and nobody else's to free.
    fn new(raw: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, free })
    }

    fn raw(&self) -> *mut T {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: `new` was given what `free` takes, and it is freed here and nowhere else.
        unsafe {
            (self.free)(self.raw());
        }
    }
}

/// Asks the cluster for the topic's id and number of partitions. Blocks for at most about `patience`.
pub(super) fn describe<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    patience: Duration,
) -> Result<Topic, KafkaError> {
    let name = CString::new(topic)?;
    let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
    let unable = || KafkaError::AdminOpCreation(format!("can't ask for topic {topic}"));
    let rk = client.client().native_ptr();
    let mut names = [name.as_ptr()];

    #[expect(unsafe_code, reason = "calls into librdkafka")]
    // SAFETY: `rk` lives as long as `client`; `names` holds one C string, which is copied. What is made here is freed by
    // `Owned`, in the reverse order, so the queue outlives the event and the client all of them.
    let (queue, options, topics) = unsafe {
        (
            Owned::new(sys::rd_kafka_queue_new(rk), sys::rd_kafka_queue_destroy).ok_or_else(unable)?,
            Owned::new(
                sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
                sys::rd_kafka_AdminOptions_destroy,
            )
            .ok_or_else(unable)?,
            Owned::new(
                sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
                sys::rd_kafka_TopicCollection_destroy,
            )
            .ok_or_else(unable)?,
        )
    };
    #[expect(unsafe_code, reason = "calls into librdkafka")]
    // SAFETY: all four are alive; null and 0 say that no error text is wanted. The request keeps copies of the options
    // and of the names, and a reference to the queue.
    let answer = unsafe {
        let set = sys::rd_kafka_AdminOptions_set_request_timeout(options.raw(), millis, ptr::null_mut(), 0);
        failed(set)?;
        sys::rd_kafka_DescribeTopics(rk, topics.raw(), options.raw(), queue.raw());
        // The request ends by itself when its time is over; the second more is for its answer.
        let event = sys::rd_kafka_queue_poll(queue.raw(), millis.saturating_add(1000));
        Owned::new(event, sys::rd_kafka_event_destroy)
    };
    read(&answer.ok_or(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut))?)
}

fn read(answer: &Owned<sys::rd_kafka_event_t>) -> Result<Topic, KafkaError> {
    let unreadable = || KafkaError::AdminOp(RDKafkaErrorCode::Unknown);
    #[expect(unsafe_code, reason = "calls into librdkafka")]
    // SAFETY: everything that is read here belongs to the event, which is alive. The result is null where the event is
    // another one's; the array of topics has `count` entries, of which the first is read if there is one; a description
    // has an error or is whole.
    unsafe {
        failed(sys::rd_kafka_event_error(answer.raw()))?;
        let result = sys::rd_kafka_event_DescribeTopics_result(answer.raw());
        if result.is_null() {
            return Err(unreadable());
        }
        let mut count = 0;
        let descriptions = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count == 0 || descriptions.is_null() {
            return Err(unreadable());
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() {
            failed(sys::rd_kafka_error_code(error))?;
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        let (most, least) = (
            sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned(),
            sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned(),
        );
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(description, &raw mut partitions);
        Ok(Topic {
            id: TopicId((u128::from(most) << 64) | u128::from(least)),
            partitions: u32::try_from(partitions).map_err(|_| unreadable())?,
        })
    }
}

fn failed(code: RDKafkaRespErr) -> Result<(), KafkaError> {
    match code {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(KafkaError::AdminOp(code.into())),
    }
}
