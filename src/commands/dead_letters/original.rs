//! The refused record itself: from its letter, or read again from where it lay.

use super::told;
use shared_connections::log::letters::records::Records;
use shared_connections::log::letters::{Letter, Record, letters_topic};
use shared_connections::log::{Kafka, LogError};

/// Reads originals of one topic.
pub(super) struct Originals {
    letters: Records,
    sources: Records,
}

/// A refused record.
pub(super) enum Original {
    /// As its letter has it, with the letter's headers beside its own.
    InLetter(Record),
    /// As it lies in its topic.
    AtSource(Record),
    /// Nowhere; why.
    Gone(String),
}

impl Originals {
    pub(super) fn of(kafka: &Kafka, topic: &str) -> Result<Self, LogError> {
        Ok(Self {
            letters: Records::of(kafka, &letters_topic(topic))?,
            sources: Records::of(kafka, topic)?,
        })
    }

    /// The letter as it lies in its topic.
    pub(super) fn letter(&mut self, letter: &Letter) -> Result<Option<Record>, LogError> {
        self.letters.get(letter.partition, letter.offset)
    }

    /// The record that the letter is about.
    ///
    /// # Errors
    /// Kafka's; a record that it no longer has is none.
    pub(super) fn get(&mut self, letter: &Letter) -> Result<Original, LogError> {
        if letter.value_bytes.is_some() {
            let found = self.letter(letter)?;
            return Ok(found.map_or_else(
                || Original::Gone("Kafka has just let go of its dead letter".to_owned()),
                Original::InLetter,
            ));
        }
        let source = &letter.source;
        let found = match self.sources.get(source.partition, source.offset) {
            Err(LogError::NoTopic { .. } | LogError::NoPartition { .. }) => None,
            found => found?,
        };
        Ok(match found {
            None => Original::Gone("its letter has no value, and Kafka no longer has the record".to_owned()),
            // In a topic that was made again another record lies there.
            Some(record) if record.kafka_time.and_then(told::moment) != letter.source_time => Original::Gone(
                "its letter has no value, and another record lies there now: the topic was made again".to_owned(),
            ),
            Some(record) => Original::AtSource(record),
        })
    }
}
