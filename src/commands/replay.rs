//! `highwater replay`: archived events sent out again.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use futures::StreamExt;
use highwater_batch::{replay, sql};
use indicatif::ProgressBar;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use shared_connections::log::Kafka;
use shared_schemas::dataset::{Dataset, EventTime, FieldSource};
use tokio::runtime::Runtime;

use super::output::Output;
use super::produce::key::Key;
use super::produce::{Pace, Report, Sending};
use super::{Place, dataset, used_wrongly};

/// How long a Kafka that does not answer yet is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Send archived events out again, into another topic
///
/// Those with an event time from --from on and before --to: repeats too, each partition's in the order of its offsets, several
/// partitions merged by Kafka time. Each is one JSON object with its fields where the definition reads them from, keyed as
/// `highwater produce` does. Values are as the archive has them, masked, and the header `highwater-masked` says so: whoever reads
/// the topic with the same definition does not mask them again. Undeclared data comes along where the dataset hides nothing. Kafka timestamps
/// are now, unless --keep-times says otherwise: beware of a topic whose retention then removes old records at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater replay flights --from 2013-01-01 --to 2013-02-01 --into flights-january\n  \
    highwater replay flights --from 2013-01-31T12:00:00Z --to 2013-01-31T13:00:00Z --into trial --rate 1000")]
pub(crate) struct Replay {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: String,
    /// From this event time on: RFC 3339, or a day, which begins at midnight UTC
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: DateTime<Utc>,
    /// Before this event time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: DateTime<Utc>,
    /// The topic; it must be there
    #[arg(long, value_name = "TOPIC")]
    into: String,
    /// At most so many events a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// With the Kafka timestamps that the events first had
    #[arg(long)]
    keep_times: bool,
    /// Also into the dataset's own topic, where they are repeats or, without `event_id`, count again
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// A moment, or the beginning of a day.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    let moment = DateTime::parse_from_rfc3339(text);
    moment
        .map(|moment| moment.to_utc())
        .map_err(|_| "write a day, as in 2013-01-31, or a moment, as in 2013-01-31T12:00:00Z".to_owned())
}

impl Replay {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join_with_keys()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(wrong) => return Ok(wrong),
        };
        if let Some(wrong) = self.wrong(dataset) {
            return Ok(used_wrongly(&wrong));
        }
        let kafka = Kafka::new(&config.kafka)?;
        let runtime = Runtime::new()?;
        runtime.block_on(kafka.topic_within(&self.into, PATIENCE))?;
        let mut batches = runtime.block_on(replay::events(&config, dataset, self.from, self.to))?;

        let sending = Sending::new(&kafka, &self.into, "event", ProgressBar::new_spinner())?;
        let key = Key::of(dataset);
        let mut pace = Pace::new(self.rate);
        // A field that is the partition's number needs the same one again.
        let in_place = dataset
            .fields
            .iter()
            .any(|field| field.source == FieldSource::Partition);
        let mut number = 0;
        let sent = loop {
            let batch = match runtime.block_on(batches.next()) {
                None => break Ok(()),
                Some(Ok(batch)) => batch,
                Some(Err(error)) => break Err(sql::broken(&error, &config).into()),
            };
            let records = replay::records(dataset, &batch).map_err(anyhow::Error::msg)?;
            let sent = records.iter().try_for_each(|record| {
                number += 1;
                sending.wait(&mut pace);
                self.send(&sending, &key, number, record, in_place)
            });
            if sent.is_err() || sending.failed() {
                break sent;
            }
        };
        let acknowledged = sending.finish(sent.is_ok());
        let report = Report {
            acknowledged: sending.acknowledged(),
        };
        self.output.print_text(&report, Report::text)?;
        sent.and(acknowledged)?;
        Ok(ExitCode::SUCCESS)
    }

    /// What keeps it from being done.
    fn wrong(&self, dataset: &Dataset) -> Option<String> {
        if self.from >= self.to {
            return Some("--from is not before --to: no event lies between them".to_owned());
        }
        if self.into == dataset.topic && !self.yes {
            return Some(format!(
                "{} is the topic that dataset `{}` is read from: its events would come again; name another one, or add --yes",
                self.into, dataset.name
            ));
        }
        let of_kafka = |source: &FieldSource| matches!(source, FieldSource::KafkaTime);
        let needs_times =
            dataset.event_time == EventTime::KafkaTime || dataset.fields.iter().any(|field| of_kafka(&field.source));
        (needs_times && !self.keep_times).then(|| {
            format!(
                "dataset `{}` reads the Kafka timestamp, which would be now: add --keep-times",
                dataset.name
            )
        })
    }

    fn send(
        &self,
        sending: &Sending<'_>,
        key: &Key,
        number: usize,
        record: &replay::Record,
        in_place: bool,
    ) -> anyhow::Result<()> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header {
                key: name,
                value: Some(value),
            });
        }
        let of_event = key.of_line(&record.value);
        let key = record.key.as_ref().map(String::as_bytes).or(of_event.as_deref());
        let mut message = BaseRecord::with_opaque_to(&self.into, number)
            .payload(record.value.as_slice())
            .headers(headers);
        if let Some(key) = key {
            message = message.key(key);
        }
        if in_place {
            message = message.partition(record.partition);
        }
        if self.keep_times {
            message = message.timestamp(record.kafka_time);
        }
        sending.send(number, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_in_utc() {
        let shown = |text| moment(text).map(|moment| moment.to_rfc3339());
        assert_eq!(shown("2013-01-31").unwrap(), "2013-01-31T00:00:00+00:00");
        assert_eq!(shown("2013-01-31T12:00:00+02:00").unwrap(), "2013-01-31T10:00:00+00:00");
        for wrong in ["", "yesterday", "2013-13-01", "2013-01-31T12:00:00"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
