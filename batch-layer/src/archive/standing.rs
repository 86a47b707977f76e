//! Where an archive stands: each partition's end, and the offsets below it that it lacks.
//!
//! Ends are application transactions of the table; the property holds the partitions and their gaps, and from which event day on
//! events are kept. This module is pure: whether a commit fits, what comes of it, and the property's text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared_schemas::handoff::{ArchivedRange, EventDay, Offset, OffsetRange, OffsetSet, Partition, TopicId};

use super::error::ArchiveError;
use super::pinned::File;

/// The table property that lists partitions and their gaps, as JSON.
pub(super) const PROPERTY: &str = "highwater.partitions";

/// The form of the property. A reader refuses one it does not know.
const FORM: u32 = 1;

/// Where an archive stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// All events below are there, none from there on. A partition that is not here ends at 0.
    pub(super) ends: BTreeMap<Partition, Offset>,
    /// What is lacking below the ends; no entry where nothing is.
    pub(super) gaps: BTreeMap<Partition, OffsetSet>,
    /// Where a log ended below what was archived: from its end then, up to what was archived. Those records are archived,
    /// and not in the log any more; the partition is archived no further, for good.
    pub(super) truncated: BTreeMap<Partition, OffsetRange>,
    /// Gaps that a person accepted, and of files that were put aside. Marks may pass them.
    pub(super) accepted: BTreeMap<Partition, OffsetSet>,
    /// Events of days before that one were let go; those that came later are nobody's to read. It only rises.
    pub(super) horizon: Option<EventDay>,
    /// Of each partition that had such events: from there on there was none. Below, fewer events are there than were archived.
    pub(super) let_go: BTreeMap<Partition, Offset>,
    /// Files that were put aside, by their paths then.
    pub(super) aside: BTreeMap<String, Aside>,
}

/// A file that was put aside, as the log described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aside {
    pub(super) file: File,
    /// The offsets that went with it: between its first and its last, and held by no other file then.
    pub(super) lacking: OffsetSet,
    /// Those of them that nothing else lacked.
    pub(super) own: OffsetSet,
}

impl Standing {
    /// Whether events of that day are there to be read.
    pub(super) fn keeps(&self, day: EventDay) -> bool {
        self.horizon.is_none_or(|horizon| day >= horizon)
    }

    /// Where it stands once events of days before `horizon` are let go, and these with them. The ends stay: nobody archives
    /// them again.
    pub(super) fn kept_from(
        mut self,
        horizon: Option<EventDay>,
        gone: impl IntoIterator<Item = ArchivedRange>,
    ) -> Self {
        self.horizon = self.horizon.max(horizon);
        for range in gone {
            let held = self.let_go.entry(range.partition).or_default();
            *held = range.last.next().max(*held);
        }
        self
    }

    /// Where a partition's archive ends.
    pub(super) fn end(&self, partition: Partition) -> Offset {
        self.ends.get(&partition).copied().unwrap_or_default()
    }

    /// Where it stands once these ranges and gaps are in it.
    ///
    /// # Errors
    /// [`ArchiveError::Overtaken`] where a range does not begin at its partition's end, [`ArchiveError::Commit`] where a
    /// gap lies outside its range.
    pub(super) fn after(
        &self,
        ranges: &BTreeMap<Partition, OffsetRange>,
        gaps: &BTreeMap<Partition, OffsetSet>,
    ) -> Result<Self, ArchiveError> {
        let mut after = self.clone();
        for (partition, range) in ranges {
            let end = self.end(*partition);
            if end != range.from {
                return Err(ArchiveError::Overtaken {
                    partition: *partition,
                    from: range.from,
                    end,
                });
            }
            if range.to < range.from {
                return Err(ArchiveError::Commit(format!(
                    "the range {} to {}",
                    range.from, range.to
                )));
            }
            after.ends.insert(*partition, range.to);
        }
        for (partition, set) in gaps.iter().filter(|(_, set)| !set.is_empty()) {
            let inside = ranges
                .get(partition)
                .is_some_and(|range| set.within(range.from, range.to) == *set);
            if !inside {
                return Err(ArchiveError::Commit("a gap lies outside its range".to_owned()));
            }
            after.gaps.entry(*partition).or_default().extend(set);
        }
        Ok(after)
    }

    /// Where it stands once it is also known that these logs were cut off.
    pub(super) fn cut_off(mut self, truncated: &BTreeMap<Partition, OffsetRange>) -> Self {
        for (partition, range) in truncated {
            let held = self.truncated.entry(*partition).or_insert(*range);
            *held = OffsetRange {
                from: held.from.min(range.from),
                to: held.to.max(range.to),
            };
        }
        self
    }

    /// Where it stands once this file is put aside, and these offsets are lacking.
    pub(super) fn put_aside(mut self, file: &File, lacking: &OffsetSet) -> Self {
        let partition = file.range.partition;
        let before = self.gaps.get(&partition).cloned().unwrap_or_default();
        for gaps in [&mut self.gaps, &mut self.accepted] {
            gaps.entry(partition).or_default().extend(lacking);
        }
        let aside = Aside {
            file: file.clone(),
            lacking: lacking.clone(),
            own: lacking.without(&before),
        };
        self.aside.insert(file.path.to_string(), aside);
        self
    }

    /// Where it stands once the file that was put aside under this name is back, which holds events at these offsets. The
    /// offsets that went with it are lacking no more, but for those that another file took with it, too.
    ///
    /// # Errors
    /// The first of its offsets that is no gap.
    pub(super) fn put_back(mut self, name: &str, held: &OffsetSet) -> Result<Self, Offset> {
        let Some(aside) = self.aside.remove(name) else {
            return Err(Offset::default());
        };
        let partition = aside.file.range.partition;
        let gaps = self.gaps.remove(&partition).unwrap_or_default();
        let accepted = self.accepted.remove(&partition).unwrap_or_default();
        if let Some(offset) = held.first_beyond(&gaps, Offset::default(), Offset(u64::MAX)) {
            return Err(offset);
        }
        let mut back = aside.own;
        let others = self.aside.values_mut();
        for other in others.filter(|other| other.file.range.partition == partition) {
            let shared = other.lacking.without(&other.lacking.without(&back)).without(held);
            back = back.without(&shared);
            other.own.extend(&shared);
        }
        back.extend(held);
        for (left, all) in [(gaps, &mut self.gaps), (accepted, &mut self.accepted)] {
            let left = left.without(&back);
            if !left.is_empty() {
                all.insert(partition, left);
            }
        }
        Ok(self)
    }

    /// Where it stands once a person accepted that these offsets are lacking.
    pub(super) fn accept(mut self, partition: Partition, gap: OffsetRange) -> Self {
        self.accepted.entry(partition).or_default().insert(gap);
        self
    }

    /// Whether these ranges are in it already, and what is known of logs that were cut off: of a commit that arrived
    /// although its writer was told otherwise.
    pub(super) fn holds(
        &self,
        ranges: &BTreeMap<Partition, OffsetRange>,
        truncated: &BTreeMap<Partition, OffsetRange>,
    ) -> bool {
        ranges.iter().all(|(partition, range)| self.end(*partition) == range.to)
            && self.clone().cut_off(truncated).truncated == self.truncated
    }

    /// The property's text.
    pub(super) fn text(&self) -> String {
        let partitions = self.ends.keys().map(|partition| Listed {
            topic: topic_text(partition.topic),
            partition: partition.number,
            gaps: self.gaps.get(partition).map(pairs).unwrap_or_default(),
            truncated: self.truncated.get(partition).map(|range| (range.from.0, range.to.0)),
            accepted: self.accepted.get(partition).map(pairs).unwrap_or_default(),
            let_go: self.let_go.get(partition).map(|offset| offset.0),
            aside: self.listed_aside(*partition),
        });
        let listing = Listing {
            form: FORM,
            partitions: partitions.collect(),
            horizon: self.horizon.map(|day| day.0),
        };
        serde_json::json!(listing).to_string()
    }

    fn listed_aside(&self, partition: Partition) -> Vec<ListedAside> {
        let aside = self.aside.values();
        let of_partition = aside.filter(|aside| aside.file.range.partition == partition);
        of_partition.map(ListedAside::of).collect()
    }

    /// Reads the property. The ends are all 0: transactions tell them.
    ///
    /// # Errors
    /// What is wrong with the text, for a person.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let listing: Listing = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if listing.form != FORM {
            return Err(format!(
                "{PROPERTY} has form {}, and this Highwater knows form {FORM} only",
                listing.form
            ));
        }
        let mut standing = Self {
            horizon: listing.horizon.map(EventDay),
            ..Self::default()
        };
        for listed in listing.partitions {
            let topic = topic(&listed.topic).ok_or_else(|| format!("`{}` is no topic id", listed.topic))?;
            let partition = Partition {
                topic,
                number: listed.partition,
            };
            standing.ends.insert(partition, Offset::default());
            for (pairs, gaps) in [
                (&listed.gaps, &mut standing.gaps),
                (&listed.accepted, &mut standing.accepted),
            ] {
                let set = set(pairs);
                if !set.is_empty() {
                    gaps.insert(partition, set);
                }
            }
            if let Some((from, to)) = listed.truncated {
                let (from, to) = (Offset(from), Offset(to));
                standing.truncated.insert(partition, OffsetRange { from, to });
            }
            if let Some(offset) = listed.let_go {
                standing.let_go.insert(partition, Offset(offset));
            }
            for aside in listed.aside {
                standing.aside.insert(aside.file.clone(), aside.read(partition));
            }
        }
        Ok(standing)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    form: u32,
    partitions: Vec<Listed>,
    /// Days since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    horizon: Option<i32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    topic: String,
    partition: u32,
    gaps: Vec<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    truncated: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accepted: Vec<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    let_go: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aside: Vec<ListedAside>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedAside {
    file: String,
    bytes: u64,
    rows: u64,
    day: i32,
    offsets: (u64, u64),
    times: (i64, i64),
    rules: Option<String>,
    lacking: Vec<(u64, u64)>,
    own: Vec<(u64, u64)>,
}

impl ListedAside {
    fn of(aside: &Aside) -> Self {
        let file = &aside.file;
        Self {
            file: file.path.to_string(),
            bytes: file.size,
            rows: file.rows,
            day: file.range.day.0,
            offsets: (file.range.first.0, file.range.last.0),
            times: file.times,
            rules: file.rules.clone(),
            lacking: pairs(&aside.lacking),
            own: pairs(&aside.own),
        }
    }

    fn read(self, partition: Partition) -> Aside {
        Aside {
            file: File {
                path: self.file.into(),
                size: self.bytes,
                rows: self.rows,
                range: ArchivedRange {
                    day: EventDay(self.day),
                    partition,
                    first: Offset(self.offsets.0),
                    last: Offset(self.offsets.1),
                },
                times: self.times,
                rules: self.rules,
            },
            lacking: set(&self.lacking),
            own: set(&self.own),
        }
    }
}

fn set(pairs: &[(u64, u64)]) -> OffsetSet {
    let ranges = pairs.iter().map(|(from, to)| OffsetRange {
        from: Offset(*from),
        to: Offset(*to),
    });
    ranges.collect()
}

fn pairs(gaps: &OffsetSet) -> Vec<(u64, u64)> {
    gaps.ranges().iter().map(|range| (range.from.0, range.to.0)).collect()
}

/// A topic's incarnation as 32 hexadecimal digits.
pub(super) fn topic_text(topic: TopicId) -> String {
    format!("{:032x}", topic.0)
}

/// A topic's incarnation from that text.
pub(super) fn topic(text: &str) -> Option<TopicId> {
    (text.len() == 32)
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
        .map(TopicId)
}

/// The application transaction that holds a partition's end.
pub(super) fn transaction(partition: Partition) -> String {
    format!("highwater/{}/{}", topic_text(partition.topic), partition.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u32) -> Partition {
        Partition {
            topic: TopicId(0xab),
            number,
        }
    }

    fn range(from: u64, to: u64) -> OffsetRange {
        OffsetRange {
            from: Offset(from),
            to: Offset(to),
        }
    }

    fn file(path: &str, first: u64, last: u64) -> File {
        File {
            path: path.into(),
            size: 7,
            rows: 2,
            range: ArchivedRange {
                day: EventDay(3),
                partition: partition(0),
                first: Offset(first),
                last: Offset(last),
            },
            times: (1, 2),
            rules: None,
        }
    }

    fn offsets(of: impl IntoIterator<Item = u64>) -> OffsetSet {
        of.into_iter().map(|offset| range(offset, offset + 1)).collect()
    }

    /// Files whose offsets take turns, put aside and back in any order: what Kafka lacked stays, the rest goes.
    #[test]
    fn what_was_put_aside_comes_back_without_what_others_took() {
        // Offsets 0 to 11: 0 and 1 were never in Kafka, 2, 5, 8 are of one file, 3, 6, 9 of another, 4 and 7 were refused.
        let held = [offsets([2, 5, 8]), offsets([3, 6, 9])];
        let files = [file("a", 2, 8), file("b", 3, 9)];
        let before = Standing {
            ends: [(partition(0), Offset(0))].into(),
            gaps: [(partition(0), offsets([0, 1]))].into(),
            ..Standing::default()
        };
        for order in [[0, 1], [1, 0]] {
            // The second one could not be read when the first went: it takes all between with it.
            let lacking = [offsets(2..9), offsets(3..10)];
            let aside = before
                .clone()
                .put_aside(&files[0], &lacking[0])
                .put_aside(&files[1], &lacking[1]);
            assert_eq!(aside.gaps[&partition(0)], offsets(0..10));
            let aside = Standing::parse(&aside.text()).unwrap();
            let name = |at: usize| files[at].path.to_string();
            let one = aside.put_back(&name(order[0]), &held[order[0]]).unwrap();
            let gaps = &one.gaps[&partition(0)];
            for offset in (0..10).map(Offset) {
                if held[order[0]].contains(offset) {
                    assert!(!gaps.contains(offset), "{offset}");
                } else if held[order[1]].contains(offset) || offset < Offset(2) {
                    assert!(gaps.contains(offset), "{offset}");
                }
            }
            let both = one.clone().put_back(&name(order[1]), &held[order[1]]).unwrap();
            assert_eq!(both, before);
            assert_eq!(one.put_back(&name(order[1]), &offsets([12])), Err(Offset(12)));
        }
    }

    #[test]
    fn a_range_begins_at_the_end() {
        let empty = Standing::default();
        let first = empty
            .after(&[(partition(0), range(0, 5))].into(), &BTreeMap::new())
            .unwrap();
        assert_eq!(first.end(partition(0)), Offset(5));
        for from in [0, 4, 6] {
            let error = first
                .after(&[(partition(0), range(from, 9))].into(), &BTreeMap::new())
                .unwrap_err();
            assert!(
                matches!(error, ArchiveError::Overtaken { end: Offset(5), .. }),
                "{error}"
            );
        }
        let second = first.after(
            &[(partition(0), range(5, 9)), (partition(1), range(0, 2))].into(),
            &BTreeMap::new(),
        );
        assert_eq!(
            second.unwrap().ends,
            [(partition(0), Offset(9)), (partition(1), Offset(2))].into()
        );
    }

    #[test]
    fn a_gap_lies_in_its_range() {
        let ranges: BTreeMap<_, _> = [(partition(0), range(0, 10))].into();
        for (gap, fits) in [(range(0, 3), true), (range(3, 10), true), (range(9, 11), false)] {
            let after = Standing::default().after(&ranges, &[(partition(0), [gap].into_iter().collect())].into());
            assert_eq!(after.is_ok(), fits, "{gap:?}");
        }
        let elsewhere = [(partition(1), [range(0, 1)].into_iter().collect())].into();
        assert!(Standing::default().after(&ranges, &elsewhere).is_err());
    }

    #[test]
    fn what_is_known_of_a_log_that_was_cut_off_is_part_of_a_commit() {
        let ranges: BTreeMap<_, _> = [(partition(0), range(9, 9))].into();
        let standing = Standing {
            ends: [(partition(0), Offset(9))].into(),
            ..Standing::default()
        };
        let cut_off: BTreeMap<_, _> = [(partition(0), range(5, 9))].into();
        assert!(standing.holds(&ranges, &BTreeMap::new()));
        assert!(!standing.holds(&ranges, &cut_off));
        assert!(standing.cut_off(&cut_off).holds(&ranges, &cut_off));
    }

    #[test]
    fn the_property_is_read_as_written() {
        let gaps: OffsetSet = [range(0, 3), range(7, 9)].into_iter().collect();
        let standing = Standing {
            ends: [(partition(0), Offset(0)), (partition(2), Offset(0))].into(),
            gaps: [(partition(2), gaps)].into(),
            ..Standing::default()
        };
        let text = standing.text();
        assert_eq!(
            text,
            r#"{"form":1,"partitions":[{"gaps":[],"partition":0,"topic":"000000000000000000000000000000ab"},{"gaps":[[0,3],[7,9]],"partition":2,"topic":"000000000000000000000000000000ab"}]}"#
        );
        assert_eq!(Standing::parse(&text).unwrap(), standing);
        let cut_off = standing.cut_off(&[(partition(0), range(5, 9))].into());
        assert!(cut_off.text().contains(r#""truncated":[5,9]"#));
        assert_eq!(Standing::parse(&cut_off.text()).unwrap(), cut_off);
        let aside = cut_off.put_aside(&file("a", 1, 3), &[range(1, 4)].into_iter().collect());
        assert_eq!(aside.gaps[&partition(0)], aside.accepted[&partition(0)]);
        assert_eq!(Standing::parse(&aside.text()).unwrap(), aside);
        let gone = ArchivedRange {
            day: EventDay(16_008),
            partition: partition(2),
            first: Offset(3),
            last: Offset(6),
        };
        let later = aside.kept_from(Some(EventDay(16_009)), [gone]);
        assert!(later.text().contains(r#""horizon":16009"#) && later.text().contains(r#""let_go":7"#));
        assert_eq!(Standing::parse(&later.text()).unwrap(), later);
        let earlier = later.clone().kept_from(Some(EventDay(3)), []);
        assert_eq!(earlier, later, "it only rises");
        assert_eq!([16_008, 16_009].map(|day| later.keeps(EventDay(day))), [false, true]);
        assert!(
            Standing::parse(r#"{"form":2,"partitions":[]}"#)
                .unwrap_err()
                .contains("form 2")
        );
        assert!(Standing::parse("{}").is_err());
    }
}
