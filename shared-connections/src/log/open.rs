//! The slice that is being filled for one partition, and the partition's cursor.

use shared_schemas::decode::{Decoder, Record};
use shared_schemas::handoff::{Offset, OffsetRange};

use super::batch::Message;
use super::headers::MessageHeaders;
use super::kafka::offset;
use super::slice::{Outcome, ReadRecord, Refused, Slice};

/// One partition as it is read.
pub(super) struct OpenSlice {
    partition: u32,
    /// Which reading of the partition this is: it may be given up and begun anew.
    generation: u64,
    /// What was handed over ends here.
    from: Offset,
    /// The last delivered record's offset + 1.
    next: Offset,
    decoder: Decoder,
    records: Vec<ReadRecord>,
    /// Where refused records are kept.
    refused: Option<Vec<Refused>>,
}

impl OpenSlice {
    pub(super) fn new(partition: u32, generation: u64, cursor: Offset, decoder: Decoder, keep_refused: bool) -> Self {
        Self {
            partition,
            generation,
            from: cursor,
            next: cursor,
            decoder,
            records: Vec::new(),
            refused: keep_refused.then(Vec::new),
        }
    }

    /// Kafka's partition number.
    pub(super) fn partition(&self) -> u32 {
        self.partition
    }

    /// Which reading of the partition this is.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// From which offset on nothing was delivered yet.
    pub(super) fn cursor(&self) -> Offset {
        self.next
    }

    /// Reads one record. One below the cursor was delivered before (librdkafka goes back after a new assignment), and is
    /// passed over: then false.
    pub(super) fn push(&mut self, message: Message<'_>) -> bool {
        let at = offset(message.offset());
        if at < self.next {
            return false;
        }
        let headers = MessageHeaders(&message);
        let kafka_time = message.timestamp();
        let read = self.decoder.push(&Record {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: kafka_time,
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        });
        let outcome = match read {
            Ok(()) => Outcome::Accepted,
            Err(refusal) => {
                let reason = refusal.reason;
                if let Some(refused) = &mut self.refused {
                    refused.push(Refused {
                        offset: at,
                        kafka_time,
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: headers.all(),
                        reason,
                        detail: refusal.detail,
                    });
                }
                Outcome::Refused(reason)
            }
        };
        self.records.push(ReadRecord {
            offset: at,
            kafka_time,
            outcome,
        });
        self.next = at.next();
        true
    }

    /// The slice so far, none without records; the next one follows on it.
    pub(super) fn close(&mut self) -> Option<Slice> {
        if self.records.is_empty() {
            return None;
        }
        let slice = Slice {
            partition: self.partition,
            from: self.from,
            next: self.next,
            batches: self.decoder.finish(),
            records: std::mem::take(&mut self.records),
            refused: self.refused.as_mut().map(std::mem::take).unwrap_or_default(),
        };
        self.from = self.next;
        Some(slice)
    }

    /// Goes on at `to`: the log has nothing below. Only where the slice is closed.
    pub(super) fn skip(&mut self, to: Offset) {
        self.from = to;
        self.next = to;
    }
}

/// How a cursor stands to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The log goes on from it.
    Within,
    /// The log begins above it: it no longer has this.
    Below(OffsetRange),
    /// The log ends below it, there.
    Beyond(Offset),
}

/// How the cursor stands to the log.
pub(super) fn standing(cursor: Offset, log: OffsetRange) -> Standing {
    if cursor < log.from {
        Standing::Below(OffsetRange {
            from: cursor,
            to: log.from,
        })
    } else if cursor > log.to {
        Standing::Beyond(log.to)
    } else {
        Standing::Within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_may_stand_at_either_end_of_the_log() {
        let range = |from, to| OffsetRange {
            from: Offset(from),
            to: Offset(to),
        };
        assert_eq!(standing(Offset(5), range(5, 9)), Standing::Within);
        assert_eq!(standing(Offset(9), range(5, 9)), Standing::Within);
        assert_eq!(standing(Offset(4), range(5, 9)), Standing::Below(range(4, 5)));
        assert_eq!(standing(Offset(10), range(5, 9)), Standing::Beyond(Offset(9)));
        assert_eq!(standing(Offset(0), range(0, 0)), Standing::Within);
    }
}
