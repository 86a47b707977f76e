//! What the store holds of some days, read in pieces where it is too much for one.
//!
//! Exact sets come as hexadecimal digits, so a block of a statement's answer can pass what the server can write or has memory
//! for. Then the time that is asked for is halved, down to one window.

use std::collections::BTreeSet;

use arrow::datatypes::SchemaRef;
use shared_connections::store::{Answer, Pace, StoreError};
use shared_schemas::handoff::{EventDay, Publication};
use shared_schemas::store::cells::{Among, HeldCells, times_of};

use super::compare::Cells;
use super::{Ground, OfView};
use crate::error::RunError;
use crate::retry::patiently;

/// ClickHouse's codes for an answer that is too large: a string, an array, memory, and what Arrow says.
const TOO_LARGE: [u32; 5] = [128, 131, 173, 241, 1002];

impl OfView<'_> {
    /// The cells that an answer is made of, or some rows of them. Their columns are the schema's, and the layers'.
    pub(super) async fn held(
        &self,
        ground: &Ground,
        publication: Option<&Publication>,
        days: &BTreeSet<EventDay>,
        schema: &SchemaRef,
        among: Among<'_>,
    ) -> Result<Cells, RunError> {
        let starts = ground.starts();
        // Batch rows go with all others, not with chosen ones.
        let publication = publication.filter(|_| !matches!(among, Among::Only(_)));
        let arrow_error = |error: arrow::error::ArrowError| RunError::Plan(error.to_string());
        let mut batches = Vec::new();
        // Times yet to be read, the first one on top.
        let mut waiting: Vec<_> = times_of(days).into_iter().collect();
        while let Some(time) = waiting.pop() {
            let cells = HeldCells {
                database: self.batch.store.database(),
                view: self.view,
                publication,
                starts: &starts,
                among,
                days,
                time,
            };
            let Some(statement) = cells.statement() else {
                continue;
            };
            let store = &self.batch.store;
            // What is too large stays so: that is not asked again as it is.
            let mut refused = None;
            let answer = patiently(|| async {
                match store.answer_at_length(&statement, "ArrowStream", Pace::AT_LENGTH).await {
                    Err(error) if is_too_large(&error) => Ok(Err(error)),
                    other => other.map(Ok),
                }
            });
            match answer.await? {
                Ok(Answer { body }) => {
                    batches.extend(Cells::read(self.view, schema, &body).map_err(arrow_error)?);
                }
                Err(error) => refused = Some(error),
            }
            if let Some(error) = refused {
                let [first, second] = halves(time, self.view.grain.as_secs()).ok_or(error)?;
                tracing::debug!(
                    view = self.view.name,
                    "too many cells for one answer: asking for half as many"
                );
                waiting.extend([second, first]);
            }
        }
        Cells::new(self.view, schema, &batches).map_err(arrow_error)
    }
}

fn is_too_large(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { code, .. } if TOO_LARGE.contains(code))
}

/// Two halves of a time, each of whole windows; `None` of a single one.
fn halves((from, to): (i64, i64), grain: u64) -> Option<[(i64, i64); 2]> {
    let grain = i64::try_from(grain).ok().filter(|grain| *grain > 0)?;
    let windows = (to - from).div_euclid(grain);
    let middle = from + windows / 2 * grain;
    (windows > 1).then_some([(from, middle), (middle, to)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_halved_down_to_a_window() {
        let days = BTreeSet::from([EventDay(1), EventDay(3)]);
        assert_eq!(times_of(&days), Some((86_400, 345_600)));
        assert_eq!(times_of(&BTreeSet::new()), None);
        assert_eq!(
            halves((86_400, 345_600), 86_400),
            Some([(86_400, 172_800), (172_800, 345_600)])
        );
        assert_eq!(halves((86_400, 172_800), 86_400), None);
        // All windows are in some half, and none is cut.
        let mut waiting = vec![(0, 86_400)];
        let mut single = Vec::new();
        while let Some(time) = waiting.pop() {
            match halves(time, 3_600) {
                Some([first, second]) => waiting.extend([second, first]),
                None => single.push(time),
            }
        }
        let windows: Vec<_> = (0..24).map(|hour| (hour * 3_600, (hour + 1) * 3_600)).collect();
        assert_eq!(single, windows);
    }

    #[test]
    fn only_what_is_too_large_is_halved() {
        let refused = |code| StoreError::Refused {
            doing: "answer a query".to_owned(),
            code,
            message: String::new(),
        };
        assert!(is_too_large(&refused(241)));
        assert!(!is_too_large(&refused(60)));
    }
}
