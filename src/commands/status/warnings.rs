//! What needs attention, in sentences: nothing of it is a failure of looking.

use std::collections::BTreeMap;

use shared_schemas::config::Config;
use shared_schemas::dataset::Dataset;
use shared_schemas::definitions::Definitions;
use shared_schemas::fingerprint::Fingerprint;
use shared_schemas::handoff::{ChunkSize, OffsetRange, OffsetSet, Partition, TopicId, counts};
use shared_schemas::view::View;

use super::look::{ArchiveSight, Sight, ViewSight};
use super::report::{standing, topic_in_use};
use super::told::{ago, count, offsets, seconds_since};

/// Of so many characters is a fingerprint known to people.
const SHORT: usize = 8;
/// Fewer records than this say nothing about a share.
const ENOUGH: u64 = 100;

/// All warnings, in the order of the definitions.
pub(super) fn warnings(config: &Config, definitions: &Definitions, sight: &Sight) -> Vec<String> {
    let mut warnings = Vec::new();
    for dataset in &definitions.datasets {
        let about = About {
            dataset,
            invalid_alarm: config.speed.invalid_alarm,
            rules: Fingerprint::of_rules(dataset).to_string(),
            topic: topic_in_use(dataset, definitions, sight),
            warnings: &mut warnings,
        };
        about.warn(definitions, sight);
    }
    warnings
}

struct About<'a> {
    dataset: &'a Dataset,
    /// A larger share of refused records than this is worth a warning.
    invalid_alarm: f64,
    /// The fingerprint of the rules as they are defined now.
    rules: String,
    topic: Option<TopicId>,
    warnings: &'a mut Vec<String>,
}

impl About<'_> {
    fn warn(mut self, definitions: &Definitions, sight: &Sight) {
        let archive = sight
            .archives
            .get(&self.dataset.name)
            .and_then(|seen| seen.as_ref().ok());
        if let Some(Some(archive)) = archive {
            self.archive(archive);
        }
        for view in definitions
            .views
            .iter()
            .filter(|view| view.dataset == self.dataset.name)
        {
            if let Some(Ok(seen)) = sight.store.views.get(&view.name) {
                self.workers(view, seen, sight);
                self.read_otherwise(view, seen);
                self.gaps(view, seen);
            }
        }
        self.refused(definitions, sight);
        self.unsure(definitions, sight);
        let letters = sight
            .kafka
            .letters
            .get(&self.dataset.topic)
            .and_then(|seen| seen.as_ref().ok());
        if let Some(letters) = letters.filter(|letters| letters.unread > 0) {
            self.warnings.push(format!(
                "dataset {}: not all dead letters are counted, {} of topic {}.dead-letters were not looked at",
                self.dataset.name,
                count(letters.unread, "offset"),
                self.dataset.topic,
            ));
        }
    }

    /// A large share of refused records, in what some view counts above its marks; of several views the first is told.
    fn refused(&mut self, definitions: &Definitions, sight: &Sight) {
        let of_dataset = definitions
            .views
            .iter()
            .filter(|view| view.dataset == self.dataset.name);
        let mut large = of_dataset.filter_map(|view| {
            let Some(Ok(seen)) = sight.store.views.get(&view.name) else {
                return None;
            };
            let ledgers = seen
                .ledgers
                .iter()
                .filter(|(partition, ..)| is_in_use(*partition, self.topic));
            let (read, refused) = ledgers.fold((0, 0), |(read, refused), (_, _, ledger)| {
                (read + ledger.read, refused + ledger.refused())
            });
            #[expect(clippy::cast_precision_loss, reason = "a share for people")]
            let share = (read >= ENOUGH).then(|| refused as f64 / read as f64)?;
            (share > self.invalid_alarm).then_some((view, share))
        });
        let first = large.next();
        if let Some((view, share)) = first {
            self.warnings.push(format!(
                "dataset {}: {:.1} % of the records that view {} counts above its marks were refused, more than \
                 speed.invalid_alarm: see `highwater dead-letters list {0}`",
                self.dataset.name,
                share * 100.0,
                view.name,
            ));
        }
    }

    /// Records above the marks that may be repeats, for all that the filters remembered; of several views the one with most
    /// is told.
    fn unsure(&mut self, definitions: &Definitions, sight: &Sight) {
        let Ok(chunk) = ChunkSize::new(self.dataset.chunk) else {
            return;
        };
        let of_view = |view: &View| {
            let seen = sight.store.views.get(&view.name)?.as_ref().ok()?;
            let unsure = seen.ledgers.iter().filter(|(partition, start, _)| {
                let mark = seen.facts.mark(*partition);
                is_in_use(*partition, self.topic) && *start >= mark.start() && counts(mark, *start, chunk)
            });
            Some(unsure.map(|(_, _, ledger)| ledger.unsure).sum::<u64>())
        };
        let of_dataset = definitions
            .views
            .iter()
            .filter(|view| view.dataset == self.dataset.name);
        let most = of_dataset.filter_map(|view| Some((of_view(view)?, view)));
        let Some((unsure, view)) = most.max_by_key(|(unsure, _)| *unsure).filter(|(unsure, _)| *unsure > 0) else {
            return;
        };
        self.warnings.push(format!(
            "dataset {}: {} that view {} counts above its marks may be repeats, since not the whole `dedupe.window` was remembered: \
             `dedupe.memory` is too small for it, or the log began later; the next batch run knows",
            self.dataset.name,
            count(unsure, "record"),
            view.name,
        ));
    }

    /// Partitions that no worker takes further, or none for now.
    fn workers(&mut self, view: &View, seen: &ViewSight, sight: &Sight) {
        let topic = self.topic;
        let rows = seen.freshness.iter().filter(|row| is_in_use(row.partition, topic));
        for row in rows {
            let (state, Some(reason)) = standing(seen, row, sight.at) else {
                continue;
            };
            self.warnings.push(format!(
                "view {}: the speed layer is {} on partition {} (a worker spoke of it {}): {reason}",
                view.name,
                state.words(),
                row.partition.number,
                ago(seconds_since(row.seen, sight.at)),
            ));
        }
    }

    /// What was read under other rules than those of the definitions.
    fn read_otherwise(&mut self, view: &View, seen: &ViewSight) {
        let mut other: BTreeMap<(Partition, &str), OffsetRange> = BTreeMap::new();
        for (partition, start, ledger) in seen.ledgers.iter().filter(|(_, _, ledger)| ledger.rules != self.rules) {
            let range = OffsetRange {
                from: start.0,
                to: ledger.next,
            };
            let known = other.entry((*partition, &ledger.rules)).or_insert(range);
            known.from = known.from.min(range.from);
            known.to = known.to.max(range.to);
        }
        for ((partition, rules), range) in other {
            let who = format!("view {}: the speed layer", view.name);
            self.otherwise(&who, "read", partition, range, rules);
        }
        let newest = seen.facts.newest();
        let newest = newest.map(|newest| (newest, newest.origin.rules.to_string()));
        if let Some((newest, rules)) = newest.filter(|(_, rules)| *rules != self.rules) {
            self.warnings.push(format!(
                "view {}: publication {} was computed under rules {}, and the definitions have {}",
                view.name,
                newest.publication.number.0,
                short(&rules),
                short(&self.rules),
            ));
        }
    }

    fn archive(&mut self, archive: &ArchiveSight) {
        let topic = self.topic;
        for ((partition, rules), range) in &archive.rules {
            if *rules != self.rules && is_in_use(*partition, topic) {
                let who = format!("dataset {}: the archive", self.dataset.name);
                self.otherwise(&who, "holds", *partition, *range, rules);
            }
        }
        for (partition, gaps) in archive
            .gaps
            .iter()
            .filter(|(partition, _)| is_in_use(**partition, topic))
        {
            let who = format!("dataset {}: the archive", self.dataset.name);
            self.lacks(&who, *partition, gaps);
        }
        for (partition, range) in archive
            .truncated
            .iter()
            .filter(|(partition, _)| is_in_use(**partition, topic))
        {
            self.warnings.push(format!(
                "dataset {}: the archive goes no further on partition {}: its log ended at offset {} after it was archived up \
                 to {}; make the topic again to go on",
                self.dataset.name, partition.number, range.from, range.to,
            ));
        }
        let earlier = archive.ends.keys().filter(|partition| !is_in_use(**partition, topic));
        let earlier = u64::try_from(earlier.count()).unwrap_or(u64::MAX);
        if earlier > 0 {
            self.warnings.push(format!(
                "dataset {}: the archive also holds {} of an earlier topic of that name",
                self.dataset.name,
                count(earlier, "partition"),
            ));
        }
    }

    /// What neither layer has, or could be sure of, of what now answers.
    fn gaps(&mut self, view: &View, seen: &ViewSight) {
        let Ok(chunk) = ChunkSize::new(self.dataset.chunk) else {
            return;
        };
        if let Some(newest) = seen.facts.newest() {
            for (partition, gaps) in &newest.publication.gaps {
                let who = format!("view {}: publication {}", view.name, newest.publication.number.0);
                self.lacks(&who, *partition, gaps);
            }
        }
        for (partition, progress) in &seen.facts.progress {
            let gaps = progress.gaps_from(seen.facts.mark(*partition), chunk);
            self.lacks(&format!("view {}: the speed layer", view.name), *partition, &gaps);
        }
    }

    fn otherwise(&mut self, who: &str, does: &str, partition: Partition, range: OffsetRange, rules: &str) {
        self.warnings.push(format!(
            "{who} {does} partition {}, {}, under rules {}, and the definitions have {}",
            partition.number,
            offsets(range),
            short(rules),
            short(&self.rules),
        ));
    }

    fn lacks(&mut self, who: &str, partition: Partition, gaps: &OffsetSet) {
        let Some((first, others)) = gaps.ranges().split_first() else {
            return;
        };
        let more = match u64::try_from(others.len()) {
            Ok(0) => String::new(),
            others => format!(" and {} more", count(others.unwrap_or(u64::MAX), "range")),
        };
        self.warnings.push(format!(
            "{who} lacks {}{more} of partition {}: Kafka no longer had them",
            offsets(*first),
            partition.number,
        ));
    }
}

/// Whether the partition is one of the topic that is in use; where that is not known, every one is.
fn is_in_use(partition: Partition, topic: Option<TopicId>) -> bool {
    topic.is_none_or(|topic| partition.topic == topic)
}

/// The beginning of a fingerprint.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(SHORT).collect()
}
