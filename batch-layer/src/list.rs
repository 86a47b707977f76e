//! The publications of a view, and what became of each.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use shared_connections::store::{Published, Store, StoreError};
use shared_schemas::handoff::{Floor, Publication, PublicationNumber, newest};
use shared_schemas::view::View;

use crate::publish::{Line, line};
use crate::recompute::topic_text;
use crate::report::day_text;

/// A publication as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The view.
    pub view: String,
    /// Its number.
    pub number: u64,
    /// The run that made it, 32 hexadecimal digits.
    pub run: String,
    /// When, RFC 3339.
    pub published_at: String,
    /// What became of it.
    pub state: State,
    /// The number whose content it carries; another than its own for a rollback.
    pub content: u64,
    /// The number of the publication that it was made on.
    pub parent: Option<u64>,
    /// How many event days it holds.
    pub days: usize,
    /// The first of them, as in 2013-01-31.
    pub first_day: Option<String>,
    /// The last of them.
    pub last_day: Option<String>,
    /// Below which offset it answers, per partition.
    pub marks: Vec<MarkListed>,
    /// How many ranges of offsets below its marks the archive lacked.
    pub gaps: usize,
    /// The archive's version that it was computed from.
    pub archive_version: u64,
}

/// A mark as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MarkListed {
    /// The topic's incarnation, 32 hexadecimal digits.
    pub topic: String,
    /// Kafka's partition number.
    pub partition: u32,
    /// Below which offset batch answers.
    pub mark: u64,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It answers.
    Newest,
    /// It answered, and later ones were built on it. It can be restored.
    Succeeded,
    /// It answered, until an older one was restored. It can be restored.
    RolledBack,
    /// Another one came with the same number: it never answers, or no longer does.
    Beaten,
    /// It lies below the floor: its rows may be gone, and it can't be restored.
    LetGo,
}

impl State {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Succeeded => "succeeded",
            Self::RolledBack => "rolled back",
            Self::Beaten => "beaten",
            Self::LetGo => "let go",
        }
    }
}

/// The publications of a view, the newest first.
///
/// # Errors
/// The store's.
pub async fn list(store: &Store, view: &View) -> Result<Vec<Listed>, StoreError> {
    let Line { published, all, floor } = line(store, view).await?;
    let listed = published
        .iter()
        .rev()
        .map(|one| Listed::of(view, one, state(&one.publication, &all, &floor)));
    Ok(listed.collect())
}

impl Listed {
    fn of(view: &View, published: &Published, state: State) -> Self {
        let publication = &published.publication;
        let at = DateTime::from_timestamp_millis(published.at).unwrap_or_default();
        Self {
            view: view.name.clone(),
            number: publication.number.0,
            run: format!("{:032x}", publication.run.0),
            published_at: at.to_rfc3339_opts(SecondsFormat::Millis, true),
            state,
            content: publication.content.0,
            parent: publication.parent.map(|(number, _)| number.0),
            days: publication.days.len(),
            first_day: publication.days.first_key_value().map(|(day, _)| day_text(*day)),
            last_day: publication.days.last_key_value().map(|(day, _)| day_text(*day)),
            marks: marks(publication),
            gaps: publication.gaps.values().map(|gaps| gaps.ranges().len()).sum(),
            archive_version: published.origin.archive_version,
        }
    }
}

/// A publication's marks as they are shown.
pub(crate) fn marks(publication: &Publication) -> Vec<MarkListed> {
    let listed =
        |(partition, mark): (&shared_schemas::handoff::Partition, &shared_schemas::handoff::Mark)| MarkListed {
            topic: topic_text(partition.topic),
            partition: partition.number,
            mark: mark.0.0,
        };
    publication.marks.iter().map(listed).collect()
}

/// Of those with that number, the one that answers for it.
pub(crate) fn of_number(number: PublicationNumber, all: &[Publication]) -> Option<&Publication> {
    let of_number = all.iter().filter(|publication| publication.number == number);
    of_number.max_by_key(|publication| publication.key())
}

/// Whether the row of that number was deleted: there are no numbers before the first, and none is passed over.
pub(crate) fn is_forgotten(number: u64, left: impl Iterator<Item = u64>) -> bool {
    number > 0 && left.min().is_some_and(|lowest| number < lowest)
}

fn state(of: &Publication, all: &[Publication], floor: &Floor) -> State {
    if of_number(of.number, all).is_some_and(|winner| winner.run != of.run) {
        return State::Beaten;
    }
    if !floor.admits(of) {
        return State::LetGo;
    }
    let Some(newest) = newest(all, floor) else {
        return State::LetGo;
    };
    if newest.key() == of.key() {
        State::Newest
    } else if built_on(newest, all).contains(&of.content) {
        State::Succeeded
    } else {
        State::RolledBack
    }
}

/// The contents that the newest one rests on: its own, and that of each parent of a run.
fn built_on(newest: &Publication, all: &[Publication]) -> BTreeSet<PublicationNumber> {
    let mut contents = BTreeSet::new();
    let mut at = Some(newest.content);
    // Contents' numbers only go down, so this ends.
    while let Some(content) = at.filter(|content| contents.insert(*content)) {
        at = of_number(content, all)
            .and_then(|publication| publication.parent)
            .and_then(|(number, _)| of_number(number, all))
            .map(|parent| parent.content);
    }
    contents
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shared_schemas::handoff::RunId;

    use super::*;

    #[test]
    fn what_became_of_each() {
        let run = |parent: Option<&Publication>, id| {
            Publication::of_run(parent, RunId(id), BTreeMap::new(), &BTreeMap::new(), &BTreeSet::new())
        };
        let first = run(None, 1);
        let second = run(Some(&first), 2);
        let beaten = run(Some(&second), 3);
        let third = run(Some(&second), 4);
        let back = Publication::rollback(&third, &first, RunId(5));
        let on = run(Some(&back), 6);
        let states =
            |all: &[Publication], floor: &Floor| all.iter().map(|one| state(one, all, floor)).collect::<Vec<_>>();
        use State::{Beaten, LetGo, Newest, RolledBack, Succeeded};
        let line = [first, second, beaten, third, back, on];
        assert_eq!(
            states(&line[..4], &Floor::default()),
            [Succeeded, Succeeded, Beaten, Newest]
        );
        assert_eq!(
            states(&line[..5], &Floor::default()),
            [Succeeded, RolledBack, Beaten, RolledBack, Newest],
            "a rollback carries the first one's content"
        );
        let floor = Floor {
            number: PublicationNumber(2),
            ..Floor::default()
        };
        assert_eq!(
            states(&line, &floor),
            [LetGo, RolledBack, Beaten, RolledBack, LetGo, Newest],
            "a rollback to what is let go is let go with it"
        );
        assert_eq!(
            states(&line, &Floor::default()),
            [Succeeded, RolledBack, Beaten, RolledBack, Succeeded, Newest]
        );
    }
}
