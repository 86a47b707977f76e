//! A record's headers, read from librdkafka's own memory.
//!
//! Not with `rdkafka`'s `BorrowedHeaders`: that panics where a header's name is not UTF-8, and anybody who may write to
//! a topic could stop its readers so.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use rdkafka::bindings as sys;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use shared_schemas::decode::Headers;

const FOUND: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A message in librdkafka's memory. Only for those that really are: what is read from the pointer rests on it.
pub(super) trait Held {
    /// It lives, unchanged, as long as `self`.
    fn message(&self) -> *mut sys::rd_kafka_message_t;
}

impl Held for BorrowedMessage<'_> {
    fn message(&self) -> *mut sys::rd_kafka_message_t {
        self.ptr()
    }
}

/// The headers of one record, looked for when asked.
pub(super) struct MessageHeaders<'a, M>(pub(super) &'a M);

impl<M: Held> MessageHeaders<'_, M> {
    /// All of them, in their order; names that are not UTF-8 lossily.
    pub(super) fn all(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let Some(headers) = self.raw() else {
            return Vec::new();
        };
        let one = |index| {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            #[expect(unsafe_code, reason = "calls into librdkafka")]
            // SAFETY: the headers belong to the message, which `self` borrows. When one is found its name is a C string
            // and its value null or `size` bytes; both are copied here.
            unsafe {
                let found = sys::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size);
                (found == FOUND).then(|| {
                    let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                    (name, bytes(value, size).map(<[u8]>::to_vec))
                })
            }
        };
        (0..).map_while(one).collect()
    }

    fn raw(&self) -> Option<*mut sys::rd_kafka_headers_t> {
        let mut headers = ptr::null_mut();
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the message is alive; the headers stay its own.
        let found = unsafe { sys::rd_kafka_message_headers(self.0.message(), &raw mut headers) };
        (found == FOUND && !headers.is_null()).then_some(headers)
    }
}

impl<M: Held> Headers for MessageHeaders<'_, M> {
    fn last(&self, name: &str) -> Option<Option<&[u8]>> {
        let name = CString::new(name).ok()?;
        let headers = self.raw()?;
        let (mut value, mut size) = (ptr::null(), 0);
        #[expect(unsafe_code, reason = "a call into librdkafka")]
        // SAFETY: the headers belong to the message, which `self` borrows for as long as the value is; the name is a C
        // string that outlives the call.
        unsafe {
            let found = sys::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut size);
            (found == FOUND).then(|| bytes(value, size))
        }
    }
}

/// Bytes of a message: its key, its value, or that of a header.
///
/// # Safety
/// `value` is null or points to `size` bytes that live as long as `'a`.
#[expect(unsafe_code, reason = "its caller knows how long the bytes live")]
pub(super) unsafe fn bytes<'a>(value: *const c_void, size: usize) -> Option<&'a [u8]> {
    if value.is_null() {
        return None;
    }
    // SAFETY: as this function's caller promises.
    Some(unsafe { std::slice::from_raw_parts(value.cast(), size) })
}
