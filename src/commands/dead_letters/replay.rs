//! `highwater dead-letters replay`: refused records sent again, each once.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use serde::Serialize;
use shared_connections::log::Kafka;
use shared_connections::log::letters::find::{Letters, Order};
use shared_connections::log::letters::replay::{Replay as Transactions, ReplayError, Resend, Sent};
use shared_connections::log::letters::{Letter, Record, Source};
use shared_connections::sentence;
use shared_schemas::dataset::Dataset;
use shared_schemas::decode::MASKED_HEADER;

use super::chosen::{self, Filters};
use super::original::{Original, Originals};
use crate::commands::output::{Output, columns};
use crate::commands::produce::key::Key;
use crate::commands::{Place, dataset, used_wrongly};

/// Records in one transaction, at most,
const TOGETHER: usize = 64;
/// or with so many bytes: they are held in memory twice.
const BYTES_TOGETHER: usize = 16 << 20;
/// A corrected payload has at most so many bytes.
const LARGEST_PAYLOAD: u64 = 64 << 20;

/// Send refused records again: to the dataset's topic, as they were, or corrected
///
/// The oldest first, by the records' Kafka timestamps. Key, value and headers are the original's, the partition too; the
/// Kafka timestamp is now. Where the letter has no value (its dataset is masked, or it did not fit) the record is read again
/// from where it lay. Each is sent in one transaction with a marker in the topic of dead letters: one that has a marker is not
/// sent again without --again, whoever tries, how often, or at the same time. What is refused again becomes a new dead letter.
/// Exits 1 where a record is gone or was not accepted; the others are sent all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater dead-letters replay flights --reason bad_time --from 2h --dry-run\n  \
    highwater dead-letters replay flights --all\n  \
    highwater dead-letters replay flights flights/3/81204 flights/0/77\n  \
    highwater dead-letters replay flights 3/81204 --payload corrected.json")]
pub(super) struct Replay {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: String,
    /// Only these records: topic/partition/offset, or partition/offset
    #[arg(value_name = "SOURCE", value_parser = chosen::Place::parse)]
    sources: Vec<chosen::Place>,
    #[command(flatten)]
    filters: Filters,
    /// All that were not sent again yet
    #[arg(long)]
    all: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Send this instead of the value; of one SOURCE. - is stdin
    #[arg(long, value_name = "FILE|-", requires = "sources")]
    payload: Option<PathBuf>,
    /// The values in the payload are masked already: hashes are not to be hashed again
    #[arg(long, requires = "payload")]
    masked: bool,
    /// Also those that were sent again before
    #[arg(long)]
    again: bool,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    dataset: String,
    topic: String,
    dry_run: bool,
    /// How many were sent, or would be.
    sent: usize,
    /// How many had been sent before, and were not now.
    skipped: usize,
    /// How many could not be sent.
    failed: usize,
    /// Whether there are more that fit.
    more: bool,
    records: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    source: String,
    outcome: Outcome,
    /// Where it is now.
    to: Option<String>,
    /// Why it was not sent.
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Sent,
    WouldSend,
    SentBefore,
    Gone,
    NotAccepted,
    NoLetter,
    NotTried,
}

impl Outcome {
    fn told(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::WouldSend => "would be sent",
            Self::SentBefore => "was sent before",
            Self::Gone => "gone",
            Self::NotAccepted => "not accepted",
            Self::NoLetter => "no dead letter",
            Self::NotTried => "not tried",
        }
    }
}

impl Replay {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(wrong) => return Ok(wrong),
        };
        let sources = self.sources.iter().map(|place| place.within(&dataset.topic));
        let sources = match sources.collect::<Result<Vec<_>, _>>() {
            Ok(sources) => sources,
            Err(wrong) => return Ok(used_wrongly(&wrong)),
        };
        if sources.is_empty() && self.filters.is_empty() && !self.all {
            return Ok(used_wrongly(
                "say which records to send again: by SOURCE, by a filter like --reason, or --all",
            ));
        }
        if self.payload.is_some() && sources.len() != 1 {
            return Ok(used_wrongly("--payload is for one SOURCE"));
        }
        let payload = self.payload.as_deref().map(read).transpose()?;
        let kafka = Kafka::new(&config.kafka)?;
        let partitions = tokio::runtime::Runtime::new()?
            .block_on(kafka.topic(&dataset.topic))?
            .partitions;
        // Before the markers are read: from here on nobody else can write one.
        let transactions = if self.dry_run {
            None
        } else {
            Some(Transactions::begin(&kafka, &dataset.topic)?)
        };
        let wanted = |letter: &Letter| {
            letter.dataset == dataset.name
                && self.filters.fit(letter)
                && (sources.is_empty() || sources.contains(&letter.source))
        };
        let found = kafka.letters(&dataset.topic, Order::OldestFirst, &wanted)?;
        let mut work = Work {
            command: &self,
            dataset,
            partitions,
            payload,
            originals: Originals::of(&kafka, &dataset.topic)?,
            transactions,
            together: Vec::new(),
            bytes: 0,
            rows: Vec::new(),
        };
        work.miss(&sources, &found);
        let (chosen, more) = work.choose(found);
        let done = work.send_all(&chosen);
        let report = Report {
            dataset: dataset.name.clone(),
            topic: dataset.topic.clone(),
            dry_run: self.dry_run,
            sent: work.count(&[Outcome::Sent, Outcome::WouldSend]),
            skipped: work.count(&[Outcome::SentBefore]),
            failed: work.count(&[
                Outcome::Gone,
                Outcome::NotAccepted,
                Outcome::NoLetter,
                Outcome::NotTried,
            ]),
            more,
            records: work.rows,
        };
        self.output.print_text(&report, text)?;
        done?;
        Ok(if report.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// What is to be sent, and what became of it.
struct Work<'a> {
    command: &'a Replay,
    dataset: &'a Dataset,
    /// The topic's.
    partitions: u32,
    payload: Option<Vec<u8>>,
    originals: Originals,
    /// None where nothing is to be sent.
    transactions: Option<Transactions>,
    /// For the next transaction.
    together: Vec<Resend>,
    bytes: usize,
    rows: Vec<Row>,
}

impl Work<'_> {
    /// Sources that are no dead letters.
    fn miss(&mut self, sources: &[Source], found: &Letters) {
        for source in sources {
            if !found.letters.iter().any(|letter| letter.source == *source) {
                self.tell(source, Outcome::NoLetter, None, None);
            }
        }
    }

    /// Those to be sent, as many as may be; whether there are more.
    fn choose(&mut self, found: Letters) -> (Vec<Letter>, bool) {
        let (sent_before, mut chosen): (Vec<_>, Vec<_>) = found
            .letters
            .into_iter()
            .partition(|letter| letter.replayed.is_some() && !self.command.again);
        for letter in sent_before {
            self.tell(&letter.source, Outcome::SentBefore, None, None);
        }
        let most = usize::try_from(self.command.limit).unwrap_or(usize::MAX);
        let more = chosen.len() > most || found.is_cut;
        chosen.truncate(most);
        (chosen, more)
    }

    /// Sends them, oldest first but for order within a transaction. After an error the rest was not tried.
    fn send_all(&mut self, chosen: &[Letter]) -> anyhow::Result<()> {
        let mut tried = 0;
        for part in chosen.chunks(TOGETHER) {
            // As they lie in their topics, so that each of these is read forward.
            let mut part: Vec<_> = part.iter().collect();
            part.sort_by_key(|letter| match letter.value_bytes {
                Some(_) => (0, letter.partition, letter.offset),
                None => (1, letter.source.partition, letter.source.offset),
            });
            let sent = part.iter().try_for_each(|letter| self.prepare(letter));
            if let Err(error) = sent.and_then(|()| self.flush()) {
                let told: Vec<_> = self.rows.iter().map(|row| row.source.clone()).collect();
                for letter in &chosen[tried..] {
                    if !told.contains(&letter.source.to_string()) {
                        self.tell(&letter.source, Outcome::NotTried, None, None);
                    }
                }
                return Err(error);
            }
            tried += part.len();
        }
        Ok(())
    }

    /// Gets the record, to be sent with others.
    fn prepare(&mut self, letter: &Letter) -> anyhow::Result<()> {
        let original = self.originals.get(letter)?;
        let (mut record, is_there) = match (original, &self.payload) {
            (Original::InLetter(record) | Original::AtSource(record), _) => (record, true),
            (Original::Gone(why), None) => {
                self.tell(&letter.source, Outcome::Gone, None, Some(why));
                return Ok(());
            }
            // Nobody knows its key any more: it gets that of a new event.
            (Original::Gone(_), Some(payload)) => {
                let key = Key::of(self.dataset).of_line(payload);
                let record = Record {
                    kafka_time: None,
                    key,
                    value: None,
                    headers: Vec::new(),
                };
                (record, false)
            }
        };
        if let Some(payload) = &self.payload {
            record.value = Some(payload.clone());
            // Whether the original was masked says nothing of what was corrected.
            record.headers.retain(|(name, _)| name != MASKED_HEADER);
            if self.command.masked {
                record.headers.push((MASKED_HEADER.to_owned(), Some(b"true".to_vec())));
            }
        }
        let partition = letter.source.partition;
        if self.transactions.is_none() {
            self.tell(&letter.source, Outcome::WouldSend, None, None);
            return Ok(());
        }
        self.bytes += record.value.as_ref().map_or(0, Vec::len);
        self.together.push(Resend {
            letter: letter.clone(),
            partition: Some(partition).filter(|partition| is_there && *partition < self.partitions),
            record,
        });
        if self.bytes >= BYTES_TOGETHER {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what was prepared, all in one transaction; or one by one, where one of them is not accepted.
    fn flush(&mut self) -> anyhow::Result<()> {
        let together = std::mem::take(&mut self.together);
        self.bytes = 0;
        let Some(transactions) = self.transactions.as_ref().filter(|_| !together.is_empty()) else {
            return Ok(());
        };
        let mut outcomes: Vec<Result<Sent, ReplayError>> = Vec::new();
        let mut failure = None;
        match transactions.send(&together) {
            Ok(sent) => outcomes.extend(sent.into_iter().map(Ok)),
            Err(error @ ReplayError::NotAccepted { .. }) if together.len() == 1 => outcomes.push(Err(error)),
            Err(ReplayError::NotAccepted { .. }) => {
                for resend in together.chunks(1) {
                    match transactions.send(resend) {
                        Ok(sent) => outcomes.extend(sent.into_iter().map(Ok)),
                        Err(error @ ReplayError::NotAccepted { .. }) => outcomes.push(Err(error)),
                        Err(error) => {
                            failure = Some(error);
                            break;
                        }
                    }
                }
            }
            Err(error) => failure = Some(error),
        }
        for (resend, outcome) in together.iter().zip(outcomes) {
            let source = &resend.letter.source;
            match outcome {
                Ok((partition, offset)) => {
                    let to = format!("{}/{partition}/{offset}", source.topic);
                    self.tell(source, Outcome::Sent, Some(to), None);
                }
                Err(error) => self.tell(source, Outcome::NotAccepted, None, Some(sentence(&error))),
            }
        }
        tracing::info!("{} sent", self.count(&[Outcome::Sent]));
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn tell(&mut self, source: &Source, outcome: Outcome, to: Option<String>, why: Option<String>) {
        self.rows.push(Row {
            source: source.to_string(),
            outcome,
            to,
            why,
        });
    }

    fn count(&self, outcomes: &[Outcome]) -> usize {
        self.rows.iter().filter(|row| outcomes.contains(&row.outcome)).count()
    }
}

/// The corrected value, without the line break at its end.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(LARGEST_PAYLOAD + 1)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LARGEST_PAYLOAD + 1).read_to_end(&mut bytes))
    };
    let length = read.with_context(|| format!("{} can't be read", file.display()))?;
    ensure!(
        u64::try_from(length).unwrap_or(u64::MAX) <= LARGEST_PAYLOAD,
        "{} has more than {} MiB",
        file.display(),
        LARGEST_PAYLOAD >> 20
    );
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

fn text(report: &Report) -> String {
    let row = |row: &Row| {
        let where_or_why = row.to.clone().or_else(|| row.why.clone()).unwrap_or_default();
        vec![row.source.clone(), row.outcome.told().to_owned(), where_or_why]
    };
    let mut text = columns(&report.records.iter().map(row).collect::<Vec<_>>());
    let sent = if report.dry_run { "would be sent" } else { "sent" };
    let mut parts = vec![format!("{} {sent}", report.sent)];
    if report.skipped > 0 {
        parts.push(format!("{} were sent before (--again sends them too)", report.skipped));
    }
    if report.failed > 0 {
        parts.push(format!("{} could not be sent", report.failed));
    }
    if report.more {
        parts.push("there are more: run it again, or raise --limit".to_owned());
    }
    text.push_str(&format!("{}\n", parts.join("; ")));
    text
}
