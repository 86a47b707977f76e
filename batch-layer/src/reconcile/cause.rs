//! Why a difference is there: the causes, and what proves each.
//!
//! A cause excuses a difference only where it is proved: the store holds just what the layers' own rules give of the archived
//! events, and the events that make the difference are found, each with its class. What is left is unexplained: rows that
//! were lost, doubled or changed.

use std::collections::BTreeMap;

use serde::Serialize;
use shared_schemas::view::View;

use super::classes::Class;
use super::compare::{Cells, Compare, Difference, measures};
use shared_schemas::handoff::EventDay;

/// Why the answer is not what the archive gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The same partition held the event before, longer ago than the speed layer remembers, in time or in memory.
    RepeatBeyondWindow,
    /// Another partition held the event.
    RepeatAcrossPartitions,
    /// A sketch's estimate, within its stated bound.
    Estimate,
    /// Sums of doubles in another order, within their bound.
    Rounding,
    /// The speed layer lacks offsets that Kafka no longer had; the archive holds them.
    Gap,
    /// The layers read the offsets under different rules, or masked them with different keys.
    DefinitionChanged,
    /// Nothing explains it.
    #[default]
    Unexplained,
}

impl Cause {
    /// The cause in words, as a part of a sentence.
    pub fn says(self) -> &'static str {
        match self {
            Self::RepeatBeyondWindow => {
                "the event is repeated in its partition, longer ago than the speed layer remembers; the next batch run \
                 drops it"
            }
            Self::RepeatAcrossPartitions => {
                "the event is repeated in another partition, which the speed layer cannot know; the next batch run drops it"
            }
            Self::Estimate => "an estimate, within its stated bound",
            Self::Rounding => "rounding, within its bound",
            Self::Gap => "the speed layer came when Kafka no longer had the events; the next batch run counts them",
            Self::DefinitionChanged => "the layers read these offsets under different rules",
            Self::Unexplained => "unexplained",
        }
    }
}

/// What the events of one cause contribute to a measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contribution {
    /// Why they are counted, or not.
    pub cause: Cause,
    /// Their state: `sum=12 count=3`. Of a gap it is what the answer lacks, otherwise what it has too much.
    pub state: String,
}

/// The cells of each class, those that the layers count by their rules, and those that do.
pub(crate) struct Proof {
    pub(crate) classes: BTreeMap<Class, Cells>,
    /// All that the layers count: kept events and repeats.
    pub(crate) counted: Cells,
}

/// Which cause a class stands for.
fn cause_of(class: Class) -> Option<Cause> {
    match class {
        Class::Beyond | Class::Known => Some(Cause::RepeatBeyondWindow),
        Class::Across => Some(Cause::RepeatAcrossPartitions),
        Class::Gap => Some(Cause::Gap),
        Class::Kept | Class::Dropped => None,
    }
}

impl Compare {
    /// Puts each difference that a rule can explain down to its causes, as far as events prove them; others are unexplained.
    pub(crate) fn prove(&mut self, view: &View, held: &Cells, proof: &Proof) {
        let measures = measures(view);
        for difference in &mut self.different {
            let Some(measure) = measures.iter().find(|measure| measure.name == difference.measure) else {
                continue;
            };
            if difference.explained.take().is_none() {
                continue;
            }
            let key = &difference.cell;
            let at = |cells: &Cells| key.as_ref().and_then(|key| cells.at(key));
            let counted = (&proof.counted, at(&proof.counted));
            let row = (held, at(held));
            let is_proved = if row.1.is_none() && counted.1.is_none() {
                proof.classes.get(&Class::Gap).is_some_and(|gap| at(gap).is_some())
            } else {
                measure.is_equal(row.0, row.1, counted.0, counted.1)
            };
            if !is_proved {
                continue;
            }
            for class in [Class::Beyond, Class::Across, Class::Gap] {
                let Some(cells) = proof.classes.get(&class) else {
                    continue;
                };
                if let (Some(at), Some(cause)) = (at(cells), cause_of(class)) {
                    difference.contributions.push(Contribution {
                        cause,
                        state: measure.shown(cells, at),
                    });
                }
            }
            // Copies that say different things: the answer counts one of them, the archive's rule another.
            let cause = difference.contributions.first().map(|one| one.cause);
            difference.set(cause.unwrap_or(Cause::RepeatAcrossPartitions));
        }
    }
}

impl Difference {
    /// Whether wrong batch rows make it, or may make it.
    pub(crate) fn is_of_batch(&self) -> bool {
        let placed = self.place.iter().any(|place| place.layer == "batch");
        let may_be = self.place.is_empty() && self.layer != Some("speed") && self.unproved.is_none();
        self.cause == Cause::Unexplained && (placed || may_be)
    }

    /// The event day of its cell.
    pub(crate) fn day(&self) -> EventDay {
        EventDay::of_micros(self.begins)
    }

    /// Puts it down to a cause.
    pub(crate) fn set(&mut self, cause: Cause) {
        self.cause = cause;
        self.explained = (cause != Cause::Unexplained).then(|| cause.says());
        self.unproved = None;
    }

    /// Why it is so, or that nothing explains it, and what may, in words.
    pub fn says(&self) -> String {
        match (self.explained, self.unproved) {
            (Some(explained), _) => explained.to_owned(),
            (None, Some(unproved)) => {
                let counts: Vec<_> = self.contributions.iter().map(|one| one.state.as_str()).collect();
                format!("unexplained: {unproved} ({})", counts.join(", "))
            }
            (None, None) => "unexplained".to_owned(),
        }
    }
}
