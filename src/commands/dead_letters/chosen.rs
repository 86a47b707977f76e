//! Which dead letters a command is about.

use chrono::{DateTime, TimeDelta, Utc};
use shared_connections::log::letters::{Letter, Source};
use shared_schemas::decode::Reason;
use shared_schemas::handoff::Offset;
use shared_schemas::units;

/// Which dead letters; all that is given must fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    /// Refused for this reason; may be given several times
    #[arg(long, value_name = "REASON", value_parser = Reason::ALL.map(Reason::name))]
    reason: Vec<String>,
    /// Of records whose Kafka timestamp is this or later: RFC 3339, or so long ago as in 1h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<DateTime<Utc>>,
    /// Of records whose Kafka timestamp is before this
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<DateTime<Utc>>,
    /// Of records in this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Of the record at this offset of the partition
    #[arg(long, value_name = "N", requires = "partition")]
    offset: Option<u64>,
}

impl Filters {
    /// Whether nothing is given.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            reason,
            from,
            to,
            partition,
            offset,
        } = self;
        reason.is_empty() && from.is_none() && to.is_none() && partition.is_none() && offset.is_none()
    }

    /// Whether the letter fits.
    pub(super) fn fit(&self, letter: &Letter) -> bool {
        let fits = |wanted: Option<u64>, is: u64| wanted.is_none_or(|wanted| wanted == is);
        (self.reason.is_empty() || self.reason.contains(&letter.reason))
            && fits(self.partition.map(u64::from), letter.source.partition.into())
            && fits(self.offset, letter.source.offset.0)
            && self.is_in_time(letter)
    }

    fn is_in_time(&self, letter: &Letter) -> bool {
        if self.from.is_none() && self.to.is_none() {
            return true;
        }
        let time = letter.source_time.as_deref().map(DateTime::parse_from_rfc3339);
        let Some(Ok(time)) = time else {
            return false;
        };
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to)
    }
}

/// Where a record lies: as letters write it, or without the topic, which is the dataset's.
#[derive(Debug, Clone)]
pub(super) struct Place {
    topic: Option<String>,
    pub(super) partition: u32,
    pub(super) offset: Offset,
}

impl Place {
    /// Reads `topic/partition/offset` or `partition/offset`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let with_topic = Source::parse(text).map(|source| (Some(source.topic.clone()), source));
        let without = || Source::parse(&format!("-/{text}")).map(|source| (None, source));
        let (topic, source) = with_topic
            .or_else(without)
            .ok_or("it is not like topic/partition/offset or partition/offset")?;
        Ok(Self {
            topic,
            partition: source.partition,
            offset: source.offset,
        })
    }

    /// In that topic.
    ///
    /// # Errors
    /// A sentence, where it is in another one.
    pub(super) fn within(&self, topic: &str) -> Result<Source, String> {
        match &self.topic {
            Some(other) if other != topic => Err(format!("{other} is not the dataset's topic, which is {topic}")),
            _ => Ok(Source {
                topic: topic.to_owned(),
                partition: self.partition,
                offset: self.offset,
            }),
        }
    }
}

/// A moment: RFC 3339, or so long ago.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Ok(moment.to_utc());
    }
    let ago = units::duration(text).ok().and_then(|ago| TimeDelta::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "it is neither RFC 3339, as in 2013-11-01T00:00:00Z, nor so long ago, as in 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        Letter {
            partition: 0,
            offset: Offset(9),
            dataset: "flights".to_owned(),
            source: Source::parse("flights/1/7").unwrap(),
            source_time: Some("2013-11-01T10:00:00.000Z".to_owned()),
            reason: "not_json".to_owned(),
            detail: String::new(),
            value_bytes: None,
            replay_of: None,
            replayed: None,
        }
    }

    #[test]
    fn all_filters_must_fit() {
        let at = |text| Some(moment(text).unwrap());
        let of = |filters: Filters| filters.fit(&letter());
        let none = Filters::default();
        assert!(none.is_empty() && of(none.clone()));
        let one = Filters {
            partition: Some(1),
            offset: Some(7),
            ..none
        };
        assert!(of(one.clone()) && !one.is_empty());
        let other = Filters {
            reason: vec!["empty".to_owned()],
            ..one
        };
        assert!(!of(other));
        let time = |from, to| Filters {
            from,
            to,
            ..Filters::default()
        };
        assert!(of(time(
            at("2013-11-01T11:00:00+01:00"),
            at("2013-11-01T10:00:00.001Z")
        )));
        assert!(!of(time(None, at("2013-11-01T10:00:00Z"))), "the end is not within");
        assert!(!of(time(at("1h"), None)));
        let timeless = Letter {
            source_time: None,
            ..letter()
        };
        assert!(!time(at("1970-01-01T00:00:00Z"), None).fit(&timeless));
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn a_place_may_leave_out_the_topic() {
        let short = Place::parse("1/7").unwrap().within("flights").unwrap();
        assert_eq!(short, letter().source);
        assert_eq!(Place::parse("flights/1/7").unwrap().within("flights"), Ok(short));
        let other = Place::parse("landings/1/7").unwrap().within("flights");
        assert_eq!(
            other,
            Err("landings is not the dataset's topic, which is flights".to_owned())
        );
        assert!(Place::parse("7").is_err() && Place::parse("a/b").is_err());
    }
}
