//! Where an archive stands: each partition's end, and the offsets below it that it lacks.
//!
//! Ends are application transactions of the table; the property holds the partitions and their gaps, and from which event day on
//! events are kept. This module is pure: whether a commit fits, what comes of it, and the property's text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared_schemas::handoff::{ArchivedRange, EventDay, Offset, OffsetRange, OffsetSet, Partition, TopicId};

use super::error::ArchiveError;

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
    /// Gaps that a person accepted: of files that were put aside. Marks may pass them.
    pub(super) accepted: BTreeMap<Partition, OffsetSet>,
    /// Events of days before that one were let go; those that came later are nobody's to read. It only rises.
    pub(super) horizon: Option<EventDay>,
    /// Of each partition that had such events: from there on there was none. Below, fewer events are there than were archived.
    pub(super) let_go: BTreeMap<Partition, Offset>,
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

    /// Where it stands once these offsets are lacking, by a person's word.
    pub(super) fn put_aside(mut self, partition: Partition, lacking: &OffsetSet) -> Self {
        for gaps in [&mut self.gaps, &mut self.accepted] {
            gaps.entry(partition).or_default().extend(lacking);
        }
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
        });
        let listing = Listing {
            form: FORM,
            partitions: partitions.collect(),
            horizon: self.horizon.map(|day| day.0),
        };
        serde_json::json!(listing).to_string()
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
                let set = pairs.iter().map(|(from, to)| OffsetRange {
                    from: Offset(*from),
                    to: Offset(*to),
                });
                let set: OffsetSet = set.collect();
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
        let aside = cut_off.put_aside(partition(0), &[range(1, 4)].into_iter().collect());
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
