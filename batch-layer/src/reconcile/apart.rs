//! Rows that may rightly hold something else than the archive gives, taken apart from all others.
//!
//! Two things let a row of the speed layer differ though nothing is wrong with it: its filter for repeats was cut short, or the archive
//! read its offsets under other rules. Both are known by partition and start. So a cell that differs is computed once more in pieces,
//! of those starts and of all the rest, and each piece is compared alone: the rest must be equal, and of the others it is proved what can be.
//!
//! | piece | what is asked of it |
//! |---|---|
//! | all other rows | equal |
//! | the filter was cut short | more than it should be by just what some of the archived repeats come to |
//! | other keys | what no key changes is equal, in the cell or over all values of hashed dimensions |
//! | other rules | what the archive read under the rules of now is in it, and of what it read under others some (see `other`) |
//! | all but the first | a plain `count()` over all rows of the start comes to what the start's ledger says |

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::row::OwnedRow;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use futures::StreamExt;
use shared_connections::store::{Ledger, RulesDiffer};
use shared_schemas::handoff::{ChunkSize, OffsetRange, Partition, Start};
use shared_schemas::plan::MergePlan;
use shared_schemas::store::cells::Starts;
use shared_schemas::view::View;

use super::cause::{Cause, Contribution};
use super::classes::rows_of;
use super::comparable::Comparable;
use super::compare::{Cells, Compared as Measure, Difference, Row, count, measures};
use super::laid::Laid;
use super::ledgers::{KEYS, Placed};
use super::other::Other;
use super::reach::{Reach, Touch};
use super::sorted::{Stream, key_converter};

/// Why rows of a start may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Its filter did not remember the whole window.
    CutShort,
    /// The archive read its offsets with other keys.
    Keys,
    /// The archive read its offsets under other rules.
    Rules,
}

/// Starts of each kind.
pub(super) type Apart = BTreeMap<Kind, Starts>;

/// Which of the compared starts may differ, and why. `loose` ones lie behind offsets of other rules.
pub(super) fn apart(
    partitions: &BTreeMap<Partition, Comparable>,
    chunk: ChunkSize,
    ledgers: &[Placed],
    other: &Other,
    loose: &Starts,
) -> Apart {
    let unsure: BTreeSet<_> = ledgers
        .iter()
        .filter(|(_, _, ledger)| ledger.unsure > 0)
        .map(|(partition, start, _)| (*partition, *start))
        .collect();
    let mut apart = Apart::new();
    for (partition, found) in partitions {
        for start in found.starts(chunk) {
            let among = OffsetRange {
                from: start.0,
                to: chunk.end(start.0),
            };
            let by = |differ| other.differ(*partition, among).any(|found| found == differ);
            let is_loose = loose.get(partition).is_some_and(|starts| starts.contains(&start));
            let is_unsure = unsure.contains(&(*partition, start));
            let kind = if is_loose || by(RulesDiffer::Otherwise) || (by(RulesDiffer::ByKeys) && is_unsure) {
                Kind::Rules
            } else if by(RulesDiffer::ByKeys) {
                Kind::Keys
            } else if is_unsure {
                Kind::CutShort
            } else {
                continue;
            };
            apart
                .entry(kind)
                .or_default()
                .entry(*partition)
                .or_default()
                .insert(start);
        }
    }
    apart
}

/// Without the starts whose rows don't hold as many events as their ledger says: nothing excuses those. `held` is what a plain
/// count adds up to, of starts that have rows; `is_whole` says that no row was let go for its age.
pub(super) fn without_broken(
    apart: Apart,
    ledgers: &[Placed],
    held: &BTreeMap<(Partition, Start), u64>,
    is_whole: bool,
) -> Apart {
    let told: BTreeMap<_, &Ledger> = ledgers
        .iter()
        .map(|(partition, start, ledger)| ((*partition, *start), ledger))
        .collect();
    let stands = |partition: Partition, start: Start| {
        let held = held.get(&(partition, start)).copied().unwrap_or_default();
        told.get(&(partition, start))
            .is_some_and(|ledger| held == ledger.aggregated || (!is_whole && held < ledger.aggregated))
    };
    let mut kept = Apart::new();
    for (kind, starts) in apart {
        for (partition, starts) in starts {
            let starts: BTreeSet<_> = starts.into_iter().filter(|start| stands(partition, *start)).collect();
            if !starts.is_empty() {
                kept.entry(kind).or_default().insert(partition, starts);
            }
        }
    }
    kept
}

/// Some rows of cells, beside what the archive gives for them.
pub(super) struct Piece {
    /// Why they may differ; they may not, if it is none.
    pub(super) kind: Option<Kind>,
    pub(super) held: Cells,
    pub(super) predicted: Cells,
    /// Where rules may change it, what the archive gives of those offsets alone whose events are in it for certain.
    pub(super) present: Option<Cells>,
    /// Both over all values of dimensions that a key changes.
    pub(super) totals: Option<Totals>,
    /// Archived events that may be counted: repeats, or such as were read under other rules.
    pub(super) known: Option<Known>,
    /// So many events may be counted that are not archived.
    pub(super) most: u64,
}

/// Cells made one over all values of some dimensions.
pub(super) struct Totals {
    held: Cells,
    predicted: Cells,
    /// Which of them a cell is in.
    of: BTreeMap<OwnedRow, OwnedRow>,
}

/// Archived events that rows may hold, or not: repeats that a filter should have dropped, or what was read under other rules.
pub(super) struct Known {
    /// Each one's cell, by cell.
    pub(super) events: BTreeMap<OwnedRow, Vec<RecordBatch>>,
    /// What they come to.
    pub(super) all: Cells,
    /// That and what is held in any case.
    pub(super) most: Cells,
}

impl Known {
    /// Of each one's cell, and what is held in any case.
    pub(super) async fn of(view: &View, merge: &MergePlan, least: &Cells, cells: Vec<RecordBatch>) -> Result<Self> {
        let mut events: BTreeMap<OwnedRow, Vec<RecordBatch>> = BTreeMap::new();
        for cell in &cells {
            for key in rows_of(cell, 1 + view.dimensions.len())? {
                events.entry(key).or_default().push(cell.clone());
            }
        }
        let all = merge.run(cells).await?;
        let most = merge.run(vec![all.clone(), as_merged(merge, least.batch())?]).await?;
        Ok(Self {
            events,
            all: Cells::new(view, merge.schema(), &[all])?,
            most: Cells::new(view, merge.schema(), &[most])?,
        })
    }
}

impl Totals {
    /// What is held and what should be, over all values of those dimensions that change; of those that these cells are in.
    pub(super) fn of(
        view: &View,
        merge: &MergePlan,
        changes: &[bool],
        cells: &BTreeSet<OwnedRow>,
        [held, predicted]: &mut [Laid; 2],
    ) -> Result<Self> {
        let keys = 1 + view.dimensions.len();
        let converter = key_converter(merge.schema(), keys)?;
        let parser = converter.parser();
        let all: Vec<_> = cells.iter().collect();
        let mut columns = converter.convert_rows(all.iter().map(|cell| parser.parse(cell.as_ref())))?;
        make_one(&mut columns, changes)?;
        let rows = converter.convert_columns(&columns)?;
        let of: BTreeMap<_, _> = all
            .into_iter()
            .cloned()
            .zip(rows.iter().map(|row| row.owned()))
            .collect();
        let wanted: BTreeSet<_> = of.values().cloned().collect();
        Ok(Self {
            held: Cells::new(view, merge.schema(), &held.of(&wanted)?)?,
            predicted: Cells::new(view, merge.schema(), &predicted.of(&wanted)?)?,
            of,
        })
    }
}

/// Cells in the columns that are merged, with one value in all rows of the dimensions that change.
pub(super) fn in_total(merge: &MergePlan, changes: &[bool], cells: Stream) -> Stream {
    let (merge, changes) = (merge.clone(), changes.to_vec());
    let in_total = move |cells: RecordBatch| {
        let mut columns = as_merged(&merge, &cells)?.columns().to_vec();
        make_one(&mut columns, &changes)?;
        Ok(RecordBatch::try_new(merge.schema().clone(), columns)?)
    };
    cells.map(move |cells| in_total(cells?)).boxed()
}

/// Has one value in all rows of the dimensions that change; these are columns of keys.
fn make_one(columns: &mut [ArrayRef], changes: &[bool]) -> Result<()> {
    for (column, _) in columns.iter_mut().skip(1).zip(changes).filter(|(_, changes)| **changes) {
        *column = ScalarValue::new_default(column.data_type())?.to_array_of_size(column.len())?;
    }
    Ok(())
}

/// What comes of judging a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is put down to that.
    Proved(Kind),
    /// It may be right, which is not proved.
    Unproved(&'static str),
}

/// Judges differences by their pieces.
pub(super) struct Judge<'a> {
    pub(super) view: &'a View,
    /// What keys can change.
    pub(super) reach: Reach,
    /// How many sets of rules the archive was read under.
    pub(super) rules: usize,
    pub(super) pieces: Vec<Piece>,
}

impl Judge<'_> {
    /// Puts those differences down to their cause that nothing has explained yet and whose pieces all allow for it.
    pub(super) fn judge(&self, different: &mut [Difference]) {
        let measures = measures(self.view);
        for difference in different.iter_mut().filter(|one| one.cause == Cause::Unexplained) {
            let measure = measures.iter().find(|measure| measure.name == difference.measure);
            let (Some(measure), Some(cell)) = (measure, difference.cell.clone()) else {
                continue;
            };
            match self.verdict(measure, &cell) {
                None => {}
                Some(Verdict::Proved(Kind::CutShort)) => {
                    difference.set(Cause::RepeatBeyondWindow);
                    difference.contributions.extend(self.contribution(measure, &cell));
                }
                Some(Verdict::Proved(Kind::Keys)) => {
                    difference.set(Cause::DefinitionChanged);
                    difference.explained = Some(KEYS);
                }
                Some(Verdict::Proved(Kind::Rules)) => {
                    difference.set(Cause::DefinitionChanged);
                    difference.contributions.extend(self.of_other_rules(&cell));
                }
                Some(Verdict::Unproved(why)) => {
                    difference.unproved = Some(why);
                    difference.contributions.extend(self.of_other_rules(&cell));
                }
            }
        }
    }

    /// Why a measure of a cell may differ as it does; none where a piece of it may not.
    fn verdict(&self, measure: &Measure<'_>, cell: &OwnedRow) -> Option<Verdict> {
        let (mut found, mut unproved) = (None, None);
        for piece in &self.pieces {
            let held = (&piece.held, piece.held.at(cell));
            let predicted = (&piece.predicted, piece.predicted.at(cell));
            if agree(measure, held, predicted) {
                continue;
            }
            let kind = piece.kind?;
            let by_kind = |may: bool| may.then_some(Verdict::Proved(kind));
            let verdict = match kind {
                Kind::Rules => self.by_rules(piece, measure, cell),
                Kind::Keys => by_kind(self.may_by_keys(piece, measure, cell)),
                Kind::CutShort => by_kind(self.may_by_repeats(piece, measure, cell)),
            };
            match verdict? {
                Verdict::Proved(kind) => found = found.max(Some(kind)),
                Verdict::Unproved(why) => unproved = Some(Verdict::Unproved(why)),
            }
        }
        unproved.or(found.map(Verdict::Proved))
    }

    fn may_by_keys(&self, piece: &Piece, measure: &Measure<'_>, cell: &OwnedRow) -> bool {
        let touch = self.reach.of(measure.name);
        // Which events count is another question then; their number the ledger tells.
        if self.reach.events {
            return true;
        }
        let (held, predicted) = match &piece.totals {
            Some(totals) => {
                let Some(total) = totals.of.get(cell) else { return false };
                (
                    (&totals.held, totals.held.at(total)),
                    (&totals.predicted, totals.predicted.at(total)),
                )
            }
            None if touch == Touch::Not => return false,
            None => (
                (&piece.held, piece.held.at(cell)),
                (&piece.predicted, piece.predicted.at(cell)),
            ),
        };
        let all = measures(self.view);
        let plain = self.view.plain_count();
        let plain = plain.and_then(|plain| all.iter().find(|measure| measure.name == plain.measure));
        match touch {
            Touch::Not => agree(measure, held, predicted),
            Touch::Renamed | Touch::Values => {
                plain.is_none_or(|plain| agree(plain, held, predicted))
                    && (touch == Touch::Values || measure.is_renamed(held, predicted, self.rules))
            }
        }
    }

    fn may_by_repeats(&self, piece: &Piece, measure: &Measure<'_>, cell: &OwnedRow) -> bool {
        let Some((known, events)) = piece
            .known
            .as_ref()
            .and_then(|known| Some((known, known.events.get(cell)?)))
        else {
            return false;
        };
        let held = (&piece.held, piece.held.at(cell));
        let least = (&piece.predicted, piece.predicted.at(cell));
        let mut chosen = None;
        if let Some(plain) = self.view.plain_count().map(|plain| plain.name) {
            let of = |(cells, at): Row<'_>| {
                at.and_then(|at| cells.state(&plain, at))
                    .and_then(count)
                    .unwrap_or_default()
            };
            match of(held).checked_sub(of(least)) {
                // Nothing was counted that should not be.
                None | Some(0) => return false,
                more => chosen = more,
            }
        }
        measure.lies_between(held, least, (&known.most, known.most.at(cell)), events, chosen)
    }

    fn contribution(&self, measure: &Measure<'_>, cell: &OwnedRow) -> Option<Contribution> {
        let mut of_repeats = self.pieces.iter().filter(|piece| piece.kind == Some(Kind::CutShort));
        let known = of_repeats.find_map(|piece| piece.known.as_ref())?;
        Some(Contribution {
            cause: Cause::RepeatBeyondWindow,
            state: measure.shown(&known.all, known.all.at(cell)?),
        })
    }
}

/// Whether two rows say the same, or neither is there.
pub(super) fn agree(measure: &Measure<'_>, held: Row<'_>, predicted: Row<'_>) -> bool {
    (held.1.is_none() && predicted.1.is_none()) || measure.is_equal(held.0, held.1, predicted.0, predicted.1)
}

/// Cells in the columns that are merged.
fn as_merged(merge: &MergePlan, cells: &RecordBatch) -> Result<RecordBatch> {
    let column = |name: &str| {
        let column = cells.column_by_name(name).cloned();
        column.ok_or_else(|| DataFusionError::Internal(format!("cells without a column {name}")))
    };
    let columns = merge.schema().fields().iter().map(|field| column(field.name()));
    Ok(RecordBatch::try_new(
        merge.schema().clone(),
        columns.collect::<Result<_>>()?,
    )?)
}

#[cfg(test)]
mod tests {
    use shared_schemas::handoff::{Mark, Offset, OffsetSet, SpeedProgress, TopicId};

    use super::super::other::OtherRange;
    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(7),
        number: 2,
    };

    fn start(at: u64) -> Start {
        Start(Offset(at))
    }

    /// A ledger of each start of eight offsets, and whether its filter was cut short.
    fn ledgers(unsure: &[(u64, u64)]) -> Vec<Placed> {
        let ledger = |(at, unsure): &(u64, u64)| {
            let ledger = Ledger {
                unsure: *unsure,
                aggregated: 8,
                ..Ledger::default()
            };
            (PARTITION, start(*at), ledger)
        };
        unsure.iter().map(ledger).collect()
    }

    #[test]
    fn starts_are_taken_apart_by_what_may_change_them() {
        let chunk = ChunkSize::new(8).unwrap();
        let mut progress = SpeedProgress::default();
        for at in (0..40).step_by(8) {
            progress.record(start(at), Offset(at + 8));
        }
        let found = Comparable::of(
            Mark::default(),
            chunk,
            &progress,
            Offset(40),
            &OffsetSet::default(),
            false,
        );
        let partitions = BTreeMap::from([(PARTITION, found)]);
        let ledgers = ledgers(&[(0, 0), (8, 3), (16, 0), (24, 1), (32, 0)]);
        let range = |from, to| OffsetRange {
            from: Offset(from),
            to: Offset(to),
        };
        let elsewhere = Partition {
            topic: TopicId(6),
            ..PARTITION
        };
        let of_other = |partition, range, differ| OtherRange {
            partition,
            range,
            differ,
            is_same: false,
        };
        let other = Other {
            ranges: vec![
                of_other(PARTITION, range(17, 18), RulesDiffer::ByKeys),
                of_other(PARTITION, range(31, 34), RulesDiffer::ByKeys),
                of_other(PARTITION, range(39, 90), RulesDiffer::Otherwise),
                of_other(elsewhere, range(0, 90), RulesDiffer::Otherwise),
            ],
            ..Other::default()
        };
        let found = apart(&partitions, chunk, &ledgers, &other, &Starts::new());
        let of = |kind| {
            found
                .get(&kind)
                .map(|starts| starts[&PARTITION].iter().map(|start| start.0.0).collect::<Vec<_>>())
        };
        assert_eq!(
            of(Kind::CutShort),
            Some(vec![8]),
            "one that is sure of all is none of these"
        );
        assert_eq!(of(Kind::Keys), Some(vec![16]));
        assert_eq!(of(Kind::Rules), Some(vec![24, 32]));
        let behind = Starts::from([(PARTITION, BTreeSet::from([start(16)]))]);
        let with_loose = apart(&partitions, chunk, &ledgers, &other, &behind);
        let (keys, rules) = (with_loose.get(&Kind::Keys), &with_loose[&Kind::Rules][&PARTITION]);
        assert!(keys.is_none() && rules.contains(&start(16)) && rules.len() == 3);

        // A row was changed in one of them; one is gone.
        let held = BTreeMap::from([((PARTITION, start(8)), 8), ((PARTITION, start(16)), 1010)]);
        let kept = without_broken(found.clone(), &ledgers, &held, true);
        assert_eq!(kept.keys().collect::<Vec<_>>(), [&Kind::CutShort]);
        let kept = without_broken(found, &ledgers, &held, false);
        assert_eq!(
            kept.keys().collect::<Vec<_>>(),
            [&Kind::CutShort, &Kind::Rules],
            "where old rows were let go, fewer are none that are wrong"
        );
    }
}
