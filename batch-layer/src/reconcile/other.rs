//! Offsets that the archive read under other rules than the speed layer, and what can be proved of rows that hold events of them.
//!
//! Rows of a view are all of the rules of now, since other rules make another view. What the archive read under them as well must be in such
//! rows. Of the other offsets the archive has what other rules accepted: each of these events may be in a row or not, and a row's
//! count and sums must be what some of them come to. What it refused there nobody has: how many records that were is known, what they hold
//! is not. So a row that counts more events than are archived is told to be right in its count, and its other values to be unproved.
//!
//! | offsets | their events |
//! |---|---|
//! | of the rules of now | are in the row |
//! | of other rules whose definition is kept, where each record that they accept is the same event by those of now | are in it, too |
//! | of other rules | may be in it |
//! | of a start whose ledger tells of other repeats than the archive knows of, behind offsets of other rules | may be in it: the archive may lack an earlier copy |
//! | where it has no event under the second of these; each of the third, since others may have put it in another cell | one may be in it, unproved |

use std::collections::{BTreeMap, BTreeSet};

use arrow::row::OwnedRow;
use shared_connections::store::RulesDiffer;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, Offset, OffsetRange, OffsetSet, Partition};
use shared_schemas::store::cells::Starts;

use super::apart::{Judge, Kind, Piece, Verdict, agree};
use super::cause::{Cause, Contribution};
use super::compare::{Cells, Compared as Measure, count};
use super::explain::Compared;
use super::{Ground, OfView};
use crate::archive::Accounts;
use crate::error::RunError;
use crate::retry::patiently;

/// What may make a difference of a row that holds events of which nothing is proved.
const UNPROVED: &str = "events of it were read under other rules, and what they hold is not proved";

/// Offsets that the archive read under other rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct OtherRange {
    pub(super) partition: Partition,
    pub(super) range: OffsetRange,
    pub(super) differ: RulesDiffer,
    /// Whether the rules of now make the same events of all records that those ones accepted.
    pub(super) is_same: bool,
}

/// Where the archive was read under other rules.
#[derive(Debug, Clone, Default)]
pub(super) struct Other {
    pub(super) ranges: Vec<OtherRange>,
    /// So many records of each partition, at most, are events by the rules of now and were refused by others that make the same events of all
    /// that they accepted.
    pub(super) lacks: BTreeMap<Partition, u64>,
}

/// Offsets of rows that may differ, by what is known of them.
pub(super) struct Parted {
    /// Their archived events are in the rows.
    pub(super) certain: BTreeMap<Partition, OffsetSet>,
    /// Their archived events may be.
    pub(super) possible: BTreeMap<Partition, OffsetSet>,
    /// So many events more may be.
    pub(super) unknown: u64,
}

impl Other {
    /// How ranges differ that lie, in part at least, among some offsets of a partition.
    pub(super) fn differ(&self, partition: Partition, among: OffsetRange) -> impl Iterator<Item = RulesDiffer> {
        let touches = move |other: &&OtherRange| {
            other.partition == partition && other.range.from < among.to && other.range.to > among.from
        };
        self.ranges.iter().filter(touches).map(|other| other.differ)
    }

    fn offsets(&self, is_wanted: impl Fn(&OtherRange) -> bool) -> BTreeMap<Partition, OffsetSet> {
        let mut offsets: BTreeMap<Partition, OffsetSet> = BTreeMap::new();
        for other in self.ranges.iter().filter(|other| is_wanted(other)) {
            offsets.entry(other.partition).or_default().insert(other.range);
        }
        offsets
    }

    /// Offsets of other rules that make the same events of all that they accepted.
    fn same(&self) -> BTreeMap<Partition, OffsetSet> {
        let differing = self.offsets(|other| !other.is_same);
        let mut same = self.offsets(|other| other.is_same);
        for (partition, offsets) in &mut same {
            *offsets = offsets.without(differing.get(partition).unwrap_or(&OffsetSet::default()));
        }
        same
    }

    /// Parts these offsets; those of `loose` starts hold nothing that is certain.
    pub(super) fn parted(&self, offsets: &BTreeMap<Partition, OffsetSet>, loose: &Starts, chunk: ChunkSize) -> Parted {
        let nothing = OffsetSet::default();
        let differing = self.offsets(|other| !other.is_same);
        let same = self.same();
        let (mut certain, mut possible) = (BTreeMap::new(), BTreeMap::new());
        let mut unknown: u64 = 0;
        for (partition, of_partition) in offsets {
            let of_loose = loose.get(partition).into_iter().flatten();
            let of_loose = of_loose.map(|start| OffsetRange {
                from: start.0,
                to: chunk.end(start.0),
            });
            let mut uncertain: OffsetSet = of_loose.collect();
            let of = |some: &BTreeMap<_, _>| {
                size(of_partition) - size(&of_partition.without(some.get(partition).unwrap_or(&nothing)))
            };
            let lacks = self.lacks.get(partition).copied().unwrap_or_default();
            unknown = unknown
                .saturating_add(of(&differing))
                .saturating_add(of(&same).min(lacks));
            uncertain.extend(differing.get(partition).unwrap_or(&nothing));
            let kept = of_partition.without(&uncertain);
            possible.insert(*partition, of_partition.without(&kept));
            certain.insert(*partition, kept);
        }
        Parted {
            certain,
            possible,
            unknown,
        }
    }

    /// Whether there are such offsets of a partition below that one, so that the archive may lack what was a repeat's first copy.
    fn is_before(&self, partition: Partition, end: Offset) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|other| other.partition == partition && other.range.from < end)
    }
}

fn size(set: &OffsetSet) -> u64 {
    set.ranges().iter().map(|range| range.to.0 - range.from.0).sum()
}

impl OfView<'_> {
    /// Where the archive was read under other rules than the speed layer reads by now, as far as an answer can tell: what its files say, and its
    /// commits, which tell of records too that were refused.
    pub(super) async fn other_rules(&self, ground: &Ground, accounts: &Accounts) -> Result<Other, RunError> {
        let known = self.rules_known().await?;
        let now = Fingerprint::of_rules(self.dataset).to_string();
        let of_files = ground.pinned.rules().into_iter();
        let of_files = of_files.map(|((partition, rules), range)| (partition, range, rules));
        let others = of_files
            .chain(accounts.by_rules())
            .filter_map(|(partition, range, rules)| Some((partition, range, known.differ(rules, &now)?, rules)));
        let others: Vec<_> = others.collect();
        if others.is_empty() {
            return Ok(Other::default());
        }
        let kept = patiently(|| self.batch.store.known()).await?;
        let same: BTreeSet<_> = others.iter().map(|(.., rules)| *rules).collect();
        let is_same = |rules: &&str| {
            let earlier = known.events(rules).and_then(|events| kept.rules(events, self.dataset));
            earlier.is_some_and(|earlier| self.dataset.takes_all_of(&earlier))
        };
        let same: BTreeSet<_> = same.into_iter().filter(is_same).collect();
        let of_range = |(partition, range, differ, rules)| OtherRange {
            partition,
            range,
            differ,
            is_same: same.contains(rules),
        };
        let mut other = Other {
            ranges: others.into_iter().map(of_range).collect(),
            lacks: BTreeMap::new(),
        };
        for (partition, offsets) in other.same() {
            let Some(found) = ground.partitions.get(&partition) else {
                continue;
            };
            let mut lacks: u64 = 0;
            for range in offsets.within(found.mark.0, found.end).ranges() {
                lacks = lacks.saturating_add(match accounts.of(partition, *range) {
                    Some(account) => account.refused().saturating_add(account.gap),
                    // Holes among them.
                    None => {
                        let events = ground.pinned.events_within(partition, *range).await?;
                        (range.to.0 - range.from.0).saturating_sub(events)
                    }
                });
            }
            other.lacks.insert(partition, lacks);
        }
        Ok(other)
    }
}

impl Compared<'_> {
    /// The compared starts that lie behind offsets of other rules, or hold some, and whose ledgers tell of other repeats than the archive knows
    /// of at these offsets: it refused an earlier copy, or the speed layer did. `known` says how many it knows of.
    pub(super) fn loose(&self, chunk: ChunkSize, known: impl Fn(Partition, OffsetRange) -> u64) -> Starts {
        let mut loose = Starts::new();
        for (partition, start, ledger) in self.ledgers {
            let range = OffsetRange {
                from: start.0,
                to: ledger.next.min(chunk.end(start.0)),
            };
            if self.other.is_before(*partition, range.to) && known(*partition, range) != ledger.repeated {
                loose.entry(*partition).or_default().insert(*start);
            }
        }
        loose
    }
}

impl Judge<'_> {
    /// Whether rows can be of the events that are in them for certain, of some that may be, and of unknown ones.
    pub(super) fn by_rules(&self, piece: &Piece, measure: &Measure<'_>, cell: &OwnedRow) -> Option<Verdict> {
        let certain = piece.present.as_ref()?;
        let held = (&piece.held, piece.held.at(cell));
        let certain = (certain, certain.at(cell));
        let proved = |is_so: bool| is_so.then_some(Verdict::Proved(Kind::Rules));
        let more = match self.more_events(piece, cell) {
            // Fewer than there must be.
            Some(None) => return None,
            // Nothing else is in it.
            Some(Some(0)) => return proved(agree(measure, held, certain)),
            Some(more) => more,
            None => None,
        };
        let unknown = more.map(|more| more.saturating_sub(self.possible(piece, cell)));
        if unknown.is_some_and(|unknown| unknown > piece.most) {
            return None;
        }
        let known = piece.known.as_ref();
        let is_choice = known.is_some_and(|known| {
            let most = (&known.most, known.most.at(cell));
            let events = known.events.get(cell);
            events.is_some_and(|events| measure.lies_between(held, certain, most, events, more))
        });
        // How many events there are the ledgers tell.
        let is_counted = || {
            more.is_some()
                && self
                    .view
                    .plain_count()
                    .is_some_and(|plain| plain.measure == measure.name)
        };
        if is_choice || is_counted() {
            return proved(true);
        }
        measure
            .may_have_more(held, certain, more)
            .then_some(Verdict::Unproved(UNPROVED))
    }

    /// How many archived events may be in a cell's rows.
    fn possible(&self, piece: &Piece, cell: &OwnedRow) -> u64 {
        let Some(plain) = self.view.plain_count().map(|plain| plain.name) else {
            return 0;
        };
        let of = |cells: &Cells| {
            let count = cells.at(cell).and_then(|at| cells.state(&plain, at)).and_then(count);
            count.unwrap_or_default()
        };
        match &piece.known {
            Some(known) => of(&known.all),
            None => of(&piece.predicted).saturating_sub(piece.present.as_ref().map(of).unwrap_or_default()),
        }
    }

    /// How many events more a cell's rows hold than are in them for certain; none within, if it is fewer; none at all, if nobody counts
    /// them.
    fn more_events(&self, piece: &Piece, cell: &OwnedRow) -> Option<Option<u64>> {
        let plain = self.view.plain_count()?.name;
        let present = piece.present.as_ref()?;
        let of = |cells: &Cells| {
            let count = cells.at(cell).and_then(|at| cells.state(&plain, at)).and_then(count);
            count.unwrap_or_default()
        };
        Some(of(&piece.held).checked_sub(of(present)))
    }

    /// How many events of a cell are of offsets that the archive read under other rules.
    pub(super) fn of_other_rules(&self, cell: &OwnedRow) -> Option<Contribution> {
        let plain = self.view.plain_count()?.name;
        let of_rules = self.pieces.iter().filter(|piece| piece.kind == Some(Kind::Rules));
        let more: u64 = of_rules
            .filter_map(|piece| self.more_events(piece, cell)??.into())
            .sum();
        Some(Contribution {
            cause: Cause::DefinitionChanged,
            state: format!("{plain}={more}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::handoff::{Start, TopicId};

    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(7),
        number: 2,
    };

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    fn set(ranges: &[(u64, u64)]) -> OffsetSet {
        ranges.iter().map(|(from, to)| range(*from, *to)).collect()
    }

    #[test]
    fn offsets_are_parted_by_what_is_known_of_their_events() {
        let of = |from, to, is_same| OtherRange {
            partition: PARTITION,
            range: range(from, to),
            differ: RulesDiffer::Otherwise,
            is_same,
        };
        // What is told of once as the same and once not is not.
        let other = Other {
            ranges: vec![of(8, 20, true), of(18, 24, false), of(60, 90, false)],
            lacks: BTreeMap::from([(PARTITION, 3)]),
        };
        assert_eq!(other.same()[&PARTITION], set(&[(8, 18)]));
        let chunk = ChunkSize::new(8).unwrap();
        let offsets = BTreeMap::from([(PARTITION, set(&[(0, 40)]))]);
        let loose = Starts::from([(PARTITION, BTreeSet::from([Start(Offset(32))]))]);
        let parted = other.parted(&offsets, &loose, chunk);
        assert_eq!(parted.certain[&PARTITION], set(&[(0, 18), (24, 32)]));
        assert_eq!(parted.possible[&PARTITION], set(&[(18, 24), (32, 40)]));
        assert_eq!(
            parted.unknown,
            6 + 3,
            "each of the one, and what was refused of the other"
        );
        let few = BTreeMap::from([(PARTITION, set(&[(8, 10)]))]);
        assert_eq!(other.parted(&few, &loose, chunk).unknown, 2, "no more than there are");
        assert!(other.is_before(PARTITION, Offset(9)) && !other.is_before(PARTITION, Offset(8)));
    }
}
