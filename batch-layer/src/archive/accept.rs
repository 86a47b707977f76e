//! A gap that no file held, accepted by a person: marks may pass it.
//!
//! Where Kafka no longer had what the archiver came for, the archive has a gap. The speed layer may have counted those events,
//! and a mark that passed the gap would take them out of the answers. So marks stop there, until somebody has decided that
//! nothing better will come.

use deltalake::protocol::DeltaOperation;
use serde::Serialize;
use shared_schemas::handoff::{OffsetRange, OffsetSet, Partition};

use super::error::ArchiveError;
use super::quarantine::TRIES;
use super::standing::topic_text;
use super::table::Archive;

/// A gap that was accepted, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The dataset.
    pub dataset: String,
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// The first offset.
    pub from: u64,
    /// The one behind the last.
    pub to: u64,
    /// Whether it was done.
    pub done: bool,
}

impl Archive {
    /// Records that these offsets of a partition are lacking by a person's word. Of several incarnations of the topic the one that
    /// lacks them. Without `carry_out` it only tells what would be done.
    ///
    /// # Errors
    /// [`ArchiveError::NotLacking`] where the archive does not lack all of them, [`ArchiveError::Log`] where the store fails:
    /// nothing was done.
    pub async fn accept_gap(
        &mut self,
        number: u32,
        gap: OffsetRange,
        carry_out: bool,
    ) -> Result<Accepted, ArchiveError> {
        for _ in 0..TRIES {
            self.refresh().await?;
            let partition = self.lacking_partition(number, gap)?;
            let told = Accepted {
                dataset: self.dataset.name.clone(),
                topic: topic_text(partition.topic),
                partition: number,
                from: gap.from.0,
                to: gap.to.0,
                done: carry_out,
            };
            let after = self.standing.clone().accept(partition, gap);
            // It may have been entered although its writer was told otherwise.
            if !carry_out || after == self.standing {
                return Ok(told);
            }
            let before = self.version();
            let operation = DeltaOperation::SetTableProperties {
                properties: std::collections::HashMap::new(),
            };
            match Box::pin(self.amend(after, Vec::new(), operation)).await {
                Ok(()) => return Ok(told),
                Err(error) => self.overtaken(before, error).await?,
            }
        }
        Err(self.crowded())
    }

    /// The one of that number that lacks these offsets.
    fn lacking_partition(&self, number: u32, gap: OffsetRange) -> Result<Partition, ArchiveError> {
        let of_number = || {
            self.standing
                .gaps
                .iter()
                .filter(|(partition, _)| partition.number == number)
        };
        let lacks = |gaps: &OffsetSet| !gap.is_empty() && gaps.reach(gap.from) >= gap.to;
        let found = of_number().find(|(_, gaps)| lacks(gaps));
        found.map(|(partition, _)| *partition).ok_or_else(|| {
            let gaps: Vec<_> = of_number()
                .flat_map(|(_, gaps)| gaps.ranges())
                .map(|range: &OffsetRange| format!("{}..{}", range.from, range.to))
                .take(20)
                .collect();
            ArchiveError::NotLacking {
                place: self.place.clone(),
                partition: number,
                from: gap.from,
                to: gap.to,
                lacks: if gaps.is_empty() {
                    "it lacks nothing of it".to_owned()
                } else {
                    format!("it lacks {}", gaps.join(", "))
                },
            }
        })
    }
}
