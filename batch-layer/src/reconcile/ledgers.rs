//! The speed layer's ledgers: whether they add up, follow on each other, and tell what the archive tells.
//!
//! Cells show what was counted; ledgers show what became of everything else, refused records too. The archive says in each commit
//! what it read, so for a start whose offsets are whole pieces of commits both must have read as many records and
//! refused as many for the same reasons. Where a start ends inside a piece (the last one does, mostly), the events in the
//! archive's files are counted instead.

use std::collections::BTreeMap;

use serde::Serialize;
use shared_connections::store::{Ledger, RulesDiffer, RulesKnown};
use shared_schemas::handoff::{ChunkSize, Mark, Offset, OffsetRange, OffsetSet, Partition, Start, counts};

use crate::archive::{Account, Accounts, ArchiveError, Pinned};
use crate::recompute::topic_text;

/// What came of comparing ledgers with the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LedgersCompared {
    /// How many were compared.
    pub compared: u64,
    /// How many of them with what commits say; the others with the number of archived events.
    pub with_commits: u64,
    /// How many tell the same.
    pub equal: u64,
    /// How many do not.
    pub different: u64,
    /// How many of these nothing explains.
    pub unexplained: u64,
    /// Those that do not.
    pub differences: Vec<LedgerDifference>,
}

/// A ledger that tells something else than the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerDifference {
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// Where the ledger begins.
    pub start: u64,
    /// Up to where it has come.
    pub next: u64,
    /// What the speed layer tells.
    pub told: Told,
    /// What the archive tells.
    pub archived: Told,
    /// Why it may be so; null where nothing explains it.
    pub explained: Option<&'static str>,
}

/// What became of records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    /// How many were delivered; null where that is not told.
    pub read: Option<u64>,
    /// How many are events.
    pub accepted: u64,
    /// How many are not, by reason; null where that is not told.
    pub invalid: Option<BTreeMap<String, u64>>,
}

/// One of the layers came to the offsets when Kafka no longer had them.
pub(crate) const GAP: &str = "Kafka no longer had all of these offsets for one of the layers";
/// A record that one rule refuses another may accept.
pub(crate) const RULES: &str = "the layers read these offsets under different rules";

/// As [`RULES`], where nothing but a key differs.
pub(crate) const KEYS: &str = "the layers masked what is at these offsets with different keys";

/// A ledger with its place.
pub(crate) type Placed = (Partition, Start, Ledger);

/// What ledgers say against themselves, in sentences. `ledgers` are all of a view, `gaps` what it lacks from the marks on.
pub(crate) fn alarms(
    ledgers: &[Placed],
    marks: &BTreeMap<Partition, Mark>,
    gaps: &BTreeMap<Partition, OffsetSet>,
    chunk: ChunkSize,
) -> Vec<String> {
    let of_start = |(partition, start, ledger): &Placed| {
        let unbalanced = ledger.balances(*start).err()?;
        Some(format!(
            "partition {}, start {}: {unbalanced}",
            partition.number, start.0
        ))
    };
    let counting: Vec<_> = counting(ledgers, marks, chunk).collect();
    let balances = counting.iter().filter_map(|placed| of_start(placed));
    let holes = holes(&counting, marks, gaps, chunk)
        .into_iter()
        .map(|(partition, hole)| {
            format!(
                "partition {}: offsets {} to {} are not counted, and later ones are",
                partition.number,
                hole.from,
                hole.to.0.saturating_sub(1)
            )
        });
    balances.chain(holes).collect()
}

/// The ledgers of starts that count from the marks on.
fn counting<'a>(
    ledgers: &'a [Placed],
    marks: &BTreeMap<Partition, Mark>,
    chunk: ChunkSize,
) -> impl Iterator<Item = &'a Placed> {
    ledgers.iter().filter(move |(partition, start, _)| {
        let mark = marks.get(partition).copied().unwrap_or_default();
        *start >= mark.start() && counts(mark, *start, chunk)
    })
}

/// Offsets that no counting start has come to, though a later one has begun.
fn holes(
    counting: &[&Placed],
    marks: &BTreeMap<Partition, Mark>,
    gaps: &BTreeMap<Partition, OffsetSet>,
    chunk: ChunkSize,
) -> Vec<(Partition, OffsetRange)> {
    let mut starts: BTreeMap<Partition, BTreeMap<Start, Offset>> = BTreeMap::new();
    for (partition, start, ledger) in counting {
        starts.entry(*partition).or_default().insert(*start, ledger.next);
    }
    let mut holes = Vec::new();
    for (partition, nexts) in starts {
        let mut reached = marks.get(&partition).copied().unwrap_or_default().0;
        let gaps = gaps.get(&partition);
        for (start, next) in nexts {
            // A chunk that is all gap needs no ledger to be passed.
            reached = gaps.map_or(reached, |gaps| gaps.reach(reached));
            if start.0 > reached {
                let to = start.0;
                holes.push((partition, OffsetRange { from: reached, to }));
            }
            // A start counts to its chunk's end at most.
            reached = next.min(chunk.end(start.0)).max(reached);
        }
    }
    holes
}

/// Compares these ledgers with what the archive says of the same offsets.
///
/// # Errors
/// A file or an entry of the archive that can't be read.
pub(crate) async fn compare(
    ledgers: &[Placed],
    accounts: &Accounts,
    pinned: &Pinned,
    known: &RulesKnown,
) -> Result<LedgersCompared, ArchiveError> {
    let mut all = LedgersCompared::default();
    for (partition, start, ledger) in ledgers {
        let range = OffsetRange {
            from: start.0,
            to: ledger.next,
        };
        let end = pinned.ends.get(partition).copied().unwrap_or_default();
        if range.is_empty() || range.to > end {
            continue;
        }
        let account = accounts.of(*partition, range);
        let archived = match &account {
            Some(account) => told_by(account),
            // How many events there were is not known any more.
            None if pinned.may_lack(*partition, range) => continue,
            None => Told {
                accepted: pinned.events_within(*partition, range).await?,
                ..Told::default()
            },
        };
        all.compared += 1;
        all.with_commits += u64::from(account.is_some());
        let gap = pinned.gaps.get(partition).map(|gaps| gaps.within(range.from, range.to));
        let has_gap = ledger.gap > 0 || gap.is_some_and(|gap| !gap.is_empty());
        let rules = account.as_ref().map(|account| account.rules.as_str());
        let differ = rules.and_then(|rules| known.differ(rules, &ledger.rules));
        match different(*partition, *start, ledger, archived, has_gap, differ) {
            None => all.equal += 1,
            Some(difference) => {
                all.different += 1;
                all.unexplained += u64::from(difference.explained.is_none());
                all.differences.push(difference);
            }
        }
    }
    all.differences.sort_by_key(|difference| difference.explained.is_some());
    Ok(all)
}

fn told_by(account: &Account) -> Told {
    Told {
        read: Some(account.read),
        accepted: account.accepted(),
        invalid: Some(account.invalid.clone()),
    }
}

/// How a ledger differs from what is archived, if it does.
fn different(
    partition: Partition,
    start: Start,
    ledger: &Ledger,
    archived: Told,
    has_gap: bool,
    rules: Option<RulesDiffer>,
) -> Option<LedgerDifference> {
    let told = Told {
        read: archived.read.map(|_| ledger.read),
        accepted: ledger.accepted(),
        invalid: archived.invalid.as_ref().map(|_| ledger.invalid.clone()),
    };
    if told == archived {
        return None;
    }
    let explained = if has_gap {
        Some(GAP)
    } else {
        rules.map(|differ| match differ {
            RulesDiffer::ByKeys => KEYS,
            RulesDiffer::Otherwise => RULES,
        })
    };
    Some(LedgerDifference {
        topic: topic_text(partition.topic),
        partition: partition.number,
        start: start.0.0,
        next: ledger.next.0,
        told,
        archived,
        explained,
    })
}

#[cfg(test)]
mod tests {
    use shared_schemas::handoff::TopicId;

    use super::*;

    const PARTITION: Partition = Partition {
        topic: TopicId(7),
        number: 2,
    };

    fn placed(start: u64, next: u64) -> Placed {
        let ledger = Ledger {
            next: Offset(next),
            rules: "now".to_owned(),
            read: next - start,
            aggregated: next - start - 1,
            invalid: BTreeMap::from([("empty".to_owned(), 1)]),
            ..Ledger::default()
        };
        (PARTITION, Start(Offset(start)), ledger)
    }

    fn said(ledgers: &[Placed], mark: u64) -> Vec<String> {
        let marks = BTreeMap::from([(PARTITION, Mark(Offset(mark)))]);
        alarms(ledgers, &marks, &BTreeMap::new(), ChunkSize::new(8).unwrap())
    }

    #[test]
    fn starts_follow_on_each_other_and_add_up() {
        let mut ledgers = vec![placed(0, 8), placed(8, 16), placed(11, 16), placed(16, 19)];
        assert_eq!(said(&ledgers, 0), Vec::<String>::new());
        assert_eq!(said(&ledgers, 11), Vec::<String>::new(), "from a cut on");
        ledgers.remove(1);
        assert_eq!(
            said(&ledgers, 0),
            ["partition 2: offsets 8 to 15 are not counted, and later ones are"]
        );
        assert_eq!(
            said(&ledgers, 11),
            Vec::<String>::new(),
            "below the mark nothing is wanted"
        );
        let gap = OffsetRange {
            from: Offset(8),
            to: Offset(16),
        };
        let gaps = BTreeMap::from([(PARTITION, OffsetSet::from_iter([gap]))]);
        let marks = BTreeMap::new();
        assert!(
            alarms(&ledgers, &marks, &gaps, ChunkSize::new(8).unwrap()).is_empty(),
            "all of it is a gap"
        );
        ledgers[0].2.next = Offset(7);
        assert_eq!(
            said(&ledgers, 0),
            [
                "partition 2, start 0: 8 records and 0 holes were told of 7 offsets",
                "partition 2: offsets 7 to 15 are not counted, and later ones are"
            ]
        );
    }

    #[test]
    fn what_differs_is_explained_or_not() {
        let (_, start, ledger) = placed(8, 16);
        let found = |archived: Told, has_gap, rules| {
            let found = different(PARTITION, start, &ledger, archived, has_gap, rules);
            found.map(|difference| difference.explained)
        };
        let same = Told {
            read: Some(8),
            accepted: 7,
            invalid: Some(ledger.invalid.clone()),
        };
        assert_eq!(found(same.clone(), false, Some(RulesDiffer::Otherwise)), None);
        let events = Told {
            accepted: 7,
            ..Told::default()
        };
        assert_eq!(
            found(events, false, None),
            None,
            "where commits tell nothing of just these offsets"
        );
        let reason = Told {
            invalid: Some(BTreeMap::from([("not_json".to_owned(), 1)])),
            ..same
        };
        assert_eq!(found(reason.clone(), false, None), Some(None));
        assert_eq!(
            found(reason.clone(), false, Some(RulesDiffer::Otherwise)),
            Some(Some(RULES))
        );
        assert_eq!(
            found(reason.clone(), false, Some(RulesDiffer::ByKeys)),
            Some(Some(KEYS))
        );
        assert_eq!(found(reason, true, None), Some(Some(GAP)));
        let fewer = Told {
            accepted: 6,
            ..Told::default()
        };
        assert_eq!(found(fewer, false, None), Some(None));
    }
}
