//! `highwater dead-letters show`: all there is of one refused record, safe to look at.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use shared_connections::log::Kafka;
use shared_connections::log::letters::find::Order;
use shared_connections::log::letters::{Letter, Record, tells_nothing};

use super::chosen;
use super::list::Row;
use super::original::{Original, Originals};
use super::plain;
use crate::commands::output::Output;
use crate::commands::{Place, dataset, used_wrongly};

/// Of a key, value or header so many bytes are shown to people; JSON has all.
const SHOWN: usize = 4_096;
/// Bytes in a line of those that are no text.
const LINE: usize = 32;

/// Show one dead letter: headers, key and value
///
/// Where the letter has no value because it did not fit, the record is read again from where it lay, for as long as Kafka
/// has it. Of a dataset that hides something (it has mask rules, or `extra = "drop"`) nothing of the record is shown unless
/// --unmasked is given. Bytes that are no text are shown in hexadecimal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater dead-letters show flights flights/3/81204\n  \
    highwater dead-letters show flights 3/81204 --unmasked --output json")]
pub(super) struct Show {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: String,
    /// Where the record lies: topic/partition/offset, or partition/offset
    #[arg(value_name = "SOURCE", value_parser = chosen::Place::parse)]
    source: chosen::Place,
    /// Show the record as it lies in its topic, also what its dataset's rules hide
    #[arg(long)]
    unmasked: bool,
    #[command(flatten)]
    output: Output,
}

/// A dead letter and its record.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    /// The letter's headers, the record's own among them.
    letter_headers: Vec<Header>,
    /// Whence key, value and headers are: `letter`, `source`, or null where the record is gone or hidden.
    from: Option<&'static str>,
    /// Nothing of the record is shown, for its dataset's rules hide some of it.
    hidden: bool,
    /// Why it is gone.
    gone: Option<String>,
    key: Option<Content>,
    value: Option<Content>,
    headers: Vec<Header>,
}

#[derive(Debug, Serialize)]
struct Header {
    name: String,
    value: Option<Content>,
}

/// Bytes, as text where they are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    /// UTF-8.
    Text(String),
    /// Anything else, in hexadecimal.
    Hex(String),
}

impl Content {
    fn of(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Hex(hex(error.as_bytes())), Self::Text)
    }

    /// For a terminal: nothing in it is obeyed there.
    fn for_people(&self) -> String {
        match self {
            Self::Text(text) => {
                let end = text.floor_char_boundary(SHOWN);
                let shown = plain(&text[..end]);
                match text.len() - end {
                    0 => shown,
                    left => format!("{shown}… and {left} bytes more: see --output json"),
                }
            }
            Self::Hex(hex) => {
                let (bytes, end) = (hex.len() / 2, hex.len().min(2 * SHOWN));
                let mut shown = format!("{bytes} bytes that are no text");
                for line in hex.as_bytes()[..end].chunks(2 * LINE) {
                    let _ = write!(shown, "\n    {}", String::from_utf8_lossy(line));
                }
                if end < hex.len() {
                    shown.push_str("\n    … see --output json for all");
                }
                shown
            }
        }
    }
}

impl Show {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        let (config, definitions) = place.join()?;
        let dataset = match dataset(&definitions, &self.dataset) {
            Ok(dataset) => dataset,
            Err(wrong) => return Ok(wrong),
        };
        let source = match self.source.within(&dataset.topic) {
            Ok(source) => source,
            Err(wrong) => return Ok(used_wrongly(&wrong)),
        };
        let kafka = Kafka::new(&config.kafka)?;
        let wanted = |letter: &Letter| letter.dataset == dataset.name && letter.source == source;
        let found = kafka.letters(&dataset.topic, Order::NewestFirst, &wanted)?;
        anyhow::ensure!(!found.letters.is_empty(), "there is no dead letter of {source}");
        let mut originals = Originals::of(&kafka, &dataset.topic)?;
        let hidden = dataset.hides() && !self.unmasked;
        // More than one where the topic was made again.
        let shown = found.letters.iter().map(|letter| shown(&mut originals, letter, hidden));
        let shown = shown.collect::<anyhow::Result<Vec<_>>>()?;
        self.output
            .print_text(&shown, |shown| shown.iter().map(text).collect::<Vec<_>>().join("\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn shown(originals: &mut Originals, letter: &Letter, hidden: bool) -> anyhow::Result<Shown> {
    let mut of_letter = originals.letter(letter)?;
    let (from, record, gone) = if hidden {
        // It may be of a time without rules, and have the record's headers and value.
        if let Some(record) = &mut of_letter {
            let topic = &letter.source.topic;
            record
                .headers
                .retain(|(name, value)| tells_nothing(name, value.as_deref(), topic));
        }
        (None, None, None)
    } else {
        match originals.get(letter)? {
            Original::InLetter(record) => (Some("letter"), Some(record), None),
            Original::AtSource(record) => (Some("source"), Some(record), None),
            Original::Gone(why) => (None, None, Some(why)),
        }
    };
    let record = record.unwrap_or(Record {
        kafka_time: None,
        key: None,
        value: None,
        headers: Vec::new(),
    });
    Ok(Shown {
        row: Row::of(letter),
        letter_headers: headers(of_letter.map(|record| record.headers).unwrap_or_default()),
        headers: if from == Some("source") {
            headers(record.headers)
        } else {
            Vec::new()
        },
        from,
        hidden,
        gone,
        key: record.key.map(Content::of),
        value: record.value.map(Content::of),
    })
}

fn headers(headers: Vec<(String, Option<Vec<u8>>)>) -> Vec<Header> {
    let of = |(name, value): (String, Option<Vec<u8>>)| Header {
        name,
        value: value.map(Content::of),
    };
    headers.into_iter().map(of).collect()
}

fn text(shown: &Shown) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:16} {value}");
    };
    let content = |content: &Option<Content>| content.as_ref().map_or_else(|| "none".to_owned(), Content::for_people);
    let row = serde_json::to_value(&shown.row).unwrap_or_default();
    let of_row = |name: &str| row[name].as_str().map(plain);
    for (title, name) in [
        ("source", "source"),
        ("time", "time"),
        ("reason", "reason"),
        ("detail", "detail"),
        ("letter", "letter"),
        ("replay of", "replay_of"),
    ] {
        if let Some(value) = of_row(name) {
            line(title, &value);
        }
    }
    line("sent again", &shown.row.sent_again());
    for header in &shown.letter_headers {
        line(
            "letter's header",
            &format!("{} = {}", plain(&header.name), content(&header.value)),
        );
    }
    if let Some(gone) = &shown.gone {
        line("record", gone);
        return text;
    }
    if shown.hidden {
        line(
            "record",
            "hidden, for its dataset's rules hide some of it: see --unmasked",
        );
        return text;
    }
    if shown.from == Some("source") {
        line("record", "read again from where it lay, unmasked");
    }
    for header in &shown.headers {
        line(
            "header",
            &format!("{} = {}", plain(&header.name), content(&header.value)),
        );
    }
    line("key", &content(&shown.key));
    line("value", &content(&shown.value));
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_do_nothing_to_a_terminal() {
        let nasty = Content::of(b"\x1b[2Jok\n\xc3\xa4".to_vec());
        assert_eq!(nasty.for_people(), "\\u{1b}[2Jok\\nä");
        let binary = Content::of(vec![0xff; 33]);
        let expected = format!("33 bytes that are no text\n    {}\n    ff", "ff".repeat(32));
        assert_eq!(binary.for_people(), expected);
        let long = Content::of("ä".repeat(SHOWN).into_bytes()).for_people();
        assert!(long.ends_with("ä… and 4096 bytes more: see --output json"));
    }
}
